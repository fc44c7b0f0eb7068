"""Backbones by the names of torchvision, timm and Hugging Face, mostly released without heads.

torchvision and timm: nothing in the files shows the method. A file that has any other name, such as
a projector, a prefix or another head, does not match, and fallback.py handles it.

Hugging Face: files, or folders with a config.json, which gives the number of attention heads and
LayerNorm's eps, and the model where two have the same layout. The prefix that a class with a head
adds to the names is removed.
"""

from __future__ import annotations

import dataclasses

from lidar_cli.checkpoints.formats.format import Branch, Format, Head
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
    source="models/swin/modeling_swin.py (transformers 5.24)",
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

HF_SWIN_SIMMIM = dataclasses.replace(
    HF_SWIN,
    name="hf-swin-simmim",
    title="Hugging Face, Swin for masked image modelling",
    present=(*HF_SWIN.present, r"decoder\.0\.weight$"),
    recipe="simmim",
)

# The position embedding is that of the file, of fixed sines and cosines. All patches are visible.
HF_VITMAE = dataclasses.replace(
    HF_VIT,
    name="hf-vitmae",
    title="Hugging Face, ViTMAE",
    source="models/vit_mae/modeling_vit_mae.py (transformers 5.24)",
    absent=(r"decoder\.", *HF_VIT.absent),
    config=(("model_type", "vit_mae"),),
    needs_config=True,
    recipe="mae",
)
HF_VITMAE_DECODER = dataclasses.replace(
    HF_VITMAE,
    name="hf-vitmae-pretraining",
    title="Hugging Face, ViTMAE with its decoder",
    present=(*HF_VIT.present, r"decoder\.decoder_pred\.weight$"),
    absent=HF_VIT.absent,
    config=(),
    needs_config=False,
    unused=(*HF_UNUSED, r"decoder\."),
)

HF_RESNET = dataclasses.replace(
    HF_VIT,
    name="hf-resnet",
    title="Hugging Face, ResNet",
    source="models/resnet/modeling_resnet.py (transformers 5.24)",
    present=(
        r"embedder\.embedder\.convolution\.weight$",
        r"encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight$",
    ),
    absent=(),
    class_prefix=r"resnet\.",
    backbones=("hf-resnet",),
)

HF_CONVNEXT = dataclasses.replace(
    HF_VIT,
    name="hf-convnext",
    title="Hugging Face, ConvNeXt and ConvNeXt V2",
    source="models/convnext/, models/convnextv2/ (transformers 5.24)",
    present=(
        r"embeddings\.patch_embeddings\.weight$",
        r"encoder\.stages\.0\.layers\.0\.dwconv\.weight$",
    ),
    absent=(),
    class_prefix=r"convnext(v2)?\.",
    backbones=("hf-convnext",),
)

# Text is not embedded. `position_ids` is a buffer of old files.
CLIP_UNUSED = (
    r"text_model\.", r"text_projection\.", r"logit_(scale|bias)$", r"embeddings\.position_ids$",
    r"classifier\.",
)  # fmt: skip
HF_CLIP = dataclasses.replace(
    HF_VIT,
    name="hf-clip",
    title="Hugging Face, CLIP",
    source="models/clip/modeling_clip.py (transformers 5.24)",
    present=(
        r"embeddings\.class_embedding$",
        r"pre_layrnorm\.weight$",
        r"encoder\.layers\.0\.self_attn\.q_proj\.weight$",
    ),
    absent=(),
    class_prefix=r"vision_model\.",
    branches=(Branch("encoder", "", Head("visual_projection.")),),
    recipe="clip",
    pixel_stats="clip",
    backbones=("hf-clip",),
    unused=CLIP_UNUSED,
)
HF_SIGLIP = dataclasses.replace(
    HF_CLIP,
    name="hf-siglip",
    title="Hugging Face, SigLIP and SigLIP 2",
    source="models/siglip/modeling_siglip.py (transformers 5.24)",
    present=(
        r"embeddings\.patch_embedding\.weight$",
        r"post_layernorm\.weight$",
        r"encoder\.layers\.0\.self_attn\.q_proj\.weight$",
    ),
    absent=(r"embeddings\.class_embedding$",),
    branches=(Branch("encoder", ""),),
    pixel_stats="half",
)
# The projector is a matrix by which embeddings are multiplied from the right.
OPENAI_CLIP = dataclasses.replace(
    HF_CLIP,
    name="clip",
    title="openai/CLIP and mlfoundations/open_clip, ViT",
    example="open_clip_pytorch_model.bin",
    source="clip/model.py; src/open_clip/transformer.py",
    present=(
        r"visual\.class_embedding$",
        r"visual\.ln_pre\.weight$",
        r"visual\.transformer\.resblocks\.0\.attn\.in_proj_weight$",
    ),
    class_prefix="",
    branches=(Branch("encoder", "visual.", Head("visual.proj", rename=((r"$", "0.weight@T"),))),),
    backbones=("openai-clip",),
    unused=(
        r"transformer\.", r"text\.", r"token_embedding\.", r"ln_final\.",
        r"(positional_embedding|text_projection|logit_scale|logit_bias)$", r"attn_mask$",
        r"(input_resolution|context_length|vocab_size)$",
    ),
)  # fmt: skip

HUGGINGFACE = (
    *(HF_VIT, HF_IJEPA, HF_DINOV2, HF_DATA2VEC, HF_SWIN, HF_SWIN_SIMMIM),
    *(HF_VITMAE, HF_VITMAE_DECODER, HF_RESNET, HF_CONVNEXT, HF_CLIP, HF_SIGLIP, OPENAI_CLIP),
)
ARCHITECTURES = (TORCHVISION, TIMM)
