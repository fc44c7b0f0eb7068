"""A file is written whole under its name, or not at all, and nothing planted redirects it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lidar_cli.runtime.files import TEMPORARY, atomic, is_stream, write_atomic


def test_the_file_appears_complete_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with atomic(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
        (name,) = {entry.name for entry in tmp_path.iterdir()} - {"a"}
        assert TEMPORARY.fullmatch(name)
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_cuts_it_short_leaves_the_old_one_alone(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "a").write_text("old")

    def cut_short() -> None:
        with atomic(tmp_path / "a") as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        cut_short()
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("a", "old")]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a").symlink_to("precious")
    (tmp_path / "b").symlink_to("nowhere")
    for name in "ab":
        write_atomic(tmp_path / name, b"new")
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == "new"
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_its_mode_is_that_of_any_new_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def test_a_name_of_the_greatest_length_is_written(tmp_path: Path) -> None:
    write_atomic(tmp_path / ("a" * 255), b"new")
    assert (tmp_path / ("a" * 255)).read_text() == "new"


def test_a_pipe_is_written_directly(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert is_stream(tmp_path / "pipe")
    assert not is_stream(tmp_path / "absent")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_atomic(tmp_path / "pipe", b"new")
    reader.join()
    assert read == [b"new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_stdout_that_is_a_file_gets_it_after_what_was_printed(tmp_path: Path, name: str) -> None:
    if not Path(name).exists():
        pytest.skip(f"this system has no {name}")
    script = (
        "import sys; from pathlib import Path; from lidar_cli.runtime.files import write_atomic; "
        "print('before'); write_atomic(Path(sys.argv[1]), b'new '); print('after')"
    )
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", script, name], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\nnew after\n"
