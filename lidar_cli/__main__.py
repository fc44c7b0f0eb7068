"""`lidar` and `python -m lidar_cli`: the one place where errors become a line and a status."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from typing import TYPE_CHECKING

from lidar_cli.errors import LidarError, first_line
from lidar_cli.runtime.streams import DISK_ERRORS, safe_streams, write_remark

INTERRUPTED = 130
TERMINATED = 128 + signal.SIGTERM

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


def main() -> None:
    """Run the command line and leave with the status that the README promises."""
    # What an image is refused for is told in a line of ours, which needs no remark from within.
    warnings.filterwarnings("ignore", module="PIL")
    before = sys.unraisablehook
    sys.unraisablehook = _interrupt_again
    _end_on_sigterm()
    try:
        with safe_streams():
            _run()
    finally:
        sys.unraisablehook = before


def _run() -> None:
    try:
        from lidar_cli.cli import app  # inside, since Ctrl-C may come while it is imported

        app()
    except LidarError as error:
        write_remark(f"error: {error}")
        sys.exit(error.exit_status)
    except OSError as error:
        if error.filename is not None:  # a name that was given, and that the system refuses
            name = error.filename
            name = f"descriptor {name}" if isinstance(name, int) else os.fsdecode(name)
            write_remark(f"error: {name}: {error.strerror}")
        elif error.errno in DISK_ERRORS:
            write_remark(f"error: cannot be written: {error.strerror}; free some space")
        else:
            raise
        sys.exit(3)
    except (MemoryError, RecursionError) as error:
        write_remark(f"error: {first_line(error)}; try it on a smaller file or more memory")
        sys.exit(LidarError.exit_status)
    except KeyboardInterrupt:
        write_remark("interrupted")
        sys.exit(INTERRUPTED)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # a command's answer, or Typer's before there was one
            write_remark("interrupted")
        elif isinstance(leaving, Terminated):
            write_remark("terminated")
        raise


class Terminated(SystemExit):
    """SIGTERM came: everything is wound up, and children are ended, as for Ctrl-C."""


def _end_on_sigterm() -> None:
    """Answer SIGTERM by an exception, but where somebody else decided what it does.

    Not in a process of torchrun, which ends all of them and may wait for one in a collective.
    """
    alone = os.environ.get("WORLD_SIZE", "1") in ("", "1")
    on_main = threading.current_thread() is threading.main_thread()
    if alone and on_main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: object) -> None:
    raise Terminated(TERMINATED)


def _interrupt_again(dropped: UnraisableHookArgs) -> None:
    """Send a signal once more where it met a destructor, in which Python reports and drops it."""
    by = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGTERM}.get(dropped.exc_type)
    if by is not None:
        again = threading.Timer(0.01, os.kill, (os.getpid(), by))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(dropped)


if __name__ == "__main__":
    main()
