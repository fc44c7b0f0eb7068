"""`lidar probe` on feature files: splits, pairs, groups, memory, sweeps, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from make import lidar, lidar_here
from sklearn.linear_model import LogisticRegression

from lidar_cli.data.builtin import embedded_images
from lidar_cli.errors import SettingsError
from lidar_cli.features.schema import Layout
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.probing import linear
from lidar_cli.probing.classifiers import Accuracy
from lidar_cli.probing.data import open_members, split
from lidar_cli.probing.linear import linear_probe
from lidar_cli.probing.run import ProbeResult, probe_files
from lidar_cli.settings import ProbeSettings

N, D, CLASSES = 300, 8, 6
Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    def probe(*arguments: object) -> subprocess.CompletedProcess[str]:
        return lidar_here("probe", *arguments, monkeypatch=monkeypatch, capfd=capfd)

    return probe


def labels_of(n: int = N, classes: int = CLASSES) -> torch.Tensor:
    return torch.arange(n) * 7 % classes


def embeddings(seed: int, spread: float = 1.5, n: int = N, classes: int = CLASSES) -> torch.Tensor:
    centres = torch.randn(classes, D, generator=torch.Generator().manual_seed(seed))
    noise = torch.randn(n, D, generator=torch.Generator().manual_seed(seed + 1000))
    return centres[labels_of(n, classes)] + spread * noise


def write(path: Path, clean: torch.Tensor, labels: list[int] | None, **provenance: Any) -> Path:
    """A feature file of one layer, without views."""
    layout = Layout({"backbone": clean.shape[1]}, 0, 0, len(clean))
    provenance_of_file = {"sha256": "a", "samples_sha256": path.stem, "image_size": 32} | provenance
    ids = [str(i) for i in range(len(clean))]
    with FeatureWriter.create(path, layout, ids, labels, provenance_of_file) as writer:
        nothing = torch.empty(0, 0, clean.shape[1])
        writer.write(range(len(clean)), {"backbone": nothing}, {"backbone": clean})
        return writer.finish()


def labelled(path: Path, seed: int, spread: float = 1.5, **provenance: Any) -> Path:
    return write(path, embeddings(seed, spread), labels_of().tolist(), **provenance)


def probed(*files: Path, tests: list[Path | None] | None = None, **more: Any) -> list[ProbeResult]:
    settings = ProbeSettings(**({"device": "cpu"} | more))
    actual = probe_files(files, tests or [None] * len(files), settings)
    assert actual.failed == ()
    return list(actual.probed)


# Which rows


def test_one_labelled_sample_is_too_few(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", embeddings(0), [-1] * (N - 1) + [3])
    (failure,) = probe_files([path], [None], ProbeSettings(device="cpu")).failed
    assert failure.reason.startswith("1 training rows of 1 classes and 1 test rows with a label")


def test_a_single_file_is_split_by_seed(tmp_path: Path) -> None:
    path = labelled(tmp_path / "a.h5", 0)
    (actual,) = probed(path)
    assert (actual.n_train, actual.n_test, actual.n_unknown) == (240, 60, 0)
    assert (actual.n_classes, actual.dim, actual.layer) == (CLASSES, D, "backbone")
    rows, labels = embeddings(0), labels_of()
    train, test = split(N, 0.2, seed=0)
    expected = linear_probe(rows[train], labels[train], rows[test], labels[test])[0]
    assert Accuracy(actual.top1, actual.top5) == expected
    assert 0.3 < actual.top1 < 0.99
    assert actual.standard_error == pytest.approx((actual.top1 * (1 - actual.top1) / 60) ** 0.5)
    assert probed(path, seed=1)[0].top1 != actual.top1


def test_unknown_labels_are_left_out_and_counted(tmp_path: Path) -> None:
    labels = labels_of().tolist()
    rows = embeddings(0)
    rows[::3] = 1e6  # would spoil the standardisation
    unknown = [-1 if i % 3 == 0 else label for i, label in enumerate(labels)]
    (actual,) = probed(write(tmp_path / "a.h5", rows, unknown))
    assert (actual.n_train, actual.n_test, actual.n_unknown) == (160, 40, 100)
    with_label = torch.tensor([i for i in range(N) if i % 3])
    alone = write(tmp_path / "b.h5", rows[with_label], [labels[i] for i in with_label.tolist()])
    assert replace(actual, train="", test="", n_unknown=0) == replace(
        probed(alone)[0], train="", test=""
    )


def test_a_pair_learns_from_one_file_and_is_tested_on_the_other(tmp_path: Path) -> None:
    train = labelled(tmp_path / "a.h5", 0)
    # Other numbers for the same classes, and one that no training row has.
    labels = (labels_of() * 10).tolist()
    relabelled = write(tmp_path / "b.h5", embeddings(0), labels)
    test = write(tmp_path / "c.h5", embeddings(0, 2.0)[:100], [*labels[:90], *[7] * 10])
    (actual,) = probed(relabelled, tests=[test])
    assert (actual.n_train, actual.n_test) == (N, 100)
    rows, wanted = embeddings(0), labels_of()
    expected = linear_probe(rows, wanted, embeddings(0, 2.0)[:90], wanted[:90])[0].top1
    assert actual.top1 == pytest.approx(expected * 90 / 100)
    assert "10 test rows are of classes that no training row has" in actual.warnings
    assert probed(train)[0].n_classes == CLASSES


def test_every_layer_of_a_file_is_probed(tmp_path: Path) -> None:
    layout = Layout({"backbone": D, "projector": 3}, 0, 0, N)
    rows = embeddings(0)
    ids = [str(i) for i in range(N)]
    with FeatureWriter.create(tmp_path / "a.h5", layout, ids, labels_of().tolist(), {}) as writer:
        nothing = {name: torch.empty(0, 0, d) for name, d in layout.widths.items()}
        writer.write(range(N), nothing, {"backbone": rows, "projector": rows[:, :3]})
        path = writer.finish()
    assert [(f.layer, f.dim) for f in probed(path)] == [("backbone", D), ("projector", 3)]
    assert [f.layer for f in probed(path, layer="projector")] == ["projector"]


# Side by side


def test_side_by_side_equals_one_at_a_time(tmp_path: Path) -> None:
    files = [labelled(tmp_path / f"{k}.h5", k, 1.0 + k / 2) for k in range(4)]
    other = write(tmp_path / "o.h5", embeddings(9, classes=3), labels_of(classes=3).tolist())
    together = probed(files[0], other, *files[1:])
    assert [Path(f.train).stem for f in together] == ["0", "o", "1", "2", "3"]
    for actual in together:
        (alone,) = probed(Path(actual.train))
        assert actual.top1 == pytest.approx(alone.top1, abs=1.01 / 60)
    assert together[1].n_classes == 3


@pytest.mark.parametrize("method", ["linear", "knn", "ridge"])
def test_memory_bounds_what_is_held_and_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(linear, "WINDOW", 64)
    monkeypatch.setattr(linear, "RUN", 8)
    files = [labelled(tmp_path / f"{k}.h5", k) for k in range(3)]
    held = probed(*files, method=method, minibatch=32)
    # 240 rows of 8 numbers take 7,680 bytes; weights and their copies 1,152; a window 4,096.
    few = probed(*files, method=method, minibatch=32, memory="6000")
    assert [f.top1 for f in few] == pytest.approx([f.top1 for f in held], abs=1.01 / 60)
    pairs = probed(*files, method=method, minibatch=32, memory="18000")  # two at a time
    assert [f.top1 for f in pairs] == pytest.approx([f.top1 for f in held], abs=1.01 / 60)


def test_too_little_memory_is_said_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--memory 1KB: .*a\.h5 needs 1 MB at the least"):
        probed(labelled(tmp_path / "a.h5", 0), memory="1KB")


# Settings


def test_the_best_rate_is_chosen_on_training_rows_held_out(tmp_path: Path) -> None:
    path = labelled(tmp_path / "a.h5", 0, 2.5)
    (actual,) = probed(path, learning_rates="0.0001,0.1,0.01")
    assert [rate.learning_rate for rate in actual.rates] == [0.0001, 0.1, 0.01]
    assert (actual.n_train, actual.n_held_out, actual.n_test) == (216, 24, 60)
    best = max(actual.rates, key=lambda rate: rate.held_out or 0)
    assert (actual.learning_rate, actual.top1) == (best.learning_rate, best.top1)
    assert len({rate.held_out for rate in actual.rates}) > 1
    # The held-out rows are training rows: nothing of the choice changes with the test labels.
    with h5py.File(path, "r") as file:
        labels = torch.from_numpy(file["samples/label"][:])
    test = split(N, 0.2, seed=0)[1]
    labels[test] = (labels[test] + 1) % CLASSES
    (other,) = probed(
        write(tmp_path / "b.h5", embeddings(0, 2.5), labels.tolist()),
        learning_rates="0.0001,0.1,0.01",
    )
    assert other.learning_rate == actual.learning_rate
    assert [r.held_out for r in other.rates] == [r.held_out for r in actual.rates]
    assert other.top1 != actual.top1


def test_a_rate_of_a_sweep_gets_what_it_gets_alone(tmp_path: Path) -> None:
    path = labelled(tmp_path / "a.h5", 0, 2.0)
    (member,) = open_members(path, None, "auto", 0, hold_out=True, device=torch.device("cpu"))
    (actual,) = probed(path, learning_rates="0.1,0.001")
    rows, labels = torch.cat(list(member.train.chunks())), member.train_labels
    test = torch.cat(list(member.test.chunks()))
    for rate in actual.rates:
        settings = ProbeSettings(learning_rates=str(rate.learning_rate))
        (alone,) = linear_probe(rows, labels, test, member.test_labels, settings=settings)
        assert rate.top1 == pytest.approx(alone.top1, abs=1.01 / 60)


def test_trained_to_the_end_it_is_logistic_regression(tmp_path: Path) -> None:
    """On pixels of the demo's images; at 20 epochs of 6 steps it has not arrived yet."""
    images = embedded_images(0)
    pixels = torch.as_tensor(images.images[:, 2::4, 2::4].mean(axis=3)).flatten(1).float()
    path = write(tmp_path / "a.h5", pixels, images.labels.tolist())
    (actual,) = probed(path, epochs=200)
    train, test = split(len(pixels), 0.2, seed=0)
    mean, std = pixels[train].mean(0), pixels[train].std(0)
    x, labels = (pixels - mean) / std, torch.as_tensor(images.labels)
    theirs = LogisticRegression(max_iter=2000).fit(x[train].numpy(), labels[train].numpy())
    expected = theirs.score(x[test].numpy(), labels[test].numpy())
    assert actual.top1 == pytest.approx(expected, abs=0.03)
    assert actual.warnings == ()
    assert probed(path)[0].warnings[0].startswith("120 steps of Adam, too few")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected positive numbers with commas"),
        ("0.1,", "expected positive numbers with commas"),
        ("0.1,-1", "expected positive numbers with commas"),
        ("nan", "expected positive numbers with commas"),
        ("0.1,1e-1", "a rate is given twice"),
    ],
)
def test_odd_learning_rates(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        probed(tmp_path / "never read.h5", learning_rates=text)


# What cannot be probed


def refused(train: Path, test: Path | None = None, **more: Any) -> str:
    actual = probe_files([train], [test], ProbeSettings(device="cpu", **more))
    assert actual.probed == ()
    (failed,) = actual.failed
    assert "\n" not in failed.reason
    return failed.reason


def test_what_is_refused_and_why(tmp_path: Path) -> None:
    labels = labels_of().tolist()
    rows = embeddings(0)
    good = labelled(tmp_path / "good.h5", 0)
    none = write(tmp_path / "none.h5", rows, None)
    assert "holds no labels, so it cannot be probed; extract it from data" in refused(none)
    single = write(tmp_path / "single.h5", rows, [4] * N)
    assert "240 training rows of 1 classes and 60 test rows" in refused(single)
    unknown = write(tmp_path / "unknown.h5", rows, [-1] * N)
    assert "0 training rows of 0 classes and 0 test rows" in refused(unknown)
    other = labelled(tmp_path / "other.h5", 0, sha256="b")
    assert "other.h5 is of another checkpoint (a and b)" in refused(good, other)
    larger = labelled(tmp_path / "larger.h5", 0, image_size=64)
    assert "larger.h5 is of another image size (32 and 64)" in refused(good, larger)
    same = labelled(tmp_path / "same.h5", 1, samples_sha256="good")
    assert "same.h5 holds the same samples" in refused(good, same)
    narrow = write(tmp_path / "narrow.h5", rows[:, :5], labels)
    assert "d = 8, and" in refused(good, narrow)
    assert "no layer 'projector'" in refused(good, layer="projector")
    text = tmp_path / "text.h5"
    text.write_text("no")
    assert "not an HDF5 file; expected a feature file" in refused(text)
    assert "cannot be opened" in refused(tmp_path / "absent.h5")


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([0.5] * N, "labels are float64"),
        ([[1]] * N, r"labels are int64 (300, 1)"),
        ([0, 1] * 10, "samples/label has the shape (20,), but there are 300 rows"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, labels: list[Any], text: str) -> None:
    path = labelled(tmp_path / "a.h5", 0)
    with h5py.File(path, "r+") as file:
        del file["samples/label"]
        file["samples/label"] = labels
    assert text in refused(path)


def test_labels_of_any_size_need_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", embeddings(0), (labels_of() * 2**59).tolist())
    assert probed(path)[0].n_classes == CLASSES


# The command


def test_one_bad_file_stops_no_other(tmp_path: Path, run: Shell) -> None:
    good, bad = labelled(tmp_path / "a.h5", 0), write(tmp_path / "b.h5", embeddings(0), None)
    done = run(good, bad, "--json", "--device", "cpu")
    assert done.returncode == 3
    assert f"error: {bad}: holds no labels" in done.stderr
    (actual,) = json.loads(done.stdout)
    assert actual["train"] == actual["test"] == str(good)
    assert actual["top1"] == probed(good)[0].top1
    assert actual["top1_standard_error"] > 0


def test_tables_for_people_and_csv_for_programs(tmp_path: Path, run: Shell) -> None:
    files = [labelled(tmp_path / f"{k}.h5", k) for k in range(2)]
    done = run(*files, "--learning-rates", "0.1,0.01")
    assert done.returncode == 0
    (first, second) = probed(*files, learning_rates="0.1,0.01")
    line = next(line for line in done.stdout.splitlines() if "0.h5:backbone" in line)
    assert f"{100 * first.top1:.1f}" in line.split()
    assert "The best rate is that of the 24 training rows held out" in done.stdout
    assert "and 1 more: 20 steps of Adam, too few" in done.stderr  # said once
    rows = list(
        csv.DictReader(io.StringIO(run(*files, "--learning-rates", "0.1,0.01", "--csv").stdout))
    )
    assert [(row["learning_rate"], row["best"]) for row in rows[:2]] == [
        (str(rate.learning_rate), str(int(rate.learning_rate == first.learning_rate)))
        for rate in first.rates
    ]
    assert [float(row["top1"]) for row in rows] == [
        r.top1 for f in (first, second) for r in f.rates
    ]
    knn = run(files[0], "--method", "knn", "--csv").stdout.splitlines()
    assert len(knn) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--train", "a.h5"],
        ["--test", "a.h5"],
        ["a.h5", "--train", "a.h5", "--test", "b.h5"],
        ["a.h5", "--test", "b.h5"],
        ["--train", "a.h5", "--train", "b.h5", "--test", "c.h5"],
    ],
)
def test_files_or_pairs(arguments: list[str], run: Shell) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "probe takes feature files to split, or pairs of --train and --test" in done.stderr


def test_a_real_process(tmp_path: Path) -> None:
    path = labelled(tmp_path / "a.h5", 0)
    done = lidar("probe", path.name, "--method", "ridge", "--device", "cpu", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ridge regression on standardised embeddings" in done.stdout
