"""Makes the views of images that a model sees.

recipes.py      the constants of an augmentation and of masks
methods.py      recipes of published methods; the recipe of a name or a [recipe] table
parameters.py   recipe, seed, sample, view -> parameters    (host, no pixels)
pipeline.py     images, parameters -> views                 (any device, no randomness)
operations.py   operations on pixels: resample, colour, blur
masks.py        rule, seed, sample, view -> patches that a masked model sees    (host)

recipes.py and methods.py import no torch.
"""
