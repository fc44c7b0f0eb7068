"""`lidar rank --per-run` and `--baseline untrained`, on small photographs."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import run_command
from formats import FIXTURES
from make import crop, encoded, environment, image_folder, state_dict
from rank_runs import SIZE, Shell, rank_here, ranked, stamps
from torch import Tensor
from torch.nn import functional as F

from lidar_cli.checkpoints.models.timm_model import _create
from lidar_cli.checkpoints.open import open_checkpoint, open_untrained
from lidar_cli.ranking.runs import Position, position_in_name, recorded_position
from lidar_cli.settings import ModelSettings

LIGHTNING = "lightning_logs/version_0/checkpoints"
STEPS = 100  # an epoch


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), 50)


@pytest.fixture
def rank(images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    run = rank_here(images, monkeypatch, capfd)

    def with_50(directory: Path, *more: object) -> subprocess.CompletedProcess[str]:
        return run(directory, "-n", 50, "--by", "rankme", *more)

    return with_50


def save(path: Path, seed: int, share: float = 1.0, scale: float = 1.0, **recorded: Any) -> Path:
    """A network whose backbone embeds in fewer directions, the smaller the share."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = state_dict(seed, projected=None)
    for name in ("layer4.0.conv2.weight", "layer4.0.downsample.0.weight"):
        rows = weights[f"module.backbone.{name}"]
        rows[int(share * len(rows)) :] = rows[:1]
    weights["module.backbone.conv1.weight"] *= scale
    torch.save({**recorded, "state_dict": weights}, path)
    return path


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a is best in the middle and collapses, run b is best at its end, by RankMe."""
    runs = tmp_path_factory.mktemp("two") / "runs"
    for run, shares in {"a": (0.8, 1.0, 0.3), "b": (0.2, 0.4, 0.6)}.items():
        for epoch, share in zip((19, 39, 59), shares, strict=True):
            name = f"epoch={epoch}-step={STEPS * epoch}.ckpt"
            save(runs / run / LIGHTNING / name, 1, share, epoch=epoch, global_step=STEPS * epoch)
        last = runs / run / LIGHTNING / "last.ckpt"
        save(last, 1, shares[-1], 1 + 1e-6, epoch=59, global_step=STEPS * 59)
    return runs


def by_run(ranking: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {Path(run["path"].replace(f"/{LIGHTNING}", "")).name: run for run in ranking["runs"]}


# Runs


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("r/epoch=59-step=5900.ckpt", Position(epoch=59, step=5900)),
        ("r/epoch=3-val_loss=0.12.ckpt", Position(epoch=3)),
        ("r/last.ckpt", Position(is_final=True)),
        ("r/last-v1.ckpt", Position(is_final=True)),
        ("r/checkpoint_0100.pth.tar", Position(number=100)),
        ("r/checkpoint-500/model.safetensors", Position(step=500)),
        ("r/step_1000.pt", Position(step=1000)),
        ("r/iter_40000.pth", Position(step=40000)),
        ("r/jepa-ep300.pth.tar", Position(epoch=300)),
        ("r/0100.pt", Position(number=100)),
        ("r/vicreg-05.pt", Position()),
        ("r/resnet50.pt", Position()),
        ("r/lr=0.001.pt", Position()),
    ],
)
def test_epoch_and_step_are_read_from_names(path: str, expected: Position) -> None:
    assert position_in_name(path) == expected


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"epoch": 7, "global_step": 700}, Position(7, 700)),
        ({"meta": {"epoch": 7, "iter": 700}}, Position(7, 700)),
        ({"iteration": 12.0}, Position(step=12)),
        ({"epoch": True, "step": -1}, Position()),
        ({"epoch": 1.5, "step": float("nan")}, Position()),
        ({"epoch": "7"}, Position()),
    ],
)
def test_epoch_and_step_are_read_from_checkpoints(tree: dict[str, Any], expected: Position) -> None:
    assert recorded_position(tree) == expected


def test_the_best_checkpoint_of_each_run_and_its_curve(two_runs: Path, rank: Shell) -> None:
    ranking = ranked(rank(two_runs, "--per-run", "--json"))
    values = {row["path"]: row["value"] for row in ranking["checkpoints"]}
    assert len(values) == 8
    runs = by_run(ranking)
    assert list(runs) == ["a", "b"]
    a, b = runs["a"], runs["b"]
    assert [point["x"] for point in a["points"]] == [19, 39, 59, 59]
    assert [point["value"] for point in a["points"]] == [
        values[point["path"]] for point in a["points"]
    ]
    assert (a["axis"], a["best"]["x"], a["last"]["x"]) == ("epoch", 39, 59)
    assert Path(a["last"]["path"]).name == "last.ckpt"
    best, last = a["best"]["value"], a["last"]["value"]
    assert best == max(value for path, value in values.items() if "/a/" in path)
    assert a["drop"] == pytest.approx((last - best) / best)
    assert not a["tied"]
    assert a["drop"] < -0.1
    assert (b["best"]["x"], b["last"]["x"], b["drop"]) == (59, 59, None)
    assert {run["name"] for run in runs.values()} == {"a", "b"}
    (alone,) = ranked(rank(two_runs / "a", "--per-run", "--json"))["runs"]
    assert alone["name"] == "a"


def test_top_and_quiet_with_runs_print_the_best_of_each(two_runs: Path, rank: Shell) -> None:
    quiet = rank(two_runs, "--per-run", "--quiet").stdout.splitlines()
    folder = f"{two_runs}/a/{LIGHTNING}"
    assert quiet[0] == f"{folder}/epoch=39-step=3900.ckpt"
    assert [Path(path).relative_to(two_runs).parts[0] for path in quiet] == ["a", "b"]
    assert rank(two_runs, "--per-run", "--quiet", "--top", 1).stdout.splitlines() == quiet[:1]
    first = ranked(rank(two_runs, "--per-run", "--json", "--top", 1))
    assert [row["path"] for row in first["checkpoints"]] == quiet[:1]
    assert len(first["runs"]) == 1


def test_runs_as_a_table(two_runs: Path, rank: Shell) -> None:
    done = rank(two_runs, "--per-run")
    runs = by_run(ranked(rank(two_runs, "--per-run", "--json")))
    drop = f"{100 * runs['a']['drop']:+.0f} %"
    text = done.stdout + done.stderr
    assert f"epoch 59, is {drop[1:]} below it" in text
    assert "Next is b, clearly below." in text
    (row,) = [line for line in done.stdout.splitlines() if line.endswith(drop)]
    assert "epoch 39" in row
    assert "epoch 59" in row
    table = rank(two_runs, "--per-run", "--csv").stdout
    lines = list(csv.DictReader(io.StringIO(table)))
    assert [line["at"] for line in lines if line["best"] == "1"] == ["39", "59"]
    assert "| epoch 39 |" in rank(two_runs, "--per-run", "--markdown").stdout


def test_runs_that_begin_with_the_same_weights_share_a_point(tmp_path: Path, rank: Shell) -> None:
    """The start is the best of run b, of which another run has the row."""
    for run, share in (("a", 0.9), ("b", 0.2)):
        save(tmp_path / f"runs/{run}/epoch_0.pt", 1, 0.5, epoch=0)
        save(tmp_path / f"runs/{run}/epoch_1.pt", 1, share, epoch=1)
    shutil.copytree(tmp_path / "runs/b", tmp_path / "runs/b/best")
    (tmp_path / "runs/b/best/epoch_0.pt").unlink()  # a folder with nothing but a copy is no run
    shutil.copytree(tmp_path / "runs/a", tmp_path / "runs/a/all")  # nor are copies of all
    ranking = ranked(rank(tmp_path / "runs", "--per-run", "--json"))
    assert len(ranking["checkpoints"]) == 3
    runs = {Path(run["path"]).name: run for run in ranking["runs"]}
    assert runs.keys() == {"a", "b"}
    assert [point["x"] for run in runs.values() for point in run["points"]] == [0, 1, 0, 1]
    assert runs["a"]["points"][0]["value"] == runs["b"]["points"][0]["value"]
    assert [Path(runs[name]["best"]["path"]).parts[-2:] for name in "ab"] == [
        ("a", "epoch_1.pt"), ("b", "epoch_0.pt")
    ]  # fmt: skip
    table = rank(tmp_path / "runs", "--per-run")
    assert table.returncode == 0, table.stderr
    page = rank(tmp_path / "runs", "--per-run", "--report", tmp_path / "page.html")
    assert page.returncode == 0, page.stderr


def test_a_run_that_begins_with_the_end_of_another(tmp_path: Path, rank: Shell) -> None:
    """The other run's epochs, records and ties are not its own."""
    for epoch, share in enumerate((0.3, 0.9)):
        save(tmp_path / f"runs/a/epoch_{epoch}.pt", 1, share, epoch=epoch)
    save(tmp_path / "runs/b/epoch_0.pt", 1, 0.9, epoch=0)
    save(tmp_path / "runs/b/epoch_1.pt", 1, 0.2, epoch=1)
    runs = {Path(run["path"]).name: run for run in ranked(
        rank(tmp_path / "runs", "--per-run", "--json"))["runs"]}  # fmt: skip
    points = {
        name: [(Path(point["path"]).stem, point["x"]) for point in run["points"]]
        for name, run in runs.items()
    }
    assert points == {
        "a": [("epoch_0", 0), ("epoch_1", 1)],
        "b": [("epoch_0", 0), ("epoch_1", 1)],
    }
    assert Path(runs["b"]["last"]["path"]).stem == "epoch_1"
    assert runs["b"]["drop"] < 0


def test_names_that_contradict_files_are_said(tmp_path: Path, rank: Shell) -> None:
    runs = tmp_path / "runs"
    for at, name in enumerate(("epoch_1.pth", "epoch_7.pth")):
        save(runs / name, 2, 0.8 - 0.2 * at, epoch=at + 1)
    done = rank(runs, "--per-run")
    assert "runs: epoch_7: the epoch that the file records is used, its name says" in done.stderr


def test_one_checkpoint_a_run_has_no_drop(tmp_path: Path, rank: Shell) -> None:
    for at in (0, 1):
        save(tmp_path / "runs" / f"{at}/last.pth", 2, 1.0 - 0.2 * at)
    done = rank(tmp_path / "runs", "--per-run", "-n", 20)
    assert "how much of that is chance is unknown" in done.stdout
    assert "a drop may be noise" not in done.stderr


def test_a_difference_inside_the_interval_is_a_tie(tmp_path: Path, rank: Shell) -> None:
    runs = tmp_path / "runs"
    for epoch, share in ((1, 0.8), (2, 0.6)):
        save(runs / f"epoch_{epoch}.pth", 2, share)
    (run,) = ranked(rank(runs, "--by", "lidar", "--per-run", "--json"))["runs"]
    assert (run["best"]["x"], run["last"]["x"], run["tied"]) == (1, 2, True)
    assert run["drop"] < 0
    done = rank(runs, "--by", "lidar", "--per-run")
    assert f"{100 * run['drop']:.1f}"[1:] not in done.stdout
    (row,) = [line for line in done.stdout.splitlines() if line.endswith(" tie")]
    assert "epoch 1" in row
    assert "is tied with it" in done.stdout + done.stderr


def test_what_is_not_known_of_the_order_is_said(tmp_path: Path, rank: Shell) -> None:
    runs = tmp_path / "runs"
    save(runs / "a/best.pt", 1)
    save(runs / "a/final_model.pt", 1, 0.3)
    save(runs / "b/best.pt", 1, 0.6)
    save(runs / "b/model.pt", 1, 0.2)
    save(runs / "c/checkpoint_1.pt", 1, 0.5)
    save(runs / "c/checkpoint_2.pt", 1, 0.1)
    found = by_run(ranked(rank(runs, "--per-run", "--json")))
    assert found["a"]["axis"] is None
    assert found["a"]["last"]["path"].endswith("final_model.pt")
    assert found["b"]["last"] is None
    assert (found["c"]["axis"], found["c"]["last"]["x"]) == ("number", 2)
    done = rank(runs, "--per-run")
    text = done.stdout + done.stderr
    assert "order not known" in text
    assert "b: no epoch or step recorded or in the name: b/best and 1 more" in text
    assert "do not say whether it counts epochs or steps" in text


def test_files_that_record_one_epoch_are_runs_and_not_a_curve(tmp_path: Path, rank: Shell) -> None:
    for number in (1, 2):
        save(tmp_path / f"runs/model_{number}.pt", number, epoch=100)
        save(tmp_path / f"runs/same/epoch_{number}.pt", 2 + number, epoch=100)  # its name is right
    runs = ranked(rank(tmp_path / "runs", "--per-run", "--json"))["runs"]
    assert sorted(len(run["points"]) for run in runs) == [1, 1, 2]
    (curve,) = [run for run in runs if len(run["points"]) == 2]
    assert [point["x"] for point in curve["points"]] == [1, 2]


@pytest.mark.parametrize("option", [("--per-run",), ("--baseline", "untrained")])
@pytest.mark.parametrize("mode", ["--race", "--watch"])
def test_runs_and_baselines_are_of_whole_rankings(
    option: Sequence[str], mode: str, tmp_path: Path, rank: Shell
) -> None:
    done = rank(tmp_path, mode, *option)
    assert done.returncode == 2
    assert option[0] in done.stderr
    assert mode in done.stderr


# Untrained networks

CLEAN = 20


def conv(generated: list[Tensor], out: int, into: int, kernel: int) -> None:
    weight = torch.empty(out, into, kernel, kernel)
    torch.nn.init.normal_(weight, std=(2 / (out * kernel * kernel)) ** 0.5)
    generated.append(weight)


def untrained_by_hand(pixels: Tensor, seed: int, widths: Sequence[int]) -> Tensor:
    """The backbone of `make.network` at random, in plain torch: BatchNorm divides by nothing."""
    torch.manual_seed(seed)
    weights: list[Tensor] = []
    conv(weights, widths[0], 3, 3)
    into = widths[0]
    for at, width in enumerate(widths):
        conv(weights, width, into, 3)
        conv(weights, width, width, 3)
        if at:
            conv(weights, width, into, 1)
        into = width

    def norm(x: Tensor) -> Tensor:
        return x / (1 + 1e-5) ** 0.5

    draw = iter(weights)
    x = F.relu(norm(F.conv2d(pixels, next(draw), padding=1)))
    for at in range(len(widths)):
        stride = 2 if at else 1
        y = F.relu(norm(F.conv2d(x, next(draw), stride=stride, padding=1)))
        y = norm(F.conv2d(y, next(draw), padding=1))
        x = F.relu(y + (norm(F.conv2d(x, next(draw), stride=stride)) if at else x))
    return x.mean(dim=(2, 3))


def rankme(z: Tensor) -> float:
    singular = torch.linalg.svdvals(z.double())
    p = singular / singular.sum() + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def test_the_baseline_is_the_mean_of_three_untrained_networks(tmp_path: Path, rank: Shell) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    pieces = [crop(at, SIZE, SIZE) for at in range(CLEAN)]
    for at, piece in enumerate(pieces):
        (folder / f"{at:03}.png").write_bytes(encoded(piece))
    save(tmp_path / "runs/a.pt", 1)
    words = ["--data", folder, "-n", CLEAN, "-q", 2, "--pixel-stats", "unit", "--json"]
    done = rank(tmp_path / "runs", *words, "--baseline", "untrained")
    (baseline,) = ranked(done)["baseline"]
    pixels = torch.from_numpy(np.stack(pieces)).permute(0, 3, 1, 2) / 255.0
    expected = [rankme(untrained_by_hand(pixels, seed, (4, 8, 12, 16))) for seed in (0, 1, 2)]
    assert baseline["metrics"]["rankme"]["values"] == pytest.approx(expected, rel=1e-4)
    assert baseline["value"] == pytest.approx(sum(expected) / 3, rel=1e-4)
    assert (baseline["lowest"], baseline["highest"]) == pytest.approx(
        (min(expected), max(expected)), rel=1e-4
    )
    assert "running mean 0 and variance 1" in baseline["initialisation"]


def test_a_baseline_is_cached_and_never_ranked(two_runs: Path, tmp_path: Path, rank: Shell) -> None:
    two_runs = Path(shutil.copytree(two_runs / f"a/{LIGHTNING}", tmp_path / "runs"))
    cache = two_runs / "visible"
    plain = ranked(rank(two_runs, "--json", "--cache", cache))
    with_one = ranked(rank(two_runs, "--json", "--cache", cache, "--baseline", "untrained"))
    (baseline,) = with_one.pop("baseline")
    assert (baseline["reason"], baseline["group"], len(baseline["seeds"])) == (None, 1, 3)
    assert with_one["checkpoints"] == plain["checkpoints"]
    written = stamps(cache)
    assert sum(name.startswith("untrained-") for name in written) == 3
    again = ranked(rank(two_runs, "--json", "--cache", cache, "--baseline", "untrained"))
    assert again["baseline"] == [baseline]
    assert stamps(cache) == written
    without = ranked(rank(two_runs, "--json", "--cache", cache))
    assert without["checkpoints"] == plain["checkpoints"]
    assert "baseline" not in without
    reasons = [file["reason"] for file in without["skipped"]]
    assert reasons.count("of an untrained network, see --baseline") == 3
    quiet = rank(two_runs, "--quiet", "--cache", cache, "--baseline", "untrained")
    assert quiet.stdout.splitlines() == [row["path"] for row in plain["checkpoints"]]


def test_a_baseline_is_a_row_without_rank(two_runs: Path, rank: Shell) -> None:
    (baseline,) = ranked(rank(two_runs, "--json", "--baseline", "untrained"))["baseline"]
    mean = f"{baseline['value']:.4g}"
    for more in ((), ("--per-run",)):
        done = rank(two_runs, "--baseline", "untrained", *more)
        (row,) = [
            line for line in done.stdout.splitlines() if line.strip().startswith("untrained ")
        ]
        assert mean[:4] in row
        assert "3 seeds" in done.stdout + done.stderr
        # Names in the progress are those of the table, with or without untrained networks.
        assert re.search(r"\] a/epoch=19\S* rankme ", done.stderr)
    ended = run_command(["cache", two_runs, "--json"], two_runs, environment())
    files = [file for file in json.loads(ended.stdout)["files"] if "untrained-" in file["name"]]
    assert {file["checkpoint"] for file in files} == {"(untrained)"}
    assert len(files) >= 3
    assert all(file["unused"] is None for file in files)


def test_a_best_checkpoint_worse_than_an_untrained_network_is_a_fact(
    two_runs: Path, rank: Shell
) -> None:
    facts = {}
    for by in ("alignment", "rankme"):
        ranking = ranked(rank(two_runs, "--json", "--by", by, "--baseline", "untrained"))
        (baseline,) = ranking["baseline"]
        best, untrained = ranking["checkpoints"][0]["value"], baseline["value"]
        is_worse = best > untrained if ranking["direction"] == "lower" else best < untrained
        facts[by] = baseline["better_than_best"]
        assert facts[by] == is_worse
        done = rank(two_runs, "--by", by, "--baseline", "untrained")
        caution = f"has a better {by} than the best checkpoint"
        assert (caution in done.stdout + done.stderr) == is_worse
    assert facts == {"alignment": True, "rankme": False}


def test_one_baseline_for_each_architecture(tmp_path: Path, rank: Shell) -> None:
    for name, widths in {"a": (4, 8, 12, 16), "b": (4, 8, 12, 16), "c": (4, 4, 12, 16)}.items():
        (tmp_path / "runs").mkdir(exist_ok=True)
        torch.save(state_dict(1, widths=widths, projected=None), tmp_path / f"runs/{name}.pt")
    ranking = ranked(rank(tmp_path / "runs", "--json", "--baseline", "untrained"))
    assert len(ranking["baseline"]) == 2
    assert len({one["name"] for one in ranking["baseline"]}) == 2


FACTORY = """
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
"""


def test_a_module_of_the_user_has_a_baseline_too(
    tmp_path: Path, rank: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "runs").mkdir()
    weights = import_module("runs_factory").network().state_dict()
    torch.save(weights, tmp_path / "runs/a.pt")
    words = ["--model", "runs_factory:network", "--baseline", "untrained", "--json"]
    (baseline,) = ranked(rank(tmp_path / "runs", *words))["baseline"]
    assert len(set(baseline["metrics"]["lidar"]["values"])) == 3
    assert baseline["initialisation"].startswith("as runs_factory:network returns it")


@pytest.mark.parametrize("name", ["dino-vit", "ijepa", "hf-beit", "data2vec2-base", "dinov2-hub"])
def test_every_family_can_be_initialised(name: str, tmp_path: Path) -> None:
    path, settings = FIXTURES[name]().save(tmp_path), ModelSettings()
    trained = open_checkpoint(path)
    networks = [open_untrained(path, seed, settings, trained.description) for seed in (0, 0, 1)]
    size = trained.description.image_size or 32
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    for layer in trained.layers:
        first, same, other = (one.embed(pixels, [layer])[layer] for one in networks)
        assert torch.isfinite(first).all()
        assert torch.equal(first, same)
        assert not torch.equal(first, other)
    backbone = networks[0].modules["backbone"].state_dict()
    linear = [w for n, w in backbone.items() if n.endswith("mlp.fc1.weight")]
    assert float(linear[0].std()) == pytest.approx(0.02, rel=0.1)


def test_a_timm_model_is_initialised_by_timm(tmp_path: Path) -> None:
    torch.save(_create("resnet10t").state_dict(), tmp_path / "a.pt")
    trained = open_checkpoint(tmp_path / "a.pt", arch="resnet10t")
    settings = ModelSettings(arch="resnet10t")
    opened = open_untrained(tmp_path / "a.pt", 5, settings, trained.description)
    torch.manual_seed(5)
    expected = _create("resnet10t").eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(opened.embed(pixels, ["backbone"])["backbone"], expected(pixels))


def test_initialising_leaves_the_generator_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", 1)
    description = open_checkpoint(path).description
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    open_untrained(path, 0, ModelSettings(), description)
    assert torch.equal(torch.rand(3), expected)
