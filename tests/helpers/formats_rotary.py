"""DINOv3, CAPI and V-JEPA 2 as their authors' code and Hugging Face save them."""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import literal
import torch
from formats_transformers import Folder
from layouts import Embed, Fixture, Weights, fixture, mlp, optimizer, part, wrapped
from torch import Tensor
from torch.nn import functional as F

HEADS, EPS = 2, 1e-5
WIDTH, PATCH, HIDDEN = 32, 8, 48


@dataclass
class Names:
    """Of the parts of a block."""

    norms: tuple[str, str]
    inputs: tuple[str, ...]  # queries, keys, values, in one layer or three
    proj: str
    up: str
    down: str
    gate: str = ""
    scales: tuple[str, ...] = ()
    neighbours: bool = False  # whether pairs are neighbours, and not half a head apart


NORMS = ("norm1", "norm2")
DINOV3 = Names(
    *(NORMS, ("attn.qkv",), "attn.proj", "mlp.fc1", "mlp.fc2"), scales=("ls1.gamma", "ls2.gamma")
)
DINOV3_SWIGLU = Names(
    *(NORMS, ("attn.qkv",), "attn.proj", "mlp.w2", "mlp.w3", "mlp.w1", DINOV3.scales)
)
HF_DINOV3 = Names(
    NORMS,
    ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    *("attention.o_proj", "mlp.up_proj", "mlp.down_proj", "mlp.gate_proj"),
    ("layer_scale1.lambda1", "layer_scale2.lambda1"),
)
CAPI = Names(
    ("residual1.norm", "residual2.norm"),
    ("residual1.fn.q_proj", "residual1.fn.k_proj", "residual1.fn.v_proj"),
    *("residual1.fn.proj", "residual2.fn.fc1", "residual2.fn.fc2"),
)
VJEPA2 = Names(NORMS, ("attn.qkv",), "attn.proj", "mlp.fc1", "mlp.fc2", neighbours=True)
HF_VJEPA2 = Names(
    NORMS,
    ("attention.query", "attention.key", "attention.value"),
    *("attention.proj", "mlp.fc1", "mlp.fc2"),
    neighbours=True,
)


def add_block(
    w: Weights, at: str, n: Names, width: int, bias: bool = True, ln: bool = True
) -> None:
    for norm in n.norms:
        w.uniform(f"{at}.{norm}.weight", width, low=0.5, high=1.5)
        if ln:
            w.uniform(f"{at}.{norm}.bias", width)
    for name in n.inputs:
        w.linear(f"{at}.{name}", width, width * 3 // len(n.inputs), bias)
    w.linear(f"{at}.{n.proj}", width, width, bias)
    for name in filter(None, (n.up, n.gate)):
        w.linear(f"{at}.{name}", width, HIDDEN, bias)
    w.linear(f"{at}.{n.down}", HIDDEN, width, bias)
    for name in n.scales:
        w.uniform(f"{at}.{name}", width)


def norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    """A LayerNorm; an RMSNorm if it has no bias, without weights if it has none either."""
    weight, bias = w.get(f"{name}.weight"), w.get(f"{name}.bias")
    if bias is not None:
        return literal.norm(x, weight, bias, eps)
    x = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return x if weight is None else x * weight


def rotated(x: Tensor, angles: Tensor, neighbours: bool) -> Tensor:
    """x [b, n, heads, d]: number j and its partner turn by the angle of j, in the last tokens."""
    d = x.shape[-1]
    partner = [j ^ 1 if neighbours else (j + d // 2) % d for j in range(d)]
    sign = torch.tensor([-1.0 if partner[j] > j else 1.0 for j in range(d)])
    first = x.shape[1] - len(angles)
    a, y = angles[:, None], x[:, first:]
    return torch.cat([x[:, :first], y * a.cos() + sign * y[..., partner] * a.sin()], dim=1)


def run_block(
    w: Weights, at: str, n: Names, x: Tensor, angles: Tensor, heads: int, eps: float
) -> Tensor:
    y = norm(w, f"{at}.{n.norms[0]}", x, eps)
    masks = [w.get(f"{at}.{name}.bias_mask") for name in n.inputs]
    parts = [
        w.lin(f"{at}.{name}", y) if mask is None
        else F.linear(y, w[f"{at}.{name}.weight"], w[f"{at}.{name}.bias"] * mask)
        for name, mask in zip(n.inputs, masks, strict=True)
    ]  # fmt: skip
    q, k, v = torch.cat(parts, dim=-1).chunk(3, dim=-1)
    q, k = (
        rotated(z.unflatten(-1, (heads, -1)), angles, n.neighbours).flatten(2)  # type: ignore[no-untyped-call]
        for z in (q, k)
    )
    scales = [w[f"{at}.{name}"] for name in n.scales] or [torch.ones(()), torch.ones(())]
    x = x + scales[0] * w.lin(f"{at}.{n.proj}", literal.attend(q, k, v, heads))
    y = norm(w, f"{at}.{n.norms[1]}", x, eps)
    hidden = w.lin(f"{at}.{n.up}", y)
    hidden = F.silu(w.lin(f"{at}.{n.gate}", y)) * hidden if n.gate else F.gelu(hidden)
    return x + scales[1] * w.lin(f"{at}.{n.down}", hidden)


def dinov3_angles(side: int, periods: Sequence[float]) -> Tensor:
    """Of each patch: those of its row, then of its column, and all of them again."""
    rows = []
    for row in range(side):
        for column in range(side):
            places = [2 * (at + 0.5) / side - 1 for at in (row, column)]
            rows.append([2 * math.pi * place / period for place in places for period in periods])
    return torch.tensor(rows).repeat(1, 2)


def dinov3(w: Weights, p: str, n: Names, depth: int = 1) -> None:
    w.normal(f"{p}cls_token", 1, 1, WIDTH, fan=1)
    w.normal(f"{p}storage_tokens", 1, 4, WIDTH, fan=1)
    w.normal(f"{p}mask_token", 1, WIDTH, fan=1)
    w.normal(f"{p}patch_embed.proj.weight", WIDTH, 3, PATCH, PATCH)
    w.uniform(f"{p}patch_embed.proj.bias", WIDTH)
    w[f"{p}rope_embed.periods"] = 90.0 ** (torch.arange(4) / 4)
    for i in range(depth):
        add_block(w, f"{p}blocks.{i}", n, WIDTH)
        mask = torch.ones(3 * WIDTH)
        mask[WIDTH : 2 * WIDTH] = 0
        w[f"{p}blocks.{i}.attn.qkv.bias_mask"] = mask
    w.ln(f"{p}norm", WIDTH)


def run_dinov3(w: Weights, p: str, n: Names, eps: float, x: Tensor, depth: int = 1) -> Tensor:
    side = x.shape[-1] // PATCH
    x = literal.patches(x, w[f"{p}patch_embed.proj.weight"], w[f"{p}patch_embed.proj.bias"])
    first = [w[f"{p}{name}"].expand(len(x), -1, -1) for name in ("cls_token", "storage_tokens")]
    x = torch.cat([*first, x], dim=1)
    angles = dinov3_angles(side, w[f"{p}rope_embed.periods"].tolist())
    for i in range(depth):
        x = run_block(w, f"{p}blocks.{i}", n, x, angles, HEADS, eps)
    last = "cls_norm" if f"{p}cls_norm.weight" in w else "norm"
    return norm(w, f"{p}{last}", x[:, 0], eps)


def add_head(w: Weights, name: str, width: int = WIDTH) -> None:
    """DINOv2's, with prototypes that have no weight norm."""
    for at, (into, out) in {"0": (width, 24), "2": (24, 24), "4": (24, 16)}.items():
        w.linear(f"{name}.mlp.{at}", into, out)
    w.linear(f"{name}.last_layer", 16, 40, bias=False)


def run_head(w: Weights, name: str, x: Tensor) -> Tensor:
    p = f"{name}.mlp."
    return mlp(w, x, p + "0", "act", p + "2", "act", p + "4", activation=F.gelu)


def convnext(w: Weights, p: str, hf: bool = False) -> None:
    """One block a stage; the norm is saved under two names, except by Hugging Face."""
    down, dw, n, pw = (
        ("stages.{0}.downsample_layers", "depthwise_conv", "layer_norm", "pointwise_conv")
        if hf else ("downsample_layers.{0}", "dwconv", "norm", "pwconv")
    )  # fmt: skip
    dims = (8, 8, 12, 16)
    for stage, width in enumerate(dims):
        at, into = p + down.format(stage), dims[stage - 1]
        conv, ln, side = ("0", "1", 4) if stage == 0 else ("1", "0", 2)
        w.normal(f"{at}.{conv}.weight", width, into if stage else 3, side, side)
        w.uniform(f"{at}.{conv}.bias", width)
        w.ln(f"{at}.{ln}", into if stage else width)
        block = f"{p}stages.{stage}.{'layers.' if hf else ''}0"
        w.uniform(f"{block}.gamma", width)
        w.normal(f"{block}.{dw}.weight", width, 1, 7, 7)
        w.uniform(f"{block}.{dw}.bias", width)
        w.ln(f"{block}.{n}", width)
        w.linear(f"{block}.{pw}1", width, 4 * width)
        w.linear(f"{block}.{pw}2", 4 * width, width)
    w.ln(f"{p}layer_norm" if hf else f"{p}norm", dims[-1])
    if not hf:
        for part_name in ("weight", "bias"):
            w[f"{p}norms.3.{part_name}"] = w[f"{p}norm.{part_name}"]


def run_convnext(w: Weights, p: str, x: Tensor, hf: bool = False, eps: float = 1e-6) -> Tensor:
    down, dw, n, pw = (
        ("stages.{0}.downsample_layers", "depthwise_conv", "layer_norm", "pointwise_conv")
        if hf else ("downsample_layers.{0}", "dwconv", "norm", "pwconv")
    )  # fmt: skip

    def of_channels(name: str, x: Tensor) -> Tensor:
        return norm(w, name, x.movedim(1, -1), eps).movedim(-1, 1)

    def conv(name: str, x: Tensor, **options: Any) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    for stage in range(4):
        at = p + down.format(stage)
        x = of_channels(f"{at}.1", conv(f"{at}.0", x, stride=4)) if stage == 0 else conv(
            f"{at}.1", of_channels(f"{at}.0", x), stride=2)  # fmt: skip
        block = f"{p}stages.{stage}.{'layers.' if hf else ''}0"
        y = of_channels(f"{block}.{n}", conv(f"{block}.{dw}", x, padding=3, groups=x.shape[1]))
        y = w.lin(f"{block}.{pw}2", F.gelu(w.lin(f"{block}.{pw}1", y.movedim(1, -1))))
        x = x + (w[f"{block}.gamma"] * y).movedim(-1, 1)
    return norm(w, f"{p}layer_norm" if hf else f"{p}norm", x.mean((2, 3)), eps)


@fixture
def dinov3_dump() -> Fixture:
    w = Weights()
    dinov3(w, "teacher.backbone.", DINOV3, depth=2)
    w.ln("teacher.backbone.cls_norm", WIDTH)
    add_head(w, "teacher.dino_head")
    add_head(w, "teacher.ibot_head")
    trunk = functools.partial(run_dinov3, w, "teacher.backbone.", DINOV3, 1e-6, depth=2)
    return Fixture(
        "dinov3",
        {"teacher": OrderedDict(part(w, "teacher."))},
        {
            ("teacher", "backbone"): trunk,
            ("teacher", "projector"): lambda x: run_head(w, "teacher.dino_head", trunk(x)),
        },
        file="teacher_checkpoint.pth",
        arch="vit_32_patch8 (depth 2, 4 registers, RoPE)",
    )


def dinov3_convnext_dump() -> Fixture:
    w = Weights()
    convnext(w, "teacher.backbone.")
    add_head(w, "teacher.dino_head", 16)
    add_head(w, "teacher.ibot_head", 16)
    trunk = functools.partial(run_convnext, w, "teacher.backbone.")
    return Fixture(
        "dinov3",
        {"teacher": part(w, "teacher.")},
        {
            ("teacher", "backbone"): trunk,
            ("teacher", "projector"): lambda x: run_head(w, "teacher.dino_head", trunk(x)),
        },
        size=64,
        file="teacher_checkpoint.pth",
        arch="convnext (depths 1-1-1-1, channels 8-8-12-16)",
    )


@fixture
def dinov3_training() -> Fixture:
    """Of a distillation, with a teacher that is not trained, and a gram teacher without heads."""
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    names = {"teacher": "model_ema", "student": "student", "frozen": "teacher"}
    for branch, name in (names | {"gram": "gram_teacher"}).items():
        dinov3(w, f"{name}.backbone.", DINOV3)
        trunk = functools.partial(run_dinov3, w, f"{name}.backbone.", DINOV3, 1e-6)
        embed[branch, "backbone"] = trunk
        if branch != "gram":
            add_head(w, f"{name}.dino_head")
            add_head(w, f"{name}.ibot_head")
            embed[branch, "projector"] = lambda x, n=name, t=trunk: run_head(  # type: ignore[misc]
                w, f"{n}.dino_head", t(x)
            )
    w["dino_loss.center"] = torch.zeros(1, 40)
    w["ibot_patch_loss.center"] = torch.zeros(1, 1, 40)
    tree = {"iteration": 99, "model": w, "optimizer": {"state": {}, "param_groups": []}}
    return Fixture("dinov3-training", tree, embed, file="consolidated.pth")


@fixture
def dinov3_hub() -> Fixture:
    w = Weights()
    dinov3(w, "", DINOV3_SWIGLU)
    w.ln("local_cls_norm", WIDTH)
    return Fixture(
        "dinov3-hub",
        dict(w),
        {("teacher", "backbone"): functools.partial(run_dinov3, w, "", DINOV3_SWIGLU, EPS)},
        file="dinov3_vits16plus_pretrain_lvd1689m-4057cbaa.pth",
        arch="vit_32_patch8 (depth 1, 4 registers, SwiGLU, RoPE)",
        ignored=("mask_token", "local_cls_norm"),
    )


def dinov3_convnext_hub() -> Fixture:
    w = Weights()
    convnext(w, "")
    return Fixture(
        "dinov3-hub",
        dict(w),
        {("teacher", "backbone"): functools.partial(run_convnext, w, "")},
        size=64,
        file="dinov3_convnext_tiny_pretrain_lvd1689m-21b726bb.pth",
        ignored=("norms.3",),
    )


@fixture
def hf_dinov3() -> Fixture:
    """Gated, with queries and values that have a bias, and keys that have none."""
    w = Weights()
    w.normal("embeddings.cls_token", 1, 1, WIDTH, fan=1)
    w.normal("embeddings.register_tokens", 1, 4, WIDTH, fan=1)
    w.normal("embeddings.mask_token", 1, 1, WIDTH, fan=1)
    w.normal("embeddings.patch_embeddings.weight", WIDTH, 3, PATCH, PATCH)
    w.uniform("embeddings.patch_embeddings.bias", WIDTH)
    add_block(w, "layer.0", HF_DINOV3, WIDTH)
    del w["layer.0.attention.k_proj.bias"]
    w.ln("norm", WIDTH)

    def embedding(x: Tensor) -> Tensor:
        side, e = x.shape[-1] // PATCH, "embeddings."
        x = literal.patches(x, w[f"{e}patch_embeddings.weight"], w[f"{e}patch_embeddings.bias"])
        first = [
            w[f"{e}{name}"].expand(len(x), -1, -1) for name in ("cls_token", "register_tokens")
        ]
        x, angles = torch.cat([*first, x], dim=1), dinov3_angles(side, (1, 50**0.5))
        x = run_block(w, "layer.0", HF_DINOV3, x, angles, 4, 1e-3)
        return norm(w, "norm", x[:, 0], 1e-3)

    config = {
        "model_type": "dinov3_vit", "num_attention_heads": 4, "layer_norm_eps": 1e-3,
        "use_gated_mlp": True, "hidden_act": "silu", "rope_theta": 50.0, "hidden_size": WIDTH,
    }  # fmt: skip
    return Folder(
        "hf-dinov3",
        {f"model.{k}" if k.startswith("layer.") else k: t for k, t in w.items()},
        {("teacher", "backbone"): embedding},
        file="pytorch_model.bin",
        config=config,
    )


def hf_dinov3_convnext() -> Fixture:
    w = Weights()
    convnext(w, "", hf=True)
    return Folder(
        "hf-dinov3",
        dict(w),
        {("teacher", "backbone"): functools.partial(run_convnext, w, "", hf=True, eps=1e-3)},
        size=64,
        file="pytorch_model.bin",
        config={"model_type": "dinov3_convnext", "layer_norm_eps": 1e-3, "hidden_act": "gelu"},
    )


@fixture
def capi() -> Fixture:
    """No bias in the linear layers; eight registers around the edge, in its coordinates."""
    w = Weights()
    p = "backbone."
    w.normal(f"{p}mask_token", 1, WIDTH, fan=1)
    w.normal(f"{p}registers", 1, 8, WIDTH, fan=1)
    w.normal(f"{p}patch_embed.weight", WIDTH, 3, PATCH, PATCH)
    w.uniform(f"{p}patch_embed.bias", WIDTH)
    for stack in ("encoder", "decoder"):
        for i in range(2):
            at = f"{p}{stack}.blocks.{i}"
            add_block(w, at, CAPI, WIDTH, bias=False, ln=False)
            w.normal(f"{at}.residual1.fn.rope.freqs", 2, WIDTH // HEADS, fan=1)
    w.linear("head.layer", WIDTH, 40)
    edge = [(0, 0), (0.5, 0), (1, 0), (1, 0.5), (1, 1), (0.5, 1), (0, 1), (0, 0.5)]

    def embedding(x: Tensor) -> Tensor:
        line = torch.linspace(0, 1, x.shape[-1] // PATCH).tolist()
        inside = [(row, column) for row in line for column in line]
        around = [(row * line[-1], column * line[-1]) for row, column in edge]
        places = torch.tensor([*around, *inside])
        x = literal.patches(x, w[f"{p}patch_embed.weight"], w[f"{p}patch_embed.bias"])
        x = torch.cat([w[f"{p}registers"].expand(len(x), -1, -1), x], dim=1)
        for i in range(2):
            at = f"{p}encoder.blocks.{i}"
            angles = places @ w[f"{at}.residual1.fn.rope.freqs"]
            x = run_block(w, at, CAPI, x, angles, HEADS, EPS)
        return norm(w, "", x[:, 8:], EPS).mean(1)

    return Fixture(
        "capi",
        dict(w),
        {("encoder", "backbone"): embedding},
        file="capi_vitl14_in1k.pth",
        arch="vit_32_patch8 (depth 2, 8 registers, no class token, RoPE)",
        ignored=("backbone.mask_token", "backbone.decoder", "head.layer"),
    )


def vjepa2_angles(side: int, head_width: int, times: int = 1) -> Tensor:
    """Of frame, row and column; the numbers that are left over are not rotated."""
    number = head_width // 3 // 2
    rows = []
    for place in torch.cartesian_prod(*(torch.arange(n) for n in (times, side, side))).tolist():
        row = [at / 10000 ** (j % number / number) for at in place for j in range(2 * number)]
        rows.append(row + [0.0] * (head_width - len(row)))
    return torch.tensor(rows)


def run_vjepa2(
    w: Weights, names: tuple[str, str, str], n: Names, heads: int, x: Tensor, frames: int = 2
) -> Tensor:
    """names: of the patch embedding, of a block, of the last norm."""
    patches, block, last = names
    weight, side, times = w[f"{patches}.weight"], x.shape[-1] // PATCH, frames // 2
    x = sum(literal.patches(x, weight[:, :, at], torch.zeros(128)) for at in range(2))  # type: ignore[assignment]
    x = (x + w[f"{patches}.bias"]).repeat(1, times, 1)
    x = run_block(w, block, n, x, vjepa2_angles(side, 128 // heads, times), heads, 1e-6)
    return norm(w, last, x, 1e-6).mean(1)


def add_vjepa2(w: Weights, names: tuple[str, str, str], n: Names) -> None:
    w.normal(f"{names[0]}.weight", 128, 3, 2, PATCH, PATCH)
    w.uniform(f"{names[0]}.bias", 128)
    add_block(w, names[1], n, 128)
    w.ln(names[2], 128)


def vjepa2_pair(released: bool) -> Fixture:
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, name in (("teacher", "target_encoder"), ("student", "encoder")):
        p = f"{name}.backbone."
        names = (f"{p}patch_embed.proj", f"{p}blocks.0", f"{p}norm")
        add_vjepa2(w, names, VJEPA2)
        if released:
            w.normal(f"{p}pos_embed", 1, 128, 128, fan=1)
        embed[branch, "backbone"] = functools.partial(run_vjepa2, w, names, VJEPA2, 2)
    w.linear("predictor.backbone.predictor_embed", 128, 24)
    for at in range(10 if released else 2):
        w.normal(f"predictor.backbone.mask_tokens.{at}", 1, 1, 24)
    tree: dict[str, Any] = {
        name: wrapped(part(w, f"{name}.")) for name in ("encoder", "predictor", "target_encoder")
    }
    more = {"opt": optimizer(), "scaler": None, "epoch": 9, "loss": 0.4, "lr": 5e-4}
    return Fixture(
        "vjepa2-released" if released else "vjepa2",
        tree | more,
        embed,
        file="vitl.pt" if released else "latest.pt",
        arch="vit_128_patch8 (depth 1, no class token, 2 frames a patch, RoPE)",
    )


@fixture
def vjepa2() -> Fixture:
    return vjepa2_pair(released=False)


@fixture
def vjepa2_released() -> Fixture:
    return vjepa2_pair(released=True)


@fixture
def hf_vjepa2() -> Fixture:
    w = Weights()
    names = (
        "encoder.embeddings.patch_embeddings.proj", "encoder.layer.0", "encoder.layernorm",
    )  # fmt: skip
    add_vjepa2(w, names, HF_VJEPA2)
    w.linear("predictor.embeddings.predictor_embeddings", 128, 24)
    return Folder(
        "hf-vjepa2",
        dict(w),
        {("teacher", "backbone"): functools.partial(run_vjepa2, w, names, HF_VJEPA2, 4)},
        file="pytorch_model.bin",
        config={"model_type": "vjepa2", "num_attention_heads": 4, "layer_norm_eps": 1e-6},
        ignored=("predictor",),
    )
