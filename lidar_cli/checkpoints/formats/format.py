"""What a format is: where a system's files keep their weights, and what each part means.

All names are those of a state dict without what wrappers add ('module.' and the like). Patterns are
regular expressions that match from the beginning of a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

Rename = tuple[tuple[str, str], ...]  # pattern, replacement: applied in order, at the beginning
USUAL_HEADS = (
    (128, 2),
    (192, 3),
    (384, 6),
    (768, 12),
    (1024, 16),
    (1280, 16),
    (1408, 16),
    (1536, 24),
)


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
class Format:
    """One system's checkpoints."""

    name: str  # what --format takes
    title: str  # repository and kind of file
    marks: tuple[str, ...]  # patterns; each matches a tensor's name. The more, the more specific.
    branches: tuple[Branch, ...]  # first the one that the authors evaluate
    source: str  # where the layout was read
    recipe: str  # the view recipe of its training
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
    pixel_stats: str = "imagenet"
    example: str = ""  # usual file name


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
