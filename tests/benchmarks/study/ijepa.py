"""Trains I-JEPA on small images: a tiny Vision Transformer predicts the tokens of hidden patches.

The encoder sees a few squares of patches, and a predictor predicts the tokens of all others. Their
targets are the tokens of a moving average of the encoder, which sees all patches. On a grid of
4 x 4 patches the blocks of the paper, which never reach the last row, would leave some patches out
of every block; so the context is drawn by data2vec 2.0's rule.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lidar_cli.checkpoints.models.backbone import select_tokens
from lidar_cli.checkpoints.models.heads import Predictor
from lidar_cli.checkpoints.models.vit import ViT
from lidar_cli.checkpoints.shapes.heads import PredictorSpec
from lidar_cli.checkpoints.shapes.vit import ViTSpec
from lidar_cli.demo.pretrain import (
    CROP,
    WEIGHT_DECAY,
    Losses,
    Search,
    minibatches,
    training_seed,
)
from lidar_cli.views.masks import Mask
from lidar_cli.views.methods import find_recipe
from lidar_cli.views.pipeline import Views
from lidar_cli.views.recipes import InverseBlocks
from study.dino import update_teacher

WIDTH = 128  # of the backbone, as the ResNets'
INNER = 64  # of the predictor
HEADS = 2
DEPTH, PREDICTOR_DEPTH = 2, 1
PATCH = 8
EXPANSION = 2  # of the MLPs

# Ranges of the random search, log-uniform unless noted otherwise.
LEARNING_RATE = (1e-4, 3e-3)  # of AdamW; lower than for a ResNet
TEACHER_STEP = (3e-3, 1e-1)  # 1 - momentum at the start; the paper has 0.004
MASKED = (0.3, 0.8)  # share of the patches, searched uniformly


@dataclass(frozen=True)
class IjepaHyperparameters:
    """The hyperparameters in which training runs differ."""

    method: str
    epochs: int
    learning_rate: float
    weight_decay: float
    crop: float  # least area of a view, as a share of the image; the paper's is 0.3
    masked: float  # share of the patches that are to be predicted
    momentum: float  # of the target encoder at the start; it rises to 1


def searched_ijepa(search: Search, epochs: tuple[int, int]) -> IjepaHyperparameters:
    """Hyperparameters from the numbers of a search. epochs: fewest and most."""
    return IjepaHyperparameters(
        "ijepa",
        search.count(epochs),
        search.log_uniform(LEARNING_RATE),
        search.log_uniform(WEIGHT_DECAY),
        search.uniform(CROP),
        search.uniform(MASKED),
        1 - search.log_uniform(TEACHER_STEP),
    )


def ijepa_loss(
    encoder: ViT, predictor: Predictor, target: ViT, images: Tensor, mask: Mask
) -> Tensor:
    """Smooth L1 loss between predicted and target tokens of the hidden patches.

        loss = mean smooth_l1(predictor(encoder(x[seen])), layer_norm(target(x))[hidden])

    Source: facebookresearch/ijepa, src/train.py.
    """
    assert mask.seen is not None
    hidden = (mask.compared > 0).nonzero()[:, 1].view(len(images), -1)
    with torch.no_grad():
        target_tokens = select_tokens(F.layer_norm(target.tokens(images), (WIDTH,)), hidden)
    predicted = predictor(encoder.tokens(images, mask.seen), [mask.seen], [hidden])
    return F.smooth_l1_loss(predicted, target_tokens)


def train_ijepa(
    images: NDArray[np.uint8], hyperparameters: IjepaHyperparameters, seed: int
) -> dict[str, Any]:
    """The checkpoint of one run in the layout of facebookresearch/ijepa.

    Its arguments determine it; it has plain values and tensors only, like that of `pretrain`.

    images: [N, S, S, 3], N >= 2, S a multiple of PATCH. seed: that of weights, order, crops
    and masks.
    """
    h, size = hyperparameters, images.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, predictor = new_encoder(size // PATCH), new_predictor(size // PATCH)
    target = copy.deepcopy(encoder).requires_grad_(False)
    trained = [p for m in (encoder, predictor) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=h.learning_rate, weight_decay=h.weight_decay)
    losses = Losses(h.epochs)
    for step in minibatches(len(images), h.epochs, seed):
        optimizer.param_groups[0]["lr"] = h.learning_rate * step.learning_rate_share
        crops, mask = masked_crops(images, step.samples, h, training_seed(seed, step.epoch))
        loss = ijepa_loss(encoder, predictor, target, crops, mask)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        update_teacher(target, encoder, h.momentum + (1 - h.momentum) * step.progress)
        losses.add(step.epoch, loss)
    return {
        "encoder": _prefixed(encoder.weights),
        "predictor": _prefixed(predictor),
        "target_encoder": _prefixed(target.weights),
        "opt": optimizer.state_dict(),
        "scaler": None,
        "epoch": h.epochs,
        "hyper_parameters": asdict(h),
        "losses": losses.means,
    }


def masked_crops(
    images: NDArray[np.uint8], samples: list[int], h: IjepaHyperparameters, seed: int
) -> tuple[Tensor, Mask]:
    """Normalised crops [b, 3, S, S] of the images with these indices, and their mask."""
    rule = InverseBlocks(masked=h.masked, side=2)
    recipe = replace(
        find_recipe("ijepa-crop", "imagenet"), crop_scale=(h.crop, 1.0), flip=0.5, masks=rule
    )
    views = Views(recipe, seed, n_views=1, image_size=images.shape[1], patch=PATCH)
    masks = views.masks(samples)
    assert masks is not None
    return views.views([torch.from_numpy(images[i]) for i in samples], samples)[:, 0], masks[0]


def new_encoder(grid: int) -> ViT:
    """A tiny ViT of `grid` patches a side without class token, freshly initialised."""
    encoder = ViT(
        ViTSpec(
            width=WIDTH, depth=DEPTH, heads=HEADS, patch=PATCH, grid=grid,
            columns=grid, tokens=grid**2, mlp=EXPANSION * WIDTH, swiglu=False, class_token=False,
            registers=0, positioned=0,
            qkv_bias=True, qk_norm=False, proj_bias=True, layer_scale=False, pre_norm=False,
            final_norm=True, fc_norm=False,
        )
    )  # fmt: skip
    _initialise(encoder)
    encoder.model.pos_embed = _fixed_positions(WIDTH, grid)
    return encoder


def new_predictor(grid: int) -> Predictor:
    """A narrow predictor, freshly initialised."""
    predictor = Predictor(
        PredictorSpec(
            width=WIDTH, inner=INNER, depth=PREDICTOR_DEPTH, heads=HEADS, grid=grid,
            mlp=EXPANSION * INNER, qkv_bias=True,
        )
    )  # fmt: skip
    _initialise(predictor)
    nn.init.trunc_normal_(predictor.mask_token, std=0.02)
    predictor.predictor_pos_embed = _fixed_positions(INNER, grid)
    return predictor


def sine_positions(width: int, grid: int) -> Tensor:
    """Position embeddings [grid^2, width] of patches by rows, each a quarter of the width:

        sin(c w), cos(c w), sin(r w), cos(r w)      w_k = 10000^(-k / (width / 4)), row r, column c

    Source: Chen et al. 2021, MoCo v3, section 5; facebookresearch/ijepa, src/utils/tensors.py.
    """
    quarter = width // 4
    frequencies = 10000 ** (-torch.arange(quarter) / quarter)
    angles = torch.arange(grid)[:, None] * frequencies  # [grid, quarter]
    rows, columns = angles.repeat_interleave(grid, dim=0), angles.repeat(grid, 1)
    return torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)


def _fixed_positions(width: int, grid: int) -> nn.Parameter:
    return nn.Parameter(sine_positions(width, grid)[None], requires_grad=False)


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(part.weight.flatten(1))
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _prefixed(network: nn.Module) -> dict[str, Tensor]:
    return {f"module.{name}": weight.clone() for name, weight in network.state_dict().items()}
