"""One directory by many processes: each checkpoint made once, dead ones replaced, one prints."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import psutil
import pytest
from command import Command
from make import checkpoint, environment, image_folder, lidar_here
from raising import raises

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.reading.read import sha256
from lidar_cli.cli import program
from lidar_cli.errors import InputError
from lidar_cli.ranking import scorer
from lidar_cli.ranking.cache import Cache, CacheFolder, Task
from lidar_cli.ranking.claims import Claims, replace_by_copy
from lidar_cli.ranking.discover import Checkpoint
from lidar_cli.ranking.session import open_session, rank_directory
from lidar_cli.runtime.processes import has_ended, process_identity
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import RankSettings

ROOT = Path(__file__).parent.parent
SLURM = ROOT / "sample_configs" / "rank.slurm"
LONG = 3600.0  # seconds: no worker of these tests counts as dead for its silence


# Claims


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_task_is_one_process_s_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    with Claims(folder, LONG) as one, Claims(folder, LONG) as two:
        assert names(folder) == []  # nothing before the first claim
        assert not two.is_claimed("a")
        with one.hold("a") as mine:
            assert mine is not None
            assert (mine.number, mine.taken_over) == (0, False)
            with two.hold("a") as other, two.hold("b") as another:
                assert other is None
                assert another is not None
            assert two.is_claimed("a")
        with two.hold("a") as later:
            assert later is not None
        assert [one.first_to_print(), two.first_to_print()] == [True, False]
    assert not folder.exists()


def test_a_process_that_begins_after_the_printing_prints_again(tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    with Claims(folder, LONG) as one:
        with one.hold("a"):
            pass
        assert one.first_to_print()
        with Claims(folder, LONG) as late, Claims(folder, LONG) as later:
            for each in (late, later):
                with each.hold("b"):
                    pass
            assert [late.first_to_print(), later.first_to_print()] == [True, False]
    with Claims(folder, LONG) as reader:
        assert reader.first_to_print()  # that made nothing, and read what is there
    assert not folder.exists()


@pytest.mark.parametrize(
    "numbers", [[999999999], [999999999, 1000000000], [0, 999999999, 1000000000], [0, 1, 3]]
)
def test_who_prints_does_not_depend_on_planted_files(tmp_path: Path, numbers: list[int]) -> None:
    folder = tmp_path / "claims"
    folder.mkdir()
    for number in numbers:
        (folder / f"printer-{number}").write_text("f00")
    with Claims(folder, LONG) as one, Claims(folder, LONG) as two:
        for each in (one, two):
            with each.hold("a"):
                pass
        assert [one.first_to_print(), two.first_to_print()] == [True, False]
        with Claims(folder, LONG) as late:
            with late.hold("b"):
                pass
            assert late.first_to_print()


def planted(folder: Path, **changed: object) -> None:
    """The claim of task a by a worker, as its process left it; changed: where it differs."""
    folder.mkdir()
    (folder / "worker-f00").write_text(json.dumps(process_identity() | changed))
    (folder / "a.claim-0").write_text("f00")


def test_the_claim_of_a_dead_process_of_this_host_is_taken_over_at_once(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    folder = tmp_path / "claims"
    with Claims(folder, LONG) as claims:
        planted(folder, process=child.pid)
        with claims.hold("a") as mine:
            assert mine is not None
            assert (mine.number, mine.taken_over) == (1, False)
    assert not folder.exists()


needs_proc = pytest.mark.skipif(
    process_identity()["began"] is None, reason="this system has no /proc"
)


@needs_proc
def test_a_number_that_was_given_to_another_process_is_no_sign_of_life(tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    with Claims(folder, LONG) as claims:
        planted(
            folder, began=process_identity()["began"] - 1
        )  # our own number, in use a tick before we began
        with claims.hold("a") as mine:
            assert mine is not None
            assert (mine.number, mine.taken_over) == (1, False)
    assert not folder.exists()


@needs_proc
def test_a_zombie_is_dead(tmp_path: Path) -> None:
    script = "import json; from lidar_cli.runtime.processes import process_identity; "
    script += "print(json.dumps(process_identity()), flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    worker = json.loads(child.stdout.readline())
    folder = tmp_path / "claims"
    planted(folder, **worker)
    with child, Claims(folder, LONG) as claims:
        assert claims.is_claimed("a")
        child.stdin.write("end\n")
        child.stdin.flush()
        assert child.stdout.read() == ""  # until it ended; nobody has asked for its status
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        os.kill(child.pid, 0)  # its number answers
        assert not claims.is_claimed("a")
        with claims.hold("a") as mine:
            assert mine is not None
            assert (mine.number, mine.taken_over) == (1, False)
    assert not folder.exists()


def test_who_does_not_know_takes_nobody_for_dead() -> None:
    me = process_identity()
    assert not has_ended(me, me)
    assert not has_ended(
        {"host": me["host"], "process": os.getpid()}, me
    )  # without its time of start
    assert not has_ended(me, me | {"began": None})  # without /proc
    for process in (None, "1", 0, -1, 10**30, 1):  # the last runs, for another user or this one
        assert not has_ended({"host": me["host"], "process": process}, me)
    assert not has_ended(me | {"host": "elsewhere", "began": 1}, me)


@needs_proc
def test_a_clock_that_is_set_meanwhile_ends_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    me, boots = process_identity(), itertools.count(10**9, 100)
    monkeypatch.setattr(psutil, "boot_time", lambda: next(boots))
    assert not has_ended(me, me)

    def unknown() -> float:
        raise RuntimeError("line 'btime' not found")

    monkeypatch.setattr(psutil, "boot_time", unknown)
    assert process_identity()["began"] is None
    assert not has_ended(me, me)


def test_the_claim_of_another_host_is_taken_over_after_its_silence(tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    planted(folder, host="elsewhere", process=1)
    worker = folder / "worker-f00"
    with Claims(folder, 0.3) as claims:
        until = time.monotonic() + 0.6
        while time.monotonic() < until:  # a clock that is an hour late, and moves
            stamp = worker.stat().st_mtime_ns + 1_000_000
            os.utime(worker, ns=(stamp - 3600 * 10**9, stamp))
            assert claims.is_claimed("a")
            time.sleep(0.01)
        time.sleep(0.4)
        with claims.hold("a") as mine:
            assert mine is not None
            assert (mine.number, mine.taken_over) == (1, True)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.claim-0", ""), ("worker-f00", ""), ("worker-f00", "7"), ("worker-f00", 9999 * "[")],
)
def test_what_was_cut_short_counts_by_its_age(tmp_path: Path, name: str, content: str) -> None:
    folder = tmp_path / "claims"
    planted(folder)
    (folder / name).write_text(content)
    with Claims(folder, 0.2) as claims:
        assert claims.is_claimed("a")
        time.sleep(0.3)
        with claims.hold("a") as mine:
            assert mine is not None
            assert (mine.number, mine.taken_over) == (1, True)


@pytest.mark.parametrize("more", [[], [1000000000]])
def test_a_claim_that_none_can_follow_is_refused(tmp_path: Path, more: list[int]) -> None:
    folder = tmp_path / "claims"
    planted(folder, host="elsewhere")
    for number in (999999999, *more):
        (folder / f"a.claim-{number}").write_text("f00")
    with Claims(folder, LONG) as claims:
        with raises(InputError, "cache-refused"):
            claims.hold("a").__enter__()
        assert not claims.is_claimed("a")
        with claims.hold("c") as mine:
            assert mine is not None


def test_a_worker_that_wakes_up_knows_that_it_lost(tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    sleeper, taker = Claims(folder, LONG), Claims(folder, 0.05)
    with sleeper, taker, sleeper.hold("a") as mine:
        assert mine is not None
        assert taker.is_claimed("a")
        time.sleep(0.1)  # it touches its file every six minutes
        with taker.hold("a") as theirs:
            assert theirs is not None
            assert theirs.taken_over
            assert sleeper.is_lost(mine)
            assert not taker.is_lost(theirs)
        assert sleeper.is_lost(mine)  # also where the taker is done, and its claim gone
    assert not folder.exists()


def test_what_a_sleeper_writes_is_written_in_vain(tmp_path: Path) -> None:
    path = tmp_path / "a.h5.partial"
    with path.open("w") as old:
        old.write("begun")
        old.flush()
        replace_by_copy(path, tmp_path / "a.h5")
        old.write(" and on")
    assert path.read_text() == "begun"
    assert names(tmp_path) == ["a.h5.partial"]
    replace_by_copy(tmp_path / "absent", tmp_path / "a.h5")
    assert names(tmp_path) == ["a.h5.partial"]


@pytest.mark.parametrize("late", [False, True])
def test_a_sleeper_that_ends_its_file_leaves_that_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    path, whole = tmp_path / "a.h5.partial", tmp_path / "a.h5"
    path.write_text("all")
    copy = shutil.copyfileobj

    def wake(source: BinaryIO, target: BinaryIO, length: int) -> None:
        if not late:
            path.rename(whole)
        copy(source, target, length)
        if late:
            path.rename(whole)

    monkeypatch.setattr(shutil, "copyfileobj", wake)
    replace_by_copy(path, whole)
    assert names(tmp_path) == ["a.h5"]
    assert whole.read_text() == "all"
    # What is begun anew beside a file that is not the old one's, as one that was damaged, stays.
    monkeypatch.undo()
    path.write_text("begun")
    replace_by_copy(path, whole)
    assert names(tmp_path) == ["a.h5", "a.h5.partial"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        Claims(tmp_path / "file" / "claims", LONG) as claims,
        raises(InputError, "cache-refused"),
        claims.hold("a"),
    ):
        pass


@pytest.mark.skipif(os.name != "posix", reason="permissions of another kind")
def test_a_cache_that_may_be_read_and_not_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    folder, new = CacheFolder(Path(), None), CacheFolder(Path(), Path("new"))
    folder.make().chmod(0o555)
    new.path.mkdir(mode=0o555)
    uid = os.geteuid()
    line = r"the cache cannot be written .*; name another folder with --cache PATH$"
    try:
        if uid == 0:  # who may write anywhere
            os.seteuid(65534)
        assert CacheFolder(Path(), None).make() == folder.path  # what is there is read
        with pytest.raises(InputError, match=rf"new: {line}"):
            new.make()
        with Claims(folder.claims, LONG) as claims, raises(InputError, "cache-refused"):
            claims.hold("a").__enter__()
    finally:
        os.seteuid(uid)


# Real processes

OPTIONS = ["-n", "12", "-q", "3", "--image-size", "16", "--batch-size", "3", "--device", "cpu"]
TOLD = """
import os, signal, sys, time
from lidar_cli.__main__ import main
from lidar_cli.features.writer import FeatureWriter

write, victim = FeatureWriter.write, os.environ.get("VICTIM")

def write_and_print(self, samples, views, clean):
    write(self, samples, views, clean)
    with open("written", "a") as log:
        log.write(f"{self.path.name} {samples[0]}\\n")
    if victim:
        os.kill(os.getpid(), signal.SIGKILL)
    while not os.path.exists("go"):  # until the victim is dead and all have begun
        time.sleep(0.02)

FeatureWriter.write = write_and_print
main()
"""


def started(folder: Path, *words: object, **more: str) -> Command:
    return Command(words, folder, environment(**more), script=TOLD)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in range(6):
        checkpoint(tmp_path / "runs" / f"{seed}.pt", seed)
    return tmp_path / "runs"


def test_four_processes_one_killed_make_each_checkpoint_once(
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def here(*more: object) -> subprocess.CompletedProcess[str]:
        return lidar_here(*words, *more, monkeypatch=monkeypatch, capfd=capfd)

    monkeypatch.chdir(tmp_path)
    words = ["rank", "runs", *OPTIONS, "--json"]
    victim = started(tmp_path, *words, VICTIM="yes")
    victim.communicate(timeout=120)
    assert victim.returncode == -signal.SIGKILL
    (killed,) = (tmp_path / "written").read_text().split()[::2]
    assert (tmp_path / "runs/.lidar" / f"{killed}.partial").exists()
    assert len(names(tmp_path / "runs/.lidar/claims")) == 2  # its own, and that of the checkpoint
    others = [started(tmp_path, *words) for _ in range(3)]
    until = time.monotonic() + 120
    while time.monotonic() < until:  # each has begun a checkpoint of its own
        if len(set((tmp_path / "written").read_text().splitlines())) == 4:
            break
        time.sleep(0.05)
    collected = here("--collect")
    assert collected.returncode == 3
    assert "nothing could be ranked (6 failed, 0 skipped; the first:" in collected.stderr
    assert "not scored yet; a process is working on it" in collected.stderr
    (tmp_path / "go").touch()
    ends = [process.communicate(timeout=120) for process in others]
    assert [process.returncode for process in others] == [0, 0, 0], ends
    (ranking,) = [out for out, _ in ends if out]
    silent = [err for out, err in ends if not out]
    assert len(silent) == 2
    assert all("another process prints the ranking" in err for err in silent)

    written = (tmp_path / "written").read_text().splitlines()
    assert Counter(written).most_common(1)[0][1] == 1  # nothing twice, nor what the dead had done
    assert len(written) == 6 * 4  # checkpoints, and batches of each
    assert not (tmp_path / "runs/.lidar/claims").exists()
    assert not list((tmp_path / "runs/.lidar").glob("*.partial*"))

    assert here("--collect").stdout == ranking
    alone = here("--cache", tmp_path / "alone").stdout  # and its advice has the option, too
    assert alone.replace(f" --cache {tmp_path / 'alone'}", "") == ranking


def test_a_waiting_process_looks_at_what_is_missing_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    images = image_folder(tmp_path / "images", 12)
    settings = RankSettings(
        data=str(images), n_samples=12, n_views=2, image_size=24, device="cpu", batch_size=4
    )
    for seed in range(3):
        checkpoint(runs / f"{seed}.pt", seed)
    before = rank_directory(runs, settings)
    missing = checkpoint(runs / "missing.pt", 3)
    monkeypatch.setattr(scorer, "FIRST_PAUSE", 0.01)
    looks: Counter[str] = Counter()
    has = Cache.has

    def counted(self: Cache, task: Task) -> bool:
        looks[task.checkpoint.path.name] += 1
        if looks[missing.name] == 6:
            theirs.close()
        return has(self, task)

    monkeypatch.setattr(Cache, "has", counted)
    other = Claims(runs / ".lidar" / "claims", LONG)
    theirs = ExitStack()
    theirs.enter_context(other)
    plan_key = one_plan(missing, settings)
    assert theirs.enter_context(other.hold(f"missing-{plan_key}.h5")) is not None
    ranking = rank_directory(runs, settings)
    assert len(ranking.groups[0].rows) == 1 + len(before.groups[0].rows)
    assert looks.pop(missing.name) >= 6
    # For what is outdated, the room, the time left, the views that are shared, and for itself.
    assert set(looks.values()) == {5}


def test_a_wait_for_a_silent_worker_is_said_once_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = image_folder(tmp_path / "images", 12)
    settings = RankSettings(
        data=str(images), n_samples=12, n_views=2, image_size=24, device="cpu", claim_timeout=1.0
    )
    path = checkpoint(tmp_path / "runs" / "a.pt")
    claims = tmp_path / "runs" / ".lidar" / "claims"
    task = f"a-{one_plan(path, settings)}.h5"
    claims.mkdir(parents=True)
    (claims / "worker-f00").write_text(json.dumps(process_identity() | {"host": "elsewhere"}))
    (claims / f"{task}.claim-0").write_text("f00")
    os.utime(claims / "worker-f00", (4e9, 4e9))  # a date in the future is no sign of life
    monkeypatch.setattr(scorer, "PATIENCE", 0.2)
    monkeypatch.setattr(scorer, "FIRST_PAUSE", 0.1)
    notes: list[str] = []
    progress = Progress()
    monkeypatch.setattr(progress, "note", notes.append)
    assert len(rank_directory(path.parent, settings, progress).groups[0].rows) == 1
    (note,) = [note for note in notes if "waiting" in note]
    assert "that work on 1 checkpoints, the first is " + str(path) in note
    assert "is replaced after 1 seconds (--claim-timeout;" in note


def one_plan(path: Path, settings: RankSettings) -> str:
    """The key of what is embedded of a checkpoint."""
    checkpoint = Checkpoint(path, sha256(path), open_checkpoint(path).description)
    (task,) = open_session(path.parent, settings).open_scorer("projector").plans([checkpoint])
    return task.plan.key


def test_what_is_not_scored_yet_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path / "runs/a.pt", 0)
    monkeypatch.chdir(tmp_path)
    words = ["rank", "runs", *OPTIONS]
    assert lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd).returncode == 0
    cache = names(tmp_path / "runs/.lidar")
    # The marker, and the features: n = 12 is too few for intervals.
    assert [Path(name).suffix for name in cache] == ["", ".h5"]
    checkpoint(tmp_path / "runs/b.pt", 1)
    done = lidar_here(*words, "--collect", "--quiet", monkeypatch=monkeypatch, capfd=capfd)
    assert (done.returncode, done.stdout) == (4, "runs/a.pt\n")
    assert "failed: runs/b.pt: not scored yet\n" in done.stderr
    assert names(tmp_path / "runs/.lidar") == cache


# The sample script


def test_the_slurm_script_is_one_and_its_commands_parse() -> None:
    text = SLURM.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", SLURM], check=True)
    assert re.search(r"^#SBATCH --array=", text, re.MULTILINE)
    commands = program.commands  # type: ignore[attr-defined]
    joined = text.replace("\\\n", " ")
    calls = re.findall(r"(?:\blidar|-m lidar_cli) ((?:extract|score|rank) [^#|)`\n]*)", joined)
    assert len(calls) == 4
    for call in calls:
        name, *arguments = shlex.split(call)
        commands[name].make_context(name, arguments, resilient_parsing=False)
