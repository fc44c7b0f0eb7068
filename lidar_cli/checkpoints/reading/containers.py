"""Finds the state dict in a checkpoint's nested dicts, and removes wrappers' parts of its names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.models.weights import LONGEST_NAME, first_few
from lidar_cli.checkpoints.reading.lazy_tensor import Weight, is_tensor
from lidar_cli.errors import CheckpointError, NoWeights

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # "module" is DeepSpeed's
AVERAGES = (  # keys of a second state dict, a moving average of the first
    *("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model"),
    *("ema", "averaged_model"),
)
# Inserted into names by DataParallel, torch.compile, FSDP and activation checkpointing.
ADDED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
WEIGHTS = ("weight", "weight_v", "original1", "kernel")  # last parts of the names of weights


@dataclass(frozen=True)
class StateDict:
    """Tensors by cleaned name, with their place and their names in the file."""

    container: str  # keys that lead to it, joined by dots; '' for the file itself
    tensors: dict[str, Weight]
    originals: dict[str, str]
    others: tuple[str, ...]  # names of values of an inner dict that are not tensors
    dicts: frozenset[int] = frozenset()  # ids of the containers that it was read from


def find_state_dict(path: Path, tree: Mapping[str, Any]) -> StateDict:
    """The state dict of a file: of all candidates, the one with the most weights.

    Raises NoWeights if the file holds no weights, and CheckpointError if all are in other places,
    or two names become equal without the wrappers' parts.
    """
    container, state = max(candidates(tree), key=lambda place: _count_weights(place[1]))
    if not _count_weights(state):
        places = sorted(_elsewhere(tree))
        if places:
            raise CheckpointError(
                f"{path}: weights lie under {first_few(places)}; expected a state dict in the file "
                f"itself or under {', '.join(WRAPPERS)}; save that state dict alone"
            )
        inside = first_few([str(key) for key in tree]) if tree else "nothing"
        raise NoWeights(f"{path}: holds no model weights (found {inside})")
    tensors: dict[str, Weight] = {}
    originals: dict[str, str] = {}
    others = []
    for name, value in state.items():
        if not is_tensor(value):
            others.append(str(name))
            continue
        cleaned = clean(str(name))
        if cleaned in tensors:
            both = first_few([originals[cleaned], str(name)])
            raise CheckpointError(
                f"{path}: {both} are one name without the additions "
                "of wrappers; expected one; save the state dict of one model"
            )
        tensors[cleaned], originals[cleaned] = value, str(name)
    # The outermost dict also holds an epoch, arguments and the like.
    others = others if container else []
    return StateDict(container, tensors, originals, tuple(others), frozenset({id(state)}))


def average(tree: Mapping[str, Any]) -> str | None:
    """The key of a second state dict with averaged weights; None if there is none."""
    for key in AVERAGES:
        value = tree.get(key)
        if isinstance(value, dict) and any(_count_weights(inner) for _, inner in candidates(value)):
            return key
    return None


def raw_container(tree: Mapping[str, Any], key: str) -> str | None:
    """The key of the raw weights whose average is under `key`; '' for the file itself.

    None if there are no other weights.
    """
    rest = {name: value for name, value in tree.items() if name != key}
    container, state = max(candidates(rest), key=lambda place: _count_weights(place[1]))
    return container.partition(".")[0] if _count_weights(state) else None


def with_average(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The tree with the averaged weights in place of the raw ones."""
    raw = raw_container(tree, key)
    dicts = [name for name in WRAPPERS if isinstance(tree.get(name), dict)]
    rest = {
        name: value
        for name, value in tree.items()
        if name not in (key, *dicts) and not (raw == "" and is_tensor(value))
    }
    return {**rest, raw or WRAPPERS[0]: tree[key]}


def unused(tree: Mapping[Any, Any], used: frozenset[int]) -> list[str]:
    """Names of dicts with weights and of tensors outside the containers with ids `used`."""
    names = [
        _name(key)
        for key, value in tree.items()
        if id(tree) not in used and is_tensor(value) and len(value.shape)
    ]
    return [*names, *dict.fromkeys(_elsewhere(tree, used=used))]


def candidates(tree: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The dict itself and all dicts nested in it under WRAPPERS only, outermost first."""
    places = [("", tree)]
    for name, inner in places:  # grows during the iteration
        for key in WRAPPERS:
            value = inner.get(key)
            # The depth is limited because a dict in a pickle can contain itself.
            if isinstance(value, dict) and name.count(".") < 3:
                places.append((f"{name}.{key}".lstrip("."), value))
    return places


def clean(name: str) -> str:
    """A name without wrappers' parts: 'a.weight' for 'module.a._orig_mod.weight'."""
    return ".".join(part for part in name.split(".") if part not in ADDED)


def _count_weights(state: Mapping[Any, Any]) -> int:
    """The number of entries that are weights."""
    return sum(
        is_tensor(value) and isinstance(name, str) and name.rpartition(".")[2] in WEIGHTS
        for name, value in state.items()
    )


def _elsewhere(
    tree: Mapping[Any, Any], depth: int = 4, used: frozenset[int] = frozenset()
) -> Iterator[str]:
    """Keys of all dicts with weights down to `depth`, each dict once.

    used: ids of dicts to leave out, with their contents.
    """
    level: list[tuple[str, Mapping[Any, Any]]] = [("", tree)]
    seen = {id(tree), *used}
    for _ in range(depth):
        inside = []
        for name, inner in level:
            for key, value in inner.items():
                if isinstance(value, dict) and id(value) not in seen:
                    seen.add(id(value))
                    inside.append((f"{name}{_name(key)}", value))
        yield from (name for name, inner in inside if _count_weights(inner))
        level = [(f"{name}.", inner) for name, inner in inside]


def _name(key: object) -> str:
    """A key for a message; of a key that is not text, which may be of any size, its type."""
    return key[:LONGEST_NAME] if isinstance(key, str) else f"({type(key).__name__})"
