"""A second pass over stored embeddings, which computes the influence of samples on metrics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lidar_cli.configuration import parse_size
from lidar_cli.core import influence
from lidar_cli.core.metrics import METRICS
from lidar_cli.core.moments import unit_rows
from lidar_cli.features.embeddings import Embeddings
from lidar_cli.runtime.files import check_regular, write_atomic
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.process_group import ProcessGroup
from lidar_cli.scoring.streaming import LayerMoments, enough_memory
from lidar_cli.settings import MetricSettings

BLOCK_NUMBERS = 2**21  # numbers in a block's float64 copy, 16 MB
LEAST_BLOCK_ROWS = 1024  # the fewest rows of a block, whatever d: products of fewer are slow
METHOD = 2  # version of `core.influence` and `core.noise`; a change discards stored influences

# Names of metrics, and a function from samples [c, q, d] to their influences [c] or [c, metrics].
Term = tuple[Sequence[str], Callable[[Tensor], Tensor]]


def influences(
    embeddings: Embeddings,
    settings: MetricSettings,
    state: LayerMoments,
    wanted: Collection[str],
    progress: Progress,
    cache: Path | None = None,
    process_group: ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """Influences on each wanted metric, with mean 0: [n], or [N] if it reads one row a sample.

    wanted: metrics that have a value, not those of `subset_influences`. state: the moments of the
    same embeddings.
    cache: a folder that stores the influences, used if the file has a digest of its content.
    process_group: processes that each read a part.
    Needs memory for a few [d, d] matrices and the influences, in addition to the moments.
    """
    stored = _Stored(cache, embeddings, settings) if cache and embeddings.content else None
    by_metric = stored.read(wanted) if stored else None
    if by_metric is None:
        if process_group is None:
            span = embeddings.span
            by_metric = _second_pass(embeddings, settings, state, wanted, progress, span)
        else:
            by_metric = _together(embeddings, settings, state, wanted, progress, process_group)
        by_metric = {name: values - values.mean() for name, values in by_metric.items()}
        if stored:
            stored.write(by_metric)
    return by_metric


def subset_influences(state: LayerMoments, wanted: Collection[str], n: int) -> dict[str, Tensor]:
    """Influences on each wanted metric of the subset, with mean 0, [n]; no second pass is needed.

    Those of samples outside the subset are 0. Those inside are scaled by about n / m, so that the
    standard error, sd / sqrt(n), is that of the subset, sd / sqrt(m).
    """
    by_metric = {}
    for name in wanted:
        influence, reads = METRICS[name].influence, METRICS[name].reads
        assert influence is not None
        values = influence(state.compared(reads)).cpu()
        numbers, m = state.subsets[reads].numbers(), len(values)
        values = (values - values.mean()) * ((n - 1) * n / ((m - 1) * m)) ** 0.5
        by_metric[name] = values.new_zeros(n).index_copy(0, numbers, values)
    return by_metric


def _together(
    embeddings: Embeddings,
    settings: MetricSettings,
    state: LayerMoments,
    wanted: Collection[str],
    progress: Progress,
    process_group: ProcessGroup,
) -> dict[str, Tensor]:
    with process_group.raise_on_any_rank(), enough_memory(embeddings):
        span = process_group.span(embeddings)
        part = _second_pass(embeddings, settings, state, wanted, progress, span)
    parts = list(process_group.gather(part))
    return {name: torch.cat([part[name] for part in parts]) for name in wanted}


def _second_pass(
    embeddings: Embeddings,
    settings: MetricSettings,
    state: LayerMoments,
    wanted: Collection[str],
    progress: Progress,
    span: range,
) -> dict[str, Tensor]:
    of_views, of_rows = _of_views(settings, state, wanted), _of_rows(settings, state, wanted)
    none = torch.empty(0, dtype=torch.float64)  # for a span without views, or without rows
    columns: dict[str, list[Tensor]] = {name: [none] for name in wanted}
    for chunk in embeddings.chunks(parse_size(settings.memory), span):
        rows = chunk.first_views() if chunk.clean is None else chunk.clean
        ordered = () if rows is None else ((rows[:, None], torch.arange(len(rows))),)
        for blocks, terms in ((chunk.blocks(), of_views), (ordered, of_rows)):
            if terms:
                _add(blocks, terms, settings.normalize, state.rows.device, columns)
        done = chunk.stop - span.start
        progress.update("reading again", done, len(span))
        del chunk, rows, ordered, blocks  # frees the chunk before the next is read
    return {name: torch.cat(blocks) for name, blocks in columns.items()}


class _Stored:
    """A file that stores influences, so that they are computed once.

    Its name has a hash of the embeddings' content and of the constants.
    folder: created if it does not exist. If it cannot be written, nothing is stored.
    """

    def __init__(self, folder: Path, embeddings: Embeddings, settings: MetricSettings) -> None:
        identity = [
            METHOD,
            embeddings.content,
            embeddings.layer,
            embeddings.shape,
            settings.delta,
            settings.epsilon,
            settings.normalize,
        ]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        self._path = folder / f"{Path(embeddings.file).stem}-{key}.influence"

    def read(self, wanted: Collection[str]) -> dict[str, Tensor] | None:
        """The influences on the wanted metrics; None if those on one of them are not stored."""
        try:
            check_regular(self._path, follow=False)
            tensors: dict[str, Tensor] = load_file(self._path)
        except (OSError, SafetensorError):
            return None
        return {name: tensors[name] for name in wanted} if tensors.keys() >= set(wanted) else None

    def write(self, by_metric: dict[str, Tensor]) -> None:
        """Store influences atomically."""
        content = save({name: values.contiguous() for name, values in by_metric.items()})
        with suppress(OSError):  # if they cannot be stored, the next run computes them again
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, content)  # another rank may write the same


def _of_views(settings: MetricSettings, state: LayerMoments, wanted: Collection[str]) -> list[Term]:
    """The functions for the metrics that read views."""
    views, epsilon = state.views, settings.epsilon
    if views is None:
        return []
    terms: list[Term] = []
    lda = [name for name in wanted if METRICS[name].reads_lda]
    if lda:
        of_lda = influence.lda_influence(views, lda, settings.delta, epsilon, state.noise_edge)
        terms.append((lda, of_lda.influences))
    augmented = [name for name in wanted if METRICS[name].reads == "augmented"]
    if augmented:
        of_gram = influence.augmented_influence(views, augmented, epsilon)
        terms.append((augmented, of_gram.influences))
    for name in wanted:
        of_sphere = METRICS[name].influence
        if of_sphere is not None:
            terms.append(((name,), partial(of_sphere, sphere=views.sphere)))
    return terms


def _of_rows(settings: MetricSettings, state: LayerMoments, wanted: Collection[str]) -> list[Term]:
    """The functions for the metrics that read one row a sample."""
    terms: list[Term] = []
    for reads, expand in (
        ("gram", influence.gram_influence),
        ("covariance", influence.covariance_influence),
    ):
        names = [name for name in wanted if METRICS[name].reads == reads]
        if names:
            terms.append((names, expand(state.rows, names, settings.epsilon).influences))
    return terms


def _add(
    blocks: Iterable[tuple[Tensor, Tensor]],
    terms: list[Term],
    normalize: bool,
    device: torch.device,
    columns: dict[str, list[Tensor]],
) -> None:
    """Add the influences of the samples of a chunk; blocks: as of `Chunk.blocks`."""
    parts: dict[str, list[Tensor]] = {name: [] for names, _ in terms for name in names}
    numbers = []
    for part, samples in blocks:
        numbers.append(samples)
        _, q, d = part.shape
        # In pieces, so that a float64 copy is small whatever the size of a chunk.
        for piece in torch.split(part, max(1, max(LEAST_BLOCK_ROWS, BLOCK_NUMBERS // d) // q)):
            views = piece.to(device, torch.float64)
            views = unit_rows(views) if normalize else views
            for names, influences_of in terms:
                values = influences_of(views).cpu().reshape(len(piece), len(names))
                for name, column in zip(names, values.unbind(dim=1), strict=True):
                    parts[name].append(column)
    if numbers:
        order = torch.cat(numbers).argsort()
        for name, pieces in parts.items():
            columns[name].append(torch.cat(pieces)[order])
