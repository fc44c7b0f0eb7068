"""From source images to the views that a model sees.

recipes.py      constants of one augmentation and of the masks of a method
methods.py      the recipes of published methods; a name or a [recipe] table -> recipe
parameters.py   recipe, seed, sample, view -> parameters    (host, no pixels)
pipeline.py     images, parameters -> views                 (any device, no randomness)
operations.py   the arithmetic on pixels: resample, colour, blur
masks.py        rule, seed, sample, view -> patches that a masked model sees    (host)

Recipes and their names need no torch.
"""
