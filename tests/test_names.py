"""Names of checkpoints: what differs between their paths."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import sys
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from make import lidar, state_dict
from terminal import in_terminal

from lidar_cli.cli.toy_data import note_toy_data
from lidar_cli.ranking.hyperparameters import recorded_data
from lidar_cli.ranking.names import short_names

RUNS = ("vicreg-05", "vicreg-03", "simclr-06", "dino")


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        pytest.param(
            [
                f"outputs/{run}/lightning_logs/version_0/checkpoints/epoch=99-step=9900.ckpt"
                for run in RUNS
            ],
            [*RUNS],
            id="one of each Lightning run",
        ),
        pytest.param(
            [
                f"outputs/{run}/lightning_logs/version_0/checkpoints/epoch={e}-step={100 * e}.ckpt"
                for run in RUNS
                for e in (9, 59)
            ],
            [f"{run}/epoch={epoch}" for run in RUNS for epoch in (9, 59)],
            id="several of each Lightning run",
        ),
        pytest.param(
            [f"dino/checkpoint{epoch:04}.pth" for epoch in (0, 20, 100)],
            ["checkpoint0000", "checkpoint0020", "checkpoint0100"],
            id="DINO's epochs",
        ),
        pytest.param(
            ["e=9-step=1.ckpt", "a/epoch=9-step=1.ckpt", "a/epoch=9-step=2.ckpt"],
            ["e=9-step=1", "a/epoch=9-step=1", "a/epoch=9-step=2"],
            id="steps that differ",
        ),
        pytest.param(
            [f"out/mae/checkpoint-{step}/model.safetensors" for step in (500, 1000)],
            ["checkpoint-500", "checkpoint-1000"],
            id="folders of the Hugging Face trainer",
        ),
        pytest.param(
            [
                f"hub/models--facebook--{name}/snapshots/{digest * 40}/model.safetensors"
                for name, digest in (("dino-vits16", "a"), ("vit-mae-base", "b"))
            ],
            ["models--facebook--dino-vits16", "models--facebook--vit-mae-base"],
            id="cache of the Hugging Face hub",
        ),
        pytest.param(
            ["zoo/dino/checkpoint.pth", "zoo/mae/model.safetensors", "zoo/moco/moco_v2.pth.tar"],
            ["dino", "mae", "moco/moco_v2.pth.tar"],
            id="files of several formats",
        ),
        pytest.param(
            [f"runs/{run}/version_{at}/last.ckpt" for run in "ab" for at in (0, 1)],
            ["a/version_0", "a/version_1", "b/version_0", "b/version_1"],
            id="versions of a run",
        ),
        pytest.param(
            ["a/last.ckpt", "a/epoch=1.ckpt", "b/last.ckpt"],
            ["a/last", "a/epoch=1", "b/last"],
            id="the last and another",
        ),
        pytest.param(
            [f"/home/me/runs/{at}/lightning_logs/last.ckpt" for at in (1, 2)],
            ["runs/1", "runs/2"],
            id="numbered runs",
        ),
        pytest.param(["a/b.pt", "b/a.pt"], ["a/b", "b/a"], id="the same parts in another order"),
        pytest.param(
            ["checkpoints/last.pt", "runs/last.pt"], ["checkpoints", "runs"], id="only a folder"
        ),
        pytest.param(["a/x.pt", "a//x.pt"], ["a/x.pt", "a//x.pt"], id="two ways to write a path"),
        pytest.param(["runs/vicreg.pth"], ["vicreg.pth"], id="a file alone"),
        pytest.param(
            ["o/vicreg/lightning_logs/version_0/checkpoints/epoch=99-step=9900.ckpt"],
            ["vicreg"],
            id="a Lightning file alone",
        ),
        pytest.param(["runs/last.ckpt"], ["last.ckpt"], id="a file alone without a run"),
        pytest.param(["mae/checkpoint.pth"], ["mae"], id="a file alone that names its format"),
        pytest.param(
            ["/o/vicreg/lightning_logs/version_0/checkpoints"], ["vicreg"], id="a Lightning run"
        ),
        pytest.param(["runs/checkpoints"], ["checkpoints"], id="a folder of any run alone"),
        pytest.param([], [], id="no path"),
    ],
)
def test_names_of_what_differs(paths: list[str], names: list[str]) -> None:
    assert short_names(paths) == dict(zip(paths, names, strict=True))


@pytest.mark.parametrize("seed", range(10))
def test_names_are_distinct_parts_of_the_paths_in_any_order(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(100):
        check_names_of_random_paths(rng)


def check_names_of_random_paths(rng: random.Random) -> None:
    words = [
        "a",
        "b",
        "runs",
        "checkpoints",
        "version_0",
        "1",
        "2",
        "model.pt",
        "last.ckpt",
        "x.pt",
    ]
    words += ["epoch=1-step=2.ckpt", "epoch=1-step=3.ckpt", "epoch=2-step=4.ckpt", "ab\x1b"]
    draws = ("/".join(rng.choices(words, k=rng.randint(1, 5))) for _ in range(rng.randint(1, 12)))
    paths = [f"{rng.choice(('', '/'))}{path}" for path in draws]
    names = short_names(paths)
    assert set(names) == set(paths)
    assert len(set(names.values())) == len(names)
    for path, name in names.items():
        rest = iter(path)
        assert name
        assert all(character in rest for character in name), (path, name)
    rng.shuffle(paths)
    assert short_names(paths) == names


def test_only_what_all_rows_share_is_left_out() -> None:
    folders = ["vicreg", "simclr", "lr=0.1", "lr=0.2"]
    for first, second in itertools.permutations(folders, 2):
        paths = [f"top/{first}/{second}/last.ckpt", f"top/{second}/{first}/last.ckpt"]
        names = short_names(paths)
        assert [names[path] for path in paths] == [f"{first}/{second}", f"{second}/{first}"]


# In the output


SMALL = ("-n", 50, "-q", 2, "--device", "cpu")


def saved(path: Path, seed: int = 0, **entries: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state_dict(seed), **entries}, path)
    return path


@pytest.fixture(scope="module")
def lightning_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `outputs`, of runs whose checkpoints record where their images were."""
    folder = tmp_path_factory.mktemp("lightning")
    for seed, run in enumerate(RUNS):
        saved(
            folder / f"outputs/{run}/lightning_logs/version_0/checkpoints/epoch=99-step=9900.ckpt",
            seed,
            hyper_parameters={"data_dir": "/data/my images"},
        )
    return folder


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals")
def test_four_lightning_runs_have_four_names_in_80_columns(lightning_runs: Path) -> None:
    status, lines = in_terminal(["rank", "outputs", *SMALL], lightning_runs)
    assert status == 0
    rows = [re.match(r" *[1-4] +(\S+) +[\d.]+ \+- ", line) for line in lines]
    assert sorted(row[1] for row in rows if row) == sorted(RUNS)
    assert all(len(line) <= 80 for line, row in zip(lines, rows, strict=True) if row)


def test_without_data_the_order_says_that_it_is_by_toy_pictures(lightning_runs: Path) -> None:
    toy = "this order is by toy pictures (small stand-in images), not your data"
    done = lidar("rank", "outputs", *SMALL, cwd=lightning_runs)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{toy}\n")
    assert "(toy pictures: small stand-in images), n = 50, q = 2; name your own" in done.stderr
    *_, said, source, command = done.stderr.splitlines()
    assert said == toy
    assert source == "the checkpoints record where their images were; to use those:"
    assert command == "lidar rank outputs -n 50 -q 2 --device cpu --data '/data/my images'"
    done = lidar("rank", "outputs", *SMALL, "--json", "--data", "embedded", cwd=lightning_runs)
    assert done.stderr.splitlines()[-1] == (
        "lidar rank outputs -n 50 -q 2 --device cpu --json --data '/data/my images'"
    )
    ranking = json.loads(done.stdout)
    assert (ranking["toy_data"], ranking["data_note"]) == (True, toy)
    named = {row["path"]: row["name"] for row in ranking["checkpoints"]}
    assert named == short_names(list(named))


def test_extract_without_data_says_that_it_embeds_toy_pictures(tmp_path: Path) -> None:
    saved(tmp_path / "a b.pt")
    done = lidar("extract", "a b.pt", *SMALL, cwd=tmp_path)
    assert done.stdout == "a b.h5\n"
    assert done.stderr.splitlines()[-1] == (
        "these embeddings are of toy pictures (small stand-in images), not your data: "
        "lidar extract 'a b.pt' -n 50 -q 2 --device cpu --overwrite --data FOLDER"
    )


def test_a_recorded_folder_that_is_also_ranked_is_part_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "sets/run.pt", hyper_parameters={"data_dir": "sets/"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lidar", "rank", "sets/", "--overwrite"])
    note_toy_data("embedded", ["sets/run.pt"], "--overwrite")
    command = capsys.readouterr().err.splitlines()[-1]
    assert command == "lidar rank sets/ --overwrite --data sets/"


class DictConfig:
    """Pickled as the class of this name in OmegaConf is."""

    def __init__(self, content: object) -> None:
        self._content = content


class AnyNode:
    def __init__(self, value: object) -> None:
        self._val = value


@pytest.mark.parametrize(
    ("entries", "folder"),
    [
        ({"args": argparse.Namespace(output_dir="/o", data_path="/d")}, "/d"),
        ({"args": argparse.Namespace(data="/d", lr=1)}, "/d"),
        ({"args": SimpleNamespace(data=PurePosixPath("/d/e"))}, "/d/e"),
        ({"args": {"data": "imagenet", "dataset": "cifar10"}}, None),
        ({"hyper_parameters": {"val_dir": "/v", "train_dir": "/t"}}, "/t"),
        ({"hyper_parameters": {"data": {"root": "d", "workers": 4}}}, "d"),
        ({"hyper_parameters": {"data": {"val_path": "/v"}}}, "/v"),
        ({"cfg": DictConfig({"data": DictConfig({"data_root": AnyNode("/d")})})}, "/d"),
        ({"config": {"dataset_path": "${oc.env:DATA}", "image_folder": "s3://a/b"}}, None),
        ({"config": {"data_dir": "/a\x1b[31m", "root": "/r", "save_dir": "/s"}}, None),
        ({}, None),
    ],
)
def test_the_folder_of_images_that_a_checkpoint_records(
    tmp_path: Path, entries: dict[str, Any], folder: str | None
) -> None:
    assert recorded_data([str(saved(tmp_path / "a.pt", **entries))]) == folder


def test_the_folder_that_most_checkpoints_record(tmp_path: Path) -> None:
    folders = ("/a", "/b", "/b", None)
    paths = [
        str(saved(tmp_path / f"{at}.pt", at, args={"data_dir": folder}))
        for at, folder in enumerate(folders)
    ]
    assert recorded_data(paths) == "/b"
    assert recorded_data([str(tmp_path / "absent.pt"), *paths[:1]]) == "/a"
