"""Small real inputs for the tests: checkpoints with random weights, photographs in files."""

from __future__ import annotations

import functools
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import run_command
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from lidar_cli.checkpoints.models.resnet import ResNet
from lidar_cli.checkpoints.shapes.resnet import Block, ResNetSpec

WIDTHS = (4, 8, 12, 16)  # channels of the four stages; the last is d of the backbone
PROJECTED = 8  # d of the projector
CHANNELS = (4, 4, 6, 6)  # of the four stages of `tiny_state_dict`


class Network(nn.Module):
    """A backbone and a projector, as training scripts name them."""

    def __init__(self, widths: Sequence[int] = WIDTHS, projected: int | None = PROJECTED) -> None:
        super().__init__()
        self.backbone = narrow_resnet(widths)
        if projected is not None:
            self.projector = nn.Sequential(
                nn.Linear(widths[-1], projected),
                nn.BatchNorm1d(projected),
                nn.ReLU(),
                nn.Linear(projected, projected),
            )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = {"backbone": self.backbone(x)}
        if hasattr(self, "projector"):
            outputs["projector"] = self.projector(outputs["backbone"])
        return outputs


def narrow_resnet(widths: Sequence[int] = WIDTHS) -> ResNet:
    """A ResNet of one basic block a stage."""
    stages, into = [], widths[0]
    for number, width in enumerate(widths):
        stride = 1 if number == 0 else 2
        stages.append(
            (Block(into, width, width, stride, 1, bottleneck=False, downsample=number > 0),)
        )
        into = width
    return ResNet(ResNetSpec(widths[0], 3, tuple(stages)))


def network(
    seed: int = 0, widths: Sequence[int] = WIDTHS, projected: int | None = PROJECTED
) -> Network:
    """A network in eval mode with random weights, by seed, that separates photographs.

    BatchNorm has the statistics of photographs, as after training; with random ones the
    embeddings would be nearly constant and hide every mistake.
    """
    made = Network(widths, projected)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in made.state_dict().items():
        if name.endswith("weight") and tensor.dim() == 1:
            tensor.uniform_(0.8, 1.5, generator=generator)
        elif name.endswith("bias"):
            tensor.uniform_(-0.2, 0.2, generator=generator)
        elif name.endswith("weight"):
            tensor.normal_(0.0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
    for module in made.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    pixels = np.stack([crop(i, 32, 32) for i in range(64)])
    with torch.no_grad():
        made.train()(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 128.0 - 1.0)
    return made.eval()


def state_dict(seed: int = 0, prefix: str = "module.", **shape: Any) -> dict[str, Tensor]:
    """The weights of `network`, as a parallel wrapper names them."""
    return {f"{prefix}{key}": value for key, value in network(seed, **shape).state_dict().items()}


def tiny_state_dict() -> dict[str, Tensor]:
    """The tensors of a ResNet of four narrow stages, by torchvision's names; about 5 kB."""
    tensors: dict[str, Tensor] = {"conv1.weight": torch.randn(4, 3, 3, 3)}

    def norm(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{name}.{part}"] = torch.rand(width) + 0.5

    norm("bn1", 4)
    into = 4
    for stage, out in enumerate(CHANNELS, 1):
        block = f"layer{stage}.0"
        tensors[f"{block}.conv1.weight"] = torch.randn(out, into, 3, 3)
        tensors[f"{block}.conv2.weight"] = torch.randn(out, out, 3, 3)
        norm(f"{block}.bn1", out)
        norm(f"{block}.bn2", out)
        if stage > 1:
            tensors[f"{block}.downsample.0.weight"] = torch.randn(out, into, 1, 1)
            norm(f"{block}.downsample.1", out)
        into = out
    return tensors


def checkpoint(path: Path, seed: int = 0, **shape: Any) -> Path:
    """A checkpoint file as a training script would save it.

    shape: widths; projected, None for no projector.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 3, "state_dict": state_dict(seed, **shape)}, path)
    return path


@functools.cache
def photographs() -> tuple[NDArray[np.uint8], ...]:
    """The two photographs that scikit-learn ships, [427, 640, 3]."""
    return tuple(load_sample_images().images)


def crop(index: int, height: int = 40, width: int = 48) -> NDArray[np.uint8]:
    """A piece of a photograph, a different one for each index below 300."""
    photograph = photographs()[index % 2]
    top, left = 97 * index % (427 - height), 53 * index % (640 - width)
    return np.ascontiguousarray(photograph[top : top + height, left : left + width])


PHOTO = crop(3, 20, 30)


def encoded(image: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """An image file's content; PNG loses nothing."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def size(index: int) -> tuple[int, int]:
    """Height and width of the index-th image of a folder, of many shapes."""
    return 33 + 7 * index % 30, 40 + 11 * index % 35


def image_folder(folder: Path, count: int, classes: Sequence[str] = ()) -> Path:
    """PNG files of different sizes, dealt out to the classes in turn, or flat without any."""
    for index in range(count):
        into = folder / classes[index % len(classes)] if classes else folder
        into.mkdir(parents=True, exist_ok=True)
        (into / f"{index:03}.png").write_bytes(encoded(crop(index, *size(index))))
    return folder


def environment(**more: str) -> dict[str, str]:
    """This process's, without settings of ours, on one thread and off line."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LIDAR_")}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


def lidar(*arguments: object, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """`lidar` in a process that has torch already; in a fresh one where more sets PYTHONPATH."""
    if "PYTHONPATH" in more:
        return lidar_anew(*arguments, cwd=cwd, **more)
    return run_command(arguments, cwd, environment(**more), timeout=120)


def lidar_anew(*arguments: object, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """`python -m lidar_cli` in a fresh interpreter."""
    command = [sys.executable, "-m", "lidar_cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=120
    )


def lidar_here(
    *arguments: object, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> subprocess.CompletedProcess[str]:
    """The same program in this process, which spares loading torch again."""
    from lidar_cli.__main__ import main

    words = [str(argument) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["lidar", *words])
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        main()
    printed = capfd.readouterr()
    status = left.value.code if isinstance(left.value.code, int) else int(bool(left.value.code))
    return subprocess.CompletedProcess(words, status, printed.out, printed.err)


def besides_progress(stderr: str) -> str:
    """What else a command said than the lines of its finished checkpoints."""
    return "".join(
        line for line in stderr.splitlines(True) if not re.match(r"[\d: -]{20} \[", line)
    )


def besides_assumptions(stderr: str) -> str:
    """What else a command said than what it assumes of checkpoints, which test_assume is about."""
    return "".join(line for line in stderr.splitlines(True) if ": assumed " not in line)
