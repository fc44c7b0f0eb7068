"""The spec of BEiT's Vision Transformer, which data2vec uses for images.

    logits = q k^T / sqrt(d) + bias,   bias_ij = table[index_ij]       [heads, 1 + N, 1 + N]

The table has a row for each displacement between two patches, and three for the class token. All
blocks share one table; after fine-tuning, each block has one. Queries and values have a bias, keys
have none. The number of heads is the length of the table's second axis. The grid determines
`relative_position_index`.

data2vec's student regresses lm_head(norm(tokens)) at masked patches to the outputs of the teacher's
upper blocks there; the teacher sees all patches. The embedding is the mean of the patch tokens
after the norm, or before `fc_norm`; under a mask, of the masked ones alone. lm_head is linear, so
lm_head of the mean is the mean of lm_head. This file needs no torch; the module is in
models/beit.py.

Sources: Bao et al. 2021 (BEiT); Baevski et al. 2022 (data2vec).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lidar_cli.checkpoints.shapes import vit
from lidar_cli.checkpoints.shapes.spec import USUAL, Shapes, layernorm, number_of_blocks, repeated
from lidar_cli.errors import CheckpointError

ANCHOR = "blocks.0.attn.q_bias"
MM_ANCHOR = "layers.0.attn.q_bias"
FAIRSEQ_ANCHOR = "encoder.blocks.0.mlp.0.weight"
FAIRSEQ_EPS = 1e-5  # of LayerNorm
CLASS_TOKEN_ROWS = 3  # of a table: class token to patch, patch to class token, to itself
TABLE = "relative_position_bias_table"

# fairseq creates `final_proj` but never calls it, so its weights are still random: ignored.
FAIRSEQ_UNUSED = ("final_proj.",)
# fairseq's names -> BEiT's.
FROM_FAIRSEQ = (
    (r"encoder\.", ""),
    (r"patch_embed\.conv\.", "patch_embed.proj."),
    (r"cls_emb$", "cls_token"),
    (r"mask_emb$", "mask_token"),
    (r"(blocks\.\d+\.mlp)\.0\.", r"\1.fc1."),
    (r"(blocks\.\d+\.mlp)\.2\.", r"\1.fc2."),
)


@dataclass(frozen=True, kw_only=True)
class BeitSpec(vit.TransformerSpec):
    """Sizes and optional parts of a BEiT."""

    qkv_bias: bool
    shared_table: bool  # whether all blocks share a table of relative positions
    table_per_block: bool  # whether each block has one
    positions: bool  # whether there is also an absolute position embedding
    layer_scale: bool
    mask_token: bool
    norm: bool  # whether tokens are normalised after the last block
    fc_norm: bool  # whether their mean is, instead

    @property
    def arch(self) -> str:
        """Such as 'beit_base_patch16'."""
        return self.named("beit", self.depth, [])

    def masks(self, teacher: bool) -> tuple[str, ...]:
        """data2vec's rule, for a teacher or a file with the token that replaces masked patches."""
        return ("blocks",) if teacher or self.mask_token else ()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """BEiT's name -> shape of every tensor of the module."""
        width, patch = self.width, self.patch
        table = ((2 * self.grid - 1) ** 2 + CLASS_TOKEN_ROWS, self.heads)
        shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width)}
        if self.mask_token:
            shapes["mask_token"] = (1, 1, width)
        if self.positions:
            shapes["pos_embed"] = (1, 1 + self.grid**2, width)
        shapes["patch_embed.proj.weight"] = (width, self.channels, patch, patch)
        shapes["patch_embed.proj.bias"] = (width,)
        if self.shared_table:
            shapes[f"rel_pos_bias.{TABLE}"] = table
        block = vit.block_shapes(width, self.mlp, qkv_bias=False)
        vectors = ["attn.q_bias", "attn.v_bias"] if self.qkv_bias else []
        vectors += ["gamma_1", "gamma_2"] if self.layer_scale else []
        block |= dict.fromkeys(vectors, (width,))
        if self.table_per_block:
            block[f"attn.{TABLE}"] = table
        shapes |= repeated("blocks", self.depth, block)
        if self.norm or self.fc_norm:
            shapes |= layernorm("fc_norm" if self.fc_norm else "norm", width)
        return shapes


def spec(
    shapes: Shapes,
    origin: str,
    *,
    heads: int | None = None,
    eps: float | None = None,
    usual_eps: tuple[float, str] = (vit.EPS, USUAL),
    norm_optional: bool = False,
) -> BeitSpec:
    """The spec of the BEiT with these shapes, by BEiT's names.

    heads, eps: the values in a config.json. usual_eps: eps without a config.json, and its origin.
    norm_optional: whether a file without any last norm is a model without one; otherwise the
    tensors of `norm` are reported as missing.
    Raises CheckpointError if the shapes fit no BEiT.
    """
    width, patch = vit.patch_embedding(shapes, origin)
    shared, of_block = f"rel_pos_bias.{TABLE}", f"blocks.0.attn.{TABLE}"
    table = shapes.get(shared) or shapes.get(of_block)
    if table is not None and (len(table) != 2 or table[1] < 1):
        raise CheckpointError(
            f"{origin}: the table of relative positions is {list(table)}; expected "
            "[displacements, heads]; name the architecture with --arch",
            code="not-a-beit",
        )
    count, why, decided = vit.attention_heads(
        width, table[1] if table else 0, "the table of relative positions", heads
    )
    if eps is None:
        eps, why["eps"] = usual_eps
    else:
        decided["eps"] = vit.eps_by_config(eps)
    return BeitSpec(
        width=width,
        depth=number_of_blocks(shapes),
        heads=count,
        patch=patch,
        channels=vit.input_channels(shapes),
        grid=_grid(table, shapes.get("pos_embed", ()), origin),
        mlp=vit.mlp_width(shapes, "blocks.0.mlp.fc1.weight", origin),
        qkv_bias="blocks.0.attn.q_bias" in shapes,
        shared_table=shared in shapes,
        table_per_block=of_block in shapes,
        positions="pos_embed" in shapes,
        layer_scale="blocks.0.gamma_1" in shapes,
        mask_token="mask_token" in shapes,
        norm="norm.weight" in shapes or not (norm_optional or "fc_norm.weight" in shapes),
        fc_norm="fc_norm.weight" in shapes,
        eps=eps,
        why=why,
        decided=decided,
    )


def fairseq_spec(shapes: Shapes, origin: str) -> BeitSpec:
    """The spec of fairseq's data2vec vision model, with names by FROM_FAIRSEQ; see `spec`."""
    return spec(shapes, origin, usual_eps=(FAIRSEQ_EPS, "fairseq's"))


def _grid(table: tuple[int, ...] | None, positions: tuple[int, ...], origin: str) -> int:
    """Patches a side, from a table of (2 side - 1)^2 + 3 rows or 1 + side^2 positions."""
    if table:
        odd = math.isqrt(max(table[0] - CLASS_TOKEN_ROWS, 0))
        if odd % 2 and odd * odd + CLASS_TOKEN_ROWS == table[0]:
            return (odd + 1) // 2
    elif len(positions) == 3:
        side = math.isqrt(max(positions[1] - 1, 0))
        if side and 1 + side * side == positions[1]:
            return side
    present = f"{table[0]} displacements" if table else f"positions {list(positions) or 'missing'}"
    raise CheckpointError(
        f"{origin}: the BEiT has {present}; expected those of a square grid of patches; "
        "name the architecture with --arch",
        code="not-a-beit",
    )
