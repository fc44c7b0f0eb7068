"""A state dict that no described format claims: one backbone, and what usually lies beside it.

The prefix is what stands before a family's anchor. Every other tensor is a projector's by one of
the usual names, a linear classifier's, known noise, or an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.assume import USUAL, Value, settle
from lidar_cli.checkpoints.families import FAMILIES, NEXT, Family, backbone_of
from lidar_cli.checkpoints.models.weights import compare, shapes_of, some
from lidar_cli.checkpoints.reading.containers import StateDict
from lidar_cli.checkpoints.reading.lazy_tensor import Weight
from lidar_cli.checkpoints.result import Found, FoundHead, describe, original_prefix
from lidar_cli.checkpoints.shapes import mlp_head
from lidar_cli.checkpoints.shapes.spec import FoundBackbone
from lidar_cli.errors import CheckpointError

PREFIXES = ("backbone", "encoder")  # the names that win where several backbones are found
PROJECTORS = ("projector", "projection_head", "projection", "head", "fc", "lm_head")
CLASSIFIERS = ("fc", "head", "heads.head", "classifier", "online_classifier", "pooler.dense")
# Of averaged models, of profilers, of masked training, of BEiT (it follows from the grid).
NOISE = ("n_averaged", "total_ops", "total_params", "mask_token", "relative_position_index")


def find(
    path: Path,
    state: StateDict,
    arch: str | None,
    activation: str,
    config: Mapping[str, Any] | None = None,
    layer_names: str = "auto",
    asked: Mapping[str, Value] | None = None,
) -> Found:
    """Backbone and projector of a state dict, with the place of all tensors.

    layer_names: as `--layer` has them; a projector that is not read stops nothing that does not
    need it. asked: what the user says of what weights leave open.
    Raises CheckpointError if it is not understood, SettingsError for an arch unknown to timm.
    """
    if arch is None:
        backbone = _by_shapes(path, state, config, asked or {})
    else:
        from lidar_cli.checkpoints.models.timm_model import by_name

        backbone = by_name(path, state, arch)
    left = {name: t for name, t in state.tensors.items() if name not in backbone.keys}
    levels = _levels(backbone.prefix)
    ignored = backbone.dropped + take_noise(left, backbone.noise)
    ignored += _take_ignored(left, levels, CLASSIFIERS + backbone.classifiers)
    try:
        projector = _take_projector(path, left, levels, backbone.width, activation, asked or {})
    except CheckpointError as error:
        if mlp_head.needed(layer_names, "projector", ()):
            raise CheckpointError(f"{error}; or do without it: --layer backbone") from error
        projector, modules = None, _projectors(left, levels)
        for key in [key for key in left if key.startswith(tuple(f"{name}." for name in modules))]:
            del left[key]
        ignored += tuple(f"{name} (not read)" for name in modules)
    unknown = [state.originals[name] for name in left] + list(state.others)
    if unknown:
        raise CheckpointError(
            f"{path}: {len(unknown)} entries beside the {backbone.arch} are not understood: "
            f"{some(unknown)}; expected at most a projector and a linear classifier; {NEXT}"
        )
    found = {"projector": projector} if projector else {}
    description = describe(
        backbone,
        found,
        container=state.container,
        prefix=original_prefix(backbone, state.originals),
        ignored=ignored,
    )
    return Found(description, backbone, found)


def _by_shapes(
    path: Path,
    state: StateDict,
    config: Mapping[str, Any] | None,
    asked: Mapping[str, Value],
) -> FoundBackbone:
    """The backbone whose anchor is in the state dict."""
    family, prefix = _family(path, state)
    by_name = {
        family.rename(key.removeprefix(prefix)): key
        for key in state.tensors
        if key.startswith(prefix)
    }

    return backbone_of(
        path, family, by_name, state.tensors, prefix, config, lambda spec: settle(spec, asked)
    )


def _family(path: Path, state: StateDict) -> tuple[Family, str]:
    """The family and the prefix of the one backbone, or the one under a usual prefix."""
    found: list[tuple[Family, str]] = []
    special: tuple[str, ...] = ()  # prefixes that are taken
    for family in sorted(FAMILIES.values(), key=lambda family: not family.special):
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


def _levels(prefix: str) -> list[str]:
    """The prefix and all shorter ones: 'a.b.' -> ['', 'a.', 'a.b.']."""
    parts = prefix.split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:i]) for i in range(len(parts) + 1)]


def take_noise(left: dict[str, Weight], beginnings: tuple[str, ...]) -> tuple[str, ...]:
    """Remove tensors whose names begin so from what is left, and name the beginnings met."""
    met = {key: b for key in left for b in beginnings if key.startswith(b)}
    for key in met:
        del left[key]
    return tuple(dict.fromkeys(beginning.rstrip(".") for beginning in met.values()))


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


def _projectors(left: Mapping[str, Weight], levels: list[str]) -> list[str]:
    """Modules that may be a projector by their names."""
    return [
        level + name
        for level in levels
        for name in PROJECTORS
        if any(key.startswith(f"{level}{name}.") for key in left)
    ]


def _take_projector(
    path: Path,
    left: dict[str, Weight],
    levels: list[str],
    width: int,
    activation: str,
    asked: Mapping[str, Value],
) -> FoundHead | None:
    """Remove the projector from what is left; None if there is none."""
    modules = _projectors(left, levels)
    if not modules:
        return None
    if len(modules) > 1:
        raise CheckpointError(
            f"{path}: {len(modules)} projectors, {some(modules)}; expected one; "
            "name your own code with --model"
        )
    keys = [key for key in left if key.startswith(f"{modules[0]}.")]
    tensors = {mlp_head.plain_name(key.removeprefix(f"{modules[0]}.")): left[key] for key in keys}
    origin = f"{path}: {modules[0]}"
    if len(tensors) < len(keys):
        raise CheckpointError(f"{origin}: two layers have one number: {some(keys, 6)}; {NEXT}")
    why = USUAL if activation == "auto" else "--activation"
    activation = "relu" if activation == "auto" else activation
    head = settle(mlp_head.spec(shapes_of(tensors), width, activation, origin, why), asked)
    compare(head.shapes(), shapes_of(tensors), origin)
    for key in keys:
        del left[key]
    return FoundHead(head, tensors)
