"""The mistakes that users make: each is answered in one line with what to type next, at once."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from make import environment, lidar
from mistakes import MISTAKES, Mistake, make_workplace

# Forks of an interpreter without torch that has run one command, each of which runs the program.
RUN_EACH = """
import contextlib, json, os, pathlib, sys
import numpy, pydantic, lidar_cli.checkpoints.inspect
from lidar_cli import cli
from lidar_cli.__main__ import main

def run(words):
    sys.argv = ["lidar", *words]
    for number in (1, 2):
        os.dup2(os.open(f"{os.getpid()}.{number}", os.O_CREAT | os.O_RDWR), number)
    try:
        main()
    except SystemExit as left:
        return [left.code, "torch" in sys.modules]
    return [0, "torch" in sys.modules]

sys.argv = ["lidar", "rank", "runs/", "--by", "lidarr"]
with contextlib.suppress(SystemExit):
    main()
for words in json.load(sys.stdin):
    end, theirs = os.pipe()
    if not (child := os.fork()):
        os.write(theirs, json.dumps(run(words)).encode())
        os._exit(0)
    os.close(theirs)
    answer = json.loads(os.read(end, 4096) or '["no answer", false]')
    os.waitpid(child, 0)
    os.close(end)
    for number in (1, 2):
        file = pathlib.Path(f"{child}.{number}")
        answer.append(file.read_text())
        file.unlink()
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Words -> exit status, whether torch was imported if it must not be, stdout, stderr."""
    folder = tmp_path_factory.mktemp("workplace")
    make_workplace(folder)
    without = [mistake.words for mistake in MISTAKES if not mistake.torch]
    words = json.dumps([each.split() for each in without])
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH],
        cwd=folder, env=environment(), input=words, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    answers = dict(zip(without, lines, strict=True))
    for mistake in (mistake for mistake in MISTAKES if mistake.torch):
        slow = lidar(*mistake.words.split(), cwd=folder)
        answers[mistake.words] = [slow.returncode, None, slow.stdout, slow.stderr]
    return answers


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.words)
def test_a_mistake_is_answered_with_what_to_type(mistake: Mistake, answers: dict[str, Any]) -> None:
    status, torch, out, error = answers[mistake.words]
    assert status == mistake.status, error
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert mistake.next in error
    assert mistake.torch or not torch


def test_the_list_is_long_enough() -> None:
    assert len({mistake.words for mistake in MISTAKES}) == len(MISTAKES) >= 30
