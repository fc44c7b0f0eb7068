"""BEiT's Vision Transformer, in which data2vec trains images, from its shapes, as timm's class.

    logits = q k^T / sqrt(d) + bias,   bias_ij = table[index_ij]       [heads, 1 + N, 1 + N]

The table has a row for each displacement of two patches, and three for the class token; one table
serves all blocks, or each has its own after fine-tuning. Queries and values have a bias, keys none.
The number of heads is the table's second axis. `relative_position_index` follows from the grid.

data2vec's student regresses lm_head(norm(tokens)) at masked patches to `target` of the teacher, who
sees all. The embedding is the mean of the patch tokens after the norm, or before `fc_norm`; lm_head
is linear, so that of the mean is the mean of it.

Sources: Bao et al. 2021 (BEiT); Baevski et al. 2022 (data2vec).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lidar_cli.checkpoints import vit
from lidar_cli.checkpoints.backbone import Backbone, title
from lidar_cli.checkpoints.positions import resample
from lidar_cli.errors import CheckpointError

ANCHOR = "blocks.0.attn.q_bias"
FAIRSEQ_ANCHOR = "encoder.blocks.0.mlp.0.weight"
EPS = 1e-6
FAIRSEQ_EPS = 1e-5
EXTRA = 3  # rows of a table: class token to patch, patch to class token, class token to itself
TARGETS = 6  # blocks of which data2vec averages the outputs, at depth 12 and 24
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
class BeitSpec:
    """Sizes and optional parts of a BEiT."""

    width: int
    depth: int
    heads: int
    heads_known: bool  # by a table or the caller, not by the width
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

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The number of heads, where it is the usual one for the width."""
        usual = f"{self.heads} attention heads, as usual for width {self.width}"
        return () if self.heads_known else (usual,)

    def build(self) -> Beit:
        """The module, without weights. Imports timm."""
        try:
            with torch.device("meta"):
                model = Beit(self)
        except RuntimeError:  # older timm reads numbers from a tensor while it builds
            model = Beit(self)
        model.set_buffers()
        return model


def spec(
    shapes: Mapping[str, tuple[int, ...]],
    origin: str,
    *,
    heads: int | None = None,
    eps: float = EPS,
    bare: bool = False,
) -> BeitSpec:
    """The BEiT that tensors of these shapes, by BEiT's names, belong to.

    heads, eps: where a format or a config.json tells them. bare: whether no last norm at all may be
    meant, rather than a tensor be missing. Raises CheckpointError if the shapes fit none.
    """
    width, patch = vit.patches(shapes, origin)
    shared, own = f"rel_pos_bias.{TABLE}", f"blocks.0.attn.{TABLE}"
    table = shapes.get(shared) or shapes.get(own)
    if table is not None and (len(table) != 2 or table[1] < 1):
        raise CheckpointError(
            f"{origin}: the table of relative positions is {list(table)}; expected "
            "[displacements, heads]; name the architecture with --arch"
        )
    known = table[1] if table else heads
    return BeitSpec(
        width=width,
        depth=vit.depth(shapes),
        heads=known or vit.usual_heads(width, origin),
        heads_known=known is not None,
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
    )


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


class Beit(Backbone):
    """timm's Beit, with the inputs and the targets of data2vec."""

    def __init__(self, spec: BeitSpec) -> None:
        super().__init__()
        from timm.models.beit import Beit as TimmBeit

        norm: Any = partial(nn.LayerNorm, eps=spec.eps)
        self.width = spec.width
        self.model: Any = TimmBeit(
            img_size=spec.image_size,
            patch_size=spec.patch,
            num_classes=0,
            global_pool="avg" if spec.fc_norm else "token",  # which places the norm
            embed_dim=spec.width,
            depth=spec.depth,
            num_heads=spec.heads,
            qkv_bias=spec.qkv_bias,
            mlp_ratio=(spec.mlp + 0.5) / spec.width,  # timm rounds the product down
            norm_layer=norm,
            init_values=1.0 if spec.layer_scale else None,
            use_abs_pos_emb=spec.positions,
            use_rel_pos_bias=spec.own_tables,
            use_shared_rel_pos_bias=spec.shared_table,
        )
        if not (spec.norm or spec.fc_norm):
            self.model.norm = nn.Identity()
        if spec.mask_token:
            self.model.mask_token = nn.Parameter(torch.empty(1, 1, spec.width))
        self.patch = spec.patch
        self.size = spec.image_size
        self.trained: tuple[int, dict[str, Tensor]] | None = None  # grid, and what depends on it

    @property
    def weights(self) -> nn.Module:
        """timm's module, which has the names of the spec."""
        return self.model  # type: ignore[no-any-return]

    def set_buffers(self) -> None:
        """Give values to what is in no file: the index of displacements, the zero bias of keys."""
        from timm.models.beit import gen_relative_position_index

        for part in self.model.modules():
            if getattr(part, "k_bias", None) is not None:
                part.k_bias = torch.zeros(self.width)
            if getattr(part, "relative_position_index", None) is not None:
                grid = self.size // self.patch
                index = gen_relative_position_index((grid, grid))
                # Older timm saves it, and would miss it in files.
                part.register_buffer("relative_position_index", index, persistent=False)

    def set_image_size(self, size: int) -> None:
        """Resample the file's tables and positions, bicubically, to images of `size` pixels a side.

        Raises CheckpointError unless that is a multiple of the patch size.
        """
        grid = vit.grid_of(size, self.patch)
        if size == self.size:
            return
        if self.trained is None:
            names = ("pos_embed", TABLE)
            found = {
                name: tensor.detach().cpu().clone()
                for name, tensor in self.model.named_parameters()
                if name.rpartition(".")[2] in names
            }
            self.trained = (self.size // self.patch, found)
        old, tensors = self.trained  # always from these: resampling twice would blur
        for name, tensor in tensors.items():
            if name == "pos_embed":
                tensor = resample(tensor, old, grid, 1, "plain")
            else:
                tensor = _table(tensor, old, grid)
            owner, _, last = name.rpartition(".")
            part = self.model.get_submodule(owner)
            device = getattr(part, last).device
            setattr(part, last, nn.Parameter(tensor.to(device), requires_grad=False))
        self.model.patch_embed.set_input_size((size, size))
        for part in self.model.modules():
            if getattr(part, "window_size", None) is not None:
                part.window_size = (grid, grid)
                part.window_area = grid * grid
        self.size = size
        device = self.model.cls_token.device
        self.set_buffers()
        self.model.to(device)

    def blocks(self, images: Tensor, masked: Tensor | None = None) -> list[Tensor]:
        """Tokens [b, 1 + N, width] after each block, class token first.

        masked: bool [b, N], patches that the mask token replaces; raises CheckpointError if the
        file has no such token.
        """
        model = self.model
        x = model.patch_embed(images)
        if masked is not None:
            token = getattr(model, "mask_token", None)
            if token is None:
                raise CheckpointError(
                    "the BEiT has no mask_token, as after fine-tuning; expected a pre-trained "
                    "checkpoint for masked views; choose other views"
                )
            x = torch.where(masked.unsqueeze(-1), token, x)
        x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1)
        if model.pos_embed is not None:
            x = x + model.pos_embed
        bias = None if model.rel_pos_bias is None else model.rel_pos_bias()
        outputs = []
        for block in model.blocks:
            x = block(x, shared_rel_pos_bias=bias)
            outputs.append(x)
        return outputs

    def tokens(self, images: Tensor, masked: Tensor | None = None) -> Tensor:
        """Tokens [b, 1 + N, width] after the last block, and after the norm if it is not fc_norm.

        Those at masked patches are what lm_head takes.
        """
        tokens: Tensor = self.model.norm(self.blocks(images, masked)[-1])
        return tokens

    def target(self, images: Tensor, first: int | None = None) -> Tensor:
        """What data2vec's teacher gives, [b, 1 + N, width], for the unmasked images.

            norm(mean over blocks l >= first of norm(x_l)),   norm without weights, eps 1e-5

        first: 6 of 12 and 18 of 24 blocks, as the recipes have it; of fewer, the top half.
        """
        outputs = self.blocks(images)
        start = max(len(outputs) - TARGETS, len(outputs) // 2) if first is None else first
        size = (self.width,)
        mean = torch.stack([F.layer_norm(x.float(), size) for x in outputs[start:]]).mean(dim=0)
        return F.layer_norm(mean, size)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, 3, S, S], S as last set."""
        embeddings: Tensor = self.model.fc_norm(self.tokens(images)[:, 1:].mean(dim=1))
        return embeddings


def _table(table: Tensor, old: int, new: int) -> Tensor:
    """The table [(2 new - 1)^2 + 3, heads] of displacements from that of the old grid."""
    patches, extra = table[:-EXTRA].unsqueeze(0), table[-EXTRA:]
    return torch.cat([resample(patches, 2 * old - 1, 2 * new - 1, 0, "plain")[0], extra])
