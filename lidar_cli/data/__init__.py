"""Image data to a stable, sized list of samples that can be decoded.

open.py          the value of --data -> samples
dataset.py       candidates of a source -> the samples of a run, drawn and checked
folders.py, tar.py, huggingface.py, torchvision.py, builtin.py    the sources
labels.py        class numbers from folder names and texts
decode.py        the content of one image -> pixels
tables.py        CSV files about checkpoints

Folders and tar files are listed here, with whole paths as classes and a remark on what is left
out; shards, Hugging Face and torchvision sets by the packages that know their layouts. Images are
decoded here, because timm's ImageDataset silently returns the next image when one cannot be
decoded. Sample i of a run is the i-th of the data's order shuffled by the seed: the same data, seed
and i are always the same image, and a smaller n is a prefix of a larger one.
"""
