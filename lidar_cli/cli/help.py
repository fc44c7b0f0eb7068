"""The text of --help: commands with their whole summaries, options in panels, examples first."""

from __future__ import annotations

import textwrap
import typing
from typing import Any

from typer.core import TyperCommand, TyperGroup

from lidar_cli.errors import SettingsError
from lidar_cli.settings import Panel

PANELS = ("Arguments", *typing.get_args(Panel))
SWITCHES = """\
  A switch that lidar.toml or LIDAR_NAME turned on is turned off by --no-NAME."""
TYPER_HELP = {  # of options that typer adds
    "install_completion": "Let this shell (bash, zsh or fish) complete options and their values.",
    "show_completion": "Print what --install-completion installs.",
}
NAMES = 22  # columns for the names of options and commands; a longer one has its own line


class Command(TyperCommand):
    """A command with its examples and its options in panels."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments that are left; an error of the parser records the command.

        Raises SettingsError for an empty path, which would name the current folder.
        """
        has_empty = "" in args
        try:
            rest = list(super().parse_args(ctx, args))
        except Exception as error:
            if getattr(error, "ctx", ctx) is None:
                error.ctx = ctx  # type: ignore[attr-defined]
            raise
        for parameter in self.get_params(ctx) if has_empty else ():
            value = ctx.params.get(parameter.name)
            paths = value if isinstance(value, list | tuple) else [value]
            if parameter.param_type_name == "argument" and {"", "."} & set(map(str, paths)):
                message = f"{ctx.command_path}: {parameter.metavar} is empty; is a variable unset?"
                raise SettingsError(message, code="empty-value")
        return rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Usage, the docstring as it is written, and the options."""
        self.format_usage(ctx, formatter)
        formatter.write(f"\n{textwrap.indent(self.help or '', '  ')}\n")
        self.format_options(ctx, formatter)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`[OPTIONS]` and the arguments by the names that their help has."""
        arguments = (p for p in self.get_params(ctx) if p.param_type_name == "argument")
        return ["[OPTIONS]", *(str(argument.metavar or argument.name) for argument in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Options in panels, in the order of PANELS; those of no panel are in the last."""
        write_panels(self.get_params(ctx), formatter)
        if any(parameter.secondary_opts for parameter in self.get_params(ctx)):
            formatter.write(f"\n{SWITCHES}\n")


class Group(TyperGroup):
    """All commands, in the order of use, with their whole summaries."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order in which they were added."""
        return list(self.commands)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Usage, what the program is for, the commands, then the options."""
        self.format_usage(ctx, formatter)
        formatter.write(f"\n{textwrap.indent(self.help or '', '  ')}\n\nCommands\n")
        for name, command in self.commands.items():
            write_row(formatter, name, summary(command), names=max(map(len, self.commands)))
        write_panels(self.get_params(ctx), formatter)
        formatter.write(f"\n{textwrap.indent(self.epilog or '', '  ')}\n")


def summary(command: Any) -> str:
    """The first line of a command's help."""
    return str(command.help or "").partition("\n")[0]


def examples(command: Any) -> list[str]:
    """The commands in a command's help, without their remarks."""
    lines = str(command.help or "").splitlines()[1:]
    return [line.partition("   ")[0].strip() for line in lines if "lidar " in line]


def write_panels(parameters: list[Any], formatter: Any) -> None:
    """Write the parameters of a command, each in its panel."""
    rows: dict[str, list[Any]] = {panel: [] for panel in PANELS}
    for parameter in parameters:
        default = "Arguments" if parameter.param_type_name == "argument" else PANELS[-1]
        panel = getattr(parameter, "rich_help_panel", None)
        rows[panel if panel in rows else default].append(parameter)
    several = sum(map(bool, rows.values())) > 1
    for panel, members in rows.items():
        if members:
            formatter.write(f"\n{panel if several else 'Options'}\n")
        for parameter in members:
            default = parameter.show_default
            if default == "on" or not isinstance(default, str):
                default = ""
            text = TYPER_HELP.get(parameter.name, parameter.help or "")
            write_row(formatter, _names(parameter), text, default)


def _names(parameter: Any) -> str:
    """The names of an option with its value; of a switch that is on, the name that turns it off."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name)
    if parameter.is_flag:
        turns_off = parameter.show_default == "on"
        names = parameter.secondary_opts if turns_off else parameter.opts
        return ", ".join(sorted(names, key=len))
    return f"{', '.join(parameter.opts)} {parameter.metavar}"


def write_row(formatter: Any, name: str, text: str, default: str = "", names: int = NAMES) -> None:
    """Write a name, the text right of it, and at the right end its default in brackets."""
    room = formatter.width - names - 4
    lines = textwrap.wrap(text, room, break_on_hyphens=False)
    if default:
        shown = f"[{default}]"
        if len(lines[-1]) + 1 + len(shown) <= room:
            lines[-1] = lines[-1].ljust(room - len(shown)) + shown
        else:
            lines.append(shown.rjust(room))
    if len(name) > names:
        lines.insert(0, "")
    for first, line in zip([name, *[""] * len(lines)], lines, strict=False):
        formatter.write(f"  {first:{names}}  {line}".rstrip() + "\n")
