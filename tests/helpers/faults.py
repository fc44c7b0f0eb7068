"""A checkpoint replaced while a ranking runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from make import checkpoint

from lidar_cli.ranking.session import Ranking

N, Q, SIZE = 24, 4, 24


def keywords(images: Path, **more: Any) -> dict[str, Any]:
    sizes = {"n_samples": N, "n_views": Q, "image_size": SIZE, "batch_size": 8, "device": "cpu"}
    return {"data": str(images)} | sizes | more


def values(ranking: Ranking) -> dict[str, float | None]:
    return {Path(row.path).name: row.value for group in ranking.groups for row in group.rows}


def replaced_in_place(path: Path, seed: int) -> None:
    """Other weights in the same file, of the same size, and with the same time of change."""
    before = path.stat()
    # Of the same name, since torch writes that into the file.
    content = checkpoint(path.parent.parent / "other" / path.name, seed).read_bytes()
    assert len(content) == before.st_size
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )
