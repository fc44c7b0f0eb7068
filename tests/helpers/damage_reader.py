"""Everything that reads a feature file, in processes that a damaged one may cost; see `damage`."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from feature_files import CLEAN, IDS, LAYOUT, PROVENANCE, create, write

from lidar_cli.errors import LidarError
from lidar_cli.features.embeddings import Embeddings
from lidar_cli.features.reader import (
    read_first,
    read_hdf5,
    read_interrupted,
    read_labels,
    read_provenance,
)
from lidar_cli.features.schema import Share, partial_path
from lidar_cli.features.shards import join_shards, shard_path
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.probing.run import probe_files
from lidar_cli.ranking.digests import Digests
from lidar_cli.ranking.discover import DirectoryScan, Recogniser, classify_file
from lidar_cli.report.scores import to_json
from lidar_cli.runtime.progress import Progress
from lidar_cli.runtime.sandbox import SHARED, Limits
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ProbeSettings, RankSettings, ScoreSettings

MEMORY = 3 << 29  # bytes, all of the process
LEAVES = 77  # the exit status where there is no more input
SHARES = [Share(0, 2, range(3)), Share(1, 2, range(3, CLEAN))]


def shards(path: Path) -> None:
    """Write both shards of a file, complete."""
    for share in SHARES:
        shard = shard_path(path, share.rank, share.ranks)
        with create(shard, share=share) as writer:
            write(writer, share.span.start, share.span.stop)
            writer.finish()


def joined(path: Path) -> dict[str, Any]:
    """What is read of the file after its shards are joined again."""
    path.unlink(missing_ok=True)
    assert join_shards(path, LAYOUT, SHARES, IDS, None, [], PROVENANCE)
    return arrays(path)


def rows(embeddings: Embeddings) -> list[str]:
    """Views and clean embeddings, every bit."""
    chunks = list(embeddings.chunks(200))
    parts = [[chunk.views for chunk in chunks], [chunk.clean for chunk in chunks]]
    present = [[one for one in part if one is not None] for part in parts]
    return [torch.cat(part).numpy().tobytes().hex() if part else "" for part in present]


def arrays(path: Path) -> dict[str, Any]:
    """The rows by layer, and whether they have checksums."""
    layers = read_hdf5(path)
    return {
        "rows": {one.layer: rows(one) for one in layers},
        "verified": all(one.verify is not None for one in layers),
    }


def first(path: Path) -> dict[str, Any]:
    return {"rows": {"backbone": rows(read_first(path, "backbone", 3))}, "verified": True}


def labels(path: Path) -> object:
    numbers = read_labels(path)
    return None if numbers is None else [str(numbers.dtype), numbers.tolist()]


def scored(path: Path) -> object:
    records = json.loads(to_json(score_file(path, ScoreSettings(device="cpu"))))
    return [record | {"file": path.name} for record in records]


def probed(path: Path) -> object:
    result = probe_files([path], [None], ProbeSettings(device="cpu", method="ridge"))
    if result.failed:
        raise LidarError(result.failed[0].reason)
    return [(one.layer, one.top1, one.n_train, one.n_test) for one in result.probed]


def surveyed(path: Path) -> object:
    scan = DirectoryScan()
    digests = Digests(path.parent / "kept")
    classify_file(path, scan, Recogniser(RankSettings()), Progress(), digests)
    if scan.failed or scan.skipped:
        raise LidarError((scan.failed + scan.skipped)[0].reason)
    return [one.provenance for one in scan.features]


def resumed(path: Path) -> dict[str, Any]:
    """The finished samples, and all rows after the rest was written."""
    partial = partial_path(path)
    before = partial.read_bytes()
    try:
        writer = FeatureWriter.resume(path, LAYOUT, PROVENANCE)
    except LidarError:
        assert partial.read_bytes() == before, "a refused file was changed"
        raise
    with writer:
        done = writer.done.tolist()
        for i in np.flatnonzero(~writer.done).tolist():
            write(writer, i, i + 1)
        writer.finish()
    return {"done": done} | arrays(path)


COMPLETE: dict[str, Callable[[Path], object]] = {
    "provenance": read_provenance,
    "labels": labels,
    "rows": arrays,
    "score": scored,
    "probe": probed,
    "survey": surveyed,
}
READERS: dict[str, dict[str, Callable[[Path], object]]] = {
    "complete": COMPLETE,
    "packed": COMPLETE,
    "partial": {"provenance": read_interrupted, "first": first, "rows": resumed},
    "joined": {"provenance": read_provenance, "rows": arrays, "score": scored},
    "shard": {"rows": arrays, "join": joined},
}


def outcome(read: Callable[[Path], object], path: Path) -> tuple[str, object]:
    try:
        return "read", read(path)
    except LidarError as error:
        return "refused", str(error)
    except Exception:
        return "traceback", traceback.format_exc()


def answer(kind: str, path: str, seconds: int) -> dict[str, tuple[str, object]]:
    """The outcome of each reader."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    outcomes = {name: outcome(read, Path(path)) for name, read in READERS[kind].items()}
    faulthandler.cancel_dump_traceback_later()
    return outcomes


def lines() -> None:
    """Answer one order a line, unbuffered, since another process may go on where this one dies."""
    line = b""
    while byte := os.read(0, 1):
        line += byte
        if byte == b"\n":
            os.write(1, json.dumps(answer(**json.loads(line))).encode() + b"\n")
            line = b""


def serve() -> None:
    SHARED.limits = Limits(seconds=1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("error")
    while True:
        reader = os.fork()
        if not reader:
            lines()
            os._exit(LEAVES)
        status = os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1])
        if status == LEAVES:
            sys.exit()
        os.write(1, json.dumps({"lost": status}).encode() + b"\n")


if __name__ == "__main__":
    serve()
