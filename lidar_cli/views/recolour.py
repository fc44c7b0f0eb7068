"""Jitter, grey, blur and solarisation of many views, each with its own parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lidar_cli.views import colour
from lidar_cli.views.draws import JITTER_OPERATIONS, ViewParameters
from lidar_cli.views.hashes import Ints
from lidar_cli.views.recipes import Operation, Recipe

JITTER = [getattr(colour, name) for name in JITTER_OPERATIONS]


def recolour(
    x: Tensor,
    parameters: ViewParameters,
    views: Ints,
    operations: Sequence[Operation],
    recipe: Recipe,
) -> None:
    """Carry out operations in their order, in place, each on the views that have it.

    x [N, 3, h, w] in [0, 1]; views [N]: numbers i q + j of these views in the parameters. Places
    of `flip` in the order are passed over.
    """
    p = parameters
    steps: list[tuple[Ints, Callable[[Tensor, Tensor], Tensor]]] = []  # rows of x, what to do
    # A view's parameters as columns: the four jitter factors, then sigma.
    packed = np.concatenate([p.factors.reshape(-1, 4), p.sigma.reshape(-1, 1)], axis=1)
    for operation in operations:
        if operation == "jitter":
            order = np.where(p.jitter[..., None], p.order, -1).reshape(-1, 4)[views]
            steps += [
                (np.flatnonzero(order[:, step] == k), _jitter(k))
                for step in range(4)
                for k in range(4)
            ]
        elif operation == "grey":
            steps.append((np.flatnonzero(p.grey.reshape(-1)[views]), _grey))
        elif operation == "blur":
            steps.append((np.flatnonzero(p.blur.reshape(-1)[views]), _blur(recipe, x.shape[-1])))
        elif operation == "solarise":
            steps.append((np.flatnonzero(p.solarise.reshape(-1)[views]), _solarise))
    if not steps:
        return
    # One transfer each for indices and strengths: many small ones would stall a GPU.
    chosen = torch.as_tensor(np.concatenate([rows for rows, _ in steps]), device=x.device)
    strength = torch.as_tensor(packed[views].astype(np.float32), device=x.device)  # [N, 5]
    indices = torch.split(chosen, [len(rows) for rows, _ in steps])
    for index, (_, change) in zip(indices, steps, strict=True):
        if len(index):
            x[index] = change(x[index], strength[index])


def _jitter(k: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, strength: JITTER[k](x, strength[:, k].view(-1, 1, 1, 1))


def _grey(x: Tensor, _: Tensor) -> Tensor:
    return colour.grey(x).expand(-1, 3, -1, -1)


def _blur(recipe: Recipe, size: int) -> Callable[[Tensor, Tensor], Tensor]:
    if recipe.blur_filter == "pillow":
        return lambda x, strength: colour.pillow_blur(x, strength[:, 4])
    # A reflection reaches across the view once.
    kernel = min(recipe.kernel(size), 2 * size - 1)
    return lambda x, strength: x if kernel == 1 else colour.blur(x, strength[:, 4], kernel)


def _solarise(x: Tensor, _: Tensor) -> Tensor:
    return colour.solarise(x)
