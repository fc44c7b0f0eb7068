"""The modules of a checkpoint by its format, and the tensors of the file that fill each.

No tensor is left out in silence: each is in a module, recognised as unused, or an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.description import STATS, Assignment, CheckpointDescription
from lidar_cli.checkpoints.families import FAMILIES, NEXT, Family, assign_backbone
from lidar_cli.checkpoints.formats.format import (
    SMALL,
    Branch,
    Format,
    Head,
    TokenPredictor,
    Training,
    matches,
    training,
)
from lidar_cli.checkpoints.models.weights import compare, shapes_of, size, some
from lidar_cli.checkpoints.reading import folder
from lidar_cli.checkpoints.reading.containers import StateDict, clean_name
from lidar_cli.checkpoints.reading.lazy_tensor import Weight
from lidar_cli.checkpoints.shapes import heads
from lidar_cli.checkpoints.shapes.resnet import ResNetSpec
from lidar_cli.checkpoints.shapes.spec import Assumed, Value, renamed, settle
from lidar_cli.checkpoints.shapes.vit import TransformerSpec
from lidar_cli.errors import CheckpointError

COMMON_NOISE = (r"n_averaged$", r"(.*\.)?total_(ops|params)$")  # of averaging, of profilers
BRANCHES = {  # the values of --branch -> the branch's name
    "auto": "auto",
    "student": "student",
    "encoder": "student",
    "online": "student",
    "query": "student",
    "teacher": "teacher",
    "target": "teacher",
    "momentum": "teacher",
    "ema": "teacher",
    "key": "teacher",
}

Modules = dict[str, Assignment]  # layer -> module, in the order of the forward pass


@dataclass(frozen=True)
class Options:
    """The user's choices for one file."""

    arch: str | None  # a timm name
    activation: str  # in the heads; 'auto' for the usual one
    branch: str  # a key of BRANCHES; an auto branch is the first that has all layers
    layer: str  # as for `--layer`; a head that is not needed for these may be unreadable
    config: Mapping[str, Any] | None  # config.json of the folder
    assume: Mapping[str, Value]  # values of `--assume` for this file's system


def assign_by_format(
    path: Path, format: Format, state: StateDict, options: Options
) -> tuple[CheckpointDescription, Modules]:
    """Backbone and heads of one branch.

    Raises CheckpointError if a tensor is missing or unknown, or the branch is not in the file.
    """
    present = [b for b in format.branches if _has(state, b.backbone)]
    branch, reason = _branch(path, format, present, options)
    backbone = _backbone(path, format, state, branch, options)
    left = {name: t for name, t in state.tensors.items() if name not in backbone.keys}
    trained = _trained(path, format, state, backbone)
    # Some of the noise may be within heads.
    ignored = [*backbone.dropped, *_take_noise(left, COMMON_NOISE)]
    usual = Assumed(trained.activation, trained.why_activation) if trained.activation else None
    modules = _take_heads(path, format, branch, backbone, left, usual, options, ignored)
    ignored += take_beginnings(left, backbone.noise)
    noise = (*format.noise, *COMMON_NOISE)
    ignored += _take_other_branches(left, format, branch) + _take_noise(left, noise)
    unknown = [state.originals[name] for name in left]
    unknown += [name for name in state.others if not matches(clean_name(name), noise)]
    if unknown:
        raise CheckpointError(
            f"{path}: {len(unknown)} entries beside the {backbone.spec.arch} are not understood: "
            f"{some(unknown)}; expected those of {format.title}; choose another with --format, "
            f"or {NEXT}",
            code="unknown-entries",
        )
    description = describe(modules, state, tuple(ignored), branch.name)
    natural = description.image_size
    if natural is not None and backbone.spec.any_size:
        natural = min(natural, format.image_size or natural)
    stats = {STATS: Assumed(trained.pixel_stats, trained.why_stats)} if trained.why_stats else {}
    description = dataclasses.replace(
        description,
        format=format.name,
        branches=tuple(b.name for b in present),
        branch_reason=reason,
        image_size=natural,
        recipe=trained.recipe,
        pixel_stats=trained.pixel_stats,
        assumed={**description.assumed, **stats},
        assumptions=(*description.assumptions, *trained.assumptions),
        why=format.why,
    )
    return description, modules


def describe(
    modules: Modules, state: StateDict, ignored: tuple[str, ...], branch: str = "encoder"
) -> CheckpointDescription:
    """The description of a backbone and its heads."""
    backbone = modules["backbone"]
    spec = backbone.spec
    tensors = [item for module in modules.values() for item in module.tensors.items()]
    assumed: dict[str, Assumed] = {}
    notes: list[str] = []
    for layer, module in modules.items():
        assumed |= module.spec.assumed
        notes += [note.replace("projector", layer) for note in module.spec.notes]
    key = min(backbone.keys)
    return CheckpointDescription(
        format=backbone.title,
        arch=spec.arch,
        image_size=spec.image_size,
        widths={layer: module.spec.width for layer, module in modules.items()},
        container=state.container,
        # With the additions of wrappers: 'module.backbone.' rather than 'backbone.'.
        prefix=state.originals[key].removesuffix(key.removeprefix(backbone.prefix)),
        ignored=ignored,
        parameters=sum(size(tensor) for name, tensor in tensors if not _is_statistic(name)),
        assumed=assumed,
        assumptions=tuple(notes),
        branch=branch,
        patch=spec.patch if isinstance(spec, TransformerSpec) else None,
        masks=spec.masks(teacher=branch == "teacher"),
    )


def assign_mlp(
    origin: str,
    names: Mapping[str, str],
    tensors: Mapping[str, Weight],
    width: int,
    usual: Assumed,
    options: Options,
) -> Assignment:
    """A projector or predictor behind `width` numbers.

    names: keys of `tensors` -> names of layers within the head. usual: its activation, unless the
    user gives one. Raises CheckpointError if the layers form no MLP.
    """
    layers = {heads.plain_name(name): tensors[key] for key, name in names.items()}
    if len(layers) < len(names):
        raise CheckpointError(
            f"{origin}: two layers have one number: {some(names, 6)}; {NEXT}",
            code="layers-of-one-number",
        )
    activation, why = options.activation, "--activation"
    if activation == "auto":
        activation, why = str(usual.value), usual.why
    spec = heads.mlp_spec(shapes_of(layers), width, activation, origin, why)
    spec = settle(spec, options.assume)
    compare(spec.shapes(), shapes_of(layers), origin)
    return Assignment(spec, layers)


def take_beginnings(left: dict[str, Weight], beginnings: tuple[str, ...]) -> tuple[str, ...]:
    """Remove tensors whose names begin so from `left`; the beginnings that occurred."""
    matched = {key: b for key in left for b in beginnings if key.startswith(b)}
    for key in matched:
        del left[key]
    return tuple(dict.fromkeys(beginning.rstrip(".") for beginning in matched.values()))


def _trained(path: Path, format: Format, state: StateDict, backbone: Assignment) -> Training:
    spec = backbone.spec
    run = folder.read_arguments(path, format.arguments) if format.arguments else {}
    small = isinstance(spec, ResNetSpec) and spec.kernel == 3
    small = small or (spec.image_size or SMALL + 1) <= SMALL
    return training(format, state.tensors.keys(), run, small)


def _has(state: StateDict, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in state.tensors)


def _branch(
    path: Path, format: Format, present: Sequence[Branch], options: Options
) -> tuple[Branch, str | None]:
    """The branch that is asked for, else the first with the layers, and why if not the default."""
    wanted = BRANCHES[options.branch]
    layers = {name.strip() for name in options.layer.split(",")} - {"", "auto", "backbone"}
    suitable = [branch for branch in present if layers <= branch.heads.keys()]
    if wanted == "auto" and suitable and suitable[0] is not present[0]:
        lacking = f"the {present[0].name} has no {' and '.join(sorted(layers))}"
        return suitable[0], f"{lacking}, so the {suitable[0].name} is embedded"
    for branch in present:
        if wanted in ("auto", branch.name) or (wanted == "student" and branch.name == "encoder"):
            return branch, None
    if not present:
        raise CheckpointError(
            f"{path}: {format.title} without a backbone; {NEXT}", code="no-backbone"
        )
    raise CheckpointError(
        f"{path}: no branch {options.branch!r} in this checkpoint; it has "
        f"{', '.join(b.name for b in present)}: use --branch {present[0].name}",
        code="no-branch",
    )


def _backbone(
    path: Path, format: Format, state: StateDict, branch: Branch, options: Options
) -> Assignment:
    prefix = branch.backbone
    inside = [key for key in state.tensors if key.startswith(prefix)]
    if options.arch is not None:
        from lidar_cli.checkpoints.models.timm_model import assign_timm

        part = {key.removeprefix(prefix): state.tensors[key] for key in inside}
        backbone = assign_timm(path, StateDict("", part, {}, ()), options.arch)
        keys = frozenset(prefix + key for key in backbone.keys)
        return dataclasses.replace(backbone, keys=keys, prefix=prefix + backbone.prefix)
    keys_by_name: dict[str, str] = {}
    for key in inside:
        name = renamed(key.removeprefix(prefix), format.rename)
        if name in keys_by_name:
            raise CheckpointError(
                f"{path}: {some([keys_by_name[name], key])} are one tensor in {format.title}; "
                f"{NEXT}",
                code="two-names-of-one-tensor",
            )
        keys_by_name[name] = key
    for key in state.tensors:
        name = renamed(key, branch.borrowed)
        if name != key:
            keys_by_name.setdefault(name, key)
    family = _family(path, format, keys_by_name, state)

    def adjust(spec: Any) -> Any:
        return settle(_adjusted(spec, format), options.assume)

    return assign_backbone(
        path, family, keys_by_name, state.tensors, prefix, options.config, adjust
    )


def _family(
    path: Path, format: Format, keys_by_name: Mapping[str, str], state: StateDict
) -> Family:
    for name in format.backbones:
        if FAMILIES[name].anchor in keys_by_name:
            return FAMILIES[name]
    raise CheckpointError(
        f"{path}: {format.title}: {len(keys_by_name)} tensors such as "
        f"{some([state.originals[key] for key in keys_by_name.values()])} form no known backbone; "
        f"expected a {' or a '.join(format.backbones)}; {NEXT}",
        code="no-backbone",
    )


def _adjusted(spec: Any, format: Format) -> Any:
    """The spec with the format's assumptions beyond the shapes, in place of the usual ones."""
    usual = {
        "heads": dict(format.heads).get(spec.width),
        "position_offset": format.position_offset,
        "stem_padding": format.cifar_padding,
    }
    for key, value in usual.items():
        if value is not None:
            spec = spec.assume(key, value, f"{format.name}'s")
    if format.resize and hasattr(spec, "resize"):
        spec = dataclasses.replace(spec, resize=format.resize)
    return spec


def _take_heads(
    path: Path,
    format: Format,
    branch: Branch,
    backbone: Assignment,
    left: dict[str, Weight],
    usual: Assumed | None,
    options: Options,
    ignored: list[str],
) -> Modules:
    """The backbone and its heads, whose tensors are removed from `left`.

    usual: the activation by the arguments of the training. An unreadable head is ignored unless
    `options.layer` needs it.
    """
    modules, width = {"backbone": backbone}, backbone.spec.width
    readable, order = True, list(branch.heads)
    for layer, head in branch.heads.items():
        inside = [key for key in left if key.startswith(head.prefix)]
        try:
            if isinstance(head, TokenPredictor):
                module = _predictor(path, head.prefix, left, inside, backbone)
            elif readable:
                activation = usual or Assumed(head.activation, f"{format.name}'s")
                module = _mlp(path, head, left, inside, width, activation, options, ignored)
            else:
                raise CheckpointError(
                    f"{path}: the input of {head.prefix} is not read", code="head-not-read"
                )
        except CheckpointError as error:
            if inside and heads.needed(options.layer, layer, order[order.index(layer) :]):
                message = f"{error}; or do without it: --layer backbone"
                raise CheckpointError(message, code=error.code) from error
            readable, module = False, None
            ignored += [f"{head.prefix.rstrip('.')} (not read)"] if inside else []
        for key in inside:
            del left[key]
        if module is not None:
            modules[layer], width = module, module.spec.width
    return modules


def _mlp(
    path: Path,
    head: Head,
    left: Mapping[str, Weight],
    inside: Sequence[str],
    width: int,
    usual: Assumed,
    options: Options,
    ignored: list[str],
) -> Assignment | None:
    """The head of the keys `inside`; None if it has no layers in the file."""
    names = {key: head.name(key) for key in inside}
    after = [key for key in inside if matches(names[key], head.after)]
    ignored += list(dict.fromkeys(key.rpartition(".")[0] for key in after))
    names = {key: name for key, name in names.items() if key not in after}
    origin = f"{path}: {head.prefix.rstrip('.')}"
    return assign_mlp(origin, names, left, width, usual, options) if names else None


def _predictor(
    path: Path, prefix: str, left: Mapping[str, Weight], inside: Sequence[str], backbone: Assignment
) -> Assignment | None:
    """I-JEPA's predictor of the keys `inside`; None if there are none.

    Raises CheckpointError if a tensor of it is missing or unknown, or if the backbone has other
    tokens than those of patches.
    """
    tensors = {key.removeprefix(prefix): left[key] for key in inside}
    if not tensors:
        return None
    origin, encoder = f"{path}: {prefix.rstrip('.')}", backbone.spec
    if "multi-block" not in encoder.masks(teacher=False):
        raise CheckpointError(
            f"{origin}: a predictor of patch tokens behind a {encoder.arch}; expected I-JEPA's "
            "ViT without class token, by its shapes; leave --arch out, or name your own code "
            "with --model",
            code="misplaced-predictor",
        )
    spec = heads.predictor_spec(shapes_of(tensors), encoder.heads, origin, eps=encoder.eps)
    compare(spec.shapes(), shapes_of(tensors), origin)
    if (spec.width, spec.grid) != (encoder.width, encoder.grid):
        raise CheckpointError(
            f"{origin}: works on {spec.grid} x {spec.grid} tokens of {spec.width} numbers; "
            f"expected those of the {encoder.arch}; name your own code with --model",
            code="misplaced-predictor",
        )
    return Assignment(spec, tensors)


def _take_other_branches(left: dict[str, Weight], format: Format, branch: Branch) -> list[str]:
    """Remove the tensors of branches that were not chosen from `left`; their prefixes."""
    chosen = branch.prefixes
    ignored = []
    for other in format.branches:
        for prefix in [prefix for prefix in other.prefixes if prefix and prefix not in chosen]:
            keys = [key for key in left if key.startswith(prefix)]
            for key in keys:
                del left[key]
            if keys:
                ignored.append(prefix.rstrip("."))
    return ignored


def _take_noise(left: dict[str, Weight], patterns: tuple[str, ...]) -> list[str]:
    """Remove the tensors that match from `left`; the modules to which they belong.

    A module is named by the first two parts of its name.
    """
    keys = [key for key in left if matches(key, patterns)]
    for key in keys:
        del left[key]
    modules = (key.rpartition(".")[0] or key for key in keys)
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in modules))


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
