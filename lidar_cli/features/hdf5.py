"""Reads HDF5 files through the limited child process, which alone opens them with HDF5.

The child process describes the contents of a file. Contiguous numbers are then read here, by
offset; the child process reads all others (stored in chunks, or in other files of the directory).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lidar_cli.errors import FeatureFileError, first_line, printable
from lidar_cli.features.arrays import check_not_sparse, checked_sizes, read_rows, stored_at
from lidar_cli.features.embeddings import StoredArray
from lidar_cli.features.schema import (
    FORMAT,
    PARTIAL,
    UNEQUAL_VERSION,
    VERSION,
    ids_digest,
    parse_provenance,
)
from lidar_cli.runtime.files import NotAFile, is_hdf5
from lidar_cli.runtime.sandbox import Stamp, WalkResult, run_limited, stamp_of, validation

if TYPE_CHECKING:
    from torch import Tensor

COUNTS = "samples/q"
DTYPES = re.compile(r"[<>|][iufb][1248]")  # numpy's names of the types that are read
DAMAGE = (  # types of errors that a damaged file can cause
    KeyError, ValueError, AttributeError, TypeError, OSError, RuntimeError, MemoryError
)  # fmt: skip
EXTRACT_AGAIN = "extract it again"
MAX_REASON = 1000  # characters
PIECE = 2**26  # bytes per reply of the child, except for longer rows
TEXTS = 2**12  # texts per reply of the child
MAX_TEXT_LENGTH = 2**28  # characters of all texts of a list together
MAX_CACHED = 2**14  # files whose contents are remembered, a few kilobytes each
MAX_CACHED_ARRAYS = 100  # of a file that is remembered

_cached: dict[Stamp, HDF5Contents] = {}


@dataclass(frozen=True)
class Array:
    """Describes an array of numbers, or why it is refused.

    kinds: the kinds of numpy types that were requested. offset: None if the child must read it.
    sources: names of the files in which a virtual dataset has its numbers.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: np.dtype = np.dtype(np.uint8)
    kinds: str = ""
    offset: int | None = None
    sources: tuple[str, ...] = ()
    refused: str | None = None


@dataclass(frozen=True)
class HDF5Contents:
    """Describes the contents of an HDF5 file.

    attributes: texts and integers; None for those that the file lacks.
    unlisted: why the layers could not be listed. has_ids: whether it holds names of samples.
    """

    path: Path
    stamp: Stamp
    attributes: dict[str, str | int | None] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    unlisted: str | None = None
    has_ids: bool = False
    arrays: dict[str, Array] = field(default_factory=dict)

    def array(self, name: str) -> Array:
        """The array `name`. Raises FeatureFileError if it is refused, KeyError if absent."""
        if name not in self.arrays:
            raise KeyError(f"nothing is named {name!r}")
        array = self.arrays[name]
        if array.refused is not None:
            raise FeatureFileError(f"{self.path}: {array.refused}")
        return array

    def read_all(self, name: str) -> np.ndarray:
        """All numbers [N] of an array with one number per row.

        Raises as `array`, and ValueError if its length is not the number of rows (before reading).
        """
        array = self.array(name)
        rows = self._row_count(name)
        if array.shape[:1] != (rows,):
            raise ValueError(f"{name} has the shape {array.shape}, but there are {rows} rows")
        return self.rows(array, 0, rows)

    @property
    def is_unequal(self) -> bool:
        """Whether samples may have unequal numbers of views."""
        return self.attributes.get("version") == UNEQUAL_VERSION

    def _row_count(self, name: str) -> int:
        """The number of rows of the layer of this array, else of any layer. Raises as `array`."""
        if self.is_unequal:  # rows of views are then no samples
            shape = self.array(COUNTS).shape
            return shape[0] if shape else 0
        group, _, _ = name.rpartition("/")
        layers = [f"embeddings/{layer}" for layer in self.layers]
        names = [
            f"{layer}/{part}"
            for layer in ([group] if group in layers else layers)
            for part in ("clean", "views")
        ]
        present = [one for one in names if one in self.arrays]
        usable = [one for one in present if self.arrays[one].refused is None]
        if not names:
            raise ValueError(self.unlisted or "it holds no layer")
        shape = self.array((usable or present or names)[0]).shape
        return shape[0] if shape else 0

    @property
    def count(self) -> int:
        """The number of samples. Raises as `array`."""
        return self._row_count("")

    def optional_texts(self, name: str) -> list[str] | None:
        """As `texts`; None if there is no such list."""
        span = {"array": name, "start": 0, "stop": 0, "optional": True}
        return None if self._read("texts", span)["count"] == -1 else self.texts(name)

    def texts(self, name: str) -> list[str]:
        """All texts of a list, or whole numbers as texts. Raises FeatureFileError or InputError."""
        texts: list[str] = []
        length, count = 0, 1
        while len(texts) < count:
            span = {"array": name, "start": len(texts), "stop": len(texts) + TEXTS}
            value = self._read("texts", span)
            with validation(self.path, FeatureFileError, EXTRACT_AGAIN):
                (count,) = checked_sizes([value["count"]])
                part = [str(text) for text in value["texts"]]
                if count and not part:
                    raise ValueError("texts")
            texts += part
            length += sum(map(len, part))
            if length > MAX_TEXT_LENGTH:
                raise ValueError(f"{name} holds more than {MAX_TEXT_LENGTH:,} characters")
        return texts

    def rows(self, array: Array, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1 of an array. Raises FeatureFileError or InputError."""
        if array.offset is not None:
            return read_rows(self.path, array.offset, array.shape, array.dtype, start, stop)
        numbers = np.empty((stop - start, *array.shape[1:]), array.dtype.newbyteorder("="))
        step = max(1, PIECE // max(1, numbers[:1].nbytes))
        for first in range(start, stop, step):
            last = min(first + step, stop)
            span = {"array": array.name, "kinds": array.kinds, "start": first, "stop": last}
            self._read("rows", span, numbers[first - start : last - start])
        return numbers

    def _read(self, walker: str, span: dict[str, Any], buffer: np.ndarray | None = None) -> Any:
        """As `_walk`; also raises FeatureFileError if the file changed since it was described."""
        walked = _walk(walker, self.path, span, buffer)
        if walked.stamp != self.stamp:
            raise FeatureFileError(
                f"{self.path}: changed while it was read; run it again", code="changed"
            )
        return walked.value

    def stored(self, name: str) -> StoredArray:
        """An array whose samples can be read in chunks. Raises as `array`."""
        array = self.array(name)
        if array.offset is not None:
            return stored_at(self.path, array.offset, array.shape, array.dtype)

        def read(start: int, stop: int) -> Tensor:
            import torch

            return torch.from_numpy(self.rows(array, start, stop))

        return StoredArray(array.shape, array.dtype.itemsize, read)


@contextmanager
def open_hdf5(
    path: Path, read: Callable[[Path], HDF5Contents] | None = None
) -> Iterator[HDF5Contents]:
    """The contents of a file; errors in the block become a FeatureFileError: the file is damaged.

    read: `read_hdf5_contents` by default.
    """
    try:
        if not is_hdf5(path):
            raise FeatureFileError(
                f"{path}: not an HDF5 file; expected a feature file", code="not-hdf5"
            )
    except NotAFile as error:
        raise FeatureFileError(f"{path}: {error.strerror}; expected a feature file") from error
    except OSError:
        pass  # `read` fails too, and its message has the reason
    if path.suffix != PARTIAL:  # its blocks are reserved without data, and little is read
        check_not_sparse(path)
    contents = (read or read_hdf5_contents)(path)
    try:
        yield contents
    except DAMAGE as error:
        raise FeatureFileError(
            f"{path}: damaged: {first_line(error)}; extract it again", code="damaged"
        ) from error


def has_format(contents: HDF5Contents, form: str = FORMAT) -> bool:
    """Whether the attribute `format` of a file is `form`."""
    return contents.attributes["format"] == form


def provenance_of(contents: HDF5Contents, form: str = FORMAT) -> dict[str, Any]:
    """The provenance in a file; {} if it has none.

    Raises FeatureFileError if it is not of our format and version.
    """
    if not has_format(contents, form):
        raise FeatureFileError(
            f"{contents.path}: an HDF5 file, but not a feature file (no format attribute)",
            code="not-a-feature-file",
        )
    version = contents.attributes["version"]
    if type(version) is not int or version not in (VERSION, UNEQUAL_VERSION):
        raise FeatureFileError(
            f"{contents.path}: feature file version {version}, this lidar reads {VERSION} and "
            f"{UNEQUAL_VERSION}; extract it again"
        )
    text = contents.attributes["provenance"]
    return {} if text is None else parse_provenance(text)


def complete_provenance(contents: HDF5Contents) -> dict[str, Any]:
    """The provenance in a file, with its layers and a digest of its ids where it has none.

    Raises FeatureFileError if it is not of our format and version, or not complete.
    """
    record = provenance_of(contents)
    check_complete(contents)
    if "layers" not in record:
        record["layers"] = list(contents.layers)
    if "samples_sha256" not in record and contents.has_ids:
        record["samples_sha256"] = ids_digest(contents.texts("samples/id"))
    return record


def check_complete(contents: HDF5Contents) -> None:
    """Raise FeatureFileError if some samples are not done."""
    if "samples/done" not in contents.arrays:
        return
    done = contents.read_all("samples/done")
    if not done.all():
        raise FeatureFileError(
            f"{contents.path}: incomplete, {int(done.sum())} of {len(done)} samples; "
            "finish it with lidar extract --resume, or with the program that began it",
            code="incomplete",
        )


def read_hdf5_contents(path: Path) -> HDF5Contents:
    """The contents of an HDF5 file. Raises FeatureFileError or InputError if it cannot be read."""
    try:
        stamp = stamp_of(path.stat())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FeatureFileError(
            f"{path}: cannot be opened: {reason}", code="cannot-be-opened"
        ) from error
    if stamp not in _cached:
        contents = _contents(path, _walk("describe", path))
        if len(_cached) >= MAX_CACHED:
            _cached.clear()
        # A virtual dataset depends on other files, which may change.
        is_virtual = any(array.sources for array in contents.arrays.values())
        if not is_virtual and len(contents.arrays) <= MAX_CACHED_ARRAYS:
            _cached[contents.stamp] = contents
        return contents
    return replace(_cached[stamp], path=path)


def walk_everything(path: Path) -> HDF5Contents:
    """As `read_hdf5_contents`, after a traversal of all that HDF5 may access when it writes."""
    return _contents(path, _walk("walk_everything", path))


def read_array(path: Path, name: str) -> HDF5Contents | None:
    """HDF5Contents with only the array `name` of floating-point numbers; None if there is none.

    Raises FeatureFileError if it is refused.
    """
    walked = _walk("describe_one", path, {"array": name})
    if walked.value is None:
        return None
    with validation(path, FeatureFileError, EXTRACT_AGAIN):
        array = _array(name, walked.value, walked.stamp[2])
    return HDF5Contents(path, walked.stamp, arrays={name: array})


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of floating-point numbers by name. Raises FeatureFileError."""
    with validation(path, FeatureFileError, EXTRACT_AGAIN):
        return {
            str(name): checked_sizes(shape) for name, shape in _walk("shapes", path).value.items()
        }


def _walk(
    walker: str,
    path: Path,
    arguments: dict[str, Any] | None = None,
    buffer: np.ndarray | None = None,
) -> WalkResult:
    """What a function of `hdf5_walk` returns. Raises FeatureFileError, and NoProcess.

    buffer: filled with the bytes that the function returns.
    """
    return run_limited(
        f"lidar_cli.features.hdf5_walk:{walker}",
        path,
        {**(arguments or {}), "path": str(Path.cwd() / path), "name": str(path)},
        error=FeatureFileError,
        advice=EXTRACT_AGAIN,
        buffer=None if buffer is None else buffer.reshape(-1).view(np.uint8).data,
    )


def _contents(path: Path, walked: WalkResult) -> HDF5Contents:
    with validation(path, FeatureFileError, EXTRACT_AGAIN):
        record, size = walked.value, walked.stamp[2]
        attributes = dict(record["attributes"])
        if not all(value is None or type(value) in (str, int) for value in attributes.values()):
            raise ValueError("attributes")
        return HDF5Contents(
            path,
            walked.stamp,
            attributes,
            tuple(map(str, record["layers"])),
            _reason(record["unlisted"]),
            bool(record["has_ids"]),
            {name: _array(name, one, size) for name, one in record["arrays"].items()},
        )


def _array(name: str, record: dict[str, Any], size: int) -> Array:
    """An array in a file of `size` bytes. Raises an error that `validation` converts."""
    sources = tuple(map(str, record["sources"]))
    if (refused := _reason(record.get("refused"))) is not None:
        return Array(name, sources=sources, refused=refused)
    if not DTYPES.fullmatch(record["dtype"]):
        raise ValueError("dtype")
    dtype, shape, offset = (
        np.dtype(record["dtype"]),
        checked_sizes(record["shape"]),
        record["offset"],
    )
    if offset is not None:
        (offset,) = checked_sizes([offset])
        if offset + math.prod(shape) * dtype.itemsize > size:
            raise ValueError("offset")
    return Array(name, shape, dtype, str(record["kinds"]), offset, sources)


def _reason(text: str | None) -> str | None:
    return None if text is None else printable(str(text)[:MAX_REASON])
