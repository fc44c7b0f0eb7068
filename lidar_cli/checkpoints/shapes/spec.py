"""The base of all specs, and `--assume`.

A spec has the sizes of a module, derived from the names and shapes of its weights. For values that
the weights leave open, it has the origin of the present value (`why`); for the other keys of
`--assume`, what determines them (`decided`). This file needs no torch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

from lidar_cli.checkpoints.models.weights import first_few
from lidar_cli.checkpoints.reading.lazy_tensor import Weight
from lidar_cli.checkpoints.shapes.inner import InnerLayer, names_of
from lidar_cli.errors import CheckpointError, SettingsError, nearest
from lidar_cli.settings import PATCHES
from lidar_cli.views.recipes import pixel_statistics

Shapes = Mapping[str, tuple[int, ...]]
Rename = tuple[tuple[str, str], ...]  # (pattern, replacement), applied in order
Value = int | float | str | tuple[int, ...]
BY_USER = "--assume"  # the `why` of a value that the user sets
USUAL = "usual"  # the `why` of a default
GRID = "grid"  # the key whose value is rows x columns


class NotOpen(SettingsError):
    """`--assume` gives a value for a key that the file determines."""

    code = "not-open"


@dataclass(frozen=True)
class Assumed:
    """A value that the weights leave open, and its origin."""

    value: Value
    why: str

    def text(self, key: str) -> str:
        """Such as 'heads=6 (usual for width 384)'."""
        return f"{key}={as_text(self.value, 'x' if key == GRID else ',')} ({self.why})"


@dataclass(frozen=True, kw_only=True)
class ModuleSpec:
    """Base of all specs. The keys of `--assume` are names of fields, except pixel_stats.

    The spec of a backbone also has `arch`, such as 'resnet18 (width 16)', the `width` of its
    embedding, and `image_size`, in pixels a side or None if the weights do not determine it.
    """

    why: Mapping[str, str] = field(default_factory=dict)  # open key -> origin of its value
    decided: Mapping[str, str] = field(default_factory=dict)  # other key -> what determines it

    token_width: ClassVar[int | None] = None  # of patch tokens, for a backbone that keeps them
    any_size: ClassVar[bool] = True  # whether the module takes images of other sizes
    notes: ClassVar[tuple[str, ...]] = ()  # other assumptions, in words

    @property
    def assumed(self) -> dict[str, Assumed]:
        """Open key -> its present value and the origin."""
        return {key: Assumed(getattr(self, key), why) for key, why in self.why.items()}

    @property
    def facts(self) -> str:
        """All that determines the module in addition to its weights, as text."""
        origins = ("why", "decided")
        return repr(
            [getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in origins]
        )

    @property
    def output_width(self) -> int:
        """The width of the module's output; another than `width` for a ViT with a last Linear."""
        return int(self.width)  # type: ignore[attr-defined]

    def assume(self, key: str, value: Value, why: str) -> Self:
        """The spec with another value for an open key; unchanged if the key is not open."""
        if key not in self.why:
            return self
        changes: dict[str, Any] = {key: value, "why": {**self.why, key: why}}
        return dataclasses.replace(self, **changes)

    def decide(self, key: str, how: str) -> Self:
        """The spec with a key that is no longer open."""
        why = {name: text for name, text in self.why.items() if name != key}
        changes: dict[str, Any] = {"why": why, "decided": {**self.decided, key: how}}
        return dataclasses.replace(self, **changes)

    def masks(self, teacher: bool) -> tuple[str, ...]:
        """Names of the mask rules that the embedding supports.

        teacher: whether the module sees unmasked images, and so needs no mask token.
        """
        return ()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor of the module, without building it."""
        raise NotImplementedError


def with_notes(name: str, notes: list[str]) -> str:
    """The name with notes in brackets, as in 'name (note, note)'."""
    return f"{name} ({', '.join(notes)})" if notes else name


def channels_note(channels: int) -> list[str]:
    """A note for a name of a model whose images have not three channels."""
    return [] if channels == 3 else ["1 channel" if channels == 1 else f"{channels} channels"]


def renamed(name: str, rename: Rename) -> str:
    """The name after each pattern is replaced in turn, at the beginning of the name."""
    for pattern, replacement in rename:
        name = re.sub(f"^(?:{pattern})", replacement, name)
    return name


def linear(name: str, out: int, into: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a linear layer."""
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def embedding_shapes(weight: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of a last Linear layer, whose weight may be that of a 1x1 convolution."""
    return {"embedding.weight": weight, "embedding.bias": weight[:1]}


def layernorm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a LayerNorm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def repeated(blocks: str, depth: int, block: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of `depth` equal blocks, named by their index."""
    return {f"{blocks}.{i}.{name}": shape for i in range(depth) for name, shape in block.items()}


def number_of_blocks(shapes: Shapes, blocks: str = "blocks") -> int:
    """The number of blocks in the module list of that name."""
    pattern = re.compile(rf"{re.escape(blocks)}\.(\d+)\.")
    return len({match[1] for name in shapes if (match := pattern.match(name))})


def convolution(name: str, into: int, out: int, kernel: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a convolution with a bias."""
    return {f"{name}.weight": (out, into, kernel, kernel), f"{name}.bias": (out,)}


def batchnorm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of an affine BatchNorm."""
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (width,) for part in vectors} | {f"{name}.num_batches_tracked": ()}


S = TypeVar("S", bound=ModuleSpec)


def assume_all(spec: S, values: Mapping[str, Value]) -> S:
    """The spec with the user's values for its open keys."""
    for key, value in values.items():
        spec = spec.assume(key, value, BY_USER)
    return spec


def check_all_open(
    values: Mapping[str, Value],
    assumed: Mapping[str, Assumed],
    decided: Mapping[str, str],
    origin: str,
) -> None:
    """Raise NotOpen if the user sets a key that no module leaves open.

    assumed: the open keys. decided: key -> what determines it.
    """
    for key in [key for key in values if key not in assumed]:
        raise NotOpen(
            f"--assume {key}={as_text(values[key])}: {origin}: "
            f"{decided.get(key, f'nothing in it has {key}')}; leave it out, or name the system "
            f"that it is for, as in --assume SYSTEM:{key}={as_text(values[key])}"
        )


def as_text(value: Value, separator: str = ",") -> str:
    """A value in the form that `--assume` takes."""
    if isinstance(value, tuple):
        return separator.join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(text: str, kind: type, least: float, most: float) -> Any:
    value = kind(text)
    if not least <= value <= most:
        raise ValueError
    return value


def _one_of(*names: str) -> tuple[Callable[[str], Value], str]:
    def parse(text: str) -> Value:
        if text not in names:
            raise ValueError
        return text

    return parse, " or ".join(names)


def _strides(text: str) -> Value:
    return tuple(_number(part, int, 1, 4) for part in text.split(","))


def _grid(text: str) -> Value:
    rows, columns = text.lower().split("x")
    return _number(rows, int, 1, 4096), _number(columns, int, 1, 4096)


def _pixel_stats(text: str) -> Value:
    if text == "auto":  # valid for --pixel-stats, but assumes nothing
        raise ValueError
    pixel_statistics(text)
    return text


# Key of `--assume` -> the parser of its values, and the values in words.
ASSUME_KEYS: dict[str, tuple[Callable[[str], Value], str]] = {
    "heads": (lambda text: _number(text, int, 1, 256), "a number of attention heads"),
    "eps": (lambda text: _number(text, float, 0, 0.1), "LayerNorm's, such as 1e-6"),
    "activation": _one_of("relu", "gelu"),
    "gate": _one_of("silu", "gelu"),
    "stem_padding": (lambda text: _number(text, int, 0, 8), "pixels, such as 1 or 2"),
    "stem_pool": _one_of("max", "none"),
    "block_activation": _one_of("gelu", "quick_gelu", "gelu_tanh"),
    "strides": (_strides, "one a stage, such as 1,2,2,2"),
    GRID: (_grid, "rows x columns of patches, such as 14x28"),
    "pixel_stats": (_pixel_stats, "what --pixel-stats takes but auto"),
    "position_offset": (lambda text: _number(text, float, 0, 0.9), "patches, such as 0 or 0.1"),
    "rope_base": (lambda text: _number(text, float, 1, 1e9), "of rotary positions, such as 100"),
    "frames": (lambda text: _number(text, int, 1, 256), "as which a still is repeated, such as 16"),
}


@dataclass(frozen=True)
class AssumeValues:
    """The parsed values of `--assume`: for all systems, and for single ones."""

    for_all: Mapping[str, Value]
    by_system: Mapping[str, Mapping[str, Value]]

    def of(self, system: str) -> dict[str, Value]:
        """Key -> value for the files of a system."""
        return {**self.for_all, **self.by_system.get(system, {})}


def parse_assumptions(texts: Sequence[str], systems: Iterable[str]) -> AssumeValues:
    """The values of `--assume`, given as KEY=VALUE or SYSTEM:KEY=VALUE.

    Raises SettingsError for an unknown system or key, an invalid value, or two values of one key.
    """
    for_all: dict[str, Value] = {}
    by_system: dict[str, dict[str, Value]] = {}
    for text in texts:
        name, equals, given = (part.strip() for part in text.partition("="))
        system, colon, key = name.rpartition(":")
        key = key.replace("-", "_")
        if not equals or key not in ASSUME_KEYS:
            problem = f"no key {key!r}" if equals else "expected KEY=VALUE"
            raise SettingsError(
                f"--assume {text}: {problem}; the keys are {', '.join(ASSUME_KEYS)}",
                code="no-such-key",
            )
        if colon and system not in (names := list(systems)):
            raise SettingsError(f"--assume {text}: {nearest(system, names)}", code="no-such-system")
        parser, takes = ASSUME_KEYS[key]
        try:
            value = parser(given)
        except SettingsError as error:
            raise SettingsError(f"--assume {text}: {error}", code="assumed-value") from error
        except ValueError as error:
            raise SettingsError(
                f"--assume {text}: {key} takes {takes}", code="assumed-value"
            ) from error
        values = by_system.setdefault(system, {}) if colon else for_all
        if values.setdefault(key, value) != value:
            raise SettingsError(
                f"--assume {text}: {key} is {as_text(values[key])} already; give one of them",
                code="assumed-twice",
            )
    return AssumeValues(for_all, by_system)


PIXEL_STATS = "pixel_stats"  # the key of --assume that is not a field of a spec


@dataclass(frozen=True)
class CheckpointDescription:
    """What a checkpoint file contains, derived from the names and shapes of its tensors."""

    format: str
    arch: str
    image_size: int | None  # pixels a side, None if the weights do not determine it
    widths: dict[str, int]  # layer -> length of its embedding
    container: str  # keys of the state dict, joined with dots; '' for the file itself
    prefix: str  # of the backbone's tensors in the state dict
    ignored: tuple[str, ...]  # recognised modules and tensors that are not used
    parameters: int  # number of parameters in use, without BatchNorm's statistics
    stats_source: str = ""  # what in the file has the pixel statistics, '' for nothing
    assumed: Mapping[str, Assumed] = field(default_factory=dict)  # values the weights leave open
    assumptions: tuple[str, ...] = ()  # other assumptions, in words
    branch: str = "encoder"
    branches: tuple[str, ...] = ("encoder",)  # all branches in the file, the default first
    recipe: str | None = None  # name of the view recipe of its training
    pixel_stats: str = "auto"  # of its training images; 'auto' for the recipe's
    why: str = ""  # how the format was recognised
    branch_reason: str | None = None  # why the branch is not the default one
    patch: int | None = None  # pixels a side of a ViT's patches, None for other backbones
    token_width: int | None = None  # of patch tokens, None for a backbone that keeps none
    selected: Mapping[str, str] = field(default_factory=dict)  # prefixes that the user gave
    configured: str = ""  # with a config.json: digest of all that determines the modules
    channels: int = 3  # of the images that the backbone takes
    masks: tuple[str, ...] = ()  # mask rules that its embedding supports, see views/masks.py
    inner: Mapping[str, InnerLayer] = field(default_factory=dict)  # those of `widths` in a backbone
    stand_ins: tuple[str, ...] = ()  # foreign names in the file, neither imported nor run

    def widths_of(self, option: str) -> dict[str, int]:
        """The layers that `--layer` names, by depth, and the length of their embeddings.

        auto means the projector if there is one, else the backbone.
        Raises CheckpointError for a layer that the checkpoint has not.
        """
        available = dict(self.widths)
        if self.token_width is not None:
            available[PATCHES] = self.token_width
        if option == "auto":
            option = "projector" if "projector" in available else "backbone"
        names = names_of(option)
        for name in names:
            if name == PATCHES and name not in available:
                raise CheckpointError(
                    "no patch tokens in this checkpoint's backbone, as a Vision Transformer has: "
                    f"use --layer {next(iter(available))}",
                    code="no-patches",
                )
            if name not in available:
                raise CheckpointError(
                    f"no layer {name!r} in this checkpoint; it has {', '.join(available)}: "
                    f"use --layer {next(iter(available))}"
                )
        return {name: width for name, width in available.items() if name in names}

    @property
    def assumed_text(self) -> str:
        """All assumptions in words, '' if there are none."""
        values = [value.text(key) for key, value in self.assumed.items()]
        return "; ".join([*values, *self.assumptions])

    @property
    def stand_ins_text(self) -> str | None:
        """A sentence about the foreign names in the file, None if there are none."""
        if not self.stand_ins:
            return None
        return f"names {first_few(self.stand_ins, 6)}: stand-ins, nothing was imported or called"


@dataclass(frozen=True)
class Assignment:
    """A module to build, and the tensors of the file that fill it.

    The fields after `tensors` are set for a backbone only.
    """

    spec: Any  # a ModuleSpec, which also lists the fields that only a backbone's spec has
    tensors: Mapping[str, Weight]  # name in the module's state dict -> tensor
    title: str = ""  # the format to report if the file matches no format
    keys: frozenset[str] = frozenset()  # keys of these tensors in the state dict
    prefix: str = ""  # common prefix of those keys
    unused_prefixes: tuple[str, ...] = ()  # prefixes of tensors that only training needs
    classifiers: tuple[str, ...] = ()  # names of its linear classifiers, which are ignored
    dropped: tuple[str, ...] = ()  # names of its tensors that timm's conversion drops
