"""Five uses of LiDAR that people wrote by hand, redone with made data by this program alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reference

import lidar_cli

DELTA, EPSILON = 1e-4, 1e-7
quiet = pytest.mark.filterwarnings("ignore::lidar_cli.LidarWarning")
pytestmark = quiet


def effective_rank_of(scatters: tuple[np.ndarray, np.ndarray]) -> float:
    """LiDAR from a between and a within covariance, as its equation reads."""
    between, within = scatters
    values, vectors = np.linalg.eigh(within + DELTA * np.eye(len(within)))
    root = vectors / np.sqrt(values) @ vectors.T
    return reference.effective_rank(np.linalg.eigvalsh(root @ between @ root), EPSILON)


def of_recordings(recordings: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sb of unweighted means, and W0 over sum (q_i - 1), of arrays [q_i, d]."""
    means = np.stack([views.mean(0) for views in recordings])
    within = sum((views - views.mean(0)).T @ (views - views.mean(0)) for views in recordings)
    return np.cov(means.T), within / sum(len(views) - 1 for views in recordings)


def test_eeg_recordings_with_unequal_numbers_of_segments(tmp_path: Path) -> None:
    """Classes are recordings; a segment is a row, and a recording has as many as it is long."""
    generator = np.random.default_rng(0)
    counts = generator.integers(2, 9, 120)
    ids = np.repeat([f"subject {i:03}" for i in range(120)], counts)
    shuffled = generator.permutation(len(ids))
    for name, rank in (("narrow", 3), ("wide", 7)):
        signal = generator.normal(size=(120, 8)) * (np.arange(8) < rank)
        rows = np.repeat(signal, counts, axis=0) + 0.3 * generator.normal(size=(len(ids), 8))
        np.savez(tmp_path / f"{name}.npz", rows=rows[shuffled], ids=ids[shuffled])
    ranking = lidar_cli.rank(tmp_path, group_by="ids")
    assert [row.name for row in ranking] == ["wide", "narrow"]
    for row in ranking:
        with np.load(tmp_path / f"{row.name}.npz") as stored:
            recordings = [stored["rows"][stored["ids"] == one] for one in np.unique(ids)]
        assert row.value == pytest.approx(effective_rank_of(of_recordings(recordings)), rel=1e-6)
        assert row.ci_low is not None
        assert row.ci_high is not None


def test_pathology_images_with_rna_as_the_second_view() -> None:
    """Two modalities of a slide are its two views; the gap between them is no view noise of one."""
    generator = np.random.default_rng(1)
    slides = generator.normal(size=(150, 1, 6))
    gap = np.array([0.0, 3.0])[:, None]  # RNA lies elsewhere than images
    views = slides + gap + 0.2 * generator.normal(size=(150, 2, 6))
    (score,) = lidar_cli.score(views)
    assert (score.n_samples, score.n_views) == (150, 2)
    assert score.lidar == pytest.approx(reference.lidar(views, DELTA, EPSILON), rel=1e-6)


def test_medical_images_with_intervals_over_patients(tmp_path: Path) -> None:
    """Images of one patient are alike, so that an interval over images is too narrow."""
    generator = np.random.default_rng(2)
    patients = np.repeat(np.arange(40), 8)
    spread = np.exp(generator.normal(size=(40, 1, 5)))[patients]  # how much a patient's images vary
    views = spread * generator.normal(size=(320, 1, 5)) + 0.3 * generator.normal(size=(320, 4, 5))
    ids = [f"image {i}" for i in range(320)]
    path = lidar_cli.write_features(tmp_path / "scans.h5", views, ids=ids)
    table = "".join(f"{one},patient {p}\n" for one, p in zip(ids, patients, strict=True))
    (tmp_path / "patients.csv").write_text(f"id,group\n{table}")
    (apart,), (grouped,) = (
        lidar_cli.score(path, confidence=0.95, groups=groups).to_dict()
        for groups in (None, str(tmp_path / "patients.csv"))
    )
    assert grouped["lidar"] == apart["lidar"]
    intervals = [one["confidence"]["intervals"]["lidar"] for one in (apart, grouped)]
    widths = [one["ci_high"] - one["ci_low"] for one in intervals]
    assert widths[1] > 1.2 * widths[0]


def test_layers_of_a_sequence_model_pooled_over_time(tmp_path: Path) -> None:
    """The rank of sequences that are averaged over time, layer by layer: RankMe-t."""
    generator = np.random.default_rng(3)
    tokens = generator.normal(size=(200, 12, 10))  # [sequences, time, width]
    layers = {f"layers.{k}": tokens * (np.arange(10) < 2 + 4 * k) for k in range(3)}
    pooled = {name: values.mean(axis=1) for name, values in layers.items()}
    path = lidar_cli.write_features(tmp_path / "model.h5", clean=pooled)
    scores = lidar_cli.score(path, metrics="rankme")
    assert [score.layer for score in scores] == list(pooled)
    for score, rows in zip(scores, pooled.values(), strict=True):
        singular = np.linalg.svd(rows.astype(np.float32).astype(float), compute_uv=False)
        assert score.rankme == pytest.approx(
            reference.effective_rank(list(singular), EPSILON), rel=1e-5
        )
    assert scores[0].rankme < scores[1].rankme < scores[2].rankme


def test_a_table_of_checkpoint_metric_and_value(tmp_path: Path) -> None:
    """What a script of many evaluations has written says how well the order agrees."""
    generator = np.random.default_rng(4)
    samples, noise = generator.normal(size=(90, 1, 9)), generator.normal(size=(90, 3, 9))
    lines = ["checkpoint,metric,value"]
    for k in range(1, 9):
        np.save(tmp_path / f"epoch{k}.npy", samples * (np.arange(9) < k) + 0.2 * noise)
        lines += [f"epoch{k}.npy,loss,{1 / k}", f"epoch{k}.npy,accuracy,{0.1 * k}"]
    (tmp_path / "evaluations.csv").write_text("\n".join(lines))
    ranking = lidar_cli.rank(tmp_path, oracle=str(tmp_path / "evaluations.csv"))
    assert ranking[0].name == "epoch8"
    (group,) = ranking.to_dict()["correlation"]["groups"]
    (lidar,) = (one for one in group["metrics"] if one["metric"] == "lidar")
    assert lidar["spearman"] == pytest.approx(1.0)
