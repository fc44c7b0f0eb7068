"""A directory of checkpoints to an ordered list, with everything else found there accounted for."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from feature_files import set_revision
from make import (
    PROJECTED,
    WIDTHS,
    besides_assumptions,
    checkpoint,
    environment,
    image_folder,
    lidar_here,
    state_dict,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from lidar_cli.checkpoints.reading.read import read_contents
from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import InputError, SettingsError
from lidar_cli.extraction.run import extract_checkpoint
from lidar_cli.ranking.cache_folder import MARKER
from lidar_cli.ranking.digests import Digests
from lidar_cli.ranking.discover import Skipped, survey
from lidar_cli.ranking.order import Row, grouped, misleading, order
from lidar_cli.ranking.session import find_metric, rank_directory
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import Score
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ExtractSettings, ModelSettings, RankSettings, ScoreSettings

N, Q, SIZE = 24, 4, 24
Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), N)


@pytest.fixture
def rank(images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    """`lidar rank DIR` on the photographs, with more options."""

    def run(directory: Path, *more: object) -> subprocess.CompletedProcess[str]:
        words = ["rank", directory, "--data", images, "-n", N, "-q", Q, "--image-size", SIZE]
        words += ["--device", "cpu", "--batch-size", 8, *more]
        done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
        done.stderr = besides_assumptions(done.stderr)
        return done

    return run


def settings(images: Path, **more: Any) -> dict[str, Any]:
    """What `rank` above is told, for jobs called directly."""
    known = {"n_samples": N, "n_views": Q, "image_size": SIZE, "batch_size": 8, "device": "cpu"}
    return {"data": str(images)} | known | more


def ranked(done: subprocess.CompletedProcess[str], status: int = 0) -> dict[str, Any]:
    assert done.returncode == status, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def values(done: subprocess.CompletedProcess[str]) -> dict[str, float]:
    return {Path(row["path"]).name: row["value"] for row in ranked(done)["checkpoints"]}


def stamps(folder: Path) -> dict[str, int]:
    """When each feature file of a cache was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.h5")}


def three(runs: Path, **shape: Any) -> Path:
    for seed, name in enumerate(("a.pt", "b.pth", "c.ckpt")):
        checkpoint(runs / name, seed, **shape)
    return runs


class Foreign:
    """A class that only the training script knows."""

    def __init__(self) -> None:
        self.learning_rate = 0.1


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    """A directory as experiments leave it."""
    runs = tmp_path / "runs"
    checkpoint(runs / "one/last.pt", 1)
    checkpoint(runs / "two/checkpoint-5/model.pth.tar", 2)
    save_file(state_dict(3), runs / "three.safetensors")
    torch.save(state_dict(4, prefix=""), runs / "four.BIN")
    shutil.copy(runs / "one/last.pt", runs / "one/best.pt")
    shutil.copy(runs / "one/last.pt", runs / "zz.ckpt")
    torch.save({"state": {0: {"step": 3}}, "param_groups": []}, runs / "one/optimizer.pt")
    torch.save({"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}, runs / "adam.pt")
    torch.save({"last_epoch": 3}, runs / "one/scheduler.pt")
    (runs / "training_args.bin").write_bytes(pickle.dumps(Foreign()))
    (runs / "broken.pt").write_bytes((runs / "one/last.pt").read_bytes()[:5000])
    (runs / "empty.pth").write_bytes(b"")
    (runs / "notes.txt").write_text("not looked at")
    checkpoint(runs / ".trash/old.pt", 9)
    return runs


def test_everything_in_a_directory_is_accounted_for(everything: Path, rank: Shell) -> None:
    found = ranked(rank(everything, "--json"), status=4)
    rows = {
        Path(row["path"]).relative_to(everything).as_posix(): row for row in found["checkpoints"]
    }
    # Copies are one row, under the name that comes first where files come before folders.
    assert rows.keys() == {
        "four.BIN",
        "three.safetensors",
        "two/checkpoint-5/model.pth.tar",
        "zz.ckpt",
    }
    copies = [str(everything / name) for name in ("one/best.pt", "one/last.pt")]
    assert rows["zz.ckpt"]["aliases"] == copies
    assert [row["rank"] for row in found["checkpoints"]] == [1, 2, 3, 4]
    skipped = {Path(left["path"]).name: left["reason"] for left in found["skipped"]}
    assert skipped.keys() == {"optimizer.pt", "adam.pt", "scheduler.pt", "training_args.bin"}
    assert skipped["optimizer.pt"] == "by its name, not model weights"
    failed = {Path(left["path"]).name: left["reason"] for left in found["failed"]}
    assert failed.keys() == {"broken.pt", "empty.pth"}
    assert "is empty; expected a file of torch.save or safetensors" in failed["empty.pth"]
    assert failed["broken.pt"].startswith("a damaged or truncated torch file: its zip directory")
    assert "\n" not in failed["broken.pt"]


def test_a_pipe_in_a_directory_is_not_waited_for(tmp_path: Path, rank: Shell) -> None:
    checkpoint(tmp_path / "runs/a.pt", 1)
    for name in ("b.pt", "c.h5"):
        os.mkfifo(tmp_path / "runs" / name)
    found = ranked(rank(tmp_path / "runs", "--json"))
    assert [Path(row["path"]).name for row in found["checkpoints"]] == ["a.pt"]
    assert [left["reason"] for left in found["skipped"]] == 2 * ["a pipe, not a file"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of another kind")
def test_a_folder_that_may_not_be_listed_is_among_the_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 1)
    (tmp_path / "runs" / "closed").mkdir(0o000)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    nobody = 65534
    own = os.geteuid()
    read_contents(tmp_path / "runs" / "a.pt")  # in a child whose interpreter others may not start
    try:
        if own == 0:  # who may list anything
            os.seteuid(nobody)
        found = survey(
            Path("runs"), ModelSettings(), Progress(), Digests(Path("runs"), Path("absent"))
        )
    finally:
        os.seteuid(own)
    assert [str(known.path) for known in found.checkpoints.values()] == ["runs/a.pt"]
    assert found.failed == [Skipped("runs/closed", "Permission denied")]


def test_the_json_contract(tmp_path: Path, images: Path, rank: Shell) -> None:
    found = ranked(rank(three(tmp_path / "runs"), "--json"))
    keys = "by direction data groups checkpoints skipped failed warnings correlation"
    assert found.keys() == set(keys.split())
    assert (found["by"], found["direction"], found["groups"]) == ("lidar", "higher", 1)
    assert found["data"] == str(images)
    assert (found["skipped"], found["failed"], found["correlation"]) == ([], [], None)
    row_keys = "group rank path aliases value reason ci_low ci_high tied_with metrics"
    for row in found["checkpoints"]:
        assert row.keys() == set(row_keys.split())
        assert (row["aliases"], row["reason"]) == ([], None)
        assert row["ci_low"] < row["value"] < row["ci_high"]
        assert set(row["tied_with"]) < {other["path"] for other in found["checkpoints"]}
        assert row["path"] not in row["tied_with"]
        metrics = row["metrics"]
        assert metrics["confidence"]["level"] == 0.95
        intervals = metrics["confidence"]["intervals"]
        assert intervals.keys() == METRICS.keys()
        assert intervals["lidar"]["ci_low"] == row["ci_low"]
        assert intervals["alpha_req"]["reason"] == metrics["notes"]["alpha_req"]
        assert metrics.keys() >= METRICS.keys() | {"n_samples", "n_views", "dim", "layer", "delta"}
        assert metrics["lidar"] == row["value"]
        assert (metrics["n_samples"], metrics["n_views"]) == (N, Q)
        assert (metrics["layer"], metrics["dim"]) == ("projector", PROJECTED)
        assert metrics["alpha_req"] is None
        assert "it needs d >= 100" in metrics["notes"]["alpha_req"]
    found_values = [row["value"] for row in found["checkpoints"]]
    assert found_values == sorted(found_values, reverse=True)
    assert len(set(found_values)) == 3


def test_the_layer_is_the_projector_only_if_every_file_has_one(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    checkpoint(runs / "bare.pt", 7, projected=None)
    found = ranked(rank(runs, "--json"))
    assert {row["metrics"]["layer"] for row in found["checkpoints"]} == {"backbone"}
    assert {row["metrics"]["dim"] for row in found["checkpoints"]} == {WIDTHS[-1]}
    forced = ranked(rank(runs, "--json", "--layer", "projector"), status=4)
    assert len(forced["checkpoints"]) == 3
    (failed,) = forced["failed"]
    assert failed["path"] == str(runs / "bare.pt")
    assert failed["reason"].startswith("no layer 'projector' in this checkpoint; it has backbone")


# Order


ALIKE: dict[str, Any] = {
    "samples_sha256": "a", "seed": 0, "views": {"name": "simclr"}, "image_size": 32,
    "mask_grid": None,
}  # fmt: skip
SCORED: dict[str, Any] = {
    "n_samples": 10, "n_views": 2, "dim": 4, "layer": "projector", "delta": 1e-4,
    "normalized": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "apart"),
    [
        *((entry, True) for entry in (
            {"samples_sha256": "b"}, {"seed": 1}, {"views": {"name": "dino"}},
            {"image_size": 64}, {"mask_grid": 14}, {"n_samples": 9}, {"n_views": 3}, {"dim": 5},
            {"layer": "backbone"}, {"delta": 1e-3}, {"normalized": True},
        )),
        *((entry, False) for entry in (
            {"sha256": "b"}, {"architecture": "resnet18"}, {"device": "cuda"}, {"n_clean": 40},
        )),
    ],
    ids=str,
)  # fmt: skip
def test_what_must_be_equal_for_two_checkpoints_to_be_compared(
    change: dict[str, Any], apart: bool
) -> None:
    rows = []
    for path, changed in (("a", {}), ("b", {}), ("c", change)):
        facts = SCORED | {k: v for k, v in changed.items() if k in SCORED}
        score = Score.of(file=path, epsilon=1e-7, lidar=2.0, **facts)
        told = ALIKE | {k: v for k, v in changed.items() if k not in SCORED}
        rows.append((Row(path, (), score, 2.0), told))
    groups = grouped(rows, METRICS["lidar"], 0.95)
    paths = [[each.path for each in group.rows] for group in groups]
    assert paths == ([["a", "b"], ["c"]] if apart else [["a", "b", "c"]])


@pytest.mark.parametrize(("noisy", "remarked"), [(1, False), (2, False), (3, True), (4, True)])
def test_an_order_by_lidar_that_is_mostly_noise_is_remarked(noisy: int, remarked: bool) -> None:
    """More than half of the LDA trace in more than half of four checkpoints."""
    rows = []
    for at in range(4):
        fraction = 0.51 if at < noisy else 0.49
        score = Score.of(str(at), "projector", *(10, 2, 4), 1e-4, 1e-7, False, lidar=2.0,
                      noise_fraction=fraction, pillai=float(at))  # fmt: skip
        rows.append((Row(str(at), (), score, 2.0), ALIKE))
    groups = grouped(rows, METRICS["lidar"], 0.95)
    remarks = list(misleading(groups, METRICS["lidar"]))
    assert bool(remarks) is remarked
    assert all(
        remark.endswith("more views make it less: lidar rank ... -q 4") for remark in remarks
    )
    assert not list(misleading(groups, METRICS["pillai"]))


def row(path: str, value: float | None) -> Row:
    score = Score.of(path, "projector", 10, 2, 4, 1e-4, 1e-7, False)
    return Row(path, (), score, value, None if value is not None else "too few samples")


@pytest.mark.parametrize(
    ("by", "direction", "expected"),
    [
        ("lidar", "higher", ["big", "near one", "also near", "small"]),
        ("noise_fraction", "lower", ["small", "also near", "near one", "big"]),
        ("alpha_req", "nearest 1", ["near one", "also near", "small", "big"]),
    ],
)
def test_each_metric_has_its_direction(by: str, direction: str, expected: list[str]) -> None:
    metric = find_metric(by)
    assert metric.direction == direction
    rows = [row("small", 0.2), row("big", 3.0), row("also near", 0.8), row("near one", 1.125)]
    ordered = order([*rows, row("null", None)], metric, 0.95)
    assert [each.path for each in ordered] == [*expected, "null"]
    assert [each.rank for each in ordered] == [1, 2, 3, 4, 5]
    assert ordered[-1].reason == "too few samples"


def test_equal_values_share_a_rank_and_name_each_other() -> None:
    rows = [row("d", 1.0), row("b", 2.0), row("c", 2.0), row("a", 1.5), row("e", 2.0)]
    ordered = order([*rows, row("y", None), row("x", None)], METRICS["lidar"], 0.95)
    assert [(each.path, each.rank) for each in ordered] == [
        ("b", 1),
        ("c", 1),
        ("e", 1),
        ("a", 4),
        ("d", 5),
        ("x", 6),
        ("y", 6),
    ]
    assert ordered[1].tied_with == ("b", "e")
    assert ordered[3].tied_with == ()
    assert ordered[5].tied_with == ()  # unknown is not equal


def test_a_checkpoint_without_a_value_comes_last(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    weights = state_dict(8)
    weights["module.projector.3.weight"] *= 0  # every embedding is the bias
    torch.save(weights, runs / "a-collapsed.pt")
    found = ranked(rank(runs, "--json"))
    last = found["checkpoints"][-1]
    assert Path(last["path"]).name == "a-collapsed.pt"
    assert (last["value"], last["rank"]) == (None, 4)
    assert "constant" in last["reason"]


def test_ties_of_a_count_are_told(tmp_path: Path, rank: Shell) -> None:
    runs = tmp_path / "runs"
    checkpoint(runs / "a.pt", 0)
    torch.save({"epoch": 99, "state_dict": state_dict(0)}, runs / "b.pt")  # other bytes, same model
    one, two = ranked(rank(runs, "--json"))["checkpoints"]
    assert one["value"] == two["value"]
    assert (one["rank"], two["rank"]) == (1, 1)
    assert (one["tied_with"], two["tied_with"]) == ([two["path"]], [one["path"]])
    assert one["aliases"] == []


def test_what_cannot_be_told_apart_is_called_a_tie(tmp_path: Path, rank: Shell) -> None:
    runs = tmp_path / "runs"
    for seed, name in enumerate(("a.pt", "b.pt")):
        checkpoint(runs / name, seed)
    flat = state_dict(0)
    flat["module.projector.3.weight"][2:] = flat["module.projector.3.weight"][:1]
    torch.save(flat, runs / "flat.pt")  # of rank two: six dimensions copy another
    rows = ranked(rank(runs, "--json"))["checkpoints"]
    assert [row["rank"] for row in rows] == [1, 2, 3]
    first, second, third = (row["path"] for row in rows)
    assert rows[0]["value"] != rows[1]["value"]
    assert [row["tied_with"] for row in rows] == [[second], [first], []]
    assert third == str(runs / "flat.pt")
    table = rank(runs).stdout
    assert "+-: the 95 % interval of lidar over samples, at this n and q" in table
    assert "tied: the 95 % interval of the difference, sample by sample, holds 0" in table
    assert "it covers the draw of images, not the training seed" in table
    lines = table.splitlines()[2:5]
    assert [" +- " in line for line in lines] == [True, True, True]
    assert ["rank 2" in lines[0], "rank 1" in lines[1], "rank" in lines[2]] == [True, True, False]
    cells = [line.split("|") for line in rank(runs, "--markdown").stdout.splitlines()]
    assert cells[4][1].strip() == "1, tied with rank 2"


def test_too_few_samples_for_an_interval_are_told(tmp_path: Path, rank: Shell) -> None:
    found = ranked(rank(three(tmp_path / "runs"), "--json", "--layer", "backbone"))  # n 24, d 16
    for row in found["checkpoints"]:
        assert (row["ci_low"], row["ci_high"], row["tied_with"]) == (None, None, [])
        reason = row["metrics"]["confidence"]["intervals"]["lidar"]["reason"]
        assert reason == "n = 24 is not above 2 d = 32: too few samples for an interval"
    told = rank(tmp_path / "runs", "--layer", "backbone").stdout
    assert "and 2 more: no interval of lidar, and no ties: n = 24 is not above 2 d = 32" in told


def test_the_level_is_an_option(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    wide = ranked(rank(runs, "--json"))["checkpoints"][0]
    narrow = ranked(rank(runs, "--json", "--confidence", 0.5))["checkpoints"][0]
    ratio = (narrow["ci_high"] - narrow["value"]) / (wide["ci_high"] - wide["value"])
    assert 0.28 < ratio < 0.345  # of Student's quantiles with 5 degrees, and of the normal's


def test_influences_are_kept_beside_the_features(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    first = rank(runs, "--json").stdout
    kept = sorted((runs / ".lidar").glob("*.influence"))
    assert len(kept) == 3
    before = [path.stat().st_mtime_ns for path in kept]
    assert rank(runs, "--json").stdout == first
    assert [path.stat().st_mtime_ns for path in kept] == before
    found = load_file(kept[0])
    found["lidar"] *= 2.0  # read, not computed again: the interval is twice as wide
    save_file(found, kept[0])
    rows = zip(
        ranked(rank(runs, "--json"))["checkpoints"], json.loads(first)["checkpoints"], strict=True
    )
    widths = [(one["ci_high"] - one["ci_low"]) / (b["ci_high"] - b["ci_low"]) for one, b in rows]
    assert sorted(widths) == pytest.approx([1.0, 1.0, 2.0], rel=1e-9)
    kept[0].write_bytes(b"rubbish")
    kept[1].write_bytes(kept[1].read_bytes()[:500])
    assert rank(runs, "--json").stdout == first
    rank(runs, "--delta", 0.1)  # other constants have influences of their own
    assert len(list((runs / ".lidar").glob("*.influence"))) == 6
    assert {path.suffix for path in (runs / ".lidar").iterdir() if path.name != MARKER} == {
        ".h5",
        ".influence",
    }


# Groups


def test_what_cannot_be_compared_is_ranked_apart(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    checkpoint(runs / "wide.pt", 5, projected=PROJECTED + 2)
    found = ranked(rank(runs, "--json"))
    assert found["groups"] == 2
    assert [(row["group"], row["rank"]) for row in found["checkpoints"]] == [
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 1),
    ]
    tables = rank(runs).stdout
    assert "3 checkpoints by lidar (higher is better)  layer projector" in tables
    assert "1 checkpoint by lidar (higher is better)  layer projector" in tables
    for option in (["--quiet"], ["--top", 1], ["--top", 1, "--json"]):
        done = rank(runs, *option)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "error: 2 groups of checkpoints are not comparable, they differ in d; "
            "make them alike with --layer, or rank them apart\n"
        )
    forced = rank(runs, "--quiet", "--layer", "backbone")
    assert forced.returncode == 0
    assert len(forced.stdout.splitlines()) == 4


@pytest.mark.parametrize(
    ("change", "differ", "option"),
    [
        ({"views": "identity"}, "views", "--views"),
        ({"pixel_stats": "unit"}, "pixel statistics", "--pixel-stats"),
        ({"image_size": SIZE - 4}, "image size", "--image-size"),
        ({"layer": "backbone"}, "d, layer", "--layer"),
        ({"n_views": Q - 1}, "q", "-q"),
        ({"seed": 1}, "samples, seed", "--data, --seed"),
        ({"precision": "bfloat16"}, "precision", "--precision"),
        ({"storage": "float16"}, "storage", "--storage"),
    ],
)
def test_a_feature_file_of_other_settings_is_another_group(
    tmp_path: Path, images: Path, rank: Shell, change: dict[str, Any], differ: str, option: str
) -> None:
    runs = tmp_path / "runs"
    checkpoint(runs / "a.pt")
    elsewhere = checkpoint(tmp_path / "elsewhere.pt", 5)
    target = settings(images, output=runs / "other.h5", **change)
    extract_checkpoint(elsewhere, ExtractSettings(**target))
    if "layer" in change:
        # The backbone is what both have, so that this one is comparable, unless told otherwise.
        assert ranked(rank(runs, "--json"))["groups"] == 1
        failed = ranked(rank(runs, "--json", "--layer", "projector"), status=4)["failed"]
        assert "no layer 'projector'; the file holds backbone" in failed[0]["reason"]
        return
    assert ranked(rank(runs, "--json"))["groups"] == 2
    done = rank(runs, "--quiet")
    assert done.returncode == 2
    assert f"they differ in {differ}; make them alike with {option}, or" in done.stderr


def test_features_of_another_embedding_revision_are_another_group(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    runs = tmp_path / "runs"
    for seed, name in ((1, "a"), (2, "b")):
        elsewhere = checkpoint(tmp_path / f"{name}.pt", seed)
        target = settings(images, output=runs / f"{name}.h5")
        runs.mkdir(exist_ok=True)
        extract_checkpoint(elsewhere, ExtractSettings(**target))
    for revision, groups in ((None, 1), (1, 1), (7, 2)):
        for name, value in (("a", revision), ("b", None if groups == 1 else 1)):
            with h5py.File(runs / f"{name}.h5", "r+") as file:
                record = json.loads(file.attrs["provenance"])
                record.pop("embedding_revision", None)
                if value is not None:
                    record["embedding_revision"] = value
                file.attrs["provenance"] = json.dumps(record)
        assert ranked(rank(runs, "--json"))["groups"] == groups
    assert "embedding revision 7" in rank(runs).stdout
    done = rank(runs, "--quiet")
    assert done.returncode == 2
    assert "differ in embedding revision; make them alike with lidar extract --over" in done.stderr


# Feature files and the cache


def test_features_of_a_found_checkpoint_serve_as_its_cache(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    runs = three(tmp_path / "runs")
    fresh = values(rank(runs, "--json", "--cache", tmp_path / "cache"))
    features = runs / "deep/features.h5"
    features.parent.mkdir()
    extract_checkpoint(
        runs / "a.pt",
        ExtractSettings(**settings(images, output=features, layer="backbone,projector")),
    )
    before = features.stat().st_mtime_ns
    found = ranked(rank(runs, "--json"))
    assert {Path(r["path"]).name: r["value"] for r in found["checkpoints"]} == fresh
    assert found["skipped"] == []
    assert features.stat().st_mtime_ns == before
    assert sorted(path.name[:2] for path in (runs / ".lidar").glob("*.h5")) == ["b-", "c-"]


def test_features_of_a_found_checkpoint_at_other_settings_are_skipped(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    runs = three(tmp_path / "runs")
    target = settings(images, output=runs / "a.h5", seed=1)
    extract_checkpoint(runs / "a.pt", ExtractSettings(**target))
    found = ranked(rank(runs, "--json"))
    assert len(found["checkpoints"]) == 3
    assert found["skipped"] == [
        {
            "path": str(runs / "a.h5"),
            "reason": "features of a checkpoint here, at other settings than asked for",
        }
    ]


def test_features_of_another_checkpoint_stand_for_themselves(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    runs = three(tmp_path / "runs")
    elsewhere = checkpoint(tmp_path / "elsewhere.pt", 5)
    extract_checkpoint(elsewhere, ExtractSettings(**settings(images, output=runs / "other.h5")))
    (runs / "bad.h5").write_bytes(b"no HDF5")
    shutil.copy(runs / "other.h5", runs / "damaged.h5")
    with h5py.File(runs / "damaged.h5", "r+") as file:
        file["embeddings/projector/views"][0, 0, 0] += 1
    found = ranked(rank(runs, "--json"), status=4)
    assert found["groups"] == 1
    paths = [Path(row["path"]).name for row in found["checkpoints"]]
    assert sorted(paths) == ["a.pt", "b.pth", "c.ckpt", "other.h5"]
    failed = {Path(left["path"]).name: left["reason"] for left in found["failed"]}
    assert failed.keys() == {"bad.h5", "damaged.h5"}
    assert "does not match its checksum" in failed["damaged.h5"]
    # The same checkpoint beside it takes the file as its own cache, and the value is the same.
    shutil.copy(elsewhere, runs / "other.pt")
    (runs / "damaged.h5").unlink()
    again = ranked(rank(runs, "--json"), status=4)
    value = {Path(row["path"]).name: row["value"] for row in found["checkpoints"]}["other.h5"]
    rows = {Path(row["path"]).name: row["value"] for row in again["checkpoints"]}
    assert "other.h5" not in rows
    assert rows["other.pt"] == value


def with_nan(path: Path) -> None:
    """Put NaN into a feature file, with the checksum that a file written so would have."""
    with h5py.File(path, "r+") as file:
        layer = file["embeddings/projector"]
        layer["clean"][2, 1] = np.nan
        layer["crc32"][2] = zlib.crc32(layer["clean"][2].data, zlib.crc32(layer["views"][2].data))


def test_rows_that_cannot_be_scored_end_no_ranking(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    runs = checkpoint(tmp_path / "runs/a.pt").parent
    first = values(rank(checkpoint(runs / "b.pt", 1).parent, "--json"))
    shutil.rmtree(runs / ".lidar")
    extract_checkpoint(runs / "a.pt", ExtractSettings(**settings(images, output=runs / "feats.h5")))
    extract_checkpoint(
        checkpoint(tmp_path / "c.pt", 2), ExtractSettings(**settings(images, output=runs / "c.h5"))
    )
    with_nan(runs / "feats.h5")  # which serves a.pt, so that it is embedded anew
    with_nan(runs / "c.h5")  # whose checkpoint is not here
    found = ranked(rank(runs, "--json"), status=4)
    rows = {Path(row["path"]).name: row["value"] for row in found["checkpoints"]}
    assert rows == first
    (failed,) = found["failed"]
    assert failed["path"] == str(runs / "c.h5")
    assert "1 values are NaN or Inf, in 1 samples, the first is sample 2" in failed["reason"]
    for cached in (runs / ".lidar").glob("a-*.h5"):
        with_nan(cached)
    (runs / "c.h5").unlink()
    assert values(rank(runs, "--json")) == first


def test_a_second_run_computes_nothing(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    first = rank(runs, "--json")
    before = stamps(runs / ".lidar")
    assert len(before) == 3
    assert rank(runs, "--json").stdout == first.stdout
    assert stamps(runs / ".lidar") == before
    rank(runs, "--by", "pillai", "--delta", 0.1)  # constants of the metrics need no new features
    assert stamps(runs / ".lidar") == before
    rank(runs, "--seed", 1)
    assert len(stamps(runs / ".lidar")) == 6


def test_rows_of_another_revision_are_embedded_again_and_that_is_said_once(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    runs = three(tmp_path / "runs")
    target = settings(images, output=runs / "a.h5")
    extract_checkpoint(runs / "a.pt", ExtractSettings(**target))
    first = rank(runs, "--json")
    set_revision(runs / "a.h5", None)
    for path in (runs / ".lidar").glob("[bc]-*.h5"):  # keys of another lidar are others
        set_revision(path, 1)
        path.rename(path.with_name(f"{path.stem[:1]}-{'0' * 16}.h5"))
    again = rank(runs, "--json")
    line = "3 of 3 checkpoints are embedded again: their rows are of another embedding revision"
    assert again.stderr.count(line) == 1
    assert values(again) == values(first)
    assert len(stamps(runs / ".lidar")) == 5
    (left,) = ranked(again)["skipped"]
    assert left["reason"] == "features of embedding revision 1; this lidar embeds at 2"
    (alone,) = score_file(runs / "a.h5", ScoreSettings())
    assert alone.lidar is not None
    assert line not in rank(runs, "--json").stderr


def test_a_damaged_cache_is_made_anew(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    first = rank(runs, "--json")
    cached = sorted((runs / ".lidar").glob("*.h5"))
    content = bytearray(cached[0].read_bytes())
    with h5py.File(cached[0]) as file:
        at = file["embeddings/projector/views"].id.get_offset() + 40
    content[at] ^= 0x40
    cached[0].write_bytes(content)
    cached[1].write_bytes(cached[1].read_bytes()[:3000])
    cached[2].write_bytes(b"")
    assert rank(runs, "--json").stdout == first.stdout
    assert sorted((runs / ".lidar").glob("*.h5")) == cached
    before = stamps(runs / ".lidar")
    assert rank(runs, "--json").stdout == first.stdout
    assert stamps(runs / ".lidar") == before


def test_an_interrupted_cache_is_continued_or_replaced(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    runs = three(tmp_path / "runs")
    first = rank(runs, "--json")
    for path in (runs / ".lidar").glob("*.h5"):
        path.rename(path.with_name(path.name + ".partial"))
    partials = sorted((runs / ".lidar").glob("*.partial"))
    partials[0].write_bytes(b"rubbish")
    with h5py.File(partials[1], "r+") as file:
        file["samples/done"][3:] = 0
    assert rank(runs, "--json").stdout == first.stdout
    assert not list((runs / ".lidar").glob("*.partial"))


def test_a_checkpoint_that_changed_is_embedded_again(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    before = values(rank(runs, "--json"))
    checkpoint(runs / "a.pt", seed=42)
    after = values(rank(runs, "--json"))
    assert after["a.pt"] != before["a.pt"]
    assert (after["b.pth"], after["c.ckpt"]) == (before["b.pth"], before["c.ckpt"])


def test_images_that_changed_are_embedded_again(tmp_path: Path, rank: Shell, images: Path) -> None:
    runs = three(tmp_path / "runs")
    first = values(rank(runs, "--json"))
    other = shutil.copytree(images, tmp_path / "images")
    assert values(rank(runs, "--json", "--data", other)) == first
    # A copy under another name is other data to the provenance, which holds that name.
    shutil.copy(other / "003.png", other / "007.png")
    assert values(rank(runs, "--json", "--data", other)) != first


# Results on stdout


def test_the_best_path_alone(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs with spaces")
    found = ranked(rank(runs, "--json"))
    best = rank(runs, "--top", 1, "--quiet")
    assert (best.returncode, best.stderr) == (0, "")
    assert best.stdout == found["checkpoints"][0]["path"] + "\n"
    whole = rank(runs, "--quiet").stdout.splitlines()
    assert whole == [row["path"] for row in found["checkpoints"]]
    assert len(ranked(rank(runs, "--top", 2, "--json"))["checkpoints"]) == 2


def test_in_a_shell(tmp_path: Path, images: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    (runs / "broken.pt").write_bytes(b"broken")
    expected = ranked(rank(runs, "--json"), status=4)["checkpoints"][0]["path"]
    command = f"'{sys.executable}' -m lidar_cli rank '{runs}' --data '{images}' -n {N} -q {Q}"
    command += f" --image-size {SIZE} --batch-size 8 --device cpu --top 1 --quiet"
    script = f'best=$({command}); echo "$?:$best:"'
    done = subprocess.run(
        ["sh", "-c", script], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout == f"4:{expected}:\n"
    said = besides_assumptions(done.stderr)
    assert said.startswith(f"failed: {runs}/broken.pt: ")
    assert len(said.splitlines()) == 1


def test_csv(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs, with commas")
    found = ranked(rank(runs, "--json", "--by", "rankme"))
    done = rank(runs, "--csv", "--by", "rankme")
    assert (done.returncode, done.stderr) == (0, "")
    rows = list(csv.DictReader(io.StringIO(done.stdout), strict=True))
    assert [row["path"] for row in rows] == [row["path"] for row in found["checkpoints"]]
    for row, told in zip(rows, found["checkpoints"], strict=True):
        assert None not in row
        assert (row["group"], row["by"]) == ("1", "rankme")
        assert int(row["rank"]) == told["rank"]
        assert float(row["value"]) == float(row["rankme"]) == told["value"]
        assert row["alpha_req"] == ""
        for name in METRICS.keys() - {"alpha_req"}:
            assert row[name] == (
                "" if told["metrics"][name] is None else str(told["metrics"][name])
            )


def test_markdown(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    (runs / "c.ckpt").rename(runs / "c|d.ckpt")
    found = ranked(rank(runs, "--json"))
    done = rank(runs, "--markdown")
    assert (done.returncode, done.stderr) == (0, "")
    heading, blank, *lines = done.stdout.splitlines()
    assert heading.startswith("3 checkpoints by lidar (higher is better)")
    assert blank == ""
    cells = [
        [cell.strip() for cell in line.replace("\\|", "\0").strip("|").split("|")] for line in lines
    ]
    assert cells[0] == ["rank", "checkpoint", *METRICS]
    assert {len(row) for row in cells} == {2 + len(METRICS)}
    assert [row[1].replace("\0", "|") for row in cells[2:]] == [
        row["path"] for row in found["checkpoints"]
    ]


def test_the_table_names_what_has_no_place(everything: Path, rank: Shell) -> None:
    done = rank(everything)
    assert done.returncode == 4
    assert done.stderr == ""
    for text in (
        "failed: broken.pt: ",
        "failed: empty.pth: ",
        "skipped: training_args.bin: by its name, not model weights",
        "zz.ckpt: the same file as one/best.pt, one/last.pt",
    ):
        assert text in done.stdout
    assert "\x1b" not in done.stdout


# Nothing to rank


def test_an_empty_directory(tmp_path: Path, rank: Shell) -> None:
    done = rank(tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"error: {tmp_path}: no checkpoint in it; expected files ending")


def test_nothing_that_could_be_ranked(tmp_path: Path, rank: Shell) -> None:
    (tmp_path / "a.pt").write_bytes(b"")
    torch.save({"last_epoch": 3}, tmp_path / "scheduler.pt")
    done = rank(tmp_path, "--quiet")
    assert (done.returncode, done.stdout) == (3, "")
    begin = f"error: {tmp_path}: nothing could be ranked (1 failed, 1 skipped; the first: "
    assert done.stderr.startswith(begin + f"{tmp_path}/a.pt: ")


def test_no_path_is_the_best_if_none_has_a_value(tmp_path: Path, rank: Shell) -> None:
    done = rank(three(tmp_path / "runs"), "--by", "alpha_req", "--top", 1, "--quiet")
    assert (done.returncode, done.stdout) == (3, "")
    assert "nothing could be ranked" in done.stderr
    assert "no alpha_req: " in done.stderr
    assert "it needs d >= 100" in done.stderr


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"by": "lidr"}, SettingsError, "--by lidr: no such metric; did you mean lidar?"),
        ({"views": "simclrr"}, SettingsError, "did you mean simclr?"),
        ({"layer": "backbone,projector"}, SettingsError, "rank compares one layer"),
        ({"n_samples": N + 1}, InputError, f"holds {N} images, {N + 1} were asked for"),
        ({"clean_samples": N - 1}, SettingsError, f"--clean-samples {N - 1} is less than -n {N}"),
        ({"cache": Path("/proc/none")}, InputError, "the cache cannot be written"),
        ({"memory": "lots"}, SettingsError, "'lots' is not a memory size"),
    ],
)
def test_mistakes(
    tmp_path: Path, images: Path, change: dict[str, Any], kind: type[Exception], text: str
) -> None:
    runs = checkpoint(tmp_path / "runs/a.pt").parent
    with pytest.raises(kind, match=text):
        rank_directory(runs, RankSettings(**settings(images, **change)))


def test_an_unreadable_image_stops_the_ranking(tmp_path: Path, images: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    other = shutil.copytree(images, tmp_path / "images")
    (other / "005.png").write_bytes(b"no image")
    done = rank(runs, "--data", other, "--json")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: 005.png (in ")


def test_a_checkpoint_whose_numbers_overflow_is_a_row_that_failed(
    tmp_path: Path, rank: Shell
) -> None:
    runs = three(tmp_path / "runs")
    weights = state_dict(5)
    weights["module.projector.3.weight"] *= 1e38
    torch.save(weights, runs / "overflow.pt")
    found = ranked(rank(runs, "--json"), status=4)
    assert len(found["checkpoints"]) == 3
    assert "holds NaN or Inf" in found["failed"][0]["reason"]


def test_an_activation_is_part_of_what_is_cached(tmp_path: Path, rank: Shell) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 0)
    relu = values(rank(tmp_path / "runs", "--json", "--activation", "relu"))
    gelu = values(rank(tmp_path / "runs", "--json", "--activation", "gelu"))
    assert relu != gelu
    assert values(rank(tmp_path / "runs", "--json")) == relu
    assert len(list((tmp_path / "runs" / ".lidar").glob("*.h5"))) == 2  # auto is relu here


def test_images_of_the_same_name_and_size_are_known_by_their_content(
    tmp_path: Path, rank: Shell
) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 0)
    data = tmp_path / "data"
    data.mkdir()
    for seed in range(N):  # uncompressed, so that every file has the same size
        pixels = np.random.RandomState(seed).randint(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(data / f"{seed:02}.bmp")
    before = values(rank(tmp_path / "runs", "--json", "--data", data))
    for seed in range(N):
        pixels = np.full((SIZE, SIZE, 3), 10 * seed, np.uint8)
        pixels[: seed + 1] = 255
        Image.fromarray(pixels).save(data / f"{seed:02}.bmp")
    assert values(rank(tmp_path / "runs", "--json", "--data", data)) != before


def test_the_spelling_of_the_data_path_changes_nothing(
    tmp_path: Path, rank: Shell, images: Path
) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 0)
    rank(tmp_path / "runs")
    before = stamps(tmp_path / "runs" / ".lidar")
    done = rank(tmp_path / "runs", "--json", "--data", f"{images}/.")
    assert ranked(done)["groups"] == 1
    assert stamps(tmp_path / "runs" / ".lidar") == before


def test_weights_are_not_skipped_for_their_name(tmp_path: Path, rank: Shell) -> None:
    checkpoint(tmp_path / "runs" / "optimizer_adamw_lr1e-3.pth", 0)
    assert list(values(rank(tmp_path / "runs", "--json"))) == ["optimizer_adamw_lr1e-3.pth"]


def test_a_link_back_into_the_tree_is_walked_once(tmp_path: Path, rank: Shell) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 0)
    (tmp_path / "runs" / "self").symlink_to(tmp_path / "runs")
    (row,) = ranked(rank(tmp_path / "runs", "--json"))["checkpoints"]
    assert row["aliases"] == []


def test_data_is_told_from_the_features(tmp_path: Path, images: Path) -> None:
    checkpoint(tmp_path / "a.pt", 0)
    (tmp_path / "runs").mkdir()
    output = tmp_path / "runs" / "a.h5"
    extract_checkpoint(tmp_path / "a.pt", ExtractSettings(output=output, **settings(images)))
    found = rank_directory(tmp_path / "runs", RankSettings(device="cpu"))
    assert found.data == str(images)


def test_a_feature_file_that_lies_is_a_row_that_failed(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 0)
    for name, provenance in (("b.h5", "[]"), ("c.h5", '{"sha256": [1]}')):
        output = tmp_path / "runs" / name
        source = tmp_path / f"{name}.pt"
        checkpoint(source, 1)
        extract_checkpoint(source, ExtractSettings(output=output, **settings(images)))
        with h5py.File(output, "r+") as file:
            file.attrs["provenance"] = provenance
    found = ranked(rank(tmp_path / "runs", "--json"), status=4)
    assert [Path(row["path"]).name for row in found["checkpoints"]] == ["a.pt"]
    assert all("provenance is not the record" in row["reason"] for row in found["failed"])
    assert len(found["failed"]) == 2


def test_an_unknown_architecture_is_wrong_usage(tmp_path: Path, rank: Shell) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 0)
    assert rank(tmp_path / "runs", "--arch", "resnet999").returncode == 2


def test_features_being_written_by_another_process_are_left_alone(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 0)
    value = values(rank(tmp_path / "runs", "--json"))
    (cached,) = (tmp_path / "runs" / ".lidar").glob("*.h5")
    partial = cached.rename(cached.with_name(cached.name + ".partial"))
    code = f"import h5py; f = h5py.File({str(partial)!r}, 'r+'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        found = ranked_nothing = rank(tmp_path / "runs", "--json")
        assert found.returncode == 3
        assert "another process is writing it" in ranked_nothing.stderr
        assert partial.exists()
        other.communicate(b"\n")
    assert values(rank(tmp_path / "runs", "--json")) == value
