"""From what the user or a checkpoint names to a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lidar_cli.errors import SettingsError, nearest
from lidar_cli.views import recipes
from lidar_cli.views.methods import RECIPES, SIMCLR
from lidar_cli.views.recipes import RULES, MaskRule, Recipe, pixel_statistics

# What a [recipe] table may set: everything but what the recipe is called and stands for.
CHANGEABLE = [f.name for f in dataclasses.fields(Recipe) if f.name not in ("name", "crops")]


def find_recipe(name: str, pixel_stats: str, table: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of that name, or the one that a [recipe] table makes of it.

    pixel_stats: a name of PIXEL_STATS, MEAN/STD, or auto for the recipe's own. table: `base`, a
    name, and constants that replace the base's.
    Raises SettingsError for a name or key that is not known, for a constant out of its bounds, and
    for a base other than the named recipe.
    """
    base = (table or {}).get("base", "auto")
    if "auto" not in (name, base) and name != base:
        raise SettingsError(
            f"views {name} and [recipe] base = {base!r} name two recipes; leave one of them out"
        )
    recipe = _named(name if base == "auto" else base)
    if table is not None:
        recipe = _changed(recipe, {k.replace("-", "_"): v for k, v in table.items() if k != "base"})
    if pixel_stats == "auto":
        return recipe
    mean, std = pixel_statistics(pixel_stats)
    return dataclasses.replace(recipe, mean=mean, std=std)


def _named(name: Any) -> Recipe:
    if name == "auto":
        return SIMCLR
    if not isinstance(name, str) or name not in RECIPES:
        raise SettingsError(f"unknown views {name!r}; {nearest(str(name), ['auto', *RECIPES])}")
    return RECIPES[name]


def _changed(base: Recipe, table: dict[str, Any]) -> Recipe:
    import pydantic

    for key in table:
        if key not in CHANGEABLE:
            known = nearest(key, ["base", *CHANGEABLE])
            raise SettingsError(f"unknown key {key!r} in [recipe]; {known}")
    given = dict(table)
    for key in ("blur", "solarise"):  # one probability for every view needs no brackets
        if isinstance(given.get(key), int | float):
            given[key] = [given[key]]
    if "masks" in given:
        given["masks"] = _changed_masks(base.masks, given["masks"])
    constants = {f.name: getattr(base, f.name) for f in dataclasses.fields(Recipe)}
    try:
        recipe = pydantic.TypeAdapter(Recipe).validate_python(constants | given)
    except pydantic.ValidationError as error:
        raise SettingsError(f"[recipe] {_first(error, table)}") from error
    fault = recipe.fault()
    if fault is not None:
        raise SettingsError(f"[recipe] {fault}")
    if recipe == base:
        return base
    return dataclasses.replace(recipe, name=f"{base.name} (changed)")


def _changed_masks(base: MaskRule | None, asked: Any) -> MaskRule | None:
    """The rule of a name, None for 'none', or what a [recipe.masks] table makes of the base's.

    A table that names another rule than the base's begins with that rule's own constants.
    """
    import pydantic

    table = {"rule": asked} if isinstance(asked, str) else asked
    if not isinstance(table, dict):
        raise SettingsError(f"[recipe] masks = {asked!r}: expected the name of a rule, or a table")
    table = {key.replace("-", "_"): value for key, value in table.items()}
    name = table.get("rule", base.rule if base is not None else None)
    if name == "none" and len(table) == 1:
        return None
    if name is None:
        raise SettingsError(f"[recipe.masks] a table without a rule; known: {', '.join(RULES)}")
    if name not in RULES:
        hint = nearest(str(name), ["none", *RULES])
        raise SettingsError(f"[recipe.masks] unknown masks {name!r}; {hint}")
    rule = RULES[name]
    known = [field.name for field in dataclasses.fields(rule)]
    for key in table:
        if key not in known:
            raise SettingsError(f"unknown key {key!r} in [recipe.masks]; {nearest(key, known)}")
    constants = dataclasses.asdict(base) if base is not None and base.rule == name else {}
    try:
        changed = pydantic.TypeAdapter(rule).validate_python(constants | table)
    except pydantic.ValidationError as error:
        raise SettingsError(f"[recipe.masks] {_first(error, table)}") from error
    fault = recipes.fault(changed)
    if fault is not None:
        raise SettingsError(f"[recipe.masks] {fault}")
    return changed


def _first(error: Any, table: Mapping[str, Any]) -> str:
    """The first mistake that Pydantic found: 'key = value: what is wrong'."""
    first = error.errors()[0]
    key = str(first["loc"][0])
    return f"{key} = {table[key]!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
