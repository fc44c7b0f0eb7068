"""I-JEPA, MAE, SimMIM, MSN and data2vec, which predict masked patches from visible ones.

data2vec has three layouts: that of its fork of BEiT, and two of fairseq. The student is always the
default branch, because the authors fine-tune and evaluate it: the fork by `--model_key model`,
fairseq by deleting `_ema` before it loads a checkpoint. The teacher is the moving average and has
no projector: the loss uses the outputs of its blocks.
"""

from __future__ import annotations

import dataclasses

from lidar_cli.checkpoints.formats.format import (
    USUAL_ATTENTION_HEADS,
    Branch,
    Format,
    Head,
    TokenPredictor,
    numbered,
)
from lidar_cli.checkpoints.shapes import swin

IJEPA = Format(
    name="ijepa",
    title="facebookresearch/ijepa",
    example="IN1K-vit.h.14-300e.pth.tar",
    source="src/helper.py, src/models/vision_transformer.py; issues 51, 55",
    present=(
        r"encoder\.patch_embed\.",
        r"target_encoder\.patch_embed\.",
        r"predictor\.predictor_embed\.",
    ),
    nested=(
        ("target_encoder", "target_encoder."),
        ("encoder", "encoder."),
        ("predictor", "predictor."),
    ),
    branches=(
        Branch("teacher", "target_encoder."),
        Branch("student", "encoder.", predictor=TokenPredictor("predictor.")),
    ),
    recipe="ijepa",
    backbones=("vit",),  # no class token: the embedding is the mean of the patch tokens
    attention_heads=USUAL_ATTENTION_HEADS,
)

MAE = Format(
    name="mae",
    title="facebookresearch/mae",
    example="checkpoint-799.pth, mae_visualize_vit_large.pth",
    source="models_mae.py, models_vit.py",
    present=(r"patch_embed\.proj\.weight$", r"mask_token$", r"decoder_embed\.weight$"),
    branches=(Branch("encoder", ""),),
    recipe="mae",
    backbones=("vit",),
    attention_heads=USUAL_ATTENTION_HEADS,
    unused=(r"decoder_", r"mask_token$"),
)

SIMMIM = Format(
    name="simmim",
    title="microsoft/SimMIM",
    example="ckpt_epoch_799.pth",
    source="models/simmim.py, vision_transformer.py, swin_transformer.py, utils.py (d3e29bc)",
    present=(r"encoder\.mask_token$", r"encoder\.patch_embed\.", r"decoder\.0\.weight$"),
    containers=("model",),
    branches=(Branch("encoder", "encoder."),),
    recipe="simmim",
    backbones=("beit", "swin"),
    unused=(r"encoder\.mask_token$", r"decoder\.0\.", *swin.BUFFERS),
)

# BatchNorm only with use_bn.
MSN_LAYERS = numbered(["fc1", "bn1", "-", "fc2", "bn2", "-", "fc3"])

MSN = Format(
    name="msn",
    title="facebookresearch/msn, PMSN too",
    example="msn_os_logs-ep600.pth.tar",
    source="src/msn_train.py, src/deit.py, logistic_eval.py (4388dc1)",
    present=(
        r"encoder\.patch_embed\.",
        r"target_encoder\.patch_embed\.",
        r"target_encoder\.fc\.fc1\.weight$",
    ),
    nested=IJEPA.nested[:2],
    branches=(
        Branch(
            "teacher",
            "target_encoder.",
            Head("target_encoder.fc.", rename=MSN_LAYERS, activation="gelu"),
        ),
        Branch("student", "encoder.", Head("encoder.fc.", rename=MSN_LAYERS, activation="gelu")),
    ),
    recipe="msn",
    backbones=("vit",),
    rename=((r"patch_embed\.stem\.", "patch_embed.proj."),),  # of convolutions
    attention_heads=USUAL_ATTENTION_HEADS,
    resize="plain",
)

DATA2VEC_BEIT = Format(
    name="data2vec",
    title="facebookresearch/data2vec_vision, fork of BEiT",
    example="checkpoint-799.pth",
    source="beit/run_cyclical.py, modeling_cyclical.py, utils.py; run_class_finetuning.py",
    present=(r"model\.blocks\.0\.attn\.q_bias$", r"model\.mask_token$", r"model\.lm_head\.weight$"),
    square=(r"model\.lm_head\.weight$",),  # BEiT's predicts one of 8192 visual words
    nested=(("model", "model."), ("model_ema", "model_ema.")),
    branches=(Branch("student", "model.", Head("model.lm_head.")), Branch("teacher", "model_ema.")),
    recipe="data2vec",
    backbones=("beit",),
    unused=(r"model_ema\.lm_head\.", r".*\.relative_position_index$"),
)

# Only the transformer is averaged: the teacher uses the student's patch embedding and tokens.
DATA2VEC_FAIRSEQ = Format(
    name="data2vec-fairseq",
    title="facebookresearch/fairseq, data2vec vision",
    example="checkpoint_best.pt, checkpoint_last.pt",
    source="examples/data2vec/models/data2vec_vision.py, data2vec_image_classification.py",
    present=(r"model\.encoder\.blocks\.0\.mlp\.0\.weight$", r"model\.patch_embed\.conv\.weight$"),
    nested=(("model", "model."), ("model._ema", "_ema.")),
    branches=(
        Branch("student", "model."),
        Branch("teacher", "_ema.", borrowed=((r"model\.(?=patch_embed\.|cls_emb|mask_emb)", ""),)),
    ),
    recipe="data2vec-fairseq",
    backbones=("data2vec",),
    rename=((r"(?=(?:blocks|norm|rel_pos_bias)\.)", "encoder."),),  # `_ema` averages `encoder`
    unused=(r".*\.relative_position_index$",),
)

DATA2VEC2_FAIRSEQ = dataclasses.replace(
    DATA2VEC_FAIRSEQ,
    name="data2vec2",
    title="facebookresearch/fairseq, data2vec 2.0 for images",
    source="examples/data2vec/models/data2vec2.py, modalities/, mae_image_classification.py",
    present=(
        r"model\.modality_encoders\.IMAGE\.local_encoder\.proj\.weight$",
        r"model\.blocks\.0\.attn\.qkv\.weight$",
    ),
    branches=(
        Branch("student", "model."),
        # The student's patch embedding is used if the average has none.
        Branch(
            "teacher",
            "_ema.",
            borrowed=((r"model\.(?=modality_encoders\.IMAGE\.local_encoder\.)", ""),),
        ),
    ),
    recipe="data2vec2",
    backbones=("data2vec2",),
    rename=(),
    unused=(r"model\.(shared_decoder|recon_proj)\.",),
)

MASKED = (IJEPA, MAE, SIMMIM, MSN)
DATA2VEC = (DATA2VEC_BEIT, DATA2VEC_FAIRSEQ, DATA2VEC2_FAIRSEQ)
