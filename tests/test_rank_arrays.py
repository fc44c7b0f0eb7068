"""`rank`, `compare` and `score` of arrays that other programs wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from command import run_command
from make import environment
from raising import raises
from safetensors.torch import save_file

from lidar_cli import write_features
from lidar_cli.errors import InputError
from lidar_cli.ranking.session import Ranking, rank_directory
from lidar_cli.ranking.watch import ScoredCheckpoint, follow
from lidar_cli.report.ranking import to_json
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import RankSettings, ScoreSettings

N, Q, D = 80, 3, 6
IDS = [f"recording {i}" for i in range(N)]


def made(k: int) -> np.ndarray:
    """Views [N, Q, D] of the same samples by model k."""
    samples = np.random.default_rng(9).normal(size=(N, 1, D)) * np.linspace(1, 0.3 + 0.05 * k, D)
    noise = np.random.default_rng(k).normal(size=(N, Q, D))
    return (samples + 0.4 * noise).astype("f4")


def save(path: Path, z: np.ndarray, ids: list[str] | None = IDS) -> None:
    """An array in the format of the suffix; with ids, where the format can hold them."""
    extra: dict[str, Any] = {} if ids is None else {"ids": ids}
    if path.suffix == ".npy":
        np.save(path, z)
    elif path.suffix == ".npz":
        np.savez_compressed(path, z=z, **{name: np.array(some) for name, some in extra.items()})
    elif path.suffix == ".pt":
        torch.save({"z": torch.from_numpy(z), **extra}, path)
    elif path.suffix == ".safetensors":
        save_file({"z": torch.from_numpy(z)}, path)
    else:
        with h5py.File(path, "w") as file:
            file["z"] = z
            for name, some in extra.items():
                file[name] = some


def ranked(folder: Path, **settings: Any) -> Ranking:
    return rank_directory(folder, RankSettings(cache=folder / ".lidar", **settings))


def rows_of(ranking: Ranking) -> list[dict[str, Any]]:
    """What the JSON says of each row, without the path and the file's suffix."""
    document = json.loads(to_json(ranking))
    assert document["data"] is None
    rows = document["checkpoints"]
    for row in rows:
        row["name"] = Path(row.pop("path")).stem
        row["tied_with"] = sorted(Path(path).stem for path in row["tied_with"])
    return [{key: row[key] for key in row if key not in ("data", "file")} for row in rows]


def test_twenty_arrays_are_ranked_as_the_feature_files_with_the_same_numbers(
    tmp_path: Path,
) -> None:
    arrays, features = tmp_path / "arrays", tmp_path / "features"
    arrays.mkdir()
    features.mkdir()
    suffixes = (".npz", ".pt", ".h5", ".npz")
    for k in range(20):
        save(arrays / f"model{k}{suffixes[k % 4]}", made(k))
        write_features(features / f"model{k}.h5", made(k), ids=IDS)
    np.save(arrays / "losses.npy", np.arange(5.0))
    of_arrays, of_features = ranked(arrays), ranked(features)
    assert rows_of(of_arrays) == rows_of(of_features)
    assert len(of_arrays.groups) == 1
    assert any(row.tied_with for row in of_arrays.groups[0].rows)
    assert [Path(file.path).name for file in of_arrays.skipped] == ["losses.npy"]


def test_arrays_of_other_samples_are_another_group(tmp_path: Path) -> None:
    for k, ids in enumerate((IDS, IDS, IDS[::-1])):
        save(tmp_path / f"model{k}.npz", made(k), ids)
    assert [len(group.rows) for group in ranked(tmp_path).groups] == [2, 1]


def test_ids_of_a_file_and_ids_that_are_assumed(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for k in range(2):
        save(runs / f"model{k}.npy", made(k))
    write_features(runs / "model2.h5", made(2), ids=IDS)
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    ended = run_command(["rank", "runs"], tmp_path, environment())
    assert "model1.npy and 1 other: assumed the same samples" in ended.stderr
    assert "--ids" in ended.stdout  # how they become comparable with the feature file
    assert len(ranked(runs, ids=tmp_path / "ids.txt").groups) == 1
    words = ["compare", "runs/model0.npy", "runs/model1.npy"]
    compared = run_command(words, tmp_path, environment())
    assert compared.returncode == 0, compared.stderr
    (tmp_path / "ids.txt").write_text("\n".join(IDS[1:]))
    with raises(InputError, code="nothing-ranked"):
        ranked(runs, ids=tmp_path / "ids.txt", exclude=("model2.h5",))


def test_a_probe_of_arrays_alone_is_refused_before_they_are_scored(tmp_path: Path) -> None:
    for k in range(2):
        save(tmp_path / f"{k}.npy", made(k))
    with raises(InputError, code="no-labels"):
        ranked(tmp_path, oracle="probe")
    advised = run_command(["rank", "."], tmp_path, environment()).stderr
    assert "--oracle FILE" in advised
    assert "--oracle probe" not in advised


class Notes(Progress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def test_an_option_of_arrays_says_which_files_it_is_not_for(tmp_path: Path) -> None:
    save(tmp_path / "array.npz", made(0).reshape(-1, D), [one for one in IDS for _ in range(Q)])
    write_features(tmp_path / "features.h5", made(1), ids=IDS)
    for settings, count in ((RankSettings(group_by="ids"), 1), (RankSettings(by="rankme"), 0)):
        notes = Notes()
        ranking = rank_directory(tmp_path, replace(settings, cache=tmp_path / ".lidar"), notes)
        assert len(rows_of(ranking)) == 2
        texts = [text for text in notes.texts if text.startswith("--group-by: for arrays")]
        assert len(texts) == count
        assert all("which " + str(tmp_path / "features.h5") + " is not" in one for one in texts)


def test_watch_scores_arrays_as_they_come(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", made(0))
    settings = RankSettings(cache=tmp_path / ".lidar", watch_for=0, interval=0.05)
    (scored,) = follow(tmp_path, settings)
    assert isinstance(scored, ScoredCheckpoint)
    (one,) = score_file(tmp_path / "a.npy", ScoreSettings())
    assert scored.row.value == pytest.approx(one.value("lidar"), rel=1e-9)
    recorded = {(scored.row.path, scored.key)}
    assert not list(follow(tmp_path, settings, recorded=recorded))
    save(tmp_path / "a.npy", made(1))  # other numbers of the same size, later
    (again,) = follow(tmp_path, settings, recorded=recorded)
    assert isinstance(again, ScoredCheckpoint)
    assert again.row.value != scored.row.value


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".h5", ".safetensors"])
def test_views_first_are_recognised_by_their_noise_and_named(tmp_path: Path, suffix: str) -> None:
    path, right = tmp_path / f"z{suffix}", made(0)
    save(path, np.ascontiguousarray(right.transpose(1, 0, 2)), ids=None)
    with raises(InputError, code="views-first") as raised:
        score_file(path, ScoreSettings())
    assert "--axes qnd" in str(raised.value)
    save(tmp_path / f"right{suffix}", right, ids=None)
    (one,) = score_file(path, ScoreSettings(axes="qnd", memory="3kB"))
    (two,) = score_file(tmp_path / f"right{suffix}", ScoreSettings())
    assert (one.n_samples, one.n_views) == (N, Q)
    assert one.value("lidar") == pytest.approx(two.value("lidar"), rel=1e-9)


@pytest.mark.parametrize(
    "z",
    [
        made(0)[:2, :, :],  # fewer samples than views
        np.random.default_rng(0).normal(size=(Q, N, D)),  # noise: nothing is closer
        made(0) + np.array([0, 50, 100])[:, None],  # a gap between modalities
    ],
    ids=["few", "noise", "modalities"],
)
def test_axes_are_not_named_without_a_reason(tmp_path: Path, z: np.ndarray) -> None:
    np.save(tmp_path / "z.npy", z)
    score_file(tmp_path / "z.npy", ScoreSettings(metrics="noise_fraction"))


def test_ids_of_rows_must_agree_with_the_order_of_views(tmp_path: Path) -> None:
    rows = made(0).transpose(1, 0, 2).reshape(-1, D)  # view by view, and not sample by sample
    np.savez(tmp_path / "z.npz", z=rows, ids=np.tile(IDS, Q))
    with pytest.raises(InputError, match="ids of rows, which differ within a sample"):
        score_file(tmp_path / "z.npz", ScoreSettings(views_per_sample=Q))


def test_hdf5_with_views_first_is_ranked(tmp_path: Path) -> None:
    save(tmp_path / "a.h5", np.ascontiguousarray(made(0).transpose(1, 0, 2)), ids=None)
    (row,) = ranked(tmp_path, axes="qnd").groups[0].rows
    assert (row.score.n_samples, row.score.n_views) == (N, Q)


def test_what_is_not_embeddings_is_skipped_or_one_line(tmp_path: Path) -> None:
    save(tmp_path / "good.npy", made(0))
    np.save(tmp_path / "losses.npy", np.arange(3.0))
    torch.save({"weight": torch.zeros(3, 4)}, tmp_path / "matrix.pt")
    save(tmp_path / "ids.npz", made(1), IDS[:-1])
    np.save(tmp_path / "confusion.npy", np.eye(100))
    ranking = ranked(tmp_path)
    assert [row.path for row in ranking.groups[0].rows] == [str(tmp_path / "good.npy")]
    assert {Path(file.path).name for file in ranking.skipped} >= {"losses.npy", "confusion.npy"}
    reasons = {Path(file.path).name: file.reason for file in ranking.failed}
    assert "79 ids for 80 samples" in reasons["ids.npz"]
    by_rows = ranked(tmp_path, by="rankme", include=("confusion.npy",))
    assert by_rows.groups[0].rows[0].value == pytest.approx(100, rel=1e-4)
