"""Measures the checkpoints of the study: accuracies of probes, then every metric.

Checkpoints are opened as a user's files are, and every metric comes from the product's own pass.
Each checkpoint's rows are appended when it is done, so an interrupted measurement resumes.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.core.metrics import METRICS, parse_metrics
from lidar_cli.errors import LidarError
from lidar_cli.features.embeddings import Embeddings, StoredArray
from lidar_cli.probing.classifiers import measure as measure_accuracy
from lidar_cli.probing.classifiers import ridge_regression, standardise
from lidar_cli.probing.data import TEST_SHARE, rows_of_tensor, split
from lidar_cli.probing.linear import linear_probe
from lidar_cli.runtime.processes import run_parallel
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import Score
from lidar_cli.scoring.run import score_layer
from lidar_cli.settings import MetricSettings, ProbeSettings
from lidar_cli.views.methods import find_recipe
from lidar_cli.views.pipeline import Views
from lidar_cli.views.recipes import QUARTER_TURNS
from study.image_sets import study_set
from study.records import (
    ACCURACY_COLUMNS,
    ACCURACY_FILE,
    ACCURACY_KEY,
    ERROR,
    LAYERS,
    METRICS_FILE,
    METRICS_KEY,
    append_rows,
    read_rows,
)

RECIPE = "simclr"  # for all methods, since metrics of different views are not comparable
ROWS_A_BATCH = 500
LEVEL = 0.95  # of the intervals, from which only the standard errors are used
STRENGTHS = tuple(10.0**power for power in range(-2, 4))  # 1 / L2 penalty, strongest first
PATIENCE = 2  # strengths in a row without a higher held-out accuracy, after which none is tried
HELD_OUT = 5  # one of so many training rows is held out for the choice of the strength
MOST_ITERATIONS = 5000
TURNED_IMAGES = 1000  # of the rotation probe
ROTATION = "rotation:higher"
METRICS_COLUMNS = (
    *(*METRICS_KEY, "n", "d", "failed", ROTATION),
    *(f"{name}:{metric.direction}" for name, metric in METRICS.items()),
    *(f"{name}:{ERROR}" for name in METRICS),
)


Embed = Callable[[Tensor], dict[str, Tensor]]  # images [N, 3, S, S] -> embeddings [N, d] by layer


@dataclass(frozen=True)
class Size:
    """The size of a measurement. views: values of q, ascending; the first q views are used."""

    samples: int = 640  # n (q - 1) = 5 d even at q = 2
    views: tuple[int, ...] = (2, 10, 50)


@dataclass(frozen=True)
class Source:
    """What a measurement depends on besides the checkpoint. folder: of Fashion-MNIST."""

    directory: Path
    seed: int
    folder: Path
    size: Size = Size()


def measure(
    source: Source, minutes: float, processes: int | None, progress: Progress, *, with_metrics: bool
) -> None:
    """Measure what has no complete rows yet; no checkpoint is begun after so many minutes.

    with_metrics: whether to measure the metrics too, after the accuracies.
    Raises InputError if a file of results has other columns, OSError if it cannot be written.
    """
    end = time.time() + 60 * minutes
    runs = trained_runs(source.directory)
    stages: list[tuple[str, Callable[..., None], Path, tuple[str, ...], int]] = [
        ("accuracies", probe_run, source.directory / ACCURACY_FILE, ACCURACY_KEY, len(LAYERS))
    ]
    if with_metrics:
        rows = len(LAYERS) * len(source.size.views)
        stages.append(("metrics", score_run, source.directory / METRICS_FILE, METRICS_KEY, rows))
    for name, work, path, key, complete in stages:
        count: dict[tuple[str, ...], int] = {}
        for row in read_rows(path, key):
            count[row[:2]] = count.get(row[:2], 0) + 1
        todo = [run for run in runs if count.get((run["set"], run["name"]), 0) < complete]
        tasks = [(run, source, end) for run in todo]
        run_parallel(work, tasks, name, progress, len(runs) - len(todo), processes)


def trained_runs(directory: Path) -> list[dict[str, Any]]:
    """The records of all runs with a checkpoint, set by set."""
    paths = sorted((directory / "checkpoints").glob("*/*/checkpoint.pt"))
    return [json.loads((path.parent / "run.json").read_text(encoding="utf-8")) for path in paths]


def probe_run(run: Mapping[str, Any], source: Source, end: float) -> None:
    """Append the accuracies of one checkpoint, unless the time `end` has come."""
    if time.time() > end:
        return
    identity = {name: run[name] for name in ACCURACY_COLUMNS if name in run}
    identity |= {"hyperparameters": json.dumps(run["hyperparameters"], sort_keys=True)}
    images = study_set(run["set"], source.seed, source.folder)
    labels, train = torch.from_numpy(images.labels), torch.from_numpy(images.train)
    by_layer: list[dict[str, Any]]
    try:
        embedded = _open(run, source)(clean_pixels(run["set"], source))
        by_layer = [
            probes(rows[train], labels[train], rows[~train], labels[~train])
            for rows in embedded.values()
        ]
    except LidarError as error:  # after diverged training, embeddings are not finite
        by_layer = [{"failed": str(error)}] * len(LAYERS)
    rows = [
        identity | {"layer": layer} | accuracies
        for layer, accuracies in zip(LAYERS, by_layer, strict=True)
    ]
    append_rows(source.directory / ACCURACY_FILE, ACCURACY_COLUMNS, rows)


def score_run(run: Mapping[str, Any], source: Source, end: float) -> None:
    """Append the metrics of one checkpoint, unless the time `end` has come."""
    if time.time() > end:
        return
    identity = {"set": run["set"], "name": run["name"]}
    places = [(layer, q) for layer in LAYERS for q in source.size.views]
    by_place: list[dict[str, Any]]
    try:
        embed = _open(run, source)
        views, clean = view_pixels(run["set"], source), clean_pixels(run["set"], source)
        view_rows = [
            rows.view(*views.shape[:2], -1) for rows in embed(views.flatten(0, 1)).values()
        ]
        rotation = rotation_probe(embed, clean[:TURNED_IMAGES], source.seed)
        by_place = [
            {ROTATION: rotation[layer]}
            | _values(_score(run["name"], layer, rows[:, :q], clean_rows))
            for (layer, clean_rows), rows in zip(embed(clean).items(), view_rows, strict=True)
            for q in source.size.views
        ]
    except LidarError as error:
        by_place = [{"failed": str(error)}] * len(places)
    rows = [
        identity | {"layer": layer, "q": q} | values
        for (layer, q), values in zip(places, by_place, strict=True)
    ]
    append_rows(source.directory / METRICS_FILE, METRICS_COLUMNS, rows)


def probes(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor
) -> dict[str, float | int]:
    """Test accuracies of the two linear probes of embeddings [n, d] and [m, d], shares of 1.

    paper: the default protocol of `lidar probe`. lbfgs: multinomial logistic regression with an L2
    penalty on standardised rows, fitted by L-BFGS. Its strength is the one of STRENGTHS with the
    highest accuracy on held-out training rows, the strongest of several; weaker ones are not tried
    after PATIENCE without a gain. iterations: of its fit.
    Raises InputError if a row is not finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    paper = linear_probe(train, train_labels, test, test_labels, settings=ProbeSettings())
    scaling = standardise(rows_of_tensor(train), torch.device("cpu"))
    x, x_test = (scaling(rows).double().numpy() for rows in (train, test))
    y, y_test = train_labels.numpy(), test_labels.numpy()
    held_out = torch.arange(len(y)).remainder(HELD_OUT).eq(HELD_OUT - 1).numpy()
    model = LogisticRegression(max_iter=MOST_ITERATIONS, warm_start=True)
    best, held_out_best, patience = STRENGTHS[0], -1.0, PATIENCE
    with threadpool_limits(1), warnings.catch_warnings():  # so small, threads wait for each other
        warnings.simplefilter("ignore", ConvergenceWarning)  # `iterations` has it
        for strength in STRENGTHS:
            model.set_params(C=strength).fit(x[~held_out], y[~held_out])
            accuracy = model.score(x[held_out], y[held_out])
            patience -= 1
            if accuracy > held_out_best:
                best, held_out_best, patience = strength, accuracy, PATIENCE
            if not patience:
                break
        model.set_params(C=best).fit(x, y)
    return {
        "lbfgs": float(model.score(x_test, y_test)),
        "strength": best,
        "iterations": int(model.n_iter_[0]),
        "paper": paper[0].top1,
    }


def rotation_probe(embed: Embed, images: Tensor, seed: int) -> dict[str, float]:
    """The accuracy by layer of a ridge classifier of the turn of an image, one of four.

    As `lidar probe --pretext rotation`: all turns of an image are in one part of the split.
    images: not augmented [n, 3, S, S].
    Source: Reed et al. 2021, SelfAugment, CVPR.
    """
    turned = torch.stack([torch.rot90(images, k, dims=(2, 3)) for k in range(QUARTER_TURNS)], dim=1)
    parts = split(len(images), TEST_SHARE, seed)
    train, test = (torch.arange(QUARTER_TURNS).repeat(len(part)) for part in parts)
    accuracies = {}
    for layer, rows in embed(turned.flatten(0, 1)).items():
        views = rows.view(len(images), QUARTER_TURNS, -1)
        x, x_test = (rows_of_tensor(views[part].flatten(0, 1)) for part in parts)
        classifier = ridge_regression(x, train, QUARTER_TURNS, ProbeSettings().ridge)
        accuracies[layer] = measure_accuracy(classifier, x_test, test)[0].top1
    return accuracies


def _open(run: Mapping[str, Any], source: Source) -> Embed:
    """A function from images [N, 3, S, S] to embeddings [N, d] by layer, in the order of LAYERS."""
    layers = (LAYERS[0], "predictor" if run["method"] == "ijepa" else LAYERS[1])
    path = source.directory / "checkpoints" / run["set"] / run["name"] / "checkpoint.pt"
    loaded = open_checkpoint(path, layer=",".join(layers)).to("cpu")
    loaded.set_image_size(clean_pixels(run["set"], source).shape[-1])

    def embed(pixels: Tensor) -> dict[str, Tensor]:
        parts = [loaded.embed(batch, layers) for batch in torch.split(pixels, ROWS_A_BATCH)]
        return {layer: torch.cat([part[layer] for part in parts]).clone() for layer in layers}

    return embed


@lru_cache(maxsize=1)  # runs come set by set
def view_pixels(data: str, source: Source) -> Tensor:
    """Views [n, q, 3, S, S] of the first n images of a set."""
    images = study_set(data, source.seed, source.folder).images[: source.size.samples]
    views = Views(
        find_recipe(RECIPE, "imagenet"), source.seed, source.size.views[-1], images.shape[1]
    )
    return views.views([torch.from_numpy(image) for image in images], range(len(images)))


@lru_cache(maxsize=1)
def clean_pixels(data: str, source: Source) -> Tensor:
    """All images of a set, not augmented [N, 3, S, S]."""
    images = study_set(data, source.seed, source.folder).images
    views = Views(find_recipe(RECIPE, "imagenet"), source.seed, 1, images.shape[1])
    return views.clean([torch.from_numpy(image) for image in images])


def _score(file: str, layer: str, views: Tensor, clean: Tensor) -> Score:
    def stored(rows: Tensor) -> StoredArray:
        return StoredArray(
            tuple(rows.shape), rows.element_size(), lambda start, stop: rows[start:stop]
        )

    embeddings = Embeddings(file, layer, stored(views), stored(clean))
    settings, cpu = MetricSettings(), torch.device("cpu")
    return score_layer(embeddings, settings, cpu, parse_metrics("all"), Progress(), LEVEL)


def _values(score: Score) -> dict[str, float | None]:
    values: dict[str, float | None] = {"n": score.n_samples, "d": score.dim}
    values |= {f"{name}:{m.direction}": score.value(name) for name, m in METRICS.items()}
    return values | {f"{name}:{ERROR}": score.interval(name).se for name in METRICS}
