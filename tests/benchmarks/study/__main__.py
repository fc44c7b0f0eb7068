"""The study: do label-free metrics order small checkpoints as a linear probe does?

    python tests/benchmarks/study train DIR      433 small networks on four image sets, some hours
    python tests/benchmarks/study measure DIR    probes and metrics -> accuracy.csv, metrics.csv
    python tests/benchmarks/study tables DIR     from these two files alone -> study.md and CSV

`protocol.md` in this folder says what is trained, compared and chosen. Each command resumes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder's modules are `study.*`

from lidar_cli.errors import LidarError

HOUR_AND_MORE = 100.0  # minutes


def main() -> None:
    description, _, epilog = (__doc__ or "").partition("\n\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("study", None, description, epilog, formatter_class=raw)
    stages = parser.add_subparsers(dest="stage", required=True)
    for name in ("train", "measure", "tables"):
        stage = stages.add_parser(name)
        stage.add_argument("directory", type=Path, help="where checkpoints and results are")
        if name == "tables":
            stage.add_argument("--output", type=Path, help="folder of the tables [DIR]")
            stage.add_argument("--by", default="lidar", help="metric that is believed or not")
            continue
        stage.add_argument("--seed", type=int, default=0, help="of images, views and training")
        stage.add_argument(
            "--data", type=Path, default=Path("data"), help="folder that has FashionMNIST/raw"
        )
        stage.add_argument(
            "--limit-minutes", type=float, default=HOUR_AND_MORE, help="begin nothing after them"
        )
        if name == "measure":
            stage.add_argument("--processes", type=int, help="at the same time [one per core]")
            stage.add_argument("--accuracy-only", action="store_true", help="no metrics")
    options = parser.parse_args()
    try:
        run(options)
    except (LidarError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def run(options: argparse.Namespace) -> None:
    """Run one stage. Each imports what it needs."""
    directory: Path = options.directory
    if options.stage == "tables":
        from study.tables import write_tables

        print(*write_tables(directory, options.output or directory, options.by), sep="\n")
        return
    from lidar_cli.report.progress import Terminal

    with Terminal() as progress:
        if options.stage == "train":
            from study.train import train

            train(directory, options.seed, options.data, options.limit_minutes, progress)
        else:
            from study.measure import Source, measure

            measure(
                Source(directory, options.seed, options.data),
                options.limit_minutes,
                options.processes,
                progress,
                with_metrics=not options.accuracy_only,
            )


if __name__ == "__main__":
    main()
