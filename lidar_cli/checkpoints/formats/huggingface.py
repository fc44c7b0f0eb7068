"""Hugging Face's vision transformers, as files or as folders with a config.json.

A folder's configuration tells the heads and the LayerNorm's eps, and, where one layout serves two
models, which it is. What a class with a head puts before the backbone's names is left away.
"""

from __future__ import annotations

import dataclasses

from lidar_cli.checkpoints.formats.format import Branch, Format

NOISE = (r"classifier\.", r"embeddings\.mask_token$", r"pooler\.dense\.")

VIT = Format(
    name="hf-vit",
    title="Hugging Face, ViT",
    example="model.safetensors with config.json",
    source="models/vit/modeling_vit.py",
    marks=(
        r"embeddings\.patch_embeddings\.projection\.weight$",
        r"embeddings\.cls_token$",
        r"encoder\.layer\.0\.layernorm_before\.weight$",
    ),
    lacks=(r"encoder\.layer\.0\.lambda_1$",),
    added=r"vit\.",
    branches=(Branch("encoder", ""),),
    recipe="simclr",
    backbones=("hf-vit",),
    noise=NOISE,
)

# Converted from `encoder`, the context encoder, and without the predictor.
IJEPA = dataclasses.replace(
    VIT,
    name="hf-ijepa",
    title="Hugging Face, I-JEPA",
    source="models/ijepa/modeling_ijepa.py, convert_ijepa_to_hf.py",
    marks=(
        r"embeddings\.patch_embeddings\.projection\.weight$",
        r"embeddings\.position_embeddings$",
        r"encoder\.layer\.0\.layernorm_before\.weight$",
    ),
    lacks=(r"embeddings\.cls_token$", *VIT.lacks),
    added=r"ijepa\.",
    branches=(Branch("student", ""),),
    recipe="ijepa",
)

DINOV2 = dataclasses.replace(
    VIT,
    name="hf-dinov2",
    title="Hugging Face, DINOv2 with or without registers",
    source="models/dinov2/, models/dinov2_with_registers/",
    marks=(
        r"embeddings\.patch_embeddings\.projection\.weight$",
        r"encoder\.layer\.0\.layer_scale1\.lambda1$",
    ),
    lacks=(),
    added=r"dinov2(_with_registers)?\.",
    branches=(Branch("teacher", ""),),
    recipe="dinov2",
    image_size=224,  # of its image processor too
    backbones=("hf-dinov2",),
)

# Converted from the fork's `model`. BeitModel has the same names: its config.json tells it apart,
# and without one its files are read alike, for the code is one.
DATA2VEC = dataclasses.replace(
    VIT,
    name="hf-data2vec",
    title="Hugging Face, Data2VecVision",
    source="models/data2vec/modeling_data2vec_vision.py and its conversion script",
    marks=(
        r"embeddings\.patch_embeddings\.projection\.weight$",
        r"encoder\.layer\.0\.lambda_1$",
    ),
    lacks=(),
    config=(("model_type", "data2vec-vision"),),
    added=r"data2vec_vision\.",
    branches=(Branch("student", ""),),
    recipe="data2vec",
    backbones=("hf-beit",),
    noise=(*NOISE, r".*\.relative_position_index$"),
)

HUGGINGFACE = (VIT, IJEPA, DINOV2, DATA2VEC)
