"""The moments pass over a file against the two costs that it cannot avoid."""

from unittest import mock

import torch
from harness import Goal, Line, alternate, median, ratio, write_embeddings

from lidar_cli.configuration import parse_size
from lidar_cli.core import accumulate
from lidar_cli.core.accumulate import held_rows
from lidar_cli.core.metrics import parse_metrics
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.open import open_embeddings
from lidar_cli.scoring.run import score_layer
from lidar_cli.scoring.streaming import read_moments
from lidar_cli.settings import ScoreSettings

Q = 10
NUMBERS = 5e7  # of the file, 200 MB
WHAT = "the slower of: reading alone; the full product of as many rows by torch alone"


def bench_pass(device, folder, repeats=3):
    for d in (128, 512, 2048):
        path = folder / "z.npy"
        write_embeddings(path, int(NUMBERS / (Q * d)), Q, d)
        yield measure(path, d, device, repeats)
        path.unlink()


def bench_named(device, folder, repeats=5, n=1000, d=2048):
    """A whole run with the metrics of a subset of samples, against one without."""
    write_embeddings(folder / "z.npy", n, Q, d)
    settings = ScoreSettings(device=str(device))
    (embeddings,) = open_embeddings(folder / "z.npy", settings)

    def score(wanted):
        return lambda: score_layer(embeddings, settings, torch.device(device), wanted, Progress())

    default = parse_metrics("default")
    sides = {
        "the default but stability": default - {"stability"},
        "--metrics default": default,
        "--metrics default,retrieval": default | {"retrieval"},
    }
    seconds = alternate({name: score(wanted) for name, wanted in sides.items()}, repeats, 1, device)
    without, *names = sides
    for name in names:
        yield Line(
            "named",
            f"{name}, n={n} q={Q} d={d}, .npy float32",
            without,
            "float64",
            repeats,
            median(seconds[name]),
            median(seconds[without]),
            "s",
            Goal(
                ratio(seconds[name], seconds[without]),
                "times without",
                at_most=1.3 if name == "--metrics default" else None,
            ),
        )


def measure(path, d, device, repeats):
    settings = ScoreSettings(device=str(device))
    (embeddings,) = open_embeddings(path, settings)
    n = embeddings.shape[0]
    rows = torch.randn(held_rows(d), d, dtype=torch.float64).to(device)
    scatter = torch.zeros(d, d, dtype=torch.float64, device=device)

    def moments():
        read_moments(
            embeddings, settings, torch.device(device), parse_metrics("default"), Progress()
        )

    def without_products():
        with mock.patch.object(accumulate, "add_products"):
            moments()

    def read():
        for _ in embeddings.chunks(parse_size(settings.memory)):
            pass

    def multiply():
        for _ in range(round(n * Q / len(rows))):
            scatter.addmm_(rows.T, rows)

    sides = {"ours": moments, "read": read, "multiply": multiply, "rest": without_products}
    seconds = alternate(sides, repeats, 1, device)
    limits = [max(pair) for pair in zip(seconds["read"], seconds["multiply"], strict=True)]
    over = median(a / b for a, b in zip(seconds["ours"], limits, strict=True))
    return Line(
        "pass",
        f"all metrics, n={n} q={Q} d={d}, .npy float32, file in the page cache",
        WHAT,
        "float64",
        repeats,
        median(seconds["ours"]),
        median(limits),
        "s",
        Goal(over, "times the slower", at_most=1.25),
        f"reading {median(seconds['read']):.3g} s, product {median(seconds['multiply']):.3g} s; "
        f"ours without its products {median(seconds['rest']):.3g} s: reading, and float64 steps on "
        f"single numbers, of which there are {Q * d * n / 1e6:.3g} million",
    )
