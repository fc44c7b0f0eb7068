"""Settings as keywords of functions: the same names, defaults and checks as on the command line."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lidar_cli.configuration import S, from_keywords
from lidar_cli.errors import SettingsError
from lidar_cli.settings import FollowSettings, RankSettings, flags

F = TypeVar("F", bound=Callable[..., Any])
# Settings whose result is printed step by step, or is no ranking.
OF_THE_SHELL = {
    *(field.name for field in dataclasses.fields(FollowSettings)),
    *("race", "race_budget", "dry_run"),
}
PLACE = "        **settings: "  # the line of a docstring that `with_keywords` replaces


def with_keywords(cls: type) -> Callable[[F], F]:
    """List the settings of a class in the signature and the docstring of a function."""
    fields = [field for field in dataclasses.fields(cls) if field.name not in OF_THE_SHELL]
    lines = [line for field in fields for line in _described(field)]

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        given = [one for one in signature.parameters.values() if one.kind != one.VAR_KEYWORD]
        keywords = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=field.type,
            )
            for field in fields
        ]
        function.__signature__ = signature.replace(parameters=[*given, *keywords])  # type: ignore[attr-defined]
        before, _, after = (function.__doc__ or "").partition(PLACE)
        function.__doc__ = "\n".join([before.rstrip(), *lines, after.partition("\n")[2]])
        return function

    return decorate


def _described(field: dataclasses.Field[Any]) -> list[str]:
    text = f"{field.name}: {field.metadata['help']}"
    return textwrap.wrap(
        text, 96, initial_indent=" " * 8, subsequent_indent=" " * 12, break_on_hyphens=False
    )


def settings_of(cls: type[S], keywords: Mapping[str, Any]) -> S:
    """The settings that keywords name. Raises SettingsError for an unknown one or a wrong value."""
    for name in keywords:
        if cls is RankSettings and name in OF_THE_SHELL:
            flag = f"--{name.replace('_', '-')}"
            message = f"{name}: of the command alone; in a shell:  lidar rank FOLDER {flag}"
            raise SettingsError(message, code="shell-only")
    return from_keywords(cls, keywords)


def command_words(
    command: str, paths: list[str], cls: type, keywords: Mapping[str, Any]
) -> tuple[str, ...]:
    """The words of the command line, after `lidar`, that does the same."""
    words = [command, *paths]
    for field in dataclasses.fields(cls):
        value, names = keywords.get(field.name), flags(field)
        if value is None or not names:
            continue
        if isinstance(value, bool):
            words.append(names[-1] if value else f"--no-{names[-1][2:]}")
        else:
            repeated = field.default == () and isinstance(value, (list, tuple))
            joined = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            for one in value if repeated else [joined]:
                words += [names[0], str(one)]
    return tuple(words)
