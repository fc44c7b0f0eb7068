"""`lidar compare`: paired differences by hand, as in a ranking's ties, and what it says of them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from make import besides_assumptions, checkpoint, image_folder, lidar_here
from numpy.typing import NDArray
from scipy.stats import t as student

from lidar_cli.configuration import resolve
from lidar_cli.core.metrics import METRICS, default_metrics
from lidar_cli.features.schema import Layout
from lidar_cli.features.writer import FeatureWriter, write_features
from lidar_cli.ranking import comparison
from lidar_cli.ranking.cache import MARKER
from lidar_cli.ranking.comparison import (
    Comparison,
    _given,
    compare_files,
    difference,
)
from lidar_cli.ranking.session import rank_directory
from lidar_cli.report import comparison as report
from lidar_cli.scoring.compute import Score
from lidar_cli.scoring.intervals import confidence
from lidar_cli.settings import CompareSettings, RankSettings

N, Q, D = 60, 3, 4
IMAGES = 40
Shell = Callable[..., Any]
Array = NDArray[np.float64]


@pytest.fixture
def lidar(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    def run(*words: object) -> Any:
        done = lidar_here(*words, "--device", "cpu", monkeypatch=monkeypatch, capfd=capfd)
        done.stderr = besides_assumptions(done.stderr)
        return done

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder above which no cache is seen, though there is one."""
    folder = tmp_path / "here"
    folder.mkdir()
    (tmp_path / ".lidar").mkdir()
    (tmp_path / ".lidar" / MARKER).touch()
    monkeypatch.chdir(folder)
    has_own_cache = comparison._has_own_cache

    def has_cache_below(parent: Path) -> bool:
        return parent.absolute().is_relative_to(folder) and has_own_cache(parent)

    monkeypatch.setattr(comparison, "_has_own_cache", has_cache_below)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), IMAGES)


def embedded(
    path: Path, noise: float, n: int = N, draw: int = 3, **provenance: Any
) -> tuple[Array, Path]:
    """Views [n, Q, D] of samples that all files share, and the feature file that stores them."""
    rng = np.random.default_rng(3)
    signal = rng.normal(size=(n, 1, D)) * [3.0, 2.0, 1.0, 0.5]
    views = signal + noise * np.random.default_rng(draw).normal(size=(n, Q, D))
    views = views.astype(np.float32)
    path.parent.mkdir(exist_ok=True)
    record = {"seed": 0, "samples_sha256": "5" * 64, "data": "toy", "layers": ["projector"]}
    record |= provenance
    ids = [f"{i}.png" for i in range(n)]
    with FeatureWriter.create(path, Layout({"projector": D}, n, Q, n), ids, None, record) as writer:
        clean = torch.from_numpy(views[:, 0])
        writer.write(range(n), {"projector": torch.from_numpy(views)}, {"projector": clean})
        writer.finish()
    return views.astype(np.float64), path


def metrics(done: Any) -> dict[str, dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return {one["metric"]: one for one in json.loads(done.stdout)["metrics"]}


# Literal twins


def lidar_of(views: Array) -> float:
    n, q, d = views.shape
    means = views.mean(axis=1)
    between = np.cov(means.T)
    within = np.einsum("iju,ijv->uv", *[views - means[:, None]] * 2) / (n * (q - 1))
    shares = np.linalg.eigvals(np.linalg.solve(within + 1e-4 * np.eye(d), between)).real
    shares = shares / shares.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def rankme_of(views: Array) -> float:
    shares = np.linalg.svd(views[:, 0], compute_uv=False)
    shares = shares / shares.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def distances_of(views: Array) -> Array:
    """The mean squared distance between two views of each sample, on the sphere."""
    unit = views / np.linalg.norm(views, axis=2, keepdims=True)
    pairs = [((unit[:, j] - unit[:, k]) ** 2).sum(axis=1) for j in range(Q) for k in range(j)]
    return np.mean(pairs, axis=0)


def test_difference_and_interval_by_a_direct_jackknife(here: Path, lidar: Shell) -> None:
    """Each sample is left out of both; alignment is a mean, whose paired t interval is exact."""
    a, _ = embedded(here / "a.h5", 0.6, n=240)
    b, _ = embedded(here / "b.h5", 0.8, n=240, draw=4)
    found = metrics(lidar("compare", "a.h5", "b.h5", "--json"))
    for name, literal in (("lidar", lidar_of), ("rankme", rankme_of)):
        whole, n = literal(a) - literal(b), len(a)
        without = [literal(np.delete(a, i, 0)) - literal(np.delete(b, i, 0)) for i in range(n)]
        jackknife = math.sqrt((n - 1) / n * np.square(without - np.mean(without)).sum())
        assert found[name]["difference"] == pytest.approx(whole, rel=1e-4)
        assert found[name]["se"] == pytest.approx(jackknife, rel=0.05)
        middle = (found[name]["ci_low"] + found[name]["ci_high"]) / 2
        assert middle == pytest.approx(found[name]["difference"], rel=1e-9)
    gap = distances_of(a) - distances_of(b)
    se, n = gap.std(ddof=1) / math.sqrt(len(gap)), len(gap)
    u = gap - gap.mean()
    kurtosis = n * (u**4).sum() / (u**2).sum() ** 2
    degrees = min(n - 1.0, 2 * n / max(kurtosis - 1, 2.0))
    half = student.ppf(0.975, degrees) * se
    one = found["alignment"]
    assert one["difference"] == pytest.approx(gap.mean(), rel=1e-4)
    assert one["ci_low"] == pytest.approx(gap.mean() - half, rel=1e-4)
    assert one["ci_high"] == pytest.approx(gap.mean() + half, rel=1e-4)
    # The lower alignment is better; the higher lidar.
    assert (one["direction"], one["better"], one["tied"]) == ("lower", "a.h5", False)
    assert found["lidar"]["better"] == ("a.h5" if found["lidar"]["difference"] > 0 else "b.h5")


def test_order_of_the_two_is_the_sign(here: Path, lidar: Shell) -> None:
    embedded(here / "a.h5", 0.6)
    embedded(here / "b.h5", 0.8, draw=4)
    there = metrics(lidar("compare", "a.h5", "b.h5", "--json"))
    back = metrics(lidar("compare", "b.h5", "a.h5", "--json"))
    assert there.keys() == back.keys() == default_metrics()
    for name, one in there.items():
        other = back[name]
        assert one["values"] == other["values"][::-1]
        assert (one["better"], one["tied"]) == (other["better"], other["tied"])
        if one["ci_low"] is not None:
            assert [one["difference"], one["ci_low"], one["ci_high"]] == pytest.approx(
                [-other["difference"], -other["ci_high"], -other["ci_low"]], rel=1e-9
            )


@pytest.mark.parametrize("by", ["lidar", "rankme", "alignment", "n_above_noise"])
def test_ties_are_those_of_a_ranking(here: Path, lidar: Shell, by: str) -> None:
    for name, noise, draw in (("a", 0.6, 3), ("b", 4.0, 4), ("c", 0.61, 5)):
        embedded(here / f"runs/{name}.h5", noise, draw=draw)
    settings = RankSettings(by=by, device="cpu", cache=here / "cache")
    (group,) = rank_directory(Path("runs"), settings).groups
    ties = set()
    for row, other in combinations(group.rows, 2):
        one = metrics(lidar("compare", row.path, other.path, "--json"))[by]
        if row.interval.se is None:
            assert one["tied"] is None
            continue
        assert one["tied"] == (other.path in row.tied_with)
        assert one["tied"] == (one["ci_low"] <= 0 <= one["ci_high"])
        assert one["better"] == row.path  # the rows are in order, best first
        ties.add(one["tied"])
    assert ties == (set() if by == "n_above_noise" else {True, False})


def test_tie_of_two_that_may_be_equally_far_from_the_target() -> None:
    """0.8 and 1.2 differ, but not in their distance from 1."""
    u = torch.linspace(-1, 1, 300, dtype=torch.float64) ** 3
    metric = METRICS["alpha_req"]
    scores = []
    for value, influences in ((0.8, u), (1.2, -u)):
        score = Score("x.h5", "projector", 300, 2, 4, 1e-4, 1e-7, False)
        interval = confidence({"alpha_req": value}, {"alpha_req": influences}, {}, 0.95)
        score = replace(score, confidence=interval, influences={"alpha_req": influences})
        scores.append(score.with_value("alpha_req", value))
    one = difference(metric, (scores[0], scores[1]), 0.95)
    assert one.interval.ci_high is not None
    assert one.interval.ci_high < 0
    assert one.tied
    assert one.difference == pytest.approx(-0.4)
    comparison = Comparison(("a", "b"), metric, 0.95, differences=(one,))
    assert report.sentence(comparison).endswith(
        ", and both may be equally far from 1, the same images and views in both."
    )


# What it says


def test_sentence_and_table(here: Path, lidar: Shell) -> None:
    embedded(here / "a.h5", 0.6)
    embedded(here / "b.h5", 0.9, draw=4)
    embedded(here / "c.h5", 0.6, draw=6)
    done = lidar("compare", "a.h5", "b.h5", "--by", "alignment")
    found = metrics(lidar("compare", "a.h5", "b.h5", "--json"))["alignment"]
    size, low, high = (f"{-found[key]:.3f}" for key in ("difference", "ci_high", "ci_low"))
    lines = done.stdout.splitlines()
    assert lines[0] == (
        f"a is below b by {size} ({low} .. {high}) in alignment (lower is better: a), "
        "the same images and views in both."
    )
    assert lines[1] == f"projector, n = {N}, q = {Q}, d = {D}, data toy"
    assert lines[3].split() == ["metric", "a", "b", "difference,", "95", "%"]
    (row,) = [line for line in lines if line.startswith("alignment ")]
    a, b = (f"{value:.3f}" for value in found["values"])
    assert row.split() == ["alignment", a, b, f"-{size}", f"(-{high}", "..", f"-{low})"]
    assert max(map(len, lines[1:19])) <= 80
    tied = lidar("compare", here / "a.h5", "c.h5").stdout.splitlines()
    assert tied[0].startswith("a and c are tied in lidar: the difference is ")
    assert tied[0].endswith("), and it may be 0, the same images and views in both.")
    assert "tied: the 95 % interval of the difference holds 0" in tied
    back = lidar("compare", "b.h5", "a.h5", "--by", "alignment").stdout
    assert back.startswith(f"b is above a by {size} ({low} .. {high}) in alignment (lower is")
    rows = list(csv.DictReader(io.StringIO(lidar("compare", "a.h5", "b.h5", "--csv").stdout)))
    assert [row["metric"] for row in rows] == [name for name in METRICS if METRICS[name].is_default]
    assert {(row["first"], row["second"]) for row in rows} == {("a.h5", "b.h5")}
    (row_of_csv,) = [row for row in rows if row["metric"] == "alignment"]
    assert float(row_of_csv["ci_low"]) == found["ci_low"]


def test_markdown_has_the_sentence_and_every_difference(here: Path, lidar: Shell) -> None:
    for name, spread, draw in (("a", 0.6, 3), ("b", 0.8, 4)):
        embedded(here / f"{name}.h5", spread, n=240, draw=draw)
    found = metrics(lidar("compare", "a.h5", "b.h5", "--json"))
    said, table, *_ = lidar("compare", "a.h5", "b.h5", "--markdown").stdout.split("\n\n")
    assert said == lidar("compare", "a.h5", "b.h5").stdout.split("\n")[0]
    header, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()
    ]
    assert header == ["metric", "a", "b", "difference", "95 %", ""]
    assert [row[0] for row in rows] == list(found)
    for name, *values, gap, ends, tied in rows:
        one = found[name]
        assert (tied == "tied") is bool(one["tied"])
        if one["difference"] is not None and name != "noise_fraction":
            assert float(gap) == pytest.approx(one["difference"], rel=0.01, abs=1e-3)
            assert float(values[0]) == pytest.approx(one["values"][0], rel=0.01)
        assert (ends == "-") is (one["ci_low"] is None)


def test_missing_intervals_and_values_have_reasons(here: Path, lidar: Shell) -> None:
    embedded(here / "a.h5", 0.6, n=8)
    embedded(here / "b.h5", 0.9, n=8, draw=4)
    done = lidar("compare", "a.h5", "b.h5")
    lines = done.stdout.splitlines()
    assert "whether that is more than chance is open: n = 8 is not above 2 d = 8" in lines[0]
    assert "Extract the feature files again with -n 9." in done.stderr
    assert any(line.split() == ["metric", "a", "b", "difference"] for line in lines)  # no interval
    assert any(line.startswith("no difference of alpha_req: the fit reads") for line in lines)
    count = lidar("compare", "a.h5", "b.h5", "--by", "n_above_noise").stdout.splitlines()[0]
    assert "equal in n_above_noise" in count or count.endswith("and so no interval.")
    none = lidar("compare", "a.h5", "b.h5", "--by", "alpha_req").stdout
    assert none.startswith("a has no alpha_req: the fit reads eigenvalues 11 to 100")


def test_two_that_are_the_same(here: Path, lidar: Shell) -> None:
    embedded(here / "a.h5", 0.6)
    shutil.copy("a.h5", "copy.h5")
    Path("link.h5").symlink_to("a.h5")
    checkpoint(here / "x/last.pt", 1)
    checkpoint(here / "y/last.pt", 1)
    Path("y/newest.pt").symlink_to("last.pt")
    for pair, words in (
        (("a.h5", "a.h5"), "a.h5 and a.h5 are the same file: there is nothing to compare."),
        ((here / "a.h5", "link.h5"), f"{here / 'a.h5'} and link.h5 are the same file"),
        (("copy.h5", "a.h5"), "copy.h5 and a.h5 hold the same embeddings"),
        (("x", "y"), "x/last.pt and y/last.pt have the same content"),
    ):
        done = lidar("compare", *pair)
        assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
        assert done.stdout.startswith(words)
        if "a.h5" in pair:  # two feature files need no cache
            assert not Path(".lidar").exists()
    assert json.loads(lidar("compare", "x", "y", "--json").stdout)["same"] is True


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"n": 50}, "they differ in n (60, 50); make them equal with -n of lidar extract"),
        ({"seed": 1}, "they differ in seed (0, 1); make them equal with --seed"),
        (
            {"samples_sha256": "6" * 64},
            "they differ in the images; make them equal with --data of",
        ),
    ],
)
def test_two_that_cannot_be_compared(
    here: Path, lidar: Shell, more: dict[str, Any], words: str
) -> None:
    embedded(here / "a.h5", 0.6)
    embedded(here / "b.h5", 0.6, **more)
    done = lidar("compare", "a.h5", "b.h5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: a and b cannot be compared, they differ in ")
    assert words in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["a.h5"], 2, "compare takes two checkpoints or feature files, not 1; name another"),
        (["a.h5", "b.h5", "a.h5"], 2, "not 3; to order them: lidar rank a.h5 b.h5 a.h5"),
        (["a.h5", "c.h5"], 3, "c.h5: no such file or folder; did you mean"),
        (["a.h5", "runs"], 2, "runs: holds several checkpoints, such as runs/1.pt and runs/2.pt"),
        (["a.h5", "empty"], 3, "empty: no checkpoint in it"),
        (["a.h5", "log.txt"], 3, "log.txt is a text file"),
        (["a.h5", "b.h5", "--by", "lidarr"], 2, "did you mean lidar?"),
        (["one.pt", "a.h5"], 2, "to embed both alike, add --data 'my photos' -n 60 -q 3 --seed 0"),
    ],
)
def test_mistakes(here: Path, lidar: Shell, words: list[str], status: int, message: str) -> None:
    record = {"data": "my photos", "n_samples": N, "n_views": Q}
    embedded(here / "a.h5", 0.6, **record)
    embedded(here / "b.h5", 0.6, draw=4)
    checkpoint(here / "runs/1.pt", 1)
    checkpoint(here / "runs/2.pt", 2)
    checkpoint(here / "one.pt", 2)
    (here / "empty").mkdir()
    (here / "log.txt").write_text("epoch 1")
    done = lidar("compare", *words, "--layer", "projector")
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_files_of_several_layers_and_behind_a_user_block(here: Path, lidar: Shell) -> None:
    for seed in range(2):
        views = np.random.default_rng(seed).normal(size=(N, Q, D))
        write_features(f"{seed}.h5", {"backbone": -views, "projector": views})
        np.save(f"{seed}.npy", views)
        with h5py.File(f"block-{seed}.h5", "w", userblock_size=512) as file:
            file["views"] = views

    def differences(*words: str) -> list[tuple[str, float]]:
        done = lidar("compare", *words, "--json", "--metrics", "rankme")
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout)["metrics"]
        return [(row["metric"], row["difference"]) for row in rows]

    of_projector = differences("0.h5", "1.h5", "--layer", "projector")
    assert differences("0.h5", "1.h5") == of_projector
    assert differences("block-0.h5", "block-1.h5") == differences("0.npy", "1.npy")


# Checkpoints


def test_checkpoints_meet_in_the_cache_of_a_ranking(here: Path, images: Path, lidar: Shell) -> None:
    small = ("--data", images, "-n", IMAGES, "-q", 4, "--image-size", 24)
    for seed, name in enumerate(("one", "two", "three")):
        checkpoint(here / f"runs/{name}/last.pt", seed)
    ranking = json.loads(lidar("rank", "runs", *small, "--json").stdout)
    rows = {Path(row["path"]).parent.name: row for row in ranking["checkpoints"]}
    stored = {path: path.stat().st_mtime_ns for path in Path("runs/.lidar").glob("*.h5")}
    asked = metrics(lidar("compare", "runs/one", "runs/two/last.pt", *small, "--json"))
    done = lidar("compare", "runs/one", "runs/two", "--json")
    assert metrics(done) == asked  # without settings, what is stored of both
    assert done.stderr == (
        f"compared on stored embeddings of {images}, n = {IMAGES}, q = 4, seed 0, simclr views, "
        "24 px; for others give --data\n"
    )
    for name, one in asked.items():
        values = [rows[each]["metrics"][name] for each in ("one", "two")]
        assert one["values"] == values
    tied = str(Path("runs/two/last.pt")) in rows["one"]["tied_with"]
    assert asked["lidar"]["tied"] == tied
    assert {path: path.stat().st_mtime_ns for path in Path("runs/.lidar").glob("*.h5")} == stored
    assert not Path(".lidar").exists()
    # A feature file is compared with the stored embeddings that it is comparable with.
    shutil.copy(next(Path("runs/.lidar").glob("*.h5")), "apart.h5")
    apart = lidar("compare", "apart.h5", "runs/two", "--json")
    assert apart.returncode == 0, apart.stderr
    assert metrics(lidar("compare", "apart.h5", "runs/two", "-q", 4, "--json")) == metrics(apart)
    # One that no ranking has is not compared on other images.
    checkpoint(here / "runs/new.pt", 7)
    done = lidar("compare", "runs/new.pt", "runs/two")
    assert done.returncode == 2
    advice = f"to embed both alike, add --data {images} -n {IMAGES} -q 4 --seed 0 --views simclr "
    assert f"{advice}--image-size 24" in done.stderr
    # Other settings are embedded, and where no ranking has a cache, here.
    fewer = metrics(
        lidar("compare", "runs/one", "runs/two", *small, "-n", 20, "--by", "rankme", "--json")
    )
    assert fewer["lidar"]["values"] != asked["lidar"]["values"]
    # What is stored at the settings that are given needs no --data.
    assert metrics(lidar("compare", "runs/one", "runs/two", "-n", 20, "--json")) == fewer
    given = ("-n", IMAGES, "-q", 4, "--image-size", 24, "--views", "simclr", "--json")
    assert metrics(lidar("compare", "runs/one", "runs/two", *given)) == asked
    # Without --data these would be toy pictures, which the user has not asked for.
    assert lidar("rank", "runs", "--data", "embedded", "-n", 12, "-q", 3).returncode == 0
    files = set(Path("runs/.lidar").iterdir())
    for others in (("-n", 12), ("-q", 4, "--seed", 1), ("-q", 3)):
        done = lidar("compare", "runs/one", "runs/two", *others)
        assert (done.returncode, done.stdout) == (2, "")
        question = f"was embedded with those of {images}; add --data {images}, or --data em"
        assert question in done.stderr
    assert set(Path("runs/.lidar").iterdir()) == files
    shutil.rmtree("runs/.lidar")
    again = metrics(lidar("compare", "runs/two", "runs/one", *small, "--json"))
    assert again["lidar"]["values"] == asked["lidar"]["values"][::-1]
    assert len(list(Path(".lidar").glob("*.h5"))) == 2


def test_cautions_are_those_of_a_ranking(here: Path, images: Path, lidar: Shell) -> None:
    small = ("-n", 20, "-q", 2, "--image-size", 24)
    Path("images").symlink_to(images)  # longer commands are shortened
    for seed, name in enumerate(("one", "two")):
        checkpoint(here / f"runs/{name}.pt", seed)
    ranked = lidar("rank", "runs", "--data", "images", *small).stderr.splitlines()
    cautions = [line for line in ranked if line.startswith("caution: ")]
    assert "where no metric is to be believed" in cautions.pop(0)  # which needs a ranking
    done = lidar("compare", "runs/one.pt", "runs/two.pt")
    said = [line for line in done.stderr.splitlines() if line.startswith("caution: ")]
    texts = [line.partition(" lidar rank ")[0].partition(" lidar compare ")[0] for line in cautions]
    assert texts
    assert [line.partition(" lidar compare ")[0] for line in said][: len(texts)] == texts
    command = next(line for line in done.stderr.splitlines() if " -q " in line).partition(" (")[0]
    assert "lidar compare runs/one.pt runs/two.pt --device cpu --data images " in command
    # No more images are advised than the data hold.
    few = image_folder(here / "few", 30)
    words = ("compare", "runs/one.pt", "runs/two.pt", "--by", "rankme", "--layer", "backbone")
    assert (
        "It takes 40 images, and these data hold 30." in lidar(*words, "--data", few, *small).stderr
    )
    toy = lidar("compare", "runs/one.pt", "runs/two.pt", *small, "--data", "embedded")
    last = toy.stderr.splitlines()[-1]
    assert last.startswith("this difference is of toy pictures (small stand-in images), not your ")


def test_scores_that_are_stored_alone_are_compared(here: Path, images: Path, lidar: Shell) -> None:
    small = ("--data", images, "-n", IMAGES, "-q", 4, "--image-size", 24)
    for seed, name in enumerate(("one", "two")):
        checkpoint(here / f"runs/{name}.pt", seed)
    assert lidar("rank", "runs", *small, "--no-store").returncode == 0
    alone = lidar("compare", "runs/one.pt", "runs/two.pt", "--json")
    assert alone.stderr.startswith("compared on stored embeddings of ")
    assert list(Path("runs/.lidar").glob("*.h5")) == []
    whole = metrics(lidar("compare", "runs/one.pt", "runs/two.pt", *small, "--json"))
    assert len(list(Path("runs/.lidar").glob("*.h5"))) == 2
    for name, one in metrics(alone).items():
        other = whole[name]
        assert (one["tied"], one["better"]) == (other["tied"], other["better"])
        if one["ci_low"] is not None:
            keys = ("difference", "ci_low", "ci_high")
            values = pytest.approx([other[key] for key in keys], rel=1e-5, abs=1e-9)
            assert [one[key] for key in keys] == values
    # At other constants the stored scores are not used.
    other = metrics(lidar("compare", "runs/one.pt", "runs/two.pt", "--delta", 0.1, "--json"))
    assert other["lidar"]["values"] != whole["lidar"]["values"]
    assert other["rankme"]["values"] == whole["rankme"]["values"]


def test_cache_that_is_a_link_is_not_followed(here: Path, lidar: Shell) -> None:
    checkpoint(here / "runs/a.pt", 1)
    checkpoint(here / "runs/b.pt", 2)
    (here / "elsewhere").mkdir()
    (here / "elsewhere/LIDAR_CACHE").touch()
    Path("runs/.lidar").symlink_to("../elsewhere")
    Path(".lidar").symlink_to("elsewhere")
    done = lidar("compare", "runs/a.pt", "runs/b.pt", "-n", 20, "-q", 2)
    assert done.returncode == 3
    assert ".lidar: is a link, which may lead anywhere" in done.stderr
    assert [path.name for path in Path("elsewhere").iterdir()] == ["LIDAR_CACHE"]


def test_a_number_of_samples_that_is_given_is_not_that_of_stored_embeddings() -> None:
    """Even if it is the default; without it, stored embeddings of fewer may be compared."""
    for words, is_named in (
        ({}, False),
        ({"n_samples": 1000}, True),
        ({"n_samples": 200}, True),  # the default of the embedded images
        ({"n_views": 4}, True),
        ({"n_views": 10}, True),
        ({"data": "embedded"}, True),
        ({"layer": "backbone"}, False),
    ):
        given = resolve(CompareSettings, words, environment={}).values
        assert _given(given).keys() == (words.keys() if is_named else set())


def test_projectors_of_other_widths_name_the_layer_that_both_have(
    here: Path, images: Path, lidar: Shell
) -> None:
    small = ("--data", images, "-n", 20, "-q", 2, "--image-size", 24)
    checkpoint(here / "a.pt", 1)
    checkpoint(here / "b.pt", 2, projected=6)
    done = lidar("compare", "a.pt", "b.pt", *small)
    assert (done.returncode, done.stdout) == (2, "")
    assert "they differ in d (8, 6); make them equal with --layer backbone" in done.stderr
    done = lidar("compare", "a.pt", "b.pt", *small, "--layer", "backbone")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_table_fits_a_terminal_of_80_columns(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pty

    name = "a_run_with_a_name_that_is_long"
    paths = [Path(f"{name}_{number}.h5") for number in (1, 2)]
    embedded(here / paths[0], 0.6)
    embedded(here / paths[1], 0.9, draw=4)
    comparison = compare_files(paths, CompareSettings(device="cpu"))
    leader, follower = pty.openpty()
    monkeypatch.setenv("COLUMNS", "80")
    with os.fdopen(follower, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", terminal)
        report.print_comparison(comparison)
        terminal.flush()
        shown = os.read(leader, 2**16).decode()
    os.close(leader)
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line).rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= 80
    (heading,) = [line for line in lines if line.startswith("metric")]
    assert heading.split() == ["metric", "a_...ong_1", "a_...ong_2", "95%"]
    (row,) = [line for line in lines if line.startswith("lidar ")]
    assert len(row.split()) >= 6  # values, difference and interval in one line
