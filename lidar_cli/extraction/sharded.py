"""One rank of several that embed one checkpoint: writes its shard; the last rank joins them.

The share of a rank consists of consecutive complete batches, so that the batches are those of a
single process. No rank waits for another; the one that completes the last shard joins them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lidar_cli.errors import SettingsError
from lidar_cli.extraction.engine import (
    EmbeddingModel,
    ViewSource,
    at_size_that_fits,
    embed_all,
    find_batch_size,
    measure_dense,
)
from lidar_cli.extraction.plan import identity
from lidar_cli.features.reader import read_provenance
from lidar_cli.features.schema import Share, partial_path
from lidar_cli.features.shards import agree_on_batch_size, check_startable, join_shards, shard_path
from lidar_cli.features.writer import FeatureWriter, check_absent
from lidar_cli.runtime.device import RankInfo, partition
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import PATCHES, ExtractSettings


@dataclass(frozen=True)
class ShardResult:
    """The result of one rank. joined: whether it joined the shards into the output."""

    batch_size: int
    embedded: int
    joined: bool


def check_shared(settings: ExtractSettings, output: Path) -> None:
    """Raise SettingsError for settings that several processes cannot share."""
    if "%" in output.name:
        raise SettingsError(
            f"-o {output}: HDF5 gives % a meaning in names of shards; choose a name without it",
            code="output-name",
        )
    if settings.overwrite:
        raise SettingsError(
            "--overwrite: of several processes none knows whether a file is another's work; "
            "remove the output and its .shard* files first",
            code="overwrite-shared",
        )


def embed_share(
    model: EmbeddingModel,
    source: ViewSource,
    settings: ExtractSettings,
    output: Path,
    rank_info: RankInfo,
    progress: Progress,
) -> ShardResult:
    """Embed the samples of this rank into its shard; join the shards if it is the last to end.

    Does nothing if the other ranks have completed the output.
    Raises the errors of `embed_all`, and FeatureFileError if a file that is not part of this run
    exists already, or if the other ranks have other settings, versions or kinds of device.
    """
    plan, samples, ranks = model.plan, source.samples, rank_info.ranks
    finished = finished_batch_size(plan.identity, output)
    if finished is None:
        size = agree_on_batch_size(
            output, ranks, plan.provenance, settings.batch_size, lambda: find_batch_size(model)
        )
        finished = finished_batch_size(plan.identity, output)  # the others may be done by now
    if finished is not None:
        return ShardResult(finished, 0, joined=False)
    layout, count = plan.layout, 0
    spans = partition(layout.n_clean, layout.n_samples, layout.n_views + 1, ranks, size)
    shares = [Share(rank, ranks, span) for rank, span in enumerate(spans)]
    share = shares[rank_info.rank]
    if share.span:
        resume = settings.resume or rank_info.restarted
        count = at_size_that_fits(
            size,
            lambda size: _embed_shard(model, source, size, share, output, resume, progress),
            fixed=True,
        )
    joined = join_shards(
        output,
        layout,
        [share for share in shares if share.span],
        samples.ids[: layout.n_clean],
        samples.labels[: layout.n_clean] if samples.labels is not None else None,
        [(bad.id, bad.reason) for bad in samples.bad],
        plan.provenance | {"batch_size": size},
    )
    return ShardResult(size, count, joined)


def finished_batch_size(planned: dict[str, object], output: Path) -> int | None:
    """The batch size of the finished output, None if there is no output yet.

    Raises FeatureFileError if the output is that of another plan.
    """
    if not output.exists():
        return None
    provenance = read_provenance(output)
    if identity(provenance) != planned:
        check_absent(output, overwrite=False)
    return int(provenance["batch_size"])


def _embed_shard(
    model: EmbeddingModel,
    source: ViewSource,
    size: int,
    share: Share,
    output: Path,
    resume: bool,
    progress: Progress,
) -> int:
    plan, samples = model.plan, source.samples
    shard = shard_path(output, share.rank, share.ranks)
    if not resume:
        check_startable(output, shard)
    if shard.exists():
        return 0
    provenance = plan.provenance | {"batch_size": size}
    if partial_path(shard).exists():
        writer = FeatureWriter.resume(shard, plan.layout, provenance, share=share)
    else:
        ids, labels = samples.ids, samples.labels
        writer = FeatureWriter.create(shard, plan.layout, ids, labels, provenance, share=share)
    with writer:
        count = embed_all(model, source, size, writer, progress)
        if PATCHES in plan.layout.widths and share.span.start == 0:
            writer.write_dense(measure_dense(model, source, size, progress))
        writer.finish()
    return count
