"""The checkpoints of each training run, in the order of training, with the best and the last one.

Two checkpoints are of one run if their paths agree but for the epoch or step, for words such as
`last` and `best`, and for metrics that training scripts put into file names:

    version_0/checkpoints/epoch=59-step=5900.ckpt, version_0/checkpoints/last.ckpt
    moco/checkpoint_0100.pth.tar, moco/model_best.pth.tar
    vit/checkpoint-500/model.safetensors
    dino_vits16_epoch_10.pth

Epoch and step are those that a checkpoint records, else those in its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lidar_cli.core.metrics import Metric
from lidar_cli.extraction.run import stem
from lidar_cli.ranking.hyperparameters import readable_checkpoints
from lidar_cli.ranking.names import short_names
from lidar_cli.ranking.order import Group, Row
from lidar_cli.ranking.paths import place_of

Axis = Literal["epoch", "step", "number"]  # number: in a name, without a word that says of what
AXES: tuple[Axis, ...] = ("epoch", "step", "number")
# Where training scripts record the position, at the top level or in one of the dicts of IN.
RECORDED: dict[Axis, tuple[str, ...]] = {
    "epoch": ("epoch",),
    "step": ("global_step", "iteration", "step", "iter", "num_updates"),
}
IN = ("meta", "extra_state")
LARGEST = 10**12  # a larger number in a file is no epoch or step
WORDS: dict[Axis, str] = {
    "epoch": "epochs?|ep",
    "step": "global[_-]?steps?|steps?|iter(?:ation)?s?|(?:num[_-])?updates?",
    "number": "checkpoints?|ckpts?|chkpt|model|weights|snapshot|state",
}
NUMBERED = re.compile(
    "(?<![a-z])(?:"
    + "|".join(f"(?P<{axis}>{words})" for axis, words in WORDS.items())
    + r")[=_\-:]?(?P<value>\d{1,12})(?![a-z0-9]|\.\d)",
    re.IGNORECASE,
)
MEASURED = re.compile(  # such as `-val_loss=0.12`
    r"(?:^|[-_.,])(?:(?:val|valid|validation|train|test|eval|best|knn|linear|online)[_/])*"
    r"(?:loss|acc|accuracy|top|auc|mse|score|lidar|rankme)\d?[=_-]?\d+(?:\.\d+)?",
    re.IGNORECASE,
)
AGAIN = re.compile(r"[-_]v\d+$")  # what Lightning adds where a file of the name exists
FINAL = frozenset(("last", "latest", "final"))
COMMON_WORDS = FINAL | {
    *("best", "checkpoint", "checkpoints", "ckpt", "chkpt", "model", "weights", "state", "dict"),
    *("pytorch", "snapshot", "epoch", "step", "iter"),
}


@dataclass(frozen=True)
class Position:
    """Where in its run a checkpoint was saved, as far as its content or its name says."""

    epoch: int | None = None
    step: int | None = None
    number: int | None = None
    is_final: bool = False  # whether its name says that it is the last one

    def on(self, axis: Axis | None) -> int | None:
        """The value on an axis."""
        return None if axis is None else getattr(self, axis)


@dataclass(frozen=True)
class Point:
    """One checkpoint of a run. x: on the axis of the run, None where nothing says it."""

    path: str
    x: int | None
    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None


@dataclass(frozen=True)
class Run:
    """The checkpoints of one run in one comparable group, in the order of training.

    path: what the paths of its checkpoints share. name: short, distinct among the runs. group:
    index of the group. points: by x; those without x come last. best: None without a value. last:
    None if nothing says which one it is. drop: (last - best) / |best|, None if one of them is
    unknown. tied: whether the last one does not differ significantly from the best. clashes: paths
    of checkpoints whose names say another x than the files record.
    """

    name: str
    path: str
    group: int
    axis: Axis | None
    points: tuple[Point, ...]
    best: Point | None
    last: Point | None
    drop: float | None = None
    tied: bool = False
    clashes: tuple[str, ...] = ()

    @property
    def ends_at_best(self) -> bool:
        """Whether the last checkpoint is the best one, or one saved at the same time."""
        if self.best is None or self.last is None:
            return False
        return self.best.path == self.last.path or (
            self.best.x is not None and self.best.x == self.last.x
        )


def find_runs(
    groups: Sequence[Group], by: Metric, recorded: Mapping[str, Position]
) -> tuple[Run, ...]:
    """The runs of every group, those with the best checkpoint first.

    recorded: the positions that checkpoints record, by path.
    """
    runs = []
    for at, group in enumerate(groups):
        members = _members(list(_in_each_run(group.rows)), recorded)
        runs += [_run(path, at, rows, by) for path, rows in members.items()]
    names = short_names([place_of(Path(run.path)) for run in runs])
    return tuple(replace(run, name=names[place_of(Path(run.path))]) for run in runs)


def recorded_positions(paths: Iterable[str]) -> dict[str, Position]:
    """Path -> epoch and step that the checkpoint records; those that record none are left out.

    Raises NoProcess if no process can be started to read files in.
    """
    positions = {path: recorded_position(tree) for path, tree in readable_checkpoints(paths)}
    return {path: position for path, position in positions.items() if position != Position()}


def recorded_position(tree: Mapping[str, Any]) -> Position:
    """Epoch and step that the tree of a checkpoint records."""
    places = [tree, *(tree[key] for key in IN if isinstance(tree.get(key), dict))]

    def first(keys: Sequence[str]) -> int | None:
        return _first(_count(place.get(key)) for place in places for key in keys)

    return Position(first(RECORDED["epoch"]), first(RECORDED["step"]))


def run_of(path: str) -> str:
    """What the path of a checkpoint shares with the others of its run, as far as names say."""
    return _run_key(*_split(path)[:2])


def _run_key(folder: str, rest: str) -> str:
    return f"{folder}/{rest}" if rest else folder


def position_in_name(path: str) -> Position:
    """Epoch, step or number in the name of a checkpoint, or in those of its folders."""
    return _split(path)[2]


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        return None
    return int(value) if 0 <= value <= LARGEST else None


def _in_each_run(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows, each once for every folder that has a copy of its weights.

    Runs that begin with the same weights share a row. A folder that holds nothing but copies of
    another's checkpoints, such as `best/`, is left out.
    """
    held: dict[str, set[str]] = {}  # folder -> its rows, in the order of the rows
    for row in rows:
        for path in (row.path, *row.aliases):
            held.setdefault(_split(path)[0], set()).add(row.path)
    place = {folder: at for at, folder in enumerate(held)}

    def is_copied(folder: str, other: str) -> bool:
        is_later = place[folder] > place[other]
        return held[folder] < held[other] or (held[folder] == held[other] and is_later)

    placed: dict[str, dict[str, str]] = {}  # row -> folder -> its path there
    for row in rows:
        folders = {_split(path)[0]: path for path in reversed((row.path, *row.aliases))}
        placed[row.path] = {
            folder: folders[folder]
            for folder in sorted(folders, key=place.__getitem__)
            if not any(is_copied(folder, other) for other in folders)
        }
    for row in rows:
        tied = tuple(
            path for other in row.tied_with for path in placed.get(other, {"": other}).values()
        )
        for folder, path in placed[row.path].items():
            others = placed[row.path].keys() - {folder}  # whose names and numbers are not its own
            copies = (one for one in (row.path, *row.aliases) if _split(one)[0] not in others)
            aliases = tuple(one for one in copies if one != path)
            yield replace(row, path=path, aliases=aliases, tied_with=tied)


def _members(
    rows: Sequence[Row], recorded: Mapping[str, Position]
) -> dict[str, list[tuple[Row, Position]]]:
    """What the paths of a run share -> its rows in their order, and their positions."""
    parts = {row.path: _split(row.path) for row in rows}
    rests: dict[str, set[str]] = {}  # folder -> what is left of the names in it
    for folder, rest, _ in parts.values():
        rests.setdefault(folder, set()).add(rest)
    runs: dict[str, list[Row]] = {}
    for row in rows:
        folder, rest, _ = parts[row.path]
        others = rests[folder] - {""}
        if not rest and len(others) == 1:  # last.pth next to resnet_epoch_1.pth
            (rest,) = others
        runs.setdefault(_run_key(folder, rest), []).append(row)
    members: dict[str, list[tuple[Row, Position]]] = {}
    for key, of_run in runs.items():
        positions = _positions(of_run, recorded)
        pairs = list(zip(of_run, positions, strict=True))
        if _numbers_are_runs(positions):
            members |= {row.path: [(row, position)] for row, position in pairs}
        else:
            members[key] = pairs
    return members


def _positions(rows: Sequence[Row], recorded: Mapping[str, Position]) -> list[Position]:
    """What each checkpoint of a run records, else what its name or that of a copy says.

    What all of them record alike, although their names differ in it, is not their position.
    """
    stored = [recorded.get(row.path, Position()) for row in rows]
    named = [[position_in_name(path) for path in (row.path, *row.aliases)] for row in rows]
    columns: dict[Axis, list[int | None]] = {}
    for axis in AXES:
        by_file = [position.on(axis) for position in stored]
        by_name = [_first(position.on(axis) for position in names) for names in named]
        if len(set(by_file)) == 1 and len({*by_name} - {None}) > 1:
            by_file = [None] * len(rows)
        columns[axis] = [_first(pair) for pair in zip(by_file, by_name, strict=True)]
    finals = [any(position.is_final for position in names) for names in named]
    return [Position(*one) for one in zip(*columns.values(), finals, strict=True)]


def _first(values: Iterable[int | None]) -> int | None:
    return next((value for value in values if value is not None), None)


def _numbers_are_runs(positions: Sequence[Position]) -> bool:
    """Whether files that differ in a number record the same epoch and step: not a curve."""
    times = {(position.epoch, position.step) for position in positions}
    numbers = {position.number for position in positions} - {None}
    return len(numbers) > 1 and len(times) == 1 and times != {(None, None)}


def _split(path: str) -> tuple[str, str, Position]:
    """The run's folder, what is left of the file's name, and the position in both."""
    place = Path(path)
    folder, numbers = place.parent, dict[Axis, int]()
    while match := NUMBERED.fullmatch(folder.name):
        # checkpoint-500/model.safetensors: Hugging Face counts steps
        numbers.setdefault("step" if match["number"] else _axis_of(match), int(match["value"]))
        folder = folder.parent
    name = stem(place) if stem(place) != place.name else place.stem
    text = MEASURED.sub("", name)
    rest = NUMBERED.sub(" ", text)
    for match in NUMBERED.finditer(text):
        numbers.setdefault(_axis_of(match), int(match["value"]))
    if text.isdecimal() and len(text) <= 12:
        numbers.setdefault("number", int(text))
        rest = ""
    words = _words(rest)
    if numbers or any(word.lower() in COMMON_WORDS for word in words):
        words = _words(AGAIN.sub("", rest.strip()))
    is_final = any(word.lower() in FINAL for word in words)
    rest = "-".join(word for word in words if word.lower() not in COMMON_WORDS)
    return str(folder), rest, Position(**numbers, is_final=is_final)


def _axis_of(match: re.Match[str]) -> Axis:
    return next(axis for axis in AXES if match[axis])


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s_\-,]+", text) if word.strip(".=")]


def _run(path: str, group: int, rows: Sequence[tuple[Row, Position]], by: Metric) -> Run:
    """The run of these rows, which are ordered best first."""
    axis = _axis([position for _, position in rows])
    points = {row.path: _point(row, position.on(axis)) for row, position in rows}

    def place(one: tuple[Row, Position]) -> tuple[bool, int, bool]:
        x = one[1].on(axis)
        return x is None, x or 0, one[1].is_final

    ordered = sorted(rows, key=place)
    best = rows[0][0] if rows[0][0].value is not None else None
    last = _last(ordered, axis)
    run = Run(
        "",
        path,
        group,
        axis,
        tuple(points[row.path] for row, _ in ordered),
        points[best.path] if best else None,
        points[last.path] if last else None,
        clashes=tuple(row.path for row, _ in ordered if _clashes(points[row.path], axis)),
    )
    if best is None or last is None or run.ends_at_best:
        return run
    drop = None
    if best.value and last.value is not None and by.target is None:
        drop = (last.value - best.value) / abs(best.value)
    return replace(run, drop=drop, tied=last.path in best.tied_with)


def _clashes(point: Point, axis: Axis | None) -> bool:
    """Whether the name of a checkpoint says another x."""
    named = position_in_name(point.path).on(axis)
    return named is not None and named != point.x


def _last(ordered: Sequence[tuple[Row, Position]], axis: Axis | None) -> Row | None:
    """The row of the last checkpoint: its name says so and nothing else does, or the largest x."""
    if len(ordered) == 1:
        return ordered[0][0]
    for row, position in ordered:
        if position.is_final and position.on(axis) is None:
            return row
    placed = [row for row, position in ordered if position.on(axis) is not None]
    return placed[-1] if placed else None


def _axis(positions: Sequence[Position]) -> Axis | None:
    """The first axis that orders all checkpoints of a run, else the one with the most values."""
    counts = {axis: sum(one.on(axis) is not None for one in positions) for axis in AXES}
    usable = [axis for axis in AXES if counts[axis] and _orders(axis, positions)]
    return max(usable, key=lambda axis: counts[axis], default=None)


def _orders(axis: Axis, positions: Sequence[Position]) -> bool:
    """Whether no two checkpoints of one value were saved at different times by a finer axis."""
    finer = AXES[AXES.index(axis) + 1 :]
    for other in finer:
        seen: dict[int, set[int]] = {}
        for one in positions:
            x, y = one.on(axis), one.on(other)
            if x is not None and y is not None:
                seen.setdefault(x, set()).add(y)
        if any(len(values) > 1 for values in seen.values()):
            return False
    return True


def _point(row: Row, x: int | None) -> Point:
    return Point(row.path, x, row.value, row.interval.ci_low, row.interval.ci_high)
