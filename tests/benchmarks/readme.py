"""Runs the commands that the README shows, prints what they print, and takes the picture of a page.

    python tests/benchmarks/readme.py [DIR]    DIR: an empty folder to work in, else a temporary one

Each `$ ` line of the README's console blocks is run in order in DIR. The first is the demo; the
others find its checkpoints as `runs/`, and in `photos/` crops of the photographs that scikit-learn
ships. The picture, which needs Chromium, goes to docs/page.png; the lines to show are copied from
what is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
PHOTOS = 400
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def commands() -> list[str]:
    """The commands of the README's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def make_photos(folder: Path, count: int = PHOTOS, side: int = 96) -> None:
    """Write crops of scikit-learn's photographs as PNG files."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True, exist_ok=True)
    photographs = load_sample_images().images
    rng = np.random.default_rng(0)
    for at in range(count):
        pixels = photographs[at % len(photographs)]
        y, x = (int(rng.integers(0, size - side)) for size in pixels.shape[:2])
        Image.fromarray(pixels[y : y + side, x : x + side]).save(folder / f"{at:03}.png")


def run_all(folder: Path) -> None:
    """Run the commands in a folder, with this environment's `lidar` first on the PATH."""
    make_photos(folder / "photos")
    first, *others = commands()
    run(first, folder)
    shutil.copytree(folder / "lidar-demo" / "runs", folder / "runs")
    for command in others:
        run(command, folder)


def run(command: str, folder: Path) -> None:
    """Print a command and what a terminal of 80 columns shows of it. Raises if it fails."""
    print(f"$ {command}", flush=True)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "TERM": "xterm"}
    with subprocess.Popen(
        ["bash", "-c", command], cwd=folder, env=environment, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        written = b""
        with contextlib.suppress(OSError):  # once the command has ended
            while part := os.read(ours, 2**16):
                written += part
    os.close(ours)
    for line in ESCAPES.sub("", written.decode()).split("\n"):
        print(line.rstrip("\r").rpartition("\r")[2].rstrip())
    if process.returncode:
        raise SystemExit(f"{command}: exit status {process.returncode}")


def take_picture(page: Path, picture: Path) -> None:
    """A PNG of the upper part of a page, as wide as a laptop's window."""
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    import browser

    with browser.opened(page, width=1100, height=760) as tab:
        tab.picture(picture, whole=False)


def main() -> None:
    """Run the commands, then take the picture of the page that they wrote."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR")
    parser.add_argument("--no-picture", action="store_true", help="take no picture")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    run_all(folder)
    if not options.no_picture:
        take_picture(folder / "ranking.html", ROOT / "docs" / "page.png")


if __name__ == "__main__":
    main()
