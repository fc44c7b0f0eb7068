"""lightly-train, on Lightning: SimCLR, DINO, DINOv2, DenseCL, and distillation from another model.

Read at version 0.18.0, lightly-ai/lightly-train 8f5a75c. A file also holds copies of the trained
model as pickled modules, and the pixel statistics of the run. A ResNet and timm's models give the
mean of the last feature map, timm's ViTs that of their patch tokens, without `fc_norm`; the
package's DINOv2 ViTs, which have a mask token, give the class token.
"""

from __future__ import annotations

import dataclasses

from lidar_cli.checkpoints.formats.distillation import dino_head
from lidar_cli.checkpoints.formats.format import USUAL_ATTENTION_HEADS, Branch, Format, Head

MODEL = "embedding_model."
ANY_MODEL = r"(\w+[._])?embedding_model\."

LIGHTLY_TRAIN = Format(
    name="lightly-train",
    title="lightly-ai/lightly-train, SimCLR",
    example="out/checkpoints/last.ckpt",
    source="src/lightly_train/_methods/simclr, _models/, _checkpoint.py (8f5a75c)",
    keys=("lightly_train",),
    containers=("state_dict",),
    present=(r"embedding_model\.", r"projection_head\.layers\.0\."),
    branches=(Branch("encoder", MODEL, Head("projection_head.")),),
    recipe="simclr",
    backbones=("resnet", "dinov3", "vit", "dinov2-chunked"),
    # torchvision's models are `_features`, others `_model`. embed_head: of the argument embed_dim.
    rename=(
        (r"(wrapped_model\.)?(_features|_model)\.", ""),
        (r"fc_norm\.", "unused."),
        (r"embed_head\.", "embedding."),
    ),
    attention_heads=USUAL_ATTENTION_HEADS,
    mean_pooled_without=r"mask_token$",
    recorded_stats="lightly_train.normalize_args",
    image_size=224,  # of training; the positions of DINOv2 are for 518
    unused=(rf"{ANY_MODEL}(wrapped_model\.)?(_model\.)?(fc\.|head\.|fc_norm\.|mask_token$)",),
)

LIGHTLY_TRAIN_DINO = dataclasses.replace(
    LIGHTLY_TRAIN,
    name="lightly-train-dino",
    title="lightly-ai/lightly-train, DINO",
    source="src/lightly_train/_methods/dino, _models/, _checkpoint.py (8f5a75c)",
    present=(
        r"teacher_embedding_model\.",
        r"student_embedding_model\.",
        r"teacher_projection_head\.layers\.0\.",
    ),
    branches=tuple(
        Branch(name, f"{name}_{MODEL}", dino_head(f"{name}_projection_head."))
        for name in ("teacher", "student")
    ),
    recipe="lightly-train-dino",
    unused=(*LIGHTLY_TRAIN.unused, r"criterion\."),
)

LIGHTLY_TRAIN_DINOV2 = dataclasses.replace(
    LIGHTLY_TRAIN_DINO,
    name="lightly-train-dinov2",
    title="lightly-ai/lightly-train, DINOv2 and DINOv3.1",
    source="src/lightly_train/_methods/dinov2, dinov31, _models/, _checkpoint.py (8f5a75c)",
    present=(*LIGHTLY_TRAIN_DINO.present[:2], r"teacher_head\.dino_head\.mlp\."),
    branches=tuple(
        Branch(name, f"{name}_{MODEL}", dino_head(f"{name}_head.dino_head."))
        for name in ("teacher", "student")
    ),
    recipe="lightly-train-dinov2",
    unused=(
        *LIGHTLY_TRAIN.unused,
        r"(teacher|student)_(head\.ibot_head|paka_head)\.",
        r"(dino|ibot)_loss\.",
    ),
)

# The student is trained to have the embeddings of a frozen model, which newer files leave out. The
# head of version 1 is a Linear layer, as is that of version 3 for whole images; the heads for
# patches are not used.
LIGHTLY_TRAIN_DISTILLATION = dataclasses.replace(
    LIGHTLY_TRAIN,
    name="lightly-train-distillation",
    title="lightly-ai/lightly-train, distillation 1 to 3",
    source="src/lightly_train/_methods/distillation, distillationv2, distillationv3 (8f5a75c)",
    present=(r"student_embedding_model\.", r"student_projection_head"),
    absent=(r"teacher_(projection_)?head\.",),
    branches=(
        Branch(
            "student",
            f"student_{MODEL}",
            Head(
                "student_projection_head",
                rename=((r"(_global)?\.(?=weight$|bias$)", ""),),
                after=(r"_local\.", r"\.mlp\."),
            ),
        ),
        Branch("teacher", "teacher_embedding_model."),
    ),
    recipe="lightly-train",
    unused=(*LIGHTLY_TRAIN.unused, r"teacher_queue$"),
)

LIGHTLY_TRAIN_DENSECL = dataclasses.replace(
    LIGHTLY_TRAIN,
    name="lightly-train-densecl",
    title="lightly-ai/lightly-train, DenseCL",
    source="src/lightly_train/_methods/densecl, _models/, _checkpoint.py (8f5a75c)",
    present=(r"query_encoder\.embedding_model\.", r"key_encoder\.embedding_model\."),
    branches=tuple(
        Branch(name, f"{encoder}.{MODEL}", Head(f"{encoder}.global_projection_head."))
        for name, encoder in (("student", "query_encoder"), ("teacher", "key_encoder"))
    ),
    recipe="moco-v2",
    unused=(
        *LIGHTLY_TRAIN.unused,
        r"(query|key)_encoder\.local_projection_head\.",
        r"memory_bank\.",
        r"(local|global)_criterion\.",
    ),
)

LIGHTLY_TRAIN_ALL = (
    LIGHTLY_TRAIN, LIGHTLY_TRAIN_DINO, LIGHTLY_TRAIN_DINOV2, LIGHTLY_TRAIN_DISTILLATION,
    LIGHTLY_TRAIN_DENSECL,
)  # fmt: skip
