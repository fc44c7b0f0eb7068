"""What `extract` costs beside its own model, and beside the loop that a user would write."""

import math
import resource
import subprocess
import sys
from pathlib import Path

import timm
import torch
from extraction import photographs, profile
from harness import Goal, Line, alternate, median, ratio
from torch.fx.experimental.optimization import fuse

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.data.open import open_samples
from lidar_cli.extraction.engine import (
    EmbeddingModel,
    ViewSource,
    find_batch_size,
    forward_precision,
)
from lidar_cli.extraction.plan import make_plan
from lidar_cli.extraction.run import compile_backbone, run
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import ExtractSettings

SIZE, N, Q = 224, 64, 10
ARCHITECTURES = {
    "cpu": ["resnet18"],
    "cuda": [
        *("resnet50", "vit_small_patch16_224", "vit_base_patch16_224"),
        *("vit_large_patch16_224", "vit_huge_patch14_224"),
    ],
}
SAMPLES = {"cpu": N, "cuda": 1000}
REPEATS = 3
PROCESS_REPEATS = 2
FORWARDS = {  # ways that are compared on the CPU
    "resnet18": ("contiguous", "BatchNorm folded", "bfloat16", "compiled"),
    "resnet50": ("contiguous", "BatchNorm folded"),
    "vit_small_patch16_224": ("bfloat16", "compiled"),
}
BATCH = 8  # images
LOOP = Path(__file__).parent / "plain_loop.py"


def model_file(folder, arch):
    torch.manual_seed(0)
    path = folder / f"{arch}.pt"
    torch.save(timm.create_model(arch, num_classes=0).state_dict(), path)
    return path


def bench_extract(device, folder):
    n = SAMPLES[torch.device(device).type]
    images = photographs(folder / "images", n)
    for arch in ARCHITECTURES[torch.device(device).type]:
        yield beside_the_model(torch.device(device), folder, images, arch, n)


def beside_the_model(device, folder, images, arch, n):
    checkpoint = model_file(folder, arch)
    settings = ExtractSettings(
        data=str(images), n_samples=n, n_views=Q, device=str(device), views="simclr", overwrite=True
    )
    samples = open_samples(settings)
    loaded = open_checkpoint(checkpoint, arch=arch).to(device)
    plan = make_plan(loaded.description, str(checkpoint), arch, samples, settings, device)
    embedder = EmbeddingModel(plan, loaded, device)
    source = ViewSource(plan, samples, device, loaded.memory_format)
    size = find_batch_size(embedder)
    ready = [batch.images for batch in source.batches(size, range(0, n, size))]

    def whole():
        run(embedder, source, settings, folder / "out.h5", Progress())

    def model():
        with forward_precision(plan.precision, device):  # without TF32, as `extract` means float32
            for batch in ready:
                loaded.embed(batch, ["backbone"])

    seconds = alternate({"extract": whole, "model": model}, REPEATS, device=device)
    return Line(
        "extract",
        f"{arch}, {n} samples q={Q}, {SIZE} px",
        "the model alone on ready tensors, same memory format",
        "float32",
        REPEATS,
        median(seconds["extract"]),
        median(seconds["model"]),
        "s",
        Goal(
            ratio(seconds["extract"], seconds["model"]),
            "times the model",
            at_most=1.25 if device.type == "cpu" else 1.1,
        ),
        profile(whole),
    )


def bench_extract_process(device, folder):
    """A whole process against a plain script: loader, PIL transforms per view, forward, save."""
    arch = "resnet18"
    n = N // 2  # both sides start anew each time, and most of it is the same forward
    images = photographs(folder / "process" / "class", n).parent
    checkpoint = model_file(folder, arch)
    common = [str(checkpoint), str(images), str(n), str(Q), device]
    ours = [sys.executable, "-m", "lidar_cli", "extract", checkpoint, "--data", images]
    ours += ["-n", n, "-q", Q, "--views", "simclr", "--arch", arch, "--device", device]
    ours += ["-o", folder / "process.h5", "--overwrite"]

    def process(*words):
        subprocess.run([*map(str, words)], check=True, capture_output=True)

    seconds = alternate(
        {
            "lidar": lambda: process(*ours),
            "loop": lambda: process(sys.executable, LOOP, *common, folder / "loop.pt"),
        },
        PROCESS_REPEATS,
        warm=0,
    )
    yield Line(
        "extract-process",
        f"{arch}, {n} samples q={Q}, {SIZE} px",
        "a plain loop: DataLoader (2 workers), PIL transforms a view, forward, torch.save",
        "float32",
        PROCESS_REPEATS,
        median(seconds["lidar"]),
        median(seconds["loop"]),
        "s",
        Goal(ratio(seconds["loop"], seconds["lidar"]), "times faster"),
    )


def bench_forward(device, folder):
    """One forward pass as `extract` runs it, against other ways, in processor time of one thread.

    Time on the clock depends on what else the machine does, and a compiler on how many cores.
    """
    torch.set_num_threads(1)
    for arch, ways in FORWARDS.items():
        path = model_file(folder, arch)
        plain = opened(path, arch, device)
        images = torch.randn(BATCH, 3, SIZE, SIZE).to(device, memory_format=plain.memory_format)
        for way in ways:
            begun = processor_seconds()
            other, precision, inputs = prepared(way, path, arch, images)
            forward(other, inputs, precision)
            first, seconds = processor_seconds() - begun, {"plain": [], "other": []}
            for _ in range(REPEATS):
                seconds["plain"].append(forward(plain, images, "float32"))
                seconds["other"].append(forward(other, inputs, precision))
            theirs, ours = (1e3 / BATCH * median(seconds[name]) for name in ("plain", "other"))
            gain = ratio(seconds["other"], seconds["plain"])
            remark = f"the first batch takes {first:.1f} s, preparation included"
            if way == "compiled" and gain < 1:
                remark += f": it pays after {math.ceil(1e3 * first / (theirs - ours)):,} images"
            yield Line(
                "forward",
                f"{arch}, {SIZE} px, {BATCH} images at a time, {way}",
                "as by default: channels last for convolutional networks",
                precision,
                REPEATS,
                ours,
                theirs,
                "ms an image",
                Goal(gain, "times the time"),
                remark,
            )


def opened(path, arch, device):
    embedder = open_checkpoint(path, arch=arch).to(device)
    embedder.set_image_size(SIZE)
    return embedder


def prepared(way, path, arch, images):
    """The embedder, precision and images of one of the ways of FORWARDS."""
    embedder = opened(path, arch, images.device)
    if way == "contiguous":
        embedder.modules["backbone"].to(memory_format=torch.contiguous_format)
        images = images.contiguous()
    elif way == "BatchNorm folded":
        folded = fuse(embedder.modules["backbone"]).to(memory_format=torch.channels_last)
        embedder.modules["backbone"].forward = folded.forward
    elif way == "compiled":
        compile_backbone(embedder, images.device)
    return embedder, "bfloat16" if way == "bfloat16" else "float32", images


def forward(embedder, images, precision):
    """Seconds of processor time of one forward pass."""
    begun = processor_seconds()
    with torch.inference_mode(), forward_precision(precision, images.device):
        embedder.embed(images, ["backbone"])
    return processor_seconds() - begun


def processor_seconds():
    """Of this process and of its children that have ended, such as compilers."""
    parts = (resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)
