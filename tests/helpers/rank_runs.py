"""`lidar rank` on small photographs, and how its JSON is read."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make import besides_assumptions, checkpoint, lidar_here

N, Q, SIZE = 24, 4, 24
Shell = Callable[..., subprocess.CompletedProcess[str]]


def rank_here(
    images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Shell:
    """`lidar rank DIR` on the photographs, with more options."""

    def run(directory: Path, *more: object) -> subprocess.CompletedProcess[str]:
        words = ["rank", directory, "--data", images, "-n", N, "-q", Q, "--image-size", SIZE]
        words += ["--device", "cpu", "--batch-size", 8, *more]
        done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
        done.stderr = besides_assumptions(done.stderr)
        return done

    return run


def settings(images: Path, **more: Any) -> dict[str, Any]:
    """The settings of `rank_here`, for functions called directly."""
    small = {"n_samples": N, "n_views": Q, "image_size": SIZE, "batch_size": 8, "device": "cpu"}
    return {"data": str(images)} | small | more


def ranked(done: subprocess.CompletedProcess[str], status: int = 0) -> dict[str, Any]:
    assert done.returncode == status, done.stderr
    ranking: dict[str, Any] = json.loads(done.stdout)
    return ranking


def values(done: subprocess.CompletedProcess[str]) -> dict[str, float]:
    return {Path(row["path"]).name: row["value"] for row in ranked(done)["checkpoints"]}


def stamps(folder: Path) -> dict[str, int]:
    """When each feature file of a cache was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.h5")}


def three(runs: Path, **shape: Any) -> Path:
    for seed, name in enumerate(("a.pt", "b.pth", "c.ckpt")):
        checkpoint(runs / name, seed, **shape)
    return runs
