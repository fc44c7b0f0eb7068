"""A folder that came from elsewhere: its settings, names and tables do nothing by themselves."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from command import run_command
from feature_files import complete
from make import checkpoint, environment, image_folder, lidar, lidar_here

from lidar_cli.configuration import LONGEST, NAMED_ONLY, resolve
from lidar_cli.data.tables import read_table
from lidar_cli.errors import InputError, SettingsError, printable
from lidar_cli.features.embeddings import Embeddings
from lidar_cli.scoring.open import open_embeddings
from lidar_cli.settings import ExtractSettings, RankSettings, ScoreSettings


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Settings that were not named


VALUES = {"model": '"evil:make"', "data": '"evil:make"', "overwrite": "true"}


@pytest.mark.parametrize("name", [*NAMED_ONLY, "data"])
def test_what_runs_code_or_writes_needs_config(name: str) -> None:
    cls = ExtractSettings if hasattr(ExtractSettings, name) else RankSettings
    command = "extract" if cls is ExtractSettings else "rank"
    value = VALUES.get(name, '"place"')
    for text in (f"{name.replace('_', '-')} = {value}", f"[{command}]\n{name} = {value}"):
        Path("lidar.toml").write_text(text)
        with pytest.raises(SettingsError) as caught:
            resolve(cls, {})
        assert str(caught.value) == (
            f"./lidar.toml was found here and sets {name}, which may run code or write elsewhere; "
            "read it, then name it with --config lidar.toml, or remove that line"
        )
        found = resolve(cls, {}, config=Path("lidar.toml"))
        assert found.origins[name] == "lidar.toml"


def test_a_module_of_a_found_file_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("open('canary', 'w')\ndef make(): raise SystemExit(7)\n")
    (tmp_path / "lidar.toml").write_text('model = "evil:make"\n')
    checkpoint(tmp_path / "a.pt")
    for command in (["extract", "a.pt"], ["rank", "."]):
        done = lidar(*command, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ./lidar.toml was found here and sets model")
        assert not (tmp_path / "canary").exists()
    lidar("extract", "a.pt", "--config", "lidar.toml", cwd=tmp_path)
    assert (tmp_path / "canary").exists()


def test_a_found_file_is_named_when_it_is_used(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    np.save("z.npy", np.random.default_rng(0).normal(size=(20, 3, 4)))

    def notes(*words: str) -> str:
        done = lidar_here("score", "z.npy", "--json", *words, monkeypatch=monkeypatch, capfd=capfd)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert notes() == ""
    Path("lidar.toml").write_text("n_views = 7\n")  # of no meaning to this command
    assert notes() == ""
    Path("lidar.toml").write_text("delta = 0.1\n")
    assert notes() == "settings from ./lidar.toml, which was found here\n"
    assert notes("--delta", "0.2") == ""
    assert notes("--config", "lidar.toml") == ""


def test_a_found_file_of_another_user_is_refused() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    Path("lidar.toml").write_text("delta = 0.1\n")
    os.chown("lidar.toml", 12345, -1)
    with pytest.raises(SettingsError, match="belongs to another user; read it, then name it"):
        resolve(ScoreSettings, {})
    assert resolve(ScoreSettings, {}, config=Path("lidar.toml")).values.delta == 0.1


HOSTILE = {
    "lists in lists": "a = " + "[" * 10**4,
    "tables in tables": "recipe = " + "{a = " * 5000 + "1" + "}" * 5000,
    "a long key": ".".join("a" * 5000) + " = 1",
    "a long number": "seed = " + "9" * 5000,
    "beyond measure": "# " + "x" * LONGEST,
    "NUL": "seed = 1\0",
    "escapes": 'a = "\x1b[2J"',
    "an escaped key": '"\\u001b[2Jdelta" = 1',
    "a date": "delta = 2020-01-01",
    "not a number": "delta = nan",
    "endless": "delta = inf",
    "a table": "[score.delta]\na = 1",
    "a list": "delta = [1]",
    "a command": "score = 1",
    "twice": "delta = 1\ndelta = 2",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_settings_are_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("x.toml").write_text(HOSTILE[name])
    words = ["score", "z.npy", "--config", "x.toml"]
    done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("\n")
    assert done.stderr[:-1].isprintable()
    assert len(done.stderr) < 1000


def test_binary_settings_are_one_line() -> None:
    Path("x.toml").write_bytes(bytes(range(256)))
    with pytest.raises(SettingsError, match=r"x\.toml is not valid TOML"):
        resolve(ScoreSettings, {}, config=Path("x.toml"))


# Tables


@pytest.mark.parametrize(
    "content",
    [
        b"path,accuracy\n" + b"x" * 200_000 + b",1\n",
        b"path,accuracy\na.pt,1\0\n",
        b"path,accuracy\n\x1b[2J,1\n",
        bytes(range(256)) * 10,
        b'path,accuracy\n"' + b'"' * 99_999,
        b"path,accuracy\na" + b"," * 10_000,
        b"path,accuracy," + b"a," * 10_000 + b"\n",
    ],
    ids=["long", "NUL", "escape", "binary", "quotes", "commas", "columns"],
)
def test_hostile_tables_are_one_line(content: bytes) -> None:
    Path("t.csv").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_table(Path("t.csv"), ("path", "accuracy"))
    assert printable(str(caught.value)).isprintable()
    assert len(str(caught.value)) < 1000


FORMULAS = ["=cmd.npy", "+cmd.npy", "-cmd.npy", "@cmd.npy"]


def test_no_cell_that_is_written_is_a_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in FORMULAS:
        np.save(name, np.random.default_rng(0).normal(size=(20, 3, 4)))
    path = complete(tmp_path / "f.h5")
    with h5py.File(path, "r+") as file:
        file["embeddings"].move("projector", "=HYPERLINK(0)")
        file.attrs["provenance"] = json.dumps({"data": "@SUM(1)"})
    words = ["score", "--csv", path, "--", *FORMULAS]
    done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
    assert done.returncode == 0, done.stderr
    lines = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [line["file"] for line in lines[-4:]] == [f"./{name}" for name in FORMULAS]
    assert all(Path(line["file"]).exists() for line in lines)
    assert {line["layer"] for line in lines[:2]} == {"backbone", "'=HYPERLINK(0)"}
    assert {line["data"] for line in lines[:2]} == {"'@SUM(1)"}
    cells = [cell for line in lines for cell in line.values()]
    for cell in cells:
        assert not cell.startswith(("=", "+", "@"))
        assert not cell.startswith("-") or float(cell) < 0


# Terminals

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b1m\u202e\r\n"


def test_printable_keeps_text_and_shows_the_rest() -> None:
    assert printable("déjà vu 写真 \N{CAT} | = \\") == "déjà vu 写真 \N{CAT} | = \\"
    assert printable("a\x1b[2J\x9b\u202e\n\udce9") == "a\\x1b[2J\\x9b\\u202e\\n\\udce9"


def test_names_out_of_files_are_obeyed_by_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    layer = f"a{ESCAPES}b"
    path = complete(tmp_path / "f.h5")
    with h5py.File(path, "r+") as file:
        file["embeddings"].move("projector", layer)
        file.attrs["provenance"] = json.dumps({"data": layer})
    np.save(tmp_path / f"z{ESCAPES}.npy", np.random.default_rng(0).normal(size=(20, 3, 4)))
    (tmp_path / f"w{ESCAPES}.npy").write_text("words")
    files = [path, *tmp_path.glob("*.npy")]
    for more in ([], ["--csv"], ["--json"]):
        done = lidar_here("score", *files, *more, monkeypatch=monkeypatch, capfd=capfd)
        assert done.returncode == 3
        for text in (done.stdout, done.stderr):
            assert all(line.isprintable() for line in text.split("\n"))
        assert "\\u202e" in done.stdout
        assert sum(line.startswith("error: ") for line in done.stderr.split("\n")) == 1
    assert any(one["layer"] == layer for one in json.loads(done.stdout))


def test_a_name_forges_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a\nforged.npy", np.random.default_rng(0).normal(size=(20, 3, 4)))
    np.save(tmp_path / "b.npy", np.random.default_rng(1).normal(size=(20, 3, 4)))
    for files in (["a\nforged.npy", "b.npy"], ["a\nforged.npy"]):
        paths = [tmp_path / name for name in files]
        done = lidar_here("score", *paths, monkeypatch=monkeypatch, capfd=capfd)
        assert done.returncode == 0
        assert "a\\nforged.npy" in done.stdout
        assert not [line for line in done.stdout.splitlines() if line.startswith("forged")]


def test_a_ranking_of_hostile_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    checkpoint(runs / "good.pt")
    shutil.move(runs / "good.pt", runs / f"a{ESCAPES}.pt")
    (runs / f"b{ESCAPES}.pt").write_text("words")
    words = ["rank", runs, "--data", image_folder(tmp_path / "images", 12), "-n", 12, "-q", 3]
    words += ["--image-size", 24, "--device", "cpu"]
    for more in ([], ["--csv"], ["--markdown"]):
        done = lidar_here(*words, *more, monkeypatch=monkeypatch, capfd=capfd)
        assert done.returncode == 4
        for text in (done.stdout, done.stderr):
            assert all(line.isprintable() for line in text.split("\n"))


def test_a_path_alone_is_exact_for_a_script(tmp_path: Path) -> None:
    runs = checkpoint(tmp_path / "runs/a.pt").parent
    name = os.fsencode(runs) + b"/caf\xe9\x1b.pt"
    os.rename(runs / "a.pt", name)  # noqa: PTH104
    images = image_folder(tmp_path / "images", 12)
    words: list[Any] = ["rank", runs, "--data", images, "-n", 12, "-q", 3, "--image-size", 24]
    with (tmp_path / "out").open("w+b") as out:
        done = run_command([*words, "--quiet"], tmp_path, environment(), stdout=out.fileno())
        out.seek(0)
        assert (done.returncode, out.read()) == (0, name + b"\n"), done.stderr
    assert "\x1b" not in done.stderr


# Arrays


def open_one(name: str) -> Embeddings:
    (embeddings,) = open_embeddings(Path(name), ScoreSettings())
    return embeddings


def test_archives_that_unpack_beyond_measure(tmp_path: Path) -> None:
    np.savez_compressed("bomb.npz", z=np.zeros((20, 2**20), np.float32))
    assert Path("bomb.npz").stat().st_size < 2**17
    with pytest.raises(InputError, match="unpacks to 83,886,"):
        open_one("bomb.npz")
    np.savez_compressed("harmless.npz", z=np.zeros((20, 2**10), np.float32))
    assert open_one("harmless.npz").shape == (20, 0, 2**10)
    for shape in ((10**12, 3), (10**6, 10**3, 10**3)):
        torch.save(torch.zeros(1).expand(shape), "wide.pt")
        with pytest.raises(InputError, match=r"repeats the \d+ bytes of its storage"):
            open_one("wide.pt")
