"""OpenMMLab's mmpretrain, and mmselfsup, which became part of it.

A method's average is a Sequential of the backbone and the neck. mmselfsup before 1.0 saved both
under two names, of which one is `backbone` and `neck` as today.
"""

from __future__ import annotations

import dataclasses

from lidar_cli.checkpoints.formats.format import (
    USUAL_ATTENTION_HEADS,
    Branch,
    Format,
    Head,
    Method,
    numbered,
)

# NonLinearNeck's layers by their names; those of other necks are numbered in a Sequential.
LAYERS = (
    *numbered(["fc0", "bn0", "-", "fc1", "bn1", "-", "fc2", "bn2"]),
    (r"(mlp|projection_neck)\.", ""),
    (r"fc\.", "0."),  # NPID's only layer
)
FC1, BN1, FC2 = (rf"neck\.{name}" for name in (r"fc1\.", r"bn1\.running_mean$", r"fc2\."))
BN2, PREDICTOR = r"neck\.bn2\.running_mean$", r"head\.predictor\."


def neck(prefix: str) -> Head:
    """A neck without DenseCL's second MLP, for patches, and SwAV's second name of its norm."""
    return Head(prefix, rename=LAYERS, after=(r"mlp2\.", r"norm\."))


PLAIN = Format(
    name="mmpretrain",
    title="open-mmlab/mmpretrain and mmselfsup, one branch",
    example="epoch_200.pth, simclr_resnet50_16xb256-coslr-800e_in1k.pth",
    source="mmpretrain/models/selfsup/, necks/, backbones/, configs/ (ee7f2e8)",
    keys=("meta", "state_dict"),
    containers=("state_dict",),
    present=(r"backbone\.",),
    branches=(
        Branch("encoder", "backbone.", neck("neck."), Head("head.predictor.", rename=LAYERS)),
    ),
    recipe="simclr-vissl",
    methods=(
        Method("SwAV", "swav", (r"neck\.projection_neck\.",)),
        Method("SimSiam", "moco-v2", (BN2, PREDICTOR)),
        Method("BarlowTwins", "barlow", (FC2,), (BN2,)),
        Method("SimCLR", "simclr-vissl", (FC1, BN1), (FC2,)),
        Method("classifier", "simclr-vissl", (), (r"neck\.",)),
    ),
    backbones=("resnet", "mm-beit", "mm-vit"),
    attention_heads=USUAL_ATTENTION_HEADS,
    resize="plain",
    cifar_padding=1,
    unused=(
        r"(encoder_q|encoder|online_net|base_encoder)\.[01]\.",
        r"(\w+\.)?steps$",
        r"queue2?(_ptr)?$",
        r"memory_bank\.",
        r"head\.(?!predictor\.)",
        r"target_generator\.",
        r"backbone\.mask_token$",
        r".*\.relative_position_index$",
    ),
)


def averaged(name: str, title: str, average: str, recipe: str) -> Format:
    """A format whose second branch is an average, in the module of that name."""
    online = dataclasses.replace(PLAIN.branches[0], name="student")
    target = Branch("teacher", f"{average}.0.", neck(f"{average}.1."))
    return dataclasses.replace(
        PLAIN,
        name=f"mmpretrain-{name}",
        title=f"open-mmlab/mmpretrain and mmselfsup, {title}",
        present=(*PLAIN.present, rf"{average}\.0\."),
        branches=(online, target),
        recipe=recipe,
        methods=(),
    )


MOCO = averaged("moco", "MoCo v2 and DenseCL", "encoder_k", "moco-v2")
BYOL = averaged("byol", "BYOL", "target_net", "byol")
MOCO_V3 = dataclasses.replace(
    averaged("moco-v3", "MoCo v3", "momentum_encoder", "moco-v3"),
    attention_heads=(*USUAL_ATTENTION_HEADS, (192, 12), (384, 12)),
)

# Their necks are decoders, of MaskFeat a Linear layer to histograms.
MASKED = dataclasses.replace(
    PLAIN,
    name="mmpretrain-masked",
    title="open-mmlab/mmpretrain and mmselfsup, MAE, EVA, MILAN, BEiT and MaskFeat",
    present=(*PLAIN.present, r"(neck\.decoder_embed\.|backbone\.mask_token)"),
    branches=(Branch("encoder", "backbone."),),
    recipe="mae",
    methods=(
        Method("BEiT", "data2vec-crop", (r"head\.cls_head\.",)),
        Method("MaskFeat", "maskfeat", (r"neck\.fc\.",)),
        Method("MAE", "mae", (r"neck\.decoder_embed\.",)),
    ),
    unused=(*PLAIN.unused, r"neck\."),
)

OPENMMLAB = (PLAIN, MOCO, BYOL, MOCO_V3, MASKED)
