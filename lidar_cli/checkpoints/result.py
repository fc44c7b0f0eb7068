"""What was recognised in a checkpoint, and the tensors of each part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lidar_cli.checkpoints.assume import Assumed
from lidar_cli.checkpoints.models.weights import compare, shapes_of, size, some
from lidar_cli.checkpoints.reading.lazy_tensor import Weight
from lidar_cli.checkpoints.shapes import predictor
from lidar_cli.checkpoints.shapes.mlp_head import HeadSpec
from lidar_cli.checkpoints.shapes.predictor import PredictorSpec
from lidar_cli.checkpoints.shapes.spec import FoundBackbone
from lidar_cli.errors import CheckpointError

STATS = "pixel_stats"


@dataclass(frozen=True)
class Description:
    """What was recognised; needs no tensor's values."""

    format: str
    arch: str
    image_size: int | None  # pixels a side, None where the weights do not tell
    widths: dict[str, int]  # layer -> length of its embedding
    container: str  # keys down to the state dict, with dots; '' for the file itself
    prefix: str  # of the backbone in it
    ignored: tuple[str, ...]  # known modules and tensors that are not used
    parameters: int  # numbers in the tensors used, without BatchNorm's statistics
    assumed: Mapping[str, Assumed] = field(default_factory=dict)  # what the weights leave open
    assumptions: tuple[str, ...] = ()  # what else is assumed, in words
    branch: str = "encoder"
    branches: tuple[str, ...] = ("encoder",)  # all in the file, the default one first
    recipe: str | None = None  # name of the view recipe that the system was trained with
    pixel_stats: str = "auto"  # of the images that it was trained with; 'auto' for the recipe's
    why: str = ""  # how the format was told
    branch_reason: str | None = None  # why another branch than the default one was taken
    patch: int | None = None  # pixels a side, of a backbone that sees patches
    masks: tuple[str, ...] = ()  # rules under which it can be embedded, see views.mask_rules
    stand_ins: tuple[str, ...] = ()  # foreign names in the file, of which nothing was made

    @property
    def assumed_text(self) -> str:
        """All that is assumed, '' for nothing."""
        return "; ".join([*(one.text(key) for key, one in self.assumed.items()), *self.assumptions])

    @property
    def note(self) -> str | None:
        """What to tell of foreign names, None if there are none."""
        told = f"names {some(self.stand_ins, 6)}: stand-ins, nothing was imported or called"
        return told if self.stand_ins else None


@dataclass(frozen=True)
class FoundHead:
    """A projector or predictor, and its tensors by the names of its module."""

    spec: HeadSpec | PredictorSpec
    tensors: Mapping[str, Weight]


@dataclass(frozen=True)
class Found:
    """A description, and the tensors by the names of the modules that they fill."""

    description: Description
    backbone: FoundBackbone
    heads: Mapping[str, FoundHead]  # by layer, in the order of the forward pass


def describe(
    backbone: FoundBackbone,
    heads: Mapping[str, FoundHead],
    *,
    container: str,
    prefix: str,
    ignored: tuple[str, ...],
    branch: str = "encoder",
) -> Description:
    """The description of a backbone and its heads."""
    used = [*backbone.tensors.items()]
    assumed, notes = backbone.assumed, []
    for layer, head in heads.items():
        used += head.tensors.items()
        if isinstance(head.spec, HeadSpec):
            assumed |= head.spec.assumed
            notes += [note.replace("projector", layer) for note in head.spec.notes]
    return Description(
        format=backbone.format,
        arch=backbone.arch,
        image_size=backbone.image_size,
        widths={"backbone": backbone.width} | {name: h.spec.width for name, h in heads.items()},
        container=container,
        prefix=prefix,
        ignored=ignored,
        parameters=sum(size(t) for name, t in used if not _is_statistic(name)),
        assumed=assumed,
        assumptions=tuple(notes),
        branch=branch,
        patch=getattr(backbone.spec, "patch", None),
        masks=_masks(backbone, teacher=branch == "teacher"),
    )


def take_predictor(
    path: Path, prefix: str, left: dict[str, Weight], backbone: FoundBackbone
) -> FoundHead | None:
    """I-JEPA's predictor, removed from the tensors that are left; None if it is not in the file.

    Raises CheckpointError if a tensor of it is missing or has no place, or the backbone gives it
    other tokens than those of patches alone.
    """
    keys = [key for key in left if key.startswith(prefix)]
    tensors = {key.removeprefix(prefix): left.pop(key) for key in keys}
    if not tensors:
        return None
    origin = f"{path}: {prefix.rstrip('.')}"
    if "multi-block" not in _masks(backbone, teacher=False):
        raise CheckpointError(
            f"{origin}: a predictor of patch tokens behind a {backbone.arch}; expected I-JEPA's "
            "ViT without class token, told by its shapes; leave --arch out, or name your own code "
            "with --model"
        )
    spec = predictor.spec(shapes_of(tensors), backbone.spec.heads, origin, eps=backbone.spec.eps)
    compare(spec.shapes(), shapes_of(tensors), origin)
    if (spec.width, spec.grid) != (backbone.width, backbone.spec.grid):
        raise CheckpointError(
            f"{origin}: works on {spec.grid} x {spec.grid} tokens of {spec.width} numbers; "
            f"expected those of the {backbone.arch}; name your own code with --model"
        )
    return FoundHead(spec, tensors)


def original_prefix(backbone: FoundBackbone, originals: Mapping[str, str]) -> str:
    """The prefix with what wrappers added to it: 'module.backbone.' rather than 'backbone.'."""
    key = min(backbone.keys)
    return originals[key].removesuffix(key.removeprefix(backbone.prefix))


def _masks(backbone: FoundBackbone, teacher: bool) -> tuple[str, ...]:
    """The rules under which it can be embedded; none where timm's name was given for its shapes."""
    told: tuple[str, ...] = ()
    if hasattr(backbone.spec, "masks"):
        told = backbone.spec.masks(teacher)
    return told


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
