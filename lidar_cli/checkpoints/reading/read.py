"""Reads a checkpoint file as dicts and lists of lazy tensors. No code that the file names is run.

folder.py        Hugging Face folders, names on the Hub, and checkpoints in several files
distributed.py   folders of torch.distributed.checkpoint
walk*.py         read the files, in the child process of `runtime.sandbox`
record.py        the JSON in which the child process returns the tree
lazy_tensor.py   tensors that stay in the file until they are needed

Names and shapes are read without importing torch and without reading the bytes of any tensor.
"""

from __future__ import annotations

import hashlib
import os
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from lidar_cli.checkpoints.reading import distributed, folder
from lidar_cli.checkpoints.reading.lazy_tensor import EXPECTED, Malformed
from lidar_cli.checkpoints.reading.record import decode
from lidar_cli.errors import CheckpointError, LidarError, NoWeights, shortened
from lidar_cli.runtime.files import open_regular
from lidar_cli.runtime.sandbox import run_limited, stamp_of

ADVICE = f"{EXPECTED}; copy or save it again"
WALK = "lidar_cli.checkpoints.reading.walk:walk"
CHECKSUMS = "lidar_cli.checkpoints.reading.walk:walk_checksums"
PIECE = 1 << 20  # bytes hashed at a time


@dataclass(frozen=True)
class Contents:
    """The contents of a checkpoint, as data."""

    path: Path  # the file with the weights, which may be inside the folder that the user named
    kind: str  # 'zip', 'legacy', 'safetensors' or 'distributed'
    tree: Any  # dicts, lists, other plain values and LazyTensors; StandIns for all other objects
    stand_ins: tuple[str, ...]  # qualified names of the classes and functions with a StandIn
    config: Mapping[str, Any] | None = None  # config.json of a Hugging Face folder


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The tree of a checkpoint, which is a dict.

    Raises CheckpointError if the file is not a complete checkpoint or names a function that could
    only do harm, and NoWeights if it is readable but holds something other than a dict.
    """
    return as_dict(read_contents(path))


def as_dict(contents: Contents) -> dict[str, Any]:
    """The tree of a checkpoint; raises NoWeights unless it is a dict."""
    if not isinstance(contents.tree, dict):
        raise NoWeights(
            f"{contents.path}: holds {describe(contents.tree)}, not the weights of a model; "
            "expected a state dict, alone or inside a dict"
        )
    return contents.tree


def read_contents(path: Path) -> Contents:
    """The contents of a checkpoint file or folder, or of a name on the Hub.

    Raises CheckpointError as `read_checkpoint`.
    """
    local_path = folder.local_path(Path(path))
    try:
        path = folder.weights_path(local_path)
        if path.is_dir():
            tree, stand_ins = distributed.read_tree(path, read_file)
            return Contents(path, "distributed", tree, stand_ins)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    contents = read_file(path)
    folder.refuse_shards(path, contents.tree, contents.stand_ins)
    folder.refuse_adapter(path, contents.tree)
    return replace(contents, config=folder.read_config(local_path))


def read_file(path: Path) -> Contents:
    """The contents of a file of torch.save or safetensors; the file name has no influence.

    Raises CheckpointError as `read_checkpoint`.
    """
    walked = run_limited(WALK, path, str(path), error=CheckpointError, advice=ADVICE)
    _, _, size, _ = walked.stamp
    try:
        tree, names = decode(walked.value, path, size)
    except Malformed as error:
        raise CheckpointError(f"{path}: damaged: {shortened(str(error))}; {ADVICE}") from error
    return Contents(path, str(walked.value["kind"]), tree, names)


def sha256(path: Path) -> str:
    """The SHA-256 digest of the file with the weights, in hexadecimal.

    That of a folder is the digest of the names and digests of its files. The same pass checks the
    CRC-32 that torch wrote for each tensor's bytes.
    Raises CheckpointError if a file cannot be read, or is damaged.
    """
    try:
        path = folder.weights_path(folder.local_path(Path(path)))
        if not path.is_dir():
            return _sha256_of_file(path, CHECKSUMS, str(path))
        pieces = distributed.checksum_arguments(path)
        names = hashlib.sha256()
        for file in content_files(path):
            walker = distributed.CHECKSUMS if file in pieces else CHECKSUMS
            digest = _sha256_of_file(file, walker, pieces.get(file, str(file)))
            names.update(f"{file.name}\0{digest}\n".encode(errors="surrogateescape"))
        return names.hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _sha256_of_file(path: Path, walker: str, arguments: Any) -> str:
    walked = run_limited(walker, path, arguments, error=CheckpointError, advice=ADVICE)
    with open_regular(path) as file:
        if stamp_of(os.fstat(file.fileno())) != walked.stamp:
            raise CheckpointError(f"{path}: changed while it was read; run it again")
        return _digest(file, walked.value, path)


def _digest(file: BinaryIO, members: Sequence[tuple[int, int, int]], path: Path) -> str:
    """SHA-256 of a file; the same pass checks the CRC-32 of its zip members.

    members: first byte, number of bytes and CRC of each, in file order. A CRC of 0 is not checked:
    torch's skip_data writes it for members that are filled later.
    Raises CheckpointError if some CRCs are wrong. If all of them are wrong, the writer did not
    compute any (torch's set_crc32_options), and no error is raised.
    """
    digest, position, n_matching = hashlib.sha256(), 0, 0
    checked = [member for member in members if member[1] and member[2]]
    for start, nbytes, expected in checked:
        for piece in _read_pieces(file, start - position):
            digest.update(piece)
        crc = 0
        for piece in _read_pieces(file, nbytes):
            digest.update(piece)
            crc = zlib.crc32(piece, crc)
        n_matching += crc == expected
        position = start + nbytes
    for piece in _read_pieces(file, sys.maxsize):
        digest.update(piece)
    if n_matching and n_matching < len(checked):
        raise CheckpointError(
            f"{path}: damaged: {len(checked) - n_matching} of its {len(checked)} parts differ from "
            "what was written (CRC-32); copy it again",
            code="checksum",
        )
    return digest.hexdigest()


def _read_pieces(file: BinaryIO, nbytes: int) -> Iterator[bytes]:
    while nbytes > 0 and (piece := file.read(min(PIECE, nbytes))):
        yield piece
        nbytes -= len(piece)


def stamp(path: Path) -> tuple[int, ...]:
    """Device, inode, size, mtime and ctime of each file that `sha256` reads; () if one is missing.

    Equal stamps mean that the files are the same and unchanged: no program can set the ctime.
    """
    numbers: list[int] = []
    try:
        for file in content_files(folder.weights_path(folder.local_path(Path(path)))):
            status = file.stat()
            numbers += (*stamp_of(status), status.st_ctime_ns)
    except (OSError, ValueError, LidarError):
        return ()
    return tuple(numbers)


def content_files(path: Path) -> list[Path]:
    """The files of a checkpoint folder, in a fixed order; the path itself if it is a file."""
    return distributed.content_files(path) if path.is_dir() else [path]


def describe(value: object) -> str:
    """A value of a tree for a message: 'a list', 'a stand-in for functools.partial'."""
    text = repr(value).strip("<>") if hasattr(value, "name") else type(value).__name__
    return f"a {shortened(text)}"
