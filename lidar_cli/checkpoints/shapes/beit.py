"""BEiT's Vision Transformer, in which data2vec trains images, from its shapes.

    logits = q k^T / sqrt(d) + bias,   bias_ij = table[index_ij]       [heads, 1 + N, 1 + N]

The table has a row for each displacement of two patches, and three for the class token; one table
serves all blocks, or each has its own after fine-tuning. Queries and values have a bias, keys none.
The number of heads is the table's second axis. `relative_position_index` follows from the grid.

data2vec's student regresses lm_head(norm(tokens)) at masked patches to what the teacher's upper
blocks give there, who sees all. The embedding is the mean of the patch tokens after the norm, or
before `fc_norm`, under a mask of the masked ones alone; lm_head is linear, so that of the mean is
the mean of it. This file needs no torch; the module is in beit_module.py.

Sources: Bao et al. 2021 (BEiT); Baevski et al. 2022 (data2vec).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from lidar_cli.checkpoints.assume import USUAL, Open
from lidar_cli.checkpoints.shapes import vit
from lidar_cli.checkpoints.shapes.spec import title
from lidar_cli.errors import CheckpointError

ANCHOR = "blocks.0.attn.q_bias"
FAIRSEQ_ANCHOR = "encoder.blocks.0.mlp.0.weight"
EPS = 1e-6
FAIRSEQ_EPS = 1e-5
EXTRA = 3  # rows of a table: class token to patch, patch to class token, class token to itself
TABLE = "relative_position_bias_table"

# fairseq's names -> BEiT's. Its training makes `final_proj` and never calls it: the loss there sees
# the normed tokens, so that the weights are a random projector's and noise here.
FAIRSEQ_NOISE = ("final_proj.",)
FROM_FAIRSEQ = (
    (r"^encoder\.", ""),
    (r"^patch_embed\.conv\.", "patch_embed.proj."),
    (r"^cls_emb$", "cls_token"),
    (r"^mask_emb$", "mask_token"),
    (r"^(blocks\.\d+\.mlp)\.0\.", r"\1.fc1."),
    (r"^(blocks\.\d+\.mlp)\.2\.", r"\1.fc2."),
)


def from_fairseq(name: str) -> str:
    """BEiT's name of a tensor of fairseq's data2vec vision model."""
    for pattern, replacement in FROM_FAIRSEQ:
        name = re.sub(pattern, replacement, name)
    return name


@dataclass(frozen=True)
class BeitSpec(Open):
    """Sizes and optional parts of a BEiT."""

    width: int
    depth: int
    heads: int
    patch: int
    grid: int  # patches a side
    mlp: int  # width of the hidden layer
    qkv_bias: bool
    shared_table: bool  # of relative positions
    own_tables: bool  # one a block
    positions: bool  # absolute ones too
    layer_scale: bool
    mask_token: bool
    norm: bool  # of tokens, after the last block
    fc_norm: bool  # after pooling, in its place
    eps: float = EPS

    @property
    def arch(self) -> str:
        """Such as 'beit_base_patch16'."""
        usual = vit.DEPTHS.get(self.width)
        notes = [f"depth {self.depth}"] if self.depth != usual else []
        return title(f"beit_{vit.NAMES.get(self.width, str(self.width))}_patch{self.patch}", notes)

    @property
    def image_size(self) -> int:
        """Of the positions, in pixels a side."""
        return self.grid * self.patch

    def masks(self, teacher: bool) -> tuple[str, ...]:
        """data2vec's, if it is a teacher's or has the token that stands where it masks."""
        return ("blocks",) if teacher or self.mask_token else ()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors of the module, by BEiT's names."""
        width, patch = self.width, self.patch
        table = ((2 * self.grid - 1) ** 2 + EXTRA, self.heads)
        found: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width)}
        if self.mask_token:
            found["mask_token"] = (1, 1, width)
        if self.positions:
            found["pos_embed"] = (1, 1 + self.grid**2, width)
        found["patch_embed.proj.weight"] = (width, 3, patch, patch)
        found["patch_embed.proj.bias"] = (width,)
        if self.shared_table:
            found[f"rel_pos_bias.{TABLE}"] = table
        for index in range(self.depth):
            block = vit.block_shapes(width, self.mlp, qkv_bias=False)
            vectors = ["attn.q_bias", "attn.v_bias"] if self.qkv_bias else []
            vectors += ["gamma_1", "gamma_2"] if self.layer_scale else []
            block |= dict.fromkeys(vectors, (width,))
            if self.own_tables:
                block[f"attn.{TABLE}"] = table
            found |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
        if self.norm or self.fc_norm:
            last = "fc_norm" if self.fc_norm else "norm"
            found |= {f"{last}.weight": (width,), f"{last}.bias": (width,)}
        return found


def spec(
    shapes: Mapping[str, tuple[int, ...]],
    origin: str,
    *,
    heads: int | None = None,
    eps: float | None = None,
    usual_eps: tuple[float, str] = (EPS, USUAL),
    bare: bool = False,
) -> BeitSpec:
    """The BEiT that tensors of these shapes, by BEiT's names, belong to.

    heads, eps: of a config.json. usual_eps: what it is else, and whose. bare: whether no last norm
    at all may be meant, rather than a tensor be missing. Raises CheckpointError if the shapes fit
    none.
    """
    width, patch = vit.patches(shapes, origin)
    shared, own = f"rel_pos_bias.{TABLE}", f"blocks.0.attn.{TABLE}"
    table = shapes.get(shared) or shapes.get(own)
    if table is not None and (len(table) != 2 or table[1] < 1):
        raise CheckpointError(
            f"{origin}: the table of relative positions is {list(table)}; expected "
            "[displacements, heads]; name the architecture with --arch"
        )
    count, why, decided = vit.heads_of(
        width, table[1] if table else 0, "the table of relative positions", heads
    )
    if eps is None:
        eps, why["eps"] = usual_eps
    else:
        decided["eps"] = vit.eps_by_config(eps)
    return BeitSpec(
        width=width,
        depth=vit.depth(shapes),
        heads=count,
        patch=patch,
        grid=_grid(table, shapes.get("pos_embed", ()), origin),
        mlp=vit.hidden(shapes, "blocks.0.mlp.fc1.weight", origin),
        qkv_bias="blocks.0.attn.q_bias" in shapes,
        shared_table=shared in shapes,
        own_tables=own in shapes,
        positions="pos_embed" in shapes,
        layer_scale="blocks.0.gamma_1" in shapes,
        mask_token="mask_token" in shapes,
        norm="norm.weight" in shapes or not (bare or "fc_norm.weight" in shapes),
        fc_norm="fc_norm.weight" in shapes,
        eps=eps,
        why=why,
        decided=decided,
    )


def fairseq_spec(shapes: Mapping[str, tuple[int, ...]], origin: str) -> BeitSpec:
    """That of fairseq's data2vec vision model, whose names `from_fairseq` gave; see `spec`."""
    return spec(shapes, origin, usual_eps=(FAIRSEQ_EPS, "fairseq's"))


def _grid(table: tuple[int, ...] | None, positions: tuple[int, ...], origin: str) -> int:
    """Patches a side: of (2 side - 1)^2 + 3 displacements, or 1 + side^2 positions."""
    if table:
        odd = math.isqrt(max(table[0] - EXTRA, 0))
        if odd % 2 and odd * odd + EXTRA == table[0]:
            return (odd + 1) // 2
    elif len(positions) == 3:
        side = math.isqrt(max(positions[1] - 1, 0))
        if side and 1 + side * side == positions[1]:
            return side
    found = f"{table[0]} displacements" if table else f"positions {list(positions) or 'missing'}"
    raise CheckpointError(
        f"{origin}: the BEiT has {found}; expected those of a square grid of patches; "
        "name the architecture with --arch"
    )
