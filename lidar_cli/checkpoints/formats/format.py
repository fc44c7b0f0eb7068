"""A format describes where a system's files have which weights, and how these were trained.

Names are keys of a state dict without the prefixes of wrappers, such as 'module.'. Patterns are
regular expressions, matched at the beginning of a name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lidar_cli.checkpoints.shapes import vit
from lidar_cli.checkpoints.shapes.spec import Rename, Value, renamed
from lidar_cli.errors import SettingsError
from lidar_cli.views.recipes import pixel_statistics, statistics_text

USUAL_ATTENTION_HEADS = tuple(vit.HEADS.items())
SMALL = 64  # pixels a side up to which images count as small, such as CIFAR's 32
DATASETS = (
    *((name, name) for name in ("cifar10", "cifar100", "stl10", "imagenet")),
    ("imagenet100", "imagenet"),
)


@dataclass(frozen=True)
class Head:
    """A projector or predictor: an MLP whose layers are named by their index, after `rename`."""

    prefix: str
    rename: Rename = ()
    activation: str = "relu"
    after: tuple[str, ...] = ()  # patterns of layers after the embedding, such as prototypes
    last_activation: bool = False  # whether the activation follows the last layer too
    gaps: tuple[tuple[int, str], ...] = ()  # index -> what precedes it instead of `activation`

    def name(self, key: str) -> str:
        """The name within the head of the tensor with this key in the state dict."""
        return renamed(key.removeprefix(self.prefix), self.rename)


@dataclass(frozen=True)
class TokenPredictor:
    """I-JEPA's predictor of the tokens of patches that the backbone does not see."""

    prefix: str


@dataclass(frozen=True)
class Branch:
    """One set of weights: the prefixes of its backbone and its heads."""

    # 'student' (trained), 'teacher' (its average, or a frozen target), 'encoder' where it is alone;
    # any other word for a third set of weights, such as 'gram'.
    name: str
    backbone: str  # prefix
    projector: Head | None = None
    predictor: Head | TokenPredictor | None = None
    # Name of a tensor of another branch -> its name in this backbone, which is used if this branch
    # lacks it.
    borrowed: Rename = ()
    aliases: tuple[str, ...] = ()  # other words for it in `--branch`

    @property
    def heads(self) -> dict[str, Head | TokenPredictor]:
        """Layer -> head, in the order of the forward pass."""
        heads = {"projector": self.projector, "predictor": self.predictor}
        return {layer: head for layer, head in heads.items() if head is not None}

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The prefixes of the backbone and the heads."""
        return self.backbone, *(head.prefix for head in self.heads.values())


@dataclass(frozen=True)
class Method:
    """One of the methods whose files by one library have the same layout."""

    name: str  # as the library's arguments spell it
    recipe: str  # the view recipe of its training
    present: tuple[str, ...] = ()  # patterns; each matches a tensor's name
    absent: tuple[str, ...] = ()  # patterns that match no tensor's name
    activation: str = ""  # in its heads, '' for the format's

    def fits(self, names: Collection[str]) -> bool:
        """Whether a file with tensors of these names may be of this method."""
        return fits(names, self.present, self.absent)


@dataclass(frozen=True)
class Format:
    """The checkpoints of one system."""

    name: str  # the value of --format
    title: str  # repository and kind of file
    present: tuple[str, ...]  # patterns that each match a name; more of them: more specific
    branches: tuple[Branch, ...]  # first the one that the authors evaluate
    source: str  # the code that defines the layout, and its revision
    recipe: str  # the view recipe of its training; with `methods`, if none of them fits
    methods: tuple[Method, ...] = ()  # a library's methods; the first that fits the names is used
    arguments: str = ""  # of the run: the key, or the JSON file next to the checkpoint
    datasets: tuple[tuple[str, str], ...] = DATASETS  # in the arguments -> pixel statistics
    # Name and value of an argument, and the key and value of `--assume` that it determines.
    assumed: tuple[tuple[str, object, str, Value], ...] = ()
    absent: tuple[str, ...] = ()  # patterns that match no tensor's name
    square: tuple[str, ...] = ()  # patterns of tensors that are square matrices
    axes: tuple[tuple[str, int], ...] = ()  # patterns of tensors -> number of their axes
    keys: tuple[str, ...] = ()  # top-level keys that the file has
    absent_keys: tuple[str, ...] = ()  # top-level keys that the file does not have
    config: tuple[tuple[str, str], ...] = ()  # entries of config.json, if it has these keys
    needs_config: bool = False  # whether the file has to have a config.json with these entries
    containers: tuple[str, ...] = ()  # containers that may hold the state dict; () for any
    nested: tuple[tuple[str, str], ...] = ()  # path of a nested dict -> prefix of its tensors
    class_prefix: str = ""  # pattern of a prefix on all names, which some classes add
    backbones: tuple[str, ...] = ("resnet", "vit")  # families, by name
    rename: Rename = ()  # names of the backbone's tensors -> torchvision's or timm's
    attention_heads: tuple[tuple[int, int], ...] = ()  # width of a ViT -> attention heads
    resize: str = ""  # how a ViT's positions are resized, see models/backbone.py; '': the family's
    position_offset: float | None = None  # of that resize, None for the family's
    eps: float | None = None  # LayerNorm's, None for the family's
    cifar_padding: int | None = None  # padding of a 3x3 stem
    unused: tuple[str, ...] = ()  # patterns of tensors that are recognised and not used
    # Pattern of tensors of a backbone; a ViT without them has its patch tokens averaged.
    mean_pooled_without: str = ""
    pixel_stats: str = "imagenet"  # of the training images; 'auto' for the recipe's
    recorded_stats: str = ""  # path of a dict in the file with their mean and std, '' for none
    small_pixel_stats: str = ""  # of images for a 3x3 stem or a small ViT; '' for pixel_stats
    image_size: int | None = None  # pixels a side that its authors evaluate at; None: as trained
    example: str = ""  # usual file names

    @property
    def recipes(self) -> tuple[str, ...]:
        """The view recipes of the format and its methods, the format's first."""
        return tuple(dict.fromkeys([self.recipe, *(one.recipe for one in self.methods)]))

    @property
    def specificity(self) -> int:
        """The number of conditions, which decides between several formats that match."""
        return len(self.present) + len(self.keys) + (len(self.config) if self.needs_config else 0)

    @property
    def why(self) -> str:
        """The conditions in words."""
        keys = f" and the keys {', '.join(self.keys)}" if self.keys else ""
        return f"tensors named {readable(self.present)}{keys}"


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name begins with one of the patterns."""
    return any(re.match(pattern, name) for pattern in patterns)


def fits(names: Collection[str], present: Iterable[str], absent: Iterable[str]) -> bool:
    """Whether each pattern of `present` matches a name, and none of `absent` does."""

    def occurs(pattern: str) -> bool:
        match = re.compile(pattern).match
        return any(match(name) for name in names)

    return all(map(occurs, present)) and not any(map(occurs, absent))


def readable(patterns: Iterable[str]) -> str:
    """The patterns joined with commas, without backslashes and a final $."""
    return ", ".join(pattern.replace("\\.", ".").removesuffix("$") for pattern in patterns)


def numbered(names: Iterable[str]) -> Rename:
    """The Rename from names of layers, such as fc1, bn1, '-', fc2, to their indices.

    '-' is an activation, which has no tensors and no name.
    """
    return tuple(
        (rf"{re.escape(name)}\.", f"{at}.") for at, name in enumerate(names) if name != "-"
    )


@dataclass(frozen=True)
class Training:
    """How a checkpoint was trained, as far as names and arguments determine it."""

    recipe: str
    pixel_stats: str
    why_stats: str  # the origin of the pixel statistics, '' for the format's
    activation: str  # in the heads, '' for the format's
    why_activation: str
    assumptions: tuple[str, ...]  # about views that neither names nor arguments determine


def training(
    format: Format, names: Collection[str], arguments: Mapping[str, Any], small: bool
) -> Training:
    """How a checkpoint with tensors of these names was trained.

    arguments: of the training run, empty if they were not saved. small: whether the backbone takes
    images of CIFAR's size. Since the arguments may be those of another run, they only decide
    between methods that fit the names.
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
    """The method, None for the format's recipe, and what is assumed about it, '' for nothing."""
    if not format.methods:
        return None, ""
    fitting = [candidate for candidate in format.methods if candidate.fits(names)]
    by_name = [candidate for candidate in fitting if candidate.name == method]
    if by_name or len({candidate.recipe for candidate in fitting}) == 1:
        return (by_name or fitting)[0], ""
    if not fitting:
        return None, f"views of {format.recipe}, since the names fit no known method"
    first, *others = fitting
    activations = [
        f", activation {other.activation} if {other.name} (--activation)"
        for other in others
        if other.activation != first.activation
    ]
    return first, (
        f"views of {first.recipe}, though the names may be those of "
        f"{' or '.join(other.name for other in others)} too (--views){''.join(activations)}"
    )


def _processor_stats(format: Format, mean: object, std: object) -> tuple[str, str]:
    """As `_pixel_stats`, from the values in a preprocessor_config.json."""
    file = "preprocessor_config.json"
    try:
        numbers = [",".join(map(str, part)) for part in (mean, std) if isinstance(part, list)]
        return statistics_text(*pixel_statistics("/".join(numbers))), file
    except SettingsError:
        return format.pixel_stats, f"usual: {file} has no three of pixels in [0, 1]"


def _pixel_stats(format: Format, arguments: Mapping[str, Any], small: bool) -> tuple[str, str]:
    """The pixel statistics, and their origin in words, '' if they are the format's."""
    if "image_mean" in arguments:
        return _processor_stats(format, arguments.get("image_mean"), arguments.get("image_std"))
    data = arguments.get("data")
    dataset = data.get("dataset") if isinstance(data, dict) else arguments.get("dataset")
    stats = dict(format.datasets).get(dataset) if isinstance(dataset, str) else None
    if stats is not None and str(dataset).startswith("cifar") == small:
        return stats, f"of {dataset}, which {format.arguments} names"
    if small and format.small_pixel_stats:
        return format.small_pixel_stats, "usual for images this small"
    return format.pixel_stats, ""
