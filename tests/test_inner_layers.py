"""Layers inside a backbone: values, pooling, what is stored, and the profile over depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import literal
import numpy as np
import pytest
import torch
from formats import FIXTURES
from literal import assert_close, images
from make import checkpoint, image_folder
from raising import raises
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lidar_cli.checkpoints.inspect import inspect_file
from lidar_cli.checkpoints.open import open_checkpoint, wrap_module
from lidar_cli.errors import CheckpointError, SettingsError
from lidar_cli.extraction.run import extract_checkpoint
from lidar_cli.ranking.session import rank_directory
from lidar_cli.report import ranking as report
from lidar_cli.report import scores as scores_report
from lidar_cli.report.page.content import ranking_page
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ExtractSettings, InspectSettings, RankSettings, ScoreSettings
from lidar_cli.views.masks import Mask

WIDTH = 128
NAMED = "backbone,blocks.2,blocks.0"  # not in order of depth
BY_DEPTH = ["blocks.0", "blocks.2", "backbone"]


def small(runs: Path, **more: Any) -> dict[str, Any]:
    """Settings of the photographs next to a folder of checkpoints."""
    settings = {"n_views": 3, "device": "cpu", "batch_size": 8, "workers": 0}
    return {"data": str(runs.parent / "data")} | settings | more


def vit(seed: int, **more: Any) -> VisionTransformer:
    torch.manual_seed(seed)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": WIDTH, "depth": 3, "num_heads": 2}
    model = VisionTransformer(**sizes, num_classes=0, **more).eval()
    for parameter in model.parameters():  # timm's would make all blocks nearly the identity
        nn.init.normal_(parameter, std=0.2)
    return model


def saved(path: Path, model: nn.Module) -> Path:
    path.parent.mkdir(exist_ok=True)
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two checkpoints, next to one of photographs."""
    folder = tmp_path_factory.mktemp("inner") / "runs"
    image_folder(folder.parent / "data", 24)
    for seed in range(2):
        saved(folder / f"v{seed}.pth", vit(seed))
    return folder


@torch.no_grad()
def hooked(model: nn.Module, pixels: Tensor, *names: str) -> dict[str, Tensor]:
    """The outputs of modules, by hooks of the test."""
    outputs: dict[str, Tensor] = {}
    for name in names:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda m, i, o, name=name: outputs.update({name: o}))
    model(pixels)
    return outputs


def test_class_tokens_means_and_maps_equal_hooks_on_timms_modules(tmp_path: Path) -> None:
    names = ["patch_embed", "blocks.0", "blocks.1.mlp"]
    for number, (more, first) in enumerate(
        [({}, None), ({"class_token": False, "global_pool": "avg"}, 0)]
    ):
        model = vit(0, **more)
        loaded = open_checkpoint(
            saved(tmp_path / f"{number}.pth", model), layer=f"backbone,{','.join(names)}"
        )
        assert list(loaded.description.widths) == [*names, "backbone"]
        rows = loaded.embed(images(16), [*names, "backbone"])
        outputs = hooked(model, images(16), *names)
        for name in names:
            is_mean = first == 0 or name == "patch_embed"  # before the class token is added
            expected = outputs[name].mean(dim=1) if is_mean else outputs[name][:, 0]
            assert_close(rows[name], expected)
        assert torch.equal(rows["backbone"], loaded.embed(images(16), ["backbone"])["backbone"])

    torch.manual_seed(0)
    resnet = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=0, channels=(4, 8, 12, 16)).eval()
    names = ["layer2", "layer3.0.conv1", "layer4"]
    loaded = open_checkpoint(saved(tmp_path / "r.pth", resnet), layer=",".join(names))
    rows = loaded.embed(images(40), names)
    for name, output in hooked(resnet, images(40), *names).items():
        assert_close(rows[name], output.mean(dim=(2, 3)))


def test_the_pass_ends_with_the_deepest_layer_and_leaves_no_hook(runs: Path) -> None:
    loaded = open_checkpoint(runs / "v0.pth", layer="blocks.0,blocks.1")
    model: Any = loaded.inner_root
    deeper: list[int] = []
    model.blocks[2].register_forward_hook(lambda m, i, o: deeper.append(1))
    rows = loaded.embed(images(16), ["blocks.0", "blocks.1"])
    assert not deeper
    both = loaded.embed(images(16), ["blocks.1", "backbone"])
    assert deeper == [1]
    assert torch.equal(both["blocks.1"], rows["blocks.1"])
    assert not model.blocks[0]._forward_hooks


@torch.no_grad()
@pytest.mark.parametrize("branch", ["student", "teacher"])
def test_masked_views_are_pooled_over_the_patches_that_the_backbone_uses(
    branch: str, tmp_path: Path
) -> None:
    """I-JEPA: the student has the visible patches alone, the teacher compares the hidden ones."""
    fixture = FIXTURES["ijepa"]()
    weights = fixture.tree["encoder" if branch == "student" else "target_encoder"]
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    loaded = open_checkpoint(fixture.save(tmp_path), branch=branch, layer="blocks.0,backbone")
    pixels, seen = images(32, 2), [torch.tensor([[0, 5, 9], [2, 3, 15]]), torch.tensor([[1], [4]])]
    compared = torch.zeros(2, 2, 16)
    compared[0, :, 7:12] = compared[1, :, 10:13] = 1
    compared[0, 1, 8] = 2  # in two target blocks
    masks = [Mask(s, torch.tensor([[[7]] * 2]), c) for s, c in zip(seen, compared, strict=True)]
    rows = loaded.embed_masked(pixels[:, None], masks, ["blocks.0", "backbone"])["blocks.0"]
    proj = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    tokens = literal.patches(pixels, *proj) + weights["pos_embed"]
    for image in range(2):
        for view in range(2):
            if branch == "student":
                x = literal.block(
                    tokens[image : image + 1, seen[view][image]], weights, "blocks.0", 3
                )
                expected = x[0].mean(dim=0)
            else:
                x = literal.block(tokens[image : image + 1], weights, "blocks.0", 3)
                weight = compared[view, image]
                expected = (x[0] * weight[:, None]).sum(dim=0) / weight.sum()
            assert_close(rows[image, view], expected)
    loaded = open_checkpoint(tmp_path / fixture.file, branch="student", layer="patch_embed")
    with raises(CheckpointError, "layer-before-masks"):
        loaded.embed_masked(pixels[:, None], masks, ["patch_embed"])


def test_a_module_of_the_user(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    rows = wrap_module(net, "0,backbone").embed(images(32), ["0", "backbone"])
    assert_close(rows["0"], net[0](images(32)).mean(dim=(2, 3)).detach())

    spectrograms = torch.randn(2, 1, 5, 9)  # whose channels may be as many as rows are left
    audio = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    rows = wrap_module(audio, "0", (1, 5, 9)).embed(spectrograms, ["0"])
    assert_close(rows["0"], audio[0](spectrograms).mean(dim=(2, 3)).detach())

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.twice = nn.Linear(3, 4), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.twice(self.embed(x.flatten(2).transpose(1, 2)))).mean(dim=1)

    loaded = wrap_module(Tokens(), "embed")
    assert loaded.description.assumptions[0].startswith("embed: mean over all tokens")
    with raises(CheckpointError, "layer-shape"):  # of two outputs neither is the layer's
        wrap_module(Tokens(), "twice")
    with raises(CheckpointError, "no-such-layer") as raised:
        wrap_module(Tokens(), "embeds")
    assert "did you mean embed" in str(raised.value)


def test_one_file_has_the_named_layers_alone_in_order_of_depth(runs: Path, tmp_path: Path) -> None:
    checkpoint_path, out = runs / "v0.pth", tmp_path / "f.h5"
    settings = ExtractSettings(output=out, **small(runs, layer=NAMED, n_samples=12))
    extract_checkpoint(checkpoint_path, settings)
    with h5py.File(out) as file:
        assert sorted(file["embeddings"]) == sorted(BY_DEPTH)
        stored = {name: file[f"embeddings/{name}/views"][:] for name in BY_DEPTH}
        provenance = json.loads(file.attrs["provenance"])
    assert provenance["layers"] == BY_DEPTH
    assert provenance["pooling"] == {"blocks.0": "class token", "blocks.2": "class token"}
    alone = ExtractSettings(output=tmp_path / "b.h5", **small(runs, layer="blocks.2", n_samples=12))
    extract_checkpoint(checkpoint_path, alone)
    with h5py.File(tmp_path / "b.h5") as file:
        assert "backbone" not in file["embeddings"]
        np.testing.assert_array_equal(file["embeddings/blocks.2/views"][:], stored["blocks.2"])
    records = json.loads(scores_report.to_json(score_file(out, ScoreSettings(device="cpu"))))
    assert [(record["layer"], record["depth"]) for record in records] == [
        *zip(BY_DEPTH, (1, 2, 3), strict=True)
    ]
    (one,) = score_file(out, ScoreSettings(device="cpu", layer="blocks.2"))
    assert one.lidar == records[1]["lidar"]


def test_rank_shows_the_profile_and_orders_by_the_last_named(runs: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def ranked(layer: str, **more: Any) -> Any:
        settings = RankSettings(
            cache=cache, **small(runs, layer=layer, **{"n_samples": 16, **more})
        )
        return rank_directory([runs], settings)

    ranking = ranked(NAMED)
    (group,) = ranking.groups
    assert group.common["layer"] == "blocks.0"
    document = json.loads(report.to_json(ranking))
    assert document["depth"]
    for row, record in zip(group.rows, document["depth"], strict=True):
        scores = score_file(Path(row.score.file), ScoreSettings(device="cpu"))
        assert record["path"] == row.path
        assert [one["layer"] for one in record["layers"]] == BY_DEPTH
        assert [one["value"] for one in record["layers"]] == pytest.approx(
            [score.lidar for score in scores], rel=1e-9
        )
        assert row.value == record["layers"][0]["value"]
    assert "depth" in str(ranking_page(ranking).body)
    assert ranked(NAMED).embedded == 0
    assert "depth" not in json.loads(report.to_json(ranked("blocks.2")))
    larger = ranked(NAMED, n_samples=24).groups[0].rows[0]  # begins with the rows of 16
    settings = ExtractSettings(output=tmp_path / "24.h5", **small(runs, layer=NAMED, n_samples=24))
    extract_checkpoint(Path(larger.path), settings)
    with h5py.File(larger.score.file) as grown, h5py.File(tmp_path / "24.h5") as whole:
        for name in BY_DEPTH:
            for part in ("views", "clean", "crc32"):
                dataset = f"embeddings/{name}/{part}"
                np.testing.assert_array_equal(grown[dataset][:], whole[dataset][:])
    with raises(SettingsError, "several-layers"):
        ranked(NAMED, store=False)


def test_names_are_listed_and_a_wrong_one_is_refused(runs: Path, tmp_path: Path) -> None:
    path = runs / "v0.pth"
    (branch,) = inspect_file(path, InspectSettings()).branches
    assert branch.inner == ("blocks.0 ... blocks.2",)
    resnet = checkpoint(tmp_path / "r.pt")
    assert "layer1 ... layer4" in inspect_file(resnet, InspectSettings()).branches[0].inner
    with raises(CheckpointError, "no-such-layer") as raised:
        open_checkpoint(path, layer="block.1")
    assert "blocks.1" in str(raised.value)
    with raises(CheckpointError, "no-such-layer") as raised:
        open_checkpoint(path, layer="zzzz")
    assert "blocks.0 ... blocks.2" in str(raised.value)
    compiled = ExtractSettings(
        output=tmp_path / "c.h5", **small(runs, layer="blocks.1", compile=True)
    )
    with raises(SettingsError, "compile-inner-layers"):
        extract_checkpoint(path, compiled)
