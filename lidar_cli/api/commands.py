"""`score`, `rank`, `compare` and `inspect`: what the commands of these names compute."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lidar_cli.api.checks import (
    check_checkpoint,
    check_embeddings,
    check_layer,
    check_order,
    check_rank,
    check_score,
    check_system,
)
from lidar_cli.api.keywords import command_words, settings_of, with_keywords
from lidar_cli.api.results import CompareResult, InspectResult, RankResult, ScoreResult
from lidar_cli.errors import InputError, LidarWarning, SettingsError
from lidar_cli.settings import CompareSettings, InspectSettings, RankSettings, ScoreSettings

if TYPE_CHECKING:
    from lidar_cli.report.progress import Collected


@with_keywords(ScoreSettings)
def score(*sources: Any, **settings: Any) -> ScoreResult:
    """Metrics of stored embeddings, as `lidar score`: LiDAR, RankMe, alpha-ReQ, and others.

    Args:
        sources: paths of feature files and array files; numbers [n, q, d], q views of each of n
            samples, or rows [N, d], as numpy arrays, lists or tensors; or dicts of these by name.
        **settings: replaced by the settings.

    Returns:
        A sequence of one score per file and layer, with `to_dict`, `to_pandas` and `plot`.

    Raises:
        InputError: if an array or a file cannot be used.
        SettingsError: for an unknown keyword, metric or device, or a wrong value.

    Example:
        Centres and views on signed axes make Sb = diag(4, 2, 1, 1) and Sw the identity.

        >>> import torch, lidar_cli
        >>> axes = 3.5**0.5 * torch.cat([torch.eye(4), -torch.eye(4)])  # [8, 4]
        >>> centres = axes * torch.tensor([4.0, 2.0, 1.0, 1.0]).sqrt()
        >>> result = lidar_cli.score(centres[:, None] + axes, metrics="lidar")
        >>> result
        ScoreResult(array: lidar 3.364, n = 8, q = 8, d = 4)
        >>> round(result[0].lidar, 2)  # shares 1/2, 1/4, 1/8, 1/8: 2^(7/4)
        3.36

    References:
        `lidar explain metrics`: each metric, its equation and its source.
    """
    chosen = settings_of(ScoreSettings, settings)
    check_score(chosen, None)
    from lidar_cli.api.sources import read_sources
    from lidar_cli.core.metrics import METRICS, parse_metrics
    from lidar_cli.report.scores import cautions, reasons
    from lidar_cli.scoring.convergence import converge_file
    from lidar_cli.scoring.open import open_groups
    from lidar_cli.scoring.run import score_file

    given = read_sources(sources, chosen)
    for path in given:
        if isinstance(path, Path) and chosen.dataset is None:
            check_embeddings(path, "score")
    groups, scores = open_groups(chosen), []
    with _collected() as progress:
        for one in given:
            progress.checkpoint(one.name if isinstance(one, Path) else one.file)
            if chosen.converge:
                scores += converge_file(one, chosen, progress, groups)
            else:
                scores += score_file(one, chosen, progress, groups=groups)
        progress.notes += [*reasons(scores), *cautions(scores)]
    wanted = parse_metrics(chosen.metrics)
    return ScoreResult(tuple(scores), tuple(name for name in METRICS if name in wanted))


@with_keywords(RankSettings)
def rank(*sources: Any, **settings: Any) -> RankResult:
    """Order checkpoints and embeddings, best first, without labels, as `lidar rank`.

    Args:
        sources: paths of checkpoints, feature files and folders, and patterns; numbers [n, q, d] of
            the same samples in the same order as numpy arrays, lists or tensors; or dicts of these
            by name.
        **settings: replaced by the settings.

    Returns:
        A sequence of the checkpoints, best first, with `best`, `to_dict`, `to_pandas` and `plot`.

    Raises:
        InputError: if a path, an array or the data cannot be used, or nothing could be ranked.
        SettingsError: for an unknown keyword or metric, or a wrong value.

    Example:
        Equal noise, and means of samples that vary along 8 and along 2 directions.

        >>> import numpy as np, lidar_cli
        >>> generator = np.random.default_rng(0)
        >>> means, noise = generator.normal(size=(200, 1, 8)), generator.normal(size=(200, 4, 8))
        >>> arrays = {"narrow": 3 * means * (np.arange(8) < 2) + noise, "wide": 3 * means + noise}
        >>> ranking = lidar_cli.rank(arrays)
        >>> ranking
        RankResult(2 by lidar, first wide)
        >>> ranking.best, [(one.rank, one.name, one.tied_with) for one in ranking]
        ('wide', [(1, 'wide', []), (2, 'narrow', [])])

    References:
        `lidar explain what-to-rank`: which checkpoints can be compared.
    """
    chosen = settings_of(RankSettings, settings)
    from lidar_cli.api.sources import read_sources
    from lidar_cli.ranking.oracle import compare_with_oracle
    from lidar_cli.ranking.paths import select
    from lidar_cli.ranking.session import rank_directory, toy_data_note
    from lidar_cli.report.ranking import View
    from lidar_cli.report.verdict import cautions

    given = read_sources(sources, chosen)
    paths = [one for one in given if isinstance(one, Path)]
    arrays = [one for one in given if not isinstance(one, Path)]
    selection = select(paths, chosen)
    check_rank(selection, chosen)
    oracle = None
    with _collected() as progress:
        ranking = rank_directory(selection, chosen, progress, arrays)
        words = command_words("rank", [*map(str, paths)], RankSettings, settings)
        ranking = replace(ranking, command=words)
        if chosen.oracle is not None:
            oracle = compare_with_oracle(ranking, chosen, progress)
        progress.notes += [one.text for one in cautions(ranking)]
        progress.notes += [f"failed: {file.path}: {file.reason}" for file in ranking.failed]
        progress.notes += filter(None, [toy_data_note(ranking.data)])
    return RankResult(ranking, View(top=chosen.top, per_run=chosen.per_run), oracle)


@with_keywords(CompareSettings)
def compare(*sources: Any, **settings: Any) -> CompareResult:
    """The difference of two checkpoints or embeddings in every metric, as `lidar compare`.

    Args:
        sources: two, as for `rank`; of an array in memory and a file, this is of embeddings.
        **settings: replaced by the settings.

    Returns:
        A sequence of the differences, with `sentence`, `to_dict`, `to_pandas` and `plot`.

    Raises:
        InputError: if a path or an array cannot be used.
        SettingsError: unless there are two that can be compared, or for a wrong keyword or value.

    Example:
        >>> import numpy as np, lidar_cli
        >>> views = np.random.default_rng(0).normal(size=(50, 4, 8))
        >>> scaled = {"a": views, "b": 2 * views}  # which LiDAR does not see without a ridge
        >>> (lidar, *_) = lidar_cli.compare(scaled, delta=0)
        >>> lidar.metric, abs(lidar.difference) < 1e-9, lidar.tied
        ('lidar', True, True)

    References:
        `lidar explain intervals`: the interval of a difference.
    """
    chosen = settings_of(CompareSettings, settings)
    check_order(chosen, "compare")
    from lidar_cli.api.sources import read_sources
    from lidar_cli.ranking.comparison import compare_arrays, compare_files
    from lidar_cli.ranking.session import toy_data_note
    from lidar_cli.report.comparison import as_ranking, check_comparable
    from lidar_cli.report.verdict import cautions

    given = read_sources(sources, chosen)
    if len(given) != 2:
        raise SettingsError(f"compare takes two, not {len(given)}", code="not-two")
    paths = [one for one in given if isinstance(one, Path)]
    with _collected() as progress:
        if len(paths) == 2:
            comparison = compare_files(paths, chosen, progress)
        else:
            comparison = compare_arrays(given, chosen, progress)
        check_comparable(comparison)
        words = command_words("compare", [*map(str, paths)], CompareSettings, settings)
        comparison = replace(comparison, command=words)
        if comparison.scores is not None:
            progress.notes += [one.text for one in cautions(as_ranking(comparison))]
            data = str(comparison.scores[0].data)
            progress.notes += filter(None, [toy_data_note(data, "this difference is of")])
    return CompareResult(comparison)


@with_keywords(InspectSettings)
def inspect(*paths: Any, **settings: Any) -> InspectResult:
    """What checkpoints and feature files hold, as `lidar inspect`.

    Args:
        paths: of checkpoints, or what `lidar extract` takes, and feature files.
        **settings: replaced by the settings.

    Returns:
        A sequence of one report per file, with `to_dict` and `to_pandas`.

    Raises:
        CheckpointError: if a checkpoint cannot be understood; NoWeights if it holds no weights.
        FeatureFileError: if a feature file is incomplete or damaged.
        SettingsError: for an unknown keyword, or a wrong value.

    Example:
        >>> import numpy as np, tempfile, lidar_cli
        >>> path = lidar_cli.write_features(f"{tempfile.mkdtemp()}/f.h5", views=np.ones((3, 2, 5)))
        >>> (report,) = lidar_cli.inspect(path)
        >>> [(layer.name, layer.n, layer.q, layer.d) for layer in report.layers]
        [('embedding', 3, 2, 5)]

    References:
        `lidar explain systems`: the formats of checkpoints that are recognised.
    """
    chosen = settings_of(InspectSettings, settings)
    check_layer(chosen)
    check_system(chosen)
    from lidar_cli.checkpoints.inspect import Inspection, inspect_file
    from lidar_cli.runtime.files import is_hdf5

    if not paths:
        raise InputError("nothing is given; expected a path", code="nothing-given")
    reports: list[Any] = []
    for path in map(Path, paths):
        if path.is_file() and is_hdf5(path):
            from lidar_cli.features.inspect import inspect_features

            reports.append(inspect_features(path))
        else:
            check_checkpoint(path, "inspect")
            report: Inspection = inspect_file(path, chosen)
            reports.append(report)
    return InspectResult(tuple(reports))


@contextmanager
def _collected() -> Iterator[Collected]:
    """Progress whose notes become warnings at the line that called the function, in the end."""
    from lidar_cli.report.progress import Collected

    with Collected() as progress:
        yield progress
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    for text in dict.fromkeys(progress.notes):
        warnings.warn(text, LidarWarning, stacklevel=level)


def _is_inside(module: str) -> bool:
    return module == "contextlib" or module.split(".")[0] == "lidar_cli"
