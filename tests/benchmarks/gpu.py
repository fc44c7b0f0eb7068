"""The rows that are measured on a GPU, one a process; `gpu.sh` runs them all.

    python tests/benchmarks/gpu.py ROW [--device cuda] [--size full] --results FOLDER

Images are photographs as JPEG in the sizes of ImageNet, made on the spot; models are timm's, with
random weights. `--size tiny --device cpu` tries a row without a GPU.
"""

import argparse
import functools
import itertools
import statistics
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import harness
import timm
import torch
from bench_lidar import DELTA, PEER, covariances, draw, inverse_root_spectrum
from extraction import photographs, profile, shares
from harness import LIDAR, Goal, Line, Skipped, alternate, median, ratio, timed

from lidar_cli import Moments
from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.core.metrics import METRICS
from lidar_cli.core.spectra import lda_spectrum
from lidar_cli.data.open import open_samples
from lidar_cli.errors import first_line
from lidar_cli.extraction.engine import (
    EmbeddingModel,
    ViewSource,
    find_batch_size,
    forward_precision,
)
from lidar_cli.extraction.plan import make_plan
from lidar_cli.extraction.run import extract_checkpoint, run
from lidar_cli.ranking.correlation import spearman
from lidar_cli.runtime.device import cpu_count
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ExtractSettings, ScoreSettings
from lidar_cli.views import operations, pipeline
from lidar_cli.views.methods import find_recipe
from lidar_cli.views.pipeline import Views

REPEATS = 3
MODELS = {  # timm's name -> at most so many times the bare forward
    "resnet50": 1.5,
    "vit_small_patch16_224": 1.5,
    "vit_base_patch16_224": 1.25,
    "vit_large_patch16_224": 1.1,
    "vit_huge_patch14_224": 1.1,
}
PRECISIONS = ("float32", "bfloat16")
SEEDS = 8  # checkpoints whose order is compared between precisions


@dataclass(frozen=True)
class Size:
    """n samples, q views, the side of a view, widths d; `model` stands for a large one if tiny."""

    samples: int
    views: int
    many_views: int
    side: int
    dims: tuple[int, ...]
    checkpoints: int
    model: str | None = None


SIZES = {
    "full": Size(1000, 10, 50, 224, (2048, 4096, 8192), 100),
    "tiny": Size(8, 2, 3, 64, (32, 64), 2, "resnet18"),
}


def solve(place):
    """The LDA spectrum from moments, against the four routines of torch that it consists of."""
    for device, dims in ((place.device, place.size.dims), ("cpu", place.size.dims[:1])):
        for d in dims:
            moments = Moments.of(draw(place.size.samples, place.size.views, d, device))
            seconds = alternate(
                {
                    "ours": functools.partial(lda_spectrum, moments, DELTA),
                    "bare": functools.partial(bare_spectrum, moments),
                },
                REPEATS,
                device=device,
            )
            against = "Cholesky, triangular solve, Gram and eigenvalues, called bare"
            case = f"{device}, n={moments.n} q={moments.n_views} d={d}"
            yield compared("solve", case, against, "float64", seconds, at_most=1.25)


def bare_spectrum(moments):
    within = moments.within / (moments.n * (moments.n_views - 1))
    within.diagonal().add_(DELTA)
    factor = torch.linalg.cholesky(within)
    means = moments.class_means.centred_rows()
    if means is None:
        half = torch.linalg.solve_triangular(factor, moments.class_means.scatter, upper=False)
        small = torch.linalg.solve_triangular(factor, half.T, upper=False)
    else:
        whitened = torch.linalg.solve_triangular(factor, means.T, upper=False)
        small = whitened.T @ whitened
    return torch.linalg.eigvalsh(small / (moments.n - 1))


def score(place):
    """`score` of a file, against the equation in torch on the same device, and on the CPU."""
    for d, goal in ((place.size.dims[0], 5), (place.size.dims[-1], 20)):
        path = place.folder / f"{d}.npy"
        harness.write_embeddings(path, place.size.samples, place.size.views, d)
        z = torch.from_numpy(harness.np.load(path))

        def recipe(z=z):
            return inverse_root_spectrum(*covariances(z.to(place.device, torch.float64))).tolist()

        def ours(device, path=path):
            return score_file(path, ScoreSettings(device=device, metrics="lidar"))

        sides = {
            "ours": functools.partial(ours, place.device),
            "recipe": recipe,
            "cpu": functools.partial(ours, "cpu"),
        }
        seconds = alternate(sides, REPEATS, device=place.device)
        case = f"n={place.size.samples} q={place.size.views} d={d}"
        for name, against, bound in (
            ("recipe", f"{PEER}, on the same device", goal),
            ("cpu", f"lidar on {torch.get_num_threads()} cores", 1),
        ):
            figure = ratio(seconds[name], seconds["ours"])
            sizes = median(seconds["ours"]), median(seconds[name]), "s"
            aim = Goal(figure, "times faster", at_least=bound)
            yield Line("score", case, against, "float64", REPEATS, *sizes, aim)


@torch.inference_mode()
def views(place):
    """SimCLR's views, against kornia's chain and torchvision's a view at a time, both there."""
    from bench_views import Q, kornia_chain, one_at_a_time
    from torchvision.transforms import v2

    recipe, images = find_recipe("simclr", "imagenet"), decoded(place)
    planar = [image.permute(2, 0, 1).contiguous() for image in images]
    maker = Views(recipe, 0, Q, 224)
    peers = {"torchvision v2, a view at a time": one_at_a_time(planar, recipe, v2)}
    try:
        peers["kornia's chain, batched"] = kornia_chain(recipe, images)
    except ImportError:
        yield Skipped("views", "kornia is not installed")
    sides = {"ours": lambda: maker.views(images, range(len(images))), **peers}
    seconds = alternate(sides, REPEATS, device=place.device)
    for name in peers:
        yield faster_views("views", len(images) * Q, seconds["ours"], name, seconds[name], 6)


@torch.inference_mode()
def variants(place):
    """SimCLR's views as they are, against larger portions and compiled colour operations."""
    recipe, images = find_recipe("simclr", "imagenet"), decoded(place)
    maker, count = Views(recipe, 0, place.size.views, 224), len(images) * place.size.views
    compiled = tuple(torch.compile(one, dynamic=True) for one in operations.JITTER)

    def ours():
        return maker.views(images, range(len(images)))

    for name, owner, attribute, value in (
        ("4 times the views at once", pipeline, "GPU_FLOATS", 4 * pipeline.GPU_FLOATS),
        ("colour operations compiled", operations, "JITTER", compiled),
    ):

        def varied(owner=owner, attribute=attribute, value=value):
            with mock.patch.object(owner, attribute, value):
                return ours()

        try:
            gap = float((varied() - ours()).abs().max())
        except Exception as error:  # of many kinds, by the compiler and for lack of memory
            reason = f"{name}: {first_line(error)}"
            yield Skipped("views-variants", reason)
            continue
        seconds = alternate({"plain": ours, "varied": varied}, REPEATS, device=place.device)
        remark = f"{name}; largest difference {gap:.1e}"
        sides = seconds["varied"], "as they are", seconds["plain"]
        yield faster_views("views-variants", count, *sides, remark=remark)


def decoded(place):
    """Up to 64 photographs on the device, uint8 [h, w, 3]."""
    from bench_views import photographs as pictures_of

    pictures = pictures_of([(375, 500)] * min(64, place.size.samples))
    return [torch.from_numpy(harness.np.array(picture)).to(place.device) for picture in pictures]


def faster_views(row, count, ours, name, theirs, at_least=None, remark=""):
    rates = count / median(ours), count / median(theirs), "views/s"
    aim = Goal(ratio(theirs, ours), "times as fast", at_least=at_least)
    return Line(row, "simclr, 224 px", name, "float32", REPEATS, *rates, aim, remark)


class Extraction:
    """One checkpoint and its images, and the parts that `extract` is made of."""

    def __init__(self, place, arch, precision, n_views):
        self.place, self.precision = place, precision
        folder, size = place.folder, place.size
        self.arch = arch = size.model or arch
        self.checkpoint = place.model_file(arch, seed=0)
        self.settings = ExtractSettings(
            data=str(place.images()), n_samples=size.samples, n_views=n_views, views="simclr",
            image_size=size.side, device=place.device, precision=precision, overwrite=True,
        )  # fmt: skip
        samples = open_samples(self.settings)
        self.device = torch.device(place.device)
        self.loaded = open_checkpoint(self.checkpoint, arch=arch).to(self.device)
        self.loaded.set_image_size(size.side)
        name = str(self.checkpoint)
        description = self.loaded.description
        plan = make_plan(description, name, arch, samples, self.settings, self.device)
        self.samples, self.model = samples, EmbeddingModel(plan, self.loaded, self.device)
        self.source = ViewSource(plan, samples, self.device, self.loaded.memory_format)
        self.batch_size = find_batch_size(self.model)
        self.output = folder / "out.h5"

    def whole(self):
        run(self.model, self.source, self.settings, self.output, Progress())

    def batches(self):
        starts = range(0, self.settings.n_samples, self.batch_size)
        return self.source.batches(self.batch_size, starts)

    def forward(self, ready):
        """The bare forward of as many images as one run has, on ready batches by turns."""
        count = -(-self.settings.n_samples // self.batch_size)
        with torch.inference_mode(), forward_precision(self.precision, self.device):
            for batch in itertools.islice(itertools.cycle(ready), count):
                self.loaded.embed(batch, ["backbone"])

    def ready(self):
        return [batch.images for batch in itertools.islice(self.batches(), 2)]

    def decode(self):
        with ThreadPoolExecutor(cpu_count()) as pool:
            list(pool.map(self.samples.decode, range(self.settings.n_samples)))


def extract(place, arch, precision):
    """`extract` against its own forward on ready tensors, and against forward plus views."""
    one = Extraction(place, arch, precision, place.size.views)
    ready = one.ready()
    sides = {
        "ours": one.whole,
        "forward": lambda: one.forward(ready),
        "views": lambda: [batch.stop for batch in one.batches()],
    }
    seconds = alternate(sides, REPEATS, device=place.device)
    both = [a + b for a, b in zip(seconds["forward"], seconds["views"], strict=True)]
    case = f"{one.arch}, n={place.size.samples} q={place.size.views}, batches of {one.batch_size}"
    remark = profile(one.whole)
    for against, theirs, bound in (
        ("the bare forward on ready tensors", seconds["forward"], MODELS[arch]),
        ("the sum of bare forward and bare decoding and views", both, 1.05),
    ):
        sides = {"ours": seconds["ours"], "bare": theirs}
        yield compared(f"extract-{arch}", case, against, precision, sides, bound, remark)


def jpeg(place):
    """`extract` from JPEG files, against the slower of bare forward and bare decoding."""
    one = Extraction(place, "resnet50", "bfloat16", 2)
    ready = one.ready()
    sides = {"ours": one.whole, "forward": lambda: one.forward(ready), "decode": one.decode}
    seconds = alternate(sides, REPEATS, device=place.device)
    slower = max(("forward", "decode"), key=lambda name: median(seconds[name]))
    case = f"{one.arch}, n={place.size.samples} q=2, {cpu_count()} cores"
    against = f"the slower of bare forward and decoding: {slower}"
    sides = {"ours": seconds["ours"], "bare": seconds[slower]}
    yield compared("jpeg", case, against, "bfloat16", sides, at_most=1.15)


def slowest_kernels(place):
    """Where `extract` spends its time, by stage and by kernel; printed."""
    one = Extraction(place, "vit_base_patch16_224", "float32", place.size.views)
    one.whole()
    every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(experimental_config=every_thread) as recorded:
        print(profile(one.whole))
    averages = recorded.key_averages()
    if one.device.type != "cuda":
        print(averages.table(sort_by="self_cpu_time_total", row_limit=10))
        return []
    kernels = [event for event in averages if event.device_type.name == "CUDA"]
    kernels = [event for event in kernels if not event.is_user_annotation]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in kernels)
    hosts = [event for event in averages if event.device_type.name == "CPU"]
    spent = {event.key: event.device_time_total for event in hosts}
    spent["copy"] -= spent["views"]  # views are made inside
    print("of the time on the GPU", shares(spent, total))
    for event in kernels[:10]:
        share = event.self_device_time_total / total
        print(f"{share:.1%} of it in {event.count} calls of {event.key[:100]}")
    return []


def judged(place):
    """One ViT-H/14 from the file to its metrics, in a process that does nothing else."""
    arch = place.size.model or "vit_huge_patch14_224"
    checkpoint = place.model_file(arch, seed=0)
    for precision in PRECISIONS:
        words = ["-n", place.size.samples, "-q", place.size.many_views, "--precision", precision]
        seconds = timed(lambda words=words: rank(place, [checkpoint], words))
        case = f"{arch}, n={place.size.samples} q={place.size.many_views}, lidar rank"
        goal = Goal(seconds, "s in all", at_most=60)
        yield Line("judged", case, "", precision, 1, seconds, None, "s", goal)


def hundred(place):
    """Many ResNet-50 ranked, against as many bare forwards."""
    count, precision = place.size.checkpoints, "float32"
    paths = [place.model_file(place.size.model or "resnet50", seed) for seed in range(count)]
    words = ["-n", place.size.samples, "-q", place.size.views, "--precision", precision]
    ours = timed(lambda: rank(place, paths, words))
    one = Extraction(place, "resnet50", precision, place.size.views)
    ready = one.ready()
    forwards = alternate({"f": lambda: one.forward(ready)}, REPEATS, device=place.device)["f"]
    bare = count * median(forwards)
    case = f"{count} {one.arch}, n={place.size.samples} q={place.size.views}, lidar rank"
    against = f"{count} times the bare forward"
    yield compared("hundred", case, against, precision, {"ours": [ours], "bare": [bare]}, 1.2)
    goal = Goal(ours / 60, "min in all", at_most=15)
    yield Line("hundred", case, "", precision, 1, ours, None, "s", goal)


def precision(place):
    """What bfloat16 and float16 do to each metric, and to the order of checkpoints."""
    arch, values = place.size.model or "resnet50", {}
    for seed in range(SEEDS if place.size.model is None else 3):
        checkpoint = place.model_file(arch, seed)
        for kind in (*PRECISIONS, "float16"):
            output = place.folder / f"{kind}.h5"
            settings = ExtractSettings(
                data=str(place.images()), n_samples=place.size.samples, n_views=place.size.views,
                views="simclr", image_size=place.size.side, device=place.device, precision=kind,
                output=output, overwrite=True, arch=arch,
            )  # fmt: skip
            extract_checkpoint(checkpoint, settings)
            (scored,) = score_file(output, ScoreSettings(device=place.device))
            for name in METRICS:
                values.setdefault((kind, name), []).append(scored.value(name))
    for kind in (*PRECISIONS[1:], "float16"):
        for name in METRICS:
            pairs = [
                (a, b)
                for a, b in zip(values["float32", name], values[kind, name], strict=True)
                if a is not None and b is not None
            ]
            if pairs:
                gap = statistics.fmean(abs(b - a) / max(abs(a), 1e-12) for a, b in pairs)
                rho = spearman(*zip(*pairs, strict=True))
                case = f"{name} of {len(pairs)} {arch}"
                text = "" if rho is None else f"Spearman {rho:+.2f}"
                aim = Goal(gap, "mean relative change")
                yield Line("precision", case, "float32", kind, 1, gap, None, "", aim, text)


def rank(place, paths, words):
    command = [*LIDAR, "rank", *paths, "--data", place.images(), "--device", place.device]
    command += ["--views", "simclr", "--image-size", place.size.side, *words]
    with tempfile.TemporaryDirectory(dir=place.folder) as cache:
        subprocess.run([*map(str, command), "--cache", cache], check=True)


def compared(row, case, against, kind, seconds, at_most, remark=""):
    ours, bare = seconds["ours"], seconds["bare"]
    sides = len(ours), median(ours), median(bare), "s"
    goal = Goal(ratio(ours, bare), "times the bare one", at_most=at_most)
    return Line(row, case, against, kind, *sides, goal, remark)


@dataclass
class Place:
    """The device, the size, and a folder for files."""

    device: str
    size: Size
    folder: Path

    def images(self):
        folder = self.folder / "images"
        return folder if folder.exists() else photographs(folder, self.size.samples)

    def model_file(self, arch, seed):
        path = self.folder / f"{arch}-{seed}.pt"
        if not path.exists():
            torch.manual_seed(seed)
            torch.save(timm.create_model(arch, num_classes=0).state_dict(), path)
        return path


ROWS = {
    "solve": solve,
    "score": score,
    "views": views,
    "views-variants": variants,
    "jpeg": jpeg,
    "profile": slowest_kernels,
    "judged": judged,
    "hundred": hundred,
    "precision": precision,
} | {
    f"extract-{arch}-{kind}": functools.partial(extract, arch=arch, precision=kind)
    for arch in MODELS
    for kind in PRECISIONS
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--results", type=Path, required=True, help="folder of the CSV files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(options.device, SIZES[options.size], Path(folder))
        harness.report(ROWS[options.row](place), options.device, options.results)


if __name__ == "__main__":
    main()
