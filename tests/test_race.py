"""Successive elimination: who leaves, at what confidence, for how many views."""

import functools
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from formats import FIXTURES
from make import besides_assumptions, checkpoint, image_folder, lidar_here, state_dict
from raising import raises

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import BadRows, CheckpointError, InputError, NoProcess, SettingsError
from lidar_cli.ranking.order import Row
from lidar_cli.ranking.race import bonferroni_level, eliminated, looks_of, race_directory
from lidar_cli.ranking.scorer import concerns_every_checkpoint
from lidar_cli.ranking.session import rank_directory
from lidar_cli.report.race import result_text
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import Score
from lidar_cli.scoring.intervals import Interval
from lidar_cli.settings import RankSettings

LIDAR = METRICS["lidar"]
BATCH = 10


@pytest.mark.parametrize(
    ("n", "d", "looks"),
    [
        (1000, 64, [129, 258, 516, 1000]),  # from 2 d + 1
        (1000, 8, [62, 124, 248, 496, 992, 1000]),  # from n / 16
        (180, 8, [50, 100, 180]),  # from the least
    ],
)
def test_looks_double_up_to_n(n: int, d: int, looks: list[int]) -> None:
    assert looks_of(n, d, 0.33) == looks


def test_a_first_look_that_is_too_dear_is_refused_with_the_n_that_is_not() -> None:
    # 513 in batches of 64 at most are 576 at most; 9/8 of 513, rounded up, is 578, of 1752 a third.
    with pytest.raises(SettingsError, match=r"first look needs 513 .* to 578, .* -n 1752 or more"):
        looks_of(1000, 256, 0.33)
    with raises(SettingsError, "race-budget"):
        looks_of(1751, 256, 0.33)
    assert looks_of(1752, 256, 0.33)[0] == 513
    # In batches of 100 they are 600, and might be 612 in batches of which nobody knows the place.
    with pytest.raises(SettingsError, match=r"first look needs 513 .* to 612, .* -n 1855 or more"):
        looks_of(1854, 256, 0.33, 100)
    assert looks_of(1855, 256, 0.33, 100)[0] == 513
    assert looks_of(170, 25, 0.3, 1)[0] == 51  # 0.3 of 170 exactly, whatever floats make of it
    assert looks_of(10_000, 8, 0.05, 1)[0] == 500  # the budget, below a sixteenth
    assert looks_of(10_000, 8, 0.05, 101)[0] == 400  # and at most 100 more


def test_the_level_shares_what_may_err_among_looks_and_pairs() -> None:
    # 0.05 over 2 looks and 4 others: 0.00625 on one side, so 0.0125 on both.
    assert bonferroni_level(0.95, 2, 5) == pytest.approx(0.9875)
    assert bonferroni_level(0.95, 3, 1) == pytest.approx(1 - 0.1 / 3)  # nobody to compare with


def row(path: str, value: float | None, influences: list[float]) -> Row:
    """A row by LiDAR, of a checkpoint whose samples have these influences."""
    values = torch.tensor(influences, dtype=torch.float64)
    score = Score.of(
        path,
        "projector",
        len(values),
        2,
        4,
        1e-4,
        1e-7,
        False,
        lidar=value,
        influences={"lidar": values - values.mean()},
    )
    se = None if value is None else float(values.std() / math.sqrt(len(values)))
    return Row(path, (), score, value, interval=Interval(se))


def alternating(n: int, sign: int = 1) -> list[float]:
    """Influences of sd 1, all but: +1, -1, +1, ..."""
    return [sign * (-1.0) ** i for i in range(n)]


def test_only_a_gap_beyond_the_paired_interval_puts_out() -> None:
    n = 100
    # Influences of opposite signs: the difference has sd 2 and a standard error of 0.2, and its
    # two-sided 95 % interval reaches about 0.4.
    for gap, out in ((0.3, []), (0.5, [1])):
        rows = [row("a", 10.0, alternating(n)), row("b", 10.0 - gap, alternating(n, -1))]
        assert eliminated(rows, [10.0, 10.0 - gap], n, LIDAR, 0.95) == out
    # The same influences: the difference is known exactly, however uncertain both values are.
    rows = [row("a", 10.0, alternating(n)), row("b", 9.99, alternating(n))]
    assert eliminated(rows, [10.0, 9.99], n, LIDAR, 0.95) == [1]


def test_without_a_value_or_an_interval_nobody_leaves_or_sends_away() -> None:
    null = row("a", None, alternating(100))
    few = Row("b", (), null.score, 99.0)  # a value, and no interval
    rows = [null, few, row("c", 1.0, alternating(100))]
    assert eliminated(rows, [None, 99.0, 1.0], 100, LIDAR, 0.95) == []


def test_a_gap_that_closes_before_n_puts_nobody_out() -> None:
    # 100 samples gave 12 and 8; up to n = 400 each gains 3/4 of what it gained since 50.
    rows = [row("a", 12.0, alternating(100)), row("b", 8.0, alternating(100))]
    for half, n, out in (
        ([10.0, 4.0], 400, [1]),  # 13.5 and 11
        ([10.0, 1.0], 400, [1]),  # 13.5 and 13.25
        ([12.0, 1.0], 400, []),  # 12 and 13.25
        ([12.0, 1.0], 100, [1]),  # nothing is left to gain
        ([None, 4.0], 400, []),  # a line needs two points
    ):
        assert eliminated(rows, half, n, LIDAR, 0.95) == out


def test_the_best_is_put_out_no_more_often_than_promised() -> None:
    """Eight whose expectations are equal, which is the hardest case, seen at three looks."""
    generator = torch.Generator().manual_seed(0)
    draws, entrants, looks = 400, 8, (50, 100, 200)
    level = bonferroni_level(0.95, len(looks), entrants)
    lost = 0
    for _ in range(draws):
        shared = torch.randn(looks[-1], 1, generator=generator, dtype=torch.float64)
        noise = torch.randn(looks[-1], entrants, generator=generator, dtype=torch.float64)
        samples = shared + noise  # the value is the mean, its influences what is above it
        best_is_out = False
        for n in looks:
            values = samples[:n].mean(dim=0)
            rows = [row(str(k), float(values[k]), samples[:n, k].tolist()) for k in range(entrants)]
            best_is_out |= 0 in eliminated(rows, values.tolist(), n, LIDAR, level)
        lost += best_is_out
    # At the nominal 5 % of 400 draws: 20, and 34 are beyond three standard deviations of it.
    assert lost <= 33


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six checkpoints with d = 8, and 170 photographs."""
    folder = tmp_path_factory.mktemp("race")
    for seed in range(6):
        checkpoint(folder / "runs" / f"{seed}.pt", seed)
    image_folder(folder / "images", 170)
    return folder


def settings(runs: Path, cache: Path, **more: object) -> RankSettings:
    small = {
        "data": str(runs / "images"),
        "n_samples": 170,
        "n_views": 2,
        "image_size": 24,
        "batch_size": BATCH,
    }
    return RankSettings(**(small | {"device": "cpu", "cache": cache} | more))  # type: ignore[arg-type]


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return functools.partial(lidar_here, monkeypatch=monkeypatch, capfd=capfd)


@pytest.mark.parametrize(
    "by",
    [
        "lidar",
        pytest.param("rankme", marks=pytest.mark.nightly),
        pytest.param("alignment", marks=pytest.mark.nightly),
    ],
)
def test_the_winner_is_that_of_the_whole_ranking_for_fewer_views(
    runs: Path, tmp_path: Path, by: str
) -> None:
    whole = rank_directory(runs / "runs", settings(runs, tmp_path / "whole", by=by))
    best = whole.groups[0].rows[0].path
    race = race_directory(runs / "runs", settings(runs, tmp_path / "race", by=by, race_budget=0.6))
    assert best in [row.path for row in race.winners]
    assert race.views_without_race == 6 * 170 * 2
    assert race.views_spent <= 0.6 * race.views_without_race
    assert race.looks[0].n == 50
    assert race.views_spent == sum(look.views for look in race.looks)
    entrants = 6
    for look, before in zip(race.looks, (0, *(look.n for look in race.looks)), strict=False):
        assert look.entrants == entrants
        size = BATCH  # whole batches are embedded
        batches = -(-look.n // size) - -(-before // size)
        assert look.views == entrants * min(batches * size, 170 - before // size * size) * 2
        entrants -= look.eliminated
    assert len(race.winners) == entrants
    assert len(race.winners) + len(race.others) == 6


def test_a_ranking_after_a_race_goes_on_where_it_ended(runs: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    race = race_directory(runs / "runs", settings(runs, cache, race_budget=0.4))
    again = race_directory(runs / "runs", settings(runs, cache, race_budget=0.4))
    assert [row.value for row in again.winners] == [row.value for row in race.winners]
    fresh = rank_directory(runs / "runs", settings(runs, tmp_path / "fresh"))
    after = rank_directory(runs / "runs", settings(runs, cache))
    assert [(row.path, row.value) for row in after.groups[0].rows] == [
        (row.path, row.value) for row in fresh.groups[0].rows
    ]
    assert "constant" not in result_text(race)
    first, *others = race.winners
    assert first.score.normalized_std > 0.1
    flat = replace(first.score, values={**first.score.values, "normalized_std": 0.01})
    race = replace(race, winners=(replace(first, score=flat), *others))
    assert f"But the embedding of {race.name(first.path)} is constant" in result_text(race)


class Replacing(Progress):
    """Puts other weights under a checkpoint's name once it was embedded for the first look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = ""

    def checkpoint(self, name: str) -> None:
        self.name = name

    def update(self, task: str, done: int, total: int) -> None:
        if task == "embedding" and self.name.endswith(self.path.stem) and done == 50:
            checkpoint(self.path, 99)


def test_one_that_fails_after_it_put_others_out_ends_the_race(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "runs", tmp_path / "runs")
    more = {"by": "rankme", "race_budget": 0.6}
    race = race_directory(tmp_path / "runs", settings(runs, tmp_path / "a", **more))
    assert race.looks[0].eliminated
    assert len(race.looks) > 1
    path = Path(race.winners[0].path)
    refusal = (
        f"{path}: failed at the look at n = 100: .* changed while it was read; .*without --race"
    )
    with pytest.raises(InputError, match=refusal):
        race_directory(tmp_path / "runs", settings(runs, tmp_path / "b", **more), Replacing(path))


def test_one_that_fails_at_the_first_look_is_among_the_failed(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "runs", tmp_path / "runs")
    weights = state_dict(0)
    weights["module.projector.3.weight"] *= 1e38
    torch.save(weights, tmp_path / "runs" / "0.pt")
    race = race_directory(
        tmp_path / "runs", settings(runs, tmp_path / "a", by="rankme", race_budget=0.6)
    )
    assert [Path(left.path).name for left in race.failed] == ["0.pt"]
    assert race.looks[0].entrants == 5
    assert len(race.winners) + len(race.others) == 5


@pytest.mark.parametrize(
    ("error", "of_all"),
    [
        (InputError("an image"), True),
        (SettingsError("an option"), True),
        (NoProcess("none"), True),
        (BadRows("of one file, though an InputError"), False),
        (CheckpointError("of one file"), False),
        (OSError("of one file"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_of_one_file_does_not_end_what_others_share(error: Exception, of_all: bool) -> None:
    assert concerns_every_checkpoint(error) is of_all


def test_the_command_prints_what_was_spent_and_how_sure_it_is(
    runs: Path, tmp_path: Path, run: Run
) -> None:
    words = ["rank", runs / "runs", "--data", runs / "images", "-n", 170, "-q", 2, "--image-size"]
    words += [24, "--device", "cpu", "--cache", tmp_path / "cache", "--race", "--race-budget", 0.6]
    table = run(*words)
    assert table.returncode == 0, table.stderr
    assert "at 0.95 confidence over all looks, each at its own n" in table.stdout
    listing = json.loads(run(*words, "--json").stdout)
    spent, full = listing["race"]["views"], listing["race"]["views_of_all"]
    assert spent <= 0.6 * full
    assert f"spent {spent:,} of {full:,} views ({spent / full:.0%})" in table.stdout
    assert [row["rank"] for row in listing["checkpoints"]] == [1, 2, 3, 4, 5, 6]
    named = [listing["race"]["winner"]] if listing["race"]["winner"] else listing["race"]["tied"]
    assert named == [row["path"] for row in listing["checkpoints"] if not row["put_out"]]
    quiet = run(*words, "--quiet", "--top", 1)
    assert quiet.stdout == f"{listing['checkpoints'][0]['path']}\n"


def test_what_a_race_cannot_do_is_one_line(runs: Path, tmp_path: Path, run: Run) -> None:
    words = ["rank", runs / "runs", "--data", runs / "images", "--race", "--cache", tmp_path / "c"]
    refused = run(*words, "--no-store")
    assert refused.returncode == 2
    assert refused.stderr == "error: --race and --no-store exclude each other; give one\n"
    small = run(*words, "-n", 60, "--device", "cpu")
    assert small.returncode == 2
    assert besides_assumptions(small.stderr).startswith(
        "error: --race: the first look needs 50 samples"
    )
    for more, reason in (
        (["-q", 0, "--by", "rankme"], "--race saves views, and -q 0 has none"),
        (["--by", "n_above_noise"], "a count has no derivative"),
        (["--clean-samples", 1200], "leave out --clean-samples"),
    ):
        refused = run(*words, "--device", "cpu", *more)
        assert refused.returncode == 2
        assert reason in refused.stderr


def test_checkpoints_of_other_pixel_statistics_are_not_raced(
    runs: Path, tmp_path: Path, run: Run
) -> None:
    """Both are trained with SimCLR's views."""
    for name in ("torchvision-resnet", "simclr-sthalles"):
        (tmp_path / name).mkdir()
        FIXTURES[name]().save(tmp_path / name)
    words = ["rank", tmp_path, "--data", runs / "images", "--race", "-n", 170, "-q", 2]
    words += ["--image-size", 24, "--layer", "backbone", "--device", "cpu"]
    refused = run(*words)
    assert refused.returncode == 2
    said = "the checkpoints differ in pixel statistics and cannot be compared; make "
    assert f"{said}them equal with --pixel-stats, or" in refused.stderr
    refused = run(*words, "--pixel-stats", "unit")
    assert "pixel statistics" not in refused.stderr
