"""From source images to the views that a model sees.

recipes.py   constants of one augmentation
methods.py   the recipes of published methods
find.py      a name, a [recipe] table or a method -> recipe
draws.py     recipe, seed, sample, view -> parameters    (host, no pixels)
augment.py   images, parameters -> views                 (any device, no randomness)
resample.py, recolour.py, colour.py   the arithmetic on pixels
masks.py     seed, sample, view -> patches that a masked model sees    (host)
hashes.py    the random numbers of draws and masks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lidar_cli.views.augment import make_clean, make_views
from lidar_cli.views.draws import draw
from lidar_cli.views.find import find_recipe, recipe_for
from lidar_cli.views.recipes import Recipe

__all__ = ["Recipe", "Views", "find_recipe", "recipe_for"]


@dataclass(frozen=True)
class Views:
    """Makes the same views of a sample wherever, whenever and with whatever it is batched.

    image_size: side of the views in pixels.
    """

    recipe: Recipe
    seed: int
    n_views: int
    image_size: int

    def views(self, images: Sequence[Tensor], samples: Sequence[int]) -> Tensor:
        """Normalised views [b, q, 3, S, S] of uint8 images [h, w, 3], on the images' device.

        samples: the images' global indices. Raises InputError for another kind of image.
        """
        if self.recipe.crop_scale is None:
            return self.clean(images)[:, None].repeat(1, self.n_views, 1, 1, 1)
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        parameters = draw(self.recipe, self.seed, samples, sizes, self.n_views)
        return make_views(images, parameters, self.recipe, self.image_size)

    def clean(self, images: Sequence[Tensor]) -> Tensor:
        """Un-augmented normalised images [b, 3, S, S]: resized, then the centre kept."""
        return make_clean(images, self.recipe, self.image_size)
