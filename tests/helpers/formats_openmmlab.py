"""Checkpoints as mmpretrain, mmselfsup and SimMIM save them."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import literal
import torch
from beit_forward import beit_blocks, beit_shapes, index
from layouts import Embed, Fixture, Weights, fixture, mlp, optimizer
from swin_forward import swin_embedding, swin_weights

NAMES = (  # timm's -> mmpretrain's
    ("blocks.", "layers."), ("patch_embed.proj.", "patch_embed.projection."),
    (".norm1.", ".ln1."), (".norm2.", ".ln2."), (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."), (".ls1.gamma", ".attn.gamma1.weight"),
    (".ls2.gamma", ".ffn.gamma2.scale"),
)  # fmt: skip


def mm_name(name: str) -> str:
    for timm, mm in NAMES:
        name = name.replace(timm, mm)
    parent, _, rest = name.rpartition("norm.")
    return f"{parent}ln1.{rest}" if rest in ("weight", "bias") and "layers" not in name else name


def saved(weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "meta": {"epoch": 200, "iter": 4, "cfg": "model = dict()", "mmengine_version": "0.10.7"},
        "state_dict": weights,
        "message_hub": {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}},
        "optimizer": optimizer(),
        "param_schedulers": [],
    } | more


def neck(w: Weights, name: str, widths: tuple[int, ...], affine: bool = True) -> tuple[str, ...]:
    """NonLinearNeck: a BatchNorm after each Linear layer; returns its steps."""
    steps: list[str] = []
    for at, (into, out) in enumerate(itertools.pairwise(widths)):
        last = at == len(widths) - 2
        w.linear(f"{name}.fc{at}", into, out, bias=False)
        w.bn(f"{name}.bn{at}", out, affine=affine or not last)
        steps += [f"{name}.fc{at}", f"bn {name}.bn{at}", "act"]
    return tuple(steps[:-1])


def two_networks(
    format: str, average: str, trunks: dict[str, Embed], w: Weights, steps: dict[str, Any]
) -> Fixture:
    """steps: of the projector of each branch, and of the student's predictor."""
    embed: dict[tuple[str, str], Embed] = {}
    for branch, trunk in trunks.items():
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, s=steps[branch], t=trunk: mlp(w, t(x), *s)  # type: ignore[misc]
        if branch == "student" and "predictor" in steps:
            both = steps[branch] + steps["predictor"]
            embed[branch, "predictor"] = lambda x, s=both, t=trunk: mlp(w, t(x), *s)  # type: ignore[misc]
    names = {name: name.replace(f"{average}.", f"{average}.module.") for name in w}
    tree = {names[name]: tensor for name, tensor in w.items()} | {
        f"{average}.steps": torch.tensor(400)
    }
    return Fixture(format, saved(tree), embed, file="epoch_200.pth")


@fixture
def mmpretrain_simsiam() -> Fixture:
    w = Weights()
    w.resnet("backbone.", bottleneck=True)
    steps = neck(w, "neck", (16, 24, 24, 24), affine=False)
    w.linear("head.predictor.fc0", 24, 8, bias=False)
    w.bn("head.predictor.bn0", 8)
    w.linear("head.predictor.fc1", 8, 24)
    p = "head.predictor."
    predict = (p + "fc0", f"bn {p}bn0", "act", p + "fc1")
    backbone = functools.partial(w.run_resnet, "backbone.")
    return Fixture(
        "mmpretrain",
        saved(w),
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(w, backbone(x), *steps),
            ("encoder", "predictor"): lambda x: mlp(w, backbone(x), *steps, *predict),
        },
        file="epoch_200.pth",
    )


@fixture
def mmpretrain_swav() -> Fixture:
    """The norm is in the file twice."""
    w = Weights()
    w.resnet("backbone.")
    p = "neck.projection_neck."
    w.linear(p + "0", 16, 24)
    w.bn(p + "1", 24)
    w.linear(p + "3", 24, 12)
    w.linear("head.loss_module.prototypes.prototypes0", 12, 30, bias=False)
    twice = {k.replace(p + "1", "neck.norm"): t for k, t in w.items() if k.startswith(p + "1")}
    backbone = functools.partial(w.run_resnet, "backbone.")
    return Fixture(
        "mmpretrain",
        saved(twice | dict(w)),
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(
                w, backbone(x), p + "0", f"bn {p}1", "act", p + "3"
            ),
        },
        file="epoch_200.pth",
        ignored=("neck.norm", "head.loss_module"),
    )


@fixture
def mmpretrain_densecl() -> Fixture:
    """MoCo v2's MLP, and another of convolutions for patches."""
    w = Weights()
    trunks: dict[str, Embed] = {}
    steps: dict[str, Any] = {}
    for branch, b, n in (
        ("student", "backbone.", "neck."), ("teacher", "encoder_k.0.", "encoder_k.1."),
    ):  # fmt: skip
        w.resnet(b, bottleneck=True)
        w.linear(f"{n}mlp.0", 16, 24)
        w.linear(f"{n}mlp.2", 24, 12)
        w.normal(f"{n}mlp2.0.weight", 24, 16, 1, 1)
        w.normal(f"{n}mlp2.2.weight", 12, 24, 1, 1)
        trunks[branch] = functools.partial(w.run_resnet, b)
        steps[branch] = (f"{n}mlp.0", "act", f"{n}mlp.2")
    for name in ("queue", "queue2"):
        w.normal(name, 12, 64)
        w[f"{name}_ptr"] = torch.zeros(1, dtype=torch.int64)
    return two_networks("mmpretrain-moco", "encoder_k", trunks, w, steps)


@fixture
def mmpretrain_byol() -> Fixture:
    """As mmselfsup saved it before 1.0 too: the online network under a second name."""
    w = Weights()
    trunks: dict[str, Embed] = {}
    steps: dict[str, Any] = {}
    for branch, b, n in (
        ("student", "backbone.", "neck"), ("teacher", "target_net.0.", "target_net.1"),
    ):  # fmt: skip
        w.resnet(b)
        steps[branch] = neck(w, n, (16, 24, 12))
        trunks[branch] = functools.partial(w.run_resnet, b)
    steps["predictor"] = neck(w, "head.predictor", (12, 24, 12))
    made = two_networks("mmpretrain-byol", "target_net", trunks, w, steps)
    state = made.tree["state_dict"]
    online = {f"online_net.0.{k[9:]}": t for k, t in w.items() if k.startswith("backbone.")}
    made.tree["state_dict"] = state | online
    return made


@fixture
def mmpretrain_moco_v3() -> Fixture:
    """12 heads in the tiny ViT too."""
    w = Weights()
    trunks: dict[str, Embed] = {}
    steps: dict[str, Any] = {}
    for branch, b, n in (
        ("student", "backbone.", "neck"), ("teacher", "momentum_encoder.0.", "momentum_encoder.1"),
    ):  # fmt: skip
        w.vit(b)
        steps[branch] = neck(w, n, (192, 24, 24, 12), affine=False)
        trunks[branch] = functools.partial(w.run_vit, b, heads=12)
    steps["predictor"] = neck(w, "head.predictor", (12, 24, 12), affine=False)
    made = two_networks("mmpretrain-moco-v3", "momentum_encoder", trunks, w, steps)
    made.tree["state_dict"] = {mm_name(k): t for k, t in made.tree["state_dict"].items()}
    return made


@fixture
def mmpretrain_mae() -> Fixture:
    w = Weights()
    w.vit("backbone.")
    for i in range(2):
        for part in ("ls1", "ls2"):
            w.uniform(f"backbone.blocks.{i}.{part}.gamma", 192)
    backbone = functools.partial(w.run_vit, "backbone.")
    state = {mm_name(name): tensor for name, tensor in w.items()}
    state |= {f"neck.{name}": torch.ones(1, 1, 64) for name in ("mask_token", "decoder_pos_embed")}
    w.linear("neck.decoder_embed", 192, 64)
    state |= {name: tensor for name, tensor in w.items() if name.startswith("neck.")}
    return Fixture(
        "mmpretrain-masked", saved(state), {("encoder", "backbone"): backbone}, file="epoch_300.pth"
    )


def beit_weights(**parts: bool) -> tuple[dict[str, torch.Tensor], Embed]:
    """Of a BEiT of 4 x 4 patches, and the mean of its patch tokens after the norm."""
    w = literal.random_weights(beit_shapes(**parts))

    def embed(x: torch.Tensor) -> torch.Tensor:
        return literal.normed(beit_blocks(w, x)[-1], w, "norm", 1e-6)[:, 1:].mean(1)

    return w, embed


@fixture
def mmpretrain_beit() -> Fixture:
    w, embed = beit_weights(shared=False, tables=True)
    state = {mm_name(f"backbone.{name}"): tensor for name, tensor in w.items()}
    state |= {f"backbone.layers.{i}.attn.relative_position_index": index() for i in range(3)}
    state |= {"head.cls_head.weight": torch.ones(50, 24), "head.cls_head.bias": torch.ones(50)}
    return Fixture(
        "mmpretrain-masked",
        saved(state),
        {("encoder", "backbone"): embed},
        size=16,
        file="epoch_300.pth",
    )


@fixture
def simmim_vit() -> Fixture:
    w, embed = beit_weights()
    state = {f"encoder.{name}": tensor for name, tensor in w.items()}
    state |= {"encoder.rel_pos_bias.relative_position_index": index()}
    state |= {"decoder.0.weight": torch.ones(48, 24, 1, 1), "decoder.0.bias": torch.ones(48)}
    return Fixture(
        "simmim",
        {"model": state, "optimizer": optimizer(), "max_accuracy": 0.0, "epoch": 799},
        {("encoder", "backbone"): embed},
        size=16,
        file="ckpt_epoch_799.pth",
    )


@fixture
def simmim_swin() -> Fixture:
    w = swin_weights()
    state = {f"encoder.{name}": tensor for name, tensor in w.items()}
    state |= {"encoder.mask_token": torch.ones(1, 1, 12), "decoder.0.bias": torch.ones(48)}
    state |= {"encoder.layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}
    state |= {"decoder.0.weight": torch.ones(48, 24, 1, 1)}
    return Fixture(
        "simmim",
        {"model": state, "optimizer": optimizer(), "max_accuracy": 0.0, "epoch": 99},
        {("encoder", "backbone"): functools.partial(swin_embedding, w)},
        size=16,
        file="ckpt_epoch_99.pth",
    )
