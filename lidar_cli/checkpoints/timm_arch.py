"""A backbone that the user names, `--arch NAME`: timm's model with the file's weights."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lidar_cli.checkpoints import vit
from lidar_cli.checkpoints.backbone import Backbone
from lidar_cli.checkpoints.containers import StateDict
from lidar_cli.checkpoints.spec import FoundBackbone
from lidar_cli.checkpoints.weights import Weight, compare, materialised, shapes, shapes_of
from lidar_cli.errors import CheckpointError, SettingsError, nearest


class TimmBackbone(Backbone):
    """timm's model, pooled as it pools itself, without classifier."""

    def __init__(self, model: Any, arch: str) -> None:
        super().__init__()
        self.model = model
        self.arch = arch
        # Some models widen the pooled features before the classifier that was left out.
        self.width = int(getattr(model, "head_hidden_size", None) or model.num_features)
        fixed = model.pretrained_cfg.get("fixed_input_size", False)
        size = model.pretrained_cfg["input_size"][-1]
        embed = getattr(model, "patch_embed", None)
        self.image_size = getattr(embed, "img_size", (size, size))[0] if fixed else None

    @property
    def weights(self) -> nn.Module:
        """timm's module."""
        return self.model  # type: ignore[no-any-return]

    def set_image_size(self, size: int) -> None:
        """Resize what depends on it; raises CheckpointError where timm's model cannot."""
        if self.image_size in (None, size):
            return
        refusal = CheckpointError(
            f"{self.arch} takes images of {self.image_size} pixels and not of {size}; "
            f"use --image-size {self.image_size}"
        )
        patch = getattr(getattr(self.model, "patch_embed", None), "patch_size", (1, 1))
        if size % patch[0]:  # timm would leave out the pixels of the last, incomplete patch
            raise refusal
        try:
            self.model.set_input_size((size, size))
        except Exception as error:  # no such method, or a size that later stages do not divide
            raise refusal from error
        self.image_size = size

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, 3, S, S]."""
        embeddings: Tensor = self.model(images)
        return embeddings


def by_name(path: Path, state: StateDict, arch: str) -> FoundBackbone:
    """timm's model of that name, and which tensors of the state dict are its own.

    Names are taken as they are, else as timm's own conversion for that model leaves them.
    Raises SettingsError for a name that timm does not know, CheckpointError if the weights are not
    that model's.
    """
    if not timm.is_model(arch):
        hint = nearest(arch, timm.list_models())
        hint = hint if hint.startswith("did you") else "timm.list_models() names all"
        raise SettingsError(f"--arch {arch}: timm has no such model; {hint}")
    model = _create(arch)
    prefix = _prefix(model, state)
    inside = {k.removeprefix(prefix): t for k, t in state.tensors.items() if k.startswith(prefix)}
    if isinstance(model, VisionTransformer) and "patch_embed.proj.weight" in inside:
        model = _resized(model, arch, inside)
    expected = shapes(model)
    tensors = {name: tensor for name, tensor in inside.items() if name in expected}
    keys = frozenset(prefix + name for name in tensors)
    if not _fits(expected, tensors):
        converted = _convert(model, inside)
        if _fits(expected, {n: t for n, t in converted.items() if n in expected}):
            tensors = {n: t for n, t in converted.items() if n in expected}
            # What the conversion drops is timm's decision; its results that nothing takes are not.
            surplus = converted.keys() - expected.keys()
            keys = frozenset(prefix + name for name in inside if name not in surplus)
    compare(expected, shapes_of(tensors), f"{path}: {arch}")
    backbone = TimmBackbone(model, arch)
    classifier = model.pretrained_cfg.get("classifier") or ()
    return FoundBackbone(
        build=lambda: backbone,
        width=backbone.width,
        format="timm model",
        arch=arch,
        image_size=backbone.image_size,
        tensors=tensors,
        keys=keys,
        prefix=prefix,
        classifiers=(classifier,) if isinstance(classifier, str) else tuple(classifier),
    )


def _create(arch: str, **sizes: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names that timm has since changed
            return timm.create_model(arch, pretrained=False, num_classes=0, **sizes)
    except Exception as error:  # an unknown tag, or a model that needs another package
        message = str(error).strip().split("\n")[0]
        raise SettingsError(f"--arch {arch}: timm cannot make it: {message}") from error


def _prefix(model: Any, state: StateDict) -> str:
    """What stands before the model's names in the state dict, '' if nothing matches."""
    names = list(model.state_dict())
    prefixes = {
        key.removesuffix(name)
        for name in (names[0], names[-1])
        for key in state.tensors
        if key == name or key.endswith(f".{name}")
    }
    return max(
        sorted(prefixes),
        key=lambda prefix: sum(prefix + name in state.tensors for name in names),
        default="",
    )


def _resized(model: Any, arch: str, tensors: Mapping[str, Weight]) -> Any:
    """The same model at the image size of the file's position embedding, if that can be told."""
    try:
        size = vit.image_size(shapes_of(tensors), arch)
    except CheckpointError:
        return model
    return model if size == model.patch_embed.img_size[0] else _create(arch, img_size=size)


def _convert(model: Any, tensors: dict[str, Weight]) -> dict[str, Weight]:
    """The tensors after timm's conversion of other projects' names; empty if that fails."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return {}
    try:
        return dict(convert({name: materialised(t) for name, t in tensors.items()}, model))
    except Exception:  # meant for other files
        return {}


def _fits(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Weight]) -> bool:
    try:
        compare(expected, shapes_of(tensors), "")
    except CheckpointError:
        return False
    return True
