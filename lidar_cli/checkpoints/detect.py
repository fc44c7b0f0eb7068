"""Recognises a checkpoint by the names and shapes of its tensors, and lists the modules to build.

The formats in formats/ are tried first, and the most specific match is used. A file that matches no
format is read by the usual names of backbones and heads (fallback.py). torch is imported only if
`--arch`, config.json or the arguments in a file of unknown shapes name a timm model.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.assign import Modules, Options, assign_by_format
from lidar_cli.checkpoints.branch_words import OFFERED, TEACHER, usual_branch
from lidar_cli.checkpoints.fallback import assign_by_usual_names, clean_prefix, with_prefixes
from lidar_cli.checkpoints.formats import FORMATS
from lidar_cli.checkpoints.formats.format import Format, fits
from lidar_cli.checkpoints.models.weights import first_few
from lidar_cli.checkpoints.outside import NONE
from lidar_cli.checkpoints.reading.containers import (
    StateDict,
    average_keys,
    candidate_dicts,
    clean_name,
    find_state_dict,
    raw_key,
    unused_names,
    with_average,
)
from lidar_cli.checkpoints.reading.folder import timm_architecture
from lidar_cli.checkpoints.reading.lazy_tensor import Weight, is_tensor
from lidar_cli.checkpoints.reading.read import Contents, as_dict
from lidar_cli.checkpoints.shapes.inner import outer_layers
from lidar_cli.checkpoints.shapes.spec import (
    ASSUME_KEYS,
    BY_USER,
    PIXEL_STATS,
    USUAL,
    Assumed,
    AssumeValues,
    CheckpointDescription,
    Value,
    check_all_open,
    parse_assumptions,
    renamed,
)
from lidar_cli.checkpoints.two_sets import rule_of_choice
from lidar_cli.errors import CheckpointError, SettingsError, nearest
from lidar_cli.settings import FormatSettings
from lidar_cli.views.methods import find_recipe
from lidar_cli.views.recipes import (
    MEAN_OF_ALL,
    for_channels,
    pixel_statistics,
    statistics_text,
)

PLAIN = "plain"  # the value of --format for which no format is tried
MAX_DEPTH = 6  # levels of nested dicts that are searched below a format's dict

Match = tuple[Format, StateDict]


def check_names(format: str, branch: str) -> None:
    """Raise SettingsError for a `--format` or `--branch` that does not exist."""
    names = ["auto", PLAIN, *(entry.name for entry in FORMATS)]
    if format not in names:
        hint = f"{nearest(format, names)} (lidar inspect --formats)"
        raise SettingsError(f"--format {format}: {hint}", code="no-such-format")
    words = branch_words()
    if branch not in words and usual_branch(branch) is None:
        hint = nearest(branch, words)
        if hint.startswith("known"):  # too many words to list
            hint = (
                "expected student or teacher, or the file's word for it, such as target_encoder; "
                "weights of another name: --prefix"
            )
        raise SettingsError(f"--branch {branch}: {hint}", code="no-such-branch")


def check_prefixes(
    format: str, branch: str, prefix: str | None, projector_prefix: str | None
) -> None:
    """Raise SettingsError for `--prefix` with another option that names weights."""
    option = "--projector-prefix" if prefix is None else "--prefix"
    is_given = prefix is not None or projector_prefix is not None
    if is_given and format not in ("auto", PLAIN):
        raise SettingsError(
            f"{option} names weights by their place, --format {format} by its description; leave "
            "one of them out",
            code="prefix-and-format",
        )
    if prefix is not None and branch != "auto":
        raise SettingsError(
            f"--prefix {prefix} and --branch {branch} both name a set of weights; leave one of "
            "them out",
            code="prefix-and-branch",
        )


def branch_words() -> list[str]:
    """The usual words that `--branch` takes, then the branches of the formats."""
    branches = [branch for entry in FORMATS for branch in entry.branches]
    return list(dict.fromkeys([*OFFERED, *(w for b in branches for w in (b.name, *b.aliases))]))


def check_assumptions(assume: Sequence[str]) -> AssumeValues:
    """The parsed values of `--assume`; raises SettingsError."""
    return parse_assumptions(assume, (PLAIN, *(entry.name for entry in FORMATS)))


def detect_in(
    contents: Contents, path: Path, settings: FormatSettings, activation: str = "auto"
) -> tuple[CheckpointDescription, Modules]:
    """As `detect`, of the contents of a file or folder `path`."""
    return detect(
        path,
        as_dict(contents),
        arch=settings.arch,
        activation=activation,
        format=settings.format,
        branch=settings.branch,
        layer=outer_layers(settings.layer),
        config=contents.config,
        assume=settings.assume,
        prefix=settings.prefix,
        projector_prefix=settings.projector_prefix,
    )


def detect(
    path: Path,
    tree: Mapping[str, Any],
    *,
    arch: str | None = None,
    activation: str = "auto",
    format: str = "auto",
    branch: str = "auto",
    layer: str = "auto",
    config: Mapping[str, Any] | None = None,
    assume: Sequence[str] = (),
    prefix: str | None = None,
    projector_prefix: str | None = None,
) -> tuple[CheckpointDescription, Modules]:
    """The description of a checkpoint, and for each layer the module to build with its tensors.

    tree: the nested containers that `read_checkpoint` returns. arch: name of a timm model to build
    whatever the shapes are. format: name of the only format to try, or 'plain' for none. branch:
    a word for one, see branch_words.py. layer: the value of `--layer`, by which an auto branch is
    chosen. config: config.json of a Hugging Face folder. assume: KEY=VALUE and SYSTEM:KEY=VALUE,
    for what the weights leave open. prefix, projector_prefix: of the backbone and the projector,
    for which no format is tried.
    Raises NoWeights if the file has no weights, CheckpointError if a tensor is missing or not
    recognised, and SettingsError for an arch unknown to timm, an unknown format or branch, or an
    assumption about something that the file determines.
    """
    check_names(format, branch)
    check_prefixes(format, branch, prefix, projector_prefix)
    given = {"prefix": prefix, "projector_prefix": projector_prefix}
    selected: dict[str, Any] = {name: text for name, text in given.items() if text is not None}
    assume_values, is_auto = check_assumptions(assume), branch == "auto"
    config_arch = _timm_name(path, config) if config and arch is None else None
    system = PLAIN if selected else format
    match = match_format(path, tree, system, config)
    averages = _averages(tree)
    ema_branch = _average_branch(averages, branch)
    ema_key = averages.get(ema_branch)
    if ema_key is not None and match is not None and _has_teacher(match[0]):
        ema_key = None  # the format has it as a branch, or it is reported as unused
    raw = raw_key(tree, ema_key) if ema_key is not None else None
    if prefix is not None or (match is None and raw is None):
        ema_key = None  # `two_sets` names all sets of weights
    use_average = ema_key is not None and usual_branch(branch) == TEACHER
    if ema_key is not None and use_average:
        tree = with_average(tree, ema_key)
        match = match_format(path, tree, system, config)
        branch = "auto"
    system = match[0].name if match else PLAIN
    options = Options(
        arch or config_arch,
        *(activation, branch, layer, config, assume_values.of(system), tree),
        **selected,
    )
    try:
        description, modules = _assign(path, tree, match, options)
    except CheckpointError as error:
        second = _second_attempt(path, tree, match, options, config_arch)
        if second is None and arch is not None:
            raise _with_recognised(path, tree, match, options, error) from error
        if second is None:
            raise
        description, modules = second
    if ema_key is not None:
        used = ema_branch if use_average else None
        description = _with_averages_as_branches(description, averages, used, raw, is_auto)
    selected = {name: clean_prefix(text) or NONE for name, text in selected.items()}
    if config:  # of which the digest of the weights' file says nothing
        facts = repr([(layer, module.spec.facts) for layer, module in modules.items()])
        digest = hashlib.sha256(facts.encode()).hexdigest()[:16]
        description = replace(description, configured=digest)
    return replace(description, selected=selected), modules


def _second_attempt(
    path: Path,
    tree: Mapping[str, Any],
    match: Match | None,
    options: Options,
    config_arch: str | None,
) -> tuple[CheckpointDescription, Modules] | None:
    """The assignment without the arch of config.json, or with the one that the file records.

    config_arch: name of the timm model in config.json. None if the other attempt fails too.
    """
    recorded = None if options.arch is not None else _recorded_arch(tree)
    if config_arch is None and recorded is None:
        return None
    try:
        description, modules = _assign(path, tree, match, replace(options, arch=recorded))
    except CheckpointError:
        return None
    if config_arch is None:
        return description, modules
    # timm saves a model's name even if it was built at another depth or width.
    if not _has_names_of(config_arch, modules):
        return None
    note = f"not timm's {config_arch} that config.json names, whose tensors are others"
    return replace(description, assumptions=(*description.assumptions, note)), modules


def _recorded_arch(tree: Mapping[str, Any]) -> str | None:
    """The name of the timm model that the training scripts of timm and DeiT save; None without."""
    arguments = tree.get("args")
    names = [tree.get("arch"), arguments.get("model") if isinstance(arguments, Mapping) else None]
    for name in [name for name in names if isinstance(name, str)]:
        import timm

        if timm.is_model(name):
            return name
    return None


def _with_recognised(
    path: Path,
    tree: Mapping[str, Any],
    match: Match | None,
    options: Options,
    error: CheckpointError,
) -> CheckpointError:
    """The error of a wrong --arch, with the architecture that the shapes show."""
    try:
        description, _ = _assign(path, tree, match, replace(options, arch=None))
    except (CheckpointError, SettingsError):
        return error
    reason = str(error).removeprefix(f"{path}: ").partition("; ")[0]
    return CheckpointError(
        f"{path}: by its shapes it is {description.arch}; leave out --arch {options.arch}, whose "
        f"tensors are others ({reason.removeprefix(f'{options.arch}: ')})",
        code=error.code,
    )


def match_format(
    path: Path, tree: Mapping[str, Any], name: str = "auto", config: Mapping[str, Any] | None = None
) -> Match | None:
    """The most specific format that a file matches, and the state dict in it; None without a match.

    name: the only format to try, 'auto' for all, 'plain' for none. config: config.json of the
    folder, where there is one.
    Raises CheckpointError if two matches are equally specific, or the named format does not match.
    """
    if name == PLAIN:
        return None
    requested = [entry for entry in FORMATS if name in ("auto", entry.name)]
    containers = candidate_dicts(tree)
    matches: dict[str, Match] = {}
    states: dict[object, StateDict | None] = {}  # many formats read the same state dict
    clean = functools.cache(clean_name)  # and the same names
    for entry in requested:
        if not _has_keys(entry, tree, (config or {}) if name == "auto" else None):
            continue
        for container, root in containers:
            if not entry.containers or container in entry.containers or name != "auto":
                source = (container, entry.nested, entry.class_prefix)
                if source not in states:
                    states[source] = _state_dict(entry, container, root, clean)
                state = states[source]
                if state is not None and _has_tensors(entry, state):
                    matches.setdefault(entry.name, (entry, state))
    if name != "auto" and not matches:
        raise CheckpointError(
            f"{path}: is not {name}: expected {requested[0].why}; leave --format out",
            code="other-format",
        )
    most = max((entry.specificity for entry, _ in matches.values()), default=0)
    best = [match for match in matches.values() if match[0].specificity == most]
    if len(best) > 1:
        names = ", ".join(entry.name for entry, _ in best)
        raise CheckpointError(
            f"{path}: may be {names}; choose one of them with --format", code="ambiguous-format"
        )
    return best[0] if best else None


def _state_dict(
    format: Format, container: str, root: Mapping[str, Any], clean: Callable[[str], str]
) -> StateDict | None:
    """The tensors of a container, or of the dicts nested in it that the format lists.

    clean: `clean_name`. None if there are no tensors, or if two of them get the same name.
    """
    tensors: dict[str, Weight] = {}
    originals: dict[str, str] = {}
    others: list[str] = []
    filled: set[str] = set()  # prefixes under which tensors were found
    walked: set[int] = set()  # ids of dicts
    rename = ((format.class_prefix, ""),) if format.class_prefix else ()
    sources = [(p, prefix, _nested(root, p)) for p, prefix in format.nested or (("", ""),)]
    for at, prefix, source in sources:
        if source is None or prefix in filled:
            continue
        listed = {id(other) for _, _, other in sources if other is not source}
        seen = set(listed)  # dicts that the format lists are not walked as part of another
        for name, value in _walk(source, MAX_DEPTH if at else 0, seen):
            key = prefix + renamed(clean(name), rename)
            if not is_tensor(value):
                others.append(f"{at}.{name}".lstrip("."))
            elif key in tensors:
                return None
            else:
                filled.add(prefix)
                tensors[key] = value
                originals[key] = f"{at}.{name}".lstrip(".")
        walked |= seen - listed
    if not tensors:
        return None
    nested = bool(container) and not format.nested
    others = others if nested else []
    return StateDict(container, tensors, originals, tuple(others), frozenset(walked))


def _nested(root: Mapping[str, Any], path: str) -> Mapping[str, Any] | None:
    """The dict at a path of keys joined with dots, '' for the root; None if there is none."""
    for key in path.split(".") if path else []:
        value = root.get(key)
        if not isinstance(value, dict):
            return None
        root = value
    return root


def _walk(entries: Mapping[Any, Any], depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The entries, and those of nested dicts under names joined with dots.

    seen: ids of dicts to leave out; those that are walked are added.
    """
    seen.add(id(entries))
    for key, value in entries.items():
        if isinstance(value, dict) and depth > 0:
            if id(value) not in seen:  # a dict in a pickle can contain itself
                yield from ((f"{key}.{name}", v) for name, v in _walk(value, depth - 1, seen))
        else:
            yield str(key), value


def _has_keys(format: Format, tree: Mapping[str, Any], config: Mapping[str, Any] | None) -> bool:
    """Whether the file has the keys that the format requires, and config.json its entries.

    config: None to ignore it.
    """
    keys = all(key in tree for key in format.keys) and not any(
        k in tree for k in format.absent_keys
    )
    if config is None:
        return keys
    wanted = format.config if format.needs_config else [e for e in format.config if e[0] in config]
    return keys and all(config.get(name) == value for name, value in wanted)


def _has_tensors(format: Format, state: StateDict) -> bool:
    """Whether the names and shapes of the tensors are those that the format requires."""

    def shapes(pattern: str) -> list[tuple[int, ...]]:
        return [tuple(t.shape) for name, t in state.tensors.items() if re.match(pattern, name)]

    def square(pattern: str) -> bool:
        return all(len(shape) == 2 and shape[0] == shape[1] for shape in shapes(pattern))

    def has_axes(pattern: str, number: int) -> bool:
        return all(len(shape) == number for shape in shapes(pattern))

    return (
        fits(state.tensors, format.present, format.absent)
        and all(map(square, format.square))
        and all(has_axes(*condition) for condition in format.axes)
    )


def _assign(
    path: Path, tree: Mapping[str, Any], match: Match | None, options: Options
) -> tuple[CheckpointDescription, Modules]:
    """The description and modules by the matched format; without one, by usual names."""
    assume, activation = options.assume, options.activation
    if activation != "auto" and assume.get("activation", activation) != activation:
        raise SettingsError(
            f"--activation {activation} and --assume activation={assume['activation']} are two "
            "values of one option; give one of them",
            code="activation-twice",
        )
    if match is not None:
        state = match[1]
        description, modules = assign_by_format(path, *match, options)
    else:
        state = find_state_dict(path, tree)
        state = with_prefixes(tree, state, options)
        description, modules = assign_by_usual_names(path, state, options)
    recorded = match[0].recorded_stats if match else ""
    description = _with_recorded_stats(description, recorded, tree, options.config or {})
    unused_entries = unused_names(tree, state.dicts)
    if unused_entries:
        ignored = (*description.ignored, first_few(unused_entries, 8))
        description = replace(description, ignored=ignored)
    return _with_assumptions(path, description, modules, assume), modules


def _with_recorded_stats(
    description: CheckpointDescription,
    path: str,
    tree: Mapping[str, Any],
    config: Mapping[str, Any],
) -> CheckpointDescription:
    """The description with the pixel statistics that the file records, or timm's config.json.

    path: of the dict in the file with them, '' for none. Those of config.json may be of another
    training, and are assumed. Unchanged without any for the channels.
    """
    places = {path: _nested(tree, path) if path else None}
    places["pretrained_cfg of config.json"] = _nested(config, "pretrained_cfg")
    for place, recorded in places.items():
        parts = [(recorded or {}).get(key) for key in ("mean", "std")]
        try:
            lists = (part for part in parts if isinstance(part, list))
            stats = pixel_statistics("/".join(",".join(map(str, part)) for part in lists))
        except SettingsError:  # none, or impossible ones
            continue
        if len(stats[0]) == description.channels:
            text = statistics_text(*stats)
            if place == path:
                return replace(description, pixel_stats=text, stats_source=place)
            assumed = {**description.assumed, PIXEL_STATS: Assumed(text, place)}
            return replace(description, pixel_stats=text, assumed=assumed)
    return description


def _with_assumptions(
    path: Path, description: CheckpointDescription, modules: Modules, assume: Mapping[str, Value]
) -> CheckpointDescription:
    """The description with pixel statistics, and with its assumptions in the order of ASSUME_KEYS.

    Raises SettingsError for a value of `--assume` that the file determines.
    """
    stats, pixels = description.pixel_stats, description.assumed.get(PIXEL_STATS)
    decided: dict[str, str] = {}
    if description.stats_source:
        decided[PIXEL_STATS] = f"{description.stats_source} has {stats}"
    elif PIXEL_STATS in assume:
        stats = str(assume[PIXEL_STATS])
        pixels = Assumed(stats, BY_USER)
        if for_channels(given := pixel_statistics(stats), description.channels) is None:
            raise CheckpointError(
                f"{path}: --assume {PIXEL_STATS}={stats}: of {len(given[0])} channels, and the "
                f"{description.arch} takes {description.channels}; give one number for all, or as "
                f"many: --assume {PIXEL_STATS}={MEAN_OF_ALL}",
                code="statistics-of-channels",
            )
    elif pixels is None:
        origin = f"{description.format}'s" if description.recipe is not None else USUAL
        recipe = find_recipe(description.recipe or "auto", "auto")
        values = statistics_text(recipe.mean, recipe.std) if stats == "auto" else stats
        if description.channels != 3 and for_channels(pixel_statistics(values), 1) is None:
            stats, values, origin = MEAN_OF_ALL, MEAN_OF_ALL, "the mean of imagenet's channels"
        pixels = Assumed(values, origin)
    assumed = {**description.assumed} | ({} if pixels is None else {PIXEL_STATS: pixels})
    for module in modules.values():
        decided |= module.spec.decided
    check_all_open(assume, assumed, decided, str(path))
    ordered = {key: assumed[key] for key in ASSUME_KEYS if key in assumed}
    return replace(description, assumed=ordered, pixel_stats=stats)


def _has_teacher(format: Format) -> bool:
    return any(branch.name == "teacher" for branch in format.branches)


def _averages(tree: Mapping[str, Any]) -> dict[str, str]:
    """Branch -> key of a dict with averaged or frozen weights; by their keys if they are several.

    Of several whose keys are no words for it, the first; the others are unused.
    """
    keys = average_keys(tree)
    by_word = {key: key for key in keys if usual_branch(key) == TEACHER}
    return by_word if len(keys) > 1 and by_word else dict(zip([TEACHER], keys, strict=False))


def _average_branch(averages: Mapping[str, str], branch: str) -> str:
    """The branch of `averages` that a word names, else the first."""
    whole = [name for name, key in averages.items() if branch == key]
    part = [name for name, key in averages.items() if branch in key.split("_")]
    return next((one for one in (*whole, *part, TEACHER, *averages) if one in averages), TEACHER)


def _with_averages_as_branches(
    description: CheckpointDescription,
    averages: Mapping[str, str],
    used: str | None,
    raw: str | None,
    is_auto: bool,
) -> CheckpointDescription:
    """The description of a file that has averaged weights in addition to the raw ones.

    averages: branch -> key. used: the branch that is embedded, None for the raw weights. raw: their
    key, see `raw_key`. is_auto: whether the user named no branch.
    """
    branches, keys = (*description.branches, *averages), list(averages.values())
    ignored = tuple(n for n in description.ignored if not set(n.split(", ")) <= set(keys))
    if used is None:
        average = "its average" if len(keys) == 1 else "those"
        others_in = f"{average} in {first_few(keys)}"
        rule = rule_of_choice("the trained one", others_in, list(averages))
        notes = (*description.assumptions, *([rule] if raw is not None and is_auto else []))
        return replace(description, branches=branches, ignored=(*ignored, *keys), assumptions=notes)
    key, rest = averages[used], description.container.partition(".")[2]
    others = () if raw is None else (f"{raw or f'the weights next to {key}'} (not averaged)",)
    return replace(
        description,
        branches=branches,
        branch=used,
        container=f"{key}.{rest}" if rest else key,
        ignored=(*ignored, *(one for one in keys if one != key), *others),
    )


def _has_names_of(arch: str, modules: Modules) -> bool:
    """Whether timm's model has a tensor of every name in the backbone; the shapes may differ."""
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model(arch, num_classes=0)
    return modules["backbone"].tensors.keys() <= model.state_dict().keys()


def _timm_name(path: Path, config: Mapping[str, Any]) -> str | None:
    """The name of the timm model in config.json, None if it names none.

    Raises CheckpointError if the installed timm has no such model.
    """
    name = timm_architecture(config)
    if name is not None:
        import timm

        if not timm.is_model(name):
            raise CheckpointError(
                f"{path}: config.json names timm's {first_few([name])}, which timm "
                f"{timm.__version__} does not have; install a newer timm, or name another model "
                "with --arch",
                code="timm-lacks-model",
            )
    return name
