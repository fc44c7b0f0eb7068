"""What a full and a read-only disk do, on real ones of 2 MB; `test_full_disk.py` runs this file.

It needs a namespace of its own, in which anyone may mount, and which leaves nothing behind.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupted import assert_same
from make import checkpoint, image_folder, lidar_here

from lidar_cli.errors import FeatureFileError, InputError, LidarError
from lidar_cli.extraction.run import extract_checkpoint
from lidar_cli.extraction.view_cache import CacheLimits, ViewCache
from lidar_cli.features.schema import partial_path
from lidar_cli.ranking.cache import MARKER
from lidar_cli.ranking.session import rank_directory
from lidar_cli.runtime.processes import save_checkpoint
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import ExtractSettings, RankSettings

N, Q, SIZE = 40, 6, 24
PAGE = 4096
Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), N)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)

    return run


def fill(disk: Path) -> Path:
    """Every page of the disk taken by one file; removing that frees them."""
    path = disk / ".fill"
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(PAGE))
            except OSError:
                return path


def names(disk: Path) -> set[str]:
    return {path.name for path in disk.rglob("*")} - {".fill", ".lidar", MARKER}


def options(images: Path, **more: Any) -> dict[str, Any]:
    sizes = {"n_samples": N, "n_views": Q, "image_size": SIZE, "batch_size": 5, "device": "cpu"}
    return {"data": str(images)} | sizes | more


class FillAfter(Progress):
    """Fills the disk once some samples were embedded."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk

    def update(self, task: str, done: int, total: int) -> None:
        if task.startswith("embedding") and done >= 10 and not (self.disk / ".fill").exists():
            fill(self.disk)


LAYERS = {"layer": "backbone,projector"}


def test_extract_has_its_room_before_it_begins(disk: Path, images: Path, tmp_path: Path) -> None:
    """What fills the disk while it runs takes nothing from it."""
    path = checkpoint(tmp_path / "a.pt", widths=(8, 16, 64, 256))
    extract_checkpoint(path, ExtractSettings(**options(images, output=tmp_path / "a.h5", **LAYERS)))
    output = disk / "a.h5"
    settings = ExtractSettings(**options(images, output=output, **LAYERS))
    extract_checkpoint(path, settings, FillAfter(disk))
    assert names(disk) == {"a.h5"}
    assert (disk / ".fill").exists()
    assert_same(tmp_path / "a.h5", output)


class Stop(Exception):
    pass


class StopAfter(Progress):
    def update(self, task: str, done: int, total: int) -> None:
        if task.startswith("embedding") and done >= 10:
            raise Stop


def sparse(path: Path) -> None:
    """The file with holes for what was never written, as other programs copy it."""
    content = path.read_bytes()
    with path.open("wb") as file:
        for at in range(0, len(content), PAGE):
            part = content[at : at + PAGE]
            file.seek(at + len(part) - 1)
            if any(part):
                file.seek(at)
                file.write(part)
        file.truncate(len(content))


def test_resume_has_its_room_or_keeps_what_is_done(
    disk: Path, images: Path, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path / "a.pt", widths=(8, 16, 64, 256))
    extract_checkpoint(path, ExtractSettings(**options(images, output=tmp_path / "a.h5", **LAYERS)))
    output = disk / "a.h5"
    settings = ExtractSettings(**options(images, output=output, resume=True, **LAYERS))
    with pytest.raises(Stop):
        extract_checkpoint(path, settings, StopAfter())
    sparse(partial_path(output))
    fill(disk)
    before = partial_path(output).read_bytes()
    with pytest.raises(FeatureFileError, match=r"cannot be written: .*free some space, then --res"):
        extract_checkpoint(path, settings)
    assert partial_path(output).read_bytes() == before
    (disk / ".fill").unlink()
    assert extract_checkpoint(path, settings).embedded < N
    assert names(disk) == {"a.h5"}
    assert_same(tmp_path / "a.h5", output)


def test_extract_begins_nothing_on_a_full_disk(disk: Path, images: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pt")
    full = fill(disk)
    # A full one, and one where the rows fit and what HDF5 keeps beside them does not.
    for free in (0, 16 * PAGE):
        with full.open("r+b") as file:
            file.truncate(full.stat().st_size - free)
        settings = ExtractSettings(**options(images, output=disk / "a.h5", n_views=0))
        with pytest.raises(
            FeatureFileError, match=r"will take 0\.\d+ MB and .* are free; free som"
        ):
            extract_checkpoint(path, settings)
        assert names(disk) == set()


@pytest.mark.parametrize("store", [True, False])
def test_rank_keeps_nothing_half_written(
    store: bool, disk: Path, images: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    for seed in (1, 2):
        checkpoint(runs / f"{seed}.pt", seed)
    expected = rank_directory(
        runs, RankSettings(**options(images, cache=tmp_path / "c", store=store))
    )
    settings = RankSettings(**options(images, cache=disk, store=store))
    full = fill(disk)
    with pytest.raises(LidarError) as caught:
        rank_directory(runs, settings)
    assert "the cache cannot be written (No space left on device)" in str(caught.value)
    assert str(caught.value).isprintable()
    assert names(disk) == set()
    full.unlink()
    found = rank_directory(runs, settings)
    assert [(row.path, row.value) for row in found.groups[0].rows] == [
        (row.path, row.value) for row in expected.groups[0].rows
    ]


def test_rank_that_fills_the_disk_midway(disk: Path, images: Path, tmp_path: Path) -> None:
    """The first checkpoint has its room, the second has none: a row that failed, no other harm."""
    runs = tmp_path / "runs"
    for seed in (1, 2):
        checkpoint(runs / f"{seed}.pt", seed, widths=(8, 16, 64, 256))
    more = {"layer": "backbone", "view_memory": "1KB"}
    settings = RankSettings(**options(images, cache=disk, **more))
    expected = rank_directory(runs, RankSettings(**options(images, cache=tmp_path / "c", **more)))
    found = rank_directory(runs, settings, FillAfter(disk))
    assert [row.path for group in found.groups for row in group.rows] == [str(runs / "1.pt")]
    ((path, reason),) = [(left.path, left.reason) for left in found.failed]
    assert path == str(runs / "2.pt")
    assert "are free; free some space" in reason
    assert all(name.startswith("1-") for name in names(disk))
    (disk / ".fill").unlink()
    found = rank_directory(runs, settings)
    assert [(row.path, row.value) for row in found.groups[0].rows] == [
        (row.path, row.value) for row in expected.groups[0].rows
    ]


def test_kept_views_need_no_disk(disk: Path) -> None:
    images = torch.arange(7 * 3 * 64 * 64, dtype=torch.float32).reshape(7, 3, 64, 64)
    with ViewCache(CacheLimits(0, 0, 2**40), torch.device("cpu"), disk) as store:
        for sample in range(9):  # 3 MB for 2
            store.add(sample, images + sample)
        kept = [sample for sample in range(9) if sample in store]
        assert kept == list(range(len(kept)))
        assert 3 <= len(kept) < 9
        for sample in kept:
            assert store.images(sample).equal(images + sample)
    fill(disk)
    with ViewCache(CacheLimits(0, 0, 2**40), torch.device("cpu"), disk) as store:
        store.add(0, images)
        assert 0 not in store


def scored(folder: Path) -> Path:
    np.save(folder / "z.npy", np.random.default_rng(0).normal(size=(30, 3, 8)))
    return folder / "z.npy"


@pytest.mark.parametrize(("option", "name"), [("--report", "a.html"), ("--plot", "a.png")])
def test_a_page_or_a_plot_is_whole_or_not_there(
    option: str, name: str, disk: Path, tmp_path: Path, shell: Shell
) -> None:
    path = scored(tmp_path)
    full = fill(disk)
    done = shell("score", path, option, disk / name, "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)  # the numbers are not lost
    assert done.stderr == (
        f"error: {option} {disk / name}: cannot be written: No space left on device\n"
    )
    assert names(disk) == set()
    full.unlink()
    (disk / name).write_text("old")
    fill(disk)
    more = ["--overwrite"] if option == "--report" else []
    assert shell("score", path, option, disk / name, *more).returncode == 3
    assert (disk / name).read_text() == "old"


def test_what_the_demo_keeps_is_whole_or_not_there(disk: Path) -> None:
    trained = {"weights": torch.zeros(2000)}
    for old in (None, b"old"):
        if old is not None:
            (disk / "a.pt").write_bytes(old)
        full = fill(disk)
        with pytest.raises(InputError, match=r"a\.pt: cannot be written: No space left on device"):
            save_checkpoint(trained, disk / "a.pt")
        assert names(disk) == ({"a.pt"} if old else set())
        full.unlink()
    assert (disk / "a.pt").read_bytes() == b"old"
    save_checkpoint(trained, disk / "a.pt")
    assert torch.load(disk / "a.pt", weights_only=True)["weights"].equal(trained["weights"])


def test_a_log_has_whole_lines_only(disk: Path, images: Path, tmp_path: Path, shell: Shell) -> None:
    runs = checkpoint(tmp_path / "runs/1.pt", 1).parent
    words = ["rank", runs, "--watch", "--watch-for", 0, "--interval", 0.01, "--jsonl"]
    words += [disk / "log", "--data", images, "-n", N, "-q", Q, "--image-size", SIZE]
    words += ["--device", "cpu"]
    assert shell(*words).returncode == 0
    before = (disk / "log").read_bytes()
    with (disk / "log").open("ab") as file:  # up to a few bytes below the end of its page
        line = json.loads(before)
        line["key"] = "another"
        padding = PAGE - (len(before) + len(json.dumps(line)) + 20) % PAGE
        file.write(json.dumps(line | {"pad": "x" * max(1, padding - 30)}).encode() + b"\n")
    before = (disk / "log").read_bytes()
    fill(disk)
    checkpoint(runs / "2.pt", 2)
    done = shell(*words)
    assert done.returncode == 3
    assert done.stderr.endswith(f"--jsonl {disk / 'log'}: cannot be written: No space left on d"
                                "evice\n")  # fmt: skip
    assert (disk / "log").read_bytes() == before
    (disk / ".fill").unlink()
    assert shell(*words).returncode == 0
    lines = (disk / "log").read_text().splitlines()
    assert json.loads(lines[-1])["path"].endswith("2.pt")


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # TensorBoard's are its own
def test_a_board_has_all_points_of_a_checkpoint_or_none(
    disk: Path, images: Path, tmp_path: Path, shell: Shell
) -> None:
    from tensorboard_events import scalars

    runs, board = checkpoint(tmp_path / "runs/step=1.pt", 1).parent, disk / "board"
    words = ["rank", runs, "--watch", "--watch-for", 0, "--interval", 0.01, "--tensorboard", board]
    words += ["--jsonl", tmp_path / "log", "--data", images, "-n", N, "-q", Q, "--image-size", SIZE]
    words += ["--device", "cpu"]

    def refused() -> None:
        """The line is out before the points that found no room."""
        done = shell(*words)
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr.splitlines()[-1] == (
            f"error: --tensorboard {board}: cannot be written: No space left on device; "
            "free some space, or name another folder; the same command resumes"
        )
        assert "Traceback" not in done.stderr
        lines = (tmp_path / "log").read_text().splitlines()
        assert len(lines) == 1 + len(scalars(board))

    full = fill(disk)
    refused()
    full.unlink()
    assert shell(*words).returncode == 0
    assert scalars(board).keys() == {1}
    last = 32  # more points than two pages hold: a run in the same second extends the same file
    for step in range(2, last + 1):
        checkpoint(runs / f"step={step}.pt", step)
    full = fill(disk)
    with full.open("r+b") as file:
        file.truncate(full.stat().st_size - PAGE)
    refused()
    assert 1 < len(scalars(board)) < last
    full.unlink()
    assert shell(*words).returncode == 0
    assert scalars(board).keys() == set(range(1, last + 1))


def test_a_read_only_disk_is_one_line(
    disk: Path, images: Path, tmp_path: Path, shell: Shell
) -> None:
    runs = checkpoint(disk / "runs/1.pt", 1).parent
    path = scored(disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    common = ["--data", images, "-n", N, "-q", Q, "--image-size", SIZE, "--device", "cpu"]

    def refused(name: str) -> str:
        return f"{disk / name}: the folder {disk} cannot be written; name another"

    for words, reason in (
        (["extract", runs / "1.pt", "-o", disk / "a.h5", *common], "cannot be written; name"),
        (["rank", runs, *common], "the cache cannot be written (Read-only file system); name"),
        (["score", path, "--report", disk / "a.html"], "--report " + refused("a.html")),
        (["score", path, "--plot", disk / "a.png"], "--plot " + refused("a.png")),
        (["rank", runs, "--watch", "--jsonl", disk / "log", *common], "cannot be written; name"),
    ):
        done = shell(*words)
        assert done.returncode in (2, 3)
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        assert reason in last
    done = shell("rank", runs, *common, "--cache", tmp_path / "cache", "--quiet")
    assert (done.returncode, done.stdout) == (0, f"{runs / '1.pt'}\n")
    assert shell("score", path, "--confidence", 0.9).returncode == 0
