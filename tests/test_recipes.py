"""Recipes: each method's published constants, changes to them in TOML, and their description."""

import dataclasses
import json
import re
import tomllib
from pathlib import Path

import pytest

from lidar_cli.configuration import resolve
from lidar_cli.errors import SettingsError
from lidar_cli.settings import COMMANDS, ExtractSettings, RankSettings, ScoreSettings
from lidar_cli.views.methods import RECIPES, find_recipe
from lidar_cli.views.recipes import RULES, Blocks, InverseBlocks, MultiBlock, Recipe

ROOT = Path(__file__).parent.parent
IMAGENET_STD = (0.229, 0.224, 0.225)
STRONG, BYOL = (0.8, 0.8, 0.8, 0.2), (0.4, 0.4, 0.2, 0.1)
CUBIC, LINEAR = "bicubic", "bilinear"
SIMCLR_ORDER = "crop flip jitter grey blur"
BYOL_ORDER = "crop flip jitter grey blur solarise"

# The table of the methods' repositories: crop scale, interpolation, flip, jitter, its probability,
# grey, blur of each view, solarisation of each view, order.
PUBLISHED = {
    "simclr": (0.08, CUBIC, 0.5, STRONG, 0.8, 0.2, (0.5, 0.5), (0, 0), SIMCLR_ORDER),
    "simclr-google": (0.08, CUBIC, 0.5, STRONG, 0.8, 0.2, (0.5, 0.5), (0, 0), SIMCLR_ORDER),
    "simclr-vissl": (0.08, LINEAR, 0.5, STRONG, 0.8, 0.2, (0.5, 0.5), (0, 0), SIMCLR_ORDER),
    "moco-v1": (0.2, LINEAR, 0.5, (0.4,) * 4, 1.0, 0.2, (0, 0), (0, 0), "crop grey jitter flip"),
    "moco-v2": (0.2, LINEAR, 0.5, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, (0.5, 0.5), (0, 0),
                "crop jitter grey blur flip"),
    "moco-v3": (0.08, LINEAR, 0.5, BYOL, 0.8, 0.2, (1.0, 0.1), (0, 0.2),
                "crop jitter grey blur solarise flip"),
    "byol": (0.08, CUBIC, 0.5, BYOL, 0.8, 0.2, (1.0, 0.1), (0, 0.2), BYOL_ORDER),
    "vicreg": (0.08, CUBIC, 0.5, BYOL, 0.8, 0.2, (1.0, 0.1), (0, 0.2), BYOL_ORDER),
    "barlow": (0.08, CUBIC, 0.5, BYOL, 0.8, 0.2, (1.0, 0.1), (0, 0.2), BYOL_ORDER),
    "swav": (0.14, LINEAR, 0.5, STRONG, 0.8, 0.2, (0.5, 0.5), (0, 0), SIMCLR_ORDER),
    "dino": (0.4, CUBIC, 0.5, BYOL, 0.8, 0.2, (1.0, 0.1), (0, 0.2), BYOL_ORDER),
    "dinov2": (0.32, CUBIC, 0.5, BYOL, 0.8, 0.2, (0.0, 0.9), (0, 0.2), BYOL_ORDER),
    "ibot": (0.25, CUBIC, 0.5, BYOL, 0.8, 0.2, (1.0, 0.1), (0, 0.2), BYOL_ORDER),
    "msn": (0.3, LINEAR, 0.5, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, (0.5, 0.5), (0, 0), SIMCLR_ORDER),
    "lejepa": (0.08, LINEAR, 0.5, STRONG, 0.8, 0.2, (0.5, 0.5), (0.2, 0.2),
               "crop jitter grey blur solarise flip"),
    "eb-jepa": (0.2, LINEAR, 0.5, BYOL, 0.8, 0.2, (0, 0), (0.1, 0.1),
                "crop jitter grey solarise flip"),
    "lightly-train": (0.14, CUBIC, 0.5, BYOL, 0.8, 0.2, (0, 0), (0, 0), "crop flip jitter grey"),
    "lightly-train-dino": (0.14, CUBIC, 0.5, BYOL, 0.8, 0.2, (1.0, 0.1), (0, 0.2), BYOL_ORDER),
    "lightly-train-dinov2": (0.32, CUBIC, 0.5, BYOL, 0.8, 0.2, (1.0, 0.1), (0, 0.2), BYOL_ORDER),
    "dinov3": (0.32, CUBIC, 0.5, BYOL, 0.8, 0.2, (0.0, 0.9), (0, 0.2), BYOL_ORDER),
    "capi": (0.6, CUBIC, 0.5, (0,) * 4, 0, 0, (0, 0), (0, 0), "crop flip"),
    "vjepa2": (0.3, LINEAR, 0.5, (0,) * 4, 0, 0, (0, 0), (0, 0), "crop flip"),
    "ijepa-crop": (0.3, LINEAR, 0.0, (0,) * 4, 0, 0, (0, 0), (0, 0), "crop"),
    "data2vec-crop": (0.08, CUBIC, 0.5, (0.4, 0.4, 0.4, 0.0), 1.0, 0, (0, 0), (0, 0),
                      "jitter flip crop"),
    "data2vec2-crop": (0.2, CUBIC, 0.5, (0,) * 4, 0, 0, (0, 0), (0, 0), "crop flip"),
    "simclr-bolts": (0.08, LINEAR, 0.5, STRONG, 0.8, 0.2, (0.5, 0.5), (0, 0), SIMCLR_ORDER),
    "byol-pytorch": (0.08, LINEAR, 0.5, STRONG, 0.3, 0.2, (0.2, 0.2), (0, 0),
                     "jitter grey flip crop blur"),
    "simmim": (0.67, LINEAR, 0.5, (0,) * 4, 0, 0, (0, 0), (0, 0), "crop flip"),
    "maskfeat": (0.5, CUBIC, 0.5, (0,) * 4, 0, 0, (0, 0), (0, 0), "crop flip"),
    "clip": (0.9, CUBIC, 0.0, (0,) * 4, 0, 0, (0, 0), (0, 0), "crop"),
    "mae": (0.2, CUBIC, 0.5, (0,) * 4, 0, 0, (0, 0), (0, 0), "crop flip"),
}  # fmt: skip
PILLOW_BLUR = {"simclr-vissl", "moco-v2", "moco-v3", "vicreg", "barlow", "swav", "dino",
               "ibot", "msn"}  # fmt: skip
GLOBAL_CROPS = {
    "swav", "dino", "dinov2", "dinov3", "ibot", "msn", "lightly-train-dino", "lightly-train-dinov2",
}  # fmt: skip
LINEAR_EVALUATION = {
    "simclr-vissl", "moco-v1", "moco-v2", "moco-v3", "vicreg", "barlow", "swav", "ijepa-crop",
    "simclr-bolts", "byol-pytorch", "vjepa2", "msn", "lejepa", "eb-jepa",
}  # fmt: skip
CLEAN_RESIZE = {
    "simclr-bolts": 1.1, "byol-pytorch": 1.0, "lejepa": 1.0, "eb-jepa": 1.0, "clip": 1.0,
}  # fmt: skip
# Those whose views are the clean image under masks, with all constants of the rule.
MASKED = {
    "ijepa": {
        "rule": "multi-block", "targets": 4, "target_scale": [0.15, 0.2],
        "target_ratio": [0.75, 1.5], "context_scale": [0.85, 1.0], "context_ratio": [1.0, 1.0],
        "min_keep": 10, "batch": 128,
    },
    "data2vec": {
        "rule": "blocks", "masked": 120 / 196, "smallest": 16, "ratio": [0.3, 1 / 0.3],
    },
    "data2vec-fairseq": {
        "rule": "blocks", "masked": 75 / 196, "smallest": 16, "ratio": [0.3, 1 / 0.3],
    },
    "data2vec2": {"rule": "inverse-blocks", "masked": 0.8, "adjust": 0.07, "side": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_constants_of_its_repository(name):
    recipe = find_recipe(name, "auto")
    low, interpolation, flip, jitter, jittered, grey, blur, solarise, order = PUBLISHED[name]
    assert recipe.name == name
    assert recipe.crop_scale == (low, 1)
    assert recipe.crop_ratio == (0.75, 1.35 if name == "vjepa2" else 4 / 3)
    assert recipe.interpolation == interpolation
    assert (recipe.flip, recipe.grey) == (flip, grey)
    assert (recipe.jitter, recipe.jitter_probability) == (jitter, jittered)
    assert tuple(recipe.blur[j % len(recipe.blur)] for j in (0, 1)) == blur
    assert tuple(recipe.solarise[j % len(recipe.solarise)] for j in (0, 1)) == solarise
    if any(blur):
        assert recipe.blur_sigma == ((1, 2) if name == "byol-pytorch" else (0.1, 2))
        assert recipe.blur_filter == ("pillow" if name in PILLOW_BLUR else "gaussian")
        if recipe.blur_filter == "gaussian":
            kernels = {"dinov2": 9, "dinov3": 9, "byol-pytorch": 3, "lejepa": 7}
            assert recipe.kernel(224) == kernels.get(name, 23)
    used = order.split()
    assert [operation for operation in recipe.order if operation in used] == used
    assert recipe.mean == ((0, 0, 0) if name == "simclr-google" else (0.485, 0.456, 0.406))
    std = {"simclr-google": (1, 1, 1), "swav": (0.228, 0.224, 0.225)}.get(name, IMAGENET_STD)
    assert recipe.std == std
    assert recipe.clean_resize == CLEAN_RESIZE.get(name, 256 / 224)
    assert recipe.clean_crop == ("before" if name == "simclr-google" else "after")
    assert recipe.clean_interpolation == (LINEAR if name in LINEAR_EVALUATION else CUBIC)
    assert recipe.crops == ("global" if name in GLOBAL_CROPS else "all")
    assert recipe.masks is None
    assert recipe.fault() is None


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_recipe_has_the_constants_of_its_repository(name):
    """The clean image, and the very pixel statistics and interpolation of the crops."""
    recipe = find_recipe(name, "auto")
    assert recipe.describe()["masks"] == MASKED[name]
    assert recipe.crop_scale is None
    assert recipe.fault() is None
    crops = RECIPES.get(f"{name}-crop", RECIPES["data2vec-crop"])
    for constant in ("mean", "std", "clean_resize", "clean_crop", "clean_interpolation"):
        assert getattr(recipe, constant) == getattr(crops, constant)


def test_the_table_holds_every_recipe():
    assert set(PUBLISHED) | set(MASKED) | {"identity", "rotations"} == set(RECIPES)
    assert find_recipe("barlow", "auto") == dataclasses.replace(
        find_recipe("vicreg", "auto"), name="barlow"
    )


def test_the_help_of_views_names_every_recipe():
    (views,) = (f for f in dataclasses.fields(ExtractSettings) if f.name == "views")
    named = re.findall(r"[\w-]+", views.metadata["help"].removeprefix("View recipe:"))
    assert set(named) == {"auto", *RECIPES}


def test_pixel_statistics_are_the_recipes_own_unless_named():
    assert find_recipe("swav", "auto").std == (0.228, 0.224, 0.225)
    assert find_recipe("swav", "imagenet").std == IMAGENET_STD
    assert find_recipe("simclr-google", "auto").mean == (0, 0, 0)
    assert find_recipe("simclr", "auto") == find_recipe("simclr", "imagenet")
    assert find_recipe("simclr", "unit").std == (1, 1, 1)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [  # vturrisi/solo-learn: solo/data/pretrain_dataloader.py
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("stl10", (0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)),
        ("imagenet", (0.485, 0.456, 0.406), IMAGENET_STD),
        ("unit", (0, 0, 0), (1, 1, 1)),
        ("0.49,0.48,0.45/0.25,0.24,0.26", (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)),
        (" 0, 1,.5 / 1,.5,1e-2", (0, 1, 0.5), (1, 0.5, 0.01)),
    ],
)
def test_pixel_statistics_have_names_or_are_six_numbers(name, mean, std):
    recipe = find_recipe("vicreg", name)
    assert (recipe.mean, recipe.std) == (mean, std)
    (setting,) = (f for f in dataclasses.fields(ExtractSettings) if f.name == "pixel_stats")
    assert "/" in name or name in setting.metadata["help"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cifar", r"unknown pixel statistics 'cifar'; did you mean cifar10.*, or MEAN/STD"),
        ("0.5,0.5,0.5", "unknown pixel statistics"),
        ("0.5/0.5,0.5", "expected three numbers for the mean and three"),
        ("a,b,c/d,e,f", "expected three numbers"),
        ("1,1,1/1,1,1/1,1,1", "expected three numbers"),
        ("0.5,0.5/0.5,0.5,0.5", "expected three numbers"),
        ("123.7,116.3,103.5/58.4,57.1,57.4", r"pixels in \[0, 1\]; divide those of"),
        ("0,0,0/1,0,1", r"pixels in \[0, 1\]"),
        ("nan,0,0/1,1,1", r"pixels in \[0, 1\]"),
        ("0,0,0/1,inf,1", r"pixels in \[0, 1\]"),
    ],
)
def test_pixel_statistics_that_no_pixels_have_are_refused(text, message):
    with pytest.raises(SettingsError, match=message):
        find_recipe("simclr", text)


@pytest.mark.parametrize("name", RECIPES)
def test_a_description_gives_the_recipe_back(name):
    """As JSON, and as a table over another recipe: nothing is left out of the description."""
    constants = json.loads(json.dumps(RECIPES[name].describe()))
    assert constants == RECIPES[name].describe()
    left_out = {"quarter_turns"} - ({"quarter_turns"} if name == "rotations" else set())
    assert set(constants) == {f.name for f in dataclasses.fields(Recipe)} - left_out
    as_tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in constants.items()}
    if constants["masks"] is not None:
        masks = {k: tuple(v) if isinstance(v, list) else v for k, v in constants["masks"].items()}
        as_tuples["masks"] = RULES[masks["rule"]](**masks)
    assert Recipe(**as_tuples) == RECIPES[name]
    if constants["crop_scale"] is not None:  # for which TOML has no null
        table = {k: v for k, v in constants.items() if k not in ("name", "crops") and v is not None}
        base = "dinov2" if constants["blur_kernel"] else "dino"
        again = find_recipe("auto", "auto", {"base": base, **table})
        changes = {"name": name, "crops": constants["crops"]}
        assert dataclasses.replace(again, **changes) == RECIPES[name]


@pytest.mark.parametrize("name", MASKED)
def test_a_description_of_masks_gives_them_back(name):
    masks = json.loads(json.dumps(RECIPES[name].describe()["masks"]))
    again = find_recipe("auto", "auto", {"base": "identity", "masks": masks})
    assert again.masks == RECIPES[name].masks


def configured(tmp_path: Path, text: str, cls: type = ExtractSettings) -> Recipe:
    (tmp_path / "c.toml").write_text(text)
    values = resolve(cls, {}, config=tmp_path / "c.toml", environment={}).values
    return find_recipe(values.views, values.pixel_stats, values.recipe)


CHANGED = """
[recipe]
base = "vicreg"
crop_scale = [0.2, 1.0]
blur = [0.5, 0.5]
solarise = 0
order = ["crop", "jitter", "grey", "blur", "flip"]
clean-interpolation = "bicubic"
"""


@pytest.mark.parametrize("cls", [ExtractSettings, RankSettings])
def test_a_recipe_is_changed_in_toml_parameter_by_parameter(tmp_path, cls):
    recipe = configured(tmp_path, CHANGED, cls)
    assert recipe.name == "vicreg (changed)"
    vicreg = find_recipe("vicreg", "auto")
    expected = dataclasses.replace(
        vicreg,
        name="vicreg (changed)",
        crop_scale=(0.2, 1.0),
        blur=(0.5, 0.5),
        solarise=(0,),
        order=("crop", "jitter", "grey", "blur", "flip"),
        clean_interpolation="bicubic",
    )
    assert recipe == expected
    assert recipe.describe()["crop_scale"] == [0.2, 1.0]
    assert json.loads(json.dumps(recipe.describe())) == recipe.describe()


MASKS_CHANGED = """
[recipe]
base = "ijepa"
crop_scale = [0.3, 1.0]
[recipe.masks]
targets = 2
min-keep = 4
"""


def test_masks_are_changed_in_toml_parameter_by_parameter(tmp_path):
    recipe = configured(tmp_path, MASKS_CHANGED)
    assert recipe.name == "ijepa (changed)"
    assert recipe.crop_scale == (0.3, 1.0)
    assert recipe.describe()["masks"] == MASKED["ijepa"] | {"targets": 2, "min_keep": 4}
    crops = dataclasses.replace(RECIPES["ijepa-crop"], masks=MultiBlock(), name="")
    both = configured(tmp_path, '[recipe]\nbase = "ijepa-crop"\nmasks = "multi-block"')
    assert dataclasses.replace(both, name="") == crops
    both = configured(tmp_path, '[recipe]\nbase = "ijepa"\ncrop_scale = [0.3, 1]')
    assert dataclasses.replace(both, name="") == crops


@pytest.mark.parametrize(
    ("text", "masks"),
    [
        ('base = "data2vec"\nmasks = "none"', None),
        ('base = "data2vec"\nmasks = "blocks"', Blocks()),
        (
            'base = "data2vec-fairseq"\nmasks = { smallest = 8 }',
            Blocks(masked=75 / 196, smallest=8),
        ),
        ('base = "data2vec"\nmasks = { rule = "inverse-blocks" }', InverseBlocks()),
        ('base = "simclr"\nmasks = { rule = "blocks", masked = 0.5 }', Blocks(masked=0.5)),
    ],
)
def test_masks_are_named_or_set(tmp_path, text, masks):
    recipe = configured(tmp_path, f"[recipe]\n{text}")
    assert recipe.masks == masks
    changed = masks != RECIPES[recipe.name.removesuffix(" (changed)")].masks
    assert recipe.name.endswith("(changed)") is changed


def test_the_base_is_the_tables_or_that_of_views(tmp_path):
    assert configured(tmp_path, 'views = "dino"\n[recipe]\nflip = 0.0').name == "dino (changed)"
    assert configured(tmp_path, "[recipe]\nflip = 0.0").name == "simclr (changed)"
    both = 'views = "dino"\n[recipe]\nbase = "dino"\nflip = 0.0'
    assert configured(tmp_path, both).name == "dino (changed)"


def test_a_table_that_changes_nothing_keeps_the_name(tmp_path):
    """Such a recipe is comparable to its base, whose provenance it must equal."""
    constants = configured(tmp_path, '[recipe]\nbase = "vicreg"\ncrop_scale = [0.08, 1]').describe()
    assert constants == RECIPES["vicreg"].describe()


def test_pixel_statistics_win_over_a_table_only_if_named(tmp_path):
    table = '[recipe]\nbase = "vicreg"\nstd = [0.5, 0.5, 0.5]'
    assert configured(tmp_path, table).std == (0.5, 0.5, 0.5)
    assert configured(tmp_path, 'pixel_stats = "unit"\n' + table).std == (1, 1, 1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("crop_scal = [0.2, 1.0]", r"unknown key 'crop_scal' in \[recipe\]; did you mean crop_sca"),
        ('name = "mine"', r"unknown key 'name' in \[recipe\]; "),
        ('base = "vicregg"', r"unknown views 'vicregg'; did you mean vicreg\?"),
        ('base = ["vicreg"]', "unknown views"),
        ("flip = 1.5", r"\[recipe\] flip = 1.5: input should be less than or equal to 1"),
        ("grey = -0.1", r"\[recipe\] grey = -0.1: input should be greater than or equal to 0"),
        ("blur = [0.5, 2.0]", r"\[recipe\] blur = \[0.5, 2.0\]: input should be less than"),
        ("blur = []", r"\[recipe\] blur = \[\]: .*at least 1 item"),
        ("jitter = [0.4, 0.4]", r"\[recipe\] jitter = \[0.4, 0.4\]: field required"),
        ("jitter = [0, 0, 0, 0.6]", "the hue, its last number, turns by at most 0.5"),
        ('interpolation = "nearest"', r"interpolation = 'nearest': input should be 'bilinear' or"),
        ("crop_scale = [0.9, 0.5]", r"crop_scale = \[0.9, 0.5\]: the lower end comes first"),
        ("crop_scale = [0.2, 1.5]", "a crop is at most 1, the whole image"),
        ("crop_scale = [0.0, 1.0]", "input should be greater than 0"),
        ("blur_sigma = [3.0, 2.0]", "the lower end comes first"),
        ("blur_kernel = 4", "expected an odd number of pixels"),
        ("mean = [nan, 0.0, 0.0]", "expected finite numbers"),
        ("blur = [1, 0]\nsolarise = [0, 0, 1]", "blur has 2 kinds of views and solarise 3"),
        ('order = ["crop", "flip"]', "jitter and grey and blur left out; name it where it acts"),
        ('order = ["crop", "flip", "flip", "jitter", "grey", "blur"]', "appears twice"),
        ('order = ["blur", "crop", "flip", "jitter", "grey"]', "blur comes after crop"),
        ('order = ["crop", "gray"]', r"\[recipe\] order = .*: input should be 'crop', 'flip'"),
        ('base = "identity"\nflip = 0.5', r"flip without crop_scale; \[1, 1\] is the whole image"),
        ('masks = "block"', r"\[recipe.masks\] unknown masks 'block'; did you mean blocks\?"),
        ("masks = 3", r"\[recipe\] masks = 3: expected the name of a rule, or a table"),
        ("masks = {}", r"\[recipe.masks\] a table without a rule; known: multi-block, blocks, "),
        ("masks.rule = 3", r"\[recipe.masks\] unknown masks 3"),
        ('masks = { rule = "none", side = 3 }', "unknown masks 'none'"),
        (
            'base = "ijepa"\nmasks.target_scal = [0.1, 0.2]',
            r"unknown key 'target_scal' in \[recipe.masks\]; did you mean target_scale\?",
        ),
        ('base = "ijepa"\nmasks.side = 3', r"unknown key 'side' in \[recipe.masks\]; known: batch"),
        (
            'base = "ijepa"\nmasks.targets = 0',
            r"\[recipe.masks\] targets = 0: input should be greater than or equal to 1",
        ),
        (
            'base = "ijepa"\nmasks.target_scale = [0.2, 0.1]',
            r"\[recipe.masks\] target_scale = \[0.2, 0.1\]: the lower end comes first",
        ),
        ('base = "ijepa"\nmasks.target_ratio = [0.7]', r"target_ratio = \[0.7\]: field required"),
        ('base = "data2vec"\nmasks.masked = 120', r"masked = 120: input should be less than 1"),
        ('base = "data2vec"\nmasks.ratio = [nan, 1.0]', r"ratio = \[nan, 1.0\]: input should be"),
        ('base = "data2vec"\nmasks.masked = nan', "masked = nan: input should be less than 1"),
        ('base = "data2vec2"\nmasks.side = 1.5', r"\[recipe.masks\] side = 1.5: .*integer"),
    ],
)
def test_a_mistake_in_a_table_is_named(tmp_path, table, message):
    with pytest.raises(SettingsError, match=message):
        configured(tmp_path, f"[recipe]\n{table}\n")


def test_two_bases_are_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"views dino and \[recipe\] base = 'vicreg' name two"):
        configured(tmp_path, 'views = "dino"\n[recipe]\nbase = "vicreg"')


def test_a_table_of_another_kind_is_refused(tmp_path):
    (tmp_path / "c.toml").write_text('recipe = "vicreg"\n')
    with pytest.raises(SettingsError, match=r"recipe .* valid dictionary"):
        resolve(ExtractSettings, {}, config=tmp_path / "c.toml", environment={})
    (tmp_path / "c.toml").write_text('[recipe]\nbase = "vicreg"\n')
    score = resolve(ScoreSettings, {}, config=tmp_path / "c.toml", environment={}).values
    assert not hasattr(score, "recipe")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "sample_configs").glob("*.toml")), ids=lambda p: p.stem
)
@pytest.mark.parametrize("command", ["extract", "rank", "score"])
def test_every_sample_configuration_loads(path, command):
    values = resolve(COMMANDS[command], {}, config=path, environment={}).values
    if command != "score":
        assert values.data == "imagenet/"
        recipe = find_recipe(values.views, values.pixel_stats, values.recipe)
        assert recipe.crop_scale is not None or recipe.masks is not None


@pytest.mark.parametrize(
    ("method", "n", "q"),
    [("simclr", 5000, 10), ("vicreg", 5000, 10), ("dino", 5000, 10), ("data2vec", 1000, 50),
     ("ijepa", 1000, 50)],
)  # fmt: skip
def test_the_papers_methods_have_its_numbers(method, n, q):
    path = ROOT / "sample_configs" / f"{method}.toml"
    values = resolve(ExtractSettings, {}, config=path, environment={}).values
    assert (values.views, values.n_samples, values.n_views) == (method, n, q)
    assert values.image_size == 224
    assert values.pixel_stats == "auto"
    # The change that it shows in comments is a valid one.
    before, shown = path.read_text().split("# [recipe]\n")
    shown = "\n".join(line.removeprefix("# ") for line in shown.splitlines())
    table = tomllib.loads(f"[recipe]\n{shown}")["recipe"]
    assert find_recipe(values.views, "auto", table).name == f"{method} (changed)"
    tomllib.loads(before + "[recipe]\n")
