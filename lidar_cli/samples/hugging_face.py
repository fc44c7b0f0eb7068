"""Data sets of the `datasets` package, listed by timm's reader."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

from lidar_cli.errors import InputError, MissingExtra, first_line
from lidar_cli.samples.source import Candidate, Source, as_text, shuffled
from lidar_cli.settings import SampleSettings


def hugging_face(data: str, name: str, settings: SampleSettings) -> Source:
    """The images of a split. Raises InputError if it cannot be loaded, MissingExtra."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("data", "datasets", f"--data {data}") from error
    from timm.data.readers.reader_factory import create_reader

    root = str(settings.data_dir) if settings.data_dir else None
    split = settings.split or "train"
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        reader = create_reader(f"hfds/{name}", root=root, split=split)
    except Exception as error:  # the datasets package has no common base of its errors
        raise InputError(f"--data {data}: cannot be loaded: {first_line(error)}") from error
    images = reader.dataset.select_columns([reader.image_key])
    classes = reader.dataset.remove_columns(reader.image_key)
    lock = threading.Lock()

    def cell(index: int) -> dict[str, Any]:
        with lock:
            found: dict[str, Any] | None = images[index][reader.image_key]
        return found or {}  # a cell may be empty

    def read(index: int) -> bytes:
        image = cell(index)
        if image.get("bytes"):
            content: bytes = image["bytes"]
            return content
        if image.get("path"):
            return Path(image["path"]).read_bytes()
        raise InputError(
            f"--data {data}: row {index} has no image in the column {reader.image_key!r}; "
            f"its other columns: {', '.join(classes.column_names) or 'none'}"
        )

    def candidate(index: int) -> Candidate:
        path = cell(index).get("path")
        label = classes[index].get(reader.label_key) if classes.column_names else None
        return Candidate(
            f"{split}/{index}" + (f"/{as_text(Path(path).name)}" if path else ""),
            label if isinstance(label, int) else -1,
            lambda: read(index),
        )

    order = shuffled(len(reader), settings.seed)
    return Source(data, map(candidate, order), len(order))
