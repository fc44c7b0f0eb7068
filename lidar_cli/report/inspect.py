"""Inspected checkpoints and the formats as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lidar_cli.checkpoints.inspect import BranchSummary, FormatRow, Inspection
from lidar_cli.errors import printable
from lidar_cli.settings import USUAL_IMAGE_SIZE

if TYPE_CHECKING:  # loads torch, which checkpoints do not need
    from lidar_cli.features.inspect import FeatureInspection, LayerSummary

LABEL_WIDTH = 14
CONTAINERS = (
    "each in a file of torch.save, Lightning or safetensors, or in a folder of Hugging Face "
    "(model.safetensors), torch.distributed.checkpoint (.metadata, *.distcp) or DeepSpeed "
    "(mp_rank_00_model_states.pt)"
)
SIZE_IS_OPEN = (
    f"not in the weights; {USUAL_IMAGE_SIZE} px (the embedded images: 32 px); --image-size sets it"
)


def to_json(records: Sequence[Inspection | FeatureInspection] | Sequence[FormatRow]) -> str:
    """A JSON array with one object per file or format."""
    return json.dumps([dataclasses.asdict(record) for record in records], indent=2)


def to_text(inspections: Sequence[Inspection | FeatureInspection]) -> str:
    """A block of lines per file."""
    return "\n\n".join("\n".join(map(printable, _lines(each))) for each in inspections)


def table(rows: Sequence[FormatRow]) -> str:
    """A line per format, in columns."""
    cells = [("name", "system", "branches", "layers", "views", "for example")]
    cells += [(r.name, r.title, r.branches, r.layers, r.recipe, r.example) for r in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _lines(inspection: Inspection | FeatureInspection) -> Iterator[str]:
    yield inspection.file
    # Lines are wrapped for a terminal only, so that a pipe can be searched line by line.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    for label, text in facts(inspection).items():
        yield from textwrap.wrap(
            text,
            width,
            initial_indent=f"  {label:{LABEL_WIDTH - 1}} ",
            subsequent_indent=" " * (2 + LABEL_WIDTH),
            break_long_words=False,
            break_on_hyphens=False,
        )


def facts(inspection: Inspection | FeatureInspection) -> dict[str, str]:
    """What a file holds, in words by label."""
    if isinstance(inspection, Inspection):
        return _checkpoint_facts(inspection)
    return _feature_facts(inspection)


def _feature_facts(inspection: FeatureInspection) -> dict[str, str]:
    record = inspection.provenance
    views = record.get("views") or {}
    size = record.get("image_size")
    assumed = record.get("assumed") or {}
    return {
        "format": "feature file: complete, every number is finite",
        **{f"layer {layer.name}": _layer(layer) for layer in inspection.layers},
        "samples": f"{'with' if inspection.ids else 'no'} ids, "
        f"{'with' if inspection.labels else 'no'} labels",
        "checkpoint": str(record.get("checkpoint") or ""),
        "data": str(record.get("data") or ""),
        "views": " ".join([*([views["name"]] if views else []), *([f"{size} px"] if size else [])]),
        "assumed": "; ".join(assumed),
        **{f"no {what}": cost for what, cost in inspection.missing.items()},
    }


def _layer(layer: LayerSummary) -> str:
    q = f"{layer.q}" if layer.q == layer.most else f"{layer.q} to {layer.most}"
    parts = [f"views [{layer.n}, {q}, {layer.d}]"] if layer.q else []
    parts += [f"clean [{layer.n_clean}, {layer.d}]"] if layer.n_clean else []
    return f"{', '.join(parts)}; {layer.storage}; checksums {layer.checksums}"


def _checkpoint_facts(inspection: Inspection) -> dict[str, str]:
    size = inspection.image_size
    assumed = [value.text(key) for key, value in inspection.assumed.items()]
    stats = f"{inspection.pixel_stats}{inspection.stats_source and f' ({inspection.stats_source})'}"
    return {
        "format": f"{inspection.format}: {inspection.why}",
        "architecture": inspection.architecture,
        "image size": f"{size} px" if size else SIZE_IS_OPEN,
        "views": f"{inspection.recipe or 'simclr'}, pixels {stats}",
        "weights under": inspection.container or "the file itself",
        **{branch.name: _branch(branch) for branch in inspection.branches},
        "layers inside": "; ".join(
            dict.fromkeys(", ".join(branch.inner) for branch in inspection.branches)
        ),
        "not used": ", ".join(inspection.ignored),
        "assumed": "; ".join([*assumed, *inspection.assumptions]),
        "stand-ins": ", ".join(inspection.stand_ins),
        "extract would": inspection.extract,
    }


def _branch(branch: BranchSummary) -> str:
    parts = [f"backbone {branch.layers['backbone']} (at {branch.prefix or 'no prefix'})"]
    parts += [f"{layer} {'-'.join(map(str, widths))}" for layer, widths in branch.heads.items()]
    return f"{', '.join(parts)}; {branch.parameters / 1e6:.3g} M parameters"
