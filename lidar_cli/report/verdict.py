"""What a ranking says in sentences: the answer, why groups are apart, and cautions with cures."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lidar_cli.core.metrics import METRICS, Metric
from lidar_cli.features.schema import format_size
from lidar_cli.ranking import joining
from lidar_cli.ranking.group_metrics import GROUP_METRICS, ORDERS, SECOND_OPINION, second_opinion
from lidar_cli.ranking.joining import SETTING_OF_CONSTANT, WIDTHS, Joined, Member, causes, join
from lidar_cli.ranking.joint_resamples import are_tied
from lidar_cli.ranking.order import (
    Group,
    Row,
    comparable_groups,
    mean_views,
    q_text,
    unranked_row,
)
from lidar_cli.ranking.trust import much_noise
from lidar_cli.report.text import (
    counted,
    format_duration,
    format_percent,
    format_signed,
    format_with_interval,
    joined_by_and,
)
from lidar_cli.scoring.compute import (
    DEGREES,
    MUCH_RIDGE,
    RIDGE_WARNING,
    Score,
)
from lidar_cli.scoring.convergence import round_up
from lidar_cli.settings import CompareSettings, RankSettings, flags

if TYPE_CHECKING:  # these load timm, which `lidar score` does not need
    from lidar_cli.ranking.oracle import Oracle
    from lidar_cli.ranking.session import Ranking

NAMED = 2  # tied checkpoints that a sentence names
LEAST_DELTA = 1e-10  # below it, rounding decides
# Hardly any direction has less view noise than this share of the mean of all.
SPREAD = 0.01
RETRIEVAL_VIEWS = 10  # from which on the study advises retrieval
LABELS = 5  # images a class that the advice to use labels names
LABELLED, LABELLED_IMAGES = "LABELLED", 100  # a folder to be made, and its images
LONGEST_COMMAND = 1000  # characters; of a longer one only the options that change are printed
FOR_PROGRAMS = ("--json", "--csv", "--markdown", "--quiet")  # which print no cautions
# For the column after the metric that orders: the first of these that has a value.
COMPANIONS = (SECOND_OPINION, "lidar", "lidar_corrected", "rankme", "pillai")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


# The answer


def verdict(ranking: Ranking, oracle: Oracle | None = None) -> str:
    """The answer in one to three sentences: the best checkpoint, or why there is no single one."""
    if len(ranking.groups) > 1:
        cure = common_ground(ranking)
        return f"{apart(ranking.groups)} {cure.text}{f' {cure.command}' if cure.command else ''}"
    return group_verdict(ranking.groups[0], ranking, oracle)


def group_verdict(group: Group, ranking: Ranking, oracle: Oracle | None = None) -> str:
    """Which checkpoint of a group is best, how clearly, and whether that is to be believed.

    With accuracies also what the choice costs.
    """
    answer = _best(group, ranking.by, ranking.name)
    costs = _accuracy(group.rows[0], group, ranking, oracle)
    contradiction = _contradiction(group, ranking, oracle)
    trust = ranking.trust_of(group)
    doubt = [trust.sentence] if trust and not trust.believe else []
    remarks = [*contradiction, *_disagreement(group, ranking), *_decided_by_delta(group, ranking)]
    return " ".join([answer, *costs, *remarks, *doubt])


def scores_verdict(scores: Sequence[Score]) -> str | None:
    """The answer of several feature files by LiDAR, None where it is unknown what they hold."""
    levels = [score.confidence.level for score in scores if score.confidence]
    by, level = METRICS["lidar"], next(iter(levels), RankSettings.confidence)
    if any("samples_sha256" not in score.provenance for score in scores):
        return None
    rows = [unranked_row(Path(score.file), (), score, by) for score in scores]
    groups = comparable_groups(rows, by, level)
    if len(groups) == 1:
        return _best(groups[0], by, str, cure="" if levels else ": add --confidence 0.95")
    is_of_one_layer = len({score.layer for score in scores}) == 1
    return apart(groups, "files") if is_of_one_layer else None


def _best(group: Group, by: Metric, name_of: Callable[[str], str], cure: str = "") -> str:
    """The best row and the next one. cure: what would say how much of the difference is chance."""
    rows = [row for row in group.rows if row.value is not None]
    if not rows:
        return f"None of these has {by.name}: {group.rows[0].reason}."
    first = rows[0]
    name, value = name_of(first.path), value_text(first, by)
    if len(rows) == 1:
        return f"{name} has {by.name} {value}; there is no other to compare it with."
    direction = "" if by.direction == "higher" else f" ({by.direction} is better)"
    tied = [row for row in rows if row.path in first.tied_with]
    if tied:
        names = _listed([name_of(row.path) for row in tied])
        equal = all(row.value == first.value for row in tied)
        how = "the same as" if equal else "but tied with"
        return f"{name} is first by {by.name}{direction}: {value}, {how} {names}."
    second = rows[1]
    after = f"Next is {name_of(second.path)}"
    answer = f"{name} is best by {by.name}{direction}: {value}."
    if first.interval.se is None or second.interval.se is None:
        doubt = f"how much of that is chance is unknown{cure}"
        return f"{answer} {after}: {value_text(second, by)}; {doubt}."
    return f"{answer} {after}, clearly {'below' if by.direction == 'higher' else 'behind'}."


def _accuracy(first: Row, group: Group, ranking: Ranking, oracle: Oracle | None) -> Iterator[str]:
    """What choosing the first checkpoint costs in accuracy."""
    shares = oracle.accuracies if oracle else {}
    of_group = {row.path: shares[row.path] for row in group.rows if row.path in shares}
    if first.value is None or first.path not in of_group or oracle is None:
        return
    best = max(of_group, key=lambda path: of_group[path])
    answer = f"Its {_kind_of_accuracy(oracle)} is {format_percent(of_group[first.path])} %"
    lost = of_group[best] - of_group[first.path]
    if len(of_group) > 1 and len(set(of_group.values())) == 1:
        yield f"{answer}, as of all {len(of_group)}: these labels do not say which is best."
    elif lost == 0:
        yield f"{answer}, the best of {len(of_group)}."
    else:
        points = f"{100 * lost:.1f} points below {ranking.name(best)}"
        # Two accuracies differ by this much at most, 19 times of 20, if they are equal in truth and
        # at worst of independent images.
        luck = 1.96 * 2**0.5 * (oracle.standard_error or 0.0)
        doubt = f"; up to {100 * luck:.0f} points may be chance" if lost < luck else ""
        yield f"{answer}, {points}, the best of {len(of_group)}{doubt}."


def _kind_of_accuracy(oracle: Oracle) -> str:
    if oracle.few_labels is not None:
        return f"accuracy with {counted(oracle.few_labels.per_class, 'label')} a class"
    return "probe accuracy" if oracle.source == "probe" else "accuracy"


def _contradiction(group: Group, ranking: Ranking, oracle: Oracle | None) -> Iterator[str]:
    """That accuracies do not order the checkpoints alike: a negative rank correlation."""
    pairs = zip(ranking.groups, oracle.comparisons if oracle else (), strict=False)
    correlations = next((its.correlations for one, its in pairs if one is group), ())
    one = next((one for one in correlations if one.metric == ranking.by.name), None)
    if oracle is None or one is None or one.spearman is None or one.spearman >= 0:
        return
    ends = " .. ".join(map(format_signed, one.spearman_interval or ()))
    value = f"{format_signed(one.spearman)}{f' ({ends})' if ends else ''}"
    is_sure = one.spearman_interval is not None and one.spearman_interval[1] < 0
    verb = "contradict" if is_sure else "do not support"
    yield (
        f"The labels {verb} this order: the rank correlation of {one.metric} with "
        f"{_kind_of_accuracy(oracle)} is {value} over {one.count} checkpoints."
    )


def _disagreement(group: Group, ranking: Ranking) -> Iterator[str]:
    choice = second_choice(group, ranking)
    if choice is not None and choice.theirs is not None:
        names = ranking.name(group.rows[0].path), ranking.name(choice.theirs)
        yield (
            f"{ranking.by.name} and {choice.metric} choose different checkpoints: "
            f"compare {names[0]} with {names[1]}."
        )


def _decided_by_delta(group: Group, ranking: Ranking) -> Iterator[str]:
    if ranking.by.reads == "lda" and any(_much_delta(group, ranking)):
        yield (
            f"But delta = {group.common['delta']:g} outweighs the variation between views here, "
            "and another delta may order otherwise."
        )


class SecondChoice(NamedTuple):
    """What the second opinion selects in a group.

    first: paths of the checkpoints that share its best value. theirs: the path of one of them, if
    it differs from what is selected by the metric that orders, by either metric.
    """

    metric: str
    first: tuple[str, ...]
    theirs: str | None


def second_choice(group: Group, ranking: Ranking) -> SecondChoice | None:
    """The selection of the second opinion, None where it has no value or orders already."""
    name = second_opinion(ranking.by)
    ours, first = group.rows[0], best_by(name, group.rows)
    if len(group.rows) < 2 or not first or ours.value is None:
        return None
    paths = tuple(row.path for row in first)
    if not {ours.path, *ours.tied_with}.isdisjoint(paths) or ours.score.value(name) is None:
        return SecondChoice(name, paths, None)
    scores = [row.score for row in group.rows]
    pair = 0, group.rows.index(first[0])
    is_tied = are_tied(ORDERS[name], scores, pair, ranking.level)
    return SecondChoice(name, paths, None if is_tied else first[0].path)


def value_text(row: Row, by: Metric) -> str:
    """The value that orders, with its interval."""
    return format_with_interval(by.name, row.value, row.interval)


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and 3 others`."""
    shown, more = names[:NAMED], len(names) - NAMED
    if more > 0:
        return f"{', '.join(shown)} and {counted(more, 'other')}"
    return " and ".join(shown)


def count_ties(group: Group) -> int:
    """Pairs of checkpoints that are tied."""
    return sum(len(row.tied_with) for row in group.rows) // 2


# Groups


class Advice(NamedTuple):
    """A sentence, the command that follows from it, and what the command takes.

    changes: the settings that the command changes, if the same command can change others too.
    """

    text: str
    command: str = ""
    cost: str = ""
    changes: Mapping[str, Any] | None = None


def differing(groups: Sequence[Group]) -> list[str]:
    """Names of the constants in which groups differ."""
    return joining.differing([group.common for group in groups])


def apart(groups: Sequence[Group], members: str = "checkpoints") -> str:
    """Why groups cannot be compared, in a sentence."""
    reasons = "; ".join(_difference(name, groups) for name in causes(differing(groups)))
    return f"The {members} form {_number(len(groups))} groups that cannot be compared: {reasons}."


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def _difference(constant: str, groups: Sequence[Group]) -> str:
    if constant == "samples":
        return "they saw different images"
    values = list(dict.fromkeys(constant_text(constant, group.common) for group in groups))
    if constant == "d":
        layers = {group.common["layer"] for group in groups}
        what = f"the {layers.pop()} is" if len(layers) == 1 else "the embeddings are"
        values[0] += " wide"
    else:
        verb = "are" if constant in ("views", "pixel statistics") else "is"
        what = f"{'' if constant in ('n', 'q') else 'the '}{constant} {verb}"
    if len(values) == 2:
        one, other = ("one", "the other") if len(groups) == 2 else ("some", "others")
        return f"{what} {values[0]} in {one} and {values[1]} in {other}"
    return f"{what} {joined_by_and(values)}"


def constant_text(constant: str, common: dict[str, Any]) -> str:
    """A constant of a group; of views the name of their recipe."""
    value = common[constant]
    return str(value["name"]) if constant == "views" and value else str(value)


def common_ground(ranking: Ranking) -> Advice:
    """The command that ranks all groups together, or as many as possible, or why none can."""
    groups, checkpoints = ranking.groups, ranking.checkpoints
    fixed = [group for group in groups if any(row.path not in checkpoints for row in group.rows)]
    if len(fixed) > 1:
        names = [ranking.name(group.rows[0].path) for group in fixed]
        if any(group.common["samples"] is None for group in fixed):
            return Advice(
                f"{_listed(names)} are files of embeddings, and some hold no ids: if the samples "
                "are the same in the same order, name them with --ids."
            )
        return Advice(
            f"{_listed(names)} are feature files, which stay as they are: embed their checkpoints "
            "again with equal settings, or rank them in separate folders."
        )
    joined = join(_members(ranking))
    if not joined.settings:
        if "d" in joined.apart:
            return Advice(f"{_widths(ranking, 'them')} Compare within each group.")
        other = next((name for name in joined.apart if name not in WIDTHS), "layer")
        return Advice(f"No option makes the {other} equal: rank the groups separately.")
    target = (fixed or groups)[0].common
    constants = {setting: name for name, setting in SETTING_OF_CONSTANT.items()}
    changes = {one: target[constants[one]] for one in joined.settings if one in constants}
    if "views" in changes:
        changes["views"] = _recipe(groups, fixed)
    if "layer" in joined.settings:
        changes["layer"] = joined.layer
    command = ranking_command(ranking, **changes)
    if joined.groups == 1:
        return Advice("To rank all by what they share:", command)
    others = joined_by_and([name for name in joined.apart if name != "d"])
    why = f"No option makes the {others} equal." if others else _widths(ranking, "the widths")
    fewest = f"{_number(joined.groups)} groups, the fewest"
    return Advice(f"{why} {one_value_of(joined)} leaves {fewest}:", command)


def _members(ranking: Ranking) -> list[Member]:
    widths = {path: one.description.widths for path, one in ranking.checkpoints.items()}
    return [
        Member(group.common, widths.get(row.path)) for group in ranking.groups for row in group.rows
    ]


def one_value_of(joined: Joined) -> str:
    """`One value of --views and --layer`."""
    fields = {one.name: one for one in dataclasses.fields(RankSettings)}
    options = [flags(fields[setting])[0] for setting in joined.settings]
    return f"One value of {joined_by_and(options)}"


def _backbones(ranking: Ranking) -> set[int | None]:
    return {one.description.widths.get("backbone") for one in ranking.checkpoints.values()}


def _widths(ranking: Ranking, what: str) -> str:
    """Why no option makes the widths equal."""
    widths = sorted(width for width in _backbones(ranking) if width is not None)
    which = (
        f": the backbones are {joined_by_and([*map(str, widths)])} wide" if len(widths) > 1 else ""
    )
    return (
        f"No option makes {what} equal{which}, and the metrics count directions, of which a wider "
        "layer has more."
    )


def _recipe(groups: Sequence[Group], fixed: Sequence[Group]) -> str:
    """The recipe of views for all groups: of the feature files, else one that any model takes."""
    name = str((fixed or groups)[0].common["views"]["name"])
    masked = any(group.common["views"].get("masks") for group in groups)
    return "simclr" if masked and not fixed else name.removesuffix(" (changed)")


# Commands


def ranking_command(ranking: Ranking, **changes: object) -> str:
    """The command of this ranking with some settings changed; it replaces the page, if any."""
    words = [
        word for word in ranking.command or ("rank", ranking.directory) if word not in FOR_PROGRAMS
    ]
    replaces = has_option(words, "--report") and not has_option(words, "--overwrite")
    return command_with(words, changes, "--overwrite" if replaces else "")


def command_with(words: Sequence[str], changes: dict[str, object], more: str = "") -> str:
    """`lidar` and these words, with new values of some settings of `lidar rank`, and `more`."""
    names = {one.name: flags(one) for one in dataclasses.fields(RankSettings)}
    replaced = [flag for name in changes for flag in names[name]]
    remaining, is_value = [], False
    for word in words:
        flag = next((one for one in replaced if _gives(word, one)), None)
        if not is_value and flag is None:
            remaining.append(word)
        is_value = not is_value and flag == word
    added = [text for name, value in changes.items() for text in (names[name][0], str(value))]
    end = [*added, *more.split()]
    text = shlex.join(["lidar", *remaining, *end])
    return text if len(text) <= LONGEST_COMMAND else f"lidar {words[0]} ... {shlex.join(end)}"


def comparison_command(ranking: Ranking, first: str, second: str) -> str:
    """`lidar compare` of two rows, with those options of the ranking that it takes too."""
    words = [word for word in ranking.command[1:] if word not in FOR_PROGRAMS]
    options: list[str] = []
    for one in dataclasses.fields(CompareSettings):
        is_flag = isinstance(one.default, bool)
        for at, word in enumerate(words):
            flag = next((flag for flag in flags(one) if _gives(word, flag)), None)
            if flag is not None:
                options += words[at : at + 1 + (flag == word and not is_flag)]
    return shlex.join(["lidar", "compare", first, second, *options])


def has_option(words: Sequence[str], flag: str) -> bool:
    """Whether the words of a command line give an option."""
    return any(_gives(word, flag) for word in words)


def _gives(word: str, flag: str) -> bool:
    """Whether a word is an option, as `-n`, `-n100`, `--by` or `--by=rankme`."""
    return word == flag or word.startswith(f"{flag}=" if flag.startswith("--") else flag)


# Cautions


def cautions(ranking: Ranking) -> list[Advice]:
    """What to be careful of, the most important first; each with the command that cures it.

    Of several groups only the first is considered, and only if it has several checkpoints.
    """
    checks: tuple[Callable[[Group, Ranking], Iterable[Advice]], ...] = (
        _collapsed,
        _labels_instead,
        _untrained,
        _no_intervals,
        _few_views,
        _much_delta,
        _noise,
        _few_degrees,
        _many_ties,
        _delta,
    )
    group = ranking.groups[0]
    if len(group.rows) == 1 and len(ranking.groups) > 1:
        return []
    return [advice for check in checks for advice in check(group, ranking)]


def with_one_command(shown: Sequence[Advice], ranking: Ranking) -> list[tuple[str, Advice]]:
    """Each caution with its label; several commands become one, to try, which comes last.

    It has the larger n and q of those that two cautions advise. A folder of labelled images has no
    more than it has.
    """
    joined = [one for one in shown if one.changes]
    if any("data" in one.changes for one in joined if one.changes):
        joined = [
            one
            for one in joined
            if one.changes and ("data" in one.changes or "n_samples" not in one.changes)
        ]
    if len(joined) < 2:
        return [("caution", one) for one in shown]
    changes: dict[str, Any] = {}
    for one in joined:
        for name, value in (one.changes or {}).items():
            changes[name] = max(value, changes.get(name, value))
    takes = ""
    if "oracle" not in changes:
        n, q = changes.get("n_samples"), changes.get("n_views")
        takes = cost(ranking, ranking.groups[0], n, q)
    lines = [("caution", Advice(one.text) if one in joined else one) for one in shown]
    return [*lines, ("try", Advice("", ranking_command(ranking, **changes), takes))]


def _labels_instead(group: Group, ranking: Ranking) -> Iterator[Advice]:
    """What to do where no metric is to be believed, unless labels are in use already."""
    trust = ranking.trust_of(group)
    if trust is None or trust.believe or has_option(ranking.command, "--oracle"):
        return
    probe: dict[str, object] = {"oracle": "probe", "labels_per_class": LABELS}
    if ranking.is_of_arrays:
        yield Advice(
            "where no metric is to be believed, train linear probes of your own on labelled "
            "samples, and give their accuracies in a CSV file.",
            ranking_command(ranking, oracle="FILE"),
        )
    elif ranking.has_labels:
        text = (
            "where no metric is to be believed, see which is best by "
            f"{LABELS} labelled images a class."
        )
        yield Advice(text, ranking_command(ranking, **probe), changes=probe)
    else:
        text = (
            f"where no metric is to be believed, label a hundred images, in a folder a class below "
            f"{LABELLED}, and see which is best by these labels."
        )
        more = {"data": LABELLED, "n_samples": LABELLED_IMAGES, **probe}
        yield Advice(text, ranking_command(ranking, **more), changes=more)


def _collapsed(group: Group, ranking: Ranking) -> Iterator[Advice]:
    """Constant embeddings, unless all of them are below all others."""
    rows = [row for row in group.rows if row.score.is_collapsed]
    first = group.rows[: len(group.rows) - len(rows)]
    if rows and (not first or any(row.score.is_collapsed for row in first)):
        names = f": {_listed([ranking.name(row.path) for row in rows])}"
        verb = "is" if len(rows) == 1 else "are"
        yield Advice(
            f"{_of(len(rows), group, 'embedding')} {verb} constant or nearly so "
            f"(normalized_std near 0){names if len(group.rows) > 1 else ''}; other metrics measure "
            "what little is left.",
            ranking_command(ranking, by="normalized_std")
            if len(group.rows) > 1 and ranking.by.name != "normalized_std"
            else "",
        )


def _untrained(group: Group, ranking: Ranking) -> Iterator[Advice]:
    from lidar_cli.report.baseline import cautions_of  # loads timm, which `score` does not need

    return (Advice(f"{text}.") for text in cautions_of(group, ranking))


def _no_intervals(group: Group, ranking: Ranking) -> Iterator[Advice]:
    rows = [row for row in group.rows if row.value is not None]
    n, d = group.common["n"], group.common["d"]
    needed = round_up(max(ranking.by.interval_from, 2) * d + 1)
    all_without = rows and all(row.interval.se is None for row in rows)
    if ranking.by.has_interval and all_without and n < needed:
        text = f"{n} images are too few for intervals at d = {d}: which differences are chance"
        yield _more_images(f"{text} is unknown.", needed, group, ranking)


def _more_images(text: str, n: int, group: Group, ranking: Ranking) -> Advice:
    """Advice of a larger n, which is no command if the data do not hold so many images."""
    if ranking.images is not None and ranking.images < n:
        return Advice(f"{text} It takes {n} images, and these data hold {ranking.images}.")
    return _embedded_with(text, group, ranking, n=n)


def _embedded_with(
    text: str, group: Group, ranking: Ranking, n: int | None = None, q: int | None = None
) -> Advice:
    """Advice of another n or q: a command, except for files of embeddings.

    Where the recipe or the data decide on the number of views, there is none to advise.
    """
    views = group.common["views"] or {}
    if q and (views.get("quarter_turns") or group.common.get("numbers of views")):
        return Advice(text)
    if ranking.is_of_arrays:
        return Advice(f"{text} It takes embeddings of {f'n = {n}' if n else f'q = {q}'}.")
    others = [row for row in group.rows if row.path not in ranking.checkpoints]
    if any(Path(row.path) == Path(row.score.file) for row in others):
        option = f"-n {n}" if n else f"-q {q}"
        return Advice(f"{text} Extract the feature files again with {option}.")
    changes = {"n_samples": n} if n else {"n_views": q}
    return Advice(text, ranking_command(ranking, **changes), cost(ranking, group, n, q), changes)


def _few_views(group: Group, ranking: Ranking) -> Iterator[Advice]:
    """Retrieval has a negative rank correlation in a group of the study, at few views."""
    if ranking.by.name == "retrieval" and mean_views(group.common) < RETRIEVAL_VIEWS:
        text = (
            f"retrieval is computed at q = {q_text(group.common)}: our study advises it from q = "
            f"{RETRIEVAL_VIEWS} on, where it orders no group the wrong way round."
        )
        yield _embedded_with(text, group, ranking, q=RETRIEVAL_VIEWS)


def _much_delta(group: Group, ranking: Ranking) -> Iterator[Advice]:
    """Delta decides what counts as noise in most embeddings."""
    if 2 * sum(_ridge(row) > MUCH_RIDGE for row in group.rows) > len(group.rows):
        yield from _smaller_delta(group, ranking)


def _delta(group: Group, ranking: Ranking) -> Iterator[Advice]:
    """Delta has some part in the values."""
    if not any(_much_delta(group, ranking)):
        yield from _smaller_delta(group, ranking)


def _smaller_delta(group: Group, ranking: Ranking) -> Iterator[Advice]:
    shares = [share for row in group.rows if (share := _ridge(row)) > RIDGE_WARNING]
    if not shares or ranking.by.reads not in ("lda", "noise", "edge", "signal"):
        return
    n, q, d = group.common["n"], mean_views(group.common), group.common["d"]
    largest, delta = min(max(shares), 1 - 1e-9), group.common["delta"]
    negligible = 0.01 * delta * (1 - largest) / largest
    smaller = max(SPREAD * negligible, LEAST_DELTA)
    if n * (q - 1) < d:  # directions without noise need delta, whatever it is
        return
    if negligible < LEAST_DELTA or smaller >= delta:
        return
    changes = {"delta": f"{10.0 ** math.floor(math.log10(smaller)):g}"}
    yield Advice(
        f"delta = {delta:g} is large for the scale of "
        f"{_of(len(shares), group, 'embedding')}: {ranking.by.name} depends on it there, and so "
        "does what counts as view noise.",
        ranking_command(ranking, **changes),
        changes=changes,
    )


def _ridge(row: Row) -> float:
    return row.score.ridge_share or 0.0


def _noise(group: Group, ranking: Ranking) -> Iterator[Advice]:
    """Of the rows where neither delta nor a constant embedding explains the noise."""
    noise = much_noise(group, ranking.by)
    if noise is None:
        return
    share = "more than half" if noise.typical < 0.75 else "most"
    counted_in = _of(noise.checkpoints, group, "checkpoint")
    text = (
        f"{share} of what lidar counts in {counted_in} is view noise (q = {q_text(group.common)})."
    )
    if noise.views is None:
        yield Advice(f"{text} More views of each sample reduce it.")
    else:
        yield _embedded_with(text, group, ranking, q=noise.views)


def _few_degrees(group: Group, ranking: Ranking) -> Iterator[Advice]:
    n, q, d = group.common["n"], mean_views(group.common), group.common["d"]
    if q > 1 and n * (q - 1) < DEGREES * d and ranking.by.reads == "lda":
        text = (
            f"{n} images with {q:.4g} views each determine the variation between views of an image "
            f"poorly at d = {d}."
        )
        yield _embedded_with(text, group, ranking, q=math.ceil(1 + DEGREES * d / n))


def _many_ties(group: Group, ranking: Ranking) -> Iterator[Advice]:
    """A single best would need more images."""
    first = group.rows[0]
    if first.interval.se is None or not first.tied_with or ranking.by.name in GROUP_METRICS:
        return
    n = group.common["n"]
    more = 4 * n if ranking.images is None else min(4 * n, ranking.images)
    if more > n:
        text = (
            f"{ranking.by.name} cannot separate {len(first.tied_with) + 1} checkpoints: "
            f"intervals are {'half' if more == 4 * n else f'{(n / more) ** 0.5:.0%}'} as wide with "
            f"{more} images."
        )
        yield _embedded_with(text, group, ranking, n=more)


def _of(count: int, group: Group, noun: str) -> str:
    """`2 of 3 checkpoints`; `the checkpoint` if there is one."""
    rows = len(group.rows)
    return f"the {noun}" if rows == 1 else f"{count} of {rows} {noun}s"


def companions(group: Group, by: Metric, count: int = 1) -> list[str]:
    """The metrics that follow the one that orders, first the second opinion; then others.

    A metric of the group says nothing about one checkpoint. Those without any value come last.
    """
    names = [name for name in COMPANIONS if name != by.name]
    others = [name for name in METRICS if name not in (*names, by.name)]
    usable = [
        name
        for name in (*names, *others)
        if any(row.score.value(name) is not None for row in group.rows)
        and (len(group.rows) > 1 or name not in GROUP_METRICS)
    ]
    return [*usable, *names][:count]


def best_by(name: str, rows: Iterable[Row]) -> list[Row]:
    """The rows that have the best value of a metric; none if no row has a value."""
    keys = {
        row.path: ORDERS[name].sort_key(value)
        for row in rows
        if (value := row.score.value(name)) is not None
    }
    best = min(keys.values(), default=None)
    return [row for row in rows if keys.get(row.path) == best is not None]


# Cost


def cost(ranking: Ranking, group: Group, n: int | None = None, q: int | None = None) -> str:
    """Time and disk of the same ranking at another n or q, from what this run measured.

    At a larger n the stored samples stay, at another q all are embedded again.
    """
    if n is None and q is None:
        return ""
    before, views = group.common["n"], group.common["q"] + 1
    samples = n or before
    parts = []
    count = sum(len(one.rows) for one in ranking.groups)
    if ranking.embedded and before:
        share = samples * (q + 1) / (before * views) if q else (samples - before) / before
        seconds = share * count * ranking.seconds / ranking.embedded
        parts.append(f"about {format_duration(seconds)}")
    files = [Path(row.score.file) for one in ranking.groups for row in one.rows]
    sizes = [file.stat().st_size for file in files if file.suffix == ".h5" and file.is_file()]
    if sizes and before:
        share = samples / before * ((q + 1) / views if q else 1)
        parts.append(f"{format_size(int(share * sum(sizes)))} on the disk")
    return ", ".join(parts)
