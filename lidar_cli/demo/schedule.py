"""What the small training runs share: the order of samples and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

BATCH_SIZE = 64  # samples
WARMUP = 0.1  # share of the steps over which the learning rate rises, before the cosine


class Minibatch(NamedTuple):
    """The samples of one step, by number, and where in the training it is."""

    epoch: int
    samples: list[int]
    learning_rate_share: float
    progress: float  # share of the steps that are behind, 0 .. 1


def minibatches(count: int, epochs: int, seed: int) -> Iterator[Minibatch]:
    """The steps of a training on `count` samples, in another order every epoch.

    An incomplete batch is left out, since its loss is another.
    """
    batch = min(BATCH_SIZE, count)
    an_epoch = count // batch
    steps = an_epoch * epochs
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = torch.randperm(count, generator=generator)
        for number in range(an_epoch):
            step = epoch * an_epoch + number
            samples = order[number * batch : (number + 1) * batch].tolist()
            share = learning_rate_share(step, steps)
            yield Minibatch(epoch, samples, share, step / steps)


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the learning rate at one of `steps`: a linear rise, then half a cosine to zero."""
    warmup = WARMUP * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup))


class Losses:
    """The mean loss of each epoch."""

    def __init__(self, epochs: int) -> None:
        self._sums = [0.0] * epochs
        self._counts = [0] * epochs

    def add(self, epoch: int, loss: torch.Tensor) -> None:
        """The loss of one step."""
        self._sums[epoch] += loss.item()
        self._counts[epoch] += 1

    @property
    def means(self) -> list[float]:
        """One an epoch that had a step."""
        return [s / c for s, c in zip(self._sums, self._counts, strict=True) if c]


MOST = 32  # numbers a run; a constant, so that one more hyperparameter changes no earlier one


class Search:
    """Numbers of run `index` of the search of `seed`, one call after another."""

    def __init__(self, seed: int, index: int) -> None:
        words = np.random.SeedSequence([seed % 2**64, index]).generate_state(MOST, np.uint64)
        self._unit = iter((words >> np.uint64(11)) * 2.0**-53)  # [0, 1)

    def uniform(self, bounds: tuple[float, float]) -> float:
        """Uniform between the bounds."""
        low, high = bounds
        return float(low + (high - low) * next(self._unit))

    def log_uniform(self, bounds: tuple[float, float]) -> float:
        """Uniform on a log scale between the bounds."""
        low, high = bounds
        return float(low * (high / low) ** next(self._unit))

    def count(self, bounds: tuple[int, int]) -> int:
        """A whole number, log-uniform, both bounds included."""
        return int(self.log_uniform((bounds[0], bounds[1] + 1)))
