"""Which method trained a checkpoint of a library: its views, by names, shapes and arguments."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from formats import FIXTURES
from layouts import Weights, describe, lightning

from lidar_cli.checkpoints.formats import FORMATS
from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.reading.read import read_checkpoint
from lidar_cli.checkpoints.shapes.spec import CheckpointDescription
from lidar_cli.extraction.plan import choose_recipe
from lidar_cli.settings import ExtractSettings
from lidar_cli.views.methods import find_recipe

# A head as text, layer after layer: L and l are Linear layers with and without bias, B and b
# BatchNorms with and without weights, '-' is an activation.
BYOL = ("LB-L", "LB-L")
SOLO: dict[
    str, tuple[str, str, bool, dict[str, tuple[int, ...]]]
] = {  # method -> projector, predictor, whether there is a momentum branch, other tensors
    "simclr": ("L-L", "", False, {}),
    "supcon": ("L-L", "", False, {}),
    "barlow_twins": ("LB-LB-L", "", False, {}),
    "vicreg": ("LB-LB-L", "", False, {}),
    "vibcreg": ("LB-LB-L", "", False, {}),
    "simsiam": ("lB-lB-Lb", "lB-L", False, {}),
    "nnsiam": ("lB-lB-Lb", "lB-L", False, {"queue": (16, 12), "queue_ptr": (1,)}),
    "nnclr": ("LB-LB-LB", "LB-L", False, {"queue": (16, 12), "queue_ptr": (1,)}),
    "byol": (*BYOL, True, {}),
    "nnbyol": (*BYOL, True, {"queue": (16, 12), "queue_y": (16,)}),
    "mocov3": ("lB-lb", "lB-l", True, {}),
    "mocov2plus": ("L-L", "", True, {"queue": (2, 12, 16)}),
    "ressl": ("L-L", "", True, {"queue": (16, 12)}),
    "swav": ("LB-L", "", False, {"prototypes.weight_g": (30, 1), "prototypes.weight_v": (30, 12)}),
    "deepclusterv2": ("LB-L", "", False, {f"prototypes.{i}.weight": (30, 12) for i in range(3)}),
    "wmse": ("LB-L", "", False, {}),
}
SOLO_VIEWS = {
    "simclr": "simclr", "supcon": "simclr", "wmse": "simclr", "barlow_twins": "barlow",
    "simsiam": "byol", "nnsiam": "byol", "nnclr": "byol", "byol": "byol", "nnbyol": "byol",
    "mocov3": "moco-v3", "mocov2plus": "moco-v2", "ressl": "moco-v2", "swav": "swav",
    "deepclusterv2": "swav",
}  # fmt: skip
AMBIGUOUS = ("vicreg", "vibcreg")  # whose names are Barlow Twins' too
LIGHTLY: dict[
    str, tuple[str, str, dict[str, tuple[int, ...]], str]
] = {  # method -> projection head, prediction head, other tensors, views
    "simclr": ("lB-lB", "", {}, "simclr"),
    "simclr of three layers": ("lB-lB-lB", "", {}, "simclr"),
    "simclr without norm": ("L-L", "", {}, "simclr"),
    "barlow": ("lB-lB-L", "", {}, "barlow"),
    "vicreg": ("lB-L", "", {}, "vicreg"),
    "swav": ("lB-L", "", {"prototypes.heads.0.weight": (30, 12)}, "swav"),
    "simsiam": ("lB-lB-lb", "lB-L", {}, "moco-v2"),
    "nnclr": ("lB-lB-lB", "lB-L", {}, "simclr"),
}


def add_head(w: Weights, prefix: str, layers: str, into: int = 16, out: int = 12) -> None:
    last = max((at for at, kind in enumerate(layers) if kind in "Ll"), default=0)
    width = into
    for at, kind in enumerate(layers):
        if kind in "Ll":
            w.linear(f"{prefix}{at}", width, out if at == last else 24, bias=kind == "L")
            width = out if at == last else 24
        elif kind in "Bb":
            w.bn(f"{prefix}{at}", width, affine=kind == "B")


def solo(method: str, trunk: str = "backbone", kernel: int = 7) -> Weights:
    projector, predictor, momentum, others = SOLO[method]
    w = Weights()
    for branch in ("", "momentum_") if momentum else ("",):
        w.resnet(f"{branch}{trunk}.", kernel=kernel)
        add_head(w, f"{branch}projector.", projector)
    add_head(w, "predictor.", predictor, into=12)
    w.linear("classifier", 16, 10)
    for name, shape in others.items():
        w.normal(name, *shape)
    return w


def described(folder: Path, weights: Weights, **arguments: Any) -> CheckpointDescription:
    path = folder / "a.ckpt"
    torch.save(lightning(dict(weights)), path)
    if arguments:
        (folder / "args.json").write_text(json.dumps(arguments))
    return describe(path, read_checkpoint(path))


def assumed(desc: CheckpointDescription, word: str) -> list[str]:
    return [note for note in desc.assumptions if word in note]


@pytest.mark.parametrize("trunk", ["backbone", "encoder"])
@pytest.mark.parametrize("method", SOLO)
def test_views_of_solo_learns_methods(method: str, trunk: str, tmp_path: Path) -> None:
    desc = described(tmp_path, solo(method, trunk))
    assert desc.format == {"backbone": "solo-learn", "encoder": "solo-learn-old"}[trunk]
    if method in AMBIGUOUS:
        assert desc.recipe == "barlow"
    else:
        assert desc.recipe == SOLO_VIEWS[method]
    open_names = method in (*AMBIGUOUS, "barlow_twins")
    assert bool(assumed(desc, "views of")) is open_names
    if open_names:
        assert "vicreg or vibcreg" in assumed(desc, "views of barlow")[0]
    assert choose_recipe(ExtractSettings(), desc).name == desc.recipe


@pytest.mark.parametrize("method", SOLO)
def test_arguments_beside_a_checkpoint_name_the_method(method: str, tmp_path: Path) -> None:
    desc = described(tmp_path, solo(method), method=method, data={"dataset": "imagenet100"})
    assert desc.recipe == (SOLO_VIEWS | dict.fromkeys(AMBIGUOUS, "vicreg"))[method]
    assert not assumed(desc, "views of")
    assert desc.pixel_stats == "imagenet"


def test_arguments_of_another_run_decide_nothing(tmp_path: Path) -> None:
    desc = described(tmp_path, solo("byol"), method="simclr", data={"dataset": "cifar100"})
    assert (desc.recipe, desc.pixel_stats) == ("byol", "imagenet")
    desc = described(tmp_path, solo("byol", kernel=3), method=["byol"], dataset="stl10")
    assert (desc.recipe, desc.pixel_stats) == ("byol", "cifar10")


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b" " * 2**21])
def test_arguments_that_cannot_be_read_are_left_out(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "args.json").write_bytes(content)
    assert described(tmp_path, solo("vicreg")).recipe == "barlow"


def test_arguments_that_are_no_regular_file_are_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "args.json")
    assert described(tmp_path, solo("vicreg")).recipe == "barlow"


@pytest.mark.parametrize(
    ("kernel", "arguments", "stats", "open_"),
    [
        (7, {}, "imagenet", False),
        (3, {}, "cifar10", True),
        (3, {"data": {"dataset": "cifar100"}}, "cifar100", False),
        (3, {"dataset": "cifar10"}, "cifar10", False),  # as its first releases wrote them
        (7, {"data": {"dataset": "stl10"}}, "stl10", False),
        (7, {"data": {"dataset": "custom"}}, "imagenet", False),
    ],
)
def test_pixel_statistics_of_solo_learn(
    kernel: int, arguments: dict[str, Any], stats: str, open_: bool, tmp_path: Path
) -> None:
    desc = described(tmp_path, solo("simclr", kernel=kernel), **arguments)
    assert desc.pixel_stats == stats
    assert (desc.assumed["pixel_stats"].why == "usual for images this small") is open_
    recipe = choose_recipe(ExtractSettings(), desc)
    assert (recipe.mean, recipe.std) == (
        find_recipe("simclr", stats).mean,
        find_recipe("simclr", stats).std,
    )
    # What the user names wins, and so does a [recipe] table.
    assert choose_recipe(ExtractSettings(pixel_stats="unit"), desc).std == (1, 1, 1)
    table = {"base": "simclr", "std": [0.5, 0.5, 0.5]}
    assert choose_recipe(ExtractSettings(recipe=table), desc).std == (0.5, 0.5, 0.5)


def test_a_small_vit_of_solo_learn_takes_images_of_cifar(tmp_path: Path) -> None:
    path = FIXTURES["solo-learn-dino"]().save(tmp_path)
    desc = describe(path, read_checkpoint(path))
    assert (desc.image_size, desc.pixel_stats, desc.recipe) == (
        32,
        "cifar10",
        "dino",
    )
    assert desc.assumed["pixel_stats"].text("pixel_stats") == (
        "pixel_stats=cifar10 (usual for images this small)"
    )


@pytest.mark.parametrize("method", LIGHTLY)
def test_views_of_lightlys_methods(method: str, tmp_path: Path) -> None:
    projection, prediction, others, views = LIGHTLY[method]
    w = Weights()
    w.resnet("backbone.")
    add_head(w, "projection_head.layers.", projection)
    add_head(w, "prediction_head.layers.", prediction, into=12)
    for name, shape in others.items():
        w.normal(name, *shape)
    desc = described(tmp_path, w)
    assert (desc.format, desc.recipe) == ("lightly", views)
    expected = ["views of barlow, though the names may be those of vicreg too (--views)"]
    assert assumed(desc, "views of") == (expected if method == "barlow" else [])


def test_views_of_lightlys_methods_with_two_branches(tmp_path: Path) -> None:
    expected = {
        "byol": "byol", "byol-example": "byol", "tico": "byol", "moco": "moco-v2",
        "moco-query": "moco-v2", "dino": "dino", "dinov2": "dinov2", "mae": "mae",
    }  # fmt: skip
    for name, recipe in expected.items():
        path = FIXTURES[f"lightly-{name}"]().save(tmp_path)
        assert describe(path, read_checkpoint(path)).recipe == recipe, name
    for head, recipe in (("L-L", "moco-v2"), ("lB-L", "byol")):  # MoCo's and TiCo's examples
        w = Weights()
        for branch in ("", "_momentum"):
            w.resnet(f"backbone{branch}.")
            add_head(w, f"projection_head{branch}.layers.", head)
        desc = described(tmp_path, w)
        assert (desc.format, desc.recipe, desc.assumptions) == (
            "lightly-moco-example",
            recipe,
            (),
        )


def test_names_of_no_known_method_are_said(tmp_path: Path) -> None:
    w = Weights()
    w.resnet("backbone.")
    w.linear("classifier", 16, 10)
    desc = described(tmp_path, w)
    assert desc.recipe == "simclr"
    assert assumed(desc, "views of simclr, since the names fit no known method")


def test_every_dino_defaults_to_the_teacher() -> None:
    dinos = {one.name: one.branches[0].name for one in FORMATS if "dino" in one.recipe}
    assert set(dinos.values()) == {"teacher"}, dinos
    assert {"dino", "vissl-dino", "solo-learn-dino", "solo-learn-old-dino"} < dinos.keys()
    assert {"lightly-dino", "lightly-dino-example", "stable-pretraining-dino"} < dinos.keys()


def test_every_method_has_a_recipe() -> None:
    for one in FORMATS:
        for method in one.methods:
            assert find_recipe(method.recipe, "auto").name == method.recipe


@pytest.mark.parametrize("name", ["dinov2-hub", "hf-dinov2", "dinov2"])
def test_dinov2_is_embedded_at_the_size_of_its_evaluation(name: str, tmp_path: Path) -> None:
    """Its positions are those of its last phase, at 518 px; smaller ones are of training itself."""
    (one,) = (one for one in FORMATS if one.name == name)
    assert one.image_size == 224
    fixture = FIXTURES["dinov2-hub"]()
    w = Weights()
    w.update(fixture.tree)
    assert open_checkpoint(fixture.save(tmp_path)).description.image_size == 32
    w.normal("pos_embed", 1, 1 + 37**2, w["cls_token"].shape[-1], fan=1)
    path = tmp_path / "b.pth"
    torch.save(dict(w), path)
    loaded = open_checkpoint(path)
    assert loaded.description.image_size == 224
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    loaded.set_image_size(224)
    rows = loaded.embed(images, ["backbone"])["backbone"]
    assert rows.shape == (2, loaded.description.widths["backbone"])


def test_statistics_that_are_the_codes_own(tmp_path: Path) -> None:
    expected = {  # leftthomas/SimCLR: utils.py; facebookresearch/swav: src/multicropdataset.py
        "simclr-leftthomas": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "swav-released": ((0.485, 0.456, 0.406), (0.228, 0.224, 0.225)),
        "vissl-swav": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }
    for name, stats in expected.items():
        path = FIXTURES[name]().save(tmp_path)
        desc = describe(path, read_checkpoint(path))
        recipe = choose_recipe(ExtractSettings(), desc)
        assert (recipe.mean, recipe.std) == stats, name
        assert "usual" not in desc.assumed["pixel_stats"].why
