"""An opened checkpoint: one forward from images to the embeddings of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lidar_cli.checkpoints.models.backbone import Backbone
from lidar_cli.checkpoints.models.user_module import embed
from lidar_cli.checkpoints.result import Description
from lidar_cli.errors import CheckpointError, SettingsError
from lidar_cli.views.masks import Mask


class Loaded:
    """A description, and the modules that it describes, in eval mode."""

    def __init__(self, description: Description, modules: Mapping[str, nn.Module]) -> None:
        self.description = description
        self.modules = dict(modules)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names that `embed` takes."""
        return tuple(self.description.widths)

    @property
    def memory_format(self) -> torch.memory_format:
        """How images and weights lie in memory: channels last for a convnet, which is faster so."""
        convolutions = [
            module
            for part in self.modules.values()
            for module in part.modules()
            if isinstance(module, nn.Conv2d)
        ]
        # One alone cuts a transformer's patches out, and gains nothing.
        return torch.channels_last if len(convolutions) > 1 else torch.contiguous_format

    def to(self, device: torch.device | str) -> Loaded:
        """Itself, moved to the device."""
        for module in self.modules.values():
            module.to(device).to(memory_format=self.memory_format)
        return self

    def set_image_size(self, size: int) -> None:
        """Prepare for images of `size` pixels a side.

        Raises CheckpointError if the backbone cannot take them.
        """
        for module in self.modules.values():
            if isinstance(module, Backbone):
                module.set_image_size(size)

    def embed(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Layer -> embeddings [b, width] of normalised images [b, 3, S, S], in one forward.

        Raises SettingsError for a layer that the checkpoint does not have.
        """
        self._check_layers(layers)
        with torch.inference_mode():
            outputs = self._forward(images, layers)
        return {layer: outputs[layer] for layer in layers}

    def embed_masked(
        self, views: Tensor, masks: Sequence[Mask], layers: Sequence[str]
    ) -> dict[str, Tensor]:
        """Layer -> embeddings [b, q, width] of views under masks; see `masked`.

        Raises CheckpointError for a model that cannot be embedded under masks.
        """
        raise CheckpointError(f"the {self.description.arch} cannot be embedded under masks")

    def _check_layers(self, layers: Sequence[str]) -> None:
        for layer in layers:
            if layer not in self.layers:
                raise SettingsError(
                    f"layer {layer!r}: this checkpoint has {', '.join(self.layers)}; "
                    "choose with --layer"
                )

    def _forward(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Up to the last layer that is asked for; each takes what the one before gives."""
        last = max(map(self.layers.index, layers))
        outputs: dict[str, Any] = {}
        for layer in self.layers[: last + 1]:
            images = outputs[layer] = self.modules[layer](images)
        return outputs


class LoadedModule(Loaded):
    """The user's own module, which names its layers itself."""

    def __init__(self, description: Description, module: nn.Module, label: str) -> None:
        super().__init__(description, {"module": module})
        self.label = label

    def to(self, device: torch.device | str) -> LoadedModule:
        """Itself, moved to the device; how its weights lie in memory stays."""
        self.modules["module"].to(device)
        return self

    @property
    def memory_format(self) -> torch.memory_format:
        """As its author gave it: code of one's own may count on how tensors lie in memory."""
        last = any(
            weight.dim() == 4
            and weight.is_contiguous(memory_format=torch.channels_last)
            and not weight.is_contiguous()
            for weight in self.modules["module"].parameters()
        )
        return torch.channels_last if last else torch.contiguous_format

    def _forward(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        outputs = embed(self.modules["module"], images, self.label)
        missing = set(layers) - outputs.keys()
        if missing:
            raise SettingsError(
                f"{self.label}: forward gave no {', '.join(sorted(missing))} this time; "
                f"expected the same layers for every batch"
            )
        return outputs
