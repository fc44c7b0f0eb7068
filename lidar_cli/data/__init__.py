"""Opens image data and draws the samples of a run from it.

open.py          opens the data that --data names
dataset.py       draws and checks the samples of a run
folders.py, tar.py, huggingface.py, torchvision.py, builtin.py    the sources
labels.py        class numbers from folder names and texts
tables.py        CSV files about checkpoints

Folders and tar files are listed by this package, which takes complete paths as classes and reports
what is left out; shards, Hugging Face and torchvision sets are listed by the packages for them.
Images are decoded by this package, because timm's ImageDataset silently returns the next image when
one cannot be decoded. Sample i of a run is the i-th image after a shuffle by the seed: the same
data, seed and i are always the same image, and a smaller n is a prefix of a larger one.
"""
