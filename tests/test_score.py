import dataclasses
import json
import math
import zlib

import h5py
import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lidar_cli.core.metrics import METRICS, default_metrics, parse_metrics
from lidar_cli.errors import InputError, SettingsError
from lidar_cli.features.schema import Layout
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.report.scores import print_table, to_csv, to_json
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import NO_VIEWS
from lidar_cli.scoring.run import score_file
from lidar_cli.scoring.streaming import CHUNKS_IN_MEMORY
from lidar_cli.settings import ScoreSettings

CONSTANT = "every eigenvalue is 0: the embedding is constant or collapsed"
NO_SPREAD = "the covariance is 0: the embedding is constant or collapsed"
NO_CORRECTION = "nothing above view noise: no eigenvalue clears the noise edge"
DEFAULT = default_metrics()
LDA = {name for name, metric in METRICS.items() if metric.reads_lda}
CORRECTED = {"lidar_corrected", "pillai", "information", "reliable_rank"}
COVARIANCE = {name for name, metric in METRICS.items() if metric.reads == "covariance"}
VIEWS = {name for name, metric in METRICS.items() if metric.reads in ("augmented", "sphere")}
SUBSET = {name for name, metric in METRICS.items() if metric.reads_subset} & DEFAULT


def draw_embeddings(n, q, d, signal=2.0):
    return torch.randn(n, q, d) + signal * torch.randn(n, 1, d)


def score_array(tmp_path, z, progress=None, **options):
    path = tmp_path / "z.npy"
    np.save(path, np.asarray(z))
    (found,) = score_file(path, ScoreSettings(device="cpu", **options), progress)
    return found


def nulls(score):
    """The metrics without a value; each must have a reason, and no other metric one."""
    without = {name for name in DEFAULT if score.value(name) is None}
    assert without == set(score.notes)
    assert all(score.notes.values())
    return without


def reasons(score, names):
    return {score.notes[name] for name in names}


def test_every_metric_is_its_twin(tmp_path):
    """n = 150, q = 4, d = 110: enough for every metric to have a value."""
    z = draw_embeddings(150, 4, 110)
    score = score_array(tmp_path, z)
    array = z.double().numpy()
    rows = array[:, 0]
    alpha, r2 = reference.alpha_req(rows)
    expected = {
        "lidar": reference.lidar(array, 1e-4, 1e-7),
        "noise_fraction": reference.noise_fraction(array, 1e-4),
        "noise_edge": reference.edge(*z.shape),
        "n_above_noise": reference.n_above_noise(array, 1e-4),
        "lidar_corrected": reference.lidar_corrected(array, 1e-4, 1e-7),
        "pillai": reference.pillai(array, 1e-4),
        "information": reference.information(array, 1e-4),
        "reliable_rank": reference.reliable_rank(array, 1e-4, 1e-7),
        "rankme": reference.rankme(rows, 1e-7),
        "rankme_augmented": reference.rankme_augmented(array, 1e-7),
        "alpha_req": alpha,
        "alpha_req_r2": r2,
        "participation_ratio": reference.participation_ratio(rows),
        "stable_rank": reference.stable_rank(rows),
        "normalized_std": reference.normalized_std(array),
        "alignment": reference.alignment(array),
        "stability": reference.stability(array),
    }
    found = {name: getattr(score, name) for name in expected}
    assert found == pytest.approx(expected, rel=1e-6)
    assert set(expected) >= DEFAULT
    assert nulls(score) == set()
    facts = (score.n_samples, score.n_views, score.dim, score.delta, score.epsilon)
    assert facts == (150, 4, 110, 1e-4, 1e-7)
    assert (score.rankme_source, score.rankme_rows) == ("view 0", 150)
    assert score.alpha_req_ranks == (11, 100)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_size_of_chunks_is_irrelevant(tmp_path, normalize):
    z = 30 + draw_embeddings(60, 4, 12)
    whole = score_array(tmp_path, z, normalize=normalize)
    for memory in ("1", "500", "4KB"):
        pieces = score_array(tmp_path, z, memory=memory, normalize=normalize)
        for name in METRICS:
            expected = whole.value(name)
            if expected is not None:
                assert pieces.value(name) == pytest.approx(expected, rel=1e-9), name
        assert pieces.notes == whole.notes


def test_normalize_scores_the_unit_rows(tmp_path):
    z = draw_embeddings(60, 4, 12).double()
    unit = torch.from_numpy(reference.on_sphere(z.numpy()))
    scaled = score_array(tmp_path, 1e-20 * z, normalize=True)
    plain = score_array(tmp_path, unit)
    assert scaled.normalized
    assert not plain.normalized
    assert nulls(scaled) == nulls(plain) == {"alpha_req"}
    for name in DEFAULT - {"alpha_req"}:
        assert scaled.value(name) == pytest.approx(plain.value(name), rel=1e-9), name


def test_rows_without_views_give_rankme_and_alpha_and_nulls_with_a_reason(tmp_path):
    rows = torch.randn(300, 120)
    score = score_array(tmp_path, rows)
    assert nulls(score) == LDA | VIEWS | SUBSET
    assert reasons(score, LDA | VIEWS | SUBSET) == {NO_VIEWS["rows"]}
    assert score.rankme == pytest.approx(reference.rankme(rows.double().numpy(), 1e-7), rel=1e-6)
    expected = reference.alpha_req(rows.double().numpy())
    assert (score.alpha_req, score.alpha_req_r2) == pytest.approx(expected, rel=1e-6)
    assert (score.rankme_source, score.rankme_rows, score.n_views) == ("rows", 300, 0)


def test_flat_rows_with_views_per_sample_are_the_same_as_three_axes(tmp_path):
    z = draw_embeddings(40, 5, 6)
    flat = score_array(tmp_path, z.reshape(200, 6), views_per_sample=5)
    assert flat == score_array(tmp_path, z)


def feature_file(tmp_path, n, q, d, n_clean):
    path = tmp_path / "f.h5"
    views, clean = draw_embeddings(n, q, d), torch.randn(n_clean, d)
    layout = Layout({"backbone": d}, n, q, n_clean)
    ids = [str(i) for i in range(n_clean)]
    with FeatureWriter.create(path, layout, ids, None, {"data": "toy"}) as writer:
        writer.write(range(n_clean), {"backbone": views}, {"backbone": clean})
        writer.finish()
    return path, views, clean


@pytest.mark.parametrize("memory", ["1", "64MB"])
def test_clean_embeddings_beyond_the_views_count_for_rankme(tmp_path, memory):
    path, views, clean = feature_file(tmp_path, 20, 3, 6, n_clean=50)
    (score,) = score_file(path, ScoreSettings(device="cpu", memory=memory))
    expected = reference.rankme(clean.double().numpy(), 1e-7)
    assert score.rankme == pytest.approx(expected, rel=1e-6)
    assert (score.rankme_source, score.rankme_rows, score.n_samples) == ("clean", 50, 20)
    assert score.lidar == pytest.approx(reference.lidar(views.double().numpy(), 1e-4, 1e-7))
    assert (score.layer, score.data) == ("backbone", "toy")


@pytest.mark.parametrize("memory", ["1", "64MB"])
def test_nan_and_inf_are_counted_over_the_whole_file(tmp_path, memory):
    z = draw_embeddings(30, 3, 4)
    z[7, 1, 2], z[7, 2, 0], z[21, 0, 3] = math.nan, math.inf, -math.inf
    message = "3 values are NaN or Inf, in 2 samples, the first is sample 7; check the checkpoint"
    with pytest.raises(InputError, match=message):
        score_array(tmp_path, z, memory=memory)


def test_opposite_infinities_and_all_nan_rows_are_found(tmp_path):
    z = draw_embeddings(5, 2, 4)
    z[3, 0, 0], z[3, 1, 1] = math.inf, -math.inf
    with pytest.raises(InputError, match=r"2 values are NaN or Inf, in 1 samples, .* sample 3"):
        score_array(tmp_path, z)
    with pytest.raises(InputError, match=r"12 values are NaN or Inf, in 3 samples, .* sample 0"):
        score_array(tmp_path, torch.full((3, 4), math.nan))


def test_a_sample_that_is_bad_in_its_views_and_its_clean_embedding_counts_once(tmp_path):
    path, views, clean = feature_file(tmp_path, 8, 2, 4, n_clean=10)
    views[5, 0, 0] = clean[5, 1] = math.nan
    with h5py.File(path, "r+") as file:  # what a writer other than ours may leave
        group = file["embeddings/backbone"]
        group["views"][5], group["clean"][5] = views[5], clean[5]
        group["crc32"][5] = zlib.crc32(clean[5].numpy(), zlib.crc32(views[5].numpy()))
    with pytest.raises(InputError, match=r"2 values are NaN or Inf, in 1 samples, .* sample 5"):
        score_file(path, ScoreSettings(device="cpu"))


def test_large_finite_float16_numbers_are_finite(tmp_path):
    z = (60_000 * torch.randn(200, 3, 4).sign()).half()
    assert score_array(tmp_path, z).lidar is not None


def test_one_view_a_sample(tmp_path):
    score = score_array(tmp_path, draw_embeddings(150, 1, 110))
    assert nulls(score) == LDA | SUBSET | {"alignment"}
    assert reasons(score, LDA) == {"1 view a sample: the within covariance needs at least 2"}
    assert score.notes["alignment"] == "1 view a sample: a distance between views needs 2"
    assert score.rankme_augmented == pytest.approx(score.rankme)


def test_one_sample(tmp_path):
    score = score_array(tmp_path, draw_embeddings(1, 4, 3))
    assert nulls(score) == LDA | COVARIANCE | SUBSET
    assert reasons(score, LDA) == {"1 sample: the between covariance needs at least 2"}
    assert reasons(score, COVARIANCE) == {"1 row: a covariance needs at least 2"}
    assert score.rankme == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, -3.7])
def test_a_constant_embedding(tmp_path, value, dtype):
    score = score_array(tmp_path, torch.full((70, 3, 5), value, dtype=dtype), memory="100")
    assert nulls(score) == LDA | COVARIANCE | SUBSET
    assert reasons(score, LDA) == {CONSTANT}
    assert reasons(score, {"participation_ratio", "stable_rank"}) == {NO_SPREAD}
    assert score.rankme == pytest.approx(1.0, abs=1e-4)
    assert score.normalized_std == pytest.approx(0.0, abs=1e-7)
    assert score.alignment == pytest.approx(0.0, abs=1e-12)


def test_an_all_zero_embedding(tmp_path):
    score = score_array(tmp_path, torch.zeros(200, 3, 5))
    assert nulls(score) == LDA | COVARIANCE | SUBSET | {"rankme", "rankme_augmented"}
    assert reasons(score, {*LDA, "rankme", "rankme_augmented"}) == {CONSTANT}
    assert score.normalized_std == 0.0


def test_pure_noise_has_lidar_and_no_corrected_reading(tmp_path):
    score = score_array(tmp_path, torch.randn(300, 4, 20))
    assert nulls(score) == CORRECTED | {"alpha_req"}
    assert reasons(score, CORRECTED) == {NO_CORRECTION}
    assert score.n_above_noise == 0
    assert score.noise_fraction == pytest.approx(1.0, abs=0.1)


def test_too_few_degrees_of_freedom(tmp_path):
    score = score_array(tmp_path, draw_embeddings(10, 2, 9))
    without = CORRECTED | {"noise_fraction", "n_above_noise"}
    assert nulls(score) == without | SUBSET | {"alpha_req"}
    reason = (
        "the within covariance is singular: raise q or n "
        "(n (q - 1) = 10, it must exceed d + 1 = 10)"
    )
    assert reasons(score, without) == {reason}
    assert score.lidar is not None
    assert "n (q - 1) = 10 is less than 5 d = 45" in score.warnings["degrees"]
    assert "degrees" not in score_array(tmp_path, draw_embeddings(10, 2, 2)).warnings


def test_a_singular_within_covariance_without_a_ridge(tmp_path):
    z = draw_embeddings(40, 3, 6)
    z[..., 5] = z[..., 4]
    score = score_array(tmp_path, z, delta=0.0)
    assert nulls(score) == LDA | {"alpha_req"}
    (reason,) = reasons(score, LDA)
    assert "singular (80 degrees of freedom, d = 6) and delta is 0: raise q, n or" in reason
    assert score_array(tmp_path, z).lidar is not None


def test_a_ridge_that_matters_is_remarked(tmp_path):
    z = draw_embeddings(100, 4, 5)
    assert "ridge" not in score_array(tmp_path, z).warnings
    small = score_array(tmp_path, 1e-2 * z)
    assert small.ridge_share == pytest.approx(0.5, abs=0.15)  # delta is as large as the noise
    assert "LiDAR depends on the scale of this embedding" in small.warnings["ridge"]


@pytest.mark.parametrize(("share", "refused"), [(0.985, False), (0.995, True)])
def test_beside_a_ridge_of_99_percent_there_is_no_noise_to_measure(tmp_path, share, refused):
    """The share of delta I in delta I + w I is delta / (delta + w)."""
    z = draw_embeddings(400, 4, 5)  # of view noise w = 1
    score = score_array(tmp_path, z, delta=share / (1 - share))
    assert abs(score.ridge_share - share) < 0.001
    assert score.lidar is not None
    assert (nulls(score) >= LDA - {"lidar"}) is refused
    assert (score.noise_fraction is None) is refused
    if refused:
        (reason,) = reasons(score, LDA - {"lidar"})
        assert "it leaves no view noise to measure; lower --delta" in reason


@pytest.mark.parametrize(("share", "remarked"), [(0.04, False), (0.06, True)])
def test_a_ridge_above_5_percent_is_remarked(tmp_path, share, remarked):
    z = draw_embeddings(1000, 4, 5)
    score = score_array(tmp_path, z, delta=share / (1 - share))
    assert abs(score.ridge_share - share) < 0.005
    assert ("ridge" in score.warnings) is remarked


@pytest.mark.parametrize(("n", "remarked"), [(20, False), (19, True)])
def test_fewer_than_5_d_degrees_are_remarked(tmp_path, n, remarked):
    """n (q - 1) for d = 4."""
    assert ("degrees" in score_array(tmp_path, draw_embeddings(n, 2, 4)).warnings) is remarked


@pytest.mark.parametrize(("fraction", "remarked"), [(0.45, False), (0.55, True)])
def test_noise_of_more_than_half_of_the_trace_is_remarked(tmp_path, fraction, remarked):
    """Of signal s^2 and view noise 1 over q = 4 views: 1/4 of s^2 + 1/4."""
    signal = math.sqrt(0.25 / fraction - 0.25)
    score = score_array(tmp_path, draw_embeddings(4000, 4, 5, signal))
    assert abs(score.noise_fraction - fraction) < 0.03
    assert ("noise" in score.warnings) is remarked


@pytest.mark.parametrize(("spread", "remarked"), [(0.12, False), (0.08, True)])
def test_rows_that_point_nearly_the_same_way_are_remarked(tmp_path, spread, remarked):
    """Noise 1 beside a constant a in one of d = 20: std 1 / a in 19 of 20, times sqrt(20)."""
    z = torch.randn(200, 2, 20)
    z[:, :, 0] = 0.95 * math.sqrt(20) / spread
    score = score_array(tmp_path, z)
    assert abs(score.normalized_std - spread) < 0.01
    assert ("collapsed" in score.warnings) is remarked


@pytest.mark.parametrize(("rows", "remarked"), [(201, False), (200, True)])
def test_a_spectrum_that_ends_before_twice_the_last_rank_is_remarked(tmp_path, rows, remarked):
    """N - 1 eigenvalues carry data, and the fit reads up to the 100th."""
    score = score_array(tmp_path, torch.randn(rows, 200), metrics="alpha_req")
    assert ("eigenvalues" in score.warnings) is remarked


def test_fewer_rows_than_dimensions_is_remarked(tmp_path):
    score = score_array(tmp_path, torch.randn(5, 8))
    assert "reads 5 rows and d = 8: it cannot exceed 5" in score.warnings["rows"]


@pytest.mark.parametrize("scale", [1e-170, 1e-158, 1e-100, 1e100, 1e200])
def test_an_extreme_scale_is_a_number_or_a_reason(tmp_path, scale):
    z = draw_embeddings(300, 3, 5).double()
    plain, score = score_array(tmp_path, z), score_array(tmp_path, scale * z)
    nulls(score)
    for name in ("alignment", "normalized_std"):  # read on the sphere, where scale is gone
        assert score.value(name) == pytest.approx(plain.value(name), rel=1e-9)
    if 1e-150 < scale < 1e150:
        for name in ("rankme", "participation_ratio", "stable_rank"):
            assert score.value(name) == pytest.approx(plain.value(name), rel=1e-9)
    if scale == 1e200:
        overflow = "the embedding holds NaN or Inf, or its squares overflow float64: scale it down"
        assert reasons(score, LDA | {"rankme", "rankme_augmented", "stable_rank"}) == {overflow}


def test_only_the_metrics_asked_for_are_formed(tmp_path):
    z = draw_embeddings(150, 4, 110)
    whole = score_array(tmp_path, z, metrics="all")
    for name in METRICS:
        alone = score_array(tmp_path, z, metrics=name)
        assert alone.value(name) == pytest.approx(whole.value(name), rel=1e-12)
        assert [other for other in METRICS if alone.value(other) is not None] == [name]
        assert alone.notes == {}


def test_an_unknown_metric_is_named():
    with pytest.raises(SettingsError, match="no metric 'rankmy'; did you mean rankme"):
        parse_metrics("lidar, rankmy")
    with pytest.raises(SettingsError, match="--metrics is empty; known: lidar"):
        parse_metrics(" , ")


def test_an_unknown_device_is_named(tmp_path):
    np.save(tmp_path / "z.npy", np.zeros((2, 2, 2)))
    with pytest.raises(SettingsError, match=r"--device tpx: expected auto, cpu, cuda or cuda"):
        score_file(tmp_path / "z.npy", ScoreSettings(device="tpx"))


class Recorder(Progress):
    def __init__(self):
        self.steps, self.notes = [], []

    def update(self, task, done, total):
        self.steps.append((done, total))

    def note(self, text):
        self.notes.append(text)


def test_progress_counts_samples(tmp_path):
    recorder = Recorder()
    four_samples = 4 * 2 * 4 * 4  # bytes
    memory = str(CHUNKS_IN_MEMORY * four_samples)
    score_array(tmp_path, draw_embeddings(10, 2, 4), recorder, memory=memory)
    assert recorder.steps == [(4, 10), (8, 10), (10, 10)]
    assert recorder.notes == []


@st.composite
def arrays(draw):
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    shape = draw(npst.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6))
    numbers = npst.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False)
    few = st.sampled_from([0.0, -0.0, 1.0, 0.1, -3.0])
    return draw(npst.arrays(dtype, shape, elements=draw(st.sampled_from([numbers, few]))))


@settings(max_examples=120)
@given(arrays(), st.sampled_from([0.0, 1e-4, 1e6]), st.sampled_from([0.0, 1e-7]), st.booleans())
def test_any_finite_array_has_finite_numbers_or_reasons(tmp_path, z, delta, epsilon, normalize):
    constants = {"delta": delta, "epsilon": epsilon, "normalize": normalize}
    score = score_array(tmp_path, z, metrics="all", **constants)
    (record,) = json.loads(to_json([score]), parse_constant=pytest.fail)
    for name in METRICS:
        if record[name] is None:
            assert record["notes"][name]
        else:
            assert math.isfinite(record[name])
            assert name not in record["notes"]
    unwritten = {field.name for field in dataclasses.fields(score)} - set(record)
    assert unwritten == {"values", "spectra", "influences", "provenance"}


def test_rounding_is_no_lidar_also_where_rows_have_unit_length(tmp_path):
    """Stored in float32, on the sphere in float64: opposite views, whose means are rounding."""
    views = torch.randn(60, 2, 5)
    z = torch.cat([views, -views], dim=1) * (1 + 1e-7 * torch.randn(60, 4, 1))
    for normalize in (False, True):
        score = score_array(tmp_path, z, normalize=normalize)
        assert nulls(score) >= LDA
        assert "rounding" in score.notes["lidar"]


def test_more_noise_than_there_is_prints_as_at_least_one(tmp_path, capsys):
    torch.manual_seed(1)
    z = torch.randn(300, 4, 20)
    while (score := score_array(tmp_path, z)).noise_fraction <= 1:
        z = torch.randn(300, 4, 20)
    print_table([score], METRICS)
    print_table([score, score], METRICS)
    printed = capsys.readouterr().out
    assert printed.count(">= 1") == 3
    assert "lidar_corrected" not in score.warnings["noise"]
    assert json.loads(to_json([score]))[0]["noise_fraction"] == score.noise_fraction


def test_a_corrected_reading_is_advised_where_it_has_a_value(tmp_path):
    torch.manual_seed(1)
    score = score_array(tmp_path, draw_embeddings(600, 2, 12, signal=0.6))
    assert score.lidar_corrected is not None
    assert score.warnings["noise"].endswith("raise q (`lidar extract -q`), or read lidar_corrected")


def test_a_record_has_these_keys_in_this_order(tmp_path):
    """What scripts read: neither JSON nor CSV may lose, move or gain one unnoticed."""
    (record,) = json.loads(to_json([score_array(tmp_path, draw_embeddings(30, 3, 4))]))
    facts = "file layer n_samples n_views dim delta epsilon normalized"
    values = (
        "lidar noise_fraction noise_edge noise_edge_law noise_dispersion n_above_noise "
        "lidar_corrected pillai information reliable_rank rankme rankme_source rankme_rows "
        "rankme_augmented alpha_req alpha_req_r2 alpha_req_ranks participation_ratio stable_rank "
        "normalized_std alignment retrieval stability dse_inter dse_intra dse_dim"
    )
    more = "ridge_share data view_counts notes warnings confidence convergence depth"
    assert list(record) == f"{facts} {values} {more}".split()
    header = to_csv([]).strip().split(",")
    assert header == f"{facts} {values} ridge_share data view_counts warnings".split()
