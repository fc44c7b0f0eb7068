"""Opens the data sets of torchvision that have one image and one class a sample."""

from __future__ import annotations

import difflib
import inspect
import os
import shlex
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from lidar_cli.data.dataset import Candidate, Source, as_text, read_file, shuffled
from lidar_cli.data.folders import folder_source
from lidar_cli.data.labels import SAME_SPLIT, UNKNOWN
from lidar_cli.errors import InputError, first_line
from lidar_cli.settings import SampleSettings

FOLDER = "ImageFolder"
NAMES = (
    *("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "QMNIST", "USPS", "SVHN", "STL10"),
    *("ImageNet", "Imagenette", FOLDER, "INaturalist", "Places365", "SUN397", "Country211"),
    *("Caltech101", "Caltech256", "CLEVRClassification", "DTD", "EuroSAT", "FER2013"),
    *("FGVCAircraft", "Flowers102", "Food101", "GTSRB", "OxfordIIITPet", "PCAM", "RenderedSST2"),
    *("StanfordCars",),
)
ALIASES = {"folder": FOLDER, "inat": "INaturalist"}  # timm's names
SPLIT_NAMES = {  # sets whose splits are not named train, val and test
    "Country211": {"val": "valid"},
    "Places365": {"train": "train-standard"},
    "INaturalist": {"train": "2021_train", "val": "2021_valid"},
    "OxfordIIITPet": {"train": "trainval"},
}


def torchvision_source(data: str, name: str, settings: SampleSettings) -> Source:
    """The images of a split of a data set. Raises InputError if it cannot be loaded."""
    class_name = _class_name(data, name)
    root = settings.data_dir
    if root is None:
        raise InputError(f"--data {data}: needs --data-dir, the folder where torchvision keeps it")
    if class_name == FOLDER:
        return folder_source(data, root, replace(settings, class_level=1))
    split = settings.split or "train"
    try:
        dataset = _load(data, class_name, root, settings.split)
        total = len(dataset)
    except InputError:
        raise
    except Exception as error:  # torchvision's data sets have no common base of their errors
        raise InputError(
            f"--data {data} in {root}: cannot be loaded: {first_line(error)}"
        ) from error
    files = getattr(dataset, "imgs", None)  # sets that are folders have it
    lock = threading.Lock()
    label_of = _labels(dataset, total)

    def read(index: int) -> Image.Image:
        with lock:
            image: Image.Image = dataset[index][0]
        return image

    def candidate(index: int) -> Candidate:
        with lock:
            label = label_of(index)
        if files is not None:
            path = Path(files[index][0])
            return Candidate(as_text(os.path.relpath(path, root)), label, lambda: read_file(path))
        return Candidate(f"{split}/{index}", label, lambda: read(index))

    return Source(data, map(candidate, shuffled(total, settings.seed)), total, _side(dataset))


def _side(dataset: Any) -> int | None:
    """The side of all images, of a set that holds them as one array of squares; else None."""
    shape = tuple(getattr(getattr(dataset, "data", None), "shape", ()))
    sides = shape[2:] if len(shape) == 4 and shape[1] == 3 else shape[1:3]  # colours first or last
    return int(sides[0]) if len(sides) == 2 and sides[0] == sides[1] else None


def _class_name(data: str, name: str) -> str:
    """torchvision's name of a set; case, underscores and hyphens are ignored.

    Raises InputError if the name is unknown.
    """
    names = {name.lower(): name for name in NAMES} | ALIASES
    plain = name.lower().replace("_", "").replace("-", "")
    if plain not in names:

        def distance(name: str) -> tuple[float, str]:
            return -difflib.SequenceMatcher(None, plain, name.lower()).ratio(), name

        listed = ", ".join(sorted(NAMES, key=distance))
        raise InputError(
            f"--data {data}: no data set of torchvision of that name; nearest first: {listed}"
        )
    return names[plain]


def _load(data: str, name: str, root: Path, split: str | None) -> Any:
    """The data set, opened with the set's own name of the split.

    Raises InputError for a split that it does not have, and where its files are not there.
    """
    from torchvision import datasets

    kind = getattr(datasets, name)
    parameters = inspect.signature(kind.__init__).parameters
    wanted = next((group[0] for group in SAME_SPLIT if split in group), split or "train")
    options: dict[str, Any] = {}
    if "train" in parameters:
        if wanted not in ("train", "val", "test"):
            raise InputError(f"--data {data}: no split {split!r}; it has train and test")
        options["train"] = wanted == "train"
    elif "split" in parameters or "version" in parameters:
        key = "split" if "split" in parameters else "version"
        options[key] = SPLIT_NAMES.get(name, {}).get(wanted, wanted)
    elif split is not None:
        raise InputError(f"--data {data}: {name} has no splits; leave out --split")
    if name == "INaturalist":
        options["target_type"] = "full"
    try:
        return kind(str(root), **options)
    except RuntimeError as error:
        if "download=True" not in str(error):
            raise
        words = [repr(str(root)), *(f"{key}={value!r}" for key, value in options.items())]
        code = f"from torchvision.datasets import {name}; {name}({', '.join(words)}, download=True)"
        raise InputError(
            f"--data {data}: {root} does not hold {name}, or not all of its files; expected the "
            f"folder that torchvision makes there:  python -c {shlex.quote(code)}",
            code="not-downloaded",
        ) from error


def _labels(dataset: Any, total: int) -> Callable[[int], int]:
    """A function index -> class number: from the set's list of labels, else from the sample."""
    for attribute in ("targets", "labels", "_labels", "y"):
        listed = getattr(dataset, attribute, None)
        if listed is not None and len(listed) == total:
            return lambda index: _number(listed[index])
    pairs = getattr(dataset, "imgs", None) or getattr(dataset, "_samples", None)
    if pairs is not None and len(pairs) == total:
        return lambda index: _number(pairs[index][1])
    return lambda index: _number(dataset[index][1])


def _number(label: Any) -> int:
    try:
        return max(int(label), UNKNOWN)
    except (TypeError, ValueError):
        return UNKNOWN
