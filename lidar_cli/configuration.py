"""Settings of a command from the command line, the environment, one TOML file and the defaults.

A value comes from the first of: the command line, `LIDAR_<FIELD>` in the environment, one TOML
file (`--config`, else `./lidar.toml`), the default. `resolve` merges them and keeps each value's
origin. Pydantic checks types and bounds and is imported only when a command runs.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lidar_cli.errors import SettingsError, first_line, nearest
from lidar_cli.settings import COMMANDS, EMBEDDED, EMBEDDED_DEFAULTS

CONFIG_NAME = "lidar.toml"
LONGEST = 2**16  # characters of a configuration
# A file that nobody named may have come with a download: it may neither have code run nor have
# anything written where the user does not expect it.
NAMED_ONLY = ("model", "output", "overwrite", "cache", "jsonl", "tensorboard", "data_dir")

S = TypeVar("S")


@dataclass(frozen=True)
class Resolved(Generic[S]):
    """Settings of one command, with the place each value came from."""

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
    command = next(name for name, known in COMMANDS.items() if known is cls)
    environment = os.environ if environment is None else environment
    raw: dict[str, Any] = {}
    origins: dict[str, str] = {}
    from_file: dict[str, Any] = {}
    if config is not None:
        from_file = read_config(config, command)
    elif Path(CONFIG_NAME).is_file():
        config = Path(CONFIG_NAME)
        from_file = _found_config(config, command)
    for spec in dataclasses.fields(cls):  # type: ignore[arg-type]
        variable = f"LIDAR_{spec.name.upper()}"
        if options.get(spec.name) not in (None, []):  # of one that can be repeated
            raw[spec.name], origins[spec.name] = options[spec.name], "option"
        elif environment.get(variable):  # an empty variable is an unset one
            raw[spec.name], origins[spec.name] = environment[variable], variable
        elif spec.name in from_file:
            raw[spec.name], origins[spec.name] = from_file[spec.name], str(config)
        else:
            origins[spec.name] = "default"
    if "assume" in raw:
        raw["assume"] = _as_pairs(raw["assume"])
    for spec in dataclasses.fields(cls):  # type: ignore[arg-type]
        if raw.get(spec.name) == "":  # an unset variable of a script, most likely
            raise SettingsError(f"{spec.name} (from {origins[spec.name]}) is empty")
        # Python counts true as 1, and so would Pydantic.
        if isinstance(raw.get(spec.name), bool) and not isinstance(spec.default, bool):
            shown = str(raw[spec.name]).lower()
            raise SettingsError(f"{spec.name} (from {origins[spec.name]}) = {shown}: is no switch")
    if "data" in origins and raw.get("data", EMBEDDED) == EMBEDDED:
        raw = {"data": EMBEDDED, **EMBEDDED_DEFAULTS, **raw}
    return Resolved(_validate(cls, raw, origins), origins)


def _as_pairs(assume: Any) -> Any:
    """KEY=VALUE texts of a table, of a table of tables by system, or of a text with spaces."""
    if isinstance(assume, str):
        return assume.split()
    if not isinstance(assume, dict):
        return assume
    pairs = []
    for key, value in assume.items():
        inner = value if isinstance(value, dict) else {None: value}
        for name, one in inner.items():
            text = ",".join(map(str, one)) if isinstance(one, list) else str(one)
            pairs.append(f"{key}={text}" if name is None else f"{key}:{name}={text}")
    return pairs


def _found_config(path: Path, command: str) -> dict[str, Any]:
    """What `read_config` gives for a file that lies here and was not named.

    Raises SettingsError if it sets what only a file that was named may, or is another user's.
    """
    if hasattr(os, "geteuid") and path.stat().st_uid not in (os.geteuid(), 0):
        raise SettingsError(
            f"./{path} was found here and belongs to another user; read it, then name it with "
            f"--config {path}, or remove it"
        )
    found = read_config(path, command)
    for name in NAMED_ONLY:
        if name in found:
            raise SettingsError(
                f"./{path} was found here and sets {name}, which may run code or write elsewhere; "
                f"read it, then name it with --config {path}, or remove that line"
            )
    return found


def read_config(path: Path, command: str) -> dict[str, Any]:
    """Keys of a TOML file that concern `command`, by field name.

    A key may stand at the top, for every command that knows it, or in a table named after one
    command, which wins. Raises SettingsError for an unreadable file or an unknown key.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise SettingsError(f"{path}: more than {LONGEST} characters, which no settings need")
        document = tomllib.loads(text)
    except OSError as error:
        raise SettingsError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is not valid TOML: {first_line(error)}") from error
    tables = {key: value for key, value in document.items() if key in COMMANDS}
    shared = {key: value for key, value in document.items() if key not in COMMANDS}
    everywhere = {f.name for cls in COMMANDS.values() for f in dataclasses.fields(cls)}
    _check_keys(path, shared, everywhere, [*everywhere, *COMMANDS])
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise SettingsError(f"{path}: {name} must be a table, as in [{name}]")
        known = {f.name for f in dataclasses.fields(COMMANDS[name])}
        _check_keys(path, table, known, list(known), where=f" in [{name}]")
    merged = shared | tables.get(command, {})
    return {_field_name(key): value for key, value in merged.items()}


def _field_name(key: str) -> str:
    return key.replace("-", "_")


def _check_keys(
    path: Path, keys: Mapping[str, Any], known: set[str], suggest: list[str], where: str = ""
) -> None:
    for key in keys:
        if _field_name(key) not in known:
            raise SettingsError(f"{path}: unknown key {key!r}{where}; {nearest(key, suggest)}")


def _validate(cls: type[S], raw: dict[str, Any], origins: dict[str, str]) -> S:
    import pydantic

    try:
        return pydantic.TypeAdapter(cls).validate_python(raw)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        origin = origins.get(name, "settings")
        where = f"--{name.replace('_', '-')}" if origin == "option" else f"{name} (from {origin})"
        message = first["msg"][0].lower() + first["msg"][1:]
        raise SettingsError(f"{where} = {raw.get(name)!r}: {message}") from error
