"""Checkpoints as lightly-train saves them: Lightning's, with its own copies of the model."""

from __future__ import annotations

import functools
import sys
import types
from typing import Any

from layouts import (
    Embed,
    Fixture,
    Weights,
    dino_head,
    fixture,
    lightning,
    mlp,
    run_dino,
)
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


class EmbeddingModel(nn.Linear):
    """A module that a pickle names as lightly_train's."""


for name in ("lightly_train", "lightly_train._models", "lightly_train._models.embedding_model"):
    package = sys.modules.setdefault(name, types.ModuleType(name))
package.__file__ = __file__
package.EmbeddingModel = EmbeddingModel  # type: ignore[attr-defined]
EmbeddingModel.__module__ = package.__name__


def saved(w: Weights, mean: list[float] = MEAN, std: list[float] = STD) -> dict[str, Any]:
    about = {
        "version": "0.18.0",
        "date": "2026-08-14T23:55:42+02:00",
        "models": {"model": nn.Linear(4, 4), "embedding_model": EmbeddingModel(4, 4)},
        "normalize_args": {"mean": mean, "std": std},
        "license_info": None,
    }
    return lightning(w, lightly_train=about)


def run_patches(w: Weights, prefix: str, x: Tensor) -> Tensor:
    """Of timm's ViT: the mean of the patch tokens."""
    return w.run_vit(prefix, x, pool="none")[:, 1:].mean(1)


def run_simclr(w: Weights, x: Tensor) -> Tensor:
    p = "projection_head.layers."
    return mlp(w, x, p + "0", f"bn {p}1", "act", p + "3", f"bn {p}4")


def simclr_head(w: Weights, width: int) -> None:
    p = "projection_head.layers."
    w.linear(p + "0", width, 24, bias=False)
    w.bn(p + "1", 24)
    w.linear(p + "3", 24, 12, bias=False)
    w.bn(p + "4", 12)


@fixture
def lightly_train_simclr() -> Fixture:
    """torchvision's ResNet, without its classifier."""
    w = Weights()
    model = "embedding_model.wrapped_model._features."
    w.resnet(model)
    simclr_head(w, 16)
    trunk = functools.partial(w.run_resnet, model)
    embed: dict[tuple[str, str], Embed] = {
        ("encoder", "backbone"): trunk,
        ("encoder", "projector"): lambda x: run_simclr(w, trunk(x)),
    }
    return Fixture("lightly-train", saved(w), embed, file="last.ckpt")


@fixture
def lightly_train_embed_dim() -> Fixture:
    """timm's ViT, with the last layer that the argument embed_dim adds: a 1x1 convolution."""
    w = Weights()
    model = "embedding_model.wrapped_model._model."
    w.vit(model)
    w.linear(f"{model}head", 192, 10)
    w.normal("embedding_model.embed_head.weight", 20, 192, 1, 1)
    w.uniform("embedding_model.embed_head.bias", 20)
    simclr_head(w, 20)

    def trunk(x: Tensor) -> Tensor:
        weight, bias = (w[f"embedding_model.embed_head.{part}"] for part in ("weight", "bias"))
        return F.conv2d(run_patches(w, model, x)[..., None, None], weight, bias).flatten(1)

    embed: dict[tuple[str, str], Embed] = {
        ("encoder", "backbone"): trunk,
        ("encoder", "projector"): lambda x: run_simclr(w, trunk(x)),
    }
    arch = "vit_tiny_patch8 (depth 2, mean of patch tokens, Linear to 20)"
    return Fixture("lightly-train", saved(w), embed, file="last.ckpt", arch=arch)


@fixture
def lightly_train_dino() -> Fixture:
    """timm's ResNet, with its classifier."""
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch in ("teacher", "student"):
        model = f"{branch}_embedding_model.wrapped_model._model."
        w.resnet(model)
        w.linear(f"{model}fc", 16, 10)
        p = f"{branch}_projection_head.layers."
        for at, into, out in (("0", 16, 24), ("2", 24, 24), ("4", 24, 12)):
            w.linear(p + at, into, out)
        w.weight_norm(f"{branch}_projection_head.last_layer", 12, 40)
        trunk = functools.partial(w.run_resnet, model)
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, p=p, t=trunk: mlp(  # type: ignore[misc]
            w, t(x), p + "0", "act", p + "2", "act", p + "4", activation=F.gelu
        )
    w.normal("criterion.center.center", 1, 1, 40)
    return Fixture("lightly-train-dino", saved(w), embed, file="last.ckpt")


@fixture
def lightly_train_dinov2() -> Fixture:
    """The package's own ViT, with a mask token, whose class token is the embedding."""
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch in ("teacher", "student"):
        model = f"{branch}_embedding_model.wrapped_model._model."
        w.vit(model)
        w.normal(f"{model}mask_token", 1, 192)
        dino_head(w, f"{branch}_head.dino_head", 192, new=True)
        dino_head(w, f"{branch}_head.ibot_head", 192, new=True)
        w.linear(f"{branch}_paka_head.0", 192, 24)  # of DINOv3.1
        trunk = functools.partial(w.run_vit, model)
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, b=branch, t=trunk: run_dino(  # type: ignore[misc]
            w, f"{b}_head.dino_head", t(x)
        )
    for loss in ("dino", "ibot"):
        w.normal(f"{loss}_loss.center", 1, 40)
    return Fixture("lightly-train-dinov2", saved(w), embed, file="last.ckpt")


@fixture
def lightly_train_distillation() -> Fixture:
    """The third version: a head for images, which is used, and one for patches."""
    w = Weights()
    model = "student_embedding_model.wrapped_model._features."
    w.resnet(model)
    for kind in ("global", "local"):
        w.linear(f"student_projection_head_{kind}", 16, 12)
    w.normal("teacher_queue", 4, 12)
    trunk = functools.partial(w.run_resnet, model)
    embed: dict[tuple[str, str], Embed] = {
        ("student", "backbone"): trunk,
        ("student", "projector"): lambda x: w.lin("student_projection_head_global", trunk(x)),
    }
    return Fixture("lightly-train-distillation", saved(w), embed, file="last.ckpt")


@fixture
def lightly_train_distillation_2() -> Fixture:
    """The second version, with a head for patches alone; here with its frozen teacher.

    The mean of patch tokens for timm's ViT, the class token for the DINOv2 ViT.
    """
    w = Weights()
    student, teacher = "student_embedding_model.wrapped_model._model.", "teacher_embedding_model."
    w.vit(student)
    w.linear("student_projection_head.mlp", 192, 192)
    w.vit(teacher)
    w.normal(f"{teacher}mask_token", 1, 192)
    embed: dict[tuple[str, str], Embed] = {
        ("student", "backbone"): functools.partial(run_patches, w, student),
        ("teacher", "backbone"): functools.partial(w.run_vit, teacher),
    }
    return Fixture("lightly-train-distillation", saved(w), embed, file="last.ckpt")


@fixture
def lightly_train_densecl() -> Fixture:
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, encoder in (("student", "query_encoder"), ("teacher", "key_encoder")):
        model = f"{encoder}.embedding_model.wrapped_model._features."
        w.resnet(model)
        for kind in ("local", "global"):
            w.linear(f"{encoder}.{kind}_projection_head.layers.0", 16, 24)
            w.linear(f"{encoder}.{kind}_projection_head.layers.2", 24, 12)
        p = f"{encoder}.global_projection_head.layers."
        trunk = functools.partial(w.run_resnet, model)
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, p=p, t=trunk: mlp(  # type: ignore[misc]
            w, t(x), p + "0", "act", p + "2"
        )
    return Fixture("lightly-train-densecl", saved(w), embed, file="last.ckpt")
