"""The samples of a run: the first N usable images of a data source in the order of a seed.

Every image is read once before anything is computed. With `--bad-samples skip` it is decoded as
well, and a bad one is replaced by the next in the order of the seed. So n stays n, and the list
depends on data, seed and n alone: a resumed run and every checkpoint of a ranking has the same one.
If the data change the fingerprint does, and features of one list are not used for the other.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lidar_cli.data.decode import Content, Undecodable, brightest, decoded, has_more_pages
from lidar_cli.errors import InputError, first_line
from lidar_cli.runtime.files import open_regular

SKIP = "leave out what is bad with --bad-samples skip"
NAMED = 3  # bad images in a message; the feature file lists them all
READERS = 8  # threads
LOOKED_AT = 32  # images of the draw whose largest value is read
DARK = 4  # images with no value above 1 / DARK of their range are most likely not scaled to it


@dataclass(frozen=True)
class Candidate:
    """An image that may become a sample; label: class number, -1 unknown.

    read: the content. Safe to call from several threads.
    """

    id: str
    label: int
    read: Callable[[], Content]


@dataclass(frozen=True)
class Source:
    """All images of some data in the order of a seed, listed lazily.

    total: their number, None for a stream. image_size: the side that all images have by
    construction, or None. remarks: lines that the user should read.
    """

    data: str
    candidates: Iterable[Candidate]
    total: int | None
    image_size: int | None = None
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Bad:
    """An image that was left out, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Samples:
    """N images in the order of a seed.

    labels: class numbers [N], -1 unknown, or None; for probes only.
    image_size: the side that all images have by construction, or None.
    fingerprint: SHA-256 of the ordered ids and contents, the same wherever the images are stored.
    checksums: CRC-32 of each content [N], or none; a file that changes later is refused.
    bad: images that were drawn and left out.
    remarks: lines about the data that the user should read.
    """

    data: str
    ids: Sequence[str]
    labels: Sequence[int] | None
    read: Callable[[int], Content]
    image_size: int | None = None
    fingerprint: str = ""
    checksums: Sequence[int] = ()
    bad: Sequence[Bad] = ()
    remarks: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def labels_sha256(self) -> str | None:
        """SHA-256 of the ordered labels, None without any."""
        if self.labels is None:
            return None
        return hashlib.sha256(np.asarray(self.labels, "<i8").tobytes()).hexdigest()

    def decode(self, i: int) -> Tensor:
        """Sample i as uint8 [height, width, 3]; safe to call from several threads.

        Raises InputError, naming the image, if it cannot be read or decoded, or has changed.
        """
        try:
            content = self.read(i)
            if isinstance(content, bytes) and self.checksums:
                self._check(i, content)
            return torch.from_numpy(decoded(content))
        except InputError:
            raise
        except Exception as error:  # readers and decoders raise almost anything
            if isinstance(error, OSError) and error.strerror:  # the system's, not a decoder's
                fault = f"cannot be read: {error.strerror}"
            else:
                reason = str(error) if isinstance(error, Undecodable) else first_line(error)
                fault = f"cannot be decoded as an image: {reason}"
            raise InputError(
                f"{self.ids[i]} (in {self.data}): {fault}; repair or remove it, or {SKIP}",
                code="bad-image",
            ) from error

    def with_cache(self, memory: int) -> Samples:
        """The same samples, decoded once each, as far as `memory` bytes suffice."""
        images: dict[int, np.ndarray] = {}
        free = memory

        def read(i: int) -> np.ndarray:
            nonlocal free
            if i in images:
                return images[i]
            image = self.decode(i).numpy()
            if image.nbytes <= free:
                free -= image.nbytes
                images[i] = image
            return image

        return replace(self, read=read)

    def _check(self, i: int, content: bytes) -> None:
        """Raise InputError if the content differs from that of the fingerprint."""
        if zlib.crc32(content) != self.checksums[i]:
            raise InputError(
                f"{self.ids[i]} (in {self.data}): changed since this run began; run again",
                code="changed",
            )


@dataclass(frozen=True)
class Examined:
    """What reading an image shows. brightest: its largest value and that of its type, or None."""

    checksum: int
    length: int
    has_more_pages: bool
    brightest: tuple[int, int] | None


def draw(source: Source, count: int, skip: bool) -> Samples:
    """The first `count` images; with `skip` the first that can be read and decoded.

    Raises InputError if there are too few, or one cannot be read and is not to be skipped.
    """
    if source.total is not None and count > source.total:
        raise _too_few(source, source.total, count)
    drawn: list[Candidate] = []
    examined: list[Examined] = []
    bad: list[Bad] = []

    def examine(candidate: Candidate, place: int) -> Examined | Bad:
        return _examine(candidate, source.data, skip, place < LOOKED_AT)

    candidates, places = iter(source.candidates), itertools.count()
    with ThreadPoolExecutor(READERS) as pool:
        while window := list(itertools.islice(candidates, count - len(drawn))):
            for candidate, outcome in zip(window, pool.map(examine, window, places), strict=True):
                if isinstance(outcome, Bad):
                    bad.append(outcome)
                else:
                    drawn.append(candidate)
                    examined.append(outcome)
    if len(drawn) < count:
        raise _too_few(source, len(drawn), count, bad)
    labels = [candidate.label for candidate in drawn]
    ids = [candidate.id for candidate in drawn]
    checksums = [one.checksum for one in examined]
    return Samples(
        data=source.data,
        ids=ids,
        labels=labels if any(label >= 0 for label in labels) else None,
        read=lambda i: drawn[i].read(),
        image_size=source.image_size,
        fingerprint=_fingerprint(ids, checksums),
        checksums=checksums,
        bad=bad,
        remarks=[*source.remarks, *_content_remarks(examined), *_copies(drawn, examined)],
    )


def _examine(candidate: Candidate, data: str, skip: bool, look: bool) -> Examined | Bad:
    """What the content shows; with `skip` its fault, if it cannot be read or decoded.

    look: read its largest value too, which takes decoding it.
    """
    values = None
    try:
        content = candidate.read()
        if skip:
            decoded(content)
        if look:
            with suppress(Undecodable):  # refused when it is embedded
                values = brightest(content)
    except Undecodable as error:
        return Bad(candidate.id, str(error))
    except Exception as error:  # readers and decoders raise almost anything
        ours = isinstance(error, InputError)
        if skip:
            reason = str(error).removeprefix(f"--data {data}: ") if ours else first_line(error)
            return Bad(candidate.id, reason)
        if ours:
            raise
        raise InputError(
            f"{candidate.id} (in {data}): cannot be read: {first_line(error)}; {SKIP}",
            code="bad-image",
        ) from error
    stored = _bytes(content)
    return Examined(zlib.crc32(stored), len(stored), has_more_pages(content), values)


def _bytes(content: Content) -> bytes:
    if isinstance(content, Image.Image):
        return content.tobytes() + f"{content.mode} {content.size}".encode()
    return content if isinstance(content, bytes) else content.tobytes()


def _fingerprint(ids: Sequence[str], checksums: Sequence[int]) -> str:
    digest = hashlib.sha256()
    for name, checksum in zip(ids, checksums, strict=True):
        digest.update(f"{name}\0{checksum}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _copies(drawn: Sequence[Candidate], examined: Sequence[Examined]) -> Iterator[str]:
    """A line if at least a hundredth of the images have the content of another.

    Images of equal checksum and length count as copies once one pair has been compared in full.
    """
    first_with: dict[tuple[int, int], int] = {}
    pairs = [
        (first_with[key], i)
        for i, one in enumerate(examined)
        if first_with.setdefault(key := (one.checksum, one.length), i) != i
    ]
    if 100 * len(pairs) < len(examined) or not pairs:
        return
    one, other = (drawn[i] for i in pairs[0])
    with suppress(Exception):  # a file that vanished is refused when it is decoded
        if _bytes(one.read()) != _bytes(other.read()):
            return
        yield (
            f"warning: copies: {len(pairs):,} of the {len(examined):,} images drawn have the "
            f"content of another, such as {one.id} and {other.id}; samples should differ"
        )


def _content_remarks(examined: Sequence[Examined]) -> Iterator[str]:
    """Lines about further pages, and about images that are darker than their type allows."""
    pages = sum(one.has_more_pages for one in examined)
    if pages:
        yield (
            f"{pages:,} of the {len(examined):,} images drawn have more than one page or frame; "
            "the first alone is read: save the pages as files to use them all"
        )
    values: dict[int, list[int]] = {}
    for one in examined:
        if one.brightest is not None:
            values.setdefault(one.brightest[1], []).append(one.brightest[0])
    for white, brightest_values in sorted(values.items()):
        largest = max(brightest_values)
        if largest * DARK < white:
            yield (
                f"warning: dark images: no value above {largest} in the first "
                f"{len(brightest_values)} drawn whose white is {white}; if they are not meant to "
                f"be dark, as of 12 bits in 16, scale their values to 0 .. {white}"
            )


def describe_bad(bad: Sequence[Bad]) -> str:
    """The number of bad images and the first of them, in words."""
    first = "; ".join(f"{one.id}: {one.reason}" for one in bad[:NAMED])
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return f"{len(bad)} bad {'image' if len(bad) == 1 else 'images'}: {first}{more}"


def _too_few(source: Source, usable: int, count: int, bad: Sequence[Bad] = ()) -> InputError:
    without = f" ({describe_bad(bad)})" if bad else ""
    kind = "usable images" if bad else "images"
    return InputError(
        f"--data {source.data}: holds {usable} {kind}, {count} were asked for{without}; lower -n",
        code="too-few-images",
    )


def shuffled(total: int, seed: int) -> list[int]:
    """The indices below `total` in the order of the seed."""
    # The stream of RandomState is frozen, unlike that of numpy's newer generators.
    order: list[int] = np.random.RandomState(seed % 2**32).permutation(total).tolist()
    return order


def as_text(name: str) -> str:
    """A name as text that can be stored: bytes that are not UTF-8, and NUL, are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace("\0", "\\x00")


def read_file(path: Path) -> bytes:
    """The content of a regular file."""
    with open_regular(path) as file:
        return file.read()
