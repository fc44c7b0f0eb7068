"""Finds the weights in a folder or on the Hub, and refuses checkpoints that are only parts.

hf-hub:ORG/NAME[@REVISION], timm:NAME                    a name on the Hub, in place of a path
config.json + model.safetensors or pytorch_model.bin     a Hugging Face folder
.metadata + *.distcp                                     torch.distributed.checkpoint, FSDP
mp_rank_00_model_states.pt                               DeepSpeed, ZeRO 1 and 2
latest                                                   DeepSpeed: the name of such a folder

*.index.json, *-00001-of-00004.*                         a Hugging Face folder in shards
zero_pp_rank_*_model_states.pt                           DeepSpeed, ZeRO 3
shard-00001-model-*.safetensors                          torch's writer of safetensors in shards
*.rank_0.pth, last_checkpoint.rank_0                     DINOv2's FSDP shards
{'type': 'shard_list' or 'slice_list'}                   VISSL
adapter_config.json + adapter_model.safetensors          peft's adapters, such as LoRA
manifest.ocdbt, *.index + *.data-00000-of-00001          Orbax, TensorFlow

Those in the first list are read, the others refused with a message that says how to join them.
huggingface_hub, a dependency of timm, downloads config.json and the weights into its cache, unless
the cache has them; they are then read like those of any folder, and no code in them is run.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.reading.lazy_tensor import is_tensor
from lidar_cli.errors import CheckpointError, first_line, shortened
from lidar_cli.runtime.files import open_regular, read_limited

PREFIXES = {"hf-hub:": "", "timm:": "timm/"}  # prefix of a path -> prefix of the name on the Hub
CHECKPOINT_SUFFIXES = (".pth.tar", ".pt", ".pth", ".ckpt", ".safetensors", ".torch", ".bin")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first one that exists is read
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")  # of peft, which are refused
ADAPTER = "base_model.model."  # the prefix of their tensors
MAX_CONFIG = 2**20  # bytes of a config.json
EXACT_GELU = ("gelu", "gelu_python")  # both use the error function, as most models here do
# Hugging Face's name of an activation -> the name here.
ACTIVATIONS = {
    **dict.fromkeys(EXACT_GELU, "gelu"),
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
MAX_IMAGE_SIZE = 4096  # pixels a side
DISTRIBUTED = re.compile(r"(__\d+)?\.metadata|.+\.distcp")
DCP_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
DEEPSPEED = re.compile(r".*mp_rank_\d+_(model|optim)_states\.pt|layer_\d+-model_.*_states\.pt")
FOREIGN = {
    "manifest.ocdbt": "Orbax",
    "_CHECKPOINT_METADATA": "Orbax",
    "*.data-?????-of-?????": "TensorFlow",
}
# Names of files that are parts of the checkpoint that `checkpoint_in` finds.
PART = re.compile(
    rf"{DISTRIBUTED.pattern}|{DCP_SHARD.pattern}|{DEEPSPEED.pattern}|meta\.pt"
    r"|.+-\d{5}-of-\d{5}\.\w+|.+\.index\.json"
)
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
        for file in ("config.json", "preprocessor_config.json", *WEIGHTS):
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


def weights_path(path: Path) -> Path:
    """What to read: the path itself, the file with the weights in it, or a distributed folder.

    Raises CheckpointError for other directories, and for files named as parts of a checkpoint.
    """
    if not path.is_dir():
        _refuse_parts(path)
        return path
    names = {entry.name for entry in path.iterdir()}
    weights = _weights_in(path, names)
    if weights is None and "latest" in names:
        step = path / _text_of(path / "latest")
        if step.parent == path and step.is_dir():
            weights = _weights_in(step, {entry.name for entry in step.iterdir()})
    if weights is not None:
        return weights
    if "zero_to_fp32.py" in names or "latest" in names:
        raise CheckpointError(_join_deepspeed(path, path))
    raise CheckpointError(
        f"{path} is a directory, expected one checkpoint file or a folder with "
        f"{' or '.join(WEIGHTS)}; name a file in it, or embed and order all:  "
        f"lidar rank {shlex.quote(str(path))} --data FOLDER"
    )


def checkpoint_in(folder: Path, names: Collection[str]) -> Path | None:
    """The one checkpoint whose parts are in a folder: a file in it, or the folder; None if none.

    names: of the files in the folder. A folder that cannot be read is returned too.
    """
    if not any(map(DISTRIBUTED.fullmatch, names)) and any(name in WEIGHTS for name in names):
        return None  # each file is a checkpoint
    try:
        return _weights_in(folder, names)
    except CheckpointError:
        return folder


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a file, or a folder that is one checkpoint."""
    if not path.is_dir():
        return path.is_file()
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError:
        return False
    return checkpoint_in(path, names) is not None


def _weights_in(folder: Path, names: Collection[str]) -> Path | None:
    """The weights among the files of a folder; None if no name is that of a checkpoint's part.

    Raises CheckpointError if they are in parts that are not read.
    """
    if any(map(DISTRIBUTED.fullmatch, names)):
        _check_metadata(folder, names)
        return folder
    for name in WEIGHTS:
        if name in names:
            return folder / name
    for name in ADAPTERS:
        if name in names:
            return folder / name
    if any(name.endswith(".index.json") for name in names):
        raise CheckpointError(_join_sharded(folder, folder))
    if any(map(DCP_SHARD.fullmatch, names)):
        raise CheckpointError(_join_dcp_shards(folder, folder))
    if any(map(DEEPSPEED.fullmatch, names)):
        return folder / _deepspeed_states(folder, names)
    for name, system in FOREIGN.items():
        if any(fnmatchcase(one, name) for one in names):
            raise CheckpointError(
                f"{folder}: is a checkpoint of {system}; expected one of torch; convert its "
                "weights to a state dict and save that with safetensors or torch.save",
                code="foreign",
            )
    return None


def _check_metadata(folder: Path, names: Collection[str]) -> None:
    """Raise CheckpointError for a distributed checkpoint without its .metadata, or of one process.

    torch writes .metadata last.
    """
    if ".metadata" in names:
        return
    of_processes = sorted(name for name in names if re.fullmatch(r"__\d+\.metadata", name))
    if of_processes:
        raise CheckpointError(
            f"{folder}: each process saved a separate checkpoint ({of_processes[0]}); expected "
            "one .metadata of all; save it with torch.distributed.checkpoint.save(..., "
            "use_collectives=True)",
            code="unfinished",
        )
    raise CheckpointError(
        f"{folder}: a distributed checkpoint without .metadata, which is written last: its saving "
        "has not ended, or was interrupted; wait for it, or copy or save it again",
        code="unfinished",
    )


def _deepspeed_states(folder: Path, names: Collection[str]) -> str:
    """The name of the file with DeepSpeed's whole weights; raises CheckpointError if none has."""
    states = sorted(name for name in names if name.endswith("model_states.pt"))  # and layer_*
    if any("zero_pp_rank_" in name for name in states):
        raise CheckpointError(_join_deepspeed(folder, folder.parent, folder.name))
    if not states:
        raise CheckpointError(
            f"{folder}: has DeepSpeed's optimizer states without the weights; expected "
            "mp_rank_00_model_states.pt too; copy the whole folder again",
            code="no-model-states",
        )
    if len(states) > 1:
        raise CheckpointError(
            f"{folder}: is a DeepSpeed model split over {len(states)} files by tensor or pipeline "
            "parallelism; expected whole weights; join them with DeepSpeed's "
            "checkpoint/ds_to_universal.py and save the state dict of the whole model",
            code="model-parallel",
        )
    return states[0]


def _text_of(file: Path) -> str:
    """The text of a small file without the space around it; '' if it cannot be read."""
    try:
        return read_limited(file, MAX_CONFIG).decode().strip()
    except (OSError, ValueError):
        return ""


def read_config(path: Path) -> dict[str, Any] | None:
    """The config.json of a Hugging Face folder, or None.

    It has `image_mean` and `image_std` of preprocessor_config.json too: 0 and 1 if
    they are not used.
    path: the folder, or the file with the weights in it.
    Raises CheckpointError if config.json is not a JSON object of at most MAX_CONFIG bytes.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / "config.json"
    if not (path.is_dir() or path.name in WEIGHTS) or not file.is_file():
        return None
    config = _json_object(file)
    processor = read_arguments(file, "preprocessor_config.json")
    if not processor.get("do_normalize", True):
        processor = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    names = ("image_mean", "image_std")
    return config | {name: processor[name] for name in names if name in processor}


def transformer_options(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """`heads` and `eps` of a transformer, as far as its config.json has them.

    Raises CheckpointError for impossible values, and for activations other than GELU, which the
    models of this package do not implement.
    """
    heads, eps = config.get("num_attention_heads"), config.get("layer_norm_eps")
    activation = config.get("hidden_act", "gelu")
    if heads is not None and (type(heads) is not int or heads < 1):
        raise _refusal(origin, "num_attention_heads", heads, "a number of heads")
    if eps is not None and (type(eps) not in (int, float) or not 0 <= eps < 1):
        raise _refusal(origin, "layer_norm_eps", eps, "a small positive number")
    if activation not in EXACT_GELU:
        raise _refusal(origin, "hidden_act", activation, "gelu")
    return {name: value for name, value in (("heads", heads), ("eps", eps)) if value is not None}


def recorded_grid(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of patches by a config.json with both sides of the images; else None."""
    sides, patch = config.get("image_size"), config.get("patch_size")
    if not isinstance(sides, list) or len(sides) != 2 or type(patch) is not int or patch < 1:
        return None
    if not all(type(side) is int and side >= patch for side in sides):
        return None
    return sides[0] // patch, sides[1] // patch


def convolution_options(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """As `transformer_options`, without the heads that a convolutional network lacks."""
    options = transformer_options(config, origin)
    return {name: value for name, value in options.items() if name != "heads"}


def swin_options(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """As `convolution_options`, with `image_size`."""
    size = config.get("image_size")
    sizes = {"image_size": size} if type(size) is int and 0 < size <= MAX_IMAGE_SIZE else {}
    return convolution_options(config, origin) | sizes


def vision_options(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """As `transformer_options`, with `activation`, of a model of images alone or with text."""
    part = config.get("vision_config")
    config = part if isinstance(part, dict) else config
    name = config.get("hidden_act")
    if name is not None and (type(name) is not str or name not in ACTIVATIONS):
        raise _refusal(origin, "hidden_act", name, " or ".join(dict.fromkeys(ACTIVATIONS.values())))
    activation = {} if name is None else {"activation": ACTIVATIONS[name]}
    return transformer_options({**config, "hidden_act": "gelu"}, origin) | activation


def resnet_options(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """No options; raises CheckpointError for a configuration that torchvision's ResNet lacks."""
    values = {"downsample_in_bottleneck": False, "downsample_in_first_stage": False}
    for name, expected in {**values, "hidden_act": "relu"}.items():
        if config.get(name, expected) != expected:
            raise _refusal(origin, name, config[name], str(expected))
    return {}


def rotary_options(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """As `transformer_options`, with `rope_base`, and `gate` if the MLPs are gated."""
    options: dict[str, Any] = {}
    if config.get("use_gated_mlp"):
        options["gate"] = config.get("hidden_act", "silu")
        config = {**config, "hidden_act": "gelu"}  # which the gate's may differ from
        if options["gate"] not in ("silu", "gelu"):
            raise _refusal(origin, "hidden_act", options["gate"], "silu or gelu")
    base = config.get("rope_theta")
    if base is not None:
        if type(base) not in (int, float) or not 1 < base < 1e9:
            raise _refusal(origin, "rope_theta", base, "a number above 1")
        options["rope_base"] = float(base)
    return transformer_options(config, origin) | options


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
    if isinstance(tree, Mapping) and _is_of_stage_3(tree):
        raise CheckpointError(_join_deepspeed(path, path.parent.parent, path.parent.name))
    if any(name.rpartition(".")[2] in SHARDED for name in names):
        raise CheckpointError(
            f"{path}: holds one process's part of tensors sharded by FSDP; expected whole ones; "
            "save torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True))"
        )


def _is_of_stage_3(tree: Mapping[Any, Any]) -> bool:
    """Whether these are states of DeepSpeed with empty tensors for weights, as in ZeRO 3."""
    weights = tree.get("module") if "ds_version" in tree else None
    tensors = filter(is_tensor, weights.values()) if isinstance(weights, dict) else ()
    return any(tuple(tensor.shape) == (0,) for tensor in tensors)


def refuse_adapter(path: Path, tree: object) -> None:
    """Raise CheckpointError for peft's adapters, such as LoRA's, which are changes to a model."""
    keys = [key for key in tree if isinstance(key, str)] if isinstance(tree, Mapping) else []
    adapters = [key for key in keys if key.startswith(ADAPTER) or ".lora_A." in key]
    if not adapters:
        return
    base = read_arguments(path, "adapter_config.json").get("base_model_name_or_path")
    command = (
        "import sys, peft, transformers; model = transformers.AutoModel.from_pretrained("
        "sys.argv[1]); peft.PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload()"
        ".save_pretrained(sys.argv[3])"
    )
    words = (str(base or "BASE_MODEL"), str(path.parent), f"{path.parent}-merged")
    raise CheckpointError(
        f"{path}: holds adapters of peft, such as {shortened(adapters[0])}, which change the "
        "weights of another model; expected all weights; merge them with: "
        f'python -c "{command}" {shlex.join(words)}',
        code="adapter",
    )


def _refuse_parts(path: Path) -> None:
    """Raise CheckpointError for a file whose name is that of one part of a checkpoint."""
    name = path.name
    part = re.search(r"-\d{5}-of-(\d{5})\.", name)
    if name.endswith(".index.json") or (part and int(part[1]) > 1):
        raise CheckpointError(_join_sharded(path, path.parent))
    if DISTRIBUTED.fullmatch(name):
        raise CheckpointError(
            f"{path}: is a part of a distributed checkpoint; expected the folder; name it:  "
            f"{_quoted(path.parent, '')}",
            code="name-the-folder",
        )
    if DCP_SHARD.fullmatch(name):
        raise CheckpointError(_join_dcp_shards(path, path.parent))
    if re.match(r"(bf16_|fp16_)?zero_pp_rank_\d+", name):
        raise CheckpointError(_join_deepspeed(path, path.parent.parent, path.parent.name))
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


def join_distributed(folder: Path) -> str:
    """How to join a distributed checkpoint with torch."""
    return (
        "join them with: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
        f"{_quoted(folder, '', '.pt')}"
    )


def _join_dcp_shards(path: Path, folder: Path) -> str:
    return (
        f"{path}: is a distributed checkpoint in shards of safetensors; expected whole weights; "
        'join them with: python -c "import sys; from torch.distributed.checkpoint import '
        '_consolidate_hf_safetensors as c; c.consolidate_safetensors_files(*sys.argv[1:])" '
        f"{_quoted(folder, '', '-whole')}"
    )


def _join_deepspeed(path: Path, folder: Path, step: str = "") -> str:
    which = f" --tag {shlex.quote(step)}" if step else ""
    return (
        f"{path}: is a part of a DeepSpeed checkpoint; expected whole weights; join them with: "
        f"python {_quoted(folder, '/zero_to_fp32.py', '', '-whole')}{which}"
    )


def _quoted(folder: Path, *endings: str) -> str:
    """The folder's path with each ending appended, quoted for a shell."""
    return shlex.join(f"{folder}{ending}" for ending in endings)
