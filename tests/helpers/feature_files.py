"""Feature files that several test modules write and read."""

import json

import h5py
import torch

from lidar_cli.features.reader import read_hdf5
from lidar_cli.features.schema import Layout
from lidar_cli.features.writer import FeatureWriter

N, Q, CLEAN = 6, 3, 8  # samples with views, views, samples with a clean embedding


WIDTHS = {"backbone": 5, "projector": 2}


LAYOUT = Layout(WIDTHS, N, Q, CLEAN)


PROVENANCE = {"architecture": "toy", "seed": 0, "size": (8, 8), "data": "toy"}


IDS = [f"image/{i}-é.png" for i in range(CLEAN)]


def set_revision(path, revision):
    """Record that a file was made at that embedding revision; None before they were recorded."""
    with h5py.File(path, "r+") as file:
        record = json.loads(file.attrs["provenance"])
        record.pop("embedding_revision")
        if revision is not None:
            record["embedding_revision"] = revision
        file.attrs["provenance"] = json.dumps(record)


def embeddings(seed=0):
    """By layer: views [n, q, d] and clean [N, d]."""
    generator = torch.Generator().manual_seed(seed)
    views = {name: torch.randn(N, Q, d, generator=generator) for name, d in WIDTHS.items()}
    clean = {name: torch.randn(CLEAN, d, generator=generator) for name, d in WIDTHS.items()}
    return views, clean


def create(path, storage="float32", labels=None, **options):
    layout = Layout(WIDTHS, N, Q, CLEAN, storage)
    return FeatureWriter.create(path, layout, IDS, labels, PROVENANCE, **options)


def write(writer, first, last, seed=0):
    views, clean = embeddings(seed)
    writer.write(
        range(first, last),
        {name: z[first : min(last, N)] for name, z in views.items()},
        {name: z[first:last] for name, z in clean.items()},
    )


def complete(path, **options):
    with create(path, **options) as writer:
        for first in range(0, CLEAN, 3):
            write(writer, first, min(first + 3, CLEAN))
        return writer.finish()


def read_all(path, layer, memory=10**6):
    (found,) = read_hdf5(path, layer)
    chunks = list(found.chunks(memory))
    views = torch.cat([chunk.views for chunk in chunks if chunk.views is not None])
    return views, torch.cat([chunk.clean for chunk in chunks])
