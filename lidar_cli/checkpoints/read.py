"""A checkpoint file -> nested plain containers of lazy tensors; nothing named in the file is run.

storages.py           torch's zip and legacy files (Lightning's are zip files)
safetensors_file.py   safetensors
folder.py             Hugging Face folders, and what is only a part of a checkpoint
hub.py                names on the Hugging Face Hub
unpickle.py           the pickle inside torch's files, as data; machine.py, standins.py, rebuild.py
lazy.py               tensors that stay in the file until they are needed

Neither torch nor the bytes of any tensor are needed to read names and shapes. What cannot be read
becomes one line that says what was found, what was expected and what to do next.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints import folder, hub
from lidar_cli.checkpoints.lazy import Malformed
from lidar_cli.checkpoints.safetensors_file import read_safetensors
from lidar_cli.checkpoints.standins import Forbidden
from lidar_cli.checkpoints.storages import read_legacy, read_zip
from lidar_cli.errors import CheckpointError, LidarError, NoWeights
from lidar_cli.runtime.files import NotAFile, open_regular

EXPECTED = "expected a file of torch.save or safetensors"

# First bytes of files that are often taken for a checkpoint, and what to do about them.
STRANGERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run: git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file; score feature files with: lidar score"),
    (b"\x1f\x8b", "gzip data; unpack it first"),
    (b"<!DOCTYPE", "an HTML page, probably saved in place of a download; fetch the file again"),
    (b"<html", "an HTML page, probably saved in place of a download; fetch the file again"),
)


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds, as data."""

    path: Path  # of the file with the weights, which may lie in the folder that was named
    kind: str  # 'zip', 'legacy' or 'safetensors'
    tree: Any  # dicts, lists and other plain values, LazyTensors, and stand-ins for the rest
    stand_ins: tuple[str, ...]  # qualified names that the file mentions and nothing was made of
    config: Mapping[str, Any] | None = None  # config.json of a Hugging Face folder


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The tree of a checkpoint, its outermost container a dict.

    Raises CheckpointError if it is not a whole checkpoint or names what could only do harm, and
    NoWeights if it is readable but holds something other than a dict.
    """
    return as_dict(read_contents(path))


def as_dict(contents: Contents) -> dict[str, Any]:
    """The tree of what was read; raises NoWeights unless it is a dict."""
    if not isinstance(contents.tree, dict):
        raise NoWeights(
            f"{contents.path}: holds {describe(contents.tree)}, not the weights of a model; "
            "expected a state dict, alone or inside a dict"
        )
    return contents.tree


def read_contents(path: Path) -> Contents:
    """All that a checkpoint file or Hugging Face folder holds, whatever its outermost value is.

    path: of either, or a name on the Hub. Raises CheckpointError as `read_checkpoint`.
    """
    named = hub.local(Path(path))
    try:
        path = folder.weights_file(named)
        start = _first_bytes(path)
        names: tuple[str, ...] = ()
        if _is_safetensors(start):
            kind, what, tree = "safetensors", "damaged safetensors file", None
            tree = read_safetensors(path)
        elif start.startswith(b"PK"):
            kind, what = "zip", "a damaged or truncated torch file"
            tree, names = read_zip(path)
        else:
            kind, what = "legacy", "not a torch file, or damaged"
            tree, names = read_legacy(path)
    except Malformed as error:
        raise CheckpointError(
            f"{path}: {what}: {_printable(str(error))}; {EXPECTED}; copy or save it again"
        ) from error
    except Forbidden as error:
        raise CheckpointError(
            f"{path}: names {_printable(str(error))}, which no checkpoint needs and which is never "
            "called; do not load it elsewhere; take the file from a source that you trust"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    folder.refuse_shards(path, tree, names)
    return Contents(path, kind, tree, names, folder.config(named))


def sha256(path: Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal, read in small pieces.

    Of a Hugging Face folder, or a name on the Hub, that of the file with the weights.
    Raises CheckpointError if the file cannot be read.
    """
    try:
        path = folder.weights_file(hub.local(Path(path)))
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def stamp(path: Path) -> tuple[int, ...]:
    """What the system tells of the file that `sha256` reads; nothing if it cannot be reached.

    Two files of equal stamps are the same one, unchanged: nobody sets the time of the last change.
    """
    try:
        found = folder.weights_file(hub.local(Path(path))).stat()
    except (OSError, ValueError, LidarError):
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def describe(value: object) -> str:
    """A value of a tree in an error's line: 'a list', 'a stand-in for functools.partial'."""
    text = repr(value).strip("<>") if hasattr(value, "name") else type(value).__name__
    return f"a {_printable(text)}"


def _first_bytes(path: Path) -> bytes:
    """Up to 512 bytes; raises CheckpointError for what is evidently no checkpoint."""
    try:
        with open_regular(path) as file:
            start = file.read(512)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; check the path") from error
    except NotAFile as error:
        raise CheckpointError(f"{path}: {error.strerror}; {EXPECTED}") from error
    except ValueError as error:  # a null character in the name
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not start:
        raise CheckpointError(f"{path} is empty; {EXPECTED}; copy it again")
    for signature, meaning in STRANGERS:
        if start.lstrip().lower().startswith(signature.lower()):
            raise CheckpointError(f"{path} is {meaning}")
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in start):
        raise CheckpointError(f"{path} is a text file; {EXPECTED}")
    if start[257:262] == b"ustar":
        raise CheckpointError(f"{path} is a tar archive; {EXPECTED}; unpack it first")
    return start


def _is_safetensors(start: bytes) -> bool:
    """Whether a file opens with the length of a JSON header and that header."""
    # The header may not exceed 100 MB, by the format; a pickle's first bytes read far larger.
    return len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < 10**8


def _printable(text: str) -> str:
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 300 else f"{text[:300]}..."
