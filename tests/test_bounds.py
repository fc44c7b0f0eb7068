"""What a run may take: every number has a bound, and what is taken is checked and said before."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import annotated_types
import pytest
from make import checkpoint, lidar_here

from lidar_cli.runtime.device import free_memory
from lidar_cli.settings import COMMANDS
from lidar_cli.views import recipes
from lidar_cli.views.recipes import Recipe

Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Shell:
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)

    return run


def unbounded(hint: Any, bounds: tuple[Any, ...] = ()) -> bool:
    """Whether a type admits a number without an upper bound."""
    if get_origin(hint) is Annotated:
        inner, *more = get_args(hint)
        return unbounded(inner, (*bounds, *more))
    if get_origin(hint) in (Union, UnionType, tuple, list):
        return any(unbounded(part) for part in get_args(hint) if part is not Ellipsis)
    uppers = (annotated_types.Le, annotated_types.Lt)
    return hint in (int, float) and not any(isinstance(bound, uppers) for bound in bounds)


def test_every_number_that_a_settings_file_may_set_has_an_upper_bound() -> None:
    classes: list[Any] = [*COMMANDS.values(), *recipes.RULES.values()]
    open_ended = {
        f"{cls.__name__}.{name}"
        for cls in classes
        for name, hint in get_type_hints(cls, include_extras=True).items()
        if unbounded(hint)
    }
    assert open_ended == set()
    hints = get_type_hints(Recipe, include_extras=True)
    # Statistics are subtracted and divided by, which takes no more memory for larger ones.
    assert {name for name, hint in hints.items() if unbounded(hint)} == {"mean"}


def test_the_check_of_bounds_can_fail() -> None:
    assert unbounded(int)
    assert unbounded(float | None)
    assert unbounded(Annotated[int, annotated_types.Ge(1)])
    assert unbounded(tuple[Annotated[float, annotated_types.Gt(0)], ...])
    assert not unbounded(Annotated[int, annotated_types.Le(1)] | None)
    assert not unbounded(str)


@pytest.mark.parametrize(
    ("key", "value"),
    [("n-views", "10000000"), ("n-samples", "1e15"), ("workers", "100000"), ("top", "10000000000")],
)
def test_a_settings_file_that_lies_there_cannot_ask_for_all(
    tmp_path: Path, shell: Shell, key: str, value: str
) -> None:
    checkpoint(tmp_path / "runs/model.pt")
    (tmp_path / "lidar.toml").write_text(f"[rank]\n{key} = {value}\n")
    done = shell("rank", "runs", "--data", "embedded")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {key.replace('-', '_')} (from lidar.toml) = ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs/.lidar").exists()


@pytest.mark.parametrize("option", ["--memory", "--view-memory"])
def test_more_memory_than_is_free_is_refused(tmp_path: Path, shell: Shell, option: str) -> None:
    checkpoint(tmp_path / "runs/model.pt")
    size = f"{free_memory() // 2**30 + 100}GB"
    done = shell("rank", "runs", "--data", "embedded", option, size)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {option} {size}: asks for ")


def test_a_batch_that_memory_does_not_hold_is_refused_before_it_is_made(
    tmp_path: Path, shell: Shell
) -> None:
    path = checkpoint(tmp_path / "model.pt")
    words = ["extract", path, "--data", "embedded", "-n", 4, "--device", "cpu"]
    # 1,001 images of 8192 px are 750 GB, twice in memory.
    done = shell(*words, "-q", 1000, "--image-size", 8192)
    assert done.returncode == 3
    assert "1,001 images of 8192 px, those of a batch of 1, take 1,501.50 GB" in done.stderr
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.pt"}


def test_room_is_said_before_it_is_taken(
    tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lidar_cli.extraction import run as extract

    path = checkpoint(tmp_path / "runs/a.pt", 0)
    checkpoint(tmp_path / "runs/b.pt", 1)
    common = ["--data", "embedded", "-n", 8, "-q", 3, "--device", "cpu", "--layer", "backbone"]
    monkeypatch.setattr(extract, "NOTED_BYTES", 100)
    # 8 samples of 3 views and themselves, 16 numbers of 4 bytes each: 2,048 bytes.
    done = shell("extract", path, *common)
    assert "a.h5: will take 0.00 MB on the disk, " in done.stderr
    done = shell("rank", "runs", *common)
    assert "runs/.lidar: 2 checkpoints will take 0.00 MB on the disk, " in done.stderr
    assert "will take" not in shell("rank", "runs", *common).stderr


def test_a_table_may_be_a_pipe_and_is_not_endless(tmp_path: Path, shell: Shell) -> None:
    import os
    import threading

    for seed, name in enumerate("abc"):
        checkpoint(tmp_path / f"runs/{name}.pt", seed)
    os.mkfifo(tmp_path / "table")
    text = "path,accuracy\na.pt,0.5\nb.pt,0.7\nc.pt,0.6\n"
    writer = threading.Thread(target=(tmp_path / "table").write_text, args=(text,))
    writer.start()
    common = ["--data", "embedded", "-n", 8, "-q", 2, "--device", "cpu", "--json"]
    done = shell("rank", "runs", *common, "--oracle", "table")
    writer.join()
    assert done.returncode == 0, done.stderr
    done = shell("rank", "runs", *common, "--oracle", "/dev/zero")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == ("error: /dev/zero: cannot be read: more than 64 MB")
