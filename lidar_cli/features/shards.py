"""Joins the shards that several processes write into one feature file of virtual datasets.

    NAME.shards.json       the number of processes and the provenance, equal for all
    NAME.shard-K-of-W.h5   the samples of process K, with the layout of a feature file
    NAME                   the joined file: views and clean embeddings are virtual datasets of the
                           shards in the same directory, all other content is inside

No process waits for another. A file under one of these names is complete: it is written under
another name and then hard-linked, which succeeds in exactly one process, on network file systems
too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lidar_cli.errors import FeatureFileError, first_line
from lidar_cli.features.hdf5 import open_hdf5, provenance_of
from lidar_cli.features.schema import SHARD_FORMAT, Layout, Share, differing_fields, write_metadata
from lidar_cli.runtime.files import atomic, parse_json, read_limited, temporary_file


def shard_path(path: Path, rank: int, ranks: int) -> Path:
    """The name of the shard of one of several processes."""
    return path.with_name(f"{path.name}.shard-{rank}-of-{ranks}.h5")


def agree_on_batch_size(
    path: Path,
    ranks: int,
    provenance: Mapping[str, Any],
    batch_size: int | None,
    find_batch_size: Callable[[], int],
) -> int:
    """The batch size of all processes: `batch_size`, or the one that the first process finds.

    provenance: the record without the batch size.
    Raises FeatureFileError if this process differs from the first, for instance in versions or
    device, or the directory cannot be written.
    """
    agreed = path.with_name(f"{path.name}.shards.json")
    if not agreed.exists():
        size = batch_size or find_batch_size()
        text = json.dumps({"ranks": ranks, "provenance": {**provenance, "batch_size": size}})
        try:
            with suppress(FileExistsError), atomic(agreed, exclusive=True) as file:
                file.write(text.encode())
        except OSError as error:
            raise FeatureFileError(
                f"{agreed}: cannot be written: {first_line(error)}; name another file with -o"
            ) from error
    try:
        first = parse_json(read_limited(agreed, follow=False))
        other, count = dict(first["provenance"]), first["ranks"]
        size = int(other["batch_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FeatureFileError(
            f"{agreed}: cannot be read: {first_line(error)}; {_advice(path)}"
        ) from error
    names = differing_fields(other, {**provenance, "batch_size": batch_size or size})
    if count != ranks:
        names.append(f"processes, {count} and {ranks},")
    if names:
        raise FeatureFileError(
            f"{path}: its shards were begun with other settings ({', '.join(names)} differ); give "
            f"those settings again, on the same versions and kind of device, or {_advice(path)}"
        )
    return size


def check_startable(path: Path, shard: Path) -> None:
    """Raise FeatureFileError if an interrupted run left this shard, which would be lost."""
    for file in (shard, shard.with_name(f"{shard.name}.partial")):
        if file.exists():
            raise FeatureFileError(
                f"{file}: an interrupted run is here; continue it with --resume, or {_advice(path)}"
            )


def join_shards(
    path: Path,
    layout: Layout,
    shares: Sequence[Share],
    ids: Sequence[str],
    labels: Sequence[int] | None,
    bad: Sequence[tuple[str, str]],
    provenance: Mapping[str, Any],
) -> bool:
    """Join the shards if all are complete. Returns whether this process created the joined file.

    shares: all shares with samples, in order.
    Raises FeatureFileError if a shard was written with other settings, on other versions or another
    kind of device, or is damaged.
    """
    # A network file system may cache a lookup of one name, but not a listing. The last process to
    # finish lists the directory when all shards have their names, so it sees all of them.
    present = {entry.name for entry in path.parent.iterdir()}
    shards = {share.rank: shard_path(path, share.rank, share.ranks) for share in shares}
    if not present.issuperset(shard.name for shard in shards.values()):
        return False
    checksums: dict[str, list[np.ndarray]] = {layer: [] for layer in layout.widths}
    with open_hdf5(shards[shares[0].rank]) as first:
        dense = first.attributes["dse"]
    for share in shares:
        of_shard = _checksums(shards[share.rank], path, share, list(checksums), provenance)
        for layer, blocks in checksums.items():
            blocks.append(of_shard[layer])
    try:
        with temporary_file(path, exclusive=True) as temporary, h5py.File(temporary, "x") as file:
            write_metadata(file, len(ids), ids, labels, bad, provenance)
            file["samples/done"][:] = 1
            if dense is not None:
                file.attrs["dse"] = dense
            for layer, blocks in checksums.items():
                group = file.create_group(f"embeddings/{layer}")
                group["crc32"] = np.concatenate(blocks)
                for name in ("views", "clean") if layout.n_views else ("clean",):
                    _create_virtual(group, name, layout, layer, shares, shards)
        has_created = True
    except FileExistsError:
        has_created = False
    except (OSError, RuntimeError) as error:
        raise FeatureFileError(f"{path}: cannot be written: {first_line(error)}") from error
    path.with_name(f"{path.name}.shards.json").unlink(missing_ok=True)
    return has_created


def _checksums(
    shard: Path, path: Path, share: Share, layers: Sequence[str], provenance: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Checksums [len(span)] of a shard by layer.

    Raises FeatureFileError if the shard is not the one described by `share` and `provenance`.
    """
    with open_hdf5(shard) as file:
        names = differing_fields(provenance_of(file, SHARD_FORMAT), provenance)
        if names:
            raise FeatureFileError(
                f"{shard}: cannot be joined, it was written with other settings "
                f"({', '.join(names)} differ); {_advice(path)}"
            )
        arrays = {
            name: file.read_all(name)
            for name in ("samples/done", *(f"embeddings/{layer}/crc32" for layer in layers))
        }
        if (
            file.attributes["share"] != share.describe()
            or {array.shape for array in arrays.values()} != {(len(share.span),)}
            or not arrays["samples/done"].all()
        ):
            raise FeatureFileError(
                f"{shard}: cannot be joined, it does not hold share {share.describe()}; "
                f"{_advice(path)}"
            )
        return {layer: arrays[f"embeddings/{layer}/crc32"] for layer in layers}


def _create_virtual(
    group: h5py.Group,
    name: str,
    layout: Layout,
    layer: str,
    shares: Sequence[Share],
    shards: Mapping[int, Path],
) -> None:
    d = layout.widths[layer]

    def shape(part: Layout) -> tuple[int, ...]:
        return (part.n_samples, part.n_views, d) if name == "views" else (part.n_clean, d)

    joined = h5py.VirtualLayout(shape(layout), np.dtype(layout.storage))
    for share in shares:
        inside = shape(layout.within(share.span))
        if inside[0]:
            start = share.span.start
            source = h5py.VirtualSource(
                shards[share.rank].name, f"embeddings/{layer}/{name}", inside
            )
            joined[start : start + inside[0]] = source
    group.create_virtual_dataset(name, joined)


def _advice(path: Path) -> str:
    return f"remove {path.name}.shard* to start over"
