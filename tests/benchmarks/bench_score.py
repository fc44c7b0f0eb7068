"""What a score costs: the solve, the memory of the stream, the start. Run by hand:

    python tests/benchmarks/bench_score.py [--only solve,memory,start]

Both sides of a comparison run alternately in the same process or on the same machine, and the
median of the ratios is what counts: the times themselves depend on what else the machine does.
Needs psutil, about 1.7 GB of free disk in the temporary directory, and some minutes.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import torch

from lidar_cli.core.moments import Moments
from lidar_cli.core.spectra import lda_spectrum

RESULTS = Path(__file__).parent / "results"
DELTA = 1e-4
LIDAR = [sys.executable, "-m", "lidar_cli"]


def timed(function):
    start = time.perf_counter()
    value = function()
    return time.perf_counter() - start, value


def inverse_root_spectrum(moments, delta):
    """Eigenvalues of Sw^-1/2 Sb Sw^-1/2 as the equation reads: a root by eigh, then eigh."""
    n, q = moments.n, moments.n_views
    between = moments.class_means.scatter / (n - 1)
    within = moments.within / (n * (q - 1))
    within.diagonal().add_(delta)
    values, vectors = torch.linalg.eigh(within)
    root = (vectors * values.rsqrt()) @ vectors.T
    values, _ = torch.linalg.eigh(root @ between @ root)
    return values.flip(0).clamp_min(0.0)


def bench_solve():
    """Seconds of the LiDAR solve on ready moments, n = 1000, q = 10, float64."""
    for d, repeats in ((1024, 5), (2048, 3), (4096, 2)):
        generator = torch.Generator().manual_seed(0)
        moments = Moments(10, d)
        for _ in range(10):  # 100 samples at a time
            moments.update(torch.randn(100, 10, d, generator=generator))
        ours, theirs, gap = [], [], 0.0
        for _ in range(repeats):
            seconds, found = timed(lambda m=moments: lda_spectrum(m, DELTA).eigenvalues)
            ours.append(seconds)
            seconds, expected = timed(lambda m=moments: inverse_root_spectrum(m, DELTA))
            theirs.append(seconds)
            gap = float((found - expected).abs().max() / expected[0])
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        yield f"solve d={d}: ours", statistics.median(ours), "s"
        yield f"solve d={d}: inverse root, then eigh", statistics.median(theirs), "s"
        yield f"solve d={d}: median ratio of {repeats}", ratio, "x"
        yield f"solve d={d}: largest difference of eigenvalues", gap, "of the largest"


def write_embeddings(path, n, q=10, d=512, chunk=1000):
    """Normal embeddings [n, q, d] in float32, made chunk by chunk."""
    rng = np.random.default_rng(0)
    if path.suffix == ".npy":
        out = np.lib.format.open_memmap(path, "w+", np.float32, (n, q, d))
        for start in range(0, n, chunk):
            out[start : start + chunk] = rng.standard_normal((chunk, q, d), np.float32)
        out.flush()
    else:
        with h5py.File(path, "w") as file:
            out = file.create_dataset("embeddings", (n, q, d), np.float32)
            for start in range(0, n, chunk):
                out[start : start + chunk] = rng.standard_normal((chunk, q, d), np.float32)


# A child starts out with the high-water mark of the process that forks it, and this one has grown:
# a fresh interpreter of a few MB stands between.
MEASURE = """
import os, subprocess, sys
with subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL) as child:
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
print(usage.ru_maxrss)
sys.exit(child.returncode)
"""


def peak_memory(command):
    """Largest resident size in MB of a child, as the kernel accounts for it, and its seconds."""
    measured = [sys.executable, "-c", MEASURE, *command]
    seconds, ended = timed(lambda: subprocess.run(measured, check=True, stdout=subprocess.PIPE))
    scale = 1 if sys.platform == "darwin" else 1024
    return int(ended.stdout) * scale / 2**20, seconds


def bench_memory(folder):
    """Peak memory of `lidar score` at two sizes, q = 10, d = 512, float32, default chunks."""
    bare, _ = peak_memory([sys.executable, "-c", "import torch"])
    yield "memory: import torch alone", bare, "MB"
    for suffix in (".h5", ".npy"):
        peaks = {}
        for n in (4_000, 40_000):
            path = folder / f"z{suffix}"
            write_embeddings(path, n)
            size = path.stat().st_size / 2**20
            peaks[n], seconds = peak_memory([*LIDAR, "score", str(path), "--json"])
            path.unlink()
            yield f"memory {suffix} n={n}: file", size, "MB"
            yield f"memory {suffix} n={n}: peak", peaks[n], "MB"
            yield f"memory {suffix} n={n}: whole run", seconds, "s"
        yield f"memory {suffix}: peak at ten times the samples", peaks[40_000] / peaks[4_000], "x"


def bench_start(folder, repeats=7):
    """Seconds of whole processes, alternated; the first round warms the disk cache."""
    path = folder / "small.npy"
    write_embeddings(path, 1000, q=4, d=64)  # 1 MB
    commands = {
        "lidar --help": [*LIDAR, "--help"],
        "lidar score, 1 MB": [*LIDAR, "score", str(path), "--json"],
        "import torch": [sys.executable, "-c", "import torch"],
        "python": [sys.executable, "-c", "pass"],
    }
    seconds = {name: [] for name in commands}
    for turn in range(repeats + 1):
        for name, command in commands.items():
            run = timed(lambda c=command: subprocess.run(c, capture_output=True, check=True))
            if turn:
                seconds[name].append(run[0])
    for name, found in seconds.items():
        yield f"start: {name}, median of {repeats}", statistics.median(found), "s"
    pairs = zip(seconds["lidar score, 1 MB"], seconds["import torch"], strict=True)
    yield "start: score over importing torch", statistics.median(a - b for a, b in pairs), "s"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="solve,memory,start")
    parts = parser.parse_args().only.split(",")
    cores, version = psutil.cpu_count(), torch.__version__.split("+")[0]
    with tempfile.TemporaryDirectory() as name:
        benches = {
            "solve": bench_solve,
            "memory": lambda: bench_memory(Path(name)),
            "start": lambda: bench_start(Path(name)),
        }
        for part in parts:
            rows = []
            for what, value, unit in benches[part]():
                print(f"{what:<52} {value:>12.4g} {unit}", flush=True)
                rows.append((what, f"{value:.4g}", unit))
            path = RESULTS / f"{part}-cpu-{cores}core-torch{version}-float64.csv"
            with path.open("w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["what", "value", "unit"])
                writer.writerows(rows)
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
