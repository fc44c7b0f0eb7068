"""The examples of CONTRIBUTING.md run."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command import run_command
from layouts import Weights, describe
from make import crop, encoded, environment
from raising import raises
from torch import Tensor

from lidar_cli.checkpoints.formats import FORMATS
from lidar_cli.checkpoints.formats.format import Branch, Format, Head
from lidar_cli.checkpoints.reading.read import read_checkpoint
from lidar_cli.core.metrics import Metric, Spectrum
from lidar_cli.data import check
from lidar_cli.data import open as data_sources
from lidar_cli.data.dataset import Candidate, Source, shuffled
from lidar_cli.data.labels import UNKNOWN
from lidar_cli.errors import CheckpointError
from lidar_cli.settings import SampleSettings
from lidar_cli.views import methods
from lidar_cli.views.methods import find_recipe
from lidar_cli.views.recipes import Recipe

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
NAMES = {
    "Branch": Branch, "Candidate": Candidate, "Format": Format, "Head": Head, "Metric": Metric,
    "Recipe": Recipe, "SampleSettings": SampleSettings, "Source": Source, "Spectrum": Spectrum,
    "Tensor": Tensor, "UNKNOWN": UNKNOWN, "partial": partial, "shuffled": shuffled,
    "zipfile": zipfile,
}  # fmt: skip


def defined(name: str) -> Any:
    """What the example that defines this name defines."""
    (source,) = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S) if name in block]
    namespace = dict(NAMES)
    exec(source, namespace)
    return namespace[name]


def test_a_metric() -> None:
    """Value and gradient; that an entry is enough for every command is test_new_metric's."""
    metric, e = defined("TOP_SHARE"), torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    spectrum = Spectrum(e, n=10, q=4, epsilon=1e-7)
    assert metric.value(spectrum) == pytest.approx(3 / 6)
    expected = torch.autograd.functional.jacobian(lambda e: e[0] / e.sum(), e)
    assert torch.allclose(metric.gradient(spectrum), expected)


def test_a_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    w = Weights()
    w.resnet("trunk.")
    w.linear("mlp.0", 16, 24)
    w.linear("mlp.2", 24, 12)
    w.linear("prototypes", 12, 30)
    path = tmp_path / "toy.pth"
    torch.save({"epoch": 9, "state_dict": dict(w)}, path)
    with raises(CheckpointError, "unknown-entries"):
        describe(path, read_checkpoint(path))
    formats = (*FORMATS, defined("TOY"))
    monkeypatch.setattr("lidar_cli.checkpoints.detect.FORMATS", formats)
    description = describe(path, read_checkpoint(path))
    assert (description.format, description.recipe) == ("toy", "simclr")
    assert description.widths["projector"] == 12


def test_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.RECIPES, "mine", defined("MINE"))
    assert find_recipe("mine", "auto").crop_scale == (0.2, 1.0)


def test_a_data_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for index in range(60):
            archive.writestr(f"{index:02}.png", encoded(crop(index)))
    source = defined("zipped")
    monkeypatch.setitem(data_sources.SOURCES, "zip", source)
    monkeypatch.setattr(check, "PREFIXES", (*check.PREFIXES, "zip"))
    data = f"zip/{tmp_path / 'photos.zip'}"
    samples = data_sources.open_samples(SampleSettings(data=data, n_samples=50))
    assert len(set(samples.ids)) == 50
    first = int(samples.ids[0][:2])
    assert (samples.decode(0).numpy() == crop(first)).all()


def test_every_file_that_is_named_is_there() -> None:
    for name in re.findall(r"`((?:lidar_cli|tests|\.ci)/[\w/.-]+)`", TEXT):
        assert (ROOT / name).exists(), name


def test_the_benchmarks_start_from_anywhere(tmp_path: Path) -> None:
    script = ROOT / "tests" / "benchmarks" / "run.py"
    path = f"sys.path.insert(0, {str(script.parent)!r})"  # as an interpreter that runs the file
    code = f"import runpy, sys; {path}; runpy.run_path({str(script)!r}, run_name='__main__')"
    ended = run_command(["--help"], tmp_path, environment(), script=code)
    assert ended.returncode == 0, ended.stderr
    assert "--only" in ended.stdout


def test_the_gpu_script_writes_as_it_goes_and_resumes(tmp_path: Path) -> None:
    """On a CPU, at tiny sizes; a step that failed is not run again either, since time is short."""
    script, python = str(ROOT / "tests" / "benchmarks" / "gpu.sh"), sys.executable
    env = {**environment(), "DEVICE": "cpu", "SIZE": "tiny", "SLOWER": "5", "PYTHON": python}
    command = ["bash", script, str(tmp_path / "results"), "solve"]
    first = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert "== solve" in first.stdout
    assert (tmp_path / "results" / "solve.ended").read_text() == "0\n", first.stdout
    (table,) = (tmp_path / "results").glob("solve-cpu-*.csv")
    assert len(table.read_text().splitlines()) == 1 + 3  # two widths on the device, one on the CPU
    again = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert again.stdout == ""


def test_the_gpu_script_names_what_is_missing(tmp_path: Path) -> None:
    """By an interpreter that has the standard library alone."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    script = str(ROOT / "tests" / "benchmarks" / "gpu.sh")
    env = {**environment(), "PYTHON": str(python)}
    ended = subprocess.run(
        ["bash", script, str(tmp_path / "results")], env=env, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert {"torch", "pydantic", "psutil"} <= set(line.split())


def test_the_checks_and_the_hooks_run_the_same_tools() -> None:
    checks, hooks = ((ROOT / name).read_text() for name in (".ci/run", ".pre-commit-config.yaml"))
    for tool in ("ruff check", "ruff format", "mypy", "words.py"):
        assert tool in hooks
        assert tool.split()[-1] in checks
    subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=True)
