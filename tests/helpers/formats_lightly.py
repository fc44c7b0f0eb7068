"""Checkpoints as Lightly's modules and examples save them."""

from __future__ import annotations

import dataclasses
import functools

from layouts import (
    Embed,
    Fixture,
    Weights,
    fixture,
    lightning,
    mlp,
)
from torch.nn import functional as F


@fixture
def lightly_simclr() -> Fixture:
    w = Weights()
    w.resnet("backbone.")
    p = "projection_head.layers."
    w.linear(p + "0", 16, 24, bias=False)
    w.bn(p + "1", 24)
    w.linear(p + "3", 24, 12, bias=False)
    w.bn(p + "4", 12)
    w.linear("online_classifier.classification_head", 16, 10)
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


@fixture
def lightly_mae() -> Fixture:
    w = Weights()
    w.vit("backbone.vit.")
    w.linear("backbone.vit.head", 192, 10)
    w.normal("backbone.mask_token", 1, 1, 192)
    w.linear("decoder_embed", 192, 96)
    w.normal("decoder.mask_token", 1, 1, 96)
    w.normal("decoder.pos_embed", 1, 17, 96)
    w.vit_block("decoder.blocks.0", 96)
    w.ln("decoder.norm", 96)
    w.linear("prediction_head", 96, 192)
    backbone: Embed = functools.partial(w.run_vit, "backbone.vit.")
    embed = {("encoder", "backbone"): backbone}
    return Fixture("lightly-mae", lightning(w), embed, file="last.ckpt")


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
    w.linear("online_classifier.classification_head", 16, 10)
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
def lightly_moco_query() -> Fixture:
    """The plain names are the key encoder's, which moves behind the query encoder."""
    names = {
        "teacher": ("backbone.", "projection_head."),
        "student": ("query_backbone.", "query_projection_head."),
    }
    return lightly_pair("lightly-moco-query", names, predictor=False)


@fixture
def lightly_tico() -> Fixture:
    names = {
        "teacher": ("backbone.", "projection_head."),
        "student": ("student_backbone.", "student_projection_head."),
    }
    return lightly_pair("lightly-tico", names, predictor=False)


def by_place(fixture: Fixture) -> Fixture:
    """The same with backbones that are the children of a ResNet, in a Sequential."""
    places = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    weights = {}
    for name, tensor in fixture.tree["state_dict"].items():
        first, second, rest = name.split(".", 2) if name.count(".") > 1 else (name, "", "")
        if "backbone" in first:
            name = f"{first}.{places[second]}.{rest}"
        weights[name] = tensor
    return dataclasses.replace(fixture, tree=lightning(weights))


@fixture
def lightly_moco_example() -> Fixture:
    names = {
        "student": ("backbone.", "projection_head."),
        "teacher": ("backbone_momentum.", "projection_head_momentum."),
    }
    return by_place(lightly_pair("lightly-moco-example", names, predictor=False))


@fixture
def lightly_byol_example() -> Fixture:
    names = {
        "student": ("backbone.", "projection_head."),
        "teacher": ("backbone_momentum.", "projection_head_momentum."),
    }
    return by_place(lightly_pair("lightly-byol-example", names, predictor=True))


def lightly_dino_pair(format: str, branches: dict[str, tuple[str, str]], vit: bool) -> Fixture:
    """branches: name -> prefix of backbone and of head, first the one that is evaluated."""
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, (b, h) in branches.items():
        trunk = functools.partial(w.run_vit if vit else w.run_resnet, b)
        (w.vit if vit else w.resnet)(b)
        p = f"{h}layers."
        w.linear(p + "0", 192 if vit else 16, 24)
        w.linear(p + "2", 24, 24)
        w.linear(p + "4", 24, 16)
        w.weight_norm(f"{h}last_layer", 16, 40)
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, p=p, t=trunk: mlp(  # type: ignore[misc]
            w, t(x), p + "0", "act", p + "2", "act", p + "4", activation=F.gelu
        )
    w.normal("criterion.center", 1, 1, 40)
    w.linear("online_classifier.classification_head", 192 if vit else 16, 10)
    return Fixture(format, lightning(w), embed, file="last.ckpt")


@fixture
def lightly_dino() -> Fixture:
    """The plain names are the teacher's."""
    names = {
        "teacher": ("backbone.", "projection_head."),
        "student": ("student_backbone.", "student_projection_head."),
    }
    return lightly_dino_pair("lightly-dino", names, vit=False)


@fixture
def lightly_dino_example() -> Fixture:
    names = {
        "teacher": ("teacher_backbone.", "teacher_head."),
        "student": ("student_backbone.", "student_head."),
    }
    return by_place(lightly_dino_pair("lightly-dino-example", names, vit=False))


@fixture
def lightly_dinov2() -> Fixture:
    """timm's ViT in a wrapper with a mask token; one head under two names."""
    names = {
        "teacher": ("teacher_backbone.vit.", "teacher_dino_head._dino_head."),
        "student": ("student_backbone.vit.", "student_dino_head._dino_head."),
    }
    actual = lightly_dino_pair("lightly-dinov2", names, vit=True)
    weights = actual.tree["state_dict"]
    for branch in names:
        weights.normal(f"{branch}_backbone.mask_token", 1, 1, 192)
        weights.linear(f"{branch}_backbone.vit.head", 192, 10)
        for name in [name for name in weights if name.startswith(f"{branch}_dino_head")]:
            weights[name.replace("dino_head", "ibot_head")] = weights[name]
    return actual
