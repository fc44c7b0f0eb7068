"""Does a race end where the whole ranking does? On checkpoints of the study (`study train DIR`):

    python tests/benchmarks/race.py DIR/checkpoints/digits -n 1700 -q 4 --csv race.csv

For each method and for all together, each layer and several metrics: the first of the whole
ranking, whether the race names it (alone or in its tie), and the share of the views that the race
needed. A checkpoint is embedded once for all of these; what a race needs is counted, whoever
embedded it.
"""

import argparse
import csv
import tempfile
from pathlib import Path

from lidar_cli.errors import InputError, SettingsError
from lidar_cli.ranking.race import race_directory
from lidar_cli.ranking.session import rank_directory
from lidar_cli.settings import RankSettings

METRICS = ("lidar", "lidar_corrected", "pillai", "rankme", "alpha_req", "participation_ratio")
LAYERS = ("projector", "backbone")
COLUMNS = [
    *("method", "layer", "by", "n", "q", "d", "checkpoints", "first of the whole ranking"),
    *("the race names it", "winners", "share of the views", "samples at the end"),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("-n", type=int, default=1700)
    parser.add_argument("-q", type=int, default=4)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    paths = sorted(options.directory.glob("*/checkpoint.pt"))
    methods = {path.parent.name.rsplit("-", 1)[0] for path in paths}
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for method in (*sorted(methods - {"resnet", "vit"}), "all"):
            runs = Path(folder) / method
            runs.mkdir()
            for path in paths:
                name = path.parent.name
                trained = not name.endswith("untrained")
                if trained and (method == "all" or name.startswith(f"{method}-")):
                    (runs / f"{name}.pt").symlink_to(path.resolve())
            for layer in LAYERS:
                for by in METRICS:
                    line = compare(runs, layer, by, options, Path(folder) / "cache")
                    if line is not None:
                        lines.append([method, layer, by, options.n, options.q, *line])
                        print(*lines[-1], sep="  ", flush=True)
    named = sum(line[8] for line in lines)
    share = sum(line[10] for line in lines) / len(lines)
    print(f"the race names the first in {named} of {len(lines)}, for {share:.0%} of the views")
    if options.csv:
        with options.csv.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])


def compare(runs, layer, by, options, cache):
    """One line from `d` on, or None where the checkpoints are not comparable."""
    settings = RankSettings(
        data="embedded",
        n_samples=options.n,
        n_views=options.q,
        views="simclr",
        layer=layer,
        by=by,
        device="cpu",
        cache=cache,
    )
    try:
        race = race_directory(runs, settings)
        whole = rank_directory(runs, settings)
    except (SettingsError, InputError) as error:
        print(f"{runs.name} {layer} {by}: left out: {error}")
        return None
    rows = whole.groups[0].rows
    winners = [row.path for row in race.winners]
    return [
        rows[0].score.dim,
        race.looks[0].entrants,
        Path(rows[0].path).stem,
        rows[0].path in winners,
        len(winners),
        round(race.views_spent / race.views_without_race, 3),
        race.looks[-1].n,
    ]


if __name__ == "__main__":
    main()
