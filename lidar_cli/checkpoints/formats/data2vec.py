"""data2vec for images: the fork of BEiT, and fairseq's two layouts.

The student is the default branch throughout, since the authors fine-tune and evaluate it: the fork
by `--model_key model`, fairseq by deleting `_ema` before it loads a checkpoint. The teacher is what
training averages, and has no projector: the loss sees its blocks' outputs.
"""

from __future__ import annotations

import dataclasses

from lidar_cli.checkpoints.formats.format import Branch, Format, Head

FORK = Format(
    name="data2vec",
    title="facebookresearch/data2vec_vision, fork of BEiT",
    example="checkpoint-799.pth",
    source="beit/run_cyclical.py, modeling_cyclical.py, utils.py; run_class_finetuning.py",
    marks=(
        r"model\.blocks\.0\.attn\.q_bias$",
        r"model\.mask_token$",
        r"model\.lm_head\.weight$",
    ),
    square=(r"model\.lm_head\.weight$",),  # BEiT's own predicts one of 8192 visual words
    inside=(("model", "model."), ("model_ema", "model_ema.")),
    branches=(
        Branch("student", "model.", Head("model.lm_head.")),
        Branch("teacher", "model_ema."),
    ),
    recipe="data2vec",
    backbones=("beit",),
    noise=(r"model_ema\.lm_head\.", r".*\.relative_position_index$"),
)

# The teacher is an average of the transformer alone, and takes the student's patches and tokens.
FAIRSEQ = Format(
    name="data2vec-fairseq",
    title="facebookresearch/fairseq, data2vec vision",
    example="checkpoint_best.pt, checkpoint_last.pt",
    source="examples/data2vec/models/data2vec_vision.py, data2vec_image_classification.py",
    marks=(r"model\.encoder\.blocks\.0\.mlp\.0\.weight$", r"model\.patch_embed\.conv\.weight$"),
    inside=(("model", "model."), ("model._ema", "_ema.")),
    branches=(
        Branch("student", "model."),
        Branch("teacher", "_ema.", borrowed=((r"model\.(?=patch_embed\.|cls_emb|mask_emb)", ""),)),
    ),
    recipe="data2vec-fairseq",
    backbones=("data2vec",),
    rename=((r"(?=(?:blocks|norm|rel_pos_bias)\.)", "encoder."),),  # `_ema` is within `encoder`
    noise=(r".*\.relative_position_index$",),
)

FAIRSEQ_2 = dataclasses.replace(
    FAIRSEQ,
    name="data2vec2",
    title="facebookresearch/fairseq, data2vec 2.0 for images",
    source="examples/data2vec/models/data2vec2.py, modalities/, mae_image_classification.py",
    marks=(
        r"model\.modality_encoders\.IMAGE\.local_encoder\.proj\.weight$",
        r"model\.blocks\.0\.attn\.qkv\.weight$",
    ),
    branches=(
        Branch("student", "model."),
        # Where the average leaves the patch embedding out, it takes the student's.
        Branch(
            "teacher",
            "_ema.",
            borrowed=((r"model\.(?=modality_encoders\.IMAGE\.local_encoder\.)", ""),),
        ),
    ),
    recipe="data2vec2",
    backbones=("data2vec2",),
    rename=(),
    noise=(r"model\.(shared_decoder|recon_proj)\.",),
)

DATA2VEC = (FORK, FAIRSEQ, FAIRSEQ_2)
