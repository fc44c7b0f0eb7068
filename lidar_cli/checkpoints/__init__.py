"""Turns a checkpoint file into an `Embedder`: images -> the embeddings of each layer.

reading/         file -> nested plain containers of lazy tensors, without torch
detect.py        names and shapes -> CheckpointDescription and an Assignment for each module
  formats/         one `Format` for each training system
  assign.py        the tensors of a file -> the modules that its format lists
  fallback.py      the same for files that match no format, by usual names
  families.py      the kinds of backbones, each recognised by the name of one tensor
shapes/          specs: the sizes of a module, from names and shapes, without torch
models/          the torch modules of these specs, and Embedder
open.py          file -> Embedder, by all of the above
inspect.py       the report of `lidar inspect`
"""
