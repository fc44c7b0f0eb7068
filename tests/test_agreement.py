"""Metrics of a group and the second opinion in a ranking, its reports and the command line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from groups import (
    Rows,
    dense_score,
    drawn,
    scores,
    with_influences,
)
from make import lidar_here
from raising import raises
from scores import score

from lidar_cli.errors import SettingsError
from lidar_cli.features.schema import Layout
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.ranking.baseline import Baseline
from lidar_cli.ranking.comparison import compare_files
from lidar_cli.ranking.correlation import correlate
from lidar_cli.ranking.group_metrics import (
    AGREEMENT_OF,
    ORDERS,
)
from lidar_cli.ranking.order import Row, comparable_groups, unranked_row
from lidar_cli.ranking.race import race_directory
from lidar_cli.ranking.session import Ranking
from lidar_cli.ranking.watch import follow
from lidar_cli.report.baseline import value_text
from lidar_cli.report.group_metrics import main_remarks, remarks
from lidar_cli.report.ranking import View, _print_next, to_csv, to_json, to_markdown
from lidar_cli.report.text import SafeConsole
from lidar_cli.report.verdict import companions, second_choice, verdict
from lidar_cli.scoring.compute import Score
from lidar_cli.settings import CompareSettings, RankSettings

# In a ranking


def rows_of(members: list[Score], by: str) -> list[Row]:
    return [unranked_row(Path(one.file), (), one, ORDERS[by]) for one in members]


def ranking_of(members: list[Score], by: str = "lidar", **more: Any) -> Ranking:
    """The ranking of scores that form one group."""
    rows = rows_of(members, by)
    groups = comparable_groups(rows, ORDERS[by], 0.95)
    return Ranking("", ORDERS[by], 0.95, "images", groups, **more)


def of_three(first: list[float], second: list[float], third: list[float] | None = None) -> Rows:
    """Values of the three metrics of the mean, the third equal if not given; lidar as the first."""
    third = third or [0.5] * len(first)
    return {"lidar": [*first], "stable_rank": [*first], "lidar_corrected": [*second],
            "stability": [*third]}  # fmt: skip


# Ranks 1, 2, 3, 4; 3, 1, 2, 4; 2, 1, 3, 4.
APART = of_three([9.0, 8.0, 7.0, 6.0], [2.0, 9.0, 3.0, 1.0], [0.4, 0.9, 0.3, 0.1])
MEANS = [6 / 3, 4 / 3, 8 / 3, 12 / 3]


def test_a_group_is_ordered_by_it_and_an_equal_value_ties() -> None:
    (group,) = ranking_of(scores(**APART), "agreement").groups
    assert [(row.path, row.rank) for row in group.rows] == [("1", 1), ("0", 2), ("2", 3), ("3", 4)]
    assert [row.value for row in group.rows] == pytest.approx(sorted(MEANS))
    assert group.rows[0].interval.reason == f"no influences of samples on {', '.join(AGREEMENT_OF)}"
    (equal,) = ranking_of(scores(**of_three([2.0, 1.0], [1.0, 2.0])), "agreement").groups
    assert [(row.rank, row.tied_with) for row in equal.rows] == [(1, ("1",)), (1, ("0",))]


def test_a_metric_of_the_group_that_orders_has_a_reason_where_no_checkpoint_has_it() -> None:
    (group,) = ranking_of(scores(**APART), "dse").groups
    assert [row.value for row in group.rows] == [None] * 4
    reason = "it is formed from dse_inter, dse_intra, dse_dim; no dse_inter, dse_intra, dse_dim"
    assert {row.reason for row in group.rows} == {reason}


def test_one_checkpoint_has_no_second_opinion() -> None:
    (group,) = ranking_of(scores(lidar=[2.0], rankme=[1.0])).groups
    assert companions(group, ORDERS["lidar"]) == ["rankme"]


def test_each_group_has_ranks_of_its_own() -> None:
    wide = [replace(one, dim=9, file=f"wide {one.file}") for one in scores(**APART)[:2]]
    first, second = ranking_of([*scores(**APART), *wide], "agreement").groups
    assert [row.value for row in first.rows] == pytest.approx(sorted(MEANS))
    assert [row.value for row in second.rows] == pytest.approx([4 / 3, 5 / 3])


def test_an_incomplete_group_has_none() -> None:
    rows = rows_of(scores(**APART), "lidar")
    (group,) = comparable_groups(rows, ORDERS["lidar"], 0.95, complete=False)
    assert all(row.score.value("agreement") is None for row in group.rows)
    assert companions(group, ORDERS["lidar"]) == ["lidar_corrected"]


def test_the_verdict_names_what_the_second_opinion_selects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("rank", "runs", "-q", "4")
    ranking = ranking_of(scores(**APART), command=words)
    assert verdict(ranking).endswith(
        " lidar and agreement choose different checkpoints: compare 0 with 1."
    )
    assert companions(ranking.groups[0], ORDERS["lidar"]) == ["agreement"]
    (record,) = json.loads(to_json(ranking))["second_opinion"]
    assert record == {
        "group": 1, "metric": "agreement", "first": ["1"], "differs": True,
        "command": "lidar compare 0 1 -q 4",
    }  # fmt: skip
    swapped = ranking_of(scores(**APART), "agreement")
    assert "agreement and lidar choose different checkpoints: compare 1 with 0." in verdict(swapped)
    same = ranking_of(scores(**of_three([9.0, 8.0], [9.0, 8.0])))
    assert "choose different" not in verdict(same)
    shared = ranking_of(scores(**of_three([9.0, 8.0], [8.0, 9.0])))  # agreement 1.5 of both
    assert "choose different" not in verdict(shared)
    for room in ("ranking", "report"):
        monkeypatch.setattr(f"lidar_cli.{room}.group_metrics.SECOND_OPINION", "stability")
    assert "lidar and stability choose different checkpoints: compare 0 with 1." in verdict(ranking)


def test_checkpoints_that_tie_by_either_metric_are_no_disagreement() -> None:
    _, columns = drawn([0.0] * 3, 1.0, 100, 5)["lidar"]
    lidar, wide = [9.0, 8.0, 7.0], [column * 100 for column in columns]
    other = [2.0, 9.0, 8.5]  # agreement 7/3, 4/3, 7/3

    def members(influences: list[Any]) -> list[Score]:
        first, second = (lidar, columns), (other, influences)
        return with_influences(
            lidar=first, stable_rank=first, lidar_corrected=second, stability=second
        )

    assert "choose different" in verdict(ranking_of(members(columns)))
    assert "choose different" not in verdict(ranking_of(members(wide)))


def test_one_of_several_that_the_second_opinion_selects_may_tie_with_the_first() -> None:
    same, other = (drawn([0.0], 1.0, 100, seed)["lidar"][1][0] for seed in (5, 6))
    lidar = ([8.0, 9.0, 9.0, 7.0, 6.0], [])  # ranks 3, 1.5, 1.5, 4, 5
    corrected = ([50.0, 20.0, 10.0, 40.0, 30.0], [same, same, other * 1000, same, same])
    members = with_influences(lidar=lidar, stable_rank=lidar, lidar_corrected=corrected)
    ranking = ranking_of(members, "agreement")
    first = ranking.groups[0].rows[0]
    assert (first.path, first.value) == ("0", 2.0)
    assert "2" in first.tied_with
    assert "1" not in first.tied_with
    choice = second_choice(ranking.groups[0], ranking)
    assert (choice.metric, choice.first, choice.theirs) == ("lidar", ("1", "2"), None)


def test_json_says_what_it_was_computed_over_and_how_stable_it_is() -> None:
    rows = of_three([4.0, 3.0, 1.0, 2.0], [2.0, 4.0, 3.0, 1.0])
    document = json.loads(to_json(ranking_of(scores(**rows))))
    assert document["group_metrics"] == [
        {
            "group": 1, "metric": "agreement", "of": [*AGREEMENT_OF], "checkpoints": 4,
            "paths": ["0", "1", "3", "2"], "first": ["1"], "left_out": 3, "first_changes": 1,
            "not_resampled": f"no influences of samples on {', '.join(AGREEMENT_OF)}",
        }
    ]  # fmt: skip
    # Ranks 1, 2, 3, 4 of the first; 3, 1, 4, 2 of the second; 2.5 of the third.
    assert [row["metrics"]["agreement"] for row in document["checkpoints"]] == pytest.approx(
        [6.5 / 3, 5.5 / 3, 9.5 / 3, 8.5 / 3]
    )
    dense = [dense_score(*one) for one in ((1.0, 0.0, 0.5), (3.0, 1.0, 0.9), (2.0, 0.5, 0.2))]
    dense = [replace(one, file=str(at)) for at, one in enumerate(dense)]
    document = json.loads(to_json(ranking_of(dense, "dse")))
    (record,) = document["group_metrics"]
    assert record["of"] == ["dse_inter", "dse_intra", "dse_dim"]
    assert record["weight"] == pytest.approx(np.std([1.0, 2.0, 1.5]) / np.std([0.5, 0.9, 0.2]))
    assert [row["path"] for row in document["checkpoints"]] == ["1", "2", "0"]


def test_a_terminal_shows_the_command_that_compares_the_two() -> None:
    out = SafeConsole(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    _print_next(out, ranking_of(scores(**APART), command=("rank", "runs")), View())
    first, second = out.file.getvalue().strip().splitlines()
    assert first.split() == ["next", "lidar", "compare", "0", "1"]
    assert second.endswith("all 16 metrics: --all")
    out = SafeConsole(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    _print_next(out, ranking_of(scores(**of_three([2.0, 1.0], [2.0, 1.0]))), View())
    assert "compare" not in out.file.getvalue()


def test_csv_markdown_and_correlations_have_it() -> None:
    ranking = ranking_of(scores(**APART), "agreement")
    header, *lines = to_csv(ranking).splitlines()
    at = header.split(",").index("agreement")
    values = [float(line.split(",")[at]) for line in lines]
    assert values == pytest.approx(sorted(MEANS))
    assert "| agreement |" in to_markdown(ranking).splitlines()[2]
    members = [row.score for row in ranking.groups[0].rows]
    actual = {one.metric: one for one in correlate(members, [0.4, 0.3, 0.2, 0.1])}
    assert actual["agreement"].spearman == pytest.approx(1.0)  # lower is better
    assert "agreement" not in {one.metric for one in correlate(scores(**APART), [4.0, 3, 2, 1])}


def test_an_untrained_network_has_no_value_of_a_group() -> None:
    one = Baseline("untrained", "resnet18", "projector", 0, scores=(score("x", lidar=2.0),) * 3)
    assert value_text(one, "agreement") == "untrained: no agreement: it has no rank"
    assert value_text(one, "lidar").startswith("an untrained resnet18 has lidar 2.000")


def test_how_stable_the_first_is_is_printed() -> None:
    rows = of_three([4.0, 3.0, 1.0, 2.0], [2.0, 4.0, 3.0, 1.0])
    expected = "leaving out one of the other 3 changes the first by agreement in 1 of 3 cases"
    for by in ("lidar", "agreement"):
        ranking = ranking_of(scores(**rows), by)
        assert list(main_remarks(ranking.groups[0], ranking)) == [expected]
    stable = of_three([4.0, 3.0, 2.0], [4.0, 3.0, 2.0])
    calm = {by: ranking_of(scores(**stable), by) for by in ("lidar", "agreement")}
    assert not list(main_remarks(calm["lidar"].groups[0], calm["lidar"]))
    (text,) = main_remarks(calm["agreement"].groups[0], calm["agreement"])
    assert text == "leaving out any one of the other 2 keeps the first by agreement"


def test_a_missing_part_of_the_second_opinion_is_said_below_the_table() -> None:
    rows = of_three([4.0, 3.0, 2.0], [4.0, 3.0, 2.0], [0.4, 0.3, None])
    rows["lidar_corrected"][1] = rows["stability"][1] = None
    ranking = ranking_of(scores(**rows))
    texts = list(main_remarks(ranking.groups[0], ranking))
    assert texts[0].startswith("1: no agreement: it is formed from ")
    assert "no lidar_corrected, stability" in texts[0]
    assert texts[1] == "2: agreement is of stable_rank and lidar_corrected alone: no stability"
    none = ranking_of(scores(lidar=[2.0, 1.0], stable_rank=[1.0, 2.0]))
    (text,) = main_remarks(none.groups[0], none)
    assert text.startswith("all: no agreement: ")


def test_a_part_that_is_not_resampled_is_named() -> None:
    parts = drawn([3.0, 2.9], 5.0, 50, 1, "stable_rank")
    members = with_influences(**parts, lidar_corrected=([1.0, 2.0], []))
    ranking = ranking_of(members, "agreement")
    (text,) = [text for text in remarks(ranking.groups[0], ranking) if "ties by" in text]
    assert text == (
        "ties by agreement: no influences of samples on lidar_corrected, so the order by these is "
        "always the same"
    )


# In a process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three feature files; one has more noise, one less signal."""
    folder = tmp_path_factory.mktemp("agreement")
    rng = np.random.default_rng(3)
    signal, noise = rng.normal(size=(90, 1, 5)), rng.normal(size=(90, 4, 5))
    scales = {"one": (3.0, 1.0), "two": (3.0, 2.5), "three": (0.3, 1.0)}
    for name, (a, b) in scales.items():
        layout = Layout({"backbone": 5}, 90, 4, 90)
        path, ids = folder / "runs" / f"{name}.h5", [str(i) for i in range(90)]
        path.parent.mkdir(exist_ok=True)
        with FeatureWriter.create(path, layout, ids, None, {"seed": 0, "data": "x"}) as writer:
            views = torch.from_numpy(a * signal * np.arange(1, 6) + b * noise).float()
            writer.write(range(90), {"backbone": views}, {"backbone": views[:, 0]})
            writer.finish()
    return folder


@pytest.fixture
def lidar(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    monkeypatch.chdir(folder)
    return partial(lidar_here, monkeypatch=monkeypatch, capfd=capfd)


def test_rank_orders_by_it_with_ties_of_the_stored_influences(lidar: Callable[..., Any]) -> None:
    words = ["rank", "runs", "--device", "cpu", "--by", "agreement"]
    done = lidar(*words, "--json")
    document = json.loads(done.stdout)
    rows = document["checkpoints"]
    metrics = {row["path"]: row["metrics"] for row in rows}
    columns = [{path: one[name] for path, one in metrics.items()} for name in AGREEMENT_OF]
    for row in rows:
        better = [sum(v > column[row["path"]] for v in column.values()) for column in columns]
        assert row["value"] == row["metrics"]["agreement"]
        assert row["value"] == pytest.approx(1 + sum(better) / len(better))
        assert row["ci_low"] is row["ci_high"] is None  # it is of ranks
    assert [row["value"] for row in rows] == sorted(row["value"] for row in rows)
    (record,) = document["group_metrics"]
    assert (record["of"], record["checkpoints"]) == (list(AGREEMENT_OF), 3)
    assert record["not_resampled"] is None
    again = lidar(*words, "--json")  # from the influences that are stored
    assert json.loads(again.stdout)["checkpoints"] == rows
    paths = [row["path"] for row in rows]
    assert lidar(*words, "--quiet", "--top", 2).stdout.split() == paths[:2]
    table = lidar(*words)
    assert table.stdout.splitlines()[2].split()[:3] == ["#", "checkpoint", "agreement"]
    assert "leaving out any one of the other 2 keeps the first by agreement" in table.stderr
    markdown = lidar(*words, "--markdown").stdout
    for row in rows:
        assert f"| {row['value']:.1f} |" in markdown
    default = lidar("rank", "runs", "--device", "cpu")
    assert default.stdout.splitlines()[2].split()[-1] == "agreement"


def test_the_page_and_an_oracle_have_it(folder: Path, lidar: Callable[..., Any]) -> None:
    (folder / "accuracy.csv").write_text("path,accuracy\none,0.5\ntwo,0.4\nthree,0.3\n")
    done = lidar("rank", "runs", "--device", "cpu", "--by", "agreement", "--oracle",
                 "accuracy.csv", "--report", "page.html", "--per-run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("agreement ") for line in done.stdout.splitlines())
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "Ordered by agreement, lower is better" in page
    assert "<small> (" not in page  # agreement has no interval
    assert "lidar explain agreement" in page


@pytest.mark.parametrize(
    "words",
    [
        ("rank", "runs", "--race", "--by", "agreement"),
        ("rank", "runs", "--watch", "--by", "dse"),
        ("compare", "runs/one.h5", "runs/two.h5", "--by", "agreement"),
        ("compare", "runs/one.h5", "runs/two.h5", "--metrics", "agreement"),
        ("score", "runs/one.h5", "--metrics", "lidar,agreement"),
    ],
    ids=" ".join,
)
def test_what_has_no_complete_group_refuses_it(
    lidar: Callable[..., Any], words: tuple[str, ...]
) -> None:
    done = lidar(*words)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert ": it is formed from all checkpoints of a " in line
    assert " does not have; " in line
    assert f":  lidar rank FOLDER --by {words[-1].split(',')[-1]}" in line


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--by", "dse"), "--by dse: it is measured on patch tokens alone; add --layer patches"),
        (
            ("--columns", "rankme,dse", "--layer", "backbone"),
            "--columns dse: it is measured on patch tokens alone; add --layer patches",
        ),
        (
            ("--metrics", "agreement"),
            "--metrics agreement: rank forms it from other metrics even if it is not named; leave "
            "it out, or show it: --columns agreement",
        ),
        (
            ("--race", "--columns", "agreement"),
            "--columns and --race exclude each other; give one",
        ),
    ],
    ids=["by", "columns", "metrics", "race"],
)
def test_what_rank_cannot_form_is_refused_before_the_work(
    lidar: Callable[..., Any], words: tuple[str, ...], error: str
) -> None:
    done = lidar("rank", "runs", *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {error}\n")


def test_functions_refuse_it_too(folder: Path) -> None:
    settings = {"by": "agreement", "device": "cpu"}
    with raises(SettingsError, "of-a-group"):
        race_directory([folder], RankSettings(**settings))
    with raises(SettingsError, "of-a-group"):
        next(follow([folder], RankSettings(**settings)))
    two = [folder / "runs/one.h5", folder / "runs/two.h5"]
    with raises(SettingsError, "of-a-group"):
        compare_files(two, CompareSettings(**settings))
