"""What one more sample, view or dimension costs: the slopes from which a run is planned.

A slope is the difference between two runs of unequal size over what they differ by, so that what
either begins with drops out.
"""

import io
import shutil

import timm
import torch
from harness import Goal, Line, alternate, median, write_embeddings
from make import checkpoint, image_folder
from PIL import Image
from sklearn.datasets import load_sample_images

from lidar_cli.core.metrics import parse_metrics
from lidar_cli.core.moments import Moments
from lidar_cli.core.spectra import lda_spectrum
from lidar_cli.data.dataset import decoded
from lidar_cli.ranking.session import rank_directory
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.open import open_embeddings
from lidar_cli.scoring.run import score_layer
from lidar_cli.settings import RankSettings, ScoreSettings
from lidar_cli.views.methods import find_recipe
from lidar_cli.views.pipeline import Views

REPEATS = 3
Q = 10
SIZES = (32, 96, 224, 384)
MODELS = {
    "cpu": (("resnet18", 224), ("vit_small_patch16_224", 224)),
    "cuda": (("resnet50", 224), ("vit_small_patch16_224", 224), ("vit_huge_patch14_224", 224)),
}
DIMENSIONS = (128, 512, 2048)
FEW, MANY = 20, 220  # checkpoints of 56 KB, whose forward passes are next to nothing


def bench_slopes(device, folder):
    yield decoding()
    for size in SIZES:
        yield drawing(device, size)
    for arch, size in MODELS[torch.device(device).type]:
        yield forward(device, arch, size)
    for d in DIMENSIONS:
        yield from scoring(device, folder, d)
    yield from ranking(device, folder)


def line(case, what, small, large, by, remark=""):
    """small, large: seconds [repeats] of either run, which differ by `by` of what is counted."""
    cost = median(b - a for a, b in zip(small, large, strict=True)) / by
    return Line(
        "slopes",
        case,
        f"a run with {by:,} fewer",
        "float32",
        len(large),
        median(large),
        median(small),
        "s",
        Goal(1e3 * cost, f"ms {what}"),
        remark,
    )


def slope(case, what, run, few, many, device, remark=""):
    seconds = alternate(
        {"few": lambda: run(few), "many": lambda: run(many)}, REPEATS, device=device
    )
    return line(case, what, seconds["few"], seconds["many"], many - few, remark)


def decoding():
    content = io.BytesIO()
    Image.fromarray(load_sample_images().images[0][:375, :500]).save(content, "JPEG", quality=90)

    def run(count):
        for _ in range(count):
            decoded(content.getvalue())

    return slope("decoding, JPEG of 500 x 375, one thread", "a sample", run, 10, 60, "cpu")


def drawing(device, size):
    views = Views(find_recipe("simclr", "auto"), 0, Q, size)
    photograph = torch.from_numpy(load_sample_images().images[0][:375, :500].copy()).to(device)

    def run(samples):
        views.views([photograph] * samples, list(range(samples)))

    return slope(f"views, simclr, {size} px", "a view", lambda k: run(k // Q), 2 * Q, 8 * Q, device)


def forward(device, arch, size):
    model = timm.create_model(arch, num_classes=0).eval().to(device)
    images = torch.randn(16, 3, size, size, device=device)

    def run(views):
        with torch.inference_mode():
            for _ in range(views // 16):
                model(images)

    return slope(f"forward, {arch}, {size} px, 16 at a time", "a view", run, 16, 48, device)


def scoring(device, folder, d):
    """Time of all metrics a row, with and without intervals, and of the spectra alone."""
    few, many = (max(2 * d + 1, int(2e6 / (Q * d))) * k for k in (1, 3))
    paths = {n: folder / f"{n}.npy" for n in (few, many)}
    for n, path in paths.items():
        write_embeddings(path, n, Q, d)
    settings = ScoreSettings(device=str(device))

    def run(n, level=None):
        (embeddings,) = open_embeddings(paths[n], settings)
        score_layer(
            embeddings, settings, torch.device(device), parse_metrics("default"), Progress(), level
        )

    repeats = REPEATS if d < 1000 else 2
    seconds = alternate(
        {
            "few": lambda: run(few),
            "many": lambda: run(many),
            "few, sure": lambda: run(few, 0.95),
            "many, sure": lambda: run(many, 0.95),
        },
        repeats,
        device=device,
    )
    rows = (many - few) * Q
    yield line(f"score, d={d}", "a view", seconds["few"], seconds["many"], rows)
    yield line(
        f"score with intervals, d={d}", "a view", seconds["few, sure"], seconds["many, sure"], rows
    )
    moments = Moments.of(torch.randn(2 * d, 2, d, dtype=torch.float64, device=device))
    took = alternate({"solve": lambda: lda_spectrum(moments, 1e-4)}, repeats, device=device)
    yield Line(
        "slopes",
        f"the LDA spectrum, d={d}",
        "nothing",
        "float64",
        repeats,
        median(took["solve"]),
        None,
        "s",
        Goal(1e3 * median(took["solve"]), "ms a checkpoint"),
    )
    for path in paths.values():
        path.unlink()


def ranking(device, folder):
    """What a checkpoint of a directory costs beside its views and forward passes."""
    image_folder(folder / "images", 24)
    settings = RankSettings(
        data=str(folder / "images"), n_samples=24, n_views=2, image_size=16, device=str(device)
    )
    for count in (FEW, MANY):
        for seed in range(count):
            checkpoint(folder / f"{count}" / f"{seed}.pt", seed)

    def anew(count):
        shutil.rmtree(folder / f"{count}" / ".lidar", ignore_errors=True)
        again(count)

    def again(count):
        rank_directory(folder / f"{count}", settings)

    for case, run in (("ranked", anew), ("ranked again, from its cache", again)):
        yield slope(f"a small checkpoint {case}", "a checkpoint", run, FEW, MANY, device)
