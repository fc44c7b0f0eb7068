"""Samples with unequal numbers of views: recordings, patients, speakers."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy.linalg import eigh

from lidar_cli.core import influence, metrics, noise, spectra
from lidar_cli.core.metrics import METRICS
from lidar_cli.core.moments import Moments
from lidar_cli.errors import (
    DegenerateFeatures,
    FeatureFileError,
    InputError,
    SettingsError,
    Unresumable,
)
from lidar_cli.features.inspect import inspect_features
from lidar_cli.features.writer import FeatureWriter, write_features
from lidar_cli.ranking.session import rank_directory
from lidar_cli.scoring.convergence import converge_file
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import RankSettings, ScoreSettings

DELTA, EPSILON = 1e-4, 1e-7
LDA = ("lidar", "noise_fraction", "lidar_corrected", "pillai", "information", "reliable_rank")


def counts_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice([2, 3, 5, 9], n)


def recordings(counts: np.ndarray, d: int, signal: float = 1.0, seed: int = 0) -> list[np.ndarray]:
    """The views [q_i, d] of each sample: a signal in half of the directions, and noise."""
    rng = np.random.default_rng(seed)
    strength = signal * np.r_[2.0 / np.sqrt(1 + np.arange(d // 2)), np.zeros(d - d // 2)]
    return [0.3 + strength * rng.normal(size=d) + rng.normal(size=(q, d)) for q in counts]


def entropy_rank(values: np.ndarray) -> float:
    shares = values / values.sum() + EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))


def literal(samples: list[np.ndarray]) -> dict[str, float]:
    """Every metric of views from its definition: each sample counts once, W0 over sum(q_i - 1)."""
    n, d = len(samples), samples[0].shape[1]
    counts = np.array([len(views) for views in samples])
    means = np.stack([views.mean(axis=0) for views in samples])
    between = (means - means.mean(axis=0)).T @ (means - means.mean(axis=0)) / (n - 1)
    within = np.zeros((d, d))
    for views in samples:
        for view in views:
            within += np.outer(view - views.mean(axis=0), view - views.mean(axis=0))
    degrees = sum(len(views) - 1 for views in samples)
    within = within / degrees
    spectrum = eigh(between, within + DELTA * np.eye(d), eigvals_only=True)[::-1]
    floor, h = np.mean(1 / counts), 1 - (d + 1) / degrees
    corrected = np.maximum(h * spectrum - floor, 0)
    reliability = corrected / (1 + corrected)
    rows = np.concatenate(samples)
    unit = [views / np.linalg.norm(views, axis=1, keepdims=True) for views in samples]
    pairs = [np.mean([((a - b) ** 2).sum() for i, a in enumerate(u) for b in u[:i]]) for u in unit]
    return {
        "lidar": entropy_rank(spectrum),
        "noise_fraction": d * floor / (h * spectrum.sum()),
        "lidar_corrected": entropy_rank(corrected),
        "pillai": float(reliability.sum()),
        "information": float(0.5 * np.log1p(corrected).sum()),
        "reliable_rank": entropy_rank(reliability),
        "rankme": entropy_rank(
            np.linalg.svd(np.stack([views[0] for views in samples]), compute_uv=False)
        ),
        "rankme_augmented": entropy_rank(np.linalg.svd(rows, compute_uv=False)),
        "normalized_std": float(np.concatenate(unit).std(axis=0).mean() * d**0.5),
        "alignment": float(np.mean(pairs)),
    }


def moments_of(samples: list[np.ndarray]) -> Moments:
    return Moments.of([torch.from_numpy(views) for views in samples])


def spectrum_of(moments: Moments) -> torch.Tensor:
    return spectra.lda_spectrum(moments, DELTA).eigenvalues


def grouped(
    tmp_path: Path, samples: list[np.ndarray], shuffle: bool = True, **options: object
) -> tuple[list[np.ndarray], ScoreSettings, Path]:
    """Rows of all samples in a .npy file, their ids in a text file; samples as the file has them.

    A sample's views are in the order of the file, and samples in the order of their first rows.
    """
    ids = np.repeat([f"patient {i}" for i in range(len(samples))], [len(one) for one in samples])
    rows = np.concatenate(samples)
    if shuffle:
        order = np.random.default_rng(1).permutation(len(rows))
        rows, ids = rows[order], ids[order]
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "ids.txt").write_text("\n".join(ids) + "\n")
    settings = ScoreSettings(
        device="cpu", group_by="ids", ids=tmp_path / "ids.txt", delta=DELTA, **options
    )
    in_file = [rows[ids == one] for one in dict.fromkeys(ids)]
    return in_file, settings, tmp_path / "rows.npy"


@pytest.mark.parametrize("shuffle", [False, True])
def test_every_metric_of_grouped_rows_is_its_literal_twin(tmp_path: Path, shuffle: bool) -> None:
    samples = recordings(counts_of(90), 8, signal=2.0)
    in_file, settings, path = grouped(tmp_path, samples, shuffle, memory="6KB")
    (score,) = score_file(path, settings)
    expected = literal(in_file)
    assert {name: score.value(name) for name in expected} == pytest.approx(expected, rel=1e-7)
    assert (score.n_samples, score.n_views, score.dim) == (90, 2, 8)
    assert score.view_counts == {
        "most": 9,
        "rows": sum(map(len, samples)),
        "noise_floor": pytest.approx(np.mean([1 / len(one) for one in samples])),
    }
    assert score.noise_edge_law == "unequal"


def test_neighbours_are_compared_over_the_views_that_every_sample_has(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(4, 8, 60)
    in_file, settings, path = grouped(
        tmp_path, recordings(counts, 8, signal=2.0), metrics="stability,retrieval"
    )
    (score,) = score_file(path, settings)
    (tmp_path / "first").mkdir()
    np.save(tmp_path / "first" / "z.npy", np.stack([views[:4] for views in in_file]))
    (first,) = score_file(tmp_path / "first" / "z.npy", ScoreSettings(metrics="all", device="cpu"))
    assert score.stability == first.stability
    assert score.retrieval == first.retrieval


@pytest.mark.parametrize("metric", ["all", "lidar"])
def test_equal_numbers_of_views_give_todays_numbers(tmp_path: Path, metric: str) -> None:
    z = np.stack(recordings(np.full(120, 4), 8, signal=2.0))
    _, settings, path = grouped(tmp_path, list(z), False, metrics=metric, confidence=0.95)
    (score,) = score_file(path, settings)
    np.save(tmp_path / "z.npy", z)
    (today,) = score_file(
        tmp_path / "z.npy", ScoreSettings(device="cpu", metrics=metric, confidence=0.95)
    )
    for name in METRICS:
        assert score.value(name) == today.value(name), name
    assert score.confidence == today.confidence
    assert score.view_counts is None


def test_moments_that_allow_unequal_counts_agree_where_they_are_equal() -> None:
    z = torch.from_numpy(np.stack(recordings(np.full(150, 4), 12, signal=2.0)))
    today, unequal = Moments.of(z), Moments(None, 12)
    for some in (slice(0, 40), slice(40, 150)):
        unequal.update(z[some])
    assert unequal.views == 4
    n, q, eigenvalues = 150, 4, spectrum_of(today)
    torch.testing.assert_close(spectrum_of(unequal), eigenvalues, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        spectra.augmented_gram_spectrum(unequal),
        spectra.augmented_gram_spectrum(today),
        **{"rtol": 1e-12, "atol": 0},
    )
    assert noise.dispersion(unequal) == pytest.approx(noise.dispersion(today), rel=1e-12)
    # The equations for unequal counts, at equal ones.
    for equation in (metrics.noise_fraction, noise.inverse_bias):
        argument = eigenvalues if equation is metrics.noise_fraction else n
        rest = (n, q) if equation is metrics.noise_fraction else (q, 12)
        other = tuple({4: n} if one == q else one for one in rest)
        assert equation(argument, *other) == pytest.approx(equation(argument, *rest), rel=1e-12)
    assert noise.unequal_edge({4: n}, n * 3, 12).edge == pytest.approx(
        noise.noise_edge(n, q, 12), rel=1e-12
    )
    names = [*LDA]
    of_equal = influence.lda_influence(today, names, DELTA, EPSILON).influences(z)
    unequal._counts = {4: 150, 7: 0}  # the path for unequal counts
    of_unequal = influence.lda_influence(unequal, names, DELTA, EPSILON).influences(z)
    torch.testing.assert_close(
        of_unequal - of_unequal.mean(dim=0), of_equal - of_equal.mean(dim=0), rtol=1e-9, atol=1e-9
    )


def test_influences_are_those_of_leaving_a_recording_out() -> None:
    """n (T - T without i) of the literal twin, whose spectrum is far above its noise floor."""
    counts = counts_of(100, seed=3)
    rng = np.random.default_rng(5)
    scale = 3.0 / np.sqrt(1 + np.arange(5))
    samples = [scale * rng.normal(size=5) + rng.normal(size=(q, 5)) for q in counts]
    names = ("lidar", "noise_fraction", "pillai", "rankme_augmented", "normalized_std", "alignment")
    without = [literal(samples[:i] + samples[i + 1 :]) for i in range(100)]
    moments = moments_of(samples)
    of_lda = influence.lda_influence(moments, names[:3], DELTA, EPSILON).influences
    of_gram = influence.augmented_influence(moments, names[3:4], EPSILON).influences
    found = []
    for views in map(torch.from_numpy, samples):
        on_sphere = [METRICS[name].influence(views[None], moments.sphere) for name in names[4:]]
        found.append(torch.cat([of_lda(views[None])[0], of_gram(views[None])[0], *on_sphere]))
    for name, column in zip(names, torch.stack(found, dim=1).numpy(), strict=True):
        exact = -100 * np.array([each[name] for each in without])
        assert np.corrcoef(column, exact)[0, 1] > 0.995, name
        assert column.std() == pytest.approx(exact.std(), rel=0.05), name


def largest_of_noise(counts: np.ndarray, d: int, draws: int) -> np.ndarray:
    """The largest LDA eigenvalue of equal Gaussian noise, drawn."""
    rng, n, degrees = np.random.default_rng(0), len(counts), int((counts - 1).sum())
    largest = []
    for _ in range(draws):
        means = rng.normal(size=(n, d)) / np.sqrt(counts)[:, None]
        residuals = rng.normal(size=(degrees, d))
        means -= means.mean(axis=0)
        pair = means.T @ means / (n - 1), residuals.T @ residuals / degrees
        largest.append(eigh(*pair, eigvals_only=True)[-1])
    return np.array(largest)


@pytest.mark.parametrize("few", [2, 5])
def test_the_edge_of_unequal_counts_is_that_of_simulated_noise(few: int) -> None:
    counts = np.where(np.random.default_rng(0).random(300) < 0.3, few, 20)
    q = {few: int((counts == few).sum()), 20: int((counts == 20).sum())}
    d, degrees = 24, int((counts - 1).sum())
    drawn = largest_of_noise(counts, d, 100)
    edge = noise.noise_edge(300, q, d)
    assert edge * 0.9 < drawn.mean() < edge
    assert np.mean(drawn > noise.largest_of_noise(300, q, d)) <= 0.04
    assert np.mean(drawn > noise.EDGE_MARGIN * edge) <= 0.02
    harmonic = 1 / np.mean(1 / counts)
    wachter = noise.wachter_edge(300, degrees, d) / harmonic
    if few == 2:  # by the law of equal counts noise would be called signal
        assert np.mean(drawn > noise.EDGE_MARGIN * wachter) > 0.5


def test_noise_of_unequal_counts_and_strengths_is_null() -> None:
    """Null in at least 95 % of draws: at most 2 of 8 at this many."""
    above = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        samples = [
            np.exp(0.7 * rng.normal()) * rng.normal(size=(q, 12)) for q in rng.integers(3, 12, 200)
        ]
        moments = moments_of(samples)
        blocks = [torch.from_numpy(views)[None] for views in samples]
        found = noise.measure_view_noise(moments, lambda blocks=blocks: blocks, DELTA, 2**26)
        assert found.law == "contrasts"
        above += noise.n_above_noise(spectrum_of(moments), 200, moments.views, found.edge) > 0
    assert above <= 2


def test_contrasts_of_unequal_counts_are_the_largest_of_their_pairs() -> None:
    counts = np.repeat([3, 5], [60, 40])
    samples = [torch.from_numpy(one) for one in recordings(counts, 6, signal=0.0)]
    blocks = [torch.stack(samples[:60]), torch.stack(samples[60:])]
    q, generator, largest = {3: 60, 5: 40}, torch.Generator().manual_seed(noise.SEED), []
    residuals = [views - views.mean(dim=0) for views in samples]
    scatter = sum(one.T @ one for one in residuals)
    for _ in range(noise.CONTRASTS):
        weights = [*noise._weights(60, 3, generator), *noise._weights(40, 5, generator)]
        u = torch.stack([w.double() @ r for w, r in zip(weights, residuals, strict=True)])
        between = (u.T / torch.from_numpy(counts)) @ u / 99
        within = (scatter - u.T @ u) / sum(counts - 2)
        largest.append(eigh(between.numpy(), within.numpy(), eigvals_only=True)[-1])
    expected = max(largest) * noise.noise_edge(100, q, 6) / noise.unequal_edge(q, 180, 6).edge
    found = noise.contrast_edge(lambda: blocks, 100, 0.0, q=q)
    assert found == pytest.approx(expected, rel=1e-5)
    assert noise.contrast_edge(lambda: blocks, 100, 0.0, room=1, q=q) == found


def test_intervals_of_unequal_counts_cover_the_expectation(tmp_path: Path) -> None:
    """At 95 %: of 20 draws at least 15, below which 1 in 3,000 binomial draws is."""
    names = ("lidar", "pillai", "noise_fraction", "rankme_augmented")
    values: dict[str, list[float]] = {name: [] for name in names}
    ends: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for seed in range(20):
        samples = recordings(counts_of(120, seed), 6, signal=2.0, seed=seed)
        _, settings, path = grouped(
            tmp_path, samples, False, metrics=",".join(names), confidence=0.95
        )
        (score,) = score_file(path, settings)
        for name in names:
            interval = score.interval(name)
            assert interval.ci_low is not None
            assert interval.ci_high is not None
            values[name].append(score.value(name))
            ends[name].append((interval.ci_low, interval.ci_high))
    for name in names:
        mean = np.mean(values[name])
        assert sum(low <= mean <= high for low, high in ends[name]) >= 15, name


def scores_of(path: Path) -> dict[str, float]:
    (score,) = score_file(path, ScoreSettings(device="cpu", delta=DELTA))
    assert score.view_counts is not None
    return {name: score.value(name) for name in METRICS if score.value(name) is not None}


def test_a_feature_file_holds_unequal_numbers_of_views(tmp_path: Path) -> None:
    samples = recordings(counts_of(60), 6, signal=2.0)
    ids = [f"recording {i}" for i in range(60)]
    path = write_features(tmp_path / "a.h5", samples, ids=ids, labels=[i % 3 for i in range(60)])
    with h5py.File(path) as file:
        assert file.attrs["version"] == 2
        assert file["samples/q"][:].tolist() == [len(one) for one in samples]
        rows = np.concatenate(samples).astype(np.float32)
        np.testing.assert_array_equal(file["embeddings/embedding/views"][:], rows)
        checksum = zlib.crc32(samples[1].astype("f4").tobytes())
        assert file["embeddings/embedding/crc32"][1] == checksum
    expected = literal([one.astype(np.float32).astype(np.float64) for one in samples])
    found = scores_of(path)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-7)
    # Rows in any order with an id each, a file of plain h5py, and batches give the same.
    order = np.random.default_rng(0).permutation(len(rows))
    row_ids = np.repeat(ids, [len(one) for one in samples])
    by_ids = write_features(tmp_path / "b.h5", rows[order], ids=list(row_ids[order]))
    numbers = ("lidar", "pillai", "noise_fraction", "rankme_augmented")
    assert [scores_of(by_ids)[one] for one in numbers] == pytest.approx(
        [found[one] for one in numbers], rel=1e-9
    )
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.attrs["format"], file.attrs["version"] = "lidar-features", 2
        file["embeddings/eeg/views"], file["samples/id"] = rows, ids
        file["samples/q"] = [len(one) for one in samples]
    assert scores_of(tmp_path / "c.h5") == found
    summary = inspect_features(path).layers[0]
    assert (summary.n, summary.q, summary.most, summary.checksums) == (60, 2, 9, "verified")


def write_some(
    path: Path, some: list[int], views: list[np.ndarray], options: dict[str, object]
) -> None:
    with FeatureWriter(path, **options) as writer:
        writer.write(some, views)


def test_batches_of_unequal_views_in_any_order_resume(tmp_path: Path) -> None:
    samples = recordings(counts_of(30), 4)
    options = {"n_samples": 30, "n_views": [len(one) for one in samples], "dim": 4}
    path = tmp_path / "a.h5"
    some = [*range(20, 30), *range(10)]
    with pytest.raises(FeatureFileError, match="10 samples were never written"):
        write_some(path, some, [samples[i] for i in some], options)
    with pytest.raises(Unresumable, match="n_views differ"):
        FeatureWriter(path, **{**options, "n_views": options["n_views"][::-1]}, resume=True)
    with FeatureWriter(path, **options, resume=True) as writer:
        assert writer.done.sum() == 20
        writer.write(range(10, 20), np.concatenate(samples[10:20]))
    whole = write_features(tmp_path / "b.h5", samples)
    with h5py.File(path) as one, h5py.File(whole) as other:
        for name in ("views", "crc32"):
            stored = [file[f"embeddings/embedding/{name}"][:] for file in (one, other)]
            np.testing.assert_array_equal(*stored)


def test_equal_numbers_of_views_are_written_as_version_1(tmp_path: Path) -> None:
    path = write_features(tmp_path / "a.h5", recordings(np.full(20, 3), 4))
    with h5py.File(path) as file:
        assert file.attrs["version"] == 1
        assert file["embeddings/embedding/views"].shape == (20, 3, 4)


def test_damage_in_a_file_of_unequal_views_is_noticed(tmp_path: Path) -> None:
    samples = recordings(counts_of(30), 4)
    path = write_features(tmp_path / "a.h5", samples)
    with h5py.File(path, "r+") as file:
        file["embeddings/embedding/views"][len(samples[0])] += 1  # the first row of sample 1
    with pytest.raises(FeatureFileError, match="sample 1 does not match its checksum"):
        scores_of(path)
    with h5py.File(path, "r+") as file:
        file["samples/q"][0] += 1
    with pytest.raises(FeatureFileError, match="expected as many positive ones"):
        scores_of(path)


def test_samples_of_one_row_are_refused(tmp_path: Path) -> None:
    samples = [*recordings(counts_of(20), 4), np.ones((1, 4)), np.zeros((1, 4))]
    _, settings, path = grouped(tmp_path, samples)
    reason = "2 of 22 samples have a single row, .*: leave these samples out, or add rows of them"
    with pytest.raises(InputError, match=reason):
        score_file(path, settings)
    with pytest.raises(SettingsError, match="2 of them below 2"):
        write_features(tmp_path / "a.h5", samples)
    with pytest.raises(DegenerateFeatures, match="2 of 22 samples have a single view"):
        spectrum_of(moments_of(samples))


def write_npz(path: Path, rows: np.ndarray, ids: np.ndarray) -> None:
    np.savez_compressed(path, rows=rows, ids=ids)


def write_pt(path: Path, rows: np.ndarray, ids: np.ndarray) -> None:
    torch.save({"rows": torch.from_numpy(rows), "ids": torch.from_numpy(ids)}, path)


def write_hdf5(path: Path, rows: np.ndarray, ids: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["rows"], file["ids"] = rows, ids


def write_texts(path: Path, rows: np.ndarray, ids: np.ndarray) -> None:
    np.savez(path, rows=rows, ids=ids.astype(str))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.npz", write_npz),
        ("b.npz", write_texts),
        ("a.pt", write_pt),
        ("a.h5", write_hdf5),
    ],
)
def test_ids_are_those_in_the_file(tmp_path: Path, name: str, write: Callable[..., None]) -> None:
    counts = counts_of(40)
    samples = recordings(counts, 4, signal=2.0)
    order = np.random.default_rng(2).permutation(counts.sum())
    rows, ids = np.concatenate(samples)[order], np.repeat(np.arange(40) * 7, counts)[order]
    write(tmp_path / name, rows, ids)
    settings = ScoreSettings(device="cpu", group_by="ids", metrics="lidar", delta=DELTA)
    (score,) = score_file(tmp_path / name, settings)
    assert score.lidar == pytest.approx(literal(samples)["lidar"], rel=1e-7)


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_ids_come_from_a_file_of_their_own(tmp_path: Path, suffix: str) -> None:
    counts = counts_of(40)
    samples = recordings(counts, 4, signal=2.0)
    np.save(tmp_path / "rows.npy", np.concatenate(samples))
    ids, listed = np.repeat(np.arange(40), counts), tmp_path / f"ids{suffix}"
    if suffix == ".npy":
        np.save(listed, ids)
    else:
        listed.write_text("\n".join(["id,hospital", *(f"{one},x" for one in ids)]))
    settings = ScoreSettings(device="cpu", group_by="ids", ids=listed, metrics="lidar", delta=DELTA)
    (score,) = score_file(tmp_path / "rows.npy", settings)
    assert score.lidar == pytest.approx(literal(samples)["lidar"], rel=1e-7)


def stem(path: str) -> str:
    return Path(path).stem


def test_rows_by_ids_are_ranked_as_feature_files_of_the_same_numbers(tmp_path: Path) -> None:
    """Patients as groups of images: values, intervals and ties, of rows in any order."""
    counts = counts_of(60)
    names = [f"patient {i}" for i in range(60)]
    arrays, features = tmp_path / "arrays", tmp_path / "features"
    arrays.mkdir()
    features.mkdir()
    rows_of_patients = np.repeat(names, counts)
    for k, signal in enumerate((0.5, 1.0, 1.02, 2.0)):
        samples = [one.astype("f4") for one in recordings(counts, 4, signal, seed=k)]
        rows = np.concatenate(samples)
        write_texts(arrays / f"m{k}.npz", rows, rows_of_patients)
        write_features(features / f"m{k}.h5", samples, ids=names)
    found = []
    for folder in (arrays, features):
        settings = RankSettings(
            cache=tmp_path / f"{folder.name}.cache", group_by="ids" if folder == arrays else None
        )
        (group,) = rank_directory(folder, settings).groups
        found.append(
            [
                (Path(row.path).stem, row.value, row.interval, sorted(map(stem, row.tied_with)))
                for row in group.rows
            ]
        )
    assert found[0] == found[1]
    assert sum(bool(tied) for *_, tied in found[0]) >= 2


def test_what_cannot_be_grouped_is_one_clear_line(tmp_path: Path) -> None:
    path, settings = tmp_path / "z.npy", ScoreSettings(device="cpu", group_by="ids")
    np.save(path, np.ones((6, 4)))
    with pytest.raises(InputError, match="stores no ids to group rows by"):
        score_file(path, settings)
    (tmp_path / "ids.txt").write_text("a\na\nb\nb\n")
    settings = replace(settings, ids=tmp_path / "ids.txt")
    with pytest.raises(InputError, match="4 ids, 2 of them distinct; expected one for each of"):
        score_file(path, settings)
    settings = replace(settings, ids=None)
    np.save(path, np.ones((6, 4, 2)))
    with pytest.raises(InputError, match="which has views already"):
        score_file(path, settings)
    samples = recordings(counts_of(20), 4)
    _, settings, path = grouped(tmp_path, samples)
    with pytest.raises(InputError, match="--converge compares equal parts"):
        converge_file(path, settings)
