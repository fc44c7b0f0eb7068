"""peft's adapters, such as LoRA's, are named as such, with the command that merges them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from formats import FIXTURES
from make import image_folder, lidar_here
from raising import raises
from safetensors.torch import save_file

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.errors import CheckpointError


def adapter(folder: Path, base: str | None = "facebook/dinov2-base") -> Path:
    """As peft saves it."""
    folder.mkdir(parents=True)
    layer = "base_model.model.encoder.layer.0.attention.attention.query"
    tree = {f"{layer}.lora_A.weight": torch.ones(8, 192)}
    tree[f"{layer}.lora_B.weight"] = torch.ones(192, 8)
    save_file(tree, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA"} | ({"base_model_name_or_path": base} if base else {})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("named", ["", "adapter_model.safetensors"])
@pytest.mark.parametrize("base", ["facebook/dinov2-base", "models/my base", None])
def test_an_adapter_is_refused_with_the_command_that_merges_it(
    base: str | None, named: str, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "lora", base)
    with raises(CheckpointError, "adapter") as raised:
        open_checkpoint(folder / named)
    message = str(raised.value)
    assert "holds adapters of peft, such as base_model.model.encoder.layer.0" in message
    words = {None: "BASE_MODEL", "models/my base": "'models/my base'"}.get(base, base)
    assert message.endswith(f'save_pretrained(sys.argv[3])" {words} {folder} {folder}-merged')


def test_in_rank_it_is_a_failed_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    adapter(runs / "lora")
    FIXTURES["timm-vit"]().save(runs)
    data = image_folder(tmp_path / "data", 6)
    options = ("--data", data, "-n", "6", "-q", "3", "--image-size", "32", "--json")
    ended = lidar_here("rank", runs, *options, monkeypatch=monkeypatch, capfd=capfd)
    assert ended.returncode == 4
    assert ended.stdout.count("holds adapters of peft") == 1
    assert "merge_and_unload" in ended.stdout
