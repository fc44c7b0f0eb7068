"""The names and shapes in a checkpoint -> its backbone and heads, and each tensor's place.

A described format (formats/) comes first, the more specific before the less; what none claims is
read by the usual names (generic.py). Nothing is left out in silence, and torch is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints import assign, fallback
from lidar_cli.checkpoints import match as matching
from lidar_cli.checkpoints.assume import (
    KEYS,
    SET,
    USUAL,
    Asked,
    Assumed,
    Value,
    check_all_open,
    parse,
)
from lidar_cli.checkpoints.families import NEXT
from lidar_cli.checkpoints.formats import FORMATS, Format
from lidar_cli.checkpoints.match import Match
from lidar_cli.checkpoints.models.weights import some
from lidar_cli.checkpoints.reading.containers import (
    average,
    find_state_dict,
    raw_container,
    unused,
    with_average,
)
from lidar_cli.checkpoints.reading.folder import architecture
from lidar_cli.checkpoints.result import STATS, Description, Found
from lidar_cli.errors import CheckpointError, SettingsError
from lidar_cli.views.lookup import find_recipe
from lidar_cli.views.recipes import statistics_text

__all__ = ["NEXT", "Description", "Found", "find", "recognise"]


def recognise(
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
) -> Description:
    """What a checkpoint holds.

    tree: of `read_checkpoint`. arch: a timm name that overrules what the shapes tell. format: the
    name of a described format, or 'plain' for none of them. branch: 'student' or 'teacher'. layer:
    as `--layer` has it, for which an auto branch is chosen. config: config.json of a Hugging Face
    folder. assume: KEY=VALUE and SYSTEM:KEY=VALUE, of what the weights leave open.
    Raises NoWeights if nothing in it is a weight, CheckpointError if it is not understood, and
    SettingsError for an arch that timm does not know, an unknown format or branch, or an assumption
    that the file decides.
    """
    found = find(
        path,
        tree,
        arch=arch,
        activation=activation,
        format=format,
        branch=branch,
        layer=layer,
        config=config,
        assume=assume,
    )
    return found.description


def check_assumptions(assume: Sequence[str]) -> Asked:
    """What `--assume` was given, read; raises SettingsError."""
    return parse(assume, (matching.PLAIN, *(one.name for one in FORMATS)))


def find(
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
) -> Found:
    """Backbone and heads of a checkpoint, with the place of all tensors; see `recognise`."""
    matching.check_names(format, branch)
    options = _Options(activation, branch, layer, config, check_assumptions(assume))
    named = _timm_name(path, config) if arch is None else None
    match = matching.match(path, tree, format, config)
    key = average(tree)
    if key is not None and match is not None and _has_teacher(match.format):
        key = None  # the format's own, or named among what is not used
    raw = raw_container(tree, key) if key is not None else None
    if key is not None and matching.BRANCHES[branch] == "teacher":
        tree = with_average(tree, key)
        match = matching.match(path, tree, format, config)
        options = replace(options, branch="auto")

    def as_named(name: str | None) -> Found:
        return _find(path, tree, match, name, options)

    try:
        found = as_named(arch or named)
    except CheckpointError:
        if named is None:
            raise
        # timm saves a model's name also where it was built at another depth or width.
        by_shapes: Found | None = None
        with suppress(CheckpointError):
            by_shapes = as_named(None)
        if by_shapes is None or not _of_the_kind(by_shapes, named):
            raise
        found = by_shapes
        other = f"not timm's {named} that config.json names, whose tensors are others"
        found = _described(found, assumptions=(*found.description.assumptions, other))
    if key is not None:
        found = _as_branch(found, key, raw, averaged=options.branch != branch)
    return found


@dataclass(frozen=True)
class _Options:
    """How a state dict is to be understood."""

    activation: str
    branch: str
    layer: str
    config: Mapping[str, Any] | None
    asked: Asked


def _find(
    path: Path, tree: Mapping[str, Any], match: Match | None, arch: str | None, options: _Options
) -> Found:
    """Backbone and heads in a tree as its format says, or by usual names."""
    system = match.format.name if match else matching.PLAIN
    asked = options.asked.of(system)
    activation = options.activation
    if activation != "auto" and asked.get("activation", activation) != activation:
        raise SettingsError(
            f"--activation {activation} and --assume activation={asked['activation']} are two "
            "values of one; give one of them"
        )
    if match is not None:
        state = match.state
        found = assign.find(
            path, match, arch, activation, options.branch, options.layer, options.config, asked
        )
    else:
        state = find_state_dict(path, tree)
        found = fallback.find(path, state, arch, activation, options.config, options.layer, asked)
        if matching.BRANCHES[options.branch] == "teacher":
            raise CheckpointError(
                f"{path}: no branch {options.branch!r} in this checkpoint; it has encoder: "
                "leave --branch out"
            )
    aside = unused(tree, state.dicts)
    ignored = (*found.description.ignored, *([some(aside, 8)] if aside else []))
    return _described(found, ignored=ignored, **_assumed(path, found, asked))


def _assumed(path: Path, found: Found, asked: Mapping[str, Value]) -> dict[str, Any]:
    """The fields of a description that say what is assumed; raises SettingsError."""
    told = found.description
    whose = f"{told.format}'s" if told.recipe is not None else USUAL
    stats = told.pixel_stats
    pixels = told.assumed.get(STATS)
    if pixels is None and stats == "auto":
        recipe = find_recipe(told.recipe or "auto", "auto")
        pixels = Assumed(statistics_text(recipe.mean, recipe.std), whose)
    elif pixels is None:
        pixels = Assumed(stats, whose)
    if STATS in asked:
        stats = str(asked[STATS])
        pixels = Assumed(stats, SET)
    assumed = {**told.assumed, STATS: pixels}
    decided = dict(found.backbone.decided)
    for head in found.heads.values():
        decided |= getattr(head.spec, "decided", {})
    check_all_open(asked, assumed, decided, str(path))
    ordered = {key: assumed[key] for key in KEYS if key in assumed}
    return {"assumed": ordered, "pixel_stats": stats}


def _described(found: Found, **changes: Any) -> Found:
    """The same with another description."""
    return replace(found, description=replace(found.description, **changes))


def _has_teacher(format: Format) -> bool:
    return any(branch.name == "teacher" for branch in format.branches)


def _as_branch(found: Found, key: str, raw: str | None, averaged: bool) -> Found:
    """What was found in one of two state dicts, where `key` is that of averaged weights.

    raw: key of the others, as `raw_container` has it.
    """
    told = found.description
    branches = (*told.branches, "teacher")
    if not averaged:
        ignored = tuple(name for name in told.ignored if name != key)
        return _described(found, branches=branches, ignored=(*ignored, key))
    rest = told.container.partition(".")[2]
    others = () if raw is None else (f"{raw or f'the weights beside {key}'} (not averaged)",)
    container = f"{key}.{rest}" if rest else key
    return _described(
        found,
        branches=branches,
        branch="teacher",
        container=container,
        ignored=(*told.ignored, *others),
    )


def _of_the_kind(found: Found, name: str) -> bool:
    """Whether a backbone has no tensors but those of timm's model, if perhaps in other sizes."""
    import timm
    import torch

    with torch.device("meta"):
        known = timm.create_model(name, num_classes=0).state_dict()
    return found.backbone.tensors.keys() <= known.keys()


def _timm_name(path: Path, config: Mapping[str, Any] | None) -> str | None:
    """The model that timm's config.json names; raises CheckpointError if this timm has it not."""
    name = architecture(config)
    if name is not None:
        import timm

        if not timm.is_model(name):
            raise CheckpointError(
                f"{path}: config.json names timm's {some([name])}, which timm {timm.__version__} "
                "does not have; install a newer timm, or name another model with --arch"
            )
    return name
