"""What writing and reading share: layout, number formats, provenance, checksums, damage."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from lidar_cli.errors import DegenerateFeatures, FeatureFileError, InUse, first_line
from lidar_cli.features.arrays import check_stored
from lidar_cli.features.provenance import FORMAT, SHARD_FORMAT, VERSION, parsed
from lidar_cli.features.structure import Structure, is_hdf5, read_structure
from lidar_cli.runtime.files import NotAFile, irregular

TYPES = {"float32": np.float32, "float16": np.float16}
DAMAGE = (
    KeyError,
    ValueError,
    AttributeError,
    TypeError,
    OSError,
    RuntimeError,
    MemoryError,
)  # of what reads a broken file
PARTIAL = ".partial"
NOTHING = np.empty((0, 0, 0), np.float32)


@dataclass(frozen=True)
class Layout:
    """What a feature file will hold, known before the first embedding is."""

    widths: Mapping[str, int]  # layer -> d
    n_samples: int  # n, with views
    n_views: int  # q
    n_clean: int  # N, with a clean embedding
    storage: str = "float32"

    def within(self, span: range) -> Layout:
        """The layout of a contiguous run of the samples alone."""
        with_views = max(0, min(span.stop, self.n_samples) - span.start)
        return replace(self, n_samples=with_views, n_clean=len(span))


@dataclass(frozen=True)
class Share:
    """The samples of a feature file that one of several processes writes, into its shard."""

    rank: int
    ranks: int
    span: range

    def describe(self) -> str:
        """As a shard's attribute `share` holds it."""
        return f"{self.rank} of {self.ranks}: samples {self.span.start} to {self.span.stop}"


def partial_path(path: Path) -> Path:
    """Where a feature file stands until it is complete."""
    return path.with_name(path.name + PARTIAL)


def as_numbers(rows: Tensor, storage: str, layer: str, first: int) -> Tensor:
    """Embeddings [c, ...] of samples first, first + 1, ... as a file of that storage holds them.

    Raises DegenerateFeatures if one is not finite, or overflows float16.
    """
    values = rows.detach().float()
    finite = values.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        at = first + int((~finite).nonzero()[0])
        raise DegenerateFeatures(
            f"layer {layer}: the embedding of sample {at} holds NaN or Inf; "
            "check the checkpoint, or try --precision float32"
        )
    most = torch.finfo(torch.float16).max
    if storage == "float16" and len(values) and values.abs().max() > most:
        raise DegenerateFeatures(
            f"layer {layer}: a value of {float(values.abs().max()):.3g} overflows float16 "
            "(at most 65504); use --storage float32"
        )
    return values.to(getattr(torch, storage))


@contextmanager
def opened(path: Path, read: Callable[[Path], Structure] = read_structure) -> Iterator[Structure]:
    """What the file holds; what is missing or malformed inside it becomes a FeatureFileError."""
    try:
        if not is_hdf5(path):
            raise FeatureFileError(f"{path}: not an HDF5 file; expected a feature file")
    except NotAFile as error:
        raise FeatureFileError(f"{path}: {error.strerror}; expected a feature file") from error
    except OSError:
        pass  # `read` says why
    if path.suffix != PARTIAL:  # whose blocks are reserved, and of which little is read
        check_stored(path)
    structure = read(path)
    try:
        yield structure
    except DAMAGE as error:
        raise FeatureFileError(f"{path}: damaged: {first_line(error)}; extract it again") from error


def provenance_of(structure: Structure, form: str = FORMAT) -> dict[str, Any]:
    """The provenance in a file. Raises FeatureFileError if it is none of ours."""
    path = structure.path
    if not is_ours(structure, form):
        raise FeatureFileError(
            f"{path}: an HDF5 file, but not a feature file (no format attribute)"
        )
    version = structure.attributes["version"]
    if type(version) is not int or version != VERSION:
        raise FeatureFileError(
            f"{path}: feature file version {version}, this lidar reads {VERSION}; extract it again"
        )
    return parsed(structure.attributes["provenance"])


def is_ours(structure: Structure, form: str = FORMAT) -> bool:
    """Whether a file calls itself a feature file, or what else `form` says."""
    return structure.attributes["format"] == form


def check_complete(structure: Structure) -> None:
    """Raise FeatureFileError if samples are missing."""
    done = structure.whole("samples/done")
    if not done.all():
        raise FeatureFileError(
            f"{structure.path}: incomplete, {int(done.sum())} of {len(done)} samples; "
            "finish it with lidar extract --resume"
        )


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Fields in which the provenance of a file differs from another, for the same embeddings."""
    # A round trip through JSON, as the file's had, where tuples become lists.
    stored: dict[str, Any] = json.loads(json.dumps(wanted))
    return sorted(
        key
        for key in found.keys() | stored.keys()
        # The path may be spelt otherwise; sha256 says which checkpoint it is.
        if key != "checkpoint" and found.get(key) != stored.get(key)
    )


def checksums_of(views: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """CRC-32 a sample [b] of its views' bytes (if it has any), then its clean embedding's."""
    sums = np.empty(len(clean), np.uint32)
    for i, row in enumerate(np.ascontiguousarray(clean)):
        start = zlib.crc32(np.ascontiguousarray(views[i]).data) if i < len(views) else 0
        sums[i] = zlib.crc32(row.data, start)
    return sums


def check_unlocked(partial: Path) -> None:
    """Raise InUse if another process has the file open for writing."""
    try:
        import fcntl
    except ImportError:  # where HDF5 takes no locks either
        return
    if irregular(partial) is not None:
        return
    try:
        with partial.open("r+b") as file:  # not by HDF5, which might hang or write if it is damaged
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock that HDF5 takes
    except BlockingIOError as error:
        raise in_use(partial) from error
    except OSError:
        return  # it cannot be written, or has no locks: nobody's


def in_use(partial: Path) -> InUse:
    """The error of a file that another process is writing."""
    return InUse(f"{partial}: another process is writing it; wait for it, then run again")


def describe(
    file: h5py.File,
    ids: Sequence[str],
    labels: Sequence[int] | None,
    bad: Sequence[tuple[str, str]],
    provenance: Mapping[str, Any],
    share: Share | None = None,
) -> None:
    """Write what a new file holds beside the embeddings; no sample is done."""
    file.attrs["format"] = SHARD_FORMAT if share else FORMAT
    file.attrs["version"] = VERSION
    file.attrs["provenance"] = json.dumps(provenance, sort_keys=True)
    if share is not None:
        file.attrs["share"] = share.describe()
    samples = file.create_group("samples")
    text = h5py.string_dtype("utf-8")
    samples.create_dataset("id", data=list(ids), dtype=text)
    if bad:
        samples.create_dataset("bad", data=list(bad), dtype=text)
    if labels is not None:
        samples.create_dataset("label", data=np.asarray(labels, np.int64))
    _create(samples, "done", (len(ids),), np.uint8)


def arrays_of(layout: Layout) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and numbers of the rows and checksums, by name."""
    n, q, clean = layout.n_samples, layout.n_views, layout.n_clean
    numbers: type = TYPES[layout.storage]
    found: dict[str, tuple[tuple[int, ...], type]] = {}
    for layer, d in layout.widths.items():
        if q:
            found[f"embeddings/{layer}/views"] = (n, q, d), numbers
        found[f"embeddings/{layer}/clean"] = (clean, d), numbers
        found[f"embeddings/{layer}/crc32"] = (clean,), np.uint32
    return found


def allocate(file: h5py.File, layout: Layout) -> None:
    """Create the arrays of a new file, each at its final place."""
    for layer in layout.widths:
        file.create_group(f"embeddings/{layer}")
    for name, (shape, numbers) in arrays_of(layout).items():
        _create(file, name, shape, numbers)
    file.flush()


def _create(group: h5py.Group, name: str, shape: tuple[int, ...], numbers: Any) -> None:
    # Early allocation puts every row at its final offset, so that a crash loses no finished row.
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(numbers))
    h5py.h5d.create(group.id, name.encode(), kind, space, properties)


def check_space(partial: Path, layout: Layout, texts: Sequence[str]) -> None:
    """Raise FeatureFileError if the file will not fit, OSError if the disk refuses its beginning.

    texts: what the file will hold in words.
    """
    size = size_of(layout)
    # Checksums and flags; names with a reference of 16 bytes and a header each; HDF5's own tables.
    begin = 2**18 + (64 + 8 * len(layout.widths)) * layout.n_clean + 8 * sum(map(len, texts))
    free = shutil.disk_usage(partial.parent).free
    if size + begin > free:
        raise FeatureFileError(
            f"{partial}: will take {amount(size + begin)} and {amount(free)} are free; "
            "free some space, lower -n or -q, or use --storage float16"
        )
    with tempfile.TemporaryFile(dir=partial.parent) as probe:  # a quota tells nothing beforehand
        _take_blocks(probe.fileno(), begin)


def size_of(layout: Layout) -> int:
    """Bytes of all embeddings of a feature file."""
    rows = layout.n_samples * layout.n_views + layout.n_clean
    return sum(layout.widths.values()) * rows * np.dtype(TYPES[layout.storage]).itemsize


def reserve(file: h5py.File) -> None:
    """Give an open file the blocks for all of its length. Raises OSError if the disk is full."""
    file.flush()
    handle = file.id.get_vfd_handle()
    _take_blocks(handle, os.fstat(handle).st_size)


def _take_blocks(handle: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, max(1, size))


def amount(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 2**30:,.2f} GB" if size >= 2**27 else f"{size / 2**20:,.2f} MB"
