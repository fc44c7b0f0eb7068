"""`lidar` and `python -m lidar_cli`: the one place where errors become a line and a status."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import warnings
from typing import TYPE_CHECKING

from lidar_cli.errors import LidarError, printable

# By a disk, of what is written to stdout; jobs tell the rest themselves.
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


def main() -> None:
    """Run the command line and leave with the status that the README promises."""
    # What an image is refused for is told in a line of ours, which needs no remark from within.
    warnings.filterwarnings("ignore", module="PIL")
    before = sys.unraisablehook
    sys.unraisablehook = _interrupt_again
    try:
        from lidar_cli.cli import app  # inside, since Ctrl-C may come while it is imported

        app()
    except LidarError as error:
        sys.stderr.write(f"error: {printable(str(error))}\n")
        sys.exit(error.exit_status)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        # What stdout still holds would be refused once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stderr.write(f"error: cannot be written: {error.strerror}; free some space\n")
        sys.exit(3)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    finally:
        sys.unraisablehook = before


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
