"""What benchmarks of embedding share: photographs in files, and where the time of a run goes."""

import time
from contextlib import ExitStack
from unittest import mock

import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from lidar_cli.data.dataset import Samples
from lidar_cli.extraction.engine import EmbeddingModel, ViewSource
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.views.pipeline import Views

STAGES = (  # of `extract`
    (Samples, "decode", "decode"),
    (Views, "views", "views"),
    (Views, "clean", "views"),
    (ViewSource, "_assemble", "copy"),
    (EmbeddingModel, "forward", "forward"),
    (FeatureWriter, "write", "write"),
)


def photographs(folder, count, height=375, width=500):
    """JPEG files, each another crop of one of scikit-learn's two photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    both = load_sample_images().images
    for k in range(count):
        top, left = 31 * k % (427 - height), 53 * k % (640 - width)
        crop = both[k % 2][top : top + height, left : left + width]
        Image.fromarray(crop).save(folder / f"{k:04}.jpg", quality=90)
    return folder


def profile(whole):
    """Shares of the wall time of one run; stages overlap, so that they may add up to more than 1.

    On CUDA they are those of the threads that start the work. A profiler of torch, where one is
    active, records each stage under its name.
    """
    spent = {}

    def timed(owner, name, stage):
        function = getattr(owner, name)

        def timing(*given, **named):
            begun = time.perf_counter()
            try:
                with torch.profiler.record_function(stage):
                    return function(*given, **named)
            finally:
                spent[stage] = spent.get(stage, 0.0) + time.perf_counter() - begun

        return mock.patch.object(owner, name, timing)

    with ExitStack() as stack:
        for owner, name, stage in STAGES:
            stack.enter_context(timed(owner, name, stage))
        begun = time.perf_counter()
        whole()
        total = time.perf_counter() - begun
    spent["copy"] -= spent["views"]  # views are made inside
    return "of the wall time " + shares(spent, total)


def shares(spent, total):
    """The share of each stage in the total, as text."""
    stages = ("forward", "views", "decode", "copy", "write")
    return ", ".join(f"{stage} {spent.get(stage, 0) / total:.0%}" for stage in stages)
