"""A symmetric sum of products by its upper triangle: the other half is not worth computing."""

from __future__ import annotations

import torch
from torch import Tensor

from lidar_cli.core.threads import spread

STRIPS = 4  # more leave out more of the product, in shapes that a processor multiplies slower
LEAST_STRIP = 64
# On a CPU a small scatter is summed in lanes, each by one thread from its own share of the rows:
# torch's threads gain little from a product that small, and lose where a core is taken. How many
# there are does not depend on the threads, and so neither does any bit of the sum.
LANES = 8
LANE_NUMBERS = 2**18  # of the largest such scatter, 2 MB
LEAST_LANE_ROWS = 256


class Scatter:
    """The sum of row row^T over rows [d] that arrive in blocks, [d, d]."""

    def __init__(self, dim: int, device: torch.device) -> None:
        lanes = LANES if device.type == "cpu" and dim**2 <= LANE_NUMBERS else 1
        self._lanes = torch.zeros(lanes, dim, dim, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Add rows [c, d]."""
        count = len(self._lanes)
        if count == 1:
            add_products(self._lanes[0], rows)
            return
        shares = torch.split(rows, max(LEAST_LANE_ROWS, -(-len(rows) // count)))
        spread(lambda lane: add_products(self._lanes[lane], shares[lane]), range(len(shares)))

    def add_weighted(self, row: Tensor, weight: float) -> None:
        """Add weight row row^T of one row [d]."""
        self._lanes[0].addr_(row, row, alpha=weight)

    def add_sum(self, scatter: Tensor) -> None:
        """Add a sum [d, d] that was made elsewhere."""
        self._lanes[0].add_(scatter)

    def whole(self) -> Tensor:
        """The sum itself, [d, d]."""
        for lane in self._lanes[1:]:
            self._lanes[0].add_(lane)
            lane.zero_()
        return mirrored(self._lanes[0])


def add_products(scatter: Tensor, rows: Tensor) -> None:
    """Add the sum of row row^T over rows [c, d] to the upper triangle of the scatter [d, d].

    In strips from the diagonal to the right, which leaves out up to 3/8 of the product; what is
    below the diagonal is not valid until `mirrored`.
    """
    d = len(scatter)
    width = max(LEAST_STRIP, -(-d // STRIPS))
    for a in range(0, d, width):
        scatter[a : a + width, a:].addmm_(rows[:, a : a + width].T, rows[:, a:])


def mirrored(scatter: Tensor) -> Tensor:
    """The scatter itself, what is above its diagonal copied below."""
    for a in range(0, len(scatter), LEAST_STRIP):
        b = a + LEAST_STRIP
        scatter[a:b, a:b] = scatter[a:b, a:b].triu() + scatter[a:b, a:b].triu(1).T
        scatter[b:, a:b] = scatter[a:b, b:].T
    return scatter
