"""The file of a page: template, style, script and drawing library, in one write or not at all.

The page loads nothing else: its content security policy forbids that, so a mistake would show.
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
from lidar_cli.runtime.files import is_stream, write_atomic
from lidar_cli.runtime.streams import write_remark


@dataclass(frozen=True)
class Page:
    """A title, the content below it, and the data of each section's charts."""

    title: str
    body: Sequence[Markup]
    charts: Sequence[Mapping[str, Any]]


def check_page(path: Path, overwrite: bool) -> None:
    """Raise SettingsError or MissingExtra if no page can be written to `path`, before the work."""
    if not is_stream(path):
        if path.suffix.lower() not in (".html", ".htm"):
            message = f"--report {path}: expected a name that ends in .html"
            raise SettingsError(message, code="wrong-suffix")
        if not path.parent.is_dir():
            raise SettingsError(f"--report {path}: no folder {path.parent}", code="no-such-folder")
        if path.is_dir() or (path.exists() and not overwrite):
            raise SettingsError(
                f"--report {path}: exists already; add --overwrite to replace it", code="exists"
            )
    try:
        import plotly  # noqa: F401
    except ImportError as error:
        raise MissingExtra("report", "plotly", "--report") from error


def write_page(page: Page, path: Path, overwrite: bool) -> None:
    """Write a page, and note that on stderr.

    Raises SettingsError if the file exists by now, InputError if it cannot be written.
    """
    check_page(path, overwrite)
    text = to_html(page)
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        message = f"--report {path}: cannot be written: {error.strerror}"
        raise InputError(message, code="unwritable") from error
    write_remark(f"wrote {path}")


def to_html(page: Page) -> str:
    """The HTML text of a page; needs plotly."""
    from plotly.offline import get_plotlyjs

    folder = files(__package__)
    return Template((folder / "template.html").read_text(encoding="utf-8")).substitute(
        title=joined(page.title),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        body="\n".join(page.body),
        version=__version__,
        notice=_notice(),
        data=script_data(list(page.charts)),
        plotly=get_plotlyjs().replace("</script", r"<\/script"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
    )


def _notice() -> Markup:
    """The licence of the embedded plotly.js, from its package."""
    for file in distribution("plotly").files or ():
        if ".dist-info" in str(file) and file.name.upper().startswith("LICENSE"):
            return element("pre", None, file.read_text(encoding="utf-8"))
    raise MissingExtra("report", "plotly, with its licence,", "--report")
