"""A ranking against accuracies: CSV files as people write them, pandas as the judge of tables."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from command import Command
from formats import FIXTURES
from make import checkpoint, environment, image_folder, lidar_here, state_dict
from raising import raises
from scores import score

from lidar_cli.core.metrics import METRICS
from lidar_cli.data import dataset
from lidar_cli.data.tables import match, read_table
from lidar_cli.errors import InputError
from lidar_cli.extraction.run import extract_checkpoint
from lidar_cli.ranking.correlation import correlate
from lidar_cli.ranking.hyperparameters import (
    from_checkpoints,
    from_table,
    slices,
    varying,
    with_names,
)
from lidar_cli.ranking.oracle import by_hyperparameter, compare_with_oracle, select
from lidar_cli.ranking.session import embed_for_probes, rank_directory
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import Score
from lidar_cli.settings import ExtractSettings, RankSettings

N, Q, SIZE = 24, 4, 24
Shell = Callable[..., subprocess.CompletedProcess[str]]


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# Tables


@pytest.mark.parametrize(
    "text",
    [
        "path,accuracy\na.pt,0.5\nb.pt,0.25\n",
        "\ufeffPath , ACCURACY\r\n a.pt , 0.5 \r\n\r\nb.pt,0.25\r\n,\r\n",
        "accuracy;note;path\n0.5;x, y;a.pt\n0.25;;b.pt",
        'path\taccuracy\n"a.pt"\t0.5\nb.pt\t0.25\n',
        "Name,State,val/top-1\na.pt,finished,0.5\nb.pt,crashed,0.25\n",
        "run,checkpoint,acc@1 (%)\nx,a.pt,0.5\ny,b.pt,0.25\n",
        "val_acc,Run,Accuracy\n1,a.pt,0.5\n1,b.pt,0.25\n",
        '"Name","State","Notes","User","Tags","Created","Runtime","Sweep","lr","val/acc"\n'
        '"a.pt","finished","-","me","","2026-01-02T03:04:05.000Z","61","","0.1","0.5"\n'
        '"b.pt","crashed","-","me","","2026-01-02T03:04:05.000Z","7","","0.2","0.25"\n',
        '"Step","a.pt - _step","a.pt - val/acc","a.pt - val/acc__MIN","a.pt - val/acc__MAX",'
        '"b.pt - val/acc"\n"0","0","0.1","0.1","0.1","0.25"\n"9","9","0.5","0.4","0.6",""\n',
        "Start Time,Duration,Run ID,Name,Source Type,Source Name,User,Status,lr,acc\n"
        "2026-01-02 03:04:05,61ms,0f,a.pt,LOCAL,train.py,me,FINISHED,0.1,0.5\n"
        "2026-01-02 03:04:05,61ms,1f,b.pt,LOCAL,train.py,me,FINISHED,0.1,0.25\n",
        ",run_id,experiment_id,status,artifact_uri,metrics.accuracy,params.lr,tags.mlflow.runName\n"
        "0,0f,1,FINISHED,file:///mlruns/1/0f/artifacts,0.5,0.1,a.pt\n"
        "1,1f,1,FINISHED,file:///mlruns/1/1f/artifacts,0.25,0.2,b.pt\n",
        "checkpoint,metric,value\na.pt,loss,3\na.pt,accuracy,0.5\nb.pt,accuracy,0.25\n",
    ],
)
def test_tables_as_people_write_them(tmp_path: Path, text: str) -> None:
    table = read_table(written(tmp_path / "t.csv", text), ("path", "accuracy"))
    assert [(row["path"], row["accuracy"]) for row in table.rows] == [
        ("a.pt", "0.5"),
        ("b.pt", "0.25"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path' (or checkpoint, file, name, run); its header is empty"),
        ("where,accuracy\na,1", "no column 'path' (or checkpoint, file, name, run); its header is"),
        ("path,loss\na,1", "no column 'accuracy' (or acc, top1); its header is path, loss"),
        ("path,val_acc,test_acc\na,1,2", "val_acc and test_acc could each be the accuracy"),
        ("path,accuracy,accuracy\na,1,2", "two columns of its header have the same name"),
        ("Step,a - val/acc,a - test/acc\n0,1,2", "val/acc and test/acc could each be the accuracy"),
        ("run,metric,value\na,acc,1\na,acc,1", "a has two lines of 'acc'; expected one"),
        ("model,metric,value\na,acc,1", "no column 'path'"),
        ("path,accuracy\na,1\nb", "line 3 that is not empty has 1 cells; expected 2"),
        ("path,accuracy\na,1,2", "line 2 that is not empty has 3 cells; expected 2"),
        (b"path,accuracy\n\xff\xfe,1", "not a CSV file in UTF-8"),
        (b"path,accuracy\na\0b,1\n", "line 2 that is not empty has a control character"),
        ('path,accuracy,"a\nb"\n', "line 1 that is not empty has a control character"),
        ("path,accuracy\n\x1b[31mred.pt,1", "line 2 that is not empty has a control character"),
        ('path,accuracy\n"a,1', "not a CSV file in UTF-8: unexpected end of data"),
        ("path,accuracy\n" + "a" * 200_000 + ",1", "field larger than field limit"),
        ("path,accuracy\na,good", "a: accuracy 'good' is not a number"),
        ("path,accuracy\na,", "a: accuracy '' is not a number"),
        ("path,accuracy\na,nan", "a: accuracy nan; expected 0 to 1, or 0 to 100 %"),
        ("path,accuracy\na,-0.1", "a: accuracy -0.1; expected 0 to 1, or 0 to 100 %"),
        ("path,accuracy\na,1e999", "a: accuracy inf; expected"),
        ("path,accuracy\na,101", "a: accuracy 101; expected"),
    ],
)
def test_odd_tables_are_reported_at_once(
    tmp_path: Path,
    text: str | bytes,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    table = written(tmp_path / "t.csv", text)
    written(tmp_path / "a.pt", "")  # the table is read before it
    words = ["rank", tmp_path, "--oracle", table]
    done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"error: {table}: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (["--oracle", "absent.csv"], 3, "--oracle absent.csv: no such file"),
        (["--oracle", "."], 3, "a folder; expected a CSV file with a header"),
        (["--oracle", "probe", "--params", "absent.csv"], 3, "--params absent.csv: no such file"),
        (["--params", "absent.csv"], 2, "--params groups accuracies by hyperparameter"),
    ],
)
def test_files_that_are_not_there(
    tmp_path: Path,
    more: list[str],
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    done = lidar_here("rank", tmp_path, *more, monkeypatch=monkeypatch, capfd=capfd)
    assert done.returncode == status
    assert message in done.stderr


def test_a_mistyped_name_gets_the_nearest(tmp_path: Path) -> None:
    table = written(tmp_path / "t.csv", "path,accuracy\nvicreg-1l,0.5\n")
    rows = read_table(table, ("path", "accuracy"))
    paths = [f"runs/{name}/last.pt" for name in ("vicreg-11", "simclr-02")]
    names = {path: path.split("/")[1] for path in paths}
    _, (line,) = match(rows, [(path, ()) for path in paths], "runs", names)
    assert line.reason == "no such checkpoint; did you mean vicreg-11?"


def test_a_line_means_one_checkpoint_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints = [
        ("runs/a/last.pt", ["runs/copy.pt"]),
        ("runs/b/last.pt", []),
        ("runs/b/best.pt", []),
    ]

    def lines(*paths: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
        text = "path,accuracy\n" + "".join(f"{path},0.5\n" for path in paths)
        table = read_table(written(tmp_path / "t.csv", text), ("path", "accuracy"))
        matched, unmatched = match(table, checkpoints, "runs")
        return (
            {path: row["path"] for path, row in matched.items()},
            [(line.path, line.reason) for line in unmatched],
        )

    ways = [
        ("runs/a/last.pt", "as rank prints it"),
        ("a/last.pt", "below the directory"),
        ("./a//last.pt", "below the directory"),
        (str(tmp_path / "runs/a/last.pt"), "absolute"),
        ("copy.pt", "an alias"),
    ]
    for way, meaning in ways:
        assert lines(way) == ({"runs/a/last.pt": way}, []), meaning
    assert lines("best.pt") == ({"runs/b/best.pt": "best.pt"}, [])  # the only one of its name
    for way in ("a", "a/last", "runs/a", "copy"):  # only one path has these parts
        assert lines(way) == ({"runs/a/last.pt": way}, []), way
    assert lines("last.pt", "b", "a/best")[1] == [
        ("last.pt", "2 checkpoints have this name: a/last.pt, b/last.pt"),
        ("b", "2 checkpoints have this name: b/best.pt, b/last.pt"),
        ("a/best", "no such checkpoint"),
    ]
    names = {"runs/a/last.pt": "short", "runs/b/last.pt": "b/last", "runs/b/best.pt": "best.pt"}
    table = read_table(written(tmp_path / "t.csv", "run,acc\nshort,1\nb,0\n"), ("path",))
    matched, unmatched = match(table, checkpoints, "runs", names)
    assert list(matched) == ["runs/a/last.pt"]
    assert unmatched[0].reason == "2 checkpoints have this name: best.pt, b/last"
    with raises(InputError, "same-checkpoint"):
        lines("copy.pt", "a/last.pt")


# Hyperparameters


def test_checkpoints_carry_hyperparameters(tmp_path: Path) -> None:
    import argparse

    carried = {"lr": 0.1, "epochs": 3, "cosine": True, "name": "x" * 101, "layers": [1, 2]}
    torch.save({"state_dict": state_dict(), "hyper_parameters": carried}, tmp_path / "a.pt")
    arguments = argparse.Namespace(lr=1, arch="resnet50", note="two\nlines", warm=None)
    torch.save({"state_dict": state_dict(), "args": arguments}, tmp_path / "b.pt")
    checkpoint(tmp_path / "c.pt")
    (tmp_path / "d.h5").write_text("no checkpoint")
    paths = [str(tmp_path / name) for name in ("a.pt", "b.pt", "c.pt", "d.h5", "absent.pt")]
    assert from_checkpoints(paths) == {
        paths[0]: {"lr": 0.1, "epochs": 3, "cosine": True},
        paths[1]: {"lr": 1, "arch": "resnet50", "warm": None},
    }


def test_texts_of_a_table_that_are_numbers_are_numbers(tmp_path: Path) -> None:
    text = "path,lr,Method,wd,accuracy\na.pt,1e-1,simclr,,0.5\n"
    table = read_table(written(tmp_path / "t.csv", text), ("path",))
    assert from_table({"a.pt": table.rows[0]}, table) == {
        "a.pt": {"lr": 0.1, "Method": "simclr", "wd": None}
    }


def test_numbers_in_names_stand_behind_what_checkpoints_carry() -> None:
    """A word that only some names have, such as a method's, separates runs and nothing else."""
    steps = ["runs/a/epoch=1.ckpt", "runs/b/epoch=2.ckpt"]
    carried = {"runs/a/epoch=1.ckpt": {"lr": 0.1, "epoch": 1.5}}
    assert with_names(carried, steps, "runs") == {
        "runs/a/epoch=1.ckpt": {"lr": 0.1, "epoch": 1.5},
        "runs/b/epoch=2.ckpt": {"epoch": 2.0},
    }
    assert with_names({}, ["simclr-06.pt", "vicreg-07.pt"]) == {
        "simclr-06.pt": {},
        "vicreg-07.pt": {},
    }
    assert list(with_names({"e-1": {"lr": 0.1}, "e-2": {}}, ["e-1", "e-2"])["e-1"]) == ["lr", "e"]
    assert with_names({}, []) == {}


def test_names_of_runs_are_no_hyperparameters() -> None:
    hyperparameters = {
        "a": {"lr": 0.1, "out": "/a", "seed": 1, "arch": "vit"},
        "b": {"lr": 0.2, "out": "/b", "seed": 1, "arch": "vit"},
        "c": {"lr": 0.2, "out": "/c", "seed": 1, "wd": 0.5, "arch": "vit"},
    }
    assert varying(hyperparameters) == ("lr", "wd")


def test_slices_differ_in_one_hyperparameter_alone() -> None:
    def named(*settings: tuple[float, float]) -> dict[str, dict[str, Any]]:
        return {f"{lr} {wd}": {"lr": lr, "wd": wd} for lr, wd in settings}

    one_at_a_time = named((1, 1), (2, 1), (3, 1), (1, 5))
    assert slices(one_at_a_time, "lr") == [["1 1", "2 1", "3 1"]]
    assert slices(one_at_a_time, "wd") == [["1 1", "1 5"]]
    grid = named((1, 1), (2, 1), (1, 5), (2, 5))
    assert slices(grid, "lr") == [["1 1", "2 1"], ["1 5", "2 5"]]
    assert slices(named((1, 2), (3, 4), (5, 6)), "lr") == []


# The tables, as pandas makes them


def example() -> tuple[pd.DataFrame, dict[str, Score]]:
    """18 checkpoints of a grid and more; ties, nulls, and every kind of direction."""
    generator = np.random.default_rng(0)
    grid = [(lr, wd, m) for lr in (0.1, 0.3, 1.0) for wd in (0.0, 1e-4) for m in ("a", "b", "c")]
    frame = pd.DataFrame(grid, columns=["lr", "wd", "method"])
    frame["accuracy"] = generator.uniform(0.2, 0.8, len(frame)).round(2)
    for name in METRICS:
        noisy = frame["accuracy"] + generator.normal(scale=0.3, size=len(frame))
        frame[name] = noisy.round(1)  # rounding makes ties
    frame.loc[[1, 5, 9], "pillai"] = math.nan
    frame["information"] = math.nan
    frame["rankme"] = 3.0
    frame.index = [f"runs/{i}.pt" for i in frame.index]
    scores = {
        str(path): score(
            str(path), **{n: None if pd.isna(row[n]) else float(row[n]) for n in METRICS}
        )
        for path, row in frame.iterrows()
    }
    return frame, scores


def merit(frame: pd.DataFrame, name: str) -> pd.Series:
    better = METRICS[name].better
    values = frame[name].dropna()
    return {"higher": values, "lower": -values, "target": -(values - 1.0).abs()}[better]


def picked(frame: pd.DataFrame, name: str) -> float | None:
    merits = merit(frame, name)
    if not len(merits):
        return None
    return float(frame.loc[merits[merits == merits.max()].index, "accuracy"].mean())


def test_correlations_are_those_of_pandas() -> None:
    frame, scores = example()
    for row in correlate([scores[path] for path in frame.index], list(frame["accuracy"])):
        both = pd.DataFrame({"merit": merit(frame, row.metric), "a": frame["accuracy"]}).dropna()
        assert row.count == len(both)
        if both["merit"].nunique() < 2:
            assert (row.spearman, row.kendall) == (None, None)
            continue
        for method, value in (("spearman", row.spearman), ("kendall", row.kendall)):
            assert value == pytest.approx(both.corr(method=method).loc["merit", "a"])


def test_selection_is_that_of_pandas() -> None:
    frame, scores = example()
    judged = {path: (scores[path], frame.loc[path, "accuracy"]) for path in frame.index}
    selection = select(judged)
    assert (selection.count, selection.best.accuracy) == (18, frame["accuracy"].max())
    assert selection.best.paths == tuple(frame.index[frame["accuracy"] == frame["accuracy"].max()])
    assert selection.median == pytest.approx(frame["accuracy"].median())
    for pick in selection.picks:
        expected = picked(frame, pick.metric)
        assert pick.accuracy == (None if expected is None else pytest.approx(expected))
    by_name = {pick.metric: pick for pick in selection.picks}
    assert by_name["information"].paths == ()
    assert len(by_name["rankme"].paths) == 18  # all tied: it picks as chance does
    assert any(1 < len(pick.paths) < 18 for pick in selection.picks)


def test_columns_of_hyperparameters_are_those_of_pandas() -> None:
    frame, scores = example()
    judged = {path: (scores[path], frame.loc[path, "accuracy"]) for path in frame.index}
    names = ["lr", "wd", "method"]
    hyperparameters = {path: dict(frame.loc[path, names]) for path in frame.index}
    columns = by_hyperparameter(judged, hyperparameters | {"elsewhere.pt": {"lr": 7.0}})
    assert [column.name for column in columns] == names
    for column in columns:
        others = [name for name in names if name != column.name]
        sets = [part for _, part in frame.groupby(others)]
        assert (column.sets, column.count) == (len(sets), 18)
        assert column.best == pytest.approx(np.mean([part["accuracy"].max() for part in sets]))
        assert column.median == pytest.approx(np.mean([p["accuracy"].median() for p in sets]))
        for metric, accuracy in column.picks.items():
            each = [picked(part, metric) for part in sets]
            expected = None if None in each else np.mean(each)
            assert accuracy == (None if expected is None else pytest.approx(expected))


# From the command line


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), N, classes=["cat", "dog"])


@pytest.fixture
def rank(images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    def run(directory: Path, *more: object) -> subprocess.CompletedProcess[str]:
        words = ["rank", directory, "--data", images, "-n", N, "-q", Q, "--image-size", SIZE]
        words += ["--device", "cpu", "--batch-size", 8, *more]
        return lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)

    return run


def sweep(runs: Path) -> Path:
    """Six checkpoints of a grid of two hyperparameters, and a seventh that cannot be read."""
    for seed, (lr, wd) in enumerate((lr, wd) for lr in (0.1, 0.2, 0.3) for wd in (0, 1)):
        path = runs / str(seed) / "last.pt"
        path.parent.mkdir(parents=True)
        carried = {"lr": lr, "wd": wd, "out": str(path)}
        torch.save({"state_dict": state_dict(seed), "hyper_parameters": carried}, path)
    written(runs / "broken.pt", "no checkpoint")
    return runs


def test_against_a_file_of_accuracies(tmp_path: Path, rank: Shell) -> None:
    runs = sweep(tmp_path / "runs")
    shares = dict(zip(map(str, range(5)), (0.5, 0.7, 0.6, 0.4, 0.65), strict=True))
    text = "path,accuracy\nbroken.pt,99\nlast.pt,3\n"
    text += "".join(f"{name}/last.pt,{100 * share}%\n" for name, share in shares.items())
    table = written(tmp_path / "a.csv", text)
    done = rank(runs, "--oracle", table, "--json")
    assert done.returncode == 4  # broken.pt
    listing = json.loads(done.stdout)
    correlation = listing["correlation"]
    assert (correlation["oracle"], correlation["told"], correlation["level"]) == (
        str(table),
        "read as percent",
        0.95,
    )
    paths = {str(runs / name / "last.pt"): share for name, share in shares.items()}
    assert correlation["accuracies"] == pytest.approx(paths)
    assert correlation["without"] == [str(runs / "5" / "last.pt")]
    assert correlation["unmatched"] == [
        {"path": "broken.pt", "reason": "no such checkpoint"},
        {
            "path": "last.pt",
            "reason": "6 checkpoints have this name: runs/0, runs/1, runs/2, runs/3, runs/4 and 1 "
            "more",
        },
    ]
    (group,) = correlation["groups"]
    assert (group["group"], group["count"], group["median"]) == (1, 5, pytest.approx(0.6))
    assert group["best"] == {
        "paths": [str(runs / "1" / "last.pt")],
        "accuracy": pytest.approx(0.7),
    }
    lidar = next(row for row in group["metrics"] if row["metric"] == "lidar")
    ordered = [r["path"] for r in listing["checkpoints"] if r["path"] in paths]
    assert lidar["picked"] == [ordered[0]]
    assert lidar["picked_accuracy"] == pytest.approx(paths[ordered[0]])
    ranks = pd.Series([paths[path] for path in ordered[::-1]]).corr(
        pd.Series(range(5)), method="spearman"
    )
    assert lidar["spearman"] == pytest.approx(ranks)
    assert lidar["spearman_interval"] is None
    assert lidar["reason"] == "5 checkpoints: an interval by resampling them needs 8"
    # Of the grid without its sixth: three values of lr at wd 0, two at wd 1; wd differs at two lr.
    columns = {column["name"]: column for column in group["hyperparameters"]}
    assert {name: (c["sets"], c["count"]) for name, c in columns.items()} == {
        "lr": (2, 5),
        "wd": (2, 4),
    }
    assert columns["wd"]["best"] == pytest.approx((0.7 + 0.6) / 2)


def test_accuracies_stand_beside_the_ranking_in_every_form(tmp_path: Path, rank: Shell) -> None:
    runs = sweep(tmp_path / "runs")
    text = "path,accuracy\n" + "".join(f"{k}/last.pt,0.{k + 1}\n" for k in range(6))
    table = written(tmp_path / "a.csv", text)
    params = written(
        tmp_path / "p.csv", "path,size\n" + "".join(f"{k}/last.pt,{k % 2}\n" for k in range(6))
    )
    lines = list(csv.DictReader(io.StringIO(rank(runs, "--oracle", table, "--csv").stdout)))
    assert {Path(line["path"]).parent.name: line["accuracy"] for line in lines} == {
        str(k): f"0.{k + 1}" for k in range(6)
    }
    shown = rank(runs, "--oracle", table, "--params", params).stdout
    assert "read as shares of 1" in shown
    best = next(line for line in shown.splitlines() if line.startswith("(best)"))
    assert best.split() == ["(best)", "60.0", "runs/5", "60.0"]  # by size: one set, of all
    median = next(line for line in shown.splitlines() if line.startswith("(median)"))
    assert median.split() == ["(median)", "35.0", "35.0"]
    assert "size 6 in 1 set)" in shown
    marked = rank(runs, "--oracle", table, "--markdown").stdout
    assert "| metric | Spearman | 95 % | Kendall | 95 % | n | selected | which |" in marked
    top = json.loads(rank(runs, "--oracle", table, "--json", "--top", 1).stdout)
    assert top["correlation"]["groups"][0]["count"] == 6  # judged before the list is cut
    quiet = rank(runs, "--oracle", table, "--quiet", "--top", 1)
    assert len(quiet.stdout.splitlines()) == 1


def test_nothing_matched_is_an_error(tmp_path: Path, rank: Shell) -> None:
    runs = sweep(tmp_path / "runs")
    done = rank(runs, "--oracle", written(tmp_path / "a.csv", "path,accuracy\nx.pt,1\n"))
    assert done.returncode == 3
    assert "none of its 1 lines names a ranked checkpoint, the first x.pt: no such" in done.stderr


def test_against_probes(tmp_path: Path, rank: Shell, images: Path) -> None:
    runs = sweep(tmp_path / "runs")
    done = rank(runs, "--oracle", "probe", "--json")
    assert done.returncode == 4
    correlation = json.loads(done.stdout)["correlation"]
    assert correlation["oracle"] == "probe"
    assert "backbone, 19 training and 5 test images of 2 classes" in correlation["told"]
    assert len(correlation["accuracies"]) == 6
    assert {round(5 * share, 9) for share in correlation["accuracies"].values()} <= {
        0,
        1,
        2,
        3,
        4,
        5,
    }
    assert "steps of Adam, too few" in done.stderr
    # Embedded once, without views, whatever layer is ranked; and found again.
    clean = {}
    for path in (runs / ".lidar").glob("*.h5"):
        with h5py.File(path) as file:
            if "backbone" in file["embeddings"]:
                assert list(file["embeddings/backbone"]) == ["clean", "crc32"]
                assert file["embeddings/backbone/clean"].shape[0] == N
                clean[path] = path.stat().st_mtime_ns
    assert len(clean) == 6
    again = json.loads(rank(runs, "--oracle", "probe", "--json").stdout)["correlation"]
    assert again == correlation
    assert {path: path.stat().st_mtime_ns for path in clean} == clean
    fewer = rank(runs, "--oracle", "probe", "--oracle-samples", 20, "--json")
    assert "16 training and 4 test images" in json.loads(fewer.stdout)["correlation"]["told"]


def test_a_probe_is_of_the_branch_that_is_ranked(tmp_path: Path, rank: Shell, images: Path) -> None:
    """Only the student has a predictor, and the backbone alone would be the teacher's."""
    tree = FIXTURES["stable-pretraining-byol"]().tree
    runs = tmp_path / "runs"
    runs.mkdir()
    torch.save(tree, runs / "a.ckpt")
    done = rank(runs, "--layer", "predictor", "--oracle", "probe", "--json")
    assert len(json.loads(done.stdout)["correlation"]["accuracies"]) == 1, done.stderr
    alone = ExtractSettings(
        data=str(images), n_samples=N, n_views=0, image_size=SIZE, device="cpu", layer="backbone",
        branch="student", output=tmp_path / "a.h5",
    )  # fmt: skip
    extract_checkpoint(runs / "a.ckpt", alone)
    files = [tmp_path / "a.h5", *(runs / ".lidar").glob("a-*.h5")]
    rows, branches = [], []
    for path in files:
        with h5py.File(path) as file:
            branches.append(json.loads(file.attrs["provenance"])["branch"])
            if "backbone" in file["embeddings"]:
                rows.append(file["embeddings/backbone/clean"][:])
    assert branches == ["student"] * 3
    assert len(rows) == 2
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-4, atol=1e-5)


COUNTED = """
import os
from make import Network

def model():
    with open({log!r}, "a") as log:
        log.write(f"{{os.getpid()}}\\n")
    return Network()
"""


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The processes that opened a checkpoint by `--model counted:model`, once for each time."""
    log = tmp_path / "opened"
    (tmp_path / "counted.py").write_text(COUNTED.format(log=str(log)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "counted", raising=False)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])

    def lines() -> list[str]:
        processes = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return processes

    return lines


def test_a_cached_probe_opens_no_checkpoint(
    tmp_path: Path, rank: Shell, images: Path, opened: Callable[[], list[str]]
) -> None:
    runs = sweep(tmp_path / "runs")
    words = ["--model", "counted:model", "--oracle", "probe", "--json"]
    first = json.loads(rank(runs, *words).stdout)["correlation"]
    assert len(opened()) == 3 * 6  # to know its layers, to rank, and to probe
    assert json.loads(rank(runs, *words).stdout)["correlation"] == first
    assert len(opened()) == 6
    # What another process embedded for the probes is not embedded again.
    shutil.rmtree(runs / ".lidar")
    settings = RankSettings(
        data=str(images), n_samples=N, n_views=Q, image_size=SIZE, device="cpu", batch_size=8,
        model="counted:model", oracle="probe",
    )  # fmt: skip
    ranking = rank_directory(runs, settings)
    embed_for_probes(runs, settings, Progress(), ranking.checkpoints.values())
    assert len(opened()) == 3 * 6
    accuracies = compare_with_oracle(ranking, settings).accuracies
    assert opened() == []
    assert accuracies == first["accuracies"]


def test_each_image_is_decoded_once_to_rank_and_once_to_probe(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, decodes = dataset.decoded, Counter[type]()

    def counted(content: Any, *options: Any) -> np.ndarray:
        decodes[type(content)] += 1
        return decode(content, *options)

    monkeypatch.setattr(dataset, "decoded", counted)
    runs = sweep(tmp_path / "runs")
    settings = RankSettings(
        data=str(images), n_samples=N, n_views=Q, image_size=SIZE, device="cpu", batch_size=8,
        view_memory="0", oracle="probe",
    )  # fmt: skip
    compare_with_oracle(rank_directory(runs, settings), settings)
    assert decodes[bytes] == 2 * N  # for six checkpoints


def test_processes_divide_what_probes_need(
    tmp_path: Path, images: Path, opened: Callable[[], list[str]]
) -> None:
    runs = sweep(tmp_path / "runs")
    words = ["rank", runs, "--data", images, "-n", N, "-q", Q, "--image-size", SIZE]
    words += ["--device", "cpu", "--batch-size", 8, "--model", "counted:model"]
    words += ["--oracle", "probe", "--json"]
    paths = environment(PYTHONPATH=os.pathsep.join(sys.path))
    running = [Command(words, tmp_path, paths) for _ in range(2)]
    ends = [process.communicate(timeout=200) for process in running]
    # One that finds all done prints the ranking as well.
    (ranking,) = {out for out, _ in ends if out}
    assert sorted(process.returncode for process in running) == [0, 4], ends
    assert len(json.loads(ranking)["correlation"]["accuracies"]) == 6
    assert len(opened()) == 2 * 6 + 6 + 6  # each by both at first, then to rank and to probe once
    assert not (runs / ".lidar/claims").exists()


def test_probes_need_labels(tmp_path: Path, rank: Shell) -> None:
    runs = sweep(tmp_path / "runs")
    flat = image_folder(tmp_path / "flat", N)
    done = rank(runs, "--oracle", "probe", "--data", flat)
    assert done.returncode == 3
    assert "has no labels; name data with classes" in done.stderr


def test_an_export_of_runs_names_its_columns(tmp_path: Path, rank: Shell) -> None:
    runs = sweep(tmp_path / "runs")
    rows = [(f"bold-owl-{k}", str(k), 0.5 + k / 10, 0.1 * (k // 2), k % 2) for k in range(4)]
    export = "Name,ID,State,Created,_step,lr,wd,val/acc,val/loss\n" + "".join(
        f"{name},{key},finished,2026-01-02,{9 - 2 * at},{lr},{wd},{acc},{acc}\n"
        for at, (name, key, acc, lr, wd) in enumerate(rows)
    )
    table = written(tmp_path / "wandb.csv", export + "calm-elk-9,5,crashed,2026-01-02,0,0,0,,\n")
    shown = rank(runs, "--oracle", table, "--params", table)
    by = "checkpoints by 'ID'"  # no checkpoint is in a folder with the Name of its run
    assert f"({by}, accuracy 'val/acc', read as shares of 1)" in shown.stdout
    assert f"--params {table}: {by}; hyperparameters: lr, wd\n" in shown.stderr
    assert "(lr 4 in 2 sets, wd 4 in 2 sets)" in shown.stdout
    (best,) = (line for line in shown.stdout.splitlines() if line.startswith("(best)"))
    assert best.split() == ["(best)", "80.0", "runs/3", "75.0", "70.0"]
    assert "no accuracy: runs/5" in shown.stdout  # its run has crashed before it had one
    assert "not matched" not in shown.stdout


def test_hyperparameters_of_mlflow_are_its_params(tmp_path: Path) -> None:
    text = ",run_id,metrics.acc,metrics.n,params.lr,params.net,tags.team\n0,a,0.5,3,0.1,vit,x\n"
    table = read_table(written(tmp_path / "t.csv", text), ("path",))
    assert from_table({"a": table.rows[0]}, table) == {"a": {"lr": 0.1, "net": "vit"}}
    text = "Start Time,Duration,Run ID,Name,Source Type,Source Name,User,Status,lr,val_acc\n"
    text += "now,1s,a,b,LOCAL,train.py,me,FINISHED,0.1,0.5\n"
    table = read_table(written(tmp_path / "t.csv", text), ("path",))
    assert from_table({"b": table.rows[0]}, table) == {"b": {"lr": 0.1}}


def test_names_are_shown_as_they_are(tmp_path: Path, rank: Shell) -> None:
    runs = sweep(tmp_path / "runs")
    text = "path,accuracy\n" + "".join(f"{k}/last.pt,0.{k + 1}\n" for k in range(6)) + "[/x],1\n"
    lines = "".join(f"{k}/last.pt,{k % 2}\n" for k in range(6))
    params = written(tmp_path / "p.csv", f"path,[/red]|lr\n{lines}")
    table = written(tmp_path / "a.csv", text)
    done = rank(runs, "--oracle", table, "--params", params)
    assert "by [/red]|lr" in done.stdout
    assert "not matched: [/x]: no such checkpoint" in done.stdout
    assert (
        "by [/red]\\|lr" in rank(runs, "--oracle", table, "--params", params, "--markdown").stdout
    )
