"""I-JEPA on small images: a tiny Vision Transformer predicts the tokens that it does not see.

The encoder sees a few squares of patches, a predictor fills in the tokens of all others, and a
moving average of the encoder, which sees the whole image, says what they should be. On a grid of
4 x 4 patches the blocks of the paper, which never reach the last row, would leave a part unseen;
the context is drawn by data2vec 2.0's rule instead.
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

from lidar_cli.checkpoints.models.backbone import select
from lidar_cli.checkpoints.models.heads import Predictor
from lidar_cli.checkpoints.models.vit import ViT
from lidar_cli.checkpoints.shapes.heads import PredictorSpec
from lidar_cli.checkpoints.shapes.vit import ViTSpec
from lidar_cli.demo.pretrain import CROP, WEIGHT_DECAY, Losses, Search, minibatches, training_seed
from lidar_cli.views.masks import Mask
from lidar_cli.views.methods import find_recipe
from lidar_cli.views.pipeline import Views
from lidar_cli.views.recipes import InverseBlocks
from study.dino import follow

WIDTH = 128  # of the backbone, as the ResNets'
INNER = 64  # of the predictor
HEADS = 2
DEPTH, PREDICTOR_DEPTH = 2, 1
PATCH = 8
EXPANSION = 2  # of the MLPs

# The random search, as of the other methods.
LEARNING_RATE = (1e-4, 3e-3)  # of AdamW; a transformer bears less than a ResNet
TEACHER_STEP = (3e-3, 1e-1)  # 1 - momentum at the start; the paper has 0.004
MASKED = (0.3, 0.8)  # share of the patches, searched uniformly


@dataclass(frozen=True)
class IjepaHyperparameters:
    """What one training run may differ in."""

    method: str
    epochs: int
    learning_rate: float
    weight_decay: float
    crop: float  # least area of a view, as a share of the image; the paper's is 0.3
    masked: float  # share of the patches that are to be predicted
    momentum: float  # of the target encoder at the start; it rises to 1


def draw_ijepa(seed: int, index: int, epochs: tuple[int, int]) -> IjepaHyperparameters:
    """Run `index` of the random search of `seed`; epochs: fewest and most."""
    search = Search(seed, index)
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
    """Smooth L1 between predicted tokens and the target encoder's, at the patches not seen.

        loss = mean smooth_l1(predictor(encoder(x[seen])), layer_norm(target(x))[hidden])

    Source: facebookresearch/ijepa, src/train.py.
    """
    assert mask.seen is not None
    hidden = (mask.compared > 0).nonzero()[:, 1].view(len(images), -1)
    with torch.no_grad():
        wanted = select(F.layer_norm(target.tokens(images), (WIDTH,)), hidden)
    guessed = predictor(encoder.tokens(images, mask.seen), [mask.seen], [hidden])
    return F.smooth_l1_loss(guessed, wanted)


def train_ijepa(
    images: NDArray[np.uint8], hyperparameters: IjepaHyperparameters, seed: int
) -> dict[str, Any]:
    """The checkpoint of one run in the layout of facebookresearch/ijepa.

    As `pretrain` gives one: determined by its arguments, plain values and tensors only.

    images: [N, S, S, 3], N >= 2, S a multiple of PATCH. seed: of weights, order, crops and masks.
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
        follow(target, encoder, h.momentum + (1 - h.momentum) * step.progress)
        losses.add(step.epoch, loss)
    return {
        "encoder": _wrapped(encoder.weights),
        "predictor": _wrapped(predictor),
        "target_encoder": _wrapped(target.weights),
        "opt": optimizer.state_dict(),
        "scaler": None,
        "epoch": h.epochs,
        "hyper_parameters": asdict(h),
        "losses": losses.means,
    }


def masked_crops(
    images: NDArray[np.uint8], samples: list[int], h: IjepaHyperparameters, seed: int
) -> tuple[Tensor, Mask]:
    """A crop of some images [b, 3, S, S], normalised, and what of it is seen."""
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
            mlp=EXPANSION * WIDTH, swiglu=False, class_token=False, registers=0, positioned=0,
            qkv_bias=True, qk_norm=False, proj_bias=True, layer_scale=False, pre_norm=False,
            final_norm=True, fc_norm=False,
        )
    )  # fmt: skip
    _initialise(encoder)
    encoder.model.pos_embed = _fixed(WIDTH, grid)
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
    predictor.predictor_pos_embed = _fixed(INNER, grid)
    return predictor


def sine_positions(width: int, grid: int) -> Tensor:
    """Positions [grid^2, width] of patches by rows, a quarter of the width each:

        sin(c w), cos(c w), sin(r w), cos(r w)      w_k = 10000^(-k / (width / 4)), row r, column c

    Source: Chen et al. 2021, MoCo v3, section 5; facebookresearch/ijepa, src/utils/tensors.py.
    """
    quarter = width // 4
    frequencies = 10000 ** (-torch.arange(quarter) / quarter)
    place = torch.arange(grid)[:, None] * frequencies  # [grid, quarter]
    rows, columns = place.repeat_interleave(grid, dim=0), place.repeat(grid, 1)
    return torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)


def _fixed(width: int, grid: int) -> nn.Parameter:
    return nn.Parameter(sine_positions(width, grid)[None], requires_grad=False)


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(part.weight.flatten(1))
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _wrapped(network: nn.Module) -> dict[str, Tensor]:
    return {f"module.{name}": weight.clone() for name, weight in network.state_dict().items()}
