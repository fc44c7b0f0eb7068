"""Checkpoints as other people's code saves them, at small width, and what they must embed to.

Each fixture is written from a description of the layout: true names, true containers, true foreign
objects (argparse's Namespace, functions of a training script, numpy's scalars). `embed` holds the
literal forward pass for every branch and layer, in functions of torch alone.
"""

from __future__ import annotations

import argparse
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


class Weights(dict[str, Tensor]):
    """A state dict that is written layer by layer, with random numbers by seed."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

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

    def run_resnet(self, prefix: str, x: Tensor, padding: int | None = None) -> Tensor:
        """padding: of a 3x3 stem, which has stride 1 and no pooling; None for the 7x7 stem."""
        if padding is None:
            x = F.relu(self.norm(f"{prefix}bn1", F.conv2d(x, self[f"{prefix}conv1.weight"],
                                                          stride=2, padding=3)))  # fmt: skip
            x = F.max_pool2d(x, 3, 2, 1)
        else:
            x = F.conv2d(x, self[f"{prefix}conv1.weight"], stride=1, padding=padding)
            x = F.relu(self.norm(f"{prefix}bn1", x))
        for stage in range(1, 5):
            name, stride = f"{prefix}layer{stage}.0", 1 if stage == 1 else 2
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
        x = x.flatten(2).transpose(1, 2)
        if f"{prefix}cls_token" in self:
            x = torch.cat([self[f"{prefix}cls_token"].expand(len(x), -1, -1), x], dim=1)
        x = x + self[f"{prefix}pos_embed"]
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
        hidden = F.gelu(self.lin(f"{name}.mlp.fc1", self.layer_norm(f"{name}.norm2", x)))
        return x + self.scaled(f"{name}.ls2", self.lin(f"{name}.mlp.fc2", hidden))

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


FIXTURES: dict[str, Callable[[], Fixture]] = {}


def fixture(make: Callable[[], Fixture]) -> Callable[[], Fixture]:
    name = make.__name__.replace("_", "-")
    cached = functools.cache(make)
    FIXTURES[name] = cached
    return cached


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


@fixture
def vicreg() -> Fixture:
    w = Weights()
    w.resnet("backbone.", bottleneck=True, stem=8)  # every width scaled, the stem's too
    official_head(w, "projector", bias=True)
    exclude = script_function("exclude_bias_and_norm")
    groups = {"weight_decay_filter": exclude, "lars_adaptation_filter": exclude}
    backbone = functools.partial(w.run_resnet, "backbone.")
    return Fixture(
        "vicreg",
        {"epoch": 9, "model": wrapped(w), "optimizer": optimizer(**groups)},
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: run_official(w, "projector", backbone(x)),
        },
        file="model.pth",
    )


@fixture
def barlow() -> Fixture:
    w = Weights()
    w.resnet("backbone.", bottleneck=True)
    official_head(w, "projector", bias=False)
    w.bn("bn", 20, affine=False)  # of the loss
    exclude = script_function("exclude_bias_and_norm")
    backbone = functools.partial(w.run_resnet, "backbone.")
    return Fixture(
        "barlow",
        {"epoch": 9, "model": wrapped(w), "optimizer": optimizer(weight_decay_filter=exclude)},
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: run_official(w, "projector", backbone(x)),
        },
        ignored=("bn",),
    )


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


def dino_pair(
    teacher: str, student: str, backbone: Callable[[Weights, str], None],
    run: Callable[[Weights, str, Tensor], Tensor], width: int, **options: bool,
) -> tuple[Weights, dict[tuple[str, str], Embed]]:  # fmt: skip
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, prefix in (("teacher", teacher), ("student", student)):
        backbone(w, f"{prefix}backbone.")
        dino_head(w, f"{prefix}head", width, **options)
        trunk = functools.partial(run, w, f"{prefix}backbone.")
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, p=prefix, t=trunk: run_dino(
            w, f"{p}head", t(x), options.get("bn", False)
        )  # type: ignore[misc]
    return w, embed


def dino_tree(w: Weights, teacher_wrapped: bool) -> dict[str, Any]:
    teacher = part(w, "teacher.")
    return {
        "student": wrapped(part(w, "student.")),
        "teacher": wrapped(teacher) if teacher_wrapped else teacher,
        "optimizer": optimizer(lr=np.float64(0.0005), weight_decay=np.float64(0.04)),
        "epoch": 20,
        "args": argparse.Namespace(arch="vit_tiny", patch_size=8, momentum_teacher=0.996),
        "dino_loss": {"center": torch.zeros(1, 40)},
    }


@fixture
def dino_vit() -> Fixture:
    w, embed = dino_pair("teacher.", "student.", Weights.vit, Weights.run_vit, 192)
    return Fixture("dino", dino_tree(w, False), embed, arch="vit_tiny_patch8 (depth 2)")


@fixture
def dino_resnet() -> Fixture:
    """With BatchNorm the teacher is wrapped too; head with BatchNorm, weight norm's new names."""
    w, embed = dino_pair(
        "teacher.", "student.", Weights.resnet, Weights.run_resnet, 16, new=True, bn=True
    )
    return Fixture("dino", dino_tree(w, True), embed)


@fixture
def simclr_sthalles() -> Fixture:
    w = Weights()
    w.resnet("backbone.")
    w.linear("backbone.fc.0", 16, 16)
    w.linear("backbone.fc.2", 16, 12)
    backbone = functools.partial(w.run_resnet, "backbone.")
    return Fixture(
        "simclr-sthalles",
        {"epoch": 100, "arch": "resnet18", "state_dict": w, "optimizer": optimizer()},
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(
                w, backbone(x), "backbone.fc.0", "act", "backbone.fc.2"
            ),
        },
        file="checkpoint_0100.pth.tar",
    )


@fixture
def simclr_spijkervet() -> Fixture:
    w = Weights()
    w.resnet("encoder.")
    w.linear("projector.0", 16, 16, bias=False)
    w.linear("projector.2", 16, 12, bias=False)
    backbone = functools.partial(w.run_resnet, "encoder.")
    return Fixture(
        "simclr-spijkervet",
        wrapped(w),
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(
                w, backbone(x), "projector.0", "act", "projector.2"
            ),
        },
        file="checkpoint_100.tar",
    )


@fixture
def simclr_atanov() -> Fixture:
    """A CIFAR stem, named layers, a BatchNorm behind the last, and an fc that nothing uses."""
    w = Weights()
    w.resnet("convnet.", kernel=3)
    w.linear("convnet.fc", 16, 10)
    w.linear("projection.fc1", 16, 16, bias=False)
    w.bn("projection.bn1", 16)
    w.linear("projection.fc2", 16, 12, bias=False)
    w.bn("projection.bn2", 12)
    backbone = functools.partial(w.run_resnet, "convnet.", padding=1)
    steps = ("projection.fc1", "bn projection.bn1", "act", "projection.fc2", "bn projection.bn2")
    return Fixture(
        "simclr-atanov",
        {
            "state_dict": w,
            "hparams": argparse.Namespace(arch="ResNet18", dist="dp"),
            "opt_state_dict": optimizer(),
            "iter": 100,
        },
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(w, backbone(x), *steps),
        },
        file="checkpoint-100.pth.tar",
        ignored=("convnet.fc",),
    )


def vissl_tree(w: Weights, loss: dict[str, Tensor] | None = None) -> dict[str, Any]:
    base = {"trunk": part(w, "trunk."), "heads": part(w, "heads.")}
    return {
        "phase_idx": 99,
        "iteration": 100,
        "loss": 0.5,
        "iteration_num": 100,
        "train_phase_idx": 99,
        "type": "consolidated",
        "classy_state_dict": {
            "train": True,
            "base_model": {"model": base, "meta": {"name": "ssl"}},
            "meters": [],
            "optimizer": {"optim": optimizer(), "param_scheduler": {}},
            "losses": [],
            "hooks": {},
        }
        | ({"loss": loss} if loss else {}),
    }


def vissl(name: str, steps: tuple[str, ...], make: Callable[[Weights], None]) -> Fixture:
    w = Weights()
    w.resnet("trunk._feature_blocks.")
    make(w)
    trunk = functools.partial(w.run_resnet, "trunk._feature_blocks.")
    embed: dict[tuple[str, str], Embed] = {("encoder", "backbone"): trunk}
    if steps:
        embed["encoder", "projector"] = lambda x: mlp(w, trunk(x), *steps)
    return Fixture(
        name, vissl_tree(w), embed, file="model_final_checkpoint_phase99.torch", legacy=True
    )


@fixture
def vissl_plain() -> Fixture:
    return vissl("vissl", (), lambda w: None)


@fixture
def vissl_simclr() -> Fixture:
    def make(w: Weights) -> None:
        w.linear("heads.0.clf.0", 16, 16)
        w.linear("heads.1.clf.0", 16, 12)

    return vissl("vissl-simclr", ("heads.0.clf.0", "act", "heads.1.clf.0"), make)


@fixture
def vissl_simclr_one_head() -> Fixture:
    def make(w: Weights) -> None:
        w.linear("heads.0.clf.0", 16, 24)
        w.linear("heads.0.clf.2", 24, 12)

    return vissl("vissl-simclr", ("heads.0.clf.0", "act", "heads.0.clf.2"), make)


@fixture
def vissl_barlow() -> Fixture:
    def make(w: Weights) -> None:
        for i in range(2):
            w.linear(f"heads.{i}.clf.0", 16 if i == 0 else 24, 24, bias=False)
            w.bn(f"heads.{i}.clf.1", 24)
        w.linear("heads.2.clf.0", 24, 20, bias=False)

    h = "heads."
    steps = (h + "0.clf.0", f"bn {h}0.clf.1", "act", h + "1.clf.0", f"bn {h}1.clf.1", "act",
             h + "2.clf.0")  # fmt: skip
    return vissl("vissl-barlow", steps, make)


@fixture
def vissl_swav() -> Fixture:
    def make(w: Weights) -> None:
        w.linear("heads.0.projection_head.0", 16, 24)
        w.bn("heads.0.projection_head.1", 24)
        w.linear("heads.0.projection_head.3", 24, 12)
        w.linear("heads.0.prototypes0", 12, 30, bias=False)

    p = "heads.0.projection_head."
    return vissl("vissl-swav", (p + "0", f"bn {p}1", "act", p + "3"), make)


@fixture
def vissl_moco() -> Fixture:
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    loss = "loss.moco_encoder."
    for branch, prefix in (("student", ""), ("teacher", loss)):
        w.resnet(f"{prefix}trunk._feature_blocks.")
        w.linear(f"{prefix}heads.0.clf.0", 16, 16)
        w.linear(f"{prefix}heads.1.clf.0", 16, 12)
        trunk = functools.partial(w.run_resnet, f"{prefix}trunk._feature_blocks.")
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, p=prefix, t=trunk: mlp(  # type: ignore[misc]
            w, t(x), f"{p}heads.0.clf.0", "act", f"{p}heads.1.clf.0"
        )
    state = part(w, "loss.") | {"queue": torch.ones(12, 64), "queue_ptr": torch.zeros(1).long()}
    return Fixture("vissl-moco", vissl_tree(w, state), embed, file="checkpoint.torch")


@fixture
def vissl_dino() -> Fixture:
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, prefix in (("teacher", "loss.momentum_teacher.module."), ("student", "")):
        w.vit(f"{prefix}trunk.")
        h = f"{prefix}heads.0"
        w.linear(f"{h}.mlp.0", 192, 24)
        w.linear(f"{h}.mlp.2", 24, 24)
        w.linear(f"{h}.mlp.4", 24, 16)
        w.weight_norm(f"{h}.prototypes0", 16, 40)
        trunk = functools.partial(w.run_vit, f"{prefix}trunk.")
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, h=h, t=trunk: run_dino(w, h, t(x))  # type: ignore[misc]
    state = part(w, "loss.") | {"center": torch.zeros(1, 40)}
    return Fixture("vissl-dino", vissl_tree(w, state), embed, file="checkpoint.torch")


@fixture
def ijepa() -> Fixture:
    w = Weights()
    for name in ("encoder.", "target_encoder."):
        w.vit(name, cls=False)
    p = "predictor."
    w.linear(f"{p}predictor_embed", 192, 96)
    w.normal(f"{p}mask_token", 1, 1, 96)
    w.normal(f"{p}predictor_pos_embed", 1, 16, 96)
    for i in range(2):
        w.vit_block(f"{p}predictor_blocks.{i}", 96)
    w.ln(f"{p}predictor_norm", 96)
    w.linear(f"{p}predictor_proj", 96, 192)
    tree: dict[str, Any] = {
        name: wrapped(part(w, f"{name}.")) for name in ("encoder", "predictor", "target_encoder")
    }
    run = functools.partial(w.run_vit, pool="mean")

    def predict(x: Tensor) -> Tensor:
        """Of a clean image: every patch is seen, and every patch is predicted."""
        seen = w.lin(f"{p}predictor_embed", w.run_vit("encoder.", x, pool="none"))
        seen = seen + w[f"{p}predictor_pos_embed"]
        asked = (w[f"{p}mask_token"] + w[f"{p}predictor_pos_embed"]).expand(len(x), -1, -1)
        y = torch.cat([seen, asked], dim=1)
        for i in range(2):
            y = w.run_vit_block(f"{p}predictor_blocks.{i}", y, 3)
        y = w.layer_norm(f"{p}predictor_norm", y[:, 16:])
        return w.lin(f"{p}predictor_proj", y).mean(1)

    return Fixture(
        "ijepa",
        tree | {"opt": optimizer(), "scaler": None, "epoch": 300, "loss": 0.1, "lr": 1e-6},
        {
            ("teacher", "backbone"): lambda x: run("target_encoder.", x),
            ("student", "backbone"): lambda x: run("encoder.", x),
            ("student", "predictor"): predict,
        },
        file="jepa-latest.pth.tar",
    )


def moco(version: int) -> Fixture:
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, e in (("student", "encoder_q."), ("teacher", "encoder_k.")):
        w.resnet(e, bottleneck=True)
        steps: tuple[str, ...] = (f"{e}fc",)
        if version == 1:
            w.linear(f"{e}fc", 16, 12)
        else:
            w.linear(f"{e}fc.0", 16, 16)
            w.linear(f"{e}fc.2", 16, 12)
            steps = (f"{e}fc.0", "act", f"{e}fc.2")
        trunk = functools.partial(w.run_resnet, e)
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, s=steps, t=trunk: mlp(w, t(x), *s)  # type: ignore[misc]
    queue = {"queue": torch.ones(12, 64), "queue_ptr": torch.zeros(1, dtype=torch.int64)}
    return Fixture(
        f"moco-v{version}",
        {"epoch": 200, "arch": "resnet50", "state_dict": wrapped(dict(w) | queue),
         "optimizer": optimizer()},
        embed,
        file="checkpoint_0199.pth.tar",
    )  # fmt: skip


@fixture
def moco_v1() -> Fixture:
    return moco(1)


@fixture
def moco_v2() -> Fixture:
    return moco(2)


def moco_v3(vit: bool) -> Fixture:
    """ViT-S: 12 heads of 32, where the usual number for its width is 6."""
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    width = 384 if vit else 16
    for branch, e in (("student", "base_encoder."), ("teacher", "momentum_encoder.")):
        if vit:
            w.vit(e, width)
            trunk: Embed = functools.partial(w.run_vit, e, heads=12)
        else:
            w.resnet(e, bottleneck=True)
            trunk = functools.partial(w.run_resnet, e)
        h = f"{e}head." if vit else f"{e}fc."
        w.linear(h + "0", width, 24, bias=False)
        w.bn(h + "1", 24)
        steps: list[str] = [h + "0", f"bn {h}1", "act"]
        last = "3"
        if vit:
            w.linear(h + "3", 24, 24, bias=False)
            w.bn(h + "4", 24)
            steps += [h + "3", f"bn {h}4", "act"]
            last = "6"
        w.linear(h + last, 24, 12, bias=False)
        w.bn(f"{h}{int(last) + 1}", 12, affine=False)
        steps += [h + last, f"bn {h}{int(last) + 1}"]
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, s=steps, t=trunk: mlp(w, t(x), *s)  # type: ignore[misc]
    w.linear("predictor.0", 12, 24, bias=False)
    w.bn("predictor.1", 24)
    w.linear("predictor.3", 24, 12, bias=False)
    predict = ["predictor.0", "bn predictor.1", "act", "predictor.3"]
    if vit:
        w.bn("predictor.4", 12, affine=False)
        predict.append("bn predictor.4")
    projector = embed["student", "projector"]
    embed["student", "predictor"] = lambda x: mlp(w, projector(x), *predict)
    return Fixture(
        "moco-v3-vit" if vit else "moco-v3-resnet",
        {"epoch": 300, "arch": "vit_small" if vit else "resnet50", "state_dict": wrapped(w),
         "optimizer": optimizer(), "scaler": {"scale": 65536.0}},
        embed,
        file="vit-s-300ep.pth.tar" if vit else "r-50-300ep.pth.tar",
    )  # fmt: skip


@fixture
def moco_v3_vit() -> Fixture:
    return moco_v3(True)


@fixture
def moco_v3_resnet() -> Fixture:
    return moco_v3(False)


def swav_like(prototypes: Callable[[Weights], None], flat: bool) -> Fixture:
    w = Weights()
    w.resnet("", bottleneck=True, stem=8)
    w.linear("projection_head.0", 16, 24)
    w.bn("projection_head.1", 24)
    w.linear("projection_head.3", 24, 12)
    prototypes(w)
    p = "projection_head."
    backbone = functools.partial(w.run_resnet, "")
    tree: dict[str, Any] = wrapped(w)
    if not flat:
        tree = {"epoch": 400, "state_dict": tree, "optimizer": optimizer(lr=np.float64(0.6))}
    return Fixture(
        "swav",
        tree,
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(
                w, backbone(x), p + "0", f"bn {p}1", "act", p + "3"
            ),
        },
        file="checkpoint.pth.tar",
        legacy=flat,
    )


@fixture
def swav_released() -> Fixture:
    return swav_like(lambda w: w.linear("prototypes", 12, 30, bias=False), flat=True)


@fixture
def deepcluster_v2() -> Fixture:
    def make(w: Weights) -> None:
        for i in range(3):
            w.linear(f"prototypes.prototypes{i}", 12, 30, bias=False)

    return swav_like(make, flat=False)


@fixture
def mae() -> Fixture:
    w = Weights()
    w.vit("")
    w.linear("decoder_embed", 192, 64)
    w.normal("mask_token", 1, 1, 64)
    w.normal("decoder_pos_embed", 1, 17, 64)
    w.linear("decoder_blocks.0.attn.qkv", 64, 192)
    w.ln("decoder_norm", 64)
    w.linear("decoder_pred", 64, 192)
    return Fixture(
        "mae",
        {"model": w, "optimizer": optimizer(), "epoch": 799, "scaler": {},
         "args": argparse.Namespace(model="mae_vit_base_patch16", output_dir=Path("/a"))},
        {("encoder", "backbone"): functools.partial(w.run_vit, "")},
    )  # fmt: skip


def layer_scales(w: Weights, prefix: str, block: Callable[[int], str]) -> None:
    for i in range(2):
        w.uniform(f"{prefix}{block(i)}.ls1.gamma", 192)
        w.uniform(f"{prefix}{block(i)}.ls2.gamma", 192)


@fixture
def dinov2_dump() -> Fixture:
    """Blocks in chunks: the chunk's number, then the block's own."""
    w = Weights()
    chunked = "blocks.{0}.{0}".format
    w.vit("teacher.backbone.", block=chunked)
    layer_scales(w, "teacher.backbone.", chunked)
    w.normal("teacher.backbone.mask_token", 1, 192)
    dino_head(w, "teacher.dino_head", 192)
    dino_head(w, "teacher.ibot_head", 192)
    trunk = functools.partial(w.run_vit, "teacher.backbone.", block=chunked)
    return Fixture(
        "dinov2",
        {"teacher": part(w, "teacher.")},
        {
            ("teacher", "backbone"): trunk,
            ("teacher", "projector"): lambda x: run_dino(w, "teacher.dino_head", trunk(x)),
        },
        file="teacher_checkpoint.pth",
    )


@fixture
def dinov2_hub() -> Fixture:
    w = Weights()
    w.vit("")
    layer_scales(w, "", "blocks.{}".format)
    w.normal("mask_token", 1, 192)
    embed: dict[tuple[str, str], Embed] = {
        ("teacher", "backbone"): functools.partial(w.run_vit, "")
    }
    return Fixture("dinov2-hub", dict(w), embed, file="dinov2_vits14_pretrain.pth")


@fixture
def solo_learn_byol() -> Fixture:
    """Two branches, a predictor, probes, a CIFAR stem of padding 2."""
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, m in (("student", ""), ("teacher", "momentum_")):
        w.resnet(f"{m}backbone.", kernel=3)
        w.linear(f"{m}classifier", 16, 10)
        p = f"{m}projector."
        w.linear(p + "0", 16, 24)
        w.bn(p + "1", 24)
        w.linear(p + "3", 24, 12)
        trunk = functools.partial(w.run_resnet, f"{m}backbone.", padding=2)
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, p=p, t=trunk: mlp(  # type: ignore[misc]
            w, t(x), p + "0", f"bn {p}1", "act", p + "3"
        )
    w.linear("predictor.0", 12, 24)
    w.bn("predictor.1", 24)
    w.linear("predictor.3", 24, 12)
    projector = embed["student", "projector"]
    embed["student", "predictor"] = lambda x: mlp(
        w, projector(x), "predictor.0", "bn predictor.1", "act", "predictor.3"
    )
    return Fixture("solo-learn", lightning(w), embed, file="byol-cifar-ep=999.ckpt")


@fixture
def solo_learn_vicreg() -> Fixture:
    """The last Linear has a bias here; functools.partial among the schedules."""
    w = Weights()
    w.resnet("backbone.")
    w.linear("classifier", 16, 10)
    official_head(w, "projector", bias=True, last_bias=True)
    backbone = functools.partial(w.run_resnet, "backbone.")
    return Fixture(
        "solo-learn",
        lightning(w, lr_schedulers=[{"lr_lambdas": [functools.partial(max, 1)]}]),
        {
            ("student", "backbone"): backbone,
            ("student", "projector"): lambda x: run_official(w, "projector", backbone(x)),
        },
        file="vicreg.ckpt",
    )


@fixture
def solo_learn_old() -> Fixture:
    w = Weights()
    w.resnet("encoder.")
    w.linear("classifier", 16, 10)
    w.linear("projector.0", 16, 16)
    w.linear("projector.2", 16, 12)
    backbone = functools.partial(w.run_resnet, "encoder.")
    return Fixture(
        "solo-learn-old",
        lightning(w),
        {
            ("student", "backbone"): backbone,
            ("student", "projector"): lambda x: mlp(
                w, backbone(x), "projector.0", "act", "projector.2"
            ),
        },
        file="simclr.ckpt",
    )


@fixture
def solo_learn_dino() -> Fixture:
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, m in (("student", ""), ("teacher", "momentum_")):
        w.vit(f"{m}backbone.")
        dino_head(w, f"{m}head", 192)
        trunk = functools.partial(w.run_vit, f"{m}backbone.")
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, h=f"{m}head", t=trunk: run_dino(w, h, t(x))  # type: ignore[misc]
    w.linear("classifier", 192, 10)
    w.normal("dino_loss_func.center", 1, 40)
    return Fixture("solo-learn-dino", lightning(w), embed, file="dino.ckpt")


@fixture
def lightly_simclr() -> Fixture:
    w = Weights()
    w.resnet("backbone.")
    p = "projection_head.layers."
    w.linear(p + "0", 16, 24, bias=False)
    w.bn(p + "1", 24)
    w.linear(p + "3", 24, 12, bias=False)
    w.bn(p + "4", 12)
    w.linear("online_classifier.linear", 16, 10)
    backbone = functools.partial(w.run_resnet, "backbone.")
    return Fixture(
        "lightly",
        lightning(w, hyper_parameters={"batch_size_per_device": 128, "num_classes": 10}),
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(
                w, backbone(x), p + "0", f"bn {p}1", "act", p + "3", f"bn {p}4"
            ),
        },
        file="last.ckpt",
    )


def lightly_pair(format: str, branches: dict[str, tuple[str, str]], predictor: bool) -> Fixture:
    """branches: name -> prefix of backbone and of projection_head."""
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, (b, h) in branches.items():
        w.resnet(b)
        p = f"{h}layers."
        w.linear(p + "0", 16, 24, bias=False)
        w.bn(p + "1", 24)
        w.linear(p + "3", 24, 12)
        trunk = functools.partial(w.run_resnet, b)
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, p=p, t=trunk: mlp(  # type: ignore[misc]
            w, t(x), p + "0", f"bn {p}1", "act", p + "3"
        )
    if predictor:
        q = "prediction_head.layers."
        w.linear(q + "0", 12, 24, bias=False)
        w.bn(q + "1", 24)
        w.linear(q + "3", 24, 12)
        projector = embed["student", "projector"]
        embed["student", "predictor"] = lambda x: mlp(
            w, projector(x), q + "0", f"bn {q}1", "act", q + "3"
        )
    w.linear("online_classifier.linear", 16, 10)
    return Fixture(format, lightning(w), embed, file="last.ckpt")


@fixture
def lightly_byol() -> Fixture:
    names = {
        "student": ("backbone.", "projection_head."),
        "teacher": ("teacher_backbone.", "teacher_projection_head."),
    }
    return lightly_pair("lightly-byol", names, predictor=True)


@fixture
def lightly_moco() -> Fixture:
    names = {
        "student": ("backbone.", "projection_head."),
        "teacher": ("key_backbone.", "key_projection_head."),
    }
    return lightly_pair("lightly-moco", names, predictor=False)


@fixture
def lightly_dino() -> Fixture:
    """The plain names are the teacher's."""
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, s in (("teacher", ""), ("student", "student_")):
        w.resnet(f"{s}backbone.")
        h = f"{s}projection_head"
        p = f"{h}.layers."
        w.linear(p + "0", 16, 24)
        w.linear(p + "2", 24, 24)
        w.linear(p + "4", 24, 16)
        w.weight_norm(f"{h}.last_layer", 16, 40)
        trunk = functools.partial(w.run_resnet, f"{s}backbone.")
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, p=p, t=trunk: mlp(  # type: ignore[misc]
            w, t(x), p + "0", "act", p + "2", "act", p + "4", activation=F.gelu
        )
    w.normal("criterion.center", 1, 1, 40)
    w.linear("online_classifier.linear", 16, 10)
    return Fixture("lightly-dino", lightning(w), embed, file="last.ckpt")


@fixture
def stable_pretraining_simclr() -> Fixture:
    w = Weights()
    w.resnet("backbone.", kernel=3)
    for i, (into, out) in enumerate(((16, 24), (24, 24), (24, 12))):
        w.linear(f"projector.{3 * i}", into, out, bias=False)
        w.bn(f"projector.{3 * i + 1}", out)
    w.linear("callbacks_modules.linear_probe", 16, 10)
    p = "projector."
    backbone = functools.partial(w.run_resnet, "backbone.", padding=1)
    steps = (p + "0", f"bn {p}1", "act", p + "3", f"bn {p}4", "act", p + "6", f"bn {p}7")
    return Fixture(
        "stable-pretraining",
        lightning(w, spt_run_dir="/runs/1", hyper_parameters={"system": {"working_dir": "/"}}),
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(w, backbone(x), *steps),
        },
        file="last.ckpt",
        ignored=("callbacks_modules.linear_probe",),
    )


def spt_pair(format: str, dino: bool) -> Fixture:
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch in ("teacher", "student"):
        w.resnet(f"backbone.{branch}.")
        p = f"projector.{branch}."
        w.linear(p + "0", 16, 24)
        if dino:
            w.linear(p + "2", 24, 24)
            w.linear(p + "4", 24, 12)
            w.linear(p + "6", 12, 40, bias=False)
            steps = (p + "0", "act", p + "2", "act", p + "4")
        else:
            w.bn(p + "1", 24)
            w.linear(p + "3", 24, 12)
            steps = (p + "0", f"bn {p}1", "act", p + "3")
        trunk = functools.partial(w.run_resnet, f"backbone.{branch}.")
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, s=steps, t=trunk: mlp(  # type: ignore[misc]
            w, t(x), *s, activation=F.gelu if dino else F.relu
        )
    if not dino:
        w.linear("predictor.0", 12, 24)
        w.bn("predictor.1", 24)
        w.linear("predictor.3", 24, 12)
        projector = embed["student", "projector"]
        embed["student", "predictor"] = lambda x: mlp(
            w, projector(x), "predictor.0", "bn predictor.1", "act", "predictor.3"
        )
    for module in ("backbone", "projector"):
        for name in ("base_ema_coefficient", "final_ema_coefficient", "ema_coefficient"):
            w[f"{module}.{name}"] = torch.tensor(0.99)
    return Fixture(format, lightning(w, spt_run_dir="/runs/1"), embed, file="last.ckpt")


@fixture
def stable_pretraining_byol() -> Fixture:
    return spt_pair("stable-pretraining-teacher", dino=False)


@fixture
def stable_pretraining_dino() -> Fixture:
    return spt_pair("stable-pretraining-dino", dino=True)


@fixture
def torchvision_resnet() -> Fixture:
    """A released backbone, or torchvision's own file: nothing but the names of a ResNet."""
    w = Weights()
    w.resnet("", bottleneck=True)
    w.linear("fc", 16, 10)
    embed: dict[tuple[str, str], Embed] = {
        ("encoder", "backbone"): functools.partial(w.run_resnet, "")
    }
    return Fixture("ResNet state dict", dict(w), embed, file="resnet50.pth", ignored=("fc",))


@fixture
def timm_vit() -> Fixture:
    w = Weights()
    w.vit("")
    w.linear("head", 192, 10)
    embed: dict[tuple[str, str], Embed] = {
        ("encoder", "backbone"): functools.partial(w.run_vit, "")
    }
    return Fixture("timm ViT state dict", dict(w), embed, file="vit.pth", ignored=("head",))
