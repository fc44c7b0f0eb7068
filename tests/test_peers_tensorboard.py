"""TensorBoard reads what `lidar rank --watch --tensorboard` wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from make import checkpoint, image_folder, lidar
from peers import MARKS, package
from test_follow import N, words

from lidar_cli.core.metrics import METRICS

pytestmark = MARKS


def test_a_run_a_folder_and_a_point_a_metric(tmp_path: Path) -> None:
    reader = package("tensorboard.backend.event_processing.event_accumulator")
    images = image_folder(tmp_path / "images", N)
    for step in (500, 1000):
        checkpoint(tmp_path / "runs" / "one" / f"epoch=3-step={step}.pt", step)
    more = ("--interval", 0.1, "--watch-for", 0, "--tensorboard", tmp_path / "board")
    done = lidar(*words(tmp_path / "runs", images, *more), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = {line["step"]: line["metrics"] for line in map(json.loads, done.stdout.splitlines())}
    events = reader.EventAccumulator(str(tmp_path / "board" / "one"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        name for name in METRICS if any(metrics[name] is not None for metrics in told.values())
    }
    for event in events.Scalars("lidar"):
        assert event.value == pytest.approx(told.pop(event.step)["lidar"], rel=1e-6)
    assert told == {}
