"""What a probe costs: twelve checkpoints side by side against one, rows held against read from
the file in each epoch. Run by hand:

    python tests/benchmarks/bench_probe.py

Both sides of a comparison run alternately in one process, and the median of the ratios is what
counts. Needs about 1 GB of free disk in the temporary directory.
"""

import csv
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch

from lidar_cli.features import FeatureWriter, Layout, read_hdf5
from lidar_cli.jobs.linear import fit
from lidar_cli.jobs.rows import held, stored
from lidar_cli.settings import ProbeSettings

RESULTS = Path(__file__).parent / "results"
ROWS, DIM, CLASSES, CHECKPOINTS = 1442, 128, 10, 12  # of the demo
MANY, WIDE = 200_000, 1024  # rows that do not fit a small --memory


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def bench_side_by_side(repeats=7):
    """Seconds of 20 epochs for one checkpoint of the demo's size, and for twelve."""
    generator = torch.Generator().manual_seed(0)
    rows = [held(torch.randn(ROWS, DIM, generator=generator)) for _ in range(CHECKPOINTS)]
    labels = torch.arange(ROWS) % CLASSES
    one, twelve = [], []
    for _ in range(repeats + 1):  # the first warms up
        one.append(timed(lambda: fit(rows[:1], labels, CLASSES, (0.01,), ProbeSettings())))
        twelve.append(timed(lambda: fit(rows, labels, CLASSES, (0.01,), ProbeSettings())))
    ratios = [b / a for a, b in zip(one[1:], twelve[1:], strict=True)]
    yield "1 checkpoint", statistics.median(one[1:]), "s"
    yield f"{CHECKPOINTS} checkpoints side by side", statistics.median(twelve[1:]), "s"
    yield f"{CHECKPOINTS} over 1", statistics.median(ratios), "ratio"


def bench_stream():
    """Seconds of an epoch and peak memory, windows read from the file, then all rows held."""
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.h5"
        layout = Layout({"backbone": WIDE}, 0, 0, MANY)
        ids, labels = [str(i) for i in range(MANY)], torch.arange(MANY) % 100
        with FeatureWriter.create(path, layout, ids, labels.tolist(), {}) as writer:
            for start in range(0, MANY, 10_000):
                clean = torch.randn(10_000, WIDE, generator=generator)
                nothing = clean.new_empty(0, 0, WIDE)
                writer.write(
                    range(start, start + 10_000), {"backbone": nothing}, {"backbone": clean}
                )
            writer.finish()
        (embeddings,) = read_hdf5(path)
        rows = [stored(embeddings, torch.arange(MANY))]
        for name, hold in (("from the file", False), ("held", True)):
            epochs = [
                timed(
                    lambda n=n, hold=hold: fit(
                        rows, labels, 100, (0.01,), ProbeSettings(epochs=n), hold=hold
                    )
                )
                for n in (1, 3)
            ]
            yield f"an epoch of {MANY:,} x {WIDE}, {name}", (epochs[1] - epochs[0]) / 2, "s"
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            yield f"peak memory, {name}", peak, "MB"


def main():
    lines = [*bench_side_by_side(), *bench_stream()]
    path = RESULTS / f"probe-cpu-2core-torch{torch.__version__.split('+')[0]}-float32.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["what", "value", "unit"])
        writer.writerows((what, f"{value:.4g}", unit) for what, value, unit in lines)
    print(path.read_text(), end="")


if __name__ == "__main__":
    main()
