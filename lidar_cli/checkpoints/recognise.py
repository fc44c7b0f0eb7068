"""The names and shapes in a checkpoint -> its backbone and heads, and each tensor's place.

A described format (formats/) comes first, the more specific before the less; what none claims is
read by the usual names (generic.py). Nothing is left out in silence, and torch is not needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints import described, generic, matching
from lidar_cli.checkpoints.containers import find_state_dict
from lidar_cli.checkpoints.families import NEXT
from lidar_cli.checkpoints.found import Description, Found
from lidar_cli.checkpoints.hf_config import architecture
from lidar_cli.checkpoints.weights import some
from lidar_cli.errors import CheckpointError

__all__ = ["NEXT", "Description", "Found", "find", "recognise"]


def recognise(
    path: Path,
    tree: Mapping[str, Any],
    *,
    arch: str | None = None,
    format: str = "auto",
    branch: str = "auto",
    layer: str = "auto",
    config: Mapping[str, Any] | None = None,
) -> Description:
    """What a checkpoint holds.

    tree: of `read_checkpoint`. arch: a timm name that overrules what the shapes tell. format: the
    name of a described format, or 'plain' for none of them. branch: 'student' or 'teacher'. layer:
    as `--layer` has it, for which an auto branch is chosen. config: config.json of a Hugging Face
    folder.
    Raises NoWeights if nothing in it is a weight, CheckpointError if it is not understood, and
    SettingsError for an arch that timm does not know, or an unknown format or branch.
    """
    found = find(path, tree, arch=arch, format=format, branch=branch, layer=layer, config=config)
    return found.description


def find(
    path: Path,
    tree: Mapping[str, Any],
    *,
    arch: str | None = None,
    activation: str = "auto",
    format: str = "auto",
    branch: str = "auto",
    layer: str = "auto",
    config: Mapping[str, Any] | None = None,
) -> Found:
    """Backbone and heads of a checkpoint, with the place of all tensors; see `recognise`."""
    matching.check_names(format, branch)

    def as_named(name: str | None) -> Found:
        match = matching.match(path, tree, format, config)
        if match is not None:
            return described.find(path, match, name, activation, branch, layer, config)
        found = generic.find(path, find_state_dict(path, tree), name, activation, config)
        if matching.BRANCHES[branch] == "teacher":
            raise CheckpointError(
                f"{path}: no branch {branch!r} in this checkpoint; it has encoder: "
                "leave --branch out"
            )
        return found

    named = _timm_name(path, config) if arch is None else None
    try:
        return as_named(arch or named)
    except CheckpointError:
        if named is None:
            raise
        # timm saves a model's name also where it was built at another depth or width.
        try:
            found = as_named(None)
        except CheckpointError:
            found = None
        if found is None or not _of_the_kind(found, named):
            raise
    told = found.description
    other = f"not timm's {named} that config.json names, whose tensors are others"
    told = dataclasses.replace(told, assumptions=(*told.assumptions, other))
    return dataclasses.replace(found, description=told)


def _of_the_kind(found: Found, name: str) -> bool:
    """Whether a backbone has no tensors but those of timm's model, if perhaps in other sizes."""
    import timm
    import torch

    with torch.device("meta"):
        known = timm.create_model(name, num_classes=0).state_dict()
    return found.backbone.tensors.keys() <= known.keys()


def _timm_name(path: Path, config: Mapping[str, Any] | None) -> str | None:
    """The model that timm's config.json names; raises CheckpointError if this timm has it not."""
    name = architecture(config)
    if name is not None:
        import timm

        if not timm.is_model(name):
            raise CheckpointError(
                f"{path}: config.json names timm's {some([name])}, which timm {timm.__version__} "
                "does not have; install a newer timm, or name another model with --arch"
            )
    return name
