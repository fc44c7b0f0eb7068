"""What changes or vanishes under a run: a clear line, and never an answer about something else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import run_command
from faults import N, keywords, replaced_in_place, values
from make import checkpoint, environment, image_folder

from lidar_cli.errors import CheckpointError, InputError
from lidar_cli.extraction import run as extracting
from lidar_cli.extraction.run import extract_checkpoint
from lidar_cli.ranking.cache import MARKER
from lidar_cli.ranking.session import rank_directory
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import ExtractSettings, RankSettings


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), N)


@pytest.mark.parametrize("store", [True, False])
def test_a_cache_never_answers_for_other_weights(store: bool, images: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed in (1, 2):
        checkpoint(runs / f"{seed}.pt", seed)
    settings = RankSettings(**keywords(images, store=store))
    before = values(rank_directory(runs, settings))
    replaced_in_place(runs / "1.pt", 7)
    after = values(rank_directory(runs, settings))
    fresh = tmp_path / "fresh"
    checkpoint(fresh / "1.pt", 7)
    assert after["1.pt"] == values(rank_directory(fresh, settings))["1.pt"] != before["1.pt"]
    assert after["2.pt"] == before["2.pt"]


class At(Progress):
    """Does something once, when a job says that it has come to a task."""

    def __init__(self, task: str, act: Callable[[], object]) -> None:
        self.task = task
        self.act: Callable[[], object] | None = act

    def update(self, task: str, done: int, total: int) -> None:
        if task.startswith(self.task) and self.act is not None and done == total - 1:
            act, self.act = self.act, None
            act()


@pytest.mark.parametrize("how", ["in place", "by another file", "touched"])
@pytest.mark.parametrize("store", [True, False])
def test_weights_that_change_after_they_were_hashed_are_not_scored(
    how: str, store: bool, images: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    for seed in (1, 2):
        checkpoint(runs / f"{seed}.pt", seed)

    def change() -> None:  # while the second file is looked at, the first is hashed already
        if how == "in place":
            replaced_in_place(runs / "1.pt", 7)
        elif how == "by another file":
            checkpoint(tmp_path / "new.pt", 7).replace(runs / "1.pt")
        else:
            (runs / "1.pt").touch()

    settings = RankSettings(**keywords(images, store=store))
    found = rank_directory(runs, settings, At("reading checkpoints", change))
    if how == "touched":  # the same weights
        assert len(values(found)) == 2
        return
    assert [(left.path, left.reason) for left in found.failed] == [
        (str(runs / "1.pt"), "changed while it was read; run again")
    ]
    fresh = tmp_path / "fresh"
    checkpoint(fresh / "1.pt", 7)
    again = values(rank_directory(runs, settings))
    assert again["1.pt"] == values(rank_directory(fresh, settings))["1.pt"]


def test_extract_does_not_name_weights_that_it_did_not_read(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(tmp_path / "a.pt", 1)
    really = extracting.sha256

    def late(name: Path) -> str:  # what another process may do between two reads
        checkpoint(tmp_path / "new.pt", 2).replace(path)
        return really(name)

    monkeypatch.setattr(extracting, "sha256", late)
    with pytest.raises(CheckpointError, match="changed while it was read; run again"):
        extract_checkpoint(path, ExtractSettings(**keywords(images, output=tmp_path / "a.h5")))
    assert not list(tmp_path.glob("*.h5*"))


@pytest.mark.parametrize("bad_samples", ["fail", "skip"])
@pytest.mark.parametrize("store", [True, False])
def test_an_image_that_vanishes_ends_the_ranking_by_name(
    bad_samples: str, store: bool, images: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    runs = tmp_path / "runs"
    for seed in (1, 2):
        checkpoint(runs / f"{seed}.pt", seed)
    gone = folder / "013.png"

    class Vanishing(Progress):
        def update(self, task: str, done: int, total: int) -> None:
            if task.startswith(("embedding", "scoring")):
                gone.unlink(missing_ok=True)

    settings = RankSettings(**keywords(folder, store=store, bad_samples=bad_samples, batch_size=2))
    with pytest.raises(InputError, match=r"013\.png \(in .*: cannot be read: No such file"):
        rank_directory(runs, settings, Vanishing())
    kept = {path.name for path in (runs / ".lidar").iterdir()}
    assert all(name.endswith(".partial") for name in set(kept) - {MARKER})
    # With the image in its place again the run goes on, to what it would have been.
    shutil.copy(images / "013.png", gone)
    assert values(rank_directory(runs, settings)) == values(
        rank_directory(runs, RankSettings(**keywords(images, cache=tmp_path / "c", batch_size=2)))
    )


def test_a_checkpoint_that_vanishes_is_a_row_that_failed(images: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed in (1, 2):
        checkpoint(runs / f"{seed}.pt", seed)
    gone = At("reading checkpoints", (runs / "1.pt").unlink)
    found = rank_directory(runs, RankSettings(**keywords(images)), gone)
    assert list(values(found)) == ["2.pt"]
    assert [left.reason for left in found.failed] == ["no such file; check the path"]


@pytest.mark.parametrize("words", [["score", "z.npy", "--json"], ["score", "z.npy"]])
def test_a_full_stdout_is_one_line(words: list[str], tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(30, 3, 8)))
    with Path("/dev/full").open("w") as full:
        done = run_command(words, tmp_path, environment(), stdout=full.fileno())
    message = "error: stdout cannot be written: No space left on device; free some space\n"
    assert (done.returncode, done.stderr) == (3, message)
