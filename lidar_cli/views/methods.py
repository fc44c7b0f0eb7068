"""The recipes of published methods, with the constants of their authors' repositories.

The q views of a method with local crops (SwAV, DINO, DINOv2) are its global ones; crops of other
sizes are not made. Those of I-JEPA and data2vec are the clean image under q masks: a sample's views
differ by what is hidden, which is what their losses bridge. Their training crops as well as masks
are `base = "ijepa-crop"`, `masks = "multi-block"` in a [recipe] table; the crops alone have names.
Each recipe's comment names the files it was read from. Crop ratio 3/4 to 4/3, ImageNet pixel
statistics and the clean image (short side 256 at 224, then the centre) are theirs too unless given.
"""

from __future__ import annotations

from lidar_cli.views.recipes import PIXEL_STATS, Blocks, InverseBlocks, MultiBlock, Recipe

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

# The same for weights of the original: plain [0, 1] pixels, and the clean image is the central
# 0.875 of the image, resized. data_util.py
SIMCLR_GOOGLE = Recipe(
    name="simclr-google",
    crop_scale=(0.08, 1.0),
    flip=0.5,
    jitter=(0.8, 0.8, 0.8, 0.2),
    jitter_probability=0.8,
    grey=0.2,
    blur=(0.5,),
    mean=PIXEL_STATS["unit"][0],
    std=PIXEL_STATS["unit"][1],
    clean_crop="before",
)

# facebookresearch/vissl: configs/config/pretrain/simclr, vissl/data/ssl_transforms
SIMCLR_VISSL = Recipe(
    name="simclr-vissl",
    crop_scale=(0.08, 1.0),
    interpolation="bilinear",
    flip=0.5,
    jitter=(0.8, 0.8, 0.8, 0.2),
    jitter_probability=0.8,
    grey=0.2,
    blur=(0.5,),
    blur_filter="pillow",
    clean_interpolation="bilinear",
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

# facebookresearch/vicreg: augmentations.py, evaluate.py
VICREG = Recipe(
    name="vicreg",
    crop_scale=(0.08, 1.0),
    flip=0.5,
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_probability=0.8,
    grey=0.2,
    blur=(1.0, 0.1),
    blur_filter="pillow",
    solarise=(0.0, 0.2),
    clean_interpolation="bilinear",
)

# facebookresearch/barlowtwins: main.py, evaluate.py; VICReg took its views from here
BARLOW = Recipe(
    name="barlow",
    crop_scale=(0.08, 1.0),
    flip=0.5,
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_probability=0.8,
    grey=0.2,
    blur=(1.0, 0.1),
    blur_filter="pillow",
    solarise=(0.0, 0.2),
    clean_interpolation="bilinear",
)

# facebookresearch/dino: main_dino.py, utils.py, eval_linear.py. Its ResNet-50 runs crop from 0.14.
DINO = Recipe(
    name="dino",
    crop_scale=(0.4, 1.0),
    flip=0.5,
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_probability=0.8,
    grey=0.2,
    blur=(1.0, 0.1),
    blur_filter="pillow",
    solarise=(0.0, 0.2),
    crops="global",
)

# facebookresearch/dinov2: dinov2/data/augmentations.py, transforms.py. The repository passes
# 1 - p to its blur, so that crop 1 (nominally always) is never blurred and crop 2 (nominally 0.1)
# nine times in ten; its weights were trained that way (pull request 411 there).
DINOV2 = Recipe(
    name="dinov2",
    crop_scale=(0.32, 1.0),
    flip=0.5,
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_probability=0.8,
    grey=0.2,
    blur=(0.0, 0.9),
    blur_kernel=9,
    solarise=(0.0, 0.2),
    crops="global",
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
MOCO_V2 = Recipe(
    name="moco-v2",
    order=("crop", "jitter", "grey", "blur", "flip"),
    crop_scale=(0.2, 1.0),
    interpolation="bilinear",
    flip=0.5,
    jitter=(0.4, 0.4, 0.4, 0.1),
    jitter_probability=0.8,
    grey=0.2,
    blur=(0.5,),
    blur_filter="pillow",
    clean_interpolation="bilinear",
)

# facebookresearch/moco-v3: main_moco.py, moco/loader.py, CONFIG.md. ResNet-50 runs crop from 0.2.
MOCO_V3 = Recipe(
    name="moco-v3",
    order=("crop", "jitter", "grey", "blur", "solarise", "flip"),
    crop_scale=(0.08, 1.0),
    interpolation="bilinear",
    flip=0.5,
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_probability=0.8,
    grey=0.2,
    blur=(1.0, 0.1),
    blur_filter="pillow",
    solarise=(0.0, 0.2),
    clean_interpolation="bilinear",
)

# facebookresearch/swav: src/multicropdataset.py, scripts/, eval_linear.py
SWAV = Recipe(
    name="swav",
    crop_scale=(0.14, 1.0),
    interpolation="bilinear",
    flip=0.5,
    jitter=(0.8, 0.8, 0.8, 0.2),
    jitter_probability=0.8,
    grey=0.2,
    blur=(0.5,),
    blur_filter="pillow",
    std=(0.228, 0.224, 0.225),
    clean_interpolation="bilinear",
    crops="global",
)

# facebookresearch/mae: main_pretrain.py, util/datasets.py, main_linprobe.py
MAE = Recipe(name="mae", crop_scale=(0.2, 1.0), flip=0.5)

# facebookresearch/ijepa: src/transforms.py, src/masks/multiblock.py, configs. No flip. The
# repository evaluates nothing: the usual clean image is taken, with the interpolation of training.
IJEPA = Recipe(
    name="ijepa", interpolation="bilinear", clean_interpolation="bilinear", masks=MultiBlock()
)
IJEPA_CROP = Recipe(
    name="ijepa-crop",
    crop_scale=(0.3, 1.0),
    interpolation="bilinear",
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
# Its crops are the fork's.
DATA2VEC_FAIRSEQ = Recipe(name="data2vec-fairseq", masks=Blocks(masked=75 / 196))

# facebookresearch/fairseq: examples/data2vec, 2.0, base model. Clean image: as for I-JEPA.
DATA2VEC2 = Recipe(name="data2vec2", masks=InverseBlocks())
DATA2VEC2_CROP = Recipe(name="data2vec2-crop", crop_scale=(0.2, 1.0), flip=0.5)

IDENTITY = Recipe(name="identity")

RECIPES = {
    recipe.name: recipe
    for recipe in (
        SIMCLR,
        SIMCLR_GOOGLE,
        SIMCLR_VISSL,
        BYOL,
        VICREG,
        BARLOW,
        DINO,
        DINOV2,
        MOCO_V1,
        MOCO_V2,
        MOCO_V3,
        SWAV,
        MAE,
        IJEPA,
        IJEPA_CROP,
        DATA2VEC,
        DATA2VEC_CROP,
        DATA2VEC_FAIRSEQ,
        DATA2VEC2,
        DATA2VEC2_CROP,
        IDENTITY,
    )
}
