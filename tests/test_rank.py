"""A directory of checkpoints to an ordered list, with everything else in it accounted for."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from formats import FIXTURES
from make import (
    PROJECTED,
    WIDTHS,
    besides_assumptions,
    besides_progress,
    checkpoint,
    environment,
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
    values,
)
from safetensors.torch import save_file

from lidar_cli.checkpoints.reading.read import read_contents
from lidar_cli.core.metrics import METRICS, default_metrics
from lidar_cli.errors import InputError, SettingsError
from lidar_cli.ranking.digests import Digests
from lidar_cli.ranking.discover import Skipped, scan_directory
from lidar_cli.ranking.session import rank_directory
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import RankSettings


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), N)


@pytest.fixture
def rank(images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return rank_here(images, monkeypatch, capfd)


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
    ranking = ranked(rank(everything, "--json"), status=4)
    rows = {
        Path(row["path"]).relative_to(everything).as_posix(): row for row in ranking["checkpoints"]
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
    assert [row["rank"] for row in ranking["checkpoints"]] == [1, 2, 3, 4]
    skipped = {Path(left["path"]).name: left["reason"] for left in ranking["skipped"]}
    assert skipped.keys() == {"optimizer.pt", "adam.pt", "scheduler.pt", "training_args.bin"}
    assert skipped["optimizer.pt"] == "by its name, not model weights"
    failed = {Path(left["path"]).name: left["reason"] for left in ranking["failed"]}
    assert failed.keys() == {"broken.pt", "empty.pth"}
    assert "is empty; expected a file of torch.save or safetensors" in failed["empty.pth"]
    assert failed["broken.pt"].startswith("a damaged or truncated torch file: its zip directory")
    assert "\n" not in failed["broken.pt"]


def test_progress_names_checkpoints_as_the_table_does(tmp_path: Path, rank: Shell) -> None:
    """Also next to a feature file, whose suffix is another one."""
    runs = checkpoint(tmp_path / "runs/a.pt", 1).parent
    checkpoint(runs / "b.pt", 2)
    rank(checkpoint(tmp_path / "c.pt", 3), "--cache", tmp_path / "cache")
    (features,) = (tmp_path / "cache").glob("*.h5")
    shutil.copy(features, runs / "c.h5")
    done = rank(runs, "--json")
    names = {row["name"] for row in ranked(done)["checkpoints"]}
    assert names == {"a.pt", "b.pt", "c.h5"}
    assert set(re.findall(r"\] (\S+) lidar ", done.stderr)) == {"a.pt", "b.pt"}


def test_equal_weights_in_other_containers_are_one_row(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    weights = state_dict(0)  # of a.pt
    save_file(weights, runs / "d.safetensors")
    torch.save({"epoch": 4, "state_dict": weights, "optimizer": {"lr": 0.1}}, runs / "e.pt")
    other = {name: tensor.clone() for name, tensor in weights.items()}
    other["module.projector.3.bias"][0] += 1e-6
    save_file(other, runs / "f.safetensors")  # of the same first kernels
    ranking = ranked(rank(runs, "--json"))["checkpoints"]
    rows = {Path(row["path"]).name: row for row in ranking}
    assert rows.keys() == {"a.pt", "b.pth", "c.ckpt", "f.safetensors"}
    assert rows["a.pt"]["aliases"] == [str(runs / "d.safetensors"), str(runs / "e.pt")]
    assert rows["f.safetensors"]["aliases"] == []
    assert not any(row["path"] in row["tied_with"] for row in ranking)
    assert len(list((runs / ".lidar").glob("*.h5"))) == 4


def test_equal_weights_of_two_architectures_are_two_rows(tmp_path: Path) -> None:
    """Two files of Hugging Face whose configurations differ in an epsilon."""
    for name, epsilon in (("a", 1e-12), ("b", 0.1)):
        (tmp_path / name).mkdir()
        fixture = FIXTURES["hf-ijepa"]()
        fixture.save(tmp_path / name).unlink()
        save_file(fixture.tree, tmp_path / name / "model.safetensors", {"from": name})
        config = tmp_path / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"layer_norm_eps": epsilon}))
    digests = Digests(tmp_path / "absent")
    scan = scan_directory(tmp_path, RankSettings(), Progress(), digests)
    assert {one.path.parent.name for one in scan.checkpoints.values()} == {"a", "b"}


def test_a_pipe_in_a_directory_is_not_waited_for(tmp_path: Path, rank: Shell) -> None:
    checkpoint(tmp_path / "runs/a.pt", 1)
    for name in ("b.pt", "c.h5"):
        os.mkfifo(tmp_path / "runs" / name)
    ranking = ranked(rank(tmp_path / "runs", "--json"))
    assert [Path(row["path"]).name for row in ranking["checkpoints"]] == ["a.pt"]
    assert [left["reason"] for left in ranking["skipped"]] == 2 * ["a pipe, not a file"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of another kind")
def test_a_folder_that_may_not_be_listed_is_among_the_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 1)
    (tmp_path / "runs" / "closed").mkdir(0o000)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    nobody = 65534
    uid = os.geteuid()
    read_contents(tmp_path / "runs" / "a.pt")  # in a child whose interpreter others may not start
    try:
        if uid == 0:  # who may list anything
            os.seteuid(nobody)
        scan = scan_directory(Path("runs"), RankSettings(), Progress(), Digests(Path("absent")))
    finally:
        os.seteuid(uid)
    assert [str(one.path) for one in scan.checkpoints.values()] == ["runs/a.pt"]
    assert scan.failed == [Skipped("runs/closed", "Permission denied")]


def test_the_json_contract(tmp_path: Path, images: Path, rank: Shell) -> None:
    ranking = ranked(rank(three(tmp_path / "runs"), "--json"))
    keys = "verdict by direction data toy_data data_note groups checkpoints skipped failed"
    assert ranking.keys() == {
        *(*keys.split(), "group_metrics", "second_opinion", "warnings", "correlation", "trust")
    }
    (trust,) = ranking["trust"]
    assert trust.keys() == {"group", "believe", "reasons", "sentence"}
    assert trust["believe"] == (trust["reasons"] == [])
    assert (trust["sentence"] or "") in ranking["verdict"]
    assert (ranking["by"], ranking["direction"], ranking["groups"]) == ("lidar", "higher", 1)
    assert ranking["data"] == str(images)
    assert (ranking["skipped"], ranking["failed"], ranking["correlation"]) == ([], [], None)
    row_keys = "group rank name path aliases value reason ci_low ci_high tied_with metrics"
    for row in ranking["checkpoints"]:
        assert row.keys() == set(row_keys.split())
        assert (row["aliases"], row["reason"]) == ([], None)
        assert row["ci_low"] < row["value"] < row["ci_high"]
        assert set(row["tied_with"]) < {other["path"] for other in ranking["checkpoints"]}
        assert row["path"] not in row["tied_with"]
        metrics = row["metrics"]
        assert metrics["confidence"]["level"] == 0.95
        intervals = metrics["confidence"]["intervals"]
        assert intervals.keys() == default_metrics()
        assert intervals["lidar"]["ci_low"] == row["ci_low"]
        assert intervals["alpha_req"]["reason"] == metrics["notes"]["alpha_req"]
        assert metrics.keys() >= METRICS.keys() | {"n_samples", "n_views", "dim", "layer", "delta"}
        assert metrics["lidar"] == row["value"]
        assert (metrics["n_samples"], metrics["n_views"]) == (N, Q)
        assert (metrics["layer"], metrics["dim"]) == ("projector", PROJECTED)
        assert metrics["alpha_req"] is None
        assert "it needs d >= 100" in metrics["notes"]["alpha_req"]
    found_values = [row["value"] for row in ranking["checkpoints"]]
    assert found_values == sorted(found_values, reverse=True)
    assert len(set(found_values)) == 3


def test_the_layer_is_the_projector_only_if_every_file_has_one(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    checkpoint(runs / "bare.pt", 7, projected=None)
    ranking = ranked(rank(runs, "--json"))
    assert {row["metrics"]["layer"] for row in ranking["checkpoints"]} == {"backbone"}
    assert {row["metrics"]["dim"] for row in ranking["checkpoints"]} == {WIDTHS[-1]}
    forced = ranked(rank(runs, "--json", "--layer", "projector"), status=4)
    assert len(forced["checkpoints"]) == 3
    (failed,) = forced["failed"]
    assert failed["path"] == str(runs / "bare.pt")
    assert failed["reason"].startswith("no layer 'projector' in this checkpoint; it has backbone")


# Results on stdout


def test_the_best_path_alone(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs with spaces")
    ranking = ranked(rank(runs, "--json"))
    best = rank(runs, "--top", 1, "--quiet")
    (trust,) = ranking["trust"]
    doubt = "" if trust["believe"] else f"caution: {trust['sentence']} (lidar explain trust)\n"
    assert (best.returncode, best.stderr) == (0, doubt)
    assert best.stdout == ranking["checkpoints"][0]["path"] + "\n"
    whole = rank(runs, "--quiet").stdout.splitlines()
    assert whole == [row["path"] for row in ranking["checkpoints"]]
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
    failed, doubt = said.splitlines()
    assert failed.startswith(f"failed: {runs}/broken.pt: ")
    assert doubt.startswith("caution: Believe no metric here: ")


def test_csv(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs, with commas")
    ranking = ranked(rank(runs, "--json", "--by", "rankme"))
    done = rank(runs, "--csv", "--by", "rankme")
    assert (done.returncode, besides_progress(done.stderr)) == (0, "")
    rows = list(csv.DictReader(io.StringIO(done.stdout), strict=True))
    assert [row["path"] for row in rows] == [row["path"] for row in ranking["checkpoints"]]
    for row, expected in zip(rows, ranking["checkpoints"], strict=True):
        assert None not in row
        assert (row["group"], row["by"]) == ("1", "rankme")
        assert int(row["rank"]) == expected["rank"]
        assert float(row["value"]) == float(row["rankme"]) == expected["value"]
        assert row["alpha_req"] == ""
        for name in default_metrics() - {"alpha_req"}:
            assert row[name] == (
                "" if expected["metrics"][name] is None else str(expected["metrics"][name])
            )


def test_markdown(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    (runs / "c.ckpt").rename(runs / "c|d.ckpt")
    ranking = ranked(rank(runs, "--json"))
    done = rank(runs, "--markdown")
    assert (done.returncode, besides_progress(done.stderr)) == (0, "")
    heading, blank, doubt, blank_too, *lines = done.stdout.splitlines()
    assert heading.startswith("3 checkpoints by lidar (higher is better)")
    assert doubt == ranking["trust"][0]["sentence"]
    assert blank == blank_too == ""
    cells = [
        [cell.strip() for cell in line.replace("\\|", "\0").strip("|").split("|")] for line in lines
    ]
    listed = [name for name in METRICS if METRICS[name].is_default]
    assert cells[0] == ["rank", "checkpoint", *listed, "agreement"]
    assert {len(row) for row in cells} == {3 + len(listed)}
    assert [row[1].replace("\0", "|") for row in cells[2:]] == [
        row["path"] for row in ranking["checkpoints"]
    ]


def test_the_table_names_what_has_no_place(everything: Path, rank: Shell) -> None:
    done = rank(everything, "--verbose")
    assert done.returncode == 4
    for text in (
        "failed: broken.pt: ",
        "failed: empty.pth: ",
        "skipped: training_args.bin: by its name, not model weights",
        "zz.ckpt: the same weights as one/best.pt, one/last.pt",
    ):
        assert text in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    brief = rank(everything)
    assert brief.returncode == 4
    assert "failed: broken.pt: " in brief.stderr
    assert "skipped: " not in brief.stderr
    named = rank(everything / "zz.ckpt", everything / "adam.pt")
    assert "skipped: adam.pt: " in named.stderr
    assert "2 copies left out" in brief.stdout


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


@pytest.mark.parametrize("mode", [[], ["--dry-run"]])
def test_every_reason_is_printed_if_nothing_could_be_ranked(
    tmp_path: Path, rank: Shell, mode: list[str]
) -> None:
    for at in range(6):
        (tmp_path / f"{at}.pt").write_bytes(b"" if at != 1 else b"text, no checkpoint")
    lines = rank(tmp_path, *mode).stderr.splitlines()
    failed = [line for line in lines if line.startswith("failed: ")]
    assert [line.split(": ")[1] for line in failed] == [f"{tmp_path}/{at}.pt" for at in range(5)]
    reasons = [line.removeprefix(f"failed: {tmp_path}/{at}.pt: ") for at, line in enumerate(failed)]
    assert reasons[0] != reasons[1]
    error = next(at for at, line in enumerate(lines) if line.startswith("error: "))
    assert lines.index(failed[-1]) < error


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
        ({"layer": "backbone,projector", "store": False}, SettingsError, "leave out --no-store"),
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
    ranking = ranked(rank(runs, "--json"), status=4)
    assert len(ranking["checkpoints"]) == 3
    assert "holds NaN or Inf" in ranking["failed"][0]["reason"]


def test_weights_are_not_skipped_for_their_name(tmp_path: Path, rank: Shell) -> None:
    checkpoint(tmp_path / "runs" / "optimizer_adamw_lr1e-3.pth", 0)
    assert list(values(rank(tmp_path / "runs", "--json"))) == ["optimizer_adamw_lr1e-3.pth"]


def test_a_link_back_into_the_tree_is_walked_once(tmp_path: Path, rank: Shell) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 0)
    (tmp_path / "runs" / "self").symlink_to(tmp_path / "runs")
    (row,) = ranked(rank(tmp_path / "runs", "--json"))["checkpoints"]
    assert row["aliases"] == []


def test_an_unknown_architecture_is_wrong_usage(tmp_path: Path, rank: Shell) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 0)
    assert rank(tmp_path / "runs", "--arch", "resnet999").returncode == 2


def test_a_log_has_a_line_a_checkpoint_with_the_time_left(tmp_path: Path, rank: Shell) -> None:
    runs = tmp_path / "runs"
    for seed in range(12):
        checkpoint(runs / f"run-{seed:02}" / "last.ckpt", seed)
    log, quiet = rank(runs, "--csv").stderr, rank(runs, "--quiet")
    form = r"^[\d-]{10} [\d:]{8}  \[ ?(\d+)/12\] (\S+) lidar [\d.]+ (.*)$"
    lines = re.findall(form, log, re.MULTILINE)
    assert [int(at) for at, _, _ in lines] == list(range(1, 13))
    assert len({name for _, name, _ in lines}) == 12
    for _, _, rest in lines[:-1]:
        assert re.fullmatch(r"\([\d.]+ s\), about [\d.]+ (s|min) left", rest)
    assert "left" not in lines[-1][2]
    assert quiet.stderr == besides_progress(quiet.stderr)
    assert rank(runs, "--csv").stderr.count("(from the cache)") == 12
