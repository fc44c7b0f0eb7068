"""VISSL: one layout for all methods, which differ in their heads and in the state of the loss.

Layer j of head i is renamed to index 10 i + j. The gap in the indices between two heads is read as
an activation, and VISSL's MLP does end with one there.
"""

from __future__ import annotations

import dataclasses

from lidar_cli.checkpoints.formats.format import USUAL_ATTENTION_HEADS, Branch, Format, Head

BASE = "classy_state_dict.base_model.model"
EMA = "classy_state_dict.ema_model.model"  # saved with HOOKS.EMA_MODEL
INSIDE = (
    (f"{BASE}.trunk", "trunk."),
    (f"{BASE}.heads", "heads."),
    (f"{EMA}.trunk", "ema.trunk."),
    (f"{EMA}.heads", "ema.heads."),
    ("classy_state_dict.loss", "loss."),
    ("loss", "loss."),
)
TRUNK = r"trunk\."
NUMBERS = (r"(\d+)\.(?:clf|projection_head|mlp)\.(\d+)\.", r"\1\2.")
PROTOTYPES = (r"\d+\.prototypes\d+\.",)


def head(prefix: str, activation: str = "relu") -> Head:
    """All heads of a branch as one MLP, up to the prototypes."""
    return Head(prefix, rename=(NUMBERS,), activation=activation, after=PROTOTYPES)


PLAIN = Format(
    name="vissl",
    title="facebookresearch/vissl, without a known head",
    example="model_final_checkpoint_phase99.torch",
    source="utils/checkpoint.py, models/base_ssl_model.py",
    present=(TRUNK,),
    nested=INSIDE,
    branches=(
        Branch("encoder", "trunk.", head("heads.")),
        Branch("teacher", "ema.trunk.", head("ema.heads.")),
    ),
    recipe="simclr-vissl",
    rename=((r"(?:base_model\.)?_feature_blocks\.", ""),),
    attention_heads=USUAL_ATTENTION_HEADS,
    unused=(r"loss\.", r"ema\."),
)

SECOND_LAYER = r"heads\.(1\.clf\.0|0\.clf\.[1-9])"  # a layer after the first

SIMCLR = dataclasses.replace(
    PLAIN,
    name="vissl-simclr",
    title="facebookresearch/vissl, SimCLR",
    source="models/heads/mlp.py, configs/config/pretrain/simclr",
    present=(TRUNK, SECOND_LAYER),
)

# A single Linear layer gives logits, of classes or rotations, and not an embedding.
CLASSIFIER = dataclasses.replace(
    PLAIN,
    name="vissl-classifier",
    title="facebookresearch/vissl, one Linear head: supervised, RotNet, Jigsaw",
    source="models/heads/mlp.py, configs/config/pretrain/{supervised,rotnet,jigsaw}",
    present=(TRUNK, r"heads\.0\.clf\.0\."),
    absent=(SECOND_LAYER,),
    branches=(Branch("encoder", "trunk."), Branch("teacher", "ema.trunk.")),
    unused=(*PLAIN.unused, r"heads\."),
)

BARLOW = dataclasses.replace(
    PLAIN,
    name="vissl-barlow",
    title="facebookresearch/vissl, Barlow Twins",
    source="models/heads/mlp.py, configs/config/pretrain/barlow_twins",
    present=(TRUNK, r"heads\.0\.clf\.0\.", r"heads\.0\.clf\.1\.running_mean$"),
    recipe="barlow",
)

MOCO = dataclasses.replace(
    PLAIN,
    name="vissl-moco",
    title="facebookresearch/vissl, MoCo",
    source="losses/moco_loss.py, hooks/moco_hooks.py",
    present=(TRUNK, r"heads\.0\.clf\.0\.", r"loss\.moco_encoder\.trunk\."),
    branches=(
        Branch("student", "trunk.", head("heads.")),
        Branch("teacher", "loss.moco_encoder.trunk.", head("loss.moco_encoder.heads.")),
    ),
    recipe="moco-v2",
)

SWAV = dataclasses.replace(
    PLAIN,
    name="vissl-swav",
    title="facebookresearch/vissl, SwAV",
    source="models/heads/swav_prototypes_head.py, configs/config/pretrain/swav",
    present=(TRUNK, r"heads\.0\.projection_head\.0\.", r"heads\.0\.prototypes0\."),
    recipe="swav",
)

DINO = dataclasses.replace(
    PLAIN,
    name="vissl-dino",
    title="facebookresearch/vissl, DINO",
    source="models/heads/dino_head.py, hooks/dino_hooks.py, losses/dino_loss.py",
    present=(TRUNK, r"heads\.0\.mlp\.0\.", r"heads\.0\.prototypes0\."),
    branches=(
        Branch(
            "teacher", "loss.momentum_teacher.trunk.", head("loss.momentum_teacher.heads.", "gelu")
        ),
        Branch("student", "trunk.", head("heads.", "gelu")),
    ),
    recipe="dino",
)

VISSL = (PLAIN, SIMCLR, CLASSIFIER, BARLOW, MOCO, SWAV, DINO)
