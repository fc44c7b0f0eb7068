"""How many files and functions of the package one command enters, its children included.

    python tests/benchmarks/trace_files.py            the three commands of the table
    python tests/benchmarks/trace_files.py -- score z.npy --json    any other

Counts code of `lidar_cli` that runs for the command; what runs while a module is imported is left
out. Each process
appends what it enters for the first time to one file, so that forked children count as well.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

import lidar_cli

PACKAGE = str(Path(lidar_cli.__file__).parent)
GOALS = {"extract": 45, "score": 22, "rank": 65}  # files


def trace(arguments: list[str]) -> tuple[int, set[tuple[str, str]]]:
    """The exit status of a command, and the (file, function) pairs that it enters."""
    from lidar_cli.__main__ import main

    with tempfile.NamedTemporaryFile() as log:
        descriptor = os.open(log.name, os.O_WRONLY | os.O_APPEND)
        seen: set[object] = set()

        def enter(frame, event, argument):
            code = frame.f_code
            if event == "call" and code not in seen and not importing(frame):
                seen.add(code)
                if code.co_filename.startswith(PACKAGE):
                    line = f"{os.path.relpath(code.co_filename, PACKAGE)}\t{code.co_qualname}\n"
                    os.write(descriptor, line.encode())

        argv, sys.argv = sys.argv, ["lidar", *arguments]
        threading.setprofile(enter)
        sys.setprofile(enter)
        try:
            with Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink):
                main()
            status = 0
        except SystemExit as leaving:
            status = leaving.code or 0
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
            sys.argv = argv
            os.close(descriptor)
        pairs = {tuple(line.split("\t")) for line in Path(log.name).read_text().splitlines()}
    return int(status), pairs


def importing(frame: FrameType | None) -> bool:
    """Whether a frame runs because a module of the package is imported."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "<module>" and code.co_filename.startswith(PACKAGE):
            return True
        frame = frame.f_back
    return False


def inputs(folder: Path) -> dict[str, list[str]]:
    """Two small plain ResNets, an array, and the three commands of the table."""
    import numpy as np
    import torch
    from torchvision.models import resnet18

    (folder / "runs").mkdir()
    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.save(resnet18().state_dict(), folder / "runs" / f"{seed}.pth")
    views = np.random.default_rng(0).normal(size=(40, 4, 16)).astype(np.float32)
    np.save(folder / "z.npy", views)
    options = ["--data", "embedded", "-n", "8", "-q", "2", "--device", "cpu", "--batch-size", "8"]
    return {
        "extract": ["extract", f"{folder}/runs/1.pth", *options, "-o", f"{folder}/z.h5"],
        "score": ["score", f"{folder}/z.npy", "--json"],
        "rank": ["rank", f"{folder}/runs", *options, "--json"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print each file")
    parser.add_argument("words", nargs="*", help="of a command, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = {"command": options.words} if options.words else inputs(Path(folder))
        for name, words in commands.items():
            pid = os.fork()  # so that no command finds what another one left in memory
            if pid:
                os.waitpid(pid, 0)
                continue
            status, pairs = trace(words)
            files = sorted({file for file, _ in pairs})
            goal = f"  goal {GOALS[name]}" if name in GOALS else ""
            print(f"{name:8} status {status}  files {len(files)}  functions {len(pairs)}{goal}")
            if options.list:
                print("\n".join(f"    {file}" for file in files))
            sys.stdout.flush()
            os._exit(0)


if __name__ == "__main__":
    main()
