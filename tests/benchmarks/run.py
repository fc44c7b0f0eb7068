"""All benchmarks, one row a claim of the README. Run by hand, on a machine that does little else:

    python tests/benchmarks/run.py [--only ROW,ROW] [--device cpu]

Prints a line for each comparison, its goal and whether that was met, and writes a CSV for each row
into tests/benchmarks/results/, whose README says what each row needs and shows.
"""

import argparse
import tempfile
from pathlib import Path

import harness
from bench_extract import bench_extract, bench_extract_process, bench_forward
from bench_lidar import bench_lidar, bench_reptrix
from bench_pass import bench_named, bench_pass
from bench_probe import bench_probe
from bench_process import bench_memory, bench_refusals, bench_start
from bench_rank import bench_precision, bench_rank
from bench_slopes import bench_slopes
from bench_views import bench_views

# Each yields harness.Line or Skipped, given the device and a folder for its files.
ROWS = {
    "lidar": bench_lidar,
    "reptrix": bench_reptrix,
    "pass": bench_pass,
    "named": bench_named,
    "memory": bench_memory,
    "views": bench_views,
    "extract": bench_extract,
    "extract-process": bench_extract_process,
    "forward": bench_forward,
    "rank": bench_rank,
    "precision": bench_precision,
    "start": bench_start,
    "refusals": bench_refusals,
    "probe": bench_probe,
    "slopes": bench_slopes,
}


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
