"""The timm model that `--arch NAME` or config.json names, with the file's weights."""

from __future__ import annotations

import contextlib
import io
import math
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lidar_cli.checkpoints.models.backbone import Backbone
from lidar_cli.checkpoints.models.weights import compare, first_few, shapes, shapes_of
from lidar_cli.checkpoints.reading.containers import StateDict
from lidar_cli.checkpoints.reading.lazy_tensor import Weight, materialised
from lidar_cli.checkpoints.shapes import vit
from lidar_cli.checkpoints.shapes.spec import (
    ASSUME_KEYS,
    BY_USER,
    GRID,
    Assignment,
    ModuleSpec,
    Value,
)
from lidar_cli.errors import CheckpointError, SettingsError, nearest

# Relative precision at which files store the buffers that a model computes when it is built.
BFLOAT16 = 2**-7


class TimmBackbone(Backbone):
    """A timm model with its pooling and without classifier."""

    def __init__(self, model: Any, arch: str, built_with: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.arch = arch
        self.built_with = dict(built_with)  # arguments of timm.create_model
        self.channels: int = self.built_with.get("in_chans", 3)
        # Some models have a hidden layer between the pooled features and the classifier.
        self.width = int(getattr(model, "head_hidden_size", None) or model.num_features)
        fixed = model.pretrained_cfg.get("fixed_input_size", False)
        size = model.pretrained_cfg["input_size"][-1]
        embed = getattr(model, "patch_embed", None)
        self.sides = tuple(getattr(embed, "img_size", None) or (size, size)) if fixed else None
        self.image_size = min(self.sides) if self.sides else None

    @property
    def weights(self) -> nn.Module:
        """timm's module."""
        return self.model  # type: ignore[no-any-return]

    def remade(self) -> TimmBackbone:
        """The same model with timm's initialisation, by torch's generator."""
        usual = self.model.pretrained_cfg["input_size"][-1]
        sizes = {} if self.image_size in (None, usual) else {"img_size": self.image_size}
        arguments = {**self.built_with, **sizes}
        return TimmBackbone(_create(self.arch, **arguments), self.arch, arguments)

    def set_image_size(self, size: int) -> None:
        """Resize what depends on the image size; raises CheckpointError if the model cannot."""
        if self.sides in (None, (size, size)):
            return
        refusal = CheckpointError(
            f"{self.arch} takes images of {self.image_size} pixels and not of {size}; "
            f"use --image-size {self.image_size}",
            code="image-size",
        )
        patch = getattr(getattr(self.model, "patch_embed", None), "patch_size", (1, 1))
        if size % patch[0]:  # timm would drop the pixels of the last, incomplete patch
            raise refusal
        try:
            self.model.set_input_size((size, size))
        except Exception as error:  # no such method, or a size that later stages do not divide
            raise refusal from error
        self.sides, self.image_size = (size, size), size

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Tokens [b, N, width] of all patches, without class token and registers."""
        tokens: Tensor = self.model.forward_features(images)
        return tokens[:, self.model.num_prefix_tokens :]

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, channels, S, S]."""
        embeddings: Tensor = self.model(images)
        return embeddings


@dataclass(frozen=True)
class TimmSpec(ModuleSpec):
    """A timm model; of the keys of `--assume` at most `grid` is open."""

    backbone: TimmBackbone
    grid: tuple[int, ...] = ()  # rows and columns of patches, as the user gave them

    any_size: ClassVar[bool] = False

    @property
    def facts(self) -> str:
        """As in `ModuleSpec`."""
        return repr((self.arch, self.grid, sorted(self.backbone.built_with.items())))

    @property
    def arch(self) -> str:
        """The name of the model in timm."""
        return self.backbone.arch

    @property
    def width(self) -> int:
        """The width of the embedding."""
        return self.backbone.width

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.backbone.channels

    @property
    def token_width(self) -> int | None:  # type: ignore[override]
        """The width of patch tokens, for a model whose features are tokens."""
        model = self.backbone.model
        return int(model.num_features) if hasattr(model, "num_prefix_tokens") else None

    @property
    def image_size(self) -> int | None:
        """Pixels a side, None for a model that takes any size."""
        return self.backbone.image_size


def assign_timm(
    path: Path, state: StateDict, arch: str, prefix: str, assume: Mapping[str, Value]
) -> Assignment:
    """The timm model of that name, and the tensors of the state dict that fill it.

    The names in the file are tried first, then those after timm's conversion for that model.
    prefix: of the model's tensors, see `prefixes`. assume: values of `--assume`, of which a ViT
    uses the grid.
    Raises SettingsError for a name unknown to timm, CheckpointError if the weights are not those of
    the model.
    """
    model = _create(arch)
    inside = {k.removeprefix(prefix): t for k, t in state.tensors.items() if k.startswith(prefix)}
    arguments: dict[str, Any] = _channels(model, inside)
    grid: Any = ()
    if isinstance(model, VisionTransformer) and "patch_embed.proj.weight" in inside:
        grid = assume.get(GRID, ())
        arguments |= _sides(model, inside, grid, str(path))
    if arguments:
        model = _create(arch, **arguments)
    expected, dropped = shapes(model), []
    tensors = {name: tensor for name, tensor in inside.items() if name in expected}
    keys = frozenset(prefix + name for name in tensors)
    if not _fits(expected, tensors):
        converted = _convert(model, inside)
        if _fits(expected, {n: t for n, t in converted.items() if n in expected}):
            tensors = {n: t for n, t in converted.items() if n in expected}
            # Tensors that the conversion drops are reported as unused; its surplus results are not.
            surplus = converted.keys() - expected.keys()
            keys = frozenset(prefix + name for name in inside if name not in surplus)
            dropped = _check_dropped(
                path, arch, model, {n: inside[n] for n in inside if prefix + n in keys}
            )
    compare(expected, shapes_of(tensors), f"{path}: {arch}")
    classifier = model.pretrained_cfg.get("classifier") or ()
    decided = dict.fromkeys(ASSUME_KEYS, f"timm's {arch} decides it")
    why = {GRID: BY_USER} if grid else {}
    return Assignment(
        spec=TimmSpec(TimmBackbone(model, arch, arguments), tuple(grid), why=why, decided=decided),
        tensors=tensors,
        title="timm model",
        keys=keys,
        prefix=prefix,
        dropped=(first_few(dropped, 6),) if dropped else (),
        classifiers=(classifier,) if isinstance(classifier, str) else tuple(classifier),
    )


def prefixes(arch: str, state: StateDict) -> list[str]:
    """The prefixes under which at least half of a model's names are; '' alone if none is.

    Raises SettingsError for a name unknown to timm.
    """
    names = list(_names(arch))
    candidates = {
        key.removesuffix(name)
        for name in (names[0], names[-1])
        for key in state.tensors
        if key == name or key.endswith(f".{name}")
    }
    counts = {
        prefix: sum(prefix + name in state.tensors for name in names)
        for prefix in sorted(candidates)
    }
    return [prefix for prefix, count in counts.items() if 2 * count >= len(names)] or [
        max(counts, key=lambda prefix: counts[prefix], default="")
    ]


def _names(arch: str) -> Iterable[str]:
    """The names of a model's tensors, without memory for them where timm can do without."""
    try:
        with torch.device("meta"):
            return list(_create(arch).state_dict())
    except RuntimeError:  # some models read values of tensors during construction
        return list(_create(arch).state_dict())


def _create(arch: str, **arguments: Any) -> Any:
    if not timm.is_model(arch):
        hint = nearest(arch, timm.list_models())
        hint = hint if hint.startswith("did you") else "timm.list_models() names all"
        raise SettingsError(f"--arch {arch}: timm has no such model; {hint}", code="no-such-model")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for model names that timm has changed
            return timm.create_model(arch, pretrained=False, num_classes=0, **arguments)
    except Exception as error:  # an unknown tag, or a model that needs another package
        message = str(error).strip().split("\n")[0]
        raise SettingsError(
            f"--arch {arch}: timm cannot make it: {message}", code="timm-cannot-build"
        ) from error


def _channels(model: Any, tensors: Mapping[str, Weight]) -> dict[str, Any]:
    """timm's argument for images that have not three channels, by the first convolution."""
    first = model.pretrained_cfg.get("first_conv") or ()
    for name in (first,) if isinstance(first, str) else tuple(first):
        shape = tuple(tensors[f"{name}.weight"].shape) if f"{name}.weight" in tensors else ()
        if len(shape) == 4 and shape[1] != 3:
            return {"in_chans": shape[1]}
    return {}


def _sides(model: Any, tensors: Mapping[str, Weight], grid: Any, origin: str) -> dict[str, Any]:
    """timm's argument for the image size of the position embedding, {} for the usual one.

    grid: rows and columns of patches, () if they form a square. Raises CheckpointError if they do
    not.
    """
    embed = model.patch_embed
    if embed.img_size is None:  # a model for any size
        return {}
    # Not embed.patch_size: in a hybrid, that counts outputs of its convolutions.
    pixels = embed.img_size[0] // embed.grid_size[0]
    positions = shapes_of(tensors)
    side = vit.grid_of_positions(positions)
    tokens = positions.get("pos_embed", (0, 0))[1]
    prefix = model.num_prefix_tokens
    fits = tokens - math.prod(grid) in (0, prefix) if grid else side > 0
    if tokens > 1 and not fits:
        raise vit.unknown_grid(tokens, prefix, origin)
    sides = tuple(pixels * patches for patches in grid or (side, side))
    return {} if sides in ((0, 0), tuple(embed.img_size)) else {"img_size": sides}


def _convert(model: Any, tensors: dict[str, Weight]) -> dict[str, Weight]:
    """The tensors after timm's conversion of other projects' names; {} if it fails."""
    try:
        return {**_converted({name: materialised(t) for name, t in tensors.items()}, model)}
    except Exception:  # the conversion expects other files
        return {}


def _converted(tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return {}
    with contextlib.redirect_stdout(io.StringIO()):  # some of timm's filters print
        return dict(convert(tensors, model))


def _check_dropped(path: Path, arch: str, model: Any, tensors: Mapping[str, Weight]) -> list[str]:
    """Names of the tensors that timm's conversion drops.

    Raises CheckpointError if dropping one changes the embedding: if it belongs to a layer that is
    used and is not zero, or if it differs from the buffer that the model computes in its place.
    """
    influence = _influence(model, tensors)
    dropped = [name for name, used in influence.items() if not used.any()]
    layers = {name.rpartition(".")[0] for name, used in influence.items() if used.any()} - {""}
    computed = {name.rpartition(".")[2]: buffer for name, buffer in model.named_buffers()}
    wrong = []
    for name, used in influence.items():
        layer, _, last = name.rpartition(".")
        if used.all() or name.removesuffix("_mask") in tensors.keys() - {name}:
            continue
        value = materialised(tensors[name])
        if f"{name}_mask" in tensors:
            value = torch.where(materialised(tensors[f"{name}_mask"]) == 0, 0, value)
        if last in computed and computed[last].shape == value.shape:
            differs = not torch.allclose(value.float(), computed[last].float(), rtol=BFLOAT16)
        else:
            differs = layer in layers and bool((value[~used] if used.dim() else value).any())
        wrong += [name] if differs else []
    if wrong:
        other = f"{arch}_qkvb"  # timm's suffix for the same model with biases of q and v
        biased = timm.is_model(other) and all(name.endswith(".qkv.bias") for name in wrong)
        model_name = f"the model with biases, --arch {other}" if biased else "another with --arch"
        raise CheckpointError(
            f"{path}: timm's conversion for {arch} drops {first_few(wrong)}, on which the "
            f"embedding depends; name {model_name}, or your own code with --model",
            code="timm-drops-tensors",
        )
    return dropped


def _influence(model: Any, tensors: Mapping[str, Weight]) -> dict[str, Tensor]:
    """Name -> bool, whether timm's conversion uses the tensor; for a vector, each of its elements.

    Autograd traces the conversion of zeros; if that fails, all tensors count as used.
    """
    floating = {n: t for n, t in tensors.items() if "float" in str(t.dtype)}
    leaves = {
        name: (
            torch.zeros(t.shape) if len(t.shape) == 1 else torch.zeros(()).expand(t.shape)
        ).requires_grad_()
        for name, t in floating.items()
    }
    all_used = torch.tensor(True)
    try:
        outputs = _converted(dict(leaves), model).values()
    except Exception:  # a conversion that depends on values
        return dict.fromkeys(tensors, all_used)
    reached = _reached(outputs)
    used = {name: torch.tensor(id(leaf) in reached) for name, leaf in leaves.items()}
    vectors = {name: leaf for name, leaf in leaves.items() if leaf.dim() == 1 and used[name]}
    total = sum((one.sum() for one in outputs if one.requires_grad), torch.zeros(()))
    if vectors:
        gradients = torch.autograd.grad(total, list(vectors.values()), allow_unused=True)
        for name, gradient in zip(vectors, gradients, strict=True):
            used[name] = all_used if gradient is None else gradient != 0
    return used


def _reached(outputs: Iterable[Any]) -> set[int]:
    """Ids of the outputs, and of the leaves of their autograd graph."""
    ids = {id(one) for one in outputs}
    todo = [one.grad_fn for one in outputs if one.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if hasattr(node, "variable"):
            ids.add(id(node.variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return ids


def _fits(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Weight]) -> bool:
    try:
        compare(expected, shapes_of(tensors), "")
    except CheckpointError:
        return False
    return True
