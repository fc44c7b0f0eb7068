"""Code that runs where a small disk is mounted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


NAMESPACES = (["unshare", "-rm"], ["unshare", "-m"])  # of any user; of root


def namespace() -> list[str] | None:
    """A command that runs another where it may mount, or None."""
    trying = 'd=$(mktemp -d) && mount -t tmpfs -o size=1m tmpfs "$d" && umount "$d"; rmdir "$d"'
    for command in NAMESPACES:
        try:
            tried = subprocess.run([*command, "sh", "-ec", trying], capture_output=True)
        except FileNotFoundError:
            return None
        if tried.returncode == 0:
            return command
    return None


def inside(*words: str, basetemp: Path) -> str:
    """What pytest printed of `full_disk.py`, which passed; skipped where none can mount."""
    found = namespace()
    if found is None:
        pytest.skip("this system lets neither root nor a namespace mount a file system")
    command = [*found, sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider"]
    command += [f"--basetemp={basetemp}", str(HERE / "full_disk.py"), *words]
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=500,
        cwd=HERE.parents[1],
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert ended.returncode == 0, ended.stdout
    assert "skipped" not in ended.stdout
    return ended.stdout
