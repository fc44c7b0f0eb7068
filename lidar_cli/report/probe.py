"""Accuracies of probes as a table, JSON or CSV."""

from __future__ import annotations

import dataclasses
import json

from lidar_cli.probing.run import ProbeResult, Probes
from lidar_cli.report.text import (
    INDENT,
    by_remark,
    console,
    csv_path,
    csv_table,
    error_console,
    first_and_more,
    format_percent,
    print_columns,
    print_labelled,
    print_wrapped,
    wrapped,
)

NOT_IN_CSV = ("rates", "warnings", "error_over_images")
PROTOCOLS = {
    "linear": "linear probe (Adam on standardised embeddings)",
    "knn": "nearest neighbours (cosine)",
    "ridge": "ridge regression on standardised embeddings",
}


def to_json(probes: Probes) -> str:
    """A JSON array with one object per file and layer."""
    records = [
        dataclasses.asdict(probed) | {"top1_standard_error": probed.standard_error}
        for probed in probes.probed
    ]
    for record in records:
        del record["error_over_images"]  # it is the standard error
    return json.dumps(records, indent=2, allow_nan=False)


def to_csv(probes: Probes) -> str:
    """A header and a line per file, layer and learning rate; `best` marks the selected rate."""
    names = [f.name for f in dataclasses.fields(ProbeResult) if f.name not in NOT_IN_CSV]
    rows = []
    for probed in probes.probed:
        fields = {name: getattr(probed, name) for name in names}
        fields |= {name: csv_path(fields[name]) for name in ("train", "test") if fields[name]}
        for rate in [dataclasses.asdict(rate) for rate in probed.rates] or [{}]:
            line = fields | rate
            best = int(line["learning_rate"] == probed.learning_rate)
            rows.append([*(line[name] for name in names), line.get("held_out"), best])
    return csv_table([*names, "held_out", "best"], rows)


def print_table(probes: Probes) -> None:
    """Print a line per file and layer, with a column per rate of a sweep; then remarks."""
    out = console()
    if not probes.probed:
        return
    first = probes.probed[0]
    sweep = first.rates if len(first.rates) > 1 else ()
    err = error_console()
    if len(probes.probed) > 1:
        best = max(probes.probed, key=lambda probed: probed.top1)
        print_wrapped(
            out,
            f"{_name(best)} has the highest accuracy: {format_percent(best.top1)} +- "
            f"{format_percent(best.standard_error)} %, one standard error.",
            style="bold",
        )
    turned = " in place of labels, the turn of an image, of four;" if first.pretext else ""
    out.print_line(f"{PROTOCOLS[first.method]};{turned} accuracies in percent")
    headers = ["n", "d", "file", "top-1", "+-", "top-5", "test rows", "classes"]
    if sweep:
        headers += ["best rate", *(f"at {rate.learning_rate:g}" for rate in sweep)]
    rows = []
    for probed in probes.probed:
        row = [str(probed.n_train), str(probed.dim), _name(probed)]
        row += map(format_percent, (probed.top1, probed.standard_error, probed.top5))
        row += [str(probed.n_test), str(probed.n_classes)]
        if sweep:
            row.append(f"{probed.learning_rate:g}")
            row += [format_percent(rate.top1) for rate in probed.rates]
        rows.append(row)
    print_columns(out, headers, rows, fixed=3)
    if sweep:
        out.print_line(
            f"The best rate is that of the {first.n_held_out} training rows held out, "
            "which learned nothing; it is not chosen by the test rows."
        )
    remarks = []
    for probed in probes.probed:
        if probed.n_unknown:
            remarks.append((f"{probed.n_unknown} samples of unknown label left out", _name(probed)))
        remarks += [(warning, _name(probed)) for warning in probed.warnings]
    for remark, names in by_remark(remarks).items():
        text = f"{first_and_more(names)}: {remark}"
        lines = wrapped(text, err.width - INDENT) if err.is_terminal else [text]
        print_labelled(err, "caution", lines, style="yellow")


def _name(probed: ProbeResult) -> str:
    return f"{probed.train}:{probed.layer}"
