"""Kinds of backbones, each recognised by its anchor, a tensor that every backbone of the kind has.

To add an architecture, write a spec in `shapes`, its module in `models`, and an entry of FAMILIES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.models.weights import compare, shapes_of
from lidar_cli.checkpoints.reading.folder import (
    convolution_options,
    recorded_grid,
    resnet_options,
    rotary_options,
    swin_options,
    transformer_options,
    vision_options,
)
from lidar_cli.checkpoints.reading.lazy_tensor import Weight, join_parts
from lidar_cli.checkpoints.shapes import (
    beit,
    convnext,
    data2vec2,
    poolformer,
    resnet,
    rope,
    swin,
    vit,
    wide_resnet,
)
from lidar_cli.checkpoints.shapes import huggingface as hf
from lidar_cli.checkpoints.shapes.spec import Assignment, Rename, renamed
from lidar_cli.errors import CheckpointError, SettingsError

KINDS = "ResNet, Wide ResNet, ViT, BEiT, data2vec, Swin, ConvNeXt or PoolFormer"
EXPECTED = f"a {KINDS} by the names of timm, torchvision, Hugging Face or its authors"
NEXT = "name the architecture with --arch or your own code with --model"


@dataclass(frozen=True)
class Family:
    """One kind of backbone."""

    title: str  # the format to report if the file matches no format
    anchor: str  # name of a tensor, as in the file after the backbone's prefix
    spec: Callable[..., Any]  # (shapes by renamed names, name of the file) -> ModuleSpec
    rename: Rename = ()  # names in the file -> names that the spec uses
    # The values of a config.json that `spec` takes; None for none.
    options: Callable[[Mapping[str, Any], str], dict[str, Any]] | None = None
    special: bool = False  # takes precedence over the others at its prefix
    axes: int | None = None  # number of axes of the anchor, None for any
    unused_prefixes: tuple[str, ...] = ()  # prefixes of tensors that only training needs


_special = partial(Family, special=True)
_hugging_face = partial(Family, options=transformer_options, special=True)

FAMILIES: dict[str, Family] = {  # of several special ones that match, the first is used
    "data2vec": _special(
        *("fairseq data2vec vision", beit.FAIRSEQ_ANCHOR, beit.fairseq_spec, beit.FROM_FAIRSEQ),
        unused_prefixes=beit.FAIRSEQ_UNUSED,
    ),
    "data2vec2": _special(
        *("fairseq data2vec 2.0", data2vec2.ANCHOR, data2vec2.spec, data2vec2.FROM_FAIRSEQ),
        unused_prefixes=data2vec2.UNUSED,
    ),
    "hf-beit": _hugging_face("Hugging Face BEiT", hf.BEIT_ANCHOR, hf.beit_spec, hf.FROM_HF_BEIT),
    "hf-dinov2": _hugging_face("Hugging Face DINOv2", hf.DINOV2_ANCHOR, hf.vit_spec, hf.FROM_HF),
    "hf-vit": _hugging_face("Hugging Face ViT", hf.VIT_ANCHOR, hf.vit_spec, hf.FROM_HF),
    "hf-dinov3": Family(
        *("Hugging Face DINOv3", rope.HF_DINOV3_ANCHOR, rope.dinov3_spec, rope.FROM_HF_DINOV3),
        options=rotary_options,
        special=True,
        unused_prefixes=rope.HF_DINOV3_UNUSED,
    ),
    "hf-vjepa2": _hugging_face(
        *("Hugging Face V-JEPA 2", rope.HF_VJEPA2_ANCHOR, rope.vjepa2_spec, rope.FROM_HF_VJEPA2),
        unused_prefixes=rope.HF_VJEPA2_UNUSED,
    ),
    "dinov3": _special(
        *("DINOv3 state dict", rope.DINOV3_ANCHOR, rope.dinov3_spec, rope.FROM_DINOV3),
        unused_prefixes=rope.DINOV3_UNUSED,
    ),
    "capi": _special(
        *("CAPI state dict", rope.CAPI_ANCHOR, rope.capi_spec, rope.FROM_CAPI),
        unused_prefixes=rope.CAPI_UNUSED,
    ),
    "vjepa2": _special(
        *("V-JEPA 2 state dict", rope.VJEPA2_ANCHOR, rope.vjepa2_spec, rope.FROM_VJEPA2), axes=5
    ),
    "hf-clip": _hugging_face(
        *("Hugging Face CLIP or SigLIP", hf.CLIP_ANCHOR, hf.clip_spec, hf.FROM_HF_CLIP),
        options=vision_options,
    ),
    "openai-clip": _special("OpenAI's CLIP", hf.OPENAI_ANCHOR, hf.clip_spec, hf.FROM_OPENAI),
    "hf-resnet": _hugging_face(
        *("Hugging Face ResNet", hf.RESNET_ANCHOR, hf.resnet_spec, hf.FROM_HF_RESNET),
        options=resnet_options,
    ),
    "hf-swin": _hugging_face(
        *("Hugging Face Swin", swin.HF_ANCHOR, swin.spec, swin.FROM_HF), options=swin_options
    ),
    "swin": _special("Swin state dict", swin.ANCHOR, swin.spec, swin.FROM_MICROSOFT),
    "timm-swin": Family("timm Swin state dict", swin.TIMM_ANCHOR, swin.spec),
    "beit": _special("BEiT state dict", beit.ANCHOR, beit.spec),
    "convnext": Family("ConvNeXt state dict", convnext.ANCHOR, convnext.spec),
    "dinov3-convnext": Family(
        *("ConvNeXt state dict", convnext.FACEBOOK_ANCHOR, convnext.spec, convnext.FROM_FACEBOOK),
        unused_prefixes=convnext.FACEBOOK_UNUSED,
    ),
    "hf-convnext": _hugging_face(
        *("Hugging Face ConvNeXt", convnext.HF_ANCHOR, convnext.hf_spec, convnext.FROM_HF),
        options=convolution_options,
    ),
    "hf-dinov3-convnext": Family(
        "Hugging Face DINOv3 ConvNeXt",
        *(convnext.HF_DINOV3_ANCHOR, convnext.spec, convnext.FROM_HF_DINOV3),
        options=convolution_options,
    ),
    "resnet": Family("ResNet state dict", resnet.ANCHOR, resnet.spec),
    "vit": Family("timm ViT state dict", vit.ANCHOR, vit.spec, vit.FROM_DINOV2),
    "dinov2-chunked": Family(
        "DINOv2 state dict in chunks", vit.CHUNKED_ANCHOR, vit.spec, vit.FROM_DINOV2
    ),
    "poolformer": Family("PoolFormer state dict", poolformer.ANCHOR, poolformer.spec),
    "wide-resnet": Family("Wide ResNet state dict", wide_resnet.ANCHOR, wide_resnet.spec),
    "mm-beit": _special("mmpretrain BEiT", beit.MM_ANCHOR, beit.spec, vit.FROM_MM),
    "mm-vit": Family("mmpretrain ViT", vit.MM_ANCHOR, vit.spec, vit.FROM_MM),
    "torchvision-vit": Family(
        "torchvision ViT state dict", vit.TORCHVISION_ANCHOR, vit.spec, vit.FROM_TORCHVISION
    ),
}


@contextmanager
def consistent(path: Path, arch: str) -> Iterator[None]:
    """Raise CheckpointError if the block fails since the shapes of a file contradict each other.

    An example is a number of heads that does not divide the width.
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
    """The spec of a family's backbone, and the tensors that fill it.

    keys: name as in the family's files -> key of `tensors`; a name may be of a part of a tensor,
    see `lazy_tensor.join`. config: config.json of a Hugging Face folder, None without one. adjust:
    returns the spec with values that the shapes leave open, from the format or `--assume`.
    Raises CheckpointError if the shapes fit no backbone of the family, or tensors are missing.
    """
    keys = {renamed(name, family.rename): key for name, key in keys.items()}
    joined, sources = join_parts({name: tensors[key] for name, key in keys.items()})
    options = family.options(config, str(path)) if config and family.options else {}
    spec = family.spec(shapes_of(joined), str(path), **options)
    grid = recorded_grid(config) if config and family.options else None
    if grid is not None and grid[0] != grid[1] and isinstance(spec, vit.ViTSpec):
        with suppress(SettingsError):  # a grid of another number of patches
            spec = spec.assume("grid", grid, "").decide("grid", "config.json has image_size")
    spec = adjust(spec)
    if isinstance(spec, vit.TransformerSpec):
        spec.check_open(str(path))
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
        unused_prefixes=tuple(prefix + name for name in family.unused_prefixes),
    )
