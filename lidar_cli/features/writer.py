"""Writes one feature file, or a shard of one; an interrupted run can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from lidar_cli.core.dense import DenseParts
from lidar_cli.errors import DegenerateFeatures, FeatureFileError, InUse, Unresumable, first_line
from lidar_cli.features.hdf5 import (
    DAMAGE,
    HDF5Contents,
    open_hdf5,
    provenance_of,
    walk_everything,
)
from lidar_cli.features.schema import (
    FORMAT,
    NO_VIEWS,
    SHARD_FORMAT,
    Layout,
    Share,
    allocate,
    check_space,
    check_unlocked,
    checksums_of,
    differing_fields,
    in_use_error,
    partial_path,
    reserve,
    revision_of,
    write_metadata,
)
from lidar_cli.runtime.files import irregular_kind, is_hdf5, is_stream, rename_exclusively
from lidar_cli.runtime.sandbox import stamp_of


class FeatureWriter:
    """Writes a feature file; samples may come in any order.

    span: the samples in the file: those of a share, or all.
    Until a sample is done, the file is NAME.partial.begun, which reserves space; it is removed
    after a failure, or by the next writer. A context manager; leaving it without `finish` keeps
    NAME.partial for `resume`.
    """

    def __init__(
        self, path: Path, partial: Path, file: h5py.File, overwrite: bool, share: Share | None
    ) -> None:
        self.path = path
        self._partial = partial  # current name of the file
        self._file = file
        self._overwrite = overwrite
        self.done: np.ndarray = file["samples/done"][:].astype(bool)  # [len(span)]
        self.span = share.span if share else range(len(self.done))

    @classmethod
    def create(
        cls,
        path: Path,
        layout: Layout,
        ids: Sequence[str],
        labels: Sequence[int] | None,
        provenance: Mapping[str, Any],
        *,
        share: Share | None = None,
        bad: Sequence[tuple[str, str]] = (),
        overwrite: bool = False,
    ) -> FeatureWriter:
        """A writer for a new file with all datasets allocated.

        ids: names of the samples [N]; labels: class numbers [N], -1 unknown, or None.
        share: the samples to write, all if None.
        bad: name and fault of each image that was left out.
        Raises FeatureFileError if the output or its partial file exists and `overwrite` is false,
        or the directory cannot be written; InUse if another process is writing it.
        """
        partial = partial_path(path)
        begun = begun_path(partial)
        check_absent(path, overwrite)
        if share is not None:
            layout, ids = layout.within(share.span), ids[share.span.start : share.span.stop]
            labels = labels and labels[share.span.start : share.span.stop]
        try:
            if overwrite:
                _remove_unlocked(partial)
            _remove_unlocked(begun)
            _check_unlinked(begun)
            check_space(partial, layout, [*ids, *chain(*bad)])
            file = h5py.File(begun, "x")
        except FileExistsError as error:
            raise in_use_error(partial) from error
        except OSError as error:
            why = error.strerror or first_line(error)
            raise FeatureFileError(
                f"{partial}: cannot be created: {why}", code="cannot-be-created"
            ) from error
        try:
            write_metadata(file, ids, labels, bad, provenance, share)
            allocate(file, layout)
            reserve(file)
        except BaseException as error:
            _close(file)
            begun.unlink(missing_ok=True)
            if isinstance(error, (OSError, RuntimeError)):
                raise _unwritable(partial, error) from error
            raise
        return cls(path, begun, file, overwrite, share)

    @classmethod
    def resume(
        cls,
        path: Path,
        layout: Layout,
        provenance: Mapping[str, Any],
        *,
        share: Share | None = None,
        overwrite: bool = False,
    ) -> FeatureWriter:
        """A writer for the existing NAME.partial; samples with a wrong checksum are not done.

        Raises Unresumable, and leaves the file unchanged, if it was begun with other settings or is
        not a partial feature file; InUse if another process is writing it.
        """
        partial = partial_path(path)
        advice = _restart_advice(share)
        layout = layout.within(share.span) if share else layout
        try:
            _check_unlinked(partial)
            if not is_hdf5(partial):
                raise OSError("it is not an HDF5 file")
            begun = _check_begun(partial, layout, provenance, share)
            if stamp_of(partial.stat()) != begun.stamp:
                raise Unresumable(
                    f"{partial}: changed while it was read; run it again", code="changed"
                )
            file = h5py.File(partial, "r+")  # this writes, so only after the checks
        except (InUse, Unresumable):
            raise
        except FeatureFileError as error:
            raise Unresumable(f"{error}; {advice}", code=error.code) from error
        except BlockingIOError as error:
            raise in_use_error(partial) from error
        except OSError as error:
            raise Unresumable(
                f"{partial}: cannot be opened: {first_line(error)}; {advice}"
            ) from error
        try:
            try:
                reserve(file)
            except OSError as error:  # the disk is full; the file is not damaged
                raise _unwritable(partial, error) from error
            writer = cls(path, partial, file, overwrite, share)
            writer._verify(layout.widths)
        except BaseException as error:
            file.close()
            if isinstance(error, DAMAGE):
                raise Unresumable(f"{partial}: damaged: {first_line(error)}; {advice}") from error
            raise
        return writer

    def write(
        self, samples: Sequence[int], views: Mapping[str, Tensor], clean: Mapping[str, Tensor]
    ) -> None:
        """Write the embeddings of `samples`, contiguous indices, and mark them done.

        views: layer -> [c, q, d] of the samples below n; clean: layer -> [b, d].
        Raises DegenerateFeatures if a value is not finite, or overflows float16; FeatureFileError
        if the disk is full.
        """
        first, last = samples[0] - self.span.start, samples[-1] + 1 - self.span.start
        try:
            for layer, rows in clean.items():
                group = self._file["embeddings"][layer]
                storage = group["clean"].dtype.name
                stored_clean = as_storage_type(rows, storage, layer, samples[0]).cpu().numpy()
                stored_views = (
                    as_storage_type(views[layer], storage, layer, samples[0]).cpu().numpy()
                )
                if len(stored_views):
                    group["views"][first : first + len(stored_views)] = stored_views
                group["clean"][first:last] = stored_clean
                group["crc32"][first:last] = checksums_of(stored_views, stored_clean)
            self._file.flush()
            self._file["samples/done"][first:last] = 1
            self._file.flush()
            self._name_partial()
        except FileExistsError as error:
            raise in_use_error(partial_path(self.path)) from error
        except (OSError, RuntimeError) as error:
            raise _unwritable(self._partial, error) from error
        self.done[first:last] = True

    def write_dense(self, dense: DenseParts | str) -> None:
        """Write the parts of DSE, or why there are none. Raises FeatureFileError."""
        try:
            record = {"reason": dense} if isinstance(dense, str) else dense._asdict()
            self._file.attrs["dse"] = json.dumps(record)
            self._file.flush()
        except (OSError, RuntimeError) as error:
            raise _unwritable(self._partial, error) from error

    def finish(self) -> Path:
        """Give the complete file its final name. Raises FeatureFileError if rows are missing."""
        missing = int((~self.done).sum())
        if missing:
            raise FeatureFileError(
                f"{self._partial}: {missing} samples were never written", code="incomplete"
            )
        inode = self._inode()
        try:
            self._file.close()
        except (OSError, RuntimeError) as error:
            raise _unwritable(self._partial, error) from error
        check_absent(self.path, self._overwrite, partial_too=False)
        # Some file systems ignore locks: do not rename the file of another writer.
        if not self._partial.exists() or self._partial.stat().st_ino != inode:
            raise in_use_error(self._partial)
        self._partial.replace(self.path)
        return self.path

    def discard(self) -> None:
        """Close the file and remove it."""
        _close(self._file)
        self._partial.unlink(missing_ok=True)

    def _name_partial(self) -> None:
        """Rename NAME.partial.begun to NAME.partial, because a sample is done.

        Raises FileExistsError or InUse if another process has created or replaced it.
        """
        partial = partial_path(self.path)
        if self._partial == partial:
            return
        if not self._partial.exists() or self._partial.stat().st_ino != self._inode():
            raise in_use_error(partial)
        rename_exclusively(self._partial, partial)
        self._partial = partial

    def _inode(self) -> int:
        return os.fstat(self._file.id.get_vfd_handle()).st_ino

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *_: object) -> None:
        inode = self._inode() if self._file.id.valid else None
        _close(self._file)
        if inode is not None and self._partial != partial_path(self.path):
            with suppress(OSError):
                if self._partial.stat().st_ino == inode:  # else it belongs to another writer
                    self._partial.unlink()

    def _verify(self, layers: Iterable[str]) -> None:
        """Mark samples whose checksum does not match as not done."""
        done = np.flatnonzero(self.done)
        for start in range(0, len(done), 256):
            for i in done[start : start + 256]:
                for group in (self._file["embeddings"][layer] for layer in layers):
                    with_views = len(group["views"]) if "views" in group else 0
                    views = group["views"][i : i + 1] if i < with_views else NO_VIEWS
                    if checksums_of(views, group["clean"][i : i + 1])[0] != group["crc32"][i]:
                        self.done[i] = False


def _check_begun(
    partial: Path, layout: Layout, provenance: Mapping[str, Any], share: Share | None
) -> HDF5Contents:
    """The contents of a partial file, checked to have the arrays and provenance of these settings.

    Raises FeatureFileError if the file lacks them or is damaged, Unresumable if it was begun with
    other settings, InUse if another process is writing it.
    """
    check_unlocked(partial)
    with open_hdf5(partial, walk_everything) as file:
        begun = provenance_of(file, SHARD_FORMAT if share else FORMAT)
        revisions = revision_of(begun), revision_of(provenance)
        if revisions[0] != revisions[1]:
            raise Unresumable(
                f"{partial}: was begun at embedding revision {revisions[0]}, and this lidar embeds "
                f"at {revisions[1]}; {_restart_advice(share)}"
            )
        other = differing_fields(begun, provenance)
        if share and file.attributes["share"] != share.describe():
            other.append("share")
        if other:
            raise Unresumable(
                f"{partial}: was begun with other settings ({', '.join(other)} differ); "
                f"give those settings again, or {_restart_advice(share)}"
            )
        done = {"samples/done": ((layout.n_clean,), np.dtype(np.uint8))}
        for name, (shape, dtype) in (done | layout.arrays()).items():
            array = file.array(name)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, not {dtype} {shape}")
            if array.offset is None:
                raise ValueError(f"{name} is stored in chunks, which an interrupted run never does")
        return file


def _restart_advice(share: Share | None) -> str:
    return "remove it to start over" if share else "start over with --overwrite"


def check_absent(path: Path, overwrite: bool, partial_too: bool = True) -> None:
    """Raise FeatureFileError if `path` is a directory, or exists and `overwrite` is false.

    Raises InUse if another process is writing it.
    """
    if path.is_dir():
        raise FeatureFileError(f"{path}: is a directory; name a file in it with -o")
    if is_stream(path):
        raise FeatureFileError(f"{path}: a feature file goes to a file; name one with -o")
    if overwrite:
        return
    if os.path.lexists(path):
        raise FeatureFileError(
            f"{path}: exists already; choose another name with -o, or replace it with --overwrite",
            code="exists",
        )
    if not partial_too:
        return
    if begun_path(partial_path(path)).exists():
        check_unlocked(begun_path(partial_path(path)))
    if os.path.lexists(partial_path(path)):
        _check_unlinked(partial_path(path))
        check_unlocked(partial_path(path))
        raise FeatureFileError(
            f"{partial_path(path)}: an interrupted run is here; "
            "continue it with --resume, or start over with --overwrite",
            code="interrupted-run",
        )


def begun_path(partial: Path) -> Path:
    """The name of a feature file until it holds a finished sample."""
    return partial.with_name(partial.name + ".begun")


def remove_begun(begun: Path) -> None:
    """Remove NAME.partial.begun of a killed process; keep one that another process is writing."""
    with suppress(InUse, OSError):
        _remove_unlocked(begun)


def _remove_unlocked(partial: Path) -> None:
    """Remove the unfinished file of a process that has ended, if it exists.

    Raises InUse if it is being written, FeatureFileError if it is a link or not a file.
    """
    if os.path.lexists(partial):
        _check_unlinked(partial)
        check_unlocked(partial)
        partial.unlink()


def _check_unlinked(path: Path) -> None:
    """Raise FeatureFileError for a pipe, a device, or a link, which HDF5 would follow."""
    kind = irregular_kind(path, follow=False)
    if kind is not None:
        raise FeatureFileError(
            f"{path}: {kind}, not a file; remove it, or name another with -o", code="not-a-file"
        )


def _close(file: h5py.File) -> None:
    try:
        file.close()
    except (OSError, RuntimeError):
        return  # rows that were not flushed are not marked done


def _unwritable(partial: Path, error: BaseException) -> FeatureFileError:
    return FeatureFileError(
        f"{partial}: cannot be written: {first_line(error)}; free some space, then --resume"
    )


def as_storage_type(rows: Tensor, storage: str, layer: str, first: int) -> Tensor:
    """Embeddings [c, ...] of samples first, first + 1, ... in the number type `storage`.

    Raises DegenerateFeatures if one is not finite, or overflows float16.
    """
    values = rows.detach().float()
    finite = values.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        at = first + int((~finite).nonzero()[0])
        raise DegenerateFeatures(
            f"layer {layer}: the embedding of sample {at} holds NaN or Inf; "
            "check the checkpoint, or try --precision float32",
            code="not-finite",
        )
    largest = torch.finfo(torch.float16).max
    if storage == "float16" and len(values) and values.abs().max() > largest:
        raise DegenerateFeatures(
            f"layer {layer}: a value of {float(values.abs().max()):.3g} overflows float16 "
            "(at most 65504); use --storage float32",
            code="float16-overflow",
        )
    return values.to(getattr(torch, storage))
