"""The views and masks of samples, made on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lidar_cli.views.augment import make_clean, make_views
from lidar_cli.views.draws import draw
from lidar_cli.views.masked import Mask, draw_mask
from lidar_cli.views.recipes import Recipe


@dataclass(frozen=True)
class Views:
    """Makes the same views of a sample wherever, whenever and with whatever it is batched.

    image_size: side of the views in pixels. patch: side of the model's patches, for masks.
    """

    recipe: Recipe
    seed: int
    n_views: int
    image_size: int
    patch: int | None = None

    @property
    def grid(self) -> int | None:
        """Patches a side on which masks are drawn, None for a recipe without masks."""
        if self.recipe.masks is None:
            return None
        assert self.patch is not None
        return self.image_size // self.patch

    @property
    def alike(self) -> bool:
        """Whether the views of a sample have the same pixels, and differ by their masks alone."""
        return self.recipe.masks is not None and self.recipe.crop_scale is None

    def views(
        self,
        images: Sequence[Tensor],
        samples: Sequence[int],
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """Normalised views [b, q, 3, S, S] of uint8 images [h, w, 3], on the images' device.

        [b, 1, 3, S, S] where they are alike. samples: the images' global indices. dtype,
        memory_format: of the views, as a model wants them; [b q, 3, S, S] has the latter. Raises
        InputError for another kind of image.
        """
        if self.recipe.crop_scale is None:
            count = 1 if self.alike else self.n_views
            clean = self.clean(images, dtype)
            copies = clean.repeat_interleave(count, dim=0)
            copies = copies.contiguous(memory_format=memory_format)
            return copies.view(len(images), count, *clean.shape[1:])
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        parameters = draw(self.recipe, self.seed, samples, sizes, self.n_views)
        return make_views(images, parameters, self.recipe, self.image_size, dtype, memory_format)

    def masks(self, samples: Sequence[int]) -> list[Mask] | None:
        """The mask of each view, of all samples, on the host; None for a recipe without masks.

        Raises SettingsError for a grid on which the recipe's rule cannot be kept.
        """
        rule, side = self.recipe.masks, self.grid
        if rule is None or side is None:
            return None
        views = range(self.n_views)
        return [draw_mask(rule, self.seed, samples, view, (side, side)) for view in views]

    def clean(
        self,
        images: Sequence[Tensor],
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """Un-augmented normalised images [b, 3, S, S]: resized, then the centre kept."""
        return make_clean(images, self.recipe, self.image_size, dtype, memory_format)
