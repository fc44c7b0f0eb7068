"""From source images to the views that a model sees.

recipes.py   constants of one augmentation
methods.py   the recipes of published methods
find.py      a name or a [recipe] table -> recipe
draws.py     recipe, seed, sample, view -> parameters    (host, no pixels)
augment.py   images, parameters -> views                 (any device, no randomness)
resample.py, recolour.py, colour.py, sums.py   the arithmetic on pixels
mask_rules.py  constants of the masks of a method
masks.py, masked.py   rule, seed, sample, view -> patches that a masked model sees    (host)
hashes.py    the random numbers of draws and masks
views.py     all of this behind one class

Recipes and their names need no torch.
"""

from lidar_cli.views.find import find_recipe
from lidar_cli.views.recipes import Recipe

__all__ = ["Recipe", "find_recipe"]
