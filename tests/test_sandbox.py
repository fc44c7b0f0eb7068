"""The child that walks foreign structure: its answers, its limits, and who is blamed for what."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import psutil
import pytest
import walkers
from make import lidar_here

import lidar_cli.runtime.sandbox as runtime_sandbox
from lidar_cli import errors
from lidar_cli.errors import CheckpointError, FeatureFileError, NoProcess
from lidar_cli.runtime.sandbox import Limits, Sandbox, WalkResult

HELPERS = Path(walkers.__file__).parent
NAMES = [name for name in vars(walkers) if callable(getattr(walkers, name))]
LINUX = sys.platform == "linux"


@pytest.fixture
def box() -> Iterator[Sandbox]:
    made = sandbox(Limits(seconds=1, memory=1 << 28))
    yield made
    made.close()


def sandbox(limits: Limits) -> Sandbox:
    return Sandbox(limits, {f"walkers:{name}": () for name in NAMES}, [str(HELPERS)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "a file"
    made.write_text("content")
    return made


def walk(box: Sandbox, name: str, path: Path, arguments: Any = None) -> WalkResult:
    return box.run(f"walkers:{name}", path, arguments, error=CheckpointError, advice="save again")


def refusal(box: Sandbox, name: str, path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        walk(box, name, path)
    text = str(caught.value)
    assert text.isprintable()
    return text.removeprefix(f"{path}: ")


def test_the_child_reads_the_file_and_many_more_without_torch(box: Sandbox, path: Path) -> None:
    answers = [walk(box, "first_bytes", path, {"count": n}) for n in (3, 100, 0)]
    assert [one.value["text"] for one in answers] == ["con", "content", ""]
    assert len({one.value["process"] for one in answers}) == 1
    loaded = {name.split(".")[0] for one in answers for name in one.value["modules"]}
    assert loaded.isdisjoint({"torch", "timm", "numpy", "h5py", "site", "threading"})
    status = path.stat()
    stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    assert {one.stamp for one in answers} == {stamp}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("spin", "takes more than 1 s of processor time to read; save again"),
        ("swell", "takes more than 256 MB of memory to read; save again"),
        ("nest", "is nested too deeply to be read; save again"),
        ("nested_answer", "is nested too deeply to be read; save again"),
        ("crash", "crashes the process that reads it (SIGSEGV); save again"),
        ("killed", "ends the process that reads it; save again"),
        ("leave", "ends the process that reads it; save again"),
        ("fail", "cannot be read: two; save again"),
        ("fail_without_words", "cannot be read: AssertionError; save again"),
        ("long_answer", "holds more than 16 MB of names and sizes; save again"),
        ("refuse", "a line of the walker"),
    ],
)
def test_what_a_file_does_is_one_line_about_it_and_the_next_is_read(
    name: str, line: str, box: Sandbox, path: Path
) -> None:
    assert refusal(box, name, path) == line
    assert walk(box, "first_bytes", path, {"count": 3}).value["text"] == "con"


def test_wall_time_is_limited_too(path: Path) -> None:
    box = sandbox(Limits(wall=0.5))
    assert refusal(box, "sleep", path) == "takes more than 0.5 s to read; save again"
    box.close()


def test_processor_time_counts_for_each_file_alone(path: Path) -> None:
    """Four files of 0.6 s each, of which none takes 1 s."""
    box = sandbox(Limits(seconds=1))
    for _ in range(4):
        walk(box, "busy", path, 0.6)
    box.close()


def test_the_class_of_the_line_is_the_callers(box: Sandbox, path: Path) -> None:
    with pytest.raises(FeatureFileError):
        box.run("walkers:crash", path, error=FeatureFileError)
    with pytest.raises(KeyError):
        box.run("os:system", path, error=FeatureFileError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_only_regular_files_are_opened(box: Sandbox, path: Path, tmp_path: Path) -> None:
    pipe, link, name = tmp_path / "pipe", tmp_path / "link", tmp_path / "socket"
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as served:
        served.bind(str(name))
        for strange in (pipe, link, name, tmp_path):
            assert "cannot be read: " in refusal(box, "first_bytes", strange)
    link.unlink()
    link.symlink_to(path)
    assert walk(box, "first_bytes", link, {"count": 3}).value["text"] == "con"


@pytest.mark.skipif(not LINUX, reason="the system does not limit it")
def test_the_child_writes_nothing(box: Sandbox, path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(CheckpointError, match="File too large"):
        walk(box, "write", path, str(target))
    assert target.stat().st_size == 0


def test_a_child_that_others_end_is_replaced_without_a_word(box: Sandbox, path: Path) -> None:
    first = walk(box, "first_bytes", path, {"count": 1}).value["process"]
    os.kill(first, signal.SIGKILL)
    second = walk(box, "first_bytes", path, {"count": 1}).value["process"]
    assert first != second
    later = threading.Timer(0.5, os.kill, (second, signal.SIGKILL))
    later.start()
    assert walk(box, "busy", path, 0.9).value == "done"  # by a third one
    later.join()


def test_no_child_is_a_line_about_the_machine(
    box: Sandbox, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(runtime_sandbox, "START", "import nothing_of_that_name")
        with pytest.raises(NoProcess, match=r"did not start \(exit status 1\)"):
            walk(box, "first_bytes", path, {"count": 1})
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(NoProcess, match="no process can be started to read files in: No such"):
            walk(box, "first_bytes", path, {"count": 1})
    assert walk(box, "first_bytes", path, {"count": 3}).value["text"] == "con"


def test_what_a_walker_imports_is_not_the_files_doing(path: Path, tmp_path: Path) -> None:
    slow = "import time\nwhile time.process_time() < 2.2: pass\ndef walk(file, arguments): return 7"
    (tmp_path / "slow_to_import.py").write_text(slow)
    walkers: dict[str, tuple[str, ...]] = {"slow_to_import:walk": (), "not_there:walk": ()}
    box = Sandbox(Limits(seconds=1), walkers, [str(tmp_path)])
    with pytest.raises(NoProcess, match="cannot import what it needs: No module named 'not_there'"):
        box.run("not_there:walk", path, error=CheckpointError)
    assert box.run("slow_to_import:walk", path, error=CheckpointError).value == 7
    box.close()


@pytest.mark.parametrize("name", ["CheckpointError", "NoWeights", "FeatureFileError", "InputError"])
def test_a_walkers_line_is_printable_and_short(name: str, box: Sandbox, path: Path) -> None:
    with pytest.raises(getattr(errors, name), match=r"^\\x1b\[2Jx+$") as caught:
        walk(box, "raise_named", path, name)
    assert type(caught.value).__name__ == name
    assert len(str(caught.value)) < 1500 + len(str(path))


@pytest.mark.parametrize("name", ["MissingExtra", "SettingsError", "NoProcess", "difflib", "x"])
def test_a_child_chooses_no_other_error(name: str, box: Sandbox, path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read: \\x1b\[2Jx+; save again") as caught:
        walk(box, "raise_named", path, name)
    assert type(caught.value) is CheckpointError


def test_what_a_file_leaves_behind_is_gone_before_the_next(box: Sandbox, path: Path) -> None:
    assert walk(box, "litter", path).value is True
    assert walk(box, "litter_left", path).value == 0


ENDING = """
import sys, threading, time
from pathlib import Path
from lidar_cli.errors import CheckpointError
from lidar_cli.runtime import sandbox
box = sandbox.SHARED
box._walkers, box._search = {"walkers:sleep": (), "walkers:first_bytes": ()}, (sys.argv[1],)
here = Path(sys.argv[2])
pid = box.run("walkers:first_bytes", here, {"count": 1}, error=CheckpointError).value["process"]
read = {"error": CheckpointError}
threading.Thread(target=box.run, args=("walkers:sleep", here), kwargs=read, daemon=True).start()
while not box._lock.locked():
    time.sleep(0.01)
time.sleep(0.2)
print(pid)
"""


def test_a_program_ends_while_a_thread_of_it_reads(path: Path) -> None:
    """In less than the minute that the file may take."""
    command = [sys.executable, "-c", ENDING, str(HELPERS), str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=40, check=True)
    assert not psutil.pid_exists(int(ended.stdout))


def test_threads_take_turns(box: Sandbox, path: Path) -> None:
    texts: list[str] = []

    def read(count: int) -> None:
        texts.append(walk(box, "first_bytes", path, {"count": count}).value["text"])

    threads = [threading.Thread(target=read, args=(count,)) for count in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == ["content"[:count] for count in range(8)]


BUSY = """
import sys
from pathlib import Path
import lidar_cli.runtime.sandbox as runtime_sandbox
from lidar_cli import errors
from lidar_cli.errors import CheckpointError
from lidar_cli.runtime.sandbox import Sandbox
box = Sandbox(walkers={"walkers:spin": (), "walkers:first_bytes": ()}, search=[sys.argv[1]])
here = Path(sys.argv[2])
pid = box.run("walkers:first_bytes", here, {"count": 1}, error=CheckpointError).value["process"]
print(pid, flush=True)
if sys.argv[3] == "busy":
    box.run("walkers:spin", here, error=CheckpointError)
sys.stdin.read()
"""


@pytest.mark.parametrize("doing", ["busy", "idle"])
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_the_child_ends_with_its_parent(name: str, doing: str, path: Path) -> None:
    command = [sys.executable, "-c", BUSY, str(HELPERS), str(path), doing]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.3)
        parent.send_signal(signal.Signals[name])
        child.wait(10)  # raises if it lives on
        parent.wait(10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_forked_process_has_a_child_of_its_own(box: Sandbox, path: Path) -> None:
    first = walk(box, "first_bytes", path, {"count": 1}).value["process"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which torch may have
        forked = os.fork()
    if forked == 0:
        status = 1
        try:
            other = walk(box, "first_bytes", path, {"count": 1}).value["process"]
            box.close()
            status = 0 if other != first else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 0
    assert walk(box, "first_bytes", path, {"count": 1}).value["process"] == first


@pytest.mark.parametrize("command", ["rank", "inspect", "score"])
def test_where_no_child_starts_a_command_ends_with_the_first_file(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    starts, files = tmp_path / "starts", tmp_path / "files"
    files.mkdir()
    for name in ("a", "b", "c"):
        if command == "score":
            h5py.File(files / f"{name}.h5", "w").close()
        else:
            (files / f"{name}.pt").write_bytes(b"PK\x03\x04")
    runtime_sandbox.SHARED.close()
    monkeypatch.setattr(runtime_sandbox, "START", f"open({str(starts)!r}, 'a').write('x'); 1 / 0")
    words = [files, "--data", "embedded"] if command == "rank" else sorted(files.iterdir())
    done = lidar_here(command, *words, monkeypatch=monkeypatch, capfd=capfd)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines()[-1].startswith("error: the process that reads files did not")
    assert done.stderr.count("error: ") == 1
    assert starts.read_text() == "x"
