"""Whole processes: what `lidar` takes in memory, and how soon it answers."""

import importlib.metadata
import importlib.util
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import torch
from harness import LIDAR, Goal, Line, Skipped, alternate, median, peak_memory, write_embeddings
from mistakes import MISTAKES, make_workplace

REPTRIX = """
import sys, numpy, torch
from reptrix import lidar
z = torch.from_numpy(numpy.load(sys.argv[1]))
print(lidar.get_lidar(z, z.shape[0], z.shape[1], 1e-4))
"""


def bench_memory(_device, folder):
    d = 768  # of ViT-B: already the smaller file, 61 MB, fills the buffers that --memory allows
    for suffix in (".npy", ".h5"):
        peaks = {}
        for n in (2_000, 200_000):
            path = folder / "z.npy"
            write_embeddings(path, n, 10, d)
            if suffix == ".h5":
                path = as_hdf5(path)
            peaks[n] = peak_memory([*LIDAR, "score", str(path), "--json"])
            path.unlink()
        yield Line(
            "memory",
            f"lidar score, n=200000 q=10 d={d}, {suffix} float32",
            "the same at n=2000",
            "float64",
            1,
            peaks[200_000],
            peaks[2_000],
            "MB",
            Goal(peaks[200_000] / peaks[2_000], "times the smaller file's", at_most=1.1),
            f"importing torch alone {peak_memory([sys.executable, '-c', 'import torch']):.0f} MB",
        )
    yield grouped_rows(folder, d)
    yield from other_paths(folder, d=128)
    yield against_reptrix(folder, n=500, q=10, d=2048)


def grouped_rows(folder, d):
    """Rows of 2 to 18 views a sample, those of a sample scattered over the file."""

    def command(n):
        path, ids = folder / "rows.npy", folder / "ids.npy"
        counts = np.random.default_rng(0).integers(2, 19, n)
        write_embeddings(path, 1, int(counts.sum()), d)
        rows = np.lib.format.open_memmap(path, "r")[0]
        np.save(path.with_name("z.npy"), rows)
        np.save(ids, np.random.default_rng(1).permutation(np.repeat(np.arange(n), counts)))
        words = ["score", path.with_name("z.npy"), "--group-by", "ids", "--ids", ids, "--json"]
        return [*LIDAR, *map(str, words)]

    return flat(f"lidar score --group-by ids, q=2..18 d={d}, .npy float32, rows shuffled", command)


WRITE = """
import sys, h5py, lidar_cli
views = h5py.File(sys.argv[1])["embeddings"]
lidar_cli.write_features(sys.argv[2], views, ids=range(len(views)), overwrite=True)
"""
ROWS = """
import torch
class Rows:
    def __len__(self): return {n}
    def __getitem__(self, i): return torch.randn(10, {d}), str(i)
def data(): return Rows()
def network(): return torch.nn.Linear({d}, 64)
"""


def other_paths(folder, d):
    """Arrays that a script writes, that `rank` reads, and whose samples a factory makes."""

    def script(n):
        path = folder / "views.npy"
        write_embeddings(path, n, 10, d)
        source = as_hdf5(path)
        return [sys.executable, "-c", WRITE, str(source), str(folder / "written.h5")]

    def files(n):
        (folder / "arrays").mkdir(exist_ok=True)
        for name in ("a.npy", "b.npy"):
            write_embeddings(folder / "arrays" / name, n, 10, d)
        return [*LIDAR, "rank", str(folder / "arrays"), "--json", "--cache", str(folder / "cache")]

    def factory(n):
        name, checkpoint = f"rows{n}", folder / "linear.pt"
        (folder / f"{name}.py").write_text(ROWS.format(n=n, d=d))
        torch.save(torch.nn.Linear(d, 64).state_dict(), checkpoint)
        words = ["extract", checkpoint, "--data", f"{name}:data", "--model", f"{name}:network"]
        words += ["-n", n, "-o", folder / "out.h5", "--overwrite", "--device", "cpu"]
        return ["env", f"PYTHONPATH={folder}", *LIDAR, *map(str, words)]

    sizes = 20_000, 80_000  # the smaller one fills all buffers
    yield flat(f"write_features of an HDF5 dataset, q=10 d={d}", script, sizes)
    yield flat(f"lidar rank of two .npy files, q=10 d={d}", files, sizes)
    yield flat(f"lidar extract --data module:factory, q=10 d={d}", factory)


def flat(case, command, sizes=(2_000, 20_000), at_most=1.15):
    """The peak memory of a command of ten times as many samples."""
    few, many = sizes
    peaks = {n: peak_memory(command(n)) for n in sizes}
    against = f"the same at n={few}"
    goal = Goal(peaks[many] / peaks[few], "times the smaller one's", at_most=at_most)
    case = f"{case}, n={many}"
    return Line("memory", case, against, "float64", 1, peaks[many], peaks[few], "MB", goal)


def against_reptrix(folder, n, q, d):
    if importlib.util.find_spec("reptrix") is None:
        return Skipped("memory", "against reptrix: pip install reptrix")
    path = folder / "z.npy"
    write_embeddings(path, n, q, d)
    ours = peak_memory([*LIDAR, "score", str(path), "--json"])
    theirs = peak_memory([sys.executable, "-c", REPTRIX, str(path)])
    path.unlink()
    return Line(
        "memory",
        f"lidar score, all metrics, n={n} q={q} d={d}",
        f"reptrix {importlib.metadata.version('reptrix')} get_lidar in float32",
        "float64",
        1,
        ours,
        theirs,
        "MB",
        Goal(ours / theirs, "times reptrix's", at_most=0.1),
    )


def bench_start(_device, folder, repeats=7):
    path = folder / "small.npy"
    write_embeddings(path, 1000, 4, 64)  # 1 MB
    commands = {
        "help": [*LIDAR, "--help"],
        "score": [*LIDAR, "score", str(path), "--json"],
        "torch": [sys.executable, "-c", "import torch"],
    }
    seconds = alternate({name: runner(command) for name, command in commands.items()}, repeats)
    took = median(seconds["help"])
    goal = Goal(took, "s", at_most=0.3)
    yield Line("start", "lidar --help", "nothing", "process", repeats, took, None, "s", goal)
    more = median(a - b for a, b in zip(seconds["score"], seconds["torch"], strict=True))
    yield Line(
        "start",
        "lidar score of a 1 MB file, all metrics",
        "python -c 'import torch'",
        "process",
        repeats,
        median(seconds["score"]),
        median(seconds["torch"]),
        "s",
        Goal(more, "s more", at_most=0.25),
    )


def bench_refusals(_device, folder, repeats=3):
    """Processor time of each mistake of tests/helpers/mistakes.py that needs no torch."""
    make_workplace(folder)
    for mistake in MISTAKES:
        if mistake.torch:
            continue
        command = [*LIDAR, *mistake.words.split()]
        took = median(processor_time(command, folder) for _ in range(repeats))
        goal = Goal(took, "s", at_most=0.3)
        case = f"lidar {mistake.words}"
        yield Line("refusals", case, "nothing", "process", repeats, took, None, "s", goal)


def processor_time(command, folder):
    """Seconds that a process and its children compute."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def runner(command):
    return lambda: subprocess.run(command, capture_output=True, check=True)


def as_hdf5(npy: Path) -> Path:
    path, array = npy.with_suffix(".h5"), np.load(npy, mmap_mode="r")
    with h5py.File(path, "w") as file:
        out = file.create_dataset("embeddings", array.shape, np.float32)
        for start in range(0, len(array), 1000):
            out[start : start + 1000] = array[start : start + 1000]
    npy.unlink()
    return path
