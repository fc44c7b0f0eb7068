"""Random numbers as hashes: the same wherever, whenever and in whatever company they are asked for.

A number is a hash of (seed, sample, view, slot). Each of these is added to the hash of those
before it, so their places are not interchangeable: sample 1 under seed 0 is not sample 0 under
seed 1. Axes: b samples, v views.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def streams(seed: int, samples: Sequence[int], views: Sequence[int]) -> Words:
    """A hash state [b, v] for each view of each sample."""
    state = mix(np.asarray([seed % 2**64], dtype=np.uint64))
    state = mix(state + np.asarray(samples, dtype=np.int64).astype(np.uint64))
    return mix(np.add.outer(state, np.asarray(views, dtype=np.int64).astype(np.uint64)))


def mix(words: Words) -> Words:
    """The next outputs of SplitMix64 after the given states (Steele, Lea and Flood 2014)."""
    words = words + GOLDEN
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def words(stream: Words, slot: int, count: int) -> Words:
    """Random words [..., count] of slots `slot`, `slot` + 1, ... of streams [...]."""
    slots = np.arange(slot, slot + count, dtype=np.uint64)
    return mix(stream[..., None] + slots * GOLDEN)


def uniforms(stream: Words, slot: int, count: int) -> Floats:
    """Numbers in [0, 1) with 53 random bits, [..., count]."""
    return (words(stream, slot, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform(stream: Words, slot: int) -> Floats:
    """One number in [0, 1) for each stream."""
    return uniforms(stream, slot, 1)[..., 0]
