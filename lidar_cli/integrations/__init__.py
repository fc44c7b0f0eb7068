"""Metrics during training: torchmetrics objects, and callbacks that log them.

    from lidar_cli.integrations import LiDAR, Pillai, RankMe, AlphaReQ, EmbeddingMetric
    from lidar_cli.integrations import LogMetrics          # Lightning
    from lidar_cli.integrations import LogMetricsCallback  # Hugging Face's Trainer

Names are resolved on first use (PEP 562): importing the package needs none of these packages.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "AlphaReQ": "torchmetrics",
    "EmbeddingMetric": "torchmetrics",
    "LiDAR": "torchmetrics",
    "LogMetrics": "lightning",
    "LogMetricsCallback": "transformers",
    "Pillai": "torchmetrics",
    "RankMe": "torchmetrics",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
