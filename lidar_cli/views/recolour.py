"""Jitter, grey, blur and solarisation of many views, each with its own parameters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from lidar_cli.views import colour
from lidar_cli.views.draws import JITTER_OPERATIONS, ViewParameters
from lidar_cli.views.hashes import Bools, Ints
from lidar_cli.views.recipes import Operation, Recipe
from lidar_cli.views.sums import moved

JITTER = [getattr(colour, name) for name in JITTER_OPERATIONS]


def arranged(parameters: ViewParameters, views: Ints) -> Ints:
    """The same views [N], those with alike operations side by side.

    They then make few runs for `recolour`: one for blur, at most 128 for jitter, whatever N.
    """
    steps = _jitter_steps(parameters, views)
    return views[np.lexsort([*steps.T[::-1], parameters.blur.reshape(-1)[views]])]


def recolour(
    x: Tensor,
    parameters: ViewParameters,
    views: Ints,
    operations: Sequence[Operation],
    recipe: Recipe,
) -> None:
    """Carry out operations in their order, in place, each on the views that have it.

    x [N, 3, h, w] in [0, 1]; views [N]: numbers i q + j of these views in the parameters. Places
    of `flip` in the order are passed over. Views in any order come out alike, `arranged` ones
    faster: jitter and blur work on runs of views, without a copy of them.
    """
    p = parameters
    grey, solarise = (np.flatnonzero(gate.reshape(-1)[views]) for gate in (p.grey, p.solarise))
    factors, sigma, greyed, solarised = moved(
        [p.factors.reshape(-1, 4)[views], p.sigma.reshape(-1)[views], grey, solarise], x.device
    )
    factors = factors.float().view(-1, 4, 1, 1, 1)
    for operation in operations:
        if operation == "jitter":
            for step in _jitter_steps(p, views).T:
                for run, k in _runs(step):
                    if k >= 0 and recipe.jitter[k]:
                        JITTER[k](x[run], factors[run, k])
        elif operation == "grey" and len(grey):
            index = greyed.long()
            x[index] = colour.grey(x[index])
        elif operation == "blur":
            for run, happens in _runs(p.blur.reshape(-1)[views]):
                if happens:
                    _blur(x[run], sigma[run], recipe)
        elif operation == "solarise" and len(solarise):
            index = solarised.long()
            x[index] = colour.solarise(x[index])


def _blur(x: Tensor, sigma: Tensor, recipe: Recipe) -> None:
    if recipe.blur_filter == "pillow":
        colour.pillow_blur(x, sigma, recipe.blur_sigma[1])
        return
    size = x.shape[-1]
    kernel = min(recipe.kernel(size), 2 * size - 1)  # a reflection reaches across the view once
    if kernel > 1:
        colour.blur(x, sigma, kernel)


def _jitter_steps(parameters: ViewParameters, views: Ints) -> Ints:
    """Number of each view's first, second, ... jitter operation [N, 4]; -1 for none."""
    steps: Ints = np.where(parameters.jitter[..., None], parameters.order, -1)
    return steps.reshape(-1, 4)[views]


def _runs(values: Ints | Bools) -> Iterator[tuple[slice, int]]:
    """Stretches of equal neighbours, and their value."""
    edges = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
    for start, stop in itertools.pairwise(edges):
        yield slice(start, stop), int(values[start])
