"""lidar: score and rank self-supervised checkpoints without labels.

    import lidar_cli
    lidar_cli.score(embeddings)                    # numbers [n, q, d], or paths; as `lidar score`
    lidar_cli.rank("runs/", data="photos/").best   # or dicts of arrays by name; as `lidar rank`
    lidar_cli.compare("a.pt", "b.pt")              # as `lidar compare`
    lidar_cli.inspect("a.pt")                      # as `lidar inspect`

These take the settings of the commands as keywords and give the records of their JSON, with
`to_dict()`, `to_pandas()` and `plot()`; they raise InputError and SettingsError, and warn with
LidarWarning.

    from lidar_cli import Moments, lidar, rankme, alpha_req, extract   # of tensors in memory
    from lidar_cli import FeatureWriter, write_features                # files of your embeddings
    from lidar_cli import LiDAR, Pillai, RankMe, AlphaReQ    # torchmetrics objects, extra `train`

`lidar explain python` has examples. Names are resolved on first use (PEP 562), so that importing
the package, and with it `lidar --help`, loads neither torch nor timm.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "score": "lidar_cli.api.commands",
    "rank": "lidar_cli.api.commands",
    "compare": "lidar_cli.api.commands",
    "inspect": "lidar_cli.api.commands",
    "ScoreResult": "lidar_cli.api.results",
    "RankResult": "lidar_cli.api.results",
    "CompareResult": "lidar_cli.api.results",
    "InspectResult": "lidar_cli.api.results",
    "InputError": "lidar_cli.errors",
    "LidarError": "lidar_cli.errors",
    "LidarWarning": "lidar_cli.errors",
    "SettingsError": "lidar_cli.errors",
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
_NEED_AN_EXTRA = ("AlphaReQ", "LiDAR", "Pillai", "RankMe")
__all__ = sorted(["__version__", *(name for name in _MODULES if name not in _NEED_AN_EXTRA)])


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """All names; those of torchmetrics where it is installed, as `help` resolves every name."""
    extra = _NEED_AN_EXTRA if find_spec("torchmetrics") else ()
    return sorted([*__all__, *extra])
