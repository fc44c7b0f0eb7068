"""The plan of the study's training runs, and the stage that trains them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from study.train import METHODS, Run, planned_runs, train_run

SWEEPS = [run for run in planned_runs() if run.kind == "sweep"]


def test_the_plan_is_that_of_the_protocol():
    runs = planned_runs()
    assert len({(run.data, run.name) for run in runs}) == len(runs)
    searches = Counter((run.data, run.method) for run in runs if run.kind == "search")
    for method in METHODS:
        assert [searches[data, method] for data in ("fashion", "plain", "digits", "textures")] == [
            24, 24, 8, 8,
        ]  # fmt: skip
    assert {run.data for run in runs if run.kind in ("seed", "sweep")} == {"fashion"}


def test_runs_of_the_search_differ_and_a_repeated_seed_differs_in_its_seed_alone():
    searches = [run for run in planned_runs() if run.kind == "search"]
    assert len({run.training_seed(0) for run in searches}) == len(searches)
    drawn = {json.dumps(dataclasses.asdict(run.hyperparameters(0))) for run in searches}
    assert len(drawn) == len(searches)
    first, again = Run("fashion", "byol", "search", 2), Run("fashion", "byol", "seed", 2, repeat=1)
    assert first.hyperparameters(0) == again.hyperparameters(0)
    assert first.training_seed(0) != again.training_seed(0)


@pytest.mark.parametrize("run", [run for run in SWEEPS if run.varied], ids=lambda run: run.name)
def test_a_sweep_varies_one_hyperparameter_in_its_range(run):
    centre = dataclasses.replace(run, varied=None, share=0.5).hyperparameters(0)
    drawn = run.hyperparameters(0)
    differing = [
        field.name
        for field in dataclasses.fields(drawn)
        if getattr(drawn, field.name) != getattr(centre, field.name)
    ]
    assert differing == [run.varied]
    assert run.training_seed(0) == Run("fashion", run.method, "sweep").training_seed(0)


def test_a_sweep_reaches_both_ends_of_the_range():
    values = [
        run.hyperparameters(0).temperature
        for run in SWEEPS
        if run.method == "simclr" and run.varied == "temperature"
    ]
    assert values == pytest.approx([0.05, 0.05 * 20**0.25, 0.05 * 20**0.75, 1.0])


def test_an_untrained_network_is_saved_with_its_record(tmp_path: Path):
    run = Run("textures", "ijepa", "untrained")
    train_run(run, tmp_path, 0, tmp_path, end=float("inf"))
    folder = tmp_path / "checkpoints" / "textures" / "ijepa-untrained"
    record = json.loads((folder / "run.json").read_text())
    assert record["losses"] == []
    assert record["hyperparameters"]["epochs"] == 0
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"] == 0


def test_no_run_begins_after_the_end(tmp_path: Path):
    train_run(Run("textures", "ijepa", "untrained"), tmp_path, 0, tmp_path, end=0.0)
    assert list(tmp_path.iterdir()) == []
