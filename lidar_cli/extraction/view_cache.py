"""A cache of views, which the first checkpoint of a ranking fills and the others read.

A view depends only on recipe, seed, size and sample, so cached views are bit for bit those that
would be made again. The cache fills device memory, then main memory, then a scratch file; views
that fit nowhere are made again.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from lidar_cli.configuration import parse_size
from lidar_cli.runtime.device import MEMORY_SHARE, free_memory


@dataclass(frozen=True)
class CacheLimits:
    """Bytes of cached views in device memory, main memory and the scratch file, at most."""

    device: int
    memory: int
    scratch: int

    @classmethod
    def of(cls, option: str, device: torch.device, folder: Path) -> CacheLimits:
        """The limits that `--view-memory` sets. At 0 the caller makes no cache.

        auto limits each to a share of what is free; a size limits main memory, and device memory
        and the disk of `folder` are limited as by auto. Raises SettingsError if the option is no
        size.
        """
        memory = view_memory(option)
        on_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        return cls(
            int(on_device * MEMORY_SHARE),
            int(free_memory() * MEMORY_SHARE) if memory is None else memory,
            int(shutil.disk_usage(folder).free * MEMORY_SHARE),
        )


def view_memory(option: str) -> int | None:
    """Bytes of main memory for cached views; None for auto.

    Raises SettingsError if the option is no size.
    """
    if option.strip().lower() == "auto":
        return None
    return 0 if option.strip() == "0" else parse_size(option)


class ViewCache:
    """Normalised images [k, 3, S, S] by sample; the caller chooses k.

    A context manager that frees everything at its end. The scratch file is unlinked as soon as it
    is open, so that no other process reads it and no file remains, however this process ends.
    """

    def __init__(self, limits: CacheLimits, device: torch.device, folder: Path) -> None:
        self._tiers: list[_Memory | _Scratch] = [
            _Memory(limits.device, device),
            _Memory(limits.memory, torch.device("cpu")),
            _Scratch(limits.scratch, folder),
        ]
        self._tier_of: dict[int, _Memory | _Scratch] = {}

    def __contains__(self, sample: int) -> bool:
        return sample in self._tier_of

    def add(self, sample: int, images: Tensor) -> None:
        """Cache the images of a sample if they fit; the caller must not change them later."""
        for tier in self._tiers:
            if tier.add(sample, images):
                self._tier_of[sample] = tier
                return

    def images(self, sample: int) -> Tensor:
        """The images of a cached sample, on the device or the CPU.

        Raises OSError if the scratch file cannot be read.
        """
        return self._tier_of[sample].images(sample)

    def __enter__(self) -> ViewCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._tier_of.clear()
        for tier in self._tiers:
            tier.close()


class _Memory:
    """Images on a device or in main memory, up to a limit in bytes."""

    def __init__(self, limit: int, device: torch.device) -> None:
        self._free = limit
        self._device = device
        self._images: dict[int, Tensor] = {}

    def add(self, sample: int, images: Tensor) -> bool:
        if images.nbytes > self._free:
            return False
        self._images[sample] = images.to(self._device)
        self._free -= images.nbytes
        return True

    def images(self, sample: int) -> Tensor:
        return self._images[sample]

    def close(self) -> None:
        self._images.clear()


class _Scratch:
    """Images in a temporary file, up to a limit in bytes.

    The file is not memory-mapped: on a full disk a write to a mapped page ends the process by a
    signal, while `write` raises an error, after which views are made again.
    """

    def __init__(self, limit: int, folder: Path) -> None:
        self._free = limit
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._end = 0
        self._index: dict[int, tuple[int, torch.Size]] = {}  # sample -> offset, shape

    def add(self, sample: int, images: Tensor) -> bool:
        if images.nbytes > self._free:
            return False
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
            self._file.seek(self._end)
            content = images.cpu().contiguous().numpy().data.cast("B")
            while content:
                content = content[self._file.write(content) :]
        except OSError:
            self._free = 0  # the disk is full; images written before remain readable
            return False
        self._index[sample] = self._end, images.shape
        self._end += images.nbytes
        self._free -= images.nbytes
        return True

    def images(self, sample: int) -> Tensor:
        assert self._file is not None
        offset, shape = self._index[sample]
        images = torch.empty(shape)
        content = images.numpy().data.cast("B")
        self._file.seek(offset)
        while content:
            count = self._file.readinto(content)  # type: ignore[attr-defined]
            if not count:
                raise OSError("the scratch file of cached views ends early")
            content = content[count:]
        return images

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
