"""Every format: distinguished from all others, and embedded as its literal forward pass does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from formats import FIXTURES, descriptions
from layouts import Fixture, Weights, describe, lightning
from raising import raises
from torch import Tensor

from lidar_cli.checkpoints.detect import detect, match_format
from lidar_cli.checkpoints.families import FAMILIES, Family
from lidar_cli.checkpoints.formats import FORMATS
from lidar_cli.checkpoints.formats.format import numbered, renamed, training
from lidar_cli.checkpoints.formats.openmmlab import OPENMMLAB
from lidar_cli.checkpoints.models.weights import shapes, shapes_of
from lidar_cli.checkpoints.open import build, open_checkpoint
from lidar_cli.checkpoints.reading.read import as_dict, read_checkpoint, read_contents
from lidar_cli.checkpoints.shapes import vit
from lidar_cli.checkpoints.shapes.spec import Assumed
from lidar_cli.errors import CheckpointError, SettingsError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {}
    for name, make in FIXTURES.items():
        folder = tmp_path_factory.mktemp(name)
        paths[name] = make().save(folder)
    return paths


def pixels(size: int = 32) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(7))


def save(path: Path, tree: Any) -> Path:
    torch.save(tree, path)
    return path


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    assert expected.std() > 1e-3, "constant embeddings would hide every error"


CASES = [
    (name, branch)
    for name, make in FIXTURES.items()
    for branch in dict.fromkeys(branch for branch, _ in make().embed)
]


@pytest.mark.parametrize(("name", "branch"), CASES)
def test_embeddings_equal_the_literal_forward_pass(
    name: str, branch: str, saved: dict[str, Path]
) -> None:
    fixture = FIXTURES[name]()
    loaded = open_checkpoint(saved[name], branch=branch)
    layers = [layer for of, layer in fixture.embed if of == branch]
    assert list(loaded.layers) == layers
    embeddings = loaded.embed(pixels(fixture.size), layers)
    for layer in layers:
        assert_close(embeddings[layer], fixture.embed[branch, layer](pixels(fixture.size)))
        assert loaded.description.widths[layer] == embeddings[layer].shape[1]
    assert loaded.description.branch == branch


def test_branches_differ_and_the_default_is_the_evaluated_one() -> None:
    for name, make in FIXTURES.items():
        branches = tuple(dict.fromkeys(branch for branch, _ in make().embed))
        description, _ = descriptions()[name]
        assert description.branches == branches, name
        assert description.branch == branches[0], name
        images = pixels(make().size)
        first = make().embed[branches[0], "backbone"](images)
        for other in branches[1:]:
            assert not torch.allclose(first, make().embed[other, "backbone"](images)), name


def test_confusion_table() -> None:
    """Every fixture is recognised as its own format, and nothing is guessed between two."""
    table = {name: description.format for name, (description, _) in descriptions().items()}
    assert table == {name: make().format for name, make in FIXTURES.items()}
    for name, (description, _) in descriptions().items():
        for option in ("ignored", "arch"):
            expected = getattr(FIXTURES[name](), option)
            if expected:
                assert getattr(description, option) == expected


def test_every_format_has_a_fixture() -> None:
    untested = {one.name for one in FORMATS} - {make().format for make in FIXTURES.values()}
    assert untested == {"solo-learn-moco-v3-vit"}  # see test_head_count_is_the_methods_own
    assert len({one.name for one in FORMATS}) == len(FORMATS)


def test_a_format_may_be_named(saved: dict[str, Path]) -> None:
    path = saved["vissl-barlow"]
    tree = read_checkpoint(path)
    assert describe(path, tree, format="vissl-simclr").recipe == "simclr-vissl"
    with pytest.raises(CheckpointError, match=r"is not dino: expected tensors named .*teacher"):
        describe(path, tree, format="dino")
    with pytest.raises(SettingsError, match=r"--format vicregg: did you mean vicreg\?"):
        describe(path, tree, format="vicregg")
    path = saved["simclr-sthalles"]
    assert describe(path, read_checkpoint(path), format="plain").format == "ResNet state dict"


def test_equally_specific_formats_are_not_guessed(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = dataclasses.replace(next(f for f in FORMATS if f.name == "vicreg"), name="twin")
    monkeypatch.setattr("lidar_cli.checkpoints.detect.FORMATS", (*FORMATS, twin))
    path = saved["vicreg"]
    tree = read_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"may be vicreg, twin; choose .* --format"):
        match_format(path, tree)
    match = match_format(path, tree, "twin")
    assert match is not None
    assert match[0] is twin


@pytest.mark.parametrize(
    ("asked", "branch"),
    [("encoder", "student"), ("online", "student"), ("target", "teacher"), ("ema", "teacher")],
)
def test_other_words_for_branches(asked: str, branch: str, saved: dict[str, Path]) -> None:
    path = saved["ijepa"]
    assert describe(path, read_checkpoint(path), branch=asked).branch == branch


def test_a_branch_that_is_not_there(saved: dict[str, Path]) -> None:
    for name in ("vicreg", "torchvision-resnet"):
        tree = read_checkpoint(saved[name])
        with pytest.raises(CheckpointError, match=r"no branch 'teacher' in .* it has encoder"):
            describe(saved[name], tree, branch="teacher")
        assert describe(saved[name], tree, branch="student").branch == "encoder"
    with pytest.raises(SettingsError, match=r"--branch techer: did you mean teacher\?"):
        describe(saved["vicreg"], read_checkpoint(saved["vicreg"]), branch="techer")


# What is missing or left over is named.


def container(fixture: Fixture) -> dict[str, Tensor]:
    """The state dict of a fixture whose tensors all lie in one."""
    tree = fixture.tree
    return next((tree[key] for key in ("state_dict", "model") if key in tree), tree)  # type: ignore[no-any-return]


CONTAINED = {  # fixture -> a tensor without which it is not whole, as the file and the error say
    "vicreg": ("module.backbone.layer2.0.bn2.bias", r"layer2\.0\.bn2\.bias missing"),
    "simclr-atanov": ("projection.bn2.bias", r"projection: 4\.bias missing"),
    "moco-v3-vit": ("module.base_encoder.blocks.1.norm1.bias", r"blocks\.1\.norm1\.bias missing"),
    "swav-released": ("module.projection_head.1.running_var", r"1\.running_var missing"),
    "mae": ("norm.weight", r"norm\.bias|norm\.weight"),
}


@pytest.mark.parametrize("name", CONTAINED)
def test_surplus_and_missing_tensors_are_named(name: str, tmp_path: Path) -> None:
    whole = container(FIXTURES[name]())
    named = FIXTURES[name]().format
    surplus = {**whole, "module.surprise.weight": torch.ones(2, 2)}
    with pytest.raises(
        CheckpointError, match=r"1 entries outside the .*surprise\.weight; expected"
    ):
        open_checkpoint(save(tmp_path / "a.pt", {"state_dict": surplus}), format=named)
    lost, message = CONTAINED[name]
    rest = {key: tensor for key, tensor in whole.items() if key != lost}
    assert len(rest) < len(whole)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(save(tmp_path / "b.pt", {"state_dict": rest}), format=named)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("predictor_norm.bias", None, r"predictor: predictor_norm\.bias missing of 32 tensors"),
        ("predictor_blocks.1.attn.proj.bias", None, r"blocks\.1\.attn\.proj\.bias missing"),
        ("extra.weight", (2, 2), r"predictor: extra\.weight have no place among 32 expected"),
        ("predictor_proj.weight", (192, 97), r"predictor_proj\.weight has shape \[192, 97\]"),
        ("predictor_pos_embed", (1, 25, 96), r"predictor: works on 5 x 5 tokens of 192"),
    ],
)
def test_tensors_of_the_predictor_are_all_accounted_for(
    name: str, shape: tuple[int, ...] | None, message: str, tmp_path: Path
) -> None:
    """In the student's branch; the teacher's leaves the whole predictor out, and says so."""
    tree = dict(FIXTURES["ijepa"]().tree)
    tree["predictor"] = dict(tree["predictor"])
    assert (tree["predictor"].pop(f"module.{name}", None) is None) is (name == "extra.weight")
    if shape is not None:
        tree["predictor"][f"module.{name}"] = torch.ones(shape)
    path = save(tmp_path / "a.pt", tree)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path, branch="student")
    assert "predictor" in open_checkpoint(path).description.ignored


def test_a_predictor_behind_a_class_token_is_refused(tmp_path: Path) -> None:
    """It would be given the class token's embedding, or the backbone be another with it."""
    tree = dict(FIXTURES["ijepa"]().tree)
    tree["encoder"] = dict(tree["encoder"])
    tree["encoder"]["module.cls_token"] = torch.ones(1, 1, 192)
    path = save(tmp_path / "a.pt", tree)
    with raises(CheckpointError, "misplaced-predictor") as raised:
        open_checkpoint(path, branch="student")
    raised.match(r"patch tokens behind a vit_tiny_patch8")


# One test for each trap of the layouts.


def test_head_count_is_the_methods_own(saved: dict[str, Path], tmp_path: Path) -> None:
    """MoCo v3's small ViT has 12 heads; the same tensors with 6 embed to something else."""
    fixture = FIXTURES["moco-v3-vit"]()
    w = Weights()
    w.update({k.removeprefix("module."): t for k, t in fixture.tree["state_dict"].items()})
    embeddings = open_checkpoint(saved["moco-v3-vit"]).embed(pixels(), ["backbone"])["backbone"]
    assert_close(embeddings, w.run_vit("base_encoder.", pixels(), heads=12))
    assert (embeddings - w.run_vit("base_encoder.", pixels(), heads=6)).abs().max() > 1e-3
    # solo-learn's MoCo v3 has 12 for width 192 too, where its other methods have 3.
    solo = Weights()
    solo.vit("backbone.")
    solo.linear("classifier", 192, 10)
    for at, (into, out) in {"0": (192, 24), "3": (24, 24), "6": (24, 12)}.items():
        solo.linear(f"projector.{at}", into, out, bias=False)
        solo.bn(f"projector.{int(at) + 1}", out, affine=at != "6")
    solo.linear("predictor.0", 12, 24, bias=False)
    solo.bn("predictor.1", 24)
    solo.linear("predictor.3", 24, 12, bias=False)
    solo.bn("predictor.4", 12, affine=False)
    loaded = open_checkpoint(save(tmp_path / "a.ckpt", lightning(dict(solo))))
    assert loaded.description.format == "solo-learn-moco-v3-vit"
    embeddings = loaded.embed(pixels(), ["backbone"])["backbone"]
    assert_close(embeddings, solo.run_vit("backbone.", pixels(), heads=12))


def test_a_head_count_is_assumed_by_the_format_or_by_the_width(saved: dict[str, Path]) -> None:
    for name, why in {"dino-vit": "dino's", "timm-vit": "usual for width 192"}.items():
        assert descriptions()[name][0].assumed["heads"] == Assumed(3, why)


def test_cifar_stems_differ_in_padding_alone(tmp_path: Path) -> None:
    """The same weights: solo-learn pads by 2, others by 1, and the file does not say."""
    w = Weights()
    w.resnet("backbone.", kernel=3)
    w.linear("classifier", 16, 10)
    solo = save(tmp_path / "solo.ckpt", lightning(dict(w)))
    plain = save(tmp_path / "plain.pt", {k: t for k, t in w.items() if "backbone" in k})
    for path, padding in ((solo, 2), (plain, 1)):
        loaded = open_checkpoint(path)
        embeddings = loaded.embed(pixels(), ["backbone"])["backbone"]
        assert_close(embeddings, w.run_resnet("backbone.", pixels(), padding=padding))
        assert (
            embeddings - w.run_resnet("backbone.", pixels(), padding=3 - padding)
        ).abs().max() > 1e-4
    assert open_checkpoint(solo).description.arch == "resnet 1-1-1-1 (width 8, 3x3 stem, pad 2)"


def test_wide_stems(saved: dict[str, Path]) -> None:
    """VICReg's and SwAV's wide ResNets widen the stem; torchvision's do not."""
    description = describe(saved["vicreg"], read_checkpoint(saved["vicreg"]))
    assert description.arch == "resnet 1-1-1-1 (width 8)"
    description = describe(saved["barlow"], read_checkpoint(saved["barlow"]))
    assert description.arch == "resnet 1-1-1-1 (width 8, inner width 4)"


@pytest.mark.parametrize("new", [False, True])
def test_weight_norm_in_both_layouts(new: bool, tmp_path: Path) -> None:
    """Behind the embedding it is left out; inside a projector it is W = g v / |v|."""
    w = Weights()
    w.resnet("backbone.")
    w.weight_norm("projector.0", 16, 12, new)
    names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    g, v = (w[f"projector.0.{part}"] for part in (names if new else ("weight_g", "weight_v")))
    linear = torch.nn.Linear(16, 12, bias=False)
    if new:
        torch.nn.utils.parametrizations.weight_norm(linear)
        linear.load_state_dict({names[0]: g, names[1]: v})
    else:
        linear.weight.data = g * v / v.norm(dim=1, keepdim=True)
    loaded = open_checkpoint(save(tmp_path / "a.pt", dict(w)))
    embeddings = loaded.embed(pixels(), ["projector"])["projector"]
    assert_close(embeddings, linear(w.run_resnet("backbone.", pixels())).detach())


def test_prototypes_are_never_embedded(saved: dict[str, Path]) -> None:
    for name, width in {"dino-vit": 16, "dino-resnet": 16, "vissl-dino": 16, "vissl-swav": 12,
                        "swav-released": 12, "stable-pretraining-dino": 12,
                        "lightly-dino": 16}.items():  # fmt: skip
        description = describe(saved[name], read_checkpoint(saved[name]))
        assert description.widths["projector"] == width, name


def test_dino_heads_have_gelu_unless_the_user_says_otherwise(saved: dict[str, Path]) -> None:
    gelu = open_checkpoint(saved["dino-vit"]).embed(pixels(), ["projector"])["projector"]
    relu = open_checkpoint(saved["dino-vit"], activation="relu")
    assert (relu.embed(pixels(), ["projector"])["projector"] - gelu).abs().max() > 1e-4


def test_batch_norm_without_affine(saved: dict[str, Path]) -> None:
    """Of Barlow Twins' loss: left out. The last layer of MoCo v3's heads: part of the embedding."""
    fixture = FIXTURES["barlow"]()
    rows = open_checkpoint(saved["barlow"]).embed(pixels(), ["projector"])["projector"]
    weights = Weights()
    weights.update({k.removeprefix("module."): t for k, t in fixture.tree["model"].items()})
    assert (weights.norm("bn", rows) - rows).abs().max() > 1e-3
    assert "7" in dict(open_checkpoint(saved["moco-v3-vit"]).modules["projector"].named_children())


def test_names_of_lightly_mean_the_teacher_in_some_modules(saved: dict[str, Path]) -> None:
    expected = {"lightly-dino": ("teacher", "backbone."), "lightly-byol": ("student", "backbone."),
                "lightly-moco": ("student", "backbone."), "lightly-tico": ("teacher", "backbone."),
                "lightly-moco-query": ("teacher", "backbone.")}  # fmt: skip
    for name, (branch, prefix) in expected.items():
        description = describe(saved[name], read_checkpoint(saved[name]))
        assert (description.branch, description.prefix) == (branch, prefix)


def test_heads_within_the_backbones_fc(saved: dict[str, Path]) -> None:
    for name in ("moco-v1", "moco-v2", "simclr-sthalles", "moco-v3-resnet"):
        description = describe(saved[name], read_checkpoint(saved[name]))
        assert description.widths["backbone"] == 16
        assert description.widths["projector"] == 12, name


def test_layers_with_names_get_their_places() -> None:
    rename = numbered(["fc1", "bn1", "-", "fc2"])
    assert [renamed(f"{n}.weight", rename) for n in ("fc1", "bn1", "fc2", "fc10")] == [
        "0.weight", "1.weight", "3.weight", "fc10.weight",
    ]  # fmt: skip


def test_a_container_that_holds_itself_ends(tmp_path: Path) -> None:
    knot: dict[str, Any] = {"w.weight": torch.ones(2, 2)}
    for at in range(40):
        knot[f"k{at}"] = knot
    for tree in ({"teacher": knot, "student": knot}, {"model": knot}, {"encoder": knot}):
        with pytest.raises(CheckpointError):
            describe(tmp_path / "a.pt", tree)
    level: dict[str, Any] = {"w.weight": torch.ones(2, 2)}
    for _ in range(12):  # no cycle, but each dict shared by forty names
        level = {f"k{at}": level for at in range(40)}
    with pytest.raises(CheckpointError):
        describe(tmp_path / "a.pt", {"teacher": level})


def test_other_lightning_modules_are_not_taken_for_solo_learn(tmp_path: Path) -> None:
    tree = lightning(dict(FIXTURES["solo-learn-byol"]().tree["state_dict"]))
    model_file = {
        k: t for k, t in tree["state_dict"].items() if k.startswith(("backbone.", "classifier"))
    }
    tree = lightning(model_file, hyper_parameters={"lr": 0.1})
    path = save(tmp_path / "a.ckpt", tree)
    assert describe(path, read_checkpoint(path)).arch.endswith("3x3 stem)")


# A family of another architecture: with another anchor and other noise.


def test_a_new_family_is_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Special: it wins over the plain ViT at the same place; its noise is named, not refused."""
    w = Weights()
    w.vit("")
    w.normal("blocks.0.attn.extra", 3, fan=1)
    w.normal("teacher_target.x", 3, fan=1)
    special = Family(
        "special",
        "blocks.0.attn.extra",
        vit.spec,
        special=True,
        unused_prefixes=("blocks.0.attn.extra", "teacher_target."),
    )
    path = save(tmp_path / "a.pt", dict(w))
    with raises(CheckpointError, "unknown-entries"):
        open_checkpoint(path)
    monkeypatch.setitem(FAMILIES, "special", special)
    loaded = open_checkpoint(path)
    assert loaded.description.format == "special"
    assert set(loaded.description.ignored) == {"blocks.0.attn.extra", "teacher_target"}
    embeddings = loaded.embed(pixels(), ["backbone"])["backbone"]
    assert_close(embeddings, w.run_vit("", pixels()))


@pytest.mark.parametrize("name", FIXTURES)
def test_shapes_without_torch_are_those_of_the_modules(name: str, saved: dict[str, Path]) -> None:
    contents = read_contents(saved[name])
    _, modules = detect(saved[name], as_dict(contents), config=contents.config)
    for layer, assignment in modules.items():
        module = build(assignment.spec)
        built = shapes(module.weights if layer == "backbone" else module)
        assert assignment.spec.shapes() == built
        assert shapes_of(assignment.tensors) == {
            name: shape for name, shape in built.items() if name in assignment.tensors
        }


def test_arch_and_format_go_together(tmp_path: Path) -> None:
    """A backbone that shapes do not determine, inside the containers of a known system."""
    model = timm.create_model("convnext_atto", num_classes=0)
    w = Weights()
    w.update({f"teacher.backbone.{k}": t for k, t in model.state_dict().items()})
    w.linear("teacher.head.mlp.0", 320, 16)
    w.weight_norm("teacher.head.last_layer", 16, 40)
    tree = {"teacher": {k.removeprefix("teacher."): t for k, t in w.items()}, "student": {}}
    loaded = open_checkpoint(save(tmp_path / "a.pt", tree), arch="convnext_atto")
    assert (loaded.description.format, loaded.description.branch) == ("dino", "teacher")
    embeddings = loaded.embed(pixels(64), ["projector"])["projector"]
    assert_close(embeddings, w.lin("teacher.head.mlp.0", model.eval()(pixels(64))).detach())


@pytest.mark.parametrize("key", ["arch", "args"])
def test_the_architecture_that_training_scripts_of_timm_save(key: str, tmp_path: Path) -> None:
    """It is used where the shapes alone show none, in both sets of weights."""
    raw, average = (timm.create_model("test_efficientnet", num_classes=5) for _ in range(2))
    saved_arch = "test_efficientnet" if key == "arch" else {"model": "test_efficientnet"}
    tree = {"state_dict": raw.state_dict(), "state_dict_ema": average.state_dict(), "metric": 1.0}
    path = save(tmp_path / "a.pth.tar", tree | {key: saved_arch})
    for branch, model in (("model", raw.eval()), ("state_dict_ema", average.eval())):
        loaded = open_checkpoint(path, branch=branch)
        assert loaded.description.arch == "test_efficientnet"
        model.reset_classifier(0)
        assert_close(loaded.embed(pixels(64), ["backbone"])["backbone"], model(pixels(64)).detach())
    path = save(tmp_path / "b.pth.tar", tree | {"arch": "resnet18"})  # of another network
    with raises(CheckpointError, "no-backbone"):
        open_checkpoint(path)


def test_an_average_that_mmengine_saves_is_a_branch(tmp_path: Path) -> None:
    tree = FIXTURES["mmpretrain-swav"]().tree
    average = Weights(1)
    average.resnet("module.backbone.")
    rest = {f"module.{k}": t for k, t in tree["state_dict"].items() if "backbone" not in k}
    ema = {**average, **rest, "steps": torch.tensor(4)}
    path = save(tmp_path / "a.pth", tree | {"ema_state_dict": ema})
    for branch, of in (("model", Weights.of(tree["state_dict"])), ("ema", average)):
        loaded = open_checkpoint(path, branch=branch)
        assert (loaded.description.format, loaded.description.recipe) == ("mmpretrain", "swav")
        prefix = "backbone." if branch == "model" else "module.backbone."
        embeddings = loaded.embed(pixels(), ["backbone"])["backbone"]
        assert_close(embeddings, of.run_resnet(prefix, pixels()))


@pytest.mark.parametrize(
    ("layers", "method"),
    [
        (("neck.projection_neck.0.weight",), "swav"),
        (("neck.fc1.weight", "neck.bn1.running_mean"), "simclr-vissl"),
        (("neck.fc1.weight", "neck.bn1.running_mean", "neck.fc2.weight"), "barlow"),
        (("neck.fc2.weight", "neck.bn2.running_mean", "head.predictor.fc0.weight"), "moco-v2"),
        (("head.fc.weight",), "simclr-vissl"),
    ],
)
def test_views_of_mmpretrain_by_its_necks(layers: tuple[str, ...], method: str) -> None:
    trained = training(OPENMMLAB[0], layers, {}, small=False)
    assert (trained.recipe, trained.assumptions) == (method, ())


def test_a_schedule_of_solo_learn_names_its_functions_and_calls_none(
    saved: dict[str, Path],
) -> None:
    names = read_contents(saved["solo-learn-simsiam"]).stand_ins
    assert {"functools.partial", "__main__.static_lr", "builtins.getattr"} <= set(names)


def test_a_described_backbone_alone_needs_no_unknown_head(tmp_path: Path) -> None:
    fixture = FIXTURES["vicreg"]()
    weights = {**fixture.tree["model"], "module.odd.weight": torch.ones(2, 2)}
    tree = {**fixture.tree, "model": weights}
    torch.save(tree, tmp_path / "a.pth")
    with raises(CheckpointError, "unknown-entries") as raised:
        open_checkpoint(tmp_path / "a.pth")
    assert str(raised.value).endswith("--prefix backbone.")
    alone = open_checkpoint(tmp_path / "a.pth", layer="backbone").description
    assert "odd (not read)" in alone.ignored
    assert open_checkpoint(tmp_path / "a.pth", prefix="backbone.").layers[0] == "backbone"


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("ijepa", "target_encoder"), ("byol-pytorch", "target_encoder"),
        ("deit-training", "model_ema"), ("dinov3-training", "model_ema"), ("moco-v2", "encoder_k"),
        ("vissl-ema", "ema_model"), ("vissl-moco", "momentum_encoder"),
        ("mmpretrain-byol", "target_net"),
    ],
)  # fmt: skip
def test_a_branch_has_the_words_that_people_use(name: str, word: str, tmp_path: Path) -> None:
    path = FIXTURES[name]().save(tmp_path)
    description = open_checkpoint(path, branch=word, layer="backbone").description
    assert description.branch in (word, "teacher")
    assert len(description.branches) > 1
