"""Settings of a command from the command line, the environment, one TOML file and the defaults.

A value comes from the first of: the command line, `LIDAR_<FIELD>` in the environment, one TOML
file (`--config`, else `./lidar.toml`), the default. `resolve` merges them and records each value's
origin; `from_keywords` reads keywords of Python in place of all but the defaults. Pydantic checks
types and bounds and is imported only when a command runs. Sizes and rates, which are texts, are
parsed where they are used.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from lidar_cli.errors import SettingsError, first_line, nearest, shortened, suggestion
from lidar_cli.settings import (
    COMMANDS,
    EMBEDDED,
    EMBEDDED_DEFAULTS,
    FACTORY_NAME,
    DefaultCount,
    flags,
)

CONFIG_NAME = "lidar.toml"
KEYWORD = "keyword"  # the origin of a value from Python
LONGEST = 2**16  # characters of a configuration file
# Fields that only a file named by --config may set. Another ./lidar.toml may have come with a
# download, so it may neither run code nor write where the user does not expect it.
NAMED_ONLY = ("model", "output", "overwrite", "cache", "jsonl", "tensorboard", "data_dir")

S = TypeVar("S")


@dataclass(frozen=True)
class Resolved(Generic[S]):
    """Settings of one command, with the origin of each value."""

    values: S
    origins: dict[str, str]  # field -> "option", "LIDAR_X", the config file's name, or "default"


def resolve(
    cls: type[S],
    options: Mapping[str, Any],
    *,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Resolved[S]:
    """Settings merged from command line, environment, one TOML file and defaults.

    options: field -> value, None where the user gave nothing.
    Raises SettingsError for an unknown key, a value of the wrong type or an unreadable file.
    """
    command = next(name for name, settings in COMMANDS.items() if settings is cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    environment = os.environ if environment is None else environment
    raw: dict[str, Any] = {}
    origins: dict[str, str] = {}
    from_file: dict[str, Any] = {}
    if config is not None:
        from_file = read_config(config, command)
    elif Path(CONFIG_NAME).is_file():
        config = Path(CONFIG_NAME)
        from_file = _read_unnamed(config, command)
    for name in (field.name for field in fields):
        variable = f"LIDAR_{name.upper()}"
        if options.get(name) not in (None, []):  # an option that can be repeated gives a list
            raw[name], origins[name] = options[name], "option"
        elif environment.get(variable):  # an empty variable counts as unset
            raw[name], origins[name] = environment[variable], variable
        elif name in from_file:
            raw[name], origins[name] = from_file[name], str(config)
        else:
            origins[name] = "default"
    return Resolved(_checked(cls, raw, origins), origins)


def from_keywords(cls: type[S], keywords: Mapping[str, Any]) -> S:
    """Settings from keywords of Python and defaults, without the environment and ./lidar.toml.

    A list is taken where a text lists names with commas, any path where a text is expected.
    Raises SettingsError for an unknown keyword, or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    raw: dict[str, Any] = {}
    for name, value in keywords.items():
        if name not in fields:
            of_shell = {flag: one for one, field in fields.items() for flag in flags(field)}
            like = of_shell.get(f"-{name}") or nearest(name, list(fields))
            hint = f"did you mean {like}?" if like in fields else like
            message = f"unknown keyword {name!r}; {hint}"
            raise SettingsError(message, code="unknown-key")
        if value is not None:
            raw[name] = _plain(value, joins=fields[name].default != ())
    return _checked(cls, raw, dict.fromkeys(fields, KEYWORD))


def _plain(value: Any, joins: bool) -> Any:
    """A path as text, a numpy scalar as a number; with `joins` a list as text with commas."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if joins and isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return value.item() if hasattr(value, "item") else value


def _checked(cls: type[S], raw: dict[str, Any], origins: Mapping[str, str]) -> S:
    """Settings from the values that are given. Raises SettingsError."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    if "assume" in raw:
        raw["assume"] = _as_pairs(raw["assume"])
    for name in {"include", "exclude"} & raw.keys():
        raw[name] = raw[name].split() if isinstance(raw[name], str) else raw[name]
    for field in (field for field in fields if field.name in raw):
        value, where = raw[field.name], f"{field.name} (from {origins[field.name]})"
        if value == "":  # most likely an unset variable of a script
            raise SettingsError(f"{where} is empty", code="empty-value")
        # Python counts true as 1, and so would Pydantic.
        if isinstance(value, bool) and not isinstance(field.default, bool):
            raise SettingsError(
                f"{where} = {str(value).lower()}: is not a switch", code="no-switch"
            )
    values = _validate(cls, raw, origins)
    if "data" in origins and raw.get("data", EMBEDDED) == EMBEDDED:
        counts = {name: DefaultCount(count) for name, count in EMBEDDED_DEFAULTS.items()}
        unset = {name: count for name, count in counts.items() if name not in raw}
        values = dataclasses.replace(values, **unset)  # type: ignore[type-var]
    return values


def _as_pairs(assume: Any) -> Any:
    """KEY=VALUE texts from a table, a table of tables by system, or a text with spaces."""
    if isinstance(assume, str):
        return assume.split()
    if not isinstance(assume, dict):
        return assume
    pairs = []
    for key, value in assume.items():
        inner = value if isinstance(value, dict) else {None: value}
        for name, item in inner.items():
            text = ",".join(map(str, item)) if isinstance(item, list) else str(item)
            pairs.append(f"{key}={text}" if name is None else f"{key}:{name}={text}")
    return pairs


def _read_unnamed(path: Path, command: str) -> dict[str, Any]:
    """`read_config` of a file in the current folder that the user did not name.

    Raises SettingsError if it sets one of NAMED_ONLY, or `data` to a factory, or belongs to another
    user.
    """
    if hasattr(os, "geteuid") and path.stat().st_uid not in (os.geteuid(), 0):
        raise SettingsError(
            f"./{path} was found here and belongs to another user; read it, then name it with "
            f"--config {path}, or remove it",
            code="foreign-config",
        )
    keys = read_config(path, command)
    for name in (*NAMED_ONLY, "data"):
        if name in keys and (name != "data" or FACTORY_NAME.fullmatch(str(keys[name]))):
            raise SettingsError(
                f"./{path} was found here and sets {name}, which may run code or write elsewhere; "
                f"read it, then name it with --config {path}, or remove that line",
                code="named-only-key",
            )
    return keys


def read_config(path: Path, command: str) -> dict[str, Any]:
    """Keys of a TOML file that concern `command`, by field name.

    A key at the top level is for every command that has it; one in a table named after a command
    takes precedence. Raises SettingsError for an unreadable file or an unknown key.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
        if len(text) > LONGEST:
            message = f"{path}: more than {LONGEST} characters, which no settings need"
            raise SettingsError(message, code="too-long")
        document = tomllib.loads(text)
    except OSError as error:
        raise SettingsError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is not valid TOML: {first_line(error)}") from error
    names = {name: [f.name for f in dataclasses.fields(cls)] for name, cls in COMMANDS.items()}
    shared = {key: value for key, value in document.items() if key not in COMMANDS}
    every_name = {field for fields in names.values() for field in fields}
    _check_keys(path, shared, every_name, suggest=[*every_name, *COMMANDS])
    for name in (key for key in document if key in COMMANDS):
        if not isinstance(document[name], dict):
            message = f"{path}: {name} must be a table, as in [{name}]"
            raise SettingsError(message, code="no-table")
        _check_keys(path, document[name], names[name], names[name], where=f" in [{name}]")
    merged = shared | document.get(command, {})
    return {key.replace("-", "_"): value for key, value in merged.items()}


def _check_keys(
    path: Path, keys: Iterable[str], names: Collection[str], suggest: list[str], where: str = ""
) -> None:
    for key in keys:
        if key.replace("-", "_") not in names:
            message = f"{path}: unknown key {key!r}{where}; {nearest(key, suggest)}"
            raise SettingsError(message, code="unknown-key")


@functools.cache
def _validator(settings: Any) -> Callable[[dict[str, Any]], Any]:
    import pydantic

    return pydantic.TypeAdapter(settings).validate_python


def _validate(cls: type[S], raw: dict[str, Any], origins: Mapping[str, str]) -> S:
    import pydantic

    try:
        return cast(S, _validator(cls)(raw))  # type: ignore[arg-type] # a class is hashable
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        origin, value = origins.get(name, "settings"), raw.get(name)
        if origin == "option":
            where = f"--{name.replace('_', '-')} {shortened(str(value))}"
        elif origin == KEYWORD:
            where = f"{name} = {shortened(repr(value))}"
        else:
            where = f"{name} (from {origin}) = {value!r}"
        text = f"{where}: {_expectation(first)}{_hint(name, value, first)}"
        raise SettingsError(text, code="wrong-value") from error


# By the type of an error of Pydantic.
EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "string_type": "text",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "literal_error": "{expected}",
}


def _expectation(error: Any) -> str:
    """What was expected of a value that Pydantic refuses."""
    if error["type"] not in EXPECTED:
        return str(error["msg"][0].lower() + error["msg"][1:])
    bounds = {
        name: f"{bound:g}" if isinstance(bound, float) else bound
        for name, bound in error.get("ctx", {}).items()
    }
    expected = EXPECTED[error["type"]].format(**bounds)
    return f"expected {expected.replace(chr(39), '')}"


def _hint(name: str, value: Any, error: Any) -> str:
    """The value that was probably meant."""
    if error["type"] == "literal_error":
        names = re.findall(r"'(.*?)'", error["ctx"]["expected"])
        return suggestion(str(value), *names)
    if error["type"] == "less_than" and name == "confidence" and float(value) <= 100:
        return f", such as {float(value) / 100:g}"
    return ""


def parse_size(text: str) -> int:
    """Bytes in a size such as `64MB`, `1.5 GiB` or `4096`; MB and MiB both count 2**20.

    Raises SettingsError for anything else, and for less than one byte.
    """
    match = re.fullmatch(r"\s*([0-9]{0,15}\.?[0-9]{1,15})\s*([kmgt]?)i?b?\s*", text, re.IGNORECASE)
    scale = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
    size = int(float(match[1]) * scale[match[2].lower()]) if match else 0
    if size < 1:
        message = f"{text!r} is not a memory size; expected something like 64MB or 2GB"
        raise SettingsError(message, code="no-size")
    return size


def parse_rates(text: str) -> tuple[float, ...]:
    """Learning rates in a text such as `0.1, 0.01`, in the order given.

    Raises SettingsError unless all are positive numbers, each given once.
    """
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    fault = None
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        fault = "expected positive numbers with commas, such as 0.1,0.01"
    elif len(set(rates)) < len(rates):
        fault = "a rate is given twice"
    if fault:
        raise SettingsError(f"--learning-rates {text}: {fault}", code="learning-rates")
    return rates
