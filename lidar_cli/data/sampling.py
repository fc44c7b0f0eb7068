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
from contextlib import suppress
from dataclasses import dataclass
from itertools import count as numbers_from
from itertools import islice

from PIL import Image

from lidar_cli.data.dataset import SKIP, Bad, Samples, describe_bad
from lidar_cli.data.decode import Content, Undecodable, brightest, decoded, has_more_pages
from lidar_cli.data.source import Candidate, Source
from lidar_cli.errors import InputError, first_line

READERS = 8  # threads
LOOKED_AT = 32  # images of the draw whose range is looked at
DARK = 4  # images that stay below this part of their range are most likely not scaled to it


@dataclass(frozen=True)
class Examined:
    """What reading an image shows. brightest: its largest value and that of its type, or None."""

    checksum: int
    length: int
    has_more_pages: bool
    brightest: tuple[int, int] | None


def draw(source: Source, count: int, skip: bool) -> Samples:
    """The first `count` images; with `skip` those that can be read and decoded.

    Raises InputError if there are too few, or one cannot be read and is not to be skipped.
    """
    if source.total is not None and count > source.total:
        raise _too_few(source, source.total, count)
    kept: list[Candidate] = []
    good: list[Examined] = []
    bad: list[Bad] = []
    for candidate, found in _examined(source, count, skip, kept):
        if isinstance(found, Bad):
            bad.append(found)
        else:
            kept.append(candidate)
            good.append(found)
    if len(kept) < count:
        raise _too_few(source, len(kept), count, bad)
    labels = [candidate.label for candidate in kept]
    ids = [candidate.id for candidate in kept]
    checksums = [one.checksum for one in good]
    return Samples(
        data=source.data,
        ids=ids,
        labels=labels if any(label >= 0 for label in labels) else None,
        read=lambda i: kept[i].read(),
        image_size=source.image_size,
        fingerprint=_fingerprint(ids, checksums),
        checksums=checksums,
        bad=bad,
        remarks=[*source.remarks, *_remarks(good), *_copies(kept, good)],
    )


def _copies(kept: Sequence[Candidate], good: Sequence[Examined]) -> Iterator[str]:
    """A line if a hundredth of the images, or more, have the content of another.

    Equal checksums and lengths are taken for equal contents once one pair has shown that they are.
    """
    first_with: dict[tuple[int, int], int] = {}
    pairs = [
        (first_with[key], i)
        for i, one in enumerate(good)
        if first_with.setdefault(key := (one.checksum, one.length), i) != i
    ]
    if 100 * len(pairs) < len(good) or not pairs:
        return
    one, other = (kept[i] for i in pairs[0])
    with suppress(Exception):  # it vanished since, and is refused where it is decoded
        if _bytes(one.read()) != _bytes(other.read()):
            return
        yield (
            f"warning: copies: {len(pairs):,} of the {len(good):,} images drawn have the content "
            f"of another, such as {one.id} and {other.id}; samples should differ"
        )


def _remarks(good: Sequence[Examined]) -> Iterator[str]:
    """What the images themselves show that a user would not expect."""
    pages = sum(one.has_more_pages for one in good)
    if pages:
        yield (
            f"{pages:,} of the {len(good):,} images drawn have more than one page or frame; the "
            "first alone is read: save the pages as files to use them all"
        )
    values: dict[int, list[int]] = {}
    for one in good:
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


def _examined(
    source: Source, count: int, skip: bool, kept: Sequence[Candidate]
) -> Iterator[tuple[Candidate, Examined | Bad]]:
    """Candidates in their order until `kept` has `count`, each with what it shows or its fault."""

    def examine(candidate: Candidate, place: int) -> Examined | Bad:
        return _examine(candidate, source.data, skip, place < LOOKED_AT)

    coming = iter(source.candidates)
    places = numbers_from()
    with ThreadPoolExecutor(READERS) as pool:
        while window := list(islice(coming, count - len(kept))):
            yield from zip(window, pool.map(examine, window, places), strict=True)


def _examine(candidate: Candidate, data: str, skip: bool, look: bool) -> Examined | Bad:
    """What the content shows; with `skip` what is wrong, if it cannot be read or decoded.

    look: at the range of its values too, which takes decoding it.
    """
    values = None
    try:
        content = candidate.read()
        if skip:
            decoded(content)
        if look:
            with suppress(Undecodable):  # refused where it is embedded
                values = brightest(content)
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


def _too_few(source: Source, found: int, asked: int, bad: Sequence[Bad] = ()) -> InputError:
    without = f" ({describe_bad(bad)})" if bad else ""
    kind = "usable images" if bad else "images"
    return InputError(
        f"--data {source.data}: holds {found} {kind}, {asked} were asked for{without}; lower -n"
    )
