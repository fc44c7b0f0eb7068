"""Intervals and ties: by hand on small numbers, by simulation, and through the commands."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from torch import Tensor

from lidar_cli.core.metrics import METRICS, default_metrics
from lidar_cli.features.schema import Layout
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.scoring.compute import Score
from lidar_cli.scoring.intervals import confidence, degrees, quantile, reasons_for_no_interval, ties
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ScoreSettings

N, Q, D = 60, 3, 6
DRAWS = 200
T3 = float(quantile(0.95, torch.tensor(3.0, dtype=torch.float64)))  # of four samples


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Embeddings [N, Q, D] with signal in half of the dimensions."""
    rng = np.random.default_rng(5)
    signal = rng.normal(size=(N, 1, D)) * np.array([4.0, 3, 2, 0, 0, 0])
    np.save(tmp_path / "z.npy", signal + rng.normal(size=(N, Q, D)))
    return tmp_path / "z.npy"


def scored(path: Path, **settings: Any) -> Score:
    (found,) = score_file(path, ScoreSettings(device="cpu", **{"confidence": 0.95} | settings))
    return found


ROWS = [name for name, one in METRICS.items() if one.reads_rows]


def of_rows(path: Path) -> dict[str, tuple[float, ...]]:
    """Value, standard error and ends of the metrics of rows, but for alpha_req, which is null."""
    score = scored(path)
    assert score.confidence is not None
    found = {}
    for name in ROWS:
        value, interval = score.value(name), score.confidence.intervals[name]
        if value is not None:
            assert interval.se is not None
            assert interval.ci_low is not None
            assert interval.ci_high is not None
            found[name] = (value, interval.se, interval.ci_low, interval.ci_high)
    assert found.keys() == {"rankme", "participation_ratio", "stable_rank"}
    return found


def test_intervals_of_rows_are_of_the_very_rows_that_give_the_value(
    stored: Path, tmp_path: Path
) -> None:
    """View 0 of each sample, and the clean embeddings of a file that has some."""
    z = np.load(stored)
    alone = []
    for view in range(Q):
        np.save(tmp_path / f"{view}.npy", z[:, view])
        alone.append(of_rows(tmp_path / f"{view}.npy"))
    layout = Layout({"backbone": D}, N, Q, N)
    with FeatureWriter.create(
        tmp_path / "f.h5", layout, [str(i) for i in range(N)], None, {"data": "toy"}
    ) as writer:
        views, clean = torch.from_numpy(z).float(), torch.from_numpy(z[:, 2]).float()
        writer.write(range(N), {"backbone": views}, {"backbone": clean})
        writer.finish()
    for found, view, rel in ((of_rows(stored), 0, 1e-9), (of_rows(tmp_path / "f.h5"), 2, 1e-4)):
        for name, numbers in found.items():
            assert numbers == pytest.approx(alone[view][name], rel=rel), name
            for other in {0, 1, 2} - {view}:
                assert abs(numbers[1] / alone[other][name][1] - 1) > 1e-3, name


# By hand


def test_an_interval_is_the_value_and_t_standard_errors() -> None:
    """Influences -3, -1, 1, 3: variance 20/3 over n - 1 = 3, so se = sqrt(20/3) / 2."""
    influences = {"lidar": torch.tensor([-3.0, -1, 1, 3], dtype=torch.float64)}
    found = confidence({"lidar": 10.0, "pillai": None}, influences, {"pillai": "why"}, 0.95)
    interval = found.intervals["lidar"]
    se = math.sqrt(20 / 3) / 2
    assert interval.se == pytest.approx(se, rel=1e-12)
    assert interval.ci_low == pytest.approx(10 - T3 * se, rel=1e-12)
    assert interval.ci_high == pytest.approx(10 + T3 * se, rel=1e-12)
    none = found.intervals["pillai"]
    assert (none.se, none.ci_low, none.ci_high, none.reason) == (None, None, None, "why")


def test_what_is_not_finite_gets_a_reason() -> None:
    found = confidence({"lidar": 1.0}, {"lidar": torch.full((9,), math.nan)}, {}, 0.95)
    assert found.intervals["lidar"].se is None
    assert "beyond the range of float64" in (found.intervals["lidar"].reason or "")


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.9998, 0.9999999])  # the last two of a race
@pytest.mark.parametrize("freedom", [2.0, 3.0, 5.0, 7.3, 20.0, 1000.0])
def test_the_quantile_is_students(level: float, freedom: float) -> None:
    expected = student.ppf((1 + level) / 2, freedom)
    found = float(quantile(level, torch.tensor(freedom, dtype=torch.float64)))
    assert found == pytest.approx(expected, rel=1e-9)


def test_heavy_tails_leave_few_degrees() -> None:
    """One sample of 100 with all the weight: kurtosis 100 / 1, so 2 n / (100 - 1)."""
    u = torch.zeros(100, dtype=torch.float64)
    u[0] = 5.0
    assert float(degrees(u.square().sum(), u.pow(4).sum(), 100)) == pytest.approx(200 / 99)
    signs = torch.ones(100, dtype=torch.float64)  # the lightest tails there are
    assert float(degrees(signs.sum(), signs.sum(), 100)) == 99.0


A = torch.tensor([-3.0, -1, 1, 3], dtype=torch.float64)
B = torch.tensor([-3.0, -1, 3, 1], dtype=torch.float64)
SE = math.sqrt(8 / 3 / 4)  # of A - B = (0, 0, -2, 2): variance 8/3, n = 4


@pytest.mark.parametrize(
    ("gap", "tied"), [(0.0, True), (0.999 * T3 * SE, True), (1.001 * T3 * SE, False)]
)
def test_a_tie_is_judged_by_the_paired_difference(gap: float, tied: bool) -> None:
    found = ties([5.0, 5.0 + gap], [A, B], METRICS["lidar"], 0.95)
    assert found == ([[1], [0]] if tied else [[], []])


def test_unpaired_the_same_gap_would_be_a_tie() -> None:
    """Each has se sqrt(20/3/4) = 1.29 by itself: without pairing no gap below 3.6 is seen."""
    gap = 1.001 * T3 * SE
    assert gap < T3 * math.sqrt(2 * 20 / 3 / 4)
    assert ties([5.0, 5.0 + gap], [A, B], METRICS["lidar"], 0.95) == [[], []]
    assert ties([5.0, 5.0 + gap], [A, -A], METRICS["lidar"], 0.95) == [[1], [0]]


def test_ties_are_not_transitive() -> None:
    step = 0.7 * T3 * SE
    found = ties([0.0, step, 2 * step], [A, B, A], METRICS["lidar"], 0.95)
    assert found == [[1], [0, 2], [1]]


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-6, 1e-9])
@pytest.mark.parametrize("share", [0.99, 1.01])
def test_those_that_are_all_but_equal_are_separated_by_their_own_difference(
    apart: float, share: float
) -> None:
    """Such as the same weights in another number format, of which sums of squares keep no digit."""
    rng = np.random.default_rng(7)
    one = rng.normal(size=400)
    gap = apart * one * rng.standard_t(5, size=400)
    second, fourth = np.sum(gap**2), np.sum(gap**4)
    kurtosis = 400 * fourth / second**2
    freedom = torch.tensor(2 * 400 / max(kurtosis - 1, 2))
    reach = float(quantile(0.95, freedom)) * math.sqrt(second / (400 * 399))
    influences = [torch.from_numpy(one), torch.from_numpy(one + gap)]
    found = ties([0.0, share * reach], influences, METRICS["lidar"], 0.95)
    assert found == ([[1], [0]] if share < 1 else [[], []])


@pytest.mark.parametrize("name", ["lidar", "alpha_req"])
def test_many_are_compared_as_few_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows of all pairs at a time: who ties with whom does not depend on how many."""
    rng = np.random.default_rng(5)
    values = rng.normal(1.0, 0.3, 23).tolist()
    influences = [torch.from_numpy(column) for column in rng.normal(size=(23, 60))]
    whole = ties(values, influences, METRICS[name], 0.95)
    assert 0 < sum(map(len, whole)) < 23 * 22
    for at, others in enumerate(whole):
        pairs = (
            ties([values[at], values[k]], [influences[at], influences[k]], METRICS[name], 0.95)
            for k in range(23)
        )
        assert others == [k for k, pair in enumerate(pairs) if k != at and pair == [[1], [0]]]
    monkeypatch.setattr("lidar_cli.scoring.intervals.PAIRS", 50)
    assert ties(values, influences, METRICS[name], 0.95) == whole


def test_a_metric_with_a_target_ties_across_it() -> None:
    """0.8 and 1.2 are as far from 1, though they are far apart; 0.8 and 1.7 are not."""
    small = 0.01 * A
    found = ties([0.8, 1.2, 1.7, 0.8], [small, small, small, small], METRICS["alpha_req"], 0.95)
    assert found == [[1, 3], [0, 3], [], [0, 1]]


def test_what_gets_no_interval() -> None:
    values = {"lidar": 3.0, "n_above_noise": 2, "pillai": None, "rankme": 4.0}
    found = reasons_for_no_interval(values, {"pillai": "nothing above view noise"}, 12, 13, 6)
    assert found == {
        "lidar": "n = 12 is not above 2 d = 12: too few samples for an interval",
        "n_above_noise": "a count has no derivative, and so no interval",
        "pillai": "nothing above view noise",
    }


# Through score


def test_a_plain_score_has_no_confidence(stored: Path) -> None:
    assert scored(stored, confidence=None).confidence is None


def test_every_value_gets_its_interval_and_no_null_does(stored: Path) -> None:
    found = scored(stored)
    assert found.confidence is not None
    assert found.confidence.intervals.keys() == default_metrics()
    for name, interval in found.confidence.intervals.items():
        value = found.value(name)
        if value is None or name == "n_above_noise":
            assert (interval.se, interval.ci_low, interval.ci_high) == (None, None, None)
            assert interval.reason
        else:
            assert interval.se is not None
            assert interval.se > 0
            assert interval.ci_low is not None
            assert interval.ci_high is not None
            assert interval.ci_low < value < interval.ci_high
            assert interval.reason is None
    assert found.confidence.intervals["alpha_req"].reason == found.notes["alpha_req"]


def test_alignment_is_a_mean_and_its_error_that_of_a_mean(stored: Path) -> None:
    z = np.load(stored)
    unit = z / np.linalg.norm(z, axis=2, keepdims=True)
    pairs = [(0, 1), (0, 2), (1, 2)]
    each = np.mean([((unit[:, a] - unit[:, b]) ** 2).sum(axis=1) for a, b in pairs], axis=0)
    found = scored(stored).confidence
    assert found is not None
    expected = each.std(ddof=1) / math.sqrt(N)
    assert found.intervals["alignment"].se == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("normalize", [False, True])
def test_chunks_change_nothing(stored: Path, normalize: bool) -> None:
    whole = scored(stored, normalize=normalize)
    parts = scored(stored, normalize=normalize, memory="1KB")
    assert whole.influences.keys() == parts.influences.keys()
    for name, expected in whole.influences.items():
        assert len(expected) == N
        torch.testing.assert_close(parts.influences[name], expected, rtol=1e-9, atol=1e-9)


def test_normalised_embeddings_have_the_influences_of_unit_rows(
    stored: Path, tmp_path: Path
) -> None:
    z = np.load(stored)
    np.save(tmp_path / "unit.npy", z / np.linalg.norm(z, axis=2, keepdims=True))
    one, other = scored(stored, normalize=True), scored(tmp_path / "unit.npy")
    for name, expected in other.influences.items():
        torch.testing.assert_close(one.influences[name], expected, rtol=1e-8, atol=1e-8)


def test_too_few_samples_are_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    np.save(tmp_path / "few.npy", rng.normal(size=(2 * D, Q, D)) + 3 * rng.normal(size=(12, 1, D)))
    found = scored(tmp_path / "few.npy")
    assert found.confidence is not None
    assert found.influences.keys() == {"stability"}  # which does not depend on d
    reasons = {found.confidence.intervals[name].reason for name in ("lidar", "rankme", "alignment")}
    assert reasons == {"n = 12 is not above 2 d = 12: too few samples for an interval"}


def test_rows_without_views_have_intervals_of_their_own(tmp_path: Path) -> None:
    rows = np.random.default_rng(5).normal(size=(N, D))
    np.save(tmp_path / "rows.npy", rows)
    found = scored(tmp_path / "rows.npy")
    assert found.influences.keys() == {"rankme", "participation_ratio", "stable_rank"}


# Simulation: the small version of tests/benchmarks/intervals.py


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    path = Path(__file__).parent / "benchmarks" / "intervals.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_coverage", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def margin(share: float) -> float:
    """Three standard deviations of a binomial share over DRAWS."""
    return 3 * math.sqrt(share * (1 - share) / DRAWS)


@pytest.mark.parametrize(
    "spectrum",
    [
        "power law",
        pytest.param("planted", marks=pytest.mark.nightly),
        pytest.param("heavy tails", marks=pytest.mark.nightly),
    ],
)
def test_intervals_hold_the_expectation(simulation: ModuleType, spectrum: str) -> None:
    """At n = 200. It stood at n = 100 first, where heavy tails cover less than is demanded.

    The committed results say how much less: reliable_rank, skewed so near its bound d = 8, 86 %.
    """
    found = simulation.coverage(spectrum, (200, 3, 8), DRAWS)
    assert found.keys() == default_metrics() - {"n_above_noise", "alpha_req"}
    for name, measured in found.items():
        assert measured["coverage"] >= 0.93 - margin(0.93), name
        # 92 to 98 % of a normal is a standard error of 0.89 to 1.19 of the true one, and the true
        # one is known from as many draws to three times 1 / sqrt(2 DRAWS).
        if name in ("pillai", "information", "noise_fraction"):
            slack = 1 + 3 / math.sqrt(2 * DRAWS)
            assert 0.89 / slack < measured["se"] / measured["sd"] < 1.19 * slack, name


def test_ties_err_at_most_at_their_rate(simulation: ModuleType) -> None:
    found = simulation.errors("power law", (100, 3, 8), DRAWS, 0.9)
    for name, share in found.items():
        assert share <= 0.05 + margin(0.05), name


def test_what_differs_is_separated(simulation: ModuleType) -> None:
    """Twice the view noise leaves half the signal: every draw must see that."""
    generator = torch.Generator().manual_seed(0)

    def one(noise_scale: float, signal: Tensor, noise: Tensor, scales: Tensor) -> Score:
        z = simulation.embeddings("power law", signal, noise_scale * noise, scales)
        found: Score = simulation.scored(z, 0.95)
        return found

    for _ in range(20):
        parts = simulation.parts((100, 3, 8), generator)
        good, bad = one(1.0, *parts), one(2.0, *parts)
        assert good.pillai is not None
        assert bad.pillai is not None
        influences = [good.influences["pillai"], bad.influences["pillai"]]
        found = ties([good.pillai, bad.pillai], influences, METRICS["pillai"], 0.95)
        assert found == [[], []]


# Through the command


@pytest.fixture
def lidar(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    from make import lidar_here

    def run(*words: object) -> Any:
        return lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)

    return run


def test_score_shows_intervals_where_they_are_asked_for(
    stored: Path, lidar: Callable[..., Any]
) -> None:
    (plain,) = json.loads(lidar("score", stored, "--json").stdout)
    (sure,) = json.loads(lidar("score", stored, "--json", "--confidence", "0.9").stdout)
    assert plain["confidence"] is None
    assert sure | {"confidence": None} == plain
    assert sure["confidence"]["level"] == 0.9
    interval = sure["confidence"]["intervals"]["lidar"]
    assert interval.keys() == {"se", "ci_low", "ci_high", "reason", "degrees", "note"}
    # Between the normal quantile and Student's of a sixth of the samples.
    assert 1.6448 < (interval["ci_high"] - plain["lidar"]) / interval["se"] < 1.8125
    done = lidar("score", stored, "--confidence", "0.9", "--verbose")
    assert "90 % interval" in done.stdout
    assert "no interval of n_above_noise: a count has no derivative" in done.stderr
    header, line = lidar("score", stored, "--csv", "--confidence", "0.9").stdout.splitlines()
    cells = dict(zip(header.split(","), line.split(","), strict=True))
    assert float(cells["lidar_ci_low"]) == interval["ci_low"]
    assert cells["alpha_req_se"] == ""


@pytest.mark.parametrize("level", ["0", "1", "95"])
def test_a_level_is_a_share(stored: Path, lidar: Callable[..., Any], level: str) -> None:
    done = lidar("score", stored, "--confidence", level)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: --confidence {level}: expected ")
    assert ("such as 0.95" in done.stderr) == (level == "95")
