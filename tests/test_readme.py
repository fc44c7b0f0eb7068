"""The README: its commands exist, its options exist, its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import typer.main

from lidar_cli.cli import app
from lidar_cli.core.metrics import METRICS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_two_commands_are_single_lines_that_make_an_environment() -> None:
    lines = [line for block in fenced("sh") for line in block.strip().splitlines()]
    assert lines[0].startswith("python3 -m venv .venv && ")
    assert lines[0].endswith("lidar demo")
    assert lines[1].startswith("python3 -m venv .venv && ")
    assert lines[1].endswith("-m pytest -n auto")
    assert f"{lines[1]}\n" in README, ".ci/run takes this line from the README"


def test_every_lidar_command_in_the_readme_parses() -> None:
    calls = re.findall(r"\blidar ((?:extract|score|rank) [^#|)`\n]*)", "\n".join(fenced("sh")))
    assert len(calls) >= 5
    for call in calls:
        name, *arguments = shlex.split(call)
        # Parsing alone: a misspelt option or a missing argument raises a usage error.
        COMMANDS[name].make_context(name, arguments, resilient_parsing=False)


def test_the_python_in_the_readme_runs() -> None:
    (block,) = fenced("python")
    exec(compile(block, "README.md", "exec"), {})


def test_every_metric_is_explained_with_its_direction() -> None:
    for name, metric in METRICS.items():
        (line,) = [row for row in README.splitlines() if row.startswith("|") and f"`{name}`" in row]
        assert metric.direction in line, name


def test_the_changelog_knows_this_version() -> None:
    from lidar_cli import __version__

    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {__version__}" in changelog
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{__version__}"' in project


def test_the_study_agrees_with_its_results() -> None:
    """Mean, worst case and loss of the selected checkpoint, of the first table of standings."""
    (results,) = (ROOT / "tests" / "benchmarks" / "results").glob("study-seed0-*.md")
    _, _, standings = results.read_text(encoding="utf-8").partition("All methods together")
    pooled, _, _ = standings.partition("Each method alone")
    measured = {row[0]: (row[1], row[2], row[5]) for row in cells(pooled)}
    _, _, study = README.partition("the selected checkpoint loses, on average |")
    table, _, _ = study.partition("\n\n")
    stated = {row[0]: (*row[1:3], row[3].removesuffix(" points")) for row in cells(table)}
    assert {"lidar", "pillai", "rankme"} <= stated.keys() <= METRICS.keys()
    for name, numbers in stated.items():
        assert measured[name] == numbers, name


def cells(text: str) -> list[list[str]]:
    """Rows of the Markdown tables in a text whose first cell is a metric."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0] in METRICS]
