"""Accuracies of probes to a table, JSON or CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from typing import Any

from lidar_cli.probing.run import ProbeResult, Probes
from lidar_cli.report.text import MISSING, cell, console, one_line, path_cell, print_columns

NESTED = ("rates", "warnings")


def to_json(probes: Probes) -> str:
    """One array, an object a file and layer."""
    return json.dumps([_record(found) for found in probes.probed], indent=2, allow_nan=False)


def to_csv(probes: Probes) -> str:
    """A header and a line a file, layer and learning rate; `best` marks the rate that counts."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [f.name for f in dataclasses.fields(ProbeResult) if f.name not in NESTED]
    writer.writerow([*names, "held_out", "best"])
    for found in probes.probed:
        whole = {name: getattr(found, name) for name in names}
        whole |= {name: path_cell(whole[name]) for name in ("train", "test") if whole[name]}
        tried = [dataclasses.asdict(rate) for rate in found.rates] or [{}]
        for rate in tried:
            line = whole | rate
            best = line["learning_rate"] == found.learning_rate
            cells = [*(line[name] for name in names), line.get("held_out"), int(best)]
            writer.writerow(map(cell, cells))
    return out.getvalue()


def print_table(probes: Probes) -> None:
    """A line a file and layer, in percent; after it what each rate of a sweep gave."""
    out = console()
    if not probes.probed:
        return
    first = probes.probed[0]
    sweep = len(first.rates) > 1
    out.print(one_line(f"{_protocol(first)}; accuracies in percent"))
    rates = [f"{rate.learning_rate:g}" for rate in first.rates] if sweep else []
    headers = ["n", "d", "file", "top-1", "+-", "top-5", "test rows", "classes"]
    headers += ["best rate", *(f"at {rate}" for rate in rates)] if sweep else []
    rows = []
    for found in probes.probed:
        row = [str(found.n_train), str(found.dim), f"{found.train}:{found.layer}"]
        row += [percent(found.top1), percent(found.standard_error), percent(found.top5)]
        row += [str(found.n_test), str(found.n_classes)]
        if sweep:
            row += [f"{found.learning_rate:g}", *(percent(rate.top1) for rate in found.rates)]
        rows.append(row)
    print_columns(out, headers, rows, fixed=3)
    if sweep:
        out.print(
            one_line(
                f"The best rate is that of the {first.n_held_out} training rows held out, "
                "which learned nothing; it is not chosen by the test rows."
            )
        )
    remarks: dict[str, list[str]] = {}  # one that holds for many is said once
    for found in probes.probed:
        unknown = f"{found.n_unknown} samples of unknown label left out"
        for remark in (*((unknown,) if found.n_unknown else ()), *found.warnings):
            remarks.setdefault(remark, []).append(f"{found.train}:{found.layer}")
    for remark, names in remarks.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        out.print(one_line(f"{names[0]}{more}: {remark}", style="yellow"))


def percent(share: float | None) -> str:
    """A share in percent with one decimal."""
    return MISSING if share is None else f"{100 * share:.1f}"


def _protocol(found: ProbeResult) -> str:
    return {
        "linear": "linear probe (Adam on standardised embeddings)",
        "knn": "nearest neighbours (cosine)",
        "ridge": "ridge regression on standardised embeddings",
    }[found.method]


def _record(found: ProbeResult) -> dict[str, Any]:
    return dataclasses.asdict(found) | {"top1_standard_error": found.standard_error}
