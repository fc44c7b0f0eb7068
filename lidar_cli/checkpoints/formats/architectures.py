"""Files of timm and torchvision, and backbones that were released alone by their names.

Nothing in them tells a method. Only what has no other names than these is taken: a projector, a
prefix or another head leaves the file to the reading by usual names (generic.py).
"""

from __future__ import annotations

from lidar_cli.checkpoints.formats.format import Branch, Format

TORCHVISION = Format(
    name="torchvision",
    title="torchvision's ResNet and ViT, and backbones released by their names",
    example="resnet50-11ad3fa6.pth, vit_b_16-c867db91.pth, resnet50.pth",
    source="torchvision/models/resnet.py, vision_transformer.py",
    marks=(
        r"(conv1|conv_proj)\.weight$",
        r"(layer1\.0\.conv1|encoder\.layers\.encoder_layer_0\.ln_1)\.weight$",
    ),
    lacks=(
        r"(?!conv1\.weight$|bn1\.|layer\d+\.|fc\.(weight|bias)$"
        r"|class_token$|conv_proj\.|encoder\.|heads\.head\.)",
    ),
    branches=(Branch("encoder", ""),),
    recipe="simclr",
    pixel_stats="auto",
    backbones=("resnet", "torchvision-vit"),
    noise=(r"fc\.", r"heads\.head\."),
)

TIMM = Format(
    name="timm",
    title="timm's ViT and BEiT, and backbones released by their names",
    example="model.safetensors, dino_deitsmall16_pretrain.pth",
    source="timm/models/vision_transformer.py, beit.py",
    marks=(r"patch_embed\.proj\.weight$", r"blocks\.0\.attn\.qkv\.weight$"),
    lacks=(
        r"(?!(cls_token|pos_embed|reg_token|head\.weight|head\.bias)$"
        r"|(patch_embed|blocks|norm|norm_pre|fc_norm|rel_pos_bias)\.)",
    ),
    branches=(Branch("encoder", ""),),
    recipe="simclr",
    pixel_stats="auto",
    backbones=("beit", "vit"),
    noise=(r"head\.", r".*\.relative_position_index$"),
)

ARCHITECTURES = (TORCHVISION, TIMM)
