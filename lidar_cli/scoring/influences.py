"""A second pass over stored embeddings: what each sample does to each metric."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lidar_cli.configuration import parse_size
from lidar_cli.core import influence
from lidar_cli.core import influence as gradients
from lidar_cli.core.metrics import METRICS
from lidar_cli.core.moments import unit_rows
from lidar_cli.features.blocks import Embeddings
from lidar_cli.runtime.atomic import write_atomic
from lidar_cli.runtime.files import check_regular
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.process_group import ProcessGroup
from lidar_cli.scoring.streaming import Gathered, enough_memory
from lidar_cli.settings import MetricSettings

BLOCK_NUMBERS = 2**21  # of a block's float64 copy, 16 MB; but for the products' sake at least
LEAST_BLOCK_ROWS = 1024
METHOD = 2  # of `core.influence` and `view_noise`; another number makes what was kept useless

Influence = Callable[[Tensor], Tensor]  # samples [c, q, d] -> [c] or [c, metrics]


def influences(
    embeddings: Embeddings,
    settings: MetricSettings,
    state: Gathered,
    wanted: Collection[str],
    progress: Progress,
    cache: Path | None = None,
    process_group: ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """Influence of each sample on each wanted metric [n], less its mean; [N] for those of rows.

    state: the moments of the same embeddings; every wanted metric has a value.
    cache: a folder where they are kept, if the file vouches for its content.
    process_group: processes that read a part each.
    Memory beside the moments: a few [d, d] and the numbers returned.
    """
    kept = _Kept(cache, embeddings, settings) if cache and embeddings.content else None
    found = kept.read(wanted) if kept else None
    if found is None:
        if process_group is None:
            found = _second_pass(embeddings, settings, state, wanted, progress, embeddings.span)
        else:
            found = _together(embeddings, settings, state, wanted, progress, process_group)
        found = {name: values - values.mean() for name, values in found.items()}
        if kept:
            kept.write(found)
    return found


def _together(
    embeddings: Embeddings,
    settings: MetricSettings,
    state: Gathered,
    wanted: Collection[str],
    progress: Progress,
    process_group: ProcessGroup,
) -> dict[str, Tensor]:
    with process_group.raise_on_any_rank(), enough_memory(embeddings):
        span = process_group.span(embeddings)
        own = _second_pass(embeddings, settings, state, wanted, progress, span)
    parts = list(process_group.gather(own))
    return {name: torch.cat([part[name] for part in parts]) for name in wanted}


def _second_pass(
    embeddings: Embeddings,
    settings: MetricSettings,
    state: Gathered,
    wanted: Collection[str],
    progress: Progress,
    span: range,
) -> dict[str, Tensor]:
    of_views, of_rows = _of_views(settings, state, wanted), _of_rows(settings, state, wanted)
    none = torch.empty(0, dtype=torch.float64)  # in spans without samples of the kind
    found: dict[str, list[Tensor]] = {name: [none] for name in wanted}
    for chunk in embeddings.chunks(parse_size(settings.memory), span):
        rows = chunk.clean
        if rows is None and chunk.views is not None:
            rows = chunk.views[:, 0]
        for part, terms in (
            (chunk.views, of_views),
            (rows[:, None] if rows is not None else None, of_rows),
        ):
            if part is not None and terms:
                _add(part, terms, settings.normalize, state.rows.device, found)
        done = chunk.stop - span.start
        progress.update(f"reading {embeddings.file} again", done, len(span))
        del chunk, rows, part  # before the next is read: one chunk in memory, not two
    return {name: torch.cat(blocks) for name, blocks in found.items()}


class _Kept:
    """Influences in a file, so that they are computed once for each content and constants.

    folder: where it lies, made if need be. A folder that cannot be written keeps nothing.
    """

    def __init__(self, folder: Path, embeddings: Embeddings, settings: MetricSettings) -> None:
        told = [
            METHOD,
            embeddings.content,
            embeddings.layer,
            embeddings.shape,
            settings.delta,
            settings.epsilon,
            settings.normalize,
        ]
        key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
        self._path = folder / f"{Path(embeddings.file).stem}-{key}.influence"

    def read(self, wanted: Collection[str]) -> dict[str, Tensor] | None:
        """What was kept, if it holds every wanted metric."""
        try:
            check_regular(self._path, follow=False)
            found: dict[str, Tensor] = load_file(self._path)
        except (OSError, SafetensorError):
            return None
        return {name: found[name] for name in wanted} if found.keys() >= set(wanted) else None

    def write(self, found: dict[str, Tensor]) -> None:
        """Keep influences, whole or not at all."""
        content = save({name: values.contiguous() for name, values in found.items()})
        with suppress(OSError):  # they are computed again next time
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, content)  # another rank may write the same


def _of_views(
    settings: MetricSettings, state: Gathered, wanted: Collection[str]
) -> list[tuple[tuple[str, ...], Influence]]:
    """Names of metrics that read views, with the function that gives their influences."""
    views, epsilon = state.views, settings.epsilon
    if views is None:
        return []
    found: list[tuple[tuple[str, ...], Influence]] = []
    lda = {name for name in wanted if METRICS[name].reads == "lda"}
    if lda:
        of_lda = influence.lda_influence(
            views,
            settings.delta,
            lambda spectrum: gradients.of_lda(
                spectrum, views.n, views.n_views, epsilon, lda, state.noise_edge
            ),
        )
        found.append((of_lda.names, of_lda.influences))
    if "rankme_augmented" in wanted:
        of_gram = influence.augmented_influence(
            views, lambda gram: gradients.of_gram(gram, epsilon, "rankme_augmented")
        )
        found.append((of_gram.names, of_gram.influences))
    if "normalized_std" in wanted:
        sphere = views.sphere
        found.append(
            (("normalized_std",), lambda block: influence.normalized_std_influence(block, sphere))
        )
    if "alignment" in wanted:
        found.append((("alignment",), influence.alignment_influence))
    return found


def _of_rows(
    settings: MetricSettings, state: Gathered, wanted: Collection[str]
) -> list[tuple[tuple[str, ...], Influence]]:
    """The same for metrics that read one row a sample."""
    rows = state.rows
    found: list[tuple[tuple[str, ...], Influence]] = []
    if "rankme" in wanted:
        of_gram = influence.gram_influence(
            rows, lambda gram: gradients.of_gram(gram, settings.epsilon, "rankme")
        )
        found.append((of_gram.names, of_gram.influences))
    covariance = {name for name in wanted if METRICS[name].reads == "covariance"}
    if covariance:
        of_covariance = influence.covariance_influence(
            rows, lambda spectrum: gradients.of_covariance(spectrum, covariance)
        )
        found.append((of_covariance.names, of_covariance.influences))
    return found


def _add(
    part: Tensor,
    terms: list[tuple[tuple[str, ...], Influence]],
    normalize: bool,
    device: torch.device,
    found: dict[str, list[Tensor]],
) -> None:
    # In blocks, so that the float64 copies stay small beside a chunk of any size.
    _, q, d = part.shape
    for block in torch.split(part, max(1, max(LEAST_BLOCK_ROWS, BLOCK_NUMBERS // d) // q)):
        samples = block.to(device, torch.float64)
        samples = unit_rows(samples) if normalize else samples
        for names, of in terms:
            values = of(samples).cpu().reshape(len(block), len(names))
            for name, column in zip(names, values.unbind(dim=1), strict=True):
                found[name].append(column)
