"""The paired difference of every metric between two checkpoints or feature files.

Both are scored on the same images and the same views, so that what a sample does to both cancels:
with the influences u and u' of the samples on a metric, the interval of T - T' follows from u - u'.
Rank finds its ties by the same numbers (`scoring.intervals`).
"""

from __future__ import annotations

import glob
import json
import os
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from lidar_cli.core.metrics import METRICS, Metric
from lidar_cli.data.open import image_count
from lidar_cli.errors import FeatureFileError, InputError, LidarError, SettingsError
from lidar_cli.extraction.run import stem
from lidar_cli.features.embeddings import Embeddings
from lidar_cli.features.reader import read_provenance
from lidar_cli.ranking.cache import MARKER, CacheFolder
from lidar_cli.ranking.discover import (
    Checkpoint,
    FeatureFile,
    is_feature_file,
)
from lidar_cli.ranking.group_metrics import find_order
from lidar_cli.ranking.names import short_names
from lidar_cli.ranking.order import comparable
from lidar_cli.ranking.paths import check_two, only_file, place_of, select
from lidar_cli.ranking.session import Session, open_session
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import Score, listed_metrics, ranked_metrics
from lidar_cli.scoring.intervals import Interval, interval_of, ties
from lidar_cli.scoring.open import open_embeddings, open_layer
from lidar_cli.scoring.run import score_layer, with_intervals
from lidar_cli.scoring.saved import SUFFIX, ScoreWithoutIntervals, read_score
from lidar_cli.settings import (
    EMBEDDED,
    CompareSettings,
    DefaultCount,
    EmbedSettings,
    RankSettings,
)

OPTIONS = {  # option -> the entry of a provenance with its value
    "--data": "data",
    "-n": "n_samples",
    "-q": "n_views",
    "--seed": "seed",
    "--views": "views",
    "--image-size": "image_size",
    "--bands": "bands",
}
NOTED = {  # entry of a provenance -> how the note of stored embeddings names it
    "data": "{}",
    "n_samples": "n = {}",
    "n_views": "q = {}",
    "seed": "seed {}",
    "views": "{} views",
    "image_size": "{} px",
}
# Settings that do not determine embeddings, or that stored embeddings are selected by.
OF_THE_RUN = ("device", "batch_size", "workers", "compile", "layer", "data_dir")


@dataclass(frozen=True)
class Difference:
    """The values of one metric and their difference, the first minus the second.

    interval: of the difference, or why there is none. tied: whether the two do not differ
    significantly, by the test that names ties in a ranking; None without an interval. better: 0 or
    1, the position of the better one by the metric's direction; None if neither is, or a value is
    missing.
    """

    metric: Metric
    values: tuple[float | None, float | None]
    difference: float | None
    interval: Interval
    tied: bool | None
    better: int | None


@dataclass(frozen=True)
class Comparison:
    """Two files, compared by every metric.

    same: in what both agree completely, such as `are the same file`; then nothing was computed.
    differing: the settings that must be equal and are not, with the value of each; if there are
    any, there are no differences. checkpoints: by path. images: how many the data hold, None if
    unknown. options: those that embed as the stored embeddings were, empty unless these are
    compared. command: the words of the command line after `lidar`, empty if there is none.
    """

    paths: tuple[str, str]
    by: Metric
    level: float
    same: str | None = None
    differing: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    are_features: tuple[bool, bool] = (False, False)
    scores: tuple[Score, Score] | None = None
    differences: tuple[Difference, ...] = ()
    checkpoints: Mapping[str, Checkpoint] = field(default_factory=dict)
    images: int | None = None
    options: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, str]:
        """Short names of the two."""
        places = [place_of(Path(path)) for path in self.paths]
        names = short_names(places)
        first, second = (names[place] for place in places)
        return first, second


def compare_files(
    paths: Sequence[Path], settings: CompareSettings, progress: Progress | None = None
) -> Comparison:
    """The comparison of two checkpoints or feature files, or folders that hold one each.

    Checkpoints are embedded as by rank, in the cache of a ranking that has them if there is one. If
    no data are named, those stored embeddings of both are compared that have most samples.
    Raises SettingsError unless there are two, InputError if one cannot be used.
    """
    check_two(paths)
    find_order(settings.by, "compare")
    first, second = map(only_file, paths)
    progress = progress or Progress()
    selection = select([first, second])
    checkpoints = [path for path in (first, second) if not is_feature_file(path)]
    directory = select(checkpoints or [first, second]).directory
    cache_parent = next(_folders_with_cache(directory), Path())
    selection = replace(selection, cache_parent=cache_parent)
    session = open_session(selection, _rank_settings(settings), progress)
    files = str(first), str(second)
    if first.samefile(second):
        return Comparison(files, session.by, settings.confidence, same="are the same file")
    session.scan_directory()
    _check_all_used(session)
    sides = [_side(session, path) for path in files]
    same = "have the same content" if sides[0] is sides[1] else None
    comparison = Comparison(
        files,
        session.by,
        settings.confidence,
        same,
        are_features=(isinstance(sides[0], FeatureFile), isinstance(sides[1], FeatureFile)),
        checkpoints={str(side.path): side for side in sides if isinstance(side, Checkpoint)},
    )
    if same:
        return comparison
    sources, is_stored = _sources(session, sides, _given(settings))
    if is_stored:
        provenance = next(one.provenance for one in sources)
        comparison = replace(comparison, options=tuple(_options(provenance)))
    comparison = _compared(comparison, session, *sources)
    return replace(comparison, images=_images(comparison, session, is_stored))


def compare_arrays(
    sources: Sequence[Path | Embeddings],
    settings: CompareSettings,
    progress: Progress | None = None,
) -> Comparison:
    """The comparison of two of which one or both are in memory. Raises as `compare_files`."""
    find_order(settings.by, "compare")
    session = open_session([], _rank_settings(settings), progress)
    first, second = (one.file if isinstance(one, Embeddings) else str(one) for one in sources)
    comparison = Comparison(
        (first, second), session.by, settings.confidence, are_features=(True, True)
    )
    return _compared(comparison, session, *(_only_layer(one, session.settings) for one in sources))


def _only_layer(source: Path | Embeddings, settings: RankSettings) -> Embeddings:
    """The layer that a file holds, or the one that is chosen. Raises InputError for several."""
    layers = open_embeddings(source, settings)
    if len(layers) > 1:
        names = ", ".join(one.layer for one in layers)
        raise InputError(f"{layers[0].file}: holds the layers {names}; choose one with --layer")
    return open_layer(source, settings)


def difference(metric: Metric, scores: tuple[Score, Score], level: float) -> Difference:
    """The paired difference of one metric, with its interval."""
    values = scores[0].value(metric.name), scores[1].value(metric.name)
    a, b = values
    if a is None or b is None:
        reason = scores[0 if a is None else 1].notes[metric.name]
        return Difference(metric, values, None, Interval(reason=reason), None, None)
    keys = metric.sort_key(a), metric.sort_key(b)
    better = None if keys[0] == keys[1] else int(keys[1] < keys[0])
    why = _why_no_interval(metric.name, scores)
    if why is not None:
        return Difference(metric, values, a - b, Interval(reason=why), None, better)
    u, v = (score.influences[metric.name] for score in scores)
    tied = a == b or bool(ties([a, b], [u, v], metric, level)[0])
    return Difference(metric, values, a - b, interval_of(a - b, u - v, level), tied, better)


def _why_no_interval(name: str, scores: tuple[Score, Score]) -> str | None:
    for score in scores:
        assert score.confidence is not None
        reason = score.confidence.intervals[name].reason
        if reason is not None:
            return reason
    counts = [len(score.influences[name]) for score in scores]
    if counts[0] != counts[1]:
        return f"it reads {counts[0]} rows of one and {counts[1]} of the other"
    return None


# Which files


def _folders_with_cache(folder: Path) -> Iterator[Path]:
    """The folder and those above it in which a ranking has made a cache, the nearest first.

    Another user's cache is left out, as anyone may create one in a folder like /tmp.
    """
    return filter(_has_own_cache, (folder, *Path(place_of(folder)).parents))


def _has_own_cache(folder: Path) -> bool:
    cache = folder / ".lidar"
    try:
        status = cache.lstat()
        is_marked = stat.S_ISDIR(status.st_mode) and (cache / MARKER).is_file()
    except OSError:
        return False
    return is_marked and (not hasattr(os, "geteuid") or status.st_uid == os.geteuid())


def _side(session: Session, path: str) -> Checkpoint | FeatureFile:
    """The scanned checkpoint or feature file that has this path or alias."""
    scan = session.scan
    every: list[Checkpoint | FeatureFile] = [*scan.checkpoints.values(), *scan.features]
    return next(one for one in every if path in (str(one.path), *one.aliases))


# Which embeddings


# Of a ranking with --no-store there is a score alone, with the influences of samples.
Source = Embeddings | ScoreWithoutIntervals


class _Stored(NamedTuple):
    """A feature file, or a score, of one of the two. Of two, the larger is preferred.

    is_named: whether its data are not the embedded images.
    """

    is_named: bool
    n: int
    time: float
    path: Path
    provenance: dict[str, Any]


def _sources(
    session: Session, sides: Sequence[Checkpoint | FeatureFile], given: Mapping[str, object]
) -> tuple[tuple[Source, Source], bool]:
    """Embeddings of one layer of both, or stored scores, and whether a ranking has stored them.

    given: settings of embeddings that the user gives, which stored ones of checkpoints must have.
    """
    layer = session.choose_layer(session.scan.features)
    checkpoints = [side for side in sides if isinstance(side, Checkpoint)]
    if checkpoints and session.settings.data is None:
        both = [sorted(_stored(session, side, layer), reverse=True) for side in sides]
        named = [one for of_side in both for one in of_side[:1] if one.is_named]
        a, b = (
            [
                one
                for one in of_side
                if isinstance(side, FeatureFile) or not given or _is_as_given(one, session, given)
            ]
            for side, of_side in zip(sides, both, strict=True)
        )
        pair = _comparable_pair(session, a, b, layer)
        if pair is not None:
            return pair, True
        if not given:
            _check_none_stored(named)
        _check_no_other_data(named)
    embedded = _embed(session, checkpoints, layer)
    first, second = (
        _open(embedded.get(str(side.path), side.path), layer, session.settings) for side in sides
    )
    return (first, second), False


def _embed(session: Session, checkpoints: Sequence[Checkpoint], layer: str) -> dict[str, Path]:
    """The feature file of each checkpoint at the settings, by the path of the checkpoint."""
    if not checkpoints:
        return {}
    scorer = session.open_scorer(layer)
    results = scorer.results(scorer.plans(checkpoints), scorer.embed)
    embedded = {str(task.checkpoint.path): path for task, path in results}
    _check_all_used(session)
    return embedded


def _check_all_used(session: Session) -> None:
    for left in (*session.scan.failed, *session.scan.skipped):
        raise InputError(f"{left.path}: {left.reason}", code="not-compared")


def _comparable_pair(
    session: Session, of_first: Sequence[_Stored], of_second: Sequence[_Stored], layer: str
) -> tuple[Source, Source] | None:
    """The first two that are comparable; None if there are none."""
    for a, b in product(of_first, of_second):
        first, second = (_open(one.path, layer, session.settings) for one in (a, b))
        if not _differing(session, first, second):
            values = _recorded(a.provenance)
            facts = [
                text.format(values[name])
                for name, text in NOTED.items()
                if values[name] is not None
            ]
            session.progress.note(
                f"compared on stored embeddings of {', '.join(facts)}; for others give --data"
            )
            return first, second
    return None


def _check_none_stored(stored: Sequence[_Stored]) -> None:
    """Raise SettingsError if there are stored embeddings, with the options that embed alike."""
    if not stored:
        return
    provenance = stored[0].provenance
    options = shlex.join(_options(provenance)) or "--data"
    raise SettingsError(
        f"{provenance.get('checkpoint', stored[0].path)} has stored embeddings, and the other has "
        f"none that are comparable; to embed both alike, add {options}",
        code="not-comparable",
    )


def _check_no_other_data(stored: Sequence[_Stored]) -> None:
    """Raise SettingsError if there are stored embeddings of the user's data, which are not named.

    Without --data the two would be compared on the embedded images.
    """
    for one in stored:
        data = one.provenance.get("data")
        if isinstance(data, str) and data != EMBEDDED:
            raise SettingsError(
                f"which images? {one.provenance.get('checkpoint', one.path)} was embedded with "
                f"those of {data}; add --data {shlex.quote(data)}, or --data {EMBEDDED} for toy "
                "pictures",
                code="other-data",
            )


def _options(provenance: dict[str, Any]) -> list[str]:
    """The options that embed other checkpoints as one of this provenance was."""
    values = _recorded(provenance)
    return [
        word
        for option, name in OPTIONS.items()
        if isinstance(values[name], str | int)
        for word in (option, str(values[name]))
    ]


def _is_as_given(stored: _Stored, session: Session, given: Mapping[str, object]) -> bool:
    """Whether embeddings of the user's data have the settings given, and the seed.

    A seed that is given may be the default, which `given` leaves out.
    """
    values, wanted = _recorded(stored.provenance), {"seed": session.settings.seed, **given}
    return stored.is_named and all(
        name in values and values[name] == value for name, value in wanted.items()
    )


def _recorded(provenance: dict[str, Any]) -> dict[str, Any]:
    """The settings that a provenance records, each None if it does not."""
    views = provenance.get("views")
    values = provenance | {"views": views.get("name") if isinstance(views, dict) else None}
    return {name: values.get(name) for name in OPTIONS.values()}


def _images(comparison: Comparison, session: Session, is_stored: bool) -> int | None:
    """How many images the data hold, where more of them would say more; None if unknown."""
    ordering = [one for one in comparison.differences if one.metric == comparison.by]
    if not any(one.tied or one.interval.se is None for one in ordering) or not comparison.scores:
        return None
    data = str(comparison.scores[0].data) if is_stored else session.settings.data
    if not is_stored and not comparison.checkpoints:
        return None
    try:
        return image_count(replace(session.settings, data=data))
    except (LidarError, OSError):
        return None


def _stored(session: Session, side: Checkpoint | FeatureFile, layer: str) -> Iterator[_Stored]:
    """The feature file, or those in caches that have this layer of a checkpoint."""
    if isinstance(side, FeatureFile):
        yield _Stored(True, 0, 0.0, side.path, side.provenance)
        return
    paths = [side.path, *map(Path, side.aliases)]
    parents = [folder for path in paths for folder in _folders_with_cache(path.parent)]
    above = [CacheFolder(folder, None) for folder in parents]
    folders = {place_of(folder.path): folder.path for folder in (session.folder, *above)}
    suffixes = [".h5", *([] if session.groups else [SUFFIX])]  # a score has no names of samples
    names = [f"{glob.escape(name)}-*{end}" for name, end in product({*map(stem, paths)}, suffixes)]
    for folder, name in product(folders.values(), names):
        for file in folder.glob(name):
            try:
                provenance, time = _provenance(session, file), file.stat().st_mtime
            except (FeatureFileError, OSError):
                continue
            n, layers = provenance.get("n_samples"), provenance.get("layers")
            if _is_of(provenance, side) and isinstance(layers, list) and layer in layers:
                is_named = provenance.get("data") != EMBEDDED
                yield _Stored(is_named, n if isinstance(n, int) else 0, time, file, provenance)


def _is_of(provenance: dict[str, Any], checkpoint: Checkpoint) -> bool:
    """Whether stored embeddings are of a checkpoint as it is understood now."""
    description, recorded = checkpoint.description, provenance.get("assumed")
    assumed = recorded if isinstance(recorded, dict) else {}
    planned = {key: one.value for key, one in description.assumed.items() if key in assumed}
    stored = {key: one.get("value") for key, one in assumed.items() if isinstance(one, dict)}
    return (
        provenance.get("sha256") == checkpoint.digest
        and provenance.get("branch") == description.branch
        and all(
            provenance.get(key) == description.selected.get(key)
            for key in ("prefix", "projector_prefix")
        )
        and provenance.get("architecture") == description.arch
        and provenance.get("source_sha256") is None
        and json.loads(json.dumps(planned)) == {key: stored.get(key) for key in planned}
    )


def _provenance(session: Session, file: Path) -> dict[str, Any]:
    """The provenance of a file; empty for a score at other constants than the settings'."""
    if file.suffix != SUFFIX:
        return read_provenance(file)
    settings = session.settings
    saved = read_score(file, ranked_metrics(settings))
    if saved is None:
        return {}
    constants = saved.score.delta, saved.score.epsilon, saved.score.normalized
    is_alike = constants == (settings.delta, settings.epsilon, settings.normalize)
    return saved.provenance if is_alike else {}


def _open(path: Path, layer: str, settings: RankSettings) -> Source:
    """One layer of a feature file, or a score. Raises FeatureFileError if it is damaged."""
    if path.suffix != SUFFIX:
        return open_layer(path, replace(settings, layer=layer))
    saved = read_score(path)
    if saved is None:
        raise FeatureFileError(f"{path}: is damaged; remove it")
    return saved


def _differing(session: Session, *sources: Source) -> dict[str, tuple[Any, Any]]:
    """The settings that must be equal for a comparison and are not."""
    a, b = (comparable(_without_values(session, source)) for source in sources)
    return {key: (a[key], b[key]) for key in a if a[key] != b[key]}


def _without_values(session: Session, source: Source) -> Score:
    if isinstance(source, ScoreWithoutIntervals):
        return source.score
    settings = session.settings
    return Score(
        *(source.file, source.layer, *source.shape),
        delta=settings.delta,
        epsilon=settings.epsilon,
        normalized=settings.normalize,
        provenance=source.provenance,
    )


# Which settings


def _rank_settings(settings: CompareSettings) -> RankSettings:
    return RankSettings(
        **{one.name: getattr(settings, one.name) for one in fields(CompareSettings)}
    )


def _given(settings: CompareSettings) -> dict[str, object]:
    """The settings that determine embeddings and are given, by name."""
    defaults = RankSettings()

    def is_given(name: str) -> bool:
        value, default = getattr(settings, name), getattr(defaults, name)
        if isinstance(default, DefaultCount):  # which may be given as the same number
            return not isinstance(value, DefaultCount)
        return bool(value != default)

    names = [one.name for one in fields(EmbedSettings) if one.name not in OF_THE_RUN]
    return {name: getattr(settings, name) for name in names if is_given(name)}


def _compared(comparison: Comparison, session: Session, *sources: Source) -> Comparison:
    """The comparison with scores and differences, unless the two are not comparable."""
    first, second = sources
    differing = _differing(session, first, second)
    if differing:
        return replace(comparison, differing=differing)
    contents = [one.content for one in sources if isinstance(one, Embeddings) and one.content]
    if len(contents) == 2 and contents[0] == contents[1]:
        return replace(comparison, same="hold the same embeddings")
    scores = _score(session, first), _score(session, second)
    level = comparison.level
    listed = listed_metrics(scores)
    differences = tuple(difference(METRICS[name], scores, level) for name in listed)
    return replace(comparison, scores=scores, differences=differences)


def _score(session: Session, source: Source) -> Score:
    """All metrics with intervals and influences."""
    level, folder = session.settings.confidence, session.folder.path
    if isinstance(source, ScoreWithoutIntervals):
        score = source.score
        rows, reason = score.rankme_rows, source.why_no_influences
        return with_intervals(score, score.computed, score.influences, rows, level, reason)
    return score_layer(
        source,
        session.settings,
        session.scoring_device,
        ranked_metrics(session.settings),
        session.progress,
        level,
        cache=folder if folder.is_dir() else None,
        groups=session.groups,
    )
