"""Every table of the study from its CSV files alone: Markdown for people, CSV for programs."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lidar_cli.data.builtin import ATTRIBUTION
from lidar_cli.errors import InputError
from lidar_cli.ranking.trust import BOUNDS, DOUBTS, Facts
from lidar_cli.runtime.files import write_atomic
from study.abstain import (
    Abstention,
    Judged,
    abstention,
    choose_bound,
    evaluate,
    is_misleading,
    loss_share,
    reasons,
)
from study.analysis import (
    DENSE,
    FEWEST_WITHIN,
    GOAL_POOLED,
    GOAL_WITHIN,
    POOLED,
    Agreement,
    Candidate,
    Group,
    LeftOut,
    Method,
    Outcome,
    agreements,
    candidates,
    choose,
    groups,
    leave_one_out,
    margin,
    mean_places,
    mean_pooled,
    merit,
    methods,
    ordered_by_margin,
    outcomes,
    trained_by,
    worst,
)
from study.records import LAYERS, Results, read_results
from study.seeds import SeedNoise, seed_noise
from study.sweeps import Sweep, sweeps

LEVEL = 0.95  # of the intervals
MISSING = "-"
FASHION_SOURCE = "Fashion-MNIST: Copyright (c) 2017 Zalando SE, MIT licence."
LISTED = 20  # candidates in the table of the best
HIGHEST = ("retrieval",)  # the metric of the highest mean correlation over all methods
OF_PAPER = ("lidar", "rankme", "alpha_req")  # the metrics of the tables in the paper's form
SETTING_COLUMNS = (
    "data", "layer", "q", "method", "metric", "checkpoints", "with_value",
    "spearman", "spearman_low", "spearman_high", "kendall", "kendall_low", "kendall_high",
    "pick_loses",
)  # fmt: skip
SUMMARY_COLUMNS = (
    *("scope", "metric", "spearman_mean", "spearman_worst", "loss_mean", "loss_most", "worst_at"),
)
CANDIDATE_COLUMNS = (
    *("candidate", "metrics", "margin", "worst_pooled", "worst_within", "mean_pooled"),
)
SEED_COLUMNS = ("data", "layer", "q", "metric", "runs", "seeds", "images", "search")


class Table(NamedTuple):
    """One table with its title."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Study:
    """All that the tables show.

    pooled, within: every metric and the chosen candidate in every group that counts. by_layer: the
    same pooled groups against the probe of the layer that is scored. apart: the metrics in groups
    of the runs that do not count. chosen: by the rule of choice on all sets. by: the metric that is
    believed or not.
    """

    results: Results
    methods: Sequence[Method]
    pooled: Sequence[Agreement]
    within: Sequence[Agreement]
    by_layer: Sequence[Agreement]
    apart: Sequence[Agreement]
    outcomes: Sequence[Outcome]
    chosen: Candidate
    left_out: Sequence[LeftOut]
    seeds: Sequence[SeedNoise]
    sweeps: Mapping[str, Sequence[Sweep]]  # by layer, at the largest q
    by: str


def analyse(results: Results, by: str = "lidar") -> Study:
    """All comparisons of the study, of which `by` is the metric that is believed or not.

    Raises InputError if no run counts.
    """
    every = methods(results)
    counted = {(m.data, m.method): m.passing for m in every if m.counts}
    apart = {
        (m.data, m.method): m.accuracies.keys() - (m.passing if m.counts else frozenset())
        for m in every
    }
    enough = {(m.data, m.method) for m in every if m.counts_within}
    main = [
        g for g in groups(results, counted) if g.method == POOLED or (g.data, g.method) in enough
    ]
    if not main:
        raise InputError(
            "no method has half of its runs above the untrained network on any set, and at least "
            "three of them measured; nothing can be compared"
        )
    among = candidates(
        [n for n in results.directions if any(c.values[n] is not None for c in results.checkpoints)]
    )
    rows = outcomes(main, among)
    chosen = choose(rows)
    shown = [*((name,) for name in results.directions), *([chosen] if len(chosen) > 1 else [])]
    compared = compare(main, shown)
    layer_groups = [g for g in groups(results, counted, of_layer=True) if g.method == POOLED]
    apart_groups = [g for g in groups(results, apart) if g.method == POOLED]
    most = max(c.q for c in results.checkpoints)
    in_paper = list(dict.fromkeys([*((name,) for name in OF_PAPER), chosen]))
    return Study(
        results,
        every,
        pooled=[a for a in compared if a.group.method == POOLED],
        within=[a for a in compared if a.group.method != POOLED],
        by_layer=compare(layer_groups, shown),
        apart=compare(apart_groups, shown),
        outcomes=rows,
        chosen=chosen,
        left_out=leave_one_out(rows),
        seeds=seed_noise(results),
        sweeps={layer: sweeps(results, layer, most, in_paper) for layer in LAYERS},
        by=by,
    )


def compare(some: Iterable[Group], among: Sequence[Candidate]) -> list[Agreement]:
    """Every candidate in every group; metrics of patch tokens only within a method that has any."""
    return [
        agreement
        for group in some
        for agreement in agreements(group, among, LEVEL)
        if agreement.candidate[0] not in DENSE
        or (group.method != POOLED and agreement.nulls < len(group.names))
    ]


def write_tables(directory: Path, output: Path, by: str = "lidar") -> list[Path]:
    """Write study.md and the CSV files of its tables, from the results in a folder.

    by: the metric that the tables of abstaining judge.
    Raises InputError if the results cannot be read, OSError if a file cannot be written.
    """
    results = read_results(directory)
    command = f"    python tests/benchmarks/study tables {directory}"
    title = "# A study of label-free metrics"
    if not results.checkpoints:
        parts = ["Accuracies alone; no metric is measured yet.", *map(markdown, probed(results))]
        texts = {"study.md": "\n\n".join([title, command, *parts]) + "\n"}
    else:
        study = analyse(results, by)
        parts = [introduction(study), *map(markdown, tables(study)), ATTRIBUTION, FASHION_SOURCE]
        texts = {
            "study.md": "\n\n".join([title, command, *parts]) + "\n",
            "settings.csv": to_csv(SETTING_COLUMNS, map(_setting, [*study.pooled, *study.within])),
            "summary.csv": to_csv(SUMMARY_COLUMNS, summary_rows(study)),
            "candidates.csv": to_csv(CANDIDATE_COLUMNS, candidate_rows(study)),
            "seeds.csv": to_csv(SEED_COLUMNS, map(_seed_row, study.seeds)),
        }
    written = []
    for name, text in texts.items():
        write_atomic(output / name, text.encode())
        written.append(output / name)
    return written


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV with a header; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def markdown(table: Table) -> str:
    """A table with its title as Markdown."""
    head = "| " + " | ".join(table.headers) + " |"
    rule = "| :--- |" + " ---: |" * (len(table.headers) - 1)
    rows = ["| " + " | ".join(row) + " |" for row in table.rows]
    return "\n".join([f"**{table.title}**", "", head, rule, *rows])


def introduction(study: Study) -> str:
    """What was compared, and whether the goals are met, in a few sentences."""
    names = {(c.data, c.name) for c in study.results.checkpoints}
    pooled, within = worst_left_out(study.left_out)
    return (
        f"{len(names)} checkpoints by `protocol.md`, {len(study.results.failed)} more with "
        "embeddings that are not finite. Accuracy is the higher of two linear probes of the "
        "backbone. A correlation is positive where a metric's better direction agrees with the "
        "accuracy; a null ranks last, and equal values order nothing, which counts as 0. "
        f"Intervals are {100 * LEVEL:g} % of a bootstrap over checkpoints. The second opinion "
        f"chosen on all sets is **{label(study.chosen)}**. Chosen without the set that it is "
        f"judged on, its worst correlation is {_goal(pooled, GOAL_POOLED)} pooled and "
        f"{_goal(within, GOAL_WITHIN)} within a method."
    )


def worst_left_out(left_out: Iterable[LeftOut]) -> tuple[float | None, float | None]:
    """The worst pooled and worst within correlation over the sets left out."""
    rows = list(left_out)
    return (
        min((r.pooled for r in rows if r.pooled is not None), default=None),
        min((r.within for r in rows if r.within is not None), default=None),
    )


def _goal(value: float | None, goal: float) -> str:
    if value is None:
        return f"not measured (goal {goal:+.1f})"
    return f"{value:+.2f} (goal {goal:+.1f}: {'met' if value >= goal else 'missed'})"


def tables(study: Study) -> list[Table]:
    """Every table, in the order of the report."""
    return [
        *probed(study.results),
        _summary_table("All methods together, over set x layer x q", study.pooled),
        _summary_table(
            f"Within one method, of at least {FEWEST_WITHIN} passing runs", study.within
        ),
        _summary_table("All methods together, against the probe of the layer", study.by_layer),
        _left_out_table(study.left_out),
        _candidates_table(study),
        _summary_table("Runs that do not count, all methods together", study.apart),
        *_abstaining_tables(study),
        *_summaries_by_views(study),
        _seeds_table(study.seeds),
        *(table for layer in LAYERS for table in _sweep_tables(layer, study.sweeps[layer])),
        *_setting_tables([*study.pooled, *study.within]),
    ]


def probed(results: Results) -> list[Table]:
    """The tables that need accuracies alone."""
    return [_methods_table(methods(results)), _probes_table(results)]


def _methods_table(every: Sequence[Method]) -> Table:
    rows = []
    for m in every:
        accuracies = m.accuracies.values()
        ends = [f"{points(end(accuracies))}" for end in (min, statistics.median, max)]
        total = len(accuracies) + m.failed
        status = "counts" if m.counts_within else "counts pooled" if m.counts else "failed training"
        passed = f"{len(m.passing)} of {total}"
        rows.append([m.data, m.method, passed, *ends, points(m.untrained), status])
    headers = ("set", "method", "above untrained", "least", "median", "most", "untrained", "status")
    return Table("Accuracies of the search's backbones, in percent", headers, rows)


def _probes_table(results: Results) -> Table:
    by_place: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in results.accuracies:
        if not row["failed"]:
            pair = float(row["lbfgs"]), float(row["paper"])
            by_place.setdefault((row["set"], row["layer"]), []).append(pair)
    rows = []
    for (data, layer), pairs in by_place.items():
        gaps = [lbfgs - paper for lbfgs, paper in pairs]
        means = [statistics.fmean(column) for column in zip(*pairs, strict=True)]
        higher = sum(gap > 0 for gap in gaps)
        ends = [points(max(gaps)), points(-min(gaps))]
        rows.append([data, layer, str(len(pairs)), *map(points, means), str(higher), *ends])
    headers = (
        *("set", "layer", "checkpoints", "L-BFGS mean", "Adam, 20 epochs mean"),
        *("L-BFGS higher in", "by at most", "Adam higher by at most"),
    )
    return Table("The two linear probes, accuracies in percent", headers, rows)


class _Summary(NamedTuple):
    candidate: Candidate
    rows: Sequence[Agreement]

    @property
    def worst(self) -> Agreement:
        return min(self.rows, key=lambda a: a.spearman)


def _summaries(compared: Iterable[Agreement]) -> list[_Summary]:
    """The agreements by candidate, by descending worst case."""
    by_candidate: dict[Candidate, list[Agreement]] = {}
    for agreement in compared:
        by_candidate.setdefault(agreement.candidate, []).append(agreement)
    rows = [_Summary(candidate, some) for candidate, some in by_candidate.items()]
    return sorted(rows, key=lambda s: -s.worst.spearman)


def _summary_table(title: str, compared: Iterable[Agreement]) -> Table:
    rows = []
    for summary in _summaries(compared):
        some = summary.rows
        lost = [a.lost for a in some if a.lost is not None]
        nulls = sum(a.nulls for a in some) / sum(len(a.group.names) for a in some)
        rows.append(
            [
                label(summary.candidate),
                signed(statistics.fmean(a.spearman for a in some)),
                signed(summary.worst.spearman),
                signed(statistics.fmean(a.kendall for a in some)),
                signed(min(a.kendall for a in some)),
                points(statistics.fmean(lost) if lost else None),
                points(max(lost, default=None)),
                str(len(some)),
                f"{100 * nulls:.0f}",
                str(summary.worst.group),
            ]
        )
    headers = (
        *("metric", "Spearman mean", "worst", "Kendall mean", "worst", "selected loses", "at most"),
        *("groups", "nulls %", "worst Spearman at"),
    )
    return Table(title, headers, rows)


def _summaries_by_views(study: Study) -> list[Table]:
    """The two summary tables at each number of views."""
    return [
        _summary_table(f"{who}, q = {q}", [a for a in compared if a.group.q == q])
        for q in sorted({a.group.q for a in [*study.pooled, *study.within]})
        for who, compared in (
            ("All methods together", study.pooled),
            ("Within one method", study.within),
        )
        if compared
    ]


def summary_rows(study: Study) -> list[list[str]]:
    """Mean and worst case of every metric and of the mean ranks, pooled and within a method."""
    rows = []
    for scope, compared in (("pooled", study.pooled), ("within", study.within)):
        for summary in _summaries(a for a in compared if a.candidate[0] not in DENSE):
            name = summary.candidate[0] if len(summary.candidate) == 1 else "agreement"
            lost = [a.lost for a in summary.rows if a.lost is not None]
            rows.append(
                [
                    *(scope, name),
                    signed(statistics.fmean(a.spearman for a in summary.rows)),
                    signed(summary.worst.spearman),
                    points(statistics.fmean(lost) if lost else None),
                    points(max(lost, default=None)),
                    str(summary.worst.group),
                ]
            )
    return rows


def _left_out_table(left_out: Sequence[LeftOut]) -> Table:
    rows = [[r.data, label(r.chosen), signed(r.pooled), signed(r.within)] for r in left_out]
    pooled, within = worst_left_out(left_out)
    rows.append(["worst", "", _goal(pooled, GOAL_POOLED), _goal(within, GOAL_WITHIN)])
    headers = ("set left out", "chosen on the others", "worst pooled on it", "worst within on it")
    return Table("The rule of choice, each set left out in turn", headers, rows)


def candidate_rows(study: Study) -> list[list[str]]:
    """Every candidate of the rule of choice on all sets, by descending margin."""
    return [
        [
            label(candidate),
            str(len(candidate)),
            signed(margin(rows)),
            signed(worst(rows, pooled=True)),
            signed(worst(rows, pooled=False)),
            signed(mean_pooled(rows)),
        ]
        for candidate, rows in ordered_by_margin(study.outcomes)
    ]


def _candidates_table(study: Study) -> Table:
    rows = candidate_rows(study)
    listed = [row for at, row in enumerate(rows) if at < LISTED or row[1] == "1"]
    headers = ("candidate", "metrics", "margin", "worst pooled", "worst within", "mean pooled")
    title = f"The {LISTED} candidates of the largest margin of {len(rows)}, and every metric alone"
    return Table(title, headers, listed)


def _abstaining_tables(study: Study) -> list[Table]:
    """When the rule of `lidar rank` abstains, on groups that count and on those that do not."""
    shown = []
    for title, some in (
        ("groups that count", [*study.pooled, *study.within]),
        ("runs that do not count", study.apart),
    ):
        judged = judged_groups(study, [a for a in some if a.candidate == (study.by,)])
        if not judged:
            continue
        bound = choose_bound(judged)
        counts = some is not study.apart
        rules = [bound.rule, *([opinion_left_out(study).rule] if counts else []), *evaluate(judged)]
        rows = [
            [
                *(one.rule, str(one.settings), str(one.misleading), str(one.abstained)),
                *(points(one.precision), points(one.recall), f"{one.f1:.2f}"),
            ]
            for one in rules
        ]
        others = ", ".join(f"{data} {value:g}" for data, value in bound.left_out.items())
        headers = ("rule", "groups", "misleading", "abstained", "precision %", "recall %", "F1")
        title = f"Abstaining, {title}: bound {bound.bound:g}, with a set left out {others}"
        shown.append(Table(title, headers, rows))
    return [*shown, *_opinions_tables(study)]


class OpinionLeftOut(NamedTuple):
    """The rule on each set, with the second opinion and the bound chosen on the other sets.

    pairs: of each group, whether the two disagree, LiDAR misleads, the second opinion misleads.
    """

    rule: Abstention
    pairs: Sequence[tuple[bool, bool, bool]]


def opinion_left_out(study: Study) -> OpinionLeftOut:
    """The rule as a set that no choice has seen would have it."""
    compared = [*study.pooled, *study.within]
    first = [a for a in compared if a.candidate == (study.by,)]
    judged, said, pairs = [], [], []
    for left_out in study.left_out:
        every = judged_groups(replace(study, chosen=left_out.chosen), first)
        bounds = replace(BOUNDS, agreement=choose_bound(every).left_out[left_out.data])
        for a, one in zip(first, every, strict=True):
            if one.data == left_out.data:
                (second,) = agreements(a.group, [left_out.chosen], LEVEL)
                judged.append(one)
                said.append(bool(reasons(one.facts, bounds, DOUBTS)))
                disagree = "disagreement" in reasons(one.facts, bounds)
                pairs.append((disagree, one.misleading, _misleads(second)))
    return OpinionLeftOut(abstention("opinion left out", judged, said), pairs)


def _opinions_tables(study: Study) -> list[Table]:
    """How often each opinion misleads, where the two disagree and where they do not.

    The first table adds the metric of the highest mean correlation.
    """
    compared = [*study.pooled, *study.within]
    first = [a for a in compared if a.candidate == (study.by,)]
    others = [study.chosen, *({HIGHEST} & {a.candidate for a in compared} - {study.chosen})]
    opinions = [
        {str(a.group): _misleads(a) for a in compared if a.candidate == candidate}
        for candidate in others
    ]
    pairs = [
        (
            "disagreement" in reasons(one.facts),
            one.misleading,
            *(opinion[str(a.group)] for opinion in opinions),
        )
        for one, a in zip(judged_groups(study, first), first, strict=True)
    ]
    title = "Where the two opinions disagree, groups that count"
    chosen = f"{title}, second opinion and bound chosen without the set"
    return [
        _opinions_table(title, [study.by, *map(label, others)], pairs),
        _opinions_table(chosen, [study.by, "second opinion"], opinion_left_out(study).pairs),
    ]


def _opinions_table(title: str, names: Sequence[str], pairs: Iterable[tuple[bool, ...]]) -> Table:
    every, rows = list(pairs), []
    for disagree in (True, False):
        some = [pair[1:] for pair in every if pair[0] is disagree]
        counts = [str(sum(column)) for column in zip(*some, strict=True)] or ["0"] * len(names)
        rows.append(["disagree" if disagree else "do not", str(len(some)), *counts])
    headers = ("the two", "groups", *(f"{name} misleads" for name in names))
    return Table(title, headers, rows)


def _misleads(agreement: Agreement) -> bool:
    accuracies = agreement.group.accuracies
    spread = float(accuracies.max() - accuracies.min())
    lost = 1.0 if agreement.lost is None else agreement.lost / spread if spread else 0.0
    return is_misleading(agreement.spearman, lost)


def judged_groups(study: Study, some: Iterable[Agreement]) -> list[Judged]:
    """Groups with what is known of them without labels, and what the labels say."""

    def optional(numbers: Iterable[float], sign: float = 1.0) -> tuple[float | None, ...]:
        return tuple(None if np.isnan(number) else sign * float(number) for number in numbers)

    # A mean of ranks agrees by construction with each metric that it is the mean of.
    others = tuple(name for name in study.chosen if name != study.by) or study.chosen
    judged = []
    for a in some:
        group, direction = a.group, study.results.directions[study.by]
        same = [
            c
            for c in study.results.checkpoints
            if (c.data, c.layer, c.q) == (group.data, group.layer, group.q)
        ]
        untrained = [
            merit(c.values[study.by], direction)
            for c in same
            if c.kind == "untrained" and group.method in (POOLED, *trained_by(c.method))
        ]
        values = optional(group.merits[study.by])
        facts = Facts(
            by=study.by,
            merits=values,
            n=same[0].n,
            q=group.q,
            d=same[0].d,
            # A merit of noise is its negative.
            noise=optional(group.merits.get("noise_fraction", ()), -1.0),
            second=(label(others), optional(-mean_places(group, [others])[0])),
            untrained=tuple(value for value in untrained if not np.isnan(value)),
        )
        lost = loss_share(values, group.accuracies.tolist())
        judged.append(Judged(group.data, facts, a.spearman, lost))
    return judged


def _seed_row(noise: SeedNoise) -> list[object]:
    numbers = (noise.seeds, noise.images, noise.search)
    texts = [None if number is None else f"{number:.6g}" for number in numbers]
    return [noise.data, noise.layer, noise.q, noise.metric, noise.runs, *texts]


def _seeds_table(seeds: Sequence[SeedNoise]) -> Table:
    views = sorted({noise.q for noise in seeds})
    rows = []
    for noise in seeds:
        if noise.q != views[len(views) // 2]:
            continue  # seeds.csv has all
        numbers = (noise.seeds, noise.images, noise.search)
        texts = [MISSING if number is None else f"{number:.3g}" for number in numbers]
        share = f"{noise.seeds / noise.search:.2f}" if noise.search > 0 else MISSING
        rows.append([noise.metric, noise.layer, str(noise.q), str(noise.runs), *texts, share])
    headers = ("metric", "layer", "q", "runs", "seeds", "images", "search", "seeds / search")
    title = (
        "Standard deviations over training seeds, of sampled images (standard error), and over "
        "the search"
    )
    return Table(title, headers, rows)


def _sweep_tables(layer: str, some: Sequence[Sweep]) -> list[Table]:
    shown = []
    for data, method in dict.fromkeys((s.group.data, s.group.method) for s in some):
        these = [s for s in some if (s.group.data, s.group.method) == (data, method)]
        at = f"{method} on {data}, {layer}, q = {these[0].group.q}"
        headers = ("metric", *(f"{s.hyperparameter} ({len(s.group.names)})" for s in these))

        oracle = [["linear probe", *(points(s.best) for s in these)]]
        recovered, ranks = [], []
        for candidate in these[0].by_candidate:
            row = [(s, s.by_candidate[candidate]) for s in these]
            accuracies = [None if a.lost is None else s.best - a.lost for s, a in row]
            correlations = [f"{signed(a.spearman)} ({signed(a.kendall)})" for _, a in row]
            recovered.append([label(candidate), *map(points, accuracies)])
            ranks.append([label(candidate), *correlations])
        title = "Accuracy of the checkpoint selected, by hyperparameter (runs), in percent"
        shown.append(Table(f"{title}: {at}", headers, oracle + recovered))
        title = "Spearman (Kendall) with the linear probe, by hyperparameter (runs)"
        shown.append(Table(f"{title}: {at}", headers, ranks))
    return shown


def _setting(agreement: Agreement) -> list[object]:
    group = agreement.group
    count = len(group.names)
    spearman = [agreement.spearman, *(agreement.spearman_interval or (None, None))]
    kendall = [agreement.kendall, *(agreement.kendall_interval or (None, None))]
    numbers = [*spearman, *kendall, agreement.lost]
    texts = ["" if number is None else f"{number:.4f}" for number in numbers]
    name = label(agreement.candidate)
    where = [group.data, group.layer, group.q, group.method]
    return [*where, name, count, count - agreement.nulls, *texts]


def _setting_tables(compared: Sequence[Agreement]) -> list[Table]:
    """Every correlation with its interval: a table for each set, layer and method."""
    shown = []
    for data, layer, method in dict.fromkeys(
        (a.group.data, a.group.layer, a.group.method) for a in compared
    ):
        cells: dict[Candidate, list[str]] = {}
        headers = ["metric"]
        for a in compared:
            if (a.group.data, a.group.layer, a.group.method) != (data, layer, method):
                continue
            header = f"q = {a.group.q} ({len(a.group.names)})"
            if header not in headers:
                headers.append(header)
            cells.setdefault(a.candidate, []).append(_with_interval(a))
        rows = [[label(candidate), *texts] for candidate, texts in cells.items()]
        who = "all methods together" if method == POOLED else method
        shown.append(Table(f"Spearman (interval): {data}, {layer}, {who}", headers, rows))
    return shown


def label(candidate: Candidate) -> str:
    """The metric, or the metrics whose ranks are averaged."""
    return " + ".join(candidate)


def points(share: float | None) -> str:
    """A share of 1 in percent."""
    return MISSING if share is None else f"{100 * share:.1f}"


def signed(value: float | None) -> str:
    """A correlation."""
    return MISSING if value is None else f"{value:+.2f}"


def _with_interval(agreement: Agreement) -> str:
    ends = agreement.spearman_interval
    if ends is None:
        return signed(agreement.spearman)
    return f"{agreement.spearman:+.2f} ({ends[0]:+.2f} {ends[1]:+.2f})"
