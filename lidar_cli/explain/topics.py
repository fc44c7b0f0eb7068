"""The topics of `lidar explain`, each a Markdown text.

The texts are the Markdown files in this folder. `{{NAME}}` in one of them is replaced by the part
of GENERATED with this name, which is made from the code, so that it cannot differ from it.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from lidar_cli.configuration import NAMED_ONLY
from lidar_cli.core.metrics import Metric
from lidar_cli.errors import EXIT_STATUSES, SettingsError
from lidar_cli.explain import settings_text
from lidar_cli.ranking.group_metrics import ORDERS

PAGES = {  # group of the list of topics -> names of files
    "Choosing a checkpoint": (
        *("metrics", "study", "trust", "dense", "intervals", "noise", "planning", "race"),
    ),
    "What goes in": ("what-to-rank", "data", "modalities", "recipes", "systems", "settings"),
    "What comes out": ("exit-statuses", "file-format", "page", "labels"),
    "Other ways to run": ("processes", "training", "python"),
    "What is promised": ("threats", "speed"),
}
PAGE_NAMES = [name for names in PAGES.values() for name in names]
ALIASES = {  # words of the output and of other programs -> the page about them
    "ties": "intervals",
    "tied": "intervals",
    "tied-with": "intervals",
    "verdict": "intervals",
    "accuracy": "labels",
    "few-labels": "labels",
    **dict.fromkeys(("believe", "abstain", "disagreement"), "trust"),
    **dict.fromkeys(("best", "clearly", "chance", "next"), "intervals"),
    **dict.fromkeys(("caution", "cautions", "warning", "remark", "remarks"), "planning"),
    **dict.fromkeys(("skipped", "failed", "baseline", "drop", "curves"), "what-to-rank"),
    **dict.fromkeys(("dse-inter", "dse-intra", "dse-dim"), "dense"),
    **dict.fromkeys(("rankme-dense", "segmentation"), "dense"),
    "rotation": "labels",
    "report": "page",
    **dict.fromkeys(
        ("compare", "names", "runs", "columns", "all", "verbose", "quiet"), "what-to-rank"
    ),
    "format": "file-format",
    "json": "file-format",
    "formats": "systems",
    "checkpoints": "systems",
}
SETTINGS_IN_WORDS = {"assumed": "assume", "assumption": "assume"}
BETTER = {"higher": "higher is better", "lower": "lower is better"}


def list_topics() -> str:
    """The list of topics, by group."""
    parts = ["# lidar explain TOPIC"]
    for group, names in PAGES.items():
        lines = (f"- `{name}`: {_title(name)}" for name in names)
        parts.append(f"## {group}\n\n" + "\n".join(lines))
    metrics = ", ".join(f"`{name}`" for name in ORDERS)
    parts.append(f"## Each metric\n\n{metrics}")
    recipes = ", ".join(f"`{name}`" for name in recipe_names())
    parts.append(f"## Each recipe of views\n\n{recipes}")
    parts.append(
        "## Each system and setting\n\n"
        "by its name: `lidar explain solo-learn`, `lidar explain n-samples`, `lidar explain -q`"
    )
    return "\n\n".join(parts) + "\n"


def explain(topic: str) -> str:
    """The text of a topic: of everything that has this name, such as a metric and a recipe.

    Raises SettingsError for a topic that does not exist.
    """
    name = SETTINGS_IN_WORDS.get(_key(topic), _key(topic))
    metric = _metric(name)
    texts = [metric] if metric else []
    if not metric:  # for a metric the other sections, which take long, are not imported
        texts = [text for text in (section(name) for section in SECTIONS) if text is not None]
    if not texts:
        close = difflib.get_close_matches(name, topic_names(), n=1, cutoff=0.5)
        hint = "to list all:   lidar explain"
        if close:
            hint = f"did you mean {close[0]}?   lidar explain {close[0]}"
        raise SettingsError(f"{topic}: no such topic; {hint}", code="unknown-topic")
    return "\n\n".join(text.strip() for text in texts) + "\n"


def topic_names() -> list[str]:
    """Every name that `explain` takes, as it is printed."""
    names = [*PAGE_NAMES, *ORDERS, *recipe_names(), *(row.name for row in _formats())]
    return list(dict.fromkeys([*names, *settings_text.names()]))


def recipe_names() -> list[str]:
    """The recipes of views."""
    from lidar_cli.views.methods import RECIPES

    return list(RECIPES)


def metric_summary(metric: Metric) -> str:
    """The first sentence of a metric's definition."""
    return re.split(r"\. (?=[A-Z])", metric.definition)[0].rstrip(".")


def _key(topic: str) -> str:
    return topic.strip().lstrip("-").lower().replace("_", "-")


@cache
def _text(name: str) -> str:
    """A Markdown file, with its generated parts."""
    text = files("lidar_cli.explain").joinpath(f"{name}.md").read_text(encoding="utf-8")
    return re.sub(r"\{\{([\w-]+)\}\}", lambda match: GENERATED[match[1]](), text)


def _title(name: str) -> str:
    """What a page is about, from its first line, `# NAME: TITLE`."""
    return _text(name).partition("\n")[0].partition(": ")[2]


# Sections: a name as `_key` returns it -> its text, or None


def _page(name: str) -> str | None:
    if name.isdigit():
        name = "exit-statuses" if int(name) in EXIT_STATUSES else name
    name = ALIASES.get(name, name)
    return _text(name) if name in PAGE_NAMES else None


def _metric(name: str) -> str | None:
    field = name.replace("-", "_")
    metric = next((m for m in ORDERS.values() if field in (m.name, *m.companions)), None)
    if metric is None:
        return None
    better = BETTER.get(metric.better, f"best at {metric.target:g}" if metric.target else "")
    resource = files("lidar_cli.explain").joinpath("metrics", f"{metric.name}.md")
    details = resource.read_text(encoding="utf-8") if resource.is_file() else ""
    parts = [
        f"# {metric.name}: {better}",
        metric.definition,
        details.strip("\n"),
        _in_study(metric),
    ]
    return "\n\n".join(part for part in parts if part)


def _recipe(name: str) -> str | None:
    from lidar_cli.explain import recipes_text

    return recipes_text.page(name, _text("recipes"))


def _system(name: str) -> str | None:
    rows = [row for row in _formats() if row.name == name]
    if not rows:
        return None
    (row,) = rows
    facts = {
        "files": row.example,
        "recognised by": f"`{row.marks}`",
        "branches": f"{row.branches} (the first is the default)",
        "layers": row.layers,
        "views": row.recipe,
        "by the code in": row.source,
        "option": f"`--format {row.name}`",
    }
    lines = "\n".join(f"- {label}: {text}" for label, text in facts.items() if text)
    return f"# {row.name}: checkpoints of {row.title}\n\n{lines}\n\nAll: `lidar explain systems`"


def _setting(name: str) -> str | None:
    return settings_text.page(name)


SECTIONS: tuple[Callable[[str], str | None], ...] = (_page, _recipe, _system, _setting)


# Generated parts


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(headers)
    return "\n".join(f"| {' | '.join(row)} |" for row in (headers, rule, *rows))


def _metrics_table() -> str:
    return _table(
        ("metric", "what it is", "better"),
        ((f"`{m.name}`", metric_summary(m), m.direction) for m in ORDERS.values()),
    )


def _formats() -> list[Any]:
    from lidar_cli.checkpoints.inspect import formats

    return formats()


def _systems_table() -> str:
    rows = ((f"`{r.name}`", r.title, r.branches, r.layers, r.recipe) for r in _formats())
    return _table(("name", "system", "branches", "layers", "views"), rows)


def _exit_table() -> str:
    rows = ((str(status), meaning) for status, meaning in EXIT_STATUSES.items())
    return _table(("status", "meaning"), rows)


@cache
def study_rows() -> list[dict[str, str]]:
    """The rows of the study's summary: `scope` pooled or within, `metric`, and its numbers."""
    text = files("lidar_cli.explain").joinpath("study.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _study_table(scope: str) -> str:
    rows = [row for row in study_rows() if row["scope"] == scope]
    columns = ("spearman_mean", "spearman_worst", "loss_mean", "loss_most", "worst_at")
    return _table(
        ("metric", "mean", "worst", "lost", "most", "worst at"),
        ([f"`{row['metric']}`", *(row[column] for column in columns)] for row in rows),
    )


def _in_study(metric: Metric) -> str:
    """What the study found for a metric, in a sentence a scope."""
    rows = {row["scope"]: row for row in study_rows() if row["metric"] == metric.name}
    if not rows:
        return ""
    pooled, within = rows["pooled"], rows["within"]
    return (
        f"**In the study:** rank correlation with a linear probe, checkpoints of all methods "
        f"together: {pooled['spearman_mean']} on average, {pooled['spearman_worst']} at worst; "
        f"within one method {within['spearman_mean']} and {within['spearman_worst']}. The "
        f"checkpoint that it selects is {pooled['loss_mean']} points below the best, "
        f"{within['loss_mean']} within one method. More: `lidar explain study`"
    )


def _recipes_table() -> str:
    from lidar_cli.explain import recipes_text

    return recipes_text.table()


GENERATED: dict[str, Callable[[], str]] = {
    "metrics": _metrics_table,
    "systems": _systems_table,
    "exit-statuses": _exit_table,
    "settings": settings_text.every_setting,
    "named-only": lambda: ", ".join(f"`{name}`" for name in NAMED_ONLY),
    "recipes": _recipes_table,
    "study-pooled": lambda: _study_table("pooled"),
    "study-within": lambda: _study_table("within"),
}
