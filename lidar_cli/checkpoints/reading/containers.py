"""Finds the state dict in a checkpoint's nested dicts, and removes name parts such as 'module'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.branch_words import is_averaged
from lidar_cli.checkpoints.models.weights import LONGEST_NAME, first_few
from lidar_cli.checkpoints.reading.lazy_tensor import Weight, is_tensor
from lidar_cli.errors import CheckpointError, NoWeights

CONTAINER_KEYS = ("state_dict", "model_state_dict", "model", "module")  # "module" is DeepSpeed's
# Name parts that DataParallel, torch.compile, FSDP, activation checkpointing and Lightning insert.
WRAPPER_PARTS = (
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    "_forward_module",
)
WEIGHT_NAMES = ("weight", "weight_v", "original1", "kernel")  # last parts of the names of weights


@dataclass(frozen=True)
class StateDict:
    """Tensors by name without wrappers' parts (see WRAPPER_PARTS)."""

    container: str  # keys of the nested dicts that lead to it, joined by dots; '' at the top level
    tensors: dict[str, Weight]
    originals: dict[str, str]  # name here -> name in the file
    others: tuple[str, ...]  # names of values that are not tensors; empty at the top level
    dicts: frozenset[int] = frozenset()  # ids of the dicts that the tensors were read from


def find_state_dict(path: Path, tree: Mapping[str, Any]) -> StateDict:
    """The state dict of a file: of all `candidate_dicts`, the one with the most weights.

    If these have none, the weights of all nested dicts, see `all_weights`.
    Raises NoWeights if the file holds no weights, and CheckpointError if two names become equal
    without the wrappers' parts.
    """
    container, state = _with_most_weights(tree)
    if not _count_weights(state):
        nested = all_weights(tree)
        if nested.tensors:
            return nested
        inside = first_few([str(key) for key in tree]) if tree else "nothing"
        raise NoWeights(f"{path}: holds no model weights (found {inside})")
    tensors: dict[str, Weight] = {}
    originals: dict[str, str] = {}
    others = []
    for name, value in state.items():
        if not is_tensor(value):
            others.append(str(name))
            continue
        cleaned = clean_name(str(name))
        if cleaned in tensors:
            both = first_few([originals[cleaned], str(name)])
            raise CheckpointError(
                f"{path}: {both} are one name without the additions "
                "of wrappers; expected one; save the state dict of one model"
            )
        tensors[cleaned], originals[cleaned] = value, str(name)
    # A dict at the top level also holds an epoch, arguments and the like.
    others = others if container else []
    return StateDict(container, tensors, originals, tuple(others), frozenset({id(state)}))


def all_weights(tree: Mapping[str, Any]) -> StateDict:
    """The tensors of all nested dicts with weights; names begin with the keys of their dicts.

    Of names that become equal without the wrappers' parts, the first.
    """
    dicts = list(_dicts_with_weights({"": tree}))
    tensors: dict[str, Weight] = {}
    originals: dict[str, str] = {}
    for at, inner in dicts:
        for name, value in inner.items():
            original = f"{at}.{name}".lstrip(".")
            if is_tensor(value) and clean_name(original) not in tensors:
                tensors[clean_name(original)] = value
                originals[clean_name(original)] = original
    return StateDict("", tensors, originals, (), frozenset(id(inner) for _, inner in dicts))


def average_keys(tree: Mapping[str, Any]) -> list[str]:
    """The keys of state dicts with averaged or frozen weights."""
    return [
        key
        for key, value in tree.items()
        if isinstance(key, str) and is_averaged(key) and isinstance(value, dict)
        if any(_count_weights(inner) for _, inner in candidate_dicts(value))
    ]


def raw_key(tree: Mapping[str, Any], key: str) -> str | None:
    """The key of the weights whose average is under `key`; '' if they are at the top level.

    None if there are no other weights.
    """
    rest = {name: value for name, value in tree.items() if name != key}
    container, state = _with_most_weights(rest)
    return container.partition(".")[0] if _count_weights(state) else None


def with_average(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The tree with the averaged weights under `key` replacing the weights they average."""
    raw = raw_key(tree, key)
    dicts = [name for name in CONTAINER_KEYS if isinstance(tree.get(name), dict)]
    rest = {
        name: value
        for name, value in tree.items()
        if name not in (key, *dicts) and not (raw == "" and is_tensor(value))
    }
    return {**rest, raw or CONTAINER_KEYS[0]: tree[key]}


def unused_names(tree: Mapping[Any, Any], used: frozenset[int]) -> list[str]:
    """Keys of dicts with weights, and names of tensors, outside the dicts with ids `used`.

    Of lists of tensors too, at the top level or in a dict there, as some averages are saved.
    """
    names = [
        _key_text(key)
        for key, value in tree.items()
        if id(tree) not in used and is_tensor(value) and len(value.shape)
    ]
    for prefix, inner in (("", tree), *((f"{_key_text(k)}.", v) for k, v in tree.items())):
        if isinstance(inner, dict) and id(inner) not in used:
            lists = ((key, value) for key, value in inner.items() if isinstance(value, list))
            names += [prefix + _key_text(key) for key, value in lists if any(map(is_tensor, value))]
    return list(dict.fromkeys([*names, *(name for name, _ in _dicts_with_weights(tree, used))]))


def candidate_dicts(tree: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The dict itself, and the dicts nested in it whose keys are all in CONTAINER_KEYS.

    As pairs of the keys joined by dots and the dict, outermost first.
    """
    pairs = [("", tree)]
    for name, inner in pairs:  # grows during the iteration
        for key in CONTAINER_KEYS:
            value = inner.get(key)
            # The depth is limited because a dict in a pickle can contain itself.
            if isinstance(value, dict) and name.count(".") < 3:
                pairs.append((f"{name}.{key}".lstrip("."), value))
    return pairs


def _with_most_weights(tree: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    return max(candidate_dicts(tree), key=lambda pair: _count_weights(pair[1]))


def clean_name(name: str) -> str:
    """A name without the parts in WRAPPER_PARTS: 'a.weight' for 'module.a._orig_mod.weight'."""
    return ".".join(part for part in name.split(".") if part not in WRAPPER_PARTS)


def _count_weights(state: Mapping[Any, Any]) -> int:
    """The number of entries that are weights."""
    return sum(
        is_tensor(value) and isinstance(name, str) and name.rpartition(".")[2] in WEIGHT_NAMES
        for name, value in state.items()
    )


def _dicts_with_weights(
    tree: Mapping[Any, Any], used: frozenset[int] = frozenset(), depth: int = 4
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """All nested dicts with weights down to `depth`, each once, after their keys joined by dots.

    used: ids of dicts to skip, together with all dicts inside them.
    """
    level: list[tuple[str, Mapping[Any, Any]]] = [("", tree)]
    seen = {id(tree), *used}
    for _ in range(depth):
        next_level = []
        for name, inner in level:
            for key, value in inner.items():
                if isinstance(value, dict) and id(value) not in seen:
                    seen.add(id(value))
                    next_level.append((f"{name}{_key_text(key)}", value))
        yield from ((name, inner) for name, inner in next_level if _count_weights(inner))
        level = [(f"{name}.", inner) for name, inner in next_level]


def _key_text(key: object) -> str:
    """A key for a message; only its type if it is not text, because it may be of any size."""
    return key[:LONGEST_NAME] if isinstance(key, str) else f"({type(key).__name__})"
