"""The labelled image sets of the study: Fashion-MNIST, and three made from scikit-learn's.

Results on one set may be chance. These have other classes: articles of clothing in `fashion`; the
regions of a photograph in `textures`, of which augmentations remove much; digits over photographs
in `embedded_images`, and without background in `plain_digits`. A seed always gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

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
    embedded_images,
    ink_colours,
    train_mask,
)

PLAIN_SIDES = (22, 30)  # least and greatest side of a digit's box, pixels: more room to move in
DARK = 64  # the background is below this in each channel
TILE = 20  # pixels; a window is inside a tile, so that windows of two tiles share no pixel
WINDOW = 16  # pixels of a photograph, shown at twice their size
REGION = (10, 8)  # rows and columns of tiles that form a class
WINDOWS = 2  # for each tile
FASHION_IMAGES = 3000  # of the training part, and as many of the test part


def fashion(seed: int = 0, folder: Path = Path("data")) -> EmbeddedImages:
    """3000 training and 3000 test images of Fashion-MNIST, drawn by seed; labels: the article.

    The 28 pixels of a side are padded with black to 32, and the grey values are those of all three
    channels. folder: holds FashionMNIST/raw with the four files, as torchvision reads them.
    Source: Xiao et al. 2017, Fashion-MNIST, arXiv 1708.07747; MIT licence.
    """
    from torchvision.datasets import FashionMNIST

    images, labels = [], []
    for part in (True, False):
        whole = FashionMNIST(str(folder), train=part)
        some = np.random.default_rng([seed % 2**64, part]).permutation(len(whole))[:FASHION_IMAGES]
        images.append(whole.data.numpy()[some])
        labels.append(whole.targets.numpy()[some])
    edge = (SIDE - images[0].shape[1]) // 2
    grey = np.pad(np.concatenate(images), ((0, 0), (edge, edge), (edge, edge)))
    return EmbeddedImages(
        np.repeat(grey[..., None], 3, axis=3),
        np.concatenate(labels).astype(np.int64),
        np.arange(2 * FASHION_IMAGES) < FASHION_IMAGES,
        "Fashion-MNIST, Copyright (c) 2017 Zalando SE, MIT licence",
    )


def plain_digits(seed: int = 0) -> EmbeddedImages:
    """1797 images of a digit in one colour on a dark background of one colour; labels: the digits.

    Position, size and colours are drawn by seed; the ink is lighter than the background by at least
    `CONTRAST` in each channel. The split is that of `embedded_images`.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    draws = Draws(seed, len(labels))
    colour = np.stack([draws.below(DARK) for _ in range(3)], axis=1)  # [N, 3]
    opacity, unit = digit_opacity(digits.images.astype(np.int64), draws, PLAIN_SIDES)
    background = np.broadcast_to(colour[:, None, None, :], (len(labels), SIDE, SIDE, 3))
    images = blend(background, opacity, unit, ink_colours(colour, draws))
    return EmbeddedImages(images, labels, train_mask(labels), ATTRIBUTION)


def textures(seed: int = 0) -> EmbeddedImages:
    """2560 windows of the two photographs; labels: the region that a window is from.

    Of a photograph of 427 x 640 pixels, 20 x 32 tiles form 8 regions of 10 x 8 tiles: 16 classes in
    all. Every fifth tile of a region is a test tile. No pixel is in two tiles, so none is in both a
    training and a test image. A window has a random position in its tile and is scaled to twice its
    size. There are many small tiles, since windows of one tile are nearly the same image, both
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
    """Windows [N, S, S, 3], one of each tile [N, T, T, 3], scaled by repeating pixels."""
    draws = Draws(seed, len(tiles))
    top, left = draws.below(TILE - WINDOW + 1), draws.below(TILE - WINDOW + 1)
    pixel = np.arange(SIDE) // (SIDE // WINDOW)
    rows, columns = top[:, None] + pixel, left[:, None] + pixel  # [N, S]
    image = np.arange(len(tiles))[:, None, None]
    windows: NDArray[np.uint8] = tiles[image, rows[:, :, None], columns[:, None, :]]
    return windows


SETS: dict[str, Callable[[int], EmbeddedImages]] = {
    "digits": embedded_images,
    "textures": textures,
    "plain": plain_digits,
}


@lru_cache(maxsize=1)  # runs come set by set
def study_set(name: str, seed: int, folder: Path) -> EmbeddedImages:
    """The images of a set in random order, so that the first n are a random sample.

    folder: as for `fashion`. Raises KeyError for an unknown name.
    """
    images = fashion(seed, folder) if name == "fashion" else SETS[name](seed)
    order = np.random.default_rng(seed % 2**64).permutation(len(images.labels))
    return EmbeddedImages(
        images.images[order], images.labels[order], images.train[order], images.attribution
    )
