"""`lidar` and `python -m lidar_cli`: runs a command, and reports an error in one line."""

from __future__ import annotations

import _thread
import gc
import os
import signal
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING

from lidar_cli.errors import LidarError, first_line
from lidar_cli.runtime.streams import DISK_ERRORS, safe_streams, write_remark

INTERRUPTED = 130
TERMINATED = 128 + signal.SIGTERM

if TYPE_CHECKING:
    from sys import UnraisableHookArgs
    from types import CodeType, FrameType


def main() -> None:
    """Run the command line and exit with the status that the README documents."""
    # A refused image is reported in one line; Pillow's warnings would repeat it.
    warnings.filterwarnings("ignore", module="PIL")
    previous_hook = sys.unraisablehook
    sys.unraisablehook = _resend_signal
    _raise_on_signals()
    try:
        with safe_streams():
            _run()
    finally:
        sys.unraisablehook = previous_hook
        # The interpreter collects garbage as it exits; this takes torch's objects out of that.
        gc.freeze()


def _run() -> None:
    try:
        from lidar_cli.cli import run  # here, so that Ctrl-C during the import is handled too

        run()
    except LidarError as error:
        write_remark(f"error: {error}")
        sys.exit(error.exit_status)
    except OSError as error:
        if error.filename is not None:  # a path from the user that the system refuses
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
    except SystemExit as exit_:
        if exit_.code == INTERRUPTED:  # raised by a command, or by Typer before one starts
            write_remark("interrupted")
        elif isinstance(exit_, Terminated):
            write_remark("terminated")
        raise


class Terminated(SystemExit):
    """SIGTERM was received: clean up and end child processes, as for Ctrl-C."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C. After a KeyboardInterrupt itself within exec() of a string, which dataclasses use,
    Python ends with SIGINT in place of the exit status.
    """


def _raise_on_signals() -> None:
    """Make SIGTERM raise Terminated and Ctrl-C Interrupted, unless they have a handler already.

    Not under torchrun, which ends all of its processes: cleaning up could block in a collective.
    """
    one_process = os.environ.get("WORLD_SIZE", "1") in ("", "1")
    if one_process and threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminate)
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)


def _terminate(*_: object) -> None:
    raise Terminated(TERMINATED)


def _interrupt(*_: object) -> None:
    raise Interrupted


def _resend_signal(unraisable: UnraisableHookArgs) -> None:
    """Send a signal again whose exception was dropped because it was raised in a destructor."""
    signals = {
        KeyboardInterrupt: signal.SIGINT,
        Interrupted: signal.SIGINT,
        Terminated: signal.SIGTERM,
    }
    number = signals.get(unraisable.exc_type)
    if number is not None:
        # threading.Thread.start waits for the thread; the signal could then come in this function.
        _thread.start_new_thread(_send_after_hook, (number,))
    else:
        sys.__unraisablehook__(unraisable)


def _send_after_hook(number: int) -> None:
    """Send this process a signal once `_resend_signal` has returned, which would drop it again."""
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    while _runs(sys._current_frames().get(main_thread), _resend_signal.__code__):
        time.sleep(0.01)
    os.kill(os.getpid(), number)


def _runs(frame: FrameType | None, code: CodeType) -> bool:
    """Whether a frame or one of its callers runs this code."""
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


if __name__ == "__main__":
    main()
