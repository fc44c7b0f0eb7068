"""I-JEPA and MAE: what is masked is predicted from what is seen."""

from __future__ import annotations

from lidar_cli.checkpoints.formats.format import USUAL_HEADS, Branch, Format, TokenPredictor

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

MASKED = (IJEPA, MAE)
