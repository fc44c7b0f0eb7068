"""The demo: train small networks on embedded images, rank them, probe them, compare.

The checkpoints are written as a training script would write them, and ranked by the code and the
defaults of `lidar rank DIR/runs -n 600`.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.reading.read import read_checkpoint
from lidar_cli.data.builtin import EmbeddedImages, embedded_images
from lidar_cli.demo.pretrain import Hyperparameters, Method, draw_hyperparameters, pretrain
from lidar_cli.errors import InputError
from lidar_cli.probing.linear import linear_probe
from lidar_cli.ranking.correlation import Correlation, correlate
from lidar_cli.ranking.session import Ranking, rank_directory
from lidar_cli.runtime.device import find_device
from lidar_cli.runtime.files import make_folder
from lidar_cli.runtime.processes import run_parallel, save_checkpoint
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import EMBEDDED, EMBEDDED_DEFAULTS, DemoSettings, RankSettings
from lidar_cli.views.methods import find_recipe
from lidar_cli.views.pipeline import Views

RUNS = 12  # half SimCLR, half VICReg
N_SAMPLES = 600  # more than 2 d, so that every metric has an interval
BATCH_ROWS = 256


@dataclass(frozen=True)
class Demo:
    """The results of the demo. Accuracies are on the test images, by checkpoint path."""

    ranking: Ranking
    hyperparameters: dict[str, Hyperparameters]
    accuracies: dict[str, float]
    correlations: tuple[Correlation, ...]
    seconds: dict[str, float]  # by stage
    n_train: int
    n_test: int
    attribution: str


def run_demo(directory: Path, settings: DemoSettings, progress: Progress | None = None) -> Demo:
    """Train, rank and probe; checkpoints of an earlier demo of the same seed are used again.

    Raises InputError if the directory contains other runs or cannot be written.
    """
    progress = progress or Progress()
    device = find_device(settings.device)
    images = embedded_images()
    seconds: dict[str, float] = {}
    begun = time.monotonic()
    runs = train_all(directory / "runs", images, settings.seed, progress)
    seconds["training"] = time.monotonic() - begun

    begun = time.monotonic()
    defaults = RankSettings(
        data=EMBEDDED,
        n_samples=N_SAMPLES,
        n_views=EMBEDDED_DEFAULTS["n_views"],
        device=settings.device,
    )
    ranking = rank_directory(directory / "runs", defaults, progress)
    seconds["ranking"] = time.monotonic() - begun

    begun = time.monotonic()
    paths = [row.path for group in ranking.groups for row in group.rows]
    accuracies = dict(zip(paths, _probe_all(paths, images, device, progress), strict=True))
    seconds["probing"] = time.monotonic() - begun

    rows = [row for group in ranking.groups for row in group.rows]
    correlations = correlate([row.score for row in rows], [accuracies[row.path] for row in rows])
    return Demo(
        ranking,
        runs,
        accuracies,
        correlations,
        seconds,
        int(images.train.sum()),
        int((~images.train).sum()),
        images.attribution,
    )


def train_all(
    runs: Path, images: EmbeddedImages, seed: int, progress: Progress
) -> dict[str, Hyperparameters]:
    """Train the missing checkpoints. Returns the hyperparameters of all, by checkpoint path."""
    drawn = {}
    for index in range(RUNS):
        method: Method = "simclr" if index % 2 == 0 else "vicreg"
        drawn[runs / f"{method}-{index:02}" / "checkpoint.pt"] = draw_hyperparameters(
            method, seed, index
        )
    make_folder(runs)
    _refuse_other_runs(runs, drawn)
    pictures = images.images[images.train]
    tasks = [
        (path, pictures, hyperparameters, seed * RUNS + index)
        for index, (path, hyperparameters) in enumerate(drawn.items())
        if not path.exists()
    ]
    if tasks:
        progress.note(
            f"training {len(tasks)} small networks, then ranking and probing {len(drawn)}: about "
            "two minutes on two CPU cores"
        )
    run_parallel(_train, tasks, "training checkpoints", progress, done=len(drawn) - len(tasks))
    return {str(path): hyperparameters for path, hyperparameters in drawn.items()}


def _train(
    path: Path, images: NDArray[np.uint8], hyperparameters: Hyperparameters, seed: int
) -> None:
    save_checkpoint(pretrain(images, hyperparameters, seed), path)


def _refuse_other_runs(runs: Path, drawn: dict[Path, Hyperparameters]) -> None:
    for path in runs.rglob("*.pt"):
        expected = drawn.get(path)
        stored = read_checkpoint(path).get("hyper_parameters")
        if expected is None or stored != dataclasses.asdict(expected):
            raise InputError(
                f"{path}: is not a checkpoint of this demo and seed; name another directory",
                code="other-runs",
            )


def _probe_all(
    paths: list[str], images: EmbeddedImages, device: torch.device, progress: Progress
) -> list[float]:
    """Test accuracy of a linear probe on each backbone, with un-augmented images."""
    size = images.images.shape[1]
    views = Views(find_recipe("identity", "auto"), seed=0, n_views=1, image_size=size)
    pixels = views.clean([torch.from_numpy(image) for image in images.images]).to(device)
    embeddings = []
    for at, path in enumerate(paths):
        progress.update("probing checkpoints", at, len(paths))
        embeddings.append(_backbone(path, pixels))
    rows = torch.stack(embeddings)  # [K, N, d]
    labels, train = torch.from_numpy(images.labels), torch.from_numpy(images.train)
    probed = linear_probe(rows[:, train], labels[train], rows[:, ~train], labels[~train])
    progress.update("probing checkpoints", len(paths), len(paths))
    return [accuracy.top1 for accuracy in probed]


def _backbone(path: str, pixels: Tensor) -> Tensor:
    """Backbone embeddings [N, d] of normalised images [N, 3, S, S]."""
    loaded = open_checkpoint(Path(path)).to(pixels.device)
    batches = [
        loaded.embed(batch, ["backbone"])["backbone"] for batch in torch.split(pixels, BATCH_ROWS)
    ]
    return torch.cat(batches).clone()
