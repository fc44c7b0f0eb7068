"""`--layer patches`: one patch token an image and view, drawn by seed, sample and view."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import reference
import timm
import torch
from formats import FIXTURES
from layouts import Weights
from literal import assert_close, images
from make import image_folder, lidar_here
from raising import raises
from torch import Tensor

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.reading.read import sha256
from lidar_cli.core.dense import DenseParts, TokenStructure
from lidar_cli.data.open import open_samples
from lidar_cli.errors import FeatureFileError
from lidar_cli.extraction.engine import EmbeddingModel, ViewSource
from lidar_cli.extraction.plan import make_plan
from lidar_cli.extraction.run import extract_checkpoint, open_with, run
from lidar_cli.features.reader import read_hdf5
from lidar_cli.runtime.device import RankInfo
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import ExtractSettings
from lidar_cli.views.methods import SIMCLR
from lidar_cli.views.parameters import draw_patches
from lidar_cli.views.pipeline import make_clean


@pytest.fixture
def lidar(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    return partial(lidar_here, monkeypatch=monkeypatch, capfd=capfd)


def literal_tokens(name: str, pixels: Tensor) -> Tensor:
    """All patch tokens of a fixture, after the last norm, without class token and registers."""
    w = Weights.of(FIXTURES[name]().tree)
    embedded = torch.nn.functional.conv2d(
        pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=8
    )
    tokens = w.run_tokens("", embedded.flatten(2).transpose(1, 2), pool="none")
    return tokens[:, -16:]


@pytest.mark.parametrize("name", ["timm-vit", "dinov2-hub-registers"])
@torch.no_grad()
def test_the_token_is_that_of_the_literal_forward_pass(name: str, tmp_path: Path) -> None:
    loaded = open_checkpoint(FIXTURES[name]().save(tmp_path))
    pixels = images(32)
    draws = torch.linspace(0, 0.999, len(pixels), dtype=torch.float64)
    rows = loaded.embed(pixels, ["backbone", "patches"], draws)
    expected = literal_tokens(name, pixels)
    places = [int(u * 16) for u in draws.tolist()]
    assert places[0] == 0
    assert places[-1] == 15
    assert_close(rows["patches"], torch.stack([expected[i, p] for i, p in enumerate(places)]))


@torch.no_grad()
def test_the_tokens_of_a_timm_model_by_name(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    model = timm.create_model(name, num_classes=0, img_size=32, depth=12).eval()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    loaded = open_checkpoint(tmp_path / "a.pth", arch=name)
    assert loaded.description.token_width == 192
    loaded.set_image_size(32)
    pixels = images(32)
    draws = torch.full((len(pixels),), 0.5, dtype=torch.float64)
    rows = loaded.embed(pixels, ["patches"], draws)["patches"]
    torch.testing.assert_close(rows, model.forward_features(pixels)[:, 1 + 2])


def test_draws_depend_on_seed_sample_and_view_alone() -> None:
    draws = draw_patches(3, range(500), 4)
    assert draws.shape == (500, 5)
    assert ((draws >= 0) & (draws < 1)).all()
    assert abs(draws.mean() - 0.5) < 0.03
    assert (draws[7:9] == draw_patches(3, [7, 8], 4)).all()
    assert (draws[:, [0, 1, 4]] == draw_patches(3, range(500), 2)).all()  # the clean image's last
    assert (draws != draw_patches(4, range(500), 4)).all()
    assert len(np.unique(draws)) == draws.size


def test_extract_stores_them_and_score_reads_them(
    tmp_path: Path, lidar: Callable[..., Any]
) -> None:
    """With views that are the clean image, each row is one of that image's patch tokens."""
    path = FIXTURES["timm-vit"]().save(tmp_path)
    data = image_folder(tmp_path / "data", 5)

    def run(*words: str | Path) -> str:
        ended = lidar(*words)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    options = ("--data", data, "-n", "5", "-q", "6", "--views", "identity", "--seed", "1")
    for size in ("1", "4"):
        out = tmp_path / f"{size}.h5"
        run("extract", path, *options, "--layer", "patches", "--batch-size", size, "-o", out)
    with h5py.File(tmp_path / "1.h5") as one, h5py.File(tmp_path / "4.h5") as four:
        views, clean = one["embeddings/patches/views"][:], one["embeddings/patches/clean"][:]
        np.testing.assert_allclose(views, four["embeddings/patches/views"][:], atol=1e-5)
        np.testing.assert_allclose(clean, four["embeddings/patches/clean"][:], atol=1e-5)
        provenance = json.loads(one.attrs["provenance"])
    assert provenance["layers"] == ["patches"]
    assert "floor(u N)" in provenance["patches"]
    places = (draw_patches(1, range(5), 6) * 16).astype(int)
    same = places[:, :6, None] == places[:, None, :6]
    distance = np.abs(views[:, :, None] - views[:, None]).max(axis=-1)
    assert (distance[same] < 1e-5).all()
    assert (distance[~same] > 1e-3).all()
    of_clean = places[:, :6] == places[:, 6:]
    assert (np.abs(views - clean[:, None]).max(axis=-1)[of_clean] < 1e-5).all()
    (scored,) = json.loads(run("score", tmp_path / "1.h5", "--json"))
    assert (scored["layer"], scored["dim"], scored["n_views"]) == ("patches", 192, 6)


def test_rank_fails_a_backbone_without_tokens_and_extract_refuses_masks(
    tmp_path: Path, lidar: Callable[..., Any]
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for name in ("timm-vit", "torchvision-resnet", "timm-swin"):
        (runs / name).mkdir()
        FIXTURES[name]().save(runs / name)
    data = image_folder(tmp_path / "data", 6)
    options = ("--data", data, "-n", "6", "-q", "3", "--layer", "patches")
    ended = lidar("rank", runs, *options, "--views", "simclr", "--image-size", "32", "--json")
    assert ended.returncode == 4
    assert ended.stdout.count("no patch tokens in this checkpoint's backbone") == 2
    path = FIXTURES["ijepa"]().save(tmp_path)
    ended = lidar("extract", path, *options, "--branch", "student", "--image-size", "112")
    assert ended.returncode == 3
    assert "views ijepa hide patches, from whose tokens --layer patches draws" in ended.stderr


# DSE


def dense_of(path: Path) -> object:
    (embeddings,) = read_hdf5(path, "patches")
    return embeddings.dense


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, ExtractSettings]:
    """A Vision Transformer of 4 x 4 patches, and settings of an extraction of eleven images."""
    settings = ExtractSettings(
        data=str(image_folder(tmp_path / "data", 11)), output=tmp_path / "a.h5", n_samples=11,
        n_views=2, views="simclr", image_size=32, layer="patches", batch_size=4, device="cpu",
    )  # fmt: skip
    return FIXTURES["timm-vit"]().save(tmp_path), settings


@torch.no_grad()
def test_extract_stores_the_parts_of_dse(
    checkpoint: tuple[Path, ExtractSettings], lidar: Callable[..., Any]
) -> None:
    """They are those of all patch tokens of the un-augmented images, whatever the batch."""
    path, settings = checkpoint
    output = extract_checkpoint(path, settings).path
    parts = dense_of(output)
    samples = open_samples(settings)
    images_of = [samples.decode(i, 3) for i in range(11)]
    tokens = literal_tokens("timm-vit", make_clean(images_of, SIMCLR, 32))
    expected = TokenStructure(0)
    expected.update(tokens, torch.from_numpy(draw_patches(0, range(11), 2)[:, 2]))
    assert isinstance(parts, DenseParts)
    assert parts == pytest.approx(expected.parts(), rel=1e-4)
    other = replace(settings, output=output.with_name("b.h5"), batch_size=5)
    assert dense_of(extract_checkpoint(path, other).path) == pytest.approx(parts, rel=1e-4)
    ended = lidar("score", output, "--json")
    (scored,) = json.loads(ended.stdout)
    assert [scored[f"dse_{part}"] for part in ("inter", "intra", "dim")] == list(parts)
    with h5py.File(output) as file:  # RankMe of one random patch token an image
        rows = file["embeddings/patches/clean"][:]
    assert scored["rankme"] == pytest.approx(reference.rankme(rows.astype(float), 1e-7), rel=1e-6)


def test_a_resumed_run_and_shards_store_the_same_parts(
    checkpoint: tuple[Path, ExtractSettings],
) -> None:
    path, settings = checkpoint
    parts = dense_of(extract_checkpoint(path, settings).path)
    for batch_size, until in ((4, 5), (4, 11)):
        out = replace(settings, output=path.with_name(f"until-{until}.h5"), batch_size=batch_size)
        device, samples = torch.device("cpu"), open_samples(out)
        embedder = open_with(path, out, device)
        plan = make_plan(embedder.description, str(path), sha256(path), samples, out, device)
        source = ViewSource(plan, samples, device, embedder.memory_format)
        run(EmbeddingModel(plan, embedder, device), source, out, out.output, Progress(), until)
        assert out.output.exists() == (until == 11)
        assert dense_of(extract_checkpoint(path, replace(out, resume=True)).path) == parts
    shared = replace(settings, output=path.with_name("shared.h5"))
    for rank in (1, 0):
        extract_checkpoint(path, shared, rank_info=RankInfo(rank, 2))
    assert dense_of(shared.output) == parts


def test_a_file_without_parts_of_dse_says_why(
    checkpoint: tuple[Path, ExtractSettings], lidar: Callable[..., Any]
) -> None:
    path, settings = checkpoint
    output = extract_checkpoint(path, settings).path
    for text, reason in (
        (None, "not measured: the extraction was not finished, or an earlier lidar made it"),
        ('{"reason": "4 patch tokens\\n"}', "'4 patch tokens\\n'"),
    ):
        with h5py.File(output, "r+") as file:
            del file.attrs["dse"]
            if text is not None:
                file.attrs["dse"] = text
        assert dense_of(output) == reason
        ended = lidar("score", output, "--json")
        (scored,) = json.loads(ended.stdout)
        assert (scored["dse_dim"], scored["notes"]["dse"]) == (None, reason)
        with h5py.File(output, "r+") as file:
            file.attrs["dse"] = "{}"
    for damaged in ("{}", "x", "[1]", '{"inter": 1.0, "intra": NaN, "dim": 1.0}'):
        with h5py.File(output, "r+") as file:
            file.attrs["dse"] = damaged
        with raises(FeatureFileError, "damaged"):
            dense_of(output)


def test_small_grids_have_no_dse(checkpoint: tuple[Path, ExtractSettings]) -> None:
    path, settings = checkpoint
    output = extract_checkpoint(path, replace(settings, image_size=16)).path
    expected = "4 patch tokens an image: 3 clusters need 6; raise --image-size"
    assert dense_of(output) == expected


def test_rank_scores_the_parts_of_dse_stored_or_not(
    checkpoint: tuple[Path, ExtractSettings],
    tmp_path: Path,
    lidar: Callable[..., Any],
) -> None:
    path, settings = checkpoint
    options = ("--data", settings.data, "-n", "11", "-q", "2", "--layer", "patches", "--json",
               "--views", "simclr", "--image-size", "32", "--device", "cpu")  # fmt: skip
    parts = []
    for more in (("--cache", tmp_path / "a"), ("--cache", tmp_path / "b", "--no-store")):
        ended = lidar("rank", path, *options, *more)
        assert ended.returncode == 0, ended.stderr
        metrics = json.loads(ended.stdout)["checkpoints"][0]["metrics"]
        parts.append([metrics[f"dse_{part}"] for part in ("inter", "intra", "dim")])
    assert parts[0] == pytest.approx(parts[1], rel=1e-4)
