"""How often does an interval of a mean of ranks hold its value without noise? Run by hand:

    python tests/benchmarks/rank_intervals.py [--draws 200] [--csv FILE]

12 checkpoints have three metrics that share half of their variance; the estimate of each has
normal noise of variance 1, and `spread` is the standard deviation of a metric over checkpoints. An
interval at 95 % is to hold `agreement` of the metrics without noise in 95 % of the checkpoints and
draws. Compared are percentiles of resamples, the pivotal interval, bias-corrected percentiles and
simultaneous bounds: ranks that no difference excludes, by the largest of all standardised
differences of a checkpoint (Mogstad et al. 2024). What does not reach 95 % is marked.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch

from lidar_cli.ranking.group_metrics import AGREEMENT_OF, agreement

CHECKPOINTS, RESAMPLES, LEVEL = 12, 400, 0.95
SPREADS = (0.5, 1.0, 2.0, 4.0, 8.0)
NORMAL = torch.distributions.Normal(0.0, 1.0)


def simultaneous(estimates, noise):
    """Bounds of the mean rank of each checkpoint. estimates [3, K], noise [B, 3, K]."""
    gaps = estimates[:, None, :] - estimates[:, :, None]  # [3, K, others]
    drawn = noise[:, :, None, :] - noise[:, :, :, None]
    error = drawn.std(dim=0).clamp_min(1e-12)
    largest = (drawn / error).abs().amax(dim=(1, 3))  # [B, K]
    bound = largest.quantile(LEVEL, dim=0)[:, None] * error
    above, below = (gaps > bound).sum(dim=2), (gaps < -bound).sum(dim=2)
    return (1.0 + above).mean(dim=0), (estimates.shape[1] - below).double().mean(dim=0)


def intervals(estimates, noise, values):
    """Kind -> lower and upper ends [K]. values: the mean of ranks [..., 3, K] -> [..., K]."""
    value, resamples = values(estimates), values(estimates + noise)
    tail = (1.0 - LEVEL) / 2.0
    low, high = resamples.quantile(tail, dim=0), resamples.quantile(1.0 - tail, dim=0)
    below = (resamples < value).double().mean(dim=0) + (resamples == value).double().mean(dim=0) / 2
    shift = 2.0 * NORMAL.icdf(below.clamp(1.0 / len(noise), 1.0 - 1.0 / len(noise)))
    z = NORMAL.icdf(torch.tensor(tail))
    ordered, last = resamples.sort(dim=0).values, len(noise) - 1
    ends = [(NORMAL.cdf(shift + sign * z) * last).round().long() for sign in (1.0, -1.0)]
    return {
        "percentiles": (low, high),
        "pivotal": (2.0 * value - high, 2.0 * value - low),
        "bias-corrected": tuple(ordered.gather(0, end[None])[0] for end in ends),
        "simultaneous": simultaneous(estimates, noise),
    }


def coverage(spread, draws, seed=0):
    """Kind -> coverage and mean width, over checkpoints and draws."""
    generator = torch.Generator().manual_seed(seed)
    values = agreement(AGREEMENT_OF).values
    held, width = {}, {}
    for _ in range(draws):
        shared, own, error = (
            torch.randn(rows, CHECKPOINTS, dtype=torch.float64, generator=generator)
            for rows in (1, 3, 3)
        )
        truth = spread * (shared + own) / 2**0.5
        noise = torch.randn(RESAMPLES, 3, CHECKPOINTS, dtype=torch.float64, generator=generator)
        target = values(truth)
        for kind, (low, high) in intervals(truth + error, noise, values).items():
            inside = (low <= target + 1e-9) & (target - 1e-9 <= high)
            held.setdefault(kind, []).append(inside.double().mean().item())
            width.setdefault(kind, []).append((high - low).mean().item())
    return {kind: (sum(held[kind]) / draws, sum(width[kind]) / draws) for kind in held}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for spread in SPREADS:
        for kind, (share, width) in coverage(spread, arguments.draws).items():
            verdict = "reached" if share >= LEVEL else "MISSED"
            rows.append([spread, kind, f"{share:.3f}", f"{width:.2f}", arguments.draws, verdict])
            print("  ".join(map(str, rows[-1])), flush=True)
    if arguments.csv:
        with Path(arguments.csv).open("w", newline="") as file:
            header = ["spread", "interval", "coverage", "mean width", "draws", "verdict"]
            csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return int(any(row[-1] == "MISSED" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
