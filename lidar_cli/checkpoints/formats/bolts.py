"""Lightning Bolts: SimCLR, BYOL, SimSiam, MoCo v2 and SwAV.

A file has the arguments of its run under `hyper_parameters`. CIFAR-10 and STL-10 replace the
max-pool of the stem by none, and CIFAR-10 also its 7x7 convolution by one of 3x3.
"""

from __future__ import annotations

import dataclasses

from lidar_cli.checkpoints.formats.format import Branch, Format, Head
from lidar_cli.checkpoints.shapes.resnet import MAX_POOL, NO_POOL

LIGHTNING = ("pytorch-lightning_version",)
ARGUMENTS = "hyper_parameters"
STATISTICS = (  # transforms/dataset_normalizations.py
    ("cifar10", "0.49137,0.48235,0.44667/0.24706,0.24353,0.26157"),
    ("stl10", "0.43,0.42,0.39/0.27,0.26,0.27"),
    ("imagenet", "imagenet"),
)

SIMCLR = Format(
    name="bolts-simclr",
    title="Lightning Bolts, SimCLR",
    example="last.ckpt",
    source="models/self_supervised/simclr/simclr_module.py, resnets.py (34958a8)",
    keys=LIGHTNING,
    containers=("state_dict",),
    present=(r"encoder\.conv1\.weight$", r"projection\.model\.3\.weight$"),
    branches=(Branch("encoder", "encoder.", Head("projection.model.")),),
    recipe="simclr-bolts",
    backbones=("resnet",),
    arguments=ARGUMENTS,
    datasets=STATISTICS,
    assumed=(("maxpool1", False, "stem_pool", NO_POOL), ("maxpool1", True, "stem_pool", MAX_POOL)),
    cifar_padding=1,
    unused=(r"(\w+_network\.)?encoder\.fc\.", r"online_evaluator\."),
)

# SimSiam's target is a copy that is not updated. Before 0.6, each network had a predictor.
BYOL = dataclasses.replace(
    SIMCLR,
    name="bolts-byol",
    title="Lightning Bolts, BYOL and SimSiam",
    source="models/self_supervised/byol/, simsiam/ (34958a8)",
    present=(
        r"online_network\.encoder\.conv1\.weight$",
        r"online_network\.projector\.model\.3\.weight$",
    ),
    branches=(
        Branch(
            "student",
            "online_network.encoder.",
            Head("online_network.projector.model."),
            Head("predictor.model."),
        ),
        Branch("teacher", "target_network.encoder.", Head("target_network.projector.model.")),
    ),
    pixel_stats="unit",
    datasets=(),
)

BYOL_OLD = dataclasses.replace(
    BYOL,
    name="bolts-byol-old",
    title="Lightning Bolts, BYOL and SimSiam before 0.6",
    source="models/self_supervised/byol/, simsiam/ (0.5.0)",
    present=(*BYOL.present, r"online_network\.predictor\.model\.3\.weight$"),
    branches=tuple(
        dataclasses.replace(
            branch, predictor=Head(branch.backbone.replace("encoder.", "predictor.model."))
        )
        for branch in BYOL.branches
    ),
)

MOCO = Format(
    name="bolts-moco",
    title="Lightning Bolts, MoCo v2",
    example="epoch=199-step=39000.ckpt",
    source="models/self_supervised/moco/moco_module.py (34958a8), moco2_module.py (0.5.0)",
    keys=LIGHTNING,
    containers=("state_dict",),
    present=(r"encoder_q\.conv1\.weight$", r"encoder_q\.fc\.", r"val_queue"),
    branches=(
        Branch("student", "encoder_q.", Head("encoder_q.fc.")),
        Branch("teacher", "encoder_k.", Head("encoder_k.fc.")),
    ),
    recipe="moco-v2",
    backbones=("resnet",),
    cifar_padding=1,
    pixel_stats="cifar10",  # the only data of its command line
    unused=(r"(val_)?queue",),
)

SWAV = dataclasses.replace(
    SIMCLR,
    name="bolts-swav",
    title="Lightning Bolts, SwAV",
    source="models/self_supervised/swav/swav_resnet.py, swav_module.py (34958a8)",
    present=(
        r"model\.conv1\.weight$",
        r"model\.projection_head\.(0\.)?weight$",
        r"model\.prototypes\.",
    ),
    branches=(Branch("encoder", "model.", Head("model.projection_head.")),),
    recipe="swav",
    cifar_padding=2,
    unused=(r"model\.prototypes\.", r"criterion\."),
)

BOLTS = (SIMCLR, BYOL, BYOL_OLD, MOCO, SWAV)
