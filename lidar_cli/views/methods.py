"""The recipes of published methods, with the constants of their authors' repositories.

The q views of a method with local crops (SwAV, DINO, DINOv2) are global crops only. The q views of
I-JEPA and data2vec are the clean image under q masks: they differ by the hidden patches, as in
these methods' losses. `ijepa-crop` and the other crop recipes are their training crops without
masks; a [recipe] table with `base = "ijepa-crop"`, `masks = "multi-block"` has both.
The comment on each recipe names the files it was read from. The defaults (crop ratio 3/4 to 4/3,
ImageNet pixel statistics, a clean image of short side 256 at 224, then its centre) are also the
authors' unless a recipe sets them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from lidar_cli.errors import SettingsError, nearest
from lidar_cli.views.recipes import (
    PIXEL_STATS,
    RULES,
    Blocks,
    Constants,
    InverseBlocks,
    MaskRule,
    MultiBlock,
    Recipe,
    pixel_statistics,
)

# google-research/simclr: data_util.py, run.py at color_jitter_strength 1. Departures: torchvision's
# random resized crop and blur borders; ImageNet statistics, since the checkpoints that circulate
# come from PyTorch code that mostly normalises (VISSL); the clean image of PyTorch evaluations.
SIMCLR = Recipe(
    name="simclr",
    crop_scale=(0.08, 1.0),
    flip=0.5,
    jitter=(0.8, 0.8, 0.8, 0.2),
    jitter_probability=0.8,
    grey=0.2,
    blur=(0.5,),
)

# SimCLR for weights of the original code: pixels in [0, 1], and the clean image is the central
# 0.875 of the image, resized. google-research/simclr: data_util.py
SIMCLR_GOOGLE = replace(
    SIMCLR,
    name="simclr-google",
    mean=PIXEL_STATS["unit"][0],
    std=PIXEL_STATS["unit"][1],
    clean_crop="before",
)

# facebookresearch/vissl: configs/config/pretrain/simclr, vissl/data/ssl_transforms
SIMCLR_VISSL = replace(
    SIMCLR,
    name="simclr-vissl",
    interpolation="bilinear",
    blur_filter="pillow",
    clean_interpolation="bilinear",
)

# Lightning-Universe/lightning-bolts: transforms/self_supervised/simclr_transforms.py, for
# ImageNet and STL-10. CIFAR-10 has no blur, and half of the jitter.
SIMCLR_BOLTS = replace(
    SIMCLR,
    name="simclr-bolts",
    interpolation="bilinear",
    clean_interpolation="bilinear",
    clean_resize=1.1,
)

# facebookresearch/swav: src/multicropdataset.py, scripts/, eval_linear.py
SWAV = replace(
    SIMCLR_VISSL,
    name="swav",
    crop_scale=(0.14, 1.0),
    std=(0.228, 0.224, 0.225),
    crops="global",
)

# google-deepmind/deepmind-research: byol/utils/augmentations.py, dataset.py, configs/byol.py.
# Departures: torchvision's jitter (there brightness is added) and blur borders, and the clean image
# of PyTorch evaluations, since the checkpoints that circulate come from PyTorch code.
BYOL = Recipe(
    name="byol",
    crop_scale=(0.08, 1.0),
    flip=0.5,
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_probability=0.8,
    grey=0.2,
    blur=(1.0, 0.1),
    solarise=(0.0, 0.2),
)

# lucidrains/byol-pytorch: byol_pytorch/byol_pytorch.py, examples/lightning/train.py. Departure: it
# blurs before the crop.
BYOL_PYTORCH = Recipe(
    name="byol-pytorch",
    order=("jitter", "grey", "flip", "crop", "blur"),
    crop_scale=(0.08, 1.0),
    interpolation="bilinear",
    flip=0.5,
    jitter=(0.8, 0.8, 0.8, 0.2),
    jitter_probability=0.3,
    grey=0.2,
    blur=(0.2,),
    blur_sigma=(1.0, 2.0),
    blur_kernel=3,
    clean_resize=1.0,
    clean_interpolation="bilinear",
)

# facebookresearch/barlowtwins: main.py, evaluate.py
BARLOW = replace(BYOL, name="barlow", blur_filter="pillow", clean_interpolation="bilinear")

# facebookresearch/vicreg: augmentations.py, evaluate.py. The views are those of Barlow Twins.
VICREG = replace(BARLOW, name="vicreg")

# facebookresearch/dino: main_dino.py, utils.py, eval_linear.py. Its ResNet-50 runs crop from 0.14.
DINO = replace(BYOL, name="dino", crop_scale=(0.4, 1.0), blur_filter="pillow", crops="global")

# facebookresearch/dinov2: dinov2/data/augmentations.py, transforms.py. The repository passes
# 1 - p to its blur, so that crop 1 (nominally always) is never blurred and crop 2 (nominally 0.1)
# nine times in ten; its weights were trained that way (pull request 411 there).
DINOV2 = replace(
    BYOL, name="dinov2", crop_scale=(0.32, 1.0), blur=(0.0, 0.9), blur_kernel=9, crops="global"
)

# facebookresearch/dinov3: dinov3/data/augmentations.py, transforms.py. Its blur inverts the
# probabilities as DINOv2's does. The gram teacher's crops are left out.
DINOV3 = replace(DINOV2, name="dinov3")

# bytedance/ibot da316d8: main_ibot.py, utils.py; the crops are those of the commands in its README.
IBOT = replace(DINO, name="ibot", crop_scale=(0.25, 1.0))

# facebookresearch/msn 4388dc1: src/data_manager.py, configs/pretrain/msn_vits16.yaml,
# linear_eval.py
MSN = Recipe(
    name="msn",
    crop_scale=(0.3, 1.0),
    interpolation="bilinear",
    flip=0.5,
    jitter=(0.4, 0.4, 0.4, 0.1),
    jitter_probability=0.8,
    grey=0.2,
    blur=(0.5,),
    blur_filter="pillow",
    clean_interpolation="bilinear",
    crops="global",
)

# rbalestr-lab/lejepa eddffdd: MINIMAL.md
LEJEPA = replace(
    SIMCLR,
    name="lejepa",
    order=("crop", "jitter", "grey", "blur", "solarise", "flip"),
    interpolation="bilinear",
    blur_kernel=7,
    solarise=(0.2,),
    clean_resize=1.0,
    clean_interpolation="bilinear",
)

# facebookresearch/eb_jepa 966e61e: examples/image_jepa/dataset.py
EB_JEPA = Recipe(
    name="eb-jepa",
    order=("crop", "jitter", "grey", "solarise", "flip"),
    crop_scale=(0.2, 1.0),
    interpolation="bilinear",
    flip=0.5,
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_probability=0.8,
    grey=0.2,
    solarise=(0.1,),
    clean_resize=1.0,
    clean_interpolation="bilinear",
)

# lightly-ai/lightly-train 8f5a75c, version 0.18.0: src/lightly_train/_methods/dino, dinov2.
# Departures: torchvision's jitter and blur, and bicubic crops (there by area).
LIGHTLY_TRAIN_DINO = replace(
    BYOL, name="lightly-train-dino", crop_scale=(0.14, 1.0), crops="global"
)
LIGHTLY_TRAIN_DINOV2 = replace(
    LIGHTLY_TRAIN_DINO, name="lightly-train-dinov2", crop_scale=(0.32, 1.0)
)

# The same in distillation 1 to 3: their blur of at most 0.1 pixels changes nothing. Training mixes
# pairs of images, which these views do not.
LIGHTLY_TRAIN = replace(
    LIGHTLY_TRAIN_DINO,
    name="lightly-train",
    blur=(0.0,),
    solarise=(0.0,),
    crops="all",
)

# facebookresearch/moco: main_moco.py, moco/loader.py, main_lincls.py
MOCO_V1 = Recipe(
    name="moco-v1",
    order=("crop", "grey", "jitter", "flip"),
    crop_scale=(0.2, 1.0),
    interpolation="bilinear",
    flip=0.5,
    jitter=(0.4, 0.4, 0.4, 0.4),
    jitter_probability=1.0,
    grey=0.2,
    clean_interpolation="bilinear",
)

# The same, with --aug-plus
MOCO_V2 = replace(
    MOCO_V1,
    name="moco-v2",
    order=("crop", "jitter", "grey", "blur", "flip"),
    jitter=(0.4, 0.4, 0.4, 0.1),
    jitter_probability=0.8,
    blur=(0.5,),
    blur_filter="pillow",
)

# facebookresearch/moco-v3: main_moco.py, moco/loader.py, CONFIG.md. ResNet-50 runs crop from 0.2.
MOCO_V3 = replace(
    BARLOW,
    name="moco-v3",
    order=("crop", "jitter", "grey", "blur", "solarise", "flip"),
    interpolation="bilinear",
)

# facebookresearch/mae: main_pretrain.py, util/datasets.py, main_linprobe.py
MAE = Recipe(name="mae", crop_scale=(0.2, 1.0), flip=0.5)

# microsoft/SimMIM: data/data_simmim.py, data_finetune.py
SIMMIM = replace(MAE, name="simmim", crop_scale=(0.67, 1.0), interpolation="bilinear")

# open-mmlab/mmpretrain: configs/maskfeat
MASKFEAT = replace(MAE, name="maskfeat", crop_scale=(0.5, 1.0))

# facebookresearch/ijepa: src/transforms.py, src/masks/multiblock.py, configs. No flip. The
# repository has no evaluation: the clean image is the default with the interpolation of training.
IJEPA = Recipe(
    name="ijepa", interpolation="bilinear", clean_interpolation="bilinear", masks=MultiBlock()
)
IJEPA_CROP = replace(IJEPA, name="ijepa-crop", crop_scale=(0.3, 1.0), masks=None)

# facebookresearch/capi: train_capi.py, eval_classification.py. Its crops without masks, which hide
# 65 % of the patches from the student.
CAPI = Recipe(name="capi", crop_scale=(0.6, 1.0), flip=0.5)

# facebookresearch/vjepa2: app/vjepa/transforms.py, configs/train, and for the clean image
# evals/image_classification_frozen/eval.py. The crops of its videos, without masks. Departure:
# there, crops are resized without antialiasing.
VJEPA2 = Recipe(
    name="vjepa2",
    crop_scale=(0.3, 1.0),
    crop_ratio=(0.75, 1.35),
    interpolation="bilinear",
    flip=0.5,
    clean_interpolation="bilinear",
)

# facebookresearch/data2vec_vision: beit/datasets.py, run_cyclical.py, with
# --imagenet_default_mean_and_std as its recipes pass. Clean image: as for I-JEPA.
DATA2VEC = Recipe(name="data2vec", masks=Blocks())
DATA2VEC_CROP = Recipe(
    name="data2vec-crop",
    order=("jitter", "flip", "crop"),
    crop_scale=(0.08, 1.0),
    flip=0.5,
    jitter=(0.4, 0.4, 0.4, 0.0),
    jitter_probability=1.0,
)

# facebookresearch/fairseq: examples/data2vec, its first version, which masks 75 of 14 x 14 patches.
# Its training crops are `data2vec-crop`.
DATA2VEC_FAIRSEQ = Recipe(name="data2vec-fairseq", masks=Blocks(masked=75 / 196))

# facebookresearch/fairseq: examples/data2vec, 2.0, base model. Clean image: as for I-JEPA.
DATA2VEC2 = Recipe(name="data2vec2", masks=InverseBlocks())
DATA2VEC2_CROP = replace(MAE, name="data2vec2-crop")

# mlfoundations/open_clip: src/open_clip/transform.py. CLIP's views are an image and a text: this
# crop is the only augmentation of images.
CLIP = Recipe(name="clip", crop_scale=(0.9, 1.0), clean_resize=1.0)

IDENTITY = Recipe(name="identity")

# The images of the rotation pretext task: Gidaris et al., ICLR 2018, arXiv 1803.07728.
ROTATIONS = Recipe(name="rotations", quarter_turns=True)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        *(SIMCLR, SIMCLR_GOOGLE, SIMCLR_VISSL, SIMCLR_BOLTS, BYOL, BYOL_PYTORCH, VICREG, BARLOW),
        *(DINO, DINOV2, DINOV3, MOCO_V1, MOCO_V2, MOCO_V3, SWAV, MAE, SIMMIM, MASKFEAT),
        *(IJEPA, IJEPA_CROP, CAPI, VJEPA2, CLIP),
        *(IBOT, MSN, LEJEPA, EB_JEPA),
        *(LIGHTLY_TRAIN, LIGHTLY_TRAIN_DINO, LIGHTLY_TRAIN_DINOV2),
        *(DATA2VEC, DATA2VEC_CROP, DATA2VEC_FAIRSEQ, DATA2VEC2, DATA2VEC2_CROP, IDENTITY),
        ROTATIONS,
    )
}

T = TypeVar("T", bound=Constants)

# What a [recipe] table may set: every constant but the name and the kind of crops.
CHANGEABLE = [f.name for f in dataclasses.fields(Recipe) if f.name not in ("name", "crops")]


def find_recipe(name: str, pixel_stats: str, table: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe with this name, changed by a [recipe] table.

    pixel_stats: a name of PIXEL_STATS, MEAN/STD, or auto for those of the recipe. table: `base`,
    the name of a recipe, and constants that replace those of the base.
    Raises SettingsError for an unknown name or key, for a constant out of its bounds, and for a
    base other than the named recipe.
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
    return replace(recipe, mean=mean, std=std)


def _named(name: Any) -> Recipe:
    if name == "auto":
        return SIMCLR
    if not isinstance(name, str) or name not in RECIPES:
        hint = f"{nearest(str(name), ['auto', *RECIPES])} (lidar explain recipes)"
        raise SettingsError(f"unknown views {name!r}; {hint}")
    return RECIPES[name]


def _changed(base: Recipe, table: dict[str, Any]) -> Recipe:
    values = dict(table)
    for key in ("blur", "solarise"):  # a single number is the probability for every view
        if isinstance(values.get(key), int | float):
            values[key] = [values[key]]
    _check_keys(table, ["base", *CHANGEABLE], "[recipe]")
    if "masks" in values:
        values["masks"] = _changed_masks(base.masks, values["masks"])
    constants = {f.name: getattr(base, f.name) for f in dataclasses.fields(Recipe)}
    recipe = _validated(Recipe, constants | values, table, "[recipe]")
    return base if recipe == base else replace(recipe, name=f"{base.name} (changed)")


def _changed_masks(base: MaskRule | None, value: Any) -> MaskRule | None:
    """The mask rule that `masks` sets, None for 'none'.

    value: the name of a rule, or a [recipe.masks] table. A table that names no rule, or that of the
    base, changes the constants of the base; any other starts from its rule's defaults.
    """
    table = {"rule": value} if isinstance(value, str) else value
    if not isinstance(table, dict):
        raise SettingsError(f"[recipe] masks = {value!r}: expected the name of a rule, or a table")
    table = {key.replace("-", "_"): item for key, item in table.items()}
    name = table.get("rule", base.rule if base is not None else None)
    if name == "none" and len(table) == 1:
        return None
    if name is None:
        raise SettingsError(f"[recipe.masks] a table without a rule; known: {', '.join(RULES)}")
    if name not in RULES:
        hint = nearest(str(name), ["none", *RULES])
        raise SettingsError(f"[recipe.masks] unknown masks {name!r}; {hint}")
    rule = RULES[name]
    _check_keys(table, [field.name for field in dataclasses.fields(rule)], "[recipe.masks]")
    constants = dataclasses.asdict(base) if base is not None and base.rule == name else {}
    return _validated(rule, constants | table, table, "[recipe.masks]")


def _check_keys(table: Mapping[str, Any], keys: list[str], where: str) -> None:
    for key in table:
        if key not in keys:
            raise SettingsError(f"unknown key {key!r} in {where}; {nearest(key, keys)}")


def _validated(kind: type[T], values: dict[str, Any], table: Mapping[str, Any], where: str) -> T:
    """A recipe or mask rule with these constants. table: the user's text, for messages.

    Raises SettingsError for a constant out of its bounds.
    """
    import pydantic

    try:
        result = pydantic.TypeAdapter(kind).validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key, reason = str(first["loc"][0]), first["msg"]
        mistake = f"{key} = {table[key]!r}: {reason[0].lower()}{reason[1:]}"
        raise SettingsError(f"{where} {mistake}") from error
    fault = result.fault()
    if fault is not None:
        raise SettingsError(f"{where} {fault}")
    return result
