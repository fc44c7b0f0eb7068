"""The module that `--model package.module:factory` names, filled with a file's state dict."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lidar_cli.checkpoints.models.backbone import token_pooling
from lidar_cli.checkpoints.models.inner import BLANK, choose, recorded
from lidar_cli.checkpoints.models.weights import fill, first_few, is_counter, shapes
from lidar_cli.checkpoints.reading.containers import WRAPPER_PARTS, candidate_dicts, clean_name
from lidar_cli.checkpoints.reading.lazy_tensor import Weight, is_tensor
from lidar_cli.checkpoints.shapes.inner import MEAN_OF_TOKENS, InnerLayer
from lidar_cli.errors import CheckpointError, NoWeights, SettingsError

LAYER_NAME = re.compile(r"[\w.-]*\w[\w.-]*")  # valid for `--layer` and in a feature file
TRIED_SIZES = (224, 32, 96, 64, 128, 256, 384, 28)  # pixels a side; the first to work is used


def make(target: str) -> nn.Module:
    """The module that the factory 'package.module:factory' returns; it is called without arguments.

    Files in the working directory can be imported too.
    Raises SettingsError if the name is malformed or any of the user's code fails.
    """
    module_name, _, factory_name = target.partition(":")
    if not module_name or not factory_name:
        raise SettingsError(f"--model {target}: expected package.module:factory", code="model-name")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        factory: Any = importlib.import_module(module_name)
        for part in factory_name.split("."):
            factory = getattr(factory, part)
        module = factory()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise SettingsError(
            f"--model {target} failed: {_first_line(error)}", code="model-failed"
        ) from error
    if not isinstance(module, nn.Module):
        raise SettingsError(
            f"--model {target} returned a {type(module).__name__}; expected a torch.nn.Module",
            code="model-kind",
        )
    return module


def load(module: nn.Module, path: Path, tree: Mapping[str, Any]) -> str:
    """Fill the module with the state dict that has exactly its names; return its container.

    Tried in turn: names as in the file, without leading prefixes of wrappers, without all of them.
    Raises NoWeights if the file has no tensor, CheckpointError if no state dict of it fits.
    """
    expected = set(shapes(module))
    closest: tuple[int, str, dict[str, Weight]] | None = None
    for container, entries in candidate_dicts(tree):
        tensors = {str(k): v for k, v in entries.items() if is_tensor(v)}
        if not tensors:
            continue
        for rename in (str, _without_leading, clean_name):
            named = {rename(name): tensor for name, tensor in tensors.items()}
            distance = len({n for n in expected ^ named.keys() if not is_counter(n)})
            if len(named) == len(tensors) and (closest is None or distance < closest[0]):
                closest = (distance, container, named)
    if closest is None:
        raise NoWeights(f"{path}: holds no tensors where a state dict is expected")
    distance, container, tensors = closest
    if distance:
        missing = sorted(n for n in expected - tensors.keys() if not is_counter(n))
        surplus = sorted(tensors.keys() - expected)
        parts = [f"lacks {first_few(missing)}"] if missing else []
        parts += [f"has {first_few(surplus)}"] if surplus else []
        raise CheckpointError(
            f"{path}: the state dict {' and '.join(parts)}, unlike the --model module; "
            "expected exactly its names; let the factory return the module that was saved",
            code="model-names",
        )
    fill(module, {n: t for n, t in tensors.items() if n in expected}, str(path))
    return container


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Restore a module's training modes and devices after the block, even after an error."""
    modes = {part: part.training for part in module.modules()}
    devices = {name: tensor.device for name, tensor in _tensors(module)}
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
        for name, tensor in _tensors(module):
            if tensor.device != devices.get(name, tensor.device):
                tensor.data = tensor.data.to(devices[name])


@contextmanager
def without_gradients() -> Iterator[None]:
    """Disable gradients, but not by inference mode: a module could not train on cached tensors."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def probe(
    module: nn.Module, label: str, shape: tuple[int, ...] | None = None
) -> tuple[dict[str, int], int | None]:
    """The width of each layer, and the image size that the module needs, None for any size.

    Blank images are embedded. A module with an int attribute `image_size` is tried only at that
    size. label: the module's name in errors. shape: of an input that is no image.
    Raises SettingsError if the module embeds no image, or does not return rows.
    """
    named = getattr(module, "image_size", None)
    device = next((t.device for t in module.parameters()), torch.device("cpu"))
    if shape is not None:
        output = embed(module, torch.zeros(2, *shape, device=device), label)
        return {layer: rows.shape[1] for layer, rows in output.items()}, None
    sizes = (named,) if isinstance(named, int) else TRIED_SIZES
    reason = ""
    for size in sizes:
        try:
            with without_gradients():
                output = module(torch.zeros(2, 3, size, size, device=device))
        except Exception as error:  # the user's code, which may need another size
            reason = reason or _first_line(error)
            continue
        widths = {layer: rows.shape[1] for layer, rows in layers_of(output, 2, label).items()}
        only = named == size or not _takes_other_sizes(module, size, device)
        return widths, size if only else None
    raise SettingsError(
        f"{label}: no images of {', '.join(map(str, sizes))} pixels can be embedded "
        f"({reason}); give the module an attribute image_size",
        code="model-image-size",
    )


def inner_layers(
    module: nn.Module,
    names: Sequence[str],
    image_size: int | None,
    others: Iterable[str],
    label: str,
    shape: tuple[int, ...] | None = None,
) -> tuple[dict[str, InnerLayer], str]:
    """The named modules inside the user's, in order of depth, and what was assumed of their tokens.

    image_size, shape: as of `probe`. others: the layers that its forward names.
    Raises CheckpointError for a name that is no module which one forward pass calls once.
    """
    device = next((t.device for t in module.parameters()), torch.device("cpu"))
    sizes = (image_size,) if image_size else TRIED_SIZES
    for one in [shape] if shape else [(3, size, size) for size in sizes]:
        with suppress(CheckpointError), recorded(module) as outputs:  # another size may fit
            embed(module, torch.zeros(BLANK, *one, device=device), label)
            break
    timm_model = next((m for m in module.modules() if hasattr(m, "num_prefix_tokens")), None)
    is_square = len(one) == 3 and one[1] == one[2]
    tokens = token_pooling(timm_model or module)
    inner = choose(outputs, names, tokens, others, is_square=is_square)
    of_tokens = [name for name, layer in inner.items() if layer.pooling == MEAN_OF_TOKENS]
    if timm_model is not None or not of_tokens:
        return inner, ""
    return inner, f"{', '.join(of_tokens)}: mean over all tokens, of [b, tokens, width]"


def source(target: str) -> str | None:
    """sha256 of the file that defines a factory, None without a file.

    The files that it imports are not included: after changes there, the user must extract again.
    """
    path = getattr(sys.modules.get(target.partition(":")[0]), "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None


def embed(module: nn.Module, images: Tensor, label: str) -> dict[str, Tensor]:
    """Layer -> embeddings [b, width]; raises CheckpointError if the user's forward fails."""
    try:
        with without_gradients():
            output = module(images)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{label}: forward failed for inputs {list(images.shape)}: {_first_line(error)}; "
            "expected a module that takes them, or another --image-size",
            code="model-forward",
        ) from error
    return layers_of(output, len(images), label)


def _takes_other_sizes(module: nn.Module, size: int, device: torch.device) -> bool:
    """Whether the module also embeds images of another size."""
    for other in TRIED_SIZES:
        if other != size:
            try:
                with without_gradients():
                    module(torch.zeros(2, 3, other, other, device=device))
            except Exception:  # the user's code, which may accept one size only
                continue
            return True
    return False


def layers_of(output: Any, batch: int, label: str) -> dict[str, Tensor]:
    """The output of a module as layer -> [batch, width]; raises SettingsError for other outputs."""
    layers = dict(output) if isinstance(output, Mapping) else {"backbone": output}
    for layer, rows in layers.items():
        if not isinstance(layer, str) or not LAYER_NAME.fullmatch(layer):
            raise SettingsError(
                f"{label}: forward gave a dict with the key {str(layer)[:50]!r}; expected names of "
                "letters, digits and ._- such as backbone",
                code="model-output",
            )
        if not _are_rows(rows, batch):
            raise SettingsError(
                f"{label}: forward gave {_describe(rows)} for {layer}; expected floating-point "
                f"[{batch}, width], or a dict of layer -> [{batch}, width]",
                code="model-output",
            )
    if not layers:
        raise SettingsError(
            f"{label}: forward gave an empty dict; expected layers", code="model-output"
        )
    return {layer: rows.detach() for layer, rows in layers.items()}


def _are_rows(rows: Any, batch: int) -> bool:
    return (
        isinstance(rows, Tensor)
        and rows.layout == torch.strided
        and rows.is_floating_point()
        and rows.dim() == 2
        and rows.shape[0] == batch
        and rows.shape[1] > 0
    )


def _describe(rows: Any) -> str:
    if not isinstance(rows, Tensor):
        return type(rows).__name__
    kind = "" if rows.is_floating_point() else f"{rows.dtype} ".removeprefix("torch.")
    sparse = "" if rows.layout == torch.strided else f"{rows.layout} ".removeprefix("torch.")
    return f"{sparse}{kind}{list(rows.shape)}"


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


def _without_leading(name: str) -> str:
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in WRAPPER_PARTS:
        parts.pop(0)
    return ".".join(parts)


def _first_line(error: BaseException) -> str:
    message = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
