"""The formats that are recognised by more than their backbone: one description each.

A new one is a `Format` in the file of its family of repositories, and nothing else; FORMATS is the
table that recognition walks and `lidar inspect --formats` prints.
"""

from lidar_cli.checkpoints.formats.architectures import ARCHITECTURES
from lidar_cli.checkpoints.formats.contrastive import CONTRASTIVE
from lidar_cli.checkpoints.formats.data2vec import DATA2VEC
from lidar_cli.checkpoints.formats.distillation import DISTILLATION
from lidar_cli.checkpoints.formats.format import (
    Branch,
    Format,
    Head,
    Method,
    TokenPredictor,
    numbered,
)
from lidar_cli.checkpoints.formats.huggingface import HUGGINGFACE
from lidar_cli.checkpoints.formats.libraries import LIBRARIES
from lidar_cli.checkpoints.formats.mae_ijepa import MASKED
from lidar_cli.checkpoints.formats.vissl import VISSL

__all__ = ["FORMATS", "Branch", "Format", "Head", "Method", "TokenPredictor", "numbered"]

FORMATS: tuple[Format, ...] = (
    *CONTRASTIVE, *DISTILLATION, *VISSL, *MASKED, *DATA2VEC, *LIBRARIES, *HUGGINGFACE,
    *ARCHITECTURES,
)  # fmt: skip
