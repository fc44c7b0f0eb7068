"""Writes one feature file, or a shard of one; an interrupted run can be resumed."""

from __future__ import annotations

import json
import numbers
import operator
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from lidar_cli.core.dense import DenseParts
from lidar_cli.errors import (
    DegenerateFeatures,
    FeatureFileError,
    InUse,
    SettingsError,
    Unresumable,
    first_line,
    shortened,
)
from lidar_cli.features.hdf5 import (
    COUNTS,
    DAMAGE,
    HDF5Contents,
    open_hdf5,
    provenance_of,
    walk_everything,
)
from lidar_cli.features.schema import (
    FORMAT,
    NO_VIEWS,
    OWN_LAYER,
    SHARD_FORMAT,
    Layout,
    Share,
    allocate,
    check_space,
    check_unlocked,
    checksums_of,
    differing_fields,
    ids_digest,
    in_use_error,
    parse_provenance,
    partial_path,
    reserve,
    revision_of,
    write_metadata,
)
from lidar_cli.runtime.files import irregular_kind, is_hdf5, is_stream, rename_exclusively
from lidar_cli.runtime.sandbox import stamp_of

Samples = Tensor | list[Tensor]  # [b, ...], or b of unequal numbers of views
Rows = Tensor | np.ndarray | Sequence[Any]  # embeddings of several samples
MAX_BYTES = 2**26  # of embeddings that `write_features` writes at a time
NO_CLEAN = np.empty((1, 0), np.float32)


class FeatureWriter:
    """Writes a feature file, batch by batch; samples may come in any order.

    The end of the `with` block gives the complete file its name. Until then it is NAME.partial,
    which is resumed by the same call with `resume=True`.

    Args:
        path: the file to write.
        n_samples: n.
        n_views: q, the augmented views of each sample, or if they are unequal q_i [n], each at
            least 2; 0 if there are only clean embeddings.
        dim: d, or d of each layer by its name.
        clean: whether each sample has an un-augmented embedding too; by default only if q = 0.
        layer: the name of the layer, if `dim` is a number.
        ids: names of the samples [n], by which files are compared sample by sample; by default
            their numbers.
        labels: class numbers [n], -1 unknown, which no score uses.
        provenance: what made the embeddings, such as {"checkpoint": "a.pt", "data": "EEG"}.
        storage: float32, or float16 for half the size.
        resume: resume NAME.partial if there is one; `done` says which samples it holds.
        overwrite: replace the file, or NAME.partial.

    Raises:
        SettingsError: if an argument has another form.
        FeatureFileError: if the file exists or cannot be written, or the block ends before every
            sample is written; Unresumable if NAME.partial was begun with other arguments.

    Example:
        >>> import numpy as np, tempfile
        >>> views = np.random.default_rng(0).normal(size=(100, 4, 16))
        >>> path = f"{tempfile.mkdtemp()}/feats.h5"
        >>> with FeatureWriter(path, n_samples=100, n_views=4, dim=16) as writer:
        ...     for batch in np.array_split(np.random.default_rng(1).permutation(100), 5):
        ...         writer.write(batch, views[batch])
        >>> writer.path.name
        'feats.h5'

    References:
        `lidar explain file-format`: the format, for programs that write it without this package.
    """

    # Until a sample is done, the file is NAME.partial.begun, which reserves space; it is removed
    # after a failure, or by the next writer.
    path: Path
    done: np.ndarray  # [len(span)], whether a sample is written
    span: range  # the samples in the file: those of a share, or all

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_samples: int,
        dim: int | Mapping[str, int],
        n_views: int | Sequence[int] = 0,
        clean: bool | None = None,
        layer: str = OWN_LAYER,
        ids: Sequence[str] | None = None,
        labels: Sequence[int] | None = None,
        provenance: Mapping[str, Any] | None = None,
        storage: str = "float32",
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        widths = dim if isinstance(dim, Mapping) else {layer: dim}
        q, counts = _view_counts(n_views, n_samples)
        has_clean = not q if clean is None else clean
        layout = Layout(dict(widths), n_samples, q, n_samples, storage, has_clean, counts)
        names = check_samples(layout, ids, labels)
        record = own_provenance(layout, ids, labels, provenance or {})
        opened = Path(path)
        if resume and partial_path(opened).exists():
            self._resume(opened, layout, record, None, overwrite)
        else:
            self._create(
                opened, layout, None if ids is None else names, labels, record, None, (), overwrite
            )
        self._finishes = True
        self._index.update((name, at) for at, name in enumerate(names))

    def _attach(
        self, path: Path, partial: Path, file: h5py.File, overwrite: bool, share: Share | None
    ) -> None:
        self.path = path
        self._partial = partial  # current name of the file
        self._file = file
        self._overwrite = overwrite
        self._index: dict[str, int] = {}  # of samples by id
        self._finishes = False  # whether the end of the `with` block finishes the file
        self.done = file["samples/done"][:].astype(bool)
        self._first_rows: np.ndarray | None = None  # of samples, and the end of all [n + 1]
        if COUNTS in file:
            self._first_rows = np.concatenate([[0], np.cumsum(file[COUNTS][:])])
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
        writer = cls.__new__(cls)
        writer._create(path, layout, ids, labels, provenance, share, bad, overwrite)
        return writer

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
        writer = cls.__new__(cls)
        writer._resume(path, layout, provenance, share, overwrite)
        return writer

    def _create(
        self,
        path: Path,
        layout: Layout,
        ids: Sequence[str] | None,
        labels: Sequence[int] | None,
        provenance: Mapping[str, Any],
        share: Share | None,
        bad: Sequence[tuple[str, str]],
        overwrite: bool,
    ) -> None:
        partial = partial_path(path)
        begun = begun_path(partial)
        check_absent(path, overwrite)
        if share is not None:
            layout = layout.within(share.span)
            ids = ids and ids[share.span.start : share.span.stop]
            labels = labels and labels[share.span.start : share.span.stop]
        try:
            if overwrite:
                _remove_unlocked(partial)
            _remove_unlocked(begun)
            _check_unlinked(begun)
            check_space(partial, layout, [*(ids or ()), *chain(*bad)])
            file = h5py.File(begun, "x")
        except FileExistsError as error:
            raise in_use_error(partial) from error
        except OSError as error:
            why = error.strerror or first_line(error)
            raise FeatureFileError(
                f"{partial}: cannot be created: {why}", code="cannot-be-created"
            ) from error
        try:
            write_metadata(file, layout.n_clean, ids, labels, bad, provenance, share, layout.counts)
            allocate(file, layout)
            reserve(file)
        except BaseException as error:
            _close(file)
            begun.unlink(missing_ok=True)
            if isinstance(error, (OSError, RuntimeError)):
                raise _unwritable(partial, error) from error
            raise
        self._attach(path, begun, file, overwrite, share)

    def _resume(
        self,
        path: Path,
        layout: Layout,
        provenance: Mapping[str, Any],
        share: Share | None,
        overwrite: bool,
    ) -> None:
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
            self._attach(path, partial, file, overwrite, share)
            self._verify(layout.widths)
        except BaseException as error:
            file.close()
            if isinstance(error, DAMAGE):
                raise Unresumable(f"{partial}: damaged: {first_line(error)}; {advice}") from error
            raise

    def write(
        self,
        samples: Sequence[int] | Sequence[str],
        views: Rows | Mapping[str, Rows] | None = None,
        clean: Rows | Mapping[str, Rows] | None = None,
    ) -> None:
        """Write the embeddings of some samples, and mark them done.

        Args:
            samples: their numbers, or ids [b].
            views: [c, q, d] of those that have views, or by layer: of all, except where `extract`
                embeds further images without views. Of unequal numbers b arrays [q_i, d], or their
                rows [sum q_i, d].
            clean: [b, d], or by layer.

        Raises:
            DegenerateFeatures: if a number is not finite, or overflows float16.
            FeatureFileError: if the disk is full.
            SettingsError: if the shapes are others, or a sample is unknown.
        """
        indices = self._indices(samples)
        parts = self._rows("views", views, indices), self._rows("clean", clean, indices)
        blocks = list(contiguous_blocks(indices))
        try:
            for block in blocks:
                of_views, of_clean = (
                    {layer: rows[block.start : block.stop] for layer, rows in part.items()}
                    for part in parts
                )
                some = range(indices[block.start], indices[block.stop - 1] + 1)
                self._write_block(some, of_views, of_clean)
            self._mark_done(np.asarray(indices) - self.span.start)
        except FileExistsError as error:
            raise in_use_error(partial_path(self.path)) from error
        except (OSError, RuntimeError) as error:
            raise _unwritable(self._partial, error) from error

    def _write_block(
        self, samples: range, views: Mapping[str, Samples], clean: Mapping[str, Samples]
    ) -> None:
        """Write the rows and checksums of contiguous samples."""
        first, last = samples.start - self.span.start, samples.stop - self.span.start
        no_clean = np.empty((len(samples), 0), np.float32)
        for layer, group in self._file["embeddings"].items():
            stored = {
                part: _as_stored(of[layer], group[part].dtype.name, layer, samples.start)
                for part, of in (("views", views), ("clean", clean))
                if layer in of
            }
            for part, rows in stored.items():
                if isinstance(rows, list):
                    assert self._first_rows is not None
                    begin, end = self._first_rows[first], self._first_rows[last]
                    group[part][begin:end] = np.concatenate(rows)
                else:
                    group[part][first : first + len(rows)] = rows
            of_clean = stored.get("clean", no_clean)
            assert isinstance(of_clean, np.ndarray)
            sums = checksums_of(stored.get("views", NO_VIEWS), of_clean)
            group["crc32"][first:last] = sums

    def _mark_done(self, positions: np.ndarray) -> None:
        """Mark samples done whose rows have been written, once these are on the disk."""
        self._file.flush()
        done = self.done.copy()
        done[positions] = True
        first, last = int(positions.min()), int(positions.max()) + 1
        self._file["samples/done"][first:last] = done[first:last].astype(np.uint8)
        self._file.flush()
        self._name_partial()
        self.done[:] = done

    def _indices(self, samples: Sequence[int] | Sequence[str]) -> Sequence[int]:
        """Numbers of samples that are given by number or by id. Raises SettingsError."""
        within = isinstance(samples, range) and samples and samples.step == 1
        if within and samples[0] in self.span and samples[-1] in self.span:
            return samples  # type: ignore[return-value]
        indices = [
            self._index.get(one, -1) if isinstance(one, str) else _number(one) for one in samples
        ]
        for one, index in zip(samples, indices, strict=True):
            if index not in self.span:
                raise SettingsError(
                    f"{self.path}: no sample {one!r}; expected numbers from {self.span.start} to "
                    f"{self.span.stop - 1}, or the ids that the file was begun with"
                )
        return indices

    def _rows(
        self, part: str, rows: Rows | Mapping[str, Rows] | None, indices: Sequence[int]
    ) -> dict[str, Samples]:
        """Embeddings of samples by layer, as tensors. Raises SettingsError for another shape."""
        layers = self._file["embeddings"]
        given = rows if isinstance(rows, Mapping) else dict.fromkeys(layers, rows)
        tensors: dict[str, Samples] = {}
        for layer, group in layers.items():
            rows_of_layer = given.get(layer)
            if part == "views" and self._first_rows is not None:
                counts = np.diff(self._first_rows)[np.asarray(indices, int)]
                tensors[layer] = self._unequal_rows(layer, rows_of_layer, counts)
                continue
            values = as_tensor(() if rows_of_layer is None else rows_of_layer)
            stored = len(group[part]) if part in group else 0
            count = sum(index - self.span.start < stored for index in indices)
            shape = (count, *group[part].shape[1:]) if part in group else (0,)
            if len(values) != count or (count and values.shape != shape):
                raise SettingsError(
                    f"{self.path}: {part} of layer {layer} have the shape {tuple(values.shape)}; "
                    f"expected {shape}"
                )
            if count:
                tensors[layer] = values
        return tensors

    def _unequal_rows(self, layer: str, views: Any, counts: np.ndarray) -> list[Tensor]:
        """Views [q_i, d] of some samples, given their numbers. Raises SettingsError as `_rows`."""
        d = self._file["embeddings"][layer]["views"].shape[1]
        if hasattr(views, "shape"):
            rows = as_tensor(views)
            samples = (
                list(torch.split(rows, counts.tolist())) if len(rows) == counts.sum() else [rows]
            )
        else:
            samples = [as_tensor(one) for one in views or ()]
        expected = [(int(q), d) for q in counts]
        shapes = [tuple(one.shape) for one in samples]
        if shapes != expected:
            raise SettingsError(
                f"{self.path}: views of layer {layer} have the shapes "
                f"{shortened(str(shapes))}; expected {shortened(str(expected))}"
            )
        return samples

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

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if self._finishes and kind is None and self._file.id.valid:
            try:
                self.finish()
            finally:
                self._close_or_remove()
            return
        self._close_or_remove()

    def _close_or_remove(self) -> None:
        inode = self._inode() if self._file.id.valid else None
        _close(self._file)
        if inode is not None and self._partial != partial_path(self.path):
            with suppress(OSError):
                if self._partial.stat().st_ino == inode:  # else it belongs to another writer
                    self._partial.unlink()

    def _verify(self, layers: Iterable[str]) -> None:
        """Mark samples whose checksum does not match as not done."""
        done = np.flatnonzero(self.done)
        for group in (self._file["embeddings"][layer] for layer in layers):
            of_views, of_images = (group.get(name) for name in ("views", "clean"))
            with_views = 0 if of_views is None else len(of_views)
            crc32 = group["crc32"][:]
            for i in done:
                if self._first_rows is not None:
                    begin, end = self._first_rows[i : i + 2]
                    views = of_views[begin:end][None]
                else:
                    views = of_views[i : i + 1] if i < with_views else NO_VIEWS
                clean = NO_CLEAN if of_images is None else of_images[i : i + 1]
                if checksums_of(views, clean)[0] != crc32[i]:
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
        if layout.counts is not None and not other:
            stored = file.read_all(COUNTS) if COUNTS in file.arrays else ()
            other += [] if np.array_equal(stored, layout.counts) else ["n_views"]
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


def write_features(
    path: str | os.PathLike[str],
    views: Rows | Mapping[str, Rows] | None = None,
    clean: Rows | Mapping[str, Rows] | None = None,
    *,
    ids: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    layer: str = OWN_LAYER,
    provenance: Mapping[str, Any] | None = None,
    storage: str = "float32",
    overwrite: bool = False,
) -> Path:
    """Write embeddings to a feature file that `lidar score`, `rank` and `compare` read.

    Args:
        path: the file to write.
        views: embeddings of the q augmented views of each sample [n, q, d]: an array, a list, a
            tensor on any device, or anything with a shape that is read by slices, such as a
            dataset of h5py; of several layers by their names. Of unequal numbers n arrays
            [q_i, d], or rows [N, d] with their N `ids`, of which equal ones are a sample.
        clean: embeddings of the un-augmented samples [n, d]; LiDAR does not need them.
        ids: names of the samples [n], by which files are compared sample by sample.
        labels: class numbers [n], -1 unknown, which no score uses.
        layer: the name of the layer, if there is one.
        provenance: what made the embeddings, such as {"checkpoint": "a.pt", "data": "EEG"}.
        storage: float32, or float16 for half the size.
        overwrite: replace the file.

    Returns:
        The path.

    Raises:
        SettingsError: if the shapes or the names of samples are wrong.
        DegenerateFeatures: if a number is not finite, or overflows float16.
        FeatureFileError: if the file exists or cannot be written.

    Example:
        >>> import numpy as np, tempfile
        >>> path = f"{tempfile.mkdtemp()}/feats.h5"
        >>> views = np.random.default_rng(0).normal(size=(100, 4, 16))
        >>> write_features(path, views, provenance={"checkpoint": "eeg.pt"}).name
        'feats.h5'

    References:
        `lidar explain file-format`.
    """
    parts = {
        part: {name: _sliceable(rows) for name, rows in _by_layer(given, layer).items()}
        for part, given in (("views", views), ("clean", clean))
        if given is not None
    }
    if ids is not None and any(len(rows.shape) == 2 for rows in parts.get("views", {}).values()):
        parts["views"] = {name: _by_ids(rows, ids) for name, rows in parts["views"].items()}
        ids = list(dict.fromkeys(map(str, ids)))
    shapes = {part: {name: rows.shape for name, rows in of.items()} for part, of in parts.items()}
    n, q, widths = _sizes(shapes)
    with FeatureWriter(
        path, n_samples=n, n_views=q, dim=widths, clean="clean" in parts, ids=ids, labels=labels,
        provenance=provenance, storage=storage, overwrite=overwrite,
    ) as writer:  # fmt: skip
        most = q if isinstance(q, int) else max(q)
        step = max(1, MAX_BYTES // (8 * max(1, most) * sum(widths.values())))
        for first in range(0, n, step):
            some = range(first, min(first + step, n))
            batch = {
                part: {name: rows[some.start : some.stop] for name, rows in of.items()}
                for part, of in parts.items()
            }
            writer.write(some, batch.get("views"), batch.get("clean"))
    return writer.path


def _by_layer(given: Rows | Mapping[str, Rows], layer: str) -> Mapping[str, Rows]:
    return given if isinstance(given, Mapping) else {layer: given}


def _sliceable(rows: Rows) -> Any:
    """Rows with a shape: themselves, else an array. Raises SettingsError if they form none."""
    if hasattr(rows, "shape"):
        return rows
    if len({np.shape(one)[:1] for one in rows if hasattr(one, "shape")}) > 1:
        return _UnequalViews(rows)
    try:
        return np.asarray(rows, np.float64)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"no array of numbers: {first_line(error)}; expected embeddings [n, q, d] or [n, d]"
        ) from error


class _UnequalViews:
    """Arrays [q_i, d] of samples; the second number of `shape` is the tuple of all q_i."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self._samples = samples
        shapes = {tuple(np.shape(one)[1:]) for one in samples}
        if len(shapes) > 1 or len(next(iter(shapes))) != 1:
            raise SettingsError(
                f"samples of the shapes [q, ...] with {shortened(str(sorted(shapes)))} after q; "
                "expected [q, d] with one d"
            )
        self.shape = (len(samples), tuple(len(one) for one in samples), *shapes.pop())

    def __getitem__(self, some: slice) -> Sequence[Any]:
        return self._samples[some]


def _by_ids(rows: Any, ids: Sequence[str]) -> Any:
    """Rows [N, d] as the views of samples, in the order in which their `ids` [N] first occur."""
    values = as_tensor(rows)
    if len(ids) != len(values):
        raise SettingsError(f"{len(ids)} ids for {len(values)} rows of views; expected one each")
    places: dict[str, list[int]] = {}
    for at, one in enumerate(ids):
        places.setdefault(str(one), []).append(at)
    samples = [values[at] for at in places.values()]
    if len({len(one) for one in samples}) > 1:
        return _UnequalViews(samples)
    return torch.stack(samples)


def _view_counts(q: int | Sequence[int], n: int) -> tuple[int, tuple[int, ...] | None]:
    """q, or the smallest of unequal q_i and these. Raises SettingsError if one is below 2."""
    if isinstance(q, int):
        return q, None
    counts = tuple(map(int, q))
    if len(counts) != n or min(counts, default=0) < 2:
        raise SettingsError(
            f"numbers of views of {len(counts)} samples, {sum(one < 2 for one in counts)} of them "
            f"below 2; expected {n}, each at least 2: leave samples of a single view out"
        )
    return min(counts), counts if min(counts) < max(counts) else None


def _sizes(
    shapes: Mapping[str, Mapping[str, tuple[Any, ...]]],
) -> tuple[int, int | tuple[int, ...], dict[str, int]]:
    """n, q (0 without views) and d by layer. Raises SettingsError if shapes do not agree."""
    listed = [(part, name, shape) for part, of in shapes.items() for name, shape in of.items()]
    if not listed:
        raise SettingsError("no embeddings; expected views [n, q, d], clean [n, d], or both")
    for part, name, shape in listed:
        if len(shape) != (3 if part == "views" else 2) or 0 in shape:
            expected = "[n, q, d]" if part == "views" else "[n, d]"
            raise SettingsError(
                f"{part} of layer {name} have the shape {tuple(shape)}; expected {expected}"
            )
    widths = {name: int(shape[-1]) for _, name, shape in listed}
    counts = {shape[1] for part, _, shape in listed if part == "views"}
    n = int(listed[0][2][0])
    agree = all((shape[0], shape[-1]) == (n, widths[name]) for _, name, shape in listed)
    whole = all(of.keys() == widths.keys() for of in shapes.values())
    if len(counts) > 1 or not agree or not whole:
        listing = ", ".join(f"{part} of {name} {tuple(shape)}" for part, name, shape in listed)
        raise SettingsError(f"shapes do not agree: {listing}; expected equal n, q, and layers")
    return n, counts.pop() if counts else 0, widths


def check_samples(
    layout: Layout, ids: Sequence[str] | None, labels: Sequence[int] | None
) -> list[str]:
    """The ids [n] of samples. Raises SettingsError for a layout, ids or labels that are wrong."""
    n, q, sizes = layout.n_clean, layout.n_views, layout.widths
    for name, d in sizes.items():
        if not name or "/" in name or name == "." or "," in name:
            raise SettingsError(f"layer {name!r}: a name without slash and comma is expected")
        if d < 1 or n < 1 or q < 0 or not (q or layout.has_clean):
            raise SettingsError(
                f"layer {name}: n = {n}, q = {q}, d = {d}; expected n and d of at least 1, and "
                "views or clean embeddings"
            )
    if layout.storage not in ("float32", "float16"):
        raise SettingsError(f"storage {layout.storage!r}; expected float32 or float16")
    names = list(map(str, range(n) if ids is None else ids))
    if len(names) != n or (labels is not None and len(labels) != n):
        what, count = ("ids", len(names)) if len(names) != n else ("labels", len(labels or ()))
        raise SettingsError(f"{count} {what} for {n} samples; expected one for each")
    for label in () if labels is None else labels:
        if not isinstance(label, numbers.Integral) or not -(2**63) <= label < 2**63:
            raise SettingsError(f"a label is {label!r:.50}; expected class numbers, -1 unknown")
    if len(set(names)) != n:
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise SettingsError(
            f"the id {shortened(twice)!r} belongs to several samples; expected distinct ids"
        )
    return names


def own_provenance(
    layout: Layout,
    ids: Sequence[str] | None,
    labels: Sequence[int] | None,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """The record of a file that the user writes: what is given, the sizes, and a digest of ids.

    Raises SettingsError if it is no JSON, or a field has another type than the program reads.
    """
    sizes = {
        "layers": list(layout.widths),
        "n_samples": layout.n_samples,
        "n_views": layout.n_views,
        **({} if layout.counts is None else {"n_rows": sum(layout.counts)}),
        "n_clean": layout.n_clean if layout.has_clean else 0,
        "storage": layout.storage,
    }
    record = ({} if ids is None else {"samples_sha256": ids_digest(ids)}) | dict(given) | sizes
    if labels is not None:
        record["labels_sha256"] = ids_digest(map(str, labels))
    try:
        return parse_provenance(json.dumps(record))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"provenance: {first_line(error)}; expected a dict of JSON") from error


def contiguous_blocks(indices: Sequence[int]) -> Iterator[range]:
    """Positions of runs of consecutive numbers."""
    start = 0
    for at in range(1, len(indices) + 1):
        if at == len(indices) or indices[at] != indices[at - 1] + 1:
            yield range(start, at)
            start = at


def _number(sample: Any) -> int:
    """The number of a sample; -1 for what is no whole number, such as an element of a mask."""
    if isinstance(sample, bool | np.bool_):
        return -1
    try:
        return operator.index(sample)
    except TypeError:
        return -1


def as_tensor(rows: Rows) -> Tensor:
    """An array, a list or a tensor as a tensor; an array that must not be written is copied."""
    if isinstance(rows, Tensor):
        return rows
    if isinstance(rows, list | tuple) and any(isinstance(one, Tensor) for one in rows):
        return torch.stack([as_tensor(one) for one in rows])
    array = np.asarray(rows)
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise SettingsError(f"embeddings are {array.dtype}; expected floating-point numbers")
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def _as_stored(
    rows: Samples, storage: str, layer: str, first: int
) -> np.ndarray | list[np.ndarray]:
    """Samples first, first + 1, ... as they are stored. Raises as `as_storage_type`."""
    if isinstance(rows, Tensor):
        return as_storage_type(rows, storage, layer, first).cpu().numpy()
    stored = [as_storage_type(one[None], storage, layer, first + i) for i, one in enumerate(rows)]
    return [one[0].cpu().numpy() for one in stored]


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
