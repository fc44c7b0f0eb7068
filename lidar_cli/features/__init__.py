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

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidar_cli.features.form import Layout, Share, as_numbers, partial_path
    from lidar_cli.features.provenance import joined_name
    from lidar_cli.features.read import (
        read_first,
        read_hdf5,
        read_interrupted,
        read_labels,
        read_names,
        read_provenance,
    )
    from lidar_cli.features.shards import agree, check_startable, join, shard_path
    from lidar_cli.features.space import amount, size_of
    from lidar_cli.features.structure import is_hdf5
    from lidar_cli.features.write import FeatureWriter, begun_path, check_absent, remove_unbegun

_HOMES = {
    "FeatureWriter": "write",
    "Layout": "form",
    "Share": "form",
    "agree": "shards",
    "amount": "space",
    "as_numbers": "form",
    "begun_path": "write",
    "check_absent": "write",
    "check_startable": "shards",
    "is_hdf5": "structure",
    "join": "shards",
    "joined_name": "provenance",
    "partial_path": "form",
    "read_first": "read",
    "read_hdf5": "read",
    "read_interrupted": "read",
    "read_labels": "read",
    "read_names": "read",
    "read_provenance": "read",
    "remove_unbegun": "write",
    "shard_path": "shards",
    "size_of": "space",
}

__all__ = [
    "FeatureWriter",
    "Layout",
    "Share",
    "agree",
    "amount",
    "as_numbers",
    "begun_path",
    "check_absent",
    "check_startable",
    "is_hdf5",
    "join",
    "joined_name",
    "partial_path",
    "read_first",
    "read_hdf5",
    "read_interrupted",
    "read_labels",
    "read_names",
    "read_provenance",
    "remove_unbegun",
    "shard_path",
    "size_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
