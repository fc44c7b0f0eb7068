"""A described format applied to a state dict: each tensor's place in it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.assume import Assumed, Value, settle
from lidar_cli.checkpoints.fallback import take_noise
from lidar_cli.checkpoints.families import FAMILIES, NEXT, Family, backbone_of
from lidar_cli.checkpoints.formats import Branch, Format, Head, TokenPredictor
from lidar_cli.checkpoints.formats.format import renamed
from lidar_cli.checkpoints.formats.training import SMALL, Training, training
from lidar_cli.checkpoints.match import BRANCHES, Match
from lidar_cli.checkpoints.models.weights import compare, shapes_of, some
from lidar_cli.checkpoints.reading import folder
from lidar_cli.checkpoints.reading.containers import StateDict, clean
from lidar_cli.checkpoints.reading.lazy_tensor import Weight
from lidar_cli.checkpoints.result import (
    STATS,
    Description,
    Found,
    FoundHead,
    describe,
    original_prefix,
    take_predictor,
)
from lidar_cli.checkpoints.shapes import mlp_head as heads
from lidar_cli.checkpoints.shapes.spec import FoundBackbone, Spec
from lidar_cli.errors import CheckpointError

COMMON_NOISE = (r"n_averaged$", r"(.*\.)?total_(ops|params)$")  # of averaging, of profilers


def find(
    path: Path,
    match: Match,
    arch: str | None,
    activation: str,
    branch_name: str,
    layer_names: str = "auto",
    config: Mapping[str, Any] | None = None,
    asked: Mapping[str, Value] | None = None,
) -> Found:
    """Backbone and heads of one branch, with the place of all tensors.

    layer_names: as `--layer` has them; an auto branch is the first that has them all, and a head
    that is not read stops nothing that does not need it. config: config.json of the folder, where
    there is one. asked: what the user says of what weights leave open.
    Raises CheckpointError if a tensor is missing or has no place, or the branch is not there.
    """
    described, state = match.format, match.state
    present = [b for b in described.branches if _has(state, b.backbone)]
    branch, reason = _branch(path, described, present, branch_name, layer_names)
    asked = asked or {}
    backbone = _backbone(path, described, state, branch, arch, config, asked)
    left = {name: t for name, t in state.tensors.items() if name not in backbone.keys}
    trained = _trained(path, match, backbone)
    width = backbone.width
    found: dict[str, FoundHead] = {}
    # Some of the noise may lie within heads.
    ignored = [*backbone.dropped, *_take_noise(left, COMMON_NOISE)]
    unread, order = False, list(branch.heads)
    for layer, head in branch.heads.items():
        inside = [key for key in left if key.startswith(head.prefix)]
        try:
            if isinstance(head, TokenPredictor):
                taken = take_predictor(path, head.prefix, left, backbone)
            elif unread:
                raise CheckpointError(f"{path}: {head.prefix} takes what is not read")
            else:
                usual = Assumed(head.activation, f"{described.name}'s")
                if trained.activation:
                    usual = Assumed(trained.activation, trained.why_activation)
                taken = _take_head(path, head, left, width, activation, usual, asked, ignored)
        except CheckpointError as error:
            if inside and heads.needed(layer_names, layer, order[order.index(layer) :]):
                raise CheckpointError(f"{error}; or do without it: --layer backbone") from error
            unread = True
            for key in inside:
                left.pop(key, None)
            ignored += [f"{head.prefix.rstrip('.')} (not read)"] if inside else []
            continue
        if taken is not None:
            found[layer], width = taken, taken.spec.width
    ignored += take_noise(left, backbone.noise)
    others = [b for b in described.branches if b is not branch]
    ignored += _take_others(left, others, branch) + _take_noise(left, _noise(described))
    unknown = [state.originals[name] for name in left]
    unknown += [name for name in state.others if not _is_noise(clean(name), _noise(described))]
    if unknown:
        raise CheckpointError(
            f"{path}: {len(unknown)} entries beside the {backbone.arch} are not understood: "
            f"{some(unknown)}; expected those of {described.title}; choose another with --format, "
            f"or {NEXT}"
        )
    description = describe(
        backbone,
        found,
        container=state.container,
        prefix=original_prefix(backbone, state.originals),
        ignored=tuple(ignored),
        branch=branch.name,
    )
    description = dataclasses.replace(description, branch_reason=reason)
    return Found(_told(description, match, present, backbone, trained), backbone, found)


def _trained(path: Path, match: Match, backbone: FoundBackbone) -> Training:
    described = match.format
    run = folder.arguments(path, described.arguments) if described.arguments else {}
    small = getattr(backbone.spec, "kernel", None) == 3
    small = small or (backbone.image_size or SMALL + 1) <= SMALL
    return training(described, match.state.tensors.keys(), run, small)


def _told(
    description: Description,
    match: Match,
    present: list[Branch],
    backbone: FoundBackbone,
    trained: Training,
) -> Description:
    described, natural = match.format, description.image_size
    stats = {STATS: Assumed(trained.pixel_stats, trained.why_stats)}
    if natural is not None and backbone.spec is not None:  # timm's own modules have one size
        natural = min(natural, described.image_size or natural)
    return dataclasses.replace(
        description,
        format=described.name,
        branches=tuple(b.name for b in present),
        image_size=natural,
        recipe=trained.recipe,
        pixel_stats=trained.pixel_stats,
        assumed={**description.assumed, **stats} if trained.why_stats else description.assumed,
        assumptions=(*description.assumptions, *trained.assumptions),
        why=match.why,
    )


def _has(state: StateDict, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in state.tensors)


def _branch(
    path: Path, format: Format, present: list[Branch], asked: str, layers: str
) -> tuple[Branch, str | None]:
    """The branch that is asked for, else the first with the layers, and then why it is another."""
    wanted = BRANCHES[asked]
    heads = {name.strip() for name in layers.split(",")} - {"", "auto", "backbone"}
    having = [branch for branch in present if heads <= branch.heads.keys()]
    if wanted == "auto" and having and having[0] is not present[0]:
        lacking = f"the {present[0].name} has no {' and '.join(sorted(heads))}"
        return having[0], f"{lacking}, so the {having[0].name} is embedded"
    for branch in present:
        if wanted in ("auto", branch.name) or (wanted == "student" and branch.name == "encoder"):
            return branch, None
    if not present:
        raise CheckpointError(f"{path}: {format.title} without a backbone; {NEXT}")
    raise CheckpointError(
        f"{path}: no branch {asked!r} in this checkpoint; it has "
        f"{', '.join(b.name for b in present)}: use --branch {present[0].name}"
    )


def _backbone(
    path: Path,
    format: Format,
    state: StateDict,
    branch: Branch,
    arch: str | None,
    config: Mapping[str, Any] | None,
    asked: Mapping[str, Value],
) -> FoundBackbone:
    prefix = branch.backbone
    inside = [key for key in state.tensors if key.startswith(prefix)]
    if arch is not None:
        from lidar_cli.checkpoints.models.timm_model import by_name

        part = {key.removeprefix(prefix): state.tensors[key] for key in inside}
        found = by_name(path, StateDict("", part, {}, ()), arch)
        keys = frozenset(prefix + key for key in found.keys)
        return dataclasses.replace(found, keys=keys, prefix=prefix + found.prefix)
    named: dict[str, str] = {}
    for key in inside:
        name = renamed(key.removeprefix(prefix), format.rename)
        if name in named:
            raise CheckpointError(
                f"{path}: {some([named[name], key])} are one tensor in {format.title}; {NEXT}"
            )
        named[name] = key
    for key in state.tensors:
        name = renamed(key, branch.borrowed)
        if name != key:
            named.setdefault(name, key)
    family = _family(path, format, named, state)
    by_name_ = {family.rename(name): key for name, key in named.items()}

    return backbone_of(
        *(path, family, by_name_, state.tensors, prefix, config),
        lambda spec: settle(_adjusted(spec, format), asked),
    )


def _family(path: Path, format: Format, named: Mapping[str, str], state: StateDict) -> Family:
    for name in format.backbones:
        if FAMILIES[name].anchor in named:
            return FAMILIES[name]
    raise CheckpointError(
        f"{path}: {format.title}: {len(named)} tensors such as "
        f"{some([state.originals[key] for key in named.values()])} form no known backbone; "
        f"expected a {' or a '.join(format.backbones)}; {NEXT}"
    )


def _adjusted(spec: Any, format: Format) -> Spec:
    """With what the format assumes beyond the shapes, in place of what is usual."""
    usual = {
        "heads": dict(format.heads).get(spec.width),
        "position_offset": format.position_offset,
        "stem_padding": format.cifar_padding,
    }
    for key, value in usual.items():
        if value is not None:
            spec = spec.assume(key, value, f"{format.name}'s")
    if format.resize and hasattr(spec, "resize"):
        spec = dataclasses.replace(spec, resize=format.resize)
    adjusted: Spec = spec
    return adjusted


def _take_head(
    path: Path,
    head: Head,
    left: dict[str, Weight],
    width: int,
    activation: str,
    usual: Assumed,
    asked: Mapping[str, Value],
    ignored: list[str],
) -> FoundHead | None:
    """Remove a head from what is left; None if it is not in the file."""
    keys = [key for key in left if key.startswith(head.prefix)]
    names = {key: head.name(key) for key in keys}
    after = [key for key in keys if any(re.match(p, names[key]) for p in head.after)]
    ignored += list(dict.fromkeys(key.rpartition(".")[0] for key in after))
    layers = [key for key in keys if key not in after]
    tensors = {heads.plain_name(names[key]): left[key] for key in layers}
    origin = f"{path}: {head.prefix.rstrip('.')}"
    if len(tensors) < len(layers):
        raise CheckpointError(f"{origin}: two layers have one number: {some(layers, 6)}; {NEXT}")
    for key in keys:
        del left[key]
    if not tensors:
        return None
    why = "--activation"
    if activation == "auto":
        activation, why = str(usual.value), usual.why
    spec = settle(heads.spec(shapes_of(tensors), width, activation, origin, why), asked)
    compare(spec.shapes(), shapes_of(tensors), origin)
    return FoundHead(spec, tensors)


def _take_others(left: dict[str, Weight], others: list[Branch], branch: Branch) -> list[str]:
    """Remove what belongs to branches that were not chosen, and name it."""
    own = (branch.backbone, *(head.prefix for head in branch.heads.values()))
    ignored = []
    for other in others:
        for prefix in (other.backbone, *(head.prefix for head in other.heads.values())):
            keys = [key for key in left if prefix and key.startswith(prefix) and prefix not in own]
            for key in keys:
                del left[key]
            if keys:
                ignored.append(prefix.rstrip("."))
    return ignored


def _take_noise(left: dict[str, Weight], patterns: tuple[str, ...]) -> list[str]:
    keys = [key for key in left if _is_noise(key, patterns)]
    for key in keys:
        del left[key]
    return _modules(keys)


def _noise(format: Format) -> tuple[str, ...]:
    """Patterns of all that is known and not used."""
    return (*format.noise, *COMMON_NOISE)


def _is_noise(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.match(pattern, name) for pattern in patterns)


def _modules(keys: list[str]) -> list[str]:
    """What the tensors belong to: their names without the last part, by the first two parts."""
    parts = (key.rpartition(".")[0] or key for key in keys)
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in parts))
