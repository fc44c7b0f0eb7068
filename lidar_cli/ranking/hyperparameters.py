"""The hyperparameters of checkpoints, from a CSV file, the checkpoints or their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from lidar_cli.checkpoints.reading.folder import read_arguments
from lidar_cli.checkpoints.reading.read import read_checkpoint
from lidar_cli.checkpoints.reading.stand_ins import StandIn
from lidar_cli.data.tables import Table, is_accuracy
from lidar_cli.errors import LidarError, NoProcess

NUMBER = re.compile(r"([A-Za-z]*)[=_\-.]?([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)")
PARAMS = "params."  # before each hyperparameter in an export of MLflow
# Headings in exports of W&B and MLflow that are no hyperparameters. W&B writes metrics with a `/`,
# nested hyperparameters with a dot.
NO_PARAMETER = re.compile(
    r"|_.*|(metrics|tags)\..*|.*/.*|.*loss|(experiment|run)?[ _]?id|artifact_uri|name|state|status"
    r"|notes|user|tags|created|runtime|sweep|group|job type|duration|(start|end)[ _]time"
    r"|source type|source name|version|models?",
    re.IGNORECASE,
)
Value = str | float | bool | None  # an int counts as a float
Hyperparameters = dict[str, Value]  # by name
# Where Lightning stores hyperparameters, and scripts that save their arguments.
CHECKPOINT_KEYS = ("hyper_parameters", "args")
CONFIG_KEYS = (*CHECKPOINT_KEYS, "hparams", "cfg", "config", "opt", "opts", "options", "params")
ARGUMENTS_FILE = "args.json"  # next to the checkpoints of solo-learn
# Names of the folder of images in a training's arguments, without punctuation. The last two keys
# count together: `data.root` is one.
DATA_FOLDER = re.compile(
    r"(train|training|val|valid|test|data|dataset|image|images|imagenet|in1k)+"
    r"(path|dir|root|folder|directory)"
)
DATA = re.compile(r"(train|training)?(data|dataset|images|imagenet)")  # a folder, or a set's name
MAX_DEPTH = 6  # of nested arguments
MAX_RECORDS = 8  # checkpoints that are searched for a folder of images
LONGEST = 100  # characters of a hyperparameter's name or text
LONGEST_PATH = 1000


def from_table(lines: Mapping[str, Mapping[str, str]], table: Table) -> dict[str, Hyperparameters]:
    """Checkpoint -> hyperparameters, one per column; text that is a number becomes one."""
    names = columns_of(table)
    return {
        path: {name.removeprefix(PARAMS): _value(row[name]) for name in names}
        for path, row in lines.items()
    }


def columns_of(table: Table) -> list[str]:
    """The columns of a table that are hyperparameters.

    Of an export of MLflow these are `params.NAME`, if it has them. Of others they are all but the
    names of checkpoints, accuracies, and what W&B and MLflow record of runs and losses.
    """
    if any(name.startswith(PARAMS) for name in table.columns):
        return [name for name in table.columns if name.startswith(PARAMS)]
    others = ("", table.headings["path"][0])
    names = [name for name in table.columns if name not in others and not is_accuracy(name)]
    return [name for name in names if not table.layout or not NO_PARAMETER.fullmatch(name)]


def readable_checkpoints(paths: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The checkpoints among files, each with what it stores.

    Raises NoProcess if no process can be started to read files in.
    """
    for path in paths:
        try:
            yield path, read_checkpoint(Path(path))
        except NoProcess:
            raise
        except LidarError:
            continue


def from_checkpoints(paths: Sequence[str]) -> dict[str, Hyperparameters]:
    """Checkpoint -> the plain values that it stores under `hyper_parameters` or `args`.

    Checkpoints that store none are left out, and so are feature files.
    """
    by_path: dict[str, Hyperparameters] = {}
    for path, tree in readable_checkpoints(paths):
        stored: dict[object, object]
        stored = next(
            (tree[name] for name in CHECKPOINT_KEYS if isinstance(tree.get(name), dict)), {}
        )
        values: Hyperparameters = {
            name: value
            for name, value in stored.items()
            if _is_short_text(name)
            if value is None or isinstance(value, (bool, int, float)) or _is_short_text(value)
        }
        if values:
            by_path[path] = values
    return by_path


def recorded_data(paths: Sequence[str]) -> str | None:
    """The folder of images that most of the first checkpoints record; None if none does.

    The folder is not opened, and need not exist.
    """
    folders: Counter[str] = Counter()
    for path, tree in readable_checkpoints(sorted(paths)[:MAX_RECORDS]):
        configs = [tree.get(name) for name in CONFIG_KEYS]
        configs.append(read_arguments(Path(path), ARGUMENTS_FILE))
        matches = [match for config in configs for match in _data_folders(config)]
        if matches:
            folders[min(matches, key=lambda match: match[0])[1]] += 1
    return max(folders, key=lambda folder: folders[folder], default=None)


def _data_folders(value: object, keys: tuple[str, ...] = ()) -> Iterator[tuple[bool, str]]:
    """Folders of images in nested arguments, each with whether it is only for evaluation."""
    value = _content(value)
    if isinstance(value, dict) and len(keys) < MAX_DEPTH:
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _data_folders(inner, (*keys, re.sub(r"[^a-z0-9]", "", key.lower())))
    elif keys and _is_folder(value):
        names = (keys[-1], "".join(keys[-2:]))
        if any(map(DATA_FOLDER.fullmatch, names)) or ("/" in value and DATA.fullmatch(keys[-1])):
            yield re.search("val|test", names[1]) is not None, value


def _content(value: object) -> object:
    """The dict, text or path that a stand-in for one of OmegaConf or pathlib holds."""
    if isinstance(value, StandIn):
        if value.name.startswith("pathlib.") and all(isinstance(one, str) for one in value.args):
            return str(PurePosixPath(*value.args))
        if isinstance(value.state, dict):
            return value.state.get("_content", value.state.get("_val"))
    return value


def _is_folder(value: object) -> TypeGuard[str]:
    """Whether a text can be the path of a folder, and be printed in a command."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= LONGEST_PATH
        and value.isprintable()
        and "://" not in value
        and "${" not in value
    )


def from_names(paths: Iterable[str], directory: str = ".") -> dict[str, Hyperparameters]:
    """Path -> the numbers in its name, such as `epoch` and `step` of `epoch=3-step=500.ckpt`.

    A number is named after the word before it, in the file's name or in a folder below the
    directory, or `number` without a word. If a word occurs twice, its last number counts.
    """
    by_path: dict[str, Hyperparameters] = {}
    for path in paths:
        below = Path(path)
        below = below.relative_to(directory) if below.is_relative_to(directory) else below
        text = str(below.with_suffix("") if below.suffix[1:].isalpha() else below)
        by_path[path] = {
            (word.lower() or "number"): float(number) for word, number in NUMBER.findall(text)
        }
    return by_path


def with_names(
    hyperparameters: Mapping[str, Hyperparameters], paths: Sequence[str], directory: str = "."
) -> dict[str, Hyperparameters]:
    """Path -> its hyperparameters, then the numbers in its name that every other name has too.

    `epoch` in every name is such a number; the 7 of `vicreg-07` next to `simclr-06` is not, since
    it only names a run.
    """
    named = from_names(paths, directory)
    shared = set(named[paths[0]]).intersection(*named.values()) if paths else set()
    combined = {}
    for path in paths:
        values = hyperparameters.get(path, {})
        numbers = {word: n for word, n in named[path].items() if word in shared - set(values)}
        combined[path] = {**values, **numbers}
    return combined


def varying(hyperparameters: Mapping[str, Hyperparameters]) -> tuple[str, ...]:
    """Hyperparameters that differ between checkpoints and are not merely their names.

    Text that differs in every checkpoint, such as a run's name or folder, is not a hyperparameter.
    A checkpoint that lacks a hyperparameter has None for it.
    """
    names = dict.fromkeys(name for values in hyperparameters.values() for name in values)
    varied = []
    for name in names:
        values = [values.get(name) for values in hyperparameters.values()]
        different = len(set(map(repr, values)))
        is_name = different == len(values) and all(isinstance(value, str) for value in values)
        if different > 1 and not is_name:
            varied.append(name)
    return tuple(varied)


def slices(hyperparameters: Mapping[str, Hyperparameters], name: str) -> list[list[str]]:
    """Sets of checkpoints that differ in one hyperparameter and agree in all other varying ones.

    One-at-a-time sweeps give one set per hyperparameter, a grid many, a random search none.
    """
    others = [other for other in varying(hyperparameters) if other != name]
    equal: dict[str, list[str]] = {}
    for path, values in hyperparameters.items():
        equal.setdefault(repr([values.get(other) for other in others]), []).append(path)
    return [
        paths
        for paths in equal.values()
        if len({repr(hyperparameters[path].get(name)) for path in paths}) > 1
    ]


def _value(text: str) -> Value:
    try:
        return float(text)
    except ValueError:
        return text or None


def _is_short_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) <= LONGEST and value.isprintable()
