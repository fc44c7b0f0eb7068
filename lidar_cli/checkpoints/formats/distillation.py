"""DINO and DINOv2: a student learns from a moving average of itself."""

from __future__ import annotations

import dataclasses

from lidar_cli.checkpoints.formats.format import USUAL_HEADS, Branch, Format, Head

# The 256 numbers before the L2 normalisation; behind it are prototypes, under weight norm.
MLP = (r"mlp\.", "")
PROTOTYPES = (r"last_layer\.",)


def dino_head(prefix: str) -> Head:
    """DINOHead: Linear layers with GELU, a bottleneck, prototypes."""
    return Head(prefix, rename=(MLP,), activation="gelu", after=PROTOTYPES)


DINO = Format(
    name="dino",
    title="facebookresearch/dino, full checkpoint",
    example="checkpoint.pth, dino_deitsmall16_pretrain_full_checkpoint.pth",
    source="main_dino.py, vision_transformer.py, utils.py",
    marks=(r"teacher\.backbone\.", r"teacher\.head\.mlp\.0\.", r"teacher\.head\.last_layer\."),
    inside=(("teacher", "teacher."), ("student", "student.")),
    branches=(
        Branch("teacher", "teacher.backbone.", dino_head("teacher.head.")),
        Branch("student", "student.backbone.", dino_head("student.head.")),
    ),
    recipe="dino",
    heads=USUAL_HEADS,
    resize="offset",
)

DINOV2 = Format(
    name="dinov2",
    title="facebookresearch/dinov2, teacher dumped for evaluation",
    example="eval/training_124999/teacher_checkpoint.pth",
    source="train/ssl_meta_arch.py, fsdp/__init__.py, layers/dino_head.py",
    marks=(
        r"teacher\.backbone\.cls_token",
        r"teacher\.dino_head\.mlp\.0\.",
        r"teacher\.dino_head\.last_layer\.",
    ),
    inside=(("teacher", "teacher."),),
    branches=(Branch("teacher", "teacher.backbone.", dino_head("teacher.dino_head.")),),
    recipe="dinov2",
    backbones=("vit",),
    # Blocks in chunks carry the chunk's number before their own.
    rename=((r"blocks\.\d+\.(?=\d+\.)", "blocks."), (r"register_tokens$", "reg_token")),
    heads=USUAL_HEADS,
    image_size=224,  # the last phase of training is at 518
    noise=(r"teacher\.ibot_head\.", r"teacher\.backbone\.mask_token$"),
)

DINOV2_HUB = dataclasses.replace(
    DINOV2,
    name="dinov2-hub",
    title="facebookresearch/dinov2, released backbone",
    example="dinov2_vits14_pretrain.pth",
    source="hub/backbones.py, models/vision_transformer.py",
    marks=(r"patch_embed\.proj\.weight$", r"mask_token$", r"blocks\.0\.ls1\.gamma$"),
    lacks=(r"decoder_", r"lm_head\."),
    inside=(),
    branches=(Branch("teacher", ""),),
    noise=(r"mask_token$",),
)

DISTILLATION = (DINO, DINOV2, DINOV2_HUB)
