"""The specs of Hugging Face's vision transformers, whose tensors get timm's and BEiT's names.

    ViTModel, IJepaModel                       -> timm's ViT, I-JEPA without a class token
    Dinov2Model, Dinov2WithRegistersModel      -> timm's ViT with layer scale, GELU or SwiGLU
    Data2VecVisionModel, BeitModel             -> BEiT
    CLIP's and SigLIP's vision models          -> timm's ViT, with SigLIP's attention pooling
    ResNetModel                                -> torchvision's ResNet

In the file, queries, keys and values are separate tensors; '@' marks them as parts of one tensor,
which are joined in this order, see `lazy_tensor.join`. Position embeddings are resized without
DINO's offset, and antialiased only in models with registers. LayerNorm's eps is in config.json; the
defaults here are those of the published files. The pooled output of IJepa and Data2VecVision is the
mean of the patch tokens, which is the embedding here too. That of CLIP is the class token after the
last norm, and of SigLIP the attention pooling, which its image features are; so is the embedding.
CLIP's image features are a linear projection of it, the projector here. The weights leave the
activation open: OpenAI's models have quick_gelu, x sigmoid(1.702 x), most others GELU.
OpenAI's and open_clip's own names are read too: FROM_OPENAI.
"""

from __future__ import annotations

import dataclasses

from lidar_cli.checkpoints.shapes import beit, resnet, vit
from lidar_cli.checkpoints.shapes.spec import Rename, Shapes

VIT_ANCHOR = "encoder.layer.0.layernorm_before.weight"
DINOV2_ANCHOR = "encoder.layer.0.layer_scale1.lambda1"
BEIT_ANCHOR = "encoder.layer.0.lambda_1"
EPS = 1e-6  # LayerNorm's in the published DINOv2 and I-JEPA
CLIP_ANCHOR = "embeddings.patch_embedding.weight"
OPENAI_ANCHOR = "ln_pre.weight"  # which the transformer of texts lacks
RESNET_ANCHOR = "embedder.embedder.convolution.weight"
CLIP_EPS = 1e-5  # of OpenAI's models
LIBRARY_EPS = 1e-12  # the library's default: ViT, Data2VecVision, BEiT
DEFAULT = "Hugging Face's default"

FROM_HF = (
    (r"embeddings\.register_tokens$", "reg_token"),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"layernorm\.", "norm."),
    (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"(blocks\.\d+\.)attention\.attention\.query\.(\w+)$", r"\1attn.qkv.\2@0"),
    (r"(blocks\.\d+\.)attention\.attention\.key\.(\w+)$", r"\1attn.qkv.\2@1"),
    (r"(blocks\.\d+\.)attention\.attention\.value\.(\w+)$", r"\1attn.qkv.\2@2"),
    (r"(blocks\.\d+\.)attention\.output\.dense\.", r"\1attn.proj."),
    (r"(blocks\.\d+\.)layernorm_before\.", r"\1norm1."),
    (r"(blocks\.\d+\.)layernorm_after\.", r"\1norm2."),
    (r"(blocks\.\d+\.)(?:intermediate\.dense|mlp\.weights_in)\.", r"\1mlp.fc1."),
    (r"(blocks\.\d+\.)(?:output\.dense|mlp\.weights_out)\.", r"\1mlp.fc2."),
    (r"(blocks\.\d+\.)layer_scale([12])\.lambda1$", r"\1ls\2.gamma"),
)
FROM_HF_BEIT = (
    (r"pooler\.layernorm\.", "fc_norm."),
    (r"encoder\.relative_position_bias\.", "rel_pos_bias."),
    (r"(encoder\.layer\.\d+\.)lambda_([12])$", r"\1gamma_\2"),
    (r"(encoder\.layer\.\d+\.)attention\.attention\.query\.bias$", r"\1attn.q_bias"),
    (r"(encoder\.layer\.\d+\.)attention\.attention\.value\.bias$", r"\1attn.v_bias"),
    (r"(encoder\.layer\.\d+\.)attention\.attention\.relative_position_bias\.", r"\1attn."),
    *FROM_HF,
)


FROM_HF_CLIP = (
    (r"embeddings\.class_embedding$", "cls_token@++"),
    (r"embeddings\.position_embedding\.weight$", "pos_embed@+"),
    (r"embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"pre_layrnorm\.", "norm_pre."),  # as the library spells it
    (r"post_layernorm\.", "norm."),
    (r"head\.", "attn_pool."),
    (r"encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"(blocks\.\d+\.)self_attn\.q_proj\.(\w+)$", r"\1attn.qkv.\2@0"),
    (r"(blocks\.\d+\.)self_attn\.k_proj\.(\w+)$", r"\1attn.qkv.\2@1"),
    (r"(blocks\.\d+\.)self_attn\.v_proj\.(\w+)$", r"\1attn.qkv.\2@2"),
    (r"(blocks\.\d+\.)self_attn\.out_proj\.", r"\1attn.proj."),
    (r"(blocks\.\d+\.)layer_norm([12])\.", r"\1norm\2."),
)
FROM_OPENAI = (
    (r"class_embedding$", "cls_token@++"),
    (r"positional_embedding$", "pos_embed@+"),
    (r"conv1\.", "patch_embed.proj."),
    (r"ln_pre\.", "norm_pre."),
    (r"ln_post\.", "norm."),
    (r"transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
    (r"(blocks\.\d+\.)attn\.in_proj_", r"\1attn.qkv."),
    (r"(blocks\.\d+\.)attn\.out_proj\.", r"\1attn.proj."),
    (r"(blocks\.\d+\.)ln_([12])\.", r"\1norm\2."),
    (r"(blocks\.\d+\.)mlp\.c_fc\.", r"\1mlp.fc1."),
    (r"(blocks\.\d+\.)mlp\.c_proj\.", r"\1mlp.fc2."),
)
FROM_HF_RESNET: Rename = (
    (r"embedder\.embedder\.convolution\.", "conv1."),
    (r"embedder\.embedder\.normalization\.", "bn1."),
    *((rf"encoder\.stages\.{i}\.layers\.", f"layer{i + 1}.") for i in range(8)),
    (r"(layer\d+\.\d+\.)shortcut\.convolution\.", r"\1downsample.0."),
    (r"(layer\d+\.\d+\.)shortcut\.normalization\.", r"\1downsample.1."),
    *((rf"(layer\d+\.\d+\.)layer\.{i}\.convolution\.", rf"\1conv{i + 1}.") for i in range(3)),
    *((rf"(layer\d+\.\d+\.)layer\.{i}\.normalization\.", rf"\1bn{i + 1}.") for i in range(3)),
)


def vit_spec(
    shapes: Shapes, origin: str, *, heads: int | None = None, eps: float | None = None
) -> vit.ViTSpec:
    """The spec of the ViT, I-JEPA or DINOv2 with these shapes, by timm's names; see `vit.spec`.

    heads, eps: num_attention_heads and layer_norm_eps of config.json, None without one.
    """
    resize: vit.Resize = "antialias" if "reg_token" in shapes else "plain"
    spec = vit.spec(shapes, origin, heads=heads, eps=eps, resize=resize)
    plain = "cls_token" in shapes and "blocks.0.ls1.gamma" not in shapes
    usual = (LIBRARY_EPS, DEFAULT) if plain else (EPS, "of the published files")
    spec = spec.assume("eps", *usual)
    if spec.swiglu:
        spec = spec.decide("gate", "Hugging Face's code has silu")
    return spec.assume("position_offset", 0.0, "Hugging Face's code")


def clip_spec(
    shapes: Shapes,
    origin: str,
    *,
    heads: int | None = None,
    eps: float | None = None,
    activation: str = "",
) -> vit.ViTSpec:
    """The spec of CLIP's or SigLIP's ViT with these shapes, by timm's names; see `vit.spec`.

    activation: of the MLPs, '' without a config.json.
    """
    spec = vit.spec(shapes, origin, heads=heads, eps=eps, resize="plain")
    spec = spec.assume("position_offset", 0.0, "Hugging Face's code")
    clip = "norm_pre.weight" in shapes
    spec = spec.assume("eps", *((CLIP_EPS, "OpenAI's") if clip else (EPS, "SigLIP's")))
    if activation:
        spec = dataclasses.replace(spec, block_activation=activation)
        return spec.decide("block_activation", f"config.json has hidden_act {activation}")
    usual, why = ("quick_gelu", "OpenAI's") if clip else ("gelu_tanh", "SigLIP's")
    return dataclasses.replace(
        spec, block_activation=usual, why={**spec.why, "block_activation": why}
    )


def resnet_spec(shapes: Shapes, origin: str) -> resnet.ResNetSpec:
    """The spec of the ResNet with these shapes, by torchvision's names; see `resnet.spec`."""
    spec = resnet.spec(shapes, origin)
    for key in ("stem_pool", "strides"):
        spec = spec.decide(key, "Hugging Face's code has one value")
    return spec


def beit_spec(
    shapes: Shapes, origin: str, *, heads: int | None = None, eps: float | None = None
) -> beit.BeitSpec:
    """The spec of the Data2VecVision or BEiT with these shapes, by BEiT's names; see `beit.spec`.

    A model that was saved without its pooler has no last norm.
    """
    usual = (LIBRARY_EPS, DEFAULT)
    return beit.spec(shapes, origin, heads=heads, eps=eps, usual_eps=usual, norm_optional=True)
