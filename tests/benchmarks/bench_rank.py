"""What K checkpoints cost together, beside K times what one costs."""

import dataclasses
import shutil
import sys
from pathlib import Path

import timm
import torch
from bench_extract import photographs
from harness import Goal, Line, alternate, median, ratio

from lidar_cli.jobs.extract import extract_checkpoint
from lidar_cli.jobs.rank import rank_directory
from lidar_cli.jobs.score import score_file
from lidar_cli.settings import ExtractSettings, RankSettings, ScoreSettings

sys.path.insert(0, str(Path(__file__).parents[1]))
from make import checkpoint

K, N, Q, SIZE = 8, 32, 10, 224
WIDTHS = (8, 16, 32, 64)
REPEATS = 3


def narrow_resnet(path, seed):
    """A ResNet whose forward costs more than a view all the same: thin layers use a CPU badly."""
    checkpoint(path, seed, widths=WIDTHS)


def small_vit(path, seed):
    """A ViT of two blocks, beside which decoding and views dominate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = timm.models.VisionTransformer(embed_dim=192, depth=2, num_heads=3, num_classes=0)
    torch.save(model.state_dict(), path)


def bench_rank(device, folder):
    for name, make, goal in (
        (f"ResNet {'-'.join(map(str, WIDTHS))}", narrow_resnet, None),
        ("ViT of 2 blocks, width 192", small_vit, 0.6),
    ):
        yield from together_or_not(device, folder / make.__name__, name, make, goal)


def together_or_not(device, folder, name, make, bound):
    images = photographs(folder / "images", N)
    runs = folder / "runs"
    paths = [runs / f"{seed}.pt" for seed in range(K)]
    for seed, path in enumerate(paths):
        make(path, seed)
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
    for side, case, goal in (
        ("kept", "views in memory", bound),
        ("scratch", "views in a scratch file", None),
        ("drawn", "--view-memory 0", None),
        ("no store", "--no-store", None),
    ):
        yield Line(
            "rank",
            f"K={K} {name}, n={N} q={Q}, {SIZE} px, {case}",
            "K times extract and score, in one process",
            "float32",
            REPEATS,
            median(seconds[side]),
            median(seconds["one by one"]),
            "s",
            Goal(ratio(seconds[side], seconds["one by one"]), "times one by one", at_most=goal),
        )
