"""Finds the file with the weights in a folder or on the Hub, and refuses checkpoints in parts.

hf-hub:ORG/NAME[@REVISION], timm:NAME                    a name on the Hub, in place of a path
config.json + model.safetensors or pytorch_model.bin     a Hugging Face folder
*.index.json, *-00001-of-00004.*                         the same, in shards
.metadata + *.distcp                                     torch.distributed.checkpoint, FSDP
zero_to_fp32.py, latest, zero_pp_rank_*                  DeepSpeed
*.rank_0.pth, last_checkpoint.rank_0                     DINOv2's FSDP shards
{'type': 'shard_list' or 'slice_list'}                   VISSL

The first two are read, the others refused with a message that says how to join them.
huggingface_hub, a dependency of timm, downloads config.json and the weights into its cache, unless
the cache has them; they are then read like those of any folder, and no code in them is run.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lidar_cli.errors import CheckpointError, first_line
from lidar_cli.runtime.files import open_regular

PREFIXES = {"hf-hub:": "", "timm:": "timm/"}  # prefix of a path -> prefix of the name on the Hub
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first one that exists is read
MAX_CONFIG = 2**20  # bytes of a config.json
EXACT_GELU = ("gelu", "gelu_python")  # both use the error function
# Hugging Face's name of an activation -> the name here.
ACTIVATIONS = {
    **dict.fromkeys(EXACT_GELU, "gelu"),
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
MAX_IMAGE_SIZE = 4096  # pixels a side
SHARDED = ("ShardedTensor", "DTensor")  # classes of tensors that are stored in several files


def local_path(path: Path) -> Path:
    """The folder in the Hub's cache for a name on the Hub; any other path unchanged.

    Raises CheckpointError if the name is malformed, or the Hub has no such model, does not give
    access to it, or cannot be reached.
    """
    for prefix, owner in PREFIXES.items():
        if str(path).startswith(prefix):
            name, _, revision = str(path).removeprefix(prefix).partition("@")
            if ".." in revision:  # git allows no such revision; as a path it could leave the cache
                raise CheckpointError(
                    f"{path}: {revision} is no revision; expected a branch, tag or commit"
                )
            return _fetch(path, owner + name, revision or None)
    return path


def _fetch(path: Path, name: str, revision: str | None) -> Path:
    from huggingface_hub import errors, hf_hub_download

    unreachable: Exception | None = None
    try:
        for file in ("config.json", *WEIGHTS):
            try:
                cached = Path(hf_hub_download(name, file, revision=revision))
            except errors.LocalEntryNotFoundError as error:  # the Hub did not answer
                unreachable = error
            except errors.EntryNotFoundError:  # the model has no such file
                continue
            else:
                if file in WEIGHTS:
                    return cached.parent
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{path}: the Hub gives {name} only to those who accept its conditions; do so on its "
            "page there, then run: hf auth login"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise CheckpointError(
            f"{path}: the Hub has no {name}{f' at {revision}' if revision else ''}, or it is "
            "private; check the name, or run: hf auth login"
        ) from error
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be fetched: {first_line(error)}") from error
    if unreachable is not None:
        raise CheckpointError(
            f"{path}: {name} is not in the cache of huggingface_hub, and the Hub is out of reach; "
            f"on a machine that reaches it run: hf download {name}"
        ) from unreachable
    raise CheckpointError(
        f"{path}: {name} has neither {' nor '.join(WEIGHTS)}; expected the weights in one "
        "file; fetch what it has and name that file"
    )


def weights_file(path: Path) -> Path:
    """The file to read: the path itself, or the weights in a Hugging Face folder.

    Raises CheckpointError for other directories, and for files named as parts of a checkpoint.
    """
    if not path.is_dir():
        _refuse_parts(path)
        return path
    names = {entry.name for entry in path.iterdir()}
    for name in WEIGHTS:
        if name in names:
            return path / name
    if any(name.endswith(".index.json") for name in names):
        raise CheckpointError(_join_sharded(path, path))
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        raise CheckpointError(_join_distributed(path, path))
    if "zero_to_fp32.py" in names or "latest" in names:
        raise CheckpointError(_join_deepspeed(path, path))
    raise CheckpointError(
        f"{path} is a directory, expected one checkpoint file or a folder with "
        f"{' or '.join(WEIGHTS)}; name a file in it, or embed and order all:  "
        f"lidar rank {shlex.quote(str(path))} --data FOLDER"
    )


def read_config(path: Path) -> dict[str, Any] | None:
    """The config.json of a Hugging Face folder, or None.

    path: the folder, or the file with the weights in it.
    Raises CheckpointError if config.json is not a JSON object of at most MAX_CONFIG bytes.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / "config.json"
    if not (path.is_dir() or path.name in WEIGHTS) or not file.is_file():
        return None
    return _json_object(file)


def transformer_options(
    config: Mapping[str, Any], origin: str, wanted: Collection[str]
) -> dict[str, Any]:
    """Those of a transformer's options in `wanted` that its config.json has.

    They are `heads`, `eps`, `image_size` and `activation`.
    Raises CheckpointError for impossible values, and for activations that the models of this
    package do not implement: all but GELU, unless `activation` is wanted.
    """
    config = _vision_part(config)
    heads, eps = config.get("num_attention_heads"), config.get("layer_norm_eps")
    size, activation = config.get("image_size"), config.get("hidden_act")
    activations = ACTIVATIONS if "activation" in wanted else dict.fromkeys(EXACT_GELU, "gelu")
    if heads is not None and (type(heads) is not int or heads < 1):
        raise _refusal(origin, "num_attention_heads", heads, "a number of heads")
    if eps is not None and (type(eps) not in (int, float) or not 0 <= eps < 1):
        raise _refusal(origin, "layer_norm_eps", eps, "a small positive number")
    if activation is not None and (type(activation) is not str or activation not in activations):
        expected = " or ".join(dict.fromkeys(activations.values()))
        raise _refusal(origin, "hidden_act", activation, expected)
    values = {
        "heads": heads,
        "eps": eps,
        "image_size": size if type(size) is int and 0 < size <= MAX_IMAGE_SIZE else None,
        "activation": activations.get(activation) if activation is not None else None,
    }
    return {name: values[name] for name in wanted if values[name] is not None}


def _vision_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about images in the config.json of a model of images and text."""
    part = config.get("vision_config")
    return part if isinstance(part, dict) else config


def timm_architecture(config: Mapping[str, Any] | None) -> str | None:
    """timm's name of the model; None if timm did not write the config.json."""
    name = config.get("architecture") if config and "pretrained_cfg" in config else None
    return name if isinstance(name, str) else None


def _refusal(origin: str, name: str, value: object, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{origin}: config.json has {name} = {str(value)[:40]!r}; expected {expected}; "
        "name your own code with --model"
    )


def read_arguments(path: Path, name: str) -> dict[str, Any]:
    """The JSON file `name` in the checkpoint's directory; {} if it cannot be read."""
    file = path.parent / name
    try:
        return _json_object(file) if file.is_file() else {}
    except (CheckpointError, OSError, ValueError):
        return {}


def _json_object(file: Path) -> dict[str, Any]:
    try:
        with open_regular(file) as opened:
            content = opened.read(MAX_CONFIG + 1)
        value = json.loads(content) if len(content) <= MAX_CONFIG else None
    except (OSError, RecursionError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON; fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: is not a JSON object of at most 1 MiB; fetch it again")
    return value


def refuse_shards(path: Path, tree: object, names: tuple[str, ...]) -> None:
    """Raise CheckpointError for a file that is one part of a checkpoint, or lists the parts.

    names: names of the stand-ins in the file.
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
    """Raise CheckpointError for a file whose name is that of one part of a checkpoint."""
    name = path.name
    part = re.search(r"-\d{5}-of-(\d{5})\.", name)
    if name.endswith(".index.json") or (part and int(part[1]) > 1):
        raise CheckpointError(_join_sharded(path, path.parent))
    if name.endswith(".distcp") or name == ".metadata":
        raise CheckpointError(_join_distributed(path, path.parent))
    if re.match(r"(bf16_|fp16_)?zero_pp_rank_\d+", name):
        raise CheckpointError(_join_deepspeed(path, path.parent.parent))
    if re.search(r"\.rank_\d+(\.pth)?$", name):
        raise CheckpointError(
            f"{path}: is one process's part of a model sharded by FSDP; expected whole weights; "
            "in DINOv2 use eval/training_*/teacher_checkpoint.pth of the same run"
        )


def _join_sharded(path: Path, folder: Path) -> str:
    return (
        f"{path}: is a checkpoint in several files; expected one; join them with: python -c "
        '"import sys, transformers; transformers.AutoModel.from_pretrained(sys.argv[1])'
        f".save_pretrained(sys.argv[2], max_shard_size='1TB')\" {_quoted(folder, '', '-whole')}"
    )


def _join_distributed(path: Path, folder: Path) -> str:
    return (
        f"{path}: is a distributed checkpoint in several files; expected one; join them with: "
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
        f"{_quoted(folder, '', '.pt')}"
    )


def _join_deepspeed(path: Path, folder: Path) -> str:
    return (
        f"{path}: is a part of a DeepSpeed checkpoint; expected whole weights; join them with: "
        f"python {_quoted(folder, '/zero_to_fp32.py', '', '-whole')}"
    )


def _quoted(folder: Path, *endings: str) -> str:
    """The folder's path with each ending appended, quoted for a shell."""
    return shlex.join(f"{folder}{ending}" for ending in endings)
