"""`lidar` and `python -m lidar_cli`: the one place where errors become a line and a status."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, TextIO, cast

from lidar_cli.errors import LidarError, first_line, printable

# By a disk, of what is written to stdout or stderr; jobs tell the rest themselves.
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
INTERRUPTED = 130

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


def main() -> None:
    """Run the command line and leave with the status that the README promises."""
    # What an image is refused for is told in a line of ours, which needs no remark from within.
    warnings.filterwarnings("ignore", module="PIL")
    before = sys.unraisablehook, sys.stderr
    sys.unraisablehook = _interrupt_again
    sys.stderr = cast(TextIO, _Remarks(sys.stderr))
    try:
        from lidar_cli.cli import app  # inside, since Ctrl-C may come while it is imported

        app()
    except LidarError as error:
        sys.stderr.write(f"error: {printable(str(error))}\n")
        sys.exit(error.exit_status)
    except OSError as error:
        if error.filename is not None:  # a name that was given, and that the system refuses
            name = error.filename
            name = f"descriptor {name}" if isinstance(name, int) else os.fsdecode(name)
            sys.stderr.write(f"error: {printable(name)}: {error.strerror}\n")
        elif error.errno in REFUSED:
            # What stdout still holds would be refused once more when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stderr.write(f"error: cannot be written: {error.strerror}; free some space\n")
        else:
            raise
        sys.exit(3)
    except (MemoryError, RecursionError) as error:
        sys.stderr.write(f"error: {first_line(error)}; try it on a smaller file or more memory\n")
        sys.exit(LidarError.exit_status)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # a command's answer, or Typer's before there was one
            sys.stderr.write("interrupted\n")
        raise
    finally:
        sys.unraisablehook, sys.stderr = before


class _Remarks:
    """Stderr. What a full disk refuses of it is lost, which is no reason to end the work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            if error.errno not in REFUSED:
                raise


def _interrupt_again(dropped: UnraisableHookArgs) -> None:
    """Send Ctrl-C once more where it met a destructor, in which Python reports and drops it."""
    if dropped.exc_type is KeyboardInterrupt:
        again = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(dropped)


if __name__ == "__main__":
    main()
