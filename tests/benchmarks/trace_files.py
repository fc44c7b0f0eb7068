"""Counts the files and functions of the package that a command and its children enter.

    python tests/benchmarks/trace_files.py            the three commands of the table
    python tests/benchmarks/trace_files.py -- score z.npy --json    any other

Code that runs while a module is imported does not count. Every process of a command, including
forked children and the limited child that reads untrusted files, writes each function that it
enters for the first time to one named pipe.
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
SANDBOX = (
    "import sys; sys.path += [sys.argv[1], {folder!r}]; "
    "from trace_files import record; record({pipe!r}); "
)


def record(pipe: str) -> None:
    """Start writing each function of the package that is entered, once, to a named pipe."""
    descriptor = os.open(pipe, os.O_WRONLY)
    seen: set[object] = set()

    def enter(frame, event, argument):
        code = frame.f_code
        if event == "call" and code not in seen and not importing(frame):
            seen.add(code)
            if code.co_filename.startswith(PACKAGE):
                line = f"{os.path.relpath(code.co_filename, PACKAGE)}\t{code.co_qualname}\n"
                os.write(descriptor, line.encode())  # short enough to be written atomically

    threading.setprofile(enter)
    sys.setprofile(enter)


def run(arguments: list[str], pipe: str) -> int:
    """Run a command in this process and record it; returns its exit status."""
    from lidar_cli.__main__ import main
    from lidar_cli.runtime import sandbox

    folder = str(Path(__file__).resolve().parent)
    sandbox.START = SANDBOX.format(folder=folder, pipe=pipe) + sandbox.START
    sys.argv = ["lidar", *arguments]
    record(pipe)
    try:
        with Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink):
            main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        sandbox.SHARED.close()
    return 0


def importing(frame: FrameType | None) -> bool:
    """Whether a frame runs because a module of the package is imported."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "<module>" and code.co_filename.startswith(PACKAGE):
            return True
        frame = frame.f_back
    return False


def inputs(folder: Path) -> dict[str, list[str]]:
    """Write two small ResNets and an array; returns the words of the three commands by name."""
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
    parser.add_argument("words", nargs="*", help="the words of a command, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = {"command": options.words} if options.words else inputs(Path(folder))
        pipe = f"{folder}/entered"
        os.mkfifo(pipe)
        for name, words in commands.items():
            pid = os.fork()  # so that no command finds modules or caches of another
            if not pid:
                os._exit(run(words, pipe))
            with Path(pipe).open() as entered:  # ends when the last process of the command does
                pairs = {tuple(line.rstrip("\n").split("\t")) for line in entered}
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            files = sorted({file for file, _ in pairs})
            goal = f"  goal {GOALS[name]}" if name in GOALS else ""
            print(f"{name:8} status {status}  files {len(files)}  functions {len(pairs)}{goal}")
            if options.list:
                print("\n".join(f"    {file}" for file in files))


if __name__ == "__main__":
    main()
