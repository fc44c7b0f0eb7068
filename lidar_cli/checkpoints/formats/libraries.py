"""Lightning libraries: solo-learn, lightly, stable-pretraining."""

from __future__ import annotations

import dataclasses

from lidar_cli.checkpoints.formats.distillation import dino_head
from lidar_cli.checkpoints.formats.format import USUAL_HEADS, Branch, Format, Head

LIGHTNING = ("pytorch-lightning_version",)

SOLO = Format(
    name="solo-learn",
    title="vturrisi/solo-learn",
    example="trained_models/simclr/ID/NAME-ID-ep=399.ckpt",
    source="solo/methods/, solo/backbones/, solo/utils/checkpointer.py",
    keys=LIGHTNING,
    no_keys=("hyper_parameters",),  # it saves none; other people's modules mostly do
    roots=("state_dict",),
    marks=(r"backbone\.", r"classifier\.weight$"),  # every method trains a probe beside itself
    branches=(
        Branch("student", "backbone.", Head("projector."), Head("predictor.")),
        Branch("teacher", "momentum_backbone.", Head("momentum_projector.")),
    ),
    recipe="simclr",
    heads=USUAL_HEADS,
    cifar_padding=2,
    noise=(
        r"(momentum_)?classifier\.",
        r"(momentum_)?prototypes\.",
        r"queue",
        r"dino_loss_func\.",
        r"decoder\.",
        r"backbone\.fc\.",
    ),
)

SOLO_OLD = dataclasses.replace(
    SOLO,
    name="solo-learn-old",
    title="vturrisi/solo-learn, before its backbones were named so",
    marks=(r"encoder\.", r"classifier\.weight$"),
    branches=(
        Branch("student", "encoder.", Head("projector."), Head("predictor.")),
        Branch("teacher", "momentum_encoder.", Head("momentum_projector.")),
    ),
    noise=(*SOLO.noise, r"encoder\.fc\."),
)

SOLO_DINO = dataclasses.replace(
    SOLO,
    name="solo-learn-dino",
    title="vturrisi/solo-learn, DINO",
    marks=(*SOLO.marks, r"head\.mlp\.0\."),
    branches=(
        Branch("student", "backbone.", dino_head("head.")),
        Branch("teacher", "momentum_backbone.", dino_head("momentum_head.")),
    ),
    recipe="dino",
)

SOLO_MOCO_V3 = dataclasses.replace(
    SOLO,
    name="solo-learn-moco-v3-vit",
    title="vturrisi/solo-learn, MoCo v3 with a ViT",
    marks=(
        *SOLO.marks,
        r"backbone\.patch_embed\.",
        r"projector\.7\.running_mean$",
        r"predictor\.4\.running_mean$",
    ),
    recipe="moco-v3",
    heads=((192, 12), (384, 12), *USUAL_HEADS[3:]),
)

LIGHTLY = Format(
    name="lightly",
    title="lightly-ai/lightly, one branch",
    example="epoch=99-step=125100.ckpt",
    source="lightly/models/modules/heads.py, benchmarks/imagenet/resnet50/",
    roots=("state_dict", ""),
    marks=(r"backbone\.", r"projection_head\.layers\.0\."),
    branches=(Branch("encoder", "backbone.", Head("projection_head."), Head("prediction_head.")),),
    recipe="simclr",
    heads=USUAL_HEADS,
    noise=(r"online_classifier\.", r"criterion\.", r"prototypes\.", r"backbone\.fc\."),
)

LIGHTLY_MOCO = dataclasses.replace(
    LIGHTLY,
    name="lightly-moco",
    title="lightly-ai/lightly, MoCo",
    marks=(*LIGHTLY.marks, r"key_backbone\."),
    branches=(
        Branch("student", "backbone.", Head("projection_head.")),
        Branch("teacher", "key_backbone.", Head("key_projection_head.")),
    ),
    recipe="moco-v2",
)

LIGHTLY_BYOL = dataclasses.replace(
    LIGHTLY,
    name="lightly-byol",
    title="lightly-ai/lightly, BYOL",
    marks=(*LIGHTLY.marks, r"teacher_backbone\."),
    branches=(
        Branch("student", "backbone.", Head("projection_head."), Head("prediction_head.")),
        Branch("teacher", "teacher_backbone.", Head("teacher_projection_head.")),
    ),
)

LIGHTLY_DINO = dataclasses.replace(
    LIGHTLY,
    name="lightly-dino",
    title="lightly-ai/lightly, DINO",
    marks=(*LIGHTLY.marks, r"student_backbone\.", r"projection_head\.last_layer\."),
    # Here, unlike in its BYOL, the plain names are the teacher's.
    branches=(
        Branch("teacher", "backbone.", dino_head("projection_head.")),
        Branch("student", "student_backbone.", dino_head("student_projection_head.")),
    ),
    recipe="dino",
    noise=(*LIGHTLY.noise, r"student_backbone\.fc\."),
)

SPT_NOISE = (
    r"callbacks_(modules|metrics)\.",
    r"\w+\.(base_|final_)?ema_coefficient$",
    r"prototypes\.",
    r"backbone\.fc\.",
)

SPT = Format(
    name="stable-pretraining",
    title="galilai-group/stable-pretraining, one branch",
    example="RUN/checkpoints/last.ckpt",
    source="stable_pretraining/module.py, manager.py, methods/",
    keys=(*LIGHTNING, "spt_run_dir"),
    roots=("state_dict",),
    marks=(r"backbone\.",),
    lacks=(r"backbone\.student\.",),
    branches=(Branch("encoder", "backbone.", Head("projector."), Head("predictor.")),),
    recipe="vicreg",
    heads=USUAL_HEADS,
    cifar_padding=1,
    noise=SPT_NOISE,
)

SPT_TWO = dataclasses.replace(
    SPT,
    name="stable-pretraining-teacher",
    title="galilai-group/stable-pretraining, student and teacher",
    keys=LIGHTNING,
    marks=(r"backbone\.student\.", r"backbone\.teacher\."),
    lacks=(),
    branches=(
        Branch("teacher", "backbone.teacher.", Head("projector.teacher.")),
        Branch("student", "backbone.student.", Head("projector.student."), Head("predictor.")),
    ),
)

# GELU, a bottleneck, an L2 normalisation, prototypes without weight norm.
SPT_DINO = dataclasses.replace(
    SPT_TWO,
    name="stable-pretraining-dino",
    title="galilai-group/stable-pretraining, DINO",
    marks=(*SPT_TWO.marks, r"projector\.student\.4\.weight$", r"projector\.student\.6\.weight$"),
    lacks=(r"projector\.student\.\d+\.running_mean$", r"projector\.student\.6\.bias$"),
    branches=(
        Branch(
            "teacher",
            "backbone.teacher.",
            Head("projector.teacher.", activation="gelu", after=(r"6\.",)),
        ),
        Branch(
            "student",
            "backbone.student.",
            Head("projector.student.", activation="gelu", after=(r"6\.",)),
        ),
    ),
    recipe="dino",
)

LIBRARIES = (
    SOLO, SOLO_OLD, SOLO_DINO, SOLO_MOCO_V3,
    LIGHTLY, LIGHTLY_MOCO, LIGHTLY_BYOL, LIGHTLY_DINO,
    SPT, SPT_TWO, SPT_DINO,
)  # fmt: skip
