"""The samples of a run: drawn, ordered, and decoded when they are asked for."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lidar_cli.data.decode import Content, Undecodable, decoded
from lidar_cli.errors import InputError, first_line

SKIP = "leave out what is bad with --bad-samples skip"
NAMED = 3  # bad images that a line names; the file lists them all


@dataclass(frozen=True)
class Bad:
    """An image that was left out, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Samples:
    """N images, drawn and ordered by seed.

    labels: class numbers [N], -1 unknown, or None; for the oracle only.
    image_size: the side that all images have by construction, or None.
    fingerprint: sha256 of the ordered ids and contents: equal where the images are, wherever they
    lie, so that features of one place serve another and never those of changed images.
    checksums: CRC-32 of each content [N], or none: a file that changes later is then refused.
    bad: images that came up in the draw and were left out.
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
        """Of the ordered labels, None without any: what features are stored with."""
        if self.labels is None:
            return None
        return hashlib.sha256(np.asarray(self.labels, "<i8").tobytes()).hexdigest()

    def decode(self, i: int) -> Tensor:
        """Sample i as uint8 [height, width, 3]; safe to call from several threads.

        Raises InputError, naming the image, if it cannot be read or decoded, or is another now.
        """
        try:
            content = self.read(i)
            if isinstance(content, bytes) and self.checksums:
                self._check(i, content)
            return torch.from_numpy(decoded(content))
        except InputError:
            raise
        except Exception as error:  # whatever a reader of other people's files meets
            if isinstance(error, OSError) and error.strerror:  # the system's, not a decoder's
                fault = f"cannot be read: {error.strerror}"
            else:
                reason = str(error) if isinstance(error, Undecodable) else first_line(error)
                fault = f"cannot be decoded as an image: {reason}"
            raise InputError(
                f"{self.ids[i]} (in {self.data}): {fault}; repair or remove it, or {SKIP}"
            ) from error

    def remembering(self, memory: int) -> Samples:
        """The same samples, each decoded once only, as far as `memory` bytes suffice."""
        kept: dict[int, np.ndarray] = {}
        left = [memory]

        def read(i: int) -> np.ndarray:
            if i in kept:
                return kept[i]
            image = self.decode(i).numpy()
            if image.nbytes <= left[0]:
                left[0] -= image.nbytes
                kept[i] = image
            return image

        return replace(self, read=read)

    def _check(self, i: int, content: bytes) -> None:
        """Features are known by the fingerprint, and must be of the contents that it tells."""
        if zlib.crc32(content) != self.checksums[i]:
            raise InputError(
                f"{self.ids[i]} (in {self.data}): changed since this run began; run again"
            )


def describe_bad(bad: Sequence[Bad]) -> str:
    """How many images are bad, and the first of them, in words."""
    first = "; ".join(f"{one.id}: {one.reason}" for one in bad[:NAMED])
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return f"{len(bad)} bad {'image' if len(bad) == 1 else 'images'}: {first}{more}"
