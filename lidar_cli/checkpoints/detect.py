"""The names and shapes in a checkpoint -> what it is, and the modules to build from it.

The formats (formats/) are tried first, and the most specific that matches is taken; files without a
format are recognised by usual names (fallback.py). This file needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.assign import BRANCHES, Modules, Options, assign_by_format
from lidar_cli.checkpoints.description import STATS, CheckpointDescription
from lidar_cli.checkpoints.fallback import assign_by_usual_names
from lidar_cli.checkpoints.formats import FORMATS
from lidar_cli.checkpoints.formats.format import Format, fits
from lidar_cli.checkpoints.models.weights import some
from lidar_cli.checkpoints.reading.containers import (
    StateDict,
    average_key,
    candidate_dicts,
    clean_name,
    find_state_dict,
    raw_key,
    unused_names,
    with_average,
)
from lidar_cli.checkpoints.reading.folder import timm_architecture
from lidar_cli.checkpoints.reading.lazy_tensor import Weight, is_tensor
from lidar_cli.checkpoints.shapes.spec import (
    KEYS,
    SET,
    USUAL,
    Assumed,
    AssumeValues,
    Value,
    check_all_open,
    parse,
    renamed,
)
from lidar_cli.errors import CheckpointError, SettingsError, nearest
from lidar_cli.views.methods import find_recipe
from lidar_cli.views.recipes import statistics_text

PLAIN = "plain"  # the --format of a file that no format should match
DEEPEST = 6  # levels of dicts below a container that are searched

Match = tuple[Format, StateDict]


def check_names(format: str, branch: str) -> None:
    """Raise SettingsError for a format or branch that no checkpoint can have."""
    names = ["auto", PLAIN, *(one.name for one in FORMATS)]
    if format not in names:
        raise SettingsError(f"--format {format}: {nearest(format, names)}", code="no-such-format")
    if branch not in BRANCHES:
        raise SettingsError(
            f"--branch {branch}: {nearest(branch, list(BRANCHES))}", code="no-such-branch"
        )


def check_assumptions(assume: Sequence[str]) -> AssumeValues:
    """The parsed values of `--assume`; raises SettingsError."""
    return parse(assume, (PLAIN, *(one.name for one in FORMATS)))


def detect(
    path: Path,
    tree: Mapping[str, Any],
    *,
    arch: str | None = None,
    activation: str = "auto",
    format: str = "auto",
    branch: str = "auto",
    layer: str = "auto",
    config: Mapping[str, Any] | None = None,
    assume: Sequence[str] = (),
) -> tuple[CheckpointDescription, Modules]:
    """What a checkpoint is, and the module of each layer with its tensors.

    tree: of `read_checkpoint`. arch: a timm name that takes precedence over the shapes. format: the
    name of a format, or 'plain' for none of them. branch: 'student' or 'teacher'. layer: the value
    of `--layer`, by which an auto branch is chosen. config: config.json of a Hugging Face folder.
    assume: KEY=VALUE and SYSTEM:KEY=VALUE, for what the weights leave open.
    Raises NoWeights if nothing in it is a weight, CheckpointError if it is not understood, and
    SettingsError for an arch unknown to timm, an unknown format or branch, or an assumption about
    something that the file determines.
    """
    check_names(format, branch)
    assume_values = check_assumptions(assume)
    by_config = _timm_name(path, config) if config and arch is None else None
    match = match_format(path, tree, format, config)
    key = average_key(tree)
    if key is not None and match is not None and _has_teacher(match[0]):
        key = None  # a branch of the format, or reported as unused
    raw = raw_key(tree, key) if key is not None else None
    averaged = key is not None and BRANCHES[branch] == "teacher"
    if key is not None and averaged:
        tree = with_average(tree, key)
        match = match_format(path, tree, format, config)
        branch = "auto"
    system = match[0].name if match else PLAIN
    options = Options(
        arch or by_config, activation, branch, layer, config, assume_values.of(system)
    )
    try:
        description, modules = _assign(path, tree, match, options)
    except CheckpointError:
        if by_config is None:
            raise
        # timm saves a model's name even if it was built at another depth or width.
        by_shapes = None
        with suppress(CheckpointError):
            by_shapes = _assign(path, tree, match, replace(options, arch=None))
        if by_shapes is None or not _has_names_of(by_config, by_shapes[1]):
            raise
        description, modules = by_shapes
        note = f"not timm's {by_config} that config.json names, whose tensors are others"
        description = replace(description, assumptions=(*description.assumptions, note))
    if key is not None:
        description = _with_average_as_branch(description, key, raw, averaged)
    return description, modules


def match_format(
    path: Path, tree: Mapping[str, Any], name: str = "auto", config: Mapping[str, Any] | None = None
) -> Match | None:
    """The most specific format whose conditions a file meets, and its state dict; None without one.

    name: the one format to look for, 'auto' for all, 'plain' for none. config: config.json of
    the folder, where there is one.
    Raises CheckpointError if two are equally specific, or the named one does not match.
    """
    if name == PLAIN:
        return None
    requested = [one for one in FORMATS if name in ("auto", one.name)]
    places = candidate_dicts(tree)
    matches: dict[str, Match] = {}
    states: dict[object, StateDict | None] = {}  # few for many formats
    for one in requested:
        if not _has_keys(one, tree, config if name == "auto" else None):
            continue
        for container, root in places:
            if not one.roots or container in one.roots or name != "auto":
                place = (container, one.inside, one.added)
                if place not in states:
                    states[place] = _state(one, container, root)
                state = states[place]
                if state is not None and _meets(one, state):
                    matches.setdefault(one.name, (one, state))
    if name != "auto" and not matches:
        raise CheckpointError(
            f"{path}: is not {name}: expected {requested[0].why}; leave --format out",
            code="other-format",
        )
    most = max((one.specificity for one, _ in matches.values()), default=0)
    best = [match for match in matches.values() if match[0].specificity == most]
    if len(best) > 1:
        names = ", ".join(one.name for one, _ in best)
        raise CheckpointError(
            f"{path}: may be {names}; choose one of them with --format", code="ambiguous-format"
        )
    return best[0] if best else None


def _state(format: Format, container: str, root: Mapping[str, Any]) -> StateDict | None:
    """The tensors of a container, with nested dicts joined where the format says; None if none."""
    tensors: dict[str, Weight] = {}
    originals: dict[str, str] = {}
    others: list[str] = []
    taken: set[str] = set()
    dicts: set[int] = set()
    places = [(p, prefix, _inner(root, p)) for p, prefix in format.inside or (("", ""),)]
    for place, prefix, inner in places:
        if inner is None or prefix in taken:
            continue
        apart = {id(other) for _, _, other in places if other is not inner}  # have their own place
        before = set(apart)
        for name, value in _walk(inner, DEEPEST if place else 0, apart):
            key = prefix + renamed(clean_name(name), ((format.added, ""),))
            if not is_tensor(value):
                others.append(f"{place}.{name}".lstrip("."))
            elif key in tensors:
                return None
            else:
                taken.add(prefix)
                tensors[key] = value
                originals[key] = f"{place}.{name}".lstrip(".")
        dicts |= apart - before
    if not tensors:
        return None
    nested = bool(container) and not format.inside
    others = others if nested else []
    return StateDict(container, tensors, originals, tuple(others), frozenset(dicts))


def _inner(root: Mapping[str, Any], place: str) -> Mapping[str, Any] | None:
    for key in place.split(".") if place else []:
        value = root.get(key)
        if not isinstance(value, dict):
            return None
        root = value
    return root


def _walk(inner: Mapping[Any, Any], depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Entries, and those of nested dicts by names joined with dots; each dict occurs once."""
    seen.add(id(inner))
    for key, value in inner.items():
        if isinstance(value, dict) and depth > 0:
            if id(value) not in seen:  # a pickle can repeat one without end
                yield from ((f"{key}.{name}", v) for name, v in _walk(value, depth - 1, seen))
        else:
            yield str(key), value


def _has_keys(format: Format, tree: Mapping[str, Any], config: Mapping[str, Any] | None) -> bool:
    """Whether the file's keys and its config.json are as the format requires."""
    keys = all(key in tree for key in format.keys) and not any(k in tree for k in format.no_keys)
    entries = config or {}
    return keys and all(entries.get(name, value) == value for name, value in format.config)


def _meets(format: Format, state: StateDict) -> bool:
    """Whether the names and shapes of the tensors are as the format requires."""

    def square(pattern: str) -> bool:
        matrices = [t for name, t in state.tensors.items() if re.match(pattern, name)]
        return all(len(t.shape) == 2 and t.shape[0] == t.shape[1] for t in matrices)

    return fits(state.tensors, format.marks, format.lacks) and all(map(square, format.square))


def _assign(
    path: Path, tree: Mapping[str, Any], match: Match | None, options: Options
) -> tuple[CheckpointDescription, Modules]:
    """The description and modules by the format, or by usual names without one."""
    assume, activation = options.assume, options.activation
    if activation != "auto" and assume.get("activation", activation) != activation:
        raise SettingsError(
            f"--activation {activation} and --assume activation={assume['activation']} are two "
            "values of one; give one of them",
            code="activation-twice",
        )
    if match is not None:
        state = match[1]
        description, modules = assign_by_format(path, *match, options)
    else:
        state = find_state_dict(path, tree)
        description, modules = assign_by_usual_names(path, state, options)
        if BRANCHES[options.branch] == "teacher":
            raise CheckpointError(
                f"{path}: no branch {options.branch!r} in this checkpoint; it has encoder: "
                "leave --branch out",
                code="no-branch",
            )
    aside = unused_names(tree, state.dicts)
    description = replace(
        description, ignored=(*description.ignored, *([some(aside, 8)] if aside else []))
    )
    return _with_assumptions(path, description, modules, assume), modules


def _with_assumptions(
    path: Path, description: CheckpointDescription, modules: Modules, assume: Mapping[str, Value]
) -> CheckpointDescription:
    """With pixel statistics, and all that is assumed in the order of KEYS; raises SettingsError."""
    stats, pixels = description.pixel_stats, description.assumed.get(STATS)
    if STATS in assume:
        stats = str(assume[STATS])
        pixels = Assumed(stats, SET)
    elif pixels is None:
        origin = f"{description.format}'s" if description.recipe is not None else USUAL
        recipe = find_recipe(description.recipe or "auto", "auto")
        values = statistics_text(recipe.mean, recipe.std) if stats == "auto" else stats
        pixels = Assumed(values, origin)
    assumed = {**description.assumed, STATS: pixels}
    decided: dict[str, str] = {}
    for module in modules.values():
        decided |= module.spec.decided
    check_all_open(assume, assumed, decided, str(path))
    ordered = {key: assumed[key] for key in KEYS if key in assumed}
    return replace(description, assumed=ordered, pixel_stats=stats)


def _has_teacher(format: Format) -> bool:
    return any(branch.name == "teacher" for branch in format.branches)


def _with_average_as_branch(
    description: CheckpointDescription, key: str, raw: str | None, averaged: bool
) -> CheckpointDescription:
    """The description of one of two state dicts: its averaged weights, under `key`, or the others.

    raw: key of the others, see `raw_key`.
    """
    branches = (*description.branches, "teacher")
    if not averaged:
        ignored = tuple(name for name in description.ignored if name != key)
        return replace(description, branches=branches, ignored=(*ignored, key))
    rest = description.container.partition(".")[2]
    others = () if raw is None else (f"{raw or f'the weights beside {key}'} (not averaged)",)
    return replace(
        description,
        branches=branches,
        branch="teacher",
        container=f"{key}.{rest}" if rest else key,
        ignored=(*description.ignored, *others),
    )


def _has_names_of(arch: str, modules: Modules) -> bool:
    """Whether all tensors of a backbone have names of timm's model, if perhaps other sizes."""
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model(arch, num_classes=0)
    return modules["backbone"].tensors.keys() <= model.state_dict().keys()


def _timm_name(path: Path, config: Mapping[str, Any]) -> str | None:
    """The model in timm's config.json; raises CheckpointError if the installed timm lacks it."""
    name = timm_architecture(config)
    if name is not None:
        import timm

        if not timm.is_model(name):
            raise CheckpointError(
                f"{path}: config.json names timm's {some([name])}, which timm {timm.__version__} "
                "does not have; install a newer timm, or name another model with --arch",
                code="timm-lacks-model",
            )
    return name
