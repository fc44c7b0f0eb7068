"""Hostile files through the program itself: exit 3 and one line, or an inert stand-in; no call."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pickles
import pytest
import torch
from command import run_command
from hostile_pickles import REFUSED, beside, text, within
from hostile_sizes import BOMBS, entry, header
from make import environment, tiny_state_dict

LAYOUTS = {
    "zip": (pickles.write_zip, beside),
    "legacy": (pickles.write_legacy, beside),
    "module": (pickles.write_zip, within),
    "legacy module": (pickles.write_legacy, within),
}
Layout = tuple[Callable[..., Path], Callable[[bytes], bytes]]

LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from lidar_cli.runtime import sandbox
sandbox.SHARED.limits = sandbox.Limits(seconds=1)
sys.argv[0] = "lidar"
runpy.run_module("lidar_cli", run_name="__main__")
"""  # a gigabyte of addresses, which is enough to look into files without torch, and a second each


def run(*command: str | Path, folder: Path, limited: bool = False) -> tuple[int, str, list[str]]:
    """Exit status, stdout and the lines of stderr of the program, run in a folder."""
    if limited:
        ended = subprocess.run(
            [sys.executable, "-c", LIMITED, *map(str, command)],
            capture_output=True, text=True, timeout=300, check=False, cwd=folder,
        )  # fmt: skip
    else:
        ended = run_command(command, folder, environment())
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stdout, ended.stderr.splitlines()


def evil(canary: Path) -> bytes:
    """A pickle that runs `touch CANARY`, as soon as anything calls what it names."""
    return b"cposix\nsystem\n" + text(f"touch {canary}") + b"\x85R"


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("command", ["inspect", "extract"])
def test_a_command_ends_the_program_and_is_not_run(
    command: str, layout: Layout, tmp_path: Path
) -> None:
    write, placed = layout
    canary = tmp_path / "canary"
    path = write(tmp_path / "evil.pt", placed(evil(canary)))
    status, out, errors = run(command, path, folder=tmp_path)
    assert (status, out) == (3, "")
    assert "evil.pt: names posix.system, which no checkpoint needs" in errors[-1]
    assert list(tmp_path.iterdir()) == [path]
    torch.load(path, weights_only=False)
    assert canary.exists()


def test_every_refused_name_is_named_in_every_layout(tmp_path: Path) -> None:
    paths, expected = [], []
    renamed = {"__builtin__": "builtins", "io": "builtins", "commands": "subprocess"}
    for i, (module, function) in enumerate(REFUSED):
        for layout, (write, placed) in LAYOUTS.items():
            call = text(module) + text(function) + b"\x93)R"
            paths.append(write(tmp_path / f"{i} {layout}.pt", placed(call)))
            expected.append(f"names {renamed.get(module, module)}.{function}, which no checkpoint")
    status, out, errors = run("inspect", *paths, folder=tmp_path, limited=True)
    assert (status, out, len(errors)) == (3, "", len(paths))
    for path, message, error in zip(paths, expected, errors, strict=True):
        assert f"{path}: {message}" in error


@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_not_refused_is_inert(zipped: bool, tmp_path: Path) -> None:
    """A whole checkpoint with a call of a module: it opens, the name is printed, none is called."""
    (tmp_path / "payload.py").write_text("open('canary', 'w')\ndef run(): pass\n")
    tree = {"state_dict": tiny_state_dict(), "evil": 0}
    path = tmp_path / "a.pt"
    dumping = "import payload, sys, torch\nclass E:\n  def __reduce__(self): return payload.run, ()"
    dumping += "\nt = torch.load('a.pt')\nt['evil'] = E()\n"
    dumping += f"torch.save(t, 'a.pt', _use_new_zipfile_serialization={zipped})"
    loading = "import torch; torch.load('a.pt', weights_only=False)"
    torch.save(tree, path)
    run_command([], tmp_path, environment(), script=dumping)
    canary = tmp_path / "canary"
    canary.unlink()
    status, out, errors = run("inspect", "a.pt", "--json", folder=tmp_path)
    assert (status, errors) == (0, [])
    assert json.loads(out)[0]["stand_ins"] == ["payload.run"]
    status, _, _ = run("extract", "a.pt", "-o", "a.h5", folder=tmp_path)
    assert status == 0
    assert not canary.exists()
    run_command([], tmp_path, environment(), script=loading)
    assert canary.exists()


def test_bombs_and_lies_end_within_a_gigabyte(tmp_path: Path) -> None:
    """The same pickles in zip files are measured in test_hostile_sizes."""
    paths = []
    for i, content in enumerate(BOMBS.values()):
        paths.append(pickles.write_legacy(tmp_path / f"{i}.pth", content))
    lying = tmp_path / "a.safetensors"
    lying.write_bytes(header({"a": entry([10 << 28], 0, 10 << 30)}))
    status, out, errors = run("inspect", *paths, lying, folder=tmp_path, limited=True)
    assert (status, out, len(errors)) == (3, "", len(paths) + 1)
    assert all(line.startswith("error: ") for line in errors)
    status, out, errors = run("extract", lying, folder=tmp_path)
    assert (status, out) == (3, "")
    assert "damaged safetensors file" in errors[-1]
