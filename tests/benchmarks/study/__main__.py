"""Runs the study: do label-free metrics order small checkpoints as a linear probe does?

    python tests/benchmarks/study DIR [--seed 0] [--device auto]

Trains small SimCLR, VICReg, DINO and I-JEPA networks by random search on three image sets made
from scikit-learn's: 96 checkpoints a set, about an hour of processor time. A second run with the
same directory and seed resumes. Writes `study.md`, `study.csv` and `study.json` there.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder's modules are `study.*`

from lidar_cli.errors import LidarError
from lidar_cli.report.progress import Terminal
from lidar_cli.settings import DemoSettings
from study.report import print_study, write_study
from study.study import run_study


def main() -> None:
    parser = argparse.ArgumentParser(prog="study", description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="where checkpoints and results go")
    parser.add_argument("--seed", type=int, default=0, help="of images, settings and training")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_args()
    settings = DemoSettings(device=options.device, seed=options.seed)
    try:
        with Terminal() as terminal:
            study = run_study(options.directory, settings, terminal)
        command = f"python tests/benchmarks/study {options.directory} --seed {options.seed}"
        print_study(study, write_study(study, options.directory, command))
    except (LidarError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
