"""One feature file from several processes: a shard of each, joined by virtual datasets.

    NAME.shards.json              what all agree on: how many they are, the provenance
    NAME.shard-K-of-W.h5          the samples of process K, laid out as in a feature file
    NAME                          the joined file: its views and clean embeddings are read from the
                                  shards beside it, all else it holds itself

Nobody waits for another. What appears under a name of these is complete: it was made under another
and linked, which one process alone succeeds in, on network file systems too.
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
from lidar_cli.features.provenance import SHARD_FORMAT, joined_name
from lidar_cli.features.schema import (
    TYPES,
    Layout,
    Share,
    describe,
    differing,
    opened,
    provenance_of,
)
from lidar_cli.features.structure import Structure
from lidar_cli.features.writer import name_anew
from lidar_cli.runtime.atomic import temporary_path, write_atomic
from lidar_cli.runtime.files import parse_json, read_limited


def shard_path(path: Path, rank: int, ranks: int) -> Path:
    """Where the shard of one of several processes stands."""
    return path.with_name(f"{path.name}.shard-{rank}-of-{ranks}.h5")


def agree(
    path: Path,
    ranks: int,
    provenance: Mapping[str, Any],
    batch_size: int | None,
    find_batch_size: Callable[[], int],
) -> int:
    """The batch size of all processes: what was asked for, else what the first to come found.

    provenance: all of it but the batch size.
    Raises FeatureFileError if this process differs from the first, in versions or device perhaps,
    or the directory cannot be written.
    """
    agreed = path.with_name(f"{path.name}.shards.json")
    if not agreed.exists():
        told = {"batch_size": batch_size or find_batch_size()}
        text = json.dumps({"ranks": ranks, "provenance": {**provenance, **told}})
        beside = temporary_path(agreed)
        try:
            write_atomic(beside, text.encode())
            name_once(beside, agreed)
        except OSError as error:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise FeatureFileError(
                f"{agreed}: cannot be written: {first_line(error)}; name another file with -o"
            ) from error
    try:
        first = parse_json(read_limited(agreed, follow=False))
        other, count = dict(first["provenance"]), first["ranks"]
        size = int(other["batch_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FeatureFileError(
            f"{agreed}: cannot be read: {first_line(error)}; {_anew(path)}"
        ) from error
    names = differing(other, {**provenance, "batch_size": batch_size or size})
    if count != ranks:
        names.append(f"processes, {count} and {ranks},")
    if names:
        raise FeatureFileError(
            f"{path}: its shards were begun with other settings ({', '.join(names)} differ); give "
            f"those settings again, on the same versions and kind of device, or {_anew(path)}"
        )
    return size


def check_startable(path: Path, shard: Path) -> None:
    """Raise FeatureFileError if an interrupted run left this shard, so that it be not lost."""
    for found in (shard, shard.with_name(f"{shard.name}.partial")):
        if found.exists():
            raise FeatureFileError(
                f"{found}: an interrupted run is here; continue it with --resume, or {_anew(path)}"
            )


def join(
    path: Path,
    layout: Layout,
    shares: Sequence[Share],
    ids: Sequence[str],
    labels: Sequence[int] | None,
    bad: Sequence[tuple[str, str]],
    provenance: Mapping[str, Any],
) -> bool:
    """Join the shards if all are complete. Whether this process gave the file its name.

    shares: all of them that hold samples, in order.
    Raises FeatureFileError if a shard was made at other settings, on other versions or another kind
    of device, or is damaged.
    """
    # A listing is fresh where a network file system may answer from memory for a single name. The
    # last to finish lists when all names are there, so that one process at least finds them all.
    present = {entry.name for entry in path.parent.iterdir()}
    shards = {share.rank: shard_path(path, share.rank, share.ranks) for share in shares}
    if not present.issuperset(shard.name for shard in shards.values()):
        return False
    checksums: dict[str, list[np.ndarray]] = {layer: [] for layer in layout.widths}
    for share in shares:
        found = _checksums(shards[share.rank], path, share, list(checksums), provenance)
        for layer, blocks in checksums.items():
            blocks.append(found[layer])
    beside = temporary_path(path)
    try:
        with h5py.File(beside, "x") as file:
            describe(file, ids, labels, bad, provenance)
            file["samples/done"][:] = 1
            for layer, blocks in checksums.items():
                group = file.create_group(f"embeddings/{layer}")
                group["crc32"] = np.concatenate(blocks)
                for name in ("views", "clean") if layout.n_views else ("clean",):
                    _create_virtual(group, name, layout, layer, shares, shards)
        named = name_once(beside, path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise FeatureFileError(f"{path}: cannot be written: {first_line(error)}") from error
    path.with_name(f"{path.name}.shards.json").unlink(missing_ok=True)
    return named


def check_shards(structure: Structure) -> None:
    """Raise FeatureFileError if a shard is not beside the file; HDF5 would give zeros for it."""
    path = structure.path
    for array in structure.arrays.values():
        for shard in array.sources:
            if joined_name(Path(shard)) is None or Path(shard).name != shard:
                continue  # none of ours: refused, or not, where it is read
            if not path.with_name(shard).is_file():
                raise FeatureFileError(
                    f"{path}: its shard {shard} is not beside it; move the shards with the "
                    "file, or extract it again"
                )


def name_once(beside: Path, path: Path) -> bool:
    """Give a file its final name unless there is one of that name. Whether it was given.

    Raises OSError if the disk refuses.
    """
    try:
        name_anew(beside, path)
        return True
    except FileExistsError:
        return False
    finally:
        beside.unlink(missing_ok=True)


def _checksums(
    shard: Path, path: Path, share: Share, layers: Sequence[str], provenance: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Checksums [len(span)] by layer of a shard. Raises FeatureFileError if it is another."""
    with opened(shard) as file:
        names = differing(provenance_of(file, SHARD_FORMAT), provenance)
        if names:
            raise FeatureFileError(
                f"{shard}: cannot be joined, it was made at other settings ({', '.join(names)} "
                f"differ); {_anew(path)}"
            )
        arrays = {
            name: file.whole(name)
            for name in ("samples/done", *(f"embeddings/{layer}/crc32" for layer in layers))
        }
        if (
            file.attributes["share"] != share.describe()
            or {found.shape for found in arrays.values()} != {(len(share.span),)}
            or not arrays["samples/done"].all()
        ):
            raise FeatureFileError(
                f"{shard}: cannot be joined, it does not hold share {share.describe()}; "
                f"{_anew(path)}"
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

    joined = h5py.VirtualLayout(shape(layout), TYPES[layout.storage])
    for share in shares:
        inside = shape(layout.within(share.span))
        if inside[0]:
            start = share.span.start
            source = h5py.VirtualSource(
                shards[share.rank].name, f"embeddings/{layer}/{name}", inside
            )
            joined[start : start + inside[0]] = source
    group.create_virtual_dataset(name, joined)


def _anew(path: Path) -> str:
    return f"remove {path.name}.shard* to start anew"
