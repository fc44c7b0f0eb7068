"""What decides the numbers of a feature file, settled before any of them is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch

from lidar_cli.checkpoints.assume import SET, Assumed
from lidar_cli.checkpoints.models.user_module import source as own_source
from lidar_cli.checkpoints.result import STATS, Description
from lidar_cli.data.dataset import Samples
from lidar_cli.errors import CheckpointError, SettingsError
from lidar_cli.features.schema import EMBEDDING_REVISION, Layout, revision_of
from lidar_cli.settings import ExtractSettings, SampleSettings
from lidar_cli.views.lookup import find_recipe
from lidar_cli.views.methods import RECIPES
from lidar_cli.views.pipeline import Views
from lidar_cli.views.recipes import Recipe, pixel_statistics, statistics_text

DEFAULT_IMAGE_SIZE = 224


@dataclass(frozen=True)
class Plan:
    """Everything that decides the numbers of a feature file, before any is computed."""

    views: Views
    layout: Layout
    precision: str
    provenance: dict[str, Any]  # all of it but the batch size, which needs the model to be found

    @property
    def identity(self) -> dict[str, Any]:
        """What the embeddings mean: equal for files that are interchangeable in a ranking."""
        return identity(self.provenance)

    @cached_property
    def key(self) -> str:
        """A file name for the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]


def identity(provenance: dict[str, Any]) -> dict[str, Any]:
    """The part of a provenance that says what the embeddings mean, as JSON gives it back.

    Batch size, device, compiler and library versions change rounding only, and paths nothing: the
    checkpoint and the samples are known by their content, whatever was left out beside them. The
    embedding revision stands for the code, and the statistics of pixels are the views'.
    """
    told: dict[str, Any] = json.loads(json.dumps(provenance))
    for name in (
        *("checkpoint", "data", "assumptions", "layer_reason", "activation"),
        *("batch_size", "device", "compiled", "bad_samples"),
    ):
        told.pop(name, None)
    told.pop("versions", None)
    assumed = told.get("assumed") or {}
    told["assumed"] = {key: one.get("value") for key, one in assumed.items() if key != STATS}
    told["embedding_revision"] = revision_of(provenance)
    return told


def choose_layers(asked: str, available: Sequence[str]) -> list[str]:
    """Layer names from `--layer`; auto is the projector if there is one.

    Raises CheckpointError if a layer is not there.
    """
    if asked == "auto":
        asked = "projector" if "projector" in available else "backbone"
    names = [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        if name not in available:
            raise CheckpointError(
                f"no layer {name!r} in this checkpoint; it has {', '.join(available)}: "
                f"use --layer {available[0]}"
            )
    return list(dict.fromkeys(names))


def choose_recipe(settings: SampleSettings, description: Description) -> Recipe:
    """The recipe that is asked for; for auto that of the method which trained the checkpoint.

    So are the pixel statistics, unless a [recipe] table has some.
    Raises SettingsError for a name or a [recipe] key that is not known, and for pixel statistics
    that are given twice.
    """
    stats: str = settings.pixel_stats
    assumed = description.assumed.get(STATS)
    of_table = _statistics_of_table(settings)
    if assumed is not None and assumed.why == SET:
        if of_table:
            raise SettingsError(
                f"--assume pixel_stats={assumed.value} and [recipe] {' and '.join(of_table)} are "
                "two values of one; leave one of them out"
            )
        if stats not in ("auto", assumed.value):
            raise SettingsError(
                f"--pixel-stats {stats} and --assume pixel_stats={assumed.value} are two values "
                "of one; give one of them"
            )
        stats = str(assumed.value)
    if stats == "auto" and not of_table:
        stats = description.pixel_stats
    name = settings.views
    if name == "auto" and settings.recipe is None and description.recipe is not None:
        name = description.recipe
    return find_recipe(name, stats, settings.recipe)


def with_assumed_in_use(description: Description, settings: SampleSettings) -> Description:
    """The description with the pixel statistics that are used in place of those assumed.

    Without any where the user gives them. Raises SettingsError as `choose_recipe`.
    """
    recipe, assumed = choose_recipe(settings, description), dict(description.assumed)
    if settings.pixel_stats != "auto" or _statistics_of_table(settings):
        assumed.pop(STATS, None)
    elif STATS in assumed:
        used = recipe.mean, recipe.std
        if pixel_statistics(str(assumed[STATS].value)) != used:
            assumed[STATS] = Assumed(statistics_text(*used), f"of the views {recipe.name}")
    return replace(description, assumed=assumed)


def _statistics_of_table(settings: SampleSettings) -> list[str]:
    """The keys of pixel statistics in a [recipe] table."""
    return [key for key in ("mean", "std") if key in (settings.recipe or {})]


def check_masks(views: Views, description: Description, path: str) -> None:
    """Raise CheckpointError unless the checkpoint can be embedded under the masks of the views."""
    rule = views.recipe.masks
    if rule is None:
        return
    crops = f"{views.recipe.name.removesuffix(' (changed)')}-crop"
    others = f"--views simclr or {crops}" if crops in RECIPES else "--views simclr"
    origin = f"{path or description.arch}: "
    if rule.rule not in description.masks:
        takes = f"takes {', '.join(description.masks)} masks" if description.masks else "takes none"
        raise CheckpointError(
            f"{origin}the {description.arch} {takes}, the views {views.recipe.name} have "
            f"{rule.rule} masks; choose other views, such as {others}"
        )
    try:
        views.masks([0])
    except SettingsError as error:  # of this checkpoint's grid of patches
        raise CheckpointError(f"{origin}{error}, or other views, such as {others}") from error


def layer_reason(asked: str, available: Sequence[str]) -> str | None:
    """Why another layer than the projector was chosen, None if nothing need be said."""
    if asked != "auto" or "projector" in available:
        return None
    return "holds no projector, so the backbone is embedded"


def make_plan(
    description: Description,
    path: str,
    digest: str,
    samples: Samples,
    settings: ExtractSettings,
    device: torch.device,
) -> Plan:
    """Settings, checkpoint and samples brought together.

    path, digest: of the checkpoint. No model is needed yet: whether the features exist already is
    known from the plan alone.
    Raises CheckpointError for a layer that the checkpoint has not or masks that it cannot take,
    SettingsError for an unknown recipe or clean samples fewer than n.
    """
    n, q = settings.n_samples, settings.n_views
    clean = n if settings.clean_samples is None else settings.clean_samples
    if clean < n:
        raise SettingsError(f"--clean-samples {clean} is less than -n {n}; give at least n")
    recipe = choose_recipe(settings, description)
    if q == 0:
        n, recipe = 0, recipe.unviewed()
    size = _image_size(settings, description.image_size, samples)
    views = Views(recipe, settings.seed, q, size, description.patch)
    check_masks(views, description, path)
    layers = choose_layers(settings.layer, list(description.widths))
    widths = {layer: description.widths[layer] for layer in layers}
    provenance = {
        "checkpoint": path,
        "sha256": digest,
        "model_format": description.format,
        "architecture": description.arch,
        "branch": description.branch,
        "activation": settings.activation,
        "assumed": {
            key: {"value": one.value, "why": one.why}
            for key, one in with_assumed_in_use(description, settings).assumed.items()
        },
        "assumptions": list(description.assumptions),
        "source_sha256": own_source(settings.model),
        "layers": layers,
        "layer_reason": layer_reason(settings.layer, list(description.widths)),
        "data": samples.data,
        "samples_sha256": samples.fingerprint,
        "n_samples": n,
        "n_views": q,
        "n_clean": clean,
        "seed": settings.seed,
        "views": recipe.describe(),
        "image_size": size,
        "precision": settings.precision,
        "storage": settings.storage,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "embedding_revision": EMBEDDING_REVISION,
        "versions": {name: version(name) for name in ("lidar-cli", "torch", "timm", "numpy")},
    }
    if views.grid is not None:
        provenance["mask_grid"] = views.grid
    if settings.compile:
        provenance["compiled"] = True
    if samples.labels_sha256 is not None:
        provenance["labels_sha256"] = samples.labels_sha256
    if samples.bad:
        provenance["bad_samples"] = len(samples.bad)
    return Plan(
        views=views,
        layout=Layout(widths, n, q, clean, settings.storage),
        precision=settings.precision,
        provenance=provenance,
    )


def _image_size(settings: SampleSettings, natural: int | None, samples: Samples) -> int:
    return settings.image_size or natural or samples.image_size or DEFAULT_IMAGE_SIZE
