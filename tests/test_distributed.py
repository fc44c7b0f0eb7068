"""One checkpoint by several processes: the file of one, whoever comes late, stops or is killed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from command import Command, run_command
from hypothesis import given
from hypothesis import strategies as st
from interrupted import Stop, StopAfter, assert_same
from make import checkpoint, environment, image_folder, lidar_here

from lidar_cli.errors import FeatureFileError, SettingsError
from lidar_cli.extraction import sharded as share_job
from lidar_cli.extraction.run import Extraction, extract_checkpoint
from lidar_cli.features.reader import read_hdf5, read_provenance
from lidar_cli.features.schema import partial_path
from lidar_cli.features.shards import shard_path
from lidar_cli.ranking.session import rank_directory
from lidar_cli.runtime.device import RankInfo, partition, read_rank_info
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import ExtractSettings, RankSettings

N, Q, CLEAN, BATCH = 13, 3, 17, 2
Inputs = tuple[Path, Path]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A checkpoint with a projector, and 20 photographs of different sizes in three classes."""
    folder = tmp_path_factory.mktemp("inputs")
    return checkpoint(folder / "ckpt.pt"), image_folder(folder / "images", 20, ["a", "b", "c"])


@pytest.fixture(scope="module")
def whole(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that one process makes."""
    return run(inputs, tmp_path_factory.mktemp("whole") / "whole.h5").path


def run(
    inputs: Inputs,
    output: Path,
    place: RankInfo | None = None,
    progress: Progress | None = None,
    **more: Any,
) -> Extraction:
    defaults: dict[str, Any] = {"n_samples": N, "n_views": Q, "clean_samples": CLEAN}
    defaults |= {"image_size": 24, "batch_size": BATCH, "device": "cpu", "data": str(inputs[1])}
    settings = ExtractSettings(output=output, **(defaults | more))
    return extract_checkpoint(inputs[0], settings, progress, place)


def together(inputs: Inputs, output: Path, ranks: int = 2, **more: Any) -> Path:
    """A file of several processes, one after the other."""
    for rank in range(ranks):
        run(inputs, output, RankInfo(rank, ranks, rank), **more)
    return output


# Who one is, and what is one's share


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, RankInfo(0, 1, None, False)),
        (TORCHRUN, RankInfo(3, 8, 1, False)),
        (TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "0"}, RankInfo(3, 8, 1, False)),
        (TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "2"}, RankInfo(3, 8, 1, True)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, RankInfo(0, 1, None, False)),  # not torchrun's doing
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, RankInfo(0, 1, None, False)),
    ],
)
def test_the_engine_gives_each_process_its_place(
    environment: dict[str, str], place: RankInfo
) -> None:
    assert read_rank_info(environment) == place


@pytest.mark.parametrize("wrong", [{"RANK": "8"}, {"RANK": "-1"}, {"WORLD_SIZE": "many"}])
def test_a_place_that_cannot_be_is_wrong_usage(wrong: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="expected numbers as torchrun gives them"):
        read_rank_info(TORCHRUN | wrong)


def test_the_number_on_the_host_chooses_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    place, alone = RankInfo(5, 8, 1), RankInfo()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [place.device(asked) for asked in ("auto", "cuda", "cuda:3", "cpu")] == [
        *("cuda:1", "cuda:1", "cuda:3", "cpu")
    ]
    assert [alone.device(asked) for asked in ("auto", "cuda")] == ["auto", "cuda"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # each is shown its own alone
    assert place.device("auto") == "cuda:0"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert place.device("auto") == "auto"


def test_shares_are_whole_batches_of_about_the_same_work() -> None:
    assert partition(10, 10, 11, 2, 2) == [range(0, 6), range(6, 10)]
    assert partition(10, 10, 11, 3) == [range(0, 4), range(4, 7), range(7, 10)]
    # Samples 0 .. 9 have three views and a clean image each, 10 .. 49 one image: 40 and 40.
    assert partition(50, 10, 4, 2, 5) == [range(0, 10), range(10, 50)]
    # Two batches, five processes; a share ends where 3/5, 6/5, 9/5, 12/5, 3 samples are reached.
    ends = [2, 2, 2, 3, 3]
    assert [span.stop for span in partition(3, 3, 1, 5, 2)] == ends


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 9), st.integers(1, 9))
def test_every_sample_is_in_one_share(total: int, heavy: int, parts: int, step: int) -> None:
    heavy = min(heavy, total)
    actual = partition(total, heavy, 4, parts, step)
    assert [i for span in actual for i in span] == list(range(total))
    assert len(actual) == parts
    assert all(span.start % step == 0 for span in actual if span)
    even = (total + 3 * heavy) / parts
    for span in actual:
        work = sum(4 if i < heavy else 1 for i in span)
        assert work < even + 4 * step  # at most one batch more than its part


# The file


@pytest.mark.parametrize(
    ("ranks", "order", "embedded"),
    [
        # 13 samples of 4 images and 4 of one are 56; batches of 2 are 8 to the seventh, then 5, 2,
        # 2 and 1 (the last is sample 16). The half, 28, is reached with the fourth: 8 samples.
        (2, [0, 1], [8, 9]),
        (2, [1, 0], [8, 9]),
        (3, [2, 0, 1], [6, 4, 7]),
        (12, range(12), [2, 2, 0, 2, 0, 2, 2, 0, 2, 0, 2, 3]),
    ],
)
def test_any_number_of_processes_make_the_file_of_one(
    inputs: Inputs,
    whole: Path,
    tmp_path: Path,
    ranks: int,
    order: list[int],
    embedded: list[int],
) -> None:
    output = tmp_path / "all of it.h5"
    done = {rank: run(inputs, output, RankInfo(rank, ranks, rank)) for rank in order}
    assert [done[rank].embedded for rank in range(ranks)] == embedded
    last = next(rank for rank in reversed(order) if embedded[rank])
    reporting = [rank for rank in order if done[rank].reports_result]
    assert reporting == [last]
    assert_same(whole, output)
    with_samples = [rank for rank in range(ranks) if embedded[rank]]
    left = {f"{output.name}.shard-{rank}-of-{ranks}.h5" for rank in with_samples}
    assert {path.name for path in tmp_path.iterdir()} == {output.name} | left
    with h5py.File(output) as file:
        group = file["embeddings/projector"]
        assert group["views"].is_virtual
        assert group["clean"].is_virtual
        assert not group["crc32"].is_virtual


def test_the_first_to_come_finds_the_batch_size_of_all(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = iter([4, 1])  # as devices with little and with less free memory would
    monkeypatch.setattr(share_job, "find_batch_size", lambda work: next(sizes))
    output = tmp_path / "out.h5"
    assert run(inputs, output, RankInfo(1, 2, 1), batch_size=None).batch_size == 4
    assert json.loads((tmp_path / "out.h5.shards.json").read_text())["ranks"] == 2
    assert run(inputs, output, RankInfo(0, 2, 0), batch_size=None).batch_size == 4
    assert read_provenance(output)["batch_size"] == 4
    assert not (tmp_path / "out.h5.shards.json").exists()
    assert_same(run(inputs, tmp_path / "whole.h5", batch_size=4).path, output)


def test_the_folder_can_be_moved_and_no_shard_can_be_left_behind(
    inputs: Inputs, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    together(inputs, tmp_path / "here/out.h5")
    moved = (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    assert_same(whole, moved / "out.h5")
    shard = shard_path(moved / "out.h5", 1, 2)
    # Where HDF5 would look for it next, and find nothing of ours.
    moved_shard = shard.rename(tmp_path / shard.name)
    for read in (read_hdf5, read_provenance):
        with pytest.raises(
            FeatureFileError,
            match=r"out\.h5: its shard out\.h5\.shard-1-of-2\.h5 is not in the same",
        ):
            read(moved / "out.h5")
    # Another checkpoint's shard of the same name is recognised by the sums in the joined file.
    (tmp_path / "other").mkdir()
    other = checkpoint(tmp_path / "other.pt", 1), inputs[1]
    shutil.copy(shard_path(together(other, tmp_path / "other/out.h5"), 1, 2), shard)
    (embeddings,) = read_hdf5(moved / "out.h5")
    with pytest.raises(FeatureFileError, match="the embedding of sample 8 does not match"):
        list(embeddings.chunks(100))
    shutil.copy(moved_shard, shard)
    (embeddings,) = read_hdf5(moved / "out.h5")
    assert sum(chunk.stop - chunk.start for chunk in embeddings.chunks(100)) == CLEAN


def test_a_shard_is_no_feature_file(inputs: Inputs, tmp_path: Path) -> None:
    output = together(inputs, tmp_path / "out.h5")
    with pytest.raises(FeatureFileError, match=r"a shard of a feature file; give .* out\.h5$"):
        read_hdf5(shard_path(output, 0, 2))
    more = {"n_samples": N, "n_views": Q, "clean_samples": CLEAN, "image_size": 24}
    actual = rank_directory(
        tmp_path,
        RankSettings(data=str(inputs[1]), device="cpu", **more),  # type: ignore[arg-type]
    )
    assert [row.path for row in actual.groups[0].rows] == [str(output)]
    assert [(left.path, left.reason) for left in actual.skipped] == [
        (str(shard_path(output, rank, 2)), "by its name, a shard of out.h5") for rank in (0, 1)
    ]
    assert not actual.failed


# Late, stopped, at odds


def test_a_stopped_process_goes_on_with_its_own_shard(
    inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    output, place = tmp_path / "out.h5", RankInfo(1, 2, 1)
    with pytest.raises(Stop):
        run(inputs, output, place, StopAfter(4))
    with h5py.File(partial_path(shard_path(output, 1, 2))) as file:
        assert file["samples/done"][:].tolist() == [1] * 4 + [0] * 5
        assert file.attrs["share"] == "1 of 2: samples 8 to 17"
    assert run(inputs, output, RankInfo(0, 2, 0)).embedded == 8
    assert not output.exists()
    with pytest.raises(FeatureFileError, match="an interrupted run is here; continue it with --re"):
        run(inputs, output, place)
    # The engine starts all processes again, with the words of the first time.
    assert run(inputs, output, RankInfo(0, 2, 0, restarted=True)).embedded == 0
    done = run(inputs, output, RankInfo(1, 2, 1, restarted=True))
    assert (done.embedded, done.reports_result) == (5, True)
    assert_same(whole, output)
    # Told once: not again by a process that was started again, but by one of a new run.
    places = [RankInfo(0, 2, 0, restarted=True), RankInfo(1, 2, 1, restarted=True)]
    again = [run(inputs, output, at) for at in (*places, RankInfo(1, 2, 1), RankInfo(0, 2, 0))]
    reported = [(done.embedded, done.reports_result) for done in again]
    assert reported == [(0, False)] * 3 + [(0, True)]


@pytest.mark.parametrize(
    ("ranks", "change", "differ"),
    [
        (2, {"seed": 1}, "labels_sha256, samples_sha256, seed differ"),
        (2, {"batch_size": 3}, "batch_size differ"),
        (3, {}, "processes, 2 and 3, differ"),
    ],
)
def test_processes_at_odds_fail_before_the_work(
    inputs: Inputs, tmp_path: Path, ranks: int, change: dict[str, Any], differ: str
) -> None:
    run(inputs, tmp_path / "out.h5", RankInfo(0, 2, 0))
    with pytest.raises(FeatureFileError, match=f"begun with other settings .{differ}"):
        run(inputs, tmp_path / "out.h5", RankInfo(1, ranks, 1), **change)
    assert not list(tmp_path.glob("*shard-1*"))


def test_other_versions_neither_begin_nor_join(inputs: Inputs, tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    run(inputs, output, RankInfo(0, 2, 0))
    agreed = tmp_path / "out.h5.shards.json"
    record = json.loads(agreed.read_text())
    record["provenance"]["versions"]["torch"] = "2.0.0"
    agreed.write_text(json.dumps(record))
    with pytest.raises(
        FeatureFileError, match=r"other settings .versions differ.*remove out\.h5\."
    ):
        run(inputs, output, RankInfo(1, 2, 1))
    # The agreement is lost: the shards themselves say what they are.
    agreed.unlink()
    shard = shard_path(output, 0, 2)
    with h5py.File(shard, "r+") as file:
        file.attrs["provenance"] = json.dumps(record["provenance"])
    with pytest.raises(
        FeatureFileError, match="cannot be joined, it was written with other settings"
    ):
        run(inputs, output, RankInfo(1, 2, 1))
    assert not output.exists()


def test_what_is_in_the_way_is_not_replaced(inputs: Inputs, tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    run(inputs, output, seed=1)
    before = output.read_bytes()
    with pytest.raises(FeatureFileError, match="exists already; choose another name with -o"):
        run(inputs, output, RankInfo(0, 2, 0))
    with pytest.raises(SettingsError, match=r"--overwrite: of several processes none knows"):
        run(inputs, output, RankInfo(0, 2, 0), overwrite=True)
    assert output.read_bytes() == before
    with pytest.raises(SettingsError, match="HDF5 gives % a meaning in names of shards"):
        run(inputs, tmp_path / "100%.h5", RankInfo(0, 2, 0))


# Real processes under the engine


KILLED = """
import os, signal, time
from lidar_cli.__main__ import main
from lidar_cli.features.writer import FeatureWriter
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

write = FeatureWriter.write

def write_and_signal(self, samples, views, clean):
    write(self, samples, views, clean)
    rank, again = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
    with open("written", "a") as log:
        log.write(f"{again} {rank} {samples[0]}\\n")
    if (again, rank) == ("0", "1"):
        while "0 0 " not in open("written").read():  # the other rank has begun, too
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

def work():
    try:
        main()
    except SystemExit as left:
        if left.code:
            raise

FeatureWriter.write = write_and_signal
# What torchrun starts, with forks for its interpreters.
engine = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "run"}
engine |= {"max_restarts": 1, "monitor_interval": 0.1, "start_method": "fork"}
elastic_launch(LaunchConfig(1, 1, 2, **engine), work)()
"""


def torchrun(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--monitor-interval", "0.1", *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300
    )


def test_a_killed_rank_is_restarted_and_repeats_no_row(
    inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    options = ["-n", N, "-q", Q, "--clean-samples", CLEAN, "--image-size", 24, "--device", "cpu"]
    words = ["extract", inputs[0], "--data", inputs[1], *options, "--batch-size", BATCH]
    done = run_command([*words, "-o", "out.h5"], tmp_path, environment(), script=KILLED)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out.h5\n"
    assert done.stderr.count("2 processes make out.h5 together") == 2  # once each time
    assert_same(whole, tmp_path / "out.h5")
    written = [line.split() for line in (tmp_path / "written").read_text().splitlines()]
    starts = [int(start) for _, _, start in written]
    # The other rank is ended by the engine, perhaps after a row is done and before it is reported.
    assert len(set(starts)) == len(starts)
    of_killed = [(again, start) for again, rank, start in written if rank == "1"]
    assert of_killed == [("0", "8"), *(("1", str(start)) for start in (10, 12, 14, 16))]


def close(one: Any, two: Any) -> bool:
    """Whether two JSON values are equal, numbers to 1e-12 of the larger."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(close(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(close, one, two))
    if isinstance(one, float) and isinstance(two, float):
        return abs(one - two) <= 1e-11 * max(abs(one), abs(two))
    return bool(one == two)


def test_scores_are_those_of_one_process_and_one_prints_them(
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    together(inputs, tmp_path / "joined.h5", 3)
    rng = np.random.default_rng(0)
    shift = np.array([0.0, 3.0, -1.0, 0.5, 100.0])
    centres = rng.normal(size=(200, 1, 5)) + shift
    np.save(tmp_path / "many.npy", centres + 0.3 * rng.normal(size=(200, 4, 5)))
    # n <= d, so that the samples' means are kept as they are; the within covariance is regular.
    np.save(tmp_path / "wide.npy", rng.normal(size=(12, 4, 16)).astype(np.float32))
    np.save(tmp_path / "one.npy", rng.normal(size=(1, 3, 4)))  # a sample for two processes
    bad = rng.normal(size=(40, 2, 3))
    bad[5, 0, 0], bad[30, 1, :2] = np.inf, np.nan  # one in each half
    np.save(tmp_path / "bad.npy", bad)
    files = ["joined.h5", "bad.npy", "many.npy", "absent.npy", "wide.npy", "one.npy"]
    words = ["score", *files, "--json", "--confidence", "0.9"]
    monkeypatch.chdir(tmp_path)
    alone = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
    assert alone.returncode == 3
    done = torchrun("--no-python", sys.executable, "-m", "lidar_cli", *words, cwd=tmp_path)
    actual, expected = json.loads(done.stdout), json.loads(alone.stdout)
    assert [row["file"] for row in actual] == ["joined.h5", "many.npy", "wide.npy", "one.npy"]
    assert actual[1]["confidence"]["intervals"]["lidar"]["se"] > 0
    for one, two in zip(actual, expected, strict=True):
        assert close(one, two), (one, two)
    for line in alone.stderr.splitlines():  # each complaint once, with the counts of the whole file
        assert done.stderr.count(line) == 1, line
    assert "3 values are NaN or Inf, in 2 samples, the first is sample 5" in done.stderr


SHORT = """
import os, sys
import torch
import lidar_cli.scoring.run, lidar_cli.report.scores
from lidar_cli.__main__ import main
from lidar_cli.scoring import influences
from lidar_cli.scoring.streaming import LayerMoments

score_layers, reading = lidar_cli.scoring.run.score_layers, None

def score_and_signal(layers, *more):
    global reading
    reading = layers[0].file.removesuffix(".npy")
    return score_layers(layers, *more)

def short(owner, name, file, counts=lambda *arguments, **more: True):
    step = getattr(owner, name)
    def limited(*arguments, **more):
        if reading != file or not counts(*arguments):
            return step(*arguments, **more)
        bytearray(2**50)
    setattr(owner, name, limited)

lidar_cli.scoring.run.score_layers = score_and_signal
if os.environ["RANK"] == "1":  # asks for more than any machine has in one step of each file's work
    short(lidar_cli.scoring.run, "compute_score", "sheet")
    short(LayerMoments, "merge", "merge", lambda whole, part: whole.rows.n)
    short(influences, "_second_pass", "again")
    meets = torch.distributed
    short(meets, "broadcast_object_list", "exchange", lambda box: isinstance(box[0], LayerMoments))
sys.argv = ["lidar", *sys.argv[1:]]
main()
"""


def of_two_ranks(*words: object, cwd: Path) -> tuple[list[str], str]:
    """What each of two processes, started as torchrun would, prints on stdout, both on stderr."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [environment(RANK=n, LOCAL_RANK=n, WORLD_SIZE="2", **address) for n in "01"]
    running = [Command(words, cwd, variables, script=SHORT) for variables in ranks]
    ends = [process.communicate(timeout=120) for process in running]
    return [stdout for stdout, _ in ends], "".join(stderr for _, stderr in ends)


def test_one_that_is_short_of_memory_leaves_no_other_waiting(tmp_path: Path) -> None:
    n, d = 850, 400  # n > 2 d, for the second pass
    array = np.random.default_rng(0).normal(size=(n, 2, d)).astype(np.float32)
    files = [
        "sheet.npy",
        "merge.npy",
        "again.npy",
        "whole.npy",
        "exchange.npy",
        "never.npy",
    ]
    for file in files:
        np.save(tmp_path / file, array)
    outputs, stderr = of_two_ranks("score", *files, "--json", "--confidence", 0.9, cwd=tmp_path)
    assert [row["file"] for row in json.loads("".join(outputs))] == ["whole.npy"]
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    for file in files[:3]:  # one line of the one that speaks, for both
        line = f"error: {file}: {Path(file).stem}: not enough memory for moments of d = 400"
        assert sum(each.startswith(line) for each in errors) == 1, stderr
    parted = "error: exchange.npy: process {} of 2 is out of step with the others: "
    assert [sum(line.startswith(parted.format(rank)) for line in errors) for rank in (0, 1)] == [
        1,
        1,
    ]
    assert len(errors) == 5
    assert "lidar_cli/" not in stderr  # no trace
