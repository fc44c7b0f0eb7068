"""Files of lightly-train: what they say of their pixels, and the modules that they pickle."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from formats_lightly_train import MEAN, STD, EmbeddingModel, lightly_train_simclr
from layouts import describe
from raising import raises

from lidar_cli.checkpoints.inspect import inspect_file
from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.reading.read import read_checkpoint
from lidar_cli.extraction.plan import choose_recipe
from lidar_cli.report.inspect import to_text
from lidar_cli.settings import ExtractSettings, InspectSettings

STATS = "0.5,0.4,0.3/0.2,0.25,0.3"


def with_stats(folder: Path, normalize_args: Any) -> Path:
    fixture = lightly_train_simclr()
    about = {**fixture.tree["lightly_train"], "normalize_args": normalize_args}
    return dataclasses.replace(fixture, tree={**fixture.tree, "lightly_train": about}).save(folder)


def test_pixel_statistics_in_the_file_are_used_and_not_assumed(tmp_path: Path) -> None:
    path = lightly_train_simclr().save(tmp_path)
    description = describe(path, read_checkpoint(path))
    assert description.pixel_stats == STATS
    assert "pixel_stats" not in description.assumed
    recipe = choose_recipe(ExtractSettings(), description)
    assert (list(recipe.mean), list(recipe.std)) == (MEAN, STD)
    text = to_text([inspect_file(path, InspectSettings())])
    assert f"views         simclr, pixels {STATS} (lightly_train.normalize_args)\n" in text


def test_an_assumption_about_them_is_refused(tmp_path: Path) -> None:
    path = lightly_train_simclr().save(tmp_path)
    with raises(Exception, "not-open") as raised:
        describe(path, read_checkpoint(path), assume=("pixel_stats=unit",))
    raised.match(rf"lightly_train\.normalize_args has {STATS}; leave it out")


@pytest.mark.parametrize(
    "recorded",
    [
        None,
        {"mean": MEAN},
        {"mean": [127.0] * 3, "std": [50.0] * 3},
        {"mean": "imagenet", "std": ["unit"] * 3},
    ],
)
def test_others_are_assumed(recorded: Any, tmp_path: Path) -> None:
    path = with_stats(tmp_path, recorded)
    description = describe(path, read_checkpoint(path))
    assert description.assumed["pixel_stats"].text("pixel_stats") == (
        "pixel_stats=imagenet (lightly-train's)"
    )


def test_its_modules_are_named_and_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lightly_train_simclr().save(tmp_path)

    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(EmbeddingModel, "__new__", refuse)
    monkeypatch.setattr(EmbeddingModel, "__setstate__", refuse)
    description = open_checkpoint(path).description
    assert "lightly_train._models.embedding_model.EmbeddingModel" in description.stand_ins
    inspection = inspect_file(path, InspectSettings())
    assert "lightly_train.models.embedding_model" in inspection.ignored[-1]


def test_another_architecture_is_pooled_as_timm_pools_it(tmp_path: Path) -> None:
    w = {"embedding_model.wrapped_model._model." + name: t for name, t in tiny().items()}
    fixture = lightly_train_simclr()
    head = {k: t for k, t in fixture.tree["state_dict"].items() if k.startswith("projection")}
    tree = {**fixture.tree, "state_dict": {**w, **head}}
    path = dataclasses.replace(fixture, tree=tree).save(tmp_path)
    description = describe(path, read_checkpoint(path), arch="test_convnext", layer="backbone")
    assert description.assumptions == (
        "pooled as timm's test_convnext, where training averages the last feature map",
    )


def tiny() -> dict[str, Any]:
    import timm

    state: dict[str, Any] = timm.create_model("test_convnext", num_classes=0).state_dict()
    return state
