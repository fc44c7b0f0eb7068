"""The answer of a ranking: a sentence, a table that fits, cautions with the commands that cure."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import run_command
from make import PROJECTED, checkpoint, environment, image_folder, lidar
from terminal import in_terminal

from lidar_cli.core.metrics import METRICS, default_metrics
from lidar_cli.ranking.correlation import correlate
from lidar_cli.ranking.joining import Joined, Member, join
from lidar_cli.ranking.oracle import GroupComparison, Oracle
from lidar_cli.ranking.order import Group, Row, comparable
from lidar_cli.ranking.session import Ranking
from lidar_cli.ranking.trust import facts_of_group, judge
from lidar_cli.report.dry_run import _joined
from lidar_cli.report.ranking import tied_text
from lidar_cli.report.text import command_lines, format_duration, shorten_names
from lidar_cli.report.verdict import (
    Advice,
    best_by,
    cautions,
    command_with,
    companions,
    comparison_command,
    scores_verdict,
    verdict,
    with_one_command,
)
from lidar_cli.scoring.compute import Score
from lidar_cli.scoring.intervals import Confidence, Interval

N, Q = 60, 4
SMALL = ["-q", Q, "--image-size", 24, "--device", "cpu", "--batch-size", 20]
FACTS: dict[str, Any] = {
    "samples_sha256": "a", "seed": 0, "views": {"name": "simclr"}, "image_size": 32,
    "mask_grid": None, "precision": "float32", "storage": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, three checkpoints of one width, and one wider projector in another folder."""
    folder = tmp_path_factory.mktemp("verdict")
    image_folder(folder / "images", N)
    for seed, name in enumerate(("first", "second", "third")):
        checkpoint(folder / f"runs/{name}/last.pt", seed)
        checkpoint(folder / f"two/{name}.pt", seed)
    checkpoint(folder / "two/wide.pt", 5, projected=PROJECTED + 2)
    return folder


def rank(folder: Path, *words: object, data: str = "images") -> tuple[int, list[str]]:
    return in_terminal(["rank", *words, "--data", data, *SMALL], folder)


# What a terminal shows


def test_the_answer_is_the_first_line_and_all_fits_into_80_columns(folder: Path) -> None:
    status, lines = rank(folder, "runs", "-n", N)
    assert status == 0
    listing = json.loads(lidar("rank", "runs", "--data", "images", "-n", N, *SMALL, "--json",
                               cwd=folder).stdout)  # fmt: skip
    text = "\n".join(lines)
    assert listing["verdict"] in " ".join(lines)
    best = Path(listing["checkpoints"][0]["path"]).parent.name
    answer = next(at for at, line in enumerate(lines) if line.startswith(best))
    assert " by lidar: " in lines[answer] + lines[answer + 1]
    assert all(len(line) <= 80 for line in lines), text
    header = next(line for line in lines if line.startswith("#  checkpoint"))
    assert header.split()[:3] == ["#", "checkpoint", "lidar"]
    assert header.split()[-1] == "agreement"
    rows = [line for line in lines if line[:3] in ("1  ", "2  ", "3  ")]
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]
    assert sum(line.startswith("next ") for line in lines) == 1
    assert sum(line.startswith("caution") for line in lines) <= 2


def test_columns_and_all_choose_the_metrics(folder: Path) -> None:
    _, lines = rank(folder, "runs", "-n", N, "--columns", "pillai,stable_rank")
    header = next(line for line in lines if line.startswith("#  checkpoint"))
    assert header.split()[-2:] == ["pillai", "rank"]  # stable_rank is broken into two lines
    off = lidar("rank", "runs", "--data", "images", "-n", N, *SMALL, "--all", cwd=folder)
    assert set(off.stdout.splitlines()[2].split()) >= default_metrics() | {"#", "checkpoint"}
    wrong = lidar("rank", "runs", "--columns", "pilai", cwd=folder)
    assert wrong.returncode == 2
    assert "no metric 'pilai'; did you mean pillai?" in wrong.stderr


def test_off_a_terminal_the_verdict_is_the_first_line_of_stdout(folder: Path) -> None:
    words = ["rank", "runs", "--data", "images", "-n", N, *SMALL]
    wide, narrow = (
        run_command(words, folder, environment(COLUMNS=columns)) for columns in ("200", "40")
    )
    assert wide.stdout == narrow.stdout
    said = json.loads(lidar(*words, "--json", cwd=folder).stdout)["verdict"]
    assert wide.stdout.splitlines()[0] == said
    assert said not in wide.stderr
    assert "next" not in wide.stderr
    assert wide.stderr.splitlines()[-1].endswith(" more remarks: --verbose")
    assert wide.stdout.splitlines()[2].split()[:3] == ["#", "checkpoint", "lidar"]
    assert "first and 2 others: assumed " in wide.stderr


def test_a_checkpoint_that_fails_has_the_name_of_its_row(tmp_path: Path, folder: Path) -> None:
    for name, projected in (("whole", PROJECTED), ("bare", None)):
        checkpoint(tmp_path / f"runs/{name}/last.pt", 1, projected=projected)
    words = ["rank", "runs", "--data", folder / "images", "-n", N, *SMALL, "--layer", "projector"]
    done = lidar(*words, cwd=tmp_path)
    assert done.returncode == 4
    assert [line for line in done.stderr.splitlines() if line.startswith("failed: bare: ")]


# Groups


def test_two_groups_are_explained_and_the_printed_command_joins_them(folder: Path) -> None:
    _, lines = rank(folder, "two", "-n", N)
    text = " ".join(lines)
    assert (
        f"The checkpoints form two groups that cannot be compared: the projector is {PROJECTED} "
        f"wide in one and {PROJECTED + 2} in the other. To rank all by what they share:"
    ) in text
    assert sum(line.startswith("#  checkpoint") for line in lines) == 1  # one row is no table
    single = next(line for line in lines if line.startswith("wide"))
    assert single.split()[-1] == str(PROJECTED + 2)
    at = next(at for at, line in enumerate(lines) if line.strip().startswith("lidar rank two"))
    assert max(map(len, lines)) <= 80
    joined = lidar(*typed(lines[at:])[1:], "--json", cwd=folder)
    assert json.loads(joined.stdout)["groups"] == 1
    quiet = lidar("rank", "two", "--data", "images", "-n", N, *SMALL, "--quiet", cwd=folder)
    assert (quiet.returncode, quiet.stdout) == (2, "")
    assert "--layer backbone" in quiet.stderr


def test_backbones_that_differ_too_cannot_be_joined(tmp_path: Path, folder: Path) -> None:
    checkpoint(tmp_path / "runs/a.pt", 1)
    checkpoint(tmp_path / "runs/b.pt", 2, projected=PROJECTED + 2, widths=(4, 8, 12, 20))
    done = lidar("rank", "runs", "--data", folder / "images", "-n", 50, *SMALL, cwd=tmp_path)
    assert "No option makes them equal: the backbones are 16 and 20 wide" in done.stdout
    assert "--layer" not in done.stdout + done.stderr


EIGHT = [  # views, statistics, layer, widths of backbone and projector; None: a feature file
    ("simclr", "imagenet", "projector", {"backbone": 16, "projector": 8}),
    ("mae", "imagenet", "projector", {"backbone": 16, "projector": 10}),
    ("simclr", "cifar10", "projector", {"backbone": 16, "projector": 12}),
    ("mae", "cifar10", "backbone", {"backbone": 16}),
    ("simclr", "unit", "projector", {"backbone": 20, "projector": 8}),
    ("dino", "imagenet", "projector", {"backbone": 20, "projector": 10}),
    ("simclr", "imagenet", "backbone", {"backbone": 20}),
    ("dino", "unit", "projector", {"backbone": 16, "projector": 8}),
]


def planned(views: str, statistics: str, layer: str, widths: dict[str, int] | None) -> Member:
    d = widths[layer] if widths else 8
    common = {"views": {"name": views}, "pixel statistics": statistics, "d": d, "layer": layer}
    return Member(common, widths)


def test_the_fewest_groups_are_those_of_backbones_that_differ() -> None:
    together = ("views", "pixel_stats", "layer")
    joined = join([planned(*one) for one in EIGHT])
    assert joined == Joined(2, together, "backbone", ("d",))
    assert _joined(joined) == (
        "2 groups, the fewest, with one value of --views, --pixel-stats and --layer"
    )
    equal = join([planned(*one) for one in EIGHT if one[3]["backbone"] == 16])
    assert equal == Joined(1, together, "backbone", ())
    assert _joined(equal) == "comparable with one value of --views, --pixel-stats and --layer"
    # The projectors are of one width, the backbones are not.
    swapped = [planned("mae", "unit", "backbone", {"backbone": d, "projector": 8}) for d in (4, 6)]
    assert join(swapped) == Joined(1, ("layer",), "projector", ())
    # A feature file has the one layer that it has.
    stored = [planned("simclr", "unit", "projector", None), planned(*EIGHT[1]), planned(*EIGHT[7])]
    assert join(stored) == Joined(2, ("views", "pixel_stats"), "projector", ("d",))
    neither = join([planned(*EIGHT[0]), planned(*EIGHT[5])])
    assert (neither.groups, neither.settings) == (2, ())
    assert _joined(neither) == "no option joins groups"


def test_options_that_join_most_groups_are_named_and_do_join_them(
    tmp_path: Path, folder: Path
) -> None:
    """Three groups by the width of the projector, of which two have backbones of one width."""
    for seed, (projected, widths) in enumerate(
        [(PROJECTED, (4, 8, 12, 16)), (PROJECTED + 2, (4, 8, 12, 16)), (9, (4, 8, 12, 20))]
    ):
        checkpoint(tmp_path / f"runs/{seed}.pt", seed, projected=projected, widths=widths)
    words = ["rank", "runs", "--data", folder / "images", "-n", 50, *SMALL]
    done = lidar(*words, cwd=tmp_path)
    said = " ".join(done.stdout.split())
    assert "No option makes the widths equal: the backbones are 16 and 20 wide" in said
    assert "One value of --layer leaves two groups, the fewest: lidar rank" in said
    fewest = lidar(*words, "--layer", "backbone", "--json", cwd=tmp_path)
    assert json.loads(fewest.stdout)["groups"] == 2
    before = lidar(*words, "--dry-run", cwd=tmp_path)
    assert "         2 groups, the fewest, with one value of --layer\n" in before.stdout


def test_two_values_of_three_groups_are_of_some_and_others() -> None:
    facts = [
        {**FACTS, "seed": seed, "views": {"name": name}}
        for seed, name in ((0, "simclr"), (0, "mae"), (1, "mae"))
    ]
    scores = [
        replace(scored(f"{at}", 9.0, None).score, provenance=one) for at, one in enumerate(facts)
    ]
    text = scores_verdict(scores) or ""
    assert "three groups that cannot be compared: the seed is 0 in some and 1 in others; " in text
    assert "the views are simclr in some and mae in others" in text
    assert "simclr in one and mae in the other" in (scores_verdict(scores[:2]) or "")


def typed(lines: list[str]) -> list[str]:
    """The words of the command that the first lines are, as a shell reads them."""
    last = next(at for at, line in enumerate(lines) if not line.endswith("\\"))
    command = "\n".join(lines[: last + 1])
    script = f"set -- {command}\nprintf '%s\\0' \"$@\""
    words = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    return words.split("\0")[:-1]


# Other commands


def test_score_of_two_files_keeps_the_intervals_and_all_metrics(folder: Path) -> None:
    for name in ("first", "second"):
        words = ["extract", f"two/{name}.pt", "--data", "images", "-n", N, *SMALL]
        lidar(*words, "-o", f"{name}.h5", cwd=folder)
    status, lines = in_terminal(
        ["score", "first.h5", "second.h5", "--confidence", 0.9], folder, columns=80
    )
    assert status == 0
    assert any(" by lidar: " in line for line in lines)  # above it a bar, if it took long
    header = next(at for at, line in enumerate(lines) if line.startswith("file"))
    assert lines[header].split() == ["file", "first.h5:projector", "second.h5:projector"]
    cells = {line.split()[0]: line for line in lines[header + 1 :] if line}
    assert cells.keys() >= default_metrics()
    assert cells["lidar"].count("+-") == 2
    assert all(len(line) <= 80 for line in lines)


# The number of images


def test_n_is_what_the_data_hold_but_an_explicit_n_is_not_lowered(folder: Path) -> None:
    words = ["rank", "runs", "--data", "images", *SMALL]
    done = lidar(*words, "--json", cwd=folder)
    assert {row["metrics"]["n_samples"] for row in json.loads(done.stdout)["checkpoints"]} == {N}
    assert done.stderr.count("60 images are all that it holds, so n is not 1000") == 1
    asked = lidar(*words, "-n", 1000, cwd=folder)
    assert asked.returncode == 3
    assert f"holds {N} images, 1000 were asked for" in asked.stderr


def test_fewer_than_fifty_images_must_be_asked_for(tmp_path: Path, folder: Path) -> None:
    image_folder(tmp_path / "few", 49)
    words = ["extract", folder / "two/first.pt", "--data", "few", *SMALL, "-o", "z.h5"]
    done = lidar(*words, cwd=tmp_path)
    assert done.returncode == 3
    assert "holds 49 images, 1000 were asked for; lower -n" in done.stderr
    assert lidar(*words, "-n", 49, cwd=tmp_path).returncode == 0


# Sentences


def scored(name: str, lidar: float, width: float | None = 0.1, **values: Any) -> Row:
    """A row whose every metric has an interval of this half width."""
    values = {"lidar": lidar, **values}
    ends = {
        metric: Interval(0.01, value - width, value + width) if width else Interval(reason="few")
        for metric, value in values.items()
    }
    score = Score.of(f"{name}.h5", "projector", 100, 4, 8, 1e-4, 1e-7, False, provenance=FACTS,
                     confidence=Confidence(0.95, ends), **values)  # fmt: skip
    return Row(name, (), score, lidar, interval=ends["lidar"])


def ranked(*rows: Row, **more: Any) -> Ranking:
    by = METRICS["lidar"]
    tied = [  # by intervals that overlap
        Row(
            **{
                **vars(row),
                "rank": at + 1,
                "tied_with": tuple(
                    other.path
                    for other in rows
                    if other is not row
                    and row.interval.ci_low is not None
                    and abs((other.value or 0) - (row.value or 0)) < 0.2
                ),
            }
        )
        for at, row in enumerate(rows)
    ]
    group = Group(comparable(rows[0].score), tuple(tied))
    return Ranking("", by, 0.95, "images", (group,), **more)


def test_the_sentence_says_how_clear_the_answer_is() -> None:
    clear = ranked(scored("a", 9.0), scored("b", 8.0))
    assert verdict(clear) == "a is best by lidar: 9.000 +- 0.100. Next is b, clearly below."
    tied = ranked(scored("a", 9.0), scored("b", 8.9), scored("c", 3.0))
    assert verdict(tied) == "a is first by lidar: 9.000 +- 0.100, but tied with b."
    many = ranked(*(scored(name, 9.0 - 0.01 * at) for at, name in enumerate("abcdef")))
    assert verdict(many).endswith("but tied with b, c and 3 others.")
    blind = ranked(scored("a", 9.0, None), scored("b", 8.0, None))
    assert "how much of that is chance is unknown" in verdict(blind)
    assert "there is no other" in verdict(ranked(scored("a", 9.0)))


def test_the_sentence_says_what_the_choice_costs_in_accuracy() -> None:
    ranking = ranked(scored("a", 9.0), scored("b", 8.0))

    def costs(**shares: float) -> str:
        return verdict(ranking, Oracle("probe", "", 0.95, shares, (), (), (), standard_error=0.01))

    clear = "a is best by lidar: 9.000 +- 0.100. Next is b, clearly below."
    assert costs(a=0.592, b=0.3) == f"{clear} Its probe accuracy is 59.2 %, the best of 2."
    assert costs(a=0.592, b=0.61) == (
        f"{clear} Its probe accuracy is 59.2 %, 1.8 points below b, the best of 2; up to 3 points "
        "may be chance."
    )
    # 1.96 sqrt(2) 1 point = 2.8 points, above 1.8 and below 4.8
    assert "best of 2." in costs(a=0.562, b=0.61)
    too_easy = "as of all 2: these labels do not say which is best."
    assert costs(a=1.0, b=1.0) == f"{clear} Its probe accuracy is 100.0 %, {too_easy}"
    assert costs(b=0.61) == clear


def test_labels_against_the_order_are_said_with_the_numbers() -> None:
    """Spearman's correlation of 9, 8, 7 with 0.1, 0.3, 0.2 is 1 - 6 (4 + 1 + 1) / 24 = -0.5."""
    ranking = ranked(*(scored(name, value) for name, value in (("a", 9.0), ("b", 8.0), ("c", 7.0))))
    scores = [row.score for row in ranking.groups[0].rows]

    def against(*shares: float) -> str:
        by_path = dict(zip("abc", shares, strict=True))
        compared = GroupComparison(correlate(scores, shares), None, ())
        return verdict(ranking, Oracle("acc.csv", "", 0.95, by_path, (compared,), (), ()))

    assert against(0.1, 0.3, 0.2).endswith(
        " The labels do not support this order: the rank correlation of lidar with accuracy is "
        "-0.50 over 3 checkpoints."
    )
    assert "labels" not in against(0.3, 0.1, 0.2)  # +0.5


def test_files_without_intervals_are_compared_as_far_as_they_can_be() -> None:
    scores = [
        replace(scored(name, value).score, confidence=None)
        for name, value in (("unknown", 9.0), ("b", 8.0))
    ]
    assert scores_verdict(scores) == (
        "unknown.h5 is best by lidar: 9.000. Next is b.h5: 8.000; how much of that is chance is "
        "unknown: add --confidence 0.95."
    )
    wide = replace(scores[1], dim=9)
    assert scores_verdict([scores[0], wide]) == (
        "The files form two groups that cannot be compared: the projector is 8 wide in one and 9 "
        "in the other."
    )
    assert scores_verdict([replace(one, provenance={}) for one in scores]) is None


def said(ranking: Ranking) -> list[Advice]:
    return cautions(ranking)


def test_a_comparison_keeps_those_options_of_a_ranking_that_it_takes() -> None:
    ranking = ranked(scored("a", 9.0), scored("b", 8.0))
    assert comparison_command(ranking, "a", "b") == "lidar compare a b"
    words = "rank runs --top 3 --branch teacher --report r.html -q4 --data=photos --overwrite"
    ranking = replace(ranking, command=tuple(words.split()))
    expected = "lidar compare a b --branch teacher --data=photos -q4"
    assert comparison_command(ranking, "a", "b") == expected


def test_a_constant_embedding_above_another_is_a_caution() -> None:
    rows = [scored(name, 9.0 - at, normalized_std=0.0) for at, name in enumerate("abc")]
    (advice,) = said(ranked(*rows[:2]))
    assert advice.text.startswith(
        "2 of 2 embeddings are constant or nearly so (normalized_std near 0): a and b; "
    )
    assert advice.command == "lidar rank '' --by normalized_std"
    best, last = (scored(name, value, normalized_std=1.0) for name, value in (("a", 9.0), ("c", 7)))
    assert not said(ranked(best, rows[1]))
    (advice,) = said(ranked(best, rows[1], last))
    assert advice.text.startswith("1 of 3 embeddings is constant or nearly so (normalized_std near")
    trusts = [
        judge(facts_of_group(ranked(*some).groups[0], METRICS[by]))
        for some, by in ((rows, "lidar"), ((best, rows[1]), "lidar"), (rows, "normalized_std"))
    ]
    assert [[one.code for one in trust.reasons] for trust in trusts if trust] == [
        ["collapsed"], [], []
    ]  # fmt: skip


def test_noise_is_a_caution_unless_delta_or_a_constant_explains_it() -> None:
    noisy = ranked(scored("a", 9.0, noise_fraction=0.6), scored("b", 8.0, noise_fraction=0.7))
    (advice,) = said(noisy)
    assert "view noise (q = 4)" in advice.text
    # f / (1 - f) (1 - w) / w q views leave w = 1/4 of f = 0.65, in tens: 22.3 -> 30
    assert advice.command == "lidar rank '' -q 30"
    large = ranked(
        *(scored(name, value, noise_fraction=1.2, ridge_share=0.9)
          for name, value in (("a", 9.0), ("b", 8.0)))
    )  # fmt: skip
    (advice,) = said(large)
    assert advice.text.startswith("delta = 0.0001 is large for the scale of 2 of 2 embeddings")
    # (1 - s) / s delta = 1.1e-5 is the mean of the noise of directions, 1e-2 of it their least,
    # and 1e-2 of that a delta which none of them depends on
    assert advice.command.endswith("--delta 1e-09")
    assert "But delta = 0.0001 outweighs the variation between views" in verdict(large)
    assert "delta" not in verdict(noisy)
    for share, ends in ((0.999, ["1e-10"]), (0.99999, [])):  # where rounding would decide
        commands = [one.command for one in said(ranked(scored("a", 9.0, ridge_share=share)))]
        assert [command.split()[-1] for command in commands] == ends
    common = {"n": 60, "q": 4, "d": 181}  # directions without noise, however small delta is
    few = replace(large, groups=tuple(replace(g, common=g.common | common) for g in large.groups))
    assert not any("delta" in one.text for one in said(few))


def test_retrieval_of_few_views_is_a_caution() -> None:
    few = replace(ranked(scored("a", 9.0), scored("b", 8.0)), by=METRICS["retrieval"])
    (advice,) = said(few)
    assert advice.text.startswith(
        "retrieval is computed at q = 4: our study advises it from q = 10"
    )
    assert advice.command == "lidar rank '' -q 10"

    def with_common(**changes: Any) -> list[Advice]:
        group = few.groups[0]
        return said(replace(few, groups=(replace(group, common=group.common | changes),)))

    assert not with_common(q=10)
    for changes in (
        {"views": {"name": "rotations", "quarter_turns": True}},
        {"numbers of views": {"fewest": 2, "most": 9, "rows": 300}},
    ):  # the number of views of an image is not to be chosen
        (text,) = with_common(**changes)
        assert not text.command
    assert "It takes embeddings of q = 10." in said(replace(few, is_of_arrays=True))[0].text


def test_several_cautions_have_one_command() -> None:
    """It gives what each of them advises, and of two numbers the larger."""
    rows = [
        scored(name, 9.0 - at / 10, noise_fraction=0.6, ridge_share=0.1)
        for at, name in enumerate("ab")
    ]
    words = ("rank", "runs", "-n", "100")
    ranking = ranked(*rows, images=1000, command=words)
    noise, ties, delta = shown = said(ranking)
    assert [one.command.split()[-2] for one in shown] == ["-q", "-n", "--delta"]
    *lines, (label, both) = with_one_command([noise, delta], ranking)
    assert lines == [("caution", Advice(noise.text)), ("caution", Advice(delta.text))]
    assert (label, both.text) == ("try", "")
    expected = "lidar rank runs -n 100 -q 18 --delta"
    assert both.command.rpartition(" ")[0] == expected
    (*_, (label, every)) = with_one_command(shown, ranking)
    assert (label, every.command.split()[3:7]) == ("try", ["-q", "18", "-n", "400"])
    larger = noise._replace(changes={"n_views": 30})
    (*_, (_, most)) = with_one_command([larger, noise], ranking)
    assert most.command.endswith("-q 30")
    assert with_one_command([ties], ranking) == [("caution", ties)]
    # A folder of 100 labelled images has no 400.
    labelled = Advice("label", "lidar x", changes={"data": "LABELLED", "n_samples": 100})
    assert with_one_command([labelled, ties], ranking) == [("caution", labelled), ("caution", ties)]
    (*_, (_, more)) = with_one_command([labelled, noise], ranking)
    assert more.command == "lidar rank runs --data LABELLED -n 100 -q 18"


def test_one_checkpoint_has_its_cautions() -> None:
    alone = ranked(scored("a", 9.0, noise_fraction=0.6, ridge_share=0.1))
    texts = [advice.text for advice in said(alone)]
    assert texts[0].endswith("of what lidar counts in the checkpoint is view noise (q = 4).")

    assert texts[1].startswith("delta = 0.0001 is large for the scale of the embedding: lidar")
    (constant,) = said(ranked(scored("a", 9.0, normalized_std=0.0)))
    assert constant.text.startswith("the embedding is constant or nearly so (normalized_std")


def test_feature_files_are_to_be_extracted_again() -> None:
    """Their n and q do not follow from the options of `lidar rank`."""
    rows = [scored(name, 9.0 - at / 10, noise_fraction=0.6) for at, name in enumerate("ab")]
    files = [replace(row, path=row.score.file) for row in rows]
    noise, ties = said(ranked(*files))
    assert (noise.command, ties.command) == ("", "")
    assert noise.text.endswith("view noise (q = 4). Extract the feature files again with -q 18.")
    assert ties.text.endswith("with 400 images. Extract the feature files again with -n 400.")


def test_no_more_images_are_advised_than_there_are() -> None:
    rows = scored("a", 9.0), scored("b", 8.9)
    (advice,) = said(ranked(*rows, images=500, command=("rank", "runs", "-n100", "--json")))
    assert advice.command == "lidar rank runs -n 400"  # --json prints no cautions
    assert advice.text.endswith("intervals are half as wide with 400 images.")
    (advice,) = said(ranked(*rows, images=300))
    assert advice.command == "lidar rank '' -n 300"
    assert advice.text.endswith("intervals are 58% as wide with 300 images.")
    assert not said(ranked(*rows, images=100))


@pytest.mark.parametrize("page", [("--report", "p.html"), ("--report=p.html",)])
def test_the_command_of_a_caution_replaces_the_page_that_is_there(page: tuple[str, ...]) -> None:
    rows, typed_words = (scored("a", 9.0), scored("b", 8.9)), ("rank", "runs", *page)
    for words in (typed_words, (*typed_words, "--overwrite")):
        (advice,) = said(ranked(*rows, images=500, command=words))
        assert sorted(shlex.split(advice.command)) == sorted(
            ["lidar", *typed_words, "-n", "400", "--overwrite"]
        )


@pytest.mark.parametrize("width", [20, 60, 100])
def test_a_command_in_lines_is_the_same_command(width: int) -> None:
    words = ["lidar", "rank", "my runs/a b", "--include", "it's*", "-n", "600", "--delta", "1e-07"]
    lines = command_lines(shlex.join(words), width)
    assert typed(lines) == words
    assert max(map(len, lines)) <= width
    assert (len(lines) == 1) == (width == 100)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("rank", "x", "-q", "4"), "lidar rank x -q 9"),
        (("rank", "x", "-q4", "--by", "rankme"), "lidar rank x --by rankme -q 9"),
        (("rank", "--n-views=4", "a b"), "lidar rank 'a b' -q 9"),
        (("rank", "--n-views", "4", "x"), "lidar rank x -q 9"),
        (("rank", *"abcdefghij" * 9), f"lidar rank {' '.join('abcdefghij' * 9)} -q 9"),
        (("rank", *map(str, range(999))), "lidar rank ... -q 9"),
    ],
)
def test_a_setting_is_replaced_in_the_command_that_was_typed(
    words: tuple[str, ...], expected: str
) -> None:
    assert command_with(words, {"n_views": 9}) == expected


# Names and cells


@pytest.mark.parametrize("width", [5, 9, 12, 20])
def test_shortened_names_are_never_alike(width: int) -> None:
    names = [f"outputs/{run}/version_0/epoch={epoch}.ckpt" for run in "ab" for epoch in (1, 10, 11)]
    shown = shorten_names(names, width)
    assert len(set(shown)) == len(names)
    assert shorten_names(names, 100) == names


def test_equal_values_are_the_same_and_not_tied_with_their_own_rank() -> None:
    score = scored("a", 1.0).score
    rows = [
        Row("a", (), score, 1.0, rank=1, tied_with=("b", "c")),
        Row("b", (), score, 1.0, rank=1, tied_with=("a",)),
        Row("c", (), score, 0.9, rank=3, tied_with=("a",)),
    ]
    assert [tied_text(row, rows) for row in rows] == ["same, 3", "same", "1"]


def test_columns_without_a_value_make_room_for_others() -> None:
    (group,) = ranked(scored("a", 9.0, rankme=2.0, pillai=1.0)).groups
    assert companions(group, METRICS["lidar"]) == ["rankme"]
    assert companions(group, METRICS["lidar"], 2) == ["rankme", "pillai"]
    assert best_by("rankme", group.rows) == [group.rows[0]]
    assert best_by("alignment", group.rows) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0.2 s"), (40, "40 s"), (240, "4 min"), (9000, "2 h 30 min")],
)
def test_a_time_in_words(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
