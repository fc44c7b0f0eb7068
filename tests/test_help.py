"""The help of every command, and what bash and zsh complete."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
import typing
from pathlib import Path

import pytest
from make import environment, lidar

from lidar_cli.cli import program
from lidar_cli.cli.help import NAMES, examples, summary
from lidar_cli.core.metrics import METRICS
from lidar_cli.settings import Panel

COMMANDS = program.commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns_and_lists_each_option_once(command: str, tmp_path: Path) -> None:
    shown = lidar(command, "--help", cwd=tmp_path, COLUMNS="80").stdout
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"Usage: lidar {command} [OPTIONS]")
    headings = [line for line in lines if re.match(r"[A-Z]", line)][1:]
    panels = ["Arguments", *typing.get_args(Panel)]
    assert headings == [panel for panel in panels if panel in headings]
    names = [line.split()[0].strip(",") for line in lines if re.match(r"  -", line)]
    assert len(names) == len(set(names))
    starts = {len(line) - len(line.lstrip()) for line in lines if line.startswith(" " * NAMES)}
    assert {start for start in starts if start < NAMES + 5} <= {NAMES + 4}


def test_the_first_panel_of_rank_has_the_options_that_matter(tmp_path: Path) -> None:
    shown = lidar("rank", "--help", cwd=tmp_path, COLUMNS="80").stdout
    first = shown.partition("Most used\n")[2].partition("\n\n")[0]
    names = re.findall(r"^  (?:-., )?(--[\w-]+)", first, re.MULTILINE)
    assert names == ["--data", "--n-samples", "--n-views", "--by", "--report"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_whole_summary_and_examples_that_parse(
    command: str, tmp_path: Path
) -> None:
    commands = COMMANDS[command]
    line = summary(commands)
    assert line.endswith(".")
    bare = lidar(cwd=tmp_path, COLUMNS="80")
    assert bare.returncode == 2
    assert re.search(rf"^  {command} +{re.escape(line)}$", bare.stderr, re.MULTILINE)
    shown = examples(commands)
    assert shown
    for example in shown:
        words = shlex.split(example.removeprefix("best=$(").rstrip(")"))
        assert words[:2] == ["lidar", command]
        context = commands.make_context("lidar", words[2:], resilient_parsing=False)
        assert context.args == []


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_metrics_after_by(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "lidar").write_text(f'#!/bin/sh\nexec {sys.executable} -m lidar_cli "$@"\n')
    (tmp_path / "lidar").chmod(0o755)
    (tmp_path / ".zshrc").write_text("PS1='> '\nunsetopt prompt_sp\n")
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    variables = environment(HOME=str(tmp_path), PATH=path, TERM="dumb", PYTHONDONTWRITEBYTECODE="1")
    variables.pop("ZDOTDIR", None)
    with Shell([program, "-i"], tmp_path, variables) as session:
        session.type("lidar --install-completion\n", until="completion installed in")
        session.type("exit\n", until="exit")
    with Shell([program, "-i"], tmp_path, variables) as session:
        offered = session.type("lidar rank --by \t\t", until="alignment")
        for name in METRICS:
            offered += session.type("", until=name) if name not in offered else ""
        session.type("\x15lidar score z.npy --metrics lidar,partic\t", until="lidar,participation_")
        session.type("\x15lidar rank --views ident\t", until="identity")
        session.type("\x03exit\n", until="exit")


class Shell:
    """An interactive shell in a pseudo-terminal."""

    def __init__(self, words: list[str], cwd: Path, variables: dict[str, str]) -> None:
        self._end, theirs = pty.openpty()
        self._process = subprocess.Popen(
            words, cwd=cwd, env=variables, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)

    def type(self, text: str, until: str, seconds: float = 30.0) -> str:
        """Type a text; returns what the shell prints until it has printed `until`."""
        os.write(self._end, text.encode())
        shown, end = "", time.monotonic() + seconds
        while until not in shown:
            ready = select.select([self._end], [], [], max(0, end - time.monotonic()))[0]
            assert ready, f"no {until!r} in {shown!r}"
            shown += os.read(self._end, 4096).decode(errors="replace")
        return shown

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._end)
