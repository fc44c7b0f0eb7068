"""Two more labelled image sets made from what scikit-learn ships, beside the digits of `embedded`.

A study on one set may be lucky. These ask for something else: `textures` for what the place in a
photograph looks like, much of which augmentations remove, and `plain_digits` for shape alone,
without anything behind it. Like `embedded_images` they are the same bytes for the same seed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lidar_cli.data.builtin import (
    ATTRIBUTION,
    SIDE,
    TEST_EVERY,
    Draws,
    EmbeddedImages,
    blend,
    digit_opacity,
    ink_colours,
    train_mask,
)

PLAIN_SIDES = (22, 30)  # least and greatest side of a digit's box, pixels: more room to move in
DARK = 64  # the ground stays below it in each channel
TILE = 20  # pixels; windows lie within a tile, so that no two tiles share a pixel
WINDOW = 16  # pixels of a photograph, shown at twice their size
REGION = (10, 8)  # tiles, rows and columns of a class
WINDOWS = 2  # of a tile


def plain_digits(seed: int = 0) -> EmbeddedImages:
    """Digits of one colour on a dark ground of one colour, N = 1797, the label is the digit.

    Position, size and colours are drawn by seed; the ink is lighter than the ground by at least
    `CONTRAST` in each channel. The split is that of `embedded_images`.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    draws = Draws(seed, len(labels))
    ground = np.stack([draws.below(DARK) for _ in range(3)], axis=1)  # [N, 3]
    opacity, unit = digit_opacity(digits.images.astype(np.int64), draws, PLAIN_SIDES)
    background = np.broadcast_to(ground[:, None, None, :], (len(labels), SIDE, SIDE, 3))
    images = blend(background, opacity, unit, ink_colours(ground, draws))
    return EmbeddedImages(images, labels, train_mask(labels), ATTRIBUTION)


def textures(seed: int = 0) -> EmbeddedImages:
    """Windows of the two photographs, N = 2560 images, the label is the region they come from.

    A photograph of 427 x 640 pixels is cut into tiles, of which 20 x 32 make regions of 10 x 8: 16
    classes. Every fifth tile of a region is a test tile. No pixel is in two tiles, so that none is
    in a training and a test image. A window is anywhere in its tile and is shown at twice its
    size. The tiles are small and many, since windows of one tile are nearly the same image, both
    for a method that discriminates images and for a test of accuracy.
    """
    from sklearn.datasets import load_sample_images

    tiles, labels, train = [], [], []
    for number, photograph in enumerate(load_sample_images().images):
        down, across = (
            side // TILE // by for side, by in zip(photograph.shape, REGION, strict=False)
        )
        for row, column in np.ndindex(down * REGION[0], across * REGION[1]):
            region = (row // REGION[0]) * across + column // REGION[1]
            within = (row % REGION[0]) * REGION[1] + column % REGION[1]
            top, left = row * TILE, column * TILE
            tiles.append(photograph[top : top + TILE, left : left + TILE])
            labels.append(number * across * down + region)
            train.append(within % TEST_EVERY != TEST_EVERY - 1)
    return EmbeddedImages(
        _windows(np.stack(tiles).repeat(WINDOWS, axis=0), seed),
        np.array(labels, np.int64).repeat(WINDOWS),
        np.array(train).repeat(WINDOWS),
        ATTRIBUTION,
    )


def _windows(tiles: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """A window of each tile [N, T, T, 3], each pixel as many times as [N, S, S, 3] takes."""
    draws = Draws(seed, len(tiles))
    top, left = draws.below(TILE - WINDOW + 1), draws.below(TILE - WINDOW + 1)
    pixel = np.arange(SIDE) // (SIDE // WINDOW)
    rows, columns = top[:, None] + pixel, left[:, None] + pixel  # [N, S]
    image = np.arange(len(tiles))[:, None, None]
    windows: NDArray[np.uint8] = tiles[image, rows[:, :, None], columns[:, None, :]]
    return windows
