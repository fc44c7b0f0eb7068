"""The words of a `rank --watch` command."""

from __future__ import annotations

from pathlib import Path

N, Q, SIZE = 24, 4, 24


def words(runs: Path, images: Path, *more: object) -> list[str]:
    command = ["rank", runs, "--watch", "--data", images, "-n", N, "-q", Q, "--image-size", SIZE]
    return [str(word) for word in [*command, "--device", "cpu", "--batch-size", 8, *more]]
