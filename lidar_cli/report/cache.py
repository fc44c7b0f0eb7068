"""The size of a cache by checkpoint, and what can be removed from it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lidar_cli.features.schema import format_size
from lidar_cli.ranking.cache import CacheFolder
from lidar_cli.ranking.names import short_names
from lidar_cli.ranking.pruning import UNTRAINED_NETWORKS, CacheFile
from lidar_cli.report.text import console, counted, print_columns


def total_size(files: Sequence[CacheFile]) -> str:
    """The size of the files together."""
    return format_size(sum(file.size for file in files))


def count_and_size(files: Sequence[CacheFile]) -> str:
    """`3 files, 1.20 GB`."""
    return f"{counted(len(files), 'file')}, {total_size(files)}"


def print_sizes(folder: CacheFolder, files: Sequence[CacheFile], command: str) -> None:
    """A table of size and files by checkpoint, largest first. command: what prunes the cache."""
    out = console()
    unused = [file for file in files if file.unused]
    by_checkpoint: dict[str, list[CacheFile]] = {}
    for file in files:
        if not file.unused:
            by_checkpoint.setdefault(file.checkpoint, []).append(file)
    names = short_names([path for path in by_checkpoint if path not in ("", UNTRAINED_NETWORKS)])
    largest = sorted(by_checkpoint.items(), key=lambda item: -sum(file.size for file in item[1]))
    rows = [
        [names.get(path, path or "(other)"), total_size(members), str(len(members))]
        for path, members in largest
    ]
    if unused:
        rows.append(["(unused)", total_size(unused), str(len(unused))])
    out.print_line(f"{folder.path}: {total_size(files)}, {counted(len(names), 'checkpoint')}")
    if rows:
        out.print()
        print_columns(out, ["checkpoint", "size", "files"], rows, 1)
    if unused:
        out.print()
        for reason in sorted({file.unused for file in unused if file.unused}):
            members = [file for file in unused if file.unused == reason]
            out.print_line(f"unused   {count_and_size(members)}: {reason}")
        out.print_line(f"next     {command}     frees {total_size(unused)}")


def to_json(folder: CacheFolder, files: Sequence[CacheFile], removed: Sequence[CacheFile]) -> str:
    """The files as JSON, with those that were removed."""
    gone = {file.name for file in removed}
    record = {
        "cache": str(folder.path),
        "bytes": sum(file.size for file in files if file.name not in gone),
        "removed_bytes": sum(file.size for file in removed),
        "files": [
            {
                "name": file.name,
                "bytes": file.size,
                "checkpoint": file.checkpoint or None,
                "unused": file.unused,
                "removed": file.name in gone,
            }
            for file in files
        ],
    }
    return json.dumps(record, indent=2)
