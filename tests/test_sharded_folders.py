"""Folders of torch.distributed.checkpoint and DeepSpeed: the tree of one file, in every command."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from formats import FIXTURES
from make import checkpoint, image_folder, lidar_here, state_dict
from raising import raises
from rank_runs import Shell, rank_here, ranked
from safetensors.torch import save_file
from sharded import save_deepspeed, save_folder, save_with_processes
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from lidar_cli.checkpoints.inspect import inspect_file
from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.reading import read
from lidar_cli.checkpoints.reading.distributed import ShardedTensor
from lidar_cli.checkpoints.reading.lazy_tensor import LazyTensor
from lidar_cli.errors import CheckpointError, NoWeights
from lidar_cli.ranking.digests import Digests
from lidar_cli.ranking.discover import scan_directory
from lidar_cli.ranking.names import short_names
from lidar_cli.ranking.paths import files_of, select
from lidar_cli.ranking.pruning import list_cache
from lidar_cli.ranking.watch import CompletedFiles
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import InspectSettings, RankSettings


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images", 30)


@pytest.fixture
def rank(images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return rank_here(images, monkeypatch, capfd)


def read_tree(path: Path) -> dict[str, Any]:
    return read.read_checkpoint(path)


def values(tree: Any) -> Any:
    """A tree with the numbers of its tensors."""
    if isinstance(tree, LazyTensor):
        return (tree.dtype, tree.shape, tree.materialise().tolist())
    if isinstance(tree, Tensor):
        return (str(tree.dtype).removeprefix("torch."), tuple(tree.shape), tree.tolist())
    if isinstance(tree, dict):
        return {key: values(value) for key, value in tree.items()}
    return [values(value) for value in tree] if isinstance(tree, list) else tree


# What one torch.save would hold.


@pytest.mark.parametrize("options", [{}, {"single_file_per_rank": False}, {"thread_count": 2}])
def test_the_tree_is_that_of_one_file(options: dict[str, Any], tmp_path: Path) -> None:
    halves = torch.arange(6, dtype=torch.bfloat16).view(2, 3)
    tree = {
        "iteration": 7,
        "args": {"lr": 0.1, "betas": [0.9, 0.95], "name": "a"},
        "model": {"a.weight": torch.randn(3, 4), "b": torch.tensor(3), "c": halves.t()},
        "blocks": [{"w": torch.ones(2)}, {"w": torch.zeros(0, 2)}],
    }
    optimizer = {"state": {"a.weight": {"exp_avg": torch.ones(3, 4)}}, "param_groups": [{"lr": 1}]}
    folder = save_folder({**tree, "optimizer": optimizer}, tmp_path / "f", **options)
    assert values(read_tree(folder)) == values({**tree, "optimizer": {}})
    assert list(read_tree(folder)["model"]) == list(tree["model"])


def test_names_that_are_saved_flat_stay_so(tmp_path: Path) -> None:
    tree = {"layers.0.weight": torch.ones(2), "optimizer.state": torch.ones(3)}
    assert list(read_tree(save_folder(tree, tmp_path / "f"))) == ["layers.0.weight", "optimizer"]


def test_shards_of_two_processes_are_joined(tmp_path: Path) -> None:
    """FSDP2, and a mesh of both processes along another axis."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1), nn.BatchNorm1d(1))
    whole = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    columns = torch.arange(21.0).view(3, 7)

    def save() -> None:
        mesh = init_device_mesh("cpu", (2,))
        fully_shard(model, mesh=mesh)
        tree = {
            "model": get_model_state_dict(model),
            "columns": distribute_tensor(columns, mesh, [Shard(1)]),
            "copies": distribute_tensor(columns, mesh, [Replicate()]),
        }
        save_folder(tree, tmp_path / "f")

    save_with_processes(2, save)
    tree = read_tree(tmp_path / "f")
    assert values(tree) == values({"model": whole, "columns": columns, "copies": columns})
    chunks = {name: len(tensor.chunks) for name, tensor in tree["model"].items()}
    assert chunks["0.weight"] == 2
    assert chunks["1.weight"] == 1  # the second process has no share of one row
    assert len(list((tmp_path / "f").glob("*.distcp"))) == 2
    read.sha256(tmp_path / "f")


@pytest.mark.parametrize("name", ["dinov3-training", "dino-vit", "mae", "vicreg", "vissl-swav"])
def test_systems_are_recognised_as_in_one_file(name: str, tmp_path: Path) -> None:
    fixture = FIXTURES[name]()
    file = fixture.save(tmp_path)
    folder = save_folder(dict(fixture.tree), tmp_path / "f")
    both = [inspect_file(path, InspectSettings()) for path in (file, folder)]
    facts = [
        dataclasses.replace(one, file="", kind="", stand_ins=(), ignored=tuple(sorted(one.ignored)))
        for one in both
    ]
    assert facts[0] == facts[1]
    assert both[1].kind == "distributed"
    images = torch.randn(2, 3, fixture.size, fixture.size)
    first, second = (open_checkpoint(path).embed(images, ["backbone"]) for path in (file, folder))
    assert torch.equal(first["backbone"], second["backbone"])


def lightning(folder: Path, key: str, seed: int = 0) -> Path:
    """What Lightning's FSDPStrategy (key `model`) or ModelParallelStrategy saves."""
    save_folder({key: state_dict(seed), "optimizer_0": {"state": {}}}, folder)
    rest = {"epoch": 3, "pytorch-lightning_version": "2.5.0", "hyper_parameters": {"lr": 0.1}}
    torch.save(rest, folder / "meta.pt")
    return folder


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_lightnings_folder_is_one_with_its_meta_file(key: str, tmp_path: Path) -> None:
    tree = read_tree(lightning(tmp_path / "epoch=3.ckpt", key))
    assert tree["epoch"] == 3
    assert tree["hyper_parameters"] == {"lr": 0.1}
    assert list(tree["state_dict"]) == list(state_dict())


def test_names_and_shapes_need_the_metadata_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_folder({"model": state_dict()}, tmp_path / "f")
    walked = []
    run = read.distributed.run_limited
    monkeypatch.setattr(
        read.distributed, "run_limited", lambda *a, **k: walked.append(a[0]) or run(*a, **k)
    )
    tensors = read_tree(folder)["model"].values()
    assert [one.rpartition(":")[2] for one in walked] == ["walk_metadata"]
    for tensor in tensors:
        assert isinstance(tensor, ShardedTensor)
        tensor.materialise()
    assert [one.rpartition(":")[2] for one in walked[1:]] == ["walk_pieces"]


# Digests.


def test_the_digest_covers_every_file(tmp_path: Path) -> None:
    folder = save_folder({"model": state_dict(), "optimizer": {"a": torch.ones(9)}}, tmp_path / "f")
    digest, stamp = read.sha256(folder), read.stamp(folder)
    copy = shutil.copytree(folder, tmp_path / "g")
    assert read.sha256(copy) == digest
    assert read.stamp(copy) != stamp
    for name in (".metadata", "__0_0.distcp"):
        content = (folder / name).read_bytes()
        (copy / name).write_bytes(content + b" ")
        assert read.sha256(copy) != digest
        (copy / name).write_bytes(content)
    (copy / "log.txt").write_text("no part of it")
    assert read.sha256(copy) == digest
    (copy / "__1_0.distcp").write_bytes(b"PK a rest of an earlier save")
    assert read.sha256(copy) != digest


def test_a_changed_number_is_noticed_by_the_checksum(tmp_path: Path) -> None:
    folder = save_folder({"model": {"a": torch.full((1000,), 0.5)}}, tmp_path / "f")
    content = (folder / "__0_0.distcp").read_bytes()
    (folder / "__0_0.distcp").write_bytes(content.replace(b"\0\0\0\x3f", b"\0\0\1\x3f", 1))
    read_tree(folder)["model"]["a"].materialise()
    with raises(CheckpointError, "checksum"):
        read.sha256(folder)


def test_digests_are_stored_while_no_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lidar_cli.ranking.digests.SETTLED", -60)
    monkeypatch.setattr(
        Digests, "_run_trial", lambda self: (tmp_path.stat().st_dev, time.time_ns())
    )
    folder = save_folder({"model": state_dict()}, tmp_path / "f")
    (tmp_path / "cache").mkdir()
    _, digest = Digests(tmp_path / "cache").of(folder)
    hashed = []
    monkeypatch.setattr("lidar_cli.ranking.digests.sha256", lambda path: hashed.append(path) or "x")
    assert Digests(tmp_path / "cache").of(folder)[1] == digest
    os.utime(folder / "__0_0.distcp", (1, 1))
    assert Digests(tmp_path / "cache").of(folder)[1] == "x"
    monkeypatch.setattr("lidar_cli.ranking.digests.MAX_NUMBERS", 1)
    Digests(tmp_path / "cache").of(folder)
    Digests(tmp_path / "cache").of(folder)
    assert len(hashed) == 2


# DeepSpeed.


@pytest.mark.parametrize("place", ["run", "run/global_step10"])
def test_deepspeed_of_stages_1_and_2_is_read(place: str, tmp_path: Path) -> None:
    save_deepspeed(tmp_path / "run", state_dict())
    save_deepspeed(tmp_path / "run", state_dict(1), step="global_step9")
    (tmp_path / "run" / "latest").write_text("global_step10\n")
    contents = read.read_contents(tmp_path / place)
    assert contents.path == tmp_path / "run" / "global_step10" / "mp_rank_00_model_states.pt"
    assert values(contents.tree["module"]) == values(state_dict())


@pytest.mark.parametrize("latest", ["../other", "/tmp", "nothing", "", ".", "a/b", "\0"])
def test_a_step_outside_the_run_is_not_followed(latest: str, tmp_path: Path) -> None:
    save_deepspeed(tmp_path / "other", state_dict())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "latest").write_text(latest)
    with pytest.raises(CheckpointError, match=r"zero_to_fp32\.py"):
        read.read_contents(tmp_path / "run")


def test_deepspeed_of_stage_3_is_refused_with_its_command(tmp_path: Path) -> None:
    folder = save_deepspeed(tmp_path / "run", state_dict(), stage=3)
    expected = rf"zero_to_fp32\.py {tmp_path}/run {tmp_path}/run-whole --tag global_step10$"
    renamed = tmp_path / "run" / "mine.pt"
    shutil.copy(folder / "zero_pp_rank_0_mp_rank_00_model_states.pt", renamed)
    for path in (tmp_path / "run", folder, *folder.glob("*_model_states.pt")):
        with pytest.raises(CheckpointError, match=expected):
            read.read_contents(path)
    with pytest.raises(CheckpointError, match=r"zero_to_fp32\.py"):
        read.read_contents(renamed)


def test_deepspeed_in_parallel_parts_or_without_weights_is_refused(tmp_path: Path) -> None:
    folder = save_deepspeed(tmp_path / "run", state_dict())
    (folder / "mp_rank_01_model_states.pt").write_bytes(b"")
    with raises(CheckpointError, "model-parallel"):
        read.read_contents(folder)
    # With pipelines the weights are in a file of each layer.
    (folder / "mp_rank_01_model_states.pt").rename(folder / "layer_00-model_00-model_states.pt")
    with raises(CheckpointError, "model-parallel"):
        read.read_contents(folder)
    (folder / "layer_00-model_00-model_states.pt").unlink()
    for path in folder.glob("mp_rank_*"):
        path.unlink()
    with raises(CheckpointError, "no-model-states"):
        read.read_contents(folder)


# Other folders.


@pytest.mark.parametrize(
    ("names", "code", "words"),
    [
        (["__0_0.distcp"], "unfinished", "without .metadata"),
        (["__0_0.distcp", "__0.metadata"], "unfinished", "use_collectives=True"),
        (["manifest.ocdbt"], "foreign", "Orbax"),
        (["ckpt-1.data-00000-of-00001", "ckpt-1.index"], "foreign", "TensorFlow"),
        (["shard-00001-model-00001-of-00001.safetensors"], "checkpoint", "consolidate_safetensors"),
    ],
)
def test_folders_that_are_not_read_say_why(
    names: list[str], code: str, words: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with raises(CheckpointError, code) as raised:
        read.read_contents(tmp_path)
    assert words in str(raised.value)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_part_names_its_folder(name: str, tmp_path: Path) -> None:
    folder = save_folder({"a": torch.ones(1)}, tmp_path / "f g")
    with raises(CheckpointError, "name-the-folder") as raised:
        read.read_contents(folder / name)
    assert str(raised.value).endswith(f"'{folder}'")


def test_only_an_optimizer_is_no_weights(tmp_path: Path) -> None:
    folder = save_folder({"optimizer": {"state": {"w": torch.ones(3)}}}, tmp_path / "f")
    with pytest.raises(NoWeights, match="found optimizer"):
        inspect_file(folder, InspectSettings())


# rank and --watch.


def mixed_runs(runs: Path) -> None:
    checkpoint(runs / "file.pth", 0)
    for seed, name in enumerate(("hf/model", "st/epoch3"), 1):
        path = runs / f"{name}.safetensors"
        path.parent.mkdir()
        save_file({key: value.contiguous() for key, value in state_dict(seed).items()}, path)
    save_folder({"iteration": 99, "model": state_dict(3)}, runs / "dcp" / "ckpt" / "99")
    save_folder({"model": state_dict(4)}, runs / "fsdp" / "checkpoint-5" / "pytorch_model_fsdp_0")
    save_folder({"optimizer": {"a": torch.ones(1)}}, runs / "fsdp" / "checkpoint-5" / "optimizer_0")
    lightning(runs / "pl" / "epoch=3.ckpt", "model", 5)
    save_deepspeed(runs / "zero2", state_dict(6))
    save_deepspeed(runs / "zero3", state_dict(7), stage=3)
    for name in ("stopped", "saving.tmp"):
        shutil.copytree(runs / "dcp" / "ckpt" / "99", runs / name)
        (runs / name / ".metadata").unlink()
    for i in (1, 2):
        save_file({"a": torch.ones(i)}, runs / "hf" / f"x-0000{i}-of-00002.safetensors")
    (runs / "shards").mkdir()
    for path in [*(runs / "hf").glob("x-*")]:
        path.rename(runs / "shards" / path.name)
    (runs / "shards" / "model.safetensors.index.json").write_text("{}")


def test_every_checkpoint_of_a_mixed_directory_is_a_row(tmp_path: Path, rank: Shell) -> None:
    runs = tmp_path / "runs"
    mixed_runs(runs)
    ranking = ranked(rank(runs, "-q", 2, "--json"), status=4)
    rows = {row["name"]: row["path"].removeprefix(f"{runs}/") for row in ranking["checkpoints"]}
    assert rows == {
        "file.pth": "file.pth",
        "hf": "hf/model.safetensors",
        "st/epoch3.safetensors": "st/epoch3.safetensors",
        "dcp/99": "dcp/ckpt/99",
        "fsdp/checkpoint-5": "fsdp/checkpoint-5/pytorch_model_fsdp_0",
        "pl/epoch=3.ckpt": "pl/epoch=3.ckpt",
        "zero2/global_step10": "zero2/global_step10/mp_rank_00_model_states.pt",
    }
    failed = {one["path"].removeprefix(f"{runs}/"): one["reason"] for one in ranking["failed"]}
    assert failed.keys() == {"zero3/global_step10", "stopped", "shards"}
    assert "zero_to_fp32.py" in failed["zero3/global_step10"]
    assert "without .metadata" in failed["stopped"]
    assert "save_pretrained" in failed["shards"]
    skipped = {one["path"].removeprefix(f"{runs}/"): one["reason"] for one in ranking["skipped"]}
    assert skipped == {
        "saving.tmp": "by its name, a checkpoint that is being saved",
        "fsdp/checkpoint-5/optimizer_0": "holds no model weights (found optimizer)",
    }


def test_a_folder_is_named_alone_by_pattern_and_by_its_part(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    folders = [save_folder({"model": state_dict(i)}, runs / f"r{i}") for i in (0, 1)]
    torch.save({"model": state_dict(0), "iteration": 3}, runs / "same.pt")
    assert select(folders[0]).cache_parent == Path()  # not inside the checkpoint
    for named in (runs, runs / "r*", runs / "*" / "*.distcp", *folders):
        expected = folders if named not in folders else [named]
        files = [path for path in files_of(select(named), pytest.fail) if path.is_dir()]
        assert files == expected
    scan = scan_directory(runs, RankSettings(), Progress(), Digests(Path("absent"), store=False))
    by_path = {one.path: one.aliases for one in scan.checkpoints.values()}
    assert by_path == {runs / "same.pt": [str(folders[0])], folders[1]: []}


def test_names_of_folders() -> None:
    paths = ["r/a/ckpt/99", "r/a/ckpt/199", "r/b/checkpoint-5/pytorch_model_fsdp_0"]
    assert list(short_names(paths).values()) == ["a/199", "a/99", "b/checkpoint-5"]


def test_watch_waits_for_the_metadata(tmp_path: Path) -> None:
    done = save_folder({"model": state_dict()}, tmp_path / "done")
    folder = tmp_path / "runs" / "99"
    folder.mkdir(parents=True)
    files = CompletedFiles(tmp_path / "runs")
    shutil.copy(done / "__0_0.distcp", folder)
    assert [files.poll() for _ in range(3)] == [[], [], []]
    shutil.copy(done / ".metadata", folder)
    assert [files.poll() for _ in range(3)] == [[], [folder], []]
    assert files.is_unchanged(folder)
    with (folder / "__0_0.distcp").open("ab") as file:
        file.write(b" ")
    assert not files.is_unchanged(folder)


def test_the_cache_of_a_folder_is_in_use_while_the_folder_exists(
    tmp_path: Path, rank: Shell
) -> None:
    runs = tmp_path / "runs"
    folder = save_folder({"model": state_dict()}, runs / "a")
    save_deepspeed(runs / "zero3", state_dict(), stage=3)
    rank(runs, "--json", "-q", 2)
    assert {file.unused for file in list_cache(runs, None)[1]} == {None}
    shutil.rmtree(folder)
    assert None not in {file.unused for file in list_cache(runs, None)[1]}


def test_inspect_prints_a_folder_as_a_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_folder({"state_dict": state_dict()}, tmp_path / "99")
    done = lidar_here("inspect", folder, "--json", monkeypatch=monkeypatch, capfd=capfd)
    (inspection,) = json.loads(done.stdout)
    assert (inspection["file"], inspection["container"]) == (str(folder), "state_dict")
    done = lidar_here("inspect", "--formats", monkeypatch=monkeypatch, capfd=capfd)
    assert "torch.distributed.checkpoint (.metadata, *.distcp)" in done.stderr
