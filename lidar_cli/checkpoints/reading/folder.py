"""Directories and partial files: which one file holds the weights, or how to make one of them.

config.json + model.safetensors or pytorch_model.bin     a Hugging Face folder
*.index.json, *-00001-of-00004.*                         the same, in shards
.metadata + *.distcp                                     torch.distributed.checkpoint, FSDP
zero_to_fp32.py, latest, zero_pp_rank_*                  DeepSpeed
*.rank_0.pth, last_checkpoint.rank_0                     DINOv2's FSDP shards
{'type': 'shard_list' or 'slice_list'}                   VISSL
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lidar_cli.errors import CheckpointError
from lidar_cli.runtime.files import open_regular

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
MAX_CONFIG = 2**20  # bytes of a config.json
SHARDED = ("ShardedTensor", "DTensor")  # classes of tensors of which a file holds a part


def weights_file(path: Path) -> Path:
    """The file to read: the path itself, or the one in a Hugging Face folder.

    Raises CheckpointError for other directories and, from their names, for parts of checkpoints.
    """
    if not path.is_dir():
        _refuse_parts(path)
        return path
    names = {entry.name for entry in path.iterdir()}
    for name in WEIGHTS:
        if name in names:
            return path / name
    if any(name.endswith(".index.json") for name in names):
        raise CheckpointError(_sharded(path, path))
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        raise CheckpointError(_distributed(path, path))
    if "zero_to_fp32.py" in names or "latest" in names:
        raise CheckpointError(_deepspeed(path, path))
    raise CheckpointError(
        f"{path} is a directory, expected one checkpoint file or a folder with "
        f"{' or '.join(WEIGHTS)}; name a file in it, or order all of them with: lidar rank"
    )


def config(path: Path) -> dict[str, Any] | None:
    """The config.json of a Hugging Face folder, or of the one around its weights; None if none.

    Raises CheckpointError if it is not a JSON object of usual size.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / "config.json"
    if not (path.is_dir() or path.name in WEIGHTS) or not file.is_file():
        return None
    return _json_object(file)


def arguments(path: Path, name: str) -> dict[str, Any]:
    """The JSON object `name` beside a checkpoint; empty where there is none that can be read."""
    file = path.parent / name
    try:
        return _json_object(file) if file.is_file() else {}
    except (CheckpointError, OSError, ValueError):
        return {}


def _json_object(file: Path) -> dict[str, Any]:
    try:
        with open_regular(file) as opened:
            content = opened.read(MAX_CONFIG + 1)
        found = json.loads(content) if len(content) <= MAX_CONFIG else None
    except (OSError, RecursionError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON; fetch it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: is not a JSON object of at most 1 MiB; fetch it again")
    return found


def refuse_shards(path: Path, tree: object, names: tuple[str, ...]) -> None:
    """Raise CheckpointError for a file whose content says that it is a part, or points to parts.

    names: of the stand-ins in it.
    """
    kind = tree.get("type") if isinstance(tree, Mapping) else None
    if isinstance(kind, str) and kind in ("shard_list", "slice_list"):
        raise CheckpointError(
            f"{path}: is VISSL's {kind}, which points to other files; expected the weights "
            "themselves; join them with VISSL's extra_scripts/"
            "convert_sharded_checkpoint_to_eval_only.py or save the state dict of the whole model"
        )
    if any(name.rpartition(".")[2] in SHARDED for name in names):
        raise CheckpointError(
            f"{path}: holds one process's part of tensors sharded by FSDP; expected whole ones; "
            "save torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True))"
        )


def _refuse_parts(path: Path) -> None:
    name = path.name
    part = re.search(r"-\d{5}-of-(\d{5})\.", name)
    if name.endswith(".index.json") or (part and int(part[1]) > 1):
        raise CheckpointError(_sharded(path, path.parent))
    if name.endswith(".distcp") or name == ".metadata":
        raise CheckpointError(_distributed(path, path.parent))
    if re.match(r"(bf16_|fp16_)?zero_pp_rank_\d+", name):
        raise CheckpointError(_deepspeed(path, path.parent.parent))
    if re.search(r"\.rank_\d+(\.pth)?$", name):
        raise CheckpointError(
            f"{path}: is one process's part of a model sharded by FSDP; expected whole weights; "
            "in DINOv2 use eval/training_*/teacher_checkpoint.pth of the same run"
        )


def _sharded(path: Path, folder: Path) -> str:
    return (
        f"{path}: is a checkpoint in several files; expected one; join them with: python -c "
        '"import sys, transformers; transformers.AutoModel.from_pretrained(sys.argv[1])'
        f".save_pretrained(sys.argv[2], max_shard_size='1TB')\" {_named(folder, '', '-whole')}"
    )


def _distributed(path: Path, folder: Path) -> str:
    return (
        f"{path}: is a distributed checkpoint in several files; expected one; join them with: "
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
        f"{_named(folder, '', '.pt')}"
    )


def _deepspeed(path: Path, folder: Path) -> str:
    return (
        f"{path}: is a part of a DeepSpeed checkpoint; expected whole weights; join them with: "
        f"python {_named(folder, '/zero_to_fp32.py', '', '-whole')}"
    )


def _named(folder: Path, *endings: str) -> str:
    """The folder with each of the endings, as words of a shell's command."""
    return shlex.join(f"{folder}{ending}" for ending in endings)
