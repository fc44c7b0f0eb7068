"""Is noise called noise where it is not alike in all samples? Simulated embeddings. Run by hand:

    python tests/benchmarks/null_noise.py [--draws 200] [--csv FILE] [n,q,d ...]

View noise of sample i has the strength exp(s g_i), g_i normal. Samples have q views, or each its
number: uniform from 2 to q, or 3 with q in one of ten (no demand at n = 200). Without signal every
corrected metric must be null in 95 % of the draws, at every strength s. With 8 planted directions
and equal noise, the count must be that of Wachter's edge alone. What does not reach that is marked,
and the exit status is 1.
"""

import argparse
import csv
import sys

import torch

from lidar_cli.core import noise, spectra
from lidar_cli.core.moments import Moments
from lidar_cli.features.embeddings import Embeddings, StoredArray
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.run import score_layer
from lidar_cli.settings import ScoreSettings

LEAST = 0.95
STRENGTHS = (0.0, 0.25, 0.5, 1.0)
SIZES = ((500, 3, 64), (500, 4, 64), (2000, 10, 64))
UNEQUAL = ((500, 12, 64), (200, 20, 32))
PLANTED = (((500, 4, 64), 2.0), ((500, 2, 64), 1.0))
WANTED = frozenset({"noise_fraction", "n_above_noise", "lidar_corrected", "pillai"})


def embeddings(size, strength, signal, generator):
    """Embeddings [n, q, d]; signal: standard deviation of 8 planted directions."""
    n, q, d = size
    scale = torch.exp(strength * torch.randn(n, 1, 1, dtype=torch.float64, generator=generator))
    z = scale * torch.randn(n, q, d, dtype=torch.float64, generator=generator)
    z[..., :8] += signal * torch.randn(n, 1, 8, dtype=torch.float64, generator=generator)
    return z


def drawn_counts(kind, n, q, generator):
    """Numbers of views [n]; None if all are equal."""
    if kind == "equal":
        return None
    if kind == "2 to q":
        return torch.randint(2, q + 1, (n,), generator=generator)
    return torch.where(torch.rand(n, generator=generator) < 0.1, q, 3)


def scored(z, counts=None):
    """counts: numbers of views [n], if a sample has only its first ones."""
    if counts is not None:
        z = z[torch.arange(z.shape[1]) < counts[:, None]]
    stored = StoredArray(tuple(z.shape), 8, lambda start, stop: z[start:stop])
    source = Embeddings("simulated", "projector", stored, None, counts=counts)
    return score_layer(source, ScoreSettings(), torch.device("cpu"), WANTED, Progress())


def nulls(size, strength, draws, kind="equal", seed=0):
    """In which share of draws nothing is above noise, and in which that of contrasts was used."""
    generator = torch.Generator().manual_seed(seed)
    all_scores = [
        scored(embeddings(size, strength, 0.0, generator), drawn_counts(kind, *size[:2], generator))
        for _ in range(draws)
    ]
    null = sum(each.pillai is None for each in all_scores)
    contrasts = sum(each.noise_edge_law == "contrasts" for each in all_scores)
    return null / draws, contrasts / draws


def counts(size, signal, strength, draws, seed=0):
    """n_above_noise of each draw, and what Wachter's edge alone would count."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(draws):
        z = embeddings(size, strength, signal, generator)
        eigenvalues = spectra.lda_spectrum(Moments.of(z), 1e-4).eigenvalues
        pairs.append((scored(z).n_above_noise, noise.n_above_noise(eigenvalues, *size[:2])))
    return pairs


def rows(sizes, draws):
    for size in sizes:
        for strength in STRENGTHS:
            null, contrasts = nulls(size, strength, draws)
            word = "held" if null >= LEAST else "MISSED"
            yield [
                *size,
                strength,
                0,
                draws,
                f"null {null:.3f}",
                f"contrasts {contrasts:.3f}",
                word,
            ]
    for size in UNEQUAL if sizes == SIZES else ():
        for kind in ("2 to q", "3 or q"):
            for strength in STRENGTHS:
                null, contrasts = nulls(size, strength, draws, kind)
                what = [f"null {null:.3f}", f"contrasts {contrasts:.3f}, {kind} views"]
                word = "held" if null >= LEAST else "MISSED"
                yield [*size, strength, 0, draws, *what, word if size[0] >= 500 else "no demand"]
    for size, signal in PLANTED:
        pairs = counts(size, signal, 0.0, draws)
        mean, plain = (sum(pair[at] for pair in pairs) / draws for at in (0, 1))
        word = "held" if all(one == two for one, two in pairs) else "MISSED"
        yield [*size, 0.0, signal, draws, f"counts {mean:.3f}", f"Wachter {plain:.3f}", word]
    for strength in STRENGTHS[1:]:
        pairs = counts((500, 4, 64), 2.0, strength, draws)
        mean, plain = (sum(pair[at] for pair in pairs) / draws for at in (0, 1))
        what = [f"counts {mean:.3f}", f"Wachter {plain:.3f}", "no demand"]
        yield [500, 4, 64, strength, 2.0, draws, *what]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--csv", type=argparse.FileType("w"), default=sys.stdout)
    parser.add_argument("sizes", nargs="*", help="only these, each as n,q,d")
    asked = parser.parse_args()
    sizes = [tuple(map(int, size.split(","))) for size in asked.sizes] or SIZES
    torch.set_num_threads(1)
    writer = csv.writer(asked.csv, lineterminator="\n")
    writer.writerow(
        ["n", "q", "d", "strength", "signal", "draws", "share or mean", "beside", "verdict"]
    )
    missed = 0
    for row in rows(sizes, asked.draws):
        writer.writerow(row)
        asked.csv.flush()
        missed += row[-1] == "MISSED"
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
