"""How every benchmark here measures, compares and writes: sides take turns, medians count.

    seconds = alternate({"ours": ours, "theirs": theirs}, repeats=5)
    yield Line("solve", "n=1000 d=2048", "inverse root and eigh", "float64", len(seconds["ours"]),
               median(seconds["ours"]), median(seconds["theirs"]), "s",
               Goal(ratio(seconds["theirs"], seconds["ours"]), "times faster", at_least=3))

Times depend on what else the machine does, and both sides feel it alike when they take turns: what
is compared is the median of the ratios of neighbouring turns, never the ratio of two best times.
"""

import csv
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))  # for the benchmarks
RESULTS = Path(__file__).parent / "results"
COLUMNS = [
    *("row", "case", "against", "precision", "repeats", "ours", "theirs", "unit"),
    *("figure", "figure_is", "goal", "verdict", "remark"),
]

LIDAR = [sys.executable, "-m", "lidar_cli"]
# A child starts out with the high-water mark of the process that forks it, and this one has grown:
# a fresh interpreter of a few MB stands between.
MEASURE = """
import os, subprocess, sys
with subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL) as child:
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
print(usage.ru_maxrss, usage.ru_utime + usage.ru_stime)
sys.exit(child.returncode)
"""

median = statistics.median


@dataclass(frozen=True)
class Goal:
    """A figure and the bound that it was set; without a bound it is only printed."""

    figure: float
    figure_is: str  # "times faster", "times the slower", "s more", ...
    at_least: float | None = None
    at_most: float | None = None

    @property
    def text(self):
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"

    @property
    def verdict(self):
        if not self.text:
            return ""
        low = -float("inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return "met" if low <= self.figure <= high else "MISSED"


@dataclass(frozen=True)
class Line:
    """One comparison: medians of both sides in `unit`, and the figure that its goal is about.

    remark: what else is to be known; for a goal that is missed, what limits it.
    """

    row: str
    case: str
    against: str  # a peer with its version, or what was timed beside
    precision: str
    repeats: int
    ours: float
    theirs: float | None
    unit: str
    goal: Goal
    remark: str = ""

    def cells(self):
        goal = self.goal
        theirs = "" if self.theirs is None else f"{self.theirs:.4g}"
        sides = [f"{self.ours:.4g}", theirs, self.unit]
        figure = [f"{goal.figure:.3g}", goal.figure_is, goal.text, goal.verdict]
        head = [self.row, self.case, self.against, self.precision, str(self.repeats)]
        return [*head, *sides, *figure, self.remark]


@dataclass(frozen=True)
class Skipped:
    """A comparison that could not be made here, and why; printed, and no line of a CSV."""

    row: str
    reason: str


def timed(function, device="cpu"):
    """Seconds that a call takes, the device's queue emptied before and after."""
    _finish(device)
    start = time.perf_counter()
    function()
    _finish(device)
    return time.perf_counter() - start


def alternate(sides, repeats, warm=1, device="cpu"):
    """Seconds of each side by name, [repeats] each: all sides once, then all again, ...

    warm: rounds that are run and not counted.
    """
    seconds = {name: [] for name in sides}
    for turn in range(warm + repeats):
        for name, function in sides.items():
            spent = timed(function, device)
            if turn >= warm:
                seconds[name].append(spent)
    return seconds


def peak_memory(command):
    """Largest resident size in MB of a child, as the kernel accounts for it."""
    return usage(command)[0]


def usage(command):
    """Largest resident size in MB of a child, and its seconds of processor time."""
    measured = [sys.executable, "-c", MEASURE, *command]
    ended = subprocess.run(measured, check=True, stdout=subprocess.PIPE)
    size, seconds = ended.stdout.split()
    return int(size) * (1 if sys.platform == "darwin" else 1024) / 2**20, float(seconds)


def write_embeddings(path, n, q, d, chunk=1000):
    """Normal embeddings [n, q, d] in float32, made chunk by chunk."""
    generator = np.random.default_rng(0)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (n, q, d))
    for start in range(0, n, chunk):
        count = min(chunk, n - start)
        out[start : start + count] = generator.standard_normal((count, q, d), np.float32)
    out.flush()


def ratio(above, below):
    """The median of the ratios of neighbouring turns."""
    return median(a / b for a, b in zip(above, below, strict=True))


def machine(device="cpu"):
    """The machine in a file's name: the card, or how many cores torch computes with."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device).replace(" ", "-")
    return f"cpu-{torch.get_num_threads()}core"


def versions():
    return f"torch{torch.__version__.split('+')[0]}"


def report(lines, device="cpu", results=RESULTS):
    """Print each line as it comes, and keep a CSV for each row and precision, a line a comparison.

    ROW-MACHINE-VERSIONS-PRECISION.csv, replaced after every line, since hours may pass between two.
    """
    cells_by_file = {}
    for line in lines:
        if isinstance(line, Skipped):
            print(f"{line.row}: skipped: {line.reason}", flush=True)
            continue
        _print(line)
        cells = cells_by_file.setdefault((line.row, line.precision), [])
        cells.append(line.cells())
        name = f"{line.row}-{machine(device)}-{versions()}-{line.precision}.csv"
        _write(results / name, cells)


def _write(path, cells):
    partial = path.with_suffix(f".{os.getpid()}")
    with partial.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(cells)
    partial.replace(path)


def _print(line):
    goal = line.goal
    theirs = "" if line.theirs is None else f", {line.theirs:.4g} {line.unit} {line.against}"
    bound = f" (goal {goal.text}: {goal.verdict})" if goal.text else ""
    remark = f"; {line.remark}" if line.remark else ""
    print(
        f"{line.row} {line.case} {line.precision}: {line.ours:.4g} {line.unit}{theirs}; "
        f"{goal.figure:.3g} {goal.figure_is}{bound}, median of {line.repeats}{remark}",
        flush=True,
    )


def _finish(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
