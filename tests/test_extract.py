"""A checkpoint and a folder of photographs to a feature file: right, repeatable, resumable."""

from __future__ import annotations

import doctest
import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from feature_files import set_revision
from interrupted import Stop, StopAfter, assert_same, contents
from make import (
    PROJECTED,
    WIDTHS,
    Network,
    checkpoint,
    crop,
    encoded,
    image_folder,
    lidar,
    network,
    size,
    state_dict,
)

from lidar_cli import extract
from lidar_cli.data.open import open_samples
from lidar_cli.errors import (
    CheckpointError,
    DegenerateFeatures,
    FeatureFileError,
    InputError,
    SettingsError,
)
from lidar_cli.extraction.plan import identity
from lidar_cli.extraction.run import Extraction, extract_checkpoint, stem
from lidar_cli.features.schema import EMBEDDING_REVISION, partial_path
from lidar_cli.settings import ExtractSettings
from lidar_cli.views.methods import find_recipe
from lidar_cli.views.pipeline import Views

SIZE = 32  # pixels of the views
N, Q = 13, 3
# Relative to the largest value. Another batch size lets kernels add in another order; seen: 1e-6.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint with a projector, and 20 photographs of different sizes in three classes."""
    folder = tmp_path_factory.mktemp("inputs")
    return checkpoint(folder / "ckpt.pt"), image_folder(folder / "images", 20, ["a", "b", "c"])


def run(inputs: tuple[Path, Path], output: Path, **more: Any) -> Extraction:
    """Extract N samples at Q views in batches of 5, by default."""
    defaults = {"n_samples": N, "n_views": Q, "image_size": SIZE, "batch_size": 5, "device": "cpu"}
    settings = ExtractSettings(data=str(inputs[1]), output=output, **(defaults | more))
    return extract_checkpoint(inputs[0], settings)


def assert_close(content: np.ndarray, expected: np.ndarray) -> None:
    assert content.shape == expected.shape
    assert np.abs(content - expected).max() <= TOLERANCE * np.abs(expected).max()


def naive(
    inputs: tuple[Path, Path], layer: str, n: int, clean: int, seed: int = 0, views: str = "simclr"
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, q, d) of views and (clean, d): one image at a time, one view at a time."""
    model = network()
    settings = ExtractSettings(data=str(inputs[1]), n_samples=clean, seed=seed)
    samples = open_samples(settings)
    maker = Views(find_recipe(views, "imagenet"), seed, Q, SIZE)
    seen, plain = [], []
    with torch.inference_mode():
        for i in range(clean):
            image = samples.decode(i)
            plain.append(model(maker.clean([image]))[layer][0])
            if i < n:
                each = maker.views([image], [i])[0]
                seen.append(torch.stack([model(each[j : j + 1])[layer][0] for j in range(Q)]))
    return torch.stack(seen).numpy(), torch.stack(plain).numpy()


def test_the_file_is_as_the_contract_says(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    done = run(inputs, tmp_path / "out.h5", clean_samples=17, layer="backbone,projector", seed=4)
    assert done.path == tmp_path / "out.h5"
    assert (done.n_samples, done.n_views, done.n_clean, done.embedded) == (N, Q, 17, 17)
    assert done.widths == {"backbone": WIDTHS[-1], "projector": PROJECTED}
    assert done.batch_size == 5
    assert not partial_path(done.path).exists()

    samples = open_samples(ExtractSettings(data=str(inputs[1]), n_samples=17, seed=4))
    with h5py.File(done.path) as file:
        assert set(file) == {"embeddings", "samples"}
        for layer, d in done.widths.items():
            group = file["embeddings"][layer]
            assert set(group) == {"views", "clean", "crc32"}
            assert (group["views"].shape, group["views"].dtype) == ((N, Q, d), np.float32)
            assert (group["clean"].shape, group["clean"].dtype) == ((17, d), np.float32)
            assert (group["crc32"].shape, group["crc32"].dtype) == ((17,), np.uint32)
            assert group["views"].chunks is None
        assert file["samples/done"][:].tolist() == [1] * 17
        assert [name.decode() for name in file["samples/id"][:]] == list(samples.ids)
        assert file["samples/label"].dtype == np.int64
        assert file["samples/label"][:].tolist() == list(samples.labels or ())
        assert (file.attrs["format"], file.attrs["version"]) == ("lidar-features", 1)
        recorded = json.loads(file.attrs["provenance"])
    assert recorded.pop("embedding_revision") == EMBEDDING_REVISION
    assert recorded.pop("versions").keys() == {"lidar-cli", "torch", "timm", "numpy"}
    assert recorded.pop("architecture").startswith("resnet 1-1-1-1")
    assert len(recorded.pop("sha256")) == 64
    assert recorded.pop("assumptions") == []
    assert recorded.pop("assumed") == {
        "activation": {"value": "relu", "why": "usual"},
        "stem_padding": {"value": 1, "why": "usual"},
        "stem_pool": {"value": "none", "why": "usual"},
        "strides": {"value": [1, 2, 2, 2], "why": "usual"},
        "pixel_stats": {"value": "imagenet", "why": "usual"},
    }
    stored = np.array(samples.labels, "<i8").tobytes()
    assert recorded.pop("labels_sha256") == hashlib.sha256(stored).hexdigest()
    assert recorded.pop("views") == find_recipe("simclr", "auto").describe()
    assert recorded == {
        "checkpoint": str(inputs[0]),
        "model_format": "ResNet state dict",
        "branch": "encoder",
        "activation": "auto",
        "source_sha256": None,
        "layer_reason": None,
        "layers": ["backbone", "projector"],
        "data": str(inputs[1]),
        "samples_sha256": samples.fingerprint,
        "n_samples": N,
        "n_views": Q,
        "n_clean": 17,
        "seed": 4,
        "image_size": SIZE,
        "batch_size": 5,
        "precision": "float32",
        "storage": "float32",
        "device": "cpu",
    }


@pytest.mark.parametrize("layer", ["backbone", "projector"])
def test_embeddings_are_those_of_a_literal_loop(
    inputs: tuple[Path, Path], tmp_path: Path, layer: str
) -> None:
    # 17 = 3 whole batches and 2 of the last; the views end inside the third.
    done = run(inputs, tmp_path / "out.h5", clean_samples=17, layer=layer, seed=9)
    views, clean = naive(inputs, layer, N, 17, seed=9)
    content = contents(done.path)
    assert_close(content[f"embeddings/{layer}/views"], views)
    assert_close(content[f"embeddings/{layer}/clean"], clean)
    assert np.ptp(views, axis=1).max() > 0.1, "views that were all alike would hide a mix-up"
    assert clean.std(axis=0).min() > 1e-3


def test_identity_views_are_the_clean_image(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    content = contents(run(inputs, tmp_path / "out.h5", views="identity").path)
    views, clean = content["embeddings/projector/views"], content["embeddings/projector/clean"]
    assert_close(views, np.repeat(clean[:, None], Q, axis=1))
    assert clean.std(axis=0).min() > 1e-3


def test_the_number_of_workers_changes_no_bit(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    paths = [run(inputs, tmp_path / f"{w}.h5", workers=w).path for w in (1, 2, 7)]
    assert_same(paths[0], paths[1])
    assert_same(paths[0], paths[2])


@pytest.mark.parametrize("batch_size", [1, 4, 13, 64])
def test_the_batch_size_changes_rounding_only(
    inputs: tuple[Path, Path], tmp_path: Path, batch_size: int
) -> None:
    one = run(inputs, tmp_path / "one.h5", clean_samples=16)
    two = run(inputs, tmp_path / "two.h5", clean_samples=16, batch_size=batch_size)
    assert two.batch_size == batch_size
    a, b = contents(one.path), contents(two.path)
    for name in ("views", "clean"):
        assert_close(*(each[f"embeddings/projector/{name}"] for each in (a, b)))
    assert np.array_equal(a["samples/id"], b["samples/id"])
    recorded = [json.loads(each["attribute provenance"]) for each in (a, b)]
    assert identity(recorded[0]) == identity(recorded[1])


def test_two_layers_at_once_are_those_one_at_a_time(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    both = contents(run(inputs, tmp_path / "both.h5", layer="projector, backbone").path)
    for layer in ("backbone", "projector"):
        alone = contents(run(inputs, tmp_path / f"{layer}.h5", layer=layer).path)
        for name in ("views", "clean", "crc32"):
            key = f"embeddings/{layer}/{name}"
            assert np.array_equal(alone[key], both[key])


def test_the_default_layer_and_batch_size(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    done = run(inputs, tmp_path / "out.h5", batch_size=None)
    assert done.widths == {"projector": PROJECTED}
    assert done.batch_size == N
    bare = checkpoint(tmp_path / "bare.pt", projected=None), inputs[1]
    assert run(bare, tmp_path / "bare.h5").widths == {"backbone": WIDTHS[-1]}


def test_half_precision_storage(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    full = contents(run(inputs, tmp_path / "full.h5").path)
    half = contents(run(inputs, tmp_path / "half.h5", storage="float16").path)
    for name in ("views", "clean"):
        key = f"embeddings/projector/{name}"
        assert half[key].dtype == np.float16
        assert np.array_equal(half[key], full[key].astype(np.float16))


def test_an_overflow_of_half_precision_is_an_error(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    weights = state_dict()
    weights["module.projector.3.weight"] *= 1e6
    torch.save(weights, tmp_path / "huge.pt")
    with pytest.raises(DegenerateFeatures, match=r"overflows float16 .* use --storage float32"):
        run((tmp_path / "huge.pt", inputs[1]), tmp_path / "out.h5", storage="float16")


def test_a_forward_in_bfloat16_is_near_that_in_float32(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    full = contents(run(inputs, tmp_path / "full.h5").path)
    brief = contents(run(inputs, tmp_path / "brief.h5", precision="bfloat16").path)
    key = "embeddings/projector/clean"
    difference = np.abs(full[key] - brief[key]).max()
    assert 0 < difference < 0.1 * np.abs(full[key]).max()


# Interrupted and resumed


def interrupted(inputs: tuple[Path, Path], output: Path, after: int = 10, **more: Any) -> Path:
    """The partial file of a run that stopped after some samples."""
    defaults = {"n_samples": N, "n_views": Q, "image_size": SIZE, "batch_size": 5, "device": "cpu"}
    settings = ExtractSettings(data=str(inputs[1]), output=output, **(defaults | more))
    with pytest.raises(Stop):
        extract_checkpoint(inputs[0], settings, StopAfter(after))
    return partial_path(output)


def test_a_resumed_file_is_the_uninterrupted_one(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    whole = run(inputs, tmp_path / "whole.h5", clean_samples=17)
    partial = interrupted(inputs, tmp_path / "out.h5", clean_samples=17)
    with h5py.File(partial) as file:
        assert file["samples/done"][:].tolist() == [1] * 10 + [0] * 7
    done = run(inputs, tmp_path / "out.h5", clean_samples=17, resume=True)
    assert done.embedded == 7
    assert not partial.exists()
    assert_same(whole.path, done.path)
    # And resuming what is complete does nothing.
    before = done.path.stat()
    assert run(inputs, tmp_path / "out.h5", clean_samples=17, resume=True).embedded == 0
    assert done.path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_damaged_row_is_computed_again(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    whole = run(inputs, tmp_path / "whole.h5")
    partial = interrupted(inputs, tmp_path / "out.h5")
    with h5py.File(partial, "r+") as file:
        file["embeddings/projector/views"][2, 1, 3] += 1
    done = run(inputs, tmp_path / "out.h5", resume=True)
    assert done.embedded == 5 + 3  # the batch of sample 2, and the rest
    assert_same(whole.path, done.path)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 1}, "labels_sha256, samples_sha256, seed"),
        ({"batch_size": 4}, "batch_size"),
        ({"views": "identity"}, "views"),
        ({"image_size": 24}, "image_size"),
    ],
)
def test_a_file_begun_with_other_settings_is_not_continued(
    inputs: tuple[Path, Path], tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    partial = interrupted(inputs, tmp_path / "out.h5")
    before = partial.read_bytes()
    with pytest.raises(FeatureFileError, match=rf"was begun with other settings \({name} differ"):
        run(inputs, tmp_path / "out.h5", resume=True, **change)
    assert partial.read_bytes() == before


def test_a_file_begun_at_another_revision_is_not_continued(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    partial = interrupted(inputs, tmp_path / "out.h5")
    set_revision(partial, None)
    before = partial.read_bytes()
    line = rf"begun at embedding revision 1, and this lidar embeds at {EMBEDDING_REVISION}; start"
    with pytest.raises(FeatureFileError, match=line):
        run(inputs, tmp_path / "out.h5", resume=True)
    assert partial.read_bytes() == before
    assert run(inputs, tmp_path / "out.h5", overwrite=True).embedded == N


def test_a_finished_file_of_another_revision_does_not_count_as_done(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    output = run(inputs, tmp_path / "out.h5").path
    set_revision(output, EMBEDDING_REVISION + 1)
    with pytest.raises(FeatureFileError, match="exists already"):
        run(inputs, output, resume=True)


# What is in the way, or wrong


def test_an_existing_output_is_refused(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    output.write_text("something of the user's")
    refusal = "exists already; choose another name with -o, or replace it with --overwrite"
    with pytest.raises(FeatureFileError) as caught:
        run(inputs, output)
    assert str(caught.value) == f"{output}: {refusal}"
    assert output.read_text() == "something of the user's"
    run(inputs, output, overwrite=True)
    first = contents(output)
    with pytest.raises(FeatureFileError, match="exists already"):
        run(inputs, output, resume=True, seed=1)  # complete, but of another seed
    run(inputs, output, overwrite=True, seed=1)
    views = "embeddings/projector/views"
    assert not np.array_equal(contents(output)[views], first[views])
    assert os.listdir(tmp_path) == ["out.h5"]  # noqa: PTH208


def test_overwrite_replaces_an_interrupted_run(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    interrupted(inputs, tmp_path / "out.h5")
    with pytest.raises(FeatureFileError) as caught:
        run(inputs, tmp_path / "out.h5")
    assert str(caught.value) == (
        f"{tmp_path}/out.h5.partial: an interrupted run is here; "
        "continue it with --resume, or start over with --overwrite"
    )
    assert run(inputs, tmp_path / "out.h5", overwrite=True).embedded == N


@pytest.mark.parametrize("old", ["complete", "foreign"])
def test_the_old_output_stays_until_the_new_one_is_done(
    inputs: tuple[Path, Path], tmp_path: Path, old: str
) -> None:
    output = tmp_path / "out.h5"
    if old == "complete":
        run(inputs, output)
    else:
        output.write_text("something of the user's")
    before = output.read_bytes()
    interrupted(inputs, output, overwrite=True, seed=1)
    assert output.read_bytes() == before


def test_an_unreadable_image_stops_the_run_by_name(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = image_folder(tmp_path / "images", N)
    bad = open_samples(ExtractSettings(data=str(folder), n_samples=N)).ids[11]
    sound = (folder / bad).read_bytes()
    (folder / bad).write_bytes(b"x" * len(sound))
    with pytest.raises(InputError) as caught:
        run((inputs[0], folder), tmp_path / "out.h5")
    assert str(caught.value) == (
        f"{bad} (in {folder}): cannot be decoded as an image: of no known image format; "
        "repair or remove it, or leave out what is bad with --bad-samples skip"
    )
    assert not (tmp_path / "out.h5").exists()
    with h5py.File(partial_path(tmp_path / "out.h5")) as file:
        assert file["samples/done"][:].tolist() == [1] * 10 + [0] * 3
    # With another image in its place these are other samples, and what was done is not of them.
    (folder / bad).write_bytes(sound)
    with pytest.raises(FeatureFileError, match=r"other settings \(samples_sha256 differ\)"):
        run((inputs[0], folder), tmp_path / "out.h5", resume=True)
    assert run((inputs[0], folder), tmp_path / "out.h5", overwrite=True).embedded == 13


def test_a_checkpoint_that_gives_nan_is_refused(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    weights = state_dict()
    weights["module.projector.3.weight"] *= 1e38  # finite, but what it makes is not
    torch.save(weights, tmp_path / "nan.pt")
    with pytest.raises(DegenerateFeatures) as caught:
        run((tmp_path / "nan.pt", inputs[1]), tmp_path / "out.h5")
    assert str(caught.value) == (
        "layer projector: the embedding of sample 0 holds NaN or Inf; "
        "check the checkpoint, or try --precision float32"
    )
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"layer": "head"}, CheckpointError, "no layer 'head' in this checkpoint; it has backbone"),
        ({"clean_samples": 5}, SettingsError, "--clean-samples 5 is less than -n 13"),
        ({"n_samples": 21}, InputError, "holds 20 images, 21 were asked for; lower -n"),
        ({"views": "simclrr"}, SettingsError, "unknown views 'simclrr'; did you mean simclr?"),
        ({"output": Path("/absent/out.h5")}, FeatureFileError, "cannot be created"),
    ],
)
def test_mistakes_are_refused_before_the_work(
    inputs: tuple[Path, Path],
    tmp_path: Path,
    change: dict[str, Any],
    kind: type[Exception],
    text: str,
) -> None:
    output = change.get("output", tmp_path / "out.h5")
    with pytest.raises(kind, match=text):
        run(inputs, **({"output": output} | change))
    assert list(tmp_path.iterdir()) == []


# The user's own module


OWN = """
import torch

class Tiny(torch.nn.Module):
    image_size = 16

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 5)

    def forward(self, x):
        return {"backbone": x.mean((2, 3)), "predictor": self.head(x.mean((2, 3)))}

def tiny():
    return Tiny()
"""


def test_a_module_of_the_users_own_through_the_command_line(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/models.py").write_text(OWN)
    head = torch.nn.Linear(3, 5)
    torch.save({"model": {"head.weight": head.weight, "head.bias": head.bias}}, tmp_path / "m.ckpt")
    words = ["extract", "m.ckpt", "--model", "mine.models:tiny", "--data", inputs[1]]
    words += ["-n", 6, "-q", 2, "--layer", "backbone,predictor", "--pixel-stats", "unit"]
    done = lidar(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "m.h5\n", "")
    content = contents(tmp_path / "m.h5")
    recorded = json.loads(content["attribute provenance"])
    assert recorded["image_size"] == 16
    assert recorded["architecture"] == "mine.models:tiny"
    expected = head(torch.from_numpy(content["embeddings/backbone/views"])).detach().numpy()
    assert np.abs(content["embeddings/predictor/views"] - expected).max() < 1e-5
    # Channel means of the photographs, within what resizing to 16 pixels changes.
    samples = open_samples(ExtractSettings(data=str(inputs[1]), n_samples=6))
    for i in range(6):
        mean = samples.decode(i).float().mean((0, 1)) / 255
        assert np.abs(content["embeddings/backbone/clean"][i] - mean.numpy()).max() < 0.1


def test_a_module_in_memory(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    model: Network = network()
    options: dict[str, Any] = {"n_samples": N, "n_views": Q, "image_size": SIZE, "batch_size": 5}
    done = extract(model, str(inputs[1]), tmp_path / "own.h5", layer="backbone", **options)
    assert done.widths == {"backbone": WIDTHS[-1]}
    from_file = contents(run(inputs, tmp_path / "file.h5", layer="backbone").path)
    key = "embeddings/backbone/views"
    assert_close(contents(tmp_path / "own.h5")[key], from_file[key])
    # A checkpoint's convnet works channels last; a module of one's own as it is given.
    last = network().to(memory_format=torch.channels_last)
    extract(last, str(inputs[1]), tmp_path / "last.h5", layer="backbone", **options)
    assert np.array_equal(contents(tmp_path / "last.h5")[key], from_file[key])
    with pytest.raises(FeatureFileError, match="exists already"):
        extract(model, str(inputs[1]), str(tmp_path / "own.h5"), **options)
    with torch.no_grad():
        model.backbone.conv1.weight.mul_(2)
    extract(model, str(inputs[1]), tmp_path / "other.h5", layer="backbone", **options)
    digests = [
        json.loads(contents(tmp_path / name)["attribute provenance"])["sha256"]
        for name in ("own.h5", "other.h5")
    ]
    assert digests[0] != digests[1]


class Caching(torch.nn.Module):
    """Embeds by a part in training mode and a frozen one in eval mode; keeps the last embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5))
        self.frozen = torch.nn.BatchNorm1d(4).eval().requires_grad_(False)
        self.width = 4
        self.weight: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight is None:  # as position tables are made, at the first size that is seen
            self.weight = torch.ones(4) / self.trained[0].weight.detach().norm()
        return (self.frozen(self.trained(x.mean((2, 3)))) * self.weight)[:, : self.width]


@pytest.mark.parametrize("fails", [False, True])
def test_a_module_comes_back_as_it_was(
    fails: bool, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    model = Caching()
    modes = {name: part.training for name, part in model.named_modules()}
    assert set(modes.values()) == {True, False}
    weights = [(weight, weight.requires_grad) for weight in model.parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options: dict[str, Any] = {"n_samples": N, "n_views": Q, "image_size": SIZE, "batch_size": 5}
    if fails:
        model.trained[0].weight.data[0] = math.nan
        before["trained.0.weight"][0] = math.nan
        with pytest.raises(DegenerateFeatures, match="NaN"):
            extract(model, str(inputs[1]), tmp_path / "a.h5", **options)
    else:
        extract(model, str(inputs[1]), tmp_path / "a.h5", **options)
    assert {name: part.training for name, part in model.named_modules()} == modes
    assert [(weight, weight.requires_grad) for weight in model.parameters()] == weights
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num())
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    model(torch.ones(2, 3, 8, 8)).sum().backward()  # what it keeps can be trained on
    assert model.trained[0].weight.grad is not None


def test_weights_without_a_shape_are_one_line(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    lazy = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(4))
    with pytest.raises(SettingsError, match=r"1\.weight has no shape yet; pass a batch"):
        extract(lazy, str(inputs[1]), tmp_path / "a.h5", n_samples=N, n_views=Q)


def test_layers_without_a_backbone_are_named(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    class Heads(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"tokens": x.mean((2, 3)), "cls": x.amax((2, 3))}

    options: dict[str, Any] = {"n_samples": N, "n_views": Q, "image_size": SIZE}
    with pytest.raises(CheckpointError, match=r"no layer 'backbone' .* it has tokens, cls: use --"):
        extract(Heads(), str(inputs[1]), tmp_path / "a.h5", **options)
    done = extract(Heads(), str(inputs[1]), tmp_path / "a.h5", layer="cls", **options)
    assert done.widths == {"cls": 3}


def test_labels_are_stored_only_where_there_are_some(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    flat = image_folder(tmp_path / "flat", 3)
    content = contents(run((inputs[0], flat), tmp_path / "out.h5", n_samples=3).path)
    assert "samples/label" not in content
    assert "samples/id" in content


def test_pictures_smaller_and_larger_than_the_views(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    shapes = [(1, 1), (1, 90), (90, 1), (5, 7), (300, 200), size(3)]
    for index, (height, width) in enumerate(shapes):
        (folder / f"{index}.png").write_bytes(encoded(crop(index, height, width)))
    content = contents(run((inputs[0], folder), tmp_path / "out.h5", n_samples=6).path)
    assert np.isfinite(content["embeddings/projector/views"]).all()
    views, clean = naive((inputs[0], folder), "projector", 6, 6)
    assert_close(content["embeddings/projector/views"], views)
    assert_close(content["embeddings/projector/clean"], clean)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.v1.pt", "a.v1.h5"),
        ("epoch=10-loss=0.5.ckpt", "epoch=10-loss=0.5.h5"),
        ("x.PTH.tar", "x.h5"),
        ("odd", "odd.h5"),
    ],
)
def test_the_default_output_keeps_the_dots_of_the_name(name: str, expected: str) -> None:
    assert f"{stem(Path(name))}.h5" == expected


def test_a_directory_is_no_output(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FeatureFileError, match="is a directory; name a file in it with -o"):
        run(inputs, tmp_path, overwrite=True)


def test_a_checkpoint_at_another_path_is_resumed(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    interrupted(inputs, output)
    moved = shutil.copy(inputs[0], tmp_path / "moved.pt")
    assert run((Path(moved), inputs[1]), output, resume=True).embedded < N
    assert run((Path(moved), inputs[1]), output, resume=True).embedded == 0


def test_the_example_of_extract_runs() -> None:
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder(recurse=False).find(extract, "extract"):
        runner.run(example)
    assert (runner.tries, runner.failures) == (5, 0)
