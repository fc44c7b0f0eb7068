"""Builds an Embedder from a checkpoint file or from the user's own module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lidar_cli.checkpoints.assign import Modules
from lidar_cli.checkpoints.detect import detect_in
from lidar_cli.checkpoints.families import consistent
from lidar_cli.checkpoints.models import (
    beit,
    convnext,
    data2vec2,
    heads,
    poolformer,
    resnet,
    rope,
    swin,
    untrained,
    user_module,
    vit,
    wide_resnet,
)
from lidar_cli.checkpoints.models.backbone import Backbone, MaskedBackbone
from lidar_cli.checkpoints.models.embedder import Embedder, MaskedEmbedder, ModuleEmbedder
from lidar_cli.checkpoints.models.inner import inner_layers
from lidar_cli.checkpoints.models.weights import fill
from lidar_cli.checkpoints.reading.read import read_checkpoint, read_contents
from lidar_cli.checkpoints.shapes.beit import BeitSpec
from lidar_cli.checkpoints.shapes.convnext import ConvNeXtSpec
from lidar_cli.checkpoints.shapes.data2vec2 import Data2Vec2Spec
from lidar_cli.checkpoints.shapes.heads import MLPSpec, PredictorSpec
from lidar_cli.checkpoints.shapes.inner import InnerLayer, inner_names
from lidar_cli.checkpoints.shapes.poolformer import PoolFormerSpec
from lidar_cli.checkpoints.shapes.resnet import ResNetSpec
from lidar_cli.checkpoints.shapes.rope import RopeViTSpec
from lidar_cli.checkpoints.shapes.spec import CheckpointDescription, ModuleSpec
from lidar_cli.checkpoints.shapes.swin import SwinSpec
from lidar_cli.checkpoints.shapes.vit import ViTSpec
from lidar_cli.checkpoints.shapes.wide_resnet import WideResNetSpec
from lidar_cli.data.factory import input_shape
from lidar_cli.errors import SettingsError
from lidar_cli.settings import PATCHES, ModelSettings

MODULES: dict[type[ModuleSpec], Callable[[Any], nn.Module]] = {
    ResNetSpec: resnet.ResNet,
    SwinSpec: swin.Swin,
    ViTSpec: vit.ViT,
    RopeViTSpec: rope.RopeViT,
    ConvNeXtSpec: convnext.ConvNeXt,
    BeitSpec: beit.Beit,
    Data2Vec2Spec: data2vec2.Data2Vec2,
    PoolFormerSpec: poolformer.PoolFormer,
    WideResNetSpec: wide_resnet.WideResNet,
    MLPSpec: heads.mlp,
    PredictorSpec: heads.Predictor,
}


def open_checkpoint(path: Path, settings: ModelSettings | None = None, **fields: Any) -> Embedder:
    """The Embedder of a checkpoint, on the CPU; `to` moves it.

    fields: of the settings, in place of the values there, such as arch or branch.
    Raises CheckpointError or NoWeights for the file, SettingsError for the settings.
    """
    path, settings = Path(path), dataclasses.replace(settings or ModelSettings(), **fields)
    if settings.arch is not None and settings.model is not None:
        raise SettingsError(
            "--arch and --model both name the architecture; give one of them", code="arch-and-model"
        )
    if settings.model is not None and (settings.format, settings.branch) != ("auto", "auto"):
        raise SettingsError(
            "--model is your own code, which names its layers; leave --format and --branch out",
            code="model-and-format",
        )
    if settings.model is not None and settings.assume:
        raise SettingsError(
            "--model is your own code, which decides all; leave --assume out",
            code="model-and-assume",
        )
    if settings.model is not None and (settings.prefix or settings.projector_prefix):
        raise SettingsError(
            "--model is your own code, which names its weights; leave --prefix and "
            "--projector-prefix out",
            code="model-and-prefix",
        )
    if settings.model is not None:
        return _open_user_module(path, settings)
    description, assignments = recognise(path, settings)
    modules: dict[str, nn.Module] = {}
    for name, assignment in assignments.items():
        label = description.arch if name == "backbone" else name
        module = _build(path, label, assignment.spec)
        weights = module.weights if isinstance(module, Backbone) else module
        fill(weights, assignment.tensors, f"{path}: {label}")
        modules[name] = module.eval()
    return _embedder(description, modules)


def recognise(path: Path, settings: ModelSettings) -> tuple[CheckpointDescription, Modules]:
    """What a checkpoint contains, and for each layer the spec and the tensors of its module.

    Raises CheckpointError or NoWeights for the file, SettingsError for the settings.
    """
    contents = read_contents(path)
    description, modules = detect_in(contents, path, settings, settings.activation)
    description = dataclasses.replace(description, stand_ins=contents.stand_ins)
    if names := inner_names(settings.layer):
        spec = modules["backbone"].spec
        backbone: Any = _build(path, description.arch, spec)
        with consistent(path, description.arch):
            inner = inner_layers(backbone, names, description)
        description = _with_inner(description, inner)
    return description, modules


def _with_inner(
    description: CheckpointDescription, inner: dict[str, InnerLayer]
) -> CheckpointDescription:
    """The description with layers inside the backbone, which come first in order of depth."""
    widths = {name: layer.width for name, layer in inner.items()}
    return dataclasses.replace(description, inner=inner, widths=widths | description.widths)


def open_untrained(
    path: Path, seed: int, settings: ModelSettings, description: CheckpointDescription
) -> Embedder:
    """The Embedder of the architecture of a checkpoint at random initialisation, on the CPU.

    description: of the embedder. Raises CheckpointError and SettingsError as `open_checkpoint`.
    """
    if settings.model is not None:
        target = settings.model
        module = untrained.seeded(seed, lambda: user_module.make(target))
        return ModuleEmbedder(description, module.eval(), f"--model {target}")
    modules = {}
    for name, assignment in recognise(path, settings)[1].items():
        label = description.arch if name == "backbone" else name
        modules[name] = _build(path, label, assignment.spec)
    remade: Callable[[], nn.Module] | None = getattr(modules["backbone"], "remade", None)
    if remade is not None:  # timm's own module, which timm initialises
        modules["backbone"] = untrained.seeded(seed, remade).eval()
    heads_alone = [module for name, module in modules.items() if name != "backbone"]
    untrained.initialise(heads_alone if remade else modules.values(), seed)
    return _embedder(description, modules)


def _build(path: Path, label: str, spec: Any) -> nn.Module:
    with consistent(path, label):
        module: nn.Module = build(spec)
    return module


def _embedder(description: CheckpointDescription, modules: dict[str, nn.Module]) -> Embedder:
    backbone = modules["backbone"]
    if isinstance(backbone, MaskedBackbone):
        return MaskedEmbedder(description, backbone, modules)
    return Embedder(description, modules)


def build(spec: Any) -> Any:
    """The module of a spec on torch's meta device, where its weights take no memory."""
    module = MODULES.get(type(spec))
    if module is None:  # a TimmSpec, whose module exists already
        return spec.backbone
    try:
        with torch.device("meta"):
            return module(spec)
    except RuntimeError:  # older timm reads values of tensors during construction
        return module(spec)


def wrap_module(
    module: nn.Module, layer: str = "auto", shape: tuple[int, ...] | None = None
) -> Embedder:
    """The Embedder of the user's own module in memory, which is put in eval mode.

    The module turns images [b, 3, S, S] into embeddings [b, d], or a dict of layer -> embeddings.
    layer: names of these and of modules inside it, with commas. shape: of
    an input that is no image.
    Raises SettingsError if it does not, CheckpointError if there is no such module inside it.
    """
    name = type(module).__name__
    return _wrap(module, name, f"the module {name}", "", layer, shape)


def _open_user_module(path: Path, settings: ModelSettings) -> Embedder:
    target = settings.model or ""
    tree = read_checkpoint(path)
    module = user_module.make(target)
    container = user_module.load(module, path, tree)
    shape = input_shape(settings)
    return _wrap(module, target, f"--model {target}", container, settings.layer, shape)


def _wrap(
    module: nn.Module,
    arch: str,
    label: str,
    container: str,
    layer: str,
    shape: tuple[int, ...] | None = None,
) -> Embedder:
    module.eval()
    widths, image_size = user_module.probe(module, label, shape)
    description = CheckpointDescription(
        format="own module",
        arch=arch,
        image_size=image_size,
        widths=widths,
        container=container,
        prefix="",
        ignored=(),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )
    if names := inner_names(layer, (*widths, PATCHES)):
        inner, assumption = user_module.inner_layers(
            module, names, image_size, widths, label, shape
        )
        description = dataclasses.replace(
            _with_inner(description, inner), assumptions=(assumption,) if assumption else ()
        )
    return ModuleEmbedder(description, module, label)
