"""The spec of a Swin Transformer from names and shapes, built with timm's class.

    logits = q k^T / sqrt(d) + bias,   bias_ij = table[index_ij]   in each window of w x w patches
    every second block: windows shifted by w // 2, unless one window has the whole stage
    between stages: each 2 x 2 patches become one of twice the width

The table of a block has (2 w - 1)^2 rows and a column a head, so that the shapes determine windows
and heads. A stage with fewer patches a side than the window of the others has been trained with one
window; so has the last stage of the published models, which therefore determines the image size:
w x 2^(stages - 1) x patch, unless a config.json has it. A stage is padded to a multiple of its
window. The embedding is the mean of the last stage's patches after the norm.

timm has the downsampling at the beginning of the stage after it, Microsoft and Hugging Face at the
end of the stage before. The buffers relative_position_index and attn_mask follow from the sizes.
This file needs no torch; the module is in models/swin.py.

Source: Liu et al. 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count

from lidar_cli.checkpoints.shapes import vit
from lidar_cli.checkpoints.shapes.spec import (
    USUAL,
    ModuleSpec,
    Rename,
    Shapes,
    layernorm,
    linear,
    number_of_blocks,
    repeated,
    with_notes,
)
from lidar_cli.errors import CheckpointError

ANCHOR = "layers.0.downsample.reduction.weight"  # Microsoft's
TIMM_ANCHOR = "layers.1.downsample.reduction.weight"  # in files with ANCHOR too
HF_ANCHOR = "encoder.layers.0.downsample.reduction.weight"
BUFFERS = (r".*\.relative_position_index$", r".*\.attn_mask$")
TABLE = "relative_position_bias_table"
EPS = 1e-5  # torch's default
MAX_STAGES = 8
# (width of the first stage, blocks of each stage) -> the usual name.
NAMES: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "tiny",
    (96, (2, 2, 18, 2)): "small",
    (128, (2, 2, 18, 2)): "base",
    (192, (2, 2, 18, 2)): "large",
}
# Of the last stage first, so that no name is moved twice.
FROM_MICROSOFT: Rename = tuple(
    (rf"layers\.{i}\.downsample\.", f"layers.{i + 1}.downsample.") for i in reversed(range(8))
)
FROM_HF: Rename = (
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.norm\.", "patch_embed.norm."),
    (r"layernorm\.", "norm."),
    (r"encoder\.(layers\.\d+\.)", r"\1"),
    (r"(layers\.\d+\.blocks\.\d+\.)attention\.self\.query\.(\w+)$", r"\1attn.qkv.\2@0"),
    (r"(layers\.\d+\.blocks\.\d+\.)attention\.self\.key\.(\w+)$", r"\1attn.qkv.\2@1"),
    (r"(layers\.\d+\.blocks\.\d+\.)attention\.self\.value\.(\w+)$", r"\1attn.qkv.\2@2"),
    (r"(layers\.\d+\.blocks\.\d+\.)attention\.self\.(relative_position\w+)$", r"\1attn.\2"),
    (r"(layers\.\d+\.blocks\.\d+\.)attention\.output\.dense\.", r"\1attn.proj."),
    (r"(layers\.\d+\.blocks\.\d+\.)layernorm_before\.", r"\1norm1."),
    (r"(layers\.\d+\.blocks\.\d+\.)layernorm_after\.", r"\1norm2."),
    (r"(layers\.\d+\.blocks\.\d+\.)intermediate\.dense\.", r"\1mlp.fc1."),
    (r"(layers\.\d+\.blocks\.\d+\.)output\.dense\.", r"\1mlp.fc2."),
    *FROM_MICROSOFT,
)


@dataclass(frozen=True)
class Stage:
    """Sizes of one stage."""

    width: int
    depth: int  # blocks
    heads: int
    window: int  # patches a side
    mlp: int  # width of the hidden layer


@dataclass(frozen=True, kw_only=True)
class SwinSpec(ModuleSpec):
    """Sizes of a Swin Transformer."""

    patch: int  # pixels a side
    stages: tuple[Stage, ...]
    image_size: int  # pixels a side that it is trained at
    qkv_bias: bool
    patch_norm: bool
    eps: float = EPS  # of the blocks' LayerNorms and the last one
    channels: int = 3  # of the images

    @property
    def width(self) -> int:
        """The width of the embedding."""
        return self.stages[-1].width

    @property
    def arch(self) -> str:
        """Such as 'swin_tiny_patch4_window7'."""
        first, depths = self.stages[0], tuple(stage.depth for stage in self.stages)
        name = NAMES.get((first.width, depths), str(first.width))
        notes = [] if not name.isdigit() else [f"depth {'-'.join(map(str, depths))}"]
        return with_notes(f"swin_{name}_patch{self.patch}_window{first.window}", notes)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """timm's name -> shape of every tensor of the module."""
        width = self.stages[0].width
        shapes: dict[str, tuple[int, ...]] = {
            "patch_embed.proj.weight": (width, self.channels, self.patch, self.patch),
            "patch_embed.proj.bias": (width,),
        }
        if self.patch_norm:
            shapes |= layernorm("patch_embed.norm", width)
        for number, stage in enumerate(self.stages):
            if number:
                before, name = self.stages[number - 1].width, f"layers.{number}.downsample"
                shapes |= layernorm(f"{name}.norm", 4 * before)
                shapes |= linear(f"{name}.reduction", stage.width, 4 * before, bias=False)
            block = vit.block_shapes(stage.width, stage.mlp, qkv_bias=self.qkv_bias)
            block[f"attn.{TABLE}"] = ((2 * stage.window - 1) ** 2, stage.heads)
            shapes |= repeated(f"layers.{number}.blocks", stage.depth, block)
        return shapes | layernorm("norm", self.width)


def spec(
    shapes: Shapes, origin: str, *, eps: float | None = None, image_size: int | None = None
) -> SwinSpec:
    """The spec of the Swin Transformer with these shapes, by timm's names.

    eps, image_size: the values in a config.json, None for the usual ones.
    Raises CheckpointError if the shapes fit no Swin Transformer.
    """
    patch = vit.patch_embedding(shapes, origin)[1]
    stages: list[Stage] = []
    for number in count():
        if f"layers.{number}.blocks.0.attn.proj.weight" not in shapes:
            break
        stages.append(_stage(shapes, f"layers.{number}.blocks", origin))
    if not 0 < len(stages) <= MAX_STAGES:
        raise CheckpointError(
            f"{origin}: the Swin Transformer has {len(stages)} stages; expected blocks named "
            f"layers.0.blocks.0 and so on; name the architecture with --arch",
            code="not-a-swin",
        )
    usual = stages[-1].window * 2 ** (len(stages) - 1) * patch
    why = {} if eps is not None else {"eps": USUAL}
    decided = {"heads": "the tables of relative positions have a column a head"}
    return SwinSpec(
        patch=patch,
        stages=tuple(stages),
        image_size=image_size or usual,
        qkv_bias="layers.0.blocks.0.attn.qkv.bias" in shapes,
        patch_norm="patch_embed.norm.weight" in shapes,
        eps=EPS if eps is None else eps,
        channels=vit.input_channels(shapes),
        why=why,
        decided=decided if eps is None else {**decided, "eps": vit.eps_by_config(eps)},
    )


def _stage(shapes: Shapes, blocks: str, origin: str) -> Stage:
    """The sizes of the stage whose blocks have that prefix."""
    table = shapes.get(f"{blocks}.0.attn.{TABLE}", ())
    side = math.isqrt(table[0]) if len(table) == 2 else 0
    if side % 2 == 0 or side * side != table[0] or table[1] < 1:
        raise CheckpointError(
            f"{origin}: {blocks}.0.attn.{TABLE} is {list(table) or 'missing'}; expected "
            "[(2 window - 1)^2, heads], as in Swin and not Swin V2; name the architecture with "
            "--arch",
            code="not-a-swin",
        )
    return Stage(
        width=shapes[f"{blocks}.0.attn.proj.weight"][0],
        depth=number_of_blocks(shapes, blocks),
        heads=table[1],
        window=(side + 1) // 2,
        mlp=vit.mlp_width(shapes, f"{blocks}.0.mlp.fc1.weight", origin),
    )


def grids(spec: SwinSpec, size: int) -> tuple[int, ...]:
    """Patches a side of each stage for images of `size` pixels a side.

    Raises CheckpointError if the size is not a multiple of the patch size, or if a stage has fewer
    patches than its window.
    """
    grid = vit.grid_of(size, spec.patch)
    sides = []
    for number, stage in enumerate(spec.stages):
        sides.append(grid)
        if grid < stage.window:
            least = stage.window * 2**number * spec.patch
            raise CheckpointError(
                f"image size {size} leaves {grid} x {grid} patches in stage {number + 1} of the "
                f"{spec.arch}; expected at least its window of {stage.window}; use "
                f"--image-size {max(least, spec.image_size)}",
                code="image-size",
            )
        grid = (grid + 1) // 2
    return tuple(sides)
