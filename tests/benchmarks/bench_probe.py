"""What a probe costs: checkpoints side by side, and rows read from a file in each epoch."""

import torch
from harness import LIDAR, Goal, Line, alternate, median, peak_memory, ratio

from lidar_cli.features.reader import read_hdf5
from lidar_cli.features.schema import Layout
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.probing.data import held, stored
from lidar_cli.probing.linear import fit
from lidar_cli.settings import ProbeSettings

ROWS, DIM, CLASSES, CHECKPOINTS = 1442, 128, 10, 12  # of the demo
WIDE, MEMORY = 512, "400MB"


def bench_probe(device, folder):
    yield run_parallel(device)
    path = write_labelled(folder / "f.h5", 200_000)
    yield from_file(path, device)
    peaks = {200_000: peak_memory(probe(path, device))}
    path.unlink()
    path = write_labelled(folder / "f.h5", 400_000)
    peaks[400_000] = peak_memory(probe(path, device))
    yield Line(
        "probe",
        f"lidar probe, 400000 x {WIDE} ({path.stat().st_size / 2**20:,.0f} MB), --memory {MEMORY}",
        "the same at 200000",
        "float32",
        1,
        peaks[400_000],
        peaks[200_000],
        "MB",
        Goal(peaks[400_000] / peaks[200_000], "times the smaller file's", at_most=1.1),
    )


def run_parallel(device, repeats=9):
    generator = torch.Generator().manual_seed(0)
    rows = [
        held(torch.randn(ROWS, DIM, generator=generator).to(device)) for _ in range(CHECKPOINTS)
    ]
    labels = torch.arange(ROWS, device=device) % CLASSES
    seconds = alternate(
        {
            "twelve": lambda: fit(rows, labels, CLASSES, (0.01,), ProbeSettings()),
            "one": lambda: fit(rows[:1], labels, CLASSES, (0.01,), ProbeSettings()),
        },
        repeats,
        device=device,
    )
    return Line(
        "probe",
        f"{CHECKPOINTS} checkpoints of {ROWS} x {DIM} side by side, 20 epochs",
        "one of them",
        "float32",
        repeats,
        median(seconds["twelve"]),
        median(seconds["one"]),
        "s",
        Goal(ratio(seconds["twelve"], seconds["one"]), "times one's", at_most=3),
    )


def from_file(path, device, repeats=3):
    (embeddings,) = read_hdf5(path)
    count, _, _ = embeddings.shape
    rows = [stored(embeddings, torch.arange(count))]
    labels = torch.arange(count, device=device) % 100

    def epochs(hold):
        return lambda: fit(rows, labels, 100, (0.01,), ProbeSettings(epochs=3), hold=hold)

    sides = {"read": epochs(False), "held": epochs(True)}
    seconds = alternate(sides, repeats, device=device)
    return Line(
        "probe",
        f"3 epochs of {count} x {WIDE}, rows read from the file in each",
        "rows held in memory",
        "float32",
        repeats,
        median(seconds["read"]),
        median(seconds["held"]),
        "s",
        Goal(ratio(seconds["read"], seconds["held"]), "times the held rows'"),
        "the file is in the page cache",
    )


def probe(path, device):
    options = ["--memory", MEMORY, "--epochs", "1", "--device", str(device), "--json"]
    return [*LIDAR, "probe", str(path), *options]


def write_labelled(path, count, step=20_000):
    layout = Layout({"backbone": WIDE}, 0, 0, count)
    ids, labels = [str(i) for i in range(count)], [i % 100 for i in range(count)]
    generator = torch.Generator().manual_seed(0)
    nothing = {"backbone": torch.empty(0, 0, WIDE)}
    with FeatureWriter.create(path, layout, ids, labels, {}) as writer:
        for start in range(0, count, step):
            clean = torch.randn(step, WIDE, generator=generator)
            writer.write(range(start, start + step), nothing, {"backbone": clean})
        return writer.finish()
