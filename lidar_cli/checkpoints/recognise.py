"""The names and shapes in a checkpoint -> its backbone and projector, and each tensor's place.

A family is told by its anchor, a tensor that each of its backbones has; what stands before it is
the prefix, and the shapes under that prefix tell the sizes. Every other tensor of the state dict is
a projector's, a linear classifier's, known noise, or an error: nothing is left out in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints import (
    beit,
    beit_module,
    data2vec2,
    data2vec2_module,
    heads,
    hf,
    resnet,
    vit,
    vit_module,
)
from lidar_cli.checkpoints.backbone import Backbone, FoundBackbone, Spec
from lidar_cli.checkpoints.containers import StateDict, find_state_dict
from lidar_cli.checkpoints.heads import HeadSpec
from lidar_cli.checkpoints.joined import join
from lidar_cli.checkpoints.weights import Weight, compare, shapes, shapes_of, size, some
from lidar_cli.errors import CheckpointError

PREFIXES = ("backbone", "encoder")  # the names that win where several backbones are found
PROJECTORS = ("projector", "projection_head", "projection", "head", "fc", "lm_head")
CLASSIFIERS = ("fc", "head", "heads.head", "classifier", "online_classifier", "pooler.dense")
# Of averaged models, of profilers, of masked training, of BEiT (it follows from the grid).
NOISE = ("n_averaged", "total_ops", "total_params", "mask_token", "relative_position_index")
NEXT = "name the architecture with --arch or your own code with --model"


@dataclass(frozen=True)
class Description:
    """What was recognised; needs no tensor's values."""

    format: str
    arch: str
    image_size: int | None  # pixels a side, None where the weights do not tell
    widths: dict[str, int]  # layer -> length of its embedding
    container: str  # keys down to the state dict, with dots; '' for the file itself
    prefix: str  # of the backbone in it
    ignored: tuple[str, ...]  # known modules and tensors that are not used
    parameters: int  # numbers in the tensors used, without BatchNorm's statistics
    assumptions: tuple[str, ...] = ()  # what the weights do not tell


@dataclass(frozen=True)
class Found:
    """A description, and the tensors by the names of the modules that they fill."""

    description: Description
    backbone: FoundBackbone
    projector: HeadSpec | None
    projector_tensors: Mapping[str, Weight]


@dataclass(frozen=True)
class Family:
    """A kind of backbone, and how its names tell it."""

    format: str
    anchor: str
    rename: Callable[[str], str]  # a name in the file -> the name that `spec` knows
    spec: Callable[[Mapping[str, tuple[int, ...]], str], Spec]
    build: Callable[[Any], Backbone]  # of the spec, without weights
    special: bool = False  # where it is found, families further down say too little
    noise: tuple[str, ...] = ()  # beginnings of names that only training needs


FAMILIES = (
    Family(
        "fairseq data2vec vision",
        beit.FAIRSEQ_ANCHOR,
        beit.from_fairseq,
        partial(beit.spec, eps=beit.FAIRSEQ_EPS),
        beit_module.build,
        special=True,
        noise=beit.FAIRSEQ_NOISE,
    ),
    Family(
        "fairseq data2vec 2.0",
        data2vec2.ANCHOR,
        data2vec2.from_fairseq,
        data2vec2.spec,
        data2vec2_module.build,
        special=True,
        noise=data2vec2.NOISE,
    ),
    Family(
        "Hugging Face BEiT",
        hf.BEIT_ANCHOR,
        hf.from_hf_beit,
        hf.beit_spec,
        beit_module.build,
        special=True,
    ),
    Family(
        "Hugging Face DINOv2",
        hf.DINOV2_ANCHOR,
        hf.from_hf,
        hf.vit_spec,
        vit_module.build,
        special=True,
    ),
    Family(
        "Hugging Face ViT", hf.VIT_ANCHOR, hf.from_hf, hf.vit_spec, vit_module.build, special=True
    ),
    Family("BEiT state dict", beit.ANCHOR, str, beit.spec, beit_module.build, special=True),
    Family("ResNet state dict", resnet.ANCHOR, str, resnet.spec, resnet.ResNetSpec.build),
    Family("timm ViT state dict", vit.ANCHOR, vit.from_dinov2, vit.spec, vit_module.build),
    Family(
        "DINOv2 state dict in chunks",
        vit.CHUNKED_ANCHOR,
        vit.from_dinov2,
        vit.spec,
        vit_module.build,
    ),
    Family(
        "torchvision ViT state dict",
        vit.TORCHVISION_ANCHOR,
        vit.from_torchvision,
        vit.spec,
        vit_module.build,
    ),
)


def recognise(path: Path, tree: Mapping[str, Any], *, arch: str | None = None) -> Description:
    """What a checkpoint holds.

    tree: of `read_checkpoint`. arch: a timm name that overrules what the shapes tell.
    Raises NoWeights if nothing in it is a weight, CheckpointError if it is not understood, and
    SettingsError for an arch that timm does not know.
    """
    return find(path, tree, arch=arch).description


def find(
    path: Path, tree: Mapping[str, Any], *, arch: str | None = None, activation: str = "auto"
) -> Found:
    """Backbone and projector of a checkpoint, with the place of all tensors; see `recognise`."""
    state = find_state_dict(path, tree)
    if arch is None:
        backbone = _by_shapes(path, state)
    else:
        from lidar_cli.checkpoints.timm_arch import by_name

        backbone = by_name(path, state, arch)
    left = {name: t for name, t in state.tensors.items() if name not in backbone.keys}
    ignored = _take_noise(left, backbone.noise)
    ignored += _take_ignored(left, _levels(backbone.prefix), CLASSIFIERS + backbone.classifiers)
    width = backbone.module.width
    projector, projector_tensors = _take_projector(
        path, left, _levels(backbone.prefix), width, activation
    )
    unknown = [state.originals[name] for name in left] + list(state.others)
    if unknown:
        raise CheckpointError(
            f"{path}: {len(unknown)} entries beside the {backbone.arch} are not understood: "
            f"{some(unknown)}; expected at most a projector and a linear classifier; {NEXT}"
        )
    used = [*backbone.tensors.items(), *projector_tensors.items()]
    description = Description(
        format=backbone.format,
        arch=backbone.arch,
        image_size=backbone.image_size,
        widths={"backbone": width} | ({"projector": projector.width} if projector else {}),
        container=state.container,
        prefix=_original_prefix(backbone, state),
        ignored=ignored,
        parameters=sum(size(t) for name, t in used if not _is_statistic(name)),
        assumptions=backbone.assumptions + (projector.assumptions if projector else ()),
    )
    return Found(description, backbone, projector, projector_tensors)


def _by_shapes(path: Path, state: StateDict) -> FoundBackbone:
    """The backbone whose anchor is in the state dict."""
    family, prefix = _family(path, state)
    by_name = {
        family.rename(key.removeprefix(prefix)): key
        for key in state.tensors
        if key.startswith(prefix)
    }
    inside, sources = join({name: state.tensors[key] for name, key in by_name.items()})
    spec = family.spec(shapes_of(inside), str(path))
    try:
        module = family.build(spec)
    except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
        # Single shapes look right and do not go together, such as heads that divide no width.
        raise CheckpointError(
            f"{path}: the shapes of its tensors form no {spec.arch}; {NEXT}"
        ) from error
    expected = shapes(module.weights)
    tensors = {name: inside[name] for name in expected if name in inside}
    keys = {by_name[source] for name in tensors for source in sources[name]}
    compare(expected, shapes_of(tensors), f"{path}: {spec.arch}")
    return FoundBackbone(
        module=module,
        format=family.format,
        arch=spec.arch,
        image_size=spec.image_size,
        assumptions=spec.assumptions,
        tensors=tensors,
        keys=frozenset(keys),
        prefix=prefix,
        noise=tuple(prefix + name for name in family.noise),
    )


def _family(path: Path, state: StateDict) -> tuple[Family, str]:
    """The family and the prefix of the one backbone, or the one under a usual prefix."""
    found: list[tuple[Family, str]] = []
    special: tuple[str, ...] = ()  # prefixes that are taken
    for family in FAMILIES:
        places = [
            key.removesuffix(family.anchor)
            for key in state.tensors
            if key == family.anchor or key.endswith(f".{family.anchor}")
        ]
        found += [(family, prefix) for prefix in places if not prefix.startswith(special)]
        special += tuple(places) if family.special else ()
    usual = [place for place in found if set(place[1].split(".")[:-1]) <= set(PREFIXES)]
    if len(found) > 1 and len(usual) == 1:
        found = usual
    if not found:
        raise CheckpointError(
            f"{path}: {len(state.tensors)} tensors such as {some(state.originals.values())} "
            f"form no known backbone; expected a ResNet or a ViT by torchvision's or timm's names; "
            f"{NEXT}"
        )
    if len(found) > 1:
        prefixes = some([prefix or "(none)" for _, prefix in found])
        raise CheckpointError(
            f"{path}: {len(found)} backbones, under the prefixes {prefixes}; expected one; "
            "save the state dict of one of them alone"
        )
    return found[0]


def _original_prefix(backbone: FoundBackbone, state: StateDict) -> str:
    """The prefix with what wrappers added to it: 'module.backbone.' rather than 'backbone.'."""
    key = min(backbone.keys)
    return state.originals[key].removesuffix(key.removeprefix(backbone.prefix))


def _levels(prefix: str) -> list[str]:
    """The prefix and all shorter ones: 'a.b.' -> ['', 'a.', 'a.b.']."""
    parts = prefix.split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:i]) for i in range(len(parts) + 1)]


def _take_noise(left: dict[str, Weight], noise: tuple[str, ...]) -> tuple[str, ...]:
    """Remove what begins so from what is left, and name what there was."""
    found = tuple(start for start in noise if any(key.startswith(start) for key in left))
    for key in [key for key in left if key.startswith(found)]:
        del left[key]
    return tuple(start.rstrip(".") for start in found)


def _take_ignored(
    left: dict[str, Weight], levels: list[str], classifiers: tuple[str, ...]
) -> tuple[str, ...]:
    """Remove linear classifiers and noise from what is left, and name them."""
    ignored = []
    for module in (level + name for level in levels for name in dict.fromkeys(classifiers)):
        group = {key for key in left if key.startswith(f"{module}.")}
        weight = left.get(f"{module}.weight")
        linear = group <= {f"{module}.weight", f"{module}.bias"}
        if linear and weight is not None and len(weight.shape) == 2:
            ignored.append(module)
            for key in group:
                del left[key]
    for key in [key for key in left if key.rpartition(".")[2] in NOISE]:
        ignored.append(key)
        del left[key]
    return tuple(ignored)


def _take_projector(
    path: Path, left: dict[str, Weight], levels: list[str], width: int, activation: str
) -> tuple[HeadSpec | None, dict[str, Weight]]:
    """Remove the projector from what is left; None if there is none."""
    modules = [
        level + name
        for level in levels
        for name in PROJECTORS
        if any(key.startswith(f"{level}{name}.") for key in left)
    ]
    if not modules:
        return None, {}
    if len(modules) > 1:
        raise CheckpointError(
            f"{path}: {len(modules)} projectors, {some(modules)}; expected one; "
            "name your own code with --model"
        )
    keys = [key for key in left if key.startswith(f"{modules[0]}.")]
    tensors = {heads.plain_name(key.removeprefix(f"{modules[0]}.")): left[key] for key in keys}
    origin = f"{path}: {modules[0]}"
    if len(tensors) < len(keys):
        raise CheckpointError(f"{origin}: two layers have one number: {some(keys, 6)}; {NEXT}")
    for key in keys:
        del left[key]
    head = heads.spec(shapes_of(tensors), width, activation, origin)
    compare(shapes(head.build()), shapes_of(tensors), origin)
    return head, tensors


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
