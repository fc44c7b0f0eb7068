"""Trains DINO on small images: a student predicts the output of its teacher for another view.

The teacher is a moving average of the student. There are two global views and no local ones; the
backbone is a narrow ResNet, and the bottleneck of the head is the layer `projector`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lidar_cli.demo.pretrain import (
    PROJECTOR_WIDTH,
    WIDTHS,
    Losses,
    Search,
    minibatches,
    narrow_resnet,
    searched_shared,
    training_views,
)

PROTOTYPES = 256  # the paper has 65,536 for ImageNet
STUDENT_TEMPERATURE = 0.1
CENTRE_MOMENTUM = 0.9
CLIP = 3.0  # largest norm of a gradient

# Ranges of the random search, log-uniform; those shared with other methods are imported.
TEACHER_TEMPERATURE = (0.01, 0.06)  # the paper has 0.04 to 0.07
TEACHER_STEP = (3e-3, 1e-1)  # 1 - momentum at the start; the paper has 0.004 for 300 epochs


@dataclass(frozen=True)
class DinoHyperparameters:
    """The hyperparameters in which training runs differ."""

    method: str
    epochs: int
    learning_rate: float
    weight_decay: float
    strength: float  # of the colour jitter; SimCLR has 1
    crop: float  # least area of a view, as a share of the image
    teacher_temperature: float
    momentum: float  # of the teacher at the start; it rises to 1


def searched_dino(search: Search, epochs: tuple[int, int]) -> DinoHyperparameters:
    """Hyperparameters from the numbers of a search. epochs: fewest and most."""
    return DinoHyperparameters(
        "dino",
        *searched_shared(search, epochs),
        search.log_uniform(TEACHER_TEMPERATURE),
        1 - search.log_uniform(TEACHER_STEP),
    )


def dino_loss(student: Tensor, teacher: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Cross entropy between the teacher's output for one view and the student's for the other.

        P_t = softmax((t - centre) / temperature),   P_s = softmax(s / STUDENT_TEMPERATURE)
        loss = mean over samples and both orders of  - sum P_t(one view) log P_s(other view)

    student, teacher: s and t, logits of prototypes [b, 2, k]. centre: [k].
    Source: Caron et al. 2021, Emerging Properties in Self-Supervised Vision Transformers, eq. 3.
    """
    target = F.softmax((teacher - centre) / temperature, dim=2).flip(1)
    log_predicted = F.log_softmax(student / STUDENT_TEMPERATURE, dim=2)
    return -(target * log_predicted).sum(dim=2).mean()


class Prototypes(nn.Module):
    """A linear map with k weight-normalised rows of unit length.

    The names of its parameters are those of torch's older weight norm, as in DINO's files.
    """

    def __init__(self, width: int, k: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(k, 1), requires_grad=False)
        self.weight_v = nn.Parameter(torch.randn(k, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[b, width] to [b, k]."""
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=1))


class Head(nn.Module):
    """An MLP of three layers to the bottleneck, L2 normalisation, then prototypes."""

    def __init__(self) -> None:
        super().__init__()
        into, hidden = WIDTHS[-1], PROJECTOR_WIDTH
        self.mlp = nn.Sequential(
            nn.Linear(into, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, PROJECTOR_WIDTH),
        )
        self.last_layer = Prototypes(PROJECTOR_WIDTH, PROTOTYPES)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                # With torch's default biases all embeddings would start in nearly the same
                # direction, and subtracting the centre would leave nothing to learn from.
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[b, width] to logits [b, PROTOTYPES]."""
        logits: Tensor = self.last_layer(F.normalize(self.mlp(x), dim=1))
        return logits


class DinoNetwork(nn.Module):
    """Backbone and head; student and teacher each are one."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = narrow_resnet()
        self.head = Head()

    def forward(self, x: Tensor) -> Tensor:
        """[b, 3, H, W] to logits [b, PROTOTYPES]."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


def train_dino(
    images: NDArray[np.uint8], hyperparameters: DinoHyperparameters, seed: int
) -> dict[str, Any]:
    """The checkpoint of one run in the layout of facebookresearch/dino's full checkpoints.

    Its arguments determine it; it has plain values and tensors only, like that of `pretrain`. The
    teacher also normalises by the statistics of the current batch.

    images: [N, S, S, 3], N >= 2. seed: that of weights, order and views.
    """
    h = hyperparameters
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = DinoNetwork().to(memory_format=torch.channels_last)
    teacher = copy.deepcopy(student).requires_grad_(False)
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=h.learning_rate, weight_decay=h.weight_decay)
    centre = torch.zeros(PROTOTYPES)
    losses = Losses(h.epochs)
    for step in minibatches(len(images), h.epochs, seed):
        optimizer.param_groups[0]["lr"] = h.learning_rate * step.learning_rate_share
        views = training_views(images, step.samples, h.strength, h.crop, seed, step.epoch)
        with torch.no_grad():
            teacher_logits: Tensor = teacher(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        student_logits = student(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        loss = dino_loss(student_logits, teacher_logits, centre, h.teacher_temperature)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        centre.lerp_(teacher_logits.mean(dim=(0, 1)), 1 - CENTRE_MOMENTUM)
        update_teacher(teacher, student, teacher_momentum(h.momentum, step.progress))
        losses.add(step.epoch, loss)
    return {
        "student": _prefixed(student),
        "teacher": _prefixed(teacher),
        "optimizer": optimizer.state_dict(),
        "epoch": h.epochs,
        "dino_loss": {"center": centre[None]},
        "hyper_parameters": asdict(h),
        "losses": losses.means,
    }


def teacher_momentum(momentum: float, progress: float) -> float:
    """The momentum of the teacher after a share `progress` of training: half a cosine, m to 1."""
    return 1 - (1 - momentum) * (0.5 + 0.5 * math.cos(math.pi * progress))


def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Update the teacher in place: teacher = momentum teacher + (1 - momentum) student."""
    with torch.no_grad():
        for average, weight in zip(teacher.parameters(), student.parameters(), strict=True):
            average.lerp_(weight, 1 - momentum)


def _prefixed(network: nn.Module) -> dict[str, Tensor]:
    weights = network.state_dict()
    return {f"module.{name}": weights[name].contiguous() for name in weights}
