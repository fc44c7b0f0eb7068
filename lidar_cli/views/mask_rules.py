"""Rules by which methods mask patches, with the constants of their authors as defaults.

Like a recipe they hold constants only; `masks` draws from them. Shares are of the patches of an
image, so that a rule serves any grid.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

Share = Annotated[float, Gt(0), Lt(1)]
Part = Annotated[float, Gt(0), Le(1)]
Ratio = Annotated[float, Gt(0), Le(100)]


@dataclass(frozen=True)
class MultiBlock:
    """I-JEPA: one block is seen, less the target blocks, which are to be predicted.

    Scales are shares of the grid's patches, ratios height over width. min_keep: a block or a
    context holds more patches than that. batch: how many images share a cut in training, see
    `masks.ijepa_masks`.
    Source: facebookresearch/ijepa, configs, src/masks/multiblock.py.
    """

    rule: Literal["multi-block"] = "multi-block"
    targets: Annotated[int, Ge(1), Le(64)] = 4
    target_scale: tuple[Part, Part] = (0.15, 0.2)
    target_ratio: tuple[Ratio, Ratio] = (0.75, 1.5)
    context_scale: tuple[Part, Part] = (0.85, 1.0)
    context_ratio: tuple[Ratio, Ratio] = (1.0, 1.0)
    min_keep: Annotated[int, Ge(0), Le(10**6)] = 10
    batch: Annotated[int, Ge(1), Le(4096)] = 128


@dataclass(frozen=True)
class Blocks:
    """BEiT and data2vec: rectangles are hidden until a share of the patches is.

    masked: 120 of 14 x 14 patches, as data2vec_vision's recipes have it, and the same share, 61 %,
    of another grid, rounded. smallest: patches of a block; the authors' number at any grid.
    ratio: height over width.
    Source: microsoft/unilm, beit/masking_generator.py; facebookresearch/data2vec_vision,
    beit/datasets.py.
    """

    rule: Literal["blocks"] = "blocks"
    masked: Share = 120 / 196
    smallest: Annotated[int, Ge(1), Le(10**6)] = 16
    ratio: tuple[Ratio, Ratio] = (0.3, 1 / 0.3)


@dataclass(frozen=True)
class InverseBlocks:
    """data2vec 2.0: everything is hidden but a few squares.

    masked: share of the patches; the large models' is 0.75. adjust: by which the squares
    outnumber what is kept (0.1 there). side: of a square, in patches.
    Source: facebookresearch/fairseq, fairseq/data/data_utils.py, examples/data2vec/config/v2.
    """

    rule: Literal["inverse-blocks"] = "inverse-blocks"
    masked: Share = 0.8
    adjust: Annotated[float, Ge(0), Lt(1)] = 0.07
    side: Annotated[int, Ge(1), Le(10**6)] = 3


MaskRule = MultiBlock | Blocks | InverseBlocks
RULES: dict[str, type[MaskRule]] = {
    "multi-block": MultiBlock,
    "blocks": Blocks,
    "inverse-blocks": InverseBlocks,
}


def fault(rule: MaskRule) -> str | None:
    """What is wrong with constants that are each within their bounds, or None."""
    for name, value in asdict(rule).items():
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            return f"{name} = {value}: expected finite numbers"
        if isinstance(value, tuple) and value[0] > value[1]:
            return f"{name} = {list(value)}: the lower end comes first"
    return None
