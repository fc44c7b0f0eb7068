"""What writing and reading share: layout, number formats, provenance, checksums, damage."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidar_cli.arrays import check_stored
from lidar_cli.errors import DegenerateFeatures, FeatureFileError, InUse, first_line
from lidar_cli.features.provenance import FORMAT, VERSION, parsed
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
