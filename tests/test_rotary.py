"""DINOv3, CAPI and V-JEPA 2: other image sizes, what their weights leave open, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from formats import FIXTURES
from formats_rotary import (
    HF_VJEPA2,
    dinov3_convnext_dump,
    dinov3_convnext_hub,
    hf_dinov3_convnext,
    run_vjepa2,
)
from layouts import Fixture, Weights
from literal import assert_close, images
from raising import raises
from torch import Tensor

from lidar_cli.checkpoints.open import open_checkpoint, open_untrained
from lidar_cli.errors import CheckpointError, SettingsError
from lidar_cli.settings import ModelSettings


def backbone(path: Path, pixels: Tensor, *assume: str, **options: Any) -> Tensor:
    """The embedding by the default branch."""
    embedder = open_checkpoint(path, ModelSettings(assume=assume, **options))
    embedder.set_image_size(pixels.shape[-1])
    return embedder.embed(pixels, ["backbone"])["backbone"]


def expected(name: str, pixels: Tensor) -> Tensor:
    return next(iter(FIXTURES[name]().embed.values()))(pixels)


@pytest.mark.parametrize("name", ["dinov3-hub", "hf-dinov3", "capi", "vjepa2", "dinov3-dump"])
def test_angles_are_those_of_the_images_own_grid(name: str, tmp_path: Path) -> None:
    path = FIXTURES[name]().save(tmp_path)
    for size in (8, 40):
        assert_close(backbone(path, images(size)), expected(name, images(size)))
    with raises(CheckpointError, "image-size"):
        open_checkpoint(path).set_image_size(36)


def test_size_of_the_authors_evaluation(tmp_path: Path) -> None:
    for name, size in {"dinov3-hub": 224, "capi": 224, "vjepa2": 256, "hf-vjepa2": 256}.items():
        (tmp_path / name).mkdir()
        path = FIXTURES[name]().save(tmp_path / name)
        assert open_checkpoint(path).description.image_size == size


def test_an_image_as_more_frames(tmp_path: Path) -> None:
    """Each time has its own angle, so that the mean is another one."""
    path = FIXTURES["hf-vjepa2"]().save(tmp_path)
    w = Weights.of(torch.load(path))
    names = (
        "encoder.embeddings.patch_embeddings.proj", "encoder.layer.0", "encoder.layernorm",
    )  # fmt: skip
    literal = run_vjepa2(w, names, HF_VJEPA2, 4, images(16), frames=6)
    assert_close(backbone(path, images(16), "frames=6"), literal)
    assert (backbone(path, images(16)) - literal).abs().max() > 1e-4
    with raises(SettingsError, "impossible-frames") as raised:
        backbone(path, images(16), "frames=3")
    raised.match(r"frames=3: .* each patch has 2 frames; give a multiple")


def test_what_dinov3_leaves_open(tmp_path: Path) -> None:
    """LayerNorm's eps in its own files; base, heads and gate in a folder without config.json."""
    path = FIXTURES["dinov3-dump"]().save(tmp_path)
    embedder = open_checkpoint(path)
    assert embedder.description.assumed["eps"].text("eps") == "eps=1e-06 (dinov3's)"
    assert "rope_base" not in embedder.description.assumed
    assert not torch.equal(backbone(path, images(16)), backbone(path, images(16), "eps=1e-3"))
    path = FIXTURES["hf-dinov3"]().save(tmp_path)
    values = "heads=4", "eps=1e-3", "rope_base=50"
    with raises(SettingsError, "not-open") as raised:
        backbone(path, images(16), *values)
    raised.match("config.json has 4 heads")
    (tmp_path / "config.json").unlink()
    with raises(CheckpointError, "unknown-heads"):
        backbone(path, images(16))
    assert_close(backbone(path, images(16), *values), expected("hf-dinov3", images(16)))


@pytest.mark.parametrize(
    ("key", "value"), [("rope_theta", "100"), ("rope_theta", 0.5), ("hidden_act", "relu")]
)
def test_impossible_values_of_a_config(key: str, value: object, tmp_path: Path) -> None:
    path = FIXTURES["hf-dinov3"]().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(CheckpointError, match=rf"config\.json has {key} = '{value}'; expected"):
        open_checkpoint(path)


def test_without_the_format(tmp_path: Path) -> None:
    """By their usual names; what a published file leaves open is assumed as in its code."""
    for fixture in (FIXTURES["dinov3-hub"](), dinov3_convnext_hub()):
        pixels = images(fixture.size)
        embedding = backbone(fixture.save(tmp_path), pixels, format="plain")
        assert_close(embedding, fixture.embed["teacher", "backbone"](pixels))


def test_a_sharded_dump(tmp_path: Path) -> None:
    """As a folder of torch.distributed.checkpoint reads: {iteration, model}."""
    teacher = FIXTURES["dinov3-dump"]().tree["teacher"]
    torch.save({"iteration": 99, "model": teacher}, tmp_path / "a.pth")
    assert open_checkpoint(tmp_path / "a.pth").description.format == "dinov3"
    assert_close(backbone(tmp_path / "a.pth", images(16)), expected("dinov3-dump", images(16)))


@pytest.mark.parametrize("make", [dinov3_convnext_dump, dinov3_convnext_hub, hf_dinov3_convnext])
def test_convnext(make: Callable[[], Fixture], tmp_path: Path) -> None:
    fixture = make()
    embedder = open_checkpoint(fixture.save(tmp_path))
    assert embedder.description.format == fixture.format
    assert embedder.description.arch == "convnext (depths 1-1-1-1, channels 8-8-12-16)"
    assert "heads" not in embedder.description.assumed
    for size in (64, 96):
        outputs = embedder.embed(images(size), embedder.layers)
        for layer, output in outputs.items():
            assert_close(output, fixture.embed["teacher", layer](images(size)))


def test_v_jepa_1_is_not_taken_for_v_jepa_2(tmp_path: Path) -> None:
    """It has positions, which V-JEPA 2's published files have too, and two mask tokens."""
    tree = dict(FIXTURES["vjepa2-released"]().tree)
    tree["predictor"] = {
        name: tensor
        for name, tensor in tree["predictor"].items()
        if "mask_tokens" not in name or name.endswith((".0", ".1"))
    }
    torch.save(tree, tmp_path / "a.pt")
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "a.pt")


def test_registers_that_do_not_go_around(tmp_path: Path) -> None:
    tree = dict(FIXTURES["capi"]().tree)
    tree["backbone.registers"] = tree["backbone.registers"][:, :6]
    torch.save(tree, tmp_path / "a.pt")
    with raises(CheckpointError, "not-a-capi"):
        open_checkpoint(tmp_path / "a.pt")


def test_heads_without_whole_pairs(tmp_path: Path) -> None:
    path = FIXTURES["hf-dinov3"]().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for heads in (16, 3):
        config["num_attention_heads"] = heads
        (tmp_path / "config.json").write_text(json.dumps(config))
        with raises(CheckpointError, "inconsistent-shapes"):
            open_checkpoint(path)


@pytest.mark.parametrize("name", ["dinov3-hub", "hf-dinov3", "capi", "vjepa2", "hf-vjepa2"])
def test_untrained(name: str, tmp_path: Path) -> None:
    """The baseline of `rank`: random weights, with the positions of the authors' code."""
    path, pixels = FIXTURES[name]().save(tmp_path), images(64)
    description = open_checkpoint(path).description
    first, again, other = (
        open_untrained(path, seed, ModelSettings(), description).embed(pixels, ["backbone"])
        for seed in (0, 0, 1)
    )
    assert torch.equal(first["backbone"], again["backbone"])
    assert not torch.allclose(first["backbone"], other["backbone"])
    assert first["backbone"].isfinite().all()
    if "dinov3" not in name:  # whose class token sees the patches times a layer scale of 1e-5
        assert first["backbone"].std(dim=0).max() > 1e-4


def test_untrained_positions(tmp_path: Path) -> None:
    tensors = {}
    for name in ("dinov3-hub", "capi"):
        path = FIXTURES[name]().save(tmp_path)
        description = open_checkpoint(path).description
        backbone = open_untrained(path, 0, ModelSettings(), description).modules["backbone"]
        tensors |= dict(backbone.state_dict())
    assert torch.allclose(tensors["rope_embed.periods"], 100 ** torch.tensor([0, 0.25, 0.5, 0.75]))
    assert tensors["blocks.0.attn.qkv.bias_mask"].view(3, -1).mean(1).tolist() == [1, 0, 1]
    freqs = tensors["blocks.0.attn.rope.freqs"] / (2 * torch.pi)
    assert torch.allclose(freqs[0, :4], torch.tensor([7, 0.32491, 0.015081, 7e-4]), rtol=1e-3)
    assert torch.equal(freqs[0, :8], freqs[1, 8:])
    assert not freqs[0, 8:].any()


def test_reduced_precision(tmp_path: Path) -> None:
    """Under autocast, queries and keys have the type of the values."""
    path = FIXTURES["dinov3-hub"]().save(tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = backbone(path, images(16))
    assert (reduced - backbone(path, images(16))).abs().max() < 0.2
