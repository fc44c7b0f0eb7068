"""The HDF5 feature file: create, write at an index, resume, read whole samples in chunks.

    /embeddings/<layer>/views   (n, q, d)   augmented; absent where q = 0
    /embeddings/<layer>/clean   (N, d)      un-augmented; N >= n, the first n those of `views`
    /embeddings/<layer>/crc32   (N,)        of a sample's views, then its clean embedding
    /samples/id, /samples/label, /samples/done
    /samples/bad                (b, 2)      name and fault of images left out; absent without any

Datasets are contiguous and allocated at creation, in HDF5's default format, so that a killed
writer leaves a file that plain `h5py.File(path)` opens. It is NAME.partial.begun until a sample is
done, NAME.partial until all are: a file under its final name is complete. Several processes write a
shard each, joined by a file of virtual datasets (`shards`). Nothing else knows HDF5.

Only writers open a file with HDF5 here. For readers the limited child process describes it (`walk`,
which it runs; `structure`, which checks its answer), and numbers are read from their offsets.

Names are resolved on first use (PEP 562), so that the child does not load torch.
"""
