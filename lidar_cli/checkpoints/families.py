"""Kinds of backbones, and how names and shapes tell one.

A family is told by its anchor, a tensor that each of its backbones has. Its module is named, not
imported, so that one that imports torch costs nothing to those that do not. A new architecture is
a module with `spec(shapes, origin)` and an entry in FAMILIES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints import beit, data2vec2, hf, resnet_spec, vit
from lidar_cli.checkpoints.hf_config import options_of
from lidar_cli.checkpoints.joined import join
from lidar_cli.checkpoints.spec import FoundBackbone, Shapes, Spec
from lidar_cli.checkpoints.weights import Weight, compare, shapes_of
from lidar_cli.errors import CheckpointError

NEXT = "name the architecture with --arch or your own code with --model"


@dataclass(frozen=True)
class Family:
    """A kind of backbone, and how its names tell it. Modules and functions are of this package."""

    title: str  # of a file in which nothing tells a system
    anchor: str  # a tensor's name, as in the file
    module: str  # where `function` and `rename` are
    function: str = "spec"  # from shapes and the file's name to a Spec
    rename: str = ""  # from a name in the file to the one that the spec knows; '' for the same
    builder: str = ""  # module with `build(spec)`; '' where the spec builds itself
    configured: bool = False  # whether `function` takes what a config.json tells
    special: bool = False  # where it is found, families that are not say too little
    noise: tuple[str, ...] = ()  # beginnings of names that only training needs

    def spec(self, found: Shapes, origin: str, config: Mapping[str, Any] | None = None) -> Spec:
        """What the shapes and a config.json tell; raises CheckpointError if they fit none."""
        options = options_of(config, origin) if config and self.configured else {}
        spec: Spec = getattr(_module(self.module), self.function)(found, origin, **options)
        return spec

    def renamed(self, name: str) -> str:
        """The name that the spec knows."""
        new: str = getattr(_module(self.module), self.rename)(name) if self.rename else name
        return new

    def build(self, spec: Any) -> Any:
        """The module of a spec, a Backbone without weights. Imports torch."""
        return _module(self.builder).build(spec) if self.builder else spec.build()


def _module(name: str) -> Any:
    return import_module(f"lidar_cli.checkpoints.{name}")


FAMILIES: dict[str, Family] = {  # of those that are special, the earlier ones say more
    "data2vec": Family(
        "fairseq data2vec vision",
        beit.FAIRSEQ_ANCHOR,
        "beit",
        "fairseq_spec",
        "from_fairseq",
        "beit_module",
        special=True,
        noise=beit.FAIRSEQ_NOISE,
    ),
    "data2vec2": Family(
        "fairseq data2vec 2.0",
        data2vec2.ANCHOR,
        "data2vec2",
        rename="from_fairseq",
        builder="data2vec2_module",
        special=True,
        noise=data2vec2.NOISE,
    ),
    "hf-beit": Family(
        "Hugging Face BEiT",
        hf.BEIT_ANCHOR,
        "hf",
        "beit_spec",
        "from_hf_beit",
        "beit_module",
        configured=True,
        special=True,
    ),
    "hf-dinov2": Family(
        "Hugging Face DINOv2",
        hf.DINOV2_ANCHOR,
        "hf",
        "vit_spec",
        "from_hf",
        "vit_module",
        configured=True,
        special=True,
    ),
    "hf-vit": Family(
        "Hugging Face ViT",
        hf.VIT_ANCHOR,
        "hf",
        "vit_spec",
        "from_hf",
        "vit_module",
        configured=True,
        special=True,
    ),
    "beit": Family("BEiT state dict", beit.ANCHOR, "beit", builder="beit_module", special=True),
    "resnet": Family("ResNet state dict", resnet_spec.ANCHOR, "resnet_spec", builder="resnet"),
    "vit": Family(
        "timm ViT state dict", vit.ANCHOR, "vit", rename="from_dinov2", builder="vit_module"
    ),
    "dinov2-chunked": Family(
        "DINOv2 state dict in chunks",
        vit.CHUNKED_ANCHOR,
        "vit",
        rename="from_dinov2",
        builder="vit_module",
    ),
    "torchvision-vit": Family(
        "torchvision ViT state dict",
        vit.TORCHVISION_ANCHOR,
        "vit",
        rename="from_torchvision",
        builder="vit_module",
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
