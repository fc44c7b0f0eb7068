"""Rows [N, d] grouped by ids into samples: the rows of an id are the views of one sample.

Rows of an id need not be adjacent. Samples are ordered by their first row, and a chunk of samples
is read from wherever its rows are: in few long reads if they are adjacent, else one by one, with
short gaps read along. In memory are the order of rows, 8 bytes each, and the ids, not the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lidar_cli.data.tables import read_table
from lidar_cli.errors import InputError, first_line
from lidar_cli.features.arrays import read_npy_ids
from lidar_cli.features.embeddings import (
    Embeddings,
    Names,
    ReadRows,
    StoredArray,
    check_counts,
    with_equal_views,
)
from lidar_cli.runtime.files import read_named

if TYPE_CHECKING:
    from torch import Tensor

GAP = 2**15  # bytes between two rows that are read along, instead of a second read
PIECE = 2**24  # bytes read at once to pick rows from


def read_ids(file: Path) -> Sequence[str]:
    """The ids in a text file, one a line, in the column `id` of a CSV file, or in a .npy file.

    Raises InputError if it cannot be read.
    """
    if file.suffix == ".npy":
        return read_npy_ids(file)
    if file.suffix in (".csv", ".tsv"):
        return [row["id"] for row in read_table(file, ("id",)).rows]
    try:
        return read_named(file).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--ids {file}: cannot be read: {first_line(error)}") from error


def group_rows(embeddings: Embeddings) -> Embeddings:
    """Rows [N, d] as the views of samples, one for each distinct id.

    Raises InputError if the array has views already, the rows have no ids, or a sample has a single
    row.
    """
    file, stored = embeddings.file, embeddings.clean
    if stored is None or embeddings.views is not None:
        shape = embeddings.views.shape if embeddings.views else ()
        raise InputError(
            f"{file}: {embeddings.layer} is {tuple(shape)}, which has views already; --group-by "
            "takes rows (N, d)"
        )
    names = embeddings.names() if embeddings.names else None
    if names is None or not names.named:
        raise InputError(
            f"{file}: stores no ids to group rows by: expected an array `ids` with one for each "
            "row; or name a file of them with --ids",
            code="no-ids",
        )
    number_of: dict[str, int] = {}
    ids = (number_of.setdefault(one, len(number_of)) for one in names.ids)
    numbers = np.fromiter(ids, np.int64, len(names.ids))
    distinct, labels = list(number_of), None
    if names.labels is not None:
        first = np.unique(numbers, return_index=True)[1]
        labels = [names.labels[at] for at in first.tolist()]
    import torch

    counts = np.bincount(numbers)
    check_counts(file, torch.from_numpy(counts), "row")
    read = stored.read
    if (np.diff(numbers) < 0).any():
        read = _read_in_order(stored, np.argsort(numbers, kind="stable"))
    grouped = replace(
        embeddings,
        clean=None,
        verify=None,
        content=None,
        names=lambda: Names(distinct, labels),
    )
    ordered = StoredArray(stored.shape, stored.item_size, read)
    if counts.min() == counts.max():
        return replace(grouped, views=with_equal_views(ordered, int(counts[0])))
    return replace(grouped, views=ordered, counts=torch.from_numpy(counts))


def _read_in_order(stored: StoredArray, order: np.ndarray) -> ReadRows:
    """Reads rows `order[start:stop]` of a stored array."""
    row_bytes = max(1, stored.item_size * stored.shape[1])

    def read(start: int, stop: int) -> Tensor:
        import torch

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
