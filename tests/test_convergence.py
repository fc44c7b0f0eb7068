"""Parts of a file against the same parts scored alone; the advice against its equations."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make import lidar_here
from torch import Tensor

from lidar_cli.core.metrics import METRICS, default_metrics
from lidar_cli.features.schema import Layout
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.scoring.compute import Convergence, Point, Score
from lidar_cli.scoring.convergence import (
    advise,
    converge_file,
    noise_fraction_at,
    parts_of,
    views_for,
)
from lidar_cli.scoring.open import open_embeddings
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ScoreSettings

DEFAULT = default_metrics()
READ_FROM_ROWS = {name for name, metric in METRICS.items() if metric.reads_rows}


def draw(n: int, q: int, d: int, signal: float = 1.0) -> Tensor:
    return torch.randn(n, q, d) + signal * torch.randn(n, 1, d)


def stored(path: Path, views: Tensor, clean: Tensor | None = None) -> Path:
    """A feature file where there are clean embeddings, else an array file."""
    if clean is None:
        np.save(path.with_suffix(".npy"), views.numpy())
        return path.with_suffix(".npy")
    n, q, d = views.shape
    layout = Layout({"backbone": d}, n, q, len(clean))
    ids = [str(i) for i in range(len(clean))]
    with FeatureWriter.create(path.with_suffix(".h5"), layout, ids, None, {}) as writer:
        writer.write(range(len(clean)), {"backbone": views}, {"backbone": clean})
        return writer.finish()


def converged(path: Path, **options: Any) -> tuple[Score, Convergence]:
    (score,) = converge_file(path, ScoreSettings(device="cpu", **options))
    assert score.convergence is not None
    return score, score.convergence


def alone(path: Path, **options: Any) -> Score:
    (score,) = score_file(path, ScoreSettings(device="cpu", **options))
    return score


@pytest.mark.parametrize(
    ("count", "parts"),
    [(1000, (250, 500, 1000)), (10, (2, 5, 10)), (5, (2, 5)), (3, (2, 3)), (2, (2,)), (1, (1,))],
)
def test_a_part_is_a_quarter_or_a_half_but_never_below_two(count: int, parts: tuple[int]) -> None:
    assert parts_of(count) == parts


@pytest.mark.parametrize("memory", ["1", "20kB", "64MB"])
@pytest.mark.parametrize("n_clean", [None, 120, 451])
@pytest.mark.parametrize("normalize", [False, True])
def test_each_part_is_what_the_same_part_alone_gives(
    tmp_path: Path, memory: str, n_clean: int | None, normalize: bool
) -> None:
    """n = 120, q = 9, d = 7; chunks of one sample, of some that straddle the parts, of all."""
    views = draw(120, 9, 7) + 3.0
    clean = None if n_clean is None else torch.randn(n_clean, 7) + 1.0
    whole = stored(tmp_path / "whole", views, clean)
    score, found = converged(whole, memory=memory, normalize=normalize)
    assert [part.n_samples for part in found.by_samples] == [30, 60, 120]
    assert [part.n_views for part in found.by_views] == [2, 4, 9]
    parts = [(part, views[: part.n_samples], part.n_samples) for part in found.by_samples]
    parts += [(part, views[:, : part.n_views], 120) for part in found.by_views]
    for at, (part, its_views, n) in enumerate(parts):
        rows = None if clean is None else clean[: len(clean) * n // 120]
        expected = alone(stored(tmp_path / f"part{at}", its_views, rows), normalize=normalize)
        fewer_views = part.n_views < 9
        assert set(part.values) == (DEFAULT - READ_FROM_ROWS if fewer_views else DEFAULT)
        assert part.n_rows == expected.rankme_rows
        for name, value in part.values.items():
            assert same(value, expected.value(name)), name
    expected = alone(whole, normalize=normalize)
    assert all(same(score.value(name), expected.value(name)) for name in DEFAULT)
    assert score.lidar is not None


def same(value: float | None, expected: float | None) -> bool:
    """Equal but for the order of sums."""
    if value is None or expected is None:
        return value is expected
    return value == pytest.approx(expected, rel=1e-9)


def test_the_first_of_a_layer_reads_as_if_it_were_all(tmp_path: Path) -> None:
    views, clean = draw(10, 4, 3), torch.randn(20, 3)
    (whole,) = open_embeddings(stored(tmp_path / "z", views, clean), ScoreSettings())
    part = whole.first(5, 2, 8)
    assert part.shape == (5, 2, 3)
    chunks = list(part.chunks(100))
    assert len(chunks) > 1
    read = [chunk.views for chunk in chunks if chunk.views is not None]
    assert torch.equal(torch.cat(read), views[:5, :2])
    rows = [chunk.clean for chunk in chunks if chunk.clean is not None]
    assert torch.equal(torch.cat(rows), clean[:8])


def test_intervals_are_those_of_the_whole_file(tmp_path: Path) -> None:
    path = stored(tmp_path / "z", draw(100, 3, 4))
    score, _ = converged(path, confidence=0.9)
    expected = alone(path, confidence=0.9)
    assert score.confidence is not None
    assert expected.confidence is not None
    for name, interval in score.confidence.intervals.items():
        assert same(interval.se, expected.confidence.intervals[name].se), name


def test_rows_without_views_have_parts_of_rows_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", torch.randn(400, 120).numpy())
    score, found = converged(tmp_path / "rows.npy", metrics="rankme,alpha_req,lidar")
    assert [(part.n_samples, part.n_views) for part in found.by_samples] == [
        (100, 0),
        (200, 0),
        (400, 0),
    ]
    assert found.by_views == ()
    assert found.by_samples[0].values["alpha_req"] is None  # 99 eigenvalues
    assert found.by_samples[-1].values["rankme"] == score.rankme
    assert "rows" not in found.advice
    assert "from n = 200 to 400" in found.advice


@pytest.mark.parametrize(("n", "q"), [(1, 1), (1, 4), (2, 1), (3, 2), (4, 3)])
def test_the_smallest_files_are_read_too(tmp_path: Path, n: int, q: int) -> None:
    score, found = converged(stored(tmp_path / "z", draw(n, q, 3)))
    assert found.advice
    assert found.by_samples[-1].values["rankme"] == score.rankme


# The equations


def test_the_noise_fraction_at_more_views_by_hand() -> None:
    """f = 0.61 at q = 10 has odds 61 / 39; a fifth of them are 61 / 195, f = 61 / 256."""
    assert noise_fraction_at(0.61, 10, 50) == pytest.approx(61 / 256)
    assert noise_fraction_at(0.61, 10, 10) == pytest.approx(0.61)
    assert noise_fraction_at(1.0, 10, 50) == 1.0
    # A quarter has odds of 1/3: q = 10 * 1.5641 * 3.
    assert views_for(0.61, 10, 0.25) == pytest.approx(46.92, abs=0.01)
    assert noise_fraction_at(0.61, 10, 47) < 0.25 < noise_fraction_at(0.61, 10, 46)
    assert views_for(1.0, 10, 0.25) == float("inf")


def test_the_noise_fraction_that_is_predicted_comes_true(tmp_path: Path) -> None:
    """Known exactly: Sw = I and Sb = s^2 I give f = 1 / (1 + q s^2)."""
    views = draw(4000, 32, 8, signal=0.4)
    _, found = converged(stored(tmp_path / "z", views))
    fractions = {part.n_views: part.values["noise_fraction"] for part in found.by_views}
    for q, fraction in fractions.items():
        assert fraction == pytest.approx(1 / (1 + 0.16 * q), rel=0.03)
        assert fraction is not None
        assert noise_fraction_at(fraction, q, 32) == pytest.approx(fractions[32], rel=0.03)


def test_a_step_to_twice_the_samples_varies_as_the_value_itself(tmp_path: Path) -> None:
    """var(T(n) - T(n/2)) = se(T(n))^2, for a metric that is a mean: alignment, over 150 draws."""
    steps, errors = [], []
    for draw_at in range(150):
        torch.manual_seed(draw_at)
        path = stored(tmp_path / "z", draw(40, 2, 3))
        score, found = converged(path, metrics="alignment", confidence=0.95)
        half, whole = (part.values["alignment"] for part in found.by_samples[-2:])
        assert half is not None
        assert whole is not None
        assert score.confidence is not None
        steps.append(whole - half)
        errors.append(score.confidence.intervals["alignment"].se)
    ratio = np.std(steps) / np.sqrt(np.mean(np.square(errors)))
    assert ratio == pytest.approx(1.0, abs=0.2)  # the sd of 150 draws is known to 6 %


# The sentence


def points(values: dict[str, float | None], n: int = 1000, q: int = 10, **half: float) -> Any:
    """The whole file, and a half in which some metrics are otherwise."""
    return (Point(n // 2, q, n // 2, values | half), Point(n, q, n, values))


HEALTHY: dict[str, float | None] = {
    "noise_fraction": 0.12,
    "n_above_noise": 40,
    "lidar": 50.0,
    "lidar_corrected": 30.0,
}


@pytest.mark.parametrize(
    ("values", "dim", "n", "q", "half", "reach", "sentence"),
    [
        (
            HEALTHY | {"noise_fraction": 0.61},
            *(64, 1000, 10, {}, {}),
            "view noise is 61 % of the LDA trace at q = 10: take q = 50 (24 % expected), or read "
            "lidar_corrected",
        ),
        (
            HEALTHY | {"noise_fraction": 0.995},
            *(64, 1000, 10, {}, {}),
            "view noise is 100 % of the LDA trace at q = 10, and even q = 500 would leave 80 %: "
            "read lidar_corrected",
        ),
        (
            HEALTHY | {"noise_fraction": 2.17},
            *(64, 1000, 10, {}, {}),
            "view noise accounts for the whole LDA trace at q = 10, and even q = 500 would leave "
            "100 %: read lidar_corrected",
        ),
        (
            HEALTHY | {"noise_fraction": 0.61, "lidar_corrected": None},
            *(64, 1000, 10, {}, {}),
            "view noise is 61 % of the LDA trace at q = 10: take q = 50 (24 % expected)",
        ),
        (
            HEALTHY | {"noise_fraction": 0.995, "lidar_corrected": None},
            *(64, 1000, 10, {}, {}),
            "view noise is 100 % of the LDA trace at q = 10, and even q = 500 would leave 80 %: "
            "other views may have more in common",
        ),
        (
            {"noise_fraction": 1.01, "n_above_noise": 0, "lidar": 60.0},
            *(64, 1000, 10, {}, {}),
            "no direction clears the edge of view noise at n = 1000 and q = 10: as far as these "
            "views show, lidar counts noise; more views may still show a direction",
        ),
        (
            {"noise_fraction": None, "lidar": 60.0},
            *(512, 100, 4, {}, {}),
            "n (q - 1) = 300 does not exceed d + 1 = 513, so view noise cannot be measured: take "
            "q = 27, or n = 854",  # 1 + 5 * 512 / 100 = 26.6; 5 * 512 / 3 = 853.3
        ),
        (
            {"noise_fraction": None, "lidar": 60.0},
            *(8, 100, 4, {}, {}),
            "view noise cannot be measured in this embedding: see the reason of each metric",
        ),
        (
            HEALTHY,
            *(100, 100, 4, {}, {}),
            "n (q - 1) = 300 is below 5 d = 500, so the within covariance is poorly determined: "
            "take q = 6, or n = 167",
        ),
        (
            HEALTHY,
            *(8, 1000, 10, {"lidar": 46.0}, {}),
            "lidar still moves by +8 % from n = 500 to 1000, and about as much is missing: take "
            "n = 1600, or compare at equal n alone",  # 1000 * 0.08 / 0.05
        ),
        (
            HEALTHY | {"pillai": 10.0},
            *(8, 1000, 10, {"lidar": 46.0, "pillai": 12.0}, {}),
            "pillai (and 1 more) still moves by -20 % from n = 500 to 1000, and about as much is "
            "missing: take n = 4000, or compare at equal n alone",
        ),
        (
            HEALTHY,
            *(8, 1000, 10, {"lidar": 46.0}, {"lidar": 4.5}),  # 4 is within chance
            "n = 1000 and q = 10 suffice: view noise is 12 % of the LDA trace, and no metric "
            "moves by more than 8 % from n = 500 beyond chance",
        ),
        (
            HEALTHY,
            *(8, 1000, 10, {"noise_fraction": 0.2, "n_above_noise": 20}, {}),
            "n = 1000 and q = 10 suffice: view noise is 12 % of the LDA trace, and no metric "
            "moves by more than 5 % from n = 500 beyond chance",
        ),
        (
            {"rankme": 100.0},
            *(512, 1000, 0, {"rankme": 98.0}, {}),
            "n = 1000 suffice: no metric moves by more than 5 % from n = 500 beyond chance",
        ),
    ],
)
def test_the_first_rule_that_holds_speaks(
    values: dict[str, float | None],
    dim: int,
    n: int,
    q: int,
    half: dict[str, float],
    reach: dict[str, float],
    sentence: str,
) -> None:
    assert advise(points(values, n, q, **half), dim, reach) == sentence


def test_more_views_are_enough_for_the_within_covariance_too() -> None:
    """Noise alone wants q = 2 * (0.55 / 0.45) * 3 = 7.3; n = 20 and d = 40 want 1 + 200 / 20."""
    values = HEALTHY | {"noise_fraction": 0.55}
    assert "take q = 11 (" in advise(points(values, n=20, q=2), 40, {})


def test_no_fewer_views_are_advised_than_there_are() -> None:
    """At f = 0.6 noise is 1.5 of the signal at q = 600, so 0.75 of it at 1200: 43 %."""
    values = HEALTHY | {"noise_fraction": 0.6}
    said = advise(points(values, n=1000, q=600), 64, {})
    assert "even q = 1200 would leave 43 %" in said


def test_rows_that_are_more_than_samples_are_named() -> None:
    half, whole = Point(500, 4, 5000, {"rankme": 90.0}), Point(1000, 4, 10000, {"rankme": 100.0})
    assert advise((half, whole), 8, {}) == (
        "rankme still moves by +10 % from rows = 5000 to 10000, and about as much is missing: "
        "take rows = 20000, or compare at equal rows alone"
    )


# The command


@pytest.fixture
def score(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        words = ("score", *words, "--device", "cpu")
        done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_the_table_ends_in_the_advice(tmp_path: Path, score: Any) -> None:
    path = stored(tmp_path / "z", draw(200, 8, 5))
    lines = score(path, "--converge").stdout.splitlines()
    _, found = converged(path)
    assert lines[-1] == f"advice: {found.advice}"
    header = next(line for line in lines if line.startswith("metric") and "q = 2" in line)
    assert header.split("  ")[0] == "metric"
    for column in ("n = 50", "n = 100", "n = 200, q = 8", "q = 2", "q = 4"):
        assert column in header
    (row,) = [line for line in lines[lines.index(header) :] if line.startswith("rankme ")]
    assert len(row.split()) == 4  # views do not change it


def test_json_holds_every_part(tmp_path: Path, score: Any) -> None:
    path = stored(tmp_path / "z", draw(200, 8, 5))
    (expected,) = json.loads(score(path, "--converge", "--json").stdout)
    found = expected["convergence"]
    assert [part["n_samples"] for part in found["by_samples"]] == [50, 100, 200]
    assert [part["n_views"] for part in found["by_views"]] == [2, 4, 8]
    assert found["by_samples"][-1]["values"]["lidar"] == expected["lidar"]
    assert found["advice"]
    (plain,) = json.loads(score(path, "--json").stdout)
    assert plain["convergence"] is None
    assert score(path, "--converge", "--csv").stdout.count("\n") == 2


def test_the_plot_has_two_panels_more(tmp_path: Path, score: Any) -> None:
    path = stored(tmp_path / "z", draw(200, 8, 5))
    for more in ([], ["--converge"]):
        score(path, "--plot", tmp_path / f"{len(more)}.svg", *more)
    # An SVG has a group for each axes.
    counts = [(tmp_path / f"{k}.svg").read_text().count('<g id="axes_') for k in (0, 1)]
    assert counts == [3, 5]


# Warnings


@pytest.mark.parametrize(
    ("kind", "views", "text"),
    [
        ("noise", lambda: draw(400, 2, 6, signal=0.3), "view noise is 8"),
        ("collapsed", lambda: 0.01 * draw(400, 2, 6) + 1.0, "normalized_std is 0.0"),
        ("collapsed", lambda: torch.ones(400, 2, 6), "normalized_std is 0,"),
        ("degrees", lambda: draw(20, 2, 6), "n (q - 1) = 20 is less than 5 d = 30"),
        ("rows", lambda: draw(5, 9, 6), "RankMe reads 5 rows and d = 6"),
        ("eigenvalues", lambda: draw(400, 2, 120), "eigenvalues 11 to 100 of 120"),
    ],
)
def test_a_number_that_misleads_warns_of_itself(
    tmp_path: Path, kind: str, views: Callable[[], Tensor], text: str
) -> None:
    assert text in alone(stored(tmp_path / "z", views())).warnings[kind]


def test_healthy_embeddings_warn_of_nothing(tmp_path: Path) -> None:
    assert alone(stored(tmp_path / "z", draw(1100, 3, 200, signal=2.0))).warnings == {}
