"""Kinds of backbones, each recognised by its anchor, a tensor that all backbones of the kind have.

A new architecture is a spec in `shapes` with its module in `models`, and an entry in FAMILIES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.description import Assignment
from lidar_cli.checkpoints.models.weights import compare, shapes_of
from lidar_cli.checkpoints.reading.folder import transformer_options
from lidar_cli.checkpoints.reading.lazy_tensor import Weight, join_parts
from lidar_cli.checkpoints.shapes import beit, data2vec2, resnet, vit
from lidar_cli.checkpoints.shapes import huggingface as hf
from lidar_cli.checkpoints.shapes.spec import Rename, renamed
from lidar_cli.errors import CheckpointError

NEXT = "name the architecture with --arch or your own code with --model"


@dataclass(frozen=True)
class Family:
    """One kind of backbone."""

    title: str  # the format of a file in which nothing names a system
    anchor: str  # name of a tensor, as in the file
    spec: Callable[..., Any]  # from shapes, by renamed names, and the file's name to a ModuleSpec
    rename: Rename = ()  # from the names in the file to those that the spec uses
    configured: bool = False  # whether `spec` takes options of a config.json
    special: bool = False  # takes precedence over families that are not, which describe less
    noise: tuple[str, ...] = ()  # beginnings of names that only training needs


_special = partial(Family, special=True)
_hugging_face = partial(Family, configured=True, special=True)

FAMILIES: dict[str, Family] = {  # of the special ones, the first that matches is taken
    "data2vec": _special(
        *("fairseq data2vec vision", beit.FAIRSEQ_ANCHOR, beit.fairseq_spec, beit.FROM_FAIRSEQ),
        noise=beit.FAIRSEQ_NOISE,
    ),
    "data2vec2": _special(
        *("fairseq data2vec 2.0", data2vec2.ANCHOR, data2vec2.spec, data2vec2.FROM_FAIRSEQ),
        noise=data2vec2.NOISE,
    ),
    "hf-beit": _hugging_face("Hugging Face BEiT", hf.BEIT_ANCHOR, hf.beit_spec, hf.FROM_HF_BEIT),
    "hf-dinov2": _hugging_face("Hugging Face DINOv2", hf.DINOV2_ANCHOR, hf.vit_spec, hf.FROM_HF),
    "hf-vit": _hugging_face("Hugging Face ViT", hf.VIT_ANCHOR, hf.vit_spec, hf.FROM_HF),
    "beit": _special("BEiT state dict", beit.ANCHOR, beit.spec),
    "resnet": Family("ResNet state dict", resnet.ANCHOR, resnet.spec),
    "vit": Family("timm ViT state dict", vit.ANCHOR, vit.spec, vit.FROM_DINOV2),
    "dinov2-chunked": Family(
        "DINOv2 state dict in chunks", vit.CHUNKED_ANCHOR, vit.spec, vit.FROM_DINOV2
    ),
    "torchvision-vit": Family(
        "torchvision ViT state dict", vit.TORCHVISION_ANCHOR, vit.spec, vit.FROM_TORCHVISION
    ),
}


@contextmanager
def consistent(path: Path, arch: str) -> Iterator[None]:
    """Raise CheckpointError if shapes that are possible one by one do not form a module together.

    Such as heads that do not divide the width.
    """
    try:
        yield
    except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
        message = f"{path}: the shapes of its tensors form no {arch}; {NEXT}"
        raise CheckpointError(message, code="inconsistent-shapes") from error


def assign_backbone(
    path: Path,
    family: Family,
    keys: Mapping[str, str],
    tensors: Mapping[str, Weight],
    prefix: str,
    config: Mapping[str, Any] | None,
    adjust: Callable[[Any], Any],
) -> Assignment:
    """The backbone of a family, and its tensors among the named ones.

    keys: names as in the family's files, some of parts (see `lazy_tensor.join`) -> keys of
    `tensors`. config: of a Hugging Face folder, where there is one. adjust: applies to the spec
    what is known besides the shapes.
    Raises CheckpointError if the shapes fit no backbone of the family, or tensors are missing.
    """
    keys = {renamed(name, family.rename): key for name, key in keys.items()}
    joined, sources = join_parts({name: tensors[key] for name, key in keys.items()})
    options = transformer_options(config, str(path)) if config and family.configured else {}
    spec = adjust(family.spec(shapes_of(joined), str(path), **options))
    if isinstance(spec, vit.TransformerSpec):
        spec.check_heads(str(path))
    arch = spec.arch
    with consistent(path, arch):
        expected = spec.shapes()
    used = {name: joined[name] for name in expected if name in joined}
    compare(expected, shapes_of(used), f"{path}: {arch}")
    return Assignment(
        spec=spec,
        tensors=used,
        title=family.title,
        keys=frozenset(keys[source] for name in used for source in sources[name]),
        prefix=prefix,
        noise=tuple(prefix + name for name in family.noise),
    )
