"""Many checkpoints: views drawn once for all, and scores without features on disk."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from formats_contrastive import vicreg
from make import PROJECTED, checkpoint, image_folder, lidar_here
from torch import Tensor

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.reading.read import sha256
from lidar_cli.data.dataset import Samples
from lidar_cli.data.open import open_samples
from lidar_cli.errors import DegenerateFeatures
from lidar_cli.extraction.engine import EmbeddingModel, ViewSource
from lidar_cli.extraction.plan import Plan, identity, make_plan
from lidar_cli.extraction.run import open_with, run
from lidar_cli.extraction.view_cache import CacheLimits, ViewCache
from lidar_cli.features.reader import read_provenance
from lidar_cli.ranking.cache import MARKER
from lidar_cli.ranking.session import Ranking, rank_directory
from lidar_cli.ranking.unstored import MomentSink
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.intervals import Interval
from lidar_cli.settings import ExtractSettings, RankSettings
from lidar_cli.views.pipeline import Views

N, CLEAN, Q, SIZE = 11, 14, 3, 24
SAMPLE = (Q + 1) * 3 * SIZE * SIZE * 4  # bytes of all images of one sample
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), CLEAN)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in range(3):
        checkpoint(tmp_path / "runs" / f"{seed}.pt", seed)
    return tmp_path / "runs"


def settings(images: Path, **more: Any) -> dict[str, Any]:
    small = {"n_samples": N, "n_views": Q, "clean_samples": CLEAN, "image_size": SIZE}
    return {"data": str(images), "batch_size": 4, "device": "cpu"} | small | more


def rank(runs: Path, images: Path, **more: Any) -> Ranking:
    return rank_directory(runs, RankSettings(**settings(images, **more)))


def embeddings(path: Path, layer: str) -> list[np.ndarray]:
    with h5py.File(path) as file:
        return [file[f"embeddings/{layer}/{name}"][:] for name in ("views", "clean", "crc32")]


def assert_equal(one: Path, two: Path, layer: str = "projector") -> None:
    for a, b in zip(embeddings(one, layer), embeddings(two, layer), strict=True):
        assert np.array_equal(a, b)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples whose views were drawn, in order."""
    seen: list[int] = []
    draw = Views.views

    def views(self: Views, images: Sequence[Tensor], samples: Sequence[int], **more: Any) -> Tensor:
        seen.extend(samples)
        return draw(self, images, samples, **more)

    monkeypatch.setattr(Views, "views", views)
    return seen


@pytest.mark.parametrize(
    ("memory", "draws"),
    [("auto", N), ("1KB", N), ("100KB", N), ("0", 3 * N)],
    ids=["memory", "scratch", "both", "none"],
)
def test_rank_draws_each_view_once(
    runs: Path, images: Path, tmp_path: Path, drawn: list[int], memory: str, draws: int
) -> None:
    rank(runs, images, cache=tmp_path / "cache", view_memory=memory)
    assert sorted(drawn) == sorted([*range(N)] * (draws // N))
    features = sorted((tmp_path / "cache").glob("*.h5"))
    assert len(features) == 3
    drawn.clear()
    rank(runs, images, cache=tmp_path / "alone", view_memory="0")
    for path in features:
        assert_equal(path, tmp_path / "alone" / path.name)
    drawn.clear()
    rank(runs, images, cache=tmp_path / "cache", view_memory=memory)
    assert drawn == []


def test_each_recipe_has_views_of_its_own(
    runs: Path, images: Path, tmp_path: Path, drawn: list[int]
) -> None:
    weights = vicreg().tree["model"]
    for scale in (1, 2):
        scaled = {key: one * scale if one.dim() > 1 else one for key, one in weights.items()}
        torch.save({"model": scaled}, runs / f"vicreg-{scale}.pt")
    rank(runs, images, cache=tmp_path / "cache", layer="backbone")
    assert sorted(drawn) == sorted([*range(N)] * 2)  # of two recipes, for five checkpoints
    rank(runs, images, cache=tmp_path / "alone", layer="backbone", view_memory="0")
    features = list((tmp_path / "cache").glob("*.h5"))
    assert len(features) == 5
    assert len({json.dumps(read_provenance(path)["views"]) for path in features}) == 2
    for path in features:
        assert_equal(path, tmp_path / "alone" / path.name, "backbone")


def planned(path: Path, images: Path, **more: Any) -> tuple[Plan, Samples, ExtractSettings]:
    extraction = ExtractSettings(**settings(images, **more))
    samples = open_samples(extraction)
    description = open_with(path, extraction, CPU).description
    return (
        make_plan(description, str(path), sha256(path), samples, extraction, CPU),
        samples,
        extraction,
    )


def test_a_plan_is_known_by_all_that_decides_its_numbers(runs: Path, images: Path) -> None:
    """Of two plans with one key the features of one serve the other."""

    def key(**more: Any) -> str:
        return planned(runs / "0.pt", images, **more)[0].key

    same = ({"batch_size": 9}, {"workers": 3})  # `compiled` is below, in LEFT_OUT
    other: tuple[dict[str, Any], ...] = (
        {"precision": "bfloat16"}, {"precision": "float16"}, {"storage": "float16"}, {"seed": 1},
        {"n_samples": N - 1}, {"n_views": Q - 1}, {"clean_samples": CLEAN - 1},
        {"image_size": SIZE - 4}, {"views": "vicreg"}, {"pixel_stats": "unit"},
        {"layer": "backbone"}, {"activation": "gelu"}, {"recipe": {"flip": 0.25}},
    )  # fmt: skip
    assert {key(**more) for more in same} == {key()}
    assert len({key(), *(key(**more) for more in other)}) == 1 + len(other)
    assert planned(runs / "1.pt", images)[0].key != key()


MEANT = (
    "sha256", "model_format", "architecture", "branch", "layers", "samples_sha256", "n_samples",
    "n_views", "n_clean", "seed", "views", "image_size", "precision", "storage",
)  # fmt: skip
LEFT_OUT = (
    "checkpoint", "data", "assumptions", "layer_reason", "device", "batch_size", "compiled",
    "bad_samples",
)  # fmt: skip


def test_the_entries_of_a_provenance_that_an_identity_has(runs: Path, images: Path) -> None:
    plan = planned(runs / "0.pt", images)[0]
    assert plan.provenance.keys() >= set(MEANT)
    for name in (*MEANT, *LEFT_OUT):
        changed = identity(plan.provenance | {name: "another"})
        assert (changed == plan.identity) is (name in LEFT_OUT), name
    for name in MEANT:
        without = {key: value for key, value in plan.provenance.items() if key != name}
        assert identity(without) != plan.identity, name


@pytest.mark.parametrize("memory", [0, 3 * SAMPLE, 100 * SAMPLE])
def test_views_kept_at_one_batch_size_serve_another(
    runs: Path, images: Path, tmp_path: Path, memory: int
) -> None:
    with ViewCache(CacheLimits(0, memory, 5 * SAMPLE), CPU, tmp_path) as store:
        for name, batch_size in (("0.pt", 5), ("1.pt", 3), ("2.pt", 14)):
            plan, samples, extraction = planned(runs / name, images, batch_size=batch_size)
            outputs = [tmp_path / f"{name}-{how}.h5" for how in ("store", "alone")]
            for output, shared in zip(outputs, (store, None), strict=True):
                loaded = open_checkpoint(runs / name)
                form = loaded.memory_format
                source = ViewSource(plan, samples, CPU, form, extraction.workers, shared)
                run(EmbeddingModel(plan, loaded, CPU), source, extraction, output, Progress())
            assert_equal(*outputs)
        assert 0 in store


# Without features on disk


def assert_alike(actual: Ranking, expected: Ranking) -> None:
    """The same rows in the same order, their numbers equal to rounding."""
    rows, others = (
        [row for group in ranking.groups for row in group.rows] for ranking in (actual, expected)
    )
    assert [row.path for row in rows] == [row.path for row in others]
    for row, other in zip(rows, others, strict=True):
        assert row.rank == other.rank
        assert row.tied_with == other.tied_with
        assert row.score.notes == other.score.notes
        values, wanted = (vars(each.score) for each in (row, other))
        for name, value in wanted.items():
            if isinstance(value, float):
                assert values[name] == pytest.approx(value, rel=1e-9), name
            elif isinstance(value, int | str) and name != "file":
                assert values[name] == value
        assert_same_intervals(row.score.confidence, other.score.confidence)


def assert_same_intervals(actual: Any, expected: Any) -> None:
    assert actual.level == expected.level
    assert actual.intervals.keys() == expected.intervals.keys()
    for name, interval in expected.intervals.items():
        got: Interval = actual.intervals[name]
        assert got.reason == interval.reason
        if interval.se is not None:
            assert got.se == pytest.approx(interval.se, rel=1e-6)


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != MARKER}


# Small chunks, so that moments are added in several steps, and at n > 2 d there are intervals.
@pytest.mark.parametrize("more", [{}, {"memory": "700B"}, {"storage": "float16"}])
def test_without_store_the_scores_are_the_same(
    runs: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    many = image_folder(tmp_path / "many", 2 * PROJECTED + 4)
    more = {"n_samples": 2 * PROJECTED + 2, "clean_samples": 2 * PROJECTED + 4} | more
    stored = rank(runs, many, cache=tmp_path / "stored", **more)
    cache = tmp_path / "cache"
    unstored = rank(runs, many, cache=cache, store=False, **more)
    assert_alike(unstored, stored)
    assert any(row.interval.se is not None for group in unstored.groups for row in group.rows)
    assert {Path(name).suffix for name in files(cache)} == {".score"}
    assert sum(path.stat().st_size for path in cache.iterdir()) < 3 * 20_000


def test_without_store_a_second_run_reads_the_scores(
    runs: Path, images: Path, tmp_path: Path, drawn: list[int]
) -> None:
    cached = {"cache": tmp_path / "cache", "store": False}
    first = rank(runs, images, **cached)
    before = files(tmp_path / "cache")
    assert len(before) == 3
    drawn.clear()
    again = rank(runs, images, **cached)
    assert_alike(again, first)
    for group in again.groups:
        for row in group.rows:
            assert row.score.spectra.keys() == {"lda", "gram", "covariance"}
    rank(runs, images, **cached, by="pillai", confidence=0.5)
    assert drawn == []
    assert files(tmp_path / "cache") == before
    rank(runs, images, **cached, delta=0.1)
    assert len(files(tmp_path / "cache")) == 6
    assert sorted(drawn) == [*range(N)]


@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_a_damaged_score_is_made_anew(
    runs: Path, images: Path, tmp_path: Path, content: bytes | None
) -> None:
    cached = {"cache": tmp_path / "cache", "store": False}
    first = rank(runs, images, **cached)
    one, two, _ = sorted((tmp_path / "cache").glob("*.score"))
    one.write_bytes(two.read_bytes() if content is None else content)
    assert_alike(rank(runs, images, **cached), first)
    assert one.read_bytes() != (two.read_bytes() if content is None else content)


def test_without_store_features_that_exist_are_read(
    runs: Path, images: Path, tmp_path: Path, drawn: list[int]
) -> None:
    cached = {"cache": tmp_path / "cache"}
    stored = rank(runs, images, **cached)
    drawn.clear()
    assert_alike(rank(runs, images, **cached, store=False), stored)
    assert drawn == []


def test_a_score_alone_does_not_stand_for_features(
    runs: Path, images: Path, tmp_path: Path
) -> None:
    cached = {"cache": tmp_path / "cache"}
    rank(runs, images, **cached, store=False)
    rank(runs, images, **cached)
    assert len(list((tmp_path / "cache").glob("*.h5"))) == 3


def test_embeddings_that_do_not_fit_have_no_second_pass(runs: Path, images: Path) -> None:
    plan, _, _ = planned(runs / "0.pt", images, batch_size=4)
    size = 4 * PROJECTED * (N * Q + CLEAN)
    rank_settings = RankSettings(**settings(images))
    rows = torch.randn(N, Q, PROJECTED), torch.randn(CLEAN, PROJECTED)
    for room, fits in ((size - 1, False), (size, True)):
        sink = MomentSink(plan, "some", rank_settings, CPU, room)
        sink.write(range(8), {"projector": rows[0][:8]}, {"projector": rows[1][:8]})
        assert not sink.done.all()
        sink.write(range(8, CLEAN), {"projector": rows[0][8:]}, {"projector": rows[1][8:]})
        assert sink.done.all()
        assert (sink.embeddings.once is None) == fits
        assert sink.moments.views is not None
        assert (sink.moments.views.n, sink.moments.rows.n) == (N, CLEAN)
        mean = rows[0].double().mean(dim=(0, 1))
        assert torch.allclose(sink.moments.views.class_means.mean, mean, rtol=0, atol=1e-12)
        if fits:
            (chunk,) = (c for c in sink.embeddings.chunks(10**9) if c.views is not None)
            assert chunk.views is not None
            assert torch.equal(chunk.views, rows[0])
        else:
            assert sink.embeddings.once is not None
            assert "leave out --no-store" in sink.embeddings.once


@pytest.mark.parametrize("room", [0, 10**9])
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_without_store_numbers_are_of_the_storages_type(
    storage: str, room: int, runs: Path, images: Path
) -> None:
    plan, _, _ = planned(runs / "0.pt", images)
    plan = replace(plan, layout=replace(plan.layout, storage=storage))
    sink = MomentSink(plan, "some", RankSettings(**settings(images)), CPU, room)
    rows = torch.randn(N, Q, PROJECTED), torch.randn(CLEAN, PROJECTED)
    sink.write(range(CLEAN), {"projector": rows[0]}, {"projector": rows[1]})
    dtype = getattr(torch, storage)
    assert sink.moments.views is not None
    assert sink.moments.views.unit_roundoff == torch.finfo(dtype).eps
    mean = rows[0].to(dtype).double().mean(dim=(0, 1))
    assert torch.allclose(sink.moments.views.class_means.mean, mean, rtol=0, atol=1e-12)
    assert sink.embeddings.views is not None
    assert torch.equal(sink.embeddings.views.read(0, N), rows[0].to(dtype))


def test_without_store_numbers_are_refused_as_a_file_refuses_them(runs: Path, images: Path) -> None:
    plan, _, _ = planned(runs / "0.pt", images, batch_size=4)
    for storage, value, text in (
        ("float32", float("nan"), "the embedding of sample 5 holds NaN or Inf"),
        ("float16", 1e5, "overflows float16"),
    ):
        layout = replace(plan.layout, storage=storage)
        sink = MomentSink(
            replace(plan, layout=layout), "some", RankSettings(**settings(images)), CPU, 10**9
        )
        views, clean = torch.zeros(4, Q, PROJECTED), torch.zeros(4, PROJECTED)
        views[2, 1, 3] = value
        with pytest.raises(DegenerateFeatures, match=text):
            sink.write(range(3, 7), {"projector": views}, {"projector": clean})


# The command


@pytest.fixture
def command(
    runs: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`lidar rank` on the three checkpoints, with more options."""

    def run_it(*more: object) -> subprocess.CompletedProcess[str]:
        words = ["rank", runs, "--data", images, "-n", N, "-q", Q, "--image-size", SIZE]
        words += ["--batch-size", 4, "--device", "cpu", *more]
        return lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)

    return run_it


def test_the_json_is_the_same_without_store(
    tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    stored = command("--json", "--cache", tmp_path / "stored")
    unstored = command("--json", "--cache", tmp_path / "cache", "--no-store")
    assert (stored.returncode, unstored.returncode) == (0, 0)
    assert_json_alike(json.loads(unstored.stdout), json.loads(stored.stdout))
    again = command("--json", "--cache", tmp_path / "cache", "--no-store")
    assert again.stdout == unstored.stdout


def assert_json_alike(actual: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_json_alike(actual[key], expected[key])
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_json_alike(one, other)
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=1e-8)
    else:
        assert actual == expected


def test_a_mistyped_memory_is_wrong_usage(
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = command("--view-memory", "much")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'much' is not a memory size" in done.stderr
