"""Assigns the tensors of a file to the modules that its format lists.

Every tensor is assigned to a module or reported as unused; any other tensor raises an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.branch_words import AUTO, ENCODER, STUDENT, usual_branch
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
from lidar_cli.checkpoints.models.weights import compare, first_few, shapes_of, size
from lidar_cli.checkpoints.outside import option_without, remove_outside
from lidar_cli.checkpoints.reading import folder
from lidar_cli.checkpoints.reading.containers import StateDict, clean_name
from lidar_cli.checkpoints.reading.lazy_tensor import Weight, join_parts
from lidar_cli.checkpoints.shapes import heads
from lidar_cli.checkpoints.shapes.resnet import ResNetSpec
from lidar_cli.checkpoints.shapes.spec import (
    PIXEL_STATS,
    Assignment,
    Assumed,
    CheckpointDescription,
    Value,
    assume_all,
    renamed,
)
from lidar_cli.checkpoints.shapes.vit import TransformerSpec, ViTSpec
from lidar_cli.errors import CheckpointError
from lidar_cli.settings import PATCHES

# Counters that torch's AveragedModel and profilers save.
COMMON_UNUSED = (r"n_averaged$", r"(.*\.)?total_(ops|params)$")
Modules = dict[str, Assignment]  # layer -> its module, in the order of the forward pass


@dataclass(frozen=True)
class Options:
    """The user's options for one file."""

    arch: str | None  # name of a timm model
    activation: str  # in the heads; 'auto' for the format's
    branch: str  # a word for one; 'auto' for the first that has all requested layers
    layer: str  # value of `--layer`; heads that it does not need are ignored if they are not MLPs
    config: Mapping[str, Any] | None  # config.json of the folder
    assume: Mapping[str, Value]  # values of `--assume` for this file's system
    entries: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the file's top level
    prefix: str | None = None  # of the backbone, where no format is used; see fallback.py
    projector_prefix: str | None = None


def assign_by_format(
    path: Path, format: Format, state: StateDict, options: Options
) -> tuple[CheckpointDescription, Modules]:
    """The description of a file of this format, and the backbone and heads of one branch.

    Raises CheckpointError if a tensor is missing or unknown, or the branch is not in the file.
    """
    present = [b for b in format.branches if _has_prefix(state, b.backbone)]
    branch, reason = _choose_branch(path, format, present, options)
    arguments = _arguments(path, format, options)
    backbone = _assign_backbone(path, format, state, branch, options, arguments)
    rest = {name: t for name, t in state.tensors.items() if name not in backbone.keys}
    trained = _training(format, state, backbone, arguments)
    # Removed before the heads are read: some counters are among their tensors.
    ignored = [*backbone.dropped, *_remove_matching(rest, COMMON_UNUSED)]
    usual = Assumed(trained.activation, trained.why_activation) if trained.activation else None
    modules = _assign_heads(path, format, branch, backbone, rest, usual, options, ignored)
    ignored += remove_by_prefix(rest, backbone.unused_prefixes)
    unused = (*format.unused, *COMMON_UNUSED)
    ignored += _remove_other_branches(rest, format, branch) + _remove_matching(rest, unused)
    if not needs_heads(options):
        ignored += remove_outside(rest, backbone.prefix)
    unknown = [state.originals[name] for name in rest]
    unknown += [name for name in state.others if not matches(clean_name(name), unused)]
    if unknown:
        # The generic reader knows neither dicts that a format joins nor the names that it renames.
        is_plain = not (format.nested or format.rename or format.class_prefix)
        names = [*rest, *map(clean_name, state.others)]
        hint = option_without(names, backbone.prefix) if is_plain else ""
        raise CheckpointError(
            f"{path}: {len(unknown)} entries outside the {backbone.spec.arch} are not understood: "
            f"{first_few(unknown)}; expected those of {format.title}; choose another with "
            f"--format, or {NEXT}{hint}",
            code="unknown-entries",
        )
    description = describe(modules, state, tuple(ignored), branch.name)
    image_size = description.image_size
    if format.image_size is not None and backbone.spec.any_size:
        image_size = min(format.image_size, image_size or format.image_size)
    stats = (
        {PIXEL_STATS: Assumed(trained.pixel_stats, trained.why_stats)} if trained.why_stats else {}
    )
    pooling = (
        (f"pooled as timm's {options.arch}, where training averages the last feature map",)
        if options.arch is not None and format.mean_pooled_without
        else ()
    )
    description = dataclasses.replace(
        description,
        format=format.name,
        branches=tuple(b.name for b in present),
        branch_reason=reason,
        image_size=image_size,
        recipe=trained.recipe,
        pixel_stats=trained.pixel_stats,
        assumed={**description.assumed, **stats},
        assumptions=(*description.assumptions, *trained.assumptions, *pooling),
        why=format.why,
    )
    return description, modules


def describe(
    modules: Modules, state: StateDict, ignored: tuple[str, ...], branch: str = "encoder"
) -> CheckpointDescription:
    """The description of a file with this backbone and these heads."""
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
        widths={layer: module.spec.output_width for layer, module in modules.items()},
        container=state.container,
        # As in the file, with the prefixes of wrappers: 'module.backbone.', not 'backbone.'.
        prefix=state.originals[key].removesuffix(key.removeprefix(backbone.prefix)),
        ignored=ignored,
        parameters=sum(size(tensor) for name, tensor in tensors if not _is_statistic(name)),
        assumed=assumed,
        assumptions=tuple(notes),
        branch=branch,
        channels=getattr(spec, "channels", 3),
        patch=spec.patch if isinstance(spec, TransformerSpec) else None,
        token_width=spec.token_width,
        masks=spec.masks(teacher=branch == "teacher"),
    )


def needs_heads(options: Options) -> bool:
    """Whether the requested layers are not the backbone alone."""
    return heads.is_needed(options.layer, "projector", ("predictor",))


def assign_mlp(
    origin: str,
    names: Mapping[str, str],
    tensors: Mapping[str, Weight],
    width: int,
    usual: Assumed,
    options: Options,
    gaps: tuple[tuple[int, str], ...] = (),
) -> Assignment:
    """The projector or predictor that these tensors form, whose input has `width` numbers.

    origin: the file and head that an error names. names: keys of `tensors` -> names of layers
    within the head. usual: the activation if `--activation` is auto. gaps: see `Head`.
    Raises CheckpointError if the layers form no MLP.
    """
    layers = {heads.numbered_name(name): tensors[key] for key, name in names.items()}
    if len(layers) < len(names):
        raise CheckpointError(
            f"{origin}: two layers have one number: {first_few(names, 6)}; {NEXT}",
            code="layers-of-one-number",
        )
    layers, _ = join_parts(layers)
    activation, why = options.activation, "--activation"
    if activation == "auto":
        activation, why = str(usual.value), usual.why
    spec = heads.mlp_spec(shapes_of(layers), width, activation, origin, why, gaps)
    spec = assume_all(spec, options.assume)
    compare(spec.shapes(), shapes_of(layers), origin)
    return Assignment(spec, layers)


def remove_by_prefix(rest: dict[str, Weight], prefixes: tuple[str, ...]) -> tuple[str, ...]:
    """Remove the tensors with these prefixes from `rest`; return the prefixes that occurred."""
    matched = {key: prefix for key in rest for prefix in prefixes if key.startswith(prefix)}
    for key in matched:
        del rest[key]
    return tuple(dict.fromkeys(prefix.rstrip(".") for prefix in matched.values()))


def _arguments(path: Path, format: Format, options: Options) -> Mapping[str, Any]:
    """The arguments of the training run, in the file or next to it; {} if they were not saved.

    Of a Hugging Face folder, they are its configuration.
    """
    if not format.arguments:
        return options.config or {}
    if format.arguments.endswith(".json"):
        return folder.read_arguments(path, format.arguments)
    inside = options.entries.get(format.arguments)
    return inside if isinstance(inside, Mapping) else {}


def _training(
    format: Format, state: StateDict, backbone: Assignment, arguments: Mapping[str, Any]
) -> Training:
    """How the checkpoint was trained, by its names and the arguments of the run."""
    spec = backbone.spec
    small = isinstance(spec, ResNetSpec) and spec.kernel == 3
    small = small or (spec.image_size or SMALL + 1) <= SMALL
    return training(format, state.tensors.keys(), arguments, small)


def _has_prefix(state: StateDict, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in state.tensors)


def _choose_branch(
    path: Path, format: Format, present: Sequence[Branch], options: Options
) -> tuple[Branch, str | None]:
    """The branch to use, by `--branch` or the requested layers, and why if not the default one."""
    layers = {name.strip() for name in options.layer.split(",")} - {"", "auto", "backbone", PATCHES}
    suitable = [branch for branch in present if layers <= branch.heads.keys()]
    if not present:
        raise CheckpointError(
            f"{path}: {format.title} without a backbone; {NEXT}", code="no-backbone"
        )
    if options.branch == AUTO:
        if not suitable or suitable[0] is present[0]:
            return present[0], None
        lacking = f"the {present[0].name} has no {' and '.join(sorted(layers))}"
        return suitable[0], f"{lacking}, so the {suitable[0].name} is embedded"
    branch = _named_branch(options.branch, format.branches, present)
    if branch is not None:
        return branch, None
    raise CheckpointError(
        f"{path}: no branch {options.branch!r} in this checkpoint; it has "
        f"{', '.join(b.name for b in present)}: use --branch {present[0].name}",
        code="no-branch",
    )


def _named_branch(word: str, listed: Sequence[Branch], present: Sequence[Branch]) -> Branch | None:
    """The branch with this name or alias, else the one that the word usually names; None if none.

    listed: all branches of the format. A branch 'encoder', which is alone, is the student.
    """
    exact = [branch for branch in listed if word in (branch.name, *branch.aliases)]
    usual = {usual_branch(word), ENCODER if usual_branch(word) == STUDENT else None}
    matching = exact or [branch for branch in listed if branch.name in usual]
    return next((branch for branch in matching if branch in present), None)


def _assign_backbone(
    path: Path,
    format: Format,
    state: StateDict,
    branch: Branch,
    options: Options,
    arguments: Mapping[str, Any],
) -> Assignment:
    prefix = branch.backbone
    keys = [key for key in state.tensors if key.startswith(prefix)]
    if options.arch is not None:
        from lidar_cli.checkpoints.models.timm_model import assign_timm, prefixes

        part = {key.removeprefix(prefix): state.tensors[key] for key in keys}
        inside = StateDict("", part, {}, ())
        inner, *_ = prefixes(options.arch, inside)
        backbone = assign_timm(path, inside, options.arch, inner, options.assume)
        full = frozenset(prefix + key for key in backbone.keys)
        return dataclasses.replace(backbone, keys=full, prefix=prefix + backbone.prefix)
    keys_by_name: dict[str, str] = {}  # name in the family's files -> key of `state.tensors`
    for key in keys:
        name = renamed(key.removeprefix(prefix), format.rename)
        if name in keys_by_name:
            raise CheckpointError(
                f"{path}: {first_few([keys_by_name[name], key])} are one tensor in {format.title}; "
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
        return assume_all(
            _with_format_values(spec, format, arguments, keys_by_name), options.assume
        )

    return assign_backbone(
        path, family, keys_by_name, state.tensors, prefix, options.config, adjust
    )


def _family(
    path: Path, format: Format, keys_by_name: Mapping[str, str], state: StateDict
) -> Family:
    for name in format.backbones:
        if FAMILIES[name].anchor in keys_by_name:
            return FAMILIES[name]
    originals = [state.originals[key] for key in keys_by_name.values()]
    raise CheckpointError(
        f"{path}: {format.title}: {len(originals)} tensors such as {first_few(originals)} form no "
        f"known backbone; expected a {' or a '.join(format.backbones)}; {NEXT}",
        code="no-backbone",
    )


def _with_format_values(
    spec: Any, format: Format, arguments: Mapping[str, Any], names: Iterable[str]
) -> Any:
    """The spec with the values of the format and the arguments for what the shapes leave open.

    names: of the backbone's tensors, as in the family's files.
    """
    heads = dict(format.attention_heads).get(spec.width)
    offset, padding = format.position_offset, format.cifar_padding
    values = {
        "heads": heads, "position_offset": offset, "stem_padding": padding, "eps": format.eps,
    }  # fmt: skip
    for key, value in values.items():
        if value is not None:
            spec = spec.assume(key, value, f"{format.name}'s")
    for name, argument, key, implied in format.assumed:
        if name in arguments and arguments[name] is argument:
            how = f"{format.arguments} has {name} {argument}"
            spec = spec.assume(key, implied, how).decide(key, how)
    if format.resize and hasattr(spec, "resize"):
        spec = dataclasses.replace(spec, resize=format.resize)
    pattern = format.mean_pooled_without
    if pattern and isinstance(spec, ViTSpec) and not any(matches(n, (pattern,)) for n in names):
        spec = dataclasses.replace(spec, mean_pooled=True)
    return spec


def _assign_heads(
    path: Path,
    format: Format,
    branch: Branch,
    backbone: Assignment,
    rest: dict[str, Weight],
    usual: Assumed | None,
    options: Options,
    ignored: list[str],
) -> Modules:
    """The backbone and its heads; the tensors of the heads are removed from `rest`.

    usual: the activation that the training's arguments determine, None if they do not. A head that
    cannot be built is added to `ignored`; it raises CheckpointError if `options.layer` needs it.
    """
    modules, width = {"backbone": backbone}, backbone.spec.output_width
    readable, layers = True, list(branch.heads)  # a predictor needs a readable projector
    for layer, head in branch.heads.items():
        keys = [key for key in rest if key.startswith(head.prefix)]
        try:
            if isinstance(head, TokenPredictor):
                module = _assign_token_predictor(path, head.prefix, rest, keys, backbone)
            elif readable:
                activation = usual or Assumed(head.activation, f"{format.name}'s")
                module = _assign_head(path, head, rest, keys, width, activation, options, ignored)
            else:
                raise CheckpointError(
                    f"{path}: the input of {head.prefix} is not read", code="head-not-read"
                )
        except CheckpointError as error:
            if keys and heads.is_needed(options.layer, layer, layers[layers.index(layer) :]):
                message = f"{error}; or do without it: --layer backbone"
                raise CheckpointError(message, code=error.code) from error
            readable, module = False, None
            ignored += [f"{head.prefix.rstrip('.')} (not read)"] if keys else []
        for key in keys:
            del rest[key]
        if module is not None:
            modules[layer], width = module, module.spec.width
    return modules


def _assign_head(
    path: Path,
    head: Head,
    rest: Mapping[str, Weight],
    keys: Sequence[str],
    width: int,
    usual: Assumed,
    options: Options,
    ignored: list[str],
) -> Assignment | None:
    """The MLP with the tensors of these keys; None if the file has none of its layers."""
    names = {key: head.name(key) for key in keys}
    after = [key for key in keys if matches(names[key], head.after)]
    ignored += list(dict.fromkeys(key.rpartition(".")[0] for key in after))
    names = {key: name for key, name in names.items() if key not in after}
    origin = f"{path}: {head.prefix.rstrip('.')}"
    if not names:
        return None
    mlp = assign_mlp(origin, names, rest, width, usual, options, head.gaps)
    spec = dataclasses.replace(mlp.spec, last_activation=head.last_activation)
    return dataclasses.replace(mlp, spec=spec)


def _assign_token_predictor(
    path: Path, prefix: str, rest: Mapping[str, Weight], keys: Sequence[str], backbone: Assignment
) -> Assignment | None:
    """I-JEPA's predictor with the tensors of these keys; None if there are no keys.

    Raises CheckpointError if one of its tensors is missing or unknown, or if the backbone has
    tokens other than patch tokens.
    """
    tensors = {key.removeprefix(prefix): rest[key] for key in keys}
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


def _remove_other_branches(rest: dict[str, Weight], format: Format, branch: Branch) -> list[str]:
    """Remove the tensors of the other branches from `rest`; return their prefixes."""
    chosen = branch.prefixes
    ignored = []
    for other in format.branches:
        for prefix in [prefix for prefix in other.prefixes if prefix and prefix not in chosen]:
            keys = [key for key in rest if key.startswith(prefix)]
            for key in keys:
                del rest[key]
            if keys:
                ignored.append(prefix.rstrip("."))
    return ignored


def _remove_matching(rest: dict[str, Weight], patterns: tuple[str, ...]) -> list[str]:
    """Remove the tensors that match from `rest`; return the two outer modules of each."""
    keys = [key for key in rest if matches(key, patterns)]
    for key in keys:
        del rest[key]
    modules = (key.rpartition(".")[0] or key for key in keys)
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in modules))


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
