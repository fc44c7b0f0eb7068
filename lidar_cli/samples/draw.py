"""The first N images of a source that are wanted, read once, before anything is computed.

With `--bad-samples skip` each image is decoded as well, and one that is bad gives its place to the
next in the order of the seed. So n stays n, the list is a function of data, seed and n alone, and
whoever resumes, or ranks other checkpoints, has the same one, unless the data itself changed: then
the fingerprint differs, and nothing of one list is taken for the other's.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from PIL import Image

from lidar_cli.errors import InputError, first_line
from lidar_cli.samples.drawn import SKIP, Bad, Samples, told
from lidar_cli.samples.pixels import Content, Undecodable, decoded
from lidar_cli.samples.source import Candidate, Source

READERS = 8  # threads


def draw(source: Source, count: int, skip: bool) -> Samples:
    """The first `count` images; with `skip` those that can be read and decoded.

    Raises InputError if there are too few, or one cannot be read and is not to be skipped.
    """
    if source.total is not None and count > source.total:
        raise _too_few(source, source.total, count)
    kept: list[Candidate] = []
    checksums: list[int] = []
    bad: list[Bad] = []
    for candidate, found in _examined(source, count, skip, kept):
        if isinstance(found, Bad):
            bad.append(found)
        else:
            kept.append(candidate)
            checksums.append(found)
    if len(kept) < count:
        raise _too_few(source, len(kept), count, bad)
    labels = [candidate.label for candidate in kept]
    ids = [candidate.id for candidate in kept]
    return Samples(
        data=source.data,
        ids=ids,
        labels=labels if any(label >= 0 for label in labels) else None,
        read=lambda i: kept[i].read(),
        image_size=source.image_size,
        fingerprint=_fingerprint(ids, checksums),
        checksums=checksums,
        bad=bad,
    )


def _examined(
    source: Source, count: int, skip: bool, kept: Sequence[Candidate]
) -> Iterator[tuple[Candidate, int | Bad]]:
    """Candidates in their order until `kept` has `count`, each with its checksum or its fault."""

    def examine(candidate: Candidate) -> int | Bad:
        return _examine(candidate, source.data, skip)

    coming = iter(source.candidates)
    with ThreadPoolExecutor(READERS) as pool:
        while window := list(islice(coming, count - len(kept))):
            yield from zip(window, pool.map(examine, window), strict=True)


def _examine(candidate: Candidate, data: str, skip: bool) -> int | Bad:
    """CRC-32 of the content; with `skip` what is wrong, if it cannot be read or decoded."""
    try:
        content = candidate.read()
        if skip:
            decoded(content)
    except Undecodable as error:
        return Bad(candidate.id, str(error))
    except Exception as error:  # whatever a reader of other people's files meets
        ours = isinstance(error, InputError)
        if skip:
            reason = str(error).removeprefix(f"--data {data}: ") if ours else first_line(error)
            return Bad(candidate.id, reason)
        if ours:
            raise
        raise InputError(
            f"{candidate.id} (in {data}): cannot be read: {first_line(error)}; {SKIP}"
        ) from error
    return zlib.crc32(_bytes(content))


def _bytes(content: Content) -> bytes:
    if isinstance(content, Image.Image):
        return content.tobytes() + f"{content.mode} {content.size}".encode()
    return content if isinstance(content, bytes) else content.tobytes()


def _fingerprint(ids: Sequence[str], checksums: Sequence[int]) -> str:
    digest = hashlib.sha256()
    for name, checksum in zip(ids, checksums, strict=True):
        digest.update(f"{name}\0{checksum}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _too_few(source: Source, found: int, asked: int, bad: Sequence[Bad] = ()) -> InputError:
    without = f" ({told(bad)})" if bad else ""
    kind = "usable images" if bad else "images"
    return InputError(
        f"--data {source.data}: holds {found} {kind}, {asked} were asked for{without}; lower -n"
    )
