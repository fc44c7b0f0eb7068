"""The HDF5 feature file: create, write at an index, resume, read whole samples in chunks.

    /embeddings/<layer>/views   (n, q, d)   augmented; absent where q = 0
    /embeddings/<layer>/clean   (N, d)      un-augmented; N >= n, the first n those of `views`
    /embeddings/<layer>/crc32   (N,)        of a sample's views, then its clean embedding
    /samples/id, /samples/label, /samples/done

Datasets are contiguous and allocated at creation, in HDF5's default format, so that a killed
writer leaves a file that plain `h5py.File(path)` opens. It is written as NAME.partial and renamed
when every sample is done: a file under its final name is complete. Nothing else knows HDF5.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from lidar_cli.arrays import arrange, choose
from lidar_cli.embeddings import Chunk, Embeddings, Stored
from lidar_cli.errors import DegenerateFeatures, FeatureFileError, InUse, first_line

FORMAT = "lidar-features"
VERSION = 1
_TYPES = {"float32": np.float32, "float16": np.float16}
_DAMAGE = (
    KeyError,
    ValueError,
    AttributeError,
    TypeError,
    OSError,
    RuntimeError,
)  # h5py's, on a broken file


@dataclass(frozen=True)
class Layout:
    """What a feature file will hold, known before the first embedding is."""

    widths: Mapping[str, int]  # layer -> d
    n_samples: int  # n, with views
    n_views: int  # q
    n_clean: int  # N, with a clean embedding
    storage: str = "float32"


class FeatureWriter:
    """One process writing one feature file, sample by sample, in any order.

    A context manager; leaving it without `finish` keeps NAME.partial for `resume`.
    """

    def __init__(self, path: Path, partial: Path, file: h5py.File, overwrite: bool) -> None:
        self.path = path
        self._partial = partial
        self._file = file
        self._overwrite = overwrite
        self.done: np.ndarray = file["samples/done"][:].astype(bool)  # [N]

    @classmethod
    def create(
        cls,
        path: Path,
        layout: Layout,
        ids: Sequence[str],
        labels: Sequence[int] | None,
        provenance: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> FeatureWriter:
        """A new NAME.partial with all datasets allocated.

        ids: a name a sample, [N]; labels: class numbers [N], -1 unknown, or None.
        Raises FeatureFileError if the output or its partial file exists and is not to be replaced,
        or the directory cannot be written; InUse if another process is writing it.
        """
        partial = partial_path(path)
        check_absent(path, overwrite)
        try:
            if overwrite and partial.exists():
                _check_unlocked(partial)
                partial.unlink()
            _check_space(partial, layout)
            file = h5py.File(partial, "x")
        except FileExistsError as error:
            raise _in_use(partial) from error
        except OSError as error:
            raise FeatureFileError(f"{partial}: cannot be created: {first_line(error)}") from error
        try:
            _allocate(file, layout, ids, labels, provenance)
        except BaseException as error:
            _close(file)
            partial.unlink(missing_ok=True)
            if isinstance(error, (OSError, RuntimeError)):
                raise _unwritable(partial, error) from error
            raise
        return cls(path, partial, file, overwrite)

    @classmethod
    def resume(
        cls, path: Path, provenance: Mapping[str, Any], *, overwrite: bool = False
    ) -> FeatureWriter:
        """The existing NAME.partial, with every finished row's checksum verified.

        A row whose checksum does not match is to be computed again.
        Raises FeatureFileError if the file was begun with other settings, or is not one of ours;
        InUse if another process is writing it.
        """
        partial = partial_path(path)
        try:
            if not is_hdf5(partial):  # h5py would take an empty file for a new one
                raise OSError("it does not begin as HDF5 files do")
            file = h5py.File(partial, "r+")
        except BlockingIOError as error:
            raise _in_use(partial) from error
        except OSError as error:
            raise FeatureFileError(
                f"{partial}: cannot be opened: {first_line(error)}; start anew with --overwrite"
            ) from error
        try:
            found = _provenance(file, partial)
            wanted = _as_stored(provenance)
            differing = sorted(
                key
                for key in found.keys() | wanted.keys()
                # The path may be spelt otherwise; sha256 says which checkpoint it is.
                if key != "checkpoint" and found.get(key) != wanted.get(key)
            )
            if differing:
                raise FeatureFileError(
                    f"{partial}: was begun with other settings ({', '.join(differing)} differ); "
                    "give those settings again, or start anew with --overwrite"
                )
            writer = cls(path, partial, file, overwrite)
            writer._verify()
        except BaseException as error:
            file.close()
            if isinstance(error, _DAMAGE):
                raise FeatureFileError(
                    f"{partial}: damaged: {first_line(error)}; start anew with --overwrite"
                ) from error
            raise
        return writer

    def write(
        self, samples: Sequence[int], views: Mapping[str, Tensor], clean: Mapping[str, Tensor]
    ) -> None:
        """Write the embeddings of `samples`, a contiguous run of indices, and mark them done.

        views: layer -> [c, q, d] for those of the samples that are below n; clean: layer -> [b, d].
        Raises DegenerateFeatures if a value is not finite, or overflows float16; FeatureFileError
        if the disk is full.
        """
        first, last = samples[0], samples[-1] + 1
        try:
            for layer, rows in clean.items():
                group = self._file["embeddings"][layer]
                storage = group["clean"].dtype.name
                stored_clean = as_numbers(rows, storage, layer, first).cpu().numpy()
                stored_views = as_numbers(views[layer], storage, layer, first).cpu().numpy()
                if len(stored_views):
                    group["views"][first : first + len(stored_views)] = stored_views
                group["clean"][first:last] = stored_clean
                group["crc32"][first:last] = _checksums(stored_views, stored_clean)
            self._file.flush()
            self._file["samples/done"][first:last] = 1
            self._file.flush()
        except (OSError, RuntimeError) as error:
            raise _unwritable(self._partial, error) from error
        self.done[first:last] = True

    def finish(self) -> Path:
        """Give the complete file its final name. Raises FeatureFileError if rows are missing."""
        missing = int((~self.done).sum())
        if missing:
            raise FeatureFileError(f"{self._partial}: {missing} samples were never written")
        # Locks do not hold on every file system: never give another writer's file the name.
        own = os.fstat(self._file.id.get_vfd_handle()).st_ino
        if not self._partial.exists() or self._partial.stat().st_ino != own:
            raise _in_use(self._partial)
        try:
            self._file.close()
        except (OSError, RuntimeError) as error:
            raise _unwritable(self._partial, error) from error
        check_absent(self.path, self._overwrite, partial_too=False)
        self._partial.replace(self.path)
        return self.path

    def discard(self) -> None:
        """Give up what was written: close and remove NAME.partial."""
        _close(self._file)
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._file)

    def _verify(self) -> None:
        done = np.flatnonzero(self.done)
        for start in range(0, len(done), 256):
            for i in done[start : start + 256]:
                for group in self._file["embeddings"].values():
                    views = group["views"][i : i + 1] if i < _with_views(group) else _NOTHING
                    if _checksums(views, group["clean"][i : i + 1])[0] != group["crc32"][i]:
                        self.done[i] = False


def partial_path(path: Path) -> Path:
    """Where a feature file stands until it is complete."""
    return path.with_name(path.name + ".partial")


def check_absent(path: Path, overwrite: bool, partial_too: bool = True) -> None:
    """Raise FeatureFileError if writing `path` would replace something unasked, or a directory."""
    if path.is_dir():
        raise FeatureFileError(f"{path}: is a directory; name a file in it with -o")
    if overwrite:
        return
    if path.exists():
        raise FeatureFileError(
            f"{path}: exists already; choose another name with -o, or replace it with --overwrite"
        )
    if partial_too and partial_path(path).exists():
        raise FeatureFileError(
            f"{partial_path(path)}: an interrupted run is here; "
            "continue it with --resume, or start anew with --overwrite"
        )


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


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, also behind a user block. Raises OSError if it cannot be opened."""
    with path.open("rb"):
        return bool(h5py.is_hdf5(path))


def read_provenance(path: Path) -> dict[str, Any]:
    """The provenance of a complete feature file.

    Raises FeatureFileError if it is not a feature file, or not complete.
    """
    with _open(path) as file:
        found = _provenance(file, path)
        _check_complete(file, path)
        return found


def read_interrupted(path: Path) -> dict[str, Any]:
    """The provenance of the partial file that an interrupted run left for `path`, or {} if none.

    Raises FeatureFileError if it is not a feature file, InUse if another process is writing it.
    """
    partial = partial_path(path)
    if not partial.exists():
        return {}
    _check_unlocked(partial)
    try:
        with _open(partial) as file:
            return _provenance(file, partial)
    except FeatureFileError as error:
        raise FeatureFileError(f"{error}; start anew with --overwrite") from error


def read_labels(path: Path) -> np.ndarray | None:
    """Class numbers [N] of the samples, -1 unknown, or None where the data has none."""
    with _open(path) as file:
        _provenance(file, path)
        return np.asarray(file["samples/label"][:]) if "label" in file["samples"] else None


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
    with _open(path) as file:
        if dataset is not None or file.attrs.get("format") != FORMAT:
            return [_foreign(file, path, dataset, views_per_sample)]
        provenance = _provenance(file, path)
        _check_complete(file, path)
        known = list(file["embeddings"])
        wanted = known if layers == "auto" else [name.strip() for name in layers.split(",")]
        for name in wanted:
            if name not in known:
                raise FeatureFileError(
                    f"{path}: no layer {name!r}; the file holds {', '.join(known)}"
                )
        return [_layer(file, path, name, provenance) for name in wanted]


def _layer(file: h5py.File, path: Path, name: str, provenance: dict[str, Any]) -> Embeddings:
    group = file["embeddings"][name]
    checksums = group["crc32"][:]
    clean = group["clean"].shape
    views = group["views"].shape if "views" in group else (0, 0, *clean[1:])
    if len(views) != 3 or clean != (len(checksums), views[2]) or views[0] > clean[0]:
        raise ValueError(f"layer {name}: views {views}, clean {clean}, {len(checksums)} checksums")

    def verify(chunk: Chunk) -> None:
        assert chunk.clean is not None
        views = _NOTHING if chunk.views is None else chunk.views.numpy()
        found = _checksums(views, chunk.clean.numpy())
        bad = np.flatnonzero(found != checksums[chunk.start : chunk.start + len(found)])
        if len(bad):
            raise FeatureFileError(
                f"{path}: layer {name}: the embedding of sample {chunk.start + bad[0]} does not "
                f"match its checksum ({len(bad)} such here); the file is damaged, extract it again"
            )

    return Embeddings(
        str(path),
        name,
        _stored(path, group["views"]) if "views" in group else None,
        _stored(path, group["clean"]),
        provenance=provenance,
        verify=verify,
        content=hashlib.sha256(checksums.tobytes()).hexdigest(),
    )


def _foreign(
    file: h5py.File, path: Path, dataset: str | None, views_per_sample: int | None
) -> Embeddings:
    arrays: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: object) -> None:
        if not isinstance(item, h5py.Dataset) or item.shape is None:
            return
        if item.dtype.kind == "f" and item.dtype.itemsize <= 8:
            arrays[name] = item

    file.visititems(visit)
    dataset = dataset.strip("/") if dataset is not None else None
    if dataset is not None and dataset not in arrays and dataset in file:
        visit(dataset, file[dataset])  # behind a link, which a visit does not follow
    name = choose(path, {key: item.shape for key, item in arrays.items()}, dataset)
    return arrange(path, name, _stored(path, arrays[name]), views_per_sample)


def _stored(path: Path, dataset: h5py.Dataset) -> Stored:
    name = dataset.name

    def read(start: int, stop: int) -> Tensor:
        # Opened for each chunk: an idle reader must not hold a file that a writer may replace.
        try:
            with h5py.File(path, "r") as file:
                rows = file[name][start:stop]
                return torch.from_numpy(rows.astype(rows.dtype.newbyteorder("="), copy=False))
        except OSError as error:
            raise FeatureFileError(f"{path}: {name} cannot be read: {first_line(error)}") from error

    return Stored(dataset.shape, dataset.dtype.itemsize, read)


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """The file, read-only; what is missing or malformed inside it becomes a FeatureFileError."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if path.exists() and not is_hdf5(path):
            raise FeatureFileError(f"{path}: not an HDF5 file; expected a feature file") from error
        raise FeatureFileError(f"{path}: cannot be opened: {first_line(error)}") from error
    with file:
        try:
            yield file
        except _DAMAGE as error:
            raise FeatureFileError(
                f"{path}: damaged: {first_line(error)}; extract it again"
            ) from error


def _provenance(file: h5py.File, path: Path) -> dict[str, Any]:
    if file.attrs.get("format") != FORMAT:
        raise FeatureFileError(
            f"{path}: an HDF5 file, but not a feature file (no format attribute)"
        )
    version = file.attrs.get("version")
    if version != VERSION:
        raise FeatureFileError(
            f"{path}: feature file version {version}, this lidar reads {VERSION}; extract it again"
        )
    found = json.loads(file.attrs["provenance"])
    if not isinstance(found, dict) or not isinstance(found.get("sha256", ""), str):
        raise ValueError("provenance is not the record of an extraction")
    return found


def _check_complete(file: h5py.File, path: Path) -> None:
    done = file["samples/done"][:]
    if not done.all():
        raise FeatureFileError(
            f"{path}: incomplete, {int(done.sum())} of {len(done)} samples; "
            "finish it with lidar extract --resume"
        )


def _allocate(
    file: h5py.File,
    layout: Layout,
    ids: Sequence[str],
    labels: Sequence[int] | None,
    provenance: Mapping[str, Any],
) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["version"] = VERSION
    file.attrs["provenance"] = json.dumps(provenance, sort_keys=True)
    n, q, clean = layout.n_samples, layout.n_views, layout.n_clean
    numbers = _TYPES[layout.storage]
    for layer, d in layout.widths.items():
        group = file.create_group(f"embeddings/{layer}")
        if q:
            _create(group, "views", (n, q, d), numbers)
        _create(group, "clean", (clean, d), numbers)
        _create(group, "crc32", (clean,), np.uint32)
    samples = file.create_group("samples")
    samples.create_dataset("id", data=list(ids), dtype=h5py.string_dtype("utf-8"))
    if labels is not None:
        samples.create_dataset("label", data=np.asarray(labels, np.int64))
    _create(samples, "done", (clean,), np.uint8)
    file.flush()


def _create(group: h5py.Group, name: str, shape: tuple[int, ...], numbers: Any) -> None:
    # Early allocation puts every row at its final offset, so that a crash loses no finished row.
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(numbers))
    h5py.h5d.create(group.id, name.encode(), kind, space, properties)


_NOTHING = np.empty((0, 0, 0), np.float32)


def _with_views(group: h5py.Group) -> int:
    return len(group["views"]) if "views" in group else 0


def _checksums(views: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """CRC-32 a sample [b] of its views' bytes (if it has any), then its clean embedding's."""
    sums = np.empty(len(clean), np.uint32)
    for i, row in enumerate(np.ascontiguousarray(clean)):
        start = zlib.crc32(np.ascontiguousarray(views[i]).data) if i < len(views) else 0
        sums[i] = zlib.crc32(row.data, start)
    return sums


def _as_stored(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance after a round trip through JSON, where tuples become lists."""
    stored: dict[str, Any] = json.loads(json.dumps(provenance))
    return stored


def _check_space(partial: Path, layout: Layout) -> None:
    """Raise FeatureFileError if the file will not fit, before anything is computed."""
    rows = layout.n_samples * layout.n_views + layout.n_clean
    size = sum(layout.widths.values()) * rows * np.dtype(_TYPES[layout.storage]).itemsize
    free = shutil.disk_usage(partial.parent).free
    if size > free:
        raise FeatureFileError(
            f"{partial}: will take {size / 2**30:,.2f} GB and {free / 2**30:,.2f} GB are free; "
            "free some space, lower -n or -q, or use --storage float16"
        )


def _check_unlocked(partial: Path) -> None:
    """Raise InUse if another process has the file open for writing."""
    try:
        h5py.File(partial, "r+").close()
    except BlockingIOError as error:
        raise _in_use(partial) from error
    except OSError:
        return  # damaged, and nobody's


def _close(file: h5py.File) -> None:
    try:
        file.close()
    except (OSError, RuntimeError):
        return  # what could not be flushed was never vouched for


def _in_use(partial: Path) -> InUse:
    return InUse(f"{partial}: another process is writing it; wait for it, then run again")


def _unwritable(partial: Path, error: BaseException) -> FeatureFileError:
    return FeatureFileError(
        f"{partial}: cannot be written: {first_line(error)}; free some space, then --resume"
    )
