"""Samples in groups: sums by hand, ids and labels of real files, and the commands."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from make import checkpoint, image_folder, lidar_here

from lidar_cli.errors import InputError
from lidar_cli.features.reader import read_hdf5
from lidar_cli.features.schema import Layout
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.scoring.intervals import FEW_CARRY, Grouping, confidence, sum_by_group
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ScoreSettings

N, Q, D, CLEAN = 60, 3, 4, 66
IDS = [f"clip{i // 5}/frame{i % 5}.png" for i in range(CLEAN)]


@pytest.fixture
def lidar(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def run(*words: object) -> Any:
        return lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)

    return run


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """N samples in clips of 5 that share most of their signal, labels that name the clips."""
    rng = np.random.default_rng(3)
    clips = rng.normal(size=(14, 1, D)).repeat(5, axis=0)[:CLEAN]
    clean = 3 * clips[:, 0] + rng.normal(size=(CLEAN, D))
    views = clean[:N, None] + rng.normal(size=(N, Q, D))
    layout = Layout({"projector": D}, N, Q, CLEAN)
    labels = [i // 5 for i in range(CLEAN)]
    path = tmp_path / "z.h5"
    with FeatureWriter.create(path, layout, IDS, labels, {"seed": 0}) as writer:
        views_of = {"projector": torch.from_numpy(views).float()}
        writer.write(range(CLEAN), views_of, {"projector": torch.from_numpy(clean).float()})
        writer.finish()
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = [f"{name},{name.partition('/')[0]}" for name in [*reversed(IDS), "elsewhere.png"]]
    path = tmp_path / "groups.csv"
    path.write_text("\n".join(["id,group", *lines]))
    return path


def scored(path: Path, **settings: Any) -> Any:
    (found,) = score_file(path, ScoreSettings(device="cpu", **{"confidence": 0.95} | settings))
    return found


def test_influences_are_summed_within_a_group() -> None:
    """Sums 3 and -3 of 2 groups of 4 samples: v = 3 * 2 / 4."""
    u = torch.tensor([1.0, 2, 3, -6], dtype=torch.float64)
    assert sum_by_group(u, torch.tensor([7, 7, 2, 2])).tolist() == [-1.5, 1.5]
    assert sum_by_group(u, torch.arange(4)).tolist() == u.tolist()


def test_the_error_of_a_mean_is_that_over_its_groups(features: Path, table: Path) -> None:
    """`alignment` is a mean over samples, so that groups of equal size have its means."""
    alone, grouped = scored(features), scored(features, groups=str(table))
    each = alone.influences["alignment"].reshape(12, 5).mean(dim=1)
    sure = grouped.confidence.intervals["alignment"]
    assert sure.se == pytest.approx(float(each.std()) / math.sqrt(12), rel=1e-10)
    assert grouped.confidence.groups == 12
    assert sure.degrees <= 11
    assert grouped.alignment == alone.alignment
    assert len(grouped.influences["rankme"]) == 14  # of clean embeddings there are more


def test_shared_signal_makes_intervals_wider(features: Path, table: Path) -> None:
    alone, grouped = scored(features).confidence, scored(features, groups="labels").confidence
    assert grouped.intervals["noise_fraction"].se > 1.3 * alone.intervals["noise_fraction"].se
    assert grouped.intervals == scored(features, groups=str(table)).confidence.intervals


def test_fewer_than_10_groups_have_no_interval(features: Path, tmp_path: Path) -> None:
    lines = [f"{name},{i % 9}" for i, name in enumerate(IDS)]
    (tmp_path / "nine.csv").write_text("\n".join(["id,group", *lines]))
    found = scored(features, groups=str(tmp_path / "nine.csv")).confidence
    assert found.intervals["lidar"].se is None
    assert found.intervals["lidar"].reason == (
        "9 groups: an interval over groups of samples needs 10"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,clip\na,b\n", "no column 'group'"),
        ("id,group\na,1\na,2\n", "the sample 'a' is in two groups"),
        ("id,group\nclip0/frame0.png,1\n", "65 of 66 samples are in no group of --groups"),
        ("id,group\nclip0/frame0.png,\n", "66 of 66 samples are in no group of --groups"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(
    features: Path, tmp_path: Path, lidar: Callable[..., Any], text: str, said: str
) -> None:
    (tmp_path / "odd.csv").write_text(text)
    done = lidar("score", features, "--confidence", 0.95, "--groups", tmp_path / "odd.csv")
    assert (done.returncode, done.stdout) == (3, "")
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_samples_without_ids_are_known_by_their_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", np.random.default_rng(1).normal(size=(40, 3, 2)))
    lines = [f"{i},{i // 2}" for i in range(40)]
    (tmp_path / "pairs.csv").write_text("\n".join(["id,group", *lines]))
    found = scored(tmp_path / "z.npy", groups=str(tmp_path / "pairs.csv"))
    assert found.confidence.groups == 20
    with pytest.raises(InputError, match="stores no labels for --groups labels"):
        scored(tmp_path / "z.npy", groups="labels")


def test_unknown_labels_are_no_group(features: Path) -> None:
    with h5py.File(features, "r+") as file:
        file["samples/label"][3] = -1
    (embeddings,) = read_hdf5(features)
    with pytest.raises(InputError, match=r"1 of 66 .* the first is 'clip0/frame3.png'"):
        Grouping("labels").of(embeddings)


def test_groups_without_intervals_are_wrong_usage(
    features: Path, table: Path, lidar: Callable[..., Any]
) -> None:
    done = lidar("score", features, "--groups", table)
    assert done.returncode == 2
    assert "--groups concerns intervals; add --confidence 0.95" in done.stderr


def test_the_table_names_the_groups(features: Path, lidar: Callable[..., Any]) -> None:
    words = ("score", features, "--confidence", 0.95, "--groups", "labels")
    assert "95 % interval over 12 groups" in lidar(*words).stdout
    (found,) = json.loads(lidar(*words, "--json").stdout)
    assert found["confidence"]["groups"] == 12


@pytest.mark.parametrize("store", ["--store", "--no-store"])
def test_rank_ties_over_groups(tmp_path: Path, store: str, lidar: Callable[..., Any]) -> None:
    """What is kept is of samples, whichever groups are asked for, and serves both."""
    images = image_folder(tmp_path / "images", 24)
    for seed in range(2):
        checkpoint(tmp_path / "runs" / f"{seed}.pt", seed)
    words = ["rank", tmp_path / "runs", "--data", images, "-n", 24, "-q", 4, "--image-size", 24]
    words += ["--device", "cpu", "--batch-size", 8, "--json", "--layer", "projector", store]
    names = sorted(str(path.relative_to(images)) for path in images.rglob("*") if path.is_file())
    lines = [f"{name},{at // 2}" for at, name in enumerate(names)]
    (tmp_path / "pairs.csv").write_text("\n".join(["id,group", *lines]))
    plain = json.loads(lidar(*words).stdout)["checkpoints"]
    done = lidar(*words, "--groups", tmp_path / "pairs.csv")
    assert done.returncode == 0, done.stderr
    grouped = json.loads(done.stdout)["checkpoints"]
    assert [row["value"] for row in grouped] == [row["value"] for row in plain]
    assert {row["metrics"]["confidence"]["groups"] for row in grouped} == {12}
    assert {row["metrics"]["confidence"]["groups"] for row in plain} == {None}
    assert json.loads(lidar(*words).stdout)["checkpoints"] == plain
    none = lidar(*words, "--groups", "labels")
    assert (none.returncode, none.stdout) == (3, "")
    assert "labels" in none.stderr


def test_few_degrees_of_freedom_are_noted() -> None:
    """One of 40 samples with most of the weight: 2 n over its kurtosis less 1 is near 2."""
    u = torch.full((40,), -1.0, dtype=torch.float64)
    u[0] = 39.0
    found = confidence({"lidar": 5.0}, {"lidar": u}, {}, 0.95).intervals["lidar"]
    assert found.degrees == pytest.approx(80 / (40 * (39**4 + 39) / (39**2 + 39) ** 2 - 1))
    assert found.note == FEW_CARRY
    even = confidence({"lidar": 5.0}, {"lidar": torch.arange(40.0) - 19.5}, {}, 0.95)
    assert even.intervals["lidar"].note is None


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    path = Path(__file__).parent / "benchmarks" / "intervals.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_grouped_coverage", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.nightly
def test_intervals_over_bursts_hold_the_expectation(simulation: ModuleType) -> None:
    """The whole of it is tests/benchmarks/intervals.py: 90 to 98 %, here of 200 draws."""
    slack = 3 * math.sqrt(0.9 * 0.1 / 200)
    for name, measured in simulation.coverage(
        "power law", (1000, 4, 16), 200, grouped=True
    ).items():
        assert measured["coverage"] >= 0.90 - slack, name


def test_the_errors_of_bursts_are_those_they_have(simulation: ModuleType) -> None:
    """Of 40 draws a standard deviation is known to 11 %; without groups the ratio is near 0.65."""
    found = simulation.coverage("power law", (500, 3, 8), 40, grouped=True)
    ratios = [measured["se"] / measured["sd"] for measured in found.values()]
    assert 0.85 < float(np.mean(ratios)) < 1.25
