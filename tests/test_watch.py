"""A followed directory: each complete file is scored once, by real processes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Command
from make import checkpoint, environment, image_folder, lidar, lidar_here, state_dict
from watch_runs import SIZE, N, Q, words

from lidar_cli.core.drawdown import drawdown
from lidar_cli.core.metrics import METRICS
from lidar_cli.ranking.discover import Skipped
from lidar_cli.ranking.session import rank_directory
from lidar_cli.ranking.watch import CompletedFiles, ScoredCheckpoint, follow
from lidar_cli.report.watch_log import step_of
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import RankSettings


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), N)


def settings(images: Path, **more: Any) -> RankSettings:
    small = {"n_samples": N, "n_views": Q, "image_size": SIZE, "batch_size": 8, "device": "cpu"}
    return RankSettings(data=str(images), interval=0.01, **small | more)  # type: ignore[arg-type]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_file_is_reported_when_it_rests_and_again_when_it_was_replaced(tmp_path: Path) -> None:
    files = CompletedFiles(tmp_path)
    file = tmp_path / "run" / "a.ckpt"
    file.parent.mkdir()
    file.touch()
    for suffix in (".tmp", ".partial"):
        file.with_name(f"a.ckpt{suffix}").write_bytes(b"whole")
    assert [files.poll(), files.poll()] == [[], []]  # empty: its writer has only begun
    file.write_bytes(b"half")
    assert files.poll() == []
    with file.open("ab") as more:
        more.write(b" and half")
    assert files.poll() == []
    assert not files.is_unchanged(file)
    assert files.poll() == [file]
    assert files.is_unchanged(file)
    assert files.poll() == []
    changed = file.with_suffix(".new")
    changed.write_bytes(b"half and HALF")  # of the same size
    os.utime(changed, ns=(0, file.stat().st_mtime_ns))  # and time
    changed.replace(file)
    assert not files.is_unchanged(file)
    assert [files.poll(), files.poll(), files.poll()] == [[], [file], []]
    file.unlink()
    assert files.poll() == []
    assert not files.is_unchanged(file)


def test_the_slowly_written_the_broken_and_the_interrupt(tmp_path: Path, images: Path) -> None:
    runs, log, errors = tmp_path / "runs", tmp_path / "rows.jsonl", tmp_path / "errors.txt"
    runs.mkdir()
    whole = checkpoint(tmp_path / "made" / "epoch=3-step=500.pt", 1)
    content = whole.read_bytes()
    interval = 1.5
    command = [*words(runs, images, "--interval", interval), "--jsonl", log]
    with errors.open("w") as stderr:
        running = Command(command, tmp_path, environment(), stderr=stderr.fileno())
    try:
        wait(log.exists, running)
        with (runs / whole.name).open("wb") as file:
            for part in (content[: len(content) // 2], content[len(content) // 2 :]):
                file.write(part)
                file.flush()
                time.sleep(interval / 5)
        wait(lambda: len(lines(log)) > 0, running)
        (runs / "broken.ckpt").write_bytes(content[: len(content) // 2])
        torch.save({"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}, runs / "adam.pt")
        wait(lambda: "failed" in errors.read_text() and "skipped" in errors.read_text(), running)
        running.send_signal(signal.SIGINT)
        stdout, _ = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert stdout == ""
    said = errors.read_text().splitlines()
    assert said[-1] == "interrupted"
    (failed,) = [line for line in said if line.startswith("failed: ")]
    assert failed.startswith(f"failed: {runs}/broken.ckpt: ")
    assert next(line for line in said if "adam" in line).startswith("skipped: ")
    (line,) = lines(log)
    # Alone in another directory, with another cache, the same checkpoint has the same number.
    alone = rank_directory(whole.parent, settings(images)).groups[0].rows[0]
    assert (line["name"], line["path"]) == (whole.name, str(runs / whole.name))
    assert (line["step"], line["by"], line["direction"]) == (500, "lidar", "higher")
    assert line["value"] == line["metrics"]["lidar"] == alone.value
    assert (line["ci_low"], line["ci_high"]) == (alone.interval.ci_low, alone.interval.ci_high)
    # A restart goes on with the file, and repeats neither the line nor the features.
    (features,) = (runs / ".lidar").glob("*.h5")
    before = features.stat().st_mtime_ns
    (runs / "broken.ckpt").unlink()
    checkpoint(runs / "second.pt", 2)
    again = words(runs, images, "--interval", 0.1, "--watch-for", 0, "--jsonl", log)
    assert lidar(*again, cwd=tmp_path).returncode == 0
    assert [Path(line["path"]).name for line in lines(log)] == [whole.name, "second.pt"]
    assert features.stat().st_mtime_ns == before


def wait(reached: Callable[[], bool], running: Command) -> None:
    end = time.monotonic() + 100
    while not reached():
        assert running.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)


def test_lines_on_stdout_and_status_4_where_one_failed(tmp_path: Path, images: Path) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 1)
    (tmp_path / "runs" / "b.pt").write_bytes(b"no checkpoint")
    more = ("--interval", 0.1, "--watch-for", 0)
    done = lidar(*words(tmp_path / "runs", images, *more), cwd=tmp_path)
    assert done.returncode == 4
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["path"] == str(tmp_path / "runs" / "a.pt")
    assert f"failed: {tmp_path}/runs/b.pt: " in done.stderr


class Replaced(Progress):
    """Follows a directory, and replaces a checkpoint while it is being scored."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.replaced = False

    def update(self, task: str, done: int, total: int) -> None:
        if task == "reading" and not self.replaced:
            self.replaced = True
            checkpoint(self.file, 2)


def test_a_checkpoint_replaced_while_it_is_scored_counts_as_it_is_then(
    tmp_path: Path, images: Path
) -> None:
    runs = tmp_path / "runs"
    file = checkpoint(runs / "last.pt", 1)
    progress = Replaced(file)
    scored = next(follow(runs, settings(images, watch_for=100.0), progress))
    assert progress.replaced
    assert isinstance(scored, ScoredCheckpoint)
    checkpoint(tmp_path / "alone" / "last.pt", 2)
    alone = rank_directory(tmp_path / "alone", settings(images)).groups[0].rows[0]
    assert scored.row.value == alone.value
    assert len(list((runs / ".lidar").glob("*.h5"))) == 1  # of the new content


def test_the_first_files_settle_the_layer_and_copies_are_reported_once(
    tmp_path: Path, images: Path
) -> None:
    runs = tmp_path / "runs"
    checkpoint(runs / "a.pt", 1)
    (runs / "b.pt").write_bytes((runs / "a.pt").read_bytes())
    following = follow(runs, settings(images, watch_for=60.0))
    first = next(following)
    assert isinstance(first, ScoredCheckpoint)
    assert (first.row.path, first.row.aliases) == (str(runs / "a.pt"), (str(runs / "b.pt"),))
    assert first.row.score.layer == "projector"
    torch.save(state_dict(3, projected=None), runs / "c.pt")
    second = next(following)
    assert isinstance(second, Skipped)
    assert second.path == str(runs / "c.pt")
    assert "no layer 'projector'" in second.reason


def test_feature_files_that_land_later_serve(tmp_path: Path, images: Path) -> None:
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    checkpoint(runs / "a.pt", 1)
    for seed in (2, 3):
        checkpoint(elsewhere / f"{seed}.pt", seed)
    alone = rank_directory(elsewhere, settings(images))
    values = {Path(row.path).name: row.value for row in alone.groups[0].rows}
    following = follow(runs, settings(images, watch_for=100.0))
    assert isinstance(next(following), ScoredCheckpoint)
    for seed in (2, 3):
        (features,) = (elsewhere / ".lidar").glob(f"{seed}-*.h5")
        features.rename(runs / "features.h5")  # the second in place of the first
        (elsewhere / f"{seed}.pt").rename(runs / f"{seed}.pt")
        scored = next(following)
        assert isinstance(scored, ScoredCheckpoint)
        assert scored.row.value == values[f"{seed}.pt"]
    assert len(list((runs / ".lidar").glob("*.h5"))) == 1  # of the first checkpoint alone


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--json"], "--watch and --json exclude each other"),
        (["--top", 1], "--watch and --top exclude each other"),
        (["--jsonl", "notes.txt"], "--jsonl notes.txt: holds a line that --watch did not write"),
        (["--jsonl", "deep.jsonl"], "--jsonl deep.jsonl: holds a line that --watch did not write"),
        (
            ["--jsonl", "no/such/place"],
            "--jsonl no/such/place: no folder no/such; create it with:  mkdir -p no/such",
        ),
        (["--interval", 0], "--interval 0: expected more than 0"),
    ],
)
def test_what_cannot_be_followed_is_one_line(
    tmp_path: Path, images: Path, more: list[object], message: str
) -> None:
    (tmp_path / "notes.txt").write_text("remember the milk\n")
    (tmp_path / "deep.jsonl").write_text(100_000 * "[" + "\n")
    (tmp_path / "runs").mkdir()
    done = lidar(*words(tmp_path / "runs", images, *more), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "notes.txt").read_text() == "remember the milk\n"


@pytest.mark.parametrize(
    ("name", "stored", "step"),
    [
        ("step=8.pt", {"global_step": 7, "epoch": 1}, 7),
        ("epoch=3-step=500.pt", {"epoch": 4}, 500),
        ("checkpoint-500/model.pt", {"meta": {"epoch": 2}}, 500),
        ("checkpoint0099.pth", {}, 99),
        ("last.pt", {"step": True}, None),
    ],
)
def test_the_step_is_the_recorded_one_else_that_in_the_name(
    tmp_path: Path, name: str, stored: dict[str, Any], step: int | None
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    torch.save(stored, tmp_path / name)
    assert step_of(str(tmp_path / name)) == step
    (tmp_path / name).unlink()
    assert (step_of(str(tmp_path / name)) is None) == (step is None)


def test_its_options_alone_are_refused(tmp_path: Path) -> None:
    done = lidar("rank", "runs", "--jsonl", "rows.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: --jsonl belongs to --watch; add that\n"


@pytest.fixture
def without_tensorboard(tmp_path: Path) -> Path:
    """A folder whose `tensorboard` cannot be imported, as where it is not installed."""
    place = tmp_path / "shadow"
    place.mkdir()
    (place / "tensorboard.py").write_text("raise ImportError('not installed')\n")
    return place


def test_tensorboard_missing_is_one_line(
    tmp_path: Path, images: Path, without_tensorboard: Path
) -> None:
    (tmp_path / "runs").mkdir()
    python_path = os.pathsep.join([str(without_tensorboard), os.environ.get("PYTHONPATH", "")])
    more = ["--tensorboard", "board"]
    done = lidar(*words(tmp_path / "runs", images, *more), cwd=tmp_path, PYTHONPATH=python_path)
    assert done.returncode == 2
    assert done.stderr == (
        "error: --tensorboard needs the package tensorboard, which is not installed; "
        "install it with: pip install 'lidar-cli[tensorboard]'\n"
    )


@pytest.mark.parametrize(
    ("name", "values", "peaks", "shares"),
    [
        ("lidar", [2.0, 4.0, 3.0, 5.0], [2, 4, 4, 5], [0, 0, 0.25, 0]),
        ("alignment", [2.0, 1.0, 1.5], [2, 1, 1], [0, 0, 0.5]),  # lower is better
        ("alpha_req", [1.5, 0.8, 1.4], [1.5, 0.8, 0.8], [0, 0, (0.4 - 0.2) / 0.8]),  # nearest 1
        ("lidar", [-4.0, -5.0], [-4, -4], [0, 0.25]),
        ("lidar", [0.0, -1.0, 0.0], [0, 0, 0], [0, None, 0]),
        ("lidar", [None, 2.0, math.nan, 1.0], [None, 2, 2, 2], [None, 0, None, 0.5]),
    ],
)
def test_the_fall_is_from_the_best_value_so_far(
    name: str, values: list[float | None], peaks: list[float], shares: list[float]
) -> None:
    falls = []
    earlier: list[float] = []
    for value in values:
        falls.append(drawdown(value, earlier, METRICS[name].sort_key))
        earlier += [value] if value is not None and not math.isnan(value) else []
    assert [fall.peak for fall in falls] == peaks
    assert [fall.share for fall in falls] == pytest.approx(shares)
    lost = [peak is not None and share is None for peak, share in zip(peaks, shares, strict=True)]
    lost = [one and value != -1.0 for one, value in zip(lost, values, strict=True)]  # peak of 0
    assert [fall.is_lost for fall in falls] == lost
    assert not any(fall.exceeds(1.0) for fall in falls if not fall.is_lost)
    assert all(fall.exceeds(1.0) for fall in falls if fall.is_lost)


def test_a_run_that_falls_ends_with_status_5(
    tmp_path: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    log, run = tmp_path / "log.jsonl", tmp_path / "runs" / "one"

    def watch(*more: object) -> subprocess.CompletedProcess[str]:
        command = words(run.parent, images, "--interval", 0.01, "--watch-for", 0, "--jsonl", log)
        return lidar_here(*command, *more, monkeypatch=monkeypatch, capfd=capfd)

    for step, seed in ((900, 1), (1000, 2)):  # 1000 comes before 900 in a folder
        checkpoint(run / f"step={step}.pt", seed)
    checkpoint(tmp_path / "runs" / "two" / "step=2000.pt", 3)
    assert watch().returncode == 0
    value = {(Path(line["path"]).parent.name, line["step"]): line["value"] for line in lines(log)}
    falls = {line["step"]: (line["peak"], line["drawdown"]) for line in lines(log)}
    peak = max(value["one", 900], value["one", 1000])
    assert falls == {
        900: (value["one", 900], 0),
        1000: (peak, pytest.approx((peak - value["one", 1000]) / peak)),
        2000: (value["two", 2000], 0),  # of another run
    }
    # After a restart, and after the best file is gone, the peak is that of the log.
    for path in run.glob("*.pt"):
        path.unlink()
    weaker = next(seed for seed, at in ((1, 900), (2, 1000)) if value["one", at] < peak)
    weights = state_dict(weaker)
    torch.save({"epoch": 4, "state_dict": weights}, run / "step=1100.pt")
    fall = 1 - min(value["one", 900], value["one", 1000]) / peak
    done = watch("--alarm", 0.5 * fall)
    assert done.returncode == 5
    assert lines(log)[-1]["drawdown"] == pytest.approx(fall)
    assert done.stderr.splitlines()[-1].startswith(f"ALARM: {lines(log)[-1]['name']}: lidar ")
    # A collapsed embedding has a value still, or none; either is more than any fall.
    flat = dict(weights)
    flat["module.projector.3.bias"] = weights["module.projector.3.bias"] + 100
    torch.save({"epoch": 5, "state_dict": flat}, run / "step=1150.pt")
    done = watch("--alarm", 100)
    assert done.returncode == 5
    assert "is constant or nearly so, so that its lidar" in done.stderr.splitlines()[-1]
    last = lines(log)[-1]
    assert last["value"] > 0
    # Nor is it a peak in the lines of an earlier version, which do not say so.
    older = [line | {"value": 1e6} if line == last else line for line in lines(log)]
    older[-1].pop("collapsed")
    log.write_text("".join(f"{json.dumps(line)}\n" for line in older))
    checkpoint(run / "step=1160.pt", weaker)
    assert watch("--alarm", 100).returncode == 0
    assert lines(log)[-1]["peak"] == peak
    log.write_text("".join(f"{json.dumps(line)}\n" for line in [*older[:-1], last]))
    (run / "step=1160.pt").unlink()
    assert (last["peak"], last["drawdown"], last["collapsed"]) == (peak, None, True)
    dead = {key: 0 * tensor for key, tensor in weights.items()}
    torch.save({"epoch": 5, "state_dict": dead}, run / "step=1200.pt")
    done = watch("--alarm", 100)
    assert done.returncode == 5
    assert "has no lidar, the best of its run so far is" in done.stderr.splitlines()[-1]
    assert (lines(log)[-1]["peak"], lines(log)[-1]["drawdown"]) == (peak, None)
    assert watch("--alarm", 100).returncode == 0  # it is recorded: the next start goes on
