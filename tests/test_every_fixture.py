"""What holds of every fixture: its tensors are torch's own bits, and damage ends in one line."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from formats import FIXTURES
from layouts import Fixture
from literal import bits
from mutations import mutated
from torch import Tensor, nn

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.reading.lazy_tensor import LazyTensor
from lidar_cli.checkpoints.reading.read import read_contents
from lidar_cli.errors import LidarError

RankInfo = tuple[Any, ...]


def places(tree: Any, place: RankInfo = ()) -> Iterator[tuple[RankInfo, Any]]:
    """Every tensor of nested containers, with the keys on the way to it."""
    if isinstance(tree, Tensor | LazyTensor):
        yield place, tree
    elif isinstance(tree, nn.Module):
        yield from places(tree.state_dict(), place)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, (*place, key))
    elif isinstance(tree, list | tuple):
        for at, value in enumerate(tree):
            yield from places(value, (*place, at))


def as_bits(tree: Any) -> dict[RankInfo, tuple[torch.dtype, tuple[int, ...], bytes]]:
    fixture = {
        place: tensor.materialise() if isinstance(tensor, LazyTensor) else tensor
        for place, tensor in places(tree)
    }
    return {place: (t.dtype, tuple(t.shape), bits(t)) for place, t in fixture.items()}


def torch_opens(path: Path) -> bool:
    try:
        torch.load(path, weights_only=True)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("name", FIXTURES)
def test_tensors_are_those_of_torch_load_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Also from the layout in which the system does not save, where torch may refuse the file."""
    fixture = FIXTURES[name]()
    for legacy in (fixture.legacy, not fixture.legacy):
        path = dataclasses.replace(fixture, legacy=legacy).save(tmp_path)
        tensors = as_bits(read_contents(path).tree)
        assert tensors == as_bits(torch.load(path, weights_only=False))
        assert len(tensors) > 20


def test_files_that_torch_refuses_are_among_them(tmp_path: Path) -> None:
    """With functions, numpy's numbers, Namespaces, partial: torch's safe loader refuses all."""
    refused = {name for name, make in FIXTURES.items() if not torch_opens(make().save(tmp_path))}
    assert {"vicreg", "barlow", "dino-vit", "mae", "solo-learn-vicreg"} <= refused
    assert refused != set(FIXTURES)


# Mutations.


def shrunk(tree: Any) -> Any:
    """The same tree of names and shapes over a few bytes: every tensor repeats one number."""
    if isinstance(tree, Tensor) and tree.is_floating_point():
        return tree.reshape(-1)[0].half().expand(tree.shape)
    if isinstance(tree, dict):
        return {key: shrunk(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [shrunk(value) for value in tree]
    return tree


# The first fixture of each format.
OF_FORMATS = {make().format: name for name, make in reversed(FIXTURES.items())}.values()


@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", sorted(OF_FORMATS))
def test_mutated_fixtures_open_or_end_in_one_line(name: str, count: int, tmp_path: Path) -> None:
    fixture: Fixture = FIXTURES[name]()
    path = dataclasses.replace(fixture, tree=shrunk(fixture.tree)).save(tmp_path)
    original = path.read_bytes()
    open_checkpoint(path)
    draw = random.Random(name)
    opened = 0
    refusals = set()
    for _ in range(count):
        path.write_bytes(mutated(original, draw))
        try:
            open_checkpoint(path)
            opened += 1
        except LidarError as error:
            refusals.add(str(error))
    assert opened > 2 or count < 100
    assert len(refusals) > count // 20
    assert not any("\n" in line for line in refusals)
