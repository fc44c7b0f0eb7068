"""I-JEPA, MAE and MSN: what is masked is predicted from what is seen."""

from __future__ import annotations

from lidar_cli.checkpoints.formats.format import (
    USUAL_HEADS,
    Branch,
    Format,
    Head,
    TokenPredictor,
    numbered,
)

IJEPA = Format(
    name="ijepa",
    title="facebookresearch/ijepa",
    example="IN1K-vit.h.14-300e.pth.tar",
    source="src/helper.py, src/models/vision_transformer.py; issues 51, 55",
    marks=(
        r"encoder\.patch_embed\.",
        r"target_encoder\.patch_embed\.",
        r"predictor\.predictor_embed\.",
    ),
    inside=(
        ("target_encoder", "target_encoder."),
        ("encoder", "encoder."),
        ("predictor", "predictor."),
    ),
    branches=(
        Branch("teacher", "target_encoder."),
        Branch("student", "encoder.", predictor=TokenPredictor("predictor.")),
    ),
    recipe="ijepa",
    backbones=("vit",),  # without class token: the mean of the patch tokens after the last norm
    heads=USUAL_HEADS,
)

MAE = Format(
    name="mae",
    title="facebookresearch/mae",
    example="checkpoint-799.pth, mae_visualize_vit_large.pth",
    source="models_mae.py, models_vit.py",
    marks=(r"patch_embed\.proj\.weight$", r"mask_token$", r"decoder_embed\.weight$"),
    branches=(Branch("encoder", ""),),
    recipe="mae",
    backbones=("vit",),
    heads=USUAL_HEADS,
    noise=(r"decoder_", r"mask_token$"),
)

MSN_LAYERS = numbered(["fc1", "bn1", "-", "fc2", "bn2", "-", "fc3"])  # bn only with use_bn

MSN = Format(
    name="msn",
    title="facebookresearch/msn, PMSN too",
    example="msn_os_logs-ep600.pth.tar",
    source="src/msn_train.py, src/deit.py, logistic_eval.py",
    marks=(
        r"encoder\.patch_embed\.",
        r"target_encoder\.patch_embed\.",
        r"target_encoder\.fc\.fc1\.weight$",
    ),
    inside=IJEPA.inside[:2],
    branches=(
        Branch(
            "teacher",
            "target_encoder.",
            Head("target_encoder.fc.", rename=MSN_LAYERS, activation="gelu"),
        ),
        Branch("student", "encoder.", Head("encoder.fc.", rename=MSN_LAYERS, activation="gelu")),
    ),
    recipe="simclr",
    backbones=("vit",),
    heads=USUAL_HEADS,
    resize="plain",
)

MASKED = (IJEPA, MAE, MSN)
