"""`lidar inspect`: its report on each fixture, without torch and without reading tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from formats import FIXTURES, descriptions
from make import checkpoint, environment, image_folder, lidar_here
from raising import raises

from lidar_cli.checkpoints.formats import FORMATS
from lidar_cli.checkpoints.inspect import formats, inspect_file
from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.errors import CheckpointError, SettingsError
from lidar_cli.extraction.plan import choose_recipe
from lidar_cli.features.reader import read_provenance
from lidar_cli.report import inspect as report
from lidar_cli.settings import ExtractSettings, InspectSettings
from lidar_cli.views.methods import find_recipe
from lidar_cli.views.recipes import pixel_statistics


def test_the_report_on_a_checkpoint(tmp_path: Path) -> None:
    path = FIXTURES["moco-v3-vit"]().save(tmp_path)
    inspection = inspect_file(path, InspectSettings())
    assert (inspection.format, inspection.kind, inspection.container) == (
        "moco-v3-vit",
        "zip",
        "state_dict",
    )
    assert inspection.architecture == "vit_small_patch8 (depth 2)"
    assert (inspection.image_size, inspection.recipe, inspection.branch) == (
        32,
        "moco-v3",
        "student",
    )
    student, teacher = inspection.branches
    assert student.prefix == "module.base_encoder."
    assert student.layers == {"backbone": 384, "projector": 12, "predictor": 12}
    assert student.heads == {"projector": (384, 24, 24, 12), "predictor": (12, 24, 12)}
    assert list(teacher.layers) == ["backbone", "projector"]
    weights = FIXTURES["moco-v3-vit"]().tree["state_dict"]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert teacher.parameters == sum(
        t.numel()
        for name, t in weights.items()
        if name.startswith("module.momentum_encoder.") and not name.endswith(statistics)
    )
    assert inspection.extract == (
        "embed the projector of the student (12 numbers) at 32 px with the views moco-v3"
    )


def test_stand_ins_and_what_is_left_out_are_reported(tmp_path: Path) -> None:
    path = FIXTURES["barlow"]().save(tmp_path)
    inspection = inspect_file(path, InspectSettings())
    assert inspection.stand_ins == ("__main__.exclude_bias_and_norm",)
    assert inspection.ignored == ("bn",)
    text = report.to_text([inspection])
    assert "stand-ins     __main__.exclude_bias_and_norm" in text
    assert "projector 16-24-24-20" in text


def test_the_predictor_of_ijepa_is_listed_with_its_width(tmp_path: Path) -> None:
    path = FIXTURES["ijepa"]().save(tmp_path)
    inspection = inspect_file(path, InspectSettings())
    teacher, student = inspection.branches
    assert teacher.layers == {"backbone": 192}
    assert student.layers == {"backbone": 192, "predictor": 192}
    assert student.heads == {"predictor": (192, 96, 192)}
    tree = FIXTURES["ijepa"]().tree
    of_student = [*tree["encoder"].values(), *tree["predictor"].values()]
    assert student.parameters == sum(tensor.numel() for tensor in of_student)
    assert "predictor 192-96-192" in report.to_text([inspection])
    (row,) = (row for row in formats() if row.name == "ijepa")
    assert (row.branches, row.layers) == ("teacher, student", "backbone, predictor")


def test_the_absence_of_a_projector_is_reported(tmp_path: Path) -> None:
    path = FIXTURES["torchvision-resnet"]().save(tmp_path)
    inspection = inspect_file(path, InspectSettings())
    assert inspection.layer == "backbone"
    assert "since there is no projector" in inspection.extract


def test_a_file_without_format_says_so(tmp_path: Path) -> None:
    path = FIXTURES["wrapped-backbone"]().save(tmp_path)
    assert inspect_file(path, InspectSettings()).why.startswith("no described format")


def test_branch_may_be_chosen(tmp_path: Path) -> None:
    path = FIXTURES["dino-vit"]().save(tmp_path)
    assert inspect_file(path, InspectSettings(branch="student")).branch == "student"
    with raises(CheckpointError, "other-format"):
        inspect_file(path, InspectSettings(format="vicreg"))


@pytest.mark.parametrize(
    ("fixture", "ignored"),
    [
        ("dino-vit", ()),
        ("solo-learn-byol", ("classifier", "momentum_classifier")),
        ("stable-pretraining-byol", ("other tensors of backbone", "projector")),
    ],
)
@pytest.mark.parametrize("branch", ["teacher", "student"])
def test_what_another_branch_uses_is_not_called_unused(
    tmp_path: Path, fixture: str, ignored: tuple[str, ...], branch: str
) -> None:
    path = FIXTURES[fixture]().save(tmp_path)
    inspection = inspect_file(path, InspectSettings(branch=branch))
    assert len(inspection.branches) == 2
    assert inspection.ignored == ignored


WITHOUT_TORCH = """
import sys
from lidar_cli.__main__ import main
sys.argv = ["lidar", "inspect", "--json", *{files!r}]
try:
    main()
except SystemExit as leaving:
    assert not leaving.code, leaving.code
loaded = {{"torch", "timm", "torchvision", "numpy", "h5py"}} & set(sys.modules)
assert not loaded, loaded
"""


def test_every_fixture_is_inspected_without_torch(tmp_path: Path) -> None:
    files = []
    for name, make in FIXTURES.items():
        (tmp_path / name).mkdir()
        files.append(str(make().save(tmp_path / name)))
    script = WITHOUT_TORCH.format(files=files)
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment()
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert [one["format"] for one in report] == [make().format for make in FIXTURES.values()]


def test_the_table_of_formats_is_the_codes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = formats()
    assert [row.name for row in rows] == [*(one.name for one in FORMATS), "plain"]
    # Names and not the patterns that match them, but for choices between names.
    assert not any(sign in row.marks for row in rows for sign in ("\\", "$", ".*"))
    ended = lidar_here("inspect", "--formats", monkeypatch=monkeypatch, capfd=capfd)
    assert ended.returncode == 0
    assert [line.split()[0] for line in ended.stdout.splitlines()[1:]] == [r.name for r in rows]
    ended = lidar_here("inspect", "--formats", "--json", monkeypatch=monkeypatch, capfd=capfd)
    assert [row["name"] for row in json.loads(ended.stdout)] == [row.name for row in rows]


def test_files_that_fail_are_named_and_the_rest_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    good = FIXTURES["swav-released"]().save(tmp_path)
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"PK\x03\x04nothing")
    ended = lidar_here("inspect", bad, good, monkeypatch=monkeypatch, capfd=capfd)
    assert ended.returncode == 3
    assert ended.stderr.startswith(f"error: {bad}: ")
    assert ended.stdout.startswith(f"{good}\n  format        swav: ")
    torch.save({"encoder.0.weight": torch.zeros(4, 3)}, bad)  # the advice names another's option
    ended = lidar_here("inspect", bad, monkeypatch=monkeypatch, capfd=capfd)
    assert ended.stderr.endswith("with --model, which extract and rank take\n")
    for arguments in ([], [good, "--formats"]):
        ended = lidar_here("inspect", *arguments, monkeypatch=monkeypatch, capfd=capfd)
        assert ended.returncode == 2


def test_branch_layer_and_reason_reach_the_feature_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    images = image_folder(tmp_path / "images", 6)
    path = FIXTURES["solo-learn-byol"]().save(tmp_path)
    options = ["--data", images, "-n", 6, "-q", 2, "--image-size", 32, "-o"]
    everything = ["--layer", "backbone,projector,predictor"]
    for more, branch, layers in (
        (everything, "student", ["backbone", "projector", "predictor"]),
        (["--branch", "teacher"], "teacher", ["projector"]),
    ):
        out = tmp_path / f"{branch}.h5"
        arguments = ["extract", path, *options, out, *more]
        ended = lidar_here(*arguments, monkeypatch=monkeypatch, capfd=capfd)
        assert ended.returncode == 0, ended.stderr
        provenance = read_provenance(out)
        assert (provenance["branch"], provenance["layers"]) == (branch, layers)
        assert (provenance["model_format"], provenance["layer_reason"]) == ("solo-learn", None)
    plain = checkpoint(tmp_path / "plain.pt", projected=None)
    arguments = ["extract", plain, *options, tmp_path / "p.h5"]
    ended = lidar_here(*arguments, monkeypatch=monkeypatch, capfd=capfd)
    reason = "holds no projector, so the backbone is embedded"
    assert f"{plain}: {reason}" in ended.stderr
    assert read_provenance(tmp_path / "p.h5")["layer_reason"] == reason


def test_auto_views_are_those_of_the_method_if_there_is_such_a_recipe(tmp_path: Path) -> None:
    by_hand = ExtractSettings(pixel_stats="imagenet")
    for name, views, mean in (
        ("simclr-sthalles", "simclr", 0.0),  # trained on pixels in [0, 1]
        ("torchvision-resnet", "simclr", 0.485),
    ):
        (tmp_path / name).mkdir()
        description = open_checkpoint(FIXTURES[name]().save(tmp_path / name)).description
        recipe = choose_recipe(ExtractSettings(), description)
        assert (recipe.name, recipe.mean[0]) == (views, mean)
        assert choose_recipe(by_hand, description).mean[0] == 0.485
        assert choose_recipe(ExtractSettings(views="identity"), description).name == "identity"


def test_the_pixel_statistics_that_are_said_are_used(tmp_path: Path) -> None:
    for name, (description, _) in descriptions().items():
        recipe = choose_recipe(ExtractSettings(), description)
        assumed = description.assumed.get("pixel_stats")
        said = pixel_statistics(str(assumed.value) if assumed else description.pixel_stats)
        assert said == (recipe.mean, recipe.std), name
    path = FIXTURES["swav-released"]().save(tmp_path)
    text = "0.485,0.456,0.406/0.228,0.224,0.225"  # src/multicropdataset.py
    assert inspect_file(path, InspectSettings()).pixel_stats == text


def test_every_format_names_a_recipe_that_exists() -> None:
    for row in formats():
        for recipe in row.recipe.split(", "):
            assert find_recipe(recipe, "auto").name == recipe, row.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--branch", "techer"], "--branch techer: did you mean teacher?"),
        (["--format", "vicregg"], "--format vicregg: did you mean vicreg?"),
    ],
)
@pytest.mark.parametrize("command", ["extract", "rank", "inspect"])
def test_mistyped_names_are_wrong_usage(
    command: str,
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = FIXTURES["vicreg"]().save(tmp_path)
    target = tmp_path if command == "rank" else path
    monkeypatch.chdir(tmp_path)
    ended = lidar_here(command, target, *options, monkeypatch=monkeypatch, capfd=capfd)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in ended.stderr


def test_own_code_has_neither_format_nor_branch(tmp_path: Path) -> None:
    with raises(SettingsError, "model-and-format") as raised:
        open_checkpoint(tmp_path / "a.pt", model="a:b", branch="teacher")
    raised.match("leave --format and --branch out")


def test_rank_takes_branch_and_format_and_reports_missing_projectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    images = image_folder(tmp_path / "images", 8)
    runs = tmp_path / "runs"
    runs.mkdir()
    for name in ("lightly-byol", "lightly-moco"):
        (runs / name).mkdir()
        FIXTURES[name]().save(runs / name)
    options = [
        "--data",
        images,
        "-n",
        8,
        "-q",
        2,
        "--image-size",
        32,
        "--views",
        "simclr",
        "--json",
    ]
    ended = lidar_here(
        "rank", runs, *options, "--branch", "teacher", monkeypatch=monkeypatch, capfd=capfd
    )
    assert ended.returncode == 0, ended.stderr
    assert len(json.loads(ended.stdout)["checkpoints"]) == 2
    cached = sorted((runs / ".lidar").glob("*.h5"))
    assert {read_provenance(path)["branch"] for path in cached} == {"teacher"}
    assert "projector" not in ended.stderr
    checkpoint(runs / "plain.pt", projected=None)
    ended = lidar_here("rank", runs, *options, monkeypatch=monkeypatch, capfd=capfd)
    assert ended.returncode == 0, ended.stderr
    assert "1 of 3 files hold no projector, so the backbone of all is compared" in ended.stderr


def test_extract_and_rank_report_stand_ins_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    images = image_folder(tmp_path / "images", 6)
    (tmp_path / "runs").mkdir()
    path = FIXTURES["barlow"]().save(tmp_path / "runs")
    options = ["--data", images, "-n", 6, "-q", 2, "--image-size", 32]
    line = f"{path}: names __main__.exclude_bias_and_norm: stand-ins, nothing was imported or"
    for command in (["extract", path, "-o", tmp_path / "a.h5"], ["rank", tmp_path / "runs"]):
        ended = lidar_here(*command, *options, monkeypatch=monkeypatch, capfd=capfd)
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr.count(line) == 1
        assert "exclude_bias_and_norm" not in ended.stdout
    path = FIXTURES["swav-released"]().save(tmp_path)
    command = ["extract", path, *options, "-o", tmp_path / "b.h5"]
    ended = lidar_here(*command, monkeypatch=monkeypatch, capfd=capfd)
    assert "stand-ins" not in ended.stderr
