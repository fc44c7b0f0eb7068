"""The demo in miniature: the real code, fewer and shorter runs on fewer images."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from make import lidar
from raising import raises

from lidar_cli.data.builtin import embedded_images
from lidar_cli.demo import pretrain, run
from lidar_cli.errors import InputError
from lidar_cli.report.demo import print_demo
from lidar_cli.settings import DemoSettings


def small(patch: pytest.MonkeyPatch) -> None:
    """Four runs of one epoch on a sixth of the training images; the others are tested on."""
    images = embedded_images()
    train = images.train & (np.arange(len(images.train)) % 6 == 0)
    few = dataclasses.replace(images, train=train)
    patch.setattr(run, "embedded_images", lambda: few)
    patch.setattr(run, "RUNS", 4)
    patch.setattr(pretrain, "EPOCHS", (1, 1))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, run.Demo]:
    """Four runs of one epoch, ranked and probed."""
    directory = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        return directory, run.run_demo(directory, DemoSettings(device="cpu"))


def test_every_run_is_saved_ranked_and_probed(ran: tuple[Path, run.Demo]) -> None:
    directory, demo = ran
    saved = sorted(map(str, (directory / "runs").rglob("*.pt")))
    assert saved == sorted(demo.hyperparameters) == sorted(demo.accuracies)
    (group,) = demo.ranking.groups
    assert [row.rank for row in group.rows] == [1, 2, 3, 4]
    assert not demo.ranking.failed
    assert all(0.0 <= accuracy <= 1.0 for accuracy in demo.accuracies.values())
    assert group.common["layer"] == "projector"
    assert (group.common["n"], group.common["q"]) == (600, 4)
    assert all(row.interval.se is not None for row in group.rows)


def test_rank_on_the_same_directory_gives_the_same_order(ran: tuple[Path, run.Demo]) -> None:
    directory, demo = ran
    again = json.loads(lidar("rank", "runs", "-n", 600, "--json", cwd=directory).stdout)
    expected = [
        (str(Path(row.path).relative_to(directory)), row.value)
        for row in demo.ranking.groups[0].rows
    ]
    assert [(row["path"], row["value"]) for row in again["checkpoints"]] == expected
    assert again["data"] == "embedded"


def test_a_second_demo_uses_the_checkpoints_of_the_first(
    ran: tuple[Path, run.Demo], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, demo = ran
    small(monkeypatch)
    times = {path: Path(path).stat().st_mtime_ns for path in demo.hyperparameters}
    again = run.run_demo(directory, DemoSettings(device="cpu"))
    assert again.accuracies == demo.accuracies
    assert {path: Path(path).stat().st_mtime_ns for path in times} == times


def test_another_seed_does_not_mix_with_it(
    ran: tuple[Path, run.Demo], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = ran
    monkeypatch.setattr(run, "RUNS", 4)
    with raises(InputError, "other-runs"):
        run.run_demo(directory, DemoSettings(device="cpu", seed=1))


def test_the_report_shows_accuracies_correlations_and_attribution(
    ran: tuple[Path, run.Demo], capsys: pytest.CaptureFixture[str]
) -> None:
    _, demo = ran
    print_demo(demo)
    shown = capsys.readouterr().out
    for path, accuracy in demo.accuracies.items():
        assert Path(path).parent.name in shown
        assert f"{100 * accuracy:.1f}" in shown
    assert "Spearman" in shown
    (group,) = demo.ranking.groups
    numbers = re.findall(r"(?m)^\d+ .* [\d.]+ \+- [\d.]+", shown)  # rows of the table
    assert len(numbers) == len(group.rows)
    assert f"lidar rank {demo.ranking.directory} -n 600" in shown
    assert "CC BY 2.0" in shown
    assert "UCI" in shown


def test_hyperparameters_are_half_simclr_half_vicreg(ran: tuple[Path, run.Demo]) -> None:
    _, demo = ran
    methods = [dataclasses.asdict(h)["method"] for h in demo.hyperparameters.values()]
    assert sorted(methods) == ["simclr", "simclr", "vicreg", "vicreg"]
