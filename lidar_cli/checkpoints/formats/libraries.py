"""Libraries on PyTorch Lightning: solo-learn, lightly, stable-pretraining."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from lidar_cli.checkpoints.formats.distillation import dino_head
from lidar_cli.checkpoints.formats.format import USUAL_ATTENTION_HEADS, Branch, Format, Head, Method
from lidar_cli.checkpoints.shapes import swin

LIGHTNING = ("pytorch-lightning_version",)
EMA_HEAD = r"momentum_projector\."

# Augmentations: scripts/pretrain/imagenet-100. Each recipe is that of the method's authors, or one
# with the same constants. ReSSL's second view, crop and flip only, has no recipe. MoCo v3 with a
# ViT and DINO are separate formats.
SOLO_METHODS = (
    Method("simclr", "simclr", (r"projector\.2\.weight$",), (EMA_HEAD, r"predictor\.")),
    Method("supcon", "simclr", (r"projector\.2\.weight$",), (EMA_HEAD, r"predictor\.")),
    *(
        Method(
            *(name, recipe, (r"projector\.6\.bias$",)),
            *((EMA_HEAD, r"predictor\.", r"projector\.7\."), activation),
        )
        for name, recipe, activation in (
            ("barlow_twins", "barlow", ""),
            ("vicreg", "vicreg", ""),
            ("vibcreg", "vicreg", "gelu"),
        )
    ),
    *(
        Method(name, "byol", (r"projector\.7\.running_mean$", r"predictor\."), (EMA_HEAD,))
        for name in ("simsiam", "nnsiam", "nnclr")
    ),
    Method("byol", "byol", (EMA_HEAD, r"predictor\."), (r"projector\.4\.",)),
    Method("all4one", "byol", (r"predictor2\.",)),
    Method("nnbyol", "byol", (EMA_HEAD, r"predictor\.", r"queue$"), (r"projector\.4\.",)),
    Method(
        *("mocov3", "moco-v3", (EMA_HEAD, r"predictor\.", r"projector\.4\.running_mean$")),
        (r"predictor2\.",),
    ),
    Method("mocov2plus", "moco-v2", (EMA_HEAD, r"queue$"), (r"predictor\.",)),
    Method("ressl", "moco-v2", (EMA_HEAD, r"queue$"), (r"predictor\.",)),
    Method("swav", "swav", (r"prototypes\.",)),
    Method("deepclusterv2", "swav", (r"prototypes\.\d+\.",)),
    Method(
        "wmse",
        "simclr",
        (r"projector\.1\.running_mean$", r"projector\.3\.bias$"),
        (EMA_HEAD, r"predictor\.", r"prototypes\.", r"projector\.4\."),
    ),
    Method("mae", "mae", (r"decoder\.",), (r"projector\.",)),
)

SOLO = Format(
    name="solo-learn",
    title="vturrisi/solo-learn",
    example="trained_models/simclr/ID/NAME-ID-ep=399.ckpt",
    source="solo/methods/, solo/backbones/, solo/utils/checkpointer.py (9187ea3)",
    keys=LIGHTNING,
    absent_keys=("hyper_parameters",),  # solo-learn saves none; most other Lightning modules do
    containers=("state_dict",),
    present=(r"backbone\.", r"classifier\.weight$"),  # every method also trains a linear probe
    branches=(
        Branch("student", "backbone.", Head("projector."), Head("predictor.")),
        Branch("teacher", "momentum_backbone.", Head("momentum_projector.")),
    ),
    recipe="simclr",
    methods=SOLO_METHODS,
    backbones=("resnet", "vit", "swin", "timm-swin", "convnext", "poolformer", "wide-resnet"),
    arguments="args.json",
    small_pixel_stats="cifar10",
    attention_heads=USUAL_ATTENTION_HEADS,
    cifar_padding=2,
    unused=(
        r"(momentum_)?classifier\.",
        r"(momentum_)?prototypes\.",
        r"queue",
        r"dino_loss_func\.",
        r"decoder\.",
        r"(predictor2|transformer_encoder|pos_enc)\.",
        r"backbone\.fc\.",
        *swin.BUFFERS,
    ),
)

SOLO_DINO = dataclasses.replace(
    SOLO,
    name="solo-learn-dino",
    title="vturrisi/solo-learn, DINO",
    present=(*SOLO.present, r"head\.mlp\.0\."),
    branches=(
        Branch("teacher", "momentum_backbone.", dino_head("momentum_head.")),
        Branch("student", "backbone.", dino_head("head.")),
    ),
    recipe="dino",
    methods=(),
)


def solo_old(new: Format) -> Format:
    """The format of files from before solo-learn renamed `encoder` to `backbone`."""

    def old(name: str) -> str:
        return name.replace("backbone", "encoder")

    return dataclasses.replace(
        new,
        name=new.name.replace("solo-learn", "solo-learn-old"),
        title=f"{new.title}, before its backbones were named so",
        present=tuple(map(old, new.present)),
        branches=tuple(dataclasses.replace(b, backbone=old(b.backbone)) for b in new.branches),
        unused=(*new.unused, r"encoder\.fc\."),
    )


SOLO_MOCO_V3 = dataclasses.replace(
    SOLO,
    name="solo-learn-moco-v3-vit",
    title="vturrisi/solo-learn, MoCo v3 with a ViT",
    present=(
        *SOLO.present,
        r"backbone\.patch_embed\.",
        r"projector\.7\.running_mean$",
        r"predictor\.4\.running_mean$",
    ),
    recipe="moco-v3",
    methods=(),
    attention_heads=(*USUAL_ATTENTION_HEADS, (192, 12), (384, 12)),
)

SOLO_MAE = dataclasses.replace(
    SOLO,
    name="solo-learn-mae",
    title="vturrisi/solo-learn, MAE",
    source="solo/methods/mae.py, solo/backbones/vit/vit_mae.py (9187ea3)",
    present=(*SOLO.present, r"backbone\.patch_embed\.", r"decoder\.decoder_embed\."),
    branches=(Branch("encoder", "backbone."),),
    recipe="mae",
    methods=(),
    attention_heads=((192, 12), (384, 12), *USUAL_ATTENTION_HEADS[3:]),
)

# The parts of a ResNet in a Sequential are named by their index. MaskedVisionTransformerTIMM has
# timm's ViT as its attribute `vit`.
BACKBONE_NAMES = (
    (r"0\.(?=weight$)", "conv1."),
    (r"1\.", "bn1."),
    *((rf"{stage + 3}\.(?=\d+\.)", f"layer{stage}.") for stage in (1, 2, 3, 4)),
    (r"vit\.", ""),
)

LAYER = r"projection_head\.layers\."
HAS_PREDICTOR = r"prediction_head\."
HAS_PROTOTYPES = r"(\w+_)?prototypes\."
OTHER_METHODS = (HAS_PREDICTOR, HAS_PROTOTYPES)

# Transforms: benchmarks/imagenet. SimSiam uses those of MoCo v2, NNCLR those of SimCLR.
LIGHTLY_METHODS = (
    Method("swav", "swav", (HAS_PROTOTYPES,)),
    Method(
        "simsiam", "moco-v2", (rf"{LAYER}7\.running_mean$", HAS_PREDICTOR), (rf"{LAYER}7\.weight$",)
    ),
    Method("nnclr", "simclr", (rf"{LAYER}7\.weight$", HAS_PREDICTOR)),
    Method("simclr", "simclr", (rf"{LAYER}4\.running_mean$",), (*OTHER_METHODS, rf"{LAYER}6\.")),
    Method("simclr", "simclr", (rf"{LAYER}7\.running_mean$",), OTHER_METHODS),
    Method("simclr", "simclr", (rf"{LAYER}2\.weight$",), OTHER_METHODS),
    Method("barlow", "barlow", (rf"{LAYER}6\.bias$",), OTHER_METHODS),
    Method("vicreg", "vicreg", (rf"{LAYER}6\.bias$",), OTHER_METHODS),
    Method("vicreg", "vicreg", (rf"{LAYER}3\.bias$",), (*OTHER_METHODS, rf"{LAYER}4\.")),
)

LIGHTLY = Format(
    name="lightly",
    title="lightly-ai/lightly, one branch",
    example="epoch=99-step=125100.ckpt",
    source="lightly/models/modules/heads.py, benchmarks/imagenet/, examples/pytorch_lightning/",
    containers=("state_dict", ""),
    present=(r"backbone\.", r"projection_head\.layers\.0\."),
    branches=(Branch("encoder", "backbone.", Head("projection_head."), Head("prediction_head.")),),
    recipe="simclr",
    methods=LIGHTLY_METHODS,
    rename=BACKBONE_NAMES,
    attention_heads=USUAL_ATTENTION_HEADS,
    unused=(
        r"online_classifier\.",
        r"(\w+_)?criterion\.",
        r"(\w+_)?prototypes\.",
        r"(memory_bank|queues)\.",
        r"(\w+_)?backbone(_\w+)?\.(fc\.|vit\.head\.|mask_token$)",
    ),
)


LIGHTLY_MAE = dataclasses.replace(
    LIGHTLY,
    name="lightly-mae",
    title="lightly-ai/lightly, MAE",
    source="lightly/models/modules/masked_autoencoder_timm.py, benchmarks/imagenet/vitb16/mae.py",
    present=(r"backbone\.vit\.patch_embed\.", r"decoder\.mask_token$"),
    branches=(Branch("encoder", "backbone."),),
    recipe="mae",
    methods=(),
    unused=(*LIGHTLY.unused, r"decoder(_embed)?\.", r"prediction_head\."),
)

BranchModules = tuple[str, str, str]  # branch, and the names of its backbone and projector
PREDICTOR = Head("prediction_head.")  # of the student
PLAIN_STUDENT, PLAIN_TEACHER = (
    (branch, "backbone", "projection_head") for branch in ("student", "teacher")
)
MOMENTUM = ("teacher", "backbone_momentum", "projection_head_momentum")
KEY, QUERY, STUDENT, TEACHER = (
    (branch, f"{prefix}_backbone", f"{prefix}_projection_head")
    for branch, prefix in (
        ("teacher", "key"), ("student", "query"), ("student", "student"), ("teacher", "teacher"),
    )
)  # fmt: skip
MOCO_OR_TICO = (
    Method("moco", "moco-v2", absent=(rf"{LAYER}1\.",)),
    Method("tico", "byol", (rf"{LAYER}1\.running_mean$",)),
)


def lightly_pair(
    name: str,
    title: str,
    recipe: str,
    *branches: BranchModules,
    methods: tuple[Method, ...] = (),
    head: Callable[[str], Head] = Head,
    predictor: Head | None = None,
    more: tuple[str, ...] = (),
    unused: tuple[str, ...] = (),
) -> Format:
    """A format of two branches, of which the authors evaluate the first.

    more: patterns that must be present, in addition to the modules' names. unused: patterns in
    addition to those of LIGHTLY.
    """
    modules = [module for branch in branches for module in branch[1:]]
    return dataclasses.replace(
        LIGHTLY,
        name=name,
        title=f"lightly-ai/lightly, {title}",
        present=(*(re.escape(f"{module}.") for module in modules), *more),
        branches=tuple(
            Branch(
                *(branch, f"{backbone}.", head(f"{projector}.")),
                predictor if branch == "student" else None,
            )
            for branch, backbone, projector in branches
        ),
        recipe=recipe,
        methods=methods,
        unused=(*LIGHTLY.unused, *unused),
    )


LIGHTLY_PAIRS = (
    lightly_pair("lightly-moco", "MoCo", "moco-v2", PLAIN_STUDENT, KEY),
    lightly_pair(
        "lightly-moco-query", "MoCo with a query encoder", "moco-v2", PLAIN_TEACHER, QUERY
    ),
    lightly_pair(
        *("lightly-moco-example", "MoCo and TiCo of the examples", "moco-v2"),
        *(PLAIN_STUDENT, MOMENTUM),
        methods=MOCO_OR_TICO,
    ),
    lightly_pair("lightly-byol", "BYOL", "byol", PLAIN_STUDENT, TEACHER, predictor=PREDICTOR),
    lightly_pair(
        *("lightly-byol-example", "BYOL of the examples", "byol", PLAIN_STUDENT, MOMENTUM),
        predictor=PREDICTOR,
        more=(r"prediction_head\.",),
    ),
    lightly_pair("lightly-tico", "TiCo", "byol", PLAIN_TEACHER, STUDENT),
    lightly_pair(
        *("lightly-dino", "DINO", "dino", PLAIN_TEACHER, STUDENT),
        head=dino_head,
        more=(r"projection_head\.last_layer\.",),
    ),
    lightly_pair(
        *("lightly-dino-example", "DINO of the examples", "dino"),
        *((b, f"{b}_backbone", f"{b}_head") for b in ("teacher", "student")),
        head=dino_head,
        more=(r"teacher_head\.last_layer\.",),
    ),
    lightly_pair(
        *("lightly-dinov2", "DINOv2", "dinov2"),
        *((b, f"{b}_backbone", f"{b}_dino_head._dino_head") for b in ("teacher", "student")),
        head=dino_head,
        unused=(r"(teacher|student)_ibot_head\.",),
    ),
)

SPT_UNUSED = (
    r"callbacks_(modules|metrics)\.",
    r"\w+\.(base_|final_)?ema_coefficient$",
    r"(prototypes|queue|\w+_loss)\.",
    r"(C|mask_token)$",  # TiCo's covariance; the token that replaces masked patches
    r"backbone\.fc\.",
)

SPT = Format(
    name="stable-pretraining",
    title="galilai-group/stable-pretraining, one branch",
    example="RUN/checkpoints/last.ckpt",
    source="stable_pretraining/module.py, manager.py, methods/",
    keys=(*LIGHTNING, "spt_run_dir"),
    containers=("state_dict",),
    present=(r"backbone\.",),
    absent=(r"backbone\.student\.",),
    branches=(Branch("encoder", "backbone.", Head("projector."), Head("predictor.")),),
    recipe="vicreg",
    small_pixel_stats="cifar10",
    attention_heads=USUAL_ATTENTION_HEADS,
    cifar_padding=1,
    unused=SPT_UNUSED,
)

SPT_TEACHER = dataclasses.replace(
    SPT,
    name="stable-pretraining-teacher",
    title="galilai-group/stable-pretraining, student and teacher",
    keys=LIGHTNING,
    present=(r"backbone\.student\.", r"backbone\.teacher\."),
    absent=(),
    branches=(
        Branch("teacher", "backbone.teacher.", Head("projector.teacher.")),
        Branch("student", "backbone.student.", Head("projector.student."), Head("predictor.")),
    ),
)


def spt_dino(name: str, title: str, head: str, recipe: str) -> Format:
    """A format with DINO's head in module `head`.

    The head has GELU, a bottleneck, L2 normalisation, and prototypes without weight norm.
    """
    heads = {
        branch: Head(f"{head}.{branch}.", activation="gelu", after=(r"6\.",))
        for branch in ("teacher", "student")
    }
    student = rf"{head}\.student\."
    return dataclasses.replace(
        SPT_TEACHER,
        name=name,
        title=f"galilai-group/stable-pretraining, {title}",
        present=(*SPT_TEACHER.present, rf"{student}4\.weight$", rf"{student}6\.weight$"),
        absent=(rf"{student}\d+\.running_mean$", rf"{student}6\.bias$"),
        branches=tuple(Branch(branch, f"backbone.{branch}.", heads[branch]) for branch in heads),
        recipe=recipe,
        unused=(*SPT_UNUSED, r"patch_head\."),
    )


SPT_DINO = spt_dino("stable-pretraining-dino", "DINO", "projector", "dino")
SPT_DINOV2 = spt_dino("stable-pretraining-dinov2", "DINOv2 and iBOT", "cls_head", "dinov2")

LIBRARIES = (
    SOLO, solo_old(SOLO), SOLO_DINO, solo_old(SOLO_DINO), SOLO_MOCO_V3, SOLO_MAE,
    LIGHTLY, LIGHTLY_MAE, *LIGHTLY_PAIRS,
    SPT, SPT_TEACHER, SPT_DINO, SPT_DINOV2,
)  # fmt: skip
