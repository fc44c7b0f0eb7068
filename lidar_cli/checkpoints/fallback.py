"""Assigns the tensors of a file that no format matches: one backbone, and a projector.

The backbone is found by a family's anchor; the text before the anchor is the backbone's prefix.
Every other tensor must belong to a projector or linear classifier with a usual name, or be one that
only training needs; any other tensor raises an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.assign import Modules, Options, assign_mlp, describe, remove_by_prefix
from lidar_cli.checkpoints.families import FAMILIES, NEXT, Family, assign_backbone
from lidar_cli.checkpoints.models.weights import first_few
from lidar_cli.checkpoints.reading.containers import StateDict
from lidar_cli.checkpoints.reading.lazy_tensor import Weight
from lidar_cli.checkpoints.shapes import heads
from lidar_cli.checkpoints.shapes.spec import (
    USUAL,
    Assignment,
    Assumed,
    CheckpointDescription,
    assume_all,
)
from lidar_cli.errors import CheckpointError

PREFIXES = ("backbone", "encoder")  # preferred if there are several backbones
PROJECTORS = ("projector", "projection_head", "projection", "head", "fc", "lm_head")
CLASSIFIERS = ("fc", "head", "heads.head", "classifier", "online_classifier", "pooler.dense")
# Saved by averaged models, by profilers, by masked training, and by BEiT (the grid determines it).
UNUSED = ("n_averaged", "total_ops", "total_params", "mask_token", "relative_position_index")


def assign_by_usual_names(
    path: Path, state: StateDict, options: Options
) -> tuple[CheckpointDescription, Modules]:
    """The description of a state dict, and its backbone and projector.

    Raises CheckpointError if a tensor is missing or unknown, SettingsError for an arch unknown to
    timm.
    """
    backbone = _assign_backbone(path, state, options)
    rest = {name: t for name, t in state.tensors.items() if name not in backbone.keys}
    levels = _levels(backbone.prefix)
    ignored = backbone.dropped + remove_by_prefix(rest, backbone.unused_prefixes)
    ignored += _remove_unused(rest, levels, CLASSIFIERS + backbone.classifiers)
    modules = {"backbone": backbone}
    candidates = _projector_candidates(rest, levels)
    try:
        if candidates:
            modules["projector"] = _assign_projector(path, rest, candidates, backbone, options)
    except CheckpointError as error:
        if heads.is_needed(options.layer, "projector", ()):
            message = f"{error}; or do without it: --layer backbone"
            raise CheckpointError(message, code=error.code) from error
        ignored += tuple(f"{name} (not read)" for name in candidates)
    for key in [key for key in rest if key.startswith(tuple(f"{name}." for name in candidates))]:
        del rest[key]
    unknown = [state.originals[name] for name in rest] + list(state.others)
    if unknown:
        raise CheckpointError(
            f"{path}: {len(unknown)} entries outside the {backbone.spec.arch} are not understood: "
            f"{first_few(unknown)}; expected at most a projector and a linear classifier; {NEXT}",
            code="unknown-entries",
        )
    return describe(modules, state, ignored), modules


def _assign_backbone(path: Path, state: StateDict, options: Options) -> Assignment:
    """timm's model if `--arch` names one, else the backbone whose anchor is in the state dict."""
    if options.arch is not None:
        from lidar_cli.checkpoints.models.timm_model import assign_timm

        return assign_timm(path, state, options.arch)
    family, prefix = _family(path, state)
    keys = {key.removeprefix(prefix): key for key in state.tensors if key.startswith(prefix)}

    def adjust(spec: Any) -> Any:
        return assume_all(spec, options.assume)

    return assign_backbone(path, family, keys, state.tensors, prefix, options.config, adjust)


def _family(path: Path, state: StateDict) -> tuple[Family, str]:
    """The family and the prefix of the only backbone, or of the only one under a usual prefix.

    Raises CheckpointError if there is none, or more than one.
    """
    backbones: list[tuple[Family, str]] = []
    special: tuple[str, ...] = ()  # prefixes at which a special family matches
    for family in sorted(FAMILIES.values(), key=lambda family: not family.special):
        prefixes = [
            key.removesuffix(family.anchor)
            for key in state.tensors
            if key == family.anchor or key.endswith(f".{family.anchor}")
        ]
        backbones += [(family, prefix) for prefix in prefixes if not prefix.startswith(special)]
        special += tuple(prefixes) if family.special else ()
    usual = [
        (family, prefix)
        for family, prefix in backbones
        if set(prefix.split(".")[:-1]) <= set(PREFIXES)
    ]
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
        names = first_few([prefix or "(none)" for _, prefix in backbones])
        raise CheckpointError(
            f"{path}: {len(backbones)} backbones, under the prefixes {names}; expected one; "
            "save the state dict of one of them alone",
            code="several-backbones",
        )
    return backbones[0]


def _levels(prefix: str) -> list[str]:
    """The prefix and all shorter ones: 'a.b.' -> ['', 'a.', 'a.b.']."""
    parts = prefix.split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:i]) for i in range(len(parts) + 1)]


def _remove_unused(
    rest: dict[str, Weight], levels: list[str], classifiers: tuple[str, ...]
) -> tuple[str, ...]:
    """Remove linear classifiers and UNUSED tensors from `rest`; return their names."""
    ignored = []
    for module in (level + name for level in levels for name in dict.fromkeys(classifiers)):
        group = {key for key in rest if key.startswith(f"{module}.")}
        weight = rest.get(f"{module}.weight")
        linear = group <= {f"{module}.weight", f"{module}.bias"}
        if linear and weight is not None and len(weight.shape) == 2:
            ignored.append(module)
            for key in group:
                del rest[key]
    for key in [key for key in rest if key.rpartition(".")[2] in UNUSED]:
        ignored.append(key)
        del rest[key]
    return tuple(ignored)


def _projector_candidates(rest: Mapping[str, Weight], levels: list[str]) -> list[str]:
    """The modules in `rest` that have a usual name of a projector."""
    return [
        level + name
        for level in levels
        for name in PROJECTORS
        if any(key.startswith(f"{level}{name}.") for key in rest)
    ]


def _assign_projector(
    path: Path,
    rest: Mapping[str, Weight],
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
    names = {key: key.removeprefix(prefix) for key in rest if key.startswith(prefix)}
    origin, usual = f"{path}: {candidates[0]}", Assumed("relu", USUAL)
    return assign_mlp(origin, names, rest, backbone.spec.output_width, usual, options)
