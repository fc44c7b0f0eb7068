"""The cache of a ranking: feature files that serve, what is computed again, and when."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from feature_files import set_revision
from formats_contrastive import moco_v3_resnet
from make import WIDTHS, checkpoint, image_folder, lidar_here
from PIL import Image
from rank_runs import (
    SIZE,
    N,
    Q,
    Shell,
    rank_here,
    ranked,
    settings,
    stamps,
    three,
    values,
)
from safetensors.torch import load_file, save_file

from lidar_cli.errors import FeatureFileError
from lidar_cli.extraction.measure import Measured, measure_checkpoint
from lidar_cli.extraction.run import extract_checkpoint
from lidar_cli.ranking import digests, dry_run
from lidar_cli.ranking.cache import MARKER
from lidar_cli.ranking.session import rank_directory
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ExtractSettings, RankSettings, ScoreSettings


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), N)


@pytest.fixture
def rank(images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return rank_here(images, monkeypatch, capfd)


def test_influences_are_kept_beside_the_features(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    first = rank(runs, "--json").stdout
    influences = sorted((runs / ".lidar").glob("*.influence"))
    assert len(influences) == 3
    before = [path.stat().st_mtime_ns for path in influences]
    assert rank(runs, "--json").stdout == first
    assert [path.stat().st_mtime_ns for path in influences] == before
    tensors = load_file(influences[0])
    tensors["lidar"] *= 2.0  # read, not computed again: the interval is twice as wide
    save_file(tensors, influences[0])
    rows = zip(
        ranked(rank(runs, "--json"))["checkpoints"], json.loads(first)["checkpoints"], strict=True
    )
    widths = [(one["ci_high"] - one["ci_low"]) / (b["ci_high"] - b["ci_low"]) for one, b in rows]
    assert sorted(widths) == pytest.approx([1.0, 1.0, 2.0], rel=1e-9)
    influences[0].write_bytes(b"rubbish")
    influences[1].write_bytes(influences[1].read_bytes()[:500])
    assert rank(runs, "--json").stdout == first
    rank(runs, "--delta", 0.1)  # other constants have influences of their own
    assert len(list((runs / ".lidar").glob("*.influence"))) == 6
    assert {path.suffix for path in (runs / ".lidar").iterdir() if path.name != MARKER} == {
        ".h5",
        ".influence",
    }


def rows_of(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        names: list[str] = []
        file.visit(names.append)
        arrays = {name: file[name] for name in names if isinstance(file[name], h5py.Dataset)}
        return {name: array[:].tolist() for name, array in arrays.items()}


@pytest.mark.parametrize("q", [4, 0])
@pytest.mark.parametrize("fewer", [8, 12])  # batches of 8, the second of 12 is not whole
def test_a_cache_at_a_smaller_n_is_extended_to_the_same_bytes(
    tmp_path: Path, rank: Shell, fewer: int, q: int
) -> None:
    runs = checkpoint(tmp_path / "runs/a.pt", 1).parent
    words = ["--json", "-q", q, "--by", "rankme"]
    rank(runs, *words, "--cache", tmp_path / "fresh")
    rank(runs, *words, "-n", fewer)
    (before,) = stamps(runs / ".lidar")
    done = rank(runs, *words)
    assert "8 of 24 samples of each are in the cache already" in done.stderr
    (extended,) = stamps(runs / ".lidar").keys() - {before}
    (fresh,) = stamps(tmp_path / "fresh")
    assert fresh == extended
    assert rows_of(runs / ".lidar" / extended) == rows_of(tmp_path / "fresh" / fresh)
    with h5py.File(runs / ".lidar" / extended) as one, h5py.File(tmp_path / "fresh" / fresh) as two:
        assert one.attrs["provenance"] == two.attrs["provenance"]
    ranking = ranked(done)["checkpoints"]
    assert ranking == ranked(rank(runs, *words, "--cache", tmp_path / "fresh"))["checkpoints"]


def test_the_rows_of_a_smaller_n_are_read_and_not_embedded_again(
    tmp_path: Path, rank: Shell
) -> None:
    runs = checkpoint(tmp_path / "runs/a.pt", 1).parent
    rank(runs, "-n", 16)
    (smaller,) = (runs / ".lidar").glob("*.h5")
    with h5py.File(smaller, "r+") as file:
        group = file["embeddings/projector"]
        clean = group["clean"][3] * 2
        group["clean"][3] = clean
        group["crc32"][3] = zlib.crc32(clean.tobytes(), zlib.crc32(group["views"][3].tobytes()))
    assert "16 of 24 samples of each are in the cache already" in rank(runs).stderr
    (larger,) = set((runs / ".lidar").glob("*.h5")) - {smaller}
    with h5py.File(larger) as file:
        assert np.array_equal(file["embeddings/projector/clean"][3], clean)


def test_damaged_rows_of_a_smaller_n_are_embedded_again(tmp_path: Path, rank: Shell) -> None:
    runs = checkpoint(tmp_path / "runs/a.pt", 1).parent
    fresh = values(rank(runs, "--json", "--cache", tmp_path / "fresh"))
    rank(runs, "-n", 16)
    (smaller,) = (runs / ".lidar").glob("*.h5")
    with h5py.File(smaller, "r+") as file:
        file["embeddings/projector/clean"][11] += 1.0
    assert values(rank(runs, "--json")) == fresh


@pytest.mark.parametrize("change", [["--seed", 1], ["-q", 3], ["--precision", "bfloat16"]])
def test_other_rows_are_not_extended(tmp_path: Path, rank: Shell, change: list[object]) -> None:
    runs = checkpoint(tmp_path / "runs/a.pt", 1).parent
    rank(runs, "-n", 16)
    assert "in the cache already" not in rank(runs, *change).stderr


def test_features_of_a_found_checkpoint_serve_as_its_cache(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    runs = three(tmp_path / "runs")
    fresh = values(rank(runs, "--json", "--cache", tmp_path / "cache"))
    features = runs / "deep/features.h5"
    features.parent.mkdir()
    extract_checkpoint(
        runs / "a.pt",
        ExtractSettings(**settings(images, output=features, layer="backbone,projector")),
    )
    before = features.stat().st_mtime_ns
    ranking = ranked(rank(runs, "--json"))
    assert {Path(r["path"]).name: r["value"] for r in ranking["checkpoints"]} == fresh
    assert ranking["skipped"] == []
    assert features.stat().st_mtime_ns == before
    assert sorted(path.name[:2] for path in (runs / ".lidar").glob("*.h5")) == ["b-", "c-"]


def test_features_of_a_found_checkpoint_at_other_settings_are_skipped(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    runs = three(tmp_path / "runs")
    target = settings(images, output=runs / "a.h5", seed=1)
    extract_checkpoint(runs / "a.pt", ExtractSettings(**target))
    ranking = ranked(rank(runs, "--json"))
    assert len(ranking["checkpoints"]) == 3
    assert ranking["skipped"] == [
        {
            "path": str(runs / "a.h5"),
            "reason": "features of a checkpoint here, at other settings than asked for",
        }
    ]


def test_features_of_another_checkpoint_stand_for_themselves(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    runs = three(tmp_path / "runs")
    elsewhere = checkpoint(tmp_path / "elsewhere.pt", 5)
    extract_checkpoint(elsewhere, ExtractSettings(**settings(images, output=runs / "other.h5")))
    (runs / "bad.h5").write_bytes(b"no HDF5")
    shutil.copy(runs / "other.h5", runs / "damaged.h5")
    with h5py.File(runs / "damaged.h5", "r+") as file:
        file["embeddings/projector/views"][0, 0, 0] += 1
    ranking = ranked(rank(runs, "--json"), status=4)
    assert ranking["groups"] == 1
    paths = [Path(row["path"]).name for row in ranking["checkpoints"]]
    assert sorted(paths) == ["a.pt", "b.pth", "c.ckpt", "other.h5"]
    failed = {Path(left["path"]).name: left["reason"] for left in ranking["failed"]}
    assert failed.keys() == {"bad.h5", "damaged.h5"}
    assert "does not match its checksum" in failed["damaged.h5"]
    # The same checkpoint beside it takes the file as its own cache, and the value is the same.
    shutil.copy(elsewhere, runs / "other.pt")
    (runs / "damaged.h5").unlink()
    again = ranked(rank(runs, "--json"), status=4)
    value = {Path(row["path"]).name: row["value"] for row in ranking["checkpoints"]}["other.h5"]
    rows = {Path(row["path"]).name: row["value"] for row in again["checkpoints"]}
    assert "other.h5" not in rows
    assert rows["other.pt"] == value


def with_nan(path: Path) -> None:
    """Put NaN into a feature file, with the checksum that a file written so would have."""
    with h5py.File(path, "r+") as file:
        layer = file["embeddings/projector"]
        layer["clean"][2, 1] = np.nan
        layer["crc32"][2] = zlib.crc32(layer["clean"][2].data, zlib.crc32(layer["views"][2].data))


def test_rows_that_cannot_be_scored_end_no_ranking(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    runs = checkpoint(tmp_path / "runs/a.pt").parent
    first = values(rank(checkpoint(runs / "b.pt", 1).parent, "--json"))
    shutil.rmtree(runs / ".lidar")
    extract_checkpoint(runs / "a.pt", ExtractSettings(**settings(images, output=runs / "feats.h5")))
    extract_checkpoint(
        checkpoint(tmp_path / "c.pt", 2), ExtractSettings(**settings(images, output=runs / "c.h5"))
    )
    with_nan(runs / "feats.h5")  # which serves a.pt, so that it is embedded anew
    with_nan(runs / "c.h5")  # whose checkpoint is not here
    ranking = ranked(rank(runs, "--json"), status=4)
    rows = {Path(row["path"]).name: row["value"] for row in ranking["checkpoints"]}
    assert rows == first
    (failed,) = ranking["failed"]
    assert failed["path"] == str(runs / "c.h5")
    assert "1 values are NaN or Inf, in 1 samples, the first is sample 2" in failed["reason"]
    for cached in (runs / ".lidar").glob("a-*.h5"):
        with_nan(cached)
    (runs / "c.h5").unlink()
    assert values(rank(runs, "--json")) == first


def test_a_second_run_computes_nothing(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    first = rank(runs, "--json")
    before = stamps(runs / ".lidar")
    assert len(before) == 3
    assert rank(runs, "--json").stdout == first.stdout
    assert stamps(runs / ".lidar") == before
    rank(runs, "--by", "pillai", "--delta", 0.1)  # constants of the metrics need no new features
    assert stamps(runs / ".lidar") == before
    rank(runs, "--seed", 1)
    assert len(stamps(runs / ".lidar")) == 6


def test_rows_of_another_revision_are_embedded_again_and_that_is_said_once(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    runs = three(tmp_path / "runs")
    target = settings(images, output=runs / "a.h5")
    extract_checkpoint(runs / "a.pt", ExtractSettings(**target))
    first = rank(runs, "--json")
    set_revision(runs / "a.h5", None)
    for path in (runs / ".lidar").glob("[bc]-*.h5"):  # keys of another lidar are others
        set_revision(path, 1)
        path.rename(path.with_name(f"{path.stem[:1]}-{'0' * 16}.h5"))
    again = rank(runs, "--json")
    line = "3 of 3 checkpoints are embedded again: their rows are of another embedding revision"
    assert again.stderr.count(line) == 1
    assert values(again) == values(first)
    assert len(stamps(runs / ".lidar")) == 5
    (left,) = ranked(again)["skipped"]
    assert left["reason"] == "features of embedding revision 1; this lidar embeds at 2"
    (alone,) = score_file(runs / "a.h5", ScoreSettings())
    assert alone.lidar is not None
    assert line not in rank(runs, "--json").stderr


def test_a_damaged_cache_is_made_anew(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    first = rank(runs, "--json")
    cached = sorted((runs / ".lidar").glob("*.h5"))
    content = bytearray(cached[0].read_bytes())
    with h5py.File(cached[0]) as file:
        at = file["embeddings/projector/views"].id.get_offset() + 40
    content[at] ^= 0x40
    cached[0].write_bytes(content)
    cached[1].write_bytes(cached[1].read_bytes()[:3000])
    cached[2].write_bytes(b"")
    assert rank(runs, "--json").stdout == first.stdout
    assert sorted((runs / ".lidar").glob("*.h5")) == cached
    before = stamps(runs / ".lidar")
    assert rank(runs, "--json").stdout == first.stdout
    assert stamps(runs / ".lidar") == before


def test_an_interrupted_cache_is_continued_or_replaced(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    runs = three(tmp_path / "runs")
    first = rank(runs, "--json")
    for path in (runs / ".lidar").glob("*.h5"):
        path.rename(path.with_name(path.name + ".partial"))
    partials = sorted((runs / ".lidar").glob("*.partial"))
    partials[0].write_bytes(b"rubbish")
    with h5py.File(partials[1], "r+") as file:
        file["samples/done"][3:] = 0
    assert rank(runs, "--json").stdout == first.stdout
    assert not list((runs / ".lidar").glob("*.partial"))


def test_a_checkpoint_that_changed_is_embedded_again(tmp_path: Path, rank: Shell) -> None:
    runs = three(tmp_path / "runs")
    before = values(rank(runs, "--json"))
    checkpoint(runs / "a.pt", seed=42)
    after = values(rank(runs, "--json"))
    assert after["a.pt"] != before["a.pt"]
    assert (after["b.pth"], after["c.ckpt"]) == (before["b.pth"], before["c.ckpt"])


def test_images_that_changed_are_embedded_again(tmp_path: Path, rank: Shell, images: Path) -> None:
    runs = three(tmp_path / "runs")
    first = values(rank(runs, "--json"))
    other = shutil.copytree(images, tmp_path / "images")
    assert values(rank(runs, "--json", "--data", other)) == first
    # A copy under another name is other data to the provenance, which holds that name.
    shutil.copy(other / "003.png", other / "007.png")
    assert values(rank(runs, "--json", "--data", other)) != first


def test_an_activation_is_part_of_what_is_cached(tmp_path: Path, rank: Shell) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 0)
    relu = values(rank(tmp_path / "runs", "--json", "--activation", "relu"))
    gelu = values(rank(tmp_path / "runs", "--json", "--activation", "gelu"))
    assert relu != gelu
    assert values(rank(tmp_path / "runs", "--json")) == relu
    assert len(list((tmp_path / "runs" / ".lidar").glob("*.h5"))) == 2  # auto is relu here


def test_images_of_the_same_name_and_size_are_known_by_their_content(
    tmp_path: Path, rank: Shell
) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 0)
    data = tmp_path / "data"
    data.mkdir()
    for seed in range(N):  # uncompressed, so that every file has the same size
        pixels = np.random.RandomState(seed).randint(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(data / f"{seed:02}.bmp")
    before = values(rank(tmp_path / "runs", "--json", "--data", data))
    for seed in range(N):
        pixels = np.full((SIZE, SIZE, 3), 10 * seed, np.uint8)
        pixels[: seed + 1] = 255
        Image.fromarray(pixels).save(data / f"{seed:02}.bmp")
    assert values(rank(tmp_path / "runs", "--json", "--data", data)) != before


def test_the_spelling_of_the_data_path_changes_nothing(
    tmp_path: Path, rank: Shell, images: Path
) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 0)
    rank(tmp_path / "runs")
    before = stamps(tmp_path / "runs" / ".lidar")
    done = rank(tmp_path / "runs", "--json", "--data", f"{images}/.")
    assert ranked(done)["groups"] == 1
    assert stamps(tmp_path / "runs" / ".lidar") == before


def test_data_is_described_from_the_features(tmp_path: Path, images: Path) -> None:
    checkpoint(tmp_path / "a.pt", 0)
    (tmp_path / "runs").mkdir()
    output = tmp_path / "runs" / "a.h5"
    extract_checkpoint(tmp_path / "a.pt", ExtractSettings(output=output, **settings(images)))
    ranking = rank_directory(tmp_path / "runs", RankSettings(device="cpu"))
    assert ranking.data == str(images)


def test_a_feature_file_that_lies_is_a_row_that_failed(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 0)
    for name, provenance in (("b.h5", "[]"), ("c.h5", '{"sha256": [1]}')):
        output = tmp_path / "runs" / name
        source = tmp_path / f"{name}.pt"
        checkpoint(source, 1)
        extract_checkpoint(source, ExtractSettings(output=output, **settings(images)))
        with h5py.File(output, "r+") as file:
            file.attrs["provenance"] = provenance
    ranking = ranked(rank(tmp_path / "runs", "--json"), status=4)
    assert [Path(row["path"]).name for row in ranking["checkpoints"]] == ["a.pt"]
    assert all("provenance is not the record" in row["reason"] for row in ranking["failed"])
    assert len(ranking["failed"]) == 2


def test_features_being_written_by_another_process_are_left_alone(
    tmp_path: Path, images: Path, rank: Shell
) -> None:
    checkpoint(tmp_path / "runs" / "a.pt", 0)
    value = values(rank(tmp_path / "runs", "--json"))
    (cached,) = (tmp_path / "runs" / ".lidar").glob("*.h5")
    partial = cached.rename(cached.with_name(cached.name + ".partial"))
    code = f"import h5py; f = h5py.File({str(partial)!r}, 'r+'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        refused = rank(tmp_path / "runs", "--json")
        assert refused.returncode == 3
        assert "another process is writing it" in refused.stderr
        assert partial.exists()
        other.communicate(b"\n")
    assert values(rank(tmp_path / "runs", "--json")) == value


def test_pruning_leaves_what_a_ranking_of_several_uses(
    tmp_path: Path, rank: Shell, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    here, cache = tmp_path / "here", tmp_path / "here/.lidar"
    for at, name in enumerate(("here/sub/A/a.pt", "here/sub/B/b.pt", "other/c.pt", "here/d")):
        checkpoint(tmp_path / name, at)
    monkeypatch.setattr(digests, "SETTLED", -1)  # digests are stored at once
    monkeypatch.chdir(here)
    assert rank(Path("sub/A"), "sub/B", "--quiet").returncode == 0
    assert rank(Path("../other/c.pt"), "d", "--quiet").returncode == 0
    files = {path.name for path in cache.iterdir()}
    assert len([name for name in files if name.endswith(".h5")]) == 4

    def prune(directory: Path) -> set[str]:
        words = ["cache", directory, "--prune", "--yes"]
        done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
        assert done.returncode == 0, done.stderr
        return {path.name for path in cache.iterdir()}

    assert prune(Path()) == files
    monkeypatch.chdir("/")
    assert prune(here) == files
    monkeypatch.chdir(here)
    (here / "sub/A/a.pt").unlink()
    assert prune(Path()) == {name for name in files if not name.startswith(("a-", "a.pt-"))}


def test_a_dry_run_counts_what_is_cached_and_writes_nothing(tmp_path: Path, rank: Shell) -> None:
    runs = tmp_path / "runs"
    for seed in range(2):
        checkpoint(runs / f"{seed}.pt", seed)
    before = json.loads(rank(runs, "--dry-run", "--json").stdout)
    assert (before["checkpoints"], before["cached"], before["groups"]) == (2, 0, [2])
    assert before["seconds"] > 0
    assert before["disk_bytes"] == 2 * 4 * 8 * (before["n"] * before["q"] + before["n"])
    assert {path.name for path in runs.iterdir()} == {"0.pt", "1.pt"}
    assert rank(runs, "--quiet").returncode == 0
    (runs / ".lidar/a-0123456789abcdef.h5.partial.begun").write_bytes(b"of a killed process")
    stamps = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    checkpoint(runs / "wide.pt", 3, projected=16)
    after = json.loads(rank(runs, "--dry-run", "--json").stdout)
    assert (after["cached"], after["groups"], after["differ"]) == (2, [2, 1], ["d"])
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == {
        **stamps,
        runs / "wide.pt": (runs / "wide.pt").stat().st_mtime_ns,
    }


def test_a_dry_run_says_the_views_of_each_group(tmp_path: Path, rank: Shell) -> None:
    runs = checkpoint(tmp_path / "runs/a.pt").parent
    checkpoint(runs / "b.pt", 1)
    moco_v3_resnet().save(runs)
    lines = rank(runs, "--dry-run").stdout.splitlines()
    groups = [" ".join(line.split()) for line in lines if line.startswith("group ")]
    assert groups[0].startswith("group 2 checkpoints views simclr, ")
    assert groups[1].startswith("group 1 checkpoint views moco-v3, ")
    assert "         comparable with one value of --views and --layer" in lines


def test_a_dry_run_counts_untrained_networks_and_rows_of_a_smaller_n(
    tmp_path: Path, rank: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a second for each sample of each network, a quarter of it for views that all share."""
    monkeypatch.setattr(dry_run, "measure", lambda *_: Measured(1.0, 0.25, 0, 8))
    runs = checkpoint(tmp_path / "runs/a.pt").parent
    rank(runs, "-n", 16)
    words = ["--dry-run", "--json", "--baseline", "untrained"]
    planned = json.loads(rank(runs, *words).stdout)
    assert (planned["checkpoints"], planned["cached"]) == (1, 0)
    # The first of the three draws the views of the 16 samples that are stored of the checkpoint.
    assert planned["seconds"] == (N - 16) + 3 * N * 0.75 + 16 * 0.25
    unshared = json.loads(rank(runs, *words, "--view-memory", 0).stdout)
    assert unshared["seconds"] == (N - 16) + 3 * N
    assert planned["disk_bytes"] == 4 * 4 * 8 * (N * Q + N)


def test_the_time_of_views_is_a_part_of_what_is_measured(tmp_path: Path) -> None:
    chosen = ExtractSettings(**settings(image_folder(tmp_path / "images", N), batch_size=N // 2))
    _, measured = measure_checkpoint(checkpoint(tmp_path / "a.pt"), chosen, Progress())
    assert 0 < measured.drawing < measured.seconds


def test_a_dry_run_counts_linear_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dry_run, "measure", lambda *_: Measured(1.0, 0.0, 0, 8))
    rank = rank_here(image_folder(tmp_path / "labelled", N, ("a", "b")), monkeypatch, capfd)
    runs = checkpoint(tmp_path / "runs/a.pt").parent
    assert rank(runs, "--quiet").returncode == 0
    words = ["--dry-run", "--json", "--oracle", "probe"]
    planned = json.loads(rank(runs, *words).stdout)
    assert (planned["cached"], planned["seconds"]) == (1, N)
    assert planned["disk_bytes"] == 4 * WIDTHS[-1] * N
    assert rank(runs, "--quiet", "--oracle", "probe").returncode == 0
    assert json.loads(rank(runs, *words).stdout)["seconds"] is None


def test_a_dry_run_plans_the_layer_that_is_ranked(tmp_path: Path, rank: Shell) -> None:
    """A feature file without a projector decides for the backbone of all."""
    runs = checkpoint(tmp_path / "runs/a.pt").parent
    rank(checkpoint(tmp_path / "b.pt", 1), "--layer", "backbone", "--cache", tmp_path / "cache")
    (features,) = (tmp_path / "cache").glob("*.h5")
    shutil.copy(features, runs / "b.h5")
    planned = json.loads(rank(runs, "--dry-run", "--json").stdout)
    ranking = ranked(rank(runs, "--json"))
    assert len(ranking["checkpoints"]) == 2
    (stored,) = (runs / ".lidar").glob("*.h5")
    with h5py.File(stored) as file:
        width = file["embeddings/backbone/clean"].shape[1]
    assert planned["disk_bytes"] == 4 * width * (N * Q + N)


def test_a_cache_in_a_folder_below_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "outputs" / ".lidar"
    cache.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    done = lidar_here("cache", monkeypatch=monkeypatch, capfd=capfd)
    assert "name the directory that is ranked" in done.stderr
    (cache / MARKER).touch()
    done = lidar_here("cache", monkeypatch=monkeypatch, capfd=capfd)
    assert done.returncode == 3
    assert "no cache there; there is one with:  lidar cache outputs" in done.stderr


def test_the_default_output_of_another_run_is_advised_a_name(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path)
        path = checkpoint(tmp_path / "simclr/lightning_logs/version_0/checkpoints/last.ckpt")
        Path("last.h5").touch()
        with pytest.raises(FeatureFileError) as caught:
            extract_checkpoint(path, ExtractSettings())
    assert "perhaps of another checkpoint of this name" in str(caught.value)
    assert "such as -o simclr-last.h5, or replace it with --overwrite" in str(caught.value)
