"""Reading and writing embeddings: the HDF5 feature file, and arrays of other programs."""
