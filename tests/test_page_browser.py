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
FIRST, SECOND, LAST = "step=20.pt", f"{NASTY}/step=30.pt", "step=100.pt"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`rank.html` of three checkpoints, and a broken file, and `score.html`, `one.html`."""
    root = tmp_path_factory.mktemp("pages")
    image_folder(root / "images", 24)
    for seed, name in enumerate((FIRST, SECOND, LAST)):
        checkpoint(root / "runs" / name, seed)
    (root / "runs" / "broken.pt").write_bytes(b"PK\x03\x04 cut off")
    lines = [f"{name},{0.5 + 0.1 * at}" for at, name in enumerate((FIRST, f'"{SECOND}"', LAST))]
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
        "[...document.querySelectorAll('tr[data-at]')].filter(row => row.offsetHeight > 0)"
        ".map(row => row.dataset.name)"
    )


def drawn(tab: browser.Tab, chart: str, what: str = "data.length") -> Any:
    return tab.run(f"document.querySelector('[data-chart={chart}] .plot').{what}")


def header(name: str) -> str:
    return (
        "[...document.querySelectorAll('thead button')]"
        f".find(button => button.textContent === '{name}')"
    )


def choose(tab: browser.Tab, chart: str, name: str, value: str) -> None:
    tab.run(
        f"(select => {{ select.value = '{value}'; "
        "select.dispatchEvent(new Event('change', {bubbles: true})) })"
        f"(document.querySelector('[data-chart={chart}] select[name={name}]'))"
    )


def test_the_order_and_the_failure_are_seen(tab: browser.Tab, pages: Path) -> None:
    order = (pages / "order").read_text().splitlines()
    assert [f"runs/{name}" for name in names(tab)] == order
    assert "broken.pt" in tab.run("document.querySelector('.failed').innerText")
    assert tab.run("document.querySelectorAll('img').length") == 0


def test_every_chart_draws_every_checkpoint(tab: browser.Tab) -> None:
    assert drawn(tab, "spectra") == 3
    curves = "document.querySelectorAll('[data-chart=spectra] .scatterlayer path.js-line').length"
    assert tab.run(curves) == 3
    for chart in ("parameter", "oracle"):
        assert drawn(tab, chart, "data[0].x.length") == 3
        marks = f"document.querySelectorAll('[data-chart={chart}] .points path').length"
        assert tab.run(marks) >= 3
    assert sorted(drawn(tab, "parameter", "data[0].x")) == [20, 30, 100]
    assert sorted(drawn(tab, "oracle", "data[0].x")) == pytest.approx([50, 60, 70])


def test_the_noise_floor_is_drawn_with_the_lda_spectrum_alone(tab: browser.Tab) -> None:
    heights = drawn(tab, "spectra", "layout.shapes.map(line => line.y0)")
    assert heights[0] == pytest.approx(1 / 3)  # 1 / q
    assert len(heights) == 2
    assert heights[1] > heights[0]  # the edge of Wachter's law
    choose(tab, "spectra", "matrix", "gram")
    assert drawn(tab, "spectra", "layout.shapes.length") == 0


def test_a_chosen_metric_is_drawn(tab: browser.Tab) -> None:
    before = drawn(tab, "oracle", "data[0].y")
    choose(tab, "oracle", "metric", "rankme")
    assert drawn(tab, "oracle", "layout.yaxis.title.text") == "rankme"
    assert drawn(tab, "oracle", "data[0].y") != before


def test_a_click_on_a_header_sorts_and_another_turns_the_order(tab: browser.Tab) -> None:
    at_first = names(tab)
    values = (
        "[...document.querySelectorAll('tr[data-at]')].map(row => Number("
        "row.children[[...document.querySelectorAll('thead th')]"
        ".findIndex(th => th.textContent === 'rankme')].dataset.key))"
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
    assert drawn(tab, "spectra") == 1
    assert drawn(tab, "oracle", "data[0].x.length") == 1
    tab.type("nothing")
    assert names(tab) == []
    assert drawn(tab, "spectra") == 0


@pytest.mark.parametrize("page", ["rank", "score", "one"])
def test_each_page_fits_a_phone_and_a_dark_room(tab: browser.Tab, pages: Path, page: str) -> None:
    tab.open(pages / f"{page}.html", 400, 800, "light")
    background = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('.plot').layout.font.color"
    light = tab.run(background), tab.run(ink)
    assert tab.run("document.documentElement.scrollWidth") <= 400
    tab.look(400, 800, "dark")
    tab.run("new Promise(done => setTimeout(done, 300))")
    dark = tab.run(background), tab.run(ink)
    assert dark[0] != light[0]
    assert dark[1] != light[1]
    plots = "[...document.querySelectorAll('.plot')].map(plot => plot.data.length)"
    assert min(tab.run(plots)) > 0


def test_parts_of_a_file_are_drawn_against_n_and_q(tab: browser.Tab, pages: Path) -> None:
    tab.open(pages / "one.html", 1280, 900, "light")
    assert drawn(tab, "convergence", "data[0].x") == [75, 150, 300]
    assert drawn(tab, "convergence", "data.at(-1).y.at(-1)") == 1
    choose(tab, "convergence", "against", "views")
    assert drawn(tab, "convergence", "data[0].x") == [2, 3, 6]
    assert "from n = 150 to 300" in tab.run("document.querySelector('.advice').innerText")


def test_the_browser_would_tell_of_an_error_and_of_a_request(
    tab: browser.Tab, tmp_path: Path
) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<script>console.error('one'); missing()</script><img src='absent.png'>")
    tab.open(page, 1280, 900, "light")
    errors = "\n".join(tab.errors)
    tab.errors.clear()
    assert "one" in errors
    assert "missing is not defined" in errors
    assert "absent.png" in errors
