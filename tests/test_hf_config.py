"""What is taken from a config.json next to the weights, and which of its values are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from formats import FIXTURES
from literal import assert_close, images
from make import lidar
from safetensors.torch import save_file

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.shapes.spec import Assumed
from lidar_cli.errors import CheckpointError


def folder(path: Path, name: str, **changes: Any) -> Path:
    """A fixture of Hugging Face with other values in its configuration."""
    FIXTURES[name]().save(path).unlink()
    save_file(FIXTURES[name]().tree, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))
    return path


@torch.no_grad()
def test_heads_and_eps_are_the_configurations(tmp_path: Path) -> None:
    """Of the folder and of the weights named in it; elsewhere they are the usual ones."""
    fixture = FIXTURES["hf-vit"]()
    path = folder(tmp_path, "hf-vit")
    expected = fixture.embed["encoder", "backbone"](images(16))
    for named in (path, path / "model.safetensors"):
        loaded = open_checkpoint(named)
        assert_close(loaded.embed(images(16), ["backbone"])["backbone"], expected)
        assert list(loaded.description.assumed) == ["pixel_stats", "position_offset"]
    (path / "model.safetensors").rename(path / "other.safetensors")
    loaded = open_checkpoint(path / "other.safetensors")
    assert loaded.description.assumed["heads"] == Assumed(3, "usual for width 192")
    assert loaded.description.assumed["eps"] == Assumed(1e-12, "Hugging Face's default")
    usual = loaded.embed(images(16), ["backbone"])["backbone"]
    assert (usual - expected).abs().max() > 1e-3


@torch.no_grad()
def test_eps_changes_the_embedding(tmp_path: Path) -> None:
    path = folder(tmp_path, "hf-ijepa", layer_norm_eps=0.1)
    embeddings = open_checkpoint(path).embed(images(16), ["backbone"])["backbone"]
    expected = FIXTURES["hf-ijepa"]().embed["student", "backbone"](images(16))
    assert (embeddings - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": "12"}, r"num_attention_heads = '12'; expected a number of heads"),
        ({"num_attention_heads": 0}, "num_attention_heads = '0'"),
        ({"num_attention_heads": True}, "num_attention_heads = 'True'"),
        ({"num_attention_heads": 5}, "the shapes of its tensors form no vit_tiny"),
        ({"layer_norm_eps": -1e-6}, "layer_norm_eps = '-1e-06'; expected a small positive"),
        ({"layer_norm_eps": [1]}, r"layer_norm_eps = '\[1\]'"),
        ({"hidden_act": "quick_gelu"}, "hidden_act = 'quick_gelu'; expected gelu"),
        ({"hidden_act": ["gelu"]}, "expected gelu"),
    ],
)
def test_values_that_no_module_here_has_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder(tmp_path, "hf-vit", **changes))


def test_a_configuration_that_is_nobodys_changes_nothing(tmp_path: Path) -> None:
    """Many scripts write a config.json of their own; 'architecture' alone is not timm's."""
    path = folder(tmp_path, "hf-ijepa", architecture="my-net")
    assert open_checkpoint(path).description.format == "hf-ijepa"


def test_weights_that_are_not_the_named_models_are_read_by_their_shapes(tmp_path: Path) -> None:
    """timm writes the name of a model also where it was built at another depth."""
    model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0, img_size=32).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    statistics = {"mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": statistics}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = open_checkpoint(tmp_path)
    pixels = loaded.description.assumed["pixel_stats"]
    assert pixels == Assumed("half", "pretrained_cfg of config.json")
    other = open_checkpoint(tmp_path, assume=("pixel_stats=unit",)).description
    assert other.pixel_stats == "unit"
    assert loaded.description.arch == "vit_tiny_patch16 (depth 2)"
    assert "not timm's vit_tiny_patch16_224 that" in " ".join(loaded.description.assumptions)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixels)
    torch.testing.assert_close(loaded.embed(pixels, ["backbone"])["backbone"], expected)


def test_a_recorded_rectangular_grid_is_used(tmp_path: Path) -> None:
    path = folder(tmp_path, "hf-vit", image_size=[16, 32])
    tree = dict(FIXTURES["hf-vit"]().tree)
    (name,) = (key for key in tree if key.endswith("position_embeddings"))
    tree[name] = torch.randn(1, 1 + 4 * 8, 192)
    save_file(tree, path / "model.safetensors")
    description = open_checkpoint(path).description
    assert "4 x 8 patches" in description.arch
    assert description.image_size == 16
    assert "grid" not in description.assumed


@pytest.mark.parametrize(
    ("processor", "stats", "why"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, "half", "preprocessor_config.json"),
        ({"image_mean": [0.4] * 3, "image_std": [0.2] * 3}, "0.4,0.4,0.4/0.2,0.2,0.2",
         "preprocessor_config.json"),
        ({"image_mean": [127.5] * 3, "image_std": [127.5] * 3}, "imagenet",
         "usual: preprocessor_config.json has no three of pixels in [0, 1]"),
        ({"image_mean": [0.5] * 3}, "imagenet",
         "usual: preprocessor_config.json has no three of pixels in [0, 1]"),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": False}, "unit",
         "preprocessor_config.json"),
        ([], "imagenet", "hf-vit's"),
    ],
)  # fmt: skip
def test_pixel_statistics_are_the_image_processors(
    processor: Any, stats: str, why: str, tmp_path: Path
) -> None:
    path = folder(tmp_path, "hf-vit")
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    description = open_checkpoint(path).description
    assert description.pixel_stats == stats
    assert description.assumed["pixel_stats"] == Assumed(stats, why)


@pytest.mark.parametrize(
    ("fixture", "changes", "message"),
    [
        ("hf-resnet", {"downsample_in_bottleneck": True}, "downsample_in_bottleneck = 'True'"),
        ("hf-resnet", {"hidden_act": "gelu"}, "hidden_act = 'gelu'; expected relu"),
        ("hf-clip", {"vision_config": {"hidden_act": "silu"}}, "gelu or quick_gelu or gelu_tanh"),
    ],
)
def test_values_that_no_other_backbone_here_has_are_refused(
    fixture: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder(tmp_path, fixture, **changes))


def test_the_activation_of_clip_is_open_without_a_configuration(tmp_path: Path) -> None:
    """OpenAI's models have another one than most others of the same layout."""
    path = FIXTURES["openai-clip"]().save(tmp_path)
    by_why = {"OpenAI's": open_checkpoint(path)}
    by_why["--assume"] = open_checkpoint(path, assume=("block_activation=gelu",))
    rows = [one.embed(images(16), ["backbone"])["backbone"] for one in by_why.values()]
    assert (rows[0] - rows[1]).abs().max() > 1e-3
    for why, loaded in by_why.items():
        assert loaded.description.assumed["block_activation"].why == why
    tree = FIXTURES["hf-clip"]().tree
    save_file({n: t.contiguous() for n, t in tree.items()}, path.parent / "model.safetensors")
    (path.parent / "config.json").write_text('{"hidden_act": "gelu"}')
    assumed = open_checkpoint(path.parent).description.assumed
    assert "block_activation" not in assumed
    assert assumed["eps"] == Assumed(1e-5, "OpenAI's")  # which the configuration leaves out


def test_a_ranking_sees_another_configuration_of_equal_weights(tmp_path: Path) -> None:
    """The digest of the file with the weights does not cover config.json."""
    runs = tmp_path / "runs"
    for name, eps in (("a", 1e-12), ("b", 0.1), ("c", 1e-12)):
        (runs / name).mkdir(parents=True)
        folder(runs / name, "hf-vit", layer_norm_eps=eps)
    words = ["rank", runs, "-n", 60, "-q", 2, "--json", "--layer", "backbone", "--image-size", 16]

    def ranked() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        ranking = json.loads(lidar(*words, cwd=tmp_path).stdout)
        (row,) = ranking["checkpoints"]
        return row, ranking["failed"]

    row, (failed,) = ranked()
    assert row["aliases"] == [str(runs / "c/model.safetensors")]
    assert "another config.json" in failed["reason"]
    folder(runs / "a", "hf-vit", layer_norm_eps=0.1)
    other, (failed,) = ranked()
    assert other["aliases"] == [str(runs / "b/model.safetensors")]
    assert other["value"] != row["value"]  # embedded again, not from the cache
