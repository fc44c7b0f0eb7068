"""SimCLR, VICReg, Barlow Twins, MoCo, SimSiam, BYOL, SwAV: joint embeddings of several crops."""

from __future__ import annotations

import dataclasses

from lidar_cli.checkpoints.formats.format import (
    USUAL_ATTENTION_HEADS,
    Branch,
    Format,
    Head,
    numbered,
)
from lidar_cli.checkpoints.shapes.heads import SIMPLEX

VICREG = Format(
    name="vicreg",
    title="facebookresearch/vicreg",
    example="model.pth, resnet50_fullckpt.pth",
    source="main_vicreg.py, resnet.py",
    # The last of the three Linear layers has no bias here, but has one in reimplementations.
    present=(r"backbone\.conv1\.weight$", r"projector\.0\.bias$", r"projector\.6\.weight$"),
    absent=(r"projector\.6\.bias$", r"bn\.", r".*classifier"),
    containers=("model", ""),
    branches=(Branch("encoder", "backbone.", Head("projector.")),),
    recipe="vicreg",
    backbones=("resnet",),
)

BARLOW = Format(
    name="barlow",
    title="facebookresearch/barlowtwins",
    example="checkpoint.pth",
    source="main.py",
    present=(r"backbone\.conv1\.weight$", r"projector\.0\.weight$", r"bn\.running_mean$"),
    absent=(r"projector\.0\.bias$", r"bn\.weight$"),
    containers=("model", ""),
    branches=(Branch("encoder", "backbone.", Head("projector.")),),
    recipe="barlow",
    backbones=("resnet",),
    unused=(r"bn\.",),  # the BatchNorm of the loss
)

STHALLES = Format(
    name="simclr-sthalles",
    title="sthalles/SimCLR",
    example="checkpoint_0100.pth.tar",
    source="models/resnet_simclr.py, simclr.py",
    present=(r"backbone\.conv1\.weight$", r"backbone\.fc\.0\.weight$", r"backbone\.fc\.2\.weight$"),
    absent=(r"projector\.", r"head\."),
    branches=(Branch("encoder", "backbone.", Head("backbone.fc.")),),
    recipe="simclr",
    backbones=("resnet",),
    pixel_stats="unit",
)

SPIJKERVET = Format(
    name="simclr-spijkervet",
    title="Spijkervet/SimCLR",
    example="checkpoint_100.tar",
    source="simclr/simclr.py, model.py",
    present=(r"encoder\.conv1\.weight$", r"projector\.0\.weight$", r"projector\.2\.weight$"),
    absent=(r"projector\.[02]\.bias$", r"classifier\.", r"momentum_"),
    containers=("",),
    branches=(Branch("encoder", "encoder.", Head("projector.")),),
    recipe="simclr",
    backbones=("resnet",),
    pixel_stats="unit",
)

# The Lightning module has the encoder as an attribute in addition to that of its model.
SPIJKERVET_LIGHTNING = dataclasses.replace(
    SPIJKERVET,
    name="spijkervet-lightning",
    title="Spijkervet/SimCLR, Lightning",
    example="lightning_logs/version_0/checkpoints/epoch=99.ckpt",
    source="main_pl.py, simclr/simclr.py (2738efa)",
    keys=("pytorch-lightning_version",),
    present=tuple(rf"model\.{name}" for name in SPIJKERVET.present),
    absent=(r"model\.projector\.[02]\.bias$", r"classifier\."),
    containers=("state_dict",),
    branches=(Branch("encoder", "model.encoder.", Head("model.projector.")),),
    unused=(r"encoder\.",),
)

ATANOV = Format(
    name="simclr-atanov",
    title="AndrewAtanov/simclr-pytorch",
    example="checkpoint-100000.pth.tar",
    source="models/encoder.py, models/ssl.py",
    present=(r"convnet\.conv1\.weight$", r"projection\.fc1\.weight$", r"projection\.bn2\."),
    branches=(
        Branch(
            "encoder",
            "convnet.",
            Head("projection.", rename=numbered(["fc1", "bn1", "-", "fc2", "bn2"])),
        ),
    ),
    recipe="simclr",
    backbones=("resnet",),
    cifar_padding=1,
    unused=(r"convnet\.fc\.",),  # created by torchvision, never used
    pixel_stats="unit",
)

LEFTTHOMAS = Format(
    name="simclr-leftthomas",
    title="leftthomas/SimCLR",
    example="128_0.5_200_512_500_model.pth",
    source="model.py, main.py, utils.py",
    present=(r"f\.0\.weight$", r"f\.3\.0\.conv1\.weight$", r"g\.0\.weight$", r"g\.3\.weight$"),
    containers=("",),
    branches=(Branch("encoder", "f.", Head("g.")),),
    recipe="simclr",
    backbones=("resnet",),
    # The children of torchvision's ResNet by index, without the max-pool: the stem is 3x3.
    rename=(
        (r"0\.", "conv1."), (r"1\.", "bn1."),
        (r"3\.", "layer1."), (r"4\.", "layer2."), (r"5\.", "layer3."), (r"6\.", "layer4."),
    ),
    cifar_padding=1,
    pixel_stats="0.4914,0.4822,0.4465/0.2023,0.1994,0.2010",  # it trains only on CIFAR-10
)  # fmt: skip

MOCO_V1 = Format(
    name="moco-v1",
    title="facebookresearch/moco, v1",
    example="checkpoint_0199.pth.tar",
    source="moco/builder.py, main_moco.py",
    present=(r"encoder_q\.conv1\.weight$", r"encoder_q\.fc\.weight$"),
    branches=(
        Branch("student", "encoder_q.", Head("encoder_q.fc.")),
        Branch("teacher", "encoder_k.", Head("encoder_k.fc.")),
    ),
    recipe="moco-v1",
    backbones=("resnet",),
    unused=(r"queue(_ptr)?$",),
)

MOCO_V2 = dataclasses.replace(
    MOCO_V1,
    name="moco-v2",
    title="facebookresearch/moco, v2",
    present=(r"encoder_q\.conv1\.weight$", r"encoder_q\.fc\.0\.weight$"),
    recipe="moco-v2",
)

MOCO_V3_VIT = Format(
    name="moco-v3-vit",
    title="facebookresearch/moco-v3, ViT",
    example="vit-s-300ep.pth.tar",
    source="moco/builder.py, vits.py",
    present=(r"base_encoder\.patch_embed\.", r"base_encoder\.head\.0\.weight$"),
    branches=(
        Branch("student", "base_encoder.", Head("base_encoder.head."), Head("predictor.")),
        Branch("teacher", "momentum_encoder.", Head("momentum_encoder.head.")),
    ),
    recipe="moco-v3",
    backbones=("vit",),
    attention_heads=(*USUAL_ATTENTION_HEADS, (192, 12), (384, 12)),  # ViT-S has 12 heads too
)

MOCO_V3_RESNET = dataclasses.replace(
    MOCO_V3_VIT,
    name="moco-v3-resnet",
    title="facebookresearch/moco-v3, ResNet",
    example="r-50-300ep.pth.tar",
    present=(r"base_encoder\.conv1\.weight$", r"base_encoder\.fc\.0\.weight$"),
    branches=(
        Branch("student", "base_encoder.", Head("base_encoder.fc."), Head("predictor.")),
        Branch("teacher", "momentum_encoder.", Head("momentum_encoder.fc.")),
    ),
    backbones=("resnet",),
    attention_heads=(),
)

SIMSIAM = Format(
    name="simsiam",
    title="facebookresearch/simsiam",
    example="checkpoint_0099.pth.tar",
    source="simsiam/builder.py, main_simsiam.py, main_lincls.py (a7bc177)",
    present=(
        r"encoder\.conv1\.weight$",
        r"encoder\.fc\.7\.running_mean$",
        r"predictor\.3\.weight$",
    ),
    branches=(Branch("encoder", "encoder.", Head("encoder.fc."), Head("predictor.")),),
    recipe="moco-v2",  # its augmentations are those of MoCo v2
    backbones=("resnet",),
)

# The second release normalises to simplices between two Linear layers of the projector.
SIMPLICIAL = ((r"0\.([01])\.", r"\1."), *((rf"2\.{i}\.", f"{i + 4}.") for i in range(8)))


def byol_branch(name: str, encoder: str, predictor: Head | None = None) -> Branch:
    """A branch of lucidrains/byol-pytorch."""
    projector = Head(f"{encoder}projector.", rename=SIMPLICIAL, gaps=((4, SIMPLEX),))
    return Branch(name, f"{encoder}net.", projector, predictor)


# A learner has the network twice, and keeps its last layer, which is not used.
BYOL_PYTORCH = Format(
    name="byol-pytorch",
    title="lucidrains/byol-pytorch, learner",
    example="learner.pt",
    source="byol_pytorch/byol_pytorch.py, examples/lightning/train.py (2993126)",
    present=(r"online_encoder\.net\.", r"online_encoder\.projector\.", r"online_predictor\."),
    class_prefix=r"(learner|byol|model)\.",
    branches=(
        byol_branch("student", "online_encoder.", Head("online_predictor.")),
        byol_branch("teacher", "target_encoder."),
    ),
    recipe="byol-pytorch",
    attention_heads=USUAL_ATTENTION_HEADS,
    unused=(r"net\.", r"(online|target)_encoder\.net\.(fc|head)\."),
)

SWAV = Format(
    name="swav",
    title="facebookresearch/swav, DeepCluster v2 too",
    example="checkpoint.pth.tar, swav_800ep_pretrain.pth.tar",
    source="src/resnet50.py, main_swav.py, main_deepclusterv2.py",
    present=(r"conv1\.weight$", r"projection_head\.(0\.)?weight$", r"prototypes\."),
    branches=(Branch("encoder", "", Head("projection_head.")),),
    recipe="swav",
    backbones=("resnet",),
    unused=(r"prototypes\.",),
    pixel_stats="auto",
)

CONTRASTIVE = (
    VICREG, BARLOW, STHALLES, SPIJKERVET, SPIJKERVET_LIGHTNING, ATANOV, LEFTTHOMAS,
    MOCO_V1, MOCO_V2, MOCO_V3_VIT, MOCO_V3_RESNET, SIMSIAM, BYOL_PYTORCH, SWAV,
)  # fmt: skip
