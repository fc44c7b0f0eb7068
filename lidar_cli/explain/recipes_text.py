"""What `lidar explain` says of every recipe of views: its text, and its constants from the code."""

from __future__ import annotations

import dataclasses
import re

from lidar_cli.views.methods import RECIPES
from lidar_cli.views.recipes import Constants, Recipe, statistics_text

NOT_LISTED = ("name", "mean", "std", "masks")  # named in the title, or listed in other words


def page(name: str, text: str) -> str | None:
    """The section of a recipe in the text of all, and its constants; None for another name."""
    recipe = RECIPES.get(name)
    if recipe is None:
        return None
    section = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    said = section[1].strip() if section else ""
    end = f"`--views {name}` asks for it. How to change a constant: `lidar explain recipes`"
    parts = [f"# {name}: a recipe of views", said, _constants(recipe), end]
    return "\n\n".join(part for part in parts if part)


def _constants(recipe: Recipe) -> str:
    lines = [
        f"- {field.name}: {_value(getattr(recipe, field.name))}"
        for field in dataclasses.fields(recipe)
        if field.name not in NOT_LISTED
    ]
    lines.append(f"- pixel_stats: {statistics_text(recipe.mean, recipe.std)}")
    if isinstance(recipe.masks, Constants):
        masks = dataclasses.asdict(recipe.masks)
        lines += [f"- masks.{name}: {_value(value)}" for name, value in masks.items()]
    return "\n".join(lines)


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_value, value))
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table() -> str:
    """The main constants of every recipe, as a Markdown table."""
    lines = [
        "| recipe | crop | flip | jitter | grey | blur | solarise | masks |",
        "|" + " --- |" * 8,
    ]
    for recipe in RECIPES.values():
        jitter = f"{_value(recipe.jitter)} x {_value(recipe.jitter_probability)}"
        cells = (
            f"`{recipe.name}`",
            " to ".join(map(_value, recipe.crop_scale)) if recipe.crop_scale else "-",
            _share(recipe.flip),
            jitter if recipe.jitter_probability else "-",
            _share(recipe.grey),
            *(
                " / ".join(map(_value, p)) if any(p) else "-"
                for p in (recipe.blur, recipe.solarise)
            ),
            recipe.masks.rule if recipe.masks else "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(probability: float) -> str:
    return _value(probability) if probability else "-"
