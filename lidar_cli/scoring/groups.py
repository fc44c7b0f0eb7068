"""Samples that belong together: frames of a clip, photographs of a patient, near-duplicates.

Influences add up. With U_g the sum of the influences of the samples of group g, G groups and n
samples, a metric less its expectation is sum_g U_g / n; where groups are drawn independently,

    var = G / (G - 1) sum_g U_g^2 / n^2 = var(v) / G,   v_g = U_g G / n

so that v [G] takes the place of the influences [n] in every interval and tie.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lidar_cli.data.tables import read_table
from lidar_cli.errors import InputError
from lidar_cli.features.blocks import Embeddings, Names

LABELS = "labels"  # the value of --groups that names the stored labels


class Grouping:
    """Which samples belong together, as `--groups` says.

    source: a CSV file with the columns id and group, or "labels". A line whose id no file holds
    is no error: one table serves every draw of samples.
    Raises InputError if the table cannot be used, or gives a sample two groups.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._groups: dict[str, str] | None = None
        if source == LABELS:
            return
        self._groups = {}
        for row in read_table(Path(source), ("id", "group")).rows:
            if self._groups.setdefault(row["id"], row["group"]) != row["group"]:
                raise InputError(f"{source}: the sample {row['id'][:100]!r} is in two groups")

    def of(self, embeddings: Embeddings) -> Tensor:
        """The number of the group of each sample of a layer [N]. Raises as `of_names`."""
        count = len(embeddings.span)
        names = embeddings.names() if embeddings.names else Names([*map(str, range(count))], None)
        return self.of_names(embeddings.file, names)[:count]

    def of_names(self, file: str, names: Names) -> Tensor:
        """The number of the group of each sample [N], groups counted as they come.

        Raises InputError if one is in no group, or labels are asked for and lack.
        """
        groups: list[str] | list[int]
        if self._groups is None:
            if names.labels is None:
                raise InputError(
                    f"{file}: stores no labels for --groups {LABELS}; give a CSV file with the "
                    "columns id and group"
                )
            groups = list(names.labels)
            without = [name for name, group in zip(names.ids, groups, strict=True) if group < 0]
        else:
            without = [name for name in names.ids if not self._groups.get(name)]
            groups = [self._groups.get(name, "") for name in names.ids]
        if without:
            raise InputError(
                f"{file}: {len(without)} of {len(names.ids)} samples are in no group of "
                f"--groups {self._source}, the first is {without[0][:100]!r}; the ids are those of "
                "/samples/id, or where a file has none the numbers of samples from 0"
            )
        numbers: dict[str | int, int] = {}
        return torch.tensor([numbers.setdefault(group, len(numbers)) for group in groups])


def summed(influences: Tensor, groups: Tensor) -> Tensor:
    """v [G] of influences [n] and the group of each of their samples [n]. See the equations."""
    numbers, at = torch.unique(groups, return_inverse=True)
    count = len(numbers)
    sums = influences.new_zeros(count).index_add(0, at, influences)
    return sums * (count / len(influences))
