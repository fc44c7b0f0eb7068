"""Reads a checkpoint file as a JSON record; runs only in the child process of `runtime.sandbox`.

torch_files.py   zip and legacy files of torch.save (Lightning's are zip files)
safetensors.py   safetensors
pickle.py        the pickle in a torch file as records, which interpret.py turns into values
record.py        the tree as JSON
"""

from __future__ import annotations

import gc
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from lidar_cli.checkpoints.reading.lazy_tensor import EXPECTED, Malformed
from lidar_cli.checkpoints.reading.pickle import Forbidden
from lidar_cli.checkpoints.reading.record import encode
from lidar_cli.checkpoints.reading.safetensors import read_safetensors
from lidar_cli.checkpoints.reading.torch_files import checksums, read_legacy, read_zip
from lidar_cli.errors import CheckpointError, shortened

DAMAGED = {  # kind of file -> how a message describes a malformed one
    "safetensors": "damaged safetensors file",
    "zip": "a damaged or truncated torch file",
    "legacy": "not a torch file, or damaged",
}

# First bytes of files that are often taken for a checkpoint: what they are, and the next step.
OTHER_FORMATS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run: git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file; score feature files with: lidar score"),
    (b"\x1f\x8b", "gzip data; unpack it first"),
    (b"<!DOCTYPE", "an HTML page, probably saved in place of a download; fetch the file again"),
    (b"<html", "an HTML page, probably saved in place of a download; fetch the file again"),
)


def walk(file: BinaryIO, path: str) -> Any:
    """The kind of a checkpoint file and its record; raises CheckpointError, which names `path`."""
    kind = _kind(file, path)
    gc.disable()  # it would traverse up to a million values repeatedly
    with _as_checkpoint_errors(path, kind):
        names: tuple[str, ...] = ()
        tree: Any
        if kind == "safetensors":
            tree = read_safetensors(file)
        elif kind == "zip":
            tree, names = read_zip(file, path)
        else:
            tree, names = read_legacy(file, path)
        return {"kind": kind, **encode(tree, names)}


def walk_checksums(file: BinaryIO, path: str) -> list[tuple[int, int, int]]:
    """As `checksums`; empty for a file that is not a zip file. Raises CheckpointError."""
    if file.read(2) != b"PK":
        return []
    with _as_checkpoint_errors(path, "zip"):
        return checksums(file)


@contextmanager
def _as_checkpoint_errors(path: str, kind: str) -> Iterator[None]:
    """Raise errors of the readers as a CheckpointError whose message has the path."""
    try:
        yield
    except Malformed as error:
        raise CheckpointError(
            f"{path}: {DAMAGED[kind]}: {shortened(str(error))}; {EXPECTED}; copy or save it again"
        ) from error
    except Forbidden as error:
        raise CheckpointError(
            f"{path}: names {shortened(str(error))}, which no checkpoint needs and which is never "
            "called; do not load it elsewhere; take the file from a source that you trust"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    finally:
        gc.enable()


def _kind(file: BinaryIO, path: str) -> str:
    """'safetensors', 'zip' or 'legacy'; raises CheckpointError for a file of another format."""
    start = file.read(512)
    if not start:
        raise CheckpointError(f"{path} is empty; {EXPECTED}; copy it again")
    for signature, meaning in OTHER_FORMATS:
        if start.lstrip().lower().startswith(signature.lower()):
            raise CheckpointError(f"{path} is {meaning}")
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in start):
        raise CheckpointError(f"{path} is a text file; {EXPECTED}")
    if start[257:262] == b"ustar":
        raise CheckpointError(f"{path} is a tar archive; {EXPECTED}; unpack it first")
    # The format limits a header to 100 MB; the first bytes of a pickle give a far larger number.
    length = struct.unpack("<Q", start[:8])[0] if start[8:9] == b"{" else 10**8
    if length < 10**8:
        return "safetensors"
    return "zip" if start.startswith(b"PK") else "legacy"
