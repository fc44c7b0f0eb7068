"""Checkpoints as solo-learn saves them."""

from __future__ import annotations

import functools

import torch
from layouts import (
    Embed,
    Fixture,
    Weights,
    dino_head,
    fixture,
    lightning,
    mlp,
    official_head,
    run_dino,
    run_official,
    script_function,
)
from swin_forward import swin_embedding, swin_weights
from torch import Tensor
from torch.nn import functional as F


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


def solo_dino(format: str, trunk_name: str) -> Fixture:
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, m in (("teacher", "momentum_"), ("student", "")):
        w.vit(f"{m}{trunk_name}.")
        dino_head(w, f"{m}head", 192)
        trunk = functools.partial(w.run_vit, f"{m}{trunk_name}.")
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, h=f"{m}head", t=trunk: run_dino(w, h, t(x))  # type: ignore[misc]
    w.linear("classifier", 192, 10)
    w.normal("dino_loss_func.center", 1, 40)
    return Fixture(format, lightning(w), embed, file="dino.ckpt")


@fixture
def solo_learn_dino() -> Fixture:
    return solo_dino("solo-learn-dino", "backbone")


@fixture
def solo_learn_old_dino() -> Fixture:
    return solo_dino("solo-learn-old-dino", "encoder")


@fixture
def solo_learn_simsiam() -> Fixture:
    """A schedule whose get_lr is a function of the library's, bound to the old get_lr."""
    w = Weights()
    w.resnet("backbone.")
    w.linear("classifier", 16, 10)
    w.linear("projector.0", 16, 24, bias=False)
    w.bn("projector.1", 24)
    w.linear("projector.3", 24, 24, bias=False)
    w.bn("projector.4", 24)
    w.linear("projector.6", 24, 12)
    w.bn("projector.7", 12, affine=False)
    w.linear("predictor.0", 12, 6, bias=False)
    w.bn("predictor.1", 6)
    w.linear("predictor.3", 6, 12)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 10)
    static = functools.partial(script_function("static_lr"), get_lr=schedule.get_lr)
    schedule.get_lr = static  # type: ignore[method-assign]
    backbone = functools.partial(w.run_resnet, "backbone.")

    def projector(x: Tensor) -> Tensor:
        return w.norm("projector.7", run_official(w, "projector", backbone(x)))

    return Fixture(
        "solo-learn",
        lightning(w, lr_schedulers=[schedule.state_dict()]),
        {
            ("student", "backbone"): backbone,
            ("student", "projector"): projector,
            ("student", "predictor"): lambda x: mlp(
                w, projector(x), "predictor.0", "bn predictor.1", "act", "predictor.3"
            ),
        },
        file="simsiam.ckpt",
    )


@fixture
def solo_learn_mae() -> Fixture:
    """12 heads in the tiny ViT too, where other methods of the library have 3."""
    w = Weights()
    w.vit("backbone.")
    w.linear("classifier", 192, 10)
    w.normal("decoder.mask_token", 1, 1, 64)
    w.normal("decoder.decoder_pos_embed", 1, 17, 64)
    w.linear("decoder.decoder_embed", 192, 64)
    w.ln("decoder.decoder_norm", 64)
    w.linear("decoder.decoder_pred", 64, 192)
    backbone = functools.partial(w.run_vit, "backbone.", heads=12)
    return Fixture(
        "solo-learn-mae", lightning(w), {("encoder", "backbone"): backbone}, file="m.ckpt"
    )


def solo_simclr(w: Weights, width: int, backbone: Embed, file: str, size: int = 32) -> Fixture:
    """Of a backbone by its weights: with a probe, and SimCLR's projector."""
    w.linear("classifier", width, 10)
    w.linear("projector.0", width, 16)
    w.linear("projector.2", 16, 12)
    return Fixture(
        "solo-learn",
        lightning(w),
        {
            ("student", "backbone"): backbone,
            ("student", "projector"): lambda x: mlp(
                w, backbone(x), "projector.0", "act", "projector.2"
            ),
        },
        file=file,
        size=size,
    )


def convolution(w: Weights, name: str, out: int, into: int, kernel: int) -> None:
    w.normal(f"{name}.weight", out, into, kernel, kernel)
    w.uniform(f"{name}.bias", out, low=-0.5, high=0.5)


def convolved(w: Weights, name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=groups)


@fixture
def solo_learn_wide_resnet() -> Fixture:
    """Of the first layers of blocks, only that of block 1 activates its input."""
    w = Weights()
    b = "backbone."
    widths = (4, 8, 12, 16)
    convolution(w, f"{b}conv1", widths[0], 3, 3)
    for block in (1, 2, 3):
        for layer, into in enumerate((widths[block - 1], widths[block])):
            name = f"{b}block{block}.layer.{layer}"
            w.bn(f"{name}.bn1", into)
            convolution(w, f"{name}.conv1", widths[block], into, 3)
            w.bn(f"{name}.bn2", widths[block])
            convolution(w, f"{name}.conv2", widths[block], widths[block], 3)
            if layer == 0:
                convolution(w, f"{name}.convShortcut", widths[block], into, 1)
    w.bn(f"{b}bn1", widths[-1])

    def activated(name: str, x: Tensor) -> Tensor:
        parts = (w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        mean, variance, weight, bias = (part.view(-1, 1, 1) for part in parts)
        x = (x - mean) / (variance + 0.001).sqrt() * weight + bias
        return torch.where(x > 0, x, 0.1 * x)

    def backbone(x: Tensor) -> Tensor:
        x = convolved(w, f"{b}conv1", x)
        for block, stride in (("block1", 1), ("block2", 2), ("block3", 2)):
            for layer, first in ((f"{b}{block}.layer.0", True), (f"{b}{block}.layer.1", False)):
                inner = activated(f"{layer}.bn1", x) if block == "block1" or not first else x
                shortcut = x
                if first:
                    shortcut = convolved(w, f"{layer}.convShortcut", inner, stride)
                inner = convolved(w, f"{layer}.conv1", inner, stride if first else 1)
                inner = convolved(w, f"{layer}.conv2", activated(f"{layer}.bn2", inner))
                x = shortcut + inner
        return activated(f"{b}bn1", x).mean((2, 3))

    return solo_simclr(w, 16, backbone, "wide.ckpt")


def map_norm(w: Weights, name: str, x: Tensor, over: tuple[int, ...], eps: float) -> Tensor:
    """A norm of an image over these axes, with a weight and bias a channel."""
    centred = x - x.mean(over, keepdim=True)
    x = centred / (centred.pow(2).mean(over, keepdim=True) + eps).sqrt()
    return x * w[f"{name}.weight"].view(-1, 1, 1) + w[f"{name}.bias"].view(-1, 1, 1)


@fixture
def solo_learn_poolformer() -> Fixture:
    w = Weights()
    b = "backbone."
    convolution(w, f"{b}patch_embed.proj", 4, 3, 7)
    widths = (4, 8, 12, 16)
    for stage, width in enumerate(widths):
        name = f"{b}network.{2 * stage}.0"
        for part in ("norm1", "norm2"):
            w.ln(f"{name}.{part}", width)
        convolution(w, f"{name}.mlp.fc1", 2 * width, width, 1)
        convolution(w, f"{name}.mlp.fc2", width, 2 * width, 1)
        for part in ("layer_scale_1", "layer_scale_2"):
            w.uniform(f"{name}.{part}", width)
        if stage:
            convolution(w, f"{b}network.{2 * stage - 1}.proj", width, widths[stage - 1], 3)
    w.ln(f"{b}norm", 16)

    def pool(x: Tensor) -> Tensor:
        """The mean of the pixels within one of each, in both directions."""
        around = F.unfold(x, 3, padding=1).view(*x.shape[:2], 9, *x.shape[2:]).sum(2)
        counts = F.unfold(torch.ones(1, 1, *x.shape[2:]), 3, padding=1).sum(1)
        return around / counts.view(1, 1, *x.shape[2:])

    def backbone(x: Tensor) -> Tensor:
        proj = f"{b}patch_embed.proj"
        x = F.conv2d(x, w[f"{proj}.weight"], w[f"{proj}.bias"], stride=4, padding=2)
        for stage in range(4):
            if stage:
                x = convolved(w, f"{b}network.{2 * stage - 1}.proj", x, stride=2)
            name = f"{b}network.{2 * stage}.0"
            scales = (w[f"{name}.layer_scale_{i}"].view(-1, 1, 1) for i in (1, 2))
            first, second = scales
            normed = map_norm(w, f"{name}.norm1", x, (1, 2, 3), 1e-5)
            x = x + first * (pool(normed) - normed)
            hidden = convolved(
                w, f"{name}.mlp.fc1", map_norm(w, f"{name}.norm2", x, (1, 2, 3), 1e-5)
            )
            x = x + second * convolved(w, f"{name}.mlp.fc2", F.gelu(hidden))
        return map_norm(w, f"{b}norm", x, (1, 2, 3), 1e-5).mean((2, 3))

    return solo_simclr(w, 16, backbone, "pool.ckpt", size=64)


@fixture
def solo_learn_convnext() -> Fixture:
    w = Weights()
    b = "backbone."
    convolution(w, f"{b}stem.0", 4, 3, 4)
    w.ln(f"{b}stem.1", 4)
    widths = (4, 8, 12, 16)
    for stage, width in enumerate(widths):
        if stage:
            w.ln(f"{b}stages.{stage}.downsample.0", widths[stage - 1])
            convolution(w, f"{b}stages.{stage}.downsample.1", width, widths[stage - 1], 2)
        name = f"{b}stages.{stage}.blocks.0"
        convolution(w, f"{name}.conv_dw", width, 1, 7)
        w.ln(f"{name}.norm", width)
        w.linear(f"{name}.mlp.fc1", width, 4 * width)
        w.linear(f"{name}.mlp.fc2", 4 * width, width)
        w.uniform(f"{name}.gamma", width)
    w.ln(f"{b}head.norm", 16)

    def patches(name: str, x: Tensor) -> Tensor:
        return F.conv2d(
            x, w[f"{name}.weight"], w[f"{name}.bias"], stride=w[f"{name}.weight"].shape[-1]
        )

    def backbone(x: Tensor) -> Tensor:
        x = map_norm(w, f"{b}stem.1", patches(f"{b}stem.0", x), (1,), 1e-6)
        for stage in range(4):
            if stage:
                down = f"{b}stages.{stage}.downsample"
                x = patches(f"{down}.1", map_norm(w, f"{down}.0", x, (1,), 1e-6))
            name = f"{b}stages.{stage}.blocks.0"
            inner = convolved(w, f"{name}.conv_dw", x, groups=x.shape[1])
            inner = map_norm(w, f"{name}.norm", inner, (1,), 1e-6).permute(0, 2, 3, 1)
            inner = w.lin(f"{name}.mlp.fc2", F.gelu(w.lin(f"{name}.mlp.fc1", inner)))
            x = x + (w[f"{name}.gamma"] * inner).permute(0, 3, 1, 2)
        return w.layer_norm(f"{b}head.norm", x.mean((2, 3)))

    return solo_simclr(w, 16, backbone, "convnext.ckpt", size=64)


@fixture
def solo_learn_swin() -> Fixture:
    inner = swin_weights()
    w = Weights.of({f"backbone.{name}": tensor for name, tensor in inner.items()})
    return solo_simclr(w, 24, functools.partial(swin_embedding, inner), "swin.ckpt", size=16)
