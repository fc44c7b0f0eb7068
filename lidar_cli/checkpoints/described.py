"""A described format applied to a file: which one it is, and each tensor's place in it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints import heads
from lidar_cli.checkpoints.containers import StateDict, candidates, clean
from lidar_cli.checkpoints.families import FAMILIES, NEXT, Family, backbone_of
from lidar_cli.checkpoints.formats import FORMATS, Branch, Format, Head, TokenPredictor
from lidar_cli.checkpoints.formats.format import renamed
from lidar_cli.checkpoints.found import (
    Description,
    Found,
    FoundHead,
    describe,
    original_prefix,
    take_predictor,
)
from lidar_cli.checkpoints.generic import take_noise
from lidar_cli.checkpoints.lazy import is_tensor
from lidar_cli.checkpoints.spec import FoundBackbone, Spec
from lidar_cli.checkpoints.weights import Weight, compare, shapes_of, some
from lidar_cli.errors import CheckpointError, SettingsError
from lidar_cli.settings import nearest

PLAIN = "plain"  # the --format of a file that no description should claim
BRANCHES = {  # what --branch takes -> the branch's name
    "auto": "auto",
    "student": "student",
    "encoder": "student",
    "online": "student",
    "query": "student",
    "teacher": "teacher",
    "target": "teacher",
    "momentum": "teacher",
    "ema": "teacher",
    "key": "teacher",
}
COMMON_NOISE = (r"n_averaged$", r"(.*\.)?total_(ops|params)$")  # of averaging, of profilers
DEEPEST = 6  # levels of dicts below a container that are looked into


@dataclass(frozen=True)
class Match:
    """A format, and the state dict in which it was found."""

    format: Format
    state: StateDict
    why: str


def check_names(format: str, branch: str) -> None:
    """Raise SettingsError for a format or branch that no checkpoint can have."""
    known = ["auto", PLAIN, *(one.name for one in FORMATS)]
    if format not in known:
        raise SettingsError(f"--format {format}: {nearest(format, known)}")
    if branch not in BRANCHES:
        raise SettingsError(f"--branch {branch}: {nearest(branch, list(BRANCHES))}")


def match(path: Path, tree: Mapping[str, Any], name: str = "auto") -> Match | None:
    """The most specific format whose marks are all there; None if there is none.

    name: of the one format to look for, 'auto' for all, 'plain' for none.
    Raises CheckpointError if two are equally specific, or the named one does not match, and
    SettingsError for an unknown name.
    """
    known = {one.name: one for one in FORMATS}
    if name == PLAIN:
        return None
    check_names(name, "auto")
    asked = FORMATS if name == "auto" else (known[name],)
    places = candidates(tree)
    found: dict[str, Match] = {}
    states: dict[object, StateDict | None] = {}  # few for many formats
    for one in asked:
        if not (
            all(key in tree for key in one.keys) and not any(key in tree for key in one.no_keys)
        ):
            continue
        for container, root in places:
            if not one.roots or container in one.roots or name != "auto":
                if (container, one.inside) not in states:
                    states[container, one.inside] = _state(one, container, root)
                state = states[container, one.inside]
                if state is not None and _fits(one, state):
                    found.setdefault(one.name, Match(one, state, _why(one)))
    if name != "auto" and not found:
        raise CheckpointError(
            f"{path}: is not {name}: expected tensors named {', '.join(asked[0].marks)}"
            f"{_listed(' beside the keys ', asked[0].keys)}; leave --format out"
        )
    most = max((_rank(m.format) for m in found.values()), default=0)
    best = [m for m in found.values() if _rank(m.format) == most]
    if len(best) > 1:
        names = ", ".join(m.format.name for m in best)
        raise CheckpointError(f"{path}: may be {names}; choose one of them with --format")
    return best[0] if best else None


def find(
    path: Path,
    match: Match,
    arch: str | None,
    activation: str,
    branch_name: str,
    layer_names: str = "auto",
) -> Found:
    """Backbone and heads of one branch, with the place of all tensors.

    layer_names: as `--layer` has them; an auto branch is the first that has them all.
    Raises CheckpointError if a tensor is missing or has no place, or the branch is not there.
    """
    described, state = match.format, match.state
    present = [b for b in described.branches if _has(state, b.backbone)]
    branch, reason = _branch(path, described, present, branch_name, layer_names)
    backbone = _backbone(path, described, state, branch, arch)
    left = {name: t for name, t in state.tensors.items() if name not in backbone.keys}
    width = backbone.width
    found: dict[str, FoundHead] = {}
    ignored: list[str] = []
    for layer, head in branch.heads.items():
        if isinstance(head, TokenPredictor):
            taken = take_predictor(path, head.prefix, left, backbone)
        else:
            taken = _take_head(path, layer, head, left, width, activation, ignored)
        if taken is not None:
            found[layer], width = taken, taken.spec.width
    ignored += take_noise(left, backbone.noise)
    others = [b for b in described.branches if b is not branch]
    ignored += _take_others(left, others, branch) + _take_noise(left, described)
    unknown = [state.originals[name] for name in left]
    unknown += [name for name in state.others if not _is_noise(described, clean(name))]
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
    return Found(_told(description, match, present), backbone, found)


def _told(description: Description, match: Match, present: list[Branch]) -> Description:
    return dataclasses.replace(
        description,
        format=match.format.name,
        branches=tuple(b.name for b in present),
        recipe=match.format.recipe,
        pixel_stats=match.format.pixel_stats,
        why=match.why,
    )


def _state(format: Format, container: str, root: Mapping[str, Any]) -> StateDict | None:
    """The tensors of a container, nested dicts joined in where the format says; None if none."""
    tensors: dict[str, Weight] = {}
    originals: dict[str, str] = {}
    others: list[str] = []
    taken: set[str] = set()
    for place, prefix in format.inside or (("", ""),):
        inner = _inner(root, place)
        if inner is None or prefix in taken:
            continue
        for name, value in _walk(inner, DEEPEST if place else 0, set()):
            key = prefix + clean(name)
            if not is_tensor(value):
                others.append(f"{place}.{name}".lstrip("."))
            elif key in tensors:
                return None
            else:
                taken.add(prefix)
                tensors[key] = value
                originals[key] = f"{place}.{name}".lstrip(".")
    if not tensors:
        return None
    nested = bool(container) and not format.inside
    return StateDict(container, tensors, originals, tuple(others) if nested else ())


def _inner(root: Mapping[str, Any], place: str) -> Mapping[str, Any] | None:
    for key in place.split(".") if place else []:
        value = root.get(key)
        if not isinstance(value, dict):
            return None
        root = value
    return root


def _walk(inner: Mapping[Any, Any], depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Entries, those of nested dicts too, by names joined with dots; each dict is told once."""
    seen.add(id(inner))
    for key, value in inner.items():
        if isinstance(value, dict) and depth > 0:
            if id(value) not in seen:  # a pickle can repeat one without end
                yield from ((f"{key}.{name}", v) for name, v in _walk(value, depth - 1, seen))
        else:
            yield str(key), value


def _fits(format: Format, state: StateDict) -> bool:
    """Whether all marks are there, and nothing that the format lacks."""

    def there(pattern: str) -> bool:
        match = re.compile(pattern).match
        return any(match(name) for name in state.tensors)

    return all(map(there, format.marks)) and not any(map(there, format.lacks))


def _rank(format: Format) -> int:
    """How specific: the number of conditions that the file met."""
    return len(format.marks) + len(format.keys)


def _why(format: Format) -> str:
    marks = ", ".join(mark.replace("\\", "") for mark in format.marks)
    return f"tensors named {marks}{_listed(' beside the keys ', format.keys)}"


def _listed(before: str, names: tuple[str, ...]) -> str:
    return before + ", ".join(names) if names else ""


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
    path: Path, format: Format, state: StateDict, branch: Branch, arch: str | None
) -> FoundBackbone:
    prefix = branch.backbone
    inside = [key for key in state.tensors if key.startswith(prefix)]
    if arch is not None:
        from lidar_cli.checkpoints.timm_arch import by_name

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
    family = _family(path, format, named, state)
    by_name_ = {family.renamed(name): key for name, key in named.items()}
    return backbone_of(
        path, family, by_name_, state.tensors, prefix, lambda spec: _adjusted(spec, format)
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
    """What the format tells beyond the shapes: a ViT's heads, the padding of a 3x3 stem."""
    count = dict(format.heads).get(spec.width)
    if count and getattr(spec, "heads_known", True) is False:
        spec = dataclasses.replace(spec, heads=count, heads_known=True)
    if format.cifar_padding is not None and getattr(spec, "kernel", None) == 3:
        spec = dataclasses.replace(spec, padding=format.cifar_padding)
    adjusted: Spec = spec
    return adjusted


def _take_head(
    path: Path,
    layer: str,
    head: Head,
    left: dict[str, Weight],
    width: int,
    activation: str,
    ignored: list[str],
) -> FoundHead | None:
    """Remove a head from what is left; None if it is not in the file."""
    keys = [key for key in left if key.startswith(head.prefix)]
    names = {key: head.name(key) for key in keys}
    after = [key for key in keys if any(re.match(p, names[key]) for p in head.after)]
    ignored += _modules(after)
    layers = [key for key in keys if key not in after]
    tensors = {heads.plain_name(names[key]): left[key] for key in layers}
    origin = f"{path}: {head.prefix.rstrip('.')}"
    if len(tensors) < len(layers):
        raise CheckpointError(f"{origin}: two layers have one number: {some(layers, 6)}; {NEXT}")
    for key in keys:
        del left[key]
    if not tensors:
        return None
    chosen = head.activation if activation == "auto" else activation
    spec = heads.spec(shapes_of(tensors), width, chosen, origin)
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


def _take_noise(left: dict[str, Weight], format: Format) -> list[str]:
    keys = [key for key in left if _is_noise(format, key)]
    for key in keys:
        del left[key]
    return _modules(keys)


def _is_noise(format: Format, name: str) -> bool:
    return any(re.match(pattern, name) for pattern in (*format.noise, *COMMON_NOISE))


def _modules(keys: list[str]) -> list[str]:
    """What the tensors belong to: their names without the last part, by the first two parts."""
    parts = (key.rpartition(".")[0] or key for key in keys)
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in parts))
