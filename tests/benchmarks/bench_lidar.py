"""LiDAR on tensors in memory against what a user would call instead, both sides in float64."""

import importlib.metadata
import importlib.util

import torch
from harness import Goal, Line, Skipped, alternate, median, ratio

from lidar_cli import Moments
from lidar_cli.core.spectra import lda_spectrum

DELTA = 1e-4
N, Q = 1000, 10
PEER = "inverse root and eigh, as stable-pretraining's callback does it"
# d -> repeats, and the times faster that are wanted of the solve and of moments and solve
SIZES = {2048: (3, 3, None), 4096: (2, 10, 5), 8192: (1, 25, 8)}
REPTRIX = (200, 10, 2048)  # n, q, d: its peak is 8 n d^2 bytes in float64, 6.7 GB


def bench_lidar(device, _folder):
    for d, (repeats, solve_goal, whole_goal) in SIZES.items():
        z = draw(N, Q, d, device)
        state, spectra = {}, {}

        def our_moments(z=z, state=state):
            state["ours"] = Moments.of(z)

        def our_solve(state=state, spectra=spectra):
            spectra["ours"] = lda_spectrum(state["ours"], DELTA).eigenvalues

        def their_moments(z=z, state=state):
            state["theirs"] = covariances(z)

        def their_solve(state=state, spectra=spectra):
            spectra["theirs"] = inverse_root_spectrum(*state["theirs"])

        seconds = alternate(
            {
                "our moments": our_moments,
                "our solve": our_solve,
                "their moments": their_moments,
                "their solve": their_solve,
            },
            repeats,
            warm=0 if repeats == 1 else 1,
            device=device,
        )
        gap = (spectra["ours"] - spectra["theirs"]).abs().max() / spectra["theirs"][0]
        size, remark = f"n={N} q={Q} d={d}", f"eigenvalues differ by {gap:.0e} of the largest"
        ours, theirs = seconds["our solve"], seconds["their solve"]
        yield line(f"solve, {size}", PEER, repeats, ours, theirs, solve_goal, remark)
        ours = [a + b for a, b in zip(ours, seconds["our moments"], strict=True)]
        theirs = [a + b for a, b in zip(theirs, seconds["their moments"], strict=True)]
        yield line(f"moments and solve, {size}", PEER, repeats, ours, theirs, whole_goal)


def bench_reptrix(device, _folder, repeats=3):
    if importlib.util.find_spec("reptrix") is None:
        yield Skipped("reptrix", "pip install reptrix")
        return
    from reptrix import lidar as peer

    n, q, d = REPTRIX
    z = draw(n, q, d, "cpu")
    seconds = alternate(
        {
            "ours": lambda: lda_spectrum(Moments.of(z), DELTA),
            "theirs": lambda: peer.get_lidar(z, n, q, DELTA),
        },
        repeats,
    )
    name = f"reptrix {importlib.metadata.version('reptrix')} get_lidar"
    case = f"moments and solve, n={n} q={q} d={d}"
    remark = "another number: it takes PCA variance ratios of the LDA matrix"
    ours, theirs = seconds["ours"], seconds["theirs"]
    yield line(case, name, repeats, ours, theirs, 20, remark, row="reptrix")


def line(case, peer, repeats, ours, theirs, at_least, remark="", row="lidar"):
    goal = Goal(ratio(theirs, ours), "times faster", at_least=at_least)
    return Line(
        row, case, peer, "float64", repeats, median(ours), median(theirs), "s", goal, remark
    )


def draw(n, q, d, device):
    """Embeddings [n, q, d] whose samples differ by as much as their views do."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, q, d, dtype=torch.float64, generator=generator)
    z += torch.randn(n, 1, d, dtype=torch.float64, generator=generator)
    return z.to(device)


def covariances(z):
    """Sb and Sw as they are defined, each by one product of all rows."""
    n, q, d = z.shape
    class_means = z.mean(dim=1)
    centred = class_means - class_means.mean(dim=0)
    residuals = (z - class_means[:, None]).reshape(-1, d)
    within = residuals.T @ residuals / (n * (q - 1))
    return centred.T @ centred / (n - 1), within + DELTA * torch.eye(d, device=z.device)


def inverse_root_spectrum(between, within):
    """Eigenvalues of Sw^-1/2 Sb Sw^-1/2 as the equation reads: the root by eigh, then eigvalsh."""
    values, vectors = torch.linalg.eigh(within)
    root = (vectors * values.rsqrt()) @ vectors.T
    whitened = root @ between @ root
    return torch.linalg.eigvalsh((whitened + whitened.T) / 2).flip(0).clamp_min(0.0)
