"""Samples of any kind by `--data package.module:factory`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from formats_rotary import hf_vjepa2
from literal import assert_close, images
from raising import raises

import lidar_cli
from lidar_cli import extract
from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.data.factory import open_items, read_items, seeded
from lidar_cli.data.open import open_samples
from lidar_cli.errors import CheckpointError, InputError, LidarError, SettingsError
from lidar_cli.extraction.run import extract_checkpoint
from lidar_cli.runtime.device import RankInfo
from lidar_cli.settings import ExtractSettings

EXAMPLES = Path(__file__).parent / "examples"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def literal(name: str, seed: int = 0) -> np.ndarray:
    """Embeddings [n, q, d] of a modality, one item after another."""
    import modalities

    torch.manual_seed(0)
    network, dataset = modalities.MODALITIES[name]().eval(), getattr(modalities, name)()
    rows = []
    for i in range(len(dataset)):
        with seeded(seed, i), torch.no_grad():
            rows.append(network(dataset[i][0]).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("name", ["audio", "video", "table", "sequences"])
def test_each_modality_is_embedded_as_by_a_plain_loop(name: str, tmp_path: Path) -> None:
    import modalities

    torch.manual_seed(0)
    done = extract(
        modalities.MODALITIES[name](), f"modalities:{name}", tmp_path / "a.h5", device="cpu",
        batch_size=7,
    )  # fmt: skip
    expected = literal(name)
    assert (done.n_samples, done.n_views) == expected.shape[:2]
    with h5py.File(done.path) as file:
        order = [int(text.decode().split()[1]) for text in file["samples/id"]]
        assert sorted(order) == list(range(modalities.COUNT))
        assert file["samples/label"][:].tolist() == [i % 4 for i in order]
        assert "clean" not in file["embeddings/backbone"]
        actual = file["embeddings/backbone/views"][:]
        assert json.loads(file.attrs["provenance"])["views"] == {"name": "own"}
    np.testing.assert_allclose(actual, expected[order], rtol=1e-5, atol=1e-6)


def checkpoint(path: Path, seed: int = 0) -> Path:
    import modalities

    torch.manual_seed(seed)
    torch.save(modalities.table_network().state_dict(), path)
    return path


def settings(**fields: Any) -> ExtractSettings:
    own: dict[str, Any] = {"data": "modalities:table", "model": "modalities:table_network"}
    return ExtractSettings(**(own | {"device": "cpu"} | fields))


def views_in(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["embeddings/backbone/views"][:]


def test_a_worker_process_reads_the_same_items() -> None:
    blocks, unreadable = [[3, 1], [4]], [10**30]  # no seed of a generator
    here, there = list[torch.Tensor](), list[torch.Tensor]()
    for values, workers in ((here, 0), (there, 1)):
        with raises(InputError, code="bad-item") as caught:
            for block in read_items("modalities:table", 7, [*blocks, unreadable], workers):
                values += [item.values for item in block]
        assert str(caught.value).isprintable()
    for ours, theirs in zip(here, there, strict=True):
        assert torch.equal(ours, theirs)


def test_a_resumed_and_a_shared_file_have_the_numbers_of_the_whole(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pt")
    whole = extract_checkpoint(path, settings(output=tmp_path / "whole.h5", batch_size=8)).path
    partial = tmp_path / "part.h5.partial"
    partial.write_bytes(whole.read_bytes())
    with h5py.File(partial, "r+") as file:
        file["samples/done"][20:] = 0
        file["embeddings/backbone/views"][20:] = 0
    resumed = extract_checkpoint(path, settings(output=tmp_path / "part.h5", resume=True))
    assert 0 < resumed.embedded < resumed.n_samples
    np.testing.assert_array_equal(views_in(resumed.path), views_in(whole))
    shared = settings(output=tmp_path / "shared.h5", batch_size=8)
    parts = [extract_checkpoint(path, shared, rank_info=RankInfo(rank, 2)) for rank in (0, 1)]
    assert parts[0].embedded > 0 < parts[1].embedded
    np.testing.assert_array_equal(views_in(tmp_path / "shared.h5"), views_in(whole))


@pytest.mark.filterwarnings("ignore::lidar_cli.LidarWarning")
def test_rank_answers_from_its_cache(tmp_path: Path) -> None:
    for seed in range(2):
        checkpoint(tmp_path / f"m{seed}.pt", seed)
    options = {"data": "modalities:table", "model": "modalities:table_network", "device": "cpu"}
    first = lidar_cli.rank(tmp_path, **options)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / ".lidar").glob("*.h5")}
    assert len(stamps) == 2
    assert lidar_cli.rank(tmp_path, **options).to_dict() == first.to_dict()
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}  # embedded once


class Wrong:
    """A dataset with a fault in item 3."""

    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> Any:
        return self.item(i) if i == 3 else (torch.ones(2, 4), f"s{i}")


def raise_one(i: int) -> Any:
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("item", "error", "words"),
    [
        (lambda i: (torch.ones(2, 4) > 0, "s3"), InputError, r"torch.bool; expected dense real"),
        (raise_one, InputError, "item 3 .*: cannot be read: OSError: the disk is gone"),
        (lambda i: torch.ones(2, 4), InputError, "item 3 .*: a Tensor; expected"),
        (lambda i: (torch.ones(2, 5), "s3"), InputError, r"\[2, 5\], and s\d is .*\[2, 4\]"),
        (lambda i: (torch.full((2, 4), torch.nan), "s3"), InputError, "s3 .*: holds NaN"),
        (lambda i: (torch.ones(2, 4), "s0"), InputError, "the id 's0' belongs to several"),
        (lambda i: (torch.ones(2, 4), "s3", "cat"), InputError, "the label is 'cat'"),
        (lambda i: ("text", "s3"), InputError, "values are str; expected"),
    ],
)
def test_a_wrong_item_is_one_line(
    item: Callable[[int], Any], error: type[LidarError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import modalities

    name = f"wrong_{id(item)}"
    monkeypatch.setattr(modalities, name, lambda: Wrong(item), raising=False)
    with pytest.raises(error, match=words) as raised:
        open_items(settings(data=f"modalities:{name}"))
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data": "nowhere:data"}, "failed: ModuleNotFoundError"),
        ({"data": "modalities:nothing"}, "failed: AttributeError"),
        ({"data": "modalities:COUNT"}, "failed: TypeError"),
        ({"data": "modalities:audio_network"}, "expected|failed"),
        ({"n_views": 7}, "have 3 views; leave -q out"),
        ({"image_size": 32}, "--image-size: is for images"),
        ({"bad_samples": "skip"}, "--bad-samples: is for images"),
        ({"views": "simclr"}, "--views: is for images"),
    ],
)
def test_a_wrong_factory_is_one_line(fields: dict[str, Any], words: str) -> None:
    with pytest.raises((SettingsError, InputError), match=words):
        open_samples(settings(**fields))


def test_a_model_that_cannot_take_the_items_is_one_line(tmp_path: Path) -> None:
    path = hf_vjepa2().save(tmp_path)
    with raises(CheckpointError, code="item-shape") as caught:
        extract_checkpoint(path, settings(model=None, output=tmp_path / "a.h5"))
    assert str(caught.value).isprintable()


def test_v_jepa_2_embeds_the_clips_of_a_factory(tmp_path: Path) -> None:
    import modalities

    path = hf_vjepa2().save(tmp_path)
    own = settings(data="modalities:video", model=None, n_samples=4, output=tmp_path / "a.h5")
    done = extract_checkpoint(path, own)
    model, dataset = open_checkpoint(path), modalities.video()
    model.set_image_size(16)
    with h5py.File(done.path) as file:
        ids = [text.decode() for text in file["samples/id"]]
        assumed = json.loads(file.attrs["provenance"])["assumed"]
    assert not assumed.keys() & {"frames", "pixel_stats"}  # the user's own
    for name, views in zip(ids, views_in(done.path), strict=True):
        number = int(name.split()[1])
        with seeded(0, number):
            clips = dataset[number][0]
        assert_close(model.embed(clips, ["backbone"])["backbone"], torch.from_numpy(views))


@pytest.mark.parametrize(
    ("options", "code"),
    [({"by": "lidar", "n_views": 0}, "one-view"), ({"oracle": "probe"}, "own-views")],
)
def test_rank_refuses_what_needs_other_views_before_it_embeds(
    options: dict[str, Any], code: str, tmp_path: Path
) -> None:
    checkpoint(tmp_path / "a.pt")
    own = {"data": "modalities:table", "model": "modalities:table_network", "device": "cpu"}
    with raises(SettingsError, code=code):
        lidar_cli.rank(tmp_path, **own, **options)
    assert not list(tmp_path.rglob("*.h5*"))


def test_items_that_change_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import modalities

    unseeded = np.random.default_rng()
    item = lambda i: (torch.tensor(unseeded.normal(size=(2, 10))), f"s{i}")  # noqa: E731
    monkeypatch.setattr(modalities, "unseeded", lambda: Wrong(item), raising=False)
    monkeypatch.setattr(Wrong, "__getitem__", lambda self, i: self.item(i))
    path = checkpoint(tmp_path / "a.pt")
    with raises(InputError, code="changed"):
        extract_checkpoint(path, settings(data="modalities:unseeded", output=tmp_path / "a.h5"))


def test_v_jepa_2_takes_clips(tmp_path: Path) -> None:
    """A clip of one still repeated is that still as so many frames; others differ."""
    path, still = hf_vjepa2().save(tmp_path), images(16)
    model = open_checkpoint(path, assume=("frames=6",))
    model.set_image_size(16)
    as_frames = model.embed(still, ["backbone"])["backbone"]
    clip = still.unsqueeze(2).expand(-1, -1, 6, -1, -1)
    assert_close(model.embed(clip, ["backbone"])["backbone"], as_frames)
    moving = clip + 0.1 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    assert (model.embed(moving, ["backbone"])["backbone"] - as_frames).abs().max() > 1e-4
    with raises(CheckpointError, code="clip-shape"):
        model.embed(clip[:, :, :3], ["backbone"])
