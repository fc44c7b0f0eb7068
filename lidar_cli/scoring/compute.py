"""The score of one layer: every metric from its moments, with the reason of each that is null."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lidar_cli.core import metrics, spectra
from lidar_cli.core.metrics import METRICS
from lidar_cli.core.moments import Moments
from lidar_cli.errors import DegenerateFeatures
from lidar_cli.features.blocks import Embeddings
from lidar_cli.scoring.convergence import DEGREES, MUCH_NOISE, Convergence, much_noise
from lidar_cli.scoring.intervals import Confidence
from lidar_cli.scoring.streaming import Gathered
from lidar_cli.scoring.view_noise import find_view_noise
from lidar_cli.settings import MetricSettings

RIDGE_REMARK = 0.05  # share of the ridge in Sw^-1 above which the embedding's scale matters
RIDGE_REFUSAL = 0.99  # above which the readings against view noise would be against the ridge
COLLAPSED = 0.1  # normalised std below which rows point nearly the same way: cosines above 0.99
FEW = 2  # times the last rank of the power law: below it the fit runs into the end of the spectrum
EVERY_METRIC = frozenset(METRICS)
CORRECTED = ("lidar_corrected", "pillai", "information", "reliable_rank")
NO_VIEWS = {  # by what the rows are called
    "rows": "rows without views; give --views-per-sample, or an array (n, q, d)",
    "clean": "un-augmented embeddings alone; `lidar extract -q 2` or more adds views",
}


@dataclass(frozen=True)
class Score:
    """Metrics of one layer of one file, with all that is needed to compare them.

    A metric that could not be had is None, and its reason stands in `notes` under its name.
    """

    file: str
    layer: str
    n_samples: int
    n_views: int
    dim: int
    delta: float
    epsilon: float
    normalized: bool
    lidar: float | None = None
    noise_fraction: float | None = None
    noise_edge: float | None = None
    noise_edge_law: str | None = None  # "wachter", or "contrasts" where noise is uneven
    noise_dispersion: float | None = None  # of residual energies; 1 if noise is alike in samples
    n_above_noise: int | None = None
    lidar_corrected: float | None = None
    pillai: float | None = None
    information: float | None = None
    reliable_rank: float | None = None
    rankme: float | None = None
    rankme_source: str | None = None
    rankme_rows: int | None = None
    rankme_augmented: float | None = None
    alpha_req: float | None = None
    alpha_req_r2: float | None = None
    alpha_req_ranks: tuple[int, int] = metrics.FIT_RANKS
    participation_ratio: float | None = None
    stable_rank: float | None = None
    normalized_std: float | None = None
    alignment: float | None = None
    ridge_share: float | None = None
    data: str | None = None
    notes: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)  # by kind: ridge, degrees, rows, ...
    spectra: dict[str, list[float]] = field(default_factory=dict, repr=False)
    provenance: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    confidence: Confidence | None = None  # where it was asked for
    convergence: Convergence | None = None  # where it was asked for
    influences: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def value(self, metric: str) -> float | None:
        """The value of a metric by name."""
        found: float | None = getattr(self, metric)
        return found


class Sheet:
    """Turns one layer's moments into a Score, metric by metric, keeping the reason of each null."""

    def __init__(
        self,
        embeddings: Embeddings,
        settings: MetricSettings,
        state: Gathered,
        wanted: frozenset[str],
    ) -> None:
        self._embeddings = embeddings
        self._settings = settings
        self._state = state
        self._wanted = wanted
        self._values: dict[str, Any] = {}
        self._notes: dict[str, str] = {}
        self._warnings: dict[str, str] = {}
        self._spectra: dict[str, list[float]] = {}

    def score(self) -> Score:
        """All of it."""
        n, q, d = self._embeddings.shape
        self._lda(n, q, d)
        self._rows()
        self._views()
        return Score(
            file=self._embeddings.file,
            layer=self._embeddings.layer,
            n_samples=n,
            n_views=q,
            dim=d,
            delta=self._settings.delta,
            epsilon=self._settings.epsilon,
            normalized=self._settings.normalize,
            data=self._embeddings.provenance.get("data"),
            provenance=self._embeddings.provenance,
            notes=self._notes,
            warnings=self._warnings,
            spectra=self._spectra,
            **self._values,
        )

    def _lda(self, n: int, q: int, d: int) -> None:
        names = [name for name, metric in METRICS.items() if metric.reads == "lda"]
        if not self._asked(names):
            return
        views = self._state.views
        if views is None:
            self._null(names, NO_VIEWS[self._embeddings.clean_name])
            return
        epsilon = self._settings.epsilon
        try:
            eigenvalues, ridge, singular = spectra.lda_spectrum(views, self._settings.delta)
        except DegenerateFeatures as error:
            self._null(names, str(error))
            return
        self._keep("lda", eigenvalues)
        self._values["ridge_share"] = ridge
        if ridge > RIDGE_REMARK:
            self._warnings["ridge"] = (
                f"the ridge's share, delta tr(Sw^-1) / d, is {ridge:.0%}: LiDAR depends on the "
                "scale of this embedding; compare only like scales, or lower --delta"
            )
        if n * (q - 1) < DEGREES * d:
            self._warnings["degrees"] = (
                f"n (q - 1) = {n * (q - 1)} is less than 5 d = {5 * d}: the within covariance is "
                "poorly determined; raise q or n"
            )
        if singular:
            self._warnings["singular"] = (
                "the within covariance is singular to rounding and delta is too small for its "
                "scale: some eigenvalues, and LiDAR, are rounding; raise --delta"
            )
        self._set("lidar", lambda: metrics.lidar_from_spectrum(eigenvalues, epsilon))
        if ridge > RIDGE_REFUSAL and bool(eigenvalues[0] > 0):
            self._null(
                [name for name in names if name != "lidar"],
                f"the ridge's share, delta tr(Sw^-1) / d, is {ridge:.0%}: there is no view noise "
                "beside it to measure; lower --delta",
            )
            return
        self._set("noise_fraction", lambda: metrics.noise_fraction(eigenvalues, n, q))
        self._above_noise(eigenvalues, views)
        noise = self._values.get("noise_fraction")
        if noise is not None and noise > MUCH_NOISE:
            instead = ", or read lidar_corrected" if "lidar_corrected" in self._values else ""
            self._warnings["noise"] = (
                f"{much_noise(noise, q)}, and lidar counts it as rank: raise q "
                f"(`lidar extract -q`){instead}"
            )

    def _above_noise(self, eigenvalues: Tensor, views: Moments) -> None:
        """The count of directions above view noise, and what is read from them."""
        if not self._asked(["n_above_noise", *CORRECTED]):
            return
        n, q, epsilon = views.n, views.n_views, self._settings.epsilon
        try:
            noise = find_view_noise(self._embeddings, self._settings, views)
        except DegenerateFeatures as error:
            self._null(["n_above_noise", *CORRECTED], str(error))
            return
        self._state.noise_edge = noise.edge
        self._values |= {
            "noise_edge": noise.edge,
            "noise_edge_law": noise.law,
            "noise_dispersion": noise.dispersion,
        }
        if noise.remark is not None:
            self._warnings["uneven"] = noise.remark
        self._set("n_above_noise", lambda: metrics.n_above_noise(eigenvalues, n, q, noise.edge))
        try:
            signal = metrics.corrected_spectrum(eigenvalues, n, q, noise.edge)
        except DegenerateFeatures as error:
            self._null(CORRECTED, str(error))
            return
        self._set("lidar_corrected", lambda: metrics.effective_rank(signal, epsilon))
        self._set("pillai", lambda: metrics.pillai(signal))
        self._set("information", lambda: metrics.information(signal))
        self._set("reliable_rank", lambda: metrics.reliable_rank(signal, epsilon))

    def _rows(self) -> None:
        rows, source = self._state.rows, self._state.row_source
        if self._asked(["rankme"]):

            def rankme() -> float:
                gram = spectra.gram_spectrum(rows)
                self._keep("gram", gram)
                return metrics.rankme_from_spectrum(gram, self._settings.epsilon)

            self._set("rankme", rankme)
            self._values |= {"rankme_source": source, "rankme_rows": rows.n}
            if rows.n < rows.dim:
                self._warnings["rows"] = (
                    f"RankMe reads {rows.n} rows and d = {rows.dim}: it cannot exceed {rows.n}; "
                    "embed more (`lidar extract --clean-samples`)"
                )
        names = [name for name, metric in METRICS.items() if metric.reads == "covariance"]
        if not self._asked(names):
            return
        try:
            covariance = spectra.covariance_spectrum(rows)
        except DegenerateFeatures as error:
            self._null(names, str(error))
            return
        self._keep("covariance", covariance)
        if "alpha_req" in self._wanted:
            try:
                law = metrics.alpha_req(covariance, rows.n)
                self._values |= {"alpha_req": law.alpha, "alpha_req_r2": law.r2}
                self._few_eigenvalues(min(rows.n - 1, rows.dim))
            except DegenerateFeatures as error:
                self._null(["alpha_req"], str(error))
        self._set("participation_ratio", lambda: metrics.participation_ratio(covariance))
        self._set("stable_rank", lambda: metrics.stable_rank(covariance))

    def _views(self) -> None:
        views = self._state.views
        names = [name for name, metric in METRICS.items() if metric.reads in ("views", "sphere")]
        if views is None:
            self._null(names, NO_VIEWS[self._embeddings.clean_name])
            return

        def augmented() -> float:
            gram = spectra.augmented_gram_spectrum(views)
            return metrics.rankme_from_spectrum(gram, self._settings.epsilon)

        self._set("rankme_augmented", augmented)
        self._set("normalized_std", lambda: metrics.normalized_std(views.sphere))
        self._set("alignment", lambda: metrics.alignment(views.sphere, views.n_views))
        spread = self._values.get("normalized_std")
        if spread is not None and spread < COLLAPSED:
            self._warnings["collapsed"] = (
                f"normalized_std is {spread:.2g}, and 1 is healthy: the embedding is constant or "
                "nearly collapsed, and the other metrics read what little is left"
            )

    def _few_eigenvalues(self, count: int) -> None:
        first, last = metrics.FIT_RANKS
        if count < FEW * last:
            self._warnings["eigenvalues"] = (
                f"alpha_req is fitted to eigenvalues {first} to {last} of {count}: the end of a "
                "spectrum falls off whatever the law; it wants more rows or a wider layer"
            )

    def _asked(self, names: Iterable[str]) -> bool:
        return not self._wanted.isdisjoint(names)

    def _set(self, name: str, compute: Callable[[], float]) -> None:
        if name in self._wanted:
            try:
                value = compute()
            except DegenerateFeatures as error:
                self._notes[name] = str(error)
                return
            if math.isfinite(value):
                self._values[name] = value
            else:
                self._notes[name] = "beyond the range of float64: the embedding's scale is extreme"

    def _null(self, names: Iterable[str], reason: str) -> None:
        self._notes |= {name: reason for name in names if name in self._wanted}

    def _keep(self, name: str, spectrum: Tensor) -> None:
        self._spectra[name] = spectrum.tolist()
