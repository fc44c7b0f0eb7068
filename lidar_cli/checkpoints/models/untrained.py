"""Random initialisation of the modules of checkpoints, as torch and timm initialise them.

    BatchNorm, LayerNorm       weight 1, bias 0, running mean 0 and variance 1
    ResNet                     convolutions normal, He's variance by fan-out: torchvision
    transformers               linear layers and positions truncated normal of 0.02, biases 0, class
                               token and registers normal of 1e-6, layer scale 1e-5: timm; for BEiT
                               layer scale 0.1, a class token as the positions, and the last layers
                               of block l divided by sqrt(2 l)
    rotary positions           the periods or frequencies, and the mask of biases, of their code
    projectors                 torch's default of each layer; weight norm of that weight
    others                     torch's default of each layer

Modules are initialised in the order of `modules()`, from one seed of torch for all of a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from lidar_cli.checkpoints.models.beit import Beit
from lidar_cli.checkpoints.models.data2vec2 import Data2Vec2
from lidar_cli.checkpoints.models.heads import Predictor, WeightNormed
from lidar_cli.checkpoints.models.resnet import ResNet
from lidar_cli.checkpoints.models.rope import (
    CentredRotation,
    EdgeRotation,
    MaskedLinear,
    RopeViT,
)
from lidar_cli.checkpoints.models.swin import Swin
from lidar_cli.checkpoints.models.vit import ViT

T = TypeVar("T")
USUAL = (
    nn.Linear, nn.Conv2d, nn.Conv3d, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm, CentredRotation, EdgeRotation,
)  # fmt: skip
TRANSFORMERS = (ViT, RopeViT, Beit, Data2Vec2, Swin, Predictor)
RESNET = "convolutions normal with He's variance by fan-out, as torchvision's"
TRANSFORMER = "linear layers and positions truncated normal of 0.02, as timm's"
BATCHNORM = "BatchNorm with running mean 0 and variance 1"


def seeded(seed: int, work: Callable[[], T]) -> T:
    """The result of `work` with torch's generator at a seed; the generator is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return work()


def initialise(modules: Iterable[nn.Module], seed: int) -> None:
    """Give random weights to modules in eval mode; they may be on the meta device."""
    modules = list(modules)
    for module in modules:
        state = module.state_dict()
        empty = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in state.items()}
        module.load_state_dict(empty, assign=True)

    def initialise_all() -> None:
        for module in modules:
            _initialise(module)
            module.eval().requires_grad_(False)

    with torch.no_grad():
        seeded(seed, initialise_all)


def in_words(modules: Iterable[nn.Module]) -> str:
    """How `initialise` initialises these modules."""
    modules = list(modules)
    texts = []
    if isinstance(modules[0], ResNet):
        texts.append(RESNET)
    elif isinstance(modules[0], TRANSFORMERS):
        texts.append(TRANSFORMER)
    elif hasattr(modules[0], "remade"):
        texts.append("as timm creates it")
    if any(
        name.rpartition(".")[2].startswith("gamma") for name, _ in modules[0].named_parameters()
    ):
        texts.append("layer scale 0.1" if isinstance(modules[0], Beit) else "layer scale 1e-5")
    parts = [part for module in modules for part in module.modules()]
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in parts):
        texts.append(BATCHNORM)
    return "; ".join(texts) or "torch's default"


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and isinstance(module, ResNet):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear) and isinstance(module, TRANSFORMERS):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
            if isinstance(part, MaskedLinear):
                part.reset_mask()
        elif isinstance(part, USUAL):
            part.reset_parameters()
        elif isinstance(part, WeightNormed):
            _initialise_weight_norm(part)
        else:
            for name, parameter in part.named_parameters(recurse=False):
                _initialise_parameter(module, name, parameter)
    if isinstance(module, Beit):
        for at, block in enumerate(module.model.blocks, 1):
            block.attn.proj.weight /= math.sqrt(2.0 * at)
            block.mlp.fc2.weight /= math.sqrt(2.0 * at)


def _initialise_parameter(module: nn.Module, name: str, parameter: Tensor) -> None:
    """Initialise a tensor that belongs to no layer of torch's."""
    is_beit = isinstance(module, Beit)
    if name in ("cls_token", "reg_token") and not is_beit:
        nn.init.normal_(parameter, std=1e-6)
    elif name.startswith(("gamma", "layer_scale")):
        nn.init.constant_(parameter, 0.1 if is_beit else 1e-5)
    elif name.endswith(("_token", "_tokens", "pos_embed")) or isinstance(module, Swin):
        nn.init.trunc_normal_(parameter, std=0.02)
    else:  # biases of q and v, tables of relative positions
        nn.init.zeros_(parameter)


def _initialise_weight_norm(part: WeightNormed) -> None:
    out, into = part.weight_v.shape
    usual = nn.Linear(into, out, bias=part.bias is not None)
    part.weight_v.copy_(usual.weight)
    part.weight_g.copy_(usual.weight.norm(dim=1, keepdim=True))
    if part.bias is not None:
        part.bias.copy_(usual.bias)
