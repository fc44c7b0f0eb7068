"""`lidar probe --pretext rotation`: which of four quarter turns an image has, without labels."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from formats import FIXTURES
from make import image_folder, lidar_here
from PIL import Image
from raising import raises
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.data.open import open_samples
from lidar_cli.errors import InputError, SettingsError
from lidar_cli.extraction.run import extract, extract_checkpoint
from lidar_cli.features.schema import Layout
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.probing.data import open_turned, split
from lidar_cli.probing.run import ProbeResult, probe_files
from lidar_cli.settings import ExtractSettings, ProbeSettings
from lidar_cli.views.methods import ROTATIONS, find_recipe
from lidar_cli.views.pipeline import Views, make_clean

CPU = torch.device("cpu")


def write(path: Path, views: Tensor, **recipe: Any) -> Path:
    """A feature file of views [n, 4, d] that are images in four turns."""
    n, q, d = views.shape
    provenance = {"sha256": "a", "views": ROTATIONS.describe() | recipe}
    layout, ids = Layout({"backbone": d}, n, q, n), [str(i) for i in range(n)]
    with FeatureWriter.create(path, layout, ids, None, provenance) as writer:
        writer.write(range(n), {"backbone": views}, {"backbone": views[:, 0]})
        return writer.finish()


def probed(path: Path, **settings: Any) -> ProbeResult:
    done = probe_files([path], [None], ProbeSettings(device="cpu", pretext="rotation", **settings))
    assert done.failed == ()
    return done.probed[0]


def test_the_views_are_the_clean_image_in_four_turns() -> None:
    images = [torch.randint(0, 256, (8 + i, 9, 3), dtype=torch.uint8) for i in range(3)]
    maker = Views(ROTATIONS, 0, 4, 8)
    views = maker.views(images, range(3), memory_format=torch.channels_last)
    clean = make_clean(images, ROTATIONS, 8)
    for i in range(3):
        for row in range(8):
            for column in range(8):
                pixel = clean[i, :, row, column]
                assert torch.equal(views[i, 0, :, row, column], pixel)
                assert torch.equal(views[i, 1, :, 7 - column, row], pixel)  # against the clock
                assert torch.equal(views[i, 2, :, 7 - row, 7 - column], pixel)
                assert torch.equal(views[i, 3, :, column, 7 - row], pixel)


def test_a_random_crop_is_turned_too() -> None:
    images = [torch.randint(0, 256, (9, 9, 3), dtype=torch.uint8)]
    crops = Views(find_recipe("simclr", "auto"), 0, 4, 8)
    turned = replace(crops, recipe=find_recipe("simclr", "auto", {"quarter_turns": True}))
    views, of_turned = crops.views(images, [0])[0], turned.views(images, [0])[0]
    for turns in range(4):
        assert torch.equal(of_turned[turns], torch.rot90(views[turns], turns, (1, 2)))
    with pytest.raises(SettingsError, match="a turned view has no masks"):
        find_recipe("ijepa", "auto", {"quarter_turns": True})


def test_embeddings_are_those_of_turned_images(tmp_path: Path) -> None:
    """Of a Vision Transformer, through `lidar extract`, with q left out."""
    path = FIXTURES["timm-vit"]().save(tmp_path)
    settings = ExtractSettings(data=str(image_folder(tmp_path / "data", 5)), n_samples=5)
    samples, loaded = open_samples(settings), open_checkpoint(path)
    clean = make_clean([samples.decode(i, 3) for i in range(5)], ROTATIONS, 32)
    out = tmp_path / "a.h5"
    extract_checkpoint(
        path, replace(settings, output=out, views="rotations", image_size=32, device="cpu")
    )
    with h5py.File(out) as file:
        views = file["embeddings/backbone/views"][:]
    assert views.shape[:2] == (5, 4)
    for turns in range(4):
        turned = torch.rot90(clean, turns, (2, 3)).contiguous()
        expected = loaded.embed(turned, ["backbone"])["backbone"]
        np.testing.assert_allclose(views[:, turns], expected, atol=1e-5)
    with raises(SettingsError, "four-turns"):
        extract_checkpoint(
            path, replace(settings, output=tmp_path / "b.h5", views="rotations", n_views=3)
        )


def test_the_accuracy_is_that_of_the_literal_twin(tmp_path: Path) -> None:
    """Ridge regression to indicators by scikit-learn, on rows standardised by the training rows."""
    n, d, seed = 60, 7, 5
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(n, 4, d, generator=generator)
    views[:, :, :4] += 1.5 * torch.eye(4)
    result = probed(write(tmp_path / "a.h5", views), seed=seed, ridge=3.0)
    rows = views.double().numpy()
    train, test = (part.numpy() for part in split(n, 0.2, seed))
    assert (len(train), len(test)) == (48, 12)
    x = rows[train].reshape(-1, d)
    mean, std = x.mean(0), x.std(0)
    model = Ridge(alpha=3.0).fit((x - mean) / std, np.tile(np.eye(4), (len(train), 1)))
    scores = model.predict((rows[test].reshape(-1, d) - mean) / std)
    right = scores.argmax(1).reshape(len(test), 4) == np.arange(4)
    assert 0.3 < right.mean() < 1
    assert result.top1 == pytest.approx(right.mean())
    error = math.sqrt(((right.mean(1) - right.mean()) ** 2).mean() / len(test))
    assert result.standard_error == pytest.approx(error)
    assert (result.method, result.pretext) == ("ridge", "rotation")
    assert (result.n_train, result.n_test, result.n_classes) == (192, 48, 4)


def test_turns_that_show_are_found_and_those_that_do_not_are_chance(tmp_path: Path) -> None:
    """Means of the four corners: of images with one bright corner, and of images of one colour."""

    class Corners(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)

    for name, accuracy in (("corner", 1.0), ("plain", 0.25)):
        (tmp_path / name).mkdir()
        for i in range(20):
            pixels = np.full((16, 16, 3), 5 * i, np.uint8)
            if name == "corner":
                pixels[:8, :8] += 90
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
        out = tmp_path / f"{name}.h5"
        extract(Corners(), str(tmp_path / name), out, n_samples=20, views="rotations",
                n_views=4, image_size=16, device="cpu")  # fmt: skip
        result = probed(out)
        assert (result.top1, result.standard_error) == (accuracy, 0.0)


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_other_methods_read_the_same_rows(tmp_path: Path, method: str) -> None:
    views = torch.randn(50, 4, 6, generator=torch.Generator().manual_seed(0))
    views[:, :, :4] += 8 * torch.eye(4)
    result = probed(write(tmp_path / "a.h5", views), method=method, minibatch=16)
    assert result.method == method
    assert result.top1 > 0.9
    assert probed(tmp_path / "a.h5", method=method, minibatch=16, memory="40000") == result


def test_the_learning_rate_is_that_of_held_out_images(tmp_path: Path) -> None:
    views = torch.randn(50, 4, 6, generator=torch.Generator().manual_seed(0))
    views[:, :, :4] += torch.eye(4)
    path = write(tmp_path / "a.h5", views)
    result = probed(path, method="linear", learning_rates="1e-9,0.01", minibatch=16)
    held_out = {rate.learning_rate: rate.held_out or 0.0 for rate in result.rates}
    assert 0.0 < held_out[1e-9] < held_out[0.01]
    assert result.learning_rate == 0.01
    assert (result.n_train, result.n_held_out, result.n_test) == (4 * 36, 4 * 4, 4 * 10)
    (member,) = open_turned(path, "auto", 0, hold_out=True, device=CPU)
    assert member.held_out is not None
    parts = (member.train, member.held_out, member.test)
    rows = torch.cat([row for part in parts for row in part.chunks()])
    assert torch.equal(rows.sort(dim=0).values, views.flatten(0, 1).sort(dim=0).values)
    assert torch.equal(member.held_out_labels, torch.arange(4).repeat(4))


def test_the_rows_are_the_views_of_each_image_in_turn(tmp_path: Path) -> None:
    views = torch.arange(7 * 4 * 2.0).reshape(7, 4, 2)
    (member,) = open_turned(write(tmp_path / "a.h5", views), "auto", 1, hold_out=False, device=CPU)
    train, test = split(7, 0.2, 1)
    for rows, index, labels in (
        (member.train, train, member.train_labels),
        (member.test, test, member.test_labels),
    ):
        expected = views[index].flatten(0, 1)
        assert torch.equal(torch.cat(list(rows.chunks())), expected)
        assert rows.count == len(expected)
        backwards = torch.arange(len(expected)).flip(0)
        assert torch.equal(rows.gather(backwards), expected.flip(0))
        assert labels.tolist() == [0, 1, 2, 3] * len(index)
    assert not set(train.tolist()) & set(test.tolist())


def test_what_cannot_be_probed_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path / "other.h5", torch.randn(9, 4, 3), name="simclr", quarter_turns=False)
    with raises(InputError, "not-turned"):
        open_turned(other, "auto", 0, hold_out=False, device=CPU)
    with raises(InputError, "one-image"):
        one = write(tmp_path / "one.h5", torch.randn(1, 4, 3))
        open_turned(one, "auto", 0, hold_out=False, device=CPU)

    def run(*words: str | Path) -> tuple[int, str, str]:
        ended = lidar_here(
            "probe", *words, "--pretext", "rotation", monkeypatch=monkeypatch, capfd=capfd
        )
        return ended.returncode, ended.stdout, ended.stderr

    status, _, said = run(other)
    assert status == 3
    assert "4 views are of the recipe simclr; --pretext rotation reads images in four turns" in said
    status, _, said = run("--train", other, "--test", other)
    assert (status, "splits each file by image" in said) == (2, True)
    status, _, said = run(FIXTURES["timm-vit"]().save(tmp_path))
    assert (status, "--data FOLDER --views rotations -o vit.h5" in said) == (3, True)


def test_tables_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    views = torch.randn(40, 4, 5, generator=torch.Generator().manual_seed(0))
    views[:, :, :4] += torch.eye(4)
    path = write(tmp_path / "a.h5", views)
    result = probed(path)
    words = ("probe", path, "--pretext", "rotation", "--device", "cpu")
    printed = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd).stdout
    assert "in place of labels, the turn of an image, of four; accuracies in percent" in printed
    percent = f"{100 * result.top1:.1f}", f"{100 * result.standard_error:.1f}"
    assert all(number in printed for number in percent)
    (record,) = json.loads(
        lidar_here(*words, "--json", monkeypatch=monkeypatch, capfd=capfd).stdout
    )
    assert (record["pretext"], record["top1"]) == ("rotation", result.top1)
    assert record["top1_standard_error"] == result.standard_error > 0
    assert "error_over_images" not in record
