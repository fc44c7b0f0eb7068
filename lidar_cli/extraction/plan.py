"""The plan of an extraction: everything that determines the numbers of a feature file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch

from lidar_cli.checkpoints.models.embedder import Embedder
from lidar_cli.checkpoints.models.user_module import source
from lidar_cli.checkpoints.shapes.spec import BY_USER, PIXEL_STATS, Assumed, CheckpointDescription
from lidar_cli.core.dense import MOST_IMAGES
from lidar_cli.data.dataset import Samples, parse_bands
from lidar_cli.data.factory import Items, input_shape
from lidar_cli.data.open import sample_count
from lidar_cli.errors import CheckpointError, SettingsError
from lidar_cli.features.schema import EMBEDDING_REVISION, Layout, revision_of
from lidar_cli.settings import (
    EMBEDDED,
    PATCHES,
    USUAL_IMAGE_SIZE,
    DefaultCount,
    EmbedSettings,
    SampleSettings,
)
from lidar_cli.views.methods import IDENTITY, RECIPES, find_recipe
from lidar_cli.views.pipeline import Views
from lidar_cli.views.recipes import (
    MEAN_OF_ALL,
    QUARTER_TURNS,
    Recipe,
    for_channels,
    pixel_statistics,
    statistics_text,
)

CLIP_AXES = 4  # channels, frames, rows, columns
# How the token of the layer `patches` is chosen, see `draw_patches`.
PATCH_DRAW = (
    "token floor(u N) of N, row by row; u of seed, sample and view; one a view; "
    f"parts of DSE of {MOST_IMAGES} images at most"
)


@dataclass(frozen=True)
class Plan:
    """Everything that determines the numbers of a feature file, before any is computed."""

    views: Views
    layout: Layout
    precision: str
    provenance: dict[str, Any]  # without the batch size, which is measured on the model
    item_shape: tuple[int, ...] | None = None  # of one input of the model; None for images

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that are equal if two feature files are interchangeable in a ranking."""
        return identity(self.provenance)

    @cached_property
    def key(self) -> str:
        """Hash of the identity, for file names."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]


def identity(provenance: dict[str, Any]) -> dict[str, Any]:
    """The fields of a provenance that determine the embeddings, with JSON's types.

    Batch size, device, compiler and library versions are left out, since they change rounding only.
    The content identifies checkpoint and samples, not the path; the embedding revision identifies
    the code. The pixel statistics are part of the views.
    """
    fields: dict[str, Any] = json.loads(json.dumps(provenance))
    for name in (
        *("checkpoint", "data", "assumptions", "layer_reason", "activation"),
        *("batch_size", "device", "compiled", "bad_samples", "versions"),
    ):
        fields.pop(name, None)
    assumed = fields.get("assumed") or {}
    fields["assumed"] = {
        key: one.get("value") for key, one in assumed.items() if key != PIXEL_STATS
    }
    fields["embedding_revision"] = revision_of(provenance)
    return fields


def choose_recipe(settings: SampleSettings, description: CheckpointDescription) -> Recipe:
    """The recipe of the settings; `auto` means that of the method which trained the checkpoint.

    `auto` pixel statistics are chosen in the same way, unless a [recipe] table sets them.
    Raises SettingsError for an unknown name or [recipe] key, and for two different settings of the
    pixel statistics; CheckpointError for those of another number of channels.
    """
    stats: str = settings.pixel_stats
    assumed = description.assumed.get(PIXEL_STATS)
    in_table = _statistics_in_table(settings)
    if assumed is not None and assumed.why == BY_USER:
        if in_table:
            raise SettingsError(
                f"--assume pixel_stats={assumed.value} and [recipe] {' and '.join(in_table)} are "
                "two values of one; leave one of them out"
            )
        if stats not in ("auto", assumed.value):
            raise SettingsError(
                f"--pixel-stats {stats} and --assume pixel_stats={assumed.value} are two values "
                "of one; give one of them"
            )
        stats = str(assumed.value)
    if stats == "auto" and not in_table:
        stats = description.pixel_stats
    name = settings.views
    if name == "auto" and settings.recipe is None and description.recipe is not None:
        name = description.recipe
    recipe = find_recipe(name, stats, settings.recipe)
    of_channels = for_channels((recipe.mean, recipe.std), description.channels)
    if of_channels is None:
        raise CheckpointError(
            f"pixel statistics of {len(recipe.mean)} channels, and the {description.arch} takes "
            f"{description.channels}; give one number for all, or as many: --pixel-stats "
            f"{MEAN_OF_ALL}",
            code="statistics-of-channels",
        )
    return replace(recipe, mean=of_channels[0], std=of_channels[1])


def check_channels(
    recipe: Recipe, description: CheckpointDescription, bands: tuple[int, ...], path: str
) -> None:
    """Raise CheckpointError if the channels of the images or the views do not fit the model."""
    channels, origin = description.channels, f"{path or description.arch}: "
    if len(bands) != channels and (bands or channels not in (1, 3)):
        shown = ",".join(map(str, range(1, channels + 1)))
        given = f"--bands {','.join(map(str, bands))} selects {len(bands)}"
        raise CheckpointError(
            f"{origin}the {description.arch} takes images of {channels} channels, and "
            f"{given if bands else 'three are read, red, green and blue'}; select {channels} "
            f"bands that the images have, in the order of its training, such as --bands {shown}",
            code="other-channels",
        )
    if channels != 3 and recipe.needs_colours:
        without = [name for name, other in RECIPES.items() if not other.needs_colours]
        usable = [name for name in without if RECIPES[name].masks is None]
        raise CheckpointError(
            f"{origin}{', '.join(recipe.needs_colours)} of the views {recipe.name} need three "
            f"channels, and the {description.arch} takes {channels}; a [recipe] table with "
            f"jitter = [0.8, 0.8, 0, 0] and grey = 0 has neither, nor have the views "
            f"{', '.join(usable)}: --views {usable[0]}",
            code="colours-of-channels",
        )


def with_assumed_in_use(
    description: CheckpointDescription, settings: SampleSettings
) -> CheckpointDescription:
    """The description with the pixel statistics that are in use as the assumed ones.

    None are assumed where the user gives them. Raises SettingsError as `choose_recipe` does.
    """
    recipe, assumed = choose_recipe(settings, description), dict(description.assumed)
    if shape := input_shape(settings):  # normalised by the user, and clips have frames
        unused = (PIXEL_STATS, "frames") if len(shape) == CLIP_AXES else (PIXEL_STATS,)
        return replace(description, assumed={k: v for k, v in assumed.items() if k not in unused})
    if settings.pixel_stats != "auto" or _statistics_in_table(settings):
        assumed.pop(PIXEL_STATS, None)
    elif PIXEL_STATS in assumed:
        used = recipe.mean, recipe.std
        planned = pixel_statistics(str(assumed[PIXEL_STATS].value))
        if for_channels(planned, description.channels) != used:
            assumed[PIXEL_STATS] = Assumed(statistics_text(*used), f"of the views {recipe.name}")
    return replace(description, assumed=assumed)


def _statistics_in_table(settings: SampleSettings) -> list[str]:
    """The keys of a [recipe] table that set pixel statistics."""
    return [key for key in ("mean", "std") if key in (settings.recipe or {})]


def view_count(settings: SampleSettings, recipe: Recipe) -> int:
    """q: of the settings, or four if the views are an image in four turns. Raises SettingsError."""
    q = settings.n_views
    if not recipe.quarter_turns or q == 0:
        return q
    if q != QUARTER_TURNS and not isinstance(q, DefaultCount):
        raise SettingsError(
            f"-q {q}: the views {recipe.name} are an image in four turns; give -q 4, or leave it "
            "out",
            code="four-turns",
        )
    return QUARTER_TURNS


def image_size(
    settings: SampleSettings, description: CheckpointDescription, samples: Samples
) -> tuple[int, Assumed | None]:
    """The side of the views, and why, where neither the settings nor the weights determine it."""
    size = settings.image_size or description.image_size
    if size:
        return size, None
    if samples.image_size and samples.data == EMBEDDED:
        return samples.image_size, Assumed(samples.image_size, "of the data; --image-size sets it")
    images = f"the images have {samples.image_size} px; " if samples.image_size else ""
    return USUAL_IMAGE_SIZE, Assumed(USUAL_IMAGE_SIZE, f"usual; {images}--image-size sets it")


def set_image_size(embedder: Embedder, plan: Plan) -> None:
    """Prepare a model for the images of a plan; for other inputs nothing is to be prepared.

    Raises CheckpointError if the backbone cannot take them.
    """
    if plan.views.image_size:
        embedder.set_image_size(plan.views.image_size)


def check_masks(views: Views, description: CheckpointDescription, path: str) -> None:
    """Raise CheckpointError if the checkpoint cannot be embedded under the masks of the views."""
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
    except SettingsError as error:  # this checkpoint's grid of patches is too small
        raise CheckpointError(f"{origin}{error}, or other views, such as {others}") from error


def layer_reason(option: str, available: Sequence[str]) -> str | None:
    """Why `auto` chose a layer other than the projector, None if it did not."""
    if option != "auto" or "projector" in available:
        return None
    return "holds no projector, so the backbone is embedded"


def make_plan(
    description: CheckpointDescription,
    path: str,
    digest: str,
    samples: Samples,
    settings: EmbedSettings,
    device: torch.device,
) -> Plan:
    """The plan for one checkpoint and these samples; it needs no model.

    path, digest: those of the checkpoint.
    Raises CheckpointError for a layer that the checkpoint does not have or masks that it cannot
    take, SettingsError for an unknown recipe or fewer clean samples than n.
    """
    if isinstance(samples, Items):
        return _own_plan(description, path, digest, samples, settings, device)
    n = sample_count(settings, samples)
    clean = n if settings.clean_samples is None else settings.clean_samples
    if clean < n:
        raise SettingsError(f"--clean-samples {clean} is less than -n {n}; give at least n")
    recipe, bands = choose_recipe(settings, description), parse_bands(settings.bands)
    q = view_count(settings, recipe)
    if q == 0:
        n, recipe = 0, recipe.for_clean_images()
    size, _ = image_size(settings, description, samples)
    check_channels(recipe, description, bands, path)
    views = Views(recipe, settings.seed, q, size, description.patch, bands)
    check_masks(views, description, path)
    layout = Layout(_layer_widths(settings, description, recipe), n, q, clean, settings.storage)
    widths = layout.widths
    provenance = _provenance(description, path, digest, samples, settings, device, layout) | {
        "views": recipe.describe(),
        "image_size": size,
    }
    optional = {
        "bands": ",".join(map(str, bands or ())),
        PATCHES: PATCH_DRAW if PATCHES in widths else None,
        "pooling": {k: v.pooling for k, v in description.inner.items() if k in widths},
        "mask_grid": views.grid,
        "compiled": settings.compile,
        "labels_sha256": samples.labels_sha256,
        "bad_samples": len(samples.bad),
    }
    provenance |= {name: value for name, value in optional.items() if value}
    return Plan(
        views=views,
        layout=layout,
        precision=settings.precision,
        provenance=provenance,
    )


def _provenance(
    description: CheckpointDescription,
    path: str,
    digest: str,
    samples: Samples,
    settings: EmbedSettings,
    device: torch.device,
    layout: Layout,
) -> dict[str, Any]:
    """What images and other samples have in common in a provenance."""
    return {
        "checkpoint": path,
        "sha256": digest,
        **_origin(description, settings),
        "layers": list(layout.widths),
        "layer_reason": layer_reason(settings.layer, list(description.widths)),
        "data": samples.data,
        "samples_sha256": samples.fingerprint,
        "n_samples": layout.n_samples,
        "n_views": layout.n_views,
        "n_clean": layout.n_clean if layout.has_clean else 0,
        "seed": settings.seed,
        "precision": settings.precision,
        "storage": settings.storage,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "embedding_revision": EMBEDDING_REVISION,
        "versions": {name: version(name) for name in ("lidar-cli", "torch", "timm", "numpy")},
    }


def _own_plan(
    description: CheckpointDescription,
    path: str,
    digest: str,
    samples: Items,
    settings: EmbedSettings,
    device: torch.device,
) -> Plan:
    """The plan for samples of the user's code, which makes their views. Raises as `make_plan`."""
    q, count = samples.n_views, len(samples)
    widths = _layer_widths(settings, description, IDENTITY)
    if PATCHES in widths:
        raise CheckpointError(
            f"--layer {PATCHES}: is for images that lidar decodes, and --data {samples.data} is a "
            f"factory; use --layer {next(iter(description.widths))}",
            code="no-patches",
        )
    layout = Layout(widths, count if q else 0, q, count, settings.storage, has_clean=not q)
    provenance = _provenance(description, path, digest, samples, settings, device, layout)
    provenance |= {"views": {"name": "own"}, "item_shape": list(samples.shape)}
    if samples.labels_sha256:
        provenance["labels_sha256"] = samples.labels_sha256
    side = samples.shape[-1] if _is_image(samples.shape) else 0
    return Plan(
        views=Views(IDENTITY, settings.seed, q, side),
        layout=layout,
        precision=settings.precision,
        provenance=provenance,
        item_shape=samples.shape,
    )


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) >= 3 and shape[-1] == shape[-2]


def _layer_widths(
    settings: EmbedSettings, description: CheckpointDescription, recipe: Recipe
) -> dict[str, int]:
    """Layer to embed -> its width. Raises CheckpointError."""
    widths = description.widths_of(settings.layer)
    if PATCHES in widths and recipe.masks is not None:
        raise CheckpointError(
            f"the views {recipe.name} hide patches, from whose tokens --layer {PATCHES} draws; "
            "choose views without masks, such as --views simclr",
            code="masked-patches",
        )
    return widths


def _origin(description: CheckpointDescription, settings: EmbedSettings) -> dict[str, Any]:
    """The part of a provenance that says which module embeds."""
    assumed = with_assumed_in_use(description, settings).assumed
    origin = {
        "model_format": description.format,
        "architecture": description.arch,
        "branch": description.branch,
        **description.selected,
        "activation": settings.activation,
        "assumed": {key: {"value": one.value, "why": one.why} for key, one in assumed.items()},
        "assumptions": list(description.assumptions),
        "source_sha256": source(settings.model) if settings.model else None,
    }
    return origin | ({"configured": description.configured} if description.configured else {})
