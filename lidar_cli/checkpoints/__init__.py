"""A checkpoint file -> one callable from images to the embeddings of its layers.

reading/         file -> nested plain containers of lazy tensors, without torch
detect.py        names and shapes -> the format and the place of each tensor:
  formats/         one description for each training system
  match.py         which format a file has; assign.py: that format applied to its tensors
  fallback.py      files that no format describes
  assume.py        what weights leave open, and the values that the user sets for it
families.py      kinds of backbones, recognised by the name of one tensor
shapes/          what names and shapes say about a backbone or a head, without torch
models/          the modules of these, and the callable (embedder.py)
open.py          all of these in a row
inspect.py       what `lidar inspect` reports
"""
