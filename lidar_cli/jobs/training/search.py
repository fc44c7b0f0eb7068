"""Random search: the hyperparameters of one run, drawn independently of all other runs."""

from __future__ import annotations

import numpy as np

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
