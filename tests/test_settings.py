"""Where a setting comes from, and what happens to one that is wrong."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make import lidar_here

from lidar_cli.configuration import Resolved, parse_size, resolve
from lidar_cli.errors import SettingsError, nearest
from lidar_cli.settings import (
    COMMANDS,
    EMBEDDED_DEFAULTS,
    DemoSettings,
    ExtractSettings,
    RankSettings,
    ScoreSettings,
)

SAMPLE_CONFIGS = sorted((Path(__file__).parents[1] / "sample_configs").glob("*.toml"))


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory, without a lidar.toml or variables of ours."""
    import os

    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LIDAR_")]:
        monkeypatch.delenv(name)


def rank(
    options: dict[str, Any] | None = None, config: str = "", **environment: str
) -> Resolved[RankSettings]:
    """The settings of `rank`, from a file with the text `config`."""
    path = Path("given.toml")
    path.write_text(config)
    return resolve(RankSettings, options or {}, config=path, environment=environment)


def refused(options: dict[str, Any] | None = None, config: str = "", **environment: str) -> str:
    with pytest.raises(SettingsError) as caught:
        rank(options, config, **environment)
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_place_wins_over_the_next() -> None:
    places: list[tuple[dict[str, Any], str, dict[str, str], int, str]] = [
        ({"n_views": 2}, "n_views = 4", {"LIDAR_N_VIEWS": "3"}, 2, "option"),
        ({"n_views": None}, "n_views = 4", {"LIDAR_N_VIEWS": "3"}, 3, "LIDAR_N_VIEWS"),
        ({}, "n_views = 4", {}, 4, "given.toml"),
        ({}, "", {}, 10, "default"),
    ]
    for options, config, environment, value, origin in places:
        resolved = rank({"data": "x"} | options, config, **environment)
        assert (resolved.values.n_views, resolved.origins["n_views"]) == (value, origin)
        assert resolved.origins["data"] == "option"
        assert resolved.origins["seed"] == "default"


def test_every_field_has_an_origin_and_an_environment_variable() -> None:
    for cls in COMMANDS.values():
        names = [field.name for field in dataclasses.fields(cls)]
        resolved = resolve(cls, {}, environment={})
        assert list(resolved.origins) == names
        assert set(resolved.origins.values()) == {"default"}
        if "seed" in names:
            assert resolve(cls, {}, environment={"LIDAR_SEED": "5"}).values.seed == 5
    overwrite = resolve(ExtractSettings, {}, environment={"LIDAR_OVERWRITE": "1"})
    assert overwrite.values.overwrite is True
    delta = resolve(ScoreSettings, {}, environment={"LIDAR_DELTA": "1e-3"})
    assert delta.values.delta == 1e-3


def test_a_table_of_the_command_wins_over_the_top() -> None:
    config = 'n-views = 4\nseed = 1\n[rank]\nn_views = 6\nby = "pillai"\n[extract]\nseed = 9\n'
    resolved = rank(config=config).values
    assert (resolved.n_views, resolved.seed, resolved.by) == (6, 1, "pillai")
    shared = resolve(ScoreSettings, {}, config=Path("given.toml"), environment={})
    assert shared.values == ScoreSettings()  # it knows none of these keys, and minds none


def test_the_file_in_the_directory_is_read_unless_one_is_named() -> None:
    Path("lidar.toml").write_text("seed = 3")
    resolved = resolve(DemoSettings, {}, environment={})
    assert (resolved.values.seed, resolved.origins["seed"]) == (3, "lidar.toml")
    Path("other.toml").write_text("")
    assert resolve(DemoSettings, {}, config=Path("other.toml"), environment={}).values.seed == 0


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("n_view = 3", "unknown key 'n_view'; did you mean n_views?"),
        ("see-d = 3", "unknown key 'see-d'; did you mean seed?"),
        ("[rnk]\nby = 'lidar'", "unknown key 'rnk'; did you mean rank?"),
        ("[rank]\nbi = 'lidar'", "unknown key 'bi' in [rank]; did you mean by?"),
        ("[rank]\noverwrite = true", "unknown key 'overwrite' in [rank]"),
        (
            "[score]\nn_views = 3",
            "unknown key 'n_views' in [score]; ",
        ),
        ("rank = 3", "rank must be a table, as in [rank]"),
        (
            "xyzzy = 1",
            "unknown key 'xyzzy'; known: activation, alarm, arch, assume, axes, bad_samples, "
            "bands, baseline, batch_size, branch, by, cache",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest(config: str, text: str) -> None:
    message = refused(config=config)
    assert message.startswith(f"given.toml: {text}")


@pytest.mark.parametrize(
    ("options", "config", "environment", "text"),
    [
        ({"n_samples": 0}, "", {}, "--n-samples 0: expected 1 or more"),
        ({"n_views": -1}, "", {}, "--n-views -1: expected 0 or more"),
        ({}, "n_views = 'ten'", {}, "n_views (from given.toml) = 'ten': expected a whole number"),
        ({}, "n_views = 2.5", {}, "n_views (from given.toml) = 2.5: expected a whole number"),
        ({}, "layer = 3", {}, "layer (from given.toml) = 3: expected text"),
        ({}, "[rank]\ndelta = -1", {}, "delta (from given.toml) = -1: expected 0"),
        ({}, "", {"LIDAR_SEED": "x"}, "seed (from LIDAR_SEED) = 'x': expected a whole number"),
        ({}, "", {"LIDAR_TOP": "0"}, "top (from LIDAR_TOP) = '0': expected 1 or more"),
        ({"precision": "half"}, "", {}, "--precision half: expected float32, bfloat16 or fl"),
    ],
)
def test_a_wrong_value_names_its_place(
    options: dict[str, Any], config: str, environment: dict[str, str], text: str
) -> None:
    assert refused(options, config, **environment).startswith(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(SettingsError) as caught:
            resolve(RankSettings, {}, config=path, environment={})
        return str(caught.value)

    absent = tmp_path / "absent.toml"
    assert message(absent) == f"cannot read the configuration {absent}: No such file or directory"
    assert message(tmp_path) == f"cannot read the configuration {tmp_path}: Is a directory"
    bad = tmp_path / "bad.toml"
    bad.write_text("n_views = \n")
    assert message(bad).startswith(f"{bad} is not valid TOML: Invalid value (at line 1")
    bad.write_bytes(b"data = '\xff'\n")
    assert message(bad).startswith(f"{bad} is not valid TOML: 'utf-8' codec can't decode")


# The embedded images


@pytest.mark.parametrize("given", [{}, {"data": "embedded"}])
def test_embedded_images_have_other_defaults(given: dict[str, Any]) -> None:
    for cls in (ExtractSettings, RankSettings):
        values = resolve(cls, given, environment={}).values
        assert values.data == given.get("data")
        assert (values.n_samples, values.n_views) == (200, 4)
    assert EMBEDDED_DEFAULTS == {"n_samples": 200, "n_views": 4}


def test_what_is_given_stays_with_embedded_images() -> None:
    resolved = rank({"n_samples": 50}, "n_views = 7").values
    assert (resolved.data, resolved.n_samples, resolved.n_views) == (None, 50, 7)
    resolved = rank({}, "", LIDAR_N_SAMPLES="60").values
    assert (resolved.n_samples, resolved.n_views) == (60, 4)


def test_other_data_keeps_the_defaults() -> None:
    for resolved in (rank({"data": "x/"}), rank({}, 'data = "x/"'), rank({}, "", LIDAR_DATA="x/")):
        assert (resolved.values.n_samples, resolved.values.n_views) == (1000, 10)


# Files that are shipped


def test_there_are_sample_configs() -> None:
    assert SAMPLE_CONFIGS


@pytest.mark.parametrize("command", sorted(COMMANDS))
@pytest.mark.parametrize("path", SAMPLE_CONFIGS, ids=lambda path: path.name)
def test_a_sample_config_loads_for_every_command(path: Path, command: str) -> None:
    import tomllib

    resolved = resolve(COMMANDS[command], {}, config=path, environment={})
    document = tomllib.loads(path.read_text())
    for key, value in {**document, **document.get(command, {})}.items():
        if key in resolved.origins:
            assert getattr(resolved.values, key) == value
            assert resolved.origins[key] == str(path)


# Sizes


@given(
    number=st.integers(1, 10**6),
    unit=st.sampled_from(["", "k", "m", "g", "t"]),
    suffix=st.sampled_from(["", "b", "ib"]),
    space=st.sampled_from(["", " "]),
    upper=st.booleans(),
)
def test_a_size_counts_in_powers_of_two(
    number: int, unit: str, suffix: str, space: str, upper: bool
) -> None:
    text = f"{space}{number}{space}{unit}{suffix}{space}"
    if not unit and suffix == "ib":
        return
    power = 2 ** (10 * ["", "k", "m", "g", "t"].index(unit))
    assert parse_size(text.upper() if upper else text) == number * power


def test_sizes_by_hand() -> None:
    assert parse_size("64MB") == 67108864
    assert parse_size("1.5 GiB") == 1610612736
    assert parse_size("4096") == 4096
    assert parse_size(".5k") == 512


@pytest.mark.parametrize(
    "text", ["", "0", "0.0001", "-1", "64 XB", "MB", "1e3", "1,5GB", "6 4", "٣"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_size(text)
    assert str(caught.value) == (
        f"{text!r} is not a memory size; expected something like 64MB or 2GB"
    )


@given(st.text(max_size=12) | st.from_regex(r"[0-9.]{1,6} ?[kmgtKMGT]?i?[bB]?"))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        size = parse_size(text)
    except SettingsError:
        return
    assert size >= 1
    assert re.search(r"\d", text)


def test_nearest() -> None:
    assert nearest("lida", ["lidar", "rankme"]) == "did you mean lidar?"
    assert nearest("zzz", ["lidar", "alpha"]) == "known: alpha, lidar"


# As a shell sees it


def test_show_config_prints_values_and_origins(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("lidar.toml").write_text("n_views = 6\n[rank]\nby = 'pillai'\n")
    monkeypatch.setenv("LIDAR_SEED", "11")
    words = ["rank", "runs", "--data", "images", "--show-config"]
    done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
    assert (done.returncode, done.stderr) == (0, "")
    values = {}
    for line in done.stdout.splitlines():
        match = re.fullmatch(r"(\w+) += (.*?) *  # (.+)", line)
        assert match, line
        values[match[1]] = (match[2], match[3])
    assert list(values) == [field.name for field in dataclasses.fields(RankSettings)]
    assert values["n_views"] == ("6", "lidar.toml")
    assert values["by"] == ("pillai", "lidar.toml")
    assert values["seed"] == ("11", "LIDAR_SEED")
    assert values["data"] == ("images", "option")
    assert values["n_samples"] == ("1000", "default")
    assert values["cache"] == ("None", "default")


def test_a_wrong_key_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("x.toml").write_text("n_vews = 6\n")
    words = ["rank", "runs", "--config", "x.toml"]
    done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: x.toml: unknown key 'n_vews'; did you mean n_views?\n"
