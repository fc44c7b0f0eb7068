"""The measurement of the study: its files, its probes, and both stages in miniature."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from study import measure as measurement
from study.image_sets import study_set
from study.measure import (
    METRICS_COLUMNS,
    Source,
    probe_run,
    probes,
    rotation_probe,
    score_run,
    trained_runs,
)
from study.records import (
    ACCURACY_FILE,
    ACCURACY_KEY,
    LAYERS,
    METRICS_FILE,
    METRICS_KEY,
    append_rows,
    best_accuracy,
    read_results,
    read_rows,
)
from study.tables import write_tables
from study.train import METHODS, Run
from study_results import plant

from lidar_cli.core.metrics import METRICS
from lidar_cli.data.builtin import EmbeddedImages
from lidar_cli.errors import InputError
from lidar_cli.runtime.processes import save_checkpoint

COLUMNS, KEY = ("set", "name", "value"), ("set", "name")


# The files


def test_rows_are_appended_under_one_header_and_a_later_row_counts(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    append_rows(path, COLUMNS, [{"set": "a", "name": "x", "value": 0.1}])
    append_rows(path, COLUMNS, [{"set": "a", "name": "x", "value": 0.2}, {"set": "a", "name": "y"}])
    assert path.read_text() == "set,name,value\na,x,0.1\na,x,0.2\na,y,\n"
    rows = read_rows(path, KEY)
    assert {key: row["value"] for key, row in rows.items()} == {("a", "x"): "0.2", ("a", "y"): ""}


@pytest.mark.parametrize("torn", ["a,y,0.2", "a", '"'])
def test_a_torn_last_line_is_dropped_on_reading_and_removed_by_the_next(
    tmp_path: Path, torn: str
) -> None:
    path = tmp_path / "rows.csv"
    append_rows(path, COLUMNS, [{"set": "a", "name": "x", "value": 0.1}])
    whole = path.read_text()
    path.write_text(whole + torn)
    assert set(read_rows(path, KEY)) == {("a", "x")}
    append_rows(path, COLUMNS, [{"set": "b", "name": "z", "value": 0.3}])
    assert path.read_text() == whole + "b,z,0.3\n"


def test_a_torn_header_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("set,na")
    assert read_rows(path, KEY) == {}
    append_rows(path, COLUMNS, [{"set": "a", "name": "x", "value": 0.1}])
    assert path.read_text() == "set,name,value\na,x,0.1\n"


def test_a_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    append_rows(path, ("set", "name"), [{"set": "a", "name": "x"}])
    with pytest.raises(InputError, match=r"rows\.csv: has other columns than this version writes"):
        append_rows(path, COLUMNS, [{"set": "a", "name": "y", "value": 0.1}])
    assert path.read_text() == "set,name\na,x\n"


def test_numbers_are_read_as_they_were_measured_with_seven_digits(tmp_path: Path) -> None:
    value = 1 / 3
    plant(tmp_path, "simclr-00", 0.7, lambda layer: {"lidar": value}, crop=0.25, index=3)
    plant(tmp_path, "simclr-01", 0.0, lambda layer: {}, failed="row 3 is NaN")
    results = read_results(tmp_path)
    assert results.directions == {"lidar": "higher", "rankme": "lower", "alpha_req": "nearest 1"}
    assert results.failed == {("fashion", "simclr-01"): "row 3 is NaN"}
    backbone, projector = results.checkpoints
    assert (backbone.layer, projector.layer) == LAYERS
    assert backbone.values == {"lidar": 0.3333333, "rankme": None, "alpha_req": None}
    assert (backbone.accuracy, backbone.index, backbone.hyperparameters) == (0.7, 3, {"crop": 0.25})
    assert best_accuracy({"lbfgs": "0.5", "paper": "0.75"}) == 0.75


def test_no_accuracies_are_one_line_that_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no rows; .* python tests/benchmarks/study measure"):
        read_results(tmp_path)


def test_a_study_without_a_run_that_counts_is_one_line(tmp_path: Path) -> None:
    plant(tmp_path, "simclr-untrained", 0.5, lambda _: {"lidar": 1.0}, kind="untrained")
    plant(tmp_path, "simclr-00", 0.4, lambda _: {"lidar": 1.0}, index=0)
    with pytest.raises(InputError, match="no method has half of its runs above the untrained"):
        write_tables(tmp_path, tmp_path)


# The probes


def clusters(scale: torch.Tensor, per_class: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Three Gaussian classes whose centres are 6 standard deviations apart, dimensions scaled."""
    labels = torch.arange(3).repeat(per_class)
    noise = torch.randn(len(labels), len(scale), generator=torch.Generator().manual_seed(0))
    centres = 6.0 * torch.eye(3, len(scale)) / 2**0.5
    return (noise + centres[labels]) * scale, labels


def test_probes_separate_what_is_separable_at_any_scale() -> None:
    rows, labels = clusters(torch.logspace(-4, 4, 8))
    actual = probes(rows[::2], labels[::2], rows[1::2], labels[1::2])
    assert actual["lbfgs"] >= 0.98  # Bayes' error between two centres is 0.13 %
    assert actual["strength"] in measurement.STRENGTHS
    assert 0 < actual["iterations"] < measurement.MOST_ITERATIONS


def test_the_strength_is_stronger_where_the_rows_hold_no_class() -> None:
    """Labels of chance: whatever is learnt is wrong, and the strongest of equals is taken."""
    rows = torch.randn(120, 40, generator=torch.Generator().manual_seed(1))
    constant = torch.zeros_like(rows)
    labels = torch.arange(120) % 3
    actual = probes(constant[:90], labels[:90], constant[90:], labels[90:])
    assert actual["strength"] == measurement.STRENGTHS[0]
    assert actual["lbfgs"] == pytest.approx(1 / 3)


def test_rows_that_are_not_finite_are_refused() -> None:
    rows, labels = clusters(torch.ones(4))
    rows[5, 1] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        probes(rows, labels, rows, labels)


def test_the_turn_of_an_image_is_read_from_embeddings_that_have_it() -> None:
    """Images with a bright upper left quarter: the means of the quarters name the turn."""
    images = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    images[:, :, :4, :4] += 1.0

    def embed(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        quarters = torch.nn.functional.avg_pool2d(pixels, 4).flatten(1)
        return {"backbone": quarters, "projector": pixels.mean(dim=(2, 3))}  # no turn in a mean

    actual = rotation_probe(embed, images, 0)
    assert actual["backbone"] == 1.0
    assert actual["projector"] == pytest.approx(0.25)  # the same scores for all turns of an image


# Both stages


def small_runs(directory: Path, names: list[Run]) -> None:
    """Checkpoints of one epoch on few images, as training leaves them."""
    for run in names:
        images = measurement.study_set(run.data, 0, directory)
        pictures = images.images[images.train][:128]
        h = run.hyperparameters(0)
        h = dataclasses.replace(h, epochs=min(h.epochs, 1))
        checkpoint = METHODS[run.method][1](pictures, h, run.training_seed(0))
        path = directory / "checkpoints" / run.data / run.name / "checkpoint.pt"
        save_checkpoint(checkpoint, path)
        record = {"set": run.data, "method": run.method, "kind": run.kind, "name": run.name}
        record |= {"index": run.index, "seed": run.training_seed(0), "varied": run.varied}
        record |= {"hyperparameters": dataclasses.asdict(h), "seconds": 0.1, "threads": 1}
        (path.parent / "run.json").write_text(json.dumps(record))


def test_no_measurement_begins_after_the_end(tmp_path: Path) -> None:
    source = Source(tmp_path, 0, tmp_path)
    for stage in (probe_run, score_run):
        stage({"set": "textures", "name": "simclr-00"}, source, end=0.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.nightly
def test_the_study_in_miniature_resumes_and_its_tables_follow_from_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_turn(work, tasks, name, progress, done=0, processes=None):
        for task in tasks:
            work(*task)

    def few_images(name, seed, folder):
        images = study_set(name, seed, folder)
        some = (images.images, images.labels, images.train)
        return EmbeddedImages(*(each[:400] for each in some), images.attribution)

    monkeypatch.setattr(measurement, "run_parallel", in_turn)
    monkeypatch.setattr(measurement, "study_set", few_images)
    runs = [Run("textures", method, "untrained") for method in ("simclr", "ijepa")]
    runs += [Run("textures", "simclr", "search", at) for at in (0, 1)]
    small_runs(tmp_path, runs)
    diverged = tmp_path / "checkpoints" / "textures" / "simclr-01" / "checkpoint.pt"
    checkpoint = torch.load(diverged, weights_only=True)
    checkpoint["state_dict"]["module.backbone.conv1.weight"].fill_(torch.nan)
    save_checkpoint(checkpoint, diverged)
    source = Source(tmp_path, 0, tmp_path, measurement.Size(150, (2, 3)))

    def measured(with_metrics: bool) -> None:
        measurement.measure(source, 60, 1, measurement.Progress(), with_metrics=with_metrics)

    measured(with_metrics=False)
    assert not (tmp_path / METRICS_FILE).exists()
    assert [path.name for path in write_tables(tmp_path, tmp_path)] == ["study.md"]
    measured(with_metrics=True)
    accuracy = (tmp_path / ACCURACY_FILE).read_bytes()
    metrics = (tmp_path / METRICS_FILE).read_bytes()
    assert len(read_rows(tmp_path / ACCURACY_FILE, ACCURACY_KEY)) == len(runs) * 2
    rows = read_rows(tmp_path / METRICS_FILE, METRICS_KEY)
    assert len(rows) == len(runs) * 2 * 2
    assert "NaN" in rows["textures", "simclr-01", "backbone", "2"]["failed"]
    results = read_results(tmp_path)
    assert set(results.failed) == {("textures", "simclr-01")}
    assert set(results.directions) == {*METRICS, "rotation"}
    assert all(c.values["lidar"] is not None for c in results.checkpoints)
    # The last checkpoint is cut off within its rows, as by a killed process: it is measured again.
    (tmp_path / METRICS_FILE).write_bytes(metrics[: metrics.rstrip().rfind(b"\n") + 9])
    measured(with_metrics=True)
    assert (tmp_path / ACCURACY_FILE).read_bytes() == accuracy
    assert read_rows(tmp_path / METRICS_FILE, METRICS_KEY) == rows
    assert metrics.decode().splitlines()[0] == ",".join(METRICS_COLUMNS)
    assert len(trained_runs(tmp_path)) == len(runs)


def test_every_table_follows_from_planted_files(tmp_path: Path) -> None:
    """lidar orders as the probe does, rankme at random; VICReg's training fails."""
    draw = np.random.default_rng(0)
    for data in ("fashion", "plain"):
        plant(tmp_path, "simclr-untrained", 0.5, lambda _: {"lidar": 0.0}, data=data,
              kind="untrained")  # fmt: skip
        for at in range(12):
            for method, accuracy in (("simclr", 0.51 + 0.01 * at), ("vicreg", 0.2)):
                values = {"lidar": accuracy, "rankme": float(draw.normal())}
                plant(tmp_path, f"{method}-{at:02}", accuracy, lambda _, v=values: v, data=data,
                      method=method, index=at)  # fmt: skip
    plant(tmp_path, "simclr-00-seed1", 0.6, lambda _: {"lidar": 0.6}, kind="seed", index=0)
    plant(tmp_path, "simclr-centre", 0.6, lambda _: {"lidar": 0.6}, kind="sweep")
    plant(tmp_path, "simclr-crop-0", 0.7, lambda _: {"lidar": 0.7}, kind="sweep", varied="crop")
    written = write_tables(tmp_path, tmp_path)
    texts = {path.name: path.read_text() for path in written}
    assert set(texts) == {
        "study.md", "settings.csv", "summary.csv", "candidates.csv", "seeds.csv",
    }  # fmt: skip
    summary = list(csv.DictReader(texts["summary.csv"].splitlines()))
    first = {row["scope"]: row for row in reversed(summary)}
    for scope in ("pooled", "within"):
        assert first[scope]["metric"] == "lidar"
        assert (first[scope]["spearman_worst"], first[scope]["loss_most"]) == ("+1.00", "0.0")
    settings = list(csv.DictReader(texts["settings.csv"].splitlines()))
    assert {(row["method"], row["checkpoints"]) for row in settings} == {
        ("all", "12"),
        ("simclr", "12"),
    }
    best = next(csv.DictReader(texts["candidates.csv"].splitlines()))
    assert (best["candidate"], best["margin"]) == ("lidar", "+0.50")
    report = texts["study.md"]
    assert "chosen on all sets is **lidar**" in report
    assert "+1.00 (goal +0.5: met) pooled and +1.00 (goal +0.3: met) within" in report
    assert "| fashion | vicreg | 0 of 12 | 20.0 | 20.0 | 20.0 | 50.0 | failed training |" in report
    assert "| linear probe | 70.0 | 70.0 |" in report  # the sweep of crop, and all of them
    # A second time from the two files alone, in another folder: the same bytes.
    other = tmp_path / "other"
    other.mkdir()
    for name in (ACCURACY_FILE, METRICS_FILE):
        (other / name).write_bytes((tmp_path / name).read_bytes())
    (tmp_path / "again").mkdir()
    again = write_tables(other, tmp_path / "again")
    assert {path.name: path.read_text() for path in again if path.name != "study.md"} == {
        name: text for name, text in texts.items() if name != "study.md"
    }
