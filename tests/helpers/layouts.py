"""Random weights by the names of a layout, their literal forward passes, and what holds a file."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lidar_cli.checkpoints.detect import detect
from lidar_cli.checkpoints.shapes.spec import CheckpointDescription

Embed = Callable[[Tensor], Tensor]
STAGES = (8, 8, 12, 16)  # channels; the last is the width of every ResNet here


@dataclass
class Fixture:
    """One file: what to save, what is recognised, and what it embeds to."""

    format: str
    tree: Any
    embed: dict[tuple[str, str], Embed]  # by branch and layer, first the default branch
    size: int = 32
    file: str = "checkpoint.pth"
    arch: str | None = None
    legacy: bool = False
    ignored: tuple[str, ...] = field(default=())

    def save(self, folder: Path) -> Path:
        path = folder / self.file
        tree = {k: dict(v) if isinstance(v, Weights) else v for k, v in self.tree.items()}
        torch.save(tree, path, _use_new_zipfile_serialization=not self.legacy)
        return path


def describe(path: Path, tree: Any, **options: Any) -> CheckpointDescription:
    """The description of a checkpoint that was read to a tree; options as for `detect`."""
    description, _ = detect(path, tree, **options)
    return description


class Weights(dict[str, Tensor]):
    """A state dict that is written layer by layer, with random numbers by seed."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Weights:
        weights = cls()
        weights.update(tensors)
        return weights

    def uniform(self, name: str, *shape: int, low: float = 0.2, high: float = 0.8) -> None:
        self[name] = torch.empty(shape).uniform_(low, high, generator=self.generator)

    def normal(self, name: str, *shape: int, fan: int | None = None) -> None:
        fan = fan or max(1, int(np.prod(shape[1:])))
        self[name] = torch.randn(shape, generator=self.generator) * fan**-0.5

    def linear(self, name: str, into: int, out: int, bias: bool = True) -> None:
        self.normal(f"{name}.weight", out, into)
        if bias:
            self.uniform(f"{name}.bias", out, low=-0.5, high=0.5)

    def weight_norm(self, name: str, into: int, out: int, new: bool = False) -> None:
        names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
        g, v = names if new else ("weight_g", "weight_v")
        self.uniform(f"{name}.{g}", out, 1, low=0.5, high=2.0)
        self.normal(f"{name}.{v}", out, into)

    def bn(self, name: str, width: int, affine: bool = True) -> None:
        if affine:
            self.uniform(f"{name}.weight", width)
            self.uniform(f"{name}.bias", width)
        self.uniform(f"{name}.running_mean", width, low=-0.5, high=0.5)
        self.uniform(f"{name}.running_var", width, low=0.5, high=2.0)
        self[f"{name}.num_batches_tracked"] = torch.tensor(100)

    def ln(self, name: str, width: int) -> None:
        self.uniform(f"{name}.weight", width, low=0.5, high=1.5)
        self.uniform(f"{name}.bias", width)

    def resnet(
        self, prefix: str, kernel: int = 7, bottleneck: bool = False, stem: int | None = None
    ) -> None:
        """Torchvision's names, without fc. stem: its width, the first stage's unless given."""
        into = stem or STAGES[0]
        self.normal(f"{prefix}conv1.weight", into, 3, kernel, kernel)
        self.bn(f"{prefix}bn1", into)
        for stage, width in enumerate(STAGES, 1):
            name = f"{prefix}layer{stage}.0"
            inner = width if not bottleneck or stem else width // 2
            shapes = [(inner, into, 3, 3), (width, inner, 3, 3)]
            if bottleneck:
                shapes = [(inner, into, 1, 1), (inner, inner, 3, 3), (width, inner, 1, 1)]
            for i, shape in enumerate(shapes, 1):
                self.normal(f"{name}.conv{i}.weight", *shape)
                self.bn(f"{name}.bn{i}", shape[0])
            if stage > 1 or into != width:
                self.normal(f"{name}.downsample.0.weight", width, into, 1, 1)
                self.bn(f"{name}.downsample.1", width)
            into = width

    def vit(
        self,
        prefix: str,
        width: int = 192,
        cls: bool = True,
        patch: int = 8,
        grid: int = 4,
        block: Callable[[int], str] = "blocks.{}".format,
    ) -> None:
        """timm's names, depth 2, without classifier."""
        if cls:
            self.normal(f"{prefix}cls_token", 1, 1, width, fan=1)
        self.normal(f"{prefix}pos_embed", 1, grid**2 + cls, width, fan=1)
        self.normal(f"{prefix}patch_embed.proj.weight", width, 3, patch, patch)
        self.uniform(f"{prefix}patch_embed.proj.bias", width)
        for i in range(2):
            self.vit_block(prefix + block(i), width)
        self.ln(f"{prefix}norm", width)

    def vit_block(self, name: str, width: int) -> None:
        self.ln(f"{name}.norm1", width)
        self.linear(f"{name}.attn.qkv", width, 3 * width)
        self.linear(f"{name}.attn.proj", width, width)
        self.ln(f"{name}.norm2", width)
        self.linear(f"{name}.mlp.fc1", width, 2 * width)
        self.linear(f"{name}.mlp.fc2", 2 * width, width)

    # The forward passes.

    def lin(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self[f"{name}.weight"], self.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        """A BatchNorm in eval mode: by its stored statistics."""
        shape = (1, -1, 1, 1) if x.dim() == 4 else (1, -1)
        mean, var = self[f"{name}.running_mean"], self[f"{name}.running_var"]
        x = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
        if f"{name}.weight" in self:
            x = x * self[f"{name}.weight"].view(shape) + self[f"{name}.bias"].view(shape)
        return x

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return x * self[f"{name}.weight"] + self[f"{name}.bias"]

    def run_resnet(
        self,
        prefix: str,
        x: Tensor,
        padding: int | None = None,
        strides: tuple[int, ...] = (1, 2, 2, 2),
        pool: bool = True,
    ) -> Tensor:
        """padding: of a 3x3 stem, which has stride 1 and no pooling; None for the 7x7 stem."""
        if padding is None:
            x = F.relu(self.norm(f"{prefix}bn1", F.conv2d(x, self[f"{prefix}conv1.weight"],
                                                          stride=2, padding=3)))  # fmt: skip
            x = F.max_pool2d(x, 3, 2, 1) if pool else x
        else:
            x = F.conv2d(x, self[f"{prefix}conv1.weight"], stride=1, padding=padding)
            x = F.relu(self.norm(f"{prefix}bn1", x))
        for stage in range(1, 5):
            name, stride = f"{prefix}layer{stage}.0", strides[stage - 1]
            bottleneck = f"{name}.conv3.weight" in self
            out = x
            for i in (1, 2, 3) if bottleneck else (1, 2):
                weight = self[f"{name}.conv{i}.weight"]
                at = stride if i == (2 if bottleneck else 1) else 1
                out = F.conv2d(out, weight, stride=at, padding=weight.shape[-1] // 2)
                out = self.norm(f"{name}.bn{i}", out)
                if i < (3 if bottleneck else 2):
                    out = F.relu(out)
            if f"{name}.downsample.0.weight" in self:
                x = F.conv2d(x, self[f"{name}.downsample.0.weight"], stride=stride)
                x = self.norm(f"{name}.downsample.1", x)
            x = F.relu(x + out)
        return x.mean((2, 3))

    def run_vit(
        self,
        prefix: str,
        x: Tensor,
        heads: int = 3,
        block: Callable[[int], str] = "blocks.{}".format,
        pool: str = "cls",
    ) -> Tensor:
        proj = f"{prefix}patch_embed.proj"
        x = F.conv2d(x, self[f"{proj}.weight"], self[f"{proj}.bias"], stride=8)
        return self.run_tokens(prefix, x.flatten(2).transpose(1, 2), heads, block, pool)

    def run_tokens(
        self,
        prefix: str,
        x: Tensor,
        heads: int = 3,
        block: Callable[[int], str] = "blocks.{}".format,
        pool: str = "cls",
    ) -> Tensor:
        """From embedded patches on."""
        if f"{prefix}cls_token" in self:
            x = torch.cat([self[f"{prefix}cls_token"].expand(len(x), -1, -1), x], dim=1)
        x = x + self[f"{prefix}pos_embed"]
        if f"{prefix}register_tokens" in self:  # DINOv2's, once the positions are added
            registers = self[f"{prefix}register_tokens"].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
        for i in range(2):
            x = self.run_vit_block(prefix + block(i), x, heads)
        x = self.layer_norm(f"{prefix}norm", x)
        return {"cls": x[:, 0], "mean": x.mean(1), "none": x}[pool]

    def run_vit_block(self, name: str, x: Tensor, heads: int) -> Tensor:
        b, n, d = x.shape
        qkv = self.lin(f"{name}.attn.qkv", self.layer_norm(f"{name}.norm1", x))
        q, k, v = qkv.view(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / (d // heads) ** 0.5).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(b, n, d)
        x = x + self.scaled(f"{name}.ls1", self.lin(f"{name}.attn.proj", mixed))
        return x + self.scaled(
            f"{name}.ls2", self.run_mlp(name, self.layer_norm(f"{name}.norm2", x))
        )

    def run_mlp(self, name: str, x: Tensor) -> Tensor:
        """With GELU, or DINOv2's SwiGLU."""
        if f"{name}.mlp.w12.weight" in self:
            gate, value = self.lin(f"{name}.mlp.w12", x).chunk(2, dim=-1)
            return self.lin(f"{name}.mlp.w3", F.silu(gate) * value)
        return self.lin(f"{name}.mlp.fc2", F.gelu(self.lin(f"{name}.mlp.fc1", x)))

    def scaled(self, name: str, x: Tensor) -> Tensor:
        return x * self[f"{name}.gamma"] if f"{name}.gamma" in self else x


def wrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As DistributedDataParallel names them."""
    return {f"module.{name}": tensor for name, tensor in weights.items()}


def part(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in weights.items() if k.startswith(prefix)}


@functools.cache
def script_function(name: str) -> Any:
    """A function of a training script, which a pickle names as __main__.NAME."""

    def function(p: Any) -> bool:
        return bool(p.ndim == 1)

    function.__module__, function.__qualname__, function.__name__ = "__main__", name, name
    setattr(sys.modules["__main__"], name, function)
    return function


def optimizer(**group: Any) -> dict[str, Any]:
    state = {0: {"mu": torch.ones(3, 3)}}
    return {"state": state, "param_groups": [{"lr": 0.2, "params": [0]} | group]}


def lightning(weights: dict[str, Tensor], **more: Any) -> dict[str, Any]:
    return {
        "epoch": 3,
        "global_step": 400,
        "pytorch-lightning_version": "2.1.2",
        "state_dict": weights,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [optimizer()],
        "lr_schedulers": [],
    } | more


def mlp(w: Weights, x: Tensor, *steps: str, activation: Callable[..., Tensor] = F.relu) -> Tensor:
    """A chain of layers by name: 'act', 'bn NAME', or the name of a Linear."""
    for step in steps:
        if step == "act":
            x = activation(x)
        elif step.startswith("bn "):
            x = w.norm(step[3:], x)
        else:
            x = w.lin(step, x)
    return x


def official_head(w: Weights, name: str, bias: bool, last_bias: bool = False) -> None:
    """Linear BN ReLU, twice, Linear."""
    w.linear(f"{name}.0", 16, 24, bias)
    w.bn(f"{name}.1", 24)
    w.linear(f"{name}.3", 24, 24, bias)
    w.bn(f"{name}.4", 24)
    w.linear(f"{name}.6", 24, 20, last_bias)


def run_official(w: Weights, name: str, x: Tensor) -> Tensor:
    p = f"{name}."
    return mlp(w, x, p + "0", f"bn {p}1", "act", p + "3", f"bn {p}4", "act", p + "6")


def dino_head(w: Weights, name: str, width: int, new: bool = False, bn: bool = False) -> None:
    first, second, third = ("0", "3", "6") if bn else ("0", "2", "4")
    w.linear(f"{name}.mlp.{first}", width, 24)
    w.linear(f"{name}.mlp.{second}", 24, 24)
    w.linear(f"{name}.mlp.{third}", 24, 16)
    if bn:
        w.bn(f"{name}.mlp.1", 24)
        w.bn(f"{name}.mlp.4", 24)
    w.weight_norm(f"{name}.last_layer", 16, 40, new)


def run_dino(w: Weights, name: str, x: Tensor, bn: bool = False) -> Tensor:
    """Up to the bottleneck, which the prototypes see after an L2 normalisation."""
    p = f"{name}.mlp."
    steps = [p + "0", "act", p + "2", "act", p + "4"]
    if bn:
        steps = [p + "0", f"bn {p}1", "act", p + "3", f"bn {p}4", "act", p + "6"]
    return mlp(w, x, *steps, activation=F.gelu)


FIXTURES: dict[str, Callable[[], Fixture]] = {}


def fixture(make: Callable[[], Fixture]) -> Callable[[], Fixture]:
    """Give a file its place in the table, by its function's name; it is made once."""
    cached = functools.cache(make)
    FIXTURES[make.__name__.replace("_", "-")] = cached
    return cached
