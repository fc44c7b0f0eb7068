"""LeJEPA and EB-JEPA: one network, and the same loss on every crop.

EB-JEPA trains with VICReg's loss or LeJEPA's, always with VICReg's projector.
"""

from __future__ import annotations

from lidar_cli.checkpoints.formats.format import USUAL_ATTENTION_HEADS, Branch, Format, Head

# The minimal example saves nothing itself: this is the state dict of its network. Read at
# rbalestr-lab/lejepa eddffdd. The embedding is the output of timm's classifier, of 512 numbers.
LEJEPA = Format(
    name="lejepa",
    title="rbalestr-lab/lejepa, minimal example",
    example="lejepa.pth",
    source="MINIMAL.md (eddffdd)",
    present=(
        r"backbone\.patch_embed\.proj\.weight$",
        r"backbone\.head\.weight$",
        r"proj\.0\.weight$",
        r"proj\.1\.running_mean$",
    ),
    absent=(r"projector\.", r"projection_head\."),
    branches=(Branch("encoder", "backbone.", Head("proj.")),),
    recipe="lejepa",
    backbones=("vit",),
    rename=((r"head\.", "embedding."),),
    attention_heads=USUAL_ATTENTION_HEADS,
)

# Read at facebookresearch/eb_jepa 966e61e.
EB_JEPA = Format(
    name="eb-jepa",
    title="facebookresearch/eb_jepa, images",
    example="latest.pth.tar, epoch_250.pth.tar",
    source="examples/image_jepa/main.py, dataset.py, eb_jepa/training_utils.py (966e61e)",
    keys=("epoch", "step", "model_state_dict"),
    containers=("model_state_dict",),
    present=(r"backbone\.(backbone\.conv1\.weight|class_token)",),
    branches=(Branch("encoder", "backbone.", Head("projector.")),),
    recipe="eb-jepa",
    backbones=("resnet", "torchvision-vit"),
    rename=((r"backbone\.", ""),),  # its ResNet is the attribute of a module
    attention_heads=USUAL_ATTENTION_HEADS,
    cifar_padding=2,
    pixel_stats="0.4914,0.4822,0.4465/0.2023,0.1994,0.2010",  # it trains only on CIFAR-10
)

LEJEPAS = (LEJEPA, EB_JEPA)
