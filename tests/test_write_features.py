"""Feature files that users write: with `write_features`, `FeatureWriter`, or h5py alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import reference
import torch
from command import run_command
from make import environment
from raising import raises

import lidar_cli
from lidar_cli.errors import (
    DegenerateFeatures,
    FeatureFileError,
    InputError,
    SettingsError,
    Unresumable,
)
from lidar_cli.features.inspect import inspect_features
from lidar_cli.features.reader import read_hdf5, read_names
from lidar_cli.features.schema import partial_path
from lidar_cli.probing.data import open_members
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ScoreSettings

N, Q, D = 60, 3, 5
IDS = [f"patient-{i}" for i in range(N)]


def made(seed: int = 0, spread: float = 0.5) -> np.ndarray:
    """Views [N, Q, D] of the samples of every seed."""
    samples = np.random.default_rng(9).normal(size=(N, 1, D))
    return samples + spread * np.random.default_rng(seed).normal(size=(N, Q, D))


def literal_lidar(views: np.ndarray) -> float:
    return reference.lidar(views.astype(np.float64), ScoreSettings().delta, ScoreSettings().epsilon)


def stored(path: Path, part: str = "views", layer: str = "embedding") -> Any:
    with h5py.File(path) as file:
        return file[f"embeddings/{layer}/{part}"][:]


@pytest.mark.parametrize(
    "given",
    [
        *(made(), np.broadcast_to(made(), (N, Q, D)), made().tolist()),
        *(torch.tensor(made(), requires_grad=True), made().astype("f2")),
    ],
    ids=["numpy", "read-only", "list", "tensor", "float16"],
)
def test_any_array_is_written(tmp_path: Path, given: Any) -> None:
    path = lidar_cli.write_features(tmp_path / "a.h5", given, clean=made()[:, 0], labels=[1] * N)
    plain = given.detach().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
    np.testing.assert_array_equal(stored(path), plain.astype("f4"))
    np.testing.assert_array_equal(stored(path, "clean"), made()[:, 0].astype("f4"))
    (score,) = score_file(path, ScoreSettings())
    assert score.value("lidar") == pytest.approx(literal_lidar(stored(path)), rel=1e-6)
    report = inspect_features(path)
    assert (report.ids, report.labels) == (False, True)
    assert [*report.missing] == ["ids", "data"]


def test_several_layers_and_a_dataset_that_is_read_by_slices(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "source.h5", "w") as source:
        source["z"] = made()
        views = {"early": source["z"], "late": made()[:, :, :2]}
        path = lidar_cli.write_features(tmp_path / "a.h5", views, ids=IDS, storage="float16")
    layers = {layer.name: (layer.n, layer.q, layer.d) for layer in inspect_features(path).layers}
    assert layers == {"early": (N, Q, D), "late": (N, Q, 2)}
    np.testing.assert_array_equal(stored(path, layer="early"), made().astype("f4").astype("f2"))


def test_batches_in_any_order_are_resumed(tmp_path: Path) -> None:
    path, views = tmp_path / "a.h5", made()
    begun: dict[str, Any] = {"n_samples": N, "n_views": Q, "dim": D, "ids": IDS}

    def begin() -> None:
        with lidar_cli.FeatureWriter(path, **begun) as writer:
            writer.write([40, 7, 8], views[[40, 7, 8]])
            writer.write(["patient-3"], views[3:4])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()
    assert not path.exists()
    with pytest.raises(FeatureFileError, match="56 samples were never written"):  # noqa: SIM117
        with lidar_cli.FeatureWriter(path, **begun, resume=True) as writer:
            assert np.flatnonzero(writer.done).tolist() == [3, 7, 8, 40]
    assert partial_path(path).exists()  # it can still be resumed
    with pytest.raises(Unresumable, match="labels_sha256 differ"):
        lidar_cli.FeatureWriter(path, **begun, labels=[1] * N, resume=True)
    with pytest.raises(Unresumable, match="samples_sha256 differ"):
        lidar_cli.FeatureWriter(path, **{**begun, "ids": IDS[::-1]}, resume=True)
    with lidar_cli.FeatureWriter(path, **begun, resume=True) as writer:
        rest = np.flatnonzero(~writer.done)[::-1]
        writer.write(rest, views[rest])
    np.testing.assert_array_equal(stored(path), views.astype("f4"))
    assert read_names(path).ids == IDS
    (embeddings,) = read_hdf5(path)
    assert sum(len(chunk.views) for chunk in embeddings.chunks(1000)) == N  # checksums agree


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, SettingsError, "no embeddings"),
        ({"views": made()[0]}, SettingsError, r"\(3, 5\); expected \[n, q, d\]"),
        ({"views": made(), "clean": made()[:9, 0]}, SettingsError, "do not agree"),
        ({"views": [[[1.0]], [[2.0, 3.0]]]}, SettingsError, "no array of numbers"),
        ({"views": made(), "ids": ["a"] * N}, SettingsError, "'a' belongs to several samples"),
        ({"views": made(), "ids": ["a"]}, SettingsError, "1 ids for 60 samples"),
        ({"views": made(), "layer": "a/b"}, SettingsError, "without slash"),
        ({"views": made(), "labels": [0.7] * N}, SettingsError, "a label is 0.7"),
        ({"views": made(), "storage": "int8"}, SettingsError, "int8"),
        ({"views": made(), "provenance": {"seed": "a"}}, SettingsError, "seed is a str"),
        ({"views": made(), "provenance": {"model": print}}, SettingsError, "dict of JSON"),
        ({"views": np.where(made() > 2, np.nan, made())}, DegenerateFeatures, "NaN or Inf"),
        ({"views": made() * 1e6, "storage": "float16"}, DegenerateFeatures, "overflows"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        lidar_cli.write_features(tmp_path / "a.h5", **arguments)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "a.h5").exists()


STRANGER = """
import h5py, numpy as np, sys
folder, with_ids = sys.argv[1], sys.argv[2] == "ids"
samples = np.random.default_rng(9).normal(size=(60, 1, 5))
for k, spread in enumerate((0.1, 0.5, 2.0)):
    noise = np.random.default_rng(k).normal(size=(60, 3, 5))
    with h5py.File(f"{folder}/model{k}.h5", "w") as file:
        file.attrs["format"], file.attrs["version"] = np.bytes_("lidar-features"), 1
        file["embeddings/encoder/views"] = (samples + spread * noise).astype("f4")
        if with_ids:
            file["samples/id"] = np.array([f"r{i}" for i in range(60)], "S4")
"""


@pytest.mark.parametrize("with_ids", [True, False])
def test_files_of_a_script_without_this_package(tmp_path: Path, with_ids: bool) -> None:
    words = [str(tmp_path), "ids" if with_ids else "none"]
    subprocess.run([sys.executable, "-I", "-c", STRANGER, *words], check=True)
    ranked = run_command(["rank", ".", "--json"], tmp_path, environment())
    document = json.loads(ranked.stdout)
    assert sorted(row["name"] for row in document["checkpoints"]) == ["model0", "model1", "model2"]
    for row in document["checkpoints"]:
        views = stored(tmp_path / row["path"], layer="encoder")
        assert row["value"] == pytest.approx(literal_lidar(views), rel=1e-6)
    assert ("assumed the same samples" in ranked.stderr) == (not with_ids)
    compared = run_command(["compare", "model0.h5", "model1.h5"], tmp_path, environment())
    assert compared.returncode == 0, compared.stderr
    inspected = run_command(["inspect", "model0.h5", "--json"], tmp_path, environment())
    (report,) = json.loads(inspected.stdout)
    assert report["ids"] == with_ids
    assert "checksums" in report["missing"]


def test_what_numpy_users_have_is_taken_or_refused_in_one_line(tmp_path: Path) -> None:
    turned = made()[:, ::-1]  # negative strides
    path = lidar_cli.write_features(tmp_path / "a.h5", turned, ids=np.array(IDS))
    np.testing.assert_array_equal(stored(path), turned.astype("f4"))
    swapped = made().astype(">f4")
    lidar_cli.write_features(tmp_path / "b.h5", swapped)
    np.testing.assert_array_equal(stored(tmp_path / "b.h5"), made().astype("f4"))
    with pytest.raises(SettingsError, match="object; expected"):
        lidar_cli.write_features(tmp_path / "d.h5", made().astype(object))
    with (
        pytest.raises(SettingsError, match="no sample True"),
        lidar_cli.FeatureWriter(tmp_path / "e.h5", n_samples=N, n_views=Q, dim=D) as writer,
    ):
        writer.write(np.ones(N, bool).tolist(), made())


def test_views_alone_cannot_be_probed(tmp_path: Path) -> None:
    labels = [i % 2 for i in range(N)]
    path = lidar_cli.write_features(tmp_path / "a.h5", made(), labels=labels)
    with raises(InputError, code="no-clean"):
        open_members(path, None, "auto", 0, hold_out=False, device=torch.device("cpu"))


def test_inspect_finds_what_is_broken(tmp_path: Path) -> None:
    path = lidar_cli.write_features(tmp_path / "a.h5", made(), provenance={"checkpoint": "m.pt"})
    with h5py.File(path, "r+") as file:
        file["embeddings/embedding/views"][17, 1, 2] += 1
    with raises(FeatureFileError, code="checksum"):
        inspect_features(path)
    with h5py.File(path, "r+") as file:
        del file["embeddings/embedding/crc32"]
        file["embeddings/embedding/views"][17, 1, 2] = np.inf
    with raises(FeatureFileError, code="not-finite"):
        inspect_features(path)
    (tmp_path / "other.h5").write_bytes(path.read_bytes())
    with h5py.File(tmp_path / "other.h5", "r+") as file:
        del file.attrs["format"]
    with raises(FeatureFileError, code="not-a-feature-file"):
        inspect_features(tmp_path / "other.h5")
