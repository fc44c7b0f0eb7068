"""DINOv3, CAPI and V-JEPA 2, whose Vision Transformers have rotary positions."""

from __future__ import annotations

import dataclasses

from lidar_cli.checkpoints.formats.distillation import dino_head
from lidar_cli.checkpoints.formats.format import Branch, Format
from lidar_cli.checkpoints.formats.masked import IJEPA

DINOV3_BACKBONE = r"backbone\.(rope_embed\.periods|downsample_layers\.0\.0\.weight)$"

# facebookresearch/dinov3 at 6876159. LayerNorm's eps is 1e-6 by default (norm_layer: layernorm) and
# 1e-5 in the recipes of the published models (layernormbf16).
DINOV3 = Format(
    name="dinov3",
    title="facebookresearch/dinov3, teacher dumped for evaluation",
    example="eval/12499/teacher_checkpoint.pth, sharded_teacher_checkpoint/",
    source="train/train.py, train/ssl_meta_arch.py, models/, layers/dino_head.py (6876159)",
    present=(
        rf"teacher\.{DINOV3_BACKBONE}",
        r"teacher\.dino_head\.mlp\.0\.",
        r"teacher\.dino_head\.last_layer\.weight$",
        r"teacher\.ibot_head\.",
    ),
    nested=(("teacher", "teacher."), ("model", "teacher.")),  # or sharded: model
    branches=(Branch("teacher", "teacher.backbone.", dino_head("teacher.dino_head.")),),
    recipe="dinov3",
    backbones=("dinov3", "dinov3-convnext"),
    eps=1e-6,
    image_size=224,
    unused=(r"teacher\.ibot_head\.",),
)

# `model_ema` is the average of the student. `teacher` is the same module once more, or in
# distillation a larger model that is not trained. The gram teacher is an earlier average.
DINOV3_TRAINING = dataclasses.replace(
    DINOV3,
    name="dinov3-training",
    title="facebookresearch/dinov3, state of training",
    example="ckpt/12499/ with .metadata and __0_0.distcp",
    source="checkpointer/checkpointer.py, train/ssl_meta_arch.py (6876159)",
    present=(
        rf"model_ema\.{DINOV3_BACKBONE}",
        rf"student\.{DINOV3_BACKBONE}",
        r"student\.dino_head\.mlp\.0\.",
        r"student\.dino_head\.last_layer\.weight$",
    ),
    nested=(),
    branches=(
        Branch("teacher", "model_ema.backbone.", dino_head("model_ema.dino_head.")),
        Branch("student", "student.backbone.", dino_head("student.dino_head.")),
        Branch(
            "frozen",
            "teacher.backbone.",
            dino_head("teacher.dino_head."),
            aliases=("frozen_teacher",),
        ),
        Branch("gram", "gram_teacher.backbone.", aliases=("gram_teacher",)),
    ),
    unused=(r"\w+\.ibot_head\.", r"(dino|ibot_patch)_loss\."),
)

DINOV3_HUB = dataclasses.replace(
    DINOV3,
    name="dinov3-hub",
    title="facebookresearch/dinov3, released backbone",
    example="dinov3_vits16_pretrain_lvd1689m-08c60483.pth, dinov3_convnext_tiny_pretrain...pth",
    source="hub/backbones.py, models/vision_transformer.py, models/convnext.py (6876159)",
    present=(
        r"(rope_embed\.periods|norms\.3\.weight)$",
        r"(patch_embed\.proj|downsample_layers\.0\.0)\.weight$",
        r"(blocks\.0\.attn\.qkv|stages\.0\.0\.dwconv)\.weight$",
        r"(cls_token|norm\.bias)$",
    ),
    nested=(),
    branches=(Branch("teacher", ""),),
    eps=None,
    unused=(),
)

HF_DINOV3 = dataclasses.replace(
    DINOV3_HUB,
    name="hf-dinov3",
    title="Hugging Face, DINOv3's ViT and ConvNeXt",
    example="model.safetensors with config.json",
    source="models/dinov3_vit/modeling_dinov3_vit.py, models/dinov3_convnext/ (transformers 5.24)",
    present=(
        r"(embeddings\.patch_embeddings|stages\.0\.downsample_layers\.0)\.weight$",
        r"(layer\.0\.attention\.o_proj|stages\.0\.layers\.0\.depthwise_conv)\.weight$",
    ),
    class_prefix=r"(dinov3_(vit|convnext)\.)?(model\.(?=layer\.|stages\.))?",
    backbones=("hf-dinov3", "hf-dinov3-convnext"),
    unused=(r"classifier\.",),
)

# facebookresearch/capi at 98b4fa1. The loss compares patch tokens, of which the embedding is the
# mean: `avg_patch` of its evaluation. A dump has one branch; the teacher is the student's average.
CAPI = Format(
    name="capi",
    title="facebookresearch/capi, released or dumped for evaluation",
    example="capi_vitl14_in1k.pth, eval/training_9999_teacher/teacher_checkpoint.pth",
    source="model.py, train_capi.py, eval_classification.py (98b4fa1)",
    present=(
        r"backbone\.registers$",
        r"backbone\.encoder\.blocks\.0\.residual1\.fn\.rope\.freqs$",
    ),
    branches=(Branch("encoder", "backbone."),),
    recipe="capi",
    backbones=("capi",),
    image_size=224,
    unused=(r"head\.",),
)

# facebookresearch/vjepa2 at c2963a4. Its probes use the target encoder.
VJEPA2 = Format(
    name="vjepa2",
    title="facebookresearch/vjepa2, on still images",
    example="latest.pt",
    source="app/vjepa/train.py, app/vjepa/utils.py, src/models/vision_transformer.py (c2963a4)",
    present=(
        r"encoder\.patch_embed\.proj\.weight$",
        r"target_encoder\.patch_embed\.proj\.weight$",
        r"target_encoder\.blocks\.0\.attn\.qkv\.weight$",
        r"predictor\.predictor_embed\.",
    ),
    absent=(r"target_encoder\.pos_embed$",),
    axes=((r"target_encoder\.patch_embed\.proj\.weight$", 5),),
    nested=IJEPA.nested,
    class_prefix=r"backbone\.",
    branches=(Branch("teacher", "target_encoder."), Branch("student", "encoder.")),
    recipe="vjepa2",
    backbones=("vjepa2",),
    image_size=256,
    unused=(r"predictor\.",),
)

# The published files have positions too, which its code does not load. So have those of V-JEPA 1,
# which uses them; its predictor has two mask tokens, that of the published V-JEPA 2 ten.
VJEPA2_RELEASED = dataclasses.replace(
    VJEPA2,
    name="vjepa2-released",
    title="facebookresearch/vjepa2, released files, on still images",
    example="vitl.pt, vitg-384.pt",
    source="src/hub/backbones.py (c2963a4)",
    present=(*VJEPA2.present, r"target_encoder\.pos_embed$", r"predictor\.mask_tokens\.[2-9]$"),
    absent=(),
    unused=(*VJEPA2.unused, r"(target_)?encoder\.pos_embed$"),
)

# Converted from the target encoder of the published files, with the predictor.
HF_VJEPA2 = Format(
    name="hf-vjepa2",
    title="Hugging Face, V-JEPA 2 on still images",
    example="model.safetensors with config.json",
    source="models/vjepa2/modeling_vjepa2.py, convert_vjepa2_to_hf.py (transformers 5.24)",
    present=(
        r"encoder\.embeddings\.patch_embeddings\.proj\.weight$",
        r"encoder\.layer\.0\.attention\.query\.weight$",
    ),
    axes=((r"encoder\.embeddings\.patch_embeddings\.proj\.weight$", 5),),
    class_prefix=r"vjepa2\.",
    branches=(Branch("teacher", ""),),
    recipe="vjepa2",
    backbones=("hf-vjepa2",),
    image_size=256,
    unused=(r"pooler\.", r"classifier\."),  # an attentive probe on videos
)

ROTARY = (
    DINOV3, DINOV3_TRAINING, DINOV3_HUB, HF_DINOV3, CAPI, VJEPA2, VJEPA2_RELEASED, HF_VJEPA2,
)  # fmt: skip
