"""A state dict that no format matches: one backbone, and heads by their usual names.

The prefix is the text before a family's anchor. Every other tensor is a projector's by one of the
usual names, a linear classifier's, noise, or an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.assign import Modules, Options, assign_mlp, describe, remove_by_prefix
from lidar_cli.checkpoints.description import Assignment, CheckpointDescription
from lidar_cli.checkpoints.families import FAMILIES, NEXT, Family, assign_backbone
from lidar_cli.checkpoints.models.weights import first_few
from lidar_cli.checkpoints.reading.containers import StateDict
from lidar_cli.checkpoints.reading.lazy_tensor import Weight
from lidar_cli.checkpoints.shapes import heads
from lidar_cli.checkpoints.shapes.spec import USUAL, Assumed, assume_all
from lidar_cli.errors import CheckpointError

PREFIXES = ("backbone", "encoder")  # take precedence if there are several backbones
PROJECTORS = ("projector", "projection_head", "projection", "head", "fc", "lm_head")
CLASSIFIERS = ("fc", "head", "heads.head", "classifier", "online_classifier", "pooler.dense")
# Of averaged models, of profilers, of masked training, of BEiT (it follows from the grid).
UNUSED = ("n_averaged", "total_ops", "total_params", "mask_token", "relative_position_index")


def assign_by_usual_names(
    path: Path, state: StateDict, options: Options
) -> tuple[CheckpointDescription, Modules]:
    """Backbone and projector of a state dict.

    Raises CheckpointError if a tensor is missing or unknown, SettingsError for an arch unknown to
    timm.
    """
    backbone = _backbone(path, state, options)
    left = {name: t for name, t in state.tensors.items() if name not in backbone.keys}
    levels = _levels(backbone.prefix)
    ignored = backbone.dropped + remove_by_prefix(left, backbone.unused_prefixes)
    ignored += _remove_unused(left, levels, CLASSIFIERS + backbone.classifiers)
    modules = {"backbone": backbone}
    candidates = _projectors(left, levels)
    try:
        if candidates:
            modules["projector"] = _projector(path, left, candidates, backbone, options)
    except CheckpointError as error:
        if heads.is_needed(options.layer, "projector", ()):
            message = f"{error}; or do without it: --layer backbone"
            raise CheckpointError(message, code=error.code) from error
        ignored += tuple(f"{name} (not read)" for name in candidates)
    for key in [key for key in left if key.startswith(tuple(f"{name}." for name in candidates))]:
        del left[key]
    unknown = [state.originals[name] for name in left] + list(state.others)
    if unknown:
        raise CheckpointError(
            f"{path}: {len(unknown)} entries beside the {backbone.spec.arch} are not understood: "
            f"{first_few(unknown)}; expected at most a projector and a linear classifier; {NEXT}",
            code="unknown-entries",
        )
    return describe(modules, state, ignored), modules


def _backbone(path: Path, state: StateDict, options: Options) -> Assignment:
    """timm's model of the user's name, else the backbone whose anchor is in the state dict."""
    if options.arch is not None:
        from lidar_cli.checkpoints.models.timm_model import assign_timm

        return assign_timm(path, state, options.arch)
    family, prefix = _family(path, state)
    keys = {key.removeprefix(prefix): key for key in state.tensors if key.startswith(prefix)}

    def adjust(spec: Any) -> Any:
        return assume_all(spec, options.assume)

    return assign_backbone(path, family, keys, state.tensors, prefix, options.config, adjust)


def _family(path: Path, state: StateDict) -> tuple[Family, str]:
    """The family and the prefix of the one backbone, or the one under a usual prefix."""
    backbones: list[tuple[Family, str]] = []
    special: tuple[str, ...] = ()  # prefixes that are taken
    for family in sorted(FAMILIES.values(), key=lambda family: not family.special):
        places = [
            key.removesuffix(family.anchor)
            for key in state.tensors
            if key == family.anchor or key.endswith(f".{family.anchor}")
        ]
        backbones += [(family, prefix) for prefix in places if not prefix.startswith(special)]
        special += tuple(places) if family.special else ()
    usual = [one for one in backbones if set(one[1].split(".")[:-1]) <= set(PREFIXES)]
    if len(backbones) > 1 and len(usual) == 1:
        backbones = usual
    if not backbones:
        raise CheckpointError(
            f"{path}: {len(state.tensors)} tensors such as {first_few(state.originals.values())} "
            f"form no known backbone; expected a ResNet or a ViT by torchvision's or timm's names; "
            f"{NEXT}",
            code="no-backbone",
        )
    if len(backbones) > 1:
        prefixes = first_few([prefix or "(none)" for _, prefix in backbones])
        raise CheckpointError(
            f"{path}: {len(backbones)} backbones, under the prefixes {prefixes}; expected one; "
            "save the state dict of one of them alone",
            code="several-backbones",
        )
    return backbones[0]


def _levels(prefix: str) -> list[str]:
    """The prefix and all shorter ones: 'a.b.' -> ['', 'a.', 'a.b.']."""
    parts = prefix.split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:i]) for i in range(len(parts) + 1)]


def _remove_unused(
    left: dict[str, Weight], levels: list[str], classifiers: tuple[str, ...]
) -> tuple[str, ...]:
    """Remove linear classifiers and noise from `left`; their names."""
    ignored = []
    for module in (level + name for level in levels for name in dict.fromkeys(classifiers)):
        group = {key for key in left if key.startswith(f"{module}.")}
        weight = left.get(f"{module}.weight")
        linear = group <= {f"{module}.weight", f"{module}.bias"}
        if linear and weight is not None and len(weight.shape) == 2:
            ignored.append(module)
            for key in group:
                del left[key]
    for key in [key for key in left if key.rpartition(".")[2] in UNUSED]:
        ignored.append(key)
        del left[key]
    return tuple(ignored)


def _projectors(left: Mapping[str, Weight], levels: list[str]) -> list[str]:
    """Modules that may be a projector by their names."""
    return [
        level + name
        for level in levels
        for name in PROJECTORS
        if any(key.startswith(f"{level}{name}.") for key in left)
    ]


def _projector(
    path: Path,
    left: Mapping[str, Weight],
    candidates: list[str],
    backbone: Assignment,
    options: Options,
) -> Assignment:
    if len(candidates) > 1:
        raise CheckpointError(
            f"{path}: {len(candidates)} projectors, {first_few(candidates)}; expected one; "
            "name your own code with --model",
            code="several-projectors",
        )
    prefix = f"{candidates[0]}."
    names = {key: key.removeprefix(prefix) for key in left if key.startswith(prefix)}
    origin, usual = f"{path}: {candidates[0]}", Assumed("relu", USUAL)
    return assign_mlp(origin, names, left, backbone.spec.width, usual, options)
