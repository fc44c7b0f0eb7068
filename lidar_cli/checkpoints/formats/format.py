"""What a format is: where a system's files keep their weights, and what each part means.

All names are those of a state dict without what wrappers add ('module.' and the like). Patterns are
regular expressions that match from the beginning of a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from lidar_cli.checkpoints.shapes import vit

Rename = tuple[tuple[str, str], ...]  # pattern, replacement: applied in order, at the beginning
USUAL_HEADS = tuple(vit.HEADS.items())


@dataclass(frozen=True)
class Head:
    """A projector or predictor: an MLP whose layers have numbers, after `rename`."""

    prefix: str
    rename: Rename = ()
    activation: str = "relu"
    after: tuple[str, ...] = ()  # what follows the embedding, by renamed names: prototypes

    def name(self, key: str) -> str:
        """The name of a layer's tensor within the head."""
        return renamed(key.removeprefix(self.prefix), self.rename)


@dataclass(frozen=True)
class TokenPredictor:
    """I-JEPA's predictor, which gives tokens of patches that the backbone does not see."""

    prefix: str


@dataclass(frozen=True)
class Branch:
    """One set of weights: where its backbone lies, and its heads."""

    name: str  # 'student', 'teacher', or 'encoder' where there is only one
    backbone: str  # prefix
    projector: Head | None = None
    predictor: Head | TokenPredictor | None = None
    # Tensors of another branch, with their names in this backbone, that it uses where it has none.
    borrowed: Rename = ()

    @property
    def heads(self) -> dict[str, Head | TokenPredictor]:
        """By layer, in the order of the forward pass."""
        named = {"projector": self.projector, "predictor": self.predictor}
        return {layer: head for layer, head in named.items() if head is not None}


@dataclass(frozen=True)
class Method:
    """One of several methods that a library trains in files of one layout."""

    name: str  # as the library's own arguments spell it
    recipe: str  # the view recipe of its training
    marks: tuple[str, ...] = ()  # patterns; each matches a tensor's name
    lacks: tuple[str, ...] = ()  # patterns that match no tensor's name
    activation: str = ""  # in its heads; '' for the format's

    def fits(self, names: Iterable[str]) -> bool:
        """Whether tensors of these names may be its own."""
        names = list(names)

        def there(pattern: str) -> bool:
            return any(re.match(pattern, name) for name in names)

        return all(map(there, self.marks)) and not any(map(there, self.lacks))


@dataclass(frozen=True)
class Format:
    """One system's checkpoints."""

    name: str  # what --format takes
    title: str  # repository and kind of file
    marks: tuple[str, ...]  # patterns; each matches a tensor's name. The more, the more specific.
    branches: tuple[Branch, ...]  # first the one that the authors evaluate
    source: str  # where the layout was read
    recipe: str  # the view recipe of its training; of several methods, where none is recognised
    methods: tuple[Method, ...] = ()  # of a library; of those that fit the names, the first
    arguments: str = ""  # file beside the checkpoint with the training's arguments, as JSON
    lacks: tuple[str, ...] = ()  # patterns that match no tensor's name
    square: tuple[str, ...] = ()  # patterns of matrices that are square
    keys: tuple[str, ...] = ()  # top-level keys of the file that must be there
    no_keys: tuple[str, ...] = ()  # top-level keys that are not there
    config: tuple[tuple[str, str], ...] = ()  # entries of config.json, where there is one
    roots: tuple[str, ...] = ()  # containers that may hold the state dict; () for any
    inside: tuple[tuple[str, str], ...] = ()  # nested dicts that hold it, with their new prefixes
    added: str = ""  # pattern of what some of its classes put before every name
    backbones: tuple[str, ...] = ("resnet", "vit")  # families, by name
    rename: Rename = ()  # of the backbone's tensors, to torchvision's or timm's names
    heads: tuple[tuple[int, int], ...] = ()  # width of a ViT -> attention heads
    resize: str = ""  # of a ViT's positions, see positions.py; '' for the family's
    position_offset: float | None = None  # the same
    cifar_padding: int | None = None  # of a 3x3 stem
    noise: tuple[str, ...] = ()  # patterns of what is known and not used
    pixel_stats: str = "imagenet"  # of the training images; 'auto' for the recipe's own
    small_pixel_stats: str = ""  # of images for a 3x3 stem or a small ViT; '' for pixel_stats
    image_size: int | None = None  # px that its authors evaluate at, of positions for larger ones
    example: str = ""  # usual file name


def recipes(format: Format) -> tuple[str, ...]:
    """The view recipes of a format's methods, its own first."""
    return tuple(dict.fromkeys([format.recipe, *(one.recipe for one in format.methods)]))


def readable(marks: Iterable[str]) -> str:
    """Patterns as people read names: without escapes and the end of line."""
    return ", ".join(mark.replace("\\.", ".").removesuffix("$") for mark in marks)


def renamed(name: str, rename: Rename) -> str:
    """A name after each pattern, applied once at its beginning."""
    for pattern, replacement in rename:
        name = re.sub(f"^(?:{pattern})", replacement, name)
    return name


def numbered(names: Iterable[str]) -> Rename:
    """The Rename that gives layers with names, such as fc1, bn1, '-', fc2, their places.

    '-' stands for an activation, which has no tensors.
    """
    return tuple(
        (rf"{re.escape(name)}\.", f"{at}.") for at, name in enumerate(names) if name != "-"
    )
