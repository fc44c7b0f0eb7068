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
COMPILED = ("resnet18", "vit_small_patch16_224")
BATCH = 16  # images
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


def bench_compile(device, folder):
    """A compiled backbone against the same uncompiled, and after how many images it pays."""
    for arch in COMPILED:
        checkpoint = model_file(folder, arch)
        plain, compiled = (open_checkpoint(checkpoint, arch=arch).to(device) for _ in range(2))
        images = torch.randn(BATCH, 3, SIZE, SIZE).to(device, memory_format=plain.memory_format)
        for one in (plain, compiled):
            one.set_image_size(SIZE)
        begun = processor_seconds()
        compile_backbone(compiled, torch.device(device))
        forward(compiled, images)
        first, seconds = processor_seconds() - begun, {"compiled": [], "plain": []}
        for _ in range(REPEATS):
            for name, one in (("compiled", compiled), ("plain", plain)):
                begun = processor_seconds()
                forward(one, images)
                seconds[name].append((processor_seconds() - begun) / BATCH)
        ours, theirs = (median(seconds[name]) for name in ("compiled", "plain"))
        gain = theirs - ours
        pays = f"after {math.ceil(first / gain):,} images" if gain > 0 else "never"
        yield Line(
            "compile",
            f"{arch}, {SIZE} px, {BATCH} images at a time, processor time an image",
            "the same, not compiled",
            "float32",
            REPEATS,
            1e3 * ours,
            1e3 * theirs,
            "ms",
            Goal(ratio(seconds["compiled"], seconds["plain"]), "times the time"),
            f"compiling takes {first:.0f} s of processor time: it pays {pays}",
        )


def forward(embedder, images):
    with forward_precision("float32", images.device):
        embedder.embed(images, ["backbone"])
    if images.device.type == "cuda":
        torch.cuda.synchronize()


def processor_seconds():
    """Of this process and of its children that have ended, such as compilers."""
    parts = (resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)
