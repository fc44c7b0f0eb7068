"""The file of a page: template, style and script, in one write or not at all.

The page loads nothing, and runs no script but its own: its content security policy forbids both.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from lidar_cli import __version__
from lidar_cli.errors import InputError, MissingExtra, SettingsError
from lidar_cli.report.page.markup import Markup, joined
from lidar_cli.runtime.files import is_stream, write_atomic
from lidar_cli.runtime.streams import write_remark


@dataclass(frozen=True)
class Page:
    """The title of the window, and the content."""

    title: str
    body: Sequence[Markup]


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
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtra("plot", "matplotlib", "--report") from error


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
    """The HTML text of a page."""
    folder = files(__package__)
    script = (folder / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template((folder / "template.html").read_text(encoding="utf-8")).substitute(
        title=joined(page.title),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        body="\n".join(page.body),
        version=__version__,
        digest=digest,
        script=script,
    )
