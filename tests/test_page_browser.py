"""The page in a real browser: it draws, sorts, filters, fits a phone, and logs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
import torch
from make import checkpoint, image_folder, lidar

pytestmark = pytest.mark.skipif(
    browser.find() is None, reason="no Chromium on this machine; install chromium to run these"
)
NASTY = "<img src=x onerror=alert(1)> & 'b'"  # the name of a folder
FIRST, SECOND, LAST = "step=20", f"{NASTY}/step=30", "step=100"  # without the shared .pt


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`rank.html` of three checkpoints, and a broken file, and `score.html`, `one.html`."""
    root = tmp_path_factory.mktemp("pages")
    image_folder(root / "images", 24)
    for seed, name in enumerate((FIRST, SECOND, LAST)):
        checkpoint(root / "runs" / f"{name}.pt", seed)
    (root / "runs" / "broken.pt").write_bytes(b"PK\x03\x04 cut off")
    lines = [f'"{name}.pt",{0.5 + 0.1 * at}' for at, name in enumerate((FIRST, SECOND, LAST))]
    (root / "accuracies.csv").write_text("path,accuracy\n" + "\n".join(lines) + "\n")
    words = ["runs", "--data", "images", "-n", 24, "-q", 3, "--image-size", 24, "--device", "cpu"]
    words += ["--oracle", "accuracies.csv", "--report", "rank.html", "--quiet"]
    ranked = lidar("rank", *words, cwd=root)
    assert ranked.returncode == 4, ranked.stderr
    (root / "order").write_text(ranked.stdout)
    torch.manual_seed(0)
    for seed in range(2):
        z = torch.randn(300, 6, 110) + (1 + seed) * torch.randn(300, 1, 110)
        np.save(root / f"epoch{seed}.npy", z.numpy())
    for name, files in (("score", ["epoch0.npy", "epoch1.npy"]), ("one", ["epoch0.npy"])):
        done = lidar("score", *files, "--converge", "--report", f"{name}.html", cwd=root)
        assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def tab(pages: Path) -> Iterator[browser.Tab]:
    with browser.opened(pages / "rank.html") as opened:
        yield opened


@pytest.fixture(autouse=True)
def _afresh(tab: browser.Tab, pages: Path) -> Iterator[None]:
    tab.open(pages / "rank.html", 1280, 900, "light")
    yield
    assert tab.errors == []


def names(tab: browser.Tab) -> Any:
    """Rows that are seen, from the top, by name."""
    return tab.run(
        "[...document.querySelector('.frame').querySelectorAll('tr[data-at]')]"
        ".filter(row => row.offsetHeight > 0)"
        ".map(row => row.dataset.name)"
    )


def drawn(tab: browser.Tab, chart: str) -> Any:
    """The positions in the table of the marks that are seen in the first chart of a kind."""
    return tab.run(
        f"[...document.querySelector('[data-chart={chart}]').querySelectorAll('g[data-at]')]"
        ".filter(mark => mark.getClientRects().length && mark.getBoundingClientRect().height > 0)"
        ".map(mark => mark.dataset.at)"
    )


def header(name: str) -> str:
    return (
        "[...document.querySelectorAll('thead button.head')]"
        f".find(button => button.textContent === '{name}')"
    )


def test_the_order_and_the_failure_are_seen(tab: browser.Tab, pages: Path) -> None:
    order = (pages / "order").read_text().splitlines()
    assert [f"runs/{name}.pt" for name in names(tab)] == order
    assert "broken.pt" in tab.run("document.querySelector('.failed').innerText")
    assert tab.run("document.querySelectorAll('img').length") == 0


def test_every_chart_draws_every_checkpoint(tab: browser.Tab) -> None:
    for chart in ("accuracy", "spectra"):
        assert sorted(drawn(tab, chart)) == ["0", "1", "2"]
    places = {name: str(at) for at, name in enumerate(names(tab))}
    run = [places[name] for name in (FIRST, LAST)]  # of one folder, in the order of their steps
    assert {" ".join(run), *run} <= set(drawn(tab, "step"))


def test_points_are_where_their_axes_say(tab: browser.Tab) -> None:
    # Ticks give the scale: the accuracies in percent are 50, 60 and 70, by the names' order.
    lines = "[...document.querySelectorAll('[data-chart=accuracy] svg')][0]"
    ticks = tab.run(
        f"[...{lines}.querySelectorAll('.tick text')].map(t => [t.textContent, t.getAttribute('x'),"
        " t.getAttribute('text-anchor')]).filter(t => t[2] === 'middle').map(t => t.map(Number))"
    )
    (value, x, _), (other, end, _) = ticks[0], ticks[-1]
    places = tab.run(
        f"[...{lines}.querySelectorAll('.point use')].map(u => Number(u.getAttribute('x')))"
    )
    accuracies = sorted(value + (place - x) / (end - x) * (other - value) for place in places)
    assert accuracies == pytest.approx([50, 60, 70], abs=0.1)


def test_what_the_pointer_is_at_is_named_and_lit(tab: browser.Tab) -> None:
    curve = "document.querySelector('[data-chart=spectra] .curve:not(.selected) .wide')"
    x, y = tab.run(
        f"(path => {{ path.closest('figure').scrollIntoView({{block: 'center'}});"
        "const at = path.getPointAtLength(path.getTotalLength() / 4), to = path.getScreenCTM();"
        f"return [at.x * to.a + to.e, at.y * to.d + to.f] }})({curve})"
    )
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    at = tab.run("document.querySelector('[data-chart=spectra] .curve.lit').dataset.at")
    named = tab.run("document.querySelector('.pointed:not([hidden])').textContent")
    assert named == tab.run(f"document.querySelector('tr[data-at=\"{at}\"]').dataset.name")
    assert tab.run(f"document.querySelector('tr[data-at=\"{at}\"]').matches('.lit')")
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    assert tab.run("document.querySelector('.pointed').hidden")


def test_a_head_explains_itself_to_a_click_and_to_the_keyboard(tab: browser.Tab) -> None:
    seen = "document.querySelector('#about-lidar').matches(':popover-open')"
    about = "document.querySelector('[popovertarget=about-lidar]')"
    assert not tab.run(seen)
    tab.click(about)
    assert tab.run(seen)
    assert "higher is better" in tab.run("document.querySelector('#about-lidar').innerText")
    tab.run("document.querySelector('#about-lidar').hidePopover()")
    tab.run(f"{about}.focus()")
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r")
    assert tab.run(seen)


def test_no_column_of_the_tables_is_out_of_sight(tab: browser.Tab) -> None:
    tab.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    frames = "[...document.querySelectorAll('.frame')].map(f => [f.scrollWidth, f.clientWidth])"
    for needed, width in tab.run(frames):
        assert needed <= width


def test_the_page_is_complete_without_script(tab: browser.Tab, pages: Path) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(pages / "rank.html", 1280, 900, "light")
        assert len(names(tab)) == 3
        assert len(drawn(tab, "spectra")) == 3
        tab.click("document.querySelector('[popovertarget=about-lidar]')")
        assert tab.run("document.querySelector('#about-lidar').matches(':popover-open')")
        assert tab.run("document.querySelectorAll('button.head, .tools:not([hidden])').length") == 0
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_a_click_on_a_header_sorts_and_another_turns_the_order(tab: browser.Tab) -> None:
    at_first = names(tab)
    values = (
        "[...document.querySelector('tbody').rows].map(row => Number("
        "row.children[[...document.querySelector('thead').querySelectorAll('th')]"
        ".findIndex(th => th.querySelector('.head').textContent === 'rankme')].dataset.key))"
    )
    tab.click(header("rankme"))
    falling = tab.run(values)
    assert falling == sorted(falling, reverse=True)
    tab.click(header("rankme"))
    assert tab.run(values) == sorted(falling)
    tab.click(header("checkpoint"))
    assert names(tab) == [SECOND, FIRST, LAST]  # numbers in names as numbers
    tab.click(header("#"))
    assert names(tab) == at_first


def test_the_box_filters_rows_and_charts(tab: browser.Tab) -> None:
    tab.click("document.querySelector('.filter')")
    tab.type("STEP=20")
    assert names(tab) == [FIRST]
    assert tab.run("document.querySelector('.tools output').textContent") == "1 of 3"
    for chart in ("spectra", "accuracy"):
        assert len(drawn(tab, chart)) == 1
    tab.type("nothing")
    assert names(tab) == []
    assert drawn(tab, "spectra") == []


@pytest.mark.parametrize("page", ["rank", "score", "one"])
def test_each_page_fits_a_phone_and_a_dark_room(tab: browser.Tab, pages: Path, page: str) -> None:
    tab.open(pages / f"{page}.html", 400, 800, "light")
    background = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('svg .tick text')).fill"
    light = tab.run(background), tab.run(ink)
    assert tab.run("document.documentElement.scrollWidth") <= 400
    tab.look(400, 800, "dark")
    dark = tab.run(background), tab.run(ink)
    assert dark[0] != light[0]
    assert dark[1] != light[1]
    plots = "[...document.querySelectorAll('svg')].map(s => s.querySelectorAll('[data-at]').length)"
    assert min(tab.run(plots)) > 0


def test_parts_of_a_file_are_drawn_against_n_and_q(tab: browser.Tab, pages: Path) -> None:
    tab.open(pages / "one.html", 1280, 900, "light")
    charts = "document.querySelectorAll('[data-chart=convergence]')"
    for at, counts in enumerate((["75", "150", "300"], ["2", "3", "6"])):
        ticks = f"[...{charts}[{at}].querySelectorAll('.tick text')].map(t => t.textContent)"
        assert tab.run(ticks)[:3] == counts
        titles = f"[...{charts}[{at}].querySelectorAll('.curve')].map(c => c.dataset.title)"
        assert "lidar" in tab.run(titles)
    assert "from n = 150 to 300" in tab.run("document.querySelector('.advice').innerText")


def test_the_browser_would_report_an_error_and_a_request(tab: browser.Tab, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<script>console.error('one'); missing()</script><img src='absent.png'>")
    tab.open(page, 1280, 900, "light")
    errors = "\n".join(tab.errors)
    tab.errors.clear()
    assert "one" in errors
    assert "missing is not defined" in errors
    assert "absent.png" in errors
