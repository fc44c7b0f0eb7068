"""`-q 0`: un-augmented embeddings alone, through extract, score and rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from make import PROJECTED, checkpoint, image_folder, lidar_here

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import FeatureFileError
from lidar_cli.extraction.run import Extraction, extract_checkpoint
from lidar_cli.features.reader import read_hdf5
from lidar_cli.features.schema import Layout, partial_path
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ExtractSettings, ScoreSettings

N, SIZE = 20, 32


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return checkpoint(folder / "ckpt.pt"), image_folder(folder / "images", N, ["a", "b"])


def run(inputs: tuple[Path, Path], output: Path, **more: Any) -> Extraction:
    defaults = {"n_samples": N, "n_views": 0, "image_size": SIZE, "batch_size": 6, "device": "cpu"}
    settings = ExtractSettings(data=str(inputs[1]), output=output, **(defaults | more))
    return extract_checkpoint(inputs[0], settings)


def clean(path: Path) -> torch.Tensor:
    with h5py.File(path) as file:
        return torch.from_numpy(file["embeddings/projector/clean"][:])


def test_the_file_has_clean_embeddings_and_no_views(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    done = run(inputs, tmp_path / "out.h5")
    assert (done.n_samples, done.n_views, done.n_clean, done.embedded) == (0, 0, N, N)
    with h5py.File(tmp_path / "out.h5") as file:
        assert sorted(file["embeddings/projector"]) == ["clean", "crc32"]
        assert file["embeddings/projector/clean"].shape == (N, PROJECTED)
        assert sorted(file["samples"]) == ["done", "id", "label"]
        provenance = json.loads(file.attrs["provenance"])
    assert (provenance["n_samples"], provenance["n_views"], provenance["n_clean"]) == (0, 0, N)
    (embeddings,) = read_hdf5(tmp_path / "out.h5")
    assert embeddings.views is None
    assert embeddings.shape == (N, 0, PROJECTED)


@pytest.mark.parametrize("views", ["simclr", "vicreg", "mae"])
def test_they_are_those_that_stand_beside_views(
    inputs: tuple[Path, Path], tmp_path: Path, views: str
) -> None:
    run(inputs, tmp_path / "alone.h5", views=views)
    if views != "mae":  # whose masks this network does not take, and here need not
        run(inputs, tmp_path / "beside.h5", views=views, n_views=2)
        alone, beside = clean(tmp_path / "alone.h5"), clean(tmp_path / "beside.h5")
        assert torch.allclose(alone, beside, atol=1e-5)


def test_recipes_that_treat_clean_images_alike_give_one_identity(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    provenance = []
    for views in ("simclr", "dinov2", "vicreg"):
        run(inputs, tmp_path / f"{views}.h5", views=views)
        with h5py.File(tmp_path / f"{views}.h5") as file:
            provenance.append(json.loads(file.attrs["provenance"])["views"])
    assert provenance[0] == provenance[1]  # 256 / 224, bicubic, imagenet's statistics
    assert provenance[0]["name"] == "none"
    assert provenance[2] != provenance[0]  # bilinear


def test_an_interrupted_run_is_resumed(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    run(inputs, tmp_path / "whole.h5")
    layout = Layout({"projector": PROJECTED}, 0, 0, N)
    with h5py.File(tmp_path / "whole.h5") as file:
        provenance = json.loads(file.attrs["provenance"])
        ids = [name.decode() for name in file["samples/id"][:]]
        labels = file["samples/label"][:].tolist()
    output = tmp_path / "out.h5"
    with FeatureWriter.create(output, layout, ids, labels, provenance) as writer:
        rows = clean(tmp_path / "whole.h5")[:12]
        nothing = torch.empty(0, 0, PROJECTED)
        writer.write(range(12), {"projector": nothing}, {"projector": rows})
    with h5py.File(partial_path(output), "r+") as file:
        file["embeddings/projector/clean"][3, 0] += 1  # damaged since
    assert run(inputs, output, resume=True).embedded == 6 + 8
    assert torch.equal(clean(output), clean(tmp_path / "whole.h5"))


def test_views_that_were_lost_are_no_file_without_views(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "out.h5"
    run(inputs, path, n_views=2)
    with h5py.File(path, "r+") as file:
        del file["embeddings/projector/views"]
    with pytest.raises(FeatureFileError, match="does not match its checksum"):
        score_file(path, ScoreSettings(device="cpu"))


def test_its_score_is_what_rows_give(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    run(inputs, tmp_path / "out.h5")
    (score,) = score_file(tmp_path / "out.h5", ScoreSettings(device="cpu"))
    sigma = torch.linalg.svdvals(clean(tmp_path / "out.h5").double())
    p = sigma / sigma.sum() + 1e-7
    assert score.rankme == pytest.approx(float((-p * p.log()).sum().exp()), rel=1e-5)
    assert (score.rankme_source, score.rankme_rows) == ("clean", N)
    assert (score.n_samples, score.n_views) == (N, 0)
    for name, metric in METRICS.items():
        if metric.reads in ("lda", "views", "sphere"):
            assert score.value(name) is None
            assert (
                score.notes[name]
                == "un-augmented embeddings alone; `lidar extract -q 2` or more adds views"
            )


@pytest.mark.parametrize(("by", "status"), [("rankme", 0), ("lidar", 2)])
def test_a_directory_is_ranked_by_what_there_is(
    inputs: tuple[Path, Path],
    tmp_path: Path,
    by: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for seed in range(3):
        checkpoint(tmp_path / f"{seed}.pt", seed)
    words = ["rank", tmp_path, "--data", inputs[1], "-n", N, "-q", 0, "--image-size", SIZE]
    words += ["--by", by, "--quiet", "--device", "cpu"]
    done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
    assert done.returncode == status
    assert len(done.stdout.splitlines()) == (3 if by == "rankme" else 0)
    if by == "lidar":
        assert "give -q 2 or more, or order by what needs none: --by rankme" in done.stderr
