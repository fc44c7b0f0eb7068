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
from lidar_cli.ranking.group_metrics import AGREEMENT_OF, DSE_OF, ORDERS
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
    assert {0, 4, 5, 130, 143} | raised == EXIT_STATUSES.keys()


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
    rows = study_settings()
    summary = summary_rows()
    measured = {row["metric"] for row in rows}
    assert measured >= {*METRICS, "agreement"} - {*DSE_OF, "rankme_dense"}
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
        assert float(line["loss_mean"]) == pytest.approx(np.mean(lost), abs=0.0551)
        assert float(line["loss_most"]) == pytest.approx(max(lost), abs=0.0551)


def study_settings() -> list[dict[str, str]]:
    """The CSV of every setting, in which the mean of ranks has the name that `rank` prints."""
    text = (RESULTS / "study" / "settings.csv").read_text(encoding="utf-8")
    mean_of_ranks = " + ".join(AGREEMENT_OF)
    return list(csv.DictReader(io.StringIO(text.replace(mean_of_ranks, "agreement"))))


def summary_rows() -> list[dict[str, str]]:
    text = (FOLDER / "study.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def best(scope: str, column: str, *, lowest: bool = False) -> str:
    rows = [row for row in summary_rows() if row["scope"] == scope]
    return sorted(rows, key=lambda row: float(row[column]) * (1 if lowest else -1))[0]["metric"]


def correlations(metric: str, *, pooled: bool, **where: str) -> list[float]:
    return [
        float(row["spearman"])
        for row in study_settings()
        if row["metric"] == metric
        and (row["method"] == "all") is pooled
        and all(row[name] == value for name, value in where.items())
    ]


def test_what_the_texts_say_of_the_study_follows_from_its_summary() -> None:
    text = " ".join(explain("study").split())
    of = {(row["scope"], row["metric"]): row for row in summary_rows()}
    assert best("pooled", "spearman_worst", lowest=True) == "lidar"
    assert best("within", "spearman_worst", lowest=True) == "lidar"
    assert "in 33 of 66 groups of checkpoints `lidar` misleads" in text
    signs = correlations("agreement", pooled=True) + correlations("agreement", pooled=False)
    assert len(signs) == 66
    assert min(signs) > 0
    assert "is missed: +0.14 and +0.01" in text
    assert of["pooled", "agreement"]["spearman_worst"] == "+0.14"
    assert of["within", "agreement"]["spearman_worst"] == "+0.01"
    assert min(correlations("retrieval", pooled=False)) == pytest.approx(-0.1, abs=0.005)
    assert sum(rho < 0 for rho in correlations("retrieval", pooled=False)) == 1
    assert (
        best("pooled", "spearman_mean") == best("pooled", "loss_mean", lowest=True) == "retrieval"
    )
    for pooled, worst in ((True, 0.20), (False, 0.41)):
        many = [min(correlations("retrieval", pooled=pooled, q=q)) for q in ("10", "50")]
        assert many == pytest.approx([worst, worst], abs=0.005)
    for data, mean in (("digits", 0.78), ("textures", 0.48), ("plain", -0.64)):
        assert f"{mean:+.2f}" in text
        assert np.mean(correlations("lidar", pooled=True, data=data)) == pytest.approx(
            mean, abs=0.005
        )
    for q, pooled, mean in (("10", True, 0.11), ("50", True, 0.29)):
        assert np.mean(correlations("lidar", pooled=pooled, q=q)) == pytest.approx(mean, abs=0.005)
    for q, mean in (("10", -0.23), ("50", 0.04)):
        assert np.mean(correlations("lidar", pooled=False, q=q)) == pytest.approx(mean, abs=0.005)
    assert best("within", "spearman_mean") == "rotation"
    wrong = [
        (row["data"], row["method"])
        for row in study_settings()
        if row["metric"] == "rankme" and float(row["spearman"]) < 0
    ]
    assert len(wrong) == 33
    assert [sum(data == name for data, _ in wrong) for name in ("plain", "fashion")] == [18, 15]
    assert ("fashion", "all") not in wrong
    assert max(correlations("pillai", pooled=True, data="textures", layer="backbone")) < 0
    for q in ("10", "50"):
        assert min(correlations("pillai", pooled=False, q=q)) > 0.405
    assert "+0.17 on average, -0.82 at worst; within one method -0.14 and -0.85" in explain("lidar")


def study_table(title: str) -> list[list[str]]:
    """The rows of the table of this title in study.md, without its headers."""
    text = (RESULTS / "study" / "study.md").read_text(encoding="utf-8")
    table = text.partition(f"**{title}")[2].split("\n\n")[1]
    return [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in table.split("\n")[2:]
    ]


def test_the_texts_name_the_methods_that_failed_to_train() -> None:
    rows = study_table("Accuracies of the search's backbones")
    counted = [row for row in rows if row[-1] != "failed training"]
    passing = sum(int(row[2].split(" of ")[0]) for row in counted)
    total = sum(int(row[2].split(" of ")[1]) for row in rows)
    text = " ".join(explain("study").split())
    assert f"{passing} checkpoints of {total} remain" in text
    failed: dict[str, list[str]] = {}
    for data, method, *_ in (row for row in rows if row not in counted):
        failed.setdefault(data, []).append(method)
    assert failed == {
        "digits": ["byol", "dino"],
        "plain": ["byol", "dino", "ijepa"],
        "textures": ["ijepa"],
    }
    assert (
        "BYOL and DINO on `digits`, BYOL, DINO and I-JEPA on `plain`, I-JEPA on `textures`"
    ) in text
    left_out = study_table("The rule of choice, each set left out in turn")[-1]
    assert [cell.split(" ")[0] for cell in left_out[2:]] == ["-0.59", "-0.45"]
    assert "the rule of choice fails altogether: -0.59 and -0.45" in text


def test_the_texts_say_how_often_the_rule_of_distrust_is_right() -> None:
    text = " ".join(explain("trust").split())
    rows = {row[0]: row[1:] for row in study_table("Abstaining, groups that count")}
    assert rows["left out"][:5] == ["66", "33", "42", "76.2", "97.0"]
    assert (
        "abstains in 42 of the 66 and is right in 32 of them (precision 76 %, recall 97 %" in text
    )
    assert rows["disagreement"][2:5] == ["38", "81.6", "93.9"]
    assert "in 38 groups, and `lidar` misleads in 31 of them (82 %; recall 94 %)" in text
    assert rows["below-untrained"][2:4] == ["7", "42.9"]
    assert rows["view-noise"][2:4] == ["35", "57.1"]
    assert rows["all-tied"][2] == rows["null-values"][2] == rows["few-degrees"][2] == "0"
    opinions = study_table("Where the two opinions disagree, groups that count**")
    assert [row[1:] for row in opinions] == [["38", "31", "8", "2"], ["28", "2", "0", "5"]]
    assert "misleads in 2 of 28 groups, and `agreement` in none" in text
    left_out = study_table("Where the two opinions disagree, groups that count, second")
    assert [row[1:] for row in left_out] == [["27", "18", "4"], ["39", "15", "19"]]
    assert (
        "disagree in 27 groups, of which `lidar` misleads in 18 and the second opinion in 4; in "
        "the other 39 they mislead in 15 and 19"
    ) in text
    assert "misleads in 23 of the 66 groups" in " ".join(explain("study").split())
    assert "misleads in 18 of 27 and in 15 of 39" in " ".join(explain("study").split())
    assert rows["opinion left out"] == ["66", "33", "30", "60.0", "54.5", "0.57"]
    assert float(rows["always"][-1]) > 0.57
    assert "abstains in 30 groups and is right in 18 (60 and 55 %), by F1 worse than" in text
    apart = {row[0]: row[1:] for row in study_table("Abstaining, runs that do not count")}
    assert apart["rule"][:4] == ["24", "15", "12", "50.0"]
    assert "abstains in 12 of 24 groups, and 6 of them mislead; of the other 12, 9 do" in text


def test_the_texts_have_the_tables_in_the_form_of_the_paper() -> None:
    order = ("simclr", "vicreg", "dino", "byol", "ijepa")
    title = "Spearman (Kendall) with the linear probe, by hyperparameter (runs)"
    tables = [dict(study_column(f"{title}: {m} on fashion, projector, q = 50")) for m in order]
    for metric in ("lidar", "rankme", "alpha_req", "agreement"):
        name = " + ".join(AGREEMENT_OF) if metric == "agreement" else metric
        cells = " | ".join(table[name].split(" ")[0] for table in tables)
        assert f"| `{metric}` | {cells} |" in (FOLDER / "study.md").read_text(encoding="utf-8")
    ahead = [
        float(t["lidar"].split()[0])
        > float(t["rankme"].split()[0])
        > float(t["alpha_req"].split()[0])
        for t in tables
    ]
    assert ahead == [True] * 4 + [False]
    noise = {(row[0], row[1]): row[4:7] for row in study_table("Standard deviations over")}
    assert noise["lidar", "backbone"] == ["3.39", "1.34", "12.5"]
    assert noise["accuracy", "backbone"] == ["0.00751", "-", "0.028"]


def study_column(title: str) -> list[tuple[str, str]]:
    """The first and the last cell of each row of a table of study.md."""
    return [(row[0], row[-1]) for row in study_table(title)]
