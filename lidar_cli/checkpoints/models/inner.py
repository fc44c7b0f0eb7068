"""Embeddings of modules inside a backbone, taken by forward hooks in its own forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lidar_cli.checkpoints.models.backbone import Backbone
from lidar_cli.checkpoints.shapes.inner import (
    CLASS_TOKEN,
    MEAN_OF_IMAGE,
    MEAN_OF_TOKENS,
    ROWS,
    InnerLayer,
    unknown_layer,
)
from lidar_cli.checkpoints.shapes.spec import CheckpointDescription
from lidar_cli.errors import CheckpointError

BLANK = 2  # images of the pass that measures; one would not show which axis they are on
PATCHES_A_SIDE = 8  # of that pass, where the weights do not determine the image size
Shapes = dict[str, list[tuple[int, ...]]]  # shape of each output of a module, in order of depth


class _Complete(BaseException):
    """Ends a forward pass whose remaining modules nothing needs; no handler of errors takes it."""


@contextmanager
def captured(
    module: nn.Module, layers: Mapping[str, InnerLayer], *, pool: bool = True, last: bool = False
) -> Iterator[dict[str, Tensor]]:
    """A dict that each forward pass in the block fills with the embeddings [b, width] of layers.

    pool: whether outputs are pooled; else they stay as they are. last: whether the block ends with
    the pass, once all have an output, so that the deeper modules are not computed.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        value = _tensor(output)
        assert value is not None
        outputs[name] = pooled(value, layers[name]) if pool else value
        if last and len(outputs) == len(layers):
            raise _Complete

    handles = [
        module.get_submodule(name).register_forward_hook(partial(keep, name)) for name in layers
    ]
    try:
        yield outputs
    except _Complete:
        pass
    finally:
        for handle in handles:
            handle.remove()


def pooled(output: Tensor, layer: InnerLayer) -> Tensor:
    """The embeddings [b, width] of a module's output."""
    if layer.pooling == CLASS_TOKEN:
        return output[:, 0]
    return output[:, layer.first :].mean(dim=layer.axes) if layer.axes else output


@contextmanager
def recorded(module: nn.Module) -> Iterator[Shapes]:
    """A dict that each forward pass in the block fills with the shapes of all modules' outputs."""
    shapes: Shapes = {}

    def record(name: str, module: nn.Module, args: Any, output: Any) -> None:
        value = _tensor(output)
        if value is not None:
            shapes.setdefault(name, []).append(tuple(value.shape))

    handles = [
        part.register_forward_hook(partial(record, name))
        for name, part in module.named_modules()
        if name
    ]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def inner_layers(
    backbone: Backbone, names: Iterable[str], description: CheckpointDescription
) -> dict[str, InnerLayer]:
    """The named layers of a backbone in order of depth; nothing is computed and nothing is read.

    Raises CheckpointError for a name that is no module which the forward pass calls once.
    """
    size = description.image_size or PATCHES_A_SIDE * (description.patch or 28)
    tensors = chain(backbone.named_parameters(), backbone.named_buffers())
    shapes_alone = {name: tensor.to("meta") for name, tensor in tensors}
    images = torch.zeros(BLANK, description.channels, size, size, device="meta")
    with recorded(backbone.weights) as shapes, torch.inference_mode():
        functional_call(backbone.eval(), shapes_alone, (images,))
    return choose(shapes, names, backbone.token_pooling, description.widths)


def choose(
    shapes: Shapes,
    names: Iterable[str],
    token_pooling: tuple[bool, int],
    others: Iterable[str],
    *,
    is_square: bool = True,
) -> dict[str, InnerLayer]:
    """The named layers in order of depth, by the shapes of a pass of blank inputs.

    token_pooling: as of `Backbone`. others: the layers that are not inside a backbone.
    is_square: whether the inputs are square images.
    Raises CheckpointError as `inner_layers`.
    """
    names = list(names)
    for name in names:
        if name not in shapes:
            raise unknown_layer(name, shapes, others)
    # The first modules see patches alone, before class token and registers join them.
    most = max((one[1] for each in shapes.values() for one in each if len(one) == 3), default=0)
    return {
        name: _inner_layer(name, outputs, token_pooling, most, is_square=is_square)
        for name, outputs in shapes.items()
        if name in names
    }


def _inner_layer(
    name: str,
    outputs: list[tuple[int, ...]],
    token_pooling: tuple[bool, int],
    most: int,
    *,
    is_square: bool,
) -> InnerLayer:
    """The pooling of one layer. outputs: shapes in one pass. most: tokens of the longest output."""
    shape, times = outputs[0], len(outputs)
    if times > 1 or shape[0] != BLANK:
        what = f"{times} outputs" if times > 1 else f"an output {list(shape)} for {BLANK} images"
        raise CheckpointError(
            f"layer {name!r} has {what} in a forward pass; expected one of "
            "[b, width], [b, tokens, width] or [b, channels, rows, columns]; name another",
            code="layer-shape",
        )
    if len(shape) == 2:
        return InnerLayer(shape[1], ROWS)
    if len(shape) > 3:
        if is_square and len(shape) == 4 and shape[1] == shape[2] != shape[3]:  # rows and columns
            return InnerLayer(shape[3], MEAN_OF_IMAGE, (1, 2))
        return InnerLayer(shape[1], MEAN_OF_IMAGE, tuple(range(2, len(shape))))
    by_class_token, prefix = token_pooling if shape[1] == most else (False, 0)
    if by_class_token:
        return InnerLayer(shape[2], CLASS_TOKEN, (), prefix)
    return InnerLayer(shape[2], MEAN_OF_TOKENS, (1,), prefix)


def _tensor(output: Any) -> Tensor | None:
    """The first tensor of a module's output, as of a tuple of hidden states and attention."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) and output.dim() > 1 else None
