"""Kinds of backbones, each recognised by its anchor, a tensor that all backbones of the kind have.

A new architecture is a module in `shapes` with `spec(shapes, origin)`, its module in `models`, and
an entry in FAMILIES. The module is imported when it is built, since it imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.models.weights import compare, shapes_of
from lidar_cli.checkpoints.reading.folder import options_of
from lidar_cli.checkpoints.reading.lazy_tensor import Weight, join
from lidar_cli.checkpoints.shapes import beit, data2vec2, huggingface, resnet, vit
from lidar_cli.checkpoints.shapes.spec import FoundBackbone, Shapes, Spec
from lidar_cli.errors import CheckpointError

NEXT = "name the architecture with --arch or your own code with --model"


def _build_beit(spec: Any) -> Any:
    from lidar_cli.checkpoints.models import beit

    return beit.build(spec)


def _build_data2vec2(spec: Any) -> Any:
    from lidar_cli.checkpoints.models import data2vec2

    return data2vec2.build(spec)


def _build_resnet(spec: Any) -> Any:
    from lidar_cli.checkpoints.models import resnet

    return resnet.build(spec)


def _build_vit(spec: Any) -> Any:
    from lidar_cli.checkpoints.models import vit

    return vit.build(spec)


@dataclass(frozen=True)
class Family:
    """One kind of backbone."""

    title: str  # the format of a file in which nothing names a system
    anchor: str  # name of a tensor, as in the file
    read_spec: Callable[..., Spec]  # from shapes and the file's name
    build: Callable[[Any], Any]  # from a Spec to a Backbone without weights; imports torch
    rename: Callable[[str], str] = str  # from a name in the file to the one that the spec uses
    configured: bool = False  # whether `read_spec` takes options of a config.json
    special: bool = False  # chosen before families that are not, which describe the file less
    noise: tuple[str, ...] = ()  # beginnings of names that only training needs

    def spec(self, found: Shapes, origin: str, config: Mapping[str, Any] | None = None) -> Spec:
        """The backbone by its shapes and config.json; raises CheckpointError if they fit none."""
        options = options_of(config, origin) if config and self.configured else {}
        return self.read_spec(found, origin, **options)


FAMILIES: dict[str, Family] = {  # of those that are special, the first that matches is taken
    "data2vec": Family(
        "fairseq data2vec vision",
        beit.FAIRSEQ_ANCHOR,
        beit.fairseq_spec,
        _build_beit,
        beit.from_fairseq,
        special=True,
        noise=beit.FAIRSEQ_NOISE,
    ),
    "data2vec2": Family(
        "fairseq data2vec 2.0",
        data2vec2.ANCHOR,
        data2vec2.spec,
        _build_data2vec2,
        data2vec2.from_fairseq,
        special=True,
        noise=data2vec2.NOISE,
    ),
    "hf-beit": Family(
        "Hugging Face BEiT",
        huggingface.BEIT_ANCHOR,
        huggingface.beit_spec,
        _build_beit,
        huggingface.from_hf_beit,
        configured=True,
        special=True,
    ),
    "hf-dinov2": Family(
        "Hugging Face DINOv2",
        huggingface.DINOV2_ANCHOR,
        huggingface.vit_spec,
        _build_vit,
        huggingface.from_hf,
        configured=True,
        special=True,
    ),
    "hf-vit": Family(
        "Hugging Face ViT",
        huggingface.VIT_ANCHOR,
        huggingface.vit_spec,
        _build_vit,
        huggingface.from_hf,
        configured=True,
        special=True,
    ),
    "beit": Family("BEiT state dict", beit.ANCHOR, beit.spec, _build_beit, special=True),
    "resnet": Family("ResNet state dict", resnet.ANCHOR, resnet.spec, _build_resnet),
    "vit": Family("timm ViT state dict", vit.ANCHOR, vit.spec, _build_vit, vit.from_dinov2),
    "dinov2-chunked": Family(
        "DINOv2 state dict in chunks", vit.CHUNKED_ANCHOR, vit.spec, _build_vit, vit.from_dinov2
    ),
    "torchvision-vit": Family(
        "torchvision ViT state dict",
        vit.TORCHVISION_ANCHOR,
        vit.spec,
        _build_vit,
        vit.from_torchvision,
    ),
}


def backbone_of(
    path: Path,
    family: Family,
    by_name: Mapping[str, str],
    tensors: Mapping[str, Weight],
    prefix: str,
    config: Mapping[str, Any] | None,
    adjust: Callable[[Spec], Spec] = lambda spec: spec,
) -> FoundBackbone:
    """The backbone of a family, and which of the named tensors are its own.

    by_name: names that `spec` knows, or of their parts (see `joined`) -> keys of `tensors`.
    config: of a Hugging Face folder, where there is one. adjust: adds what is known besides.
    Raises CheckpointError if the shapes fit no backbone of the family, or tensors are missing.
    """
    inside, sources = join({name: tensors[key] for name, key in by_name.items()})
    spec = adjust(family.spec(shapes_of(inside), str(path), config))
    vit.check_heads(spec, str(path))

    def guarded(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
            # Single shapes look right and do not go together, such as heads that divide no width.
            raise CheckpointError(
                f"{path}: the shapes of its tensors form no {spec.arch}; {NEXT}"
            ) from error

    expected = guarded(spec.shapes)
    own = {name: inside[name] for name in expected if name in inside}
    compare(expected, shapes_of(own), f"{path}: {spec.arch}")
    return FoundBackbone(
        build=lambda: guarded(lambda: family.build(spec)),
        width=spec.width,
        format=family.title,
        arch=spec.arch,
        image_size=spec.image_size,
        tensors=own,
        keys=frozenset(by_name[source] for name in own for source in sources[name]),
        prefix=prefix,
        noise=tuple(prefix + name for name in family.noise),
        spec=spec,
    )
