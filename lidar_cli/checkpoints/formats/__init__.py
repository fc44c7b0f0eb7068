"""All formats, which `detect` tries and `lidar inspect --formats` prints.

To add one, write a `Format` in the file of its kind of method or library, and add it to the tuple
at the end of that file.
"""

from lidar_cli.checkpoints.formats.architectures import ARCHITECTURES, HUGGINGFACE
from lidar_cli.checkpoints.formats.bolts import BOLTS
from lidar_cli.checkpoints.formats.contrastive import CONTRASTIVE
from lidar_cli.checkpoints.formats.distillation import DISTILLATION
from lidar_cli.checkpoints.formats.format import Format
from lidar_cli.checkpoints.formats.lejepa import LEJEPAS
from lidar_cli.checkpoints.formats.libraries import LIBRARIES
from lidar_cli.checkpoints.formats.lightly_train import LIGHTLY_TRAIN_ALL
from lidar_cli.checkpoints.formats.masked import DATA2VEC, MASKED
from lidar_cli.checkpoints.formats.openmmlab import OPENMMLAB
from lidar_cli.checkpoints.formats.rotary import ROTARY
from lidar_cli.checkpoints.formats.vissl import VISSL

FORMATS: tuple[Format, ...] = (
    *CONTRASTIVE, *LEJEPAS, *DISTILLATION, *VISSL, *MASKED, *DATA2VEC, *LIBRARIES,
    *LIGHTLY_TRAIN_ALL, *BOLTS, *OPENMMLAB, *HUGGINGFACE, *ARCHITECTURES, *ROTARY,
)  # fmt: skip
