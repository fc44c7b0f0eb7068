"""Accuracies of ranked checkpoints by linear probes of their backbones, on un-augmented images.

Whatever layer is ranked, the backbone is probed: it is what a downstream task receives. All
checkpoints see the same labelled samples and the same split of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lidar_cli.data.dataset import Samples
from lidar_cli.data.open import open_samples
from lidar_cli.data.tables import Unmatched
from lidar_cli.errors import InputError, first_line
from lidar_cli.probing.run import ProbeResult, probe_files
from lidar_cli.ranking.cache import Cache
from lidar_cli.ranking.cache_folder import CacheFolder
from lidar_cli.ranking.discover import Checkpoint
from lidar_cli.ranking.order import Row
from lidar_cli.runtime.device import find_device
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import ProbeSettings, RankSettings

PROBE = "probe"  # the value of --oracle that is no file
LAYER = "backbone"


@dataclass(frozen=True)
class ProbedRows:
    """Accuracies by path, on what they rest in words, and the checkpoints without one."""

    accuracies: dict[str, float]
    told: str
    failed: tuple[Unmatched, ...]


def probe_rows(
    rows: Sequence[Row],
    checkpoints: Mapping[str, Checkpoint],
    directory: str,
    settings: RankSettings,
    progress: Progress,
) -> ProbedRows:
    """Top-1 accuracies of the rows' backbones, by the default protocol of `lidar probe`.

    checkpoints: by path, which are embedded without views, into the cache, unless they are there;
    a row of any other path is a feature file, and is probed as it is.
    Raises InputError if the data has no labels, or nothing could be probed.
    """
    failed: list[Unmatched] = []
    features = {row.path: row.path for row in rows if row.path not in checkpoints}

    def fail(path: Path, error: Exception) -> None:
        failed.append(Unmatched(str(path), first_line(error).removeprefix(f"{path}: ")))

    to_embed = [checkpoints[row.path] for row in rows if row.path in checkpoints]
    if to_embed:
        cache = _cache(directory, settings, progress)
        for checkpoint, _, path in cache.embed_each(to_embed, fail):
            features[str(path)] = str(checkpoint.path)
    protocol = ProbeSettings(device=settings.device, layer=LAYER, seed=settings.seed)
    order = {row.path: at for at, row in enumerate(rows)}
    features = dict(sorted(features.items(), key=lambda item: order[item[1]]))
    files = [Path(name) for name in features]
    found = probe_files(files, [None] * len(files), protocol, progress)
    failed += [Unmatched(features[left.train], left.reason) for left in found.failed]
    if not found.probed:
        first = f"{failed[0].path}: {failed[0].reason}" if failed else "no checkpoint"
        raise InputError(f"--oracle probe: nothing could be probed; the first: {first}")
    for warning in dict.fromkeys(text for probed in found.probed for text in probed.warnings):
        progress.note(f"warning: --oracle probe: {warning}")
    return ProbedRows(
        {features[probed.train]: probed.top1 for probed in found.probed},
        _told(found.probed),
        tuple(failed),
    )


def _labelled(settings: RankSettings) -> Samples:
    count = settings.oracle_samples or settings.clean_samples or settings.n_samples
    samples = open_samples(replace(settings, n_samples=count, clean_samples=None))
    if samples.labels is None:
        raise InputError(
            f"--oracle probe: the data {samples.data} has no labels; name data with classes, such "
            "as a folder with a subfolder a class, or give --oracle a CSV file of accuracies"
        )
    return samples


def help_embedding(
    checkpoints: Iterable[Checkpoint], directory: str, settings: RankSettings, progress: Progress
) -> None:
    """Embed what another process will probe, as far as it has not yet come to it.

    What fails is left to that process, which says so. Raises InputError as `probe_rows`.
    """
    cache = _cache(directory, settings, progress)
    for _ in cache.embed_each(checkpoints, lambda path, error: None):
        pass


def _cache(directory: str, settings: RankSettings, progress: Progress) -> Cache:
    """What embeds the backbones of labelled images without views."""
    samples = _labelled(settings)
    alone = replace(
        settings,
        n_samples=len(samples),
        clean_samples=None,
        n_views=0,
        layer=LAYER,
        store=True,
        collect=False,
    )
    folder = CacheFolder(Path(directory), settings.cache)
    return Cache(folder, (), LAYER, samples, alone, find_device(settings.device), progress)


def _told(probed: Sequence[ProbeResult]) -> str:
    first = probed[0]
    alike = {(found.n_train, found.n_test, found.n_classes) for found in probed}
    error = 100 * max(found.standard_error for found in probed)
    return (
        f"linear probe of the {LAYER}, {first.n_train} training and {first.n_test} test images of "
        f"{first.n_classes} classes, standard error up to {error:.1f} points"
        + ("" if len(alike) == 1 else "; others have other images and do not compare")
    )
