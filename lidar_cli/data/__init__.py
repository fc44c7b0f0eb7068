"""Image data to a stable, sized list of samples that can be decoded.

Folders and tar files are listed here, with whole paths as classes and what is left out said;
shards, Hugging Face and torchvision sets by the packages that know how each is laid out. The bytes
are decoded here, because timm's ImageDataset silently returns the next image when one cannot be
decoded. Sample i of a run is the i-th of the data's order shuffled by the seed: the same data, seed
and i are always the same image, and a smaller n is a prefix of a larger one.

Which images are left out as bad is settled here too, before anything is embedded, so that all that
is made from one list (views, resumed files, every checkpoint of a ranking) has the same samples.
"""
