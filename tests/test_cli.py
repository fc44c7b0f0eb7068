"""The command line as a shell sees it: streams, exit statuses, one line for each mistake."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command import Command, run_command
from make import environment, lidar, lidar_anew

from lidar_cli.errors import LidarError
from lidar_cli.settings import COMMANDS, flags


@pytest.fixture
def views(tmp_path: Path) -> Path:
    """An array (40, 3, 8) with signal, as .npy."""
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(40, 1, 8, generator=generator)
    path = tmp_path / "views.npy"
    np.save(path, (centres + torch.randn(40, 3, 8, generator=generator)).numpy())
    return path


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_names_every_option_and_its_default(command: str, tmp_path: Path) -> None:
    shown = lidar(command, "--help", cwd=tmp_path, COLUMNS="200")
    assert shown.returncode == 0
    assert shown.stderr == ""
    for field in dataclasses.fields(COMMANDS[command]):
        names = flags(field)
        for flag in names if field.default is not True else [f"--no-{name[2:]}" for name in names]:
            assert re.search(rf"(?<![\w-]){flag}\b", shown.stdout), flag
        if field.default not in (None, False, True, ()):
            assert f"[{field.default}]" in shown.stdout or "[auto:" in shown.stdout


def test_score_json_is_alone_on_stdout(views: Path) -> None:
    done = lidar_anew("score", views, "--json", cwd=views.parent)
    assert done.returncode == 0
    (score,) = json.loads(done.stdout)
    contract = (
        "file layer n_samples n_views dim delta epsilon lidar noise_fraction n_above_noise "
        "lidar_corrected pillai information reliable_rank rankme rankme_source rankme_rows "
        "rankme_augmented alpha_req alpha_req_r2 notes"
    )
    assert set(contract.split()) <= score.keys()
    assert (score["n_samples"], score["n_views"], score["dim"]) == (40, 3, 8)
    assert score["alpha_req"] is None
    assert "it needs d >= 100" in score["notes"]["alpha_req"]


def test_score_csv_is_alone_on_stdout(views: Path) -> None:
    done = lidar("score", views, views, "--csv", cwd=views.parent)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 2
    assert rows[0] == rows[1]
    assert float(rows[0]["lidar"]) > 1
    assert rows[0]["alpha_req"] == ""


def test_score_markdown_has_the_numbers_of_the_csv(views: Path) -> None:
    markdown = lidar("score", views, views, "--markdown", cwd=views.parent).stdout
    table, *remarks = markdown.rstrip().split("\n\n")
    header, _, *body = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.split("\n")
    ]
    rows = list(
        csv.DictReader(io.StringIO(lidar("score", views, views, "--csv", cwd=views.parent).stdout))
    )
    for cells, row in zip(body, rows, strict=True):
        shown = dict(zip(header, cells, strict=True))
        assert shown["file"] == f"{views}:views"
        assert [shown[name] for name in "nqd"] == [row["n_samples"], row["n_views"], row["dim"]]
        assert float(shown["lidar"]) == pytest.approx(float(row["lidar"]), rel=1e-3)
        assert float(shown["rankme"]) == pytest.approx(float(row["rankme"]), rel=1e-3)
        assert (shown["alpha_req"], row["alpha_req"]) == ("-", "")
    assert any("no alpha_req" in remark for remark in remarks)
    both = lidar("score", views, "--markdown", "--json", cwd=views.parent)
    assert both.returncode == 2
    assert "--json and --markdown exclude each other" in both.stderr


@pytest.mark.parametrize("command", ["score", "probe"])
def test_output_for_programs_is_whole_if_no_file_can_be_used(command: str, tmp_path: Path) -> None:
    done = lidar(command, "absent.h5", "--json", cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)) == (3, [])
    table = lidar(command, "absent.h5", "--csv", cwd=tmp_path)
    assert (table.returncode, len(table.stdout.splitlines())) == (3, 1)


def test_a_table_in_a_pipe_has_no_colour_and_is_not_cut(views: Path) -> None:
    long = views.rename(views.parent / ("a" * 120 + ".npy"))
    done = lidar("score", long, long, cwd=views.parent, FORCE_COLOR="", COLUMNS="40")
    assert "\x1b" not in done.stdout
    assert done.stdout.count("a" * 120) >= 2
    header = done.stdout.splitlines()[0].split()
    assert header[:5] == ["n", "q", "d", "file", "lidar"]


def test_one_bad_file_does_not_hide_the_others(views: Path) -> None:
    done = lidar("score", views, "absent.npy", "--json", cwd=views.parent)
    assert done.returncode == 3
    assert len(json.loads(done.stdout)) == 1
    assert done.stderr == "error: absent.npy: no such file\n"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["score", "views.npy", "--metrics", "lidr"], 2, "no metric 'lidr'; did you mean lidar?"),
        (["score", "views.npy", "--json", "--csv"], 2, "--json and --csv exclude each other"),
        (["score", "views.npy", "--delta", "-1"], 2, "--delta -1: expected 0 or more"),
        (["score", "views.npy", "--device", "gpu"], 2, "expected auto, cpu, cuda or cuda:N"),
        (["score", "views.npy", "--device", "meta"], 2, "expected auto, cpu, cuda or cuda:N"),
        (["extract", "views.npy", "--data", ""], 2, "data (from option) is empty"),
        (["rank", ".", "--memory", "abc"], 2, "'abc' is not a memory size"),
        (["score", "views.npy", "--memory", "lots"], 2, "'lots' is not a memory size"),
        (["score", "views.npy", "--plot", "a.pdf"], 2, "ends in .png or .svg"),
        (["score", "views.npy", "--views-per-sample", "7"], 3, "leave the option out"),
        (["score", "views.npy", "--dataset", "x"], 3, "no array 'x'"),
        (["score", "."], 3, "is a directory; score takes files"),
        (["rank", ".", "--exclude", "*"], 3, "no checkpoint in it"),
        (["rank", "absent"], 3, "no such file or folder"),
        (["rank", ".", "--by", "lida"], 2, "did you mean lidar?"),
        (["rank", ".", "--quiet", "--json"], 2, "exclude each other"),
        (["extract", "absent.pt"], 3, "absent.pt: no such file"),
        (["extract", "views.npy"], 3, "views.npy"),
        (["extract", "views.npy", "--views", "simclrr"], 2, "did you mean simclr?"),
        (
            ["extract", "views.npy", "--precision", "half"],
            2,
            "--precision half: expected float32, ",
        ),
    ],
)
def test_each_mistake_is_one_line_and_a_status(
    views: Path, arguments: list[str], status: int, text: str
) -> None:
    done = lidar(*arguments, cwd=views.parent)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert text in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["rank", "extract", "score", "demo", "cache"])
def test_an_empty_path_is_not_the_current_folder(command: str, tmp_path: Path) -> None:
    done = lidar(command, "", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: lidar {command}: \S+ is empty; .*\n", done.stderr)


def test_an_unknown_option_is_wrong_usage(tmp_path: Path) -> None:
    done = lidar("score", "x.h5", "--bogus", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: lidar score: no option --bogus; see lidar score --help\n"


def test_plot_without_its_extra_names_it(views: Path) -> None:
    # A directory first on the path, with a matplotlib that cannot be imported.
    block = views.parent / "blocked"
    block.mkdir()
    (block / "matplotlib.py").write_text("raise ImportError('not installed')\n")
    path = os.pathsep.join([str(block), os.environ.get("PYTHONPATH", "")])
    done = lidar("score", views, "--plot", "a.png", cwd=views.parent, PYTHONPATH=path)
    assert done.returncode == 2
    assert "pip install 'lidar-cli[plot]'" in done.stderr


def test_the_legend_of_a_plot_names_files_of_one_name(views: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shutil.copy(views, tmp_path / folder / "z.npy")
    done = lidar("score", "one/z.npy", "two/z.npy", "--plot", "s.svg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    svg = (tmp_path / "s.svg").read_text()  # each text is a comment before its glyphs
    assert (svg.count("<!-- one -->"), svg.count("<!-- two -->")) == (1, 1)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot_writes_a_picture(views: Path, suffix: str) -> None:
    done = lidar("score", views, "--plot", f"spectra.{suffix}", cwd=views.parent)
    assert done.returncode == 0, done.stderr
    head = (views.parent / f"spectra.{suffix}").read_bytes()[:200]
    assert head.startswith(b"\x89PNG") or b"<?xml" in head


CLOSED = "error: stdout cannot be written: Bad file descriptor; it is closed\n"
LEFT = "error: stdout cannot be written: Broken pipe; its reader ended before all was written\n"


@pytest.mark.parametrize("words", [["score", "views.npy"], ["score", "views.npy", "--json"]])
def test_a_reader_that_leaves_early_is_one_line(words: list[str], views: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_command(words, views.parent, environment(), stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (3, LEFT)


def closed(words: str, redirections: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m lidar_cli {words} {redirections}"
    return subprocess.run(command, shell=True, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("words", ["score views.npy --csv", "--help", "inspect --formats"])
def test_closed_stdout_is_one_line(words: str, views: Path) -> None:
    done = closed(words, ">&-", views.parent)
    assert (done.returncode, done.stderr) == (3, CLOSED)


def test_closed_streams_leave_files_and_statuses_as_they_are(views: Path) -> None:
    assert closed("score views.npy --plot a.svg", "<&- >&- 2>&-", views.parent).returncode == 3
    assert (views.parent / "a.svg").read_text().rstrip().endswith("</svg>")
    assert closed("score absent.npy", "2>&-", views.parent).returncode == 3
    done = closed("score views.npy --json", "<&- 2>&-", views.parent)
    assert done.returncode == 0
    assert json.loads(done.stdout)


@pytest.mark.skipif(sys.platform == "darwin", reason="every name there is UTF-8")
@pytest.mark.parametrize(
    "encoding",
    ["ascii", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("latin-1", "utf-8"))],
)
def test_names_that_cannot_be_encoded_are_escaped(encoding: str, views: Path) -> None:
    shown = {"ascii": "caf\\xe9", "latin-1": "caf\xe9", "utf-8": "caf\xe9"}[encoding]
    # As PYTHONIOENCODING does where Python starts.
    encoded = (
        f"import sys\nsys.stdout.reconfigure(encoding={encoding!r}, errors='strict')\n"
        "from lidar_cli.__main__ import main\nmain()"
    )
    names = [b"caf\xc3\xa9.npy", b"a\xff$\\frac$.npy"]
    for name in names:
        shutil.copyfile(views, os.fsencode(views.parent) + b"/" + name)
    for words in ([], ["--csv"], ["--json", "--report", "p.html", "--plot", "p.svg"]):
        words = ["score", *map(os.fsdecode, names), *words]
        with (views.parent / "printed").open("wb") as printed:
            done = run_command(
                words, views.parent, environment(), stdout=printed.fileno(), script=encoded
            )
        assert done.returncode == 0, done.stderr
        out = (views.parent / "printed").read_text(encoding)
        if "--json" in words:
            assert [score["file"] for score in json.loads(out)] == [*map(os.fsdecode, names)]
            page = (views.parent / "p.html").read_text(encoding="utf-8")
            assert "caf\xe9.npy" in page
            assert "a\\udcff$\\frac$.npy" in page
            assert (views.parent / "p.svg").stat().st_size > 1000
        else:
            assert f"{shown}.npy" in out
            assert "a\\udcff$\\frac$.npy" in out


def test_an_interrupt_leaves_with_130_and_no_trace(tmp_path: Path) -> None:
    with Command(["demo", "d"], tmp_path, environment()) as running:
        while not (tmp_path / "d" / "runs").exists() and running.poll() is None:
            time.sleep(0.05)
        time.sleep(1.0)  # the folder is there, so that training has begun and goes on for a minute
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    announcement, last = errors.splitlines()
    assert announcement.startswith("training 12 small networks")
    assert last == "interrupted"


DROPPED = """
import signal, sys, time
from lidar_cli import __main__, cli

slow = float(sys.argv.pop(1))

def trace(frame, event, argument):  # a busy machine, on which the hook takes its time
    if frame.f_code.co_name == "_resend_signal":
        if event == "return":
            time.sleep(slow)
        return trace

class Dropping:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)  # where Python looks for signals

def program(**_):
    sys.settrace(trace)
    Dropping()
    time.sleep(30)

cli.program = program
__main__.main()
"""


@pytest.mark.parametrize("slow", [0, 0.3])
def test_an_interrupt_that_meets_a_destructor_is_not_lost(tmp_path: Path, slow: float) -> None:
    command = [sys.executable, "-c", DROPPED, str(slow)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=25)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


EARLY = """
import signal
from typer.core import TyperGroup
from lidar_cli import __main__

TyperGroup.make_context = lambda *_, **more: signal.raise_signal(signal.SIGINT)
__main__.main()
"""


def test_an_interrupt_before_the_command_is_answered_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLY], cwd=tmp_path, capture_output=True, text=True, timeout=25
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_a_full_disk_below_stderr_ends_no_work(views: Path) -> None:
    def status(*words: str) -> tuple[int, str]:
        with Path("/dev/full").open("w") as full:
            done = run_command(words, views.parent, environment(), stderr=full.fileno())
        return done.returncode, done.stdout

    (views.parent / "lidar.toml").write_text("delta = 1e-4\n")  # which a remark mentions
    code, numbers = status("score", views.name, "--json")
    assert code == 0
    assert json.loads(numbers)
    assert status("score", "absent.npy") == (3, "")
    assert status("score", "--nonsense") == (2, "")


@pytest.mark.parametrize("name", ["x" * 300, "file/inside", "."])
@pytest.mark.parametrize(
    "words",
    [
        ("extract", "@"),
        ("extract", "x.pt", "--data", "@"),
        ("score", "@"),
        ("probe", "@"),
        ("score", "z.npy", "--report", "@"),
    ],
)
def test_a_name_that_the_system_refuses_is_one_line(
    words: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    np.save(tmp_path / "z.npy", np.ones((4, 2, 3), np.float32))
    done = lidar(*(word.replace("@", name) for word in words), cwd=tmp_path)
    assert done.returncode in (2, 3)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_version_and_module_are_the_same_program(tmp_path: Path) -> None:
    from lidar_cli import __version__

    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    versions = f"torch {torch.__version__}, {built_for}, Python {platform.python_version()}"
    assert lidar("--version", cwd=tmp_path).stdout == f"lidar {__version__} ({versions})\n"


def test_a_switch_of_the_config_can_be_turned_off_again(tmp_path: Path) -> None:
    (tmp_path / "lidar.toml").write_text("normalize = true\n")
    shown = lidar("score", "x.npy", "--show-config", cwd=tmp_path).stdout
    assert re.search(r"normalize +" + r"= True +# lidar.toml", shown)
    shown = lidar("score", "x.npy", "--no-normalize", "--show-config", cwd=tmp_path).stdout
    assert re.search(r"normalize +" + r"= False +# option", shown)


def test_too_little_memory_is_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.ones((4, 2, 200_000), np.float32))
    script = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34)); "
    script += "from lidar_cli.__main__ import main; main()"
    done = run_command(["score", "wide.npy"], tmp_path, environment(), script=script)
    assert done.returncode == 3
    assert "not enough memory for moments of d = 200,000: 596.0 GB" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_error_has_a_status_of_the_contract() -> None:
    def tree(cls: type[LidarError]) -> set[type[LidarError]]:
        return {cls}.union(*(tree(sub) for sub in cls.__subclasses__()))

    assert {cls.exit_status for cls in tree(LidarError)} == {2, 3}
