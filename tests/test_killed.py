"""Killed at any moment, `extract` and `rank` lose no finished row and end with the same bits."""

import json
import random
import shutil
import signal
from collections.abc import Collection
from pathlib import Path

import h5py
import numpy as np
import pytest
from killing import Ended, Runs
from make import checkpoint, image_folder
from safetensors import safe_open

from lidar_cli.features.schema import partial_path

N, Q, SIZE, BATCH = 48, 3, 24, 2
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What an interrupted process exits with: Ctrl-C is answered, the others end it where it stands.
STATUS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    for seed in range(3):
        checkpoint(tmp_path / "runs" / f"{seed}.pt", seed)
    image_folder(tmp_path / "images", N)
    return Runs(tmp_path)


def options() -> list[object]:
    return [
        *("--data", "images", "-n", N, "-q", Q, "--image-size", SIZE, "--device", "cpu"),
        *("--batch-size", BATCH, "--workers", 2),
    ]


def contents(path: Path) -> dict[str, object]:
    """Every dataset's bytes and every attribute."""
    found: dict[str, object] = {}
    with h5py.File(path) as file:
        found |= {f"@{name}": value for name, value in file.attrs.items()}
        file.visititems(
            lambda name, item: (
                found.update({name: item[()].tobytes()})
                if isinstance(item, h5py.Dataset) and item.dtype.kind != "O"
                else found.update({name: list(item)})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    return found


def saved(path: Path) -> dict[str, object]:
    """The header's texts and every tensor's bytes of a saved score."""
    with safe_open(path, "np") as file:
        return file.metadata() | {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def finished(path: Path, whole: Path, altered: Collection[int] = ()) -> set[int]:
    """The samples that a file marks as done, whose rows are those of the uninterrupted file.

    altered: samples of which that need not hold; they count as finished where it does.
    """
    with h5py.File(path) as file, h5py.File(whole) as reference:
        done = set(np.flatnonzero(file["samples/done"][:]).tolist())
        for layer, group in file["embeddings"].items():
            for name, rows in group.items():
                same = rows[:] == reference["embeddings"][layer][name][:]
                wrong = np.flatnonzero(~same.reshape(len(same), -1).all(axis=1))
                assert not (done & set(wrong.tolist())) - set(altered), (layer, name)
                done -= set(wrong.tolist())
    return done


def alter(path: Path, at: int) -> None:
    """Flip a bit of one finished row."""
    with h5py.File(path, "r+") as file:
        rows = file["embeddings/projector/views"]
        row = rows[at]
        row.view(np.uint32)[0, 0] ^= 1
        rows[at] = row


def samples_of(ended: Ended) -> list[int]:
    return [i for _, start, stop in ended.embedded for i in range(start, stop)]


def check_end(ended: Ended, by: signal.Signals) -> bool:
    """Whether the run was cut short; either way it says nothing that is no message."""
    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.status in (0, STATUS[by], -by), ended.stderr
    return ended.status != 0


def extract_killed(runs: Runs, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    whole, words = runs.folder / "whole.h5", ["extract", "runs/0.pt", *options()]
    first = runs.run(*words, "-o", whole)
    assert first.status == 0, first.stderr
    assert sorted(samples_of(first)) == list(range(N))

    killed, output = 0, runs.folder / "out.h5"
    while killed < kills:
        known: set[int] = set()  # finished, as the file of the run before says
        altered: set[int] = set()
        cut = True
        while cut:
            by = draw.choice(SIGNALS)
            after = draw.uniform(0, first.seconds) if killed < kills else None
            ended = runs.run(*words, "-o", output, "--resume", after=after, by=by)
            cut = check_end(ended, by)
            killed += cut
            embedded = samples_of(ended)
            assert len(embedded) == len(set(embedded))
            # What was finished is not computed again, but for batches with an altered row.
            mended = {i // BATCH for i in altered}
            assert not {i for i in embedded if i in known and i // BATCH not in mended}
            if output.exists():
                break  # killed when all was done, or not at all
            partial = partial_path(output)
            if not partial.exists():
                assert not known
                continue
            now = finished(partial, whole, altered)
            assert known - altered <= now
            altered -= now
            known = now
            if known and draw.random() < 0.3:
                at = draw.choice(sorted(known))
                alter(partial, at)
                altered.add(at)
        assert contents(output) == contents(whole)
        assert not list(runs.folder.glob("out.h5.*"))
        output.unlink()


def rank_killed(runs: Runs, kills: int, seed: int, *more: str) -> None:
    draw = random.Random(seed)
    words = ["rank", "runs", *options(), "--json", *more]
    whole, cache = runs.folder / "whole", runs.folder / "cache"
    first = runs.run(*words, "--cache", whole)
    assert first.status == 0, first.stderr
    assert len(samples_of(first)) == 3 * N
    kept = sorted(path.name for path in whole.iterdir())

    killed = 0
    while killed < kills:
        known: dict[str, set[int]] = {}
        complete: set[str] = set()
        while True:
            by = draw.choice(SIGNALS)
            after = draw.uniform(0, first.seconds) if killed < kills else None
            ended = runs.run(*words, "--cache", cache, after=after, by=by)
            cut = check_end(ended, by)
            killed += cut
            assert not {sha for sha, _, _ in ended.embedded} & complete
            for sha, start, stop in ended.embedded:
                assert not known.get(sha, set()) & set(range(start, stop))
            if not cut:
                break
            for path in cache.glob("*.h5*") if cache.exists() else ():
                if path.name.endswith(".begun"):
                    continue
                final = whole / path.name.removesuffix(".partial")
                with h5py.File(path) as file:
                    sha = json.loads(file.attrs["provenance"])["sha256"]
                known[sha] = finished(path, final)
                if path == cache / final.name:
                    assert contents(path) == contents(final)
            for path in cache.glob("*.score") if cache.exists() else ():
                assert saved(path) == saved(whole / path.name)
        assert json.loads(ended.stdout) == json.loads(first.stdout)
        # A kill while a small file is written may leave its beginning, under a temporary name.
        left = sorted(path.name for path in cache.iterdir() if path.suffix != ".tmp")
        # Digests are kept of files that are old enough, as they may be by now.
        assert [name for name in left if not name.endswith(".sha256")] == kept
        for name in kept:
            if name.endswith(".h5"):
                assert contents(cache / name) == contents(whole / name)
        shutil.rmtree(cache)


def test_extract_killed_at_random_moments(runs: Runs) -> None:
    extract_killed(runs, 4, seed=0)


def test_rank_killed_at_random_moments(runs: Runs) -> None:
    rank_killed(runs, 3, seed=1)


def test_rank_without_a_store_killed_at_random_moments(runs: Runs) -> None:
    rank_killed(runs, 2, 2, "--no-store")


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(4))
def test_extract_killed_many_times(runs: Runs, seed: int) -> None:
    extract_killed(runs, 25, 10 + seed)


@pytest.mark.nightly
@pytest.mark.parametrize("more", [(), ("--no-store",)], ids=["stored", "not stored"])
@pytest.mark.parametrize("seed", range(2))
def test_rank_killed_many_times(runs: Runs, seed: int, more: tuple[str, ...]) -> None:
    rank_killed(runs, 25, 20 + seed, *more)
