"""Names of checkpoints: what differs between their paths."""

from __future__ import annotations

import itertools
import random

import pytest

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
        pytest.param([], [], id="no path"),
    ],
)
def test_names_of_what_differs(paths: list[str], names: list[str]) -> None:
    assert short_names(paths) == dict(zip(paths, names, strict=True))


@pytest.mark.parametrize("seed", range(300))
def test_names_are_distinct_parts_of_the_paths_in_any_order(seed: int) -> None:
    rng = random.Random(seed)
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
