"""Several sets of weights in a file that no format describes, and --prefix, which names one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from formats import FIXTURES
from make import CHANNELS, image_folder, lidar_here, tiny_state_dict
from raising import raises
from torch import Tensor

from lidar_cli.checkpoints.branch_words import AUTO, OFFERED, usual_branch
from lidar_cli.checkpoints.detect import detect
from lidar_cli.checkpoints.models.weights import fill
from lidar_cli.checkpoints.open import build, open_checkpoint
from lidar_cli.errors import CheckpointError, LidarError, SettingsError

Tensors = dict[str, Tensor]
TRAINED, AVERAGED = tiny_state_dict(), tiny_state_dict()
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def at(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def mlp(seed: int, into: int = CHANNELS[-1]) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{i}.{part}": torch.randn(*shape, generator=generator)
        for i in (0, 2)
        for part, shape in (("weight", (into, into)), ("bias", (into,)))
    }


def saved(path: Path, tree: dict[str, Any]) -> Path:
    torch.save(tree, path)
    return path


def embedding(path: Path, layer: str = "backbone", **options: Any) -> Tensor:
    return open_checkpoint(path, **options).embed(IMAGES, [layer])[layer]


def alone(tensors: Tensors) -> Tensor:
    """The embedding of a backbone, without a file."""
    (assignment,) = detect(Path(), tensors)[1].values()
    module = build(assignment.spec)
    fill(module, tensors, "")
    return module(IMAGES)


PAIRS = {  # as training scripts save two networks, in one state dict or in several
    "byol": ("online_encoder.", "target_encoder."),
    "net": ("net.", "target_net."),
    "moco": ("encoder.", "encoder_k."),
    "model": ("model.", "model_ema."),
    "lightning": ("backbone.", "momentum_backbone."),
    "flat": ("", "ema."),
    "nested": ("student.backbone.", "teacher.backbone."),
}


@pytest.mark.parametrize(
    ("word", "nested"), [*((word, False) for word in PAIRS), ("net", True), ("model", True)]
)
def test_two_sets_are_named_one_is_chosen_and_the_other_selectable(
    word: str, nested: bool, tmp_path: Path
) -> None:
    trained, averaged = PAIRS[word]
    tree: dict[str, Any] = {"epoch": 3}
    for prefix, tensors in ((trained, TRAINED), (averaged, AVERAGED)):
        head, _, inside = prefix.partition(".")
        tree |= {head: at(inside, tensors)} if nested and prefix else at(prefix, tensors)
    path = saved(tmp_path / "a.pt", tree)
    loaded = open_checkpoint(path)
    description = loaded.description
    assert torch.equal(loaded.embed(IMAGES, ["backbone"])["backbone"], alone(TRAINED))
    assert torch.equal(embedding(path, branch=averaged.partition(".")[0]), alone(AVERAGED))
    assert len(description.branches) == 2
    assert averaged.partition(".")[0] in description.ignored
    assert description.branches[1] == "teacher"
    assert "--branch teacher" in description.assumed_text


def test_each_branch_has_its_own_projector(tmp_path: Path) -> None:
    tree = {
        **at("encoder.", TRAINED), **at("projector.", mlp(1)), **at("predictor.", mlp(2)),
        **at("momentum_encoder.", AVERAGED), **at("momentum_projector.", mlp(3)),
        "queue": torch.ones(6, 9), "queue_ptr": torch.zeros(1),
    }  # fmt: skip
    path = saved(tmp_path / "a.pt", {"state_dict": tree})
    pairs = {
        "student": {**at("encoder.", TRAINED), **at("projector.", mlp(1))},
        "teacher": {**at("encoder.", AVERAGED), **at("projector.", mlp(3))},
    }
    for branch, weights in pairs.items():
        single = saved(tmp_path / "alone.pt", weights)
        assert torch.equal(
            embedding(path, "projector", branch=branch), embedding(single, "projector")
        )
    ignored = open_checkpoint(path, branch="teacher").description.ignored
    assert set(ignored) == {"encoder", "projector", "predictor", "queue", "queue_ptr"}


def test_more_than_two_sets_have_their_own_words(tmp_path: Path) -> None:
    sets = {"student.": TRAINED, "teacher.": AVERAGED, "model_ema.": tiny_state_dict()}
    tree: Tensors = {}
    for prefix, tensors in sets.items():
        tree |= at(prefix, tensors)
    path = saved(tmp_path / "a.pt", tree)
    assert open_checkpoint(path).description.branches == ("student", "teacher", "model_ema")
    for prefix, tensors in sets.items():
        assert torch.equal(embedding(path, branch=prefix[:-1]), alone(tensors))


def test_a_prefix_chooses_the_backbone_and_the_projector(tmp_path: Path) -> None:
    tree = {
        **at("module.left.backbone.", TRAINED), **at("module.left.proj_a.", mlp(1)),
        **at("module.left.projector.", mlp(2)), **at("module.right.", AVERAGED),
    }  # fmt: skip
    path = saved(tmp_path / "a.pt", {"model": tree, "opt": {"x.weight": torch.ones(2, 2)}})
    single = saved(tmp_path / "0.pt", {**TRAINED, **at("projector.", mlp(1))})
    chosen = {"prefix": "left.backbone", "projector_prefix": "module.left.proj_a."}
    assert torch.equal(embedding(path, "projector", **chosen), embedding(single, "projector"))
    description = open_checkpoint(path, **chosen).description
    assert description.selected == {
        "prefix": "left.backbone.",
        "projector_prefix": "left.proj_a.",
    }
    assert description.ignored == ("right", "left.projector (not read)", "opt")
    none = open_checkpoint(path, prefix="left.backbone.", projector_prefix="none")
    assert none.layers == ("backbone",)
    assert open_checkpoint(path, prefix="left.backbone.").layers == ("backbone", "projector")
    assert torch.equal(embedding(path, prefix="model.right"), embedding(path, prefix="right."))


def test_averages_in_other_dicts_are_selected_by_their_words(tmp_path: Path) -> None:
    third = tiny_state_dict()
    tree = {"model": TRAINED, "model_ema": AVERAGED, "teacher": third}
    path = saved(tmp_path / "a.pt", tree)
    description = open_checkpoint(path).description
    assert description.branches == ("encoder", "model_ema", "teacher")
    assert description.ignored == ("model_ema", "teacher")
    words = {"student": TRAINED, "model_ema": AVERAGED, "ema": AVERAGED, "teacher": third}
    for word, tensors in words.items():
        assert torch.equal(embedding(path, branch=word), alone(tensors))
    ignored = open_checkpoint(path, branch="ema").description.ignored
    assert ignored == ("teacher", "model (not averaged)")
    for key in ("teacher_model", "swa_state_dict", "model_ema_state_dict"):
        path = saved(tmp_path / "b.pt", {"model": TRAINED, key: AVERAGED})
        assert torch.equal(embedding(path), alone(TRAINED))
        assert torch.equal(embedding(path, branch="teacher"), alone(AVERAGED))


def test_each_word_that_completion_offers_names_a_branch() -> None:
    assert {usual_branch(word) for word in OFFERED if word != AUTO} == {"student", "teacher"}


def test_a_file_names_its_average_by_any_word_for_one(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {**at("net.", TRAINED), **at("swa.", AVERAGED)})
    assert torch.equal(embedding(path, branch="swa"), alone(AVERAGED))
    second = tiny_state_dict()
    path = saved(tmp_path / "b.pt", {"model": TRAINED, "ema": AVERAGED, "swa_weights": second})
    assert torch.equal(embedding(path, branch="swa_weights"), alone(second))
    note = "several sets of weights: the trained one, not those in ema, swa_weights (--branch ema)"
    assert note in open_checkpoint(path).description.assumptions


def test_the_word_of_a_branch_of_another_format_is_refused(tmp_path: Path) -> None:
    for tree in (FIXTURES["moco-v3-vit"]().tree, TRAINED):
        path = saved(tmp_path / "a.pt", tree)
        with raises(CheckpointError, "no-branch"):
            open_checkpoint(path, branch="gram")


def test_a_transformer_of_texts_is_no_second_backbone(tmp_path: Path) -> None:
    text = {"blocks.0.attn.qkv.weight": torch.ones(24, 8), "blocks.0.norm1.bias": torch.ones(8)}
    path = saved(tmp_path / "a.pt", {**at("a_text.", text), **at("visual.", TRAINED)})
    with raises(CheckpointError, "unknown-entries") as raised:
        open_checkpoint(path)
    assert str(raised.value).endswith("--prefix visual.")
    for options in ({"prefix": "visual."}, {"layer": "backbone"}):
        assert open_checkpoint(path, **options).description.ignored == ("a_text (not read)",)


def test_an_average_in_a_list_is_named_as_unused(tmp_path: Path) -> None:
    average = {"shadow_params": list(AVERAGED.values()), "decay": 0.9}
    for tree in ({"model": TRAINED, "ema": average}, {**TRAINED, "ema": average}):
        path = saved(tmp_path / "a.pt", tree)
        assert open_checkpoint(path).description.ignored == ("ema.shadow_params",)


@pytest.mark.parametrize("word", ["student", "online_encoder"])
def test_a_target_alone_is_no_trained_branch(word: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", at("target.backbone.", AVERAGED))
    with raises(CheckpointError, "no-branch"):
        open_checkpoint(path, branch=word)
    assert torch.equal(embedding(path), embedding(path, branch="target"))


def test_a_prefix_takes_no_projector_of_another_set(tmp_path: Path) -> None:
    tree = {**at("net.", TRAINED), **at("projector.", mlp(1)), **at("target_net.", AVERAGED)}
    path = saved(tmp_path / "a.pt", tree)
    assert open_checkpoint(path, prefix="net.").layers == ("backbone", "projector")
    target = open_checkpoint(path, prefix="target_net.")
    assert (target.layers, target.description.ignored) == (("backbone",), ("net", "projector"))
    for options in ({"prefix": "target_net."}, {"branch": "teacher"}):
        named = open_checkpoint(path, **options, projector_prefix="projector.")
        assert named.layers == ("backbone", "projector")
    path = saved(tmp_path / "b.pt", {**tree, **at("momentum_projector.", mlp(2))})
    single = saved(tmp_path / "0.pt", {**AVERAGED, **at("projector.", mlp(2))})
    embedded = embedding(path, "projector", prefix="target_net.")
    assert torch.equal(embedded, embedding(single, "projector"))


def test_the_top_level_is_named_as_a_prefix(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {**TRAINED, **at("foo.", AVERAGED)})
    assert torch.equal(embedding(path, prefix="none"), alone(TRAINED))
    assert open_checkpoint(path, prefix="none").description.ignored == ("foo",)
    assert "" not in open_checkpoint(path, prefix="foo.").description.ignored
    with raises(CheckpointError, "unknown-entries") as raised:
        open_checkpoint(path)
    assert str(raised.value).endswith("or take the backbone alone: --prefix none")


def test_a_named_projector_may_have_the_name_of_a_classifier(tmp_path: Path) -> None:
    logits = {"weight": torch.randn(5, CHANNELS[-1]), "bias": torch.randn(5)}
    path = saved(tmp_path / "a.pt", at("backbone.", {**TRAINED, **at("fc.", logits)}))
    assert open_checkpoint(path).layers == ("backbone",)
    embedded = embedding(path, "projector", projector_prefix="backbone.fc")
    expected = embedding(path) @ logits["weight"].T + logits["bias"]
    assert torch.allclose(embedded, expected, atol=1e-5)


WRONG: list[tuple[dict[str, Any], type[LidarError], str, str]] = [
    ({}, CheckpointError, "several-backbones", r"left\.backbone\., right\..*--prefix left\.ba"),
    ({"prefix": "lift.backbone"}, CheckpointError, "wrong-prefix", r"--prefix left\.backbone\.$"),
    ({"prefix": "left"}, CheckpointError, "wrong-prefix", r"did you mean --prefix left\.backbone"),
    ({"prefix": "right.", "projector_prefix": "left.projectr"}, CheckpointError, "wrong-prefix",
     r"--projector-prefix none$"),
    ({"prefix": "left.backbone.", "projector_prefix": "left.projectr"}, CheckpointError,
     "wrong-prefix", r"--projector-prefix left\.projector\.$"),
    ({"prefix": "left.backbone."}, CheckpointError, "several-projectors",
     r"choose it, or none: --projector-prefix left\.head\.$"),
    ({"prefix": "right.", "branch": "teacher"}, SettingsError, "prefix-and-branch", "leave one"),
    ({"prefix": "right.", "format": "dino"}, SettingsError, "prefix-and-format", "leave one"),
    ({"prefix": "right.", "model": "a:b"}, SettingsError, "model-and-prefix", "leave --prefix"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "kind", "code", "words"), WRONG)
def test_refusals_end_with_the_option_to_type(
    options: dict[str, Any], kind: type[LidarError], code: str, words: str, tmp_path: Path
) -> None:
    tree = {
        **at("left.backbone.", TRAINED), **at("left.head.", mlp(1)),
        **at("left.projector.", mlp(2)), **at("right.", AVERAGED),
    }  # fmt: skip
    path = saved(tmp_path / "a.pt", tree)
    with raises(kind, code) as raised:
        open_checkpoint(path, **options)
    assert re.search(words, str(raised.value))


def test_the_backbone_alone_needs_no_head(tmp_path: Path) -> None:
    odd = {"odd_head.norm.scale": torch.ones(2, 3, 4), "predictor.x.weight": torch.ones(2, 2)}
    for tree in ({**at("encoder.", TRAINED), **odd}, {**TRAINED, **odd}):
        path = saved(tmp_path / "a.pt", tree)
        with raises(CheckpointError, "unknown-entries") as raised:
            open_checkpoint(path)
        assert re.search(r"--prefix (encoder\.|none)$", str(raised.value))
        description = open_checkpoint(path, layer="backbone").description
        assert set(description.ignored) == {"odd_head (not read)", "predictor (not read)"}
    two = {**TRAINED, **at("projector.", mlp(1)), **at("head.", mlp(2))}
    path = saved(tmp_path / "b.pt", two)
    description = open_checkpoint(path, layer="backbone").description
    assert set(description.ignored) == {"projector (not read)", "head (not read)"}


def test_inspect_takes_the_layer_that_a_refusal_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    odd = {"projector.odd.scale": torch.ones(2, 3, 4)}
    path = saved(tmp_path / "a.pt", {**at("encoder.", TRAINED), **odd})

    def inspect(*more: str) -> Any:
        return lidar_here("inspect", path, *more, monkeypatch=monkeypatch, capfd=capfd)

    assert inspect().stderr.rstrip().endswith("--layer backbone")
    for option in (("--layer", "backbone"), ("--projector-prefix", "none")):
        done = inspect(*option)
        assert done.returncode == 0
        assert "projector (not read)" in done.stdout


def test_a_tensor_that_may_be_in_the_backbone_is_never_left_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", at("encoder.", {**TRAINED, "gate.weight": torch.ones(2, 2)}))
    for options in ({"layer": "backbone"}, {"prefix": "encoder."}):
        with raises(CheckpointError, "unknown-entries"):
            open_checkpoint(path, **options)


def test_rank_takes_a_prefix_and_a_file_without_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    images, runs = image_folder(tmp_path / "images", 10), tmp_path / "runs"
    runs.mkdir()
    saved(runs / "a.pt", {**at("left.", TRAINED), **at("right.", AVERAGED)})
    saved(runs / "b.pt", tiny_state_dict())
    options = ["--data", images, "-n", 10, "-q", 2, "--image-size", 32, "--device", "cpu"]

    def rank(*more: str) -> Any:
        done = lidar_here(
            "rank", runs, *options, *more, "--json", monkeypatch=monkeypatch, capfd=capfd
        )
        assert done.returncode == 4, done.stderr
        return json.loads(done.stdout)

    right, left = rank("--prefix", "right."), rank("--prefix", "left")
    (failed,) = right["failed"]
    assert failed["path"].endswith("b.pt")
    assert failed["reason"].startswith("--prefix right.: no tensor begins so")
    values = [one["checkpoints"][0]["metrics"]["rankme"] for one in (right, left)]
    assert values[0] != values[1]
