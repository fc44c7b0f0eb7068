"""The metrics of a subset of samples: which samples, the equations, and the ways to a score."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make import lidar_here
from torch import Tensor

from lidar_cli.core.metrics import METRICS
from lidar_cli.core.subset import ComparedViews, HalfMeans, SampleSubset, half_means
from lidar_cli.features.embeddings import Chunk, Embeddings, StoredArray
from lidar_cli.features.schema import Layout
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.ranking.order import comparable_groups, unranked_row
from lidar_cli.ranking.session import rank_directory
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import Score
from lidar_cli.scoring.convergence import converge_file
from lidar_cli.scoring.run import score_file, score_layer
from lidar_cli.scoring.streaming import LayerMoments
from lidar_cli.settings import MetricSettings, RankSettings, ScoreSettings

Run = Callable[..., subprocess.CompletedProcess[str]]

CPU = torch.device("cpu")
SUBSET = [name for name, metric in METRICS.items() if metric.reads_subset]


def cloud(n: int, q: int, d: int, seed: int = 0, signal: float = 1.0) -> Tensor:
    """Gaussian samples of std `signal`, their views with unit noise, about a mean of 3."""
    generator = torch.Generator().manual_seed(seed)
    centres = signal * torch.randn(n, 1, d, dtype=torch.float64, generator=generator)
    return 3.0 + centres + torch.randn(n, q, d, dtype=torch.float64, generator=generator)


def compared(name: str, views: Tensor) -> ComparedViews | HalfMeans:
    if METRICS[name].reads == "halves":
        return HalfMeans(half_means(views), views.shape[1])
    return ComparedViews(views)


def value(name: str, views: Tensor) -> float:
    return METRICS[name].value(compared(name, views))


def stored(z: Tensor) -> Embeddings:
    return Embeddings("z", "z", StoredArray(tuple(z.shape), 8, lambda a, b: z[a:b]), None)


def scored(z: Tensor, names: Sequence[str] = SUBSET, **more: object) -> Score:
    level = more.pop("level", None)
    assert level is None or isinstance(level, float)
    constants = MetricSettings(**more)  # type: ignore[arg-type]
    return score_layer(stored(z), constants, CPU, frozenset(names), Progress(), level)


# Which samples


@pytest.mark.parametrize("n", [1, 999, 1000, 1001, 3500])
@pytest.mark.parametrize("step", [1000, 317])
def test_the_subset_is_that_of_the_smallest_hashes(n: int, step: int) -> None:
    whole, numbers = SampleSubset(), torch.arange(n)
    for first in range(0, n, step):
        rows = numbers[first : first + step, None, None]
        whole.add(numbers[first : first + len(rows)], rows.expand(-1, 12, 2).float())
    assert whole.numbers().tolist() == reference.subset(n)
    assert whole.collected().shape == (min(n, 1000), 10, 2)
    assert whole.collected()[:, 9, 1].tolist() == reference.subset(n)


@settings(max_examples=15)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_parts_in_any_order_merge_to_the_subset_of_all(sizes: list[int], random) -> None:
    parts, first = [], 0
    for size in sizes:
        parts.append(SampleSubset())
        numbers = torch.arange(first, first + size)
        parts[-1].add(numbers, numbers[:, None, None])
        first += size
    random.shuffle(parts)
    whole = parts[0]
    for part in parts[1:]:
        before = part.numbers().tolist()
        whole = whole.merge(part)
        assert part.numbers().tolist() == before
    assert whole.n == first
    assert whole.collected().flatten().tolist() == reference.subset(first)


def test_a_score_does_not_depend_on_chunks_and_reads_only_the_subset() -> None:
    z = cloud(1300, 12, 3)
    moments = [LayerMoments(stored(z), MetricSettings(), CPU, SUBSET) for _ in range(3)]
    moments[0].update(Chunk(0, 1300, z, None))
    for first in range(0, 1300, 77):
        part = z[first : first + 77]
        moments[1 if first < 700 else 2].update(Chunk(first, first + len(part), part, None))
    merged = moments[2].merge(moments[1])
    chosen = z[reference.subset(1300), :10].numpy()
    x = chosen - chosen.mean(axis=(0, 1))
    halves = np.stack([x[:, :5].mean(axis=1), x[:, 5:].mean(axis=1)], axis=1)
    for reads, expected in (("subset", x), ("halves", halves)):
        one = moments[0].compared(reads).x
        assert torch.equal(one, merged.compared(reads).x)
        assert np.allclose(one.numpy(), expected, rtol=0, atol=1e-12)


def test_the_compared_views_are_those_of_all_samples_so_far() -> None:
    z = cloud(60, 3, 4)
    first, last = (LayerMoments(stored(z), MetricSettings(), CPU, SUBSET) for _ in range(2))
    last.update(Chunk(40, 60, z[40:], None))
    for end in (20, 40):
        first.update(Chunk(end - 20, end, z[end - 20 : end], None))
        for name in SUBSET:
            so_far = first.compared(METRICS[name].reads)
            assert torch.equal(so_far.x, compared(name, z[:end]).x)
    for name in SUBSET:
        whole = first.merge(last).compared(METRICS[name].reads)
        assert torch.equal(whole.x, compared(name, z).x)


# The equations

TWINS = {name: getattr(reference, name) for name in SUBSET}


@settings(max_examples=5)
@given(st.integers(12, 14), st.sampled_from([2, 3, 5]), st.integers(2, 6), st.integers(0, 999))
def test_each_is_its_twin(m: int, q: int, d: int, seed: int) -> None:
    z = cloud(m, q, d, seed)
    for name, twin in TWINS.items():
        assert value(name, z) == pytest.approx(twin(z.numpy()), rel=1e-9), name


def on_axes(views: Sequence[Sequence[Sequence[float]]]) -> Tensor:
    return torch.tensor(views, dtype=torch.float64)


# Four samples on the axes of the plane, mean 0; the view 1 of the first two are exchanged.
EXCHANGED = on_axes([[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[-1, 0], [-1, 0]], [[0, -1], [0, -1]]])


def test_retrieval_by_hand() -> None:
    assert value("retrieval", EXCHANGED) == 0.5  # the last two, from either view


def circle(order: Sequence[int]) -> Tensor:
    angles = torch.tensor(order, dtype=torch.float64) * math.pi / 6
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_stability_by_hand() -> None:
    """Of 12 on a circle only the opposite is no neighbour; that of four changes."""
    exchanged = [1, 0, *range(2, 12)]
    z = torch.stack([circle(range(12)), circle(exchanged)], dim=1)
    assert value("stability", z) == pytest.approx((8 * 10 + 4 * 9) / 120)


def test_equal_samples_are_not_recognised() -> None:
    z = EXCHANGED[[2, 2, 3, 3]]  # two samples, each twice: the other copy is as near as the own
    assert value("retrieval", z) == 0.0


@pytest.mark.parametrize("name", SUBSET)
def test_the_better_embedding_has_the_better_value(name: str) -> None:
    strong, weak = cloud(60, 4, 8, signal=2.0), cloud(60, 4, 8, signal=0.5)
    assert value(name, strong) > value(name, weak)


@pytest.mark.parametrize("name", SUBSET)
def test_location_scale_and_order_change_nothing(name: str) -> None:
    z = cloud(40, 4, 5)
    expected = value(name, z)
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(40, generator=generator)
    for other in (z - 100.0, 1e-3 * z, 1e200 * z, z[order]):
        assert value(name, other) == pytest.approx(expected, rel=1e-9)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=generator))
    assert value(name, z @ rotation.Q) == pytest.approx(expected, rel=1e-9)


# Nulls


@pytest.mark.parametrize(
    ("z", "code", "names"),
    [
        (torch.full((20, 3, 4), 0.1), "every row is the same", SUBSET),
        (torch.zeros(20, 3, 4), "every row is the same", SUBSET),
        (torch.ones(20, 3, 4) + 1e-8 * torch.rand(20, 3, 4), "every row is the same", SUBSET),
        (cloud(1, 3, 4), "1 sample: a comparison of samples needs 2", SUBSET),
        (cloud(20, 1, 4), "1 view a sample: ", SUBSET),
        (cloud(11, 3, 4), "11 samples: 10 neighbours", ["stability"]),
    ],
)
def test_what_has_no_value_has_its_reason(z: Tensor, code: str, names: list[str]) -> None:
    score = scored(z, names)
    assert not any(score.value(name) is not None for name in names)
    assert {name for name, note in score.notes.items() if note.startswith(code)} == set(names)


def test_rows_without_views_have_no_value(tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", np.ones((40, 3)))
    (score,) = score_file(tmp_path / "z.npy", ScoreSettings(device="cpu", metrics="all"))
    assert {score.notes[name] for name in SUBSET} == {
        "rows without views; give --views-per-sample, --group-by ids, or an array (n, q, d)"
    }


# Intervals and ties


@pytest.mark.parametrize("name", SUBSET)
def test_the_influences_are_those_of_samples_left_out(name: str) -> None:
    """Exactly those about a fixed centre, and nearly the others."""
    z, m = cloud(60, 3, 4), 60
    (influences,) = scored(z, [name], level=0.95).influences.values()
    fixed, moved = [], []
    for i in range(m):
        rest = torch.arange(m) != i
        moved.append(value(name, z[rest]))
        part = compared(name, z[rest])
        part.x = compared(name, z).x[rest]
        fixed.append(METRICS[name].value(part))
    expected = -(m - 1) * torch.tensor(fixed, dtype=torch.float64)
    assert torch.allclose(influences, expected - expected.mean(), rtol=0, atol=1e-9)
    assert (m - 1) * np.std(moved) == pytest.approx(float(influences.std()), rel=0.2)


@pytest.mark.parametrize("name", SUBSET)
def test_the_standard_error_of_a_subset_is_that_of_its_samples(name: str) -> None:
    z = cloud(1300, 2, 6)
    chosen = reference.subset(1300)
    score = scored(z, [name], level=0.95)
    part = scored(z[chosen], [name], level=0.95)
    assert score.value(name) == part.value(name)
    assert score.interval(name).se == pytest.approx(part.interval(name).se, rel=1e-12)
    assert score.influences[name].nonzero().flatten().tolist() == chosen
    assert abs(float(score.influences[name].mean())) < 1e-12


def test_a_checkpoint_ties_with_its_twin_and_not_with_a_better_one() -> None:
    z = {"a": cloud(300, 4, 8), "b": cloud(300, 4, 8) + 0.01, "c": cloud(300, 4, 8, signal=2.0)}
    for name in SUBSET:
        by = METRICS[name]
        rows = [unranked_row(path, (), scored(x, [name], level=0.95), by) for path, x in z.items()]
        (group,) = comparable_groups(rows, by, 0.95)
        assert {row.path: row.tied_with for row in group.rows} == {
            "c": (),
            "a": ("b",),
            "b": ("a",),
        }


def test_an_interval_without_a_miss_has_a_note() -> None:
    """All samples are recognised, and the share in the population is not known to be 1."""
    score = scored(cloud(60, 3, 4, signal=100.0), ["retrieval"], level=0.95)
    interval = score.interval("retrieval")
    assert (score.retrieval, interval.se) == (1.0, 0.0)
    assert interval.note == "few samples carry this interval; it may be too short"
    assert scored(cloud(60, 3, 4), ["retrieval"], level=0.95).interval("retrieval").note is None


# The ways to a score


def test_one_is_a_default_and_the_other_computed_only_if_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "z.npy"
    np.save(path, cloud(40, 3, 4).numpy())

    def computed(**more: str) -> set[str]:
        (score,) = score_file(path, ScoreSettings(device="cpu", **more))
        return set(score.computed)

    default = {name for name, metric in METRICS.items() if metric.is_default}
    assert computed() == default
    assert default & set(SUBSET) == {"stability"}
    assert computed(metrics="default,retrieval") == default | {"retrieval"}
    assert computed(metrics="retrieval") == {"retrieval"}
    assert computed(metrics="all") == set(METRICS)


def test_no_second_pass_is_needed() -> None:
    z = cloud(40, 3, 4)
    reads: list[int] = []

    def read(start: int, stop: int) -> Tensor:
        reads.extend(range(start, stop))
        return z[start:stop]

    once = Embeddings("z", "z", StoredArray((40, 3, 4), 8, read), None, once="is a stream")
    wanted = frozenset([*SUBSET, "rankme"])
    score = score_layer(once, MetricSettings(), CPU, wanted, Progress(), 0.95)
    assert reads == list(range(40))
    assert score.interval("rankme").reason == "is a stream"
    for name in SUBSET:
        assert score.interval(name) == scored(z, level=0.95).interval(name)


def test_unit_length_is_applied_first() -> None:
    z = cloud(40, 3, 4)
    unit = z / z.norm(dim=2, keepdim=True)
    for name in SUBSET:
        value = scored(z, normalize=True).value(name)
        assert value == pytest.approx(scored(unit).value(name), rel=1e-9)
        assert value != pytest.approx(scored(z).value(name), rel=1e-9)


def test_parts_have_the_values_of_their_samples(tmp_path: Path) -> None:
    z = cloud(2200, 4, 3).float()
    np.save(tmp_path / "z.npy", z.numpy())
    (score,) = converge_file(
        tmp_path / "z.npy", ScoreSettings(device="cpu", metrics=",".join(SUBSET), memory="100kB")
    )
    assert score.convergence is not None
    for point in (*score.convergence.by_samples, *score.convergence.by_views):
        part = scored(z[: point.n_samples, : point.n_views])
        assert point.values == {name: part.value(name) for name in SUBSET}
    assert not any(name in score.convergence.advice for name in SUBSET)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`lidar` with some words, in this process."""
    return lambda *words: lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Feature files `good.h5` and `bad.h5`."""
    for name, signal in (("good", 2.0), ("bad", 0.2)):
        z = cloud(40, 3, 4, signal=signal).float()
        ids = [str(i) for i in range(40)]
        layout = Layout({"backbone": 4}, 40, 3, 40)
        with FeatureWriter.create(tmp_path / f"{name}.h5", layout, ids, None, {}) as writer:
            writer.write(range(40), {"backbone": z}, {"backbone": z[:, 0]})
            writer.finish()
    return tmp_path


def test_rank_computes_what_orders_and_what_is_named(folder: Path) -> None:
    def names(**more: str) -> set[str]:
        ranking = rank_directory((folder,), RankSettings(device="cpu", **more))
        (group,) = ranking.groups
        computed = {row.score.computed for row in group.rows}
        assert [Path(row.path).stem for row in group.rows] == ["good", "bad"]
        return set(*computed)

    default = {name for name, metric in METRICS.items() if metric.is_default}
    assert names(by="pillai") == default
    assert names(by="retrieval") == default | {"retrieval"}
    assert names(by="pillai", metrics="all") == set(METRICS)


def test_tables_list_a_named_metric_only_if_it_is_computed(folder: Path, run: Run) -> None:
    words = ["rank", folder, "--device", "cpu", "--by", "pillai"]
    for extra in ([], ["--all"], ["--markdown"]):
        assert "retrieval" not in run(*words, *extra).stdout
    for extra in (["--columns", "retrieval"], ["--metrics", "retrieval", "--markdown"]):
        assert "retrieval" in run(*words, *extra).stdout
    row = json.loads(run(*words, "--json").stdout)["checkpoints"][0]
    assert row["metrics"]["retrieval"] is None
    compare = ["compare", folder / "good.h5", folder / "bad.h5", "--device", "cpu"]
    assert "retrieval" not in run(*compare).stdout
    assert "retrieval" in run(*compare, "--by", "retrieval").stdout


def test_one_view_is_refused_before_the_work(run: Run) -> None:
    for name in SUBSET:
        refused = run("rank", ".", "--by", name, "-q", 1)
        assert refused.returncode == 2
        assert f"-q 1: {name} needs the variation between the views" in refused.stderr
