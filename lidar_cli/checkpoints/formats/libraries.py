"""Lightning libraries: solo-learn, lightly, stable-pretraining."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

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

SOLO_OLD_DINO = dataclasses.replace(
    SOLO_OLD,
    name="solo-learn-old-dino",
    title="vturrisi/solo-learn, DINO, before its backbones were named so",
    marks=(*SOLO_OLD.marks, r"head\.mlp\.0\."),
    branches=(
        Branch("student", "encoder.", dino_head("head.")),
        Branch("teacher", "momentum_encoder.", dino_head("momentum_head.")),
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

SOLO_MAE = dataclasses.replace(
    SOLO,
    name="solo-learn-mae",
    title="vturrisi/solo-learn, MAE",
    source="solo/methods/mae.py, solo/backbones/vit/vit_mae.py",
    marks=(*SOLO.marks, r"backbone\.patch_embed\.", r"decoder\.decoder_embed\."),
    branches=(Branch("encoder", "backbone."),),
    recipe="mae",
    heads=((192, 12), (384, 12), *USUAL_HEADS[3:]),
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


Names = tuple[str, str]  # of a branch's backbone and projector


def lightly_pair(
    name: str,
    title: str,
    first: tuple[str, Names],
    second: tuple[str, Names],
    *,
    recipe: str = "simclr",
    head: Callable[[str], Head] = Head,
    predictor: Head | None = None,
    more: tuple[str, ...] = (),
) -> Format:
    """Two branches by their names, first the one that is evaluated.

    predictor: the student's. more: marks beside the names of the branches.
    """
    branches = [
        Branch(
            branch,
            f"{names[0]}.",
            head(f"{names[1]}."),
            predictor if branch == "student" else None,
        )
        for branch, names in (first, second)
    ]
    prefixes = (*first[1], *second[1])
    return dataclasses.replace(
        LIGHTLY,
        name=name,
        title=f"lightly-ai/lightly, {title}",
        marks=(*(re.escape(f"{prefix}.") for prefix in prefixes), *more),
        branches=tuple(branches),
        recipe=recipe,
    )


PREDICTOR = Head("prediction_head.")
PLAIN = ("backbone", "projection_head")  # in some modules the student's, in others the teacher's
MOMENTUM = ("backbone_momentum", "projection_head_momentum")
KEY, QUERY, STUDENT, TEACHER = (
    (f"{branch}_backbone", f"{branch}_projection_head")
    for branch in ("key", "query", "student", "teacher")
)

LIGHTLY_PAIRS = (
    lightly_pair("lightly-moco", "MoCo", ("student", PLAIN), ("teacher", KEY), recipe="moco-v2"),
    lightly_pair(
        "lightly-moco-query",
        "MoCo with a query encoder",
        ("teacher", PLAIN),
        ("student", QUERY),
        recipe="moco-v2",
    ),
    lightly_pair(
        "lightly-moco-example",
        "MoCo and TiCo of the examples",
        ("student", PLAIN),
        ("teacher", MOMENTUM),
        recipe="moco-v2",
    ),
    lightly_pair(
        "lightly-byol",
        "BYOL",
        ("student", PLAIN),
        ("teacher", TEACHER),
        predictor=PREDICTOR,
    ),
    lightly_pair(
        "lightly-byol-example",
        "BYOL of the examples",
        ("student", PLAIN),
        ("teacher", MOMENTUM),
        predictor=PREDICTOR,
        more=(r"prediction_head\.",),
    ),
    lightly_pair("lightly-tico", "TiCo", ("teacher", PLAIN), ("student", STUDENT)),
    lightly_pair(
        "lightly-dino",
        "DINO",
        ("teacher", PLAIN),
        ("student", STUDENT),
        recipe="dino",
        head=dino_head,
        more=(r"projection_head\.last_layer\.",),
    ),
    lightly_pair(
        "lightly-dino-example",
        "DINO of the examples",
        ("teacher", ("teacher_backbone", "teacher_head")),
        ("student", ("student_backbone", "student_head")),
        recipe="dino",
        head=dino_head,
        more=(r"teacher_head\.last_layer\.",),
    ),
    dataclasses.replace(
        lightly_pair(
            "lightly-dinov2",
            "DINOv2",
            ("teacher", ("teacher_backbone", "teacher_dino_head._dino_head")),
            ("student", ("student_backbone", "student_dino_head._dino_head")),
            recipe="dinov2",
            head=dino_head,
        ),
        noise=(*LIGHTLY.noise, r"(teacher|student)_ibot_head\."),
    ),
)

SPT_NOISE = (
    r"callbacks_(modules|metrics)\.",
    r"\w+\.(base_|final_)?ema_coefficient$",
    r"(prototypes|queue|\w+_loss)\.",
    r"(C|mask_token)$",  # TiCO's covariance; the token of methods that hide patches
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


def spt_dino(name: str, title: str, head: str, recipe: str) -> Format:
    """GELU, a bottleneck, an L2 normalisation, prototypes without weight norm: module `head`."""
    heads = {
        branch: Head(f"{head}.{branch}.", activation="gelu", after=(r"6\.",))
        for branch in ("teacher", "student")
    }
    student = rf"{head}\.student\."
    return dataclasses.replace(
        SPT_TWO,
        name=name,
        title=f"galilai-group/stable-pretraining, {title}",
        marks=(*SPT_TWO.marks, rf"{student}4\.weight$", rf"{student}6\.weight$"),
        lacks=(rf"{student}\d+\.running_mean$", rf"{student}6\.bias$"),
        branches=tuple(Branch(branch, f"backbone.{branch}.", heads[branch]) for branch in heads),
        recipe=recipe,
        noise=(*SPT_NOISE, r"patch_head\."),
    )


SPT_DINO = spt_dino("stable-pretraining-dino", "DINO", "projector", "dino")
SPT_DINOV2 = spt_dino("stable-pretraining-dinov2", "DINOv2 and iBOT", "cls_head", "dinov2")

LIBRARIES = (
    SOLO, SOLO_OLD, SOLO_DINO, SOLO_OLD_DINO, SOLO_MOCO_V3, SOLO_MAE,
    LIGHTLY, *LIGHTLY_PAIRS,
    SPT, SPT_TWO, SPT_DINO, SPT_DINOV2,
)  # fmt: skip
