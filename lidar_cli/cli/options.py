"""Fields of a settings class as Typer options: flags, help and defaults stand there, once."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer


def with_options(cls: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each field of its settings class.

    The command receives them, those that were given, as one keyword `options`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.name != "options"
        ]
        hints = typing.get_type_hints(cls)
        fields = [field for field in dataclasses.fields(cls) if field.metadata["flags"]]
        names = [field.name for field in fields]
        extra = [_option(field, hints[field.name]) for field in fields]

        def run(**given: Any) -> None:
            options = {name: given.pop(name) for name in names}
            try:
                command(**given, options=options)
            except KeyboardInterrupt:  # Typer's own answer and status differ between versions
                raise typer.Exit(130) from None

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*own, *extra]]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _option(field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    meta = field.metadata
    text, default = meta["help"], field.default
    flag = isinstance(default, bool)
    if default is not None and not flag and "[" not in text:
        text = f"{text} [default: {default}]"
    kind = bool if flag else _plain(hint)
    # A switch that a file or a variable turned on can be turned off again.
    flags = [f"{name}/--no-{name[2:]}" if flag else name for name in meta["flags"]]
    option = typer.Option(*flags, help=text, show_default=False)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _plain(hint: Any) -> Any:
    """The type Typer should parse; `configuration.resolve` checks bounds and choices, once."""
    if typing.get_origin(hint) is Annotated:
        return _plain(typing.get_args(hint)[0])
    if typing.get_origin(hint) is typing.Literal:
        return str
    if typing.get_origin(hint) is tuple:
        return list[str]
    members = [part for part in typing.get_args(hint) if part is not type(None)]
    return _plain(members[0]) if members else hint
