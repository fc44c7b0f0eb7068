"""What an HDF5 file holds, as the limited child process describes it, and the numbers in it.

Nothing here opens a file with HDF5: numbers that lie in a row are read from their offset, all
others (in chunks, in files beside it) by the child.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lidar_cli.errors import FeatureFileError, printable
from lidar_cli.features.arrays import read_at, stored_at
from lidar_cli.features.blocks import Stored
from lidar_cli.runtime.files import open_regular
from lidar_cli.runtime.sandbox import Stamp, Walked, run_limited, stamp_of

SIGNATURE = b"\x89HDF\r\n\x1a\n"
NUMBERS = re.compile(r"[<>|][iufb][1248]")  # of numpy's names of types
MOST_DIMENSIONS, MOST_NUMBER = 32, 2**62
LONGEST_REASON = 1000  # characters
PIECE = 2**26  # bytes that the child hands over at a time, but for longer rows
TEXTS = 2**12  # that the child hands over at a time
LONGEST_TEXTS = 2**28  # characters of all texts of a list
CACHED = 2**14  # descriptions of files, of a few kilobytes each
MOST_CACHED_ARRAYS = 100

_cached: dict[Stamp, Structure] = {}


@dataclass(frozen=True)
class Array:
    """An array of numbers, or why it is refused.

    kinds: of numpy's types, as they were asked for. offset: None where the child must read it.
    sources: names of the files beside it that a virtual dataset is put together from.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: np.dtype = np.dtype(np.uint8)
    kinds: str = ""
    offset: int | None = None
    sources: tuple[str, ...] = ()
    refused: str | None = None


@dataclass(frozen=True)
class Structure:
    """What an HDF5 file holds. `attributes` are texts and whole numbers, None where absent.

    unlisted: why there are no `layers`.
    """

    path: Path
    stamp: Stamp
    attributes: dict[str, str | int | None] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    unlisted: str | None = None
    arrays: dict[str, Array] = field(default_factory=dict)

    def array(self, name: str) -> Array:
        """The array of a name. Raises FeatureFileError if it is refused, KeyError if absent."""
        if name not in self.arrays:
            raise KeyError(f"nothing is named {name!r}")
        array = self.arrays[name]
        if array.refused is not None:
            raise FeatureFileError(f"{self.path}: {array.refused}")
        return array

    def whole(self, name: str) -> np.ndarray:
        """All numbers, one a row [N], of an array beside the rows; a longer one is not read.

        Raises as `array`, and ValueError if they are not as many as the rows.
        """
        array = self.array(name)
        rows = self._rows_beside(name)
        if array.shape[:1] != (rows,):
            raise ValueError(f"{name} has the shape {array.shape}, beside {rows} rows")
        return self.rows(array, 0, rows)

    def _rows_beside(self, name: str) -> int:
        """How many rows the layer of an array has, or any layer. Raises as `array`."""
        group, _, _ = name.rpartition("/")
        layers = [f"embeddings/{layer}" for layer in self.layers]
        names = [f"{layer}/clean" for layer in ([group] if group in layers else layers)]
        usable = [one for one in names if one in self.arrays and self.arrays[one].refused is None]
        if not names:
            raise ValueError(self.unlisted or "it holds no layer")
        shape = self.array((usable or names)[0]).shape
        return shape[0] if shape else 0

    def texts(self, name: str) -> list[str]:
        """All texts of a list. Raises FeatureFileError or InputError."""
        texts: list[str] = []
        length, count = 0, 1
        while len(texts) < count:
            wanted = {"array": name, "start": len(texts), "stop": len(texts) + TEXTS}
            walked = _walked("texts", self.path, wanted)
            if walked.stamp != self.stamp:
                raise FeatureFileError(f"{self.path}: changed while it was read; run it again")
            with _validated(self.path):
                (count,) = _shape([walked.value["count"]])
                part = [str(text) for text in walked.value["texts"]]
                if count and not part:
                    raise ValueError("texts")
            texts += part
            length += sum(map(len, part))
            if length > LONGEST_TEXTS:
                raise ValueError(f"{name} holds more than {LONGEST_TEXTS:,} characters")
        return texts

    def rows(self, array: Array, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1 of an array. Raises FeatureFileError or InputError."""
        dtype = array.dtype.newbyteorder("=")
        shape = (stop - start, *array.shape[1:])
        if array.offset is not None:
            size = math.prod(shape[1:]) * dtype.itemsize
            data = read_at(self.path, array.offset + start * size, len(range(start, stop)) * size)
            return data.view(array.dtype).astype(dtype, copy=False).reshape(shape)
        numbers = np.empty(shape, dtype)
        step = max(1, PIECE // max(1, numbers[:1].nbytes))
        for first in range(start, stop, step):
            last = min(first + step, stop)
            wanted = {"array": array.name, "kinds": array.kinds, "start": first, "stop": last}
            part = numbers[first - start : last - start]
            stamp = _walked("rows", self.path, wanted, into=part).stamp
            if stamp != self.stamp:
                raise FeatureFileError(f"{self.path}: changed while it was read; run it again")
        return numbers

    def stored(self, name: str) -> Stored:
        """An array as samples to be read in chunks. Raises as `array`."""
        array = self.array(name)
        if array.offset is not None:
            return stored_at(self.path, array.offset, array.shape, array.dtype)
        return Stored(
            array.shape,
            array.dtype.itemsize,
            lambda start, stop: torch.from_numpy(self.rows(array, start, stop)),
        )


def read_structure(path: Path) -> Structure:
    """What an HDF5 file holds. Raises FeatureFileError or InputError if it cannot be read."""
    try:
        stamp = stamp_of(path.stat())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FeatureFileError(f"{path}: cannot be opened: {reason}") from error
    if stamp not in _cached:
        found = _structure(path, _walked("describe", path))
        if len(_cached) >= CACHED:
            _cached.clear()
        # Whether a virtual dataset can be read depends on other files too.
        alone = not any(array.sources for array in found.arrays.values())
        if alone and len(found.arrays) <= MOST_CACHED_ARRAYS:
            _cached[found.stamp] = found
        return found
    return replace(_cached[stamp], path=path)


def walk_whole(path: Path) -> Structure:
    """As `read_structure`, after all was looked at that HDF5 may look at to write into the file."""
    return _structure(path, _walked("walk_whole", path))


def read_array(path: Path, name: str) -> Structure | None:
    """The one array of floating-point numbers that has this name, None if there is none.

    Raises FeatureFileError if it is refused.
    """
    walked = _walked("describe_one", path, {"array": name})
    if walked.value is None:
        return None
    with _validated(path):
        array = _array(name, walked.value, walked.stamp[2])
    return Structure(path, walked.stamp, arrays={name: array})


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of floating-point numbers by name. Raises FeatureFileError."""
    with _validated(path):
        return {str(name): _shape(shape) for name, shape in _walked("shapes", path).value.items()}


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, also behind a user block. Raises OSError if it cannot be opened."""
    with open_regular(path) as file:
        at, end = 0, file.seek(0, 2)
        while at + len(SIGNATURE) <= end:
            file.seek(at)
            if file.read(len(SIGNATURE)) == SIGNATURE:
                return True
            at = max(512, 2 * at)
        return False


def _walked(
    walker: str, path: Path, arguments: dict[str, Any] | None = None, into: np.ndarray | None = None
) -> Walked:
    """What a function of `walk` returns. Raises FeatureFileError, and InputError without a child.

    into: takes the bytes that it returns.
    """
    named = {**(arguments or {}), "path": str(Path.cwd() / path), "name": str(path)}
    return run_limited(
        f"lidar_cli.features.walk:{walker}",
        path,
        named,
        error=FeatureFileError,
        advice="extract it again",
        into=None if into is None else into.reshape(-1).view(np.uint8).data,
    )


@contextmanager
def _validated(path: Path) -> Iterator[None]:
    """Raises FeatureFileError if what the child returned is not of its form."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FeatureFileError(
            f"{path}: damaged: its description makes no sense; extract it again"
        ) from error


def _structure(path: Path, walked: Walked) -> Structure:
    with _validated(path):
        record, size = walked.value, walked.stamp[2]
        attributes = dict(record["attributes"])
        if not all(value is None or type(value) in (str, int) for value in attributes.values()):
            raise ValueError("attributes")
        return Structure(
            path,
            walked.stamp,
            attributes,
            tuple(map(str, record["layers"])),
            _reason(record["unlisted"]),
            {name: _array(name, one, size) for name, one in record["arrays"].items()},
        )


def _array(name: str, record: dict[str, Any], size: int) -> Array:
    """An array in a file of so many bytes. Raises ValueError and its kind if it makes no sense."""
    sources = tuple(map(str, record["sources"]))
    if (refused := _reason(record.get("refused"))) is not None:
        return Array(name, sources=sources, refused=refused)
    if not NUMBERS.fullmatch(record["dtype"]):
        raise ValueError("dtype")
    dtype, shape, offset = np.dtype(record["dtype"]), _shape(record["shape"]), record["offset"]
    if offset is not None:
        (offset,) = _shape([offset])
        if offset + math.prod(shape) * dtype.itemsize > size:
            raise ValueError("offset")
    return Array(name, shape, dtype, str(record["kinds"]), offset, sources)


def _shape(numbers: Any) -> tuple[int, ...]:
    if len(numbers) > MOST_DIMENSIONS:
        raise ValueError("dimensions")
    if not all(type(number) is int and 0 <= number < MOST_NUMBER for number in numbers):
        raise ValueError("size")
    return tuple(numbers)


def _reason(text: str | None) -> str | None:
    return None if text is None else printable(str(text)[:LONGEST_REASON])
