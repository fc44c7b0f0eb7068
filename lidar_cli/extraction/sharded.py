"""One of several processes that make a feature file together: its share, and the joining.

A share is a run of whole batches, so that the batches are those of one process. None waits for
another; the one that finds all shards complete joins them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lidar_cli.errors import SettingsError
from lidar_cli.extraction.batch_size import at_size_that_fits, find_batch_size
from lidar_cli.extraction.batches import Pass
from lidar_cli.extraction.engine import embed_all
from lidar_cli.extraction.plan import identity
from lidar_cli.features.reader import read_provenance
from lidar_cli.features.schema import Share, partial_path
from lidar_cli.features.shards import agree, check_startable, join, shard_path
from lidar_cli.features.writer import FeatureWriter, check_absent
from lidar_cli.runtime.distributed import RankInfo, partition
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import ExtractSettings


@dataclass(frozen=True)
class Shared:
    """What one process did. joined: whether it gave the file its name."""

    batch_size: int
    embedded: int
    joined: bool


def check_shared(settings: ExtractSettings, output: Path) -> None:
    """Raise SettingsError for what several processes cannot do together."""
    if "%" in output.name:
        raise SettingsError(
            f"-o {output}: HDF5 gives % a meaning in names of shards; choose a name without it"
        )
    if settings.overwrite:
        raise SettingsError(
            "--overwrite: of several processes none knows whether a file is another's work; "
            "remove the output and its .shard* files first"
        )


def embed_share(
    work: Pass, settings: ExtractSettings, output: Path, rank_info: RankInfo, progress: Progress
) -> Shared:
    """Embed the share of this process into its shard; join the shards if it is the last.

    An output that holds what is asked for is there because the others were done already.
    Raises what `embed_all` raises, and FeatureFileError if files are in the way, or the other
    processes have other settings, versions or another kind of device.
    """
    plan = work.plan
    found = _finished(work, output)
    if found is None:
        size = agree(
            output,
            rank_info.ranks,
            plan.provenance,
            settings.batch_size,
            lambda: find_batch_size(work),
        )
        found = _finished(work, output)  # or else the agreement might be one after the end
    if found is not None:
        return Shared(found, 0, joined=False)
    layout, count = plan.layout, 0
    spans = partition(layout.n_clean, layout.n_samples, layout.n_views + 1, rank_info.ranks, size)
    every = [Share(rank, rank_info.ranks, span) for rank, span in enumerate(spans)]
    own = every[rank_info.rank]
    if own.span:
        again = settings.resume or rank_info.restarted
        count = at_size_that_fits(
            size, lambda size: _embed(work, size, own, output, again, progress), fixed=True
        )
    ids, labels = work.samples.ids[: layout.n_clean], work.samples.labels
    joined = join(
        output,
        layout,
        [share for share in every if share.span],
        ids,
        labels[: layout.n_clean] if labels is not None else None,
        [(bad.id, bad.reason) for bad in work.samples.bad],
        plan.provenance | {"batch_size": size},
    )
    return Shared(size, count, joined)


def _finished(work: Pass, output: Path) -> int | None:
    """The batch size of the output if it is there, None if not."""
    if not output.exists():
        return None
    told = read_provenance(output)
    if identity(told) != work.plan.identity:
        check_absent(output, overwrite=False)
    return int(told["batch_size"])


def _embed(
    work: Pass, size: int, share: Share, output: Path, resume: bool, progress: Progress
) -> int:
    plan, samples = work.plan, work.samples
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
    task = f"embedding {output.name}, a share of {share.ranks}"
    with writer:
        count = embed_all(work, size, writer, task, progress)
        writer.finish()
    return count
