"""The file: template, style, script and drawing library put together, written whole or not at all.

The page loads nothing. Its content security policy forbids it to, so that a slip would show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from lidar_cli import __version__
from lidar_cli.errors import InputError, MissingExtra, SettingsError
from lidar_cli.report.page.markup import Markup, element, joined, script_data
from lidar_cli.runtime.atomic import is_stream, write_atomic


@dataclass(frozen=True)
class Page:
    """A title, what stands below it, and what the charts of each section draw."""

    title: str
    body: Sequence[Markup]
    charts: Sequence[Mapping[str, Any]]


def check_page(path: Path, overwrite: bool) -> None:
    """Raise SettingsError unless a page can be written to `path`: before the work, not after."""
    if not is_stream(path):
        if path.suffix.lower() not in (".html", ".htm"):
            raise SettingsError(f"--report {path}: expected a name that ends in .html")
        if not path.parent.is_dir():
            raise SettingsError(f"--report {path}: no folder {path.parent}")
        if path.is_dir() or (path.exists() and not overwrite):
            raise SettingsError(f"--report {path}: exists already; add --overwrite to replace it")
    try:
        import plotly  # noqa: F401
    except ImportError as error:
        raise MissingExtra("report", "plotly", "--report") from error


def write_page(page: Page, path: Path, overwrite: bool) -> None:
    """Write a page. Raises SettingsError if it exists by now, InputError if the disk refuses."""
    check_page(path, overwrite)
    text = to_html(page)
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise InputError(f"--report {path}: cannot be written: {error.strerror}") from error


def to_html(page: Page) -> str:
    """The whole page as text; needs plotly."""
    from plotly.offline import get_plotlyjs

    here = files(__package__)
    return Template((here / "template.html").read_text(encoding="utf-8")).substitute(
        title=joined(page.title),
        style=(here / "page.css").read_text(encoding="utf-8"),
        body="\n".join(page.body),
        version=__version__,
        notice=_notice(),
        data=script_data(list(page.charts)),
        plotly=get_plotlyjs().replace("</script", r"<\/script"),
        script=(here / "page.js").read_text(encoding="utf-8"),
    )


def _notice() -> Markup:
    """The licence of what is embedded, as its package carries it."""
    for file in distribution("plotly").files or ():
        if ".dist-info" in str(file) and file.name.upper().startswith("LICENSE"):
            return element("pre", None, file.read_text(encoding="utf-8"))
    raise MissingExtra("report", "plotly, with its licence,", "--report")
