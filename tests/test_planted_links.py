"""Links, pipes, sockets and devices in a downloaded folder: nothing is lost, none is awaited."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from make import checkpoint, lidar_here

from lidar_cli.errors import InputError
from lidar_cli.ranking.cache import MARKER, CacheFolder
from lidar_cli.ranking.claims import Claims

OPTIONS = ["--data", "embedded", "-n", "8", "-q", "2", "--image-size", "16", "--device", "cpu"]
OURS = ("a-0123456789abcdef.h5", "a.pt-0123456789abcdef.sha256", "a-0123456789abcdef.score")


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder of somebody's work, some of it in a subfolder called as ours is."""
    folder = tmp_path / "precious"
    (folder / "claims").mkdir(parents=True)
    for number in (1, 2, 3):
        (folder / f"chapter{number}.txt").write_text(f"chapter {number}")
        (folder / "claims" / f"chapter{number}.txt").write_text(f"chapter {number}")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def claims_are_a_link(runs: Path, precious: Path) -> list[object]:
    (runs / ".lidar").mkdir()
    (runs / ".lidar" / "claims").symlink_to(precious)
    return []


def the_cache_is_a_link(runs: Path, precious: Path) -> list[object]:
    (runs / ".lidar").symlink_to(precious)
    return []


def the_cache_is_a_link_to_another(runs: Path, precious: Path) -> list[object]:
    (runs / ".lidar").symlink_to(precious / "claims")
    return []


def a_named_cache_is_a_folder_of_other_things(runs: Path, precious: Path) -> list[object]:
    return ["--cache", precious]


def a_named_cache_is_a_link_to_other_things(runs: Path, precious: Path) -> list[object]:
    (runs.parent / "link").symlink_to(precious)
    return ["--cache", runs.parent / "link"]


def a_named_cache_has_claims_that_are_a_link(runs: Path, precious: Path) -> list[object]:
    (runs.parent / "cache").mkdir()
    (runs.parent / "cache" / "claims").symlink_to(precious)
    return ["--cache", runs.parent / "cache"]


def a_marked_cache_has_claims_that_are_a_link(runs: Path, precious: Path) -> list[object]:
    words = a_named_cache_has_claims_that_are_a_link(runs, precious)
    (runs.parent / "cache" / MARKER).touch()
    return words


Plant = Callable[[Path, Path], list[object]]
REFUSED: list[Plant] = [
    claims_are_a_link,
    the_cache_is_a_link,
    the_cache_is_a_link_to_another,
    a_named_cache_is_a_folder_of_other_things,
    a_named_cache_is_a_link_to_other_things,
    a_named_cache_has_claims_that_are_a_link,
    a_marked_cache_has_claims_that_are_a_link,
]


@pytest.mark.parametrize("plant", REFUSED)
@pytest.mark.parametrize("more", [[], ["--race"], ["--watch", "--watch-for", "0"]])
def test_a_cache_that_leads_elsewhere_is_refused(
    tmp_path: Path,
    precious: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    plant: Plant,
    more: list[str],
) -> None:
    before = contents(precious)
    runs = checkpoint(tmp_path / "runs" / "model.pt").parent
    words = ["rank", runs, *OPTIONS, *plant(runs, precious), *more]
    done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.endswith("--cache PATH\n")
    assert done.stderr.count("error: ") == 1
    assert contents(precious) == before


def test_a_link_in_the_path_of_a_named_cache_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = checkpoint(tmp_path / "runs" / "model.pt").parent
    (tmp_path / "disk" / "cache").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "cache" / OURS[1]).touch()  # as an earlier version left it
    words = ["rank", runs, *OPTIONS, "--quiet", "--cache"]
    for cache in (tmp_path / "link" / "cache", tmp_path / "link" / "new"):
        done = lidar_here(*words, cache, monkeypatch=monkeypatch, capfd=capfd)
        assert done.returncode == 0, done.stderr
        names = {path.name for path in (tmp_path / "disk" / cache.name).iterdir()}
        assert MARKER in names
        assert any(name.endswith(".h5") for name in names)


@pytest.mark.parametrize("name", [*OURS, f"a\n{OURS[0]}", f"a\n{OURS[0]}.partial.begun"])
def test_nothing_of_ours_in_a_cache_is_a_link(tmp_path: Path, name: str) -> None:
    (tmp_path / ".lidar").mkdir()
    (tmp_path / ".lidar" / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=rf"{name}: is a link, .* with --cache PATH$"):
        CacheFolder(tmp_path, None)


@pytest.mark.parametrize("name", [MARKER, *OURS, f"{OURS[0]}.partial", f"{OURS[0]}.partial.begun"])
@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir])
def test_all_of_ours_in_a_cache_are_files(
    tmp_path: Path, name: str, plant: Callable[[Path], None]
) -> None:
    (tmp_path / ".lidar").mkdir()
    plant(tmp_path / ".lidar" / name)
    with pytest.raises(InputError, match=rf"{name}: is not a file; .* with --cache PATH$"):
        CacheFolder(tmp_path, None)


def test_what_is_not_ours_does_not_disturb_a_marked_cache(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path, None)
    folder.make()
    (tmp_path / ".lidar" / "notes.txt").write_text("mine")
    os.mkfifo(tmp_path / ".lidar" / "pipe")
    (tmp_path / ".lidar" / "elsewhere").symlink_to("/")
    CacheFolder(tmp_path, None).make()
    assert (tmp_path / ".lidar" / "notes.txt").read_text() == "mine"


def test_a_reservation_of_a_killed_process_is_removed_and_one_in_use_is_not(
    tmp_path: Path,
) -> None:
    CacheFolder(tmp_path, None).make()
    left = tmp_path / ".lidar" / f"{OURS[0]}.partial.begun"
    used = tmp_path / ".lidar" / f"b{OURS[0]}.partial.begun"
    left.write_bytes(bytes(100))
    with h5py.File(used, "x"):
        CacheFolder(tmp_path, None)
        assert used.exists()
        assert not left.exists()
    CacheFolder(tmp_path, None)
    assert not used.exists()


def test_only_claims_are_removed_from_the_folder_of_claims(tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    folder.mkdir()
    (folder / "chapter.txt").write_text("chapter")
    (folder / "a.claim-notes").write_text("mine")
    (folder / "a.claim-5").write_text("f00")  # of a worker that is gone
    (folder / "worker-f00").symlink_to("/dev/zero")
    os.mkfifo(folder / "printer-7")
    with Claims(folder, 0.1) as claims:
        while claims.is_claimed("a"):
            pass
        with claims.hold("a") as claim:
            assert claim is not None
            assert claim.number == 6
    assert contents(folder) == {"chapter.txt": "chapter", "a.claim-notes": "mine"}
    assert not os.path.lexists(folder / "printer-7")


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "a pipe"


def bound(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # whose path must be short
    return "a socket"


def device(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "a device"


def link_to_a_pipe(path: Path) -> str:
    os.mkfifo(path.with_name("hidden"))
    path.symlink_to("hidden")
    return "a pipe"


IRREGULAR = [pipe, bound, device, link_to_a_pipe]


@pytest.mark.parametrize("plant", IRREGULAR)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".h5", ".npy"])
def test_a_file_that_is_none_is_one_line_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    plant: Callable[[Path], str],
    suffix: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(f"planted{suffix}")
    kind = plant(path)
    commands = [["score", path], ["inspect", path], ["extract", path, *OPTIONS], ["probe", path]]
    for words in commands:
        done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
        assert (done.returncode, done.stdout) == (3, ""), words
        (line,) = [line for line in done.stderr.splitlines() if "toy pictures" not in line]
        assert f"{kind}, not a file" in line


def test_rank_ranks_what_lies_beside_such_files_and_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = checkpoint(tmp_path / "runs" / "model.pt").parent
    monkeypatch.chdir(runs)
    for name, plant in zip(("a.pt", "b.ckpt", "c.h5", "d.bin"), IRREGULAR, strict=True):
        plant(Path(name))
    done = lidar_here("rank", ".", *OPTIONS, "--json", monkeypatch=monkeypatch, capfd=capfd)
    assert done.returncode == 0, done.stderr
    reasons = {left["path"]: left["reason"] for left in json.loads(done.stdout)["skipped"]}
    assert reasons == {
        "a.pt": "a pipe, not a file",
        "b.ckpt": "a socket, not a file",
        "c.h5": "a device, not a file",
        "d.bin": "a pipe, not a file",
    }


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_a_sparse_file_of_a_terabyte_is_refused_not_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    runs = checkpoint(tmp_path / "runs" / "model.pt").parent
    size = 2**40
    with (runs / f"sparse.{'pth' if kind == 'pickle' else kind}").open("wb") as file:
        if kind == "safetensors":
            file.write((size - 8).to_bytes(8, "little") + b"{")
        else:
            file.write(b"\x80\x02\x8e" + (size - 20).to_bytes(8, "little"))
        file.truncate(size)
    words = ["rank", runs, *OPTIONS, "--quiet"]
    done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
    assert (done.returncode, done.stdout) == (4, f"{runs / 'model.pt'}\n")


@pytest.mark.parametrize("option", ["--report", "--plot"])
def test_an_output_follows_no_planted_link_and_leaves_nothing(
    tmp_path: Path,
    precious: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    option: str,
) -> None:
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(30, 3, 8)))
    name = {"--report": "a.html", "--plot": "a.svg"}[option]
    (tmp_path / name).symlink_to(precious / "chapter1.txt")
    more = ["--overwrite"] if option == "--report" else []
    before = contents(precious)
    monkeypatch.chdir(tmp_path)
    words = ["score", "z.npy", option, name, *more]
    done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
    assert done.returncode == 0, done.stderr
    assert contents(precious) == before
    assert not (tmp_path / name).is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"z.npy", name, "precious"}


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # TensorBoard's are its own
def test_points_for_tensorboard_follow_no_planted_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / "lidar.jsonl").symlink_to(tmp_path / "planted")
    checkpoint(tmp_path / "runs" / "model.pt")
    words = ["rank", tmp_path / "runs", *OPTIONS, "--watch", "--watch-for", "0"]
    words += ["--interval", "0.01", "--tensorboard", tmp_path / "board"]
    done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
    assert (done.returncode, done.stdout) == (2, "")
    assert "lidar.jsonl: cannot be written: Too many levels of symbolic links" in done.stderr
    assert not (tmp_path / "planted").exists()


def test_features_go_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(tmp_path / "model.pt")
    os.mkfifo(tmp_path / "pipe.h5")
    words = ["extract", path, *OPTIONS, "--overwrite", "-o", tmp_path / "pipe.h5"]
    done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
    assert done.returncode == 3
    assert done.stderr.endswith("pipe.h5: a feature file goes to a file; name one with -o\n")


def test_three_clones_whose_links_lead_elsewhere_delete_nothing(
    tmp_path: Path,
    precious: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(precious)
    model = checkpoint(tmp_path / "model.pt")
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        shutil.copy(model, tmp_path / name)
    (tmp_path / "a" / ".lidar").mkdir()
    (tmp_path / "a" / ".lidar" / "claims").symlink_to("../../precious")
    (tmp_path / "b" / ".lidar").symlink_to("../precious")
    (tmp_path / "c" / "endless.pt").symlink_to("/dev/zero")
    statuses = []
    for name in ("a", "b", "c"):
        words = ["rank", name, "--data", "embedded", "-n", 8, "-q", 2, "--quiet"]
        statuses.append(lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd).returncode)
    assert statuses == [3, 3, 0]
    assert contents(precious) == before


def test_pruning_removes_what_no_checkpoint_uses_and_nothing_else(
    tmp_path: Path,
    precious: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    runs = checkpoint(tmp_path / "runs" / "a.pt").parent
    gone = checkpoint(runs / "gone.pt", 1)
    elsewhere = checkpoint(tmp_path / "elsewhere" / "c.pt", 2)
    cache = runs / ".lidar"

    def lidar(*words: object) -> str:
        done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for directory, more in ((runs, []), (runs, ["--no-store"]), (elsewhere.parent, [])):
        lidar("rank", directory, *OPTIONS, "--quiet", "--cache", cache, *more)
    gone.unlink()
    (cache / "notes.txt").write_text("mine")
    (cache / f"b{OURS[0]}").write_text("damaged")
    files = names_of_files(cache)
    listed = json.loads(lidar("cache", runs, "--json"))
    assert {file["name"] for file in listed["files"] if file["unused"]} == {
        name for name in files if name.startswith("gone-")
    }
    assert {Path(file["checkpoint"]).name for file in listed["files"] if file["checkpoint"]} == {
        "a.pt",
        "gone.pt",
        "c.pt",
    }
    assert "removed" in lidar("cache", runs, "--prune", "--dry-run")
    refused = lidar_here("cache", runs, "--prune", monkeypatch=monkeypatch, capfd=capfd)
    assert refused.returncode == 2
    assert names_of_files(cache) == files
    lidar("cache", runs, "--prune", "--yes")
    assert names_of_files(cache) == {n for n in files if not n.startswith("gone-")}
    (cache / "z-0123456789abcdef.h5").symlink_to(precious / "chapter1.txt")
    before = contents(precious)
    for named in (cache, precious, tmp_path / "nothing"):
        words = ["cache", runs, "--cache", named, "--prune", "--yes"]
        assert lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd).returncode == 3
    assert contents(precious) == before


def names_of_files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}
