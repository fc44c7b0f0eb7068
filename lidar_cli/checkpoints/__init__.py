"""A checkpoint file -> one callable from images to the embeddings of its layers.

reading/         file -> nested plain containers of lazy tensors, without torch
detect.py        names and shapes -> CheckpointDescription and an Assignment for each module
  formats/         one description for each training system
  assign.py        a format applied to the tensors of a file
  fallback.py      files without a format, by the usual names
  families.py      kinds of backbones, recognised by the name of one tensor
shapes/          specs: what names and shapes say about a module, without torch
models/          the modules of these specs, and the callable, Embedder
open.py          all of these in a row: file -> Embedder
inspect.py       what `lidar inspect` reports
"""
