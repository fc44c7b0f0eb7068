"""What large inputs take: whole processes, their time and their peak memory. Run by hand:

    python tests/benchmarks/scale.py [rank] [rows] [stream] [curve]

Prints a line for each command and writes scale-ROW-MACHINE.csv into tests/benchmarks/results/. The
row `picture` measures nothing: it draws the stored `curve` as `lidar explain planning` shows it.
"""

import argparse
import csv
import io
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
from harness import LIDAR, RESULTS, machine, usage, write_embeddings
from make import checkpoint, encoded, image_folder

COLUMNS = ("case", "processes", "seconds", "processor_seconds", "peak_mb")
CHUNK = 10_000  # samples
CHECKPOINTS, RANKS = 1_000, 4
ROWS, VIEWS, DIM, SHARDS = 10_000_000, 10, 64, 8
IMAGES, TARS, SIDE = 100_000, 10, 32
BASE = {"n": 10_000, "q": 4, "d": 128, "files": 1}
CURVE = {
    "n": (1_000, 10_000, 100_000, 1_000_000),
    "q": (2, 8, 32),
    "d": (64, 256, 1_024),
    "files": (10, 100),
}


def measured(case, arguments, processes=1):
    """Runs the same command in several processes at once; memory is the largest of them."""
    start = time.perf_counter()
    with ThreadPoolExecutor(processes) as pool:
        used = list(pool.map(usage, [[*LIDAR, *map(str, arguments)]] * processes))
    seconds = time.perf_counter() - start
    memory, processor = zip(*used, strict=True)
    return case, processes, round(seconds, 1), round(sum(processor), 1), round(max(memory))


def rank(folder):
    """`rank` of many small checkpoints by several processes, and again from its cache."""
    for seed in range(CHECKPOINTS):
        checkpoint(folder / "runs" / f"{seed:04}.pt", seed)
    images = image_folder(folder / "images", 50)
    command = ["rank", folder / "runs", "--data", images, "-n", 50, "-q", 2, "--image-size", SIDE]
    command += ["--views", "simclr", "--by", "rankme", "--quiet"]
    case = f"rank of {CHECKPOINTS:,} checkpoints of 56 KB, n=50 q=2 {SIDE} px"
    yield measured(case, command, RANKS)
    yield measured(f"{case}, from the cache", command)


def rows(folder):
    """`score` of rows in one HDF5 file, and of a virtual dataset of several files."""
    generator = np.random.default_rng(0)
    shape = ROWS // VIEWS, VIEWS, DIM
    layout = h5py.VirtualLayout(shape, np.float32)
    per_shard = shape[0] // SHARDS
    shard_shape = per_shard, VIEWS, DIM
    one = folder / "one.h5"
    with h5py.File(one, "w") as file:
        out = file.create_dataset("embeddings", shape, np.float32)
        for start in range(0, shape[0], CHUNK):
            count = min(CHUNK, shape[0] - start)
            centres = generator.standard_normal((count, 1, DIM), np.float32)
            noise = generator.standard_normal((count, VIEWS, DIM), np.float32)
            out[start : start + count] = centres + noise
    with h5py.File(one) as file:
        for at in range(SHARDS):
            part = slice(at * per_shard, (at + 1) * per_shard)
            with h5py.File(folder / f"shard-{at}.h5", "w") as shard:
                source = shard.create_dataset("embeddings", shard_shape, np.float32)
                for start in range(0, per_shard, CHUNK):
                    stop = min(start + CHUNK, per_shard)
                    source[start:stop] = file["embeddings"][part.start + start : part.start + stop]
            layout[part] = h5py.VirtualSource(f"shard-{at}.h5", "embeddings", shard_shape)
    with h5py.File(folder / "shards.h5", "w") as file:
        file.create_virtual_dataset("embeddings", layout)
    case = f"score of {ROWS:,} rows, n={shape[0]:,} q={VIEWS} d={DIM}"
    yield measured(f"{case}, one HDF5 file", ["score", one, "--json"])
    yield measured(f"{case}, {SHARDS} files", ["score", folder / "shards.h5", "--json"])


def stream(folder):
    """`extract` from WebDataset shards, of which it embeds a part."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    for at in range(TARS):
        with tarfile.open(folder / "images" / f"train-{at:03}.tar", "w") as shard:
            for index in range(IMAGES // TARS):
                image = generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
                content = encoded(image, "JPEG")
                member = tarfile.TarInfo(f"{at}-{index:06}.jpg")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    command = ["extract", checkpoint(folder / "z.pt"), "--data", f"wds/{folder / 'images'}"]
    command += ["-n", 2_000, "-q", 2, "--image-size", SIDE, "--views", "simclr"]
    case = f"extract from {IMAGES:,} images in {TARS} WebDataset shards, n=2,000 q=2 {SIDE} px"
    yield measured(case, [*command, "-o", folder / "z.h5"])


def curve(folder):
    """`score` as one of n, q, d and the number of files grows from a base."""
    yield scored(folder, BASE)
    for name, values in CURVE.items():
        for value in values:
            if value != BASE[name]:
                yield scored(folder, BASE | {name: value})


def scored(folder, size):
    path = folder / "z.npy"
    write_embeddings(path, size["n"], size["q"], size["d"])
    case = " ".join(f"{name}={value}" for name, value in size.items())
    return measured(f"score {case}", ["score", *[path] * size["files"], "--json"])


def picture(path):
    """Bars of time and memory, a line for each size of `curve`."""
    with path.open(newline="") as file:
        measures = {line["case"]: line for line in csv.DictReader(file)}
    longest = max(float(line["seconds"]) for line in measures.values())
    largest = max(float(line["peak_mb"]) for line in measures.values())
    for name, values in CURVE.items():
        for value in sorted({BASE[name], *values}):
            line = measures[
                "score " + " ".join(f"{k}={v}" for k, v in (BASE | {name: value}).items())
            ]
            seconds, memory = float(line["seconds"]), float(line["peak_mb"])
            label = f"{'K' if name == 'files' else name} = {value:,}"
            time_bar, memory_bar = (
                "█" * round(25 * seconds / longest),
                "▒" * round(16 * memory / largest),
            )
            print(f"{label:<13} {time_bar:<25}{seconds:>5.1f} s  {memory_bar:<16}{memory:>5.0f} MB")
        print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    measures = {"rank": rank, "rows": rows, "stream": stream, "curve": curve}
    parser.add_argument("names", nargs="*", default=list(measures), metavar="ROW")
    for name in parser.parse_args().names:
        if name == "picture":
            picture(RESULTS / f"scale-curve-{machine()}.csv")
            continue
        with tempfile.TemporaryDirectory() as folder:
            lines = [COLUMNS]
            for line in measures[name](Path(folder)):
                print(*line, sep=", ", flush=True)
                lines.append(line)
        with (RESULTS / f"scale-{name}-{machine()}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)


if __name__ == "__main__":
    main()
