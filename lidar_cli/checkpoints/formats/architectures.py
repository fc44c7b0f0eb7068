"""Backbones by the names of torchvision, timm and Hugging Face, mostly released without heads.

torchvision and timm: nothing in the files shows the method. A file that has any other name, such as
a projector, a prefix or another head, does not match, and fallback.py handles it.

Hugging Face: files, or folders with a config.json, which gives the number of attention heads and
LayerNorm's eps, and the model where two have the same layout. The prefix that a class with a head
adds to the names is removed.
"""

from __future__ import annotations

import dataclasses

from lidar_cli.checkpoints.formats.format import Branch, Format
from lidar_cli.checkpoints.shapes import swin

TORCHVISION = Format(
    name="torchvision",
    title="torchvision's ResNet and ViT, and backbones released by their names",
    example="resnet50-11ad3fa6.pth, vit_b_16-c867db91.pth, resnet50.pth",
    source="torchvision/models/resnet.py, vision_transformer.py",
    present=(
        r"(conv1|conv_proj)\.weight$",
        r"(layer1\.0\.conv1|encoder\.layers\.encoder_layer_0\.ln_1)\.weight$",
    ),
    absent=(
        r"(?!conv1\.weight$|bn1\.|layer\d+\.|fc\.(weight|bias)$"
        r"|class_token$|conv_proj\.|encoder\.|heads\.head\.)",
    ),
    branches=(Branch("encoder", ""),),
    recipe="simclr",
    pixel_stats="auto",
    backbones=("resnet", "torchvision-vit"),
    unused=(r"fc\.", r"heads\.head\."),
)

TIMM = Format(
    name="timm",
    title="timm's ViT and BEiT, and backbones released by their names",
    example="model.safetensors, dino_deitsmall16_pretrain.pth",
    source="timm/models/vision_transformer.py, beit.py",
    present=(r"patch_embed\.proj\.weight$", r"blocks\.0\.attn\.qkv\.weight$"),
    absent=(
        r"(?!(cls_token|pos_embed|reg_token|head\.weight|head\.bias)$"
        r"|(patch_embed|blocks|norm|norm_pre|fc_norm|rel_pos_bias)\.)",
    ),
    axes=((r"patch_embed\.proj\.weight$", 4),),
    branches=(Branch("encoder", ""),),
    recipe="simclr",
    pixel_stats="auto",
    backbones=("beit", "vit"),
    unused=(r"head\.", r".*\.relative_position_index$"),
)

HF_UNUSED = (r"classifier\.", r"embeddings\.mask_token$", r"pooler\.dense\.")

HF_VIT = Format(
    name="hf-vit",
    title="Hugging Face, ViT",
    example="model.safetensors with config.json",
    source="models/vit/modeling_vit.py",
    present=(
        r"embeddings\.patch_embeddings\.projection\.weight$",
        r"embeddings\.cls_token$",
        r"encoder\.layer\.0\.layernorm_before\.weight$",
    ),
    absent=(r"encoder\.layer\.0\.lambda_1$",),
    class_prefix=r"vit\.",
    branches=(Branch("encoder", ""),),
    recipe="simclr",
    backbones=("hf-vit",),
    unused=HF_UNUSED,
)

# Converted from `encoder`, the context encoder, without the predictor.
HF_IJEPA = dataclasses.replace(
    HF_VIT,
    name="hf-ijepa",
    title="Hugging Face, I-JEPA",
    source="models/ijepa/modeling_ijepa.py, convert_ijepa_to_hf.py",
    present=(
        r"embeddings\.patch_embeddings\.projection\.weight$",
        r"embeddings\.position_embeddings$",
        r"encoder\.layer\.0\.layernorm_before\.weight$",
    ),
    absent=(r"embeddings\.cls_token$", *HF_VIT.absent),
    class_prefix=r"ijepa\.",
    branches=(Branch("student", ""),),
    recipe="ijepa",
)

HF_DINOV2 = dataclasses.replace(
    HF_VIT,
    name="hf-dinov2",
    title="Hugging Face, DINOv2 with or without registers",
    source="models/dinov2/, models/dinov2_with_registers/",
    present=(
        r"embeddings\.patch_embeddings\.projection\.weight$",
        r"encoder\.layer\.0\.layer_scale1\.lambda1$",
    ),
    absent=(),
    class_prefix=r"dinov2(_with_registers)?\.",
    branches=(Branch("teacher", ""),),
    recipe="dinov2",
    image_size=224,  # as in its image processor
    backbones=("hf-dinov2",),
)

# Converted from `model` of the BEiT fork, the student. BeitModel has the same names and code: only
# config.json distinguishes the two, and a BEiT file without one counts as Data2VecVision.
HF_DATA2VEC = dataclasses.replace(
    HF_VIT,
    name="hf-data2vec",
    title="Hugging Face, Data2VecVision",
    source="models/data2vec/modeling_data2vec_vision.py and its conversion script",
    present=(r"embeddings\.patch_embeddings\.projection\.weight$", r"encoder\.layer\.0\.lambda_1$"),
    absent=(),
    config=(("model_type", "data2vec-vision"),),
    class_prefix=r"data2vec_vision\.",
    branches=(Branch("student", ""),),
    recipe="data2vec",
    backbones=("hf-beit",),
    unused=(*HF_UNUSED, r".*\.relative_position_index$"),
)

# The pooled output of SwinModel is the mean over the patches after the norm, as is the embedding.
HF_SWIN = dataclasses.replace(
    HF_VIT,
    name="hf-swin",
    title="Hugging Face, Swin",
    source="models/swin/modeling_swin.py of transformers 5.24",
    present=(
        r"embeddings\.patch_embeddings\.projection\.weight$",
        r"encoder\.layers\.0\.blocks\.0\.layernorm_before\.weight$",
        r"encoder\.layers\.0\.blocks\.0\.attention\.self\.relative_position_bias_table$",
    ),
    absent=(),
    class_prefix=r"swin\.",
    backbones=("hf-swin",),
    unused=(*HF_UNUSED, r"decoder\.", *swin.BUFFERS),
)

HUGGINGFACE = (HF_VIT, HF_IJEPA, HF_DINOV2, HF_DATA2VEC, HF_SWIN)
ARCHITECTURES = (TORCHVISION, TIMM)
