"""What `lidar inspect` found, as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence

from lidar_cli.checkpoints.inspect import BranchSummary, FormatRow, Inspection
from lidar_cli.errors import printable

LABEL = 14  # characters of the names on the left


def to_json(found: Sequence[Inspection]) -> str:
    """One array, an object a file."""
    return json.dumps([dataclasses.asdict(one) for one in found], indent=2)


def formats_to_json(rows: Sequence[FormatRow]) -> str:
    """One array, an object a format."""
    return json.dumps([dataclasses.asdict(row) for row in rows], indent=2)


def to_text(found: Sequence[Inspection]) -> str:
    """A block of lines a file."""
    return "\n\n".join("\n".join(map(printable, _lines(one))) for one in found)


def table(rows: Sequence[FormatRow]) -> str:
    """The formats, a line each, in columns."""
    cells = [("name", "system", "branches", "layers", "views", "for example")]
    cells += [(r.name, r.title, r.branches, r.layers, r.recipe, r.example) for r in rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _lines(one: Inspection) -> Iterator[str]:
    yield one.file
    facts = {
        "format": f"{one.format}: {one.why}",
        "architecture": one.architecture,
        "image size": f"{one.image_size} px" if one.image_size else "not in the weights",
        "views": f"{one.recipe or 'simclr'}, pixels {one.pixel_stats}",
        "weights under": one.container or "the file itself",
    }
    for branch in one.branches:
        facts[branch.name] = _branch(branch)
    facts["not used"] = ", ".join(one.ignored)
    assumed = [*(value.text(key) for key, value in one.assumed.items()), *one.assumptions]
    facts["assumed"] = "; ".join(assumed)
    facts["stand-ins"] = ", ".join(one.stand_ins)
    facts["extract would"] = one.extract
    # A line is broken for a terminal only, so that a pipe can be searched line by line.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    for label, text in facts.items():
        if text:
            yield from textwrap.wrap(
                text,
                width,
                initial_indent=f"  {label:{LABEL}}",
                subsequent_indent=" " * (2 + LABEL),
                break_long_words=False,
                break_on_hyphens=False,
            )


def _branch(branch: BranchSummary) -> str:
    parts = [f"backbone {branch.layers['backbone']} (at {branch.prefix or 'no prefix'})"]
    parts += [f"{layer} {'-'.join(map(str, widths))}" for layer, widths in branch.heads.items()]
    return f"{', '.join(parts)}; {branch.parameters / 1e6:.3g} M parameters"
