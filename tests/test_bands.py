"""Images and models of other than three channels: bands of files, statistics, views, embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import timm
import torch
from make import image_folder, lidar_here, tiny_state_dict
from numpy.typing import NDArray
from PIL import Image
from raising import raises
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as v2

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.data.dataset import decoded, grey_level, parse_bands
from lidar_cli.errors import CheckpointError, SettingsError
from lidar_cli.views.operations import contrast
from lidar_cli.views.recipes import for_channels, pixel_statistics

SIDE, BANDS = 32, 5


def pages(seed: int) -> NDArray[np.uint8]:
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (SIDE, SIDE, BANDS), dtype=np.uint8)


def save_pages(path: Path, pixels: NDArray[Any]) -> Path:
    first, *rest = (Image.fromarray(page) for page in np.moveaxis(pixels, 2, 0))
    first.save(path, save_all=True, append_images=rest)
    return path


def test_bands_are_selected_in_their_order(tmp_path: Path) -> None:
    pixels = pages(0)
    stored = save_pages(tmp_path / "a.tif", pixels).read_bytes()
    assert (decoded(stored, (5, 1, 1)) == pixels[:, :, [4, 0, 0]]).all()
    wide = save_pages(tmp_path / "b.tif", pixels.astype(np.uint16) * 257).read_bytes()
    assert (decoded(wide, (3,)) == pixels[:, :, 2:3]).all()
    for mode, bands in (("RGBA", 4), ("RGB", 3), ("L", 1)):
        part = pixels[:, :, :bands]
        Image.fromarray(part[:, :, 0] if bands == 1 else part).save(tmp_path / "c.png")
        content = (tmp_path / "c.png").read_bytes()
        with Image.open(tmp_path / "c.png") as image:
            assert image.mode == mode
        assert (decoded(content, range(bands, 0, -1)) == part[:, :, ::-1]).all()
    assert (decoded(pixels, (4, 2)) == pixels[:, :, [3, 1]]).all()


def test_bands_that_are_not_there_are_named(tmp_path: Path) -> None:
    content = save_pages(tmp_path / "a.tif", pages(0)).read_bytes()
    with pytest.raises(Exception, match="has 5 bands, and --bands names 6; name bands up to 5"):
        decoded(content, (6,))
    with pytest.raises(Exception, match="more than 4 bands a page, which are not read; save each"):
        decoded(b"of no format", (1,))
    for text in ("", "0", "1,,2", "x", "-1", "1.5", "1025"):
        with raises(SettingsError, "wrong-bands"):
            parse_bands(text)
    assert parse_bands(None) == ()


def test_a_grey_level_is_pillows() -> None:
    colours = pages(1)[:, :, :3]
    assert (grey_level(colours)[:, :, 0] == np.array(Image.fromarray(colours).convert("L"))).all()
    level = np.repeat(colours[:, :, :1], 3, axis=2)
    assert (grey_level(level) == level[:, :, :1]).all()


def test_contrast_of_one_channel_is_torchvisions() -> None:
    x = torch.rand(2, 1, 9, 9)
    changed = x.clone()
    contrast(changed, torch.full((2, 1, 1, 1), 1.7))
    assert torch.allclose(changed, v2.adjust_contrast(x, 1.7), atol=1e-6)


def test_one_number_is_the_statistic_of_every_channel() -> None:
    assert for_channels(pixel_statistics("0.5/0.25"), 4) == ((0.5,) * 4, (0.25,) * 4)
    assert for_channels(pixel_statistics("unit"), 2) == ((0.0,) * 2, (1.0,) * 2)
    assert for_channels(pixel_statistics("cifar10"), 4) is None
    assert for_channels(pixel_statistics("0.1,0.2/0.3,0.4"), 2) == ((0.1, 0.2), (0.3, 0.4))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        save_pages(folder / f"{i}.tif", pages(i))
    return folder


def checkpoint(path: Path, channels: int) -> Path:
    torch.manual_seed(channels)
    tree = {**tiny_state_dict(), "conv1.weight": torch.randn(4, channels, 3, 3)}
    torch.save(tree, path)
    return path


def extracted(
    path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, *more: object
) -> tuple[Tensor, list[int], dict[str, Any]]:
    """Clean embeddings, the numbers of the images, and the provenance."""
    output = path.with_suffix(".h5")
    options = ["-n", 4, "-q", 2, "--image-size", SIDE, "--device", "cpu", "-o", output]
    done = lidar_here(
        "extract", path, "--data", images, *options, "--overwrite", "--views", "mae", *more,
        monkeypatch=monkeypatch, capfd=capfd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with h5py.File(output) as file:
        ids = [int(name.decode().partition(".")[0]) for name in file["samples/id"][:]]
        clean = torch.from_numpy(file["embeddings/backbone/clean"][:])
        return clean, ids, json.loads(file.attrs["provenance"])


@pytest.mark.parametrize("bands", [(5,), (5, 4, 3, 2)])
def test_a_model_is_fed_the_bands(
    bands: tuple[int, ...],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = checkpoint(tmp_path / "a.pt", len(bands))
    text = ",".join(map(str, bands))
    stats = ["--assume", "pixel_stats=0.4/0.3"]
    clean, ids, provenance = extracted(path, images, monkeypatch, capfd, "--bands", text, *stats)
    pixels = np.stack([pages(i)[:, :, [band - 1 for band in bands]] for i in ids])
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.4) / 0.3
    expected = open_checkpoint(path).embed(x, ["backbone"])["backbone"]
    assert torch.allclose(clean, expected, atol=1e-5)
    assert provenance["bands"] == text
    assert provenance["views"]["mean"] == [0.4] * len(bands)


def test_a_model_of_one_channel_is_fed_grey_levels(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(tmp_path / "a.pt", 1)
    clean, ids, provenance = extracted(path, images, monkeypatch, capfd)
    x = torch.from_numpy(np.stack([pages(i)[None, :, :, 0] for i in ids])).float() / 255
    expected = open_checkpoint(path).embed((x - 0.449) / 0.226, ["backbone"])["backbone"]
    assert torch.allclose(clean, expected, atol=1e-5)
    assert "bands" not in provenance
    assert provenance["assumed"]["pixel_stats"]["value"] == "0.449/0.226"


REFUSED = [
    ([], "three are read, red, green and blue; select 4 bands that the images have"),
    (["--bands", "1,2"], "--bands 1,2 selects 2; select 4 bands"),
    (["--bands", "1,2,3,4", "--views", "simclr"], "saturation, hue, grey of the views simclr"),
    (["--bands", "1,2,3,4", "--pixel-stats", "cifar10"], "pixel statistics of 3 channels"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED)
def test_what_does_not_fit_the_channels_is_refused(
    options: list[str],
    words: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = checkpoint(tmp_path / "a.pt", 4)
    views = [] if "--views" in options else ["--views", "mae"]
    done = lidar_here(
        "extract", path, "--data", images, "-n", 4, "-q", 2, "--device", "cpu", *options, *views,
        monkeypatch=monkeypatch, capfd=capfd,
    )  # fmt: skip
    assert done.returncode != 0
    assert words in done.stderr
    assert done.stderr.rstrip().rpartition("--")[2].split()[0] in ("bands", "views", "pixel-stats")


def test_good_images_of_fewer_bands_are_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    images = image_folder(tmp_path / "colours", 4)
    path = checkpoint(tmp_path / "a.pt", 4)
    options = ["-n", 4, "-q", 2, "--device", "cpu", "--views", "mae", "--bands", "1,2,3,4"]
    for skip, words in (
        ([], f".png (in {images}): has 3 bands, and --bands names 4; name bands up to 3\n"),
        (["--bad-samples", "skip"], ".png: has 3 bands, and --bands names 4; name bands up to 3; "),
    ):
        done = lidar_here(
            "extract", path, "--data", images, *options, *skip,
            monkeypatch=monkeypatch, capfd=capfd,
        )  # fmt: skip
        assert done.returncode == 3
        assert words in done.stderr
        assert "repair" not in done.stderr
    grey = np.zeros((2, 2, 1), np.uint8)
    with pytest.raises(Exception, match="has 1 band, and --bands names 2; name it"):
        decoded(grey, (2,))


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("arch", [None, "resnet18"])
def test_channels_are_read_from_the_weights(
    channels: int, arch: str | None, tmp_path: Path
) -> None:
    name = arch or "vit_tiny_patch16_224"
    size = {} if arch else {"img_size": 32, "depth": 1}
    model: nn.Module = timm.create_model(name, in_chans=channels, num_classes=0, **size).eval()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    loaded = open_checkpoint(tmp_path / "a.pt", arch=arch)
    x = torch.randn(1, channels, 32, 32)
    assert loaded.description.channels == channels
    assert torch.allclose(loaded.embed(x, ["backbone"])["backbone"], model(x), atol=1e-5)


def test_a_rectangular_grid_is_assumed_or_refused(tmp_path: Path) -> None:
    sides = {"img_size": (32, 64), "depth": 1, "patch_size": 8}
    model: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sides).eval()
    torch.save(model.state_dict(), path := tmp_path / "a.pt")
    with raises(CheckpointError, "unknown-grid") as raised:
        open_checkpoint(path)
    assert str(raised.value).endswith("--assume grid=4x8")
    with raises(SettingsError, "impossible-grid"):
        open_checkpoint(path, assume=("grid=4x7",))
    x = torch.randn(2, 3, 32, 64)
    loaded = open_checkpoint(path, assume=("grid=4x8",))
    assert torch.allclose(loaded.embed(x, ["backbone"])["backbone"], model(x), atol=1e-5)
    assert loaded.description.assumed_text.startswith("heads=3")
    assert "grid=4x8 (--assume)" in loaded.description.assumed_text
    for size in (32, 48):
        loaded.set_image_size(size)
        model.set_input_size((size, size))
        square = torch.randn(2, 3, size, size)
        got = loaded.embed(square, ["backbone"])["backbone"]
        if size == 32:  # timm resizes what it has resized
            assert torch.allclose(got, model(square), atol=1e-5)


def test_assumed_statistics_are_of_the_models_channels(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pt", 4)
    with raises(CheckpointError, "statistics-of-channels") as raised:
        open_checkpoint(path, assume=("pixel_stats=cifar10",))
    assert str(raised.value).endswith("--assume pixel_stats=0.449/0.226")
    for stats in ("0.5/0.2", "0.1,0.2,0.3,0.4/1,1,1,1", "unit"):
        assert open_checkpoint(path, assume=(f"pixel_stats={stats}",)).description.pixel_stats
