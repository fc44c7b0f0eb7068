"""What `--dry-run` prints: the work ahead, its time, disk and memory."""

from __future__ import annotations

import json

from lidar_cli.extraction.measure import Measured
from lidar_cli.extraction.plan import Plan
from lidar_cli.features.schema import format_size
from lidar_cli.ranking.dry_run import DryRun
from lidar_cli.ranking.joining import Joined
from lidar_cli.report.text import (
    console,
    counted,
    format_duration,
    joined_by_and,
    print_wrapped,
)
from lidar_cli.report.verdict import constant_text, one_value_of


def print_dry_run(run: DryRun) -> None:
    """The checkpoints, groups and cache of a ranking, and what it will take."""
    out = console()
    kinds = f"{joined_by_and(run.architectures)}, {joined_by_and(run.methods)}"
    count = counted(run.checkpoints, "checkpoint")
    groups = "one comparable group"
    if len(run.groups) > 1:
        groups = f"{len(run.groups)} groups that differ in {joined_by_and(run.differ)}"
    summary = f"{count} in {counted(run.folders, 'folder')} ({kinds}), {groups}"
    print_wrapped(out, f"{summary}; {run.cached} cached.")
    if len(run.groups) > 1:
        for common, number in run.groups:
            values = ", ".join(f"{name} {constant_text(name, common)}" for name in run.differ)
            out.print_line(f"group    {counted(number, 'checkpoint')}  {values}")
        out.print_line(f"         {_joined(run.joined)}")
    _print_plan(run.plan)
    if run.seconds is None:
        out.print_line("time     nothing is to be embedded")
    else:
        out.print_line(
            f"time     about {format_duration(run.seconds)} here "
            "(a batch of each architecture was measured)"
        )
        out.print_line(f"disk     {format_size(run.disk)} in {run.cache}")
        out.print_line(f"memory   {format_size(run.memory or 0)}")
    for label, files in (("skipped", run.skipped), ("failed", run.failed)):
        for file in files:
            out.print_line(f"{label}: {file.path}: {file.reason}")


def _joined(joined: Joined) -> str:
    if not joined.settings:
        return "no option joins groups"
    options = one_value_of(joined).lower()
    if joined.groups == 1:
        return f"comparable with {options}"
    return f"{joined.groups} groups, the fewest, with {options}"


def print_extraction(plan: Plan, measured: Measured, output: str) -> None:
    """What an extraction will take."""
    out = console()
    _print_plan(plan)
    seconds = measured.seconds * plan.layout.n_clean
    out.print_line(f"time     about {format_duration(seconds)} here (a batch was measured)")
    out.print_line(f"disk     {format_size(plan.layout.nbytes)} in {output}")
    out.print_line(f"memory   {format_size(measured.memory)}")


def to_json(run: DryRun) -> str:
    """The same as JSON."""
    layout = run.plan.layout
    record = {
        "directory": run.directory,
        "cache": run.cache,
        "checkpoints": run.checkpoints,
        "folders": run.folders,
        "architectures": run.architectures,
        "methods": run.methods,
        "groups": [number for _, number in run.groups],
        "differ": run.differ,
        "cached": run.cached,
        "n": layout.n_samples,
        "q": layout.n_views,
        "seconds": run.seconds,
        "disk_bytes": run.disk,
        "memory_bytes": run.memory,
        "skipped": [vars(file) for file in run.skipped],
        "failed": [vars(file) for file in run.failed],
    }
    return json.dumps(record, indent=2, allow_nan=False)


def _print_plan(plan: Plan) -> None:
    out, views, layout = console(), plan.views, plan.layout
    layers = ", ".join(f"{layer} (d = {d})" for layer, d in layout.widths.items())
    kind, of = "images", f"{views.recipe.name}, {views.image_size} px"
    if plan.item_shape is not None:
        kind, of = "items ", f"your own, of shape {list(plan.item_shape)}"
    out.print_line(f"{kind}   {plan.provenance['data']}, n = {layout.n_clean:,}")
    out.print_line(f"views    {of}, q = {layout.n_views}; {layers}")
