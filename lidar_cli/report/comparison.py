"""Two checkpoints compared: a sentence and a table, JSON or CSV."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lidar_cli.errors import SettingsError, printable
from lidar_cli.ranking.comparison import Comparison, Difference
from lidar_cli.ranking.joining import SETTING_OF_CONSTANT
from lidar_cli.ranking.order import comparable_groups, unranked_row
from lidar_cli.ranking.session import Ranking
from lidar_cli.report.ranking import print_advice
from lidar_cli.report.text import (
    MISSING,
    by_remark,
    console,
    csv_path,
    csv_table,
    error_console,
    first_and_more,
    format_metric,
    format_value,
    markdown_table,
    print_columns,
    print_wrapped,
    shorten_names,
)
from lidar_cli.report.verdict import cautions, with_one_command
from lidar_cli.settings import CompareSettings, flags

FLAGS = {
    field.name: flags(field)[0] for field in dataclasses.fields(CompareSettings) if flags(field)
}
# A constant in which two checkpoints differ -> the option that makes it equal.
OPTION_OF_CONSTANT = {name: FLAGS[setting] for name, setting in SETTING_OF_CONSTANT.items()} | {
    "mask grid": "--views",
    "layer": "--layer",
    "d": "--layer",
    "samples": "--data",
    "embedding revision": "lidar extract --overwrite on the older feature files",
}

SAME_VIEWS = "the same images and views in both"


def check_comparable(comparison: Comparison) -> None:
    """Raise SettingsError, with the options that help, if the two cannot be compared."""
    differing = comparison.differing
    if not differing:
        return
    names = comparison.names
    parts = [_difference_text(key, *pair) for key, pair in differing.items()]
    options = list(dict.fromkeys(OPTION_OF_CONSTANT.get(key, "") for key in differing if key))
    if "d" in differing and "layer" not in differing:
        layer = "" if _is_of_backbones(comparison) else "--layer backbone"
        options = [layer if one == "--layer" else one for one in options]
    where = " of lidar extract" if any(comparison.are_features) else ""
    advice = f"; make them equal with {', '.join(filter(None, options))}{where}"
    raise SettingsError(
        f"{names[0]} and {names[1]} cannot be compared, they differ in {', '.join(parts)}"
        f"{advice if any(options) else ''}",
        code="not-comparable",
    )


def _is_of_backbones(comparison: Comparison) -> bool:
    """Whether backbones were compared: then no other layer has an equal width."""
    every = comparison.checkpoints.values()
    return "backbone" in comparison.command or not all(
        "projector" in one.description.widths for one in every
    )


def _difference_text(key: str, first: object, second: object) -> str:
    """A setting and its two values, where these are short."""
    values = [
        str(value.get("name") if isinstance(value, dict) else value) for value in (first, second)
    ]
    is_short = values[0] != values[1] and max(map(len, values)) <= 24
    text = "the images" if key == "samples" else key
    return f"{text} ({', '.join(values)})" if is_short else text


# Sentences


def sentence(comparison: Comparison) -> str:
    """Which of the two is above the other by the chosen metric, and whether that is certain."""
    a, b = comparison.names
    if comparison.same:
        first, second = comparison.paths
        return f"{first} and {second} {comparison.same}: there is nothing to compare."
    one = next(one for one in comparison.differences if one.metric == comparison.by)
    name = one.metric.name
    if one.difference is None:
        without = b if one.values[0] is not None else a
        return f"{without} has no {name}: {one.interval.reason}."
    if one.difference == 0:
        return f"{a} and {b} are equal in {name}, {SAME_VIEWS}."
    low, high = one.interval.ci_low, one.interval.ci_high
    if one.tied:
        why = "it may be 0"
        if one.metric.target is not None and not _holds_zero(one):
            why = f"both may be equally far from {one.metric.target:g}"
        return (
            f"{a} and {b} are tied in {name}: the difference is {signed(one.difference)} "
            f"({signed_interval(one)}), and {why}, {SAME_VIEWS}."
        )
    ends, doubt = "", ""
    if low is None or high is None:
        doubt = f"; whether that is more than chance is open: {one.interval.reason}"
    else:
        low, high = (low, high) if one.difference > 0 else (-high, -low)
        ends = f" ({format_value(low)} .. {format_value(high)})"
    return (
        f"{a} is {'above' if one.difference > 0 else 'below'} {b} by "
        f"{format_value(abs(one.difference))}{ends} in {name}{_direction(one, comparison)}, "
        f"{SAME_VIEWS}{doubt}."
    )


def _holds_zero(one: Difference) -> bool:
    low, high = one.interval.ci_low, one.interval.ci_high
    return low is not None and high is not None and low <= 0 <= high


def _direction(one: Difference, comparison: Comparison) -> str:
    """Which of the two is better, where that is not the higher one."""
    if one.metric.better == "higher" or one.better is None:
        return ""
    what = "lower" if one.metric.better == "lower" else f"{one.metric.direction}"
    return f" ({what} is better: {comparison.names[one.better]})"


def signed(value: float) -> str:
    """A value with its sign."""
    return f"{'+' if value >= 0 else ''}{format_value(value)}"


def signed_interval(one: Difference) -> str:
    """`+4.1 .. +7.3`, empty without an interval."""
    low, high = one.interval.ci_low, one.interval.ci_high
    return "" if low is None or high is None else f"{signed(low)} .. {signed(high)}"


# Forms


def print_comparison(comparison: Comparison) -> None:
    """Print the sentence, a line per metric, why some have no interval, and cautions."""
    out = console()
    out.print_line(sentence(comparison))
    if comparison.same:
        return
    assert comparison.scores is not None
    score, level = comparison.scores[0], f"{100 * comparison.level:g} %"
    out.print_line(
        f"{score.layer}, n = {score.n_samples}, q = {score.q_text}, d = {score.dim}, "
        f"data {score.data or 'not recorded'}"
    )
    out.print()
    rows = difference_rows(comparison)
    heading = "difference"
    if any(one.interval.se is not None for one in comparison.differences):
        heading = f"difference, {level}"
        if out.is_terminal:  # where headers are broken at their last space or underscore
            heading = f"difference,_{level.replace(' ', '')}"
    headers = ["metric", "", "", heading, *([""] * (len(rows[0]) - 4))]
    used = [max(map(len, column)) + 2 for column in zip(headers, *rows, strict=True)]
    room = (out.width - used[0] - sum(used[3:])) // 2 - 2
    names = shorten_names(comparison.names, room)
    names = names if max(map(len, names)) <= room else ["first", "second"]
    # Names are not broken, in which two could differ by their last characters alone.
    headers[1:3] = [f"\n{name}" for name in names] if out.is_terminal else names
    print_columns(out, headers, rows, fixed=1)
    out.print()
    for text in _remarks(comparison):
        print_wrapped(out, text)
    err = error_console()
    ranking = as_ranking(comparison)
    for label, one in with_one_command(cautions(ranking), ranking):
        print_advice(err, label, one)


def difference_rows(comparison: Comparison) -> list[list[str]]:
    """A line per metric: both values, the difference, and if any are tied, which."""
    cells = list(_difference_cells(comparison))
    tied = ["tied" if one.tied else "" for one in comparison.differences]
    return [
        [
            one.metric.name,
            *(format_metric(one.metric.name, value) for value in one.values),
            *([cell, text] if any(tied) else [cell]),
        ]
        for one, cell, text in zip(comparison.differences, cells, tied, strict=True)
    ]


def as_ranking(comparison: Comparison) -> Ranking:
    """The two as a ranking, of which the same cautions are printed as by `lidar rank`."""
    assert comparison.scores is not None
    by, level, paths = comparison.by, comparison.level, comparison.paths
    rows = [
        unranked_row(Path(path), (), score, by)
        for path, score in zip(paths, comparison.scores, strict=True)
    ]
    words = comparison.command or ("compare", *paths)
    return Ranking(
        directory="",
        by=by,
        level=level,
        data=comparison.scores[0].data or "",
        groups=comparable_groups(rows, by, level),
        checkpoints=comparison.checkpoints,
        names=dict(zip(paths, comparison.names, strict=True)),
        images=comparison.images,
        command=(*words, *comparison.options),
    )


def _difference_cells(comparison: Comparison) -> Iterator[str]:
    """The difference of each metric and its interval, each aligned right."""
    columns = [
        ["" if one.difference is None else signed(one.difference), signed_interval(one)]
        for one in comparison.differences
    ]
    widths = [max(len(row[at]) for row in columns) for at in (0, 1)]
    for size, ends in columns:
        between = f"({ends})" if ends else ""
        yield f"{size:>{widths[0]}}   {between:>{widths[1] + 2}}" if widths[1] else size


def _remarks(comparison: Comparison) -> Iterator[str]:
    """Directions, what ties mean, and the reasons of what is missing, each once."""
    tied = [one for one in comparison.differences if one.tied]
    if tied:
        yield f"tied: the {100 * comparison.level:g} % interval of the difference holds 0"
    for one in tied:
        if one.metric.target is not None and not _holds_zero(one):
            yield f"{one.metric.name} is tied: both may be equally far from {one.metric.target:g}"
    for better in ("lower", "target"):
        some = [one.metric for one in comparison.differences if one.metric.better == better]
        if some:
            metrics = ", ".join(metric.name for metric in some)
            yield f"{some[0].direction} is better: {metrics}"
    for what, is_missing in (("difference", True), ("interval", False)):
        reasons = (
            (one.interval.reason, one.metric.name)
            for one in comparison.differences
            if (one.difference is None) == is_missing
        )
        for reason, names in by_remark(reasons).items():
            yield f"no {what} of {first_and_more(names)}: {reason}"


def to_json(comparison: Comparison) -> str:
    """A JSON object: the two, the sentence, and the difference of every metric."""
    document = {
        "by": comparison.by.name,
        "direction": comparison.by.direction,
        "confidence": comparison.level,
        "sentence": sentence(comparison),
        "same": comparison.same is not None,
        "checkpoints": [
            {"path": path, "name": name}
            for path, name in zip(comparison.paths, comparison.names, strict=True)
        ],
        **_settings_record(comparison),
        "metrics": [_record(one, comparison) for one in comparison.differences],
    }
    return json.dumps(document, indent=2, allow_nan=False)


def _settings_record(comparison: Comparison) -> dict[str, Any]:
    if comparison.scores is None:
        return {}
    score = comparison.scores[0]
    names = ("data", "n_samples", "n_views", "dim", "layer", "delta", "epsilon", "normalized")
    return {name: getattr(score, name) for name in names}


def _record(one: Difference, comparison: Comparison) -> dict[str, Any]:
    return {
        "metric": one.metric.name,
        "direction": one.metric.direction,
        "values": list(one.values),
        "difference": one.difference,
        "ci_low": one.interval.ci_low,
        "ci_high": one.interval.ci_high,
        "se": one.interval.se,
        "tied": one.tied,
        "better": None if one.better is None else comparison.paths[one.better],
        "reason": one.interval.reason or one.interval.note,
    }


def to_markdown(comparison: Comparison) -> str:
    """The sentence, a table with a line per metric, and the remarks."""
    blocks = [printable(sentence(comparison))]
    if not comparison.same:
        rows = [
            [
                one.metric.name,
                *(format_metric(one.metric.name, value) for value in one.values),
                MISSING if one.difference is None else signed(one.difference),
                signed_interval(one) or MISSING,
                "tied" if one.tied else "",
            ]
            for one in comparison.differences
        ]
        level = f"{100 * comparison.level:g} %"
        headers = ["metric", *comparison.names, "difference", level, ""]
        table = markdown_table(headers, rows, left=[0, 5])
        blocks += [table, *map(printable, _remarks(comparison))]
    return "\n\n".join(blocks)


def to_csv(comparison: Comparison) -> str:
    """A header and a line per metric; the difference is the first minus the second."""
    headers = ["metric", "direction", "first", "second", "value_first", "value_second"]
    headers += ["difference", "ci_low", "ci_high", "tied", "reason"]
    rows = (
        [
            *(one.metric.name, one.metric.direction, *map(csv_path, comparison.paths), *one.values),
            *(one.difference, one.interval.ci_low, one.interval.ci_high, one.tied),
            one.interval.reason,
        ]
        for one in comparison.differences
    )
    return csv_table(headers, rows)
