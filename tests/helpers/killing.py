"""Runs of the program that end by a signal, at a moment of the test's choice."""

import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import TimeoutExpired

from command import Command
from make import environment

LOGGING = """
import os, sys
from lidar_cli.__main__ import main
from lidar_cli.extraction import engine

forward = engine.EmbeddingModel.forward

def logged(model, batch):
    with open(os.environ["BATCHES"], "a") as log:
        log.write(f"{model.plan.provenance['sha256']} {batch.start} {batch.stop}\\n")
    return forward(model, batch)

engine.EmbeddingModel.forward = logged
status = 130
try:
    main()
except SystemExit as leaving:
    status = leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
except KeyboardInterrupt:  # before the program began, or after it ended
    pass
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)  # a signal that meets the interpreter's end is no matter of the program
"""


@dataclass(frozen=True)
class Ended:
    """How one run ended. embedded: batches of this run alone, (sha256, start, stop) each."""

    status: int  # the exit status, or minus the signal
    seconds: float
    embedded: list[tuple[str, int, int]]
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Runs:
    """Runs in a folder."""

    folder: Path

    def run(
        self, *words: object, after: float | None = None, by: signal.Signals = signal.SIGKILL
    ) -> Ended:
        """One run of `lidar`, sent a signal `after` so many seconds unless it ended before."""
        log = self.folder / ".batches"
        log.unlink(missing_ok=True)
        with Command(words, self.folder, environment(BATCHES=str(log)), script=LOGGING) as running:
            begun = time.monotonic()  # the first command has waited for the server
            if after is not None:
                with suppress(TimeoutExpired):
                    running.wait(after)
                running.send_signal(by)
            stdout, stderr = running.communicate()
        assert running.returncode is not None
        batches = log.read_text().splitlines() if log.exists() else []
        embedded = [(sha, int(start), int(stop)) for sha, start, stop in map(str.split, batches)]
        return Ended(running.returncode, time.monotonic() - begun, embedded, stdout, stderr)
