"""ConvNeXt as timm's class; see shapes/convnext.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lidar_cli.checkpoints.models.backbone import Backbone
from lidar_cli.checkpoints.shapes.convnext import ConvNeXtSpec


class ConvNeXt(Backbone):
    """timm's ConvNeXt; the embedding is the norm of the mean over the image."""

    def __init__(self, spec: ConvNeXtSpec) -> None:
        super().__init__()
        from timm.models.convnext import ConvNeXt as TimmConvNeXt

        self.width = spec.width
        self.model: Any = TimmConvNeXt(
            in_chans=spec.channels,
            num_classes=0,
            depths=spec.depths,
            dims=spec.dims,
            kernel_sizes=spec.kernel,
            patch_size=spec.patch,
            ls_init_value=1.0 if spec.gamma else None,
            norm_eps=spec.eps,
        )

    @property
    def weights(self) -> nn.Module:
        """timm's module, whose tensors have the names of the spec."""
        return self.model  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, channels, S, S]."""
        embeddings: Tensor = self.model(images)
        return embeddings
