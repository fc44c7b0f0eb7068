"""The examples of CONTRIBUTING.md run."""

from __future__ import annotations

import re
import subprocess
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lidar_cli.data.source import UNKNOWN, Candidate, Source, shuffled
from lidar_cli.views.lookup import find_recipe
from make import crop, encoded

from lidar_cli.data import open as data_sources
from lidar_cli.settings import SampleSettings
from lidar_cli.views import methods
from lidar_cli.views.recipes import Recipe

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
NAMES = {
    "Candidate": Candidate, "Recipe": Recipe, "SampleSettings": SampleSettings, "Source": Source,
    "UNKNOWN": UNKNOWN, "partial": partial, "shuffled": shuffled, "zipfile": zipfile,
}  # fmt: skip


def defined(name: str) -> Any:
    """What the example that defines this name defines."""
    (source,) = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S) if name in block]
    namespace = dict(NAMES)
    exec(source, namespace)
    return namespace[name]


def test_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.RECIPES, "mine", defined("MINE"))
    assert find_recipe("mine", "auto").crop_scale == (0.2, 1.0)


def test_a_data_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for index in range(60):
            archive.writestr(f"{index:02}.png", encoded(crop(index)))
    source = defined("zipped")
    monkeypatch.setattr(data_sources, "_source", lambda s: source(s.data, s.data[4:], s))
    data = f"zip/{tmp_path / 'photos.zip'}"
    samples = data_sources.open_samples(SampleSettings(data=data, n_samples=50))
    assert len(set(samples.ids)) == 50
    first = int(samples.ids[0][:2])
    assert (samples.decode(0).numpy() == crop(first)).all()


def test_every_file_that_is_named_is_there() -> None:
    for name in re.findall(r"`((?:lidar_cli|tests|\.ci)/[\w/.-]+)`", TEXT):
        assert (ROOT / name).exists(), name


def test_the_checks_and_the_hooks_run_the_same_tools() -> None:
    checks, hooks = ((ROOT / name).read_text() for name in (".ci/run", ".pre-commit-config.yaml"))
    for tool in ("ruff check", "ruff format", "mypy", "words.py"):
        assert tool in hooks
        assert tool.split()[-1] in checks
    subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=True)
