"""A symmetric sum of products by its upper triangle: the other half is not worth computing."""

from __future__ import annotations

from torch import Tensor

STRIPS = 4  # more leave out more of the product, in shapes that a processor multiplies slower
LEAST_STRIP = 128


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
