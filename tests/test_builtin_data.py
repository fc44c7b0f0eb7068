import hashlib

import numpy as np
import pytest
from command import run_command
from make import environment
from sklearn.datasets import load_digits, load_sample_images

from lidar_cli.data import builtin
from lidar_cli.data.builtin import CONTRAST, DIMMING, SIDE, embedded_images


@pytest.fixture(scope="module")
def zero():
    return embedded_images(0)


def sha(images: np.ndarray) -> str:
    return hashlib.sha256(images.tobytes()).hexdigest()


def resized_literally(bitmap: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """Bilinear, pixel centres at half integers, zero outside: one pixel after another."""
    out = np.zeros((SIDE, SIDE))
    padded = np.pad(bitmap, 1)
    for r in range(SIDE):
        for c in range(SIDE):
            u = (r - top + 0.5) * 8 / side - 0.5
            v = (c - left + 0.5) * 8 / side - 0.5
            if not (-1 <= u < 8 and -1 <= v < 8):
                continue
            i, j = int(np.floor(u)), int(np.floor(v))
            a, b = u - i, v - j
            corner = padded[i + 1 : i + 3, j + 1 : j + 3]
            out[r, c] = np.array([1 - a, a]) @ corner @ np.array([1 - b, b])
    return out


class FixedDraws:
    """Stands in for the random draws: the given values, in order."""

    def __init__(self, *values: np.ndarray) -> None:
        self.values = list(values)

    def below(self, bound: object) -> np.ndarray:
        value = self.values.pop(0)
        assert (value < bound).all()
        return value


def test_one_image_for_each_digit(zero):
    digits = load_digits()
    assert zero.images.shape == (1797, SIDE, SIDE, 3)
    assert zero.images.dtype == np.uint8
    assert zero.labels.dtype == np.int64
    assert (zero.labels == digits.target).all()


def test_split_is_four_to_one_in_each_class_and_the_same_for_every_seed(zero):
    assert (zero.train == embedded_images(1).train).all()
    for label in range(10):
        mine = zero.labels == label
        test = (mine & ~zero.train).sum()
        assert test == mine.sum() // 5


def test_no_digit_is_in_both_splits(zero):
    bitmaps = load_digits().images.reshape(1797, -1).astype(int)
    seen = {row.tobytes() for row in bitmaps[zero.train]}
    assert len(seen) == zero.train.sum()
    assert not any(row.tobytes() in seen for row in bitmaps[~zero.train])


def test_same_bytes_again_also_in_another_process(zero, tmp_path):
    assert sha(embedded_images(0).images) == sha(zero.images)
    code = (
        "import hashlib; from lidar_cli.data.builtin import embedded_images;"
        "print(hashlib.sha256(embedded_images(0).images.tobytes()).hexdigest())"
    )
    other = run_command([], tmp_path, environment(), script=code)
    assert other.stdout.strip() == sha(zero.images)


@pytest.mark.parametrize("seed", [1, -1, 2**64 + 5])
def test_another_seed_gives_other_images(zero, seed):
    images = embedded_images(seed).images
    assert (images != zero.images).any(axis=(1, 2, 3)).all()


def test_digits_are_resized_as_the_literal_loop_does():
    bitmaps = load_digits().images.astype(np.int64)[:3]
    top, left, side = np.array([0, 3, 5]), np.array([2, 0, 4]), np.array([30, 27, 26])
    draws = FixedDraws(side - builtin.DIGIT_SIDES[0], top, left)
    opacity, unit = builtin.digit_opacity(bitmaps, draws)
    for k in range(3):
        expected = resized_literally(bitmaps[k], top[k], left[k], side[k]) / 16
        np.testing.assert_allclose(opacity[k] / unit[k, 0], expected, atol=1e-12)


def test_shrinking_takes_the_mean_of_each_cell():
    picture = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    small = builtin._shrink(picture, 2)
    assert small.shape == (2, 3, 3)
    for r in range(2):
        for c in range(3):
            cell = picture[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].reshape(4, 3)
            assert (small[r, c] == np.floor(cell.mean(axis=0))).all()


def test_backgrounds_are_windows_of_the_photographs():
    windows = builtin._backgrounds(builtin.Draws(3, 40))
    sources = [builtin._shrink(p, by) for p in load_sample_images().images for by in (1, 2, 4)]
    views = [
        np.lib.stride_tricks.sliding_window_view(s, (SIDE, SIDE), axis=(0, 1)) for s in sources
    ]  # each [rows, columns, 3, S, S]
    mirrored = 0
    for window in windows[:12]:
        matched = False
        for flip in (False, True):
            wanted = (window[:, ::-1] if flip else window).transpose(2, 0, 1)
            for view in views:
                here = (view[..., 0, 0] == wanted[:, 0, 0]).all(axis=-1)
                if any((place == wanted).all() for place in view[here]):
                    matched, mirrored = True, mirrored + flip
        assert matched
    assert 0 < mirrored < 12


def test_images_are_background_and_one_light_ink(zero):
    draws = builtin.Draws(0, 1797)
    background = builtin._backgrounds(draws) // DIMMING  # [N, S, S, 3]
    opacity, unit = builtin.digit_opacity(load_digits().images.astype(np.int64), draws)
    share = (opacity / unit[..., 0])[..., None]
    assert share.min() == 0
    assert share.max() <= 1
    strongest = share.reshape(1797, -1).argmax(axis=1)
    assert np.median(share.max(axis=(1, 2, 3))) > 0.9

    def at_strongest(values: np.ndarray) -> np.ndarray:
        return values.reshape(1797, SIDE**2, -1)[np.arange(1797), strongest]

    a = at_strongest(share)
    ink = (at_strongest(zero.images) - (1 - a) * at_strongest(background)) / a  # [N, 3]
    rounding = 0.5 / a
    expected = (1 - share) * background + share * ink[:, None, None]
    assert (np.abs(expected - zero.images) <= 0.5 + rounding[:, None, None] + 1e-9).all()
    assert (ink - np.floor(background.mean(axis=(1, 2))) >= CONTRAST - rounding).all()
    assert len(np.unique(np.rint(ink), axis=0)) > 1700  # colours are drawn for each image


def test_draws_are_uniform_below_their_bound():
    draws = builtin.Draws(0, 60_000).below(6)
    counts = np.bincount(draws, minlength=6)
    # chi-square with 5 degrees of freedom exceeds 20.5 once in a thousand seeds
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 20.5
    assert draws.min() == 0


def test_attribution_names_both_photographs_and_their_licence(zero):
    for word in ("china.jpg", "flower.jpg", "danielbuechele", "CC BY 2.0", "UCI"):
        assert word in zero.attribution
