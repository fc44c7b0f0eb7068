"""The README: short, and what it shows and names exists, runs and is true."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import readme
from make import checkpoint, image_folder, lidar

from lidar_cli.checkpoints.formats import FORMATS
from lidar_cli.cli import program
from lidar_cli.core.metrics import default_metrics
from lidar_cli.explain.topics import explain, study_rows

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PLAIN = " ".join(README.split())
COMMANDS = program.commands  # type: ignore[attr-defined]


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_it_is_short() -> None:
    assert len(README.split()) <= 1300


def test_the_two_commands_are_single_lines_that_make_an_environment() -> None:
    lines = [line for block in fenced("sh") for line in block.strip().splitlines()]
    assert lines[0].startswith("python3 -m venv .venv && ")
    assert lines[0].endswith("lidar demo")
    assert lines[1].startswith("python3 -m venv .venv && ")
    assert lines[1].endswith("-m pytest -n auto")
    assert f"{lines[1]}\n" in README, ".ci/run takes this line from the README"


def calls() -> list[list[str]]:
    """Every call of a command, in blocks and in sentences, as its words."""
    text = "\n".join([*fenced("sh"), *fenced("console"), *re.findall(r"`([^`\n]+)`", README)])
    names = "|".join(COMMANDS)
    pattern = rf"(?:^|[$(\s])lidar ((?:{names})\b[^#|)`\n]*)"
    return [shlex.split(call) for call in re.findall(pattern, text, re.MULTILINE)]


def test_every_lidar_command_in_the_readme_parses() -> None:
    assert {"demo", "rank", "inspect", "compare", "explain"} <= {name for name, *_ in calls()}
    for name, *arguments in calls():
        # Parsing alone: a misspelt option or a missing argument raises a usage error.
        COMMANDS[name].make_context(name, arguments, resilient_parsing=False)


def test_every_topic_that_it_names_exists() -> None:
    topics = [words[1] for words in calls() if words[0] == "explain" and len(words) > 1]
    assert len(topics) >= 5
    for topic in topics:
        explain(topic)


def test_what_it_links_is_there_and_the_picture_is_small() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    files = [ROOT / link for link in links if not link.startswith("http")]
    assert any(file.suffix == ".png" for file in files)
    for file in files:
        assert file.exists(), file
        assert file.suffix != ".png" or file.stat().st_size < 150_000


def test_every_output_carries_its_command() -> None:
    for block in fenced("console"):
        assert block.startswith("$ ")
    assert len(readme.commands()) >= 6
    languages = set(re.findall(r"^```(\w*)$", README, re.MULTILINE))
    assert languages <= {"sh", "console", "bibtex", ""}


def test_the_commands_run(tmp_path: Path) -> None:
    """Those for your own files, in the order shown, on smaller images of the same names."""
    image_folder(tmp_path / "photos", 50)
    own = [command for command in readme.commands() if "runs/" in command]
    assert len(own) == 5
    names = sorted(set(re.findall(r"runs/[\w/-]+\.pt", " ".join(own))))
    for seed, name in enumerate(names):
        checkpoint(tmp_path / name, seed)
    for command in own:
        _, *words = shlex.split(re.sub(r"^best=\$\((.*)\);.*", r"\1", command))
        size = {"LIDAR_IMAGE_SIZE": "32"} if words[0] == "rank" else {}
        ended = lidar(*words, cwd=tmp_path, **size)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout
    assert ended.stdout.strip() in names  # the last of them prints one path
    assert (tmp_path / "ranking.html").is_file()


def test_what_it_says_of_the_study_is_in_its_summary() -> None:
    rows = {(row["scope"], row["metric"]): row for row in study_rows()}
    claims = re.findall(r"`(\w+)` \((?:mean )?([+-][\d.]+), (?:worst )?([+-][\d.]+)", PLAIN)
    assert len(claims) == 4
    for metric, mean, worst in claims:
        stated = (rows["pooled", metric], rows["within", metric])
        assert (mean, worst) in {(r["spearman_mean"], r["spearman_worst"]) for r in stated}, metric


def test_every_family_of_systems_is_named() -> None:
    def letters(text: str) -> str:
        return re.sub(r"pytorch|[-/]v3|[^a-z\d]", "", text.lower())

    for one in FORMATS:
        project = one.title.partition(",")[0].partition("'s ")[0]
        assert letters(project.rpartition("/")[2]) in letters(PLAIN), one.title


def test_the_number_of_metrics_is_right() -> None:
    others = {11: "eleven", 12: "twelve", 13: "thirteen"}[len(default_metrics()) - 3]
    assert f"and {others} other metrics" in PLAIN


def test_the_changelog_knows_this_version() -> None:
    from lidar_cli import __version__

    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {__version__}" in changelog


@pytest.mark.nightly
def test_the_readme_shows_what_the_commands_print(tmp_path: Path) -> None:
    """Each line shown, but for its numbers and spaces, is one that the command prints."""
    script = ROOT / "tests" / "benchmarks" / "readme.py"
    ran = subprocess.run(
        [sys.executable, script, tmp_path, "--no-picture"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    printed = {masked(line) for line in (ran.stdout + ran.stderr).splitlines()}
    for line in "".join(fenced("console")).splitlines():
        assert line.strip() in ("", "...") or masked(line) in printed, line


def masked(line: str) -> str:
    return re.sub(r"[\d.,]+", "0", " ".join(line.split()))
