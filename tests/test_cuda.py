"""Every path that runs on a GPU, against the same on the CPU.

DEVICE names another device; with `DEVICE=cpu` the tests show that they run, and no more.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_cuda import embed, one_batch
from make import checkpoint, image_folder

from lidar_cli.core.metrics import METRICS
from lidar_cli.core.moments import Moments
from lidar_cli.core.spectra import lda_spectrum
from lidar_cli.extraction.run import extract_checkpoint
from lidar_cli.features.reader import read_hdf5
from lidar_cli.ranking.session import rank_directory
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ExtractSettings, RankSettings, ScoreSettings

DEVICE = os.environ.get("DEVICE", "cuda")
IMAGES, VIEWS = 12, 3

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]


def embeddings(n: int, q: int, d: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n + q + d)
    samples = torch.randn(n, 1, d, generator=generator)
    return samples + 0.5 * torch.randn(n, q, d, generator=generator)


@pytest.mark.parametrize(
    ("shape", "delta"),
    [((300, 4, 64), 0.0), ((300, 4, 64), 1e-4), ((120, 2, 128), 1e-4), ((40, 3, 200), 1e-4)],
)
def test_spectra_are_those_of_the_cpu(shape: tuple[int, int, int], delta: float) -> None:
    z = embeddings(*shape)
    here, there = (lda_spectrum(Moments.of(z.to(at)), delta) for at in ("cpu", DEVICE))
    torch.testing.assert_close(
        there.eigenvalues.cpu(), here.eigenvalues, rtol=1e-9, atol=1e-9 * float(here.eigenvalues[0])
    )


@pytest.mark.parametrize("memory", ["64MB", "100kB"])
def test_every_metric_and_its_interval_is_that_of_the_cpu(tmp_path: Path, memory: str) -> None:
    path = tmp_path / "z.npy"
    np.save(path, embeddings(400, 4, 120).numpy())
    common = {"metrics": "all", "confidence": 0.95, "memory": memory}
    (here,), (there,) = (
        score_file(path, ScoreSettings(device=at, **common)) for at in ("cpu", DEVICE)
    )
    assert there.notes.keys() == here.notes.keys()
    for name in METRICS:
        a, b = here.value(name), there.value(name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert math.isclose(a, b, rel_tol=1e-7), name
        ends = here.interval(name), there.interval(name)
        for one in ("se", "ci_low", "ci_high"):
            x, y = (getattr(interval, one) for interval in ends)
            assert (x is None) == (y is None), name
            assert x is None or math.isclose(x, y, rel_tol=1e-6), name


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of two checkpoints, and one of images."""
    for seed in (0, 1):
        checkpoint(tmp_path / "runs" / f"{seed}.pt", seed)
    return tmp_path / "runs", image_folder(tmp_path / "images", IMAGES)


def test_embeddings_are_those_of_the_cpu_up_to_float32(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    runs, images = files
    rows = []
    for number, at in enumerate(("cpu", DEVICE)):
        output = tmp_path / f"{number}.h5"
        settings = ExtractSettings(
            data=str(images), n_samples=IMAGES, n_views=VIEWS, image_size=24, device=at,
            output=output, layer="backbone",
        )  # fmt: skip
        extract_checkpoint(runs / "0.pt", settings)
        (stored,) = read_hdf5(output, "backbone")
        assert stored.views is not None
        rows.append(stored.views.read(0, IMAGES))
    here, there = rows
    largest = float(here.abs().max())
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3 * largest)


def test_reduced_precision_embeds_alike(tmp_path: Path, files: tuple[Path, Path]) -> None:
    runs, images = files
    rows = {}
    for precision in ("float32", "bfloat16"):
        output = tmp_path / f"in-{precision}.h5"
        settings = ExtractSettings(
            data=str(images), n_samples=IMAGES, n_views=VIEWS, image_size=24, device=DEVICE,
            output=output, layer="backbone", precision=precision,
        )  # fmt: skip
        extract_checkpoint(runs / "0.pt", settings)
        (stored,) = read_hdf5(output, "backbone")
        assert stored.views is not None
        rows[precision] = stored.views.read(0, IMAGES)
    largest = float(rows["float32"].abs().max())
    gap = float((rows["bfloat16"] - rows["float32"]).abs().max())
    assert 0 < gap < 0.1 * largest


@pytest.mark.parametrize("cached", [False, True])
def test_nothing_in_the_loop_waits_for_the_device(files: tuple[Path, Path], cached: bool) -> None:
    """As on a fake one in test_forward.py."""
    runs, images = files
    parts = one_batch(
        *(runs / "0.pt", images, torch.device(DEVICE), cached),
        **{"n_samples": IMAGES, "n_views": VIEWS, "views": "simclr", "image_size": 24},
    )
    embed(*parts)
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        views, _ = embed(*parts)
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert views["projector"].device.type == torch.device(DEVICE).type


@pytest.mark.parametrize("store", [True, False])
def test_a_ranking_is_that_of_the_cpu(
    tmp_path: Path, files: tuple[Path, Path], store: bool
) -> None:
    runs, images = files
    orders = {}
    for at in ("cpu", DEVICE):
        settings = RankSettings(
            data=str(images), n_samples=IMAGES, n_views=VIEWS, image_size=24, device=at,
            cache=tmp_path / f"cache-{at}", store=store,
        )  # fmt: skip
        (group,) = rank_directory(runs, settings).groups
        orders[at] = {row.path: row.value for row in group.rows}
    for path, value in orders["cpu"].items():
        assert orders[DEVICE][path] == pytest.approx(value, rel=1e-2)
