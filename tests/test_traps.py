"""Traps of other people's layouts that no fixture shows; test_formats.py has the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from formats import FIXTURES
from formats_vissl import vissl_tree
from layouts import Weights, part
from literal import assert_close, images
from raising import raises
from torch import Tensor, nn

from lidar_cli.checkpoints.detect import detect
from lidar_cli.checkpoints.open import build, open_checkpoint
from lidar_cli.checkpoints.reading.read import as_dict, read_contents
from lidar_cli.errors import CheckpointError

# LayerNorm's eps and how positions are resized, neither of which is in a file of weights. Where
# activations are near 1, an eps of 1e-6 for 1e-12 shows in no embedding, so modules are asked.
CONSTANTS = {
    "dino-vit": (1e-6, "antialias", 0.1),
    "dinov2-hub": (1e-6, "antialias", 0.1),
    "dinov2-hub-registers": (1e-6, "antialias", 0.0),
    "dinov2-dump": (1e-6, "antialias", 0.1),
    "ijepa": (1e-6, "antialias", 0.0),
    "mae": (1e-6, "antialias", 0.0),
    "moco-v3-vit": (1e-6, "antialias", 0.0),
    "vissl-dino": (1e-6, "antialias", 0.0),
    "timm-vit": (1e-6, "antialias", 0.0),
    "torchvision-vit": (1e-6, "antialias", 0.0),
    "data2vec-fork": (1e-6, None, None),
    "data2vec-fairseq": (1e-5, None, None),
    "data2vec2-base": (1e-6, None, None),
    "hf-vit": (1e-12, "plain", 0.0),
    "hf-ijepa": (1e-6, "plain", 0.0),
    "hf-dinov2": (1e-6, "plain", 0.0),
    "hf-dinov2-registers": (1e-6, "antialias", 0.0),
    "hf-data2vec": (1e-12, None, None),
}


def backbone(path: Path, config: bool = True) -> Any:
    contents = read_contents(path)
    actual = contents.config if config else None
    _, modules = detect(path, as_dict(contents), config=actual)
    return build(modules["backbone"].spec)


def norms(module: nn.Module) -> set[float]:
    return {part.eps for part in module.modules() if isinstance(part, nn.LayerNorm)}


@pytest.mark.parametrize("name", CONSTANTS)
def test_eps_and_resizing_are_the_familys(name: str, tmp_path: Path) -> None:
    eps, resize, offset = CONSTANTS[name]
    path = FIXTURES[name]().save(tmp_path)
    module = backbone(path)
    assert norms(module) == {eps}
    assert getattr(module, "resize", None) == resize
    assert getattr(module, "offset", None) == offset
    if not name.startswith("hf-"):
        return
    assert norms(backbone(path, config=False)) == {eps}  # the published files' too


EPS_OF_OTHERS = {  # as their code builds them; every other system has 1e-6
    "data2vec-fairseq": {1e-5},  # fairseq/modules: LayerNorm's default
    "hf-vit": {1e-12},  # ViTConfig
    "hf-data2vec": {1e-12},  # Data2VecVisionConfig
    "hf-beit": {1e-12},  # BeitConfig
    "hf-dinov2-swiglu": {1e-3},  # in the config.json of its folder, as those of DINOv3
    "hf-dinov3": {1e-3},
    "hf-dinov3-convnext": {1e-3},
    "dinov3-hub": {1e-5},
    "hf-swin": {1e-2, 1e-5},  # config.json; of patches and merging torch's default
    "hf-swin-plain": {1e-5},  # SwinConfig
    "hf-vitmae": {1e-12},  # ViTMAEConfig
    "hf-vitmae-decoder": {1e-12},
    "hf-clip": {1e-3},  # config.json
    "openai-clip": {1e-5},
    "hf-convnext": {1e-2, 1e-6},  # config.json, of the last norm
    "hf-convnextv2": {1e-12, 1e-6},  # ConvNextV2Config, of the last norm
    **{f"{name}-swin": {1e-5} for name in ("microsoft", "timm", "simmim", "solo-learn")},
}


def test_eps_of_every_format_is_that_of_its_code(tmp_path: Path) -> None:
    """Of the backbone and of the predictor; where activations are near 1 no embedding shows it."""
    with_layer_norm = set()
    for name, make in FIXTURES.items():
        fixture = make()
        (tmp_path / name).mkdir()
        path = fixture.save(tmp_path / name)
        first = {layer: branch for branch, layer in reversed(fixture.embed)}  # layer -> branch
        for branch in dict.fromkeys(first.values()):
            loaded = open_checkpoint(path, branch=branch)
            for layer, module in loaded.modules.items():
                eps = {part.eps for part in module.modules() if isinstance(part, nn.LayerNorm)}
                assert eps <= EPS_OF_OTHERS.get(name, {1e-6}), (name, branch, layer)
                with_layer_norm |= {name} if eps else set()
                batch_norms = (nn.BatchNorm1d, nn.BatchNorm2d)
                eps = {part.eps for part in module.modules() if isinstance(part, batch_norms)}
                assert eps <= {1e-3 if "wide" in name else 1e-5, 1e-5}, (name, branch, layer)
    assert with_layer_norm > CONSTANTS.keys()


@torch.no_grad()
@pytest.mark.parametrize("name", ["mae", "timm-vit"])
def test_eps_shows_where_activations_are_small(name: str, tmp_path: Path) -> None:
    """Tokens of variance 1e-6: with another eps their norm is off by a third, not by 1e-6."""
    fixture = FIXTURES[name]()
    w = Weights.of({k: t.clone() for k, t in fixture.tree.get("model", fixture.tree).items()})
    small = ["patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed"]
    added = ("attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias")
    for key in (*small, *(f"blocks.{at}.{key}" for at in range(2) for key in added)):
        w[key] *= 1e-3
    torch.save({"model": dict(w)} if "model" in fixture.tree else dict(w), tmp_path / "a.pth")
    loaded, expected = open_checkpoint(tmp_path / "a.pth"), w.run_vit("", images(32))
    assert_close(loaded.embed(images(32), ["backbone"])["backbone"], expected, 1e-4)
    for module in loaded.modules["backbone"].modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    other = loaded.embed(images(32), ["backbone"])["backbone"]
    assert (other - expected).abs().max() > 0.1


@torch.no_grad()
def test_dino_resizes_with_its_offset(tmp_path: Path) -> None:
    """(new + 0.1) / old, by torch's own bicubic, where others go by the new size alone."""
    w = Weights.of({f"teacher.{n}": t for n, t in FIXTURES["dino-vit"]().tree["teacher"].items()})
    name = "teacher.backbone.pos_embed"
    first, grid = w[name][:, :1], w[name][:, 1:].reshape(1, 4, 4, 192).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(grid, scale_factor=6.1 / 4, mode="bicubic")
    w[name] = torch.cat([first, resized.permute(0, 2, 3, 1).reshape(1, 36, 192)], dim=1)
    loaded = open_checkpoint(FIXTURES["dino-vit"]().save(tmp_path))
    loaded.set_image_size(48)
    embeddings = loaded.embed(images(48), ["backbone"])["backbone"]
    assert_close(embeddings, w.run_vit("teacher.backbone.", images(48)))


def simclr_trunk() -> Weights:
    w = Weights()
    w.resnet("trunk._feature_blocks.")
    w.linear("heads.0.clf.0", 16, 16)
    w.linear("heads.1.clf.0", 16, 12)
    return w


@torch.no_grad()
def test_vissl_of_a_feature_extractor_has_another_prefix(tmp_path: Path) -> None:
    w = simclr_trunk()
    renamed = Weights.of({n.replace("trunk.", "trunk.base_model."): t for n, t in w.items()})
    torch.save(vissl_tree(renamed), tmp_path / "a.torch")
    loaded = open_checkpoint(tmp_path / "a.torch")
    assert loaded.description.format == "vissl-simclr"
    embeddings = loaded.embed(images(32), ["backbone"])["backbone"]
    assert_close(embeddings, w.run_resnet("trunk._feature_blocks.", images(32)))


def without_type(w: Weights) -> dict[str, Any]:
    return {name: value for name, value in vissl_tree(w).items() if name != "type"}


def test_vissl_of_2020_has_no_type(tmp_path: Path) -> None:
    torch.save(without_type(simclr_trunk()), tmp_path / "a.torch")
    assert open_checkpoint(tmp_path / "a.torch").description.format == "vissl-simclr"


@pytest.mark.parametrize("container", ["model_state_dict", ""])
@torch.no_grad()
def test_vissl_trunks_saved_alone_open_by_their_names(container: str, tmp_path: Path) -> None:
    w = simclr_trunk()
    trunk = part(w, "trunk.")
    torch.save({container: trunk} if container else trunk, tmp_path / "a.torch")
    embeddings = open_checkpoint(tmp_path / "a.torch").embed(images(32), ["backbone"])["backbone"]
    assert_close(embeddings, w.run_resnet("trunk._feature_blocks.", images(32)))


@pytest.mark.parametrize("name", ["moco-v1", "moco-v2", "moco-v3-vit", "vicreg", "swav-released"])
def test_wrappers_names_may_be_absent(name: str, tmp_path: Path) -> None:
    """Some files were saved from the module inside DistributedDataParallel."""

    def bare(state: dict[str, Any]) -> dict[str, Any]:
        return {key.removeprefix("module."): value for key, value in state.items()}

    tree = bare(FIXTURES[name]().tree)
    for container in ("state_dict", "model"):
        if container in tree:
            tree[container] = bare(tree[container])
    torch.save(tree, tmp_path / "a.pt")
    assert open_checkpoint(tmp_path / "a.pt").description.format == FIXTURES[name]().format


def test_a_file_of_beit_itself_is_not_taken_for_data2vec(tmp_path: Path) -> None:
    """It predicts visual words with a head of the same name."""
    tree = dict(FIXTURES["data2vec-fork"]().tree)
    state = dict(tree["model"])
    state["lm_head.weight"], state["lm_head.bias"] = torch.ones(50, 192), torch.ones(50)
    torch.save({"model": state, "epoch": 799}, tmp_path / "a.pth")
    assert open_checkpoint(tmp_path / "a.pth").description.format == "BEiT state dict"


@torch.no_grad()
def test_data2vec_without_its_average_has_one_branch(tmp_path: Path) -> None:
    for name, container in (("data2vec-fork", "model_ema"), ("data2vec2-base", "_ema")):
        fixture = FIXTURES[name]()
        tree = {key: value for key, value in fixture.tree.items() if key != container}
        tree["model"] = {k: t for k, t in tree["model"].items() if k != container}
        torch.save(tree, tmp_path / "a.pt")
        loaded = open_checkpoint(tmp_path / "a.pt")
        assert loaded.description.branches == ("student",)
        with raises(CheckpointError, "no-branch"):
            open_checkpoint(tmp_path / "a.pt", branch="teacher")


def test_the_average_of_fairseq_must_be_whole(tmp_path: Path) -> None:
    tree = dict(FIXTURES["data2vec-fairseq"]().tree)
    tree["model"] = dict(tree["model"])
    ema: dict[str, Tensor] = dict(tree["model"]["_ema"])
    del ema["blocks.1.norm2.bias"]
    tree["model"]["_ema"] = ema
    torch.save(tree, tmp_path / "a.pt")
    assert open_checkpoint(tmp_path / "a.pt").description.branch == "student"
    with pytest.raises(CheckpointError, match=r"blocks\.1\.norm2\.bias missing"):
        open_checkpoint(tmp_path / "a.pt", branch="teacher")


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("proj.12.weight", r"stem of the ViT lacks patch_embed\.proj\.12\.weight; expected"),
        ("proj.4.running_var", r"proj\.4\.running_var missing"),
    ],
)
def test_a_stem_that_is_not_whole_is_named(lost: str, message: str, tmp_path: Path) -> None:
    state = dict(FIXTURES["moco-v3-conv"]().tree["state_dict"])
    del state[f"module.base_encoder.patch_embed.{lost}"]
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "a.pt")
