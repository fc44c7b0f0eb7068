"""The training runs of the study, and the stage that trains those whose checkpoint is missing.

The plan is fixed before any metric is computed: see protocol.md in this folder.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lidar_cli.demo.pretrain import Search, pretrain, searched
from lidar_cli.runtime.files import write_atomic
from lidar_cli.runtime.processes import run_parallel, save_checkpoint
from lidar_cli.runtime.progress import Progress
from study.byol import searched_byol, train_byol
from study.dino import searched_dino, train_dino
from study.ijepa import searched_ijepa, train_ijepa
from study.image_sets import study_set

Images = NDArray[np.uint8]
Draw = Callable[[Search, tuple[int, int]], Any]
Train = Callable[[Images, Any, int], dict[str, Any]]

METHODS: dict[str, tuple[Draw, Train]] = {
    "simclr": (lambda search, epochs: searched("simclr", search, epochs), pretrain),
    "vicreg": (lambda search, epochs: searched("vicreg", search, epochs), pretrain),
    "byol": (searched_byol, train_byol),
    "dino": (searched_dino, train_dino),
    "ijepa": (searched_ijepa, train_ijepa),
}
BACKBONES = ("simclr", "ijepa")  # a method of each architecture: a ResNet, a ViT
EPOCHS = {  # fewest and most of a run; about equal steps on every set
    "fashion": (8, 24),
    "plain": (16, 48),
    "digits": (16, 48),
    "textures": (10, 30),
}
SEARCHED = {"fashion": 24, "plain": 24, "digits": 8, "textures": 8}  # runs a method
REPEATED = (4, 2)  # the first runs of each method on the first set, and further seeds of each
SWEPT = {  # hyperparameters varied one at a time, on the first set
    "simclr": ("learning_rate", "strength", "temperature"),
    "vicreg": ("learning_rate", "similarity", "variance", "covariance"),
    "byol": ("learning_rate", "momentum"),
    "dino": ("learning_rate", "teacher_temperature", "momentum"),
    "ijepa": ("learning_rate", "crop", "masked"),
}
SHARES = (0.0, 0.25, 0.75, 1.0)  # of a hyperparameter's range; the others are in the middle
MIDDLE = 0.5


@dataclass(frozen=True)
class Run:
    """One training run.

    kind: untrained, search, seed (a run of the search with another training seed) or sweep.
    index: of the search. repeat: 0, or the number of the further seed.
    varied, share: the hyperparameter that a sweep varies, and its value as a share of its range;
    None for the sweep's centre.
    """

    data: str
    method: str
    kind: str
    index: int | None = None
    repeat: int = 0
    varied: str | None = None
    share: float = MIDDLE

    @property
    def name(self) -> str:
        """The run's folder below the folder of its set."""
        parts = {
            "untrained": ("untrained",),
            "search": (f"{self.index:02}",) if self.index is not None else (),
            "seed": (f"{self.index:02}" if self.index is not None else "", f"seed{self.repeat}"),
            "sweep": (self.varied, f"{self.share:g}") if self.varied else ("centre",),
        }[self.kind]
        return "-".join([self.method, *(part for part in parts if part)])

    def hyperparameters(self, seed: int) -> Any:
        """The hyperparameters of the run, of the method's own class."""
        draw, epochs = METHODS[self.method][0], EPOCHS[self.data]
        if self.index is not None:
            return draw(Search.seeded(seed, _number(self.data, self.method, self.index)), epochs)
        centre = draw(Search([MIDDLE] * 16), epochs)
        if self.kind == "untrained":
            return dataclasses.replace(centre, epochs=0)
        if self.varied is None:
            return centre
        return dataclasses.replace(centre, **{self.varied: self._varied_value(centre, draw)})

    def _varied_value(self, centre: Any, draw: Draw) -> float:
        assert self.varied is not None
        at_share = draw(Search([self.share] * 16), EPOCHS[self.data])
        value: float = getattr(at_share, self.varied)
        return value

    def training_seed(self, seed: int) -> int:
        """The seed of weights, order and views."""
        words = [seed % 2**64, _number(self.data, self.method, self.index or 0), self.repeat]
        return int(np.random.SeedSequence(words).generate_state(1)[0])


def _number(data: str, method: str, index: int) -> int:
    """Another one for each run of the search."""
    return (list(EPOCHS).index(data) * len(METHODS) + list(METHODS).index(method)) * 1000 + index


def planned_runs(searched_runs: dict[str, int] = SEARCHED) -> list[Run]:
    """All runs: the searches, set by set, then repeated seeds and sweeps on the first set."""
    first = next(iter(searched_runs))
    runs = []
    for data, count in searched_runs.items():
        runs += [Run(data, method, "untrained") for method in BACKBONES]
        runs += [Run(data, method, "search", i) for i in range(count) for method in METHODS]
    repeated, further = REPEATED
    for index in range(min(repeated, searched_runs[first])):
        for repeat in range(1, further + 1):
            runs += [Run(first, method, "seed", index, repeat) for method in METHODS]
    for method, names in SWEPT.items():
        runs.append(Run(first, method, "sweep"))
        runs += [
            Run(first, method, "sweep", varied=name, share=share)
            for name in names
            for share in SHARES
        ]
    return runs


def train(
    directory: Path,
    seed: int,
    folder: Path,
    minutes: float,
    progress: Progress,
    runs: list[Run] | None = None,
) -> None:
    """Train the runs whose checkpoint is missing; none begins after so many minutes.

    Checkpoints are `directory/checkpoints/SET/NAME/checkpoint.pt`, with `run.json` next to each.
    folder: of Fashion-MNIST. Raises OSError if a file cannot be written.
    """
    planned = planned_runs() if runs is None else runs
    todo = [run for run in planned if not _path(run, directory).exists()]
    end = time.time() + 60 * minutes
    tasks = [(run, directory, seed, folder, end) for run in todo]
    run_parallel(train_run, tasks, "training", progress, done=len(planned) - len(todo))


def train_run(run: Run, directory: Path, seed: int, folder: Path, end: float) -> None:
    """Train one run and save it, unless the time `end` has come."""
    if time.time() > end:
        return
    begun, h = time.monotonic(), run.hyperparameters(seed)
    images = study_set(run.data, seed, folder)
    pictures = images.images[images.train]
    checkpoint = METHODS[run.method][1](pictures, h, run.training_seed(seed))
    path = _path(run, directory)
    record = {
        "set": run.data,
        "method": run.method,
        "kind": run.kind,
        "name": run.name,
        "index": run.index,
        "seed": run.training_seed(seed),
        "varied": run.varied,
        "hyperparameters": dataclasses.asdict(h),
        "losses": [loss if np.isfinite(loss) else None for loss in checkpoint["losses"]],
        "seconds": round(time.monotonic() - begun, 1),
        "threads": torch.get_num_threads(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(record, allow_nan=False).encode()
    write_atomic(path.parent / "run.json", content)
    save_checkpoint(checkpoint, path)


def _path(run: Run, directory: Path) -> Path:
    return directory / "checkpoints" / run.data / run.name / "checkpoint.pt"
