"""What marks a feature file: its format, its name as a shard, and the record of its extraction.

The record is JSON that others may have written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lidar_cli.runtime.files import parse_json

FORMAT = "lidar-features"
SHARD_FORMAT = "lidar-features-shard"
VERSION = 1
# Rises with every change of code that alters a row, a view or a label of unchanged input.
#   1  everything before; files of that time record none
#   2  --assume and what it sets; views, pixel statistics and default branches of each method's own;
#      classes of an image folder by relative path; iBOT, MSN, solo-learn's MAE as themselves
EMBEDDING_REVISION = 2
SHARD = re.compile(r"(?P<joined>.+)\.shard-\d+-of-\d+\.h5", re.DOTALL)
NO_RECORD = "provenance is not the record of an extraction"
LONGEST = 2**20  # characters; ours have a few thousand
DEEPEST = 32  # lists and tables in one another
KINDS = {  # of what is used elsewhere; any of it may be absent, or null
    **dict.fromkeys(("checkpoint", "sha256", "data", "samples_sha256", "branch", "storage"), str),
    **dict.fromkeys(("seed", "n_samples", "n_views", "n_clean", "image_size", "batch_size"), int),
    "embedding_revision": int,
    **dict.fromkeys(("layers", "assumptions"), list),
    **dict.fromkeys(("views", "versions", "assumed"), dict),
}


def joined_name(path: Path) -> str | None:
    """The name of the file that a shard is part of, None if this is none by its name."""
    match = SHARD.fullmatch(path.name)
    return match["joined"] if match else None


def parsed(text: object) -> dict[str, Any]:
    """The record in an attribute. Raises ValueError if it is none, or made to do harm."""
    if not isinstance(text, str) or len(text) > LONGEST:
        raise ValueError("provenance is no text, or one beyond measure")
    found = parse_json(text, constant=_no_number)
    if not isinstance(found, dict) or not _is_shallow(found):
        raise ValueError(NO_RECORD)
    for name, kind in KINDS.items():
        value = found.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ValueError(f"{NO_RECORD}: {name} is a {type(value).__name__}")
    if not all(isinstance(one, dict) for one in (found.get("assumed") or {}).values()):
        raise ValueError(f"{NO_RECORD}: assumed without values")
    layers, views = found.get("layers") or [], found.get("views") or {"name": ""}
    if not all(isinstance(layer, str) for layer in layers) or not isinstance(
        views.get("name"), str
    ):
        raise ValueError(f"{NO_RECORD}: layers or views without names")
    return found


def revision_of(provenance: Mapping[str, Any]) -> int:
    """The embedding revision of the code that made a file; 1 where none is recorded."""
    revision: int = provenance.get("embedding_revision") or 1
    return revision


def _no_number(name: str) -> float:
    raise ValueError(f"provenance has {name} for a number")


def _is_shallow(record: dict[str, Any]) -> bool:
    level: list[Any] = [record]
    for _ in range(DEEPEST):
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return True
    return False
