"""Reads feature files, and arrays of other HDF5 files, as embeddings."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lidar_cli.errors import FeatureFileError, InputError, Unresumable, shortened
from lidar_cli.features.arrays import AS_IT_IS, ArrayForm, as_embeddings, choose_array
from lidar_cli.features.embeddings import (
    Chunk,
    Embeddings,
    Names,
    StoredArray,
    check_counts,
    with_equal_views,
    with_names,
)
from lidar_cli.features.hdf5 import (
    COUNTS,
    HDF5Contents,
    complete_provenance,
    has_format,
    open_hdf5,
    provenance_of,
    read_array,
    read_shapes,
)
from lidar_cli.features.schema import (
    NO_VIEWS,
    SHARD_FORMAT,
    check_unlocked,
    checksums_of,
    joined_name,
    partial_path,
)
from lidar_cli.runtime.files import NotAFile, check_regular, parse_json
from lidar_cli.settings import PATCHES

if TYPE_CHECKING:
    from torch import Tensor

    from lidar_cli.core.dense import DenseParts

NO_DENSE = "not measured: the extraction was not finished, or an earlier lidar made it"


def read_provenance(path: Path) -> dict[str, Any]:
    """The provenance of a complete feature file.

    Raises FeatureFileError if it is not a feature file, or not complete.
    """
    with open_hdf5(path) as file:
        check_shards(file)
        return complete_provenance(file)


def read_interrupted(path: Path) -> dict[str, Any]:
    """The provenance of the partial file of an interrupted run for `path`, {} if there is none.

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
        with open_hdf5(partial) as file:
            return provenance_of(file)
    except FeatureFileError as error:
        raise Unresumable(f"{error}; start over with --overwrite") from error


def read_labels(path: Path) -> np.ndarray | None:
    """Class numbers [N] of the samples, -1 unknown, or None if the data has no labels."""
    with open_hdf5(path) as file:
        provenance_of(file)
        return file.read_all("samples/label") if "samples/label" in file.arrays else None


def labels_to_probe(path: Path) -> np.ndarray:
    """Class numbers [N], -1 unknown.

    Raises InputError if the file has none, FeatureFileError if it is damaged.
    """
    labels = read_labels(path)
    if labels is None:
        raise InputError(
            f"{path}: holds no labels, so it cannot be probed; extract it from data with classes, "
            "such as a folder with a subfolder a class",
            code="no-labels",
        )
    if labels.ndim != 1 or labels.dtype.kind != "i":
        raise FeatureFileError(
            f"{path}: damaged: labels are {labels.dtype} {labels.shape}; extract it again"
        )
    return labels


def read_names(path: Path) -> Names:
    """Ids and labels of all samples of a feature file. Raises FeatureFileError."""
    with open_hdf5(path) as file:
        provenance_of(file)
        texts = file.texts("samples/id") if file.has_ids else list(map(str, range(file.count)))
        named = file.has_ids
    labels = read_labels(path)
    return Names(texts, labels.tolist() if labels is not None else None, named)


def read_hdf5(
    path: Path,
    layers: str = "auto",
    form: ArrayForm = AS_IT_IS,
) -> list[Embeddings]:
    """The layers of a feature file, or one array of another HDF5 file.

    layers: comma-separated names, or "auto" for all layers.
    Raises FeatureFileError if a feature file is incomplete or lacks a layer, InputError if another
    HDF5 file has no array of the right shape.
    """
    with open_hdf5(path) as file:
        if form.dataset is None and has_format(file, SHARD_FORMAT):
            raise FeatureFileError(
                f"{path}: a shard of a feature file; give the joined file, {joined_name(path)}"
            )
        if form.dataset is not None or not has_format(file):
            return [_other_hdf5(path, form)]
        check_shards(file)
        provenance = complete_provenance(file)
        if not file.layers:
            raise ValueError(file.unlisted or "it holds no layer")
        names = [name.strip() for name in layers.split(",")]
        if layers == "auto":
            by_depth = [name for name in provenance.get("layers") or () if name in file.layers]
            names = list(dict.fromkeys([*by_depth, *file.layers]))
        for name in names:
            if name not in file.layers:
                raise FeatureFileError(
                    f"{path}: no layer {name!r}; the file holds {', '.join(file.layers)}"
                )
        return [_layer(file, path, name, provenance) for name in names]


def read_first(path: Path, layer: str, n: int) -> Embeddings:
    """The first n samples of a layer of a complete or partial feature file.

    Raises FeatureFileError if one of these samples, or the layer, is missing.
    """
    path = path if path.exists() else partial_path(path)
    with open_hdf5(path) as file:
        provenance = provenance_of(file)
        done = file.read_all("samples/done")[:n]
        missing = int((done == 0).sum())
        if missing:
            raise FeatureFileError(
                f"{path}: incomplete, {missing} of the first {n} samples missing"
            )
        all_samples = _layer(file, path, layer, provenance)
    counts = all_samples.counts
    counts = None if counts is None else counts[:n]
    views = _first_rows(all_samples.views, n if counts is None else int(counts.sum()))
    clean = _first_rows(all_samples.clean, n)
    return replace(all_samples, views=views, clean=clean, counts=counts)


def _first_rows(stored: StoredArray | None, n: int) -> StoredArray | None:
    return stored and stored._replace(shape=(min(n, stored.shape[0]), *stored.shape[1:]))


def _layer(file: HDF5Contents, path: Path, name: str, provenance: dict[str, Any]) -> Embeddings:
    group = f"embeddings/{name}"
    stored = {
        part: file.stored(f"{group}/{part}")
        for part in ("views", "clean")
        if f"{group}/{part}" in file.arrays
    }
    counts = None
    if file.is_unequal and "views" in stored:
        counts = _counts(file, stored["views"].shape[0])
    _check_shapes(file, name, {part: array.shape for part, array in stored.items()}, counts)
    views = stored.get("views")
    if views is not None and counts is not None and counts.min() == counts.max():
        views, counts = with_equal_views(views, int(counts[0])), None
    checksums = file.read_all(f"{group}/crc32") if f"{group}/crc32" in file.arrays else None

    def verify(chunk: Chunk) -> None:
        assert checksums is not None
        views = NO_VIEWS if chunk.views is None else chunk.by_sample()
        clean = np.empty((len(views), 0)) if chunk.clean is None else chunk.clean.numpy()
        computed = checksums_of(views, clean)
        bad = np.flatnonzero(computed != checksums[chunk.start : chunk.start + len(computed)])
        if len(bad):
            raise FeatureFileError(
                f"{path}: layer {name}: the embedding of sample {chunk.start + bad[0]} does not "
                f"match its checksum ({len(bad)} such here); the file is damaged, extract it again",
                code="checksum",
            )

    return Embeddings(
        str(path),
        name,
        views,
        stored.get("clean"),
        counts=counts,
        provenance=provenance,
        verify=None if checksums is None else verify,
        content=None if checksums is None else hashlib.sha256(checksums.tobytes()).hexdigest(),
        names=lambda: read_names(path),
        dense=_dense_parts(file) if name == PATCHES else None,
    )


def _counts(file: HDF5Contents, rows: int) -> Tensor:
    """The numbers of views of samples [n]. Raises ValueError if they are not those of the rows."""
    import torch

    counts = torch.from_numpy(file.read_all(COUNTS).astype(np.int64))
    if not len(counts) or int(counts.min()) < 1 or int(counts.max()) > rows or counts.sum() != rows:
        raise ValueError(
            f"{COUNTS} has {len(counts)} numbers of the sum {int(counts.sum())}; expected as many "
            f"positive ones as there are samples, of the sum {rows}, the rows of views"
        )
    check_counts(str(file.path), counts)
    return counts


def _check_shapes(
    file: HDF5Contents,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    counts: Tensor | None,
) -> None:
    """Raise ValueError if the arrays of a layer do not fit together, or there are none."""
    views, clean = shapes.get("views"), shapes.get("clean")
    if views and counts is not None and len(views) == 2:
        views = (len(counts), int(counts.min()), views[1])
    checksums = file.arrays.get(f"embeddings/{name}/crc32")
    count = None if checksums is None else file.array(checksums.name).shape
    good = bool(shapes) and not any(0 in shape for shape in shapes.values())
    good &= views is None or len(views) == 3
    good &= clean is None or len(clean) == 2
    if good and views and clean:
        good = views[0] <= clean[0] and views[2] == clean[1]
    if good and count is not None:
        good = count == (clean or views or ())[:1]
    if not good:
        raise ValueError(
            f"layer {name}: views {views}, clean {clean}, checksums {count}; expected views "
            "[n, q, d] (in version 2 [sum q, d]), clean [N, d] with N >= n, or one of them, and N "
            "checksums or none"
        )


def _dense_parts(file: HDF5Contents) -> DenseParts | str:
    """The parts of DSE in a file, or why there are none. Raises ValueError if it is damaged."""
    from lidar_cli.core.dense import DenseParts

    text = file.attributes["dse"]
    if text is None:
        return NO_DENSE
    record = parse_json(str(text))
    if isinstance(record, dict) and isinstance(record.get("reason"), str):
        return shortened(record["reason"])
    if not isinstance(record, dict) or record.keys() != set(DenseParts._fields):
        raise ValueError("dse is not a record of its parts")
    parts = DenseParts(**record)
    if not all(type(part) is float and math.isfinite(part) for part in parts):
        raise ValueError("a part of dse is not a finite number")
    return parts


def check_shards(contents: HDF5Contents) -> None:
    """Raise FeatureFileError if a shard is missing, for which HDF5 would read zeros."""
    path = contents.path
    for array in contents.arrays.values():
        for shard in array.sources:
            if joined_name(Path(shard)) is None or Path(shard).name != shard:
                continue  # not a shard of ours: checked when it is read
            if not path.with_name(shard).is_file():
                raise FeatureFileError(
                    f"{path}: its shard {shard} is not in the same directory; move the "
                    "shards with the file, or extract it again"
                )


def _other_hdf5(path: Path, form: ArrayForm) -> Embeddings:
    dataset = form.dataset
    name, file = dataset, None if dataset is None else read_array(path, dataset)
    if name is None or file is None:
        name = choose_array(path, read_shapes(path), dataset)
        file = read_array(path, name)
    if file is None:
        raise FeatureFileError(f"{path}: changed while it was read; run it again", code="changed")
    embeddings = as_embeddings(path, name.strip("/"), file.stored(name), form)

    def texts(kind: str) -> list[str] | None:
        names = (kind, {"ids": "samples/id", "labels": "samples/label"}[kind])
        values = (file.optional_texts(one) for one in names)
        return next((some for some in values if some is not None), None)

    return with_names(embeddings, texts)
