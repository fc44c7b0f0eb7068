"""A checkpoint file -> nested plain containers of tensors; nothing named in the file is run.

Both torch formats are read weights-only (the zip of torch 1.6 and later is mapped, so tensors that
are not used cost no memory), safetensors by its own library. Everything that the readers raise
becomes one line that says what was found, what was expected and what to do next.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lidar_cli.errors import CheckpointError, NoWeights

EXPECTED = "expected a file of torch.save or safetensors"

# First bytes of files that are often taken for a checkpoint, and what to do about them.
STRANGERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run: git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file; score feature files with: lidar score"),
    (b"\x1f\x8b", "gzip data; unpack it first"),
    (b"<!DOCTYPE", "an HTML page, probably saved in place of a download; fetch the file again"),
    (b"<html", "an HTML page, probably saved in place of a download; fetch the file again"),
)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, its outermost container a dict.

    Raises CheckpointError if the file is not a whole checkpoint or names foreign objects, and
    NoWeights if it is readable but holds something other than a dict.
    """
    path = Path(path)
    start = _first_bytes(path)
    tree = _read_safetensors(path) if _is_safetensors(start) else _read_torch(path, start)
    if not isinstance(tree, dict):
        raise NoWeights(
            f"{path}: holds a {type(tree).__name__}, not the weights of a model; "
            "expected a state dict, alone or inside a dict"
        )
    return tree


def sha256(path: Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal, read in small pieces.

    Raises CheckpointError if the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _first_bytes(path: Path) -> bytes:
    """Up to 512 bytes; raises CheckpointError for what is evidently no checkpoint."""
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a directory, expected one checkpoint file; "
            "name a file in it, or order all of them with: lidar rank"
        )
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not start:
        raise CheckpointError(f"{path} is empty; {EXPECTED}; copy it again")
    for signature, meaning in STRANGERS:
        if start.lstrip().lower().startswith(signature.lower()):
            raise CheckpointError(f"{path} is {meaning}")
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in start):
        raise CheckpointError(f"{path} is a text file; {EXPECTED}")
    return start


def _is_safetensors(start: bytes) -> bool:
    """Whether a file opens with the length of a JSON header and that header."""
    # The header may not exceed 100 MB, by the format; a pickle's first bytes read far larger.
    return len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < 10**8


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path, device="cpu"))
    except Exception as error:  # the library raises a type of its own and several of Python's
        raise CheckpointError(f"{path}: damaged safetensors file: {_line(error)}") from error


def _read_torch(path: Path, start: bytes) -> Any:
    is_zip = start.startswith(b"PK\x03\x04")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tensor types and formats of other versions
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except Exception as error:  # whatever the reader makes of bytes that anyone may have written
        refused = _refused(str(error))
        if refused is None:
            kind = "a damaged or truncated torch file" if is_zip else "not a torch file, or damaged"
            if "Unsupported operand" in str(error):
                kind += ", or one saved with an unusual pickle protocol"
            raise CheckpointError(f"{path}: {kind}; {EXPECTED}; copy or save it again") from error
        if not _names_weights(path, is_zip):
            raise NoWeights(f"{path}: holds {refused} and no model weights") from error
        raise CheckpointError(
            f"{path}: holds an object of {refused}, which is never loaded; expected tensors in "
            "plain containers; save the state dict alone: torch.save(model.state_dict(), PATH)"
        ) from error


def _refused(message: str) -> str | None:
    """The qualified name of the object that weights-only loading refused, if that went wrong."""
    match = re.search(r"(?:GLOBAL|[Uu]nsupported class|function) ([\w.]+\.[\w.]+)", message)
    if match:
        return match[1].rstrip(".")
    return "a TorchScript module" if "TorchScript" in message else None


def _names_weights(path: Path, is_zip: bool) -> bool:
    """Whether a pickle mentions the name of a weight; its opcodes are listed, not executed."""
    # A damaged stream ends early, and what was not found in it is not missed.
    with contextlib.suppress(Exception):
        return any(re.search(r"weight(_[gv])?$", text) for text in _strings(path, is_zip))
    return True


def _strings(path: Path, is_zip: bool) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        if is_zip:
            archive = stack.enter_context(zipfile.ZipFile(path))
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            file: Any = stack.enter_context(archive.open(name))
        else:
            file = stack.enter_context(path.open("rb"))
        # A legacy file is magic number, protocol, system, object: four pickles in a row.
        for _ in range(1 if is_zip else 4):
            for _, argument, _ in pickletools.genops(file):
                if isinstance(argument, str):
                    yield argument


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
