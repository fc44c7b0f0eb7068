"""What a command shows of its work: a live line in a terminal, lines with the time elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from make import checkpoint, image_folder
from terminal import ESCAPES, shown, written_in_terminal

from lidar_cli.report import progress
from lidar_cli.report.progress import LONGEST_NAME, Terminal

N = 60
RUN = "a-run-whose-name-says-all-of-its-hyperparameters-and-then-its-seed-"  # too long for a line
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and three checkpoints whose long names differ at their ends."""
    folder = tmp_path_factory.mktemp("progress")
    image_folder(folder / "images", N)
    for seed in range(3):
        checkpoint(folder / f"runs/{RUN}{seed}/last.pt", seed)
    return folder


def rank(folder: Path, cache: Path, term: str = "xterm") -> str:
    words = ["rank", "runs", "--data", "images", "-n", N, "-q", 4, "--image-size", 24]
    words += ["--device", "cpu", "--batch-size", 20, "--cache", cache]
    status, written = written_in_terminal(words, folder, term=term)
    assert status == 0, written
    return written


def test_a_terminal_shows_one_live_line_and_a_line_a_checkpoint(
    folder: Path, tmp_path: Path
) -> None:
    written = rank(folder, tmp_path / "cache")
    drawn = re.split(r"[\r\n]+", ESCAPES.sub("", written))
    live = [line for line in drawn if re.match(r"\[3/3\] a-run\S*\.\.\.\S*  \w+ \d+/60   ", line)]
    assert live
    assert max(map(len, live)) < 80
    left = shown(written)
    assert not [line for line in left if line.startswith("[")]
    line = re.compile(r" {8}(a-run\S*\.\.\.\S*-\d) +[\d.]+   [\d.]+ s")
    names = [match[1] for match in map(line.fullmatch, left) if match]
    assert len(set(names)) == 3
    assert {len(name) for name in names} == {LONGEST_NAME}


def test_a_dumb_terminal_gets_lines_with_the_time_and_no_escapes(
    folder: Path, tmp_path: Path
) -> None:
    written = rank(folder, tmp_path / "cache", term="dumb")
    assert "\x1b" not in written
    line = rf"{TIME}  \[3/3\] {RUN}\d lidar [\d.]+ \([\d.]+ s\)"
    assert len(re.findall(line, written)) == 1


def test_within_a_long_checkpoint_a_log_gets_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    lines = {}
    for is_quiet in (False, True):
        clock.now = 0.0
        with Terminal(quiet=is_quiet) as terminal:
            terminal.begin(["a", "b"], 2, "lidar")
            terminal.checkpoint("a")
            for seconds in range(0, 150, 3):
                clock.now = float(seconds)
                terminal.update("embedding", 10 * seconds // 3, 1000)
        lines[is_quiet] = capsys.readouterr().err.splitlines()
    # 0.3 s a sample: 800 and then 600 of this checkpoint are left, and the 1000 of the next.
    expected = [
        "[1/2] a embedding 200/1000 (1 min), about 9 min left",
        "[1/2] a embedding 400/1000 (2 min), about 8 min left",
    ]
    assert [re.sub(f"^{TIME}  ", "", line) for line in lines[False]] == expected
    assert lines[True] == []
