"""Checkpoint files to what is in them, and what `extract` would do: no torch, no tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.assume import Assumed
from lidar_cli.checkpoints.detect import find
from lidar_cli.checkpoints.fallback import PROJECTORS
from lidar_cli.checkpoints.formats import FORMATS
from lidar_cli.checkpoints.formats.format import readable, recipes
from lidar_cli.checkpoints.reading.read import as_dict, read_contents
from lidar_cli.checkpoints.result import STATS, Description, Found
from lidar_cli.errors import SettingsError
from lidar_cli.settings import FormatSettings


@dataclass(frozen=True)
class BranchFound:
    """One set of weights in a file."""

    name: str
    prefix: str  # of the backbone, below the container
    layers: dict[str, int]  # layer -> width of its embedding
    heads: dict[str, tuple[int, ...]]  # projector, predictor -> widths from input to output
    parameters: int  # in the backbone and heads


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint file holds."""

    file: str
    kind: str  # 'zip', 'legacy' or 'safetensors'
    format: str
    why: str  # how the format was told
    architecture: str
    container: str
    image_size: int | None
    recipe: str | None
    pixel_stats: str
    branch: str  # that extract would take
    layer: str  # that extract would take
    branches: tuple[BranchFound, ...]
    ignored: tuple[str, ...]
    assumed: dict[str, Assumed]  # what the weights leave open, by the keys of --assume
    assumptions: tuple[str, ...]  # what else is assumed, in words
    stand_ins: tuple[str, ...]  # foreign names in the file, of which nothing was made
    extract: str  # what it would do, in words


@dataclass(frozen=True)
class FormatRow:
    """One line of the table of formats."""

    name: str
    title: str
    branches: str  # the default one first
    layers: str
    recipe: str  # several with commas, where the method decides
    example: str
    marks: str


def inspect_file(path: Path, settings: FormatSettings) -> Inspection:
    """What is in a checkpoint file.

    Raises CheckpointError or NoWeights for the file, SettingsError for the settings.
    """
    contents = read_contents(path)
    tree = as_dict(contents)
    config = contents.config
    found = _find(path, tree, config, settings, settings.branch)
    told = found.description
    branches = [_branch(found)]
    for name in told.branches:
        if name != told.branch:
            try:
                other = _find(path, tree, config, settings, name)
            except SettingsError:  # an assumption of what that branch does not have
                other = _find(path, tree, config, replace(settings, assume=()), name)
            branches.append(_branch(other))
    return Inspection(
        file=str(path),
        kind=contents.kind,
        format=told.format,
        why=told.why or "no described format; backbone and heads by their usual names",
        architecture=told.arch,
        container=told.container,
        image_size=told.image_size,
        recipe=told.recipe,
        pixel_stats=str(told.assumed[STATS].value),
        branch=told.branch,
        layer=_layer(told),
        branches=tuple(branches),
        ignored=told.ignored,
        assumed=dict(told.assumed),
        assumptions=told.assumptions,
        stand_ins=contents.stand_ins,
        extract=_extract(told),
    )


def formats() -> list[FormatRow]:
    """The table of formats, the more general after the described ones."""
    rows = [
        FormatRow(
            name=one.name,
            title=one.title,
            branches=", ".join(branch.name for branch in one.branches),
            layers=", ".join(
                dict.fromkeys(["backbone", *(h for b in one.branches for h in b.heads)])
            ),
            recipe=", ".join(recipes(one)),
            example=one.example,
            marks=readable((*one.keys, *one.marks)),
        )
        for one in FORMATS
    ]
    return [
        *rows,
        FormatRow(
            name="plain",
            title="any state dict by torchvision's or timm's names",
            branches="encoder",
            layers="backbone, projector",
            recipe="simclr",
            example="resnet50.pth, model.safetensors",
            marks=f"one backbone; a projector named {', '.join(PROJECTORS)}",
        ),
    ]


def _find(
    path: Path,
    tree: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    settings: FormatSettings,
    branch: str,
) -> Found:
    return find(
        path,
        tree,
        arch=settings.arch,
        format=settings.format,
        branch=branch,
        config=config,
        assume=settings.assume,
    )


def _branch(found: Found) -> BranchFound:
    told = found.description
    heads = {layer: head.spec.widths for layer, head in found.heads.items()}
    return BranchFound(told.branch, told.prefix, told.widths, heads, told.parameters)


def _layer(told: Description) -> str:
    return "projector" if "projector" in told.widths else "backbone"


def _extract(told: Description) -> str:
    layer = _layer(told)
    why = "" if layer == "projector" else ", since there is no projector"
    branch = "" if told.branches == ("encoder",) else f" of the {told.branch}"
    size = f"{told.image_size} px" if told.image_size else "the data's size"
    return (
        f"embed the {layer}{branch} ({told.widths[layer]} numbers{why}) at {size} "
        f"with the views {told.recipe or 'simclr'}"
    )
