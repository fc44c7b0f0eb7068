"""The edge of view noise in one layer: Wachter's, or that of contrasts where noise is uneven."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lidar_cli.configuration import parse_size
from lidar_cli.core import metrics
from lidar_cli.core.moments import Moments, unit_rows
from lidar_cli.core.noise import contrast_edge, contrast_samples, dispersion
from lidar_cli.errors import DegenerateFeatures
from lidar_cli.features.blocks import Embeddings, ReadRows
from lidar_cli.settings import MetricSettings

BLOCK_NUMBERS = 2**20  # of a block's float64 copy, 8 MB


@dataclass(frozen=True)
class ViewNoise:
    """The edge of view noise, and what is to be said about it.

    law: "wachter", or "contrasts" where theirs is the larger.
    dispersion: variance of the samples' residual energies over that of equal Gaussian noise.
    """

    edge: float
    law: Literal["wachter", "contrasts"]
    dispersion: float | None = None
    remark: str | None = None


def find_view_noise(
    embeddings: Embeddings, settings: MetricSettings, moments: Moments
) -> ViewNoise:
    """The edge from the moments of views, and where they are uneven from some samples again.

    Raises DegenerateFeatures as `metrics.noise_edge`.
    """
    n, q, d = embeddings.shape
    wachter = metrics.noise_edge(n, q, d)
    spread = dispersion(moments)
    if spread is None or not spread.is_uneven:
        return ViewNoise(wachter, "wachter", spread.ratio if spread else None)
    uneven = (
        f"view noise is of unequal strength among samples: their residual energies vary "
        f"{spread.ratio:.3g} times as much as equal Gaussian noise would have them"
    )
    assert embeddings.views is not None
    blocks = partial(_blocks, embeddings.views.read, (n, q, d), settings.normalize, moments.device)
    try:
        contrasts = contrast_edge(blocks, n, settings.delta, parse_size(settings.memory))
    except DegenerateFeatures as error:
        remark = f"{uneven}; {error}, so directions of noise may count as signal"
        return ViewNoise(wachter, "wachter", spread.ratio, remark)
    if contrasts <= wachter:
        return ViewNoise(wachter, "wachter", spread.ratio)
    remark = (
        f"{uneven}; so the noise edge is that of contrasts between the views of a sample, "
        f"{contrasts:.3g}, and not Wachter's, {wachter:.3g}"
    )
    return ViewNoise(contrasts, "contrasts", spread.ratio, remark)


def _blocks(
    read: ReadRows, shape: tuple[int, int, int], normalize: bool, device: torch.device
) -> Iterator[Tensor]:
    """The samples of `contrast_samples` in float64 [c, q, d], many at a time."""
    n, q, d = shape
    samples = contrast_samples(n, q, d)
    for some in torch.split(samples, max(1, BLOCK_NUMBERS // (q * d))):
        ends = (some.diff() > 1).nonzero().flatten() + 1
        runs = torch.tensor_split(some, ends)
        parts = [read(int(run[0]), int(run[-1]) + 1) for run in runs]
        block = torch.cat(parts).to(device, torch.float64)
        yield unit_rows(block) if normalize else block
