"""Samples as a command opens them, and whether they are the crops that their names say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make import crop, size
from numpy.typing import NDArray

from lidar_cli.data.dataset import Samples
from lidar_cli.data.open import open_samples
from lidar_cli.errors import InputError
from lidar_cli.settings import SampleSettings

Pixels = NDArray[np.uint8]


def opened(data: object, n: int, **more: Any) -> Samples:
    return open_samples(SampleSettings(data=str(data), n_samples=n, **more))


def decoded(samples: Samples) -> list[Pixels]:
    return [samples.decode(i).numpy() for i in range(len(samples))]


def number(name: str) -> int:
    """The index from which the file was made, as its name says."""
    return int(Path(name).stem)


def assert_crops(samples: Samples, index_of: Callable[[str], int] = number) -> None:
    """Each sample is the very crop that its id says."""
    for i, name in enumerate(samples.ids):
        index = index_of(name)
        assert np.array_equal(samples.decode(i).numpy(), crop(index, *size(index))), name


def refused(data: object, n: int = 1, **more: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(data, n, **more)
    text = str(caught.value)
    assert "\n" not in text
    return text
