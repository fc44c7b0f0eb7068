"""Room on the disk for a feature file, taken before anything is computed.

HDF5 does not survive a disk that fills up: a write that fails when a dataset is closed is dropped
without a word, and the next flush may end the process by a segmentation fault (seen with 2.0.0). So
its files are written only where there is room, and get all their blocks when they are created.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from lidar_cli.errors import FeatureFileError
from lidar_cli.features.form import TYPES, Layout


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
