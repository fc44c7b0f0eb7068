"""The HDF5 feature file: names, layout, provenance and checksums, for writer and reader.

    /embeddings/<layer>/views   (n, q, d)   augmented; absent where q = 0
    /embeddings/<layer>/clean   (N, d)      un-augmented; N >= n, the first n those of `views`;
                                            absent where there are views alone, and N = n
    /embeddings/<layer>/crc32   (N,)        of a sample's views followed by its clean embedding
    /samples/id, /samples/label, /samples/done
    /samples/q                  (n,)        numbers of views, if they are unequal (version 2):
                                            `views` is then (sum q, d), the first sample's first
    /samples/bad                (b, 2)      name and fault of images left out; absent if none are

Datasets are contiguous and allocated at creation, in HDF5's default format, so that plain
`h5py.File(path)` opens the file of a killed writer. The file is named NAME.partial.begun until a
sample is done and NAME.partial until all are, so a file under its final name is complete. Several
processes write a shard each, joined by a file of virtual datasets (`shards`).

Only writers open a file with HDF5 in this process. For readers, the limited child process
describes the file (`hdf5_walk`), `hdf5` checks the description, and numbers are read by offset.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lidar_cli.errors import FeatureFileError, InUse
from lidar_cli.runtime.files import irregular_kind, parse_json

if TYPE_CHECKING:  # imported by what writes a file: a reader uses HDF5 in the child alone
    import h5py

FORMAT = "lidar-features"
SHARD_FORMAT = "lidar-features-shard"
VERSION, UNEQUAL_VERSION = 1, 2  # the second with unequal numbers of views
OWN_LAYER = "embedding"  # the layer of embeddings for which no other name is given
# Increases with every change of code that alters a row, a view or a label of unchanged input.
#   1  all earlier versions, which record no revision
#   2  --assume and its settings; views, pixel statistics and default branches of each method;
#      classes of an image folder by relative path; iBOT, MSN, solo-learn's MAE recognised as such
EMBEDDING_REVISION = 2
SHARD = re.compile(r"(?P<joined>.+)\.shard-\d+-of-\d+\.h5", re.DOTALL)
PARTIAL = ".partial"
HARMLESS = 2**26  # bytes; an array or archive may always unpack to this many
MAX_RATIO = 200  # of unpacked to stored bytes if it unpacks to more; embeddings compress less
NO_VIEWS = np.empty((0, 0, 0), np.float32)

NO_RECORD = "provenance is not the record of an extraction"
MAX_PROVENANCE = 2**20  # characters; `extract` writes a few thousand
MAX_DEPTH = 32  # of nested lists and tables
FIELD_TYPES = {  # types of the fields that the program reads; each may be absent, or null
    **dict.fromkeys(("checkpoint", "sha256", "data", "samples_sha256", "branch", "storage"), str),
    **dict.fromkeys(("seed", "n_samples", "n_views", "n_clean", "image_size", "batch_size"), int),
    "embedding_revision": int,
    **dict.fromkeys(("layers", "assumptions"), list),
    **dict.fromkeys(("views", "versions", "assumed", "pooling"), dict),
}


@dataclass(frozen=True)
class Layout:
    """Shapes and number type of a feature file, which are fixed before the first embedding."""

    widths: Mapping[str, int]  # layer -> d
    n_samples: int  # n, with views
    n_views: int  # q
    n_clean: int  # N, with a clean embedding
    storage: str = "float32"
    has_clean: bool = True  # False: N = n samples with views alone
    counts: Sequence[int] | None = None  # q_i [n] if they are unequal; q is then the smallest

    def within(self, span: range) -> Layout:
        """The layout of a contiguous range of the samples."""
        with_views = max(0, min(span.stop, self.n_samples) - span.start)
        return replace(self, n_samples=with_views, n_clean=len(span))

    @property
    def nbytes(self) -> int:
        """Bytes of all embeddings."""
        views = self.n_samples * self.n_views if self.counts is None else sum(self.counts)
        rows = views + self.n_clean * self.has_clean
        return sum(self.widths.values()) * rows * np.dtype(self.storage).itemsize

    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and number type of the rows and checksums, by name."""
        n, q, clean = self.n_samples, self.n_views, self.n_clean
        arrays: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        for layer, d in self.widths.items():
            if q:
                shape = (n, q, d) if self.counts is None else (sum(self.counts), d)
                arrays[f"embeddings/{layer}/views"] = shape, np.dtype(self.storage)
            if self.has_clean:
                arrays[f"embeddings/{layer}/clean"] = (clean, d), np.dtype(self.storage)
            arrays[f"embeddings/{layer}/crc32"] = (clean,), np.dtype(np.uint32)
        return arrays


@dataclass(frozen=True)
class Share:
    """The samples of a feature file that one of several processes writes, into its shard."""

    rank: int
    ranks: int
    span: range

    def describe(self) -> str:
        """The value of a shard's attribute `share`."""
        return f"{self.rank} of {self.ranks}: samples {self.span.start} to {self.span.stop}"


def partial_path(path: Path) -> Path:
    """The name of a feature file until it is complete."""
    return path.with_name(path.name + PARTIAL)


def joined_name(path: Path) -> str | None:
    """The name of the joined file that a shard belongs to; None if the path is not a shard's."""
    match = SHARD.fullmatch(path.name)
    return match["joined"] if match else None


def parse_provenance(text: object) -> dict[str, Any]:
    """The record in the attribute `provenance`. Raises ValueError if it has another form."""
    if not isinstance(text, str) or not 0 < len(text) <= MAX_PROVENANCE:
        raise ValueError("provenance is not a text, or too long")
    record = parse_json(text, constant=_refuse_constant)
    if not isinstance(record, dict) or not _is_shallow(record):
        raise ValueError(NO_RECORD)
    for name, kind in FIELD_TYPES.items():
        value = record.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ValueError(f"{NO_RECORD}: {name} is a {type(value).__name__}")
    if not all(isinstance(one, dict) for one in (record.get("assumed") or {}).values()):
        raise ValueError(f"{NO_RECORD}: assumed without values")
    layers, views = record.get("layers") or [], record.get("views") or {"name": ""}
    if not all(isinstance(layer, str) for layer in layers) or not isinstance(
        views.get("name"), str
    ):
        raise ValueError(f"{NO_RECORD}: layers or views without names")
    return record


def ids_digest(ids: Iterable[str]) -> str:
    """The entry `samples_sha256` of a file whose writer recorded none: SHA-256 of its ids."""
    digest = hashlib.sha256()
    for name in ids:
        digest.update(str(name).encode("utf-8", "replace") + b"\0")
    return digest.hexdigest()


def _refuse_constant(name: str) -> float:
    raise ValueError(f"provenance has {name} for a number")


def _is_shallow(record: dict[str, Any]) -> bool:
    level: list[Any] = [record]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return True
    return False


def revision_of(provenance: Mapping[str, Any]) -> int:
    """The embedding revision of the code that wrote a file; 1 if none is recorded."""
    revision: int = provenance.get("embedding_revision") or 1
    return revision


def differing_fields(record: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the fields in which two provenance records differ, except the checkpoint's path."""
    # A round trip through JSON turns tuples into lists, as in the record of a file.
    stored: dict[str, Any] = json.loads(json.dumps(other))
    return sorted(
        key
        for key in record.keys() | stored.keys()
        # The path may be spelt differently; sha256 identifies the checkpoint.
        if key != "checkpoint" and record.get(key) != stored.get(key)
    )


def checksums_of(views: np.ndarray | list[np.ndarray], clean: np.ndarray) -> np.ndarray:
    """CRC-32 [b] of the bytes of each sample: its views (if any), then its clean embedding.

    views: [c, q, d], or c of [q_i, d], c <= b, of the first samples. clean: [b, d], or [b, 0] where
    there is none.
    """
    sums = np.empty(len(clean), np.uint32)
    for i, row in enumerate(np.ascontiguousarray(clean)):
        start = zlib.crc32(np.ascontiguousarray(views[i]).data) if i < len(views) else 0
        sums[i] = zlib.crc32(row.data, start)
    return sums


def check_unlocked(partial: Path) -> None:
    """Raise InUse if another process has the file open for writing."""
    try:
        import fcntl
    except ImportError:  # HDF5 takes no locks there either
        return
    if irregular_kind(partial) is not None:
        return
    try:
        with partial.open("r+b") as file:  # HDF5 might hang on a damaged file, or write to it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock that HDF5 takes
    except BlockingIOError as error:
        raise in_use_error(partial) from error
    except OSError:
        return  # not writable, or no locks on this file system


def in_use_error(partial: Path) -> InUse:
    """The error for a file that another process is writing."""
    return InUse(f"{partial}: another process is writing it; wait for it, then run again")


def write_metadata(
    file: h5py.File,
    count: int,
    ids: Sequence[str] | None,
    labels: Sequence[int] | None,
    bad: Sequence[tuple[str, str]],
    provenance: Mapping[str, Any],
    share: Share | None = None,
    counts: Sequence[int] | None = None,
) -> None:
    """Write attributes and samples of a new file; none of the `count` samples is done.

    counts: as of `Layout`.
    """
    import h5py

    file.attrs["format"] = SHARD_FORMAT if share else FORMAT
    file.attrs["version"] = VERSION if counts is None else UNEQUAL_VERSION
    file.attrs["provenance"] = json.dumps(provenance, sort_keys=True)
    if share is not None:
        file.attrs["share"] = share.describe()
    samples = file.create_group("samples")
    text = h5py.string_dtype("utf-8")
    if ids is not None:
        samples.create_dataset("id", data=list(ids), dtype=text)
    if bad:
        samples.create_dataset("bad", data=list(bad), dtype=text)
    if labels is not None:
        samples.create_dataset("label", data=np.asarray(labels, np.int64))
    if counts is not None:
        samples.create_dataset("q", data=np.asarray(counts, np.int64))
    _create(samples, "done", (count,), np.dtype(np.uint8))


def allocate(file: h5py.File, layout: Layout) -> None:
    """Create the arrays of a new file, each at its final offset."""
    for layer in layout.widths:
        file.create_group(f"embeddings/{layer}")
    for name, (shape, dtype) in layout.arrays().items():
        _create(file, name, shape, dtype)
    file.flush()


def _create(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    import h5py

    # Early allocation fixes the offset of every row, so that a crash loses no finished row.
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(dtype)
    h5py.h5d.create(group.id, name.encode(), kind, space, properties)


def check_space(partial: Path, layout: Layout, texts: Sequence[str]) -> None:
    """Raise FeatureFileError if the disk is too full, OSError if its beginning cannot be allocated.

    texts: all texts that the file will hold.
    """
    # HDF5's tables; checksums, flags, and a reference and header for each text; the texts.
    begin = 2**18 + (64 + 8 * len(layout.widths)) * layout.n_clean + 8 * sum(map(len, texts))
    size, free = layout.nbytes + begin, shutil.disk_usage(partial.parent).free
    if size > free:
        raise FeatureFileError(
            f"{partial}: will take {format_size(size)} and {format_size(free)} are free; "
            "free some space, lower -n or -q, or use --storage float16"
        )
    with tempfile.TemporaryFile(dir=partial.parent) as probe:  # a quota shows only in a write
        _allocate_blocks(probe.fileno(), begin)


def reserve(file: h5py.File) -> None:
    """Allocate the disk blocks of an open file. Raises OSError if the disk is full."""
    file.flush()
    handle = file.id.get_vfd_handle()
    _allocate_blocks(handle, os.fstat(handle).st_size)


def _allocate_blocks(handle: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, max(1, size))


def format_size(size: int) -> str:
    """A number of bytes in MB or GB."""
    return f"{size / 2**30:,.2f} GB" if size >= 2**27 else f"{size / 2**20:,.2f} MB"
