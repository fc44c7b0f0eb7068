from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images
from study import image_sets
from study.image_sets import DARK, TILE, WINDOW, plain_digits, textures

from lidar_cli.data.builtin import CONTRAST, SIDE, embedded_images


@pytest.mark.parametrize("built", [plain_digits, textures])
def test_a_seed_decides_the_images_and_not_the_labels(built):
    first, again, other = built(0), built(0), built(1)
    assert (first.images == again.images).all()
    assert (first.images != other.images).any()
    assert (first.labels == other.labels).all()
    assert (first.train == other.train).all()
    assert first.images.shape == (len(first.labels), SIDE, SIDE, 3)
    assert first.images.dtype == np.uint8


def test_plain_digits_are_light_ink_on_a_dark_ground_of_one_colour():
    image_set = plain_digits(0)
    assert (image_set.labels == load_digits().target).all()
    assert (image_set.train == embedded_images(0).train).all()
    corner = image_set.images[:, 0, 0].astype(int)
    least = image_set.images.min(axis=(1, 2)).astype(int)
    most = image_set.images.max(axis=(1, 2)).astype(int)
    assert (corner < DARK).mean() > 0.99  # a digit rarely reaches a corner
    assert (least < DARK).all()
    # Few bitmaps have a cell of full ink after resizing, so that nearly all is the bound here.
    assert (most - least > 0.8 * CONTRAST).all()
    grounds = (image_set.images == least[:, None, None, :]).all(axis=3).mean(axis=(1, 2))
    assert grounds.min() > 0.2


def test_textures_are_windows_of_tiles_and_regions():
    """Every window is sought in its photograph, and its tile and region follow from its place."""
    image_set = textures(3)
    photographs = load_sample_images().images
    codes = [photograph.astype(int) @ (1, 256, 65536) for photograph in photographs]  # of colours
    assert np.bincount(image_set.labels[image_set.train]).tolist() == [128] * 16
    assert np.bincount(image_set.labels[~image_set.train]).tolist() == [32] * 16
    tiles = {True: set(), False: set()}
    for at in range(0, len(image_set.labels), 23):
        number, region = divmod(int(image_set.labels[at]), 8)
        image, photograph = image_set.images[at, ::2, ::2], photographs[number]
        assert (image.repeat(2, axis=0).repeat(2, axis=1) == image_set.images[at]).all()
        code = int(image[0, 0].astype(int) @ (1, 256, 65536))
        places = np.argwhere(codes[number][: -WINDOW + 1, : -WINDOW + 1] == code)
        hits = [
            (int(top), int(left))
            for top, left in places
            if (photograph[top : top + WINDOW, left : left + WINDOW] == image).all()
        ]
        assert hits
        within = [
            (top // TILE, left // TILE)
            for top, left in hits
            if top // TILE == (top + WINDOW - 1) // TILE
            if left // TILE == (left + WINDOW - 1) // TILE
            if (top // TILE // 10) * 4 + left // TILE // 8 == region
        ]
        assert within
        if len(within) == 1:  # flat sky can be in several places
            tiles[bool(image_set.train[at])].add((number, *within[0]))
    assert len(tiles[True]) > 30
    assert len(tiles[False]) > 10
    assert not tiles[True] & tiles[False]


def test_windows_reach_every_place_of_their_tile():
    row, column = np.meshgrid(np.arange(TILE), np.arange(TILE), indexing="ij")
    coded = np.stack([row, column, row], axis=2).astype(np.uint8)[None]
    windows = image_sets._windows(np.repeat(coded, 2000, axis=0), 0)
    corners = {(int(w[0, 0, 0]), int(w[0, 0, 1])) for w in windows}
    assert corners == {(r, c) for r in range(TILE - WINDOW + 1) for c in range(TILE - WINDOW + 1)}
