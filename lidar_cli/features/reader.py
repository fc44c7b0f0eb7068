"""Feature files, and arrays of other HDF5 files, as embeddings that are read in chunks."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lidar_cli.errors import FeatureFileError, Unresumable
from lidar_cli.features.arrays import arrange, choose
from lidar_cli.features.blocks import Chunk, Embeddings, Names, Stored
from lidar_cli.features.provenance import SHARD_FORMAT, joined_name
from lidar_cli.features.schema import (
    NOTHING,
    check_complete,
    check_unlocked,
    checksums_of,
    is_ours,
    opened,
    partial_path,
    provenance_of,
)
from lidar_cli.features.shards import check_shards
from lidar_cli.features.structure import Structure, read_array, read_shapes
from lidar_cli.runtime.files import NotAFile, check_regular


def read_provenance(path: Path) -> dict[str, Any]:
    """The provenance of a complete feature file.

    Raises FeatureFileError if it is not a feature file, or not complete.
    """
    with opened(path) as file:
        found = provenance_of(file)
        check_shards(file)
        check_complete(file)
        return found


def read_interrupted(path: Path) -> dict[str, Any]:
    """The provenance of the partial file that an interrupted run left for `path`, or {} if none.

    Raises Unresumable if it is not a feature file, InUse if another process is writing it.
    """
    partial = partial_path(path)
    if not os.path.lexists(partial):
        return {}
    try:
        check_regular(partial, follow=False)
    except NotAFile as error:
        raise FeatureFileError(
            f"{partial}: {error.strerror}; remove it, or name another with -o"
        ) from error
    check_unlocked(partial)
    try:
        with opened(partial) as file:
            return provenance_of(file)
    except FeatureFileError as error:
        raise Unresumable(f"{error}; start anew with --overwrite") from error


def read_labels(path: Path) -> np.ndarray | None:
    """Class numbers [N] of the samples, -1 unknown, or None where the data has none."""
    with opened(path) as file:
        provenance_of(file)
        return file.whole("samples/label") if "samples/label" in file.arrays else None


def read_names(path: Path) -> Names:
    """Ids and labels of all samples of a feature file. Raises FeatureFileError."""
    with opened(path) as file:
        provenance_of(file)
        texts = file.texts("samples/id")
    labels = read_labels(path)
    return Names(texts, labels.tolist() if labels is not None else None)


def read_hdf5(
    path: Path,
    layers: str = "auto",
    dataset: str | None = None,
    views_per_sample: int | None = None,
) -> list[Embeddings]:
    """The layers of a feature file, or one array of any other HDF5 file.

    layers: comma-separated names, or "auto" for all of a feature file.
    Raises FeatureFileError if a feature file is incomplete or lacks a layer, InputError if another
    HDF5 file has no array of the right shape.
    """
    with opened(path) as file:
        if dataset is None and is_ours(file, SHARD_FORMAT):
            raise FeatureFileError(
                f"{path}: a shard of a feature file; give the joined file, {joined_name(path)}"
            )
        if dataset is not None or not is_ours(file):
            return [_foreign(path, dataset, views_per_sample)]
        provenance = provenance_of(file)
        check_shards(file)
        check_complete(file)
        known = file.layers
        if not known:
            raise ValueError(file.unlisted or "it holds no layer")
        wanted = known if layers == "auto" else [name.strip() for name in layers.split(",")]
        for name in wanted:
            if name not in known:
                raise FeatureFileError(
                    f"{path}: no layer {name!r}; the file holds {', '.join(known)}"
                )
        return [_layer(file, path, name, provenance) for name in wanted]


def read_first(path: Path, layer: str, n: int) -> Embeddings:
    """The first n samples of a layer of a feature file, which may be an interrupted one.

    Raises FeatureFileError if one of them is missing, or the layer is.
    """
    path = path if path.exists() else partial_path(path)
    with opened(path) as file:
        provenance = provenance_of(file)
        done = file.whole("samples/done")[:n]
        missing = int((done == 0).sum())
        if missing:
            raise FeatureFileError(f"{path}: incomplete, {missing} of the first {n} samples lack")
        found = _layer(file, path, layer, provenance)
    return replace(found, views=_shorter(found.views, n), clean=_shorter(found.clean, n))


def _shorter(stored: Stored | None, n: int) -> Stored | None:
    return stored and stored._replace(shape=(min(n, stored.shape[0]), *stored.shape[1:]))


def _layer(file: Structure, path: Path, name: str, provenance: dict[str, Any]) -> Embeddings:
    group = f"embeddings/{name}"
    parts = ("views", "clean") if f"{group}/views" in file.arrays else ("clean",)
    stored = {part: file.stored(f"{group}/{part}") for part in parts}
    checksums_shape = file.array(f"{group}/crc32").shape
    clean = stored["clean"].shape
    views = stored["views"].shape if "views" in stored else (0, 0, *clean[1:])
    shapes_agree = len(views) == 3 and len(clean) == 2 and clean == (*checksums_shape, views[2])
    if not shapes_agree or views[0] > clean[0] or 0 in clean:
        count = math.prod(checksums_shape)
        raise ValueError(f"layer {name}: views {views}, clean {clean}, {count} checksums")
    checksums = file.whole(f"{group}/crc32")

    def verify(chunk: Chunk) -> None:
        assert chunk.clean is not None
        views = NOTHING if chunk.views is None else chunk.views.numpy()
        found = checksums_of(views, chunk.clean.numpy())
        bad = np.flatnonzero(found != checksums[chunk.start : chunk.start + len(found)])
        if len(bad):
            raise FeatureFileError(
                f"{path}: layer {name}: the embedding of sample {chunk.start + bad[0]} does not "
                f"match its checksum ({len(bad)} such here); the file is damaged, extract it again"
            )

    return Embeddings(
        str(path),
        name,
        stored.get("views"),
        stored["clean"],
        provenance=provenance,
        verify=verify,
        content=hashlib.sha256(checksums.tobytes()).hexdigest(),
        names=lambda: read_names(path),
    )


def _foreign(path: Path, dataset: str | None, views_per_sample: int | None) -> Embeddings:
    name, file = dataset, None if dataset is None else read_array(path, dataset)
    if name is None or file is None:
        name = choose(path, read_shapes(path), dataset)
        file = read_array(path, name)
    if file is None:
        raise FeatureFileError(f"{path}: changed while it was read; run it again")
    return arrange(path, name.strip("/"), file.stored(name), views_per_sample)
