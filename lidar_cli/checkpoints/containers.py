"""Where in a file's containers the state dict lies, and its names without wrappers' additions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.lazy import is_tensor
from lidar_cli.checkpoints.weights import LONGEST, Weight, some
from lidar_cli.errors import CheckpointError, NoWeights

WRAPPERS = ("state_dict", "model_state_dict", "model")
# Put into names by DataParallel, torch.compile, FSDP and activation checkpointing.
ADDED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
WEIGHTS = ("weight", "weight_v", "original1", "kernel")  # last parts of the names of weights


@dataclass(frozen=True)
class StateDict:
    """Tensors by cleaned name, with where they were found and their names in the file."""

    container: str  # keys on the way to it, joined by dots; '' for the file itself
    tensors: dict[str, Weight]
    originals: dict[str, str]
    others: tuple[str, ...]  # names of what is no tensor, beside the tensors in an inner dict


def find_state_dict(path: Path, tree: Mapping[str, Any]) -> StateDict:
    """The one state dict of a file: of all places where one may lie, that with the most weights.

    Raises NoWeights if there is no weight anywhere in the file, and CheckpointError if all lie in
    other places, or two names become one without the wrappers' additions.
    """
    container, found = max(candidates(tree), key=lambda place: _weights(place[1]))
    if not _weights(found):
        places = sorted(_elsewhere(tree))
        if places:
            raise CheckpointError(
                f"{path}: weights lie under {some(places)}; expected a state dict in the file "
                f"itself or under {', '.join(WRAPPERS)}; save that state dict alone"
            )
        inside = some([str(key) for key in tree]) if tree else "nothing"
        raise NoWeights(f"{path}: holds no model weights (found {inside})")
    tensors: dict[str, Weight] = {}
    originals: dict[str, str] = {}
    others = []
    for name, value in found.items():
        if not is_tensor(value):
            others.append(str(name))
            continue
        cleaned = clean(str(name))
        if cleaned in tensors:
            both = some([originals[cleaned], str(name)])
            raise CheckpointError(
                f"{path}: {both} are one name without the additions "
                "of wrappers; expected one; save the state dict of one model"
            )
        tensors[cleaned], originals[cleaned] = value, str(name)
    # Beside the tensors of the outermost dict lie an epoch, arguments and the like.
    return StateDict(container, tensors, originals, tuple(others) if container else ())


def candidates(tree: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The dict itself and all that lie in it under wrappers only, outermost first."""
    places = [("", tree)]
    for name, inner in places:  # grows while it is walked
        for key in WRAPPERS:
            value = inner.get(key)
            # A container that holds itself is no tree, but a pickle can make one.
            if isinstance(value, dict) and name.count(".") < 3:
                places.append((f"{name}.{key}".lstrip("."), value))
    return places


def clean(name: str) -> str:
    """A name without the parts that wrappers add: 'a.weight' for 'module.a._orig_mod.weight'."""
    return ".".join(part for part in name.split(".") if part not in ADDED)


def _weights(state: Mapping[Any, Any]) -> int:
    """How many of the entries are weights."""
    return sum(
        is_tensor(value) and isinstance(name, str) and name.rpartition(".")[2] in WEIGHTS
        for name, value in state.items()
    )


def _elsewhere(tree: Mapping[Any, Any], depth: int = 4) -> Iterator[str]:
    """Keys, down to some depth, of the dicts that hold weights; each dict is told once."""
    level: list[tuple[str, Mapping[Any, Any]]] = [("", tree)]
    seen = {id(tree)}
    for _ in range(depth):
        inside = []
        for name, inner in level:
            for key, value in inner.items():
                if isinstance(value, dict) and id(value) not in seen:
                    seen.add(id(value))
                    inside.append((f"{name}{str(key)[:LONGEST]}", value))
        yield from (name for name, inner in inside if _weights(inner))
        level = [(f"{name}.", inner) for name, inner in inside]
