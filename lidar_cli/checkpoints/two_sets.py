"""Chooses between several sets of weights in a file that no format matches.

Of two backbones, one at a prefix with a word for averaged or frozen weights, such as `target_net.`
or `encoder_k.`, the other is the branch `student`, which is embedded unless `--branch` says
otherwise; the first is the branch `teacher`. Of several others, the one by a word for trained
weights (`online_encoder.`), else by a usual name, is the student. Any other number of backbones is
refused, with the `--prefix` of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lidar_cli.checkpoints.branch_words import (
    AUTO,
    AVERAGED,
    ENCODER,
    STUDENT,
    TEACHER,
    is_averaged,
    is_trained,
    usual_branch,
)
from lidar_cli.checkpoints.models.weights import first_few
from lidar_cli.errors import CheckpointError

PREFIXES = ("backbone", "encoder")  # preferred if there are several backbones


@dataclass(frozen=True)
class Choice:
    """The set of weights that is embedded."""

    prefix: str
    branch: str = ENCODER
    branches: tuple[str, ...] = (ENCODER,)
    others: tuple[str, ...] = ()  # prefixes of the other sets of weights
    assumptions: tuple[str, ...] = ()


def choose(path: Path, prefixes: Sequence[str], branch: str, none: CheckpointError) -> Choice:
    """The set of weights at one of these prefixes.

    none: the error if there is no backbone. Raises CheckpointError, for several too, and for a
    branch that is not in the file.
    """
    if not prefixes:
        raise none
    averaged = [prefix for prefix in prefixes if is_averaged(prefix)]
    trained = [prefix for prefix in prefixes if prefix not in averaged]
    if len(trained) > 1:
        usual = [p for p in trained if set(p.split(".")[:-1]) <= set(PREFIXES)]
        by_word = [p for p in trained if is_trained(p)]
        trained = next((some for some in (by_word, usual) if len(some) == 1), trained)
    if len(trained) != 1 and len(prefixes) > 1:
        raise _several(path, prefixes)
    if len(prefixes) == 1 or not averaged:
        prefix = (trained or averaged)[0]
        if branch not in (AUTO, *prefix.split(".")):
            meant = usual_branch(branch)
            if meant is None or (meant == TEACHER if trained else is_trained(branch)):
                raise _no_branch(path, branch, [ENCODER])
        return Choice(prefix)
    named = {STUDENT: trained[0], **_names(path, averaged, prefixes)}
    chosen = _named(path, named, branch)
    trained_one = f"the trained one at {named[STUDENT] or 'no prefix'}"
    rule = rule_of_choice(trained_one, first_few(averaged), list(named)[1:])
    return Choice(
        prefix=named[chosen],
        branch=chosen,
        branches=tuple(named),
        others=tuple(prefix for prefix in prefixes if prefix != named[chosen]),
        assumptions=(rule,) if branch == AUTO else (),
    )


def rule_of_choice(trained: str, others: str, branches: Sequence[str]) -> str:
    """The sentence about the set that is embedded and those that are not, with the branch of one.

    branches: of the others.
    """
    number = "two" if len(branches) == 1 else "several"
    return f"{number} sets of weights: {trained}, not {others} (--branch {branches[0]})"


def _names(path: Path, averaged: Sequence[str], prefixes: Sequence[str]) -> dict[str, str]:
    """Branch -> prefix of the averaged or frozen weights: by their own words if they are several.

    Raises CheckpointError if two have one word.
    """
    if len(averaged) == 1:
        return {TEACHER: averaged[0]}
    names = {part: p for p in averaged for part in p.split(".") if AVERAGED.fullmatch(part)}
    if len(set(names.values())) < len(averaged) or len(names) > len(averaged):
        raise _several(path, prefixes)
    return names


def _named(path: Path, named: dict[str, str], branch: str) -> str:
    """The branch that a word names: by its part of a prefix, else by what it usually names."""
    if branch == AUTO:
        return STUDENT
    by_part = [name for name, prefix in named.items() if branch in prefix.split(".")]
    for name in (*by_part[:1], branch, usual_branch(branch)):
        if name in named:
            return name
    raise _no_branch(path, branch, list(named))


def _no_branch(path: Path, branch: str, present: Sequence[str]) -> CheckpointError:
    use = "leave --branch out" if len(present) == 1 else f"use --branch {present[0]}"
    return CheckpointError(
        f"{path}: no branch {branch!r} in this checkpoint; it has {', '.join(present)}: {use}",
        code="no-branch",
    )


def _several(path: Path, prefixes: Sequence[str]) -> CheckpointError:
    shown = [prefix or "none" for prefix in prefixes]
    return CheckpointError(
        f"{path}: {len(prefixes)} backbones, under the prefixes {first_few(shown, 8)}; "
        f"expected one; choose it: --prefix {shown[0]}",
        code="several-backbones",
    )
