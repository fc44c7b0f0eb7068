"""What `lidar rank` is given: files, folders and patterns, in any order, meet in one cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make import checkpoint, image_folder
from raising import raises
from rank_runs import Shell, rank_here, ranked, settings, stamps, three

from lidar_cli.configuration import resolve
from lidar_cli.errors import InputError
from lidar_cli.ranking.paths import Selection, files_of, matches, select
from lidar_cli.ranking.race import race_directory
from lidar_cli.ranking.session import rank_directory
from lidar_cli.ranking.watch import ScoredCheckpoint, follow
from lidar_cli.settings import RankSettings


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), 60)


@pytest.fixture
def rank(images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return rank_here(images, monkeypatch, capfd)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def files(*paths: str, **more: tuple[str, ...]) -> list[str]:
    """The files that are ranked when these are named, with `/` on every system."""
    selection = select([Path(path) for path in paths], RankSettings(**more))
    return [path.as_posix() for path in files_of(selection, pytest.fail)]


def paths_of(ranking: dict[str, list[dict[str, str]]]) -> list[str]:
    return [Path(row["path"]).as_posix() for row in ranking["checkpoints"]]


# What is selected


def test_files_folders_and_patterns_are_one_selection_in_one_order(here: Path) -> None:
    touch("runs/a/last.ckpt", "runs/a/log.txt", "runs/b/last.ckpt", "runs/b/deep/last.ckpt")
    touch("one.pt", "runs/.lidar/x.h5", "runs/top.pth")
    assert files("runs/*/last.ckpt") == ["runs/a/last.ckpt", "runs/b/last.ckpt"]
    deep = ["runs/a/last.ckpt", "runs/b/deep/last.ckpt", "runs/b/last.ckpt"]
    assert files("runs/**/last.ckpt") == deep
    assert files("**/deep/*.ckpt") == ["runs/b/deep/last.ckpt"]
    # A folder that a pattern matches is searched; other files that it matches are left out.
    assert files("runs/b*") == ["runs/b/last.ckpt", "runs/b/deep/last.ckpt"]
    assert files("runs/a/*") == ["runs/a/last.ckpt"]
    assert files("runs/**") == files("runs")
    whole = ["one.pt", "runs/top.pth", "runs/a/last.ckpt", "runs/b/last.ckpt"]
    whole.append("runs/b/deep/last.ckpt")
    for order in (
        ["one.pt", "runs"],
        ["runs", "one.pt"],
        ["runs", "./one.pt", "runs/b/../../one.pt"],
    ):
        assert files(*order, "runs/") == whole
    # Whatever comes first, a file has one place: that of the first name in order.
    assert sorted(files("runs/b", "runs")) == sorted(files("runs"))
    # A name with wildcards that exists is that file, not a pattern.
    touch("runs/[a]/last.ckpt")
    assert files("runs/[a]") == ["runs/[a]/last.ckpt"]
    # A file that is named itself is taken whatever its suffix.
    touch("weights")
    assert files("weights") == ["weights"]


def test_links_that_lead_back_end(here: Path) -> None:
    touch("runs/a/last.ckpt")
    for name in ("x", "y", "z"):
        Path("runs/a", name).symlink_to("..")
    assert matches(Path("runs/**/last.ckpt")) == {Path("runs/a/last.ckpt")}
    assert matches(Path("**")) == {Path()}


def test_globs_leave_files_out(here: Path) -> None:
    touch("runs/vicreg-1/last.ckpt", "runs/vicreg-1/best.ckpt", "runs/simclr/old/last.ckpt")
    everything = files("runs")
    assert files("runs", include=("last.ckpt",)) == [
        "runs/simclr/old/last.ckpt",
        "runs/vicreg-1/last.ckpt",
    ]
    assert files("runs", include=("vicreg-*",)) == [
        "runs/vicreg-1/best.ckpt",
        "runs/vicreg-1/last.ckpt",
    ]
    assert files("runs", exclude=("old",)) == files("runs", include=("vicreg-?/*",))
    both = {"include": ("*/last.ckpt",), "exclude": ("old", "best*")}
    assert files("runs", **both) == ["runs/vicreg-1/last.ckpt"]
    # The folder that is named, and those above it, are not compared.
    assert files("runs", exclude=("runs",)) == everything
    assert files("runs/vicreg-1/last.ckpt", "runs/simclr", exclude=("last.ckpt",)) == []
    # Of several, the path below the folder that all have in common is compared.
    only = ["runs/simclr/old/last.ckpt"]
    assert files("runs/vicreg-1", "runs/simclr", exclude=("vicreg*",)) == only
    assert files("runs/*", exclude=("vicreg*",)) == only
    assert files(str(here / "runs/vicreg-1"), "runs/simclr", include=("simclr",)) == only
    for text in ({"LIDAR_EXCLUDE": "old vicreg-?/best*"}, {"LIDAR_EXCLUDE": "old best.ckpt"}):
        values = resolve(RankSettings, {"include": []}, environment=text).values
        assert files("runs", exclude=values.exclude) == ["runs/vicreg-1/last.ckpt"]


@pytest.mark.parametrize(
    ("named", "directory", "cache_parent"),
    [
        (["runs"], "runs", "runs"),
        (["runs/a", "runs/b"], "runs", "."),
        (["runs/a/last.ckpt"], "runs/a", "."),
        (["runs/a/last.ckpt", "runs/b/last.ckpt"], "runs", "."),
        (["runs/*/last.ckpt"], "runs", "."),
        (["runs/a", "one.pt"], ".", "runs/a"),
        (["runs", "one.pt", "runs"], ".", "runs"),
    ],
)
def test_common_folder_and_cache(
    here: Path, named: list[str], directory: str, cache_parent: str
) -> None:
    touch("runs/a/last.ckpt", "runs/b/last.ckpt", "one.pt")
    for order in (named, named[::-1]):
        selection = select([Path(name) for name in order])
        assert selection.directory.as_posix() == directory
        assert selection.cache_parent.as_posix() == cache_parent
    mixed = select([here / "runs/a", Path("runs/b")])
    assert mixed.directory == here / "runs"
    assert isinstance(select(mixed), Selection)


# Mistakes


@pytest.mark.parametrize(
    ("named", "code", "words"),
    [
        ("rusn", "no-such-directory", "rusn: no such file or folder; did you mean runs/?"),
        ("runs/a/lst.ckpt", "no-such-directory", "did you mean runs/a/last.ckpt?"),
        ("rusn/a/last.ckpt", "no-such-directory", "did you mean runs/a/last.ckpt?"),
        ("rusn/nothing.ckpt", "no-such-directory", "did you mean runs/?"),
        ("elsewhere/x", "no-such-directory", "patterns such as 'runs/*/last.ckpt'"),
        ("runs/a/last.ckpt/x", "no-such-directory", "no such file or folder"),
        ("rusn/*.ckpt", "no-such-directory", "no such folder as rusn; did you mean runs/?"),
        ("runs/a/last.ckpt/*", "no-such-directory", "no such folder as runs/a/last.ckpt; name"),
        ("runs/*.ckpt", "no-match", "runs/*.ckpt: this pattern matches nothing in runs/; a `*` "),
        ("runs/*/lst.ckpt", "no-match", "nothing in runs/; did you mean runs/*/last.ckpt?"),
    ],
)
def test_path_that_matches_nothing(here: Path, named: str, code: str, words: str) -> None:
    touch("runs/a/last.ckpt")
    with raises(InputError, code) as raised:
        select([Path("runs"), Path(named)])
    assert words.replace("/", os.sep) in str(raised.value)


def test_mistyped_path_is_refused_before_torch_is_loaded(here: Path) -> None:
    touch("runs/a.pt")
    script = (
        "import sys\nfrom lidar_cli.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    status = end.code\n"
        "print(status, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, "rank", "rusn"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["3", "False"], done
    assert done.stderr == "error: rusn: no such file or folder; did you mean runs/?\n"


def test_selection_without_files_says_what_left_them_out(here: Path, rank: Shell) -> None:
    touch("runs/a.pt", "runs/b.pt")
    done = rank(Path("runs"), "--include", "c*")
    assert done.returncode == 3
    assert "runs: no checkpoint in it that --include and --exclude leave" in done.stderr


# A ranking of several


def test_same_arguments_in_any_order_meet_in_one_cache(here: Path, rank: Shell) -> None:
    three(here / "A")
    checkpoint(here / "b.pt", 3)
    shutil.copy("A/a.pt", "copy.pt")
    first = ranked(rank(Path("b.pt"), "A", "copy.pt", "--json"))
    assert len(first["checkpoints"]) == 4
    before = stamps(here / "A/.lidar")
    assert len(before) == 4
    assert not Path(".lidar").exists()
    again = ranked(rank(Path("./copy.pt"), Path("A/"), here / "A", "--json", "b.pt"))
    assert again["checkpoints"] == first["checkpoints"]
    assert stamps(here / "A/.lidar") == before
    alone = ranked(rank(Path("A"), "--json"))  # the same embeddings as those of the folder alone
    assert stamps(here / "A/.lidar") == before
    values = {row["path"]: row["value"] for row in first["checkpoints"]}
    assert all(values[row["path"]] == row["value"] for row in alone["checkpoints"])
    several = ranked(rank(Path("A/a.pt"), "b.pt", "--json"))
    assert paths_of(several) == [path for path in paths_of(first) if path in ("A/a.pt", "b.pt")]
    assert len(stamps(Path(".lidar"))) == 2
    elsewhere = ranked(rank(Path("A/*.pt"), "b.pt", "--json", "--cache", "C"))
    assert elsewhere["checkpoints"] == several["checkpoints"]
    assert len(stamps(Path("C"))) == 2


def test_planted_cache_in_the_current_folder_is_refused(here: Path, rank: Shell) -> None:
    checkpoint(here / "a.pt")
    (here / "victim").mkdir()
    Path(".lidar").symlink_to("victim")
    done = rank(Path("a.pt"))
    assert (done.returncode, list(Path("victim").iterdir())) == (3, [])
    assert ".lidar: is a link, which may lead anywhere" in done.stderr


def test_links_and_files_that_are_named(here: Path, rank: Shell) -> None:
    """A link to nothing and a log are skipped; a file with two names is one row."""
    checkpoint(here / "a.pt", 1)
    checkpoint(here / "b.pt", 2)
    ranked(rank(Path("a.pt"), "b.pt", "--json"))
    (features,) = Path(".lidar").glob("a-*.h5")
    shutil.move(features, "a.h5")
    shutil.move("a.pt", "a")
    Path("two.h5").symlink_to("a.h5")
    Path("gone.pt").symlink_to("nowhere.pt")
    Path("log.txt").write_text("epoch 1")
    np.save("z.npy", np.arange(3.0))
    ranking = ranked(rank(Path("a.h5"), "b.pt", "two.h5", "gone.pt", "log.txt", "z.npy", "--json"))
    rows = {row["path"]: row["aliases"] for row in ranking["checkpoints"]}
    assert rows == {"a.h5": ["two.h5"], "b.pt": []}
    skipped = {file["path"]: file["reason"] for file in ranking["skipped"]}
    assert skipped == {
        "gone.pt": "a link to nothing: nowhere.pt",
        "log.txt": "neither a checkpoint nor a feature file",
        "z.npy": "found z (3); expected one of (n, q, d) or (N, d)",
    }
    assert paths_of(ranked(rank(Path("a"), "--json"))) == ["a"]  # a checkpoint without a suffix
    done = rank(Path("log.txt"))
    assert (done.returncode, "1 skipped; the first: log.txt: " in done.stderr) == (3, True)


def test_watch_race_and_collect_take_several(here: Path, images: Path) -> None:
    checkpoint(here / "A/a.pt", 0)
    checkpoint(here / "B/b.pt", 1)
    small = {"cache": here / "cache"}

    def with_settings(**more: object) -> RankSettings:
        return RankSettings(**settings(images, **small, **more))

    following = with_settings(watch=True, interval=0.1, watch_for=0.2)
    scored = list(follow([Path("A"), Path("B/*.pt"), Path("B/*.ckpt")], following))
    rows = [one.row for one in scored if isinstance(one, ScoredCheckpoint)]
    assert {row.path: row.value for row in rows}.keys() == {"A/a.pt", "B/b.pt"}
    collected = rank_directory([Path("B/b.pt"), Path("A")], with_settings(collect=True))
    (group,) = collected.groups
    assert {row.path: row.value for row in group.rows} == {row.path: row.value for row in rows}
    race = race_directory(
        [Path("A/a.pt"), Path("B")],
        with_settings(n_samples=60, race_budget=1.0, layer="backbone"),
    )
    assert {row.path for row in (*race.winners, *race.others)} == {"A/a.pt", "B/b.pt"}


def test_probe_of_several_is_cached_where_they_are(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint(here / "A/a.pt", 0)
    checkpoint(here / "b.pt", 1)
    labelled = image_folder(here / "labelled", 24, ("cat", "dog"))
    rank = rank_here(labelled, monkeypatch, capfd)
    ranking = ranked(rank(Path("b.pt"), "A", "--oracle", "probe", "--json"))
    assert ranking["correlation"]["accuracies"].keys() == {"A/a.pt", "b.pt"}
    assert len(stamps(here / "A/.lidar")) == 4  # two to rank, two of backbones to probe
    assert not Path(".lidar").exists()
