"""Accuracies of ranked checkpoints by linear probes of their backbones, on un-augmented images.

Whatever layer is ranked, the backbone is probed: it is what a downstream task receives. All
checkpoints see the same labelled samples and the same split of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lidar_cli.checkpoints import sha256, stamp
from lidar_cli.errors import OF_ONE_FILE, FeatureFileError, InputError, InUse, first_line
from lidar_cli.features import read_provenance
from lidar_cli.jobs.device import find_device
from lidar_cli.jobs.embedding.plan import make_plan
from lidar_cli.jobs.extract import CHECKPOINT_SUFFIXES, changed, open_with, run, stem
from lidar_cli.jobs.probe import Probed, probe_files
from lidar_cli.jobs.ranking.order import Row
from lidar_cli.jobs.ranking.stored import serves
from lidar_cli.jobs.ranking.tables import Unmatched
from lidar_cli.jobs.watch import Watcher
from lidar_cli.samples import Samples, open_samples
from lidar_cli.settings import ExtractSettings, ProbeSettings, RankSettings

LAYER = "backbone"


@dataclass(frozen=True)
class ProbedRows:
    """Accuracies by path, on what they rest in words, and the checkpoints without one."""

    accuracies: dict[str, float]
    told: str
    failed: tuple[Unmatched, ...]


def probe_rows(
    rows: Sequence[Row], directory: str, settings: RankSettings, watcher: Watcher
) -> ProbedRows:
    """Top-1 accuracies of the rows' backbones, by the default protocol of `lidar probe`.

    Checkpoints are embedded without views, into the cache; a feature file is probed as it is.
    Raises InputError if the data has no labels, or nothing could be probed.
    """
    failed: list[Unmatched] = []
    features: dict[str, str] = {}  # feature file -> the row's path
    checkpoints = [row.path for row in rows if row.path.lower().endswith(CHECKPOINT_SUFFIXES)]
    samples = _labelled(settings) if checkpoints else None
    for at, row in enumerate(rows):
        watcher.progress("embedding for the oracle", at, len(rows))
        if samples is None or row.path not in checkpoints:
            features[row.path] = row.path
            continue
        try:
            folder = settings.cache or Path(directory) / ".lidar"
            features[str(_embed(Path(row.path), samples, settings, folder, watcher))] = row.path
        except OF_ONE_FILE as error:
            failed.append(Unmatched(row.path, first_line(error).removeprefix(f"{row.path}: ")))
    protocol = ProbeSettings(device=settings.device, layer=LAYER, seed=settings.seed)
    files = [Path(name) for name in features]
    found = probe_files(files, [None] * len(files), protocol, watcher)
    failed += [Unmatched(features[left.train], left.reason) for left in found.failed]
    if not found.probed:
        first = f"{failed[0].path}: {failed[0].reason}" if failed else "no checkpoint"
        raise InputError(f"--oracle probe: nothing could be probed; the first: {first}")
    for warning in dict.fromkeys(text for probed in found.probed for text in probed.warnings):
        watcher.note(f"warning: --oracle probe: {warning}")
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


def _embed(
    path: Path, samples: Samples, settings: RankSettings, folder: Path, watcher: Watcher
) -> Path:
    """A feature file of un-augmented backbone embeddings, made unless it is there."""
    device = find_device(settings.device)
    known = {
        name: getattr(settings, name)
        for name in ExtractSettings.__dataclass_fields__
        if hasattr(settings, name)
    }
    known |= {"n_samples": len(samples), "clean_samples": None, "n_views": 0, "layer": LAYER}
    wanted = ExtractSettings(**known, resume=True)
    before = stamp(path)
    loaded = open_with(path, wanted, device)
    plan = make_plan(loaded.description, str(path), sha256(path), samples, wanted, device)
    if stamp(path) != before:
        raise changed(path)
    output = folder / f"{stem(path)}-{plan.key}.h5"
    try:
        if output.exists() and serves(read_provenance(output), plan):
            return output
        run(plan, loaded, samples, wanted, output, device, watcher)
    except InUse:
        raise
    except FeatureFileError:
        # Incomplete, damaged, or a partial file of another device or version: make it anew.
        again = replace(wanted, overwrite=True, resume=False)
        run(plan, loaded, samples, again, output, device, watcher)
    return output


def _told(probed: Sequence[Probed]) -> str:
    first = probed[0]
    alike = {(found.n_train, found.n_test, found.n_classes) for found in probed}
    error = 100 * max(found.standard_error for found in probed)
    return (
        f"linear probe of the {LAYER}, {first.n_train} training and {first.n_test} test images of "
        f"{first.n_classes} classes, standard error up to {error:.1f} points"
        + ("" if len(alike) == 1 else "; others have other images and do not compare")
    )
