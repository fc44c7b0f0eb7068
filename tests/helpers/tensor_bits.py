"""The bits of a tensor, for exact comparison."""

from __future__ import annotations

import torch
from torch import Tensor


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(
        torch.uint8).numpy()) if tensor.numel() else b""  # fmt: skip
