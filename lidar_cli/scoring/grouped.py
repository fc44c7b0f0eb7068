"""Rows [N, d] grouped by ids into samples: the rows of an id are the views of one sample.

Rows of an id need not be adjacent. Samples are ordered by their first row, and a chunk of samples
is read from wherever its rows are: in few long reads if they are adjacent, else one by one, with
short gaps read along. In memory are the order of rows, 8 bytes each, and the ids, not the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lidar_cli.checkpoints.reading.arrays import read_stored_ids
from lidar_cli.data.tables import read_table
from lidar_cli.errors import FeatureFileError, InputError
from lidar_cli.features.arrays import read_npy_ids, read_npz_ids
from lidar_cli.features.embeddings import (
    Embeddings,
    Names,
    ReadRows,
    StoredArray,
    check_counts,
    with_equal_views,
)
from lidar_cli.features.hdf5 import read_hdf5_contents
from lidar_cli.runtime.files import is_hdf5, read_named
from lidar_cli.settings import GroupSettings

GAP = 2**15  # bytes between two rows that are read along, instead of a second read
PIECE = 2**24  # bytes read at once to pick rows from
ID_NAMES = ("ids", "samples/id")  # of an HDF5 file
NO_IDS = (
    "stores no ids to group rows by: expected an array `ids` (in HDF5 also /samples/id) with one "
    "for each row; or name a file of them with --ids"
)


def group_file(path: Path, layers: list[Embeddings], settings: GroupSettings) -> list[Embeddings]:
    """The layers of a file, with --group-by their rows as views of samples.

    Raises InputError as `read_ids` and `group_rows`.
    """
    if settings.group_by is None:
        return layers
    ids = read_ids(path, settings.ids)
    return [group_rows(embeddings, ids) for embeddings in layers]


def read_ids(path: Path, listed: Path | None) -> np.ndarray | Sequence[str]:
    """The id of each row of a file [N]: from the file `listed`, else those that it stores.

    Raises InputError if there are none, or they cannot be read.
    """
    if listed is not None:
        return _listed_ids(listed)
    if is_hdf5(path):
        contents = read_hdf5_contents(path)
        for name in ID_NAMES:
            try:
                return contents.texts(name)
            except FeatureFileError as error:
                if "nothing is named" not in str(error):
                    raise
        raise InputError(f"{path}: {NO_IDS}", code="no-ids")
    ids = None
    if path.suffix != ".npy":
        ids = read_npz_ids(path) if path.suffix == ".npz" else read_stored_ids(path)
    if ids is None:
        raise InputError(f"{path}: {NO_IDS}", code="no-ids")
    return ids


def _listed_ids(path: Path) -> np.ndarray | Sequence[str]:
    if path.suffix == ".npy":
        return read_npy_ids(path)
    if path.suffix in (".csv", ".tsv"):
        return [row["id"] for row in read_table(path, ("id",)).rows]
    try:
        return read_named(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text in UTF-8"
        raise InputError(
            f"{path}: cannot be read: {reason}; expected one id a line, a CSV file with a column "
            "id, or a .npy file"
        ) from error


def group_rows(embeddings: Embeddings, ids: np.ndarray | Sequence[str]) -> Embeddings:
    """Rows [N, d] as the views of samples, one for each distinct id of `ids` [N].

    Raises InputError if the array has views already, ids are not one for each row, or a sample has
    a single row.
    """
    file, stored = embeddings.file, embeddings.clean
    if stored is None or embeddings.views is not None:
        shape = embeddings.views.shape if embeddings.views else ()
        raise InputError(
            f"{file}: {embeddings.layer} is {tuple(shape)}, which has views already; --group-by "
            "takes rows (N, d)"
        )
    if len(ids) != stored.shape[0]:
        raise InputError(
            f"{file}: {len(ids):,} ids for {stored.shape[0]:,} rows; expected one for each row",
            code="other-number-of-ids",
        )
    numbers, names = _numbered(ids)
    counts = np.bincount(numbers)
    check_counts(file, torch.from_numpy(counts), "row")
    read = stored.read
    if (np.diff(numbers) < 0).any():
        read = _read_in_order(stored, np.argsort(numbers, kind="stable"))
    few, many = int(counts.min()), int(counts.max())
    rows = f"{few}" if few == many else f"{few} to {many}"
    grouped = replace(
        embeddings,
        clean=None,
        verify=None,
        content=None,
        names=lambda: Names(names, None),
        note=embeddings.note or f"{file}: {len(counts):,} samples by ids, of {rows} rows",
    )
    ordered = StoredArray(stored.shape, stored.item_size, read)
    if few == many:
        return replace(grouped, views=with_equal_views(ordered, few))
    return replace(grouped, views=ordered, counts=torch.from_numpy(counts))


def _numbered(ids: np.ndarray | Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The number of each row's id [N], in the order in which ids occur, and the distinct ids."""
    if isinstance(ids, np.ndarray):
        distinct, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        order = np.argsort(first)
        position = np.empty_like(order)
        position[order] = np.arange(len(order))
        return position[inverse], [str(one) for one in distinct[order].tolist()]
    number_of: dict[str, int] = {}
    numbers = np.fromiter(
        (number_of.setdefault(one, len(number_of)) for one in ids), np.int64, len(ids)
    )
    return numbers, list(number_of)


def _read_in_order(stored: StoredArray, order: np.ndarray) -> ReadRows:
    """Reads rows `order[start:stop]` of a stored array."""
    row_bytes = max(1, stored.item_size * stored.shape[1])

    def read(start: int, stop: int) -> Tensor:
        wanted, targets = torch.from_numpy(order[start:stop]).sort()
        far = wanted.diff() > max(1, GAP // row_bytes)
        pieces = wanted // max(1, PIECE // row_bytes)
        ends = 1 + (far | (pieces.diff() > 0)).nonzero().flatten()
        out: Tensor | None = None
        for run, places in zip(wanted.tensor_split(ends), targets.tensor_split(ends), strict=True):
            first = int(run[0])
            rows = stored.read(first, int(run[-1]) + 1)
            out = rows.new_empty(stop - start, rows.shape[1]) if out is None else out
            out[places] = rows[run - first]
        assert out is not None
        return out

    return read
