"""`lidar` and `python -m lidar_cli`: the one place where errors become a line and a status."""

from __future__ import annotations

import os
import sys

from lidar_cli.errors import LidarError


def main() -> None:
    """Run the command line and leave with the status that the README promises."""
    from lidar_cli.cli import app

    try:
        app()
    except LidarError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)
    except BrokenPipeError:
        # The reader of our stdout has left; Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
