"""The tests of `full_disk.py`, in a namespace that may mount a small file system."""

from __future__ import annotations

import re
from pathlib import Path

from small_disk import HERE, inside


def test_a_full_and_a_read_only_disk(tmp_path: Path) -> None:
    inside(basetemp=tmp_path / "inside")
    expected = len(re.findall(r"^def test_", (HERE / "full_disk.py").read_text(), re.MULTILINE))
    assert expected > 8
