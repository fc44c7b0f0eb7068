"""`lidar explain`: a topic for every name, equations that compute what the program does."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
import typing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from make import lidar
from raising import raises

from lidar_cli.checkpoints.formats import FORMATS
from lidar_cli.checkpoints.inspect import formats
from lidar_cli.configuration import NAMED_ONLY
from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import EXIT_STATUSES, SettingsError
from lidar_cli.explain.settings_text import described
from lidar_cli.explain.topics import PAGE_NAMES, explain, list_topics, topic_names
from lidar_cli.ranking.group_metrics import ORDERS
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import COMMANDS, Panel, ScoreSettings, flags
from lidar_cli.views.methods import RECIPES

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "lidar_cli" / "explain"
RESULTS = ROOT / "tests" / "benchmarks" / "results"
N, Q, D = 300, 4, 110


def code_of(metric: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", explain(metric), re.DOTALL))


def computed(z: np.ndarray, metrics: list[str]) -> dict[str, float]:
    """Each metric by the code on its page, run in the order of the pages."""
    n, q, d = z.shape
    names = {"np": np, "scipy": scipy, "z": z, "clean": z[:, 0], "n": n, "q": q, "d": d}
    names |= {"delta": 1e-4, "epsilon": 1e-7}
    for metric in metrics:
        exec(code_of(metric), names)
    return {metric: float(names[metric]) for metric in metrics}


def test_the_equations_are_those_of_the_program(tmp_path: Path) -> None:
    torch.manual_seed(0)
    signal = 3 * torch.arange(1, D + 1.0).rsqrt() * torch.randn(N, 1, D)
    z = (signal + torch.randn(N, Q, D)).double().numpy()
    np.save(tmp_path / "z.npy", z)
    (score,) = score_file(tmp_path / "z.npy", ScoreSettings(device="cpu", metrics="all"))
    assert score.n_above_noise
    for metric, value in computed(z, list(METRICS)).items():
        assert score.value(metric) == pytest.approx(value, rel=1e-6), metric


def test_the_equations_give_the_golden_values() -> None:
    """The values that test_golden.py holds the program to, from the papers' definitions."""
    torch.manual_seed(0)
    signal = 2 * torch.arange(1, 257.0).rsqrt() * torch.randn(1000, 1, 256)
    z = (signal + torch.randn(1000, 10, 256)).double().numpy()
    golden = {
        "lidar": 149.576933, "noise_fraction": 0.50618883, "n_above_noise": 40,
        "lidar_corrected": 62.812218, "pillai": 18.017099, "information": 10.751545,
        "reliable_rank": 103.257685, "rankme": 245.801083, "alpha_req": 0.26414219,
    }  # fmt: skip
    assert computed(z, list(golden)) == pytest.approx(golden, rel=1e-6)


@pytest.mark.parametrize("metric", ORDERS.values(), ids=ORDERS)
def test_a_metric_has_its_definition_direction_and_advice(metric) -> None:
    text = explain(metric.name)
    title, _, rest = text.partition("\n")
    better = f"best at {metric.target:g}" if metric.target else f"{metric.better} is better"
    assert title == f"# {metric.name}: {better}"
    assert metric.definition in rest
    assert "\n\n    " in rest, "an equation"
    for part in ("**Trust it**", "**Beware:**"):
        assert rest.count(part) == 1, part
    measured = {row["metric"] for row in summary_rows()}
    assert rest.count("**In the study:**") == (metric.name in measured)
    assert f"| `{metric.name}` |" in explain("metrics")


@pytest.mark.parametrize("topic", [*PAGE_NAMES, *ORDERS])
def test_equations_and_code_fit_a_terminal(topic: str) -> None:
    """With the four columns by which they are indented there; a longer line would be cut."""
    text = explain(topic)
    indented = re.findall(r"^    (.+)$", text, re.MULTILINE)
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for line in [*indented, *"".join(blocks).splitlines()]:
        assert len(line) <= 72, line


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_has_its_source_and_constants(recipe) -> None:
    text = explain(recipe.name)
    text = text[text.index(f"# {recipe.name}: a recipe") :]  # a metric may have the same name
    assert f"\n## {recipe.name}\n" in explain("recipes"), "what it was read from"
    assert text.startswith(f"# {recipe.name}: a recipe of views\n\n")
    assert not text.split("\n\n")[1].startswith("- "), "its source comes before its constants"
    assert f"- flip: {recipe.flip:g}\n" in text
    assert f"- order: {', '.join(recipe.order)}\n" in text
    assert (f"- masks.rule: {recipe.masks.rule}\n" in text) if recipe.masks else True
    assert re.search(rf"^\| `{recipe.name}` \|", explain("recipes"), re.MULTILINE)


def test_the_sources_of_recipes_are_those_in_the_code() -> None:
    """The first file that the comment on each recipe names is named by its section."""
    code = (ROOT / "lidar_cli" / "views" / "methods.py").read_text(encoding="utf-8")
    named = re.findall(
        r"^# ([\w-]+/[\w-]+):[^\n]*?([\w/-]+\.\w+|config/[\w/]+)", code, re.MULTILINE
    )
    assert len(named) >= 12
    for repository, file in named:
        assert repository in explain("recipes")
        assert file in explain("recipes")


def test_every_system_is_in_the_table_and_has_a_page() -> None:
    table = explain("systems")
    assert len(formats()) == len(FORMATS) + 1
    for row in formats():
        cells = (f"`{row.name}`", row.title, row.branches, row.layers, row.recipe)
        assert f"| {' | '.join(cells)} |\n" in table, row.name
        assert f"# {row.name}: checkpoints of {row.title}\n" in explain(row.name)
        assert row.example in explain(row.name)


def test_every_setting_has_its_help_default_bounds_and_other_places() -> None:
    table = explain("settings")
    for command, one in ((c, one) for c in COMMANDS for one in described() if c in one.commands):
        field = one.field
        (entry,) = [e for e in entries(explain(field.name)) if field.metadata["help"] in e]
        assert entry in table
        for part in (*flags(field), f"TOML `{field.name}`", command):
            assert part in entry, field.name
        # A table has no form in the environment.
        assert (f"LIDAR_{field.name.upper()}" in entry) == (field.name != "recipe"), field.name
        for flag in flags(field):
            assert entry in explain(flag)
    assert "default `1000`; at least 1 and at most 100,000,000" in explain("-n")
    assert "default `0.95`; above 0 and below 1" in explain("confidence")
    assert "one of auto, linear, knn, ridge" in explain("method")
    assert f" not set {', '.join(f'`{name}`' for name in NAMED_ONLY)}: " in " ".join(table.split())
    assert "`--no-normalize`" in explain("normalize")
    assert "default off" in explain("normalize")
    assert explain("no-store").startswith("**`--no-store`, `--store`**: Store no embeddings")
    assert re.findall(r"^## (.*)", table, re.MULTILINE) == list(typing.get_args(Panel))


def entries(text: str) -> list[str]:
    """The settings in a text, each from its name to the line of its facts."""
    return re.findall(r"^\*\*`.*?\n\n- [^\n]+", text, re.DOTALL | re.MULTILINE)


def test_every_exit_status_is_in_the_table_and_in_the_help() -> None:
    shown = " ".join(lidar("--help", cwd=ROOT).stdout.split())
    for status, meaning in EXIT_STATUSES.items():
        assert f"| {status} | {meaning} |" in explain(str(status))
        assert f"{status} {meaning}" in shown
    raised = {cls.exit_status for cls in errors()}
    assert {0, 4, 130, 143} | raised == EXIT_STATUSES.keys()


def errors() -> Iterator[type]:
    import lidar_cli.errors as module

    return (cls for cls in vars(module).values() if isinstance(cls, type) and hasattr(cls, "code"))


def test_no_metric_has_the_name_of_a_recipe_or_system() -> None:
    methods = {*RECIPES, *(row.name for row in formats())}
    assert not {name.replace("_", "-") for name in METRICS} & methods


def test_the_list_names_every_page_metric_and_recipe() -> None:
    listed = list_topics()
    assert lidar("explain", cwd=ROOT).stdout == listed
    for name in (*PAGE_NAMES, *ORDERS, *RECIPES):
        assert f"`{name}`" in listed
    for name in PAGE_NAMES:
        assert explain(name).startswith(f"# {name}: ")
    assert {path.stem for path in FOLDER.glob("*.md")} == set(PAGE_NAMES)
    assert {path.stem for path in (FOLDER / "metrics").glob("*.md")} == ORDERS.keys()
    assert "{{" not in "".join(map(explain, PAGE_NAMES))


def test_topics_that_the_texts_point_to_exist() -> None:
    texts = "".join(map(explain, topic_names()))
    pointers = set(re.findall(r"`lidar explain\s+([\w-]+)`", texts))
    assert len(pointers) >= 9
    for topic in pointers:
        explain(topic)


def test_a_name_of_a_recipe_and_a_system_has_both() -> None:
    text = explain("VICReg")
    assert "# vicreg: a recipe of views" in text
    assert "# vicreg: checkpoints of facebookresearch/vicreg" in text


def test_other_words_of_the_output_lead_to_the_page_about_them() -> None:
    assert explain("tied_with") == explain("ties") == explain("intervals")
    assert explain("--columns") == explain("compare") == explain("what-to-rank")
    assert explain("alpha_req_r2") == explain("alpha_req")
    assert explain("noise_edge") == explain("noise_fraction")


@pytest.mark.parametrize(
    ("word", "title"),
    [
        ("tied", "# intervals: "),
        ("verdict", "# intervals: "),
        ("caution", "# planning: "),
        ("drop", "# what-to-rank: "),
        ("assumed", "**`--assume`**"),
    ],
)
def test_words_that_rank_prints_are_topics(word: str, title: str) -> None:
    assert explain(word).startswith(title)


def test_a_mistyped_topic_gets_a_suggestion() -> None:
    ended = lidar("explain", "lidr", cwd=ROOT)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == "error: lidr: no such topic; did you mean lidar?   lidar explain lidar\n"
    with raises(SettingsError, "unknown-topic") as raised:
        explain("zzzzzz")
    assert str(raised.value) == "zzzzzz: no such topic; to list all:   lidar explain"


@pytest.mark.parametrize("topic", ["lidar", "systems", "planning"])
def test_a_terminal_shows_neither_marks_of_markdown_nor_long_lines(topic: str) -> None:
    shown = on_terminal("explain", topic, columns=80)
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.startswith(f"{topic}    ")
    for mark in ("**", "| --", "`"):
        assert mark not in shown
    if topic == "systems":
        assert all(f"\n{row.name} " in shown for row in formats())
        words = {w for row in formats() for w in re.split(r"[\s/-]+", f"{row.title} {row.recipe}")}
        assert words <= set(re.split(r"[\s/-]+", shown)), "words are broken at / and - alone"
    if topic == "lidar":
        assert "\n    lidar = exp(- sum p log p)" in shown


def on_terminal(*words: str, columns: int) -> str:
    """What a command prints on a terminal that has no colours."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = [sys.executable, "-m", "lidar_cli", *words]
    environment = os.environ | {"TERM": "dumb"}
    with subprocess.Popen(command, stdout=slave, cwd=ROOT, env=environment) as process:
        os.close(slave)
        printed = b""
        try:
            while part := os.read(master, 2**16):
                printed += part
        except OSError:  # the other end is closed
            pass
    os.close(master)
    assert process.returncode == 0
    lines = printed.decode().replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines)


# What the study says


def test_the_summary_is_that_of_the_study() -> None:
    """Mean and worst case over the settings, and points lost, from the CSV of every setting."""
    (results,) = RESULTS.glob("study-seed0-*.csv")
    rows = list(csv.DictReader(io.StringIO(results.read_text(encoding="utf-8"))))
    summary = summary_rows()
    measured = {row["metric"] for row in rows} & METRICS.keys()
    assert measured >= {name for name, metric in METRICS.items() if metric.is_default}
    assert {(row["scope"], row["metric"]) for row in summary} == {
        (scope, metric) for scope in ("pooled", "within") for metric in measured
    }
    for line in summary:
        settings = [
            row
            for row in rows
            if row["metric"] == line["metric"]
            and (row["method"] == "all") == (line["scope"] == "pooled")
        ]
        rho = [float(row["spearman"]) for row in settings if row["spearman"]]
        lost = [100 * float(row["pick_loses"]) for row in settings if row["pick_loses"]]
        half = 0.00501  # rounding of the summary, and of the results
        assert float(line["spearman_mean"]) == pytest.approx(np.mean(rho), abs=half)
        assert float(line["spearman_worst"]) == pytest.approx(min(rho), abs=half)
        assert float(line["loss_mean"]) == pytest.approx(np.mean(lost), abs=0.0501)
        assert float(line["loss_most"]) == pytest.approx(max(lost), abs=0.0501)


def summary_rows() -> list[dict[str, str]]:
    text = (FOLDER / "study.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def best(scope: str, column: str, *, lowest: bool = False) -> str:
    rows = [row for row in summary_rows() if row["scope"] == scope]
    return sorted(rows, key=lambda row: float(row[column]) * (1 if lowest else -1))[0]["metric"]


def test_what_the_texts_say_of_the_study_follows_from_its_summary() -> None:
    pooled = {row["metric"]: row for row in summary_rows() if row["scope"] == "pooled"}
    text = " ".join(explain("study").split())
    assert "Within one method `lidar` is first, by mean and by worst case" in text
    assert best("within", "spearman_mean") == best("within", "spearman_worst") == "lidar"
    assert "the checkpoint that `lidar_corrected` selects loses least" in text
    assert best("within", "loss_mean", lowest=True) == "lidar_corrected"
    assert "`rankme` and `rankme_augmented` have the best worst case" in text
    worst = {metric: row["spearman_worst"] for metric, row in pooled.items()}
    best_worst = max(worst.values(), key=float)
    assert {m for m, value in worst.items() if value == best_worst} == {
        "rankme",
        "rankme_augmented",
    }
    assert "a checkpoint that is 38 points or more below the best" in text
    assert int(min(float(row["loss_most"]) for row in pooled.values())) == 38
    for name in ("pillai", "information"):
        assert float(pooled[name]["spearman_mean"]) < 0.2
        assert float(pooled[name]["spearman_worst"]) < 0
    assert "what it selects lost least" in explain("stable_rank").replace("\n", " ")
    assert best("pooled", "loss_mean", lowest=True) == "stable_rank"
    assert "+0.43 on average, +0.25 at worst; within one method +0.38 and -0.16" in explain("lidar")


def test_accuracies_of_the_study_are_those_of_its_results() -> None:
    (results,) = RESULTS.glob("study-seed0-*.md")
    table = results.read_text(encoding="utf-8").partition("Accuracy of linear probes")[2]
    sets = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()[2:7]}
    digits, plain = sets["digits"], sets["plain"]
    text = " ".join(explain("study").split())
    assert "reach 67 and 70 % on the first set and 79 and 80 % on the third" in text
    assert "| 29.0 to 66.8 | 29.9 to 70.4 |" in digits
    assert "| 28.2 to 79.2 | 23.4 to 80.3 |" in plain
    assert "an untrained ResNet has 54 and 57 %" in text
    assert "| 53.5 |" in digits
    assert "| 56.9 |" in plain
    assert "within 13 points of each other" in text
    assert "| 12.7 |" in sets["textures"]
