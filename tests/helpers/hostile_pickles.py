"""Pickles that name what must never be called."""

from __future__ import annotations

import struct
from pathlib import Path

import pickles
import pytest
import torch
from torch import Tensor

from lidar_cli.checkpoints.reading.read import read_contents
from lidar_cli.errors import CheckpointError

HERE = "test_hostile"  # the module whose functions the attacks name


WRITERS = [pickles.write_zip, pickles.write_legacy]


def refusal(path: Path, match: str = "") -> str:
    with pytest.raises(CheckpointError, match=match) as caught:
        read_contents(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1000
    return text


def name(what: str) -> bytes:
    return f"c{HERE}\n{what}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def beside(attack: bytes) -> bytes:
    """In a dict, as the value of a name."""
    return b"\x80\x04}" + text("weight") + attack + b"s."


def within(attack: bytes) -> bytes:
    """In a whole module, as one of its parameters."""
    state = text("_parameters") + b"}" + text("weight") + attack + b"s" + text("_modules") + b"}"
    return b"\x80\x04ctorch.nn.modules.module\nModule\n)\x81}(" + state + b"ub."


REFUSED = [
    *(("os", n) for n in ("system", "popen", "path.join")), ("os.path", "join"),
    ("posix", "system"), ("nt", "system"), ("sys", "exit"), ("subprocess", "Popen"),
    ("commands", "getoutput"), ("shutil", "rmtree"), ("socket", "create_connection"),
    ("importlib", "import_module"), ("importlib.util", "x"), ("runpy", "run_path"),
    *((m, n) for m in ("builtins", "__builtin__")
      for n in ("eval", "exec", "compile", "open", "__import__", "getattr")),
    ("builtins", "eval.__call__"), ("io", "open"),
]  # fmt: skip


def state() -> dict[str, Tensor]:
    tensors = {"conv1.weight": torch.randn(4, 3, 3, 3), "layer1.0.conv1.weight": torch.ones(4, 4)}
    return tensors | {"bn1.running_mean": torch.zeros(4), "half": torch.ones(2).half()}
