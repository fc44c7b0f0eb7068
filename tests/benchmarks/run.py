"""All benchmarks, one row a claim of the README. Run by hand, on a machine that does little else:

    python tests/benchmarks/run.py [--only ROW,ROW] [--device cpu]

Prints a line for each comparison, its goal and whether that was met, and writes a CSV for each row
into tests/benchmarks/results/, whose README tells what each row needs and shows.
"""

import argparse
import tempfile
from pathlib import Path

import harness

ROWS = {}  # name -> function of (device, a folder for its files), yielding harness.Line


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(ROWS), help="rows, separated by commas")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    names = options.only.split(",")
    for name in names:
        if name not in ROWS:
            parser.error(f"no row {name!r}; known: {', '.join(ROWS)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            harness.report(ROWS[name](options.device, Path(folder)), options.device)


if __name__ == "__main__":
    main()
