"""Digests that are kept: what is read again, and that none ever speaks of other content."""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from faults import keywords, replaced_in_place, values
from make import checkpoint, image_folder

from lidar_cli.checkpoints.reading.read import stamp
from lidar_cli.errors import CheckpointError
from lidar_cli.ranking import digests as digesting
from lidar_cli.ranking.digests import Digests
from lidar_cli.ranking.session import rank_directory
from lidar_cli.settings import RankSettings

IN_MEMORY = ("tmpfs", "ramfs")
SHARED = Path("/dev/shm")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="no digest is kept elsewhere")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose content was read for a digest; all count as settled at once."""
    names: list[str] = []
    really = digesting.sha256

    def sha256(path: Path) -> str:
        names.append(path.name)
        return really(path)

    monkeypatch.setattr(digesting, "sha256", sha256)
    monkeypatch.setattr(digesting, "SETTLED", -1)
    return names


@pytest.fixture
def dated(tmp_path: Path) -> None:
    """Where temporary files lie in memory, as on some systems, no digest is kept."""
    if file_system(tmp_path) in IN_MEMORY:
        pytest.skip("a file system in memory does not date changes through mapped memory")


def file_system(path: Path) -> str:
    """Its kind, by the mount that the path lies below."""
    mounts = (line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines())
    below = [(place, kind) for place, kind in mounts if path.resolve().is_relative_to(place)]
    return max(below, key=lambda one: len(one[0]))[1]


def digest(path: Path) -> str:
    """By processes that have read nothing yet."""
    before, computed = Digests(path.parent / "kept").of(path)
    assert before == stamp(path)
    assert computed == hashlib.sha256(path.read_bytes()).hexdigest()
    return computed


@pytest.mark.usefixtures("dated")
def test_a_file_is_read_once_for_all_processes(tmp_path: Path, read: list[str]) -> None:
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_text(name)
    for _ in range(3):
        assert digest(tmp_path / "a.pt") != digest(tmp_path / "b.pt")
    assert read == ["a.pt", "b.pt"]
    names = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert [name[:5] for name in names] == ["a.pt-", "b.pt-"]  # and nothing of the trial


def in_place(path: Path) -> None:
    replaced_in_place(path, 7)


def by_another(path: Path) -> None:
    """Another file of the same size and time of change takes the name."""
    before, new = path.stat(), path.with_name("new")
    new.write_bytes(bytes(before.st_size))
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(path)


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("change", [in_place, by_another, longer])
def test_a_file_that_changed_is_read_again(
    tmp_path: Path, read: list[str], change: Callable[[Path], None]
) -> None:
    path = checkpoint(tmp_path / "runs" / "a.pt", 1)
    before = digest(path)
    change(path)
    assert digest(path) != before
    assert read == ["a.pt", "a.pt"]


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    path = checkpoint(tmp_path / "runs" / "a.pt", 1)
    really = digesting.sha256

    def late(name: Path) -> str:
        computed = really(name)
        replaced_in_place(path, 7)
        return computed

    with monkeypatch.context() as patch:
        patch.setattr(digesting, "sha256", late)
        Digests(path.parent / "kept").of(path)
    digest(path)
    assert read == ["a.pt", "a.pt"]


def test_what_changed_lately_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    monkeypatch.setattr(digesting, "SETTLED", 120)
    (tmp_path / "a.pt").write_text("a")
    os.utime(tmp_path / "a.pt", (1, 1))  # which says nothing of when it was changed
    digest(tmp_path / "a.pt")
    digest(tmp_path / "a.pt")
    assert read == ["a.pt", "a.pt"]
    assert not list((tmp_path / "kept").iterdir())


@pytest.mark.parametrize("wrong", ["no date of changes", "another file system"])
def test_a_system_that_does_not_date_changes_is_not_relied_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str], wrong: str
) -> None:
    class DatedByContent:
        """As of sshfs: the date of the content, which anyone may set, as that of changes."""

        def __init__(self, really: os.stat_result) -> None:
            self._really = really

        def __getattr__(self, name: str) -> Any:
            if wrong == "no date of changes":
                return getattr(self._really, name.replace("ctime", "mtime"))
            trial = self._really.st_mtime_ns == 0
            return getattr(self._really, name) + (name == "st_dev" and trial)

    really = os.fstat
    monkeypatch.setattr(os, "fstat", lambda number: DatedByContent(really(number)))
    path = tmp_path / "a.pt"
    path.write_text("a")
    digest(path)
    digest(path)
    assert read == ["a.pt", "a.pt"]
    assert not list((tmp_path / "kept").iterdir())


@pytest.mark.skipif(not SHARED.is_dir(), reason="no file system in memory here")
def test_files_in_memory_are_read_each_time(read: list[str]) -> None:
    """One changed through mapped memory has the dates that it had."""
    assert file_system(SHARED) in IN_MEMORY
    with TemporaryDirectory(dir=SHARED) as folder:
        path = checkpoint(Path(folder) / "a.pt", 1)
        before, stamped = digest(path), stamp(path)
        time.sleep(0.05)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[-1000] ^= 1
        assert stamp(path) == stamped
        assert digest(path) != before


DEEP = 100_000 * "["  # deeper than Python can read


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"file": 3, "sha256": "0"}', "\xff", DEEP])
@pytest.mark.usefixtures("dated")
def test_a_record_that_is_none_is_read_over(tmp_path: Path, read: list[str], content: str) -> None:
    path = tmp_path / "a.pt"
    path.write_text("a")
    digest(path)
    (record,) = (tmp_path / "kept").iterdir()
    record.write_text(content)
    digest(path)
    digest(path)
    assert read == ["a.pt", "a.pt"]


def test_where_nothing_can_be_kept_files_are_read(tmp_path: Path, read: list[str]) -> None:
    path = tmp_path / "a.pt"
    path.write_text("a")
    (tmp_path / "kept").write_text("in the way")
    digest(path)
    digest(path)
    assert read == ["a.pt", "a.pt"]
    with pytest.raises(CheckpointError, match="no such file"):
        Digests(tmp_path / "other").of(tmp_path / "absent.pt")


@pytest.mark.usefixtures("dated")
def test_a_second_ranking_reads_no_checkpoint(tmp_path: Path, read: list[str]) -> None:
    images, runs = image_folder(tmp_path / "images", 24), tmp_path / "runs"
    for seed in (1, 2):
        checkpoint(runs / f"{seed}.pt", seed)
    settings = RankSettings(**keywords(images))
    before = values(rank_directory(runs, settings))
    assert sorted(read) == ["1.pt", "2.pt"]
    assert values(rank_directory(runs, settings)) == before
    assert len(read) == 2
    replaced_in_place(runs / "1.pt", 7)
    after = values(rank_directory(runs, settings))
    assert after["1.pt"] != before["1.pt"]
    assert after["2.pt"] == before["2.pt"]
    assert read[2:] == ["1.pt"]
