"""Weighted sums of a table's rows: all that cropping, resizing, flipping and blurring consist of.

Each sum is formed term by term, on its own. A product with a banded matrix would multiply mostly
zeros, and its library may add in another order where the batch has another size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional


def weighted_rows(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """sum_t weight[..., t] table[index[..., t]] of a table [R, F]: [..., F].

    The terms are added in the order of t, so terms of weight 0 change no bit of a sum.
    """
    sums = functional.embedding_bag(
        index.reshape(-1, index.shape[-1]),
        table,
        mode="sum",
        per_sample_weights=weight.expand(index.shape).reshape(-1, index.shape[-1]),
    )
    return sums.view(*index.shape[:-1], table.shape[1])


def moved(arrays: Sequence[npt.NDArray[np.generic]], device: torch.device) -> list[Tensor]:
    """The host's numbers in double precision on a device, in one transfer that none waits for."""
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays], dtype=np.float64))
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    parts = torch.split(flat.to(device), [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
