"""lidar: score and rank self-supervised checkpoints without labels.

    from lidar_cli import Moments, lidar, rankme, alpha_req, extract
    from lidar_cli import FeatureWriter, write_features      # for embeddings of other programs
    from lidar_cli import LiDAR, Pillai, RankMe, AlphaReQ    # torchmetrics objects, extra `train`

Names are resolved on first use (PEP 562), so that importing the package, and with it
`lidar --help`, loads neither torch nor timm.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "Moments": "lidar_cli.core.moments",
    "lidar": "lidar_cli.core.functional",
    "rankme": "lidar_cli.core.functional",
    "alpha_req": "lidar_cli.core.functional",
    "extract": "lidar_cli.extraction.run",
    "FeatureWriter": "lidar_cli.features.writer",
    "write_features": "lidar_cli.features.writer",
    "LiDAR": "lidar_cli.integrations.torchmetrics",
    "Pillai": "lidar_cli.integrations.torchmetrics",
    "RankMe": "lidar_cli.integrations.torchmetrics",
    "AlphaReQ": "lidar_cli.integrations.torchmetrics",
}

# Without the names that need an extra: `from lidar_cli import *` must work without it.
__all__ = [
    "FeatureWriter",
    "Moments",
    "__version__",
    "alpha_req",
    "extract",
    "lidar",
    "rankme",
    "write_features",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
