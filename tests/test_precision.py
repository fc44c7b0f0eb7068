"""Float64 throughout, and what would go wrong without it: inputs on which float32 products fail."""

import pytest
import reference
import torch

from lidar_cli.core import accumulate, metrics, noise, spectra
from lidar_cli.core.moments import Moments

N, Q, D = 200, 5, 48
EXACT = 1e-6  # relative


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def ill_conditioned():
    """Views spread over D rotated directions by 1 .. 1e-4: a within covariance of condition 1e8."""
    spread = torch.logspace(0, -4, D, dtype=torch.float64)
    turned, _ = torch.linalg.qr(draw(D, D))
    return (draw(N, 1, D) * spread + draw(N, Q, D) * spread) @ turned


def tiny_within():
    """Within covariance 1e-6 of the between."""
    return draw(N, 1, D) + 1e-3 * draw(N, Q, D)


def float32_products(scatter, rows):
    """The tempting shortcut: twice as fast, each block in float32, added up in float64."""
    for block in rows.float().split(1024):
        scatter += (block.T @ block).double()


def readings(z, delta):
    eigenvalues = spectra.lda_spectrum(Moments.of(z), delta).eigenvalues
    corrected = noise.corrected_spectrum(eigenvalues, N, Q)
    return {
        "lidar": metrics.effective_rank(eigenvalues, 1e-7),
        "noise_fraction": metrics.noise_fraction(eigenvalues, N, Q),
        "lidar_corrected": metrics.effective_rank(corrected, 1e-7),
        "pillai": metrics.pillai(corrected),
        "information": metrics.information(corrected),
        "reliable_rank": metrics.reliable_rank(corrected, 1e-7),
    }


def literal_readings(z, delta):
    array = z.double().numpy()
    return {
        "lidar": reference.lidar(array, delta, 1e-7),
        "noise_fraction": reference.noise_fraction(array, delta),
        "lidar_corrected": reference.lidar_corrected(array, delta, 1e-7),
        "pillai": reference.pillai(array, delta),
        "information": reference.information(array, delta),
        "reliable_rank": reference.reliable_rank(array, delta, 1e-7),
    }


@pytest.mark.parametrize("delta", [0.0, 1e-10])
def test_an_ill_conditioned_within_covariance_is_beyond_float32_products_and_not_ours(
    monkeypatch, delta
):
    z = ill_conditioned()
    expected = literal_readings(z, delta)
    assert readings(z, delta) == pytest.approx(expected, rel=EXACT)
    monkeypatch.setattr(accumulate, "add_products", float32_products)
    found = readings(z, delta)["lidar"]
    assert abs(found / expected["lidar"] - 1) > 100 * EXACT


def test_a_tiny_within_covariance():
    z = tiny_within()
    assert readings(z, 1e-10) == pytest.approx(literal_readings(z, 1e-10), rel=EXACT)


@pytest.mark.parametrize("mean", [1e4, 1e6, 1e8])
def test_a_mean_that_dwarfs_the_spread_in_float32_numbers(mean):
    """What float32 holds of it is the input; less the mean, exactly, it is the same embedding."""
    spread = mean * 2.0**-12  # float32 keeps 12 bits of it
    z = (mean + spread * draw(N, 1, D) + spread * draw(N, Q, D)).float()
    delta = 1e-4 * spread**2
    expected = literal_readings(z.double() - mean, delta)
    assert readings(z, delta) == pytest.approx(expected, rel=EXACT)
