"""What K checkpoints cost together, beside K times what one costs."""

import dataclasses
import shutil
import sys
from pathlib import Path

from bench_extract import photographs
from harness import Goal, Line, alternate, median, ratio

from lidar_cli.jobs.extract import extract_checkpoint
from lidar_cli.jobs.rank import rank_directory
from lidar_cli.jobs.score import score_file
from lidar_cli.settings import ExtractSettings, RankSettings, ScoreSettings

sys.path.insert(0, str(Path(__file__).parents[1]))
from make import checkpoint

K, N, Q, SIZE = 8, 32, 10, 224
WIDTHS = (8, 16, 32, 64)  # narrow, so that decoding and views dominate
REPEATS = 3


def bench_rank(device, folder):
    images = photographs(folder / "rank-images", N)
    runs = folder / "runs"
    paths = [checkpoint(runs / f"{seed}.pt", seed, widths=WIDTHS) for seed in range(K)]
    common = {
        "data": str(images),
        "n_samples": N,
        "n_views": Q,
        "views": "simclr",
        "image_size": SIZE,
        "device": device,
    }

    def one_by_one():
        for at, path in enumerate(paths):
            settings = ExtractSettings(**common, output=folder / f"{at}.h5", overwrite=True)
            done = extract_checkpoint(path, settings)
            score_file(done.path, ScoreSettings(device=device))

    def together(**more):
        cache = folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        rank_directory(runs, dataclasses.replace(RankSettings(**common), cache=cache, **more))

    sides = {
        "kept": together,
        "one by one": one_by_one,
        "scratch": lambda: together(view_memory="1MB"),
        "drawn": lambda: together(view_memory="0"),
        "no store": lambda: together(store=False),
    }
    seconds = alternate(sides, REPEATS, device=device)
    for name, case, goal in (
        ("kept", "views in memory", 0.6),
        ("scratch", "views in a scratch file", None),
        ("drawn", "--view-memory 0", None),
        ("no store", "--no-store", None),
    ):
        yield Line(
            "rank",
            f"K={K} ResNets {'-'.join(map(str, WIDTHS))}, n={N} q={Q}, {SIZE} px, {case}",
            "K times extract and score, in one process",
            "float32",
            REPEATS,
            median(seconds[name]),
            median(seconds["one by one"]),
            "s",
            Goal(ratio(seconds[name], seconds["one by one"]), "times one by one", at_most=goal),
        )
