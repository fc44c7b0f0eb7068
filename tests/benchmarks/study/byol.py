"""Trains BYOL on small images: an online network predicts its moving average's projected views.

Backbone, projector and file are those of `pretrain`; the predictor is saved too, the target is not,
which the paper discards.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lidar_cli.demo.pretrain import (
    PROJECTOR_WIDTH,
    Losses,
    Network,
    Search,
    minibatches,
    searched_shared,
    training_views,
)
from study.dino import teacher_momentum, update_teacher

TEACHER_STEP = (3e-3, 1e-1)  # 1 - momentum at the start, log-uniform; the paper has 0.004


@dataclass(frozen=True)
class ByolHyperparameters:
    """The hyperparameters in which training runs differ."""

    method: str
    epochs: int
    learning_rate: float
    weight_decay: float
    strength: float  # of the colour jitter; SimCLR has 1
    crop: float  # least area of a view, as a share of the image
    momentum: float  # of the target at the start; it rises to 1


def searched_byol(search: Search, epochs: tuple[int, int]) -> ByolHyperparameters:
    """Hyperparameters from the numbers of a search. epochs: fewest and most."""
    return ByolHyperparameters(
        "byol",
        *searched_shared(search, epochs),
        1 - search.log_uniform(TEACHER_STEP),
    )


def byol_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """2 - 2 cos(p, z') of the prediction for one view and the target of the other, summed over both
    orders, mean over samples.

    predicted, target: p and z', [b, 2, d]. Source: Grill et al. 2020, Bootstrap Your Own Latent,
    eq. 2.
    """
    cosine = F.cosine_similarity(predicted, target.flip(1), dim=2)
    return (2 - 2 * cosine).sum(dim=1).mean()


def new_predictor() -> nn.Sequential:
    """The predictor: the same MLP as the projector, [b, d] to [b, d]."""
    return nn.Sequential(
        nn.Linear(PROJECTOR_WIDTH, PROJECTOR_WIDTH),
        nn.BatchNorm1d(PROJECTOR_WIDTH),
        nn.ReLU(),
        nn.Linear(PROJECTOR_WIDTH, PROJECTOR_WIDTH),
    )


def train_byol(
    images: NDArray[np.uint8], hyperparameters: ByolHyperparameters, seed: int
) -> dict[str, Any]:
    """The checkpoint of one run as `pretrain` saves it. Its arguments determine it.

    images: [N, S, S, 3], N >= 2. seed: that of weights, order and views.
    """
    h = hyperparameters
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        online = Network().to(memory_format=torch.channels_last)
        predictor = new_predictor()
    target = copy.deepcopy(online).requires_grad_(False)
    trained = [*online.parameters(), *predictor.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=h.learning_rate, weight_decay=h.weight_decay)
    losses = Losses(h.epochs)
    for step in minibatches(len(images), h.epochs, seed):
        optimizer.param_groups[0]["lr"] = h.learning_rate * step.learning_rate_share
        views = training_views(images, step.samples, h.strength, h.crop, seed, step.epoch)
        rows, shape = views.flatten(0, 1), views.shape[:2]
        with torch.no_grad():
            targets = target(rows).unflatten(0, shape)
        loss = byol_loss(predictor(online(rows)).unflatten(0, shape), targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        update_teacher(target, online, teacher_momentum(h.momentum, step.progress))
        losses.add(step.epoch, loss)
    networks = {"": online, "predictor.": predictor}
    return {
        "epoch": h.epochs,
        "state_dict": {
            f"module.{part}{name}": weight.contiguous()
            for part, network in networks.items()
            for name, weight in network.state_dict().items()
        },
        "optimizer": optimizer.state_dict(),
        "hyper_parameters": asdict(h),
        "losses": losses.means,
    }
