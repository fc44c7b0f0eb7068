"""The study in miniature: real trainings, real files, fewer of them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import run_command
from make import environment
from PIL import Image
from scipy.stats import kendalltau, spearmanr
from study import runs as study_runs
from study.report import print_study, to_csv, write_study
from study.runs import LAYERS, METHODS, Run, Size, all_runs
from study.study import Study, run_study

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import InputError
from lidar_cli.extraction.run import extract_checkpoint
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import DemoSettings, ExtractSettings, ScoreSettings

pytestmark = pytest.mark.nightly  # the study is run by hand

N_IMAGES = 300
SMALL = Size(("textures",), N_IMAGES, runs=2, epochs=(1, 1), n_samples=150, views=(2, 3))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    """Two runs of one epoch for each method on one set, and both backbones untrained.

    In this process; test_a_second_study_uses_what_is_there has one done by a worker, as they are.
    """

    def in_turn(work: Any, tasks: Any, name: str, progress: Progress, done: int = 0) -> None:
        for task in tasks:
            work(*task)

    directory = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("study.study.run_parallel", in_turn)
        return directory, run_study(directory, DemoSettings(), size=SMALL)


def test_every_run_is_trained_saved_and_measured(ran: tuple[Path, Study]) -> None:
    directory, study = ran
    assert [m.run for m in study.measured] == all_runs(SMALL)
    assert study.now == len(study.measured) == 2 + 2 * len(METHODS)
    for m in study.measured:
        assert (directory / m.run.name / "checkpoint.pt").is_file()
        assert m.failed is None
        assert len(m.losses) == (0 if m.run.index is None else 1)
        assert m.accuracy is not None
        assert 0 <= m.accuracy <= 1
        assert set(m.scores) == {(layer, q) for layer in LAYERS for q in SMALL.views}
        for (_, q), score in m.scores.items():
            assert (score.n_samples, score.n_views, score.dim) == (150, q, 128)
            assert score.rankme_rows == N_IMAGES


@pytest.mark.parametrize(
    ("method", "format", "branch"),
    [("dino", "dino", "teacher"), ("ijepa", "ijepa", "teacher"), ("simclr", None, "encoder")],
)
def test_checkpoints_are_recognised_without_a_flag(
    ran: tuple[Path, Study], method: str, format: str | None, branch: str
) -> None:
    directory, _ = ran
    loaded = open_checkpoint(directory / Run("textures", method, 0).name / "checkpoint.pt")
    assert loaded.description.branch == branch
    if format is not None:
        assert loaded.description.format == format
    assert loaded.description.widths["backbone"] == 128


@pytest.mark.parametrize(("method", "layer"), [("vicreg", "projector"), ("ijepa", "predictor")])
def test_what_is_measured_is_what_extract_and_score_say(
    ran: tuple[Path, Study], tmp_path: Path, method: str, layer: str
) -> None:
    """Through the files that a user would have: images as PNGs, features of two views, arrays."""
    directory, study = ran
    run = Run("textures", method, 1)
    (measured,) = [m for m in study.measured if m.run == run]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    # Sample i of extract is the file whose number is i-th in its order by seed.
    order = np.random.RandomState(0).permutation(N_IMAGES)
    images = study_runs.study_images("textures", 0, N_IMAGES).images
    for number, image in zip(order, images, strict=True):
        Image.fromarray(image).save(pictures / f"{number:04}.png")
    extract = ExtractSettings(
        data=str(pictures), n_samples=150, clean_samples=N_IMAGES, n_views=2, image_size=32,
        views="simclr", layer=f"backbone,{layer}", device="cpu", output=tmp_path / "features.h5",
    )  # fmt: skip
    extract_checkpoint(directory / run.name / "checkpoint.pt", extract)
    said = {score.layer: score for score in score_file(tmp_path / "features.h5", ScoreSettings())}
    assert set(said) == {"backbone", layer}
    for place, name in zip(LAYERS, ("backbone", layer), strict=True):
        score_of_run = measured.scores[place, 2]
        for metric in METRICS:
            expected = said[name].value(metric)
            if expected is None:
                assert score_of_run.value(metric) is None
            else:
                assert score_of_run.value(metric) == pytest.approx(expected, rel=1e-3), metric
        assert score_of_run.notes == said[name].notes
        assert score_of_run.lidar is not None


def test_a_second_study_uses_what_is_there(ran: tuple[Path, Study]) -> None:
    directory, study = ran
    checkpoints = sorted(directory.rglob("*.pt"))
    times = [path.stat().st_mtime_ns for path in checkpoints]
    (directory / study.measured[3].run.name / "measured.json").unlink()
    again = run_study(directory, DemoSettings(), size=SMALL)
    assert again.now == 1
    assert [path.stat().st_mtime_ns for path in checkpoints] == times
    assert again.measured == study.measured
    assert again.agreements == study.agreements


def test_another_study_does_not_mix_with_it(ran: tuple[Path, Study]) -> None:
    directory, _ = ran
    for settings, size in [
        (DemoSettings(seed=1), SMALL),
        (DemoSettings(), dataclasses.replace(SMALL, n_samples=160)),
    ]:
        with pytest.raises(InputError, match=r"is not of a study of this seed and size"):
            run_study(directory, settings, size=size)


def test_files_hold_the_same_numbers_as_the_record(
    ran: tuple[Path, Study], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, study = ran
    written = write_study(study, tmp_path, "study here --seed 0")
    assert [path.name for path in written] == ["study.md", "study.csv", "study.json"]
    print_study(study, written)
    shown = capsys.readouterr().out
    report = written[0].read_text()
    assert "study here --seed 0" in report
    for name in METRICS:
        assert name in shown
        assert f"| {name} |" in report
    assert "CC BY 2.0" in shown
    record = json.loads(written[2].read_text())
    assert record["command"] == "study here --seed 0"
    assert [c["accuracy"] for c in record["checkpoints"]] == [m.accuracy for m in study.measured]
    rows = list(csv.DictReader(io.StringIO(to_csv(study))))
    assert len(rows) == 2 * 2 * (1 + len(METHODS)) * len(METRICS)


def test_correlations_of_the_table_are_scipys_on_its_own_numbers(
    ran: tuple[Path, Study], tmp_path: Path
) -> None:
    _, study = ran
    write_study(study, tmp_path, "")
    record = json.loads((tmp_path / "study.json").read_text())
    rows = csv.DictReader(io.StringIO((tmp_path / "study.csv").read_text()))
    compared = 0
    for row in rows:
        if row["method"] != "all" or row["metric"] not in ("rankme", "alignment"):
            continue
        sign = -1 if row["metric"] == "alignment" else 1
        values, accuracies = [], []
        for checkpoint in filter(lambda c: c["trained"], record["checkpoints"]):
            (one,) = [
                m[row["metric"]]
                for m in checkpoint["metrics"]
                if m["layer"] == row["layer"] and m["n_views"] == int(row["q"])
            ]
            values.append(sign * one)
            accuracies.append(checkpoint["accuracy"])
        expected = spearmanr(values, accuracies).statistic, kendalltau(values, accuracies).statistic
        assert float(row["spearman"]) == pytest.approx(expected[0], abs=1e-4)
        assert float(row["kendall"]) == pytest.approx(expected[1], abs=1e-4)
        compared += 1
    assert compared == 2 * 2 * 2


def test_a_run_that_diverged_is_told_and_left_out(ran: tuple[Path, Study], tmp_path: Path) -> None:
    directory, _ = ran
    size = dataclasses.replace(SMALL, n_samples=3, views=(2,))
    run = Run("textures", "simclr", 0)
    checkpoint = torch.load(directory / run.name / "checkpoint.pt", weights_only=True)
    checkpoint["state_dict"]["module.backbone.conv1.weight"].fill_(torch.nan)
    checkpoint["losses"] = [float("nan")]
    (tmp_path / run.name).mkdir(parents=True)
    torch.save(checkpoint, tmp_path / run.name / "checkpoint.pt")
    study_runs.train_and_measure(run, tmp_path, 0, size)
    measured = study_runs.read_measured(run, tmp_path, 0, size)
    assert measured is not None
    assert measured.losses == (None,)
    assert measured.accuracy is None
    assert "NaN" in (measured.failed or "")


def test_the_study_is_a_program_that_says_what_is_wrong(tmp_path: Path) -> None:
    folder = str(Path(study_runs.__file__).parent)
    script = f"import runpy; runpy.run_path({folder!r}, run_name='__main__')"  # python FOLDER

    def program(*words: object) -> subprocess.CompletedProcess[str]:
        return run_command(words, tmp_path, environment(), script=script)

    assert "do label-free metrics order small checkpoints" in program("--help").stdout
    (tmp_path / "file").touch()
    failed = program(tmp_path / "file")
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: {tmp_path / 'file'}: cannot be made")
    assert "Traceback" not in failed.stderr
