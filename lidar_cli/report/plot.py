"""Spectra on log axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lidar_cli.errors import MissingExtra, SettingsError
from lidar_cli.jobs.sheet import Score

ROUNDING = 1e-11  # eigenvalues below this share of the largest are not drawn
PANELS = {
    "lda": "LDA (LiDAR)",
    "gram": "squared singular values (RankMe)",
    "covariance": "covariance (alpha-ReQ)",
}


def check_plot(path: Path) -> None:
    """Raise SettingsError unless a plot can be written to `path`: before the work, not after."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise SettingsError(f"--plot {path}: expected a name that ends in .png or .svg")
    if not path.parent.is_dir():
        raise SettingsError(f"--plot {path}: no folder {path.parent}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtra("plot", "matplotlib", "--plot") from error


def plot_spectra(scores: Sequence[Score], path: Path) -> None:
    """One panel a matrix, one line a score; the noise edge is dashed. Raises SettingsError."""
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [name for name in PANELS if any(name in score.spectra for score in scores)]
    figure = Figure(figsize=(4.2 * max(1, len(panels)), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for at, score in enumerate(scores):
            spectrum = score.spectra.get(name, [])
            spectrum = [value for value in spectrum if value > ROUNDING * max(spectrum)]
            colour = f"C{at % 10}"
            ranks = range(1, len(spectrum) + 1)
            axes.loglog(ranks, spectrum, color=colour, lw=1.4, label=_label(score, scores))
            if name == "lda" and score.noise_edge is not None:
                axes.axhline(score.noise_edge, color=colour, ls="--", lw=0.8, alpha=0.7)
        axes.set_title(PANELS[name], fontsize=10)
        axes.set_xlabel("rank of the eigenvalue")
        axes.grid(True, which="major", alpha=0.25, lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    if panels:
        figure.axes[0].set_ylabel(
            "eigenvalue (dashed: edge of view noise)" if panels[0] == "lda" else "eigenvalue"
        )
        if len(scores) <= 12:
            figure.axes[-1].legend(fontsize=7, frameon=False, loc="lower left")
    try:
        figure.savefig(path, dpi=160)
    except OSError as error:
        raise SettingsError(f"--plot {path}: cannot be written: {error.strerror}") from error


def _label(score: Score, scores: Sequence[Score]) -> str:
    name = Path(score.file).stem
    return f"{name} {score.layer}" if len({s.layer for s in scores}) > 1 else name
