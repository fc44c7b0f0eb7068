"""Checkpoints as other people's code saves them, at small width, and what they must embed to.

Each fixture is written from a description of the layout: true names, true containers, true foreign
objects (argparse's Namespace, functions of a training script, numpy's scalars). `embed` holds the
literal forward pass for every branch and layer, in functions of torch alone.
A file a family or library, `formats_*.py`; importing them fills the table, `FIXTURES`.
"""

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

import formats_bolts  # noqa: F401
import formats_contrastive  # noqa: F401
import formats_distillation  # noqa: F401
import formats_huggingface  # noqa: F401
import formats_lejepa  # noqa: F401
import formats_lightly  # noqa: F401
import formats_lightly_train  # noqa: F401
import formats_masked  # noqa: F401
import formats_openmmlab  # noqa: F401
import formats_plain  # noqa: F401
import formats_rotary  # noqa: F401
import formats_solo  # noqa: F401
import formats_stable_pretraining  # noqa: F401
import formats_transformers  # noqa: F401
import formats_vissl  # noqa: F401
from layouts import FIXTURES, describe

from lidar_cli.checkpoints.reading.read import as_dict, read_contents
from lidar_cli.checkpoints.shapes.spec import CheckpointDescription

__all__ = ["FIXTURES", "descriptions"]


@functools.cache
def descriptions() -> dict[str, tuple[CheckpointDescription, bool]]:
    """By name, what is recognised in each fixture, and whether it has a configuration."""
    described = {}
    for name, make in FIXTURES.items():
        with TemporaryDirectory() as folder:
            contents = read_contents(path := make().save(Path(folder)))
            description = describe(path, as_dict(contents), config=contents.config)
        described[name] = (description, contents.config is not None)
    return described
