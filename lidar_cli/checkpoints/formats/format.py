"""What a format is: the places of the weights in a system's files, and how they were trained.

All names are those of a state dict without the additions of wrappers ('module.' and the like).
Patterns are regular expressions that match from the beginning of a name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lidar_cli.checkpoints.shapes import vit
from lidar_cli.checkpoints.shapes.spec import Rename, renamed

USUAL_ATTENTION_HEADS = tuple(vit.HEADS.items())
SMALL = 64  # px; solo-learn and stable-pretraining train on CIFAR at 32
DATASETS = ("cifar10", "cifar100", "stl10", "imagenet", "imagenet100")


@dataclass(frozen=True)
class Head:
    """A projector or predictor: an MLP whose layers have numbers, after `rename`."""

    prefix: str
    rename: Rename = ()
    activation: str = "relu"
    after: tuple[str, ...] = ()  # patterns of what follows the embedding: prototypes

    def name(self, key: str) -> str:
        """The name of a layer's tensor within the head."""
        return renamed(key.removeprefix(self.prefix), self.rename)


@dataclass(frozen=True)
class TokenPredictor:
    """I-JEPA's predictor of the tokens of patches that the backbone does not see."""

    prefix: str


@dataclass(frozen=True)
class Branch:
    """One set of weights: the prefixes of its backbone and its heads."""

    name: str  # 'student', 'teacher', or 'encoder' where there is only one
    backbone: str  # prefix
    projector: Head | None = None
    predictor: Head | TokenPredictor | None = None
    # Tensors of another branch, with their names in this backbone, that replace missing ones.
    borrowed: Rename = ()

    @property
    def heads(self) -> dict[str, Head | TokenPredictor]:
        """By layer, in the order of the forward pass."""
        heads = {"projector": self.projector, "predictor": self.predictor}
        return {layer: head for layer, head in heads.items() if head is not None}

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Of the backbone and the heads."""
        return self.backbone, *(head.prefix for head in self.heads.values())


@dataclass(frozen=True)
class Method:
    """One of several methods that a library trains in files of one layout."""

    name: str  # as the library's arguments spell it
    recipe: str  # the view recipe of its training
    present: tuple[str, ...] = ()  # patterns; each matches a tensor's name
    absent: tuple[str, ...] = ()  # patterns that match no tensor's name
    activation: str = ""  # in its heads; '' for the format's

    def fits(self, names: Collection[str]) -> bool:
        """Whether tensors of these names may be of this method."""
        return fits(names, self.present, self.absent)


@dataclass(frozen=True)
class Format:
    """One system's checkpoints."""

    name: str  # the value of --format
    title: str  # repository and kind of file
    present: tuple[str, ...]  # patterns; each matches a tensor's name. The more, the more specific.
    branches: tuple[Branch, ...]  # first the one that the authors evaluate
    source: str  # the code that defines the layout
    recipe: str  # the view recipe of its training; of several methods, where none is recognised
    methods: tuple[Method, ...] = ()  # of a library; of those that fit the names, the first
    arguments: str = ""  # file next to the checkpoint with the training's arguments, as JSON
    absent: tuple[str, ...] = ()  # patterns that match no tensor's name
    square: tuple[str, ...] = ()  # patterns of matrices that are square
    keys: tuple[str, ...] = ()  # top-level keys of the file that must be there
    absent_keys: tuple[str, ...] = ()  # top-level keys that are not there
    config: tuple[tuple[str, str], ...] = ()  # entries of config.json, where there is one
    containers: tuple[str, ...] = ()  # containers that may hold the state dict; () for any
    nested: tuple[tuple[str, str], ...] = ()  # nested dicts that hold it, with their new prefixes
    class_prefix: str = ""  # pattern of the prefix that some of its classes add to all names
    backbones: tuple[str, ...] = ("resnet", "vit")  # families, by name
    rename: Rename = ()  # of the backbone's tensors, to torchvision's or timm's names
    attention_heads: tuple[tuple[int, int], ...] = ()  # width of a ViT -> attention heads
    resize: str = ""  # of a ViT's positions, see models/backbone.py; '' for the family's
    position_offset: float | None = None  # the same
    cifar_padding: int | None = None  # of a 3x3 stem
    unused: tuple[str, ...] = ()  # patterns of what is recognised and not used
    pixel_stats: str = "imagenet"  # of the training images; 'auto' for the recipe's own
    small_pixel_stats: str = ""  # of images for a 3x3 stem or a small ViT; '' for pixel_stats
    image_size: int | None = None  # px that its authors evaluate at, of positions for larger ones
    example: str = ""  # usual file name

    @property
    def recipes(self) -> tuple[str, ...]:
        """The view recipes of the format and its methods, the format's first."""
        return tuple(dict.fromkeys([self.recipe, *(one.recipe for one in self.methods)]))

    @property
    def specificity(self) -> int:
        """The number of conditions that a file of this format meets."""
        return len(self.present) + len(self.keys)

    @property
    def why(self) -> str:
        """Its conditions in words."""
        keys = f" beside the keys {', '.join(self.keys)}" if self.keys else ""
        return f"tensors named {readable(self.present)}{keys}"


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name begins with one of the patterns."""
    return any(re.match(pattern, name) for pattern in patterns)


def fits(names: Collection[str], present: Iterable[str], absent: Iterable[str]) -> bool:
    """Whether each mark matches a name, and no pattern of `lacks` does."""

    def occurs(pattern: str) -> bool:
        match = re.compile(pattern).match
        return any(match(name) for name in names)

    return all(map(occurs, present)) and not any(map(occurs, absent))


def readable(patterns: Iterable[str]) -> str:
    """Patterns as people read names: without escapes and the end of line."""
    return ", ".join(pattern.replace("\\.", ".").removesuffix("$") for pattern in patterns)


def numbered(names: Iterable[str]) -> Rename:
    """The Rename from the names of layers, such as fc1, bn1, '-', fc2, to their indices.

    '-' is an activation, which has no tensors.
    """
    return tuple(
        (rf"{re.escape(name)}\.", f"{at}.") for at, name in enumerate(names) if name != "-"
    )


@dataclass(frozen=True)
class Training:
    """The views and pixel statistics of a checkpoint's training."""

    recipe: str
    pixel_stats: str
    why_stats: str  # the origin of the pixel statistics, '' for the format's
    activation: str  # in the heads, '' for the format's
    why_activation: str
    assumptions: tuple[str, ...]  # about the views, which neither names nor arguments determine


def training(
    format: Format, names: Collection[str], arguments: Mapping[str, Any], small: bool
) -> Training:
    """How a checkpoint with tensors of these names was trained.

    arguments: of the training, where they were saved. small: whether the backbone takes images of
    CIFAR's size. Arguments decide only between the methods that the names leave open: they may be
    of another run.
    """
    method, assumed = _method(format, names, arguments.get("method"))
    by_arguments = method is not None and method.name == arguments.get("method")
    stats, why_stats = _pixel_stats(format, arguments, small)
    return Training(
        method.recipe if method else format.recipe,
        stats,
        why_stats,
        method.activation if method and by_arguments else "",
        f"of {method.name}, which {format.arguments} names" if method and by_arguments else "",
        (assumed,) if assumed else (),
    )


def _method(format: Format, names: Collection[str], method: object) -> tuple[Method | None, str]:
    """The method, None for that of the format, and what is assumed for it, '' for nothing."""
    if not format.methods:
        return None, ""
    fitting = [one for one in format.methods if one.fits(names)]
    by_name = [one for one in fitting if one.name == method]
    if by_name or len({one.recipe for one in fitting}) == 1:
        return (by_name or fitting)[0], ""
    if not fitting:
        return None, f"views of {format.recipe}, since the names fit no known method"
    first, *others = fitting
    activations = [
        f", activation {one.activation} if {one.name} (--activation)"
        for one in others
        if one.activation != first.activation
    ]
    return first, (
        f"views of {first.recipe}, though the names may be those of "
        f"{' or '.join(one.name for one in others)} too (--views){''.join(activations)}"
    )


def _pixel_stats(format: Format, arguments: Mapping[str, Any], small: bool) -> tuple[str, str]:
    """The pixel statistics, and their origin, '' for the format's."""
    data = arguments.get("data")
    dataset = data.get("dataset") if isinstance(data, dict) else arguments.get("dataset")
    if dataset in DATASETS and dataset.startswith("cifar") == small:
        stats = "imagenet" if dataset == "imagenet100" else dataset
        return stats, f"of {dataset}, which {format.arguments} names"
    if small and format.small_pixel_stats:
        return format.small_pixel_stats, "usual for images this small"
    return format.pixel_stats, ""
