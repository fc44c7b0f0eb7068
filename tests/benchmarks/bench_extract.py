"""What `extract` costs beside its own model, and beside the loop that a user would write."""

import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import timm
import torch
from harness import Goal, Line, alternate, median, ratio
from PIL import Image
from sklearn.datasets import load_sample_images

from lidar_cli.checkpoints import open_checkpoint
from lidar_cli.features import FeatureWriter
from lidar_cli.jobs.embedding import batches, embed
from lidar_cli.jobs.embedding.batch_size import find_batch_size
from lidar_cli.jobs.embedding.batches import Pass
from lidar_cli.jobs.embedding.forward import arithmetic
from lidar_cli.jobs.embedding.plan import make_plan
from lidar_cli.jobs.extract import run
from lidar_cli.jobs.watch import Watcher
from lidar_cli.samples import Samples, open_samples
from lidar_cli.settings import ExtractSettings
from lidar_cli.views import Views

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
LOOP = Path(__file__).parent / "plain_loop.py"


def photographs(folder, count, height=375, width=500):
    """JPEG files, each another crop of one of scikit-learn's two photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    both = load_sample_images().images
    for k in range(count):
        top, left = 31 * k % (427 - height), 53 * k % (640 - width)
        crop = both[k % 2][top : top + height, left : left + width]
        Image.fromarray(crop).save(folder / f"{k:04}.jpg", quality=90)
    return folder


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
    work = Pass(plan, loaded, samples, device)
    size = find_batch_size(work)
    ready = [batch.images for batch in batches.batches(work, size, range(0, n, size))]

    def whole():
        run(plan, loaded, samples, settings, folder / "out.h5", device, Watcher())

    def model():
        with arithmetic(plan.precision, device):  # without TF32, as `extract` means float32
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


def profile(whole):
    """Shares of the wall time of one run; stages overlap, so that they may add up to more than 1.

    On CUDA they are those of the threads that start the work.
    """
    spent = {}

    def timed(owner, name, stage):
        function = getattr(owner, name)

        def timing(*given, **named):
            begun = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                spent[stage] = spent.get(stage, 0.0) + time.perf_counter() - begun

        return mock.patch.object(owner, name, timing)

    with ExitStack() as stack:
        for owner, name, stage in (
            (Samples, "decode", "decode"),
            (Views, "views", "views"),
            (Views, "clean", "views"),
            (batches, "_assemble", "copy"),
            (embed, "forward", "forward"),
            (FeatureWriter, "write", "write"),
        ):
            stack.enter_context(timed(owner, name, stage))
        begun = time.perf_counter()
        whole()
        total = time.perf_counter() - begun
    spent["copy"] -= spent["views"]  # views are made inside
    stages = ("forward", "views", "decode", "copy", "write")
    return "of the wall time " + ", ".join(
        f"{stage} {spent[stage] / total:.0%}" for stage in stages
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
