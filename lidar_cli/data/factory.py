"""Samples of any kind that the user's code gives: `--data package.module:factory`.

The factory returns a sized dataset whose items are (tensor, id) or (tensor, id, label). The tensor
holds the views of one sample, made by the user's own transform, [q, ...]; or with `-q 0`, or an
attribute `n_views = 0` of the dataset, one un-augmented sample [...]. All tensors have one shape.

Before an item is read, the random numbers of `random`, NumPy and torch are seeded by the seed and
its number, so that every checkpoint and every process sees the same views.
"""

from __future__ import annotations

import functools
import importlib
import random
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lidar_cli.data.check import is_factory
from lidar_cli.data.dataset import Samples, shuffled
from lidar_cli.data.labels import UNKNOWN
from lidar_cli.errors import InputError, LidarError, SettingsError, first_line
from lidar_cli.settings import DefaultCount, SampleSettings

BAD = "bad-item"
BLOCK_BYTES = 2**26  # of items that are read at a time to name and check them
EXPECTED = "expected (tensor [q, ...], id) or (tensor [q, ...], id, label)"


class Item(NamedTuple):
    """One item of a dataset: its tensor, its id, its class number or -1."""

    values: Tensor
    id: str
    label: int


@dataclass(frozen=True)
class Items(Samples):
    """N samples of the user's dataset, in the order of a seed.

    shape: of one view, or of the sample if it has no views. n_views: q, 0 without views.
    index: the numbers of the samples in the dataset [N]. checksums: CRC-32 of each tensor [N].
    """

    shape: tuple[int, ...] = ()
    n_views: int = 0
    index: Sequence[int] = ()
    seed: int = 0

    def batches(self, starts: Sequence[int], size: int, workers: int) -> Iterator[Tensor]:
        """For each start the values of samples start .. start + size - 1, or to the last [b, ...].

        workers: processes that read ahead; 0 reads in this one.
        Raises InputError if an item cannot be read, or differs from when it was first read.
        """
        spans = [range(start, min(start + size, len(self))) for start in starts]
        numbers = [[self.index[i] for i in span] for span in spans]
        for span, items in zip(
            spans, read_items(self.data, self.seed, numbers, workers), strict=True
        ):
            for i, item in zip(span, items, strict=True):
                if checksum(item.values) != self.checksums[i]:
                    raise InputError(
                        f"{item.id} (in {self.data}): differs from when it was first read; "
                        "expected the same item each time: draw random numbers from random, "
                        "numpy.random or torch alone, which are seeded for each item",
                        code="changed",
                    )
            yield torch.stack([item.values for item in items])


def open_items(settings: SampleSettings) -> Items:
    """The first n samples in the order of the seed, each read once.

    Raises SettingsError if the factory fails or q is another, InputError if there are too few items
    or one is wrong.
    """
    assert settings.data is not None
    data, dataset = settings.data, make(settings.data)
    total = len(dataset)
    count = max(settings.n_samples, settings.clean_samples or 0)
    if count > total and not isinstance(settings.n_samples, DefaultCount):
        raise InputError(
            f"--data {data}: holds {total:,} items, and {count:,} are wanted; lower -n",
            code="too-few",
        )
    order = list(range(total)) if count >= total else list(shuffled(total, settings.seed))[:count]
    first = _read(data, dataset, order[0], settings.seed)
    n_views = view_count(settings, dataset, first.values)
    ids, labels, checksums = list[str](), list[int](), list[int]()
    length = max(1, min(64, BLOCK_BYTES // max(1, first.values.nbytes)))
    blocks = [order[at : at + length] for at in range(0, len(order), length)]
    for block in read_items(data, settings.seed, blocks, settings.workers or 0):
        for item in block:
            _check(data, item, first)
            ids.append(item.id)
            labels.append(item.label)
            checksums.append(checksum(item.values))
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise InputError(
            f"--data {data}: the id {twice!r} belongs to several items; expected distinct ids",
            code="same-ids",
        )
    shape = tuple(first.values.shape[1:] if n_views else first.values.shape)
    few = f"{len(order)} items are all that it holds, so n is not {count}"
    items = Items(
        data=data,
        ids=ids,
        labels=labels if any(label != UNKNOWN for label in labels) else None,
        read=lambda i: b"",
        checksums=checksums,
        remarks=[_assumed(n_views, shape, dataset), *([few] if len(order) < count else [])],
        total=total,
        shape=shape,
        n_views=n_views,
        index=order,
        seed=settings.seed,
    )
    return replace(items, fingerprint=items.first_fingerprint(len(ids)))


def _assumed(n_views: int, shape: tuple[int, ...], dataset: Any) -> str:
    of = f"tensors of shape {list(shape)}"
    if not n_views:
        return f"samples without views, {of}"
    why = "" if getattr(dataset, "n_views", None) is not None else "assumed "
    return f"{why}q = {n_views}, the first axis of the items: views of your own, {of}"


def view_count(settings: SampleSettings, dataset: Any, values: Tensor) -> int:
    """q of a dataset, 0 without views. Raises SettingsError if the settings or the items differ."""
    declared, asked = getattr(dataset, "n_views", None), settings.n_views
    if declared == 0 or (asked == 0 and declared is None):
        return 0
    n_views = len(values) if values.dim() > 1 else 0
    if not n_views or (declared is not None and declared != n_views):
        raise SettingsError(
            f"--data {settings.data}: items have the shape {list(values.shape)}; expected "
            f"[{declared or 'q'}, ...], or -q 0 for samples without views",
            code="own-views",
        )
    if asked != n_views and not isinstance(asked, DefaultCount):
        raise SettingsError(
            f"-q {asked}: the items of --data {settings.data} have {n_views} views; leave -q out",
            code="own-views",
        )
    return n_views


@functools.lru_cache(maxsize=8)
def item_shape(data: str, seed: int, has_views: bool) -> tuple[int, ...]:
    """The shape of one input of a model. Raises as `open_items`."""
    shape = tuple(_read(data, make(data), 0, seed).values.shape)
    return shape[1:] if has_views else shape


def input_shape(settings: Any) -> tuple[int, ...] | None:
    """The shape of one input of a model by the settings' data; None for images."""
    data: str | None = getattr(settings, "data", None)
    if data is None or not is_factory(data):
        return None
    dataset = make(data)
    has_views = view_count(settings, dataset, _read(data, dataset, 0, settings.seed).values) > 0
    return item_shape(data, settings.seed, has_views)


@functools.lru_cache(maxsize=4)
def make(target: str) -> Any:
    """The dataset that the factory 'package.module:factory' returns.

    Files in the working directory can be imported too. Raises SettingsError if any of the user's
    code fails, or the dataset has no length or no items.
    """
    module_name, _, factory_name = target.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        factory: Any = importlib.import_module(module_name)
        for part in factory_name.split("."):
            factory = getattr(factory, part)
        dataset = factory()
        length = len(dataset)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise SettingsError(
            f"--data {target} failed: {type(error).__name__}: {first_line(error)}; expected a "
            "function without arguments that returns a dataset with a length",
            code="data-failed",
        ) from error
    if length < 1 or not hasattr(dataset, "__getitem__"):
        raise SettingsError(
            f"--data {target} returned a {type(dataset).__name__} of length {length}; expected a "
            "dataset with items",
            code="data-kind",
        )
    return dataset


def read_items(
    data: str, seed: int, blocks: Sequence[Sequence[int]], workers: int
) -> Iterator[list[Item]]:
    """The items of each block of numbers. Raises InputError if one cannot be read."""
    loader = DataLoader(
        Seeded(data, seed),
        batch_sampler=[list(block) for block in blocks],
        collate_fn=list,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    try:
        for block in loader:
            for item in block:
                if isinstance(item, LidarError):
                    raise item
            yield block
    except RuntimeError as error:  # DataLoader's, of a process that ended
        raise InputError(
            f"--data {data}: a process that reads items ended: {first_line(error)}; lower "
            "--workers",
            code="worker-died",
        ) from error


class Seeded(Dataset[Item | LidarError]):
    """A dataset whose items are read with seeded random numbers; it is made again in a process.

    An item that cannot be read is its error, which DataLoader would raise with a traceback as text.
    """

    def __init__(self, data: str, seed: int) -> None:
        self.data, self.seed = data, seed

    def __len__(self) -> int:
        return len(make(self.data))

    def __getitem__(self, number: int) -> Item | LidarError:
        try:
            return _read(self.data, make(self.data), number, self.seed)
        except LidarError as error:
            return error.with_traceback(None)


def _read(data: str, dataset: Any, number: int, seed: int) -> Item:
    """One item. Raises InputError if it cannot be read or has another form."""
    name = f"item {number}"
    with seeded(seed, number):
        try:
            item = dataset[number]
        except Exception as error:  # the user's code may raise anything
            raise InputError(
                f"{name} (in {data}): cannot be read: {type(error).__name__}: {first_line(error)}",
                code=BAD,
            ) from error
    if not isinstance(item, tuple | list) or len(item) not in (2, 3):
        raise InputError(f"{name} (in {data}): a {type(item).__name__}; {EXPECTED}", code=BAD)
    values, label = item[0], item[2] if len(item) == 3 else UNKNOWN
    if (
        isinstance(values, np.ndarray)
        and values.dtype.kind in "fiub"
        and values.dtype.itemsize <= 8
    ):
        values = torch.from_numpy(np.require(values, values.dtype.newbyteorder("="), ["C", "W"]))
    if not isinstance(values, Tensor) or values.dim() < 1 or not values.numel():
        kind = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"{name} (in {data}): values are {kind}; {EXPECTED}", code=BAD)
    try:
        number_of_class = int(label)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{name} (in {data}): the label is {label!r:.50}; expected a class number",
            code=BAD,
        ) from error
    if values.is_complex() or values.dtype == torch.bool or values.layout != torch.strided:
        raise InputError(
            f"{name} (in {data}): values are {values.layout} {values.dtype}; expected dense real "
            "numbers, such as torch.view_as_real of complex ones",
            code=BAD,
        )
    values = values.detach().cpu()
    values = values.float() if values.is_floating_point() else values
    return Item(values.contiguous(), str(item[1]), number_of_class)


def _check(data: str, item: Item, first: Item) -> None:
    """Raise InputError if an item has another shape or type than the first, or is not finite."""
    shapes = [list(one.values.shape) for one in (item, first)]
    if shapes[0] != shapes[1] or item.values.dtype != first.values.dtype:
        raise InputError(
            f"{item.id} (in {data}): {item.values.dtype} {shapes[0]}, and {first.id} is "
            f"{first.values.dtype} {shapes[1]}; expected one shape, by padding or cropping; "
            "samples with unequal numbers of views are written with lidar_cli.write_features",
            code="other-shape",
        )
    if item.values.is_floating_point() and not bool(item.values.isfinite().all()):
        raise InputError(f"{item.id} (in {data}): holds NaN or Inf", code="not-finite")


@contextmanager
def seeded(seed: int, number: int) -> Iterator[None]:
    """Seed the random numbers of this process for one item, and restore their states after it."""
    value = zlib.crc32(f"{seed} {number}".encode())
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(value)
        np.random.seed(value)
        torch.manual_seed(value)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


def checksum(values: Tensor) -> int:
    """CRC-32 of the numbers of a tensor."""
    return zlib.crc32(values.contiguous().numpy().data)
