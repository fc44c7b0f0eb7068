"""Small self-supervised training runs: the checkpoints that `lidar demo` ranks.

A narrow ResNet with a projector is trained by SimCLR or VICReg on views of unlabelled images, with
hyperparameters from a random search, and saved as a training script would save it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lidar_cli.checkpoints.models.resnet import ResNet
from lidar_cli.checkpoints.shapes.resnet import Block, ResNetSpec
from lidar_cli.runtime.progress import Progress
from lidar_cli.views.methods import find_recipe
from lidar_cli.views.pipeline import Views

Method = Literal["simclr", "vicreg"]

WIDTHS = (16, 32, 64, 128)  # channels of the four stages, a quarter of a ResNet-18's
STEM_KERNEL = 7  # stride 2 and a max-pool follow, so that the stages see an eighth of the pixels
PROJECTOR_WIDTH = 128  # alpha-ReQ fits the eigenvalues up to the hundredth, so d > 100 is needed
BATCH_SIZE = 64  # samples
WARMUP = 0.1  # share of the steps over which the learning rate rises, before the cosine

# The random search. A pair is the range of a log-uniform draw unless noted otherwise. Each contains
# the papers' value and is as wide as in a first search.
MOST_DRAWS = 32  # per run; fixed, so that a new hyperparameter does not change earlier ones
LEARNING_RATE = (3e-4, 1e-2)  # of AdamW
WEIGHT_DECAY = (1e-6, 1e-1)
TEMPERATURE = (0.05, 1.0)  # SimCLR; the range of the paper's table 5
SIMILARITY = (1.0, 100.0)  # VICReg's lambda; the paper has 25
VARIANCE = (1.0, 100.0)  # VICReg's mu; the paper has 25
COVARIANCE = (0.1, 10.0)  # VICReg's nu; the paper has 1
STRENGTH = (0.2, 2.0)  # of the colour jitter, drawn uniformly; SimCLR has 1
CROP = (0.08, 0.8)  # least area of a view, drawn uniformly; SimCLR has 0.08
EPOCHS = (3, 15)


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of one training run; None for those of the other method's loss."""

    method: Method
    epochs: int
    learning_rate: float
    weight_decay: float
    strength: float  # of the colour jitter; SimCLR has 1
    crop: float  # least area of a view, as a share of the image; SimCLR has 0.08
    temperature: float | None = None  # SimCLR
    similarity: float | None = None  # VICReg's lambda
    variance: float | None = None  # VICReg's mu
    covariance: float | None = None  # VICReg's nu


class Search:
    """Hyperparameters from numbers in [0, 1], of which each draw takes the next."""

    def __init__(self, unit: Sequence[float]) -> None:
        self._unit = iter(unit)

    @classmethod
    def seeded(cls, seed: int, index: int) -> Search:
        """Random numbers of run `index` of the search with `seed`."""
        words = np.random.SeedSequence([seed % 2**64, index]).generate_state(MOST_DRAWS, np.uint64)
        return cls(((words >> np.uint64(11)) * 2.0**-53).tolist())

    def uniform(self, bounds: tuple[float, float]) -> float:
        """Uniform between the bounds."""
        low, high = bounds
        return float(low + (high - low) * next(self._unit))

    def log_uniform(self, bounds: tuple[float, float]) -> float:
        """Uniform on a log scale between the bounds."""
        low, high = bounds
        return float(low * (high / low) ** next(self._unit))

    def count(self, bounds: tuple[int, int]) -> int:
        """An integer, log-uniform, both bounds included."""
        return int(self.log_uniform((bounds[0], bounds[1] + 1)))


def draw_hyperparameters(
    method: Method, seed: int, index: int, epochs: tuple[int, int] | None = None
) -> Hyperparameters:
    """Hyperparameters of run `index` of the random search with `seed`, independent of other runs.

    epochs: least and greatest number; None for `EPOCHS`.
    """
    return searched(method, Search.seeded(seed, index), epochs or EPOCHS)


def searched(method: Method, search: Search, epochs: tuple[int, int]) -> Hyperparameters:
    """Hyperparameters from the numbers of a search. epochs: least and greatest number."""
    shared = searched_shared(search, epochs)
    if method == "simclr":
        return Hyperparameters(method, *shared, temperature=search.log_uniform(TEMPERATURE))
    return Hyperparameters(
        method,
        *shared,
        similarity=search.log_uniform(SIMILARITY),
        variance=search.log_uniform(VARIANCE),
        covariance=search.log_uniform(COVARIANCE),
    )


def searched_shared(
    search: Search, epochs: tuple[int, int]
) -> tuple[int, float, float, float, float]:
    """Epochs, learning rate, weight decay, strength and crop: what all methods of a ResNet have."""
    return (
        search.count(epochs),
        search.log_uniform(LEARNING_RATE),
        search.log_uniform(WEIGHT_DECAY),
        search.uniform(STRENGTH),
        search.uniform(CROP),
    )


def nt_xent(embeddings: Tensor, temperature: float) -> Tensor:
    """Normalised-temperature cross entropy of two views of each sample, mean over the 2b rows.

        sim(u, v) = u . v / (|u| |v|)
        l(i, j) = -log  exp(sim(z_i, z_j) / t) / sum_{k != i} exp(sim(z_i, z_k) / t)

    where j is the other view of i's sample. embeddings: z, [b, 2, d].
    Source: Chen et al. 2020, A Simple Framework for Contrastive Learning, eq. 1.
    """
    rows = F.normalize(embeddings, dim=2).flatten(0, 1)  # [2b, d], the views of a sample adjacent
    logits = rows @ rows.T / temperature
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    other_view = torch.arange(len(rows), device=rows.device) ^ 1
    return F.cross_entropy(logits.masked_fill(itself, -torch.inf), other_view)


def vicreg(embeddings: Tensor, similarity: float, variance: float, covariance: float) -> Tensor:
    """Variance-invariance-covariance regularisation of two views of each sample.

        s(Z, Z') = mean_ij (z_ij - z'_ij)^2
        v(Z) = mean_j max(0, 1 - sqrt(Var(z_j) + 1e-4))
        C(Z) = sum_i (z_i - mean z) (z_i - mean z)^T / (b - 1)            [d, d]
        c(Z) = sum_{j != k} C_jk^2 / d
        loss = similarity s + variance (v(Z) + v(Z')) + covariance (c(Z) + c(Z'))

    with Var over the batch, divided by b - 1. embeddings: Z and Z' as [b, 2, d].
    Source: Bardes et al. 2022, VICReg, eqs. 1 to 6; s is a mean over dimensions as in its
    algorithm 1, to which the coefficients belong (eq. 5 has a sum).
    """
    batch, _, dim = embeddings.shape
    first, second = embeddings.unbind(dim=1)
    loss = similarity * F.mse_loss(first, second)
    for view in (first, second):
        centred = view - view.mean(dim=0)
        spread = (centred.square().sum(dim=0) / (batch - 1) + 1e-4).sqrt()
        loss = loss + variance * F.relu(1.0 - spread).mean()
        between = centred.T @ centred / (batch - 1)
        off_diagonal = between.square().sum() - between.diagonal().square().sum()
        loss = loss + covariance * off_diagonal / dim
    return loss


def narrow_resnet() -> ResNet:
    """A ResNet of basic blocks with few channels, freshly initialised: fast without a GPU.

    Source: He et al. 2016, Deep Residual Learning for Image Recognition, section 3.
    """
    stages, into = [], WIDTHS[0]
    for number, width in enumerate(WIDTHS):
        stride = 1 if number == 0 else 2
        block = Block(into, width, width, stride, 1, bottleneck=False, downsample=number > 0)
        stages.append((block,))
        into = width
    backbone = ResNet(ResNetSpec(WIDTHS[0], STEM_KERNEL, tuple(stages)))
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return backbone


class Network(nn.Module):
    """Backbone and projector, as both methods train them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = narrow_resnet()
        self.projector = nn.Sequential(
            nn.Linear(WIDTHS[-1], PROJECTOR_WIDTH, bias=False),
            nn.BatchNorm1d(PROJECTOR_WIDTH),
            nn.ReLU(),
            nn.Linear(PROJECTOR_WIDTH, PROJECTOR_WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[b, 3, H, W] to the projected embedding [b, PROJECTOR_WIDTH]."""
        projected: Tensor = self.projector(self.backbone(x))
        return projected


class Minibatch(NamedTuple):
    """One training step: the indices of its samples, and its position in the training."""

    epoch: int
    samples: list[int]
    learning_rate_share: float
    progress: float  # share of the steps that are done, 0 .. 1


def minibatches(count: int, epochs: int, seed: int) -> Iterator[Minibatch]:
    """The steps of a training on `count` samples, which have a new order in every epoch.

    An incomplete batch is left out, since the losses depend on the batch size.
    """
    batch = min(BATCH_SIZE, count)
    per_epoch = count // batch
    steps = per_epoch * epochs
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = torch.randperm(count, generator=generator)
        for number in range(per_epoch):
            step = epoch * per_epoch + number
            samples = order[number * batch : (number + 1) * batch].tolist()
            share = learning_rate_share(step, steps)
            yield Minibatch(epoch, samples, share, step / steps)


def learning_rate_share(step: int, steps: int) -> float:
    """Factor of the learning rate at `step` of `steps`: linear warm-up, then a cosine to zero."""
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
        """Add the loss of one step."""
        self._sums[epoch] += loss.item()
        self._counts[epoch] += 1

    @property
    def means(self) -> list[float]:
        """The mean loss of every epoch that had a step."""
        return [s / c for s, c in zip(self._sums, self._counts, strict=True) if c]


def pretrain(
    images: NDArray[np.uint8],
    hyperparameters: Hyperparameters,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train one run and return its checkpoint, as a script with a parallel wrapper would save it.

    AdamW with a linear warm-up and a cosine to zero; two fresh views of every image each epoch.
    Equal arguments give equal weights on the same machine and thread count, and torch's global
    random state does not change. The checkpoint has plain values and tensors only, so that
    `torch.load(weights_only=True)` reads it. Its `losses` are the mean loss of each epoch.

    images: [N, S, S, 3], N >= 2. seed: of the weights, the order of samples and the views.
    """
    h, progress = hyperparameters, progress or Progress()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # With few channels the convolutions run twice as fast with the channel last in memory.
        network = Network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=h.learning_rate,
        weight_decay=h.weight_decay,
    )
    losses = Losses(h.epochs)
    for step in minibatches(len(images), h.epochs, seed):
        optimizer.param_groups[0]["lr"] = h.learning_rate * step.learning_rate_share
        views = training_views(images, step.samples, h.strength, h.crop, seed, step.epoch)
        loss = loss_of(h, network(views.flatten(0, 1)).unflatten(0, views.shape[:2]))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.add(step.epoch, loss)
        progress.update("pretrain", step.epoch + 1, h.epochs)
    weights = network.state_dict()
    return {
        "epoch": h.epochs,
        "state_dict": {f"module.{name}": weights[name].contiguous() for name in weights},
        "optimizer": optimizer.state_dict(),
        "hyper_parameters": asdict(h),
        "losses": losses.means,
    }


def loss_of(h: Hyperparameters, embeddings: Tensor) -> Tensor:
    """The loss of the method that the hyperparameters name; embeddings [b, 2, d]."""
    if h.method == "simclr":
        assert h.temperature is not None
        return nt_xent(embeddings, h.temperature)
    assert h.similarity is not None
    assert h.variance is not None
    assert h.covariance is not None
    return vicreg(embeddings, h.similarity, h.variance, h.covariance)


def training_views(
    images: NDArray[np.uint8],
    samples: list[int],
    strength: float,
    crop: float,
    seed: int,
    epoch: int,
) -> Tensor:
    """Two views of some images, [b, 2, 3, S, S], normalised; new ones in every epoch.

    SimCLR's recipe with its jitter scaled by `strength` and views of at least `crop` of the area.
    samples: indices of the images.
    """
    recipe = find_recipe("simclr", "imagenet").at_strength(strength)
    recipe = replace(recipe, crop_scale=(crop, 1.0))
    views = Views(recipe, training_seed(seed, epoch), n_views=2, image_size=images.shape[1])
    return views.views([torch.from_numpy(images[i]) for i in samples], samples)


def training_seed(seed: int, epoch: int) -> int:
    """Seed of the views of one epoch."""
    return int(np.random.SeedSequence([seed % 2**64, epoch]).generate_state(2, np.uint32)[0])
