"""Reports what a checkpoint file contains, without torch and without reading tensor data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lidar_cli.checkpoints.detect import detect_in
from lidar_cli.checkpoints.fallback import PROJECTORS
from lidar_cli.checkpoints.formats import FORMATS
from lidar_cli.checkpoints.formats.format import readable
from lidar_cli.checkpoints.reading.read import read_contents
from lidar_cli.checkpoints.shapes.inner import in_groups, parents
from lidar_cli.checkpoints.shapes.spec import PIXEL_STATS, Assumed, CheckpointDescription
from lidar_cli.errors import SettingsError
from lidar_cli.settings import USUAL_IMAGE_SIZE, FormatSettings


@dataclass(frozen=True)
class BranchSummary:
    """One branch of a file."""

    name: str
    prefix: str  # of the backbone, below the container
    layers: dict[str, int]  # layer -> width of its embedding
    heads: dict[str, tuple[int, ...]]  # projector, predictor -> widths from input to output
    inner: tuple[str, ...]  # modules inside the backbone that --layer takes, in groups
    parameters: int  # in the backbone and heads


@dataclass(frozen=True)
class Inspection:
    """The report of `lidar inspect` for one file."""

    file: str
    kind: str  # 'zip', 'legacy' or 'safetensors'
    format: str
    why: str  # how the format was recognised
    architecture: str
    container: str
    image_size: int | None
    recipe: str | None
    pixel_stats: str
    stats_source: str  # what in the file has them, '' if they are assumed
    branch: str  # the one that extract would embed
    layer: str  # the one that extract would embed
    branches: tuple[BranchSummary, ...]
    ignored: tuple[str, ...]  # what no branch uses
    assumed: dict[str, Assumed]  # values that the weights leave open, by key of --assume
    assumptions: tuple[str, ...]  # other assumptions, in words
    stand_ins: tuple[str, ...]  # foreign names in the file, neither imported nor run
    extract: str  # what `lidar extract` would do, in words


@dataclass(frozen=True)
class FormatRow:
    """One line of the table of formats."""

    name: str
    title: str
    branches: str  # the default one first
    layers: str
    recipe: str  # joined with commas if the method decides between several
    example: str
    marks: str
    source: str = ""  # files of the system's code that define the layout, and their revision


def inspect_file(path: Path, settings: FormatSettings) -> Inspection:
    """The report for one checkpoint file.

    Raises CheckpointError or NoWeights for the file, SettingsError for the settings.
    """
    contents = read_contents(path)

    def detect_branch(
        branch: str, assume: Sequence[str]
    ) -> tuple[CheckpointDescription, BranchSummary]:
        of_branch = replace(settings, branch=branch, assume=tuple(assume))
        description, modules = detect_in(contents, path, of_branch)
        heads = {name: module.spec.widths for name, module in modules.items() if name != "backbone"}
        summary = BranchSummary(
            name=description.branch,
            prefix=description.prefix,
            layers=description.widths,
            heads=heads,
            inner=tuple(in_groups(parents(modules["backbone"].tensors))),
            parameters=description.parameters,
        )
        return description, summary

    description, summary = detect_branch(settings.branch, settings.assume)
    branches, ignored = [summary], list(description.ignored)
    for name in description.branches:
        if name != description.branch:
            try:
                other, summary = detect_branch(name, settings.assume)
            except SettingsError:  # an assumption about something that this branch lacks
                other, summary = detect_branch(name, ())
            ignored = [entry for entry in ignored if entry in other.ignored]
            branches.append(summary)
    return Inspection(
        file=str(path),
        kind=contents.kind,
        format=description.format,
        why=description.why or "no described format; backbone and heads by their usual names",
        architecture=description.arch,
        container=description.container,
        image_size=description.image_size,
        recipe=description.recipe,
        pixel_stats=_pixel_stats(description),
        stats_source=description.stats_source,
        branch=description.branch,
        layer=_layer(description, settings.layer),
        branches=tuple(branches),
        ignored=tuple(_unused(ignored, branches)),
        assumed=dict(description.assumed),
        assumptions=description.assumptions,
        stand_ins=contents.stand_ins,
        extract=_extract(description, settings.layer),
    )


def formats() -> list[FormatRow]:
    """The table of formats; its last row is for files that match no format."""
    rows = [
        FormatRow(
            name=one.name,
            title=one.title,
            branches=", ".join(branch.name for branch in one.branches),
            layers=", ".join(
                dict.fromkeys(["backbone", *(h for b in one.branches for h in b.heads)])
            ),
            recipe=", ".join(one.recipes),
            example=one.example,
            marks=readable((*one.keys, *one.present)),
            source=one.source,
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


def _unused(ignored: list[str], branches: list[BranchSummary]) -> Iterator[str]:
    """Names of what no branch uses; of a module that one uses, only the rest is unused."""
    used = [branch.prefix.rstrip(".") for branch in branches if branch.prefix]
    for name in ignored:
        in_use = any(f"{prefix}.".startswith(f"{name}.") for prefix in used)
        yield f"other tensors of {name}" if in_use else name


def _pixel_stats(description: CheckpointDescription) -> str:
    assumed = description.assumed.get(PIXEL_STATS)
    return description.pixel_stats if assumed is None else str(assumed.value)


def _layer(description: CheckpointDescription, option: str) -> str:
    """The layers that extract would embed with this `--layer`."""
    if option != "auto":
        return option
    return "projector" if "projector" in description.widths else "backbone"


def _extract(description: CheckpointDescription, option: str) -> str:
    layer = _layer(description, option)
    why = ", since there is no projector" if (layer, option) == ("backbone", "auto") else ""
    widths = [str(description.widths.get(name.strip(), "no")) for name in layer.split(",")]
    branch = "" if description.branches == ("encoder",) else f" of the {description.branch}"
    size = f"{description.image_size or USUAL_IMAGE_SIZE} px"
    return (
        f"embed the {layer}{branch} ({', '.join(widths)} numbers{why}) at {size} "
        f"with the views {description.recipe or 'simclr'}"
    )
