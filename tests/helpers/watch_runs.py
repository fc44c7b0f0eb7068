"""The words of a `rank --watch` command."""

from __future__ import annotations

from pathlib import Path

import pytest
from make import image_folder

N, Q, SIZE = 24, 4, 24


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), N)


def words(runs: Path, images: Path, *more: object) -> list[str]:
    told = ["rank", runs, "--watch", "--data", images, "-n", N, "-q", Q, "--image-size", SIZE]
    return [str(word) for word in [*told, "--device", "cpu", "--batch-size", 8, *more]]
