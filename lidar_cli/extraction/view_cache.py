"""Drawn views, kept from one checkpoint to the next.

A view is a function of recipe, seed, size and sample alone, so the first checkpoint of a ranking
draws it and the others read it: device memory first, then main memory, then a scratch file; a
sample that fits nowhere is drawn again. What is read is what was drawn, bit for bit.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import torch
from torch import Tensor

from lidar_cli.runtime.device import MEMORY_SHARE, free_memory
from lidar_cli.settings import parse_size


@dataclass(frozen=True)
class Room:
    """Bytes that kept views may take in each place."""

    device: int
    memory: int
    scratch: int

    @classmethod
    def of(cls, asked: str, device: torch.device, folder: Path) -> Room | None:
        """Room for `--view-memory`: None for 0, a share of what is free for auto.

        A size bounds main memory; the device and the disk of `folder` give their share as ever.
        Raises SettingsError for what is no size.
        """
        memory = view_memory(asked)
        if memory == 0:
            return None
        on_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        return cls(
            int(on_device * MEMORY_SHARE),
            int(free_memory() * MEMORY_SHARE) if memory is None else memory,
            int(shutil.disk_usage(folder).free * MEMORY_SHARE),
        )


def view_memory(asked: str) -> int | None:
    """Bytes of main memory for kept views, 0 for none, None for auto. Raises SettingsError."""
    if asked.strip().lower() == "auto":
        return None
    return 0 if asked.strip() == "0" else parse_size(asked)


class ViewStore:
    """The normalised images of samples: [k, 3, S, S] each, k of the caller's choice.

    A context manager; leaving it frees everything. The scratch file has no name, or loses it at
    once, so that no other process can read it and none is left behind, whatever ends this one.
    """

    def __init__(self, room: Room, device: torch.device, folder: Path) -> None:
        self._tiers: list[_Tier] = [
            _Memory(room.device, device),
            _Memory(room.memory, torch.device("cpu")),
            _Scratch(room.scratch, folder),
        ]
        self._kept: dict[int, _Tier] = {}

    def __contains__(self, sample: int) -> bool:
        return sample in self._kept

    def keep(self, sample: int, images: Tensor) -> None:
        """Keep the images of a sample if there is room; they are the store's from now on."""
        for tier in self._tiers:
            if tier.keep(sample, images):
                self._kept[sample] = tier
                return

    def images(self, sample: int) -> Tensor:
        """The images of a sample that is kept, where they are kept.

        Raises OSError if the scratch file cannot be read.
        """
        return self._kept[sample].images(sample)

    def __enter__(self) -> ViewStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.clear()
        for tier in self._tiers:
            tier.close()


class _Tier(Protocol):
    """One place for images, that takes them until its bytes are spent."""

    def keep(self, sample: int, images: Tensor) -> bool: ...
    def images(self, sample: int) -> Tensor: ...
    def close(self) -> None: ...


class _Memory:
    def __init__(self, room: int, device: torch.device) -> None:
        self._left = room
        self._device = device
        self._images: dict[int, Tensor] = {}

    def keep(self, sample: int, images: Tensor) -> bool:
        if images.nbytes > self._left:
            return False
        self._images[sample] = images.to(self._device)
        self._left -= images.nbytes
        return True

    def images(self, sample: int) -> Tensor:
        return self._images[sample]

    def close(self) -> None:
        self._images.clear()


class _Scratch:
    """A file, written and read in place rather than mapped.

    A disk that fills up is then an error, after which views are drawn again, and not the signal
    that would end a process which writes to a mapped page.
    """

    def __init__(self, room: int, folder: Path) -> None:
        self._left = room
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._end = 0
        self._places: dict[int, tuple[int, torch.Size]] = {}  # offset, shape

    def keep(self, sample: int, images: Tensor) -> bool:
        if images.nbytes > self._left:
            return False
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
            self._file.seek(self._end)
            content = images.cpu().contiguous().numpy().data.cast("B")
            while content:
                content = content[self._file.write(content) :]
        except OSError:
            self._left = 0  # the disk is full, or refuses: what it holds already stays
            return False
        self._places[sample] = self._end, images.shape
        self._end += images.nbytes
        self._left -= images.nbytes
        return True

    def images(self, sample: int) -> Tensor:
        assert self._file is not None
        offset, shape = self._places[sample]
        images = torch.empty(shape)
        content = images.numpy().data.cast("B")
        self._file.seek(offset)
        while content:
            count = self._file.readinto(content)  # type: ignore[attr-defined]
            if not count:
                raise OSError("the scratch file of kept views ends early")
            content = content[count:]
        return images

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
