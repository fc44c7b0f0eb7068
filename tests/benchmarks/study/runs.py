"""Trains and measures one checkpoint of the study.

Hyperparameters are drawn by seed; the saved checkpoint is opened as a user's file is. Measurements
are saved next to it, so that an interrupted study resumes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.data.builtin import EmbeddedImages
from lidar_cli.demo.pretrain import Hyperparameters, Search, pretrain, searched
from lidar_cli.errors import CheckpointError, InputError
from lidar_cli.features.embeddings import Embeddings, StoredArray
from lidar_cli.probing.linear import linear_probe
from lidar_cli.runtime.files import write_atomic
from lidar_cli.runtime.processes import save_checkpoint
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import DEFAULT_METRICS, Score
from lidar_cli.scoring.run import score_layer
from lidar_cli.settings import MetricSettings, ProbeSettings
from lidar_cli.views.methods import find_recipe
from lidar_cli.views.pipeline import Views
from study.dino import DinoHyperparameters, searched_dino, train_dino
from study.ijepa import IjepaHyperparameters, searched_ijepa, train_ijepa
from study.image_sets import SETS

METHODS = ("simclr", "vicreg", "dino", "ijepa")
BACKBONES = {"ResNet": "simclr", "ViT": "ijepa"}  # backbone -> a method that trains it
LAYERS = ("backbone", "projector")  # I-JEPA has no projector: its predictor is used
RECIPE = "simclr"  # for all methods, since metrics of different views are not comparable
# Three times the epochs of the default protocol, which takes only 120 steps on so few rows.
PROBE = ProbeSettings(epochs=60, drop_epoch=45)
NUMBERS_A_METHOD = 1000  # more than the runs of a method in any study
ROWS_A_BATCH = 500


@dataclass(frozen=True)
class Size:
    """The size of a study. views: values of q, ascending; epochs: fewest and most of a run."""

    sets: tuple[str, ...] = tuple(SETS)
    images: int | None = None  # of each set; None for all
    runs: int = 24  # of each method on each set
    epochs: tuple[int, int] = (3, 12)
    n_samples: int = 640  # n (q - 1) = 5 d even at q = 2
    views: tuple[int, ...] = (2, 10, 50)


@dataclass(frozen=True)
class Run:
    """One checkpoint: number `index` of a method's random search on a set; None if untrained."""

    data: str
    method: str
    index: int | None

    @property
    def name(self) -> str:
        """The run's folder in the folder of the study."""
        number = "untrained" if self.index is None else f"{self.index:02}"
        return f"{self.data}/{self.method}-{number}"

    @property
    def number(self) -> int:
        """Another one for each run."""
        method = list(SETS).index(self.data) * len(METHODS) + METHODS.index(self.method)
        return method * NUMBERS_A_METHOD + (
            NUMBERS_A_METHOD - 1 if self.index is None else self.index
        )


@dataclass(frozen=True)
class Measured:
    """The results of a run. accuracy: that of its backbone, as a share of 1."""

    run: Run
    hyperparameters: dict[str, Any]
    losses: tuple[float | None, ...]  # one for each epoch, None if it is not finite
    accuracy: float | None
    scores: Mapping[tuple[str, int], Score]  # by layer and q
    failed: str | None = None  # the reason if there are neither accuracy nor scores


def all_runs(size: Size) -> list[Run]:
    """All runs, set by set: each backbone untrained, then method by method."""
    return [
        run
        for data in size.sets
        for run in [
            *(Run(data, method, None) for method in BACKBONES.values()),
            *(Run(data, method, index) for method in METHODS for index in range(size.runs)),
        ]
    ]


def train_and_measure(run: Run, directory: Path, seed: int, size: Size) -> None:
    """Train a run unless its checkpoint exists, measure it, and save the measurements.

    Raises InputError or OSError if a file cannot be written.
    """
    folder = directory / run.name
    path = folder / "checkpoint.pt"
    run_key = key(run, seed, size)
    images = study_images(run.data, seed, size.images)
    if not path.exists():
        save_checkpoint(_train(run, images, run_key["hyperparameters"], seed), path)
    losses = torch.load(path, weights_only=True)["losses"]
    record = {"key": run_key, "losses": [loss if math.isfinite(loss) else None for loss in losses]}
    pixels = _pixels(run.data, seed, size)
    try:
        record |= measure(path, run, images, pixels, size)
    except (
        CheckpointError,
        InputError,
    ) as error:  # after diverged training, embeddings are not finite
        record |= {"failed": str(error)}
    content = json.dumps(record, allow_nan=False).encode()
    write_atomic(folder / "measured.json", content)


def read_measured(run: Run, directory: Path, seed: int, size: Size) -> Measured | None:
    """The saved measurements of a run; None if there are none.

    Raises InputError if they belong to another study.
    """
    path = directory / run.name / "measured.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read; remove it to measure again") from error
    run_key = key(run, seed, size)
    if not isinstance(record, dict) or record.get("key") != run_key:
        raise InputError(f"{path}: is not of a study of this seed and size; name another directory")
    losses = tuple(record["losses"])
    if "failed" in record:
        return Measured(run, run_key["hyperparameters"], losses, None, {}, record["failed"])
    scores = {
        (layer, int(q)): Score.of(**fields | {"alpha_req_ranks": tuple(fields["alpha_req_ranks"])})
        for layer, by_views in record["scores"].items()
        for q, fields in by_views.items()
    }
    return Measured(run, run_key["hyperparameters"], losses, record["accuracy"], scores)


def key(run: Run, seed: int, size: Size) -> dict[str, Any]:
    """Everything that determines the numbers of a run, with JSON's types."""
    entries = {
        "seed": seed,
        "hyperparameters": dataclasses.asdict(_drawn(run, seed, size)),
        "images": size.images,
        "n_samples": size.n_samples,
        "views": size.views,
    }
    same: dict[str, Any] = json.loads(json.dumps(entries))
    return same


def _drawn(run: Run, seed: int, size: Size) -> Any:
    search = Search.seeded(seed, run.number)
    if run.method == "dino":
        drawn: Any = searched_dino(search, size.epochs)
    elif run.method == "ijepa":
        drawn = searched_ijepa(search, size.epochs)
    else:
        method: Any = run.method
        drawn = searched(method, search, size.epochs)
    return dataclasses.replace(drawn, epochs=0) if run.index is None else drawn


def _train(
    run: Run, images: EmbeddedImages, hyperparameters: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    pictures = images.images[images.train]
    number = int(np.random.SeedSequence([seed % 2**64, run.number]).generate_state(1)[0])
    if run.method == "dino":
        return train_dino(pictures, DinoHyperparameters(**hyperparameters), number)
    if run.method == "ijepa":
        return train_ijepa(pictures, IjepaHyperparameters(**hyperparameters), number)
    return pretrain(pictures, Hyperparameters(**hyperparameters), number)


@lru_cache(maxsize=1)  # runs come set by set
def study_images(data: str, seed: int, count: int | None) -> EmbeddedImages:
    """`count` images of a set in random order, so that the first n are a random sample."""
    images = SETS[data](seed)
    order = np.random.default_rng(seed % 2**64).permutation(len(images.labels))[:count]
    return EmbeddedImages(
        images.images[order], images.labels[order], images.train[order], images.attribution
    )


@lru_cache(maxsize=1)
def _pixels(data: str, seed: int, size: Size) -> tuple[Tensor, Tensor]:
    """Views [n, q, 3, S, S] of the first n images, and all images un-augmented [N, 3, S, S]."""
    images = study_images(data, seed, size.images).images
    maker = Views(find_recipe(RECIPE, "imagenet"), seed, size.views[-1], images.shape[1])
    pictures = [torch.from_numpy(image) for image in images]
    return maker.views(pictures[: size.n_samples], range(size.n_samples)), maker.clean(pictures)


def measure(
    path: Path, run: Run, images: EmbeddedImages, pixels: tuple[Tensor, Tensor], size: Size
) -> dict[str, Any]:
    """Accuracy of the backbone and scores by layer and q of a checkpoint file, with JSON's types.

    The first q of the drawn views are used for each q, since view j of a sample depends on the
    seed, the sample and j alone. RankMe and alpha-ReQ read every un-augmented image.
    """
    layers = ("backbone", "predictor" if run.method == "ijepa" else "projector")
    loaded = open_checkpoint(path, layer=",".join(layers)).to("cpu")
    views, clean = pixels
    loaded.set_image_size(views.shape[-1])

    def embedded(rows: Tensor) -> dict[str, Tensor]:
        parts = [loaded.embed(batch, layers) for batch in torch.split(rows, ROWS_A_BATCH)]
        return {layer: torch.cat([part[layer] for part in parts]).clone() for layer in layers}

    view_rows, clean_rows = embedded(views.flatten(0, 1)), embedded(clean)
    scores: dict[str, dict[str, Any]] = {}
    for name, layer in zip(LAYERS, layers, strict=True):
        rows = view_rows[layer].view(*views.shape[:2], -1)
        scores[name] = {
            str(q): _plain(_score(path, layer, rows[:, :q], clean_rows[layer])) for q in size.views
        }
    labels, train = torch.from_numpy(images.labels), torch.from_numpy(images.train)
    rows = clean_rows["backbone"]
    accuracy = linear_probe(
        rows[train], labels[train], rows[~train], labels[~train], settings=PROBE
    )
    return {"accuracy": accuracy[0].top1, "scores": scores}


def _score(path: Path, layer: str, views: Tensor, clean: Tensor) -> Score:
    def stored(rows: Tensor) -> StoredArray:
        return StoredArray(
            tuple(rows.shape), rows.element_size(), lambda start, stop: rows[start:stop]
        )

    embeddings = Embeddings(str(path), layer, stored(views), stored(clean))
    settings, cpu = MetricSettings(), torch.device("cpu")
    return score_layer(embeddings, settings, cpu, DEFAULT_METRICS, Progress())


def _plain(result: Score) -> dict[str, Any]:
    """The fields of a score except the large ones, with the values by their names."""
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    for name in ("values", "spectra", "influences", "confidence"):
        del fields[name]
    return {**fields, **result.values, "file": Path(result.file).parent.name}
