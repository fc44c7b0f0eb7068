"""Options of the commands: the fields of a settings class, and options that commands share.

Flags, help and defaults of a setting are written once, in `settings`.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lidar_cli import configuration
from lidar_cli.api.checks import check_folder
from lidar_cli.cli.completion import values_of
from lidar_cli.configuration import CONFIG_NAME, S
from lidar_cli.errors import SettingsError, printable
from lidar_cli.runtime.files import is_stream
from lidar_cli.runtime.streams import write_remark, write_results
from lidar_cli.settings import Panel, flags


def option(name: str, help: str, panel: Panel = "Output", value: str | None = None) -> Any:
    """An option of a command that is no setting. value: what the help calls its value."""
    return typer.Option(name, help=help, rich_help_panel=panel, metavar=value, show_default=False)


Config = Annotated[Path | None, option("--config", "TOML file of settings.", "Expert", "FILE")]
ShowConfig = Annotated[
    bool, option("--show-config", "Print the settings and where each came from.", "Expert")
]
Json = Annotated[bool, option("--json", "Print JSON on stdout, and nothing else.")]
Csv = Annotated[bool, option("--csv", "Print CSV on stdout, and nothing else.")]
Markdown = Annotated[bool, option("--markdown", "Print a Markdown table.")]
Verbose = Annotated[bool, option("--verbose", "Print every caution and remark, not two.")]
Report = Annotated[
    Path | None, option("--report", "Also write a self-contained HTML page.", "Most used", "FILE")
]
Overwrite = Annotated[bool, option("--overwrite", "Replace an existing --report.")]


def with_settings(cls: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command --config, --show-config, and one option per field of its settings class.

    The command receives the settings, merged and checked, as the keyword `settings`.
    """
    fields = [field for field in dataclasses.fields(cls) if flags(field)]
    hints = typing.get_type_hints(cls)
    options = [_option(field, hints[field.name]) for field in fields]
    shared = [_parameter("config", Config, None), _parameter("show_config", ShowConfig, False)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(*, config: Path | None, show_config: bool, **arguments: Any) -> None:
            options = {field.name: arguments.pop(field.name) for field in fields}
            try:
                command(**arguments, settings=_resolve(cls, options, config, show_config))
            except KeyboardInterrupt:  # Typer's handling and status differ between versions
                raise typer.Exit(130) from None

        signature = inspect.signature(command, eval_str=True)
        parameters = [  # in the order in which the panels of the help list them
            *options,
            *(
                parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
                for parameter in signature.parameters.values()
                if parameter.name != "settings"
            ),
            *shared,
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _resolve(cls: type[S], options: dict[str, Any], config: Path | None, show: bool) -> S:
    """The settings of a command; with `show` they are printed and the command ends."""
    resolved = configuration.resolve(cls, options, config=config)
    if show:
        width = max(map(len, resolved.origins))
        for name, origin in resolved.origins.items():
            value = str(getattr(resolved.values, name))
            write_results(printable(f"{name:{width}} = {value:<12}  # {origin}"))
        raise typer.Exit
    if config is None and CONFIG_NAME in resolved.origins.values():
        write_remark(f"settings from ./{CONFIG_NAME}, which was found here")
    return resolved.values


def _option(field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    text, default, kind = field.metadata["help"], field.default, _parsed_type(hint)
    choices = [choice for choice in _choices(hint) if choice != "auto"]
    if any(choice not in text for choice in choices):
        sentence, bracket, rest = text.rstrip(".").partition(" [")
        text = f"{sentence}: {' or '.join(choices)}{bracket}{rest}."
    names, value = flags(field), field.metadata["value"]
    shown: str | bool = False
    if isinstance(default, bool):
        # With --no-NAME, so that a switch that a file or a variable turned on can be turned off.
        names, kind = [f"{name}/--no-{name[2:]}" for name in names], bool
        shown = "on" if default else False  # the help then has the name that turns it off
    elif default not in (None, ()) and "[" not in text:
        shown = str(default)
    value = value or {int: "N", float: "X", Path: "FILE", str: "NAME"}.get(kind)
    kind = str if kind in (int, float) else kind  # `configuration.resolve` checks numbers
    option = typer.Option(
        *names,
        help=text,
        metavar=value,
        show_default=shown,
        rich_help_panel=field.metadata["panel"],
        autocompletion=values_of(field.name, hint),
    )
    return _parameter(field.name, Annotated[kind | None, option], None)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _parsed_type(hint: Any) -> Any:
    """The type of a setting's option without its bounds and choices."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _parsed_type(arguments[0])
    if origin is typing.Literal:
        return str
    if origin is tuple:
        return list[str]
    members = [member for member in arguments if member is not type(None)]
    return _parsed_type(members[0]) if members else hint


def _choices(hint: Any) -> tuple[str, ...]:
    """The values of a setting that has a fixed list of them."""
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def one_of(**flags: object) -> None:
    """Raise SettingsError if more than one of these options is given."""
    given = [f"--{name.replace('_', '-')}" for name, value in flags.items() if value]
    if len(given) > 1:
        message = f"{' and '.join(given)} exclude each other; give one"
        raise SettingsError(message, code="exclusive-options")


def form_of(**flags: bool) -> str:
    """The format whose flag is given, empty for the table. Raises SettingsError for several."""
    one_of(**flags)
    return next((name for name, given in flags.items() if given), "")


def write_form(
    form: str, forms: Mapping[str, Callable[[], str | bytes]], table: Callable[[], None]
) -> None:
    """Write a result to stdout in one of its formats, or print its table. form: of `form_of`."""
    if form:
        write_results(forms[form]())
    else:
        table()


def check_report(path: Path | None, overwrite: bool) -> None:
    """Raise SettingsError or MissingExtra if no page can be written; called before the work."""
    if path is not None:
        if not is_stream(path):
            check_folder("--report", path)
        from lidar_cli.report.page.document import check_page

        check_page(path, overwrite)
    elif overwrite:
        raise SettingsError("--overwrite replaces an existing --report; name one")
