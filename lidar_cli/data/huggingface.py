"""Opens data sets with the `datasets` package."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lidar_cli.data.dataset import Candidate, Source, as_text, read_file, shuffled
from lidar_cli.data.labels import LARGEST, UNKNOWN, text_labels
from lidar_cli.errors import InputError, MissingExtra, SettingsError, first_line, nearest
from lidar_cli.settings import SampleSettings

IMAGE, LABEL = "image", "label"  # the usual names of these columns


def hugging_face_source(data: str, name: str, settings: SampleSettings) -> Source:
    """The images of a split of a data set.

    Raises InputError if it cannot be loaded, MissingExtra without the package datasets.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("data", "datasets", f"--data {data}") from error
    split = settings.split or "train"
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        dataset = _load(name, settings)
    except InputError:
        raise
    except Exception as error:  # the datasets package has no common base of its errors
        raise InputError(f"--data {data}: cannot be loaded: {first_line(error)}") from error
    column, remarks = _image_column(data, dataset.features, settings.image_column)
    try:
        images = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as error:
        raise InputError(
            f"--data {data}: the column {column!r} holds no images: {first_line(error)}; "
            f"{_columns(dataset.features)}"
        ) from error
    label_of, more = _labels(data, dataset, settings.label_column)
    lock = threading.Lock()

    def cell(index: int) -> dict[str, Any]:
        with lock:
            content: dict[str, Any] | None = images[index][column]
        return content or {}  # a cell may be empty

    def read(index: int) -> bytes:
        image = cell(index)
        if image.get("bytes"):
            content: bytes = image["bytes"]
            return content
        if image.get("path"):
            return read_file(Path(image["path"]))
        raise InputError(
            f"--data {data}: row {index} has no image in the column {column!r}; "
            f"{_columns(dataset.features)}"
        )

    def candidate(index: int) -> Candidate:
        path = cell(index).get("path")
        return Candidate(
            f"{split}/{index}" + (f"/{as_text(Path(path).name)}" if path else ""),
            label_of(index),
            lambda: read(index),
        )

    order = shuffled(len(dataset), settings.seed)
    return Source(data, map(candidate, order), len(order), remarks=[*remarks, *more])


def _load(name: str, settings: SampleSettings) -> Any:
    """A split of a data set on the hub, in a folder, or in a folder that `save_to_disk` wrote."""
    import datasets

    folder, split = Path(name), settings.split or "train"
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        dataset = datasets.load_from_disk(name)
        if not isinstance(dataset, datasets.DatasetDict):
            only = str(dataset.split or "train")
            dataset = {only: dataset}
            split = settings.split or only
        if split not in dataset:
            raise InputError(
                f"--data hfds/{name}: no split {split!r} in it; it has {', '.join(dataset)}"
            )
        return dataset[split]
    root = settings.data_dir
    options: dict[str, Any] = {"split": split, "cache_dir": str(root) if root else None}
    if "trust_remote_code" in inspect.signature(datasets.load_dataset).parameters:
        options["trust_remote_code"] = False
    return datasets.load_dataset(name, **options)


def _image_column(data: str, features: Any, option: str | None) -> tuple[str, list[str]]:
    """The column of images, and remarks about its choice."""
    import datasets

    if option is not None:
        _check_column("--image-column", option, features)
        return option, []
    columns = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if len(columns) == 1:
        return columns[0], []
    if IMAGE in features:
        others = [name for name in columns if name != IMAGE]
        remark = f"images are of the column {IMAGE!r}; {', '.join(others)}: see --image-column"
        return IMAGE, [remark] if others else []
    many = "several columns are" if columns else "no column is"
    raise InputError(
        f"--data {data}: {many} of type Image; name one with --image-column; {_columns(features)}"
    )


def _labels(data: str, dataset: Any, name: str | None) -> tuple[Callable[[int], int], list[str]]:
    """A function row -> class number, and remarks about the choice of the column."""
    import datasets

    features = dataset.features
    remarks = []
    if name is not None:
        _check_column("--label-column", name, features)
    else:
        columns = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        if LABEL in features:
            name = LABEL
        elif len(columns) == 1:
            name = columns[0]
        else:
            if columns:
                named = ", ".join(columns)
                remarks.append(f"no labels: {named} are of type ClassLabel; choose --label-column")
            return lambda _: UNKNOWN, remarks
    column, kind = dataset.select_columns([name]), features[name]
    if isinstance(kind, datasets.ClassLabel) or str(getattr(kind, "dtype", "")).startswith(
        ("int", "uint", "bool")
    ):
        return lambda index: _number(column[index][name]), remarks
    if str(getattr(kind, "dtype", "")) not in ("string", "large_string"):
        if name != LABEL:
            raise InputError(
                f"--data {data}: the column {name!r} holds no class numbers or names; "
                f"{_columns(features)}"
            )
        return lambda _: UNKNOWN, [f"no labels: the column {LABEL!r} holds {_type(kind)}"]
    names = dataset.unique(name)
    numbers = dict(zip(names, text_labels(names), strict=True))
    return lambda index: numbers[column[index][name]], remarks


def _number(value: Any) -> int:
    return int(value) if value is not None and 0 <= value < LARGEST else UNKNOWN


def _check_column(option: str, name: str, features: Any) -> None:
    if name not in features:
        raise SettingsError(f"{option} {name}: no such column; {nearest(name, list(features))}")


def _columns(features: Any) -> str:
    """All columns with their types, for a message."""
    return f"its columns: {', '.join(f'{name} ({_type(kind)})' for name, kind in features.items())}"


def _type(kind: Any) -> str:
    return (
        str(getattr(kind, "dtype", "")) if type(kind).__name__ == "Value" else type(kind).__name__
    )
