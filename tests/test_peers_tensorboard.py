"""TensorBoard reads what `lidar rank --watch --tensorboard` wrote, whatever came in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from make import checkpoint, image_folder, lidar
from peers import MARKS, package
from small_disk import inside
from tensorboard_events import scalars
from watch_runs import N, words

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
    report = {line["step"]: line["metrics"] for line in map(json.loads, done.stdout.splitlines())}
    events = reader.EventAccumulator(str(tmp_path / "board" / "one"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        f"lidar/{name}"
        for name in METRICS
        if any(metrics[name] is not None for metrics in report.values())
    } | {"lidar/drawdown"}
    for event in events.Scalars("lidar/lidar"):
        assert event.value == pytest.approx(report.pop(event.step)["lidar"], rel=1e-6)
    assert report == {}


def test_each_output_knows_what_it_lacks(tmp_path: Path) -> None:
    package("tensorboard")
    images, runs, board = image_folder(tmp_path / "images", N), tmp_path / "runs", tmp_path / "b"

    def watch(*more: object) -> list[int]:
        """Steps of the lines that one.jsonl then holds, in their order."""
        options = ("--interval", 0.1, "--watch-for", 0, *more)
        done = lidar(*words(runs, images, *options), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        return [json.loads(line)["step"] for line in (tmp_path / "one.jsonl").open()]

    one, with_board = ("--jsonl", "one.jsonl"), ("--tensorboard", board)
    checkpoint(runs / "step=1.pt", 1)
    assert watch(*one) == [1]
    assert watch(*one, *with_board) == [1]
    assert scalars(board).keys() == {1}
    checkpoint(runs / "step=2.pt", 2)
    assert watch(*one) == [1, 2]
    checkpoint(runs / "step=3.pt", 3)
    assert watch("--jsonl", "two.jsonl", *with_board) == [1, 2]
    assert len((tmp_path / "two.jsonl").read_text().splitlines()) == 3
    assert scalars(board).keys() == {1, 2, 3}
    before = sorted(board.iterdir())
    assert watch(*one, *with_board) == [1, 2, 3]
    assert scalars(board).keys() == {1, 2, 3}
    assert sorted(board.iterdir()) == before


def test_a_full_disk(tmp_path: Path) -> None:
    package("tensorboard")
    inside("-m", "peers", basetemp=tmp_path / "inside")
