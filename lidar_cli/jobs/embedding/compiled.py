"""Backbones compiled by torch, for `--compile`."""

from __future__ import annotations

import torch

from lidar_cli.checkpoints import Loaded
from lidar_cli.checkpoints.backbone import Backbone
from lidar_cli.errors import SettingsError, first_line


def compile_backbone(loaded: Loaded, device: torch.device) -> None:
    """Have torch compile the backbone when the first batch passes; views under masks are not.

    Raises SettingsError where torch finds no compiler for the device, or the module is the user's.
    """
    backbones = [module for module in loaded.modules.values() if isinstance(module, Backbone)]
    if not backbones:
        raise SettingsError(
            "--compile: is for architectures that lidar builds; compile a module of your own "
            "where you make it, and leave out --compile"
        )
    try:
        torch.compile(_probe)(torch.zeros(2, device=device))
    except Exception as error:  # torch's compilers have no common base of their errors
        raise SettingsError(
            f"--compile: torch cannot compile for {device} here: {first_line(error)}; install a "
            "compiler that torch knows (g++ for the CPU, triton for CUDA), or leave out --compile"
        ) from error
    for module in backbones:
        module.compile(dynamic=False)


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
