"""What `lidar explain` says of every setting: option, commands, default, bounds, other places."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from annotated_types import Ge, Gt, Le, Lt

from lidar_cli.settings import COMMANDS, Panel, flags


@dataclasses.dataclass(frozen=True)
class Described:
    """A setting, and the commands that have it with this default and this help."""

    field: dataclasses.Field[Any]
    hint: Any
    commands: tuple[str, ...]

    @property
    def options(self) -> list[str]:
        """Its options, of a switch first the one that its help describes."""
        options = flags(self.field)[::-1]
        if isinstance(self.field.default, bool):
            options.insert(
                0 if self.field.default else 1, f"--no-{self.field.name.replace('_', '-')}"
            )
        return options

    @property
    def names(self) -> set[str]:
        """The names that `lidar explain` takes: of the field and of its options."""
        options = self.options or [self.field.name.replace("_", "-")]
        return {option.lstrip("-") for option in options}


@cache
def described() -> tuple[Described, ...]:
    """Every setting of every command; one that differs between commands is there for each kind."""
    settings: dict[tuple[str, str, str], Described] = {}
    for command, cls in COMMANDS.items():
        hints = typing.get_type_hints(cls, include_extras=True)
        for field in dataclasses.fields(cls):
            key = (field.name, field.metadata["help"], repr(field.default))
            commands = (*(settings[key].commands if key in settings else ()), command)
            settings[key] = Described(field, hints[field.name], commands)
    return tuple(settings.values())


def names() -> list[str]:
    """The long name of every setting, as in its option."""
    return list(dict.fromkeys(one.field.name.replace("_", "-") for one in described()))


def page(name: str) -> str | None:
    """The text of the settings with this name, such as `n-samples` or `n`; None for another."""
    matches = [one for one in described() if name in one.names]
    return "\n\n".join(_entry(one) for one in matches) if matches else None


def every_setting() -> str:
    """All settings, by the sections of the commands' help and in their order."""
    parts = []
    for panel in typing.get_args(Panel):
        entries = (_entry(one) for one in described() if one.field.metadata["panel"] == panel)
        parts += [f"## {panel}", *entries]
    return "\n\n".join(parts)


def _entry(one: Described) -> str:
    """The help text, then where and how it is set."""
    field, name = one.field, one.field.name
    title = ", ".join(f"`{option}`" for option in one.options) or f"`{name}`, no option"
    is_table = any(typing.get_origin(part) is dict for part in typing.get_args(one.hint))
    places = [*([] if is_table else [f"`LIDAR_{name.upper()}`"]), f"TOML `{name}`"]
    facts = [f"of {', '.join(one.commands)}", *_default(field), *_values(one.hint)]
    return f"**{title}**: {field.metadata['help']}\n\n- " + "; ".join([*facts, ", ".join(places)])


def _default(field: dataclasses.Field[Any]) -> Iterator[str]:
    default = field.default
    if isinstance(default, bool):
        yield f"default off{f' (`{field.name} = true`)' if default else ''}"
    elif default not in (None, ()):
        yield f"default `{default}`"


def _values(hint: Any) -> Iterable[str]:
    """The choices or the bounds of a type, in words; nothing for a plain text, path or switch."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return [f"one of {', '.join(map(str, arguments))}"]
    if typing.get_origin(hint) is typing.Annotated:
        return [_bounds(arguments[1:])]
    return [text for argument in arguments for text in _values(argument)]


def _bounds(limits: Iterable[Any]) -> str:
    texts = []
    for limit in limits:
        match limit:
            case Ge(least):
                texts.append(f"at least {least:,}")
            case Gt(least):
                texts.append(f"above {least:,}")
            case Le(most):
                texts.append(f"at most {most:,}")
            case Lt(most):
                texts.append(f"below {most:,}")
    return " and ".join(texts)
