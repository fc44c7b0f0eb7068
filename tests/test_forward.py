"""The forward pass: batch sizes from memory, number formats, compilation."""

from __future__ import annotations

import json
import math
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import timm
import torch
from fake_cuda import Waits, embed_on_fake_cuda, fake_cuda
from make import checkpoint, environment, image_folder, network, size
from torch import Tensor, nn

from lidar_cli import extract
from lidar_cli.checkpoints.open import open_checkpoint, wrap_module
from lidar_cli.errors import CheckpointError, SettingsError
from lidar_cli.extraction.engine import (
    USABLE_SHARE,
    at_size_that_fits,
    forward_precision,
    samples_that_fit,
)
from lidar_cli.extraction.plan import identity
from lidar_cli.extraction.run import extract_checkpoint
from lidar_cli.ranking.session import rank_directory
from lidar_cli.runtime.device import scoring_device
from lidar_cli.runtime.prefetch import pack, unpack
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ExtractSettings, RankSettings, ScoreSettings

# Batch size


@pytest.mark.parametrize(
    ("free", "one", "most", "expected"),
    [
        (1000, 10, 256, int(100 * USABLE_SHARE)),
        (1000, 10, 7, 7),
        (1000, 999, 256, 1),
        (1000, 10**6, 256, 1),  # tried nonetheless: memory that is cached may yet be freed
        (0, 10, 256, 1),
        (1000, 0, 256, 256),
    ],
)
def test_samples_that_fit(free: int, one: int, most: int, expected: int) -> None:
    assert samples_that_fit(free, one, most) == expected


@pytest.mark.parametrize(
    ("first", "fits", "tried"),
    [(93, 20, [93, 46, 23, 11]), (8, 8, [8]), (1, 1, [1]), (3, 1, [3, 1])],
)
def test_a_batch_is_halved_until_it_fits(first: int, fits: int, tried: list[int]) -> None:
    seen = []

    def attempt(size: int) -> str:
        seen.append(size)
        if size > fits:
            raise torch.OutOfMemoryError("of a device")
        return f"done with {size}"

    assert at_size_that_fits(first, attempt, fixed=False) == f"done with {tried[-1]}"
    assert seen == tried


def test_a_sample_that_does_not_fit_is_refused() -> None:
    def attempt(size: int) -> None:
        raise torch.OutOfMemoryError("of a device")

    with pytest.raises(CheckpointError, match=r"memory does not hold one sample.*lower -q"):
        at_size_that_fits(4, attempt, fixed=False)


class Greedy(nn.Module):
    """A module for which memory suffices up to so many images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("of a device")
        return x.mean(dim=(2, 3)) * self.scale


def test_a_run_that_does_not_fit_goes_on_with_half(tmp_path: Path) -> None:
    common: dict[str, Any] = {"n_samples": 9, "n_views": 2, "image_size": 16, "device": "cpu"}
    images = str(image_folder(tmp_path / "images", 9))
    done = extract(Greedy(6), images, tmp_path / "found.h5", **common)  # two samples of 3 images
    assert done.batch_size == 2
    extract(Greedy(99), images, tmp_path / "halved.h5", batch_size=2, **common)
    with h5py.File(tmp_path / "found.h5") as one, h5py.File(tmp_path / "halved.h5") as two:
        for name in ("views", "clean"):
            key = f"embeddings/backbone/{name}"
            assert np.array_equal(one[key][:], two[key][:])
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(CheckpointError, match=r"a batch of 3 samples.*a smaller --batch-size"):
        extract(Greedy(6), images, tmp_path / "fixed.h5", batch_size=3, **common)
    assert not list(tmp_path.glob("fixed*"))  # no sample was done, so nothing is left to resume


# Memory format


def test_convnets_work_channels_last(tmp_path: Path) -> None:
    loaded = open_checkpoint(checkpoint(tmp_path / "a.pt")).to("cpu")
    assert loaded.memory_format == torch.channels_last
    (weight,) = (w for n, w in loaded.modules["backbone"].named_parameters() if "conv1" in n[:5])
    assert weight.is_contiguous(memory_format=torch.channels_last)
    module = network()
    assert wrap_module(module).to("cpu").memory_format == torch.contiguous_format
    assert module.backbone.conv1.weight.is_contiguous()
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    torch.save(vit.state_dict(), tmp_path / "vit.pt")
    assert open_checkpoint(tmp_path / "vit.pt").memory_format == torch.contiguous_format


# Number formats


def notes_about_precision(precision: str) -> int:
    """How many notes are due: Linux lists the instructions that oneDNN's products need."""
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    wide, narrow = {"avx512bw", "avx512vl", "avx512dq"}, {"avx_vnni_int8", "avx_ne_convert"}
    return 0 if precision == "float32" or wide <= flags or narrow <= flags else 1


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="reads the flags of x86"
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rank_says_once_that_the_cpu_lacks_a_precision(tmp_path: Path, precision: str) -> None:
    for seed in range(2):
        checkpoint(tmp_path / "runs" / f"{seed}.pt", seed)
    notes: list[str] = []

    class Notes(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    given: dict[str, Any] = {"n_samples": 8, "n_views": 2, "device": "cpu", "precision": precision}
    settings = RankSettings(**given)
    rank_directory(tmp_path / "runs", settings, Notes())
    about = [text for text in notes if text.startswith(f"--precision {precision}")]
    assert len(about) == notes_about_precision(precision)


@pytest.mark.parametrize("layer", ["backbone", "projector"])
def test_reduced_precision_changes_lidar_by_less_than_a_percent(tmp_path: Path, layer: str) -> None:
    # BatchNorm has the statistics of photographs: the spread of the embeddings is that of a trained
    # network's. Seen: 0.23 % at most; of trained checkpoints of the demo 0.52 %.
    checkpoint(tmp_path / "a.pt")
    folder = image_folder(tmp_path / "images", 48)
    values = {}
    for precision in ("float32", "bfloat16", "float16"):
        common: dict[str, Any] = {"precision": precision, "layer": layer, "image_size": 32}
        settings = ExtractSettings(
            data=str(folder), n_samples=48, n_views=4, device="cpu", **common
        )
        output = tmp_path / f"{precision}.h5"
        done = extract_checkpoint(tmp_path / "a.pt", replace(settings, output=output))
        (score,) = score_file(done.path, ScoreSettings(device="cpu"))
        values[precision] = score.value("lidar")
    full = values.pop("float32")
    assert full is not None
    for value in values.values():
        assert value is not None
        assert 0 < abs(value / full - 1) < 0.01


# Compilation


@pytest.mark.nightly
def test_without_a_compiler_one_line_says_so(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.pt")
    image_folder(tmp_path / "images", 4)
    words = ["extract", "a.pt", "--data", "images", "-n", "4", "-q", "2", "--compile"]
    missing = {"CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kernels")}
    done = subprocess.run(
        [sys.executable, "-m", "lidar_cli", *words, "--device", "cpu", "--image-size", "24"],
        cwd=tmp_path,
        env=environment(**missing),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: --compile: torch cannot compile for cpu here: ")
    assert "leave out --compile" in done.stderr
    assert not list(tmp_path.glob("*.h5*"))


def test_a_module_of_ones_own_is_not_compiled(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images", 4)
    with pytest.raises(SettingsError, match="compile a module of your own where you make it"):
        extract(network(), str(images), tmp_path / "a.h5", n_samples=4, compile=True)


def test_a_compiled_backbone_embeds_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # no processes that wait
    # Neither headers compiled for later use nor programs that try the processor's instructions.
    monkeypatch.setattr("torch._inductor.config.cpp_cache_precompile_headers", False)
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", True)
    checkpoint(tmp_path / "a.pt", widths=(4,))  # each kind of operation, in one stage
    folder = image_folder(tmp_path / "images", 3)
    settings = ExtractSettings(
        data=str(folder), n_samples=3, n_views=2, image_size=16, device="cpu", batch_size=2
    )
    actual = []
    for name, compiled in (("plain", False), ("compiled", True)):
        asked = replace(settings, compile=compiled, output=tmp_path / f"{name}.h5")
        with h5py.File(extract_checkpoint(tmp_path / "a.pt", asked).path) as file:
            actual.append(file["embeddings/projector/views"][:])
            provenance = json.loads(file.attrs["provenance"])
        assert provenance.get("compiled", False) == compiled
    assert not np.array_equal(*actual), "no other kernels ran"
    assert np.abs(actual[1] - actual[0]).max() < 1e-5 * np.abs(actual[0]).max()
    assert identity(provenance) == identity({**provenance, "compiled": False})


def test_images_of_several_sizes_are_packed_for_one_copy() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(3, 5, 3), (1, 1, 3), (4, 2, 3)]
    images = [torch.randint(256, size, dtype=torch.uint8, generator=generator) for size in sizes]
    images.append(images[0].transpose(0, 1))  # not contiguous
    packed = pack(images)
    assert packed.shape == (45 + 3 + 24 + 45,)
    for image, copy in zip(images, unpack(packed, [one.shape for one in images]), strict=True):
        assert torch.equal(image, copy)
        assert copy.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        ("cuda:1", (9, 0), "cuda:1"),  # H100
        ("cuda", (8, 0), "cuda"),  # A100
        ("cuda", (8, 6), "cpu"),  # A10: a 64th of the speed of float32
        ("cuda", (12, 0), "cpu"),
        ("cpu", (9, 0), "cpu"),
    ],
)
def test_cards_that_are_slow_in_float64_leave_scoring_to_the_cpu(
    device: str, capability: tuple[int, int], expected: str
) -> None:
    assert scoring_device(torch.device(device), capability) == torch.device(expected)


@pytest.mark.parametrize("cached", [False, True])
def test_a_batch_is_embedded_without_waiting_for_the_gpu(tmp_path: Path, cached: bool) -> None:
    runs, images = checkpoint(tmp_path / "a.pt"), image_folder(tmp_path / "images", 2)
    (views, clean), copies = embed_on_fake_cuda(
        runs, images, cached, n_samples=2, n_views=2, views="simclr", image_size=24
    )
    assert views["projector"].device.type == clean["projector"].device.type == "cuda"
    assert (views["projector"].shape, clean["projector"].shape) == ((2, 2, 8), (2, 8))
    pixels, *others = copies
    decoded = 3 * sum(math.prod(size(index)) for index in range(2))
    assert pixels == (2 * 3 * 3 * 24**2 * 4 if cached else decoded)
    assert sum(others) < 2000  # what is drawn


@pytest.mark.parametrize(
    "wait",
    [
        lambda: torch.zeros(2).to("cuda"),
        lambda: torch.zeros(2).to("cuda", non_blocking=True),
        lambda: torch.zeros(2).pin_memory().to("cuda"),
        lambda: torch.zeros(2, device="cuda").cpu(),
        lambda: torch.zeros(2, device="cuda")[torch.tensor([0])],
    ],
)
def test_every_copy_that_waits_is_refused(wait: Callable[[], Tensor]) -> None:
    with fake_cuda(), pytest.raises(Waits):
        wait()


@pytest.mark.parametrize("theirs", ["tf32", "ieee"])
def test_float32_is_without_tf32_and_the_callers_choice_comes_back(theirs: str) -> None:
    convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision
    try:
        convolutions.fp32_precision = products.fp32_precision = theirs
        with forward_precision("float32", torch.device("cpu")):
            assert (convolutions.fp32_precision, products.fp32_precision) == ("ieee", "ieee")
        assert (convolutions.fp32_precision, products.fp32_precision) == (theirs, theirs)
    finally:
        convolutions.fp32_precision, products.fp32_precision = before
