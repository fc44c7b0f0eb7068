"""Reports what a feature file contains, and verifies every number in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidar_cli.errors import FeatureFileError
from lidar_cli.features.embeddings import Embeddings
from lidar_cli.features.hdf5 import HDF5Contents, check_complete, open_hdf5, provenance_of
from lidar_cli.features.reader import read_hdf5

MEMORY = 2**26  # bytes of a chunk
COSTS = {  # what a file may lack -> what that costs
    "ids": "rank and compare assume the same samples in the same order in every file",
    "labels": "no probe, and no oracle by a probe",
    "checksums": "damage is not noticed, and rank computes its scores again each time",
    "data": "the data are printed as not recorded",
}


@dataclass(frozen=True)
class LayerSummary:
    """One layer of a feature file."""

    name: str
    n: int  # samples with views
    q: int  # views of each; 0 without views, the smallest number where they are unequal
    most: int  # the largest number
    d: int
    n_clean: int  # samples with a clean embedding
    storage: str  # the type of the numbers
    checksums: str  # 'verified' or 'none'


@dataclass(frozen=True)
class FeatureInspection:
    """The report of `lidar inspect` for a feature file whose every number was read."""

    file: str
    kind: str
    layers: tuple[LayerSummary, ...]
    ids: bool
    labels: bool
    missing: dict[str, str]  # what the file lacks -> what that costs
    provenance: dict[str, Any]


def inspect_features(path: Path) -> FeatureInspection:
    """Describe a feature file, and verify its checksums and that all numbers are finite.

    Raises FeatureFileError if it is not a complete, undamaged feature file of finite numbers.
    """
    with open_hdf5(path) as file:
        provenance = provenance_of(file)
        check_complete(file)
    layers = tuple(_layer(file, embeddings) for embeddings in read_hdf5(path))
    present = {
        "ids": file.has_ids,
        "labels": "samples/label" in file.arrays,
        "checksums": all(layer.checksums != "none" for layer in layers),
        "data": "data" in provenance,
    }
    return FeatureInspection(
        file=str(path),
        kind="feature file",
        layers=layers,
        ids=file.has_ids,
        labels=present["labels"],
        missing={what: cost for what, cost in COSTS.items() if not present[what]},
        provenance=provenance,
    )


def _layer(file: HDF5Contents, embeddings: Embeddings) -> LayerSummary:
    for chunk in embeddings.chunks(MEMORY):  # verifies checksums
        for part in (chunk.views, chunk.clean):
            if part is not None and not part.isfinite().all():
                bad = int((~part.isfinite().flatten(1).all(dim=1)).nonzero()[0])
                if part is chunk.views and chunk.counts is not None:
                    bad = int((chunk.counts.cumsum(0) <= bad).sum())
                raise FeatureFileError(
                    f"{file.path}: layer {embeddings.layer}: the embedding of sample "
                    f"{chunk.start + bad} holds NaN or Inf; write it again without",
                    code="not-finite",
                )
    n, q, d = embeddings.shape
    stored = embeddings.views or embeddings.clean
    assert stored is not None
    return LayerSummary(
        name=embeddings.layer,
        n=n if q else 0,
        q=q,
        most=q if embeddings.counts is None else int(embeddings.counts.max()),
        d=d,
        n_clean=embeddings.clean.shape[0] if embeddings.clean else 0,
        storage=f"float{8 * stored.item_size}",
        checksums="none" if embeddings.verify is None else "verified",
    )
