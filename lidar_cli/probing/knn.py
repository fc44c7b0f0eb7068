"""k nearest neighbours: an oracle without training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lidar_cli.errors import InputError
from lidar_cli.probing.classify import Classifier
from lidar_cli.probing.data import Rows

QUERIES = 1024  # rows that are compared with a chunk at a time


def nearest_neighbours(
    train: Rows, labels: Tensor, n_classes: int, neighbours: int, temperature: float
) -> Classifier:
    """Votes of the training rows that point most nearly in a row's direction.

        s_i = cos(x, x_i);  score_c = sum over the k largest s_i with label_i = c of exp(s_i / T)

    A class without a vote scores -inf. Embeddings are not standardised, as their authors' are not.
    labels: [n] on the device that computes.
    Source: DINO (Caron et al. 2021), k = 20, T = 0.07; the weighting is Wu et al.'s (2018).
    Raises InputError if there are fewer than k training rows.
    """
    if train.count < neighbours:
        raise InputError(
            f"{neighbours} neighbours asked for, and only {train.count} training rows; "
            "lower --neighbours"
        )

    def votes(queries: Tensor) -> Tensor:
        queries = F.normalize(queries, dim=1)
        best = queries.new_full((len(queries), 0), 0.0)
        classes = labels.new_empty((len(queries), 0))
        start = 0
        for chunk in train.chunks():
            near = queries @ F.normalize(chunk.to(queries.device), dim=1).T
            near, at = near.topk(min(neighbours, len(chunk)), dim=1)
            classes = torch.cat([classes, labels[start + at]], 1)
            best, kept = torch.cat([best, near], 1).topk(
                min(neighbours, best.shape[1] + near.shape[1]), dim=1
            )
            classes = classes.gather(1, kept)
            start += len(chunk)
        scores = best.new_zeros(len(queries), n_classes)
        # The largest is taken off each row, which changes no order and keeps exp in its range.
        scores.scatter_add_(1, classes, ((best - best[:, :1]) / temperature).exp())
        return torch.where(scores > 0, scores, -torch.inf)

    return lambda rows: torch.cat([votes(part) for part in torch.split(rows, QUERIES)])[None]
