"""The score of one layer, from its moments: the value of each metric, or the reason why it is null.

The equations are in `core.spectra` (moments to eigenvalues) and `core.metrics` (eigenvalues to
values). This module decides which metrics can be computed, and writes the warnings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lidar_cli.configuration import parse_size
from lidar_cli.core import spectra
from lidar_cli.core.dense import DenseParts
from lidar_cli.core.metrics import (
    FIT_RANKS,
    METRICS,
    READ_FROM_SUBSET,
    Metric,
    Spectrum,
    default_metrics,
    parse_metrics,
)
from lidar_cli.core.moments import Moments, ViewCounts, noise_floor, unit_rows
from lidar_cli.core.noise import contrast_samples, corrected_spectrum, measure_view_noise
from lidar_cli.errors import DegenerateFeatures
from lidar_cli.features.embeddings import Chunk, Embeddings
from lidar_cli.scoring.intervals import OVERFLOW, Confidence, Interval
from lidar_cli.scoring.streaming import LayerMoments
from lidar_cli.settings import MetricSettings, OrderSettings

RIDGE_WARNING = 0.05  # ridge share above which LiDAR depends on the embedding's scale
RIDGE_REFUSAL = 0.99  # ridge share above which Sw has no view noise that could be measured
MUCH_RIDGE = 0.5  # ridge share above which delta, not the views, decides what counts as noise
COLLAPSED = 0.1  # normalized_std below which rows are nearly parallel: cosines above 0.99
FIT_MARGIN = 2  # eigenvalues over the last rank of alpha-ReQ's fit, below which a warning follows
MUCH_NOISE = 0.5  # share of the LDA trace above which LiDAR mostly counts view noise
DEGREES = 5  # n (q - 1) over d, below which the within covariance is poorly determined
BLOCK_NUMBERS = 2**20  # numbers in the float64 copy of samples that are read again, 8 MB
DEFAULT_METRICS = default_metrics()
BIASED = tuple(name for name, metric in METRICS.items() if metric.reads == "signal")
DSE = "dse"  # formed by `lidar rank` of its parts, which each score has
DSE_PARTS = tuple(f"{DSE}_{part}" for part in DenseParts._fields)
VALUES = {  # metrics and companions in the order of files, with their values if not computed
    name: value
    for metric in METRICS.values()
    for name, value in ({metric.name: None} | dict(metric.companions)).items()
} | dict.fromkeys(DSE_PARTS)
NO_PATCHES = "read from the patch tokens of a Vision Transformer: --layer patches"  # no `dense`
NO_VIEWS = {  # the reason of a null, by `Embeddings.clean_name`
    "rows": "rows without views; give --views-per-sample, --group-by ids, or an array (n, q, d)",
    "clean": "un-augmented embeddings alone; `lidar extract -q 2` or more adds views",
}


@dataclass(frozen=True)
class Point:
    """Metrics of the first n_samples of a file, with the first n_views of each sample.

    n_rows: the number of rows that RankMe and alpha-ReQ read.
    values: of metrics that this part changes; None for one that cannot be computed.
    """

    n_samples: int
    n_views: int
    n_rows: int
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Convergence:
    """Metrics as n and as q grow, up to the complete file, and one sentence of advice."""

    by_samples: tuple[Point, ...]
    by_views: tuple[Point, ...]
    advice: str


@dataclass(frozen=True)
class Score:
    """Metrics of one layer of one file, and the settings and sizes that comparable scores share.

    values: by the names in VALUES, each also an attribute (`score.lidar`). A metric that cannot be
    computed is None, and `notes` has the reason.
    n_views: q, the smallest if samples have unequal numbers of views q_i. Then `view_counts` has
    the largest as `most`, the number of all `rows`, and the mean of 1/q_i as `noise_floor`.
    Among them are the parts of DSE, if the layer is `patches`; else NO_PATCHES is the reason.
    warnings: by kind: ridge, degrees, rows, ...
    confidence, convergence, influences: empty or None if not requested.
    """

    file: str
    layer: str
    n_samples: int
    n_views: int
    dim: int
    delta: float
    epsilon: float
    normalized: bool
    values: Mapping[str, Any] = field(default_factory=lambda: dict(VALUES))
    ridge_share: float | None = None
    data: str | None = None
    view_counts: dict[str, float] | None = None
    notes: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    spectra: dict[str, list[float]] = field(default_factory=dict, repr=False)
    provenance: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    confidence: Confidence | None = None
    convergence: Convergence | None = None
    influences: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, *facts: Any, **named: Any) -> Score:
        """A score from its first fields by position, and other fields and values by name."""
        named |= zip((one.name for one in fields(cls)), facts, strict=False)
        values = {name: named.pop(name, value) for name, value in VALUES.items()}
        return cls(**named, values=values)

    def __getattr__(self, name: str) -> Any:
        if name not in VALUES:
            raise AttributeError(f"a score has no {name!r}")
        return self.values[name]

    @property
    def is_collapsed(self) -> bool:
        """Whether the embedding is constant or nearly so; False where `normalized_std` is null."""
        spread: float | None = self.normalized_std
        return spread is not None and spread < COLLAPSED

    def value(self, metric: str) -> float | None:
        """The value of a metric by name; None if it has none, or is of a group not yet formed."""
        value: float | None = self.values.get(metric)
        return value

    @property
    def q_text(self) -> str:
        """q, or the smallest and the largest, such as `2 to 9`."""
        most = int(self.view_counts["most"]) if self.view_counts else self.n_views
        return f"{self.n_views}" if most == self.n_views else f"{self.n_views} to {most}"

    @property
    def noise_floor(self) -> float:
        """The share of a view's noise in the mean of a sample: 1/q, or the mean of 1/q_i."""
        return self.view_counts["noise_floor"] if self.view_counts else 1 / self.n_views

    @property
    def computed(self) -> frozenset[str]:
        """The metrics that have a value, or the reason why they have none."""
        return frozenset(m for m in METRICS if self.values[m] is not None or m in self.notes)

    def with_value(self, metric: str, value: float) -> Score:
        """The same score with another value of a metric."""
        return replace(self, values={**self.values, metric: value})

    def interval(self, metric: str) -> Interval:
        """The interval of a metric by name; an empty one if it has none."""
        intervals = self.confidence.intervals if self.confidence else {}
        return intervals.get(metric, Interval())

    def record(self) -> dict[str, Any]:
        """The fields and values of `plain_fields` by name; `Score.of(**record)` is the inverse."""
        return {
            name: self.values[name] if name in VALUES else getattr(self, name)
            for name in plain_fields()
        }


def ranked_metrics(settings: OrderSettings) -> frozenset[str]:
    """The metrics that rank and compare compute: the default ones, those named, what orders.

    A metric of a group is formed from metrics that are among the default ones.
    """
    return DEFAULT_METRICS | parse_metrics(settings.metrics) | ({settings.by} & METRICS.keys())


def listed_metrics(scores: Iterable[Score]) -> list[str]:
    """The metrics that tables of some scores list: the default ones, and others they computed."""
    computed = DEFAULT_METRICS.union(*(score.computed for score in scores))
    return [name for name in METRICS if name in computed]


def plain_fields() -> list[str]:
    """Names of the values, and of the fields before `spectra`, in the order of files."""
    names = [one.name for one in fields(Score)]
    before, after = names[: names.index("values")], names[names.index("values") + 1 :]
    return [*before, *VALUES, *after[: after.index("spectra")]]


def compute_score(
    embeddings: Embeddings,
    settings: MetricSettings,
    state: LayerMoments,
    wanted: AbstractSet[str],
) -> Score:
    """The wanted metrics of one layer from its moments `state`."""
    draft = _Draft(wanted)
    _lda_metrics(draft, embeddings, settings, state)
    _row_metrics(draft, settings, state)
    _view_metrics(draft, embeddings, settings, state)
    _subset_metrics(draft, embeddings, state)
    _dense_parts(draft, embeddings)
    n, q, d = embeddings.shape
    return Score(
        *(embeddings.file, embeddings.layer, n, q, d),
        delta=settings.delta,
        epsilon=settings.epsilon,
        normalized=settings.normalize,
        values=VALUES | draft.values,
        ridge_share=draft.ridge_share,
        data=embeddings.provenance.get("data"),
        view_counts=_unequal_counts(n, embeddings.view_counts),
        notes=draft.notes,
        warnings=draft.warnings,
        spectra=draft.spectra,
        provenance=embeddings.provenance,
    )


def _unequal_counts(n: int, q: ViewCounts) -> dict[str, float] | None:
    if isinstance(q, int):
        return None
    rows = sum(views * samples for views, samples in q.items())
    return {"most": max(q), "rows": rows, "noise_floor": noise_floor(n, q)}


class _Draft:
    """The fields of a score that is being computed."""

    def __init__(self, wanted: AbstractSet[str]) -> None:
        self._metrics = [metric for name, metric in METRICS.items() if name in wanted]
        self.values: dict[str, Any] = {}
        self.notes: dict[str, str] = {}
        self.warnings: dict[str, str] = {}
        self.spectra: dict[str, list[float]] = {}
        self.ridge_share: float | None = None

    def wanted(self, *reads: str) -> list[Metric]:
        """The requested metrics whose `reads` is one of these."""
        return [metric for metric in self._metrics if metric.reads in reads]

    def compute(self, metrics: Sequence[Metric], source: Any) -> None:
        """Add the value of each metric, or why it is null; source: what its `reads` names."""
        for metric in metrics:
            try:
                value = metric.value(source)
            except DegenerateFeatures as error:
                self.set_null([metric], str(error))
                continue
            if not math.isfinite(value):
                self.set_null([metric], OVERFLOW)
                continue
            self.values[metric.name] = value
            self.values |= metric.details(source) if metric.details else {}

    def solve(self, metrics: Sequence[Metric], solver: Callable[[], Tensor]) -> Tensor | None:
        """The spectrum that some metrics read; None, and they are null, if there is none."""
        if not metrics:
            return None
        try:
            return solver()
        except DegenerateFeatures as error:
            self.set_null(metrics, str(error))
            return None

    def set_null(self, metrics: Sequence[Metric], reason: str) -> None:
        """Record why these metrics are null."""
        self.notes |= {metric.name: reason for metric in metrics}


def _lda_metrics(
    draft: _Draft, embeddings: Embeddings, settings: MetricSettings, state: LayerMoments
) -> None:
    against_noise = draft.wanted("noise", "edge", "signal")
    metrics = [*draft.wanted("lda"), *against_noise]
    views = state.views
    if not metrics:
        return
    if views is None:
        draft.set_null(metrics, NO_VIEWS[embeddings.clean_name])
        return
    try:
        eigenvalues, ridge, singular = spectra.lda_spectrum(views, settings.delta)
    except DegenerateFeatures as error:
        draft.set_null(metrics, str(error))
        return
    draft.spectra["lda"] = eigenvalues.tolist()
    draft.ridge_share = ridge
    draft.warnings |= _lda_warnings(views, ridge, singular)
    spectrum = Spectrum(eigenvalues, views.n, views.views, settings.epsilon)
    draft.compute(draft.wanted("lda"), spectrum)
    if ridge > RIDGE_REFUSAL and bool(eigenvalues[0] > 0):
        draft.set_null(
            against_noise,
            f"the ridge's share, delta tr(Sw^-1) / d, is {ridge:.0%}: it leaves no view "
            "noise to measure; lower --delta",
        )
        return
    draft.compute(draft.wanted("noise"), spectrum)
    _signal_metrics(draft, embeddings, settings, state, spectrum)
    noise = draft.values.get("noise_fraction")
    if noise is not None and noise > MUCH_NOISE:
        draft.warnings["noise"] = _noise_warning(
            *(noise, views.views, settings.delta, ridge),
            "lidar_corrected" in draft.values,
        )


def _noise_warning(noise: float, q: ViewCounts, delta: float, ridge: float, corrected: bool) -> str:
    """That view noise is much, or that delta is too large for a judgement."""
    if ridge > MUCH_RIDGE:
        return (
            f"{noise_clause(noise, q)} at delta = {delta:g}, but delta is {ridge:.0%} of what it "
            "is measured by: lower --delta first"
        )
    instead = ", or read lidar_corrected" if corrected else ""
    more = "raise q (`lidar extract -q`)" if isinstance(q, int) else "add views of each sample"
    return f"{noise_clause(noise, q)}, and lidar counts it as rank: {more}{instead}"


def _lda_warnings(views: Moments, ridge: float, singular: bool) -> dict[str, str]:
    warnings = {}
    degrees, d = views.degrees, views.dim
    name = "n (q - 1)" if isinstance(views.views, int) else "sum(q_i - 1)"
    if ridge > RIDGE_WARNING:
        warnings["ridge"] = (
            f"the ridge's share, delta tr(Sw^-1) / d, is {ridge:.0%}: LiDAR depends on the "
            "scale of this embedding; compare only like scales, or lower --delta"
        )
    if degrees < DEGREES * d:
        warnings["degrees"] = (
            f"{name} = {degrees} is less than 5 d = {5 * d}: the within covariance is "
            "poorly determined; raise q or n"
        )
    if singular:
        warnings["singular"] = (
            "the within covariance is singular to rounding and delta is too small for its "
            "scale: some eigenvalues, and LiDAR, are rounding; raise --delta"
        )
    return warnings


def _signal_metrics(
    draft: _Draft,
    embeddings: Embeddings,
    settings: MetricSettings,
    state: LayerMoments,
    spectrum: Spectrum,
) -> None:
    """The count of eigenvalues above view noise, and the metrics of lambda^c."""
    views, of_edge, of_signal = state.views, draft.wanted("edge"), draft.wanted("signal")
    if views is None or not (of_edge or of_signal):
        return
    assert embeddings.views is not None
    blocks = partial(_read_again, embeddings, settings.normalize, views.device)
    try:
        noise = measure_view_noise(views, blocks, settings.delta, parse_size(settings.memory))
    except DegenerateFeatures as error:
        draft.set_null([*of_edge, *of_signal], str(error))
        return
    state.noise_edge = noise.edge
    draft.values |= {
        "noise_edge": noise.edge,
        "noise_edge_law": noise.law,
        "noise_dispersion": noise.dispersion,
    }
    if noise.remark is not None:
        draft.warnings["uneven"] = noise.remark
    eigenvalues, n, q = spectrum.eigenvalues, spectrum.n, spectrum.q
    draft.compute(of_edge, replace(spectrum, edge=noise.edge))
    signal = draft.solve(of_signal, lambda: corrected_spectrum(eigenvalues, n, q, noise.edge))
    if signal is not None:
        draft.compute(of_signal, replace(spectrum, eigenvalues=signal, edge=noise.edge))


def _read_again(embeddings: Embeddings, normalize: bool, device: torch.device) -> Iterator[Tensor]:
    """The samples of `contrast_samples` in blocks [c, q, d] of float64, read a second time."""
    n, _, d = embeddings.shape
    samples = contrast_samples(n, embeddings.view_counts, d)
    mean = -(-math.prod(embeddings.views.shape) // (n * d)) if embeddings.views else 1
    for some in torch.split(samples, max(1, BLOCK_NUMBERS // (mean * d))):
        ends = (some.diff() > 1).nonzero().flatten() + 1
        runs = torch.tensor_split(some, ends)
        parts = [embeddings.read_views(int(run[0]), int(run[-1]) + 1) for run in runs]
        counts = [count for _, count in parts if count is not None]
        views = torch.cat([rows for rows, _ in parts])
        chunk = Chunk(0, len(some), views, None, torch.cat(counts) if counts else None)
        for part, _ in chunk.blocks():
            block = part.to(device, torch.float64)
            yield unit_rows(block) if normalize else block


def _row_metrics(draft: _Draft, settings: MetricSettings, state: LayerMoments) -> None:
    rows, of_gram = state.rows, draft.wanted("gram")
    gram = draft.solve(of_gram, lambda: spectra.gram_spectrum(rows))
    if gram is not None:
        draft.spectra["gram"] = gram.tolist()
        draft.compute(of_gram, Spectrum(gram, rows.n, 1, settings.epsilon))
    if of_gram:
        draft.values |= {"rankme_source": state.row_source, "rankme_rows": rows.n}
        if rows.n < rows.dim:
            draft.warnings["rows"] = (
                f"RankMe reads {rows.n} rows and d = {rows.dim}: it cannot exceed {rows.n}; "
                "compare it at equal rows alone"
            )
    of_covariance = draft.wanted("covariance")
    covariance = draft.solve(of_covariance, lambda: spectra.covariance_spectrum(rows))
    if covariance is None:
        return
    draft.spectra["covariance"] = covariance.tolist()
    draft.compute(of_covariance, Spectrum(covariance, rows.n, 1, settings.epsilon))
    (first, last), count = FIT_RANKS, min(rows.n - 1, rows.dim)
    if "alpha_req" in draft.values and count < FIT_MARGIN * last:
        draft.warnings["eigenvalues"] = (
            f"alpha_req is fitted to eigenvalues {first} to {last} of {count}: the end of a "
            "spectrum falls off whatever the law; it wants more rows or a wider layer"
        )


def _view_metrics(
    draft: _Draft, embeddings: Embeddings, settings: MetricSettings, state: LayerMoments
) -> None:
    views, of_all = state.views, draft.wanted("augmented")
    if views is None:
        draft.set_null(draft.wanted("augmented", "sphere"), NO_VIEWS[embeddings.clean_name])
        return
    gram = draft.solve(of_all, lambda: spectra.augmented_gram_spectrum(views))
    if gram is not None:
        draft.compute(of_all, Spectrum(gram, views.n, views.views, settings.epsilon))
    draft.compute(draft.wanted("sphere"), views.sphere)
    spread = draft.values.get("normalized_std")
    if spread is not None and spread < COLLAPSED:
        draft.warnings["collapsed"] = (
            f"normalized_std is {spread:.2g}, and 1 is healthy: the embedding is constant or "
            "nearly collapsed, and the other metrics read what little is left"
        )


def _subset_metrics(draft: _Draft, embeddings: Embeddings, state: LayerMoments) -> None:
    for reads in READ_FROM_SUBSET:
        metrics = draft.wanted(reads)
        if metrics and reads not in state.subsets:
            draft.set_null(metrics, NO_VIEWS[embeddings.clean_name])
        elif metrics:
            try:
                draft.compute(metrics, state.compared(reads))
            except DegenerateFeatures as error:
                draft.set_null(metrics, str(error))


def _dense_parts(draft: _Draft, embeddings: Embeddings) -> None:
    """The parts of DSE, which are stored with the layer `patches`, or why there are none."""
    dense = embeddings.dense
    if isinstance(dense, str):
        draft.notes[DSE] = dense
    elif dense is not None:
        draft.values |= zip(DSE_PARTS, dense, strict=True)


def noise_clause(fraction: float, q: ViewCounts) -> str:
    """A clause: how much of the LDA trace is view noise. The estimate can exceed 100 %."""
    views = f"q = {q}" if isinstance(q, int) else f"q = {min(q)} to {max(q)}"
    if fraction >= 1:
        return f"view noise accounts for the whole LDA trace at {views}"
    return f"view noise is {100 * fraction:.0f} % of the LDA trace at {views}"
