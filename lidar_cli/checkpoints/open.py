"""From a checkpoint file, or the user's own module, to the callable."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from lidar_cli.checkpoints.detect import Description, find
from lidar_cli.checkpoints.models import mlp_head, predictor, user_module
from lidar_cli.checkpoints.models.backbone import MaskedBackbone
from lidar_cli.checkpoints.models.embedder import Loaded, LoadedModule
from lidar_cli.checkpoints.models.masked_forward import LoadedMasked
from lidar_cli.checkpoints.models.weights import fill
from lidar_cli.checkpoints.reading.read import as_dict, read_checkpoint, read_contents
from lidar_cli.checkpoints.result import FoundHead
from lidar_cli.checkpoints.shapes.predictor import PredictorSpec
from lidar_cli.errors import SettingsError


def open_checkpoint(
    path: Path,
    *,
    arch: str | None = None,
    model: str | None = None,
    activation: str = "auto",
    format: str = "auto",
    branch: str = "auto",
    layer: str = "auto",
    assume: Sequence[str] = (),
) -> Loaded:
    """A checkpoint, ready to embed images on the CPU; `to` moves it.

    arch: a timm name, where the weights do not tell. model: 'package.module:factory', the user's
    own code. activation: inside the projector, 'relu', 'gelu' or 'auto' (the format's, else ReLU,
    and said). format: of `lidar inspect --formats`. branch: 'student' or 'teacher'. layer: as
    `--layer` has it, for which an auto branch is chosen. assume: KEY=VALUE of what weights leave
    open, see `assume.KEYS`.
    Raises CheckpointError or NoWeights for the file, SettingsError for the options.
    """
    path = Path(path)
    if arch is not None and model is not None:
        raise SettingsError("--arch and --model both name the architecture; give one of them")
    if model is not None and (format, branch) != ("auto", "auto"):
        raise SettingsError(
            "--model is your own code, which names its layers; leave --format and --branch out"
        )
    if model is not None and assume:
        raise SettingsError("--model is your own code, which decides all; leave --assume out")
    if model is not None:
        return _open_own(path, model)
    contents = read_contents(path)
    found = find(
        path,
        as_dict(contents),
        arch=arch,
        activation=activation,
        format=format,
        branch=branch,
        layer=layer,
        config=contents.config,
        assume=assume,
    )
    backbone = found.backbone.build()
    fill(backbone.weights, found.backbone.tensors, f"{path}: {found.backbone.arch}")
    heads = {layer: _head(head, f"{path}: {layer}") for layer, head in found.heads.items()}
    described = dataclasses.replace(found.description, stand_ins=contents.stand_ins)
    if isinstance(backbone.eval(), MaskedBackbone):
        return LoadedMasked(described, backbone, heads)
    return Loaded(described, {"backbone": backbone, **heads})


def _head(head: FoundHead, origin: str) -> nn.Module:
    """The module of a projector or predictor, with its weights."""
    module: nn.Module
    if isinstance(head.spec, PredictorSpec):
        module = predictor.build(head.spec)
    else:
        module = mlp_head.build(head.spec)
    fill(module, head.tensors, origin)
    return module


def wrap_module(module: nn.Module) -> Loaded:
    """The user's own module from memory, put in eval mode where it is.

    It turns images [b, 3, S, S] into embeddings [b, d], or a dict of layer -> embeddings.
    Raises SettingsError if it does not.
    """
    return _wrap(module, type(module).__name__, f"the module {type(module).__name__}", "")


def _open_own(path: Path, target: str) -> Loaded:
    tree = read_checkpoint(path)
    module = user_module.make(target)
    container = user_module.load(module, path, tree)
    return _wrap(module, target, f"--model {target}", container)


def _wrap(module: nn.Module, arch: str, label: str, container: str) -> Loaded:
    module.eval()
    widths, image_size = user_module.probe(module, label)
    description = Description(
        format="own module",
        arch=arch,
        image_size=image_size,
        widths=widths,
        container=container,
        prefix="",
        ignored=(),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )
    return LoadedModule(description, module, label)
