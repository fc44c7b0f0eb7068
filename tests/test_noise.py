"""Uneven view noise: the test against its law, the edge against plain linear algebra."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from torch import Tensor

from lidar_cli.core import noise
from lidar_cli.core.moments import Moments
from lidar_cli.errors import DegenerateFeatures
from lidar_cli.ranking.unstored import _ContrastSamples
from lidar_cli.scoring.compute import Score
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ScoreSettings


def drawn(n: int, q: int, d: int, strength: float = 0.0, seed: int = 0) -> Tensor:
    """Noise alone [n, q, d], that of a sample exp(strength g) times as strong."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp(strength * torch.randn(n, 1, 1, dtype=torch.float64, generator=generator))
    return scale * torch.randn(n, q, d, dtype=torch.float64, generator=generator)


def scored(tmp_path: Path, z: Tensor, **settings: object) -> Score:
    np.save(tmp_path / "z.npy", z)
    (found,) = score_file(tmp_path / "z.npy", ScoreSettings(device="cpu", **settings))  # type: ignore[arg-type]
    return found


def test_dispersion_is_the_ratio_of_two_variances() -> None:
    z = drawn(90, 3, 5, 0.3).numpy()
    energies = [sum(float((v - s.mean(0)) @ (v - s.mean(0))) for v in s) for s in z]
    within = sum(np.outer(v - s.mean(0), v - s.mean(0)) for s in z for v in s) / 180
    squares = (np.trace(within @ within) - np.trace(within) ** 2 / 180) * 180**2 / (179 * 182)
    found = noise.dispersion(Moments.of(torch.from_numpy(z)))
    assert found is not None
    assert found.ratio == pytest.approx(np.var(energies, ddof=1) / (4 * squares), rel=1e-10)


@pytest.mark.parametrize("decay", [0.0, 2.0])
def test_equal_noise_is_rarely_called_uneven(decay: float) -> None:
    """At 1 in 1,000: two of 300 are too many in one of 27 runs, three in one of 300."""
    spectrum = torch.arange(1, 9, dtype=torch.float64) ** -decay
    spreads = [noise.dispersion(Moments.of(spectrum * drawn(60, 2, 8, seed=k))) for k in range(300)]
    assert sum(spread is not None and spread.is_uneven for spread in spreads) <= 2
    ratios = [spread.ratio for spread in spreads if spread is not None]
    assert np.mean(ratios) == pytest.approx(1.0, abs=4 * np.std(ratios) / math.sqrt(300))


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_noise_of_uneven_strength_is_called_so(strength: float) -> None:
    spread = noise.dispersion(Moments.of(drawn(200, 2, 16, strength)))
    assert spread is not None
    assert spread.is_uneven


def test_merged_moments_know_as_much_as_those_of_one_pass() -> None:
    z = drawn(70, 3, 4, 0.5)
    whole, parts = Moments.of(z), Moments.of(z[:31]).merge(Moments.of(z[31:]))
    assert noise.dispersion(parts) == pytest.approx(noise.dispersion(whole), rel=1e-12)
    sums = Moments.of_sums(3, whole.class_means, whole.within)  # which know of no sample
    assert noise.dispersion(sums) is None


def test_the_edge_is_the_largest_eigenvalue_of_its_pairs() -> None:
    """The same contrasts, from the residuals themselves, in the pair (Bc, Wc) of the docstring."""
    z = drawn(80, 4, 6, 0.5)
    n, q, _ = z.shape
    residuals = z - z.mean(dim=1, keepdim=True)
    generator = torch.Generator().manual_seed(noise.SEED)
    largest = []
    for _ in range(noise.CONTRASTS):
        u = (noise._weights(n, q, generator)[:, None].double() @ residuals)[:, 0].numpy()
        r = residuals.numpy().reshape(n * q, -1)
        between = u.T @ u / (q * (n - 1))
        within = (r.T @ r - u.T @ u) / (n * (q - 2))
        largest.append(eigh(between, within, eigvals_only=True)[-1])
    found = noise.contrast_edge(lambda: z.split(17), n, 0.0)
    fewer = noise.wachter_edge(n, 3 * n, 6) / noise.wachter_edge(n, 2 * n, 6)
    assert 0.9 < fewer < 1
    assert found == pytest.approx(fewer * max(largest), rel=1e-5)  # whitened in float32
    assert found == noise.contrast_edge(lambda: z.split(17), n, 0.0, room=1)  # one at a time


@pytest.mark.parametrize("q", [3, 4, 7])
def test_a_contrast_leaves_the_mean_out_and_keeps_the_length(q: int) -> None:
    weights = noise._weights(50, q, torch.Generator().manual_seed(1))
    torch.testing.assert_close(weights.sum(dim=1), torch.zeros(50), atol=1e-6, rtol=0)
    torch.testing.assert_close(weights.norm(dim=1), torch.ones(50), atol=1e-6, rtol=0)
    assert len({tuple(row) for row in weights.gt(0).tolist()}) > 2


def test_the_largest_eigenvalue_of_a_wide_bulk_is_near() -> None:
    rows = drawn(600, 1, 300)[:, 0]
    exact = float(torch.linalg.eigvalsh(rows.T @ rows)[-1])
    assert (
        exact * (1 - 2 * (math.log(300) / (2 * noise.KRYLOV)) ** 2)
        < noise._largest(rows)
        <= exact * (1 + 1e-12)
    )


def test_a_subset_is_seeded_and_its_edge_falls_as_wachters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "MOST_SAMPLES", 500)
    samples = noise.contrast_samples(4000, 3, 8)
    assert len(samples) == 500
    assert bool((samples.diff() > 0).all())
    assert 0 <= int(samples[0]) < int(samples[-1]) < 4000
    z = drawn(4000, 3, 8)
    edge = noise.contrast_edge(lambda: [z[samples]], 4000, 0.0)
    assert edge == pytest.approx(noise.noise_edge(4000, 3, 8), rel=0.12)


def test_memory_bounds_the_subset() -> None:
    assert len(noise.contrast_samples(5000, 50, 8192)) * 50 * 8192 <= noise.MOST_NUMBERS


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((100, 2, 8), "at q = 2, and it takes 3 views"),
        ((40, 3, 24), "above d = 20, a quarter of the degrees of freedom"),
    ],
)
def test_where_no_edge_allows_for_it_that_is_said(
    tmp_path: Path, shape: tuple[int, int, int], reason: str
) -> None:
    z = drawn(*shape, strength=1.0)
    with pytest.raises(DegenerateFeatures, match=reason):
        noise.contrast_edge(lambda: [z], len(z), 1e-4)
    found = scored(tmp_path, z)
    assert found.noise_edge_law == "wachter"
    assert found.noise_edge == noise.noise_edge(*shape)
    assert reason in found.warnings["uneven"]


def test_the_edge_that_was_used_is_said(tmp_path: Path) -> None:
    found = scored(tmp_path, drawn(300, 4, 24, 0.5))
    assert (found.noise_edge_law, found.n_above_noise, found.pillai) == ("contrasts", 0, None)
    assert found.noise_edge is not None
    assert found.noise_edge > 1.2 * noise.noise_edge(300, 4, 24)
    assert "that of contrasts between the views" in found.warnings["uneven"]
    assert found.noise_dispersion is not None
    assert found.noise_dispersion > 10
    equal = scored(tmp_path, drawn(300, 4, 24))
    assert (equal.noise_edge_law, equal.warnings.get("uneven")) == ("wachter", None)


@pytest.mark.parametrize("normalize", [False, True])
def test_chunks_and_runs_change_nothing(
    tmp_path: Path, normalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = drawn(400, 3, 6, 0.5) + 2 * drawn(400, 1, 6, seed=1)
    if normalize:
        z = torch.cat([z, 6 + 2 * drawn(400, 3, 1, 1.0, seed=2)], dim=2)
    monkeypatch.setattr(noise, "MOST_SAMPLES", 300)
    whole = scored(tmp_path, z, normalize=normalize, confidence=0.95)
    monkeypatch.setattr("lidar_cli.scoring.compute.BLOCK_NUMBERS", 100)
    parts = scored(tmp_path, z, normalize=normalize, confidence=0.95, memory="4KB")
    assert whole.noise_edge_law == "contrasts"
    assert parts.noise_edge == pytest.approx(whole.noise_edge, rel=1e-6)
    assert parts.n_above_noise == whole.n_above_noise


def test_without_stored_embeddings_the_same_samples_are_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(noise, "MOST_SAMPLES", 20)
    z = drawn(100, 3, 4).float()
    stored = _ContrastSamples(100, 3, 4, torch.float32)
    for first in range(0, 100, 7):
        stored.store(first, z[first : first + 7])
    for number in noise.contrast_samples(100, 3, 4).tolist():
        assert torch.equal(stored.read(number, number + 1), z[number : number + 1])


def test_the_golden_embedding_has_wachters_edge(tmp_path: Path) -> None:
    torch.manual_seed(0)
    centres, views = torch.randn(1000, 1, 256), torch.randn(1000, 10, 256)
    z = 2 * torch.arange(1, 257.0).rsqrt() * centres + views
    found = scored(tmp_path, z, metrics="n_above_noise")
    assert (found.n_above_noise, found.noise_edge_law) == (40, "wachter")
    assert found.noise_edge == pytest.approx(0.24692863, rel=1e-6)


# Simulation: the small version of tests/benchmarks/null_noise.py


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    path = Path(__file__).parent / "benchmarks" / "null_noise.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_null_noise", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_uneven_noise_without_signal_is_null(simulation: ModuleType, strength: float) -> None:
    """Of 8 draws at least 6: fewer are null in one run of 160 if each is in 95 %."""
    null, _ = simulation.nulls((500, 4, 64), strength, 8)
    assert null >= 6 / 8


@pytest.mark.parametrize(("size", "signal"), [((500, 4, 64), 2.0), ((500, 2, 64), 1.0)])
def test_planted_directions_in_equal_noise_are_counted_as_before(
    simulation: ModuleType, size: tuple[int, int, int], signal: float
) -> None:
    pairs = simulation.counts(size, signal, 0.0, 6)
    assert all(now == before for now, before in pairs)
    assert max(now for now, _ in pairs) >= 6


def test_planted_directions_in_uneven_noise_are_found(simulation: ModuleType) -> None:
    """Where Wachter's edge counts noise beside the 8 of sd 2."""
    pairs = simulation.counts((500, 4, 64), 2.0, 0.5, 4)
    assert [now for now, _ in pairs] == [8] * 4
    assert all(before > 8 for _, before in pairs)
