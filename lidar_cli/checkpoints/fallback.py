"""Assigns the tensors of a file that no format matches: one backbone, and a projector.

A backbone is found by a family's anchor; the text before the anchor is the backbone's prefix. Two
backbones of which one has a name of averaged or frozen weights are two branches, see `two_sets.py`.
Every other tensor must belong to a projector or linear classifier with a usual name, or be one that
only training needs; any other tensor raises an error, unless `--prefix` names the backbone: then
what is outside of it is named as unused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.assign import (
    Modules,
    Options,
    assign_mlp,
    describe,
    needs_heads,
    remove_by_prefix,
)
from lidar_cli.checkpoints.branch_words import is_averaged
from lidar_cli.checkpoints.families import EXPECTED, FAMILIES, NEXT, Family, assign_backbone
from lidar_cli.checkpoints.models.weights import first_few
from lidar_cli.checkpoints.outside import (
    HEAD,
    NONE,
    is_outside,
    module_outside,
    option_without,
    remove_outside,
)
from lidar_cli.checkpoints.reading.containers import StateDict, all_weights, clean_name
from lidar_cli.checkpoints.reading.lazy_tensor import Weight
from lidar_cli.checkpoints.shapes import heads
from lidar_cli.checkpoints.shapes.spec import (
    USUAL,
    Assignment,
    Assumed,
    CheckpointDescription,
    assume_all,
)
from lidar_cli.checkpoints.two_sets import Choice, choose
from lidar_cli.errors import CheckpointError, nearest

PROJECTORS = ("projector", "projection_head", "projection", "head", "fc", "lm_head")
CLASSIFIERS = (
    *("fc", "head", "heads.head", "head.fc", "classifier", "online_classifier", "pooler.dense"),
)
# Saved by averaged models, profilers, masked training and losses, and what the grid determines.
UNUSED = (
    *("n_averaged", "total_ops", "total_params", "mask_token"),
    *("relative_position_index", "attn_mask", "queue", "queue_ptr"),
)
PREDICTOR = re.compile(r"(^|\.|_)(predictor|prediction_head)$")


def assign_by_usual_names(
    path: Path, state: StateDict, options: Options
) -> tuple[CheckpointDescription, Modules]:
    """The description of a state dict, and its backbone and projector.

    Raises CheckpointError if a tensor is missing or unknown, SettingsError for an arch unknown to
    timm.
    """
    prefixes = _prefixes(state, options)
    if options.prefix is None:
        choice = choose(path, list(prefixes), options.branch, _no_backbone(path, state))
    else:
        choice = _given_choice(path, state, options.prefix, list(prefixes))
    backbone = _assign_backbone(path, state, choice.prefix, prefixes[choice.prefix], options)
    rest = {name: t for name, t in state.tensors.items() if name not in backbone.keys}
    named = _remove_named(rest, options.projector_prefix)
    ignored = backbone.dropped + remove_by_prefix(rest, backbone.unused_prefixes)
    ignored += _remove_other_sets(rest, choice)
    levels = [*_levels(backbone.prefix)]
    ignored += _remove_predictors(rest, backbone)
    ignored += _remove_unused(rest, levels, CLASSIFIERS + backbone.classifiers)
    modules = {"backbone": backbone}
    rest |= named
    candidates = _projector_candidates(rest, levels, choice)
    chosen = _chosen_projector(path, rest, candidates, options)
    try:
        if chosen:
            modules["projector"] = _assign_projector(path, rest, chosen, backbone, options)
    except CheckpointError as error:
        if heads.is_needed(options.layer, "projector", ()):
            message = f"{error}; or do without it: --layer backbone"
            raise CheckpointError(message, code=error.code) from error
        chosen = []
    ignored += tuple(f"{name} (not read)" for name in candidates if name not in chosen)
    for key in [key for key in rest if key.startswith(tuple(f"{n}." for n in candidates + chosen))]:
        del rest[key]
    if options.prefix is not None or not needs_heads(options):
        ignored += remove_outside(rest, backbone.prefix)
    _check_all_understood(path, state, rest, backbone, options, list(prefixes))
    description = describe(modules, state, ignored, choice.branch)
    assumptions = (*description.assumptions, *choice.assumptions)
    return dataclasses.replace(
        description, branches=choice.branches, assumptions=assumptions
    ), modules


def _prefixes(state: StateDict, options: Options) -> dict[str, Family | None]:
    """Prefix of a backbone -> its family, None for timm's model that `--arch` names."""
    if options.arch is not None:
        from lidar_cli.checkpoints.models.timm_model import prefixes

        return dict.fromkeys(prefixes(options.arch, state))
    families: dict[str, Family | None] = {}
    special: tuple[str, ...] = ()  # prefixes at which a special family matches
    for family in sorted(FAMILIES.values(), key=lambda family: not family.special):
        matching = [
            key.removesuffix(family.anchor)
            for key in state.tensors
            if key == family.anchor or key.endswith(f".{family.anchor}")
            if family.axes in (None, len(state.tensors[key].shape))
        ]
        for prefix in matching:
            if not prefix.startswith(special):
                families.setdefault(prefix, family)
        special += tuple(matching) if family.special else ()
    # A transformer of texts or of tokens, such as a decoder, has no convolution.
    convolutions = [name for name, tensor in state.tensors.items() if len(tensor.shape) > 3]
    with_images = [one for one in families if any(name.startswith(one) for name in convolutions)]
    return {one: families[one] for one in with_images or families}


def _no_backbone(path: Path, state: StateDict) -> CheckpointError:
    return CheckpointError(
        f"{path}: {len(state.tensors)} tensors such as {first_few(state.originals.values())} form "
        f"no known backbone; expected {EXPECTED}; {NEXT}",
        code="no-backbone",
    )


def clean_prefix(given: str) -> str:
    """A prefix as names of a StateDict have it, '' for none."""
    name = clean_name(given.strip("."))
    return f"{name}." if name and given != NONE else ""


def with_prefixes(tree: Mapping[str, Any], state: StateDict, options: Options) -> StateDict:
    """The state dict, or the weights of all nested dicts if only these have the given prefixes."""
    given = [one for one in (options.prefix, options.projector_prefix) if one is not None]

    def count(one: StateDict) -> int:
        return sum(any(n.startswith(clean_prefix(text)) for n in one.tensors) for text in given)

    return max((state, all_weights(tree)), key=count) if given else state


def _given_choice(path: Path, state: StateDict, given: str, prefixes: list[str]) -> Choice:
    """The set of weights that `--prefix` names; raises CheckpointError if no backbone has it.

    Backbones elsewhere are other sets, whose heads are not those of this one.
    """
    prefix = clean_prefix(given)
    if prefix in prefixes:
        elsewhere = [one for one in prefixes if not (prefix and one.startswith(prefix))]
        return Choice(prefix, others=tuple(one for one in elsewhere if one != prefix))
    names = [state.originals[name] for name in state.tensors if name.startswith(prefix)]
    why = f"{path}: --prefix {given}: no tensor begins so"
    if names:
        why = (
            f"{path}: --prefix {given}: {len(names)} tensors such as {first_few(names)} begin no "
            "known backbone"
        )
    inside = [one for one in prefixes if one.startswith(prefix) and prefix]
    hint = nearest(prefix, prefixes).removeprefix("did you mean ").removesuffix("?")
    better = min(inside, key=len) if inside else hint if hint in prefixes else ""
    better = better or (prefixes[0] if len(prefixes) == 1 else "")
    if better:
        end = f"did you mean --prefix {better}"
    elif prefixes:
        end = f"there are {first_few(prefixes, 6)}: --prefix {prefixes[0] or NONE}"
    else:
        end = NEXT
    raise CheckpointError(f"{why}; {end}", code="wrong-prefix")


def _assign_backbone(
    path: Path, state: StateDict, prefix: str, family: Family | None, options: Options
) -> Assignment:
    """timm's model if `--arch` names one, else the backbone whose anchor is at the prefix."""
    if family is None:
        from lidar_cli.checkpoints.models.timm_model import assign_timm

        assert options.arch is not None
        return assign_timm(path, state, options.arch, prefix, options.assume)
    keys = {key.removeprefix(prefix): key for key in state.tensors if key.startswith(prefix)}

    def adjust(spec: Any) -> Any:
        return assume_all(spec, options.assume)

    return assign_backbone(path, family, keys, state.tensors, prefix, options.config, adjust)


def _levels(prefix: str) -> list[str]:
    """The prefix and all shorter ones: 'a.b.' -> ['', 'a.', 'a.b.']."""
    parts = prefix.split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:i]) for i in range(len(parts) + 1)]


def _remove_other_sets(rest: dict[str, Weight], choice: Choice) -> tuple[str, ...]:
    """Remove the other sets of weights and their heads from `rest`; return their modules."""
    if not choice.others:
        return ()
    averaged = is_averaged(choice.prefix)
    tops = [module_outside(other, choice.prefix) for other in choice.others]
    at_the_top = "" in choice.others  # the modules of another set are those of the file
    ignored = []
    for key in list(rest):
        top = module_outside(key, choice.prefix)
        is_head = HEAD.fullmatch(top.rpartition(".")[2]) is not None
        shared = not key.startswith(choice.prefix) and is_averaged(top) != averaged
        if top in tops or (shared and (at_the_top or is_head or is_averaged(top))):
            ignored.append(top)
            del rest[key]
    modules = tuple(dict.fromkeys(ignored))
    return (first_few(modules, 8),) if at_the_top and modules else modules


def _remove_named(rest: dict[str, Weight], prefix: str | None) -> dict[str, Weight]:
    """Remove the tensors at `--projector-prefix` from `rest`, and return them."""
    begin = clean_prefix(prefix or NONE)
    return {key: rest.pop(key) for key in list(rest) if begin and key.startswith(begin)}


def _remove_unused(
    rest: dict[str, Weight], levels: list[str], classifiers: tuple[str, ...]
) -> tuple[str, ...]:
    """Remove linear classifiers and UNUSED tensors from `rest`; return their names."""
    ignored = []
    for module in (level + name for level in levels for name in dict.fromkeys(classifiers)):
        group = {key for key in rest if key.startswith(f"{module}.")}
        weight = rest.get(f"{module}.weight")
        linear = group <= {f"{module}.weight", f"{module}.bias"}
        if linear and weight is not None and len(weight.shape) == 2:
            ignored.append(module)
            for key in group:
                del rest[key]
    for key in [key for key in rest if key.rpartition(".")[2] in UNUSED]:
        ignored.append(key)
        del rest[key]
    return tuple(ignored)


def _remove_predictors(rest: dict[str, Weight], backbone: Assignment) -> tuple[str, ...]:
    """Remove the modules after a projector, which no layer here needs; return their names."""
    outside = {
        key: module_outside(key, backbone.prefix)
        for key in rest
        if is_outside(key, backbone.prefix)
    }
    predictors = {key: top for key, top in outside.items() if PREDICTOR.search(top)}
    for key in predictors:
        del rest[key]
    return tuple(dict.fromkeys(f"{top} (not read)" for top in predictors.values()))


def _projector_candidates(
    rest: Mapping[str, Weight], levels: list[str], choice: Choice
) -> list[str]:
    """The modules in `rest` that have a usual name of a projector, such as momentum_projector."""
    averaged = is_averaged(choice.prefix) and bool(choice.others)
    candidates = []
    for key in rest:
        for level in levels:
            name = key.removeprefix(level).partition(".")[0]
            plain = re.sub(r"^(momentum|target|teacher|ema)_", "", name)
            wanted = plain if averaged and not is_averaged(level) and plain != name else name
            if key.startswith(level) and wanted in PROJECTORS and key != level + name:
                candidates.append(level + name)
    return list(dict.fromkeys(candidates))


def _chosen_projector(
    path: Path, rest: Mapping[str, Weight], candidates: Sequence[str], options: Options
) -> list[str]:
    """The projector's module: the only candidate, or what `--projector-prefix` names.

    Raises CheckpointError for several candidates if a projector is needed, and for a prefix that no
    tensor has.
    """
    given = options.projector_prefix
    if given is None:
        if len(candidates) > 1 and heads.is_needed(options.layer, "projector", ()):
            raise CheckpointError(
                f"{path}: {len(candidates)} projectors, {first_few(candidates)}; expected one; "
                f"choose it, or {NONE}: --projector-prefix {candidates[0]}.",
                code="several-projectors",
            )
        return list(candidates) if len(candidates) == 1 else []
    prefix = clean_prefix(given)
    if not prefix or any(key.startswith(prefix) for key in rest):
        return [prefix.removesuffix(".")] if prefix else []
    others = [f"{name}." for name in candidates] or [NONE]
    hint = nearest(prefix, others).removeprefix("did you mean ").removesuffix("?")
    better = hint if hint in others else others[0]
    raise CheckpointError(
        f"{path}: --projector-prefix {given}: no tensor outside the backbone begins so; expected "
        f"a projector, or {NONE}: --projector-prefix {better}",
        code="wrong-prefix",
    )


def _assign_projector(
    path: Path,
    rest: Mapping[str, Weight],
    chosen: list[str],
    backbone: Assignment,
    options: Options,
) -> Assignment:
    prefix = f"{chosen[0]}."
    names = {key: key.removeprefix(prefix) for key in rest if key.startswith(prefix)}
    origin, usual = f"{path}: {chosen[0]}", Assumed("relu", USUAL)
    return assign_mlp(origin, names, rest, backbone.spec.output_width, usual, options)


def _check_all_understood(
    path: Path,
    state: StateDict,
    rest: Mapping[str, Weight],
    backbone: Assignment,
    options: Options,
    prefixes: list[str],
) -> None:
    """Raise CheckpointError for tensors, and other values next to them, that are not understood.

    prefixes: of all backbones in the file.
    """
    others = [name for name in state.others if not is_outside(clean_name(name), backbone.prefix)]
    others = list(state.others) if options.prefix is None else others
    unknown = [state.originals[name] for name in rest] + others
    if not unknown:
        return
    elsewhere = tuple(
        one
        for one in prefixes
        if not backbone.prefix.startswith(one)
        if not backbone.prefix or not one.startswith(backbone.prefix)
    )
    names = [name for name in [*rest, *map(clean_name, others)] if not name.startswith(elsewhere)]
    hint = "" if options.prefix else option_without(names, backbone.prefix)
    raise CheckpointError(
        f"{path}: {len(unknown)} entries outside the {backbone.spec.arch} are not understood: "
        f"{first_few(unknown)}; expected at most a projector and a linear classifier; {NEXT}{hint}",
        code="unknown-entries",
    )
