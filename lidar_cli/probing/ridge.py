"""Ridge regression onto the classes: an oracle in closed form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lidar_cli.errors import DegenerateFeatures
from lidar_cli.probing.classify import Classifier, standardise
from lidar_cli.probing.data import Rows


def ridge_regression(train: Rows, labels: Tensor, n_classes: int, ridge: float) -> Classifier:
    """Least squares from standardised embeddings to indicators of the classes.

        Y [n, C] = 1 where label_i = c, else 0;  b = mean_i Y_i
        W = (X'^T X' + ridge I)^-1 X'^T (Y - b)                        [d, C]
        scores = x' W + b

    Two passes over the rows and a d x d state in float64, whatever n is.
    labels: [n] on the device that computes. ridge: in units of one row of X'.
    Raises DegenerateFeatures if the matrix cannot be inverted.
    """
    scaling = standardise(train, labels.device)
    gram = torch.zeros(train.dim, train.dim, dtype=torch.float64, device=labels.device)
    onto = gram.new_zeros(train.dim, n_classes)
    counts = labels.bincount(minlength=n_classes).double()
    start = 0
    for chunk in train.chunks():
        x = scaling(chunk.to(labels.device)).double()
        y = F.one_hot(labels[start : start + len(x)], n_classes).double()
        gram += x.T @ x
        onto += x.T @ (y - counts / len(labels))
        start += len(x)
    gram.diagonal().add_(ridge)
    root, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        raise DegenerateFeatures(
            f"the covariance of {train.count} rows of {train.dim} dimensions is singular; "
            "raise --ridge"
        )
    weight = torch.cholesky_solve(onto, root).float()
    bias = (counts / len(labels)).float()
    return lambda rows: (scaling(rows) @ weight + bias)[None]
