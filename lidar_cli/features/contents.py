"""What a new feature file holds before the first embedding: names, attributes, arrays in place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from lidar_cli.features.form import TYPES, Layout, Share
from lidar_cli.features.provenance import FORMAT, SHARD_FORMAT, VERSION


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
