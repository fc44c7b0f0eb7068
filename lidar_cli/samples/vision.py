"""Data sets of torchvision."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from PIL import Image

from lidar_cli.errors import InputError, first_line
from lidar_cli.samples.source import Candidate, Source, as_text, shuffled
from lidar_cli.settings import SampleSettings


def vision(data: str, name: str, settings: SampleSettings) -> Source:
    """The images of a split. Raises InputError if it cannot be loaded."""
    from timm.data.dataset_factory import create_dataset

    root, split = settings.data_dir, settings.split or "train"
    if root is None:
        raise InputError(f"--data {data}: needs --data-dir, the folder where torchvision keeps it")
    try:
        dataset = create_dataset(f"torch/{name}", root=str(root), split=split)
        total = len(dataset)
    except Exception as error:  # the many data sets share no base of their errors
        raise InputError(
            f"--data {data} in {root}: cannot be loaded: {first_line(error)}"
        ) from error
    files = getattr(dataset, "imgs", None)  # those that are folders name their files
    targets = getattr(dataset, "targets", None)
    lock = threading.Lock()

    def read(index: int) -> Image.Image:
        with lock:
            image: Image.Image = dataset[index][0]
        return image

    def candidate(index: int) -> Candidate:
        if files is not None:
            path, label = Path(files[index][0]), int(files[index][1])
            return Candidate(as_text(os.path.relpath(path, root)), label, path.read_bytes)
        label = int(targets[index]) if targets is not None else -1
        return Candidate(f"{split}/{index}", label, lambda: read(index))

    return Source(data, map(candidate, shuffled(total, settings.seed)), total)
