"""Probes with a few labels a class: draws, the nearest class mean, and the orders compared."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pytest
import torch
from make import checkpoint, image_folder, lidar, lidar_here
from raising import raises
from scipy.stats import spearmanr
from scores import score
from terminal import in_terminal

from lidar_cli.core.metrics import METRICS, default_metrics
from lidar_cli.errors import FeatureFileError, InputError
from lidar_cli.features.schema import Layout
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.probing.data import rows_of_tensor, split
from lidar_cli.probing.few_shot import (
    DRAWS,
    FewShotResult,
    allows_full_probe,
    draw_images,
    few_shot_file,
    nearest_mean_accuracies,
)
from lidar_cli.ranking.correlation import correlate, interval_over_draws, spearman
from lidar_cli.ranking.few_labels import FewLabels, compare_few_labels
from lidar_cli.ranking.oracle import GroupComparison, Oracle, select
from lidar_cli.ranking.order import comparable_groups, unranked_row
from lidar_cli.ranking.session import Ranking
from lidar_cli.report.oracle import few_labels_text, table, to_markdown
from lidar_cli.report.text import broken_header, column_widths
from lidar_cli.report.verdict import verdict

CPU = torch.device("cpu")
Shell = Callable[..., subprocess.CompletedProcess[str]]


def clustered(n: int, d: int, n_classes: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(n_classes, d, generator=generator)
    labels = torch.arange(n) * 7 % n_classes
    return centres[labels] + spread * torch.randn(n, d, generator=generator), labels


def feature_file(path: Path, clean: torch.Tensor, labels: list[int] | None) -> Path:
    layout = Layout({"backbone": clean.shape[1]}, 0, 0, len(clean))
    ids = [str(i) for i in range(len(clean))]
    provenance: dict[str, Any] = {"sha256": "a", "samples_sha256": "b", "image_size": 32}
    with FeatureWriter.create(path, layout, ids, labels, provenance) as writer:
        nothing = torch.empty(0, 0, clean.shape[1])
        writer.write(range(len(clean)), {"backbone": nothing}, {"backbone": clean})
        return writer.finish()


# Draws


def test_a_draw_has_k_images_of_each_class() -> None:
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 0, 2, 1, 1])
    drawn = draw_images(labels, 3, 2, 5, seed=0)
    assert drawn.shape == (5, 6)
    for row in drawn:
        assert labels[row].tolist() == [0, 0, 1, 1, 2, 2]
        assert len(set(row.tolist())) == 6
    assert len({tuple(row.tolist()) for row in drawn}) > 1
    assert torch.equal(drawn, draw_images(labels, 3, 2, 5, seed=0))
    assert not torch.equal(drawn, draw_images(labels, 3, 2, 5, seed=1))


def test_every_image_of_a_class_is_drawn_alike_often() -> None:
    labels = torch.tensor([0] * 5 + [1] * 10)
    drawn = draw_images(labels, 2, 2, 4000, seed=0)
    counts = drawn.flatten().bincount(minlength=15) / 4000
    # Shares k / n_c; the standard error is at most sqrt(0.24 / 4000) = 0.008.
    assert counts[:5].tolist() == pytest.approx([0.4] * 5, abs=0.04)
    assert counts[5:].tolist() == pytest.approx([0.2] * 10, abs=0.04)


# The classifier


def literal_accuracy(rows: np.ndarray, labels: np.ndarray, drawn: np.ndarray) -> float:
    std = rows.std(0)
    scaled = [
        [(x - m) / s if s > 0 else 0.0 for x, m, s in zip(row, rows.mean(0), std, strict=True)]
        for row in rows
    ]
    unit = np.array([np.array(row) / np.linalg.norm(row) for row in scaled])
    means = [unit[[i for i in drawn if labels[i] == c]].mean(0) for c in sorted(set(labels))]
    hits = [
        int(np.argmin([np.linalg.norm(unit[i] - mean) for mean in means])) == labels[i]
        for i in range(len(rows))
        if i not in drawn
    ]
    return sum(hits) / len(hits)


def test_the_accuracy_is_that_of_the_literal_nearest_mean() -> None:
    rows, labels = clustered(90, 6, 3, 1.5)
    rows = rows * torch.tensor([1.0, 30.0, 0.1, 1.0, 1.0, 1.0]) + 5.0
    rows[:, 3] = 2.0  # constant: it must not count
    drawn = draw_images(labels, 3, 2, 7, seed=3)
    actual = nearest_mean_accuracies(rows_of_tensor(rows), labels, 3, drawn)
    expected = [
        literal_accuracy(rows.double().numpy(), labels.numpy(), row) for row in drawn.numpy()
    ]
    assert actual == pytest.approx(expected)
    assert len(set(actual)) > 1


def test_two_classes_on_two_sides_by_hand() -> None:
    # Standardised and of unit length these are -1 and 1: nearest to -1 are the first two alone.
    rows = torch.tensor([[-3.0], [-1.0], [1.0], [2.0], [0.5], [-2.0]])
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    (accuracy,) = nearest_mean_accuracies(rows_of_tensor(rows), labels, 2, torch.tensor([[0, 2]]))
    assert accuracy == 3 / 4  # row 5 is of class 1, on the side of class 0


def test_embeddings_that_are_not_finite_are_refused() -> None:
    rows, labels = clustered(20, 3, 2, 1.0)
    rows[4, 1] = torch.nan
    with raises(InputError, "not-finite"):
        nearest_mean_accuracies(rows_of_tensor(rows), labels, 2, torch.tensor([[0, 1]]))


# Files


def test_files_with_the_same_labels_have_the_same_draws(tmp_path: Path) -> None:
    rows, labels = clustered(60, 4, 3, 1.0)
    given = [10 * label if i else -1 for i, label in enumerate(labels.tolist())]  # one unknown
    a = feature_file(tmp_path / "a.h5", rows, given)
    b = feature_file(tmp_path / "b.h5", rows * 2.0 + 1.0, given)  # which scaling undoes
    first, second = (
        few_shot_file(file, "backbone", 2, 0, CPU, of_training=False) for file in (a, b)
    )
    assert (first.n_classes, first.n_train, first.n_test) == (3, 6, 53)
    assert len(first.accuracies) == DRAWS
    assert second.accuracies == pytest.approx(first.accuracies)
    drawn = draw_images(labels[1:], 3, 2, DRAWS, seed=0)
    expected = nearest_mean_accuracies(rows_of_tensor(rows[1:]), labels[1:], 3, drawn)
    assert first.accuracies == pytest.approx(expected)


def test_draws_use_no_test_image_of_the_full_probe(tmp_path: Path) -> None:
    rows, labels = clustered(200, 4, 2, 1.5)
    train, test = split(200, 0.2, seed=0)
    spoiled = rows.clone()
    spoiled[test] = 1e4 * torch.randn(len(test), 4, generator=torch.Generator().manual_seed(1))
    results = [
        few_shot_file(
            feature_file(tmp_path / f"{name}.h5", clean, labels.tolist()),
            "backbone", 2, 0, CPU, of_training=True,
        )
        for name, clean in (("a", rows), ("b", spoiled))
    ]  # fmt: skip
    assert results[0].accuracies == results[1].accuracies
    assert results[0].n_train + results[0].n_test == len(train)


def test_a_full_probe_judges_where_it_has_ten_times_the_labels(tmp_path: Path) -> None:
    rows, labels = clustered(100, 4, 2, 1.5)
    file = feature_file(tmp_path / "a.h5", rows, labels.tolist())
    assert allows_full_probe(file, "backbone", 5, 0, CPU)  # 100 = 10 x 5 x 2
    assert not allows_full_probe(file, "backbone", 6, 0, CPU)
    rare = feature_file(tmp_path / "b.h5", rows, [0] * 97 + [1] * 3)
    # Of three images of a class, the training part of the split has two at most in some splits.
    _, test = split(100, 0.2, seed=0)
    in_training = 3 - int((test >= 97).sum())
    assert allows_full_probe(rare, "backbone", 2, 0, CPU) == (in_training > 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0] * 17 + [1] * 3, "a class has 3 of the 20 labelled images; expected 4 of every class"),
        ([5] * 20, "the 20 labelled images are of one class; expected two"),
        ([-1] * 20, "the 0 labelled images are of no class; expected two"),
    ],
)
def test_too_few_labels_are_one_line(tmp_path: Path, labels: list[int], message: str) -> None:
    file = feature_file(tmp_path / "a.h5", torch.randn(20, 4), labels)
    with raises(InputError, "few-labels") as raised:
        few_shot_file(file, "backbone", 3, 0, CPU, of_training=False)
    assert message in str(raised.value)


# Orders compared


def test_the_interval_of_equal_draws_is_that_of_one(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    y = list(generator.normal(size=12))
    x = [v + generator.normal() for v in y]
    scores = [score(str(i), lidar=value) for i, value in enumerate(x)]
    (lidar,) = (one for one in correlate(scores, y) if one.metric == "lidar")
    assert interval_over_draws([x] * 20, y, 0.95, 0) == pytest.approx(lidar.spearman_interval)
    assert spearman(x, y) == pytest.approx(lidar.spearman)
    # Draws that differ add their spread.
    low, high = interval_over_draws([x, list(generator.normal(size=12))], y, 0.95, 0)
    assert high - low > np.subtract(*lidar.spearman_interval[::-1])
    assert interval_over_draws([x[:7]] * 20, y[:7], 0.95, 0) is None


def example() -> tuple[dict[str, Any], FewLabels]:
    """Ten checkpoints: lidar agrees with the full probe a little, rankme not, pillai is null."""
    generator = np.random.default_rng(1)
    full = {f"{i}.pt": 0.3 + 0.05 * i for i in range(10)}
    results, scores = {}, {}
    for path, accuracy in full.items():
        each = tuple(accuracy - 0.1 + 0.12 * generator.normal(size=DRAWS))
        results[path] = FewShotResult(path, each, 10, 50, 700)
        lidar, rankme = accuracy + 0.1 * generator.normal(), generator.normal()
        scores[path] = score(path, lidar=lidar, rankme=rankme, noise_fraction=-lidar)
    return scores, FewLabels(5, results, True, full, "linear probe")


def test_few_labels_are_compared_with_metrics_draw_by_draw() -> None:
    scores, few = example()
    actual = compare_few_labels(scores, few, 0.95, 0)
    assert actual is not None
    full = list(few.full.values())
    draws = np.array(list(few.accuracies.values())).T  # [R, K]
    rhos = [spearmanr(draw, full).statistic for draw in draws]
    assert actual.by_draw == pytest.approx(rhos)
    assert actual.spearman == pytest.approx(fmean(rhos))
    low, high = actual.interval
    assert low < actual.spearman < high <= 1
    assert actual.accuracy == pytest.approx(fmean(full[int(draw.argmax())] for draw in draws))
    by_name = {one.metric: one for one in actual.metrics}
    for name in ("lidar", "rankme"):
        values = [scores[path].value(name) for path in few.full]
        rho = spearmanr(values, full).statistic
        assert by_name[name].spearman == pytest.approx(rho)
        assert by_name[name].labels_win == sum(draw > rho for draw in rhos)
        assert by_name[name].accuracy == full[int(np.argmax(values))]
    assert by_name["noise_fraction"].labels_win == by_name["lidar"].labels_win  # lower is better
    assert by_name["pillai"].labels_win is None
    best = max(one.spearman for one in actual.metrics if one.spearman is not None)
    assert actual.win_all == sum(draw > best for draw in rhos)
    assert 0 < actual.win_all < DRAWS


def test_the_best_by_few_labels_is_tied_where_the_paired_difference_holds_zero() -> None:
    scores, few = example()
    actual = compare_few_labels(scores, few, 0.9, 0)
    means = {path: fmean(each) for path, each in few.accuracies.items()}
    assert few.means == means
    assert actual.best == max(means, key=lambda path: means[path])
    tied = []
    for path, each in few.accuracies.items():
        gaps = np.subtract(few.accuracies[actual.best], each)
        if path != actual.best and np.quantile(gaps, 0.05) <= 0:
            tied.append(path)
        assert actual.spans[path] == pytest.approx(tuple(np.quantile(each, [0.05, 0.95])))
    assert actual.tied_with_best == tuple(tied)
    assert 0 < len(tied) < 9


def test_a_metric_without_a_value_of_some_checkpoints_is_compared_over_the_others() -> None:
    scores, few = example()
    paths = list(scores)
    scores[paths[0]] = score(paths[0], rankme=1.0)
    (lidar,) = (m for m in compare_few_labels(scores, few, 0.95, 0).metrics if m.metric == "lidar")
    full = [few.full[path] for path in paths[1:]]
    rho = spearmanr([scores[path].value("lidar") for path in paths[1:]], full).statistic
    draws = np.array([few.accuracies[path] for path in paths[1:]]).T
    assert (lidar.count, lidar.spearman) == (9, pytest.approx(rho))
    assert lidar.labels_win == sum(spearmanr(draw, full).statistic > rho for draw in draws)


def test_a_metric_of_few_checkpoints_is_beaten_over_these() -> None:
    """Over three checkpoints a metric agrees perfectly; so do the few labels in many draws."""
    scores, few = example()
    paths = list(scores)
    for path in paths[3:]:
        scores[path] = score(path, rankme=scores[path].value("rankme"))
    for path, value in zip(paths[:3], (1.0, 3.0, 2.0), strict=True):
        scores[path] = score(path, lidar=value, rankme=scores[path].value("rankme"))

    def beaten(name: str) -> list[bool]:
        have = [path for path in paths if scores[path].value(name) is not None]
        full = [few.full[path] for path in have]
        rho = spearmanr([scores[path].value(name) for path in have], full).statistic
        each = zip(*(few.accuracies[path] for path in have), strict=True)
        return [spearmanr(draw, full).statistic > rho for draw in each]

    actual = compare_few_labels(scores, few, 0.95, 0)
    both = [a and b for a, b in zip(beaten("lidar"), beaten("rankme"), strict=True)]
    assert actual.win_all == sum(both)
    assert actual.win_all <= min(m.labels_win for m in actual.metrics if m.labels_win is not None)
    assert actual.win_all > 0


def test_without_a_full_probe_only_the_order_by_labels_is_there() -> None:
    scores, few = example()
    alone = FewLabels(5, few.results, False, {}, "")
    actual = compare_few_labels(scores, alone, 0.95, 0)
    assert (actual.metrics, actual.spearman, actual.win_all) == ((), None, None)
    assert actual.best == compare_few_labels(scores, few, 0.95, 0).best
    assert compare_few_labels(dict(list(scores.items())[:1]), few, 0.95, 0) is None


# What is printed


def ranked(scores: dict[str, Any]) -> Ranking:
    by = METRICS["lidar"]
    rows = [unranked_row(Path(path), (), one, by) for path, one in scores.items()]
    return Ranking("", by, 0.95, "images", comparable_groups(rows, by, 0.95))


def judged(few: FewLabels, scores: dict[str, Any]) -> Oracle:
    one = {path: (scores[path], mean) for path, mean in few.means.items()}
    comparison = GroupComparison(
        correlate(list(scores.values()), list(few.means.values())),
        select(one),
        (),
        compare_few_labels(scores, few, 0.95, 0),
    )
    return Oracle("probe", few.method, 0.95, few.means, (comparison,), (), (), few)


def test_the_table_and_its_sentences() -> None:
    scores, few = example()
    ranking, oracle = ranked(scores), judged(few, scores)
    (comparison,) = oracle.comparisons
    here = comparison.few_labels
    headers, rows = table(oracle, comparison, comparison.selection, ranking)
    assert headers == [
        "metric", "5 a class", "95 %", "full probe", "95 %", "selected", "labels win",
    ]  # fmt: skip
    cells = {row[0]: row[1:] for row in rows}
    listed = [name for name in METRICS if name in default_metrics()]
    assert list(cells) == ["(5 a class)", *listed, "(best)", "(median)"]
    assert cells["(5 a class)"][2] == f"{here.spearman:+.2f}"
    lidar = next(one for one in here.metrics if one.metric == "lidar")
    assert cells["lidar"][2:] == [
        f"{lidar.spearman:+.2f}",
        "{:+.2f} {:+.2f}".format(*lidar.interval),
        f"{100 * lidar.accuracy:.1f}",
        str(lidar.labels_win),
    ]
    means = [few.means[path] for path in scores]
    rho = spearmanr([one.value("lidar") for one in scores.values()], means).statistic
    assert cells["lidar"][0] == f"{rho:+.2f}"
    assert cells["(best)"][4] == f"{100 * max(few.full.values()):.1f}"
    assert cells["(median)"][4] == f"{100 * median(few.full.values()):.1f}"
    widths = column_widths([broken_header(header) for header in headers], rows)
    assert sum(widths) + 2 * (len(widths) - 1) <= 80
    text = few_labels_text(oracle, comparison, ranking)
    assert text.startswith(
        f"5 labels a class agree with the full probe better than every metric in {here.win_all} "
        f"of 20 draws, better than lidar in {lidar.labels_win}. By 5 labels a class 9"
    )
    assert text.endswith("points between draws. Full probe: linear probe.")
    marked = to_markdown(oracle, ranking)
    assert text in marked
    assert "| metric | 5 a class | 95 % | full probe | 95 % | selected | labels win |" in marked
    assert "Its accuracy with 5 labels a class is" in verdict(ranking, oracle)


def test_without_a_full_probe_the_table_is_the_usual_one() -> None:
    scores, few = example()
    oracle = judged(replace(few, full={}, full_method="no full probe judges this"), scores)
    (comparison,) = oracle.comparisons
    headers, _ = table(oracle, comparison, comparison.selection, ranked(scores))
    assert headers[:2] == ["metric", "Spearman"]
    text = few_labels_text(oracle, comparison, ranked(scores))
    assert text.startswith("By 5 labels a class 9")
    assert text.endswith("No full probe judges this.")


# From the command line


N, Q, SIZE, EACH = 60, 2, 16, 2
SMALL = ["-n", N, "-q", Q, "--image-size", SIZE, "--device", "cpu", "--batch-size", 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes, and checkpoints."""
    folder = tmp_path_factory.mktemp("few")
    image_folder(folder / "images", N, classes=["cat", "dog"])
    for seed in range(3):
        checkpoint(folder / f"runs/{seed}/last.pt", seed)
    return folder


@pytest.fixture
def rank(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    def run(*more: object) -> subprocess.CompletedProcess[str]:
        words = ["rank", folder / "runs", "--data", folder / "images", *SMALL, *more]
        return lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)

    return run


def test_ranking_against_a_few_labels(rank: Shell) -> None:
    done = rank("--oracle", "probe", "--labels-per-class", EACH, "--json")
    assert done.returncode == 0, done.stderr
    correlation = json.loads(done.stdout)["correlation"]
    few, (group,) = correlation["few_labels"], correlation["groups"]
    assert (few["per_class"], few["n_draws"]) == (EACH, DRAWS)
    assert few["draws"].keys() == few["full"].keys() == correlation["accuracies"].keys()
    assert correlation["accuracies"] == pytest.approx(
        {path: fmean(each) for path, each in few["draws"].items()}
    )
    # 48 training images of the full probe less 4.
    method = "2 labelled images of each of 2 classes, mean of 20 draws, tested on 44 others"
    assert method in correlation["told"]
    assert "48 training and 12 test images of 2 classes" in few["full_method"]
    here = group["few_labels"]
    names = [one["metric"] for one in group["metrics"]]
    assert [one["metric"] for one in here["metrics"]] == names
    assert set(names) >= {*default_metrics(), "agreement"}
    assert here["best"] == max(few["draws"], key=lambda path: fmean(few["draws"][path]))
    assert len(here["by_draw"]) == DRAWS


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (["--oracle", "probe", "--labels-per-class", 30], 3, "a class has 30 of the 60 labelled"),
        (["--oracle", "probe", "--labels-per-class", 0], 2, "labels-per-class"),
        (["--oracle", "probe", "--labels-per-class", "few"], 2, "labels-per-class"),
        (["--labels-per-class", 5], 2, "add --oracle probe"),
    ],
)
def test_mistakes_are_one_line(rank: Shell, more: list, status: int, message: str) -> None:
    done = rank(*more)
    assert (done.returncode, done.stdout) == (status, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert "lidar" not in done.stderr.replace(error, "")  # no checkpoint was scored before


@pytest.mark.nightly
def test_every_form_and_80_columns(folder: Path, rank: Shell, tmp_path: Path) -> None:
    for seed in range(3, 9):
        checkpoint(folder / f"runs/{seed}/last.pt", seed)
    words = ["--oracle", "probe", "--labels-per-class", EACH]
    text = rank(*words, "--report", tmp_path / "page.html").stdout
    said = "2 labels a class agree with the full probe better than every metric in"
    assert said in text
    assert said in (tmp_path / "page.html").read_text()
    assert said in rank(*words, "--markdown").stdout
    _, lines = in_terminal(["rank", "runs", "--data", "images", *SMALL, *words], folder)
    start = next(at for at, line in enumerate(lines) if "agree with the full probe" in line)
    assert max(map(len, lines[start:])) <= 80
    table_at = next(at for at, line in enumerate(lines) if line.startswith("metric"))
    rows = {line.split()[0] for line in lines[table_at:] if line}
    assert rows >= {"lidar", "rankme", "(2", "(best)", "(median)"}


@pytest.mark.nightly
def test_labels_that_are_too_few_or_missing(folder: Path, rank: Shell) -> None:
    words = ["--oracle", "probe", "--labels-per-class", 4]
    correlation = json.loads(rank(*words, "--json").stdout)["correlation"]
    assert correlation["few_labels"]["full"] is None
    assert correlation["few_labels"]["full_method"] == (
        "no full probe judges this: it takes 80 labelled images, of 60 here"
    )
    assert "tested on 52 others" in correlation["told"]
    assert "No full probe judges this: it takes 80 labelled images" in rank(*words).stdout
    image_folder(folder / "flat", N)
    flat = lidar("rank", "runs", "--data", "flat", *SMALL, *words, cwd=folder)
    assert (flat.returncode, flat.stdout) == (3, "")
    assert "has no labels" in flat.stderr.splitlines()[-1]


def test_a_file_that_is_damaged_is_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "a.h5"
    damaged.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    with pytest.raises(FeatureFileError):
        few_shot_file(damaged, "backbone", 2, 0, CPU, of_training=False)
