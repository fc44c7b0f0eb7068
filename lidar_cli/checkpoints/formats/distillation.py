"""DINO, iBOT, DINOv2 and Franca: the teacher is a moving average of the student."""

from __future__ import annotations

import dataclasses

from lidar_cli.checkpoints.formats.format import USUAL_ATTENTION_HEADS, Branch, Format, Head

# The projector's embedding is the bottleneck: 256 numbers before L2 normalisation and prototypes.
MLP = (r"mlp\.", "")
PROTOTYPES = (r"last_layer\.",)


def dino_head(prefix: str) -> Head:
    """DINO's DINOHead: Linear layers with GELU, a bottleneck, prototypes."""
    return Head(prefix, rename=(MLP,), activation="gelu", after=PROTOTYPES)


def ibot_head(prefix: str) -> Head:
    """iBOT's head: DINO's with a second last layer, and norms after the prototypes."""
    return dataclasses.replace(
        dino_head(prefix), after=(r"last_layer2?\.", r"last_norm2?\.", r"mlp2\.")
    )


DINO = Format(
    name="dino",
    title="facebookresearch/dino, full checkpoint",
    example="checkpoint.pth, dino_deitsmall16_pretrain_full_checkpoint.pth",
    source="main_dino.py, vision_transformer.py, utils.py",
    present=(r"teacher\.backbone\.", r"teacher\.head\.mlp\.0\.", r"teacher\.head\.last_layer\."),
    nested=(("teacher", "teacher."), ("student", "student.")),
    branches=(
        Branch("teacher", "teacher.backbone.", dino_head("teacher.head.")),
        Branch("student", "student.backbone.", dino_head("student.head.")),
    ),
    recipe="dino",
    attention_heads=USUAL_ATTENTION_HEADS,
    position_offset=0.1,
)

# The layout of DINO, with prototypes for patches too and a token that replaces masked patches.
IBOT = dataclasses.replace(
    DINO,
    name="ibot",
    title="bytedance/ibot",
    example="checkpoint.pth, checkpoint_teacher.pth",
    source="main_ibot.py, models/head.py, models/vision_transformer.py, loss.py (da316d8)",
    present=(*DINO.present, r"(teacher\.head\.last_layer2|student\.backbone\.masked_embed)"),
    branches=(
        Branch("teacher", "teacher.backbone.", ibot_head("teacher.head.")),
        Branch("student", "student.backbone.", ibot_head("student.head.")),
    ),
    recipe="ibot",
    unused=(r"student\.backbone\.masked_embed$",),
)

DINOV2 = Format(
    name="dinov2",
    title="facebookresearch/dinov2, teacher dumped for evaluation",
    example="eval/training_124999/teacher_checkpoint.pth",
    source="train/ssl_meta_arch.py, fsdp/__init__.py, layers/dino_head.py",
    present=(
        r"teacher\.backbone\.cls_token",
        r"teacher\.dino_head\.mlp\.0\.",
        r"teacher\.dino_head\.last_layer\.",
    ),
    nested=(("teacher", "teacher."),),
    branches=(Branch("teacher", "teacher.backbone.", dino_head("teacher.dino_head.")),),
    recipe="dinov2",
    backbones=("vit",),
    # In files with chunks, the index of the chunk precedes the index of the block.
    rename=((r"blocks\.\d+\.(?=\d+\.)", "blocks."), (r"register_tokens$", "reg_token")),
    attention_heads=USUAL_ATTENTION_HEADS,
    image_size=224,  # the last phase of training is at 518
    unused=(r"teacher\.ibot_head\.", r"teacher\.backbone\.mask_token$"),
)

DINOV2_HUB = dataclasses.replace(
    DINOV2,
    name="dinov2-hub",
    title="facebookresearch/dinov2, released backbone",
    example="dinov2_vits14_pretrain.pth",
    source="hub/backbones.py, models/vision_transformer.py",
    present=(r"patch_embed\.proj\.weight$", r"mask_token$", r"blocks\.0\.(0\.)?ls1\.gamma$"),
    absent=(r"decoder_", r"lm_head\."),
    nested=(),
    branches=(Branch("teacher", ""),),
    unused=(r"mask_token$",),
)

# DINOv2 with a head of five chains of layers, on nested parts of an embedding of the backbone. The
# projector is the last chain, which has the whole width: a Linear layer, then an MLP that ends in
# GELU; no L2 normalisation precedes its prototypes. Read at valeoai/Franca 24f8c60.
FRANCA_LAYERS = (
    (r"matryoshka_projections\.4\.", "0."),
    *((rf"mlps\.4\.{at}\.", f"{at + 1}.") for at in range(8)),
)

FRANCA = dataclasses.replace(
    DINOV2,
    name="franca",
    title="valeoai/Franca",
    example="franca_vitb14_In21K.pth, eval/training_124999/teacher_checkpoint.pth",
    source="franca/train/ssl_meta_arch.py, layers/mrl_dino_head.py, hub/backbones.py (24f8c60)",
    present=(r"teacher\.backbone\.cls_token", r"teacher\.dino_head\.matryoshka_projections\.4\."),
    branches=(
        Branch(
            "teacher",
            "teacher.backbone.",
            Head(
                "teacher.dino_head.",
                rename=FRANCA_LAYERS,
                activation="gelu",
                after=(r"(matryoshka_projections|mlps|last_layers)\.",),
                last_activation=True,
            ),
        ),
    ),
)

DISTILLATION = (DINO, IBOT, DINOV2, FRANCA, DINOV2_HUB)
