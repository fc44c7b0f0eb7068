"""Opens what is scored: files by their format, the groups of samples, the processes of torchrun.

Files are described, and refused, without torch; only what reads their numbers imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lidar_cli.errors import InputError, SettingsError
from lidar_cli.features.arrays import (
    ArrayForm,
    check_not_sparse,
    read_npy,
    read_npz,
    with_size_note,
)
from lidar_cli.features.embeddings import Embeddings, Names
from lidar_cli.features.reader import read_hdf5
from lidar_cli.features.schema import OWN_LAYER, ids_digest
from lidar_cli.runtime.device import RankInfo
from lidar_cli.runtime.files import NotAFile, did_you_mean, is_hdf5, open_regular
from lidar_cli.scoring.grouped import group_rows, read_ids
from lidar_cli.settings import OrderSettings, RankSettings, ScoreSettings

if TYPE_CHECKING:
    from lidar_cli.scoring.intervals import Grouping
    from lidar_cli.scoring.process_group import ProcessGroup


@contextmanager
def open_process_group(rank_info: RankInfo) -> Iterator[ProcessGroup | None]:
    """The processes that torchrun started; None if there is only this one. Raises InputError."""
    if rank_info.ranks == 1:
        yield None
        return
    from lidar_cli.scoring.process_group import ProcessGroup

    process_group = ProcessGroup(rank_info)
    try:
        yield process_group
    finally:
        process_group.close()


def open_groups(settings: ScoreSettings | RankSettings) -> Grouping | None:
    """The groups of samples for `--groups`, None without it.

    The table may be a pipe, which can be read only once: call this once for all files.
    Raises InputError if the table cannot be used, SettingsError if no intervals are requested.
    """
    if settings.groups is None:
        return None
    if settings.confidence is None:
        raise SettingsError("--groups concerns intervals; add --confidence 0.95")
    from lidar_cli.scoring.intervals import Grouping

    return Grouping(settings.groups)


def open_on_all_ranks(
    path: Path | Embeddings, settings: ScoreSettings, process_group: ProcessGroup | None
) -> list[Embeddings]:
    """As `open_embeddings`; of several processes, all raise the error of any."""
    with process_group.raise_on_any_rank() if process_group else nullcontext():
        return open_embeddings(path, settings)


def open_embeddings(
    path: Path | Embeddings, settings: ScoreSettings | OrderSettings
) -> list[Embeddings]:
    """The embeddings of each chosen layer of a file; their numbers are not read yet.

    path: a file, or embeddings in memory. Raises InputError or FeatureFileError.
    """
    layers = [path] if isinstance(path, Embeddings) else _read_file(path, settings)
    named = [with_ids(embeddings, settings.ids) for embeddings in layers]
    if settings.group_by is not None:
        named = [group_rows(embeddings) for embeddings in named]
    return [with_size_note(embeddings) for embeddings in named]


def _read_file(path: Path, settings: ScoreSettings | OrderSettings) -> list[Embeddings]:
    """The embeddings in a file by its format. Raises InputError or FeatureFileError."""
    if path.is_dir():
        raise InputError(f"{path}: is a directory; score takes files, rank takes directories")
    try:
        hdf5 = is_hdf5(path)
        with open_regular(path) as file:
            start = file.read(9)
    except NotAFile as error:
        raise InputError(
            f"{path}: {error.strerror}; expected HDF5, .npy, .npz, .pt or .safetensors"
        ) from error
    except FileNotFoundError as error:
        message = f"{path}: no such file{did_you_mean(path)}"
        raise InputError(message, code="no-such-file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}") from error
    check_not_sparse(path)
    form = ArrayForm(settings.dataset, settings.views_per_sample, settings.axes)
    return read_hdf5(path, settings.layer, form) if hdf5 else [_read_array(path, start, form)]


def open_array(path: Path | Embeddings, settings: OrderSettings) -> Embeddings:
    """An array, of another program or in memory, as `rank` takes it: one layer, `embedding`.

    Raises InputError if the file holds no array of embeddings.
    """
    (embeddings,) = open_embeddings(path, settings)
    record: dict[str, Any] = {"layers": [OWN_LAYER], "storage": "float32"}
    names = embeddings.names() if embeddings.names else None
    if names is not None and names.named:
        record["samples_sha256"] = ids_digest(names.ids)
    return replace(embeddings, layer=OWN_LAYER, provenance=record)


def open_layer(path: Path | Embeddings, settings: OrderSettings) -> Embeddings:
    """One layer of a feature file, or an array. Raises as `read_hdf5` and `open_array`."""
    if isinstance(path, Path) and settings.dataset is None and is_hdf5(path):
        form = ArrayForm(None, settings.views_per_sample, settings.axes)
        (embeddings,) = read_hdf5(path, settings.layer, form)
        if embeddings.provenance:
            return embeddings
    return open_array(path, settings)


def with_ids(embeddings: Embeddings, file: Path | None) -> Embeddings:
    """Embeddings whose samples have the names in `file`, if it is given.

    Raises InputError if it cannot be read, or holds another number of names, or one twice.
    """
    if file is None or embeddings.provenance:
        return embeddings
    ids = read_ids(file)
    count = len(embeddings.span)
    distinct = len(set(ids))
    if len(ids) != count or (distinct < count and embeddings.views is not None):
        raise InputError(
            f"--ids {file}: {len(ids)} ids, {distinct} of them distinct; expected one for "
            f"each of the {count} samples of {embeddings.file}"
        )
    labels = embeddings.names().labels if embeddings.names else None
    return replace(embeddings, names=lambda: Names(ids, labels))


def _read_array(path: Path, start: bytes, form: ArrayForm) -> Embeddings:
    """The embeddings of a .npy, .npz, .pt or .safetensors file, recognised by its first bytes."""
    embeddings = None
    if start.startswith(b"\x93NUMPY"):
        return read_npy(path, form)
    if start.startswith(b"PK"):
        embeddings = read_npz(path, form)
    if embeddings is not None:
        return embeddings
    is_safetensors = start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**32
    if start.startswith((b"PK", b"\x80")) or is_safetensors:
        from lidar_cli.checkpoints.reading.arrays import read_tensors

        return read_tensors(path, form)
    raise InputError(
        f"{path}: not a format that is known here (expected HDF5, .npy, .npz, .pt or .safetensors)"
    )
