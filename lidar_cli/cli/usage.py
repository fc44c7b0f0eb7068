"""What to type instead: a wrong option, argument or command as a SettingsError in our words."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

import typer

from lidar_cli.cli.help import examples
from lidar_cli.errors import SettingsError, shortened

SYNONYMS = {"--metric": "--by", "--metrics": "--by", "--order-by": "--by", "--sort": "--by"}
# Typer includes click under another name from version 0.26 on.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def usage_error(error: Any) -> SettingsError:
    """The error of the parser, with the next command to type."""
    kind, context = type(error).__name__, error.ctx
    if kind == "NoSuchOption":
        return _no_such_option(context, error.option_name)
    if kind == "BadOptionUsage" and "requires" in error.message:
        parameter = _parameter(context, error.option_name)
        return _value_error(context, error.option_name, parameter, "")
    for name, parameter, value in _words_as_numbers(context):
        return _value_error(context, name, parameter, f", and {shortened(value)!r} is none")
    if kind == "MissingParameter":
        message = f"{context.command_path} needs {error.param.metavar or error.param.name}"
        return SettingsError(f"{message}; for example:  {_example(context)}", code="no-argument")
    path = context.command_path if context is not None else "lidar"
    message = error.format_message().rstrip(".")
    message = f"{path}: {message[0].lower()}{message[1:]}; see {path} --help"
    return SettingsError(message, code="usage")


def _no_such_option(context: Any, name: str) -> SettingsError:
    options = [option for parameter in context.command.params for option in _names(parameter)]
    bare = {option.lstrip("-"): option for option in options}
    close = get_close_matches(name.lstrip("-"), bare, n=1, cutoff=0.6)
    others = [
        f"lidar {command.name}"
        for command in context.find_root().command.commands.values()
        if any(name in _names(parameter) for parameter in command.params)
    ]
    hint = f"see {context.command_path} --help"
    if name in SYNONYMS and SYNONYMS[name] in bare.values():
        hint = f"did you mean {SYNONYMS[name]}?"
    elif others:
        hint = f"it belongs to {', '.join(others)}; {hint}"
    elif close:
        hint = f"did you mean {bare[close[0]]}?"
    message = f"{context.command_path}: no option {shortened(name)}; {hint}"
    return SettingsError(message, code="no-such-option")


def _value_error(context: Any, name: str, parameter: Any, fault: str) -> SettingsError:
    """An option without a value, or with a word where it takes a number."""
    value = parameter.metavar or "a value"
    kinds = {"N": "a number", "K": "a number", "SECONDS": "a number of seconds"}
    example = f"{name} {parameter.show_default or value}"
    message = f"{name} takes {kinds.get(value, value)}{fault}: {example}"
    if name == "-q" and any("--quiet" in _names(other) for other in context.command.params):
        message += " for that many views of each image; for paths alone --quiet"
    else:
        message += f" ({context.command_path} --help)"
    return SettingsError(message, code="no-value")


def _words_as_numbers(context: Any) -> Iterator[tuple[str, Any, str]]:
    """Options that took the next word of the command, such as a path, for their number."""
    for parameter in context.command.params if context is not None else ():
        value = context.params.get(parameter.name)
        if parameter.metavar in ("N", "K", "SECONDS") and isinstance(value, str):
            try:
                float(value)
            except ValueError:
                yield _names(parameter)[0], parameter, value


def _parameter(context: Any, name: str) -> Any:
    return next(one for one in context.command.params if name in _names(one))


def _names(parameter: Any) -> list[str]:
    """The names of an option; none of an argument."""
    if parameter.param_type_name != "option":
        return []
    return [*parameter.opts, *parameter.secondary_opts]


def _example(context: Any) -> str:
    """The first command of the help."""
    return next(iter(examples(context.command)), f"{context.command_path} --help")
