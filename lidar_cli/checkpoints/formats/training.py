"""How a checkpoint was trained, as far as its file and the arguments beside it say."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lidar_cli.checkpoints.formats.format import Format, Method

SMALL = 64  # px; solo-learn and stable-pretraining train on CIFAR at 32
DATASETS = ("cifar10", "cifar100", "stl10", "imagenet", "imagenet100")


@dataclass(frozen=True)
class Training:
    """The views and pixel statistics of a checkpoint's training."""

    recipe: str
    pixel_stats: str
    why_stats: str  # where the pixel statistics are from, '' for the format's own
    activation: str  # in the heads, '' for the format's own
    why_activation: str
    assumptions: tuple[str, ...]  # what neither names nor arguments decide of the views


def training(
    format: Format, names: Collection[str], arguments: Mapping[str, Any], small: bool
) -> Training:
    """How a checkpoint with tensors of these names was trained.

    arguments: of the training, where they were saved. small: whether the backbone takes images of
    CIFAR's size. Arguments decide only between what the names leave open: they may be of another
    run.
    """
    method, assumed = _method(format, names, arguments.get("method"))
    named = method is not None and method.name == arguments.get("method")
    stats, why_stats = _pixel_stats(format, arguments, small)
    return Training(
        method.recipe if method else format.recipe,
        stats,
        why_stats,
        method.activation if method and named else "",
        f"of {method.name}, which {format.arguments} names" if method and named else "",
        (assumed,) if assumed else (),
    )


def _method(format: Format, names: Collection[str], method: object) -> tuple[Method | None, str]:
    """The method, None for that of the format, and what was assumed for it, '' for nothing."""
    if not format.methods:
        return None, ""
    fitting = [one for one in format.methods if one.fits(names)]
    named = [one for one in fitting if one.name == method]
    if named or len({one.recipe for one in fitting}) == 1:
        return (named or fitting)[0], ""
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
    """The pixel statistics, and where they are from, '' for the format's own."""
    data = arguments.get("data")
    dataset = data.get("dataset") if isinstance(data, dict) else arguments.get("dataset")
    if dataset in DATASETS and dataset.startswith("cifar") == small:
        stats = "imagenet" if dataset == "imagenet100" else dataset
        return stats, f"of {dataset}, which {format.arguments} names"
    if small and format.small_pixel_stats:
        return format.small_pixel_stats, "usual for images this small"
    return format.pixel_stats, ""
