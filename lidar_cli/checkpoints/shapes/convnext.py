"""The spec of ConvNeXt, by timm's names, and of DINOv3's, whose names are those of its authors.

    stem.0, stem.1                          convolution of patch x patch pixels, LayerNorm
    stages.I.downsample.0, .1               LayerNorm, convolution of 2x2 pixels; from stage 1 on
    stages.I.blocks.J                       x + gamma mlp(norm(conv_dw(x)))
    head.norm                               LayerNorm of the mean over the image, the embedding

LayerNorm's eps is 1e-6 in all of them, an assumption. This file needs no torch; the module is in
models/convnext.py. Sources: Liu et al. 2022 (ConvNeXt); facebookresearch/dinov3 at 6876159:
dinov3/models/convnext.py; transformers 5.24: models/dinov3_convnext.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lidar_cli.checkpoints.shapes.spec import (
    USUAL,
    ModuleSpec,
    Shapes,
    convolution,
    layernorm,
    linear,
    number_of_blocks,
    repeated,
    with_notes,
)
from lidar_cli.errors import CheckpointError

ANCHOR = "stages.0.blocks.0.conv_dw.weight"
FACEBOOK_ANCHOR = "downsample_layers.0.0.weight"
HF_DINOV3_ANCHOR = "stages.0.downsample_layers.0.weight"
HF_ANCHOR = "encoder.stages.0.layers.0.dwconv.weight"
HF_EPS = 1e-12  # of the last norm
STAGES = 4
EPS = 1e-6
NAMES: dict[tuple[tuple[int, ...], int], str] = {  # blocks a stage, channels of the first stage
    ((3, 3, 9, 3), 96): "tiny",
    ((3, 3, 27, 3), 96): "small",
    ((3, 3, 27, 3), 128): "base",
    ((3, 3, 27, 3), 192): "large",
}
FROM_FACEBOOK = (
    (r"downsample_layers\.0\.", "stem."),
    (r"downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"norm\.", "head.norm."),
    (r"stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"(stages\.\d+\.blocks\.\d+\.)dwconv\.", r"\1conv_dw."),
    (r"(stages\.\d+\.blocks\.\d+\.)pwconv([12])\.", r"\1mlp.fc\2."),
)
FACEBOOK_UNUSED = ("norms.3.",)  # the last norm once more, as DINOv3 saves it
FROM_HF_DINOV3 = (
    (r"layer_norm\.", "head.norm."),
    (r"stages\.0\.downsample_layers\.", "stem."),
    (r"(stages\.\d+\.)downsample_layers\.", r"\1downsample."),
    (r"(stages\.\d+\.)layers\.", r"\1blocks."),
    (r"(stages\.\d+\.blocks\.\d+\.)depthwise_conv\.", r"\1conv_dw."),
    (r"(stages\.\d+\.blocks\.\d+\.)layer_norm\.", r"\1norm."),
    (r"(stages\.\d+\.blocks\.\d+\.)pointwise_conv([12])\.", r"\1mlp.fc\2."),
)
FROM_HF = (
    (r"layernorm\.", "head.norm."),
    (r"embeddings\.patch_embeddings\.", "stem.0."),
    (r"embeddings\.layernorm\.", "stem.1."),
    (r"encoder\.(stages\.\d+\.)downsampling_layer\.", r"\1downsample."),
    (r"encoder\.(stages\.\d+\.)layers\.", r"\1blocks."),
    (r"(stages\.\d+\.blocks\.\d+\.)layer_scale_parameter$", r"\1gamma"),
    (r"(stages\.\d+\.blocks\.\d+\.)dwconv\.", r"\1conv_dw."),
    (r"(stages\.\d+\.blocks\.\d+\.)layernorm\.", r"\1norm."),
    (r"(stages\.\d+\.blocks\.\d+\.)pwconv([12])\.", r"\1mlp.fc\2."),
    (r"(stages\.\d+\.blocks\.\d+\.)grn\.(\w+)$", r"\1mlp.grn.\2@-"),
)


@dataclass(frozen=True, kw_only=True)
class ConvNeXtSpec(ModuleSpec):
    """Sizes of a ConvNeXt."""

    depths: tuple[int, ...]  # blocks of each stage
    dims: tuple[int, ...]  # channels of each stage
    patch: int  # pixels a side of the stem's patches
    channels: int  # of the images
    kernel: int  # side of the depthwise convolutions
    gamma: bool  # whether a block's output is scaled
    eps: float  # of LayerNorm
    head_eps: float | None = None  # of the last one, None for the same
    grn: bool = False  # whether MLPs have ConvNeXt V2's global response normalisation

    @property
    def width(self) -> int:
        """The width of the embedding."""
        return self.dims[-1]

    @property
    def image_size(self) -> None:
        """None, since the weights do not determine it."""

    @property
    def arch(self) -> str:
        """Such as 'convnext_tiny'."""
        name = NAMES.get((self.depths, self.dims[0]))
        kind = "convnextv2" if self.grn else "convnext"
        if name and self.dims == tuple(self.dims[0] * 2**i for i in range(STAGES)):
            return f"{kind}_{name}"
        sizes = [f"{'-'.join(map(str, sizes))}" for sizes in (self.depths, self.dims)]
        return with_notes(kind, [f"depths {sizes[0]}", f"channels {sizes[1]}"])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """timm's name -> shape of every tensor of the module."""
        shapes = convolution("stem.0", self.channels, self.dims[0], self.patch)
        shapes |= layernorm("stem.1", self.dims[0]) | layernorm("head.norm", self.width)
        for stage, (depth, width) in enumerate(zip(self.depths, self.dims, strict=True)):
            if stage:
                into, down = self.dims[stage - 1], f"stages.{stage}.downsample"
                shapes |= layernorm(f"{down}.0", into) | convolution(f"{down}.1", into, width, 2)
            block = convolution("conv_dw", 1, width, self.kernel) | layernorm("norm", width)
            block |= linear("mlp.fc1", 4 * width, width) | linear("mlp.fc2", width, 4 * width)
            block |= {"gamma": (width,)} if self.gamma else {}
            if self.grn:
                block |= layernorm("mlp.grn", 4 * width)
            shapes |= repeated(f"stages.{stage}.blocks", depth, block)
        return shapes


def spec(shapes: Shapes, origin: str, *, eps: float | None = None) -> ConvNeXtSpec:
    """The spec of the ConvNeXt with these shapes, by timm's names.

    eps: the value in a config.json, None without one.
    Raises CheckpointError if the shapes fit no ConvNeXt.
    """
    stem = shapes.get("stem.0.weight", ())
    blocks = [f"stages.{stage}.blocks" for stage in range(STAGES)]
    first = [shapes.get(f"{name}.0.conv_dw.weight", ()) for name in blocks]
    if len(stem) != 4 or any(len(shape) != 4 or not all(shape) for shape in first):
        raise CheckpointError(
            f"{origin}: the stem of the ConvNeXt is {list(stem) or 'missing'}, its depthwise "
            f"convolutions {[list(shape) for shape in first]}; expected four stages by timm's "
            "names; name the architecture with --arch",
            code="not-a-convnext",
        )
    return ConvNeXtSpec(
        depths=tuple(number_of_blocks(shapes, name) for name in blocks),
        dims=tuple(shape[0] for shape in first),
        patch=stem[2],
        channels=stem[1],
        kernel=first[0][2],
        gamma="stages.0.blocks.0.gamma" in shapes,
        grn="stages.0.blocks.0.mlp.grn.weight" in shapes,
        eps=EPS if eps is None else eps,
        why={"eps": USUAL} if eps is None else {},
        decided={} if eps is None else {"eps": f"config.json has layer_norm_eps {eps:g}"},
    )


def hf_spec(shapes: Shapes, origin: str, *, eps: float | None = None) -> ConvNeXtSpec:
    """The spec of Hugging Face's ConvNeXt or ConvNeXt V2, by timm's names; see `spec`.

    eps: of the last norm; that of the others is in the library's code.
    """
    plain = spec(shapes, origin, eps=EPS).decide("eps", "Hugging Face's code has 1e-6")
    return dataclasses.replace(plain, head_eps=HF_EPS if eps is None else eps)
