"""The order of scored checkpoints: comparable groups, directions, ranks and ties."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from make import (
    PROJECTED,
    checkpoint,
    image_folder,
    state_dict,
)
from rank_runs import (
    SIZE,
    N,
    Q,
    Shell,
    rank_here,
    ranked,
    settings,
    three,
)

from lidar_cli.core.metrics import METRICS
from lidar_cli.extraction.run import extract_checkpoint
from lidar_cli.ranking.order import Row, comparable_groups, order
from lidar_cli.ranking.trust import noise_warnings
from lidar_cli.scoring.compute import Score
from lidar_cli.settings import ExtractSettings


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), N)


@pytest.fixture
def rank(images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return rank_here(images, monkeypatch, capfd)


ALIKE: dict[str, Any] = {
    "samples_sha256": "a", "seed": 0, "views": {"name": "simclr"}, "image_size": 32,
    "mask_grid": None, "precision": "float32", "storage": "float32",
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
            {"precision": "bfloat16"}, {"storage": "float16"}, {"embedding_revision": 7},
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
        provenance = ALIKE | {k: v for k, v in changed.items() if k not in SCORED}
        score = Score.of(file=path, epsilon=1e-7, lidar=2.0, provenance=provenance, **facts)
        rows.append(Row(path, (), score, 2.0))
    groups = comparable_groups(rows, METRICS["lidar"], 0.95)
    paths = [[each.path for each in group.rows] for group in groups]
    assert paths == ([["a", "b"], ["c"]] if apart else [["a", "b", "c"]])


@pytest.mark.parametrize(("noisy", "remarked"), [(1, False), (2, False), (3, True), (4, True)])
def test_an_order_by_lidar_that_is_mostly_noise_is_remarked(noisy: int, remarked: bool) -> None:
    """More than half of the LDA trace in more than half of four checkpoints."""
    rows = []
    for at in range(4):
        fraction = 0.51 if at < noisy else 0.49
        score = Score.of(str(at), "projector", *(10, 2, 4), 1e-4, 1e-7, False, lidar=2.0,
                      noise_fraction=fraction, pillai=float(at), provenance=ALIKE)  # fmt: skip
        rows.append(Row(str(at), (), score, 2.0))
    groups = comparable_groups(rows, METRICS["lidar"], 0.95)
    remarks = list(noise_warnings(groups, METRICS["lidar"]))
    assert bool(remarks) is remarked
    # 51 : 49 is 2 (51 / 49) (0.75 / 0.25) = 6.2 views for a quarter
    assert all(remark.endswith("more views reduce it: -q 7") for remark in remarks)
    assert not list(noise_warnings(groups, METRICS["pillai"]))


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
    metric = METRICS[by]
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


def test_checkpoints_that_are_not_scored_yet_leave_no_complete_group(
    tmp_path: Path, rank: Shell
) -> None:
    runs = three(tmp_path / "runs")
    (runs / "c.ckpt").rename(tmp_path / "c.ckpt")
    assert rank(runs, "--quiet").returncode == 0
    (tmp_path / "c.ckpt").rename(runs / "c.ckpt")
    part = ranked(rank(runs, "--collect", "--json"), 4)
    assert (part["group_metrics"], part["second_opinion"]) == ([], [])
    assert len(part["checkpoints"]) == 2
    refused = rank(runs, "--collect", "--by", "agreement")
    assert refused.returncode == 3
    assert refused.stderr.splitlines()[-1] == (
        "error: --by agreement: it is formed from all checkpoints of a group, and 1 of 3 are not "
        f"scored yet, the first is {runs / 'c.ckpt'}; wait for them, or leave out --by"
    )
    whole = ranked(rank(runs, "--by", "agreement", "--json"))
    assert [record["checkpoints"] for record in whole["group_metrics"]] == [3]


def test_a_checkpoint_without_a_value_comes_last(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    weights = state_dict(8)
    weights["module.projector.3.weight"] *= 0  # every embedding is the bias
    torch.save(weights, runs / "a-collapsed.pt")
    ranking = ranked(rank(runs, "--json"))
    last = ranking["checkpoints"][-1]
    assert Path(last["path"]).name == "a-collapsed.pt"
    assert (last["value"], last["rank"]) == (None, 4)
    assert "constant" in last["reason"]


def test_ties_of_a_count_are_reported(tmp_path: Path, rank: Shell) -> None:
    runs = tmp_path / "runs"
    checkpoint(runs / "a.pt", 0)
    shifted = state_dict(0)
    shifted["module.projector.3.bias"] += 0.25  # every embedding, so that no direction changes
    torch.save(shifted, runs / "b.pt")
    one, two = ranked(rank(runs, "--json", "--by", "n_above_noise"))["checkpoints"]
    assert one["value"] == two["value"]
    assert (one["rank"], two["rank"]) == (1, 1)
    assert (one["tied_with"], two["tied_with"]) == ([two["path"]], [one["path"]])
    assert one["aliases"] == []


def test_what_cannot_be_separated_is_called_a_tie(tmp_path: Path, rank: Shell) -> None:
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
    done = rank(runs, "--verbose")
    assert "+-: the 95 % interval of lidar over samples, at this n and q" in done.stderr
    assert "tied: the 95 % interval of the difference, sample by sample, holds 0" in done.stderr
    assert "it covers the draw of images, not the training seed" in done.stderr
    answer, facts, header, *lines = done.stdout.splitlines()
    assert " is first by lidar: " in answer
    assert facts.endswith("+- 95 %")
    assert "3 checkpoints, 1 tie, projector" in facts
    assert header.split()[3] == "tied_with"
    cells = [line.split() for line in lines]
    assert [row[3] for row in cells] == ["+-"] * 3
    assert [len(row) for row in cells] == [7, 7, 6]
    assert (cells[0][5], cells[1][5]) == ("2", "1")
    cells = [line.split("|") for line in rank(runs, "--markdown").stdout.splitlines()]
    assert cells[4][1].strip() == "1, tied with rank 2"


def test_too_few_samples_for_an_interval_are_reported(tmp_path: Path, rank: Shell) -> None:
    ranking = ranked(rank(three(tmp_path / "runs"), "--json", "--layer", "backbone"))  # n 24, d 16
    for row in ranking["checkpoints"]:
        assert (row["ci_low"], row["ci_high"], row["tied_with"]) == (None, None, [])
        reason = row["metrics"]["confidence"]["intervals"]["lidar"]["reason"]
        assert reason == "n = 24 is not above 2 d = 32: too few samples for an interval"
    done = rank(tmp_path / "runs", "--layer", "backbone", "--verbose")
    reason = "and 2 more: no interval of lidar, and no ties: n = 24 is not above 2 d = 32"
    assert reason in done.stderr
    assert "24 images are too few for intervals at d = 16" in done.stderr
    assert " %" not in done.stdout  # where there are no intervals


def test_the_level_is_an_option(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    wide = ranked(rank(runs, "--json"))["checkpoints"][0]
    narrow = ranked(rank(runs, "--json", "--confidence", 0.5))["checkpoints"][0]
    ratio = (narrow["ci_high"] - narrow["value"]) / (wide["ci_high"] - wide["value"])
    assert 0.28 < ratio < 0.345  # of Student's quantiles with 5 degrees, and of the normal's


# Groups


def test_what_cannot_be_compared_is_ranked_apart(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    checkpoint(runs / "wide.pt", 5, projected=PROJECTED + 2)
    ranking = ranked(rank(runs, "--json"))
    assert ranking["groups"] == 2
    assert [(row["group"], row["rank"]) for row in ranking["checkpoints"]] == [
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 1),
    ]
    tables = rank(runs).stdout
    assert "3 checkpoints, 3 ties, projector" in tables
    assert tables.splitlines()[-1].split()[0] == "wide.pt"
    for option in (["--quiet"], ["--top", 1], ["--top", 1, "--json"]):
        done = rank(runs, *option)
        assert (done.returncode, done.stdout) == (2, "")
        assert (
            "error: The checkpoints form two groups that cannot be compared: the projector is 8 "
            "wide in one and 10 in the other. To rank all by what they share: lidar rank "
        ) in done.stderr
        assert "--layer backbone" in done.stderr
    forced = rank(runs, "--quiet", "--layer", "backbone")
    assert forced.returncode == 0
    assert len(forced.stdout.splitlines()) == 4


@pytest.mark.parametrize(
    ("change", "differ", "option"),
    [
        ({"views": "identity"}, "the views are simclr in one and identity", "--views identity"),
        ({"pixel_stats": "unit"}, "the pixel statistics are imagenet in", "--pixel-stats unit"),
        ({"image_size": SIZE - 4}, f"the image size is {SIZE} in one", f"--image-size {SIZE - 4}"),
        ({"layer": "backbone"}, "", ""),
        ({"n_views": Q - 1}, f"q is {Q} in one and {Q - 1} in the other", f"-q {Q - 1}"),
        ({"seed": 1}, "the seed is 0 in one and 1 in the other", "--seed 1"),
        ({"precision": "bfloat16"}, "the precision is float32", "--precision bfloat16"),
        ({"storage": "float16"}, "the storage is float32 in one", "--storage float16"),
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
        # The backbone is what both have, so that this one is comparable, unless another is chosen.
        assert ranked(rank(runs, "--json"))["groups"] == 1
        failed = ranked(rank(runs, "--json", "--layer", "projector"), status=4)["failed"]
        assert "no layer 'projector'; the file holds backbone" in failed[0]["reason"]
        return
    assert ranked(rank(runs, "--json"))["groups"] == 2
    done = rank(runs, "--quiet")
    assert done.returncode == 2
    assert f"groups that cannot be compared: {differ}" in done.stderr
    advised = shlex.split(done.stderr)[-len(option.split()) :]
    assert advised == option.split()
    assert ranked(rank(runs, "--json", *advised))["groups"] == 1


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
    table = rank(runs).stdout.splitlines()
    assert table[0].startswith("The checkpoints form two groups that cannot be compared: ")
    assert table[2].endswith("embedding revision")
    assert [line.split()[-1] for line in table[3:]] == ["7", "1"]
    done = rank(runs, "--quiet")
    assert done.returncode == 2
    assert "a and b are feature files, which stay as they are" in done.stderr
