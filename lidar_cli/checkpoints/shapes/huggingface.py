"""The specs of Hugging Face's vision transformers, whose tensors get timm's and BEiT's names.

    ViTModel, IJepaModel                       -> timm's ViT, I-JEPA without a class token
    Dinov2Model, Dinov2WithRegistersModel      -> timm's ViT with layer scale, GELU or SwiGLU
    Data2VecVisionModel, BeitModel             -> BEiT

In the file, queries, keys and values are separate tensors; '@' marks them as parts of one tensor,
which are joined in this order, see `lazy_tensor.join`. Position embeddings are resized without
DINO's offset, and antialiased only in models with registers. LayerNorm's eps is in config.json; the
defaults here are those of the published files. The pooled output of IJepa and Data2VecVision is the
mean of the patch tokens, which is the embedding here too.
"""

from __future__ import annotations

from lidar_cli.checkpoints.shapes import beit, vit
from lidar_cli.checkpoints.shapes.spec import Shapes

VIT_ANCHOR = "encoder.layer.0.layernorm_before.weight"
DINOV2_ANCHOR = "encoder.layer.0.layer_scale1.lambda1"
BEIT_ANCHOR = "encoder.layer.0.lambda_1"
EPS = 1e-6  # LayerNorm's in the published DINOv2 and I-JEPA
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


def beit_spec(
    shapes: Shapes, origin: str, *, heads: int | None = None, eps: float | None = None
) -> beit.BeitSpec:
    """The spec of the Data2VecVision or BEiT with these shapes, by BEiT's names; see `beit.spec`.

    A model that was saved without its pooler has no last norm.
    """
    usual = (LIBRARY_EPS, DEFAULT)
    return beit.spec(shapes, origin, heads=heads, eps=eps, usual_eps=usual, norm_optional=True)
