"""Real runs of the program that end by a signal, at a moment of the test's choice.

A run is a child of a process that has imported everything and computed nothing: a fork a run, so
that signals meet the work and not the imports.
"""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from make import environment

SERVER = """
import faulthandler, json, os, signal, sys, time, traceback

from lidar_cli.__main__ import main
import pydantic, scipy.stats, timm  # what the commands import last
import lidar_cli.demo.run
import lidar_cli.extraction.run
import lidar_cli.ranking.session  # and all that these import
from lidar_cli.extraction import engine
from lidar_cli.report import ranking, text


def log_batches(path):
    forward = engine.EmbeddingModel.forward

    def logged(model, batch):
        line = f"{model.plan.provenance['sha256']} {batch.start} {batch.stop}\\n"
        with open(path, "a") as log:
            log.write(line)
        return forward(model, batch)

    engine.EmbeddingModel.forward = logged


def child(order):
    os.setsid()
    os.chdir(order["cwd"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(order[name], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644), number)
    faulthandler.dump_traceback_later(300, exit=True)  # one that hangs says where
    log_batches(order["log"])
    sys.argv = ["lidar", *order["words"]]
    status = 130
    try:
        main()
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(bool(left.code))
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        if any("lidar_cli" in frame.filename for frame in frames):  # else it met this function
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


for line in sys.stdin:
    order = json.loads(line)
    begun = time.monotonic()
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            child(order)
        except KeyboardInterrupt:  # after the program's end
            os._exit(130)
    ended = 0
    while order["after"] is not None and time.monotonic() - begun < order["after"] and not ended:
        time.sleep(0.001)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        if order["after"] is not None:
            os.kill(pid, order["signal"])
        _, status = os.waitpid(pid, 0)
    outcome = [os.waitstatus_to_exitcode(status), time.monotonic() - begun]
    print(json.dumps(outcome), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How one run ended. embedded: batches of this run alone, (sha256, start, stop) each."""

    status: int  # the exit status, or minus the signal
    seconds: float
    embedded: list[tuple[str, int, int]]
    stdout: str
    stderr: str


class Runs:
    """A context manager that starts runs in a folder, one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "Runs":
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        return self

    def __exit__(self, *_: object) -> None:
        with self._server:  # closes its pipes, and waits
            pass

    def run(
        self, *words: object, after: float | None = None, by: signal.Signals = signal.SIGKILL
    ) -> Ended:
        """One run of `lidar`, sent a signal `after` so many seconds unless it ended before."""
        paths = {name: self.folder / f".{name}" for name in ("stdout", "stderr", "log")}
        paths["log"].unlink(missing_ok=True)
        order = {name: str(path) for name, path in paths.items()}
        order |= {"words": [str(word) for word in words], "cwd": str(self.folder)}
        order |= {"after": after, "signal": int(by)}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        status, seconds = json.loads(self._server.stdout.readline())
        log = paths["log"].read_text().splitlines() if paths["log"].exists() else []
        embedded = [(sha, int(start), int(stop)) for sha, start, stop in map(str.split, log)]
        streams = [paths[name].read_text() for name in ("stdout", "stderr")]
        return Ended(status, seconds, embedded, *streams)
