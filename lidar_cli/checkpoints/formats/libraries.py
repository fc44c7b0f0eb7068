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
    heads=((192, 12), (384, 12), *USUAL_HEADS[2:]),
)

# A ResNet in a Sequential has the places of its parts for names; MaskedVisionTransformerTIMM holds
# timm's ViT.
IN_PLACE = (
    (r"0\.(?=weight$)", "conv1."),
    (r"1\.", "bn1."),
    *((rf"{stage + 3}\.(?=\d+\.)", f"layer{stage}.") for stage in (1, 2, 3, 4)),
    (r"vit\.", ""),
)

LIGHTLY = Format(
    name="lightly",
    title="lightly-ai/lightly, one branch",
    example="epoch=99-step=125100.ckpt",
    source="lightly/models/modules/heads.py, benchmarks/imagenet/, examples/pytorch_lightning/",
    roots=("state_dict", ""),
    marks=(r"backbone\.", r"projection_head\.layers\.0\."),
    branches=(Branch("encoder", "backbone.", Head("projection_head."), Head("prediction_head.")),),
    recipe="simclr",
    rename=IN_PLACE,
    heads=USUAL_HEADS,
    noise=(
        r"online_classifier\.",
        r"(\w+_)?criterion\.",
        r"(\w+_)?prototypes\.",
        r"(memory_bank|queues)\.",
        r"(\w+_)?backbone(_\w+)?\.(fc\.|vit\.head\.|mask_token$)",
    ),
)


def lightly_pair(
    name: str,
    title: str,
    teacher: tuple[str, str],
    student: tuple[str, str],
    predictor: str = "",
    first: str = "student",
) -> Format:
    """Two branches by the names of their backbones and heads; first: the one that is evaluated."""
    branches = (
        Branch("teacher", f"{teacher[0]}.", Head(f"{teacher[1]}.")),
        Branch(
            "student",
            f"{student[0]}.",
            Head(f"{student[1]}."),
            Head(f"{predictor}.") if predictor else None,
        ),
    )
    prefixes = (*teacher, *student, *([predictor] if predictor else []))
    return dataclasses.replace(
        LIGHTLY,
        name=name,
        title=f"lightly-ai/lightly, {title}",
        marks=tuple(rf"{prefix}\." for prefix in prefixes),
        branches=tuple(sorted(branches, key=lambda branch: branch.name != first)),
    )


PLAIN = ("backbone", "projection_head")  # the student's names here, the teacher's there
KEY = ("key_backbone", "key_projection_head")
QUERY = ("query_backbone", "query_projection_head")
STUDENT = ("student_backbone", "student_projection_head")
TEACHER = ("teacher_backbone", "teacher_projection_head")
MOMENTUM = ("backbone_momentum", "projection_head_momentum")

LIGHTLY_PAIRS = (
    dataclasses.replace(
        lightly_pair("lightly-moco", "MoCo", KEY, PLAIN),
        recipe="moco-v2",
    ),
    dataclasses.replace(
        lightly_pair("lightly-moco-query", "MoCo of later benchmarks", PLAIN, QUERY, first="teacher"),
        recipe="moco-v2",
    ),
    lightly_pair("lightly-byol", "BYOL", TEACHER, PLAIN, "prediction_head"),
    lightly_pair("lightly-tico", "TiCo", PLAIN, STUDENT, first="teacher"),
    dataclasses.replace(
        lightly_pair("lightly-moco-example", "MoCo and TiCo of the examples", MOMENTUM, PLAIN),
        recipe="moco-v2",
    ),
    lightly_pair(
        "lightly-byol-example", "BYOL of the examples", MOMENTUM, PLAIN, "prediction_head"
    ),
)


def lightly_dino(
    name: str, title: str, teacher: tuple[str, str], student: tuple[str, str]
) -> Format:
    """The same, with DINO's heads, whose authors evaluate the teacher."""
    return dataclasses.replace(
        LIGHTLY,
        name=name,
        title=f"lightly-ai/lightly, {title}",
        marks=(
            *(rf"{prefix}\." for prefix in (*teacher, *student)),
            rf"{teacher[1]}\.last_layer\.",
        ),
        branches=(
            Branch("teacher", f"{teacher[0]}.", dino_head(f"{teacher[1]}.")),
            Branch("student", f"{student[0]}.", dino_head(f"{student[1]}.")),
        ),
        recipe="dino",
    )


LIGHTLY_DINO = (
    lightly_dino("lightly-dino", "DINO", PLAIN, STUDENT),
    lightly_dino(
        "lightly-dino-example",
        "DINO of the examples",
        ("teacher_backbone", "teacher_head"),
        ("student_backbone", "student_head"),
    ),
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
    LIGHTLY, *LIGHTLY_PAIRS, *LIGHTLY_DINO,
    SPT, SPT_TWO, SPT_DINO,
)  # fmt: skip
