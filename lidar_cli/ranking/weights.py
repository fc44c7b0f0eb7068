"""Equal weights in files of different content: embedded once, and listed as one row.

A safetensors file and a checkpoint of torch, or two checkpoints of which one has the state of an
optimiser, may hold the same weights. Two checkpoints are compared tensor by tensor only if they are
described alike and one small tensor of each, which is read with its description, is the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch

from lidar_cli.checkpoints.assign import Modules
from lidar_cli.checkpoints.reading.lazy_tensor import Weight, materialised
from lidar_cli.errors import FILE_ERRORS


def sample_digest(modules: Modules) -> str:
    """SHA-256 of the smallest weight matrix or kernel; empty if it cannot be read."""
    weights = [tensor for one in modules.values() for tensor in one.tensors.values()]
    kernels = [weight for weight in weights if len(weight.shape) > 1]
    if not kernels:
        return ""
    with suppress(*FILE_ERRORS):
        return _digest([("", min(kernels, key=lambda weight: torch.Size(weight.shape).numel()))])
    return ""


def weights_digest(modules: Modules) -> str:
    """SHA-256 of the architectures and every tensor in use, by layer. Raises CheckpointError."""
    return _digest(
        (f"{architecture_text(layer, assigned.spec)} {name}", tensor)
        for layer, assigned in sorted(modules.items())
        for name, tensor in sorted(assigned.tensors.items())
    )


def architecture_text(layer: str, spec: Any) -> str:
    """All of a layer's spec that determines its module, such as epsilons and activations."""
    values = {
        field.name: repr(getattr(spec, field.name))
        for field in dataclasses.fields(spec)
        if field.name not in ("why", "decided", "backbone")
    }
    size = getattr(spec, "image_size", None)
    return f"{layer} {type(spec).__name__} {getattr(spec, 'arch', '')} {size} {values}"


def _digest(named: Iterable[tuple[str, Weight]]) -> str:
    digest = hashlib.sha256()
    for name, weight in named:
        tensor = materialised(weight).detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
