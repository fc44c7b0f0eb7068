"""A checkpoint file -> one callable from images to the embeddings of its layers.

read.py          file -> nested plain containers of lazy tensors, without torch
containers.py    which of them is the state dict, and its names without wrappers' additions
recognise.py     names and shapes -> description, and each tensor's place:
  formats/         one small description a format; matching.py: which it is, described.py: applied
  generic.py       what none of them claims
assume.py        what weights leave open, and what the user says of it
families.py      kinds of backbones; resnet_spec.py, vit.py, beit.py, data2vec2.py: their shapes
hf.py, joined.py, hf_config.py   names in Hugging Face's files, tensors that lie apart, config.json
conv_stem.py     what stands for a ViT's patch embedding in MoCo v3
resnet.py, *_module.py    the modules of those whose specs need no torch
positions.py     their position embeddings at other image sizes
timm_arch.py, own_module.py    a backbone that the user names
predictor.py     I-JEPA's predictor
heads.py         a projector or predictor from its weights; head_module.py: its modules
weights.py       every tensor to its place, and none left over
loaded.py        the callable; masked.py: of a model under masks, and what its embedding is
opening.py       all of these in a row

Names are resolved on first use (PEP 562), so that reading a file does not load torch. The function
`recognise` is imported from its module, whose name it has.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidar_cli.checkpoints.found import Description
    from lidar_cli.checkpoints.loaded import Loaded
    from lidar_cli.checkpoints.opening import open_checkpoint, wrap_module
    from lidar_cli.checkpoints.read import Contents, read_checkpoint, read_contents, sha256, stamp

_HOMES = {
    "Contents": "read",
    "Description": "found",
    "Loaded": "loaded",
    "open_checkpoint": "opening",
    "read_checkpoint": "read",
    "read_contents": "read",
    "sha256": "read",
    "stamp": "read",
    "wrap_module": "opening",
}

__all__ = [
    "Contents",
    "Description",
    "Loaded",
    "open_checkpoint",
    "read_checkpoint",
    "read_contents",
    "sha256",
    "stamp",
    "wrap_module",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
