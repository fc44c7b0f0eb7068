"""What weights leave open: said for every format, set by --assume, refused where a file decides."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from formats import FIXTURES, descriptions
from formats_solo import solo_learn_vicreg
from formats_vissl import vissl_simclr
from layouts import Weights, describe, lightning, mlp
from make import checkpoint, image_folder, lidar_here
from raising import raises
from torch import Tensor, nn
from torch.nn import functional as F

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.reading.read import as_dict, read_contents
from lidar_cli.checkpoints.shapes.spec import ASSUME_KEYS, parse_assumptions
from lidar_cli.configuration import resolve
from lidar_cli.errors import CheckpointError, SettingsError
from lidar_cli.extraction.plan import choose_recipe
from lidar_cli.features.reader import read_provenance
from lidar_cli.settings import ExtractSettings, InspectSettings


def pixels(size: int = 32) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(7))


def save(path: Path, tree: Any) -> Path:
    torch.save(tree, path)
    return path


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert expected.std() > 1e-3
    assert (actual - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


def embedded(path: Path, layer: str, *assume: str, size: int = 32, **options: Any) -> Tensor:
    loaded = open_checkpoint(path, assume=assume, **options)
    loaded.set_image_size(size)
    return loaded.embed(pixels(size), [layer])[layer]


def values(path: Path, *assume: str, **options: Any) -> dict[str, Any]:
    contents = read_contents(path)
    options = {"config": contents.config, "assume": assume} | options
    description = describe(path, as_dict(contents), **options)
    return {key: one.value for key, one in description.assumed.items()}


# Said, in every format


def test_every_format_says_what_its_weights_leave_open() -> None:
    """Pixels always, strides of a ResNet always, heads of a ViT unless a tensor has them."""
    for name, (description, configured) in descriptions().items():
        assumed, arch = description.assumed, description.arch
        assert list(assumed) == [key for key in ASSUME_KEYS if key in assumed], name
        assert ("pixel_stats" in assumed) != bool(description.stats_source)
        is_resnet = arch.startswith(("resnet", "wide_resnet")) and name != "hf-resnet"
        assert ("strides" in assumed) == is_resnet, name
        assert ("stem_padding" in assumed) == ("3x3 stem" in arch), name
        learned = arch.startswith("vit_") and "RoPE" not in arch
        assert ("position_offset" in assumed) == learned, name
        no_choice = ("beit", "resnet", "convnext", "swin", "poolformer", "wide_resnet")
        by_tensor = arch.startswith(no_choice)
        by_tensor |= not learned and "registers" in arch  # rotary, with periods or frequencies
        decided = configured or by_tensor
        assert ("heads" in assumed) != decided, name
        assert all(one.why for one in assumed.values()), name


def test_inspect_prints_them_and_json_carries_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = FIXTURES["dino-vit"]().save(tmp_path)
    ended = lidar_here("inspect", path, monkeypatch=monkeypatch, capfd=capfd)
    assert (
        "assumed       heads=3 (dino's); eps=1e-06 (usual); activation=gelu (dino's); "
        "pixel_stats=imagenet (dino's); position_offset=0.1 (dino's)\n"
    ) in ended.stdout
    ended = lidar_here(
        *("inspect", path, "--json", "--assume", "heads=6", "--assume", "dino:eps=1e-5"),
        monkeypatch=monkeypatch,
        capfd=capfd,
    )
    (report,) = json.loads(ended.stdout)
    assert report["assumed"]["heads"] == {"value": 6, "why": "--assume"}
    assert report["assumed"]["eps"] == {"value": 1e-5, "why": "--assume"}
    assert report["assumed"]["position_offset"]["value"] == 0.1


# Set: each key gives the forward pass that it names


def test_heads_and_eps(tmp_path: Path) -> None:
    fixture = FIXTURES["timm-vit"]()
    path = fixture.save(tmp_path)
    w = Weights.of(fixture.tree)
    assert_close(embedded(path, "backbone", "heads=12"), w.run_vit("", pixels(), heads=12))
    twin = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3, mlp_ratio=2, num_classes=10,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-2),
    ).eval()  # fmt: skip
    twin.load_state_dict(fixture.tree)
    twin.reset_classifier(0)
    with torch.no_grad():
        assert_close(embedded(path, "backbone", "eps=1e-2"), twin(pixels()))


def test_heads_of_a_width_that_nobody_uses(tmp_path: Path) -> None:
    w = Weights()
    w.vit("", width=96)
    path = save(tmp_path / "a.pt", dict(w))
    with pytest.raises(CheckpointError, match=r"width 96, .* set it with --assume heads=N"):
        open_checkpoint(path)
    assert_close(embedded(path, "backbone", "heads=4"), w.run_vit("", pixels(), heads=4))
    with pytest.raises(SettingsError, match=r"heads=5: .* does not divide the width 96"):
        open_checkpoint(path, assume=["heads=5"])


def test_stem_padding_of_eb_jepa(tmp_path: Path) -> None:
    """By 2, as in its code: examples/image_jepa."""
    w = Weights()
    w.resnet("backbone.backbone.", kernel=3)
    w.linear("projector.0", 16, 24)
    w.bn("projector.1", 24)
    w.linear("projector.3", 24, 24)
    w.bn("projector.4", 24)
    w.linear("projector.6", 24, 12)
    path = save(tmp_path / "a.pth.tar", {"epoch": 1, "step": 9, "model_state_dict": dict(w)})
    steps = ["0", "bn projector.1", "act", "3", "bn projector.4", "act", "6"]
    names = [step if " " in step or step == "act" else f"projector.{step}" for step in steps]
    trunk = w.run_resnet("backbone.backbone.", pixels(), padding=2)
    assert values(path)["stem_padding"] == 2
    assert_close(embedded(path, "projector"), mlp(w, trunk, *names))
    assert (
        embedded(path, "projector", "stem_padding=1") - mlp(w, trunk, *names)
    ).abs().max() > 1e-3


def test_a_stem_without_max_pool_is_in_the_arguments_or_assumed(tmp_path: Path) -> None:
    fixture = FIXTURES["bolts-simclr-stl"]()
    trunk = fixture.embed["encoder", "backbone"](pixels())
    path = save(tmp_path / "a.ckpt", fixture.tree | {"hyper_parameters": {}})
    assert values(path)["stem_pool"] == "max"
    assert_close(embedded(path, "backbone", "stem_pool=none"), trunk)
    path = save(tmp_path / "b.ckpt", fixture.tree)
    with raises(SettingsError, "not-open") as raised:
        embedded(path, "backbone", "stem_pool=max")
    raised.match("hyper_parameters has maxpool1 False")


def test_strides_of_vissls_last_stage(tmp_path: Path) -> None:
    """LAYER4_STRIDE is in no shape."""
    fixture = vissl_simclr()
    path = fixture.save(tmp_path)
    base = fixture.tree["classy_state_dict"]["base_model"]["model"]
    w = Weights.of({f"trunk.{name}": t for name, t in base["trunk"].items()})
    trunk = functools.partial(w.run_resnet, "trunk._feature_blocks.", pixels())
    assert values(path)["strides"] == (1, 2, 2, 2)
    assert_close(embedded(path, "backbone"), trunk())
    expected = trunk(strides=(1, 2, 2, 1))
    assert_close(embedded(path, "backbone", "strides=1,2,2,1"), expected)
    assert (expected - trunk()).abs().max() > 1e-3
    for given, message in (
        ("strides=1,2,2", "has 4 stages; give a number for each"),
        ("strides=2,2,2,2", "layer1 has no downsample, so that its stride is 1"),
    ):
        with pytest.raises(SettingsError, match=message):
            open_checkpoint(path, assume=[given])


def test_activation_of_vibcreg(tmp_path: Path) -> None:
    """Names and shapes of solo-learn's VICReg; GELU in its projector."""
    fixture = solo_learn_vicreg()
    path = fixture.save(tmp_path)
    w = Weights.of(fixture.tree["state_dict"])
    steps = ["0", "bn 1", "act", "3", "bn 4", "act", "6"]
    names = [
        step if step == "act" else step.replace(step[-1], f"projector.{step[-1]}") for step in steps
    ]
    trunk = w.run_resnet("backbone.", pixels())
    expected = mlp(w, trunk, *names, activation=F.gelu)
    assert values(path)["activation"] == "relu"
    for given in ("activation=gelu", "solo-learn:activation=gelu"):
        assert_close(embedded(path, "projector", given), expected)
    assert_close(embedded(path, "projector", activation="gelu"), expected)
    relu = embedded(path, "projector", "dino:activation=gelu")
    assert_close(relu, mlp(w, trunk, *names))
    with pytest.raises(SettingsError, match="are two values of one"):
        open_checkpoint(path, activation="relu", assume=["activation=gelu"])
    open_checkpoint(path, activation="gelu", assume=["activation=gelu"])


def test_activation_of_the_method_that_args_json_names(tmp_path: Path) -> None:
    path = solo_learn_vicreg().save(tmp_path)
    given = {name: embedded(path, "projector", activation=name) for name in ("relu", "gelu")}
    line = "activation gelu if vibcreg (--activation)"
    assert line in open_checkpoint(path).description.assumed_text
    for method, activation, why in (
        ("vibcreg", "gelu", "of vibcreg, which args.json names"),
        ("vicreg", "relu", "solo-learn's"),
        ("byol", "relu", "solo-learn's"),  # whose names are others
    ):
        (tmp_path / "args.json").write_text(json.dumps({"method": method}))
        description = open_checkpoint(path).description
        assert description.assumed["activation"].text("") == f"={activation} ({why})"
        assert (line in description.assumed_text) == (method == "byol")
        assert torch.equal(embedded(path, "projector"), given[activation])
    (tmp_path / "args.json").write_text('{"method": "vibcreg"}')
    assert torch.equal(embedded(path, "projector", "activation=relu"), given["relu"])
    assert torch.equal(embedded(path, "projector", activation="relu"), given["relu"])


def test_a_whitening_is_named_and_stops_only_who_needs_it(tmp_path: Path) -> None:
    tree = dict(solo_learn_vicreg().tree["state_dict"])
    width = tree["projector.6.weight"].shape[0]
    tree |= {"projector.7.running_mean": torch.zeros(1, width, 1)}
    tree |= {"projector.7.running_wmat": torch.eye(width)[None]}
    path = save(tmp_path / "a.ckpt", lightning(tree))
    message = r"projector: layer 7 is an IterNorm.* or do without it: --layer backbone"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)
    loaded = open_checkpoint(path, layer="backbone")
    assert loaded.layers == ("backbone",)
    assert "projector (not read)" in loaded.description.ignored
    expected = solo_learn_vicreg().embed["student", "backbone"](pixels())
    assert_close(loaded.embed(pixels(), ["backbone"])["backbone"], expected)


@pytest.mark.parametrize("described", [True, False])
def test_an_unread_projector_does_not_stop_the_backbone(described: bool, tmp_path: Path) -> None:
    w = Weights()
    w.resnet("backbone.")
    w.linear("projector.odd", 16, 8)
    tree: dict[str, Any] = dict(w)
    if described:
        tree = lightning(tree | {"classifier.weight": torch.ones(10, 16)})
    path = save(tmp_path / "a.ckpt", tree)
    with pytest.raises(CheckpointError, match="or do without it: --layer backbone"):
        open_checkpoint(path)
    loaded = open_checkpoint(path, layer="backbone")
    assert "projector (not read)" in loaded.description.ignored
    embeddings = loaded.embed(pixels(), ["backbone"])["backbone"]
    assert_close(embeddings, w.run_resnet("backbone.", pixels()))


def test_gate_of_a_swiglu(tmp_path: Path) -> None:
    w = Weights()
    w.vit("")
    for i in range(2):
        for layer in ("fc1", "fc2"):
            del w[f"blocks.{i}.mlp.{layer}.weight"], w[f"blocks.{i}.mlp.{layer}.bias"]
        w.linear(f"blocks.{i}.mlp.w12", 192, 256)
        w.linear(f"blocks.{i}.mlp.w3", 128, 192)
    path = save(tmp_path / "a.pt", dict(w))
    assert values(path)["gate"] == "silu"
    assert_close(embedded(path, "backbone"), w.run_vit("", pixels()))

    class Gelu(Weights):
        def run_mlp(self, name: str, x: Tensor) -> Tensor:
            gate, value = self.lin(f"{name}.mlp.w12", x).chunk(2, dim=-1)
            return self.lin(f"{name}.mlp.w3", F.gelu(gate) * value)

    expected = Gelu.of(dict(w)).run_vit("", pixels())
    assert_close(embedded(path, "backbone", "gate=gelu"), expected)


def test_position_offset_of_a_backbone_released_alone(tmp_path: Path) -> None:
    """DINO's: (new + 0.1) / old, which its full checkpoints say and the backbone alone does not."""
    fixture = FIXTURES["timm-vit"]()
    path = fixture.save(tmp_path)
    w = Weights.of(fixture.tree)
    first, grid = w["pos_embed"][:, :1], w["pos_embed"][:, 1:].reshape(1, 4, 4, 192)
    resized = nn.functional.interpolate(
        grid.permute(0, 3, 1, 2), scale_factor=6.1 / 4, mode="bicubic"
    )
    w["pos_embed"] = torch.cat([first, resized.permute(0, 2, 3, 1).reshape(1, 36, 192)], dim=1)
    expected = w.run_vit("", pixels(48))
    assert values(path)["position_offset"] == 0
    assert_close(embedded(path, "backbone", "position_offset=0.1", size=48), expected)
    assert (embedded(path, "backbone", size=48) - expected).abs().max() > 1e-4


def test_pixel_stats_are_those_of_the_option(tmp_path: Path) -> None:
    path = FIXTURES["timm-vit"]().save(tmp_path)
    description = open_checkpoint(path, assume=["pixel_stats=unit"]).description
    assert choose_recipe(ExtractSettings(), description).mean == (0.0, 0.0, 0.0)
    assert choose_recipe(ExtractSettings(pixel_stats="unit"), description).mean == (0.0, 0.0, 0.0)
    with pytest.raises(SettingsError, match="are two values of one"):
        choose_recipe(ExtractSettings(pixel_stats="imagenet"), description)


# Refused


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("dino-vit", "stem_padding=2", "nothing in it has stem_padding"),
        ("vicreg", "heads=3", "nothing in it has heads"),
        ("vicreg", "stem_padding=1", "a 7x7 stem is padded by 3"),
        ("data2vec-fork", "heads=3", r"the table of relative positions has \d+ heads"),
        ("hf-vit", "heads=3", r"config\.json has 6 heads"),
        ("hf-vit", "eps=1e-6", r"config\.json has layer_norm_eps 1e-12"),
        ("torchvision-resnet", "activation=gelu", "nothing in it has activation"),
        ("lightly-moco", "gate=gelu", "SYSTEM:gate=gelu"),
    ],
)
def test_what_the_file_decides_is_wrong_usage(
    name: str, given: str, message: str, tmp_path: Path
) -> None:
    path = FIXTURES[name]().save(tmp_path)
    with pytest.raises(SettingsError, match=message):
        values(path, given)
    other = "moco-v1" if FIXTURES[name]().format != "moco-v1" else "dino"
    assert values(path, f"{other}:{given}") == values(path)


def test_a_named_architecture_decides_all(tmp_path: Path) -> None:
    path = FIXTURES["timm-vit"]().save(tmp_path)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    path = save(tmp_path / "b.pt", model.state_dict())
    with raises(SettingsError, "not-open") as raised:
        open_checkpoint(path, arch="vit_tiny_patch16_224", assume=["heads=12"])
    raised.match("timm's vit_tiny_patch16_224 decides it")
    with raises(SettingsError, "model-and-assume") as raised:
        open_checkpoint(path, model="a:b", assume=["heads=12"])
    raised.match("leave --assume out")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("head=3", "no key 'head'; the keys are heads, eps, activation, gate, stem_padding, "),
        ("heads", "expected KEY=VALUE; the keys are heads"),
        ("heads=three", "heads takes a number of attention heads"),
        ("heads=0", "heads takes"),
        ("eps=nan", "eps takes LayerNorm's, such as 1e-6"),
        ("activation=silu", "activation takes relu or gelu"),
        ("gate=relu", "gate takes silu or gelu"),
        ("strides=1,,2", "strides takes one a stage, such as 1,2,2,2"),
        ("position_offset=1", "position_offset takes patches, such as 0 or 0.1"),
        ("pixel_stats=mars", "unknown pixel statistics 'mars'"),
        ("pixel_stats=auto", "pixel_stats takes what --pixel-stats takes but auto"),
        ("pixel_stats=1,1/1", "expected three numbers for the mean"),
        ("dinno:heads=3", "did you mean dino"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "extract", "rank"])
def test_mistyped_assumptions_are_wrong_usage(
    command: str,
    given: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = FIXTURES["vicreg"]().save(tmp_path)
    monkeypatch.chdir(tmp_path)
    target = tmp_path if command == "rank" else path
    ended = lidar_here(command, target, "--assume", given, monkeypatch=monkeypatch, capfd=capfd)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_two_values_of_one_key_are_refused() -> None:
    with raises(SettingsError, "assumed-twice") as raised:
        parse_assumptions(["heads=3", "heads=6"], ["dino"])
    raised.match("heads is 3 already")
    asked = parse_assumptions(["heads=3", "dino:heads=6", "heads = 3"], ["dino"])
    assert (asked.of("mae"), asked.of("dino")) == ({"heads": 3}, {"heads": 6})


# From where it is given to what is stored


@pytest.mark.parametrize(
    "toml",
    [
        'assume = ["heads=12", "dino:strides=1,2,2,1"]',
        "[assume]\nheads = 12\ndino.strides = [1, 2, 2, 1]",
        '[extract]\nassume = "heads=12 dino:strides=1,2,2,1"',
    ],
)
def test_a_settings_file_and_the_environment_give_them(toml: str, tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text(toml)
    expected = ("heads=12", "dino:strides=1,2,2,1")
    resolved = resolve(ExtractSettings, {"assume": []}, config=config, environment={})
    assert resolved.values.assume == expected
    environment = {"LIDAR_ASSUME": " ".join(expected)}
    assert resolve(InspectSettings, {}, environment=environment).values.assume == expected
    resolved = resolve(ExtractSettings, {"assume": ["eps=1e-5"]}, config=config, environment={})
    assert resolved.values.assume == ("eps=1e-5",)


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    data = image_folder(tmp_path / "images", 6)
    options = ["--data", data, "-n", 6, "-q", 2, "--image-size", 32]

    def run(name: str, *words: object) -> Any:
        return lidar_here(name, *words, *options, monkeypatch=monkeypatch, capfd=capfd)

    return run


def test_extract_says_and_records_what_it_assumes(
    tmp_path: Path, command: Callable[..., Any]
) -> None:
    path = FIXTURES["moco-v3-vit"]().save(tmp_path)
    out = tmp_path / "a.h5"
    ended = command("extract", path, "-o", out, "--assume", "eps=1e-5")
    assert ended.returncode == 0, ended.stderr
    line = f"{path}: assumed heads=12 (moco-v3-vit's); eps=1e-05 (--assume); activation=relu "
    assert ended.stderr.count(line) == 1
    provenance = read_provenance(out)["assumed"]
    assert provenance["heads"] == {"value": 12, "why": "moco-v3-vit's"}
    assert provenance["eps"] == {"value": 1e-5, "why": "--assume"}
    ended = command("extract", path, "-o", tmp_path / "b.h5", "--pixel-stats", "unit")
    assert "pixel_stats" not in ended.stderr
    assert "pixel_stats" not in read_provenance(tmp_path / "b.h5")["assumed"]


RECIPE = "[recipe]\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n"


@pytest.mark.parametrize(
    ("options", "said", "mean"),
    [
        ([], "pixel_stats=0.485,0.456,0.406/0.228,0.224,0.225 (swav's)", 0.485),
        (["--views", "simclr-google"], "pixel_stats=unit (of the views simclr-google)", 0.0),
        (["--config", "recipe.toml"], None, 0.5),
    ],
)
@pytest.mark.parametrize("name", ["extract", "rank"])
def test_pixel_statistics_that_are_said_are_those_of_the_views(
    name: str,
    options: list[str],
    said: str | None,
    mean: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(RECIPE)
    Path("runs").mkdir()
    path = FIXTURES["swav-released"]().save(Path("runs"))
    target = [path, "-o", "a.h5"] if name == "extract" else ["runs"]
    ended = command(name, *target, *options)
    assert ended.returncode == 0, ended.stderr
    (out,) = Path("runs/.lidar").glob("*.h5") if name == "rank" else [Path("a.h5")]
    provenance = read_provenance(out)
    assert provenance["views"]["mean"] == pytest.approx([mean] * 3, abs=0.1)
    assert ended.stderr.count("pixel_stats=") == (said is not None)
    assert (said or "") in ended.stderr
    assert ("pixel_stats" in provenance["assumed"]) == (said is not None)


@pytest.mark.parametrize("name", ["extract", "rank"])
def test_pixel_statistics_of_a_recipe_and_of_an_assumption_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(RECIPE)
    path = FIXTURES["swav-released"]().save(tmp_path)
    target = tmp_path if name == "rank" else path
    ended = command(name, target, "--config", "recipe.toml", "--assume", "pixel_stats=unit")
    assert ended.returncode == 2
    assert "--assume pixel_stats=unit and [recipe] mean and std are two values" in ended.stderr


def test_rank_says_it_once_and_caches_by_it(tmp_path: Path, command: Callable[..., Any]) -> None:
    runs = tmp_path / "runs"
    for name in ("timm-vit", "deepspeed", "vicreg"):
        (runs / name).mkdir(parents=True)
        FIXTURES[name]().save(runs / name)
    ended = command("rank", runs, "--views", "simclr")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("assumed heads=3 (usual for width 192)") == 1
    cached = set((runs / ".lidar").glob("*.h5"))
    # What is said to be so is what was assumed: nothing is embedded again.
    assert command("rank", runs, "--views", "simclr", "--assume", "timm:heads=3").returncode == 0
    assert set((runs / ".lidar").glob("*.h5")) == cached
    assert command("rank", runs, "--views", "simclr", "--assume", "timm:heads=6").returncode == 0
    more = set((runs / ".lidar").glob("*.h5")) - cached
    assert {read_provenance(path)["assumed"]["heads"]["value"] for path in more} == {6}
    ended = command("rank", runs, "--assume", "heads=6")
    assert ended.returncode == 2
    assert "nothing in it has heads" in ended.stderr


def test_a_file_that_decides_ends_no_watch(tmp_path: Path, command: Callable[..., Any]) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for name in ("timm-vit", "vicreg"):
        FIXTURES[name]().save(runs)
    words = ["--watch", "--interval", "0.2", "--watch-for", "0.5", "--assume", "heads=6"]
    ended = command("rank", runs, "--views", "simclr", *words)
    assert ended.returncode == 4
    assert [Path(json.loads(line)["path"]).name for line in ended.stdout.splitlines()] == [
        "vit.pth"
    ]
    assert "failed: " in ended.stderr
    assert "nothing in it has heads" in ended.stderr


# Whatever a file holds is used, or named


def test_other_weights_in_a_file_are_named(tmp_path: Path) -> None:
    fixture = FIXTURES["timm-vit"]()
    tree = {
        "model": fixture.tree,
        "callbacks": {"averaging": {"state": {"fc.weight": torch.ones(3, 3)}}},
        "queue": torch.ones(4, 4),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "step": torch.tensor(3),
    }
    loaded = open_checkpoint(save(tmp_path / "a.pt", tree))
    assert loaded.description.ignored == ("head", "queue, callbacks.averaging.state")


def test_averaged_weights_are_a_branch_and_raw_ones_are_named(tmp_path: Path) -> None:
    path = FIXTURES["deit-training"]().save(tmp_path)
    raw, average = open_checkpoint(path), open_checkpoint(path, branch="ema")
    assert (raw.description.branch, average.description.branch) == ("encoder", "teacher")
    assert raw.description.branches == average.description.branches == ("encoder", "teacher")
    assert average.description.container == "model_ema"
    assert average.description.ignored == ("head", "model (not averaged)")
    tree = FIXTURES["deit-training"]().tree | {"model_ema": None}  # as without averaging
    assert open_checkpoint(save(tmp_path / "b.pt", tree)).description.branches == ("encoder",)


def test_averaged_weights_beside_a_flat_state_dict(tmp_path: Path) -> None:
    fixture = FIXTURES["deit-training"]()
    raw, average = fixture.tree["model"], fixture.tree["model_ema"]
    path = save(tmp_path / "a.pt", {**raw, "ema": average})
    for options, weights, branch in (({}, raw, "encoder"), ({"branch": "ema"}, average, "teacher")):
        alone = save(tmp_path / "alone.pt", weights)
        assert torch.equal(embedded(path, "backbone", **options), embedded(alone, "backbone"))
        description = open_checkpoint(path, **options).description
        assert (description.branch, description.branches) == (branch, ("encoder", "teacher"))
    assert description.container == "ema"
    assert description.ignored == ("head", "the weights next to ema (not averaged)")
    alone = save(tmp_path / "b.pt", {"epoch": 3, "ema": average})
    assert open_checkpoint(alone, branch="ema").description.ignored == ("ema.head",)


def dinov3(queries: float = 0.0, keys: float = 0.0, periods: float = 1.0) -> dict[str, Tensor]:
    """By DINOv3's names. queries, keys: their biases, keys masked; periods: over the usual."""
    model = timm.create_model("vit_small_patch16_dinov3_qkvb", num_classes=0)
    names = (("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"), ("reg_token", "storage_tokens"))
    tree = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        if not name.endswith(("q_bias", "k_bias", "v_bias")):
            tree[name] = tensor
    third = torch.ones(384)
    for i in range(12):
        tree[f"blocks.{i}.attn.qkv.bias"] = torch.cat([queries * third, keys * third, 0 * third])
        tree[f"blocks.{i}.attn.qkv.bias_mask"] = torch.cat([third, 0 * third, third])
    tree["mask_token"] = torch.ones(1, 384)
    tree["rope_embed.periods"] = (model.rope.periods * periods).bfloat16()
    return tree


def test_what_timms_conversion_drops_is_named_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    plain, biased = "vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"
    for tree in (dinov3(), dinov3(keys=0.5)):
        description = open_checkpoint(save(path, tree), arch=plain).description
        assert description.ignored[0].startswith("blocks.0.attn.qkv.bias, ")
        assert description.ignored[0].endswith(" and 20 more")  # 12 biases, 12 masks, 2 others
    save(path, dinov3(queries=0.5))
    with pytest.raises(
        CheckpointError, match=rf"leave out --arch {plain}.* drops blocks\.0\.attn\.qkv\.bias"
    ):
        open_checkpoint(path, arch=plain)
    model = open_checkpoint(path, arch=biased).modules["backbone"].model
    assert float(model.blocks[3].attn.q_bias.mean()) == 0.5
    save(path, dinov3(periods=1.1))
    with pytest.raises(CheckpointError, match=r"drops rope_embed\.periods, on which"):
        open_checkpoint(path, arch=plain)
    assert open_checkpoint(path).description.format == "dinov3-hub"


def test_a_hybrids_image_size_is_not_its_grid(tmp_path: Path) -> None:
    name = "vit_tiny_r_s16_p8_224"
    model = timm.create_model(name, num_classes=0).eval()
    assert model.patch_embed.grid_size[0] * model.patch_embed.proj.weight.shape[-1] < 224
    path = save(tmp_path / "a.pt", model.state_dict())
    loaded = open_checkpoint(path, arch=name)
    assert loaded.description.image_size == 224
    x = pixels(224)
    with torch.no_grad():
        assert_close(loaded.embed(x, ["backbone"])["backbone"], model(x))


def test_an_image_size_that_the_weights_leave_open_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By inspect, extract, rank and its dry run alike."""
    command = functools.partial(lidar_here, monkeypatch=monkeypatch, capfd=capfd)
    runs = checkpoint(tmp_path / "runs" / "a.pt").parent
    images = image_folder(tmp_path / "images", 2)
    inspected = command("inspect", runs / "a.pt").stdout
    assert "not in the weights; 224 px (the embedded images: 32 px); --image-size sets" in inspected
    assert "at 224 px with the views simclr" in inspected
    small = ("-n", 2, "-q", 2, "--device", "cpu")
    dry = command("rank", runs, "--data", images, *small, "--dry-run")
    assert ", 224 px, " in dry.stdout
    assert "a.pt: assumed image_size=224 (usual; --image-size sets it)" in dry.stderr
    toy = command("rank", runs, *small, "--dry-run")
    assert ", 32 px, " in toy.stdout
    assert "a.pt: assumed image_size=32 (of the data; --image-size sets it)" in toy.stderr
    given = command("rank", runs, "--data", images, *small, "--image-size", 24, "--dry-run")
    assert "image_size" not in given.stderr
    done = command("extract", runs / "a.pt", *small, "-o", tmp_path / "a.h5")
    assert "; image_size=32 (of the data; --image-size sets it)" in done.stderr
