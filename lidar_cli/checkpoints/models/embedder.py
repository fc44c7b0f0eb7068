"""An opened checkpoint: one forward pass from images to the embeddings of its layers.

In masked training, the student sees an image under a mask, the teacher sees all of it, and the loss
compares the two at some patches. The embedding of a masked view is the mean over those patches, or
over the visible patches for a student that has tokens only for these:

    I-JEPA        student   backbone    tokens of the context, the only ones it has
                  student   predictor   predicted tokens of all target blocks
                  teacher   backbone    its tokens at the target blocks
    data2vec      student   backbone    tokens at the masked patches, in place of the mask token;
                                        projector: lm_head of the same
                  teacher   backbone    its tokens at the masked patches
    data2vec 2.0  student   backbone    tokens of the visible patches
                  teacher   backbone    its tokens at the masked patches

Target blocks may overlap; a patch in two of them counts twice, as in the loss. Tokens are taken
after the last norm. Clean images are not masked: the predictor then sees all patches and predicts
all of them, unlike in training. A file with a single branch counts as a student.

Sources: facebookresearch/ijepa, src/train.py; facebookresearch/data2vec_vision,
beit/engine_for_cyclical.py; facebookresearch/fairseq, examples/data2vec/models/data2vec2.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lidar_cli.checkpoints.models.backbone import Backbone, MaskedBackbone, select_tokens
from lidar_cli.checkpoints.models.heads import Predictor
from lidar_cli.checkpoints.models.inner import captured
from lidar_cli.checkpoints.models.user_module import embed
from lidar_cli.checkpoints.shapes.inner import InnerLayer
from lidar_cli.checkpoints.shapes.spec import CheckpointDescription
from lidar_cli.checkpoints.shapes.vit import grid_of
from lidar_cli.errors import CheckpointError, SettingsError
from lidar_cli.settings import PATCHES
from lidar_cli.views.masks import Mask, full_mask, group_by_length, stack_masks


class Embedder:
    """The modules of a checkpoint in eval mode, and its description."""

    def __init__(
        self, description: CheckpointDescription, modules: Mapping[str, nn.Module]
    ) -> None:
        self.description = description
        self.modules = dict(modules)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that `embed` takes, in the order of the forward pass."""
        return tuple(self.description.widths)

    @property
    def stages(self) -> tuple[str, ...]:
        """The layers that are not inside another, in the order of the forward pass."""
        return tuple(layer for layer in self.layers if layer not in self.description.inner)

    @property
    def inner_root(self) -> nn.Module:
        """The module in which the inner layers have their names."""
        backbone: Any = self.modules["backbone"]
        root: nn.Module = backbone.weights
        return root

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of images and weights in memory: channels last for a convnet, for speed."""
        convolutions = [
            module
            for part in self.modules.values()
            for module in part.modules()
            if isinstance(module, nn.Conv2d)
        ]
        # A single convolution is a transformer's patch embedding, which is no faster.
        return torch.channels_last if len(convolutions) > 1 else torch.contiguous_format

    def to(self, device: torch.device | str) -> Embedder:
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

    def embed(
        self, images: Tensor, layers: Sequence[str], draws: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Layer -> embeddings [b, width] of normalised images [b, channels, S, S].

        All layers but `patches` are those of one forward pass. draws: numbers in [0, 1), [b], see
        `draw_patches`; with them, the layer `patches` is the token of one patch of each image.
        Raises SettingsError for a layer that the checkpoint does not have.
        """
        others = [layer for layer in layers if layer != PATCHES or draws is None]
        self._check_layers(others)
        with torch.inference_mode():
            outputs = self._with_inner(images, others) if others else {}
            if draws is not None and PATCHES in layers:
                outputs[PATCHES] = self._drawn_patches(images, draws)
        return {layer: outputs[layer] for layer in layers}

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Tokens of all patches [b, N, width] after the last norm, of a backbone that has them."""
        backbone: Any = self.modules["backbone"]
        with torch.inference_mode():
            tokens: Tensor = backbone.patch_tokens(images)
        return tokens

    def _drawn_patches(self, images: Tensor, draws: Tensor) -> Tensor:
        """Patch token floor(u N) of each image's N, [b, width], after the last norm."""
        tokens = self.patch_tokens(images)
        index = (draws * tokens.shape[1]).long().to(tokens.device)
        return select_tokens(tokens, index.unsqueeze(1))[:, 0]

    def embed_masked(
        self, views: Tensor, masks: Sequence[Mask], layers: Sequence[str]
    ) -> dict[str, Tensor]:
        """Layer -> embeddings [b, q, width] of views under masks; see `MaskedEmbedder`.

        Raises CheckpointError for a model that cannot be embedded under masks.
        """
        raise CheckpointError(
            f"the {self.description.arch} cannot be embedded under masks", code="no-masks"
        )

    def _check_layers(self, layers: Sequence[str]) -> None:
        for layer in layers:
            if layer not in self.layers:
                raise SettingsError(
                    f"layer {layer!r}: this checkpoint has {', '.join(self.layers)}; "
                    "choose with --layer",
                    code="no-such-layer",
                )

    def _with_inner(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Layer -> output; the forward pass ends with the deepest requested layer."""
        stages = [layer for layer in layers if layer in self.stages]
        outputs: dict[str, Tensor] = {}
        with captured(self.inner_root, self._inner(layers), last=not stages) as inner:
            outputs = self._forward(images, stages or self.stages[:1])
        return outputs | inner

    def _inner(self, layers: Sequence[str]) -> dict[str, InnerLayer]:
        """Those of the layers that are inside a backbone."""
        inner = self.description.inner
        return {layer: inner[layer] for layer in layers if layer in inner}

    def _forward(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Stage -> output, up to the last requested one; each takes the previous output."""
        last = max(map(self.stages.index, layers))
        outputs: dict[str, Any] = {}
        for layer in self.stages[: last + 1]:
            images = outputs[layer] = self.modules[layer](images)
        return outputs


class MaskedEmbedder(Embedder):
    """An Embedder whose backbone supports masked views."""

    def __init__(
        self,
        description: CheckpointDescription,
        backbone: MaskedBackbone,
        modules: Mapping[str, nn.Module],
    ) -> None:
        super().__init__(description, modules)
        self.backbone = backbone
        self.teacher = description.branch == "teacher"

    def set_image_size(self, size: int) -> None:
        """Prepare backbone and predictor for images of `size` pixels a side.

        Raises CheckpointError if the backbone cannot take them.
        """
        super().set_image_size(size)
        for module in self.modules.values():
            if isinstance(module, Predictor):
                module.set_grid(grid_of(size, self.backbone.patch))

    def embed_masked(
        self, views: Tensor, masks: Sequence[Mask], layers: Sequence[str]
    ) -> dict[str, Tensor]:
        """Layer -> embeddings [b, q, width] of normalised views [b, q, 3, S, S].

        views: [b, 1, 3, S, S] if the views of a sample differ only by their masks. masks: the masks
        of all samples, for each of the q views; views with masks of equal lengths go through the
        model together.
        Raises SettingsError for a layer that the checkpoint does not have, CheckpointError if it
        cannot be embedded under masks.
        """
        self._check_layers(layers)
        if not self.description.masks:
            return super().embed_masked(views, masks, layers)
        if self.teacher:
            masks = [Mask(None, None, mask.compared) for mask in masks]
        columns: dict[str, dict[int, Tensor]] = {layer: {} for layer in layers}
        wanted = self._inner(layers)
        stages = [layer for layer in layers if layer not in wanted]
        with torch.inference_mode(), captured(self.inner_root, wanted, pool=False) as inner:
            for members, tokens in self._tokens(views, masks):
                mask = stack_masks([masks[j] for j in members])
                outputs = self._outputs(tokens, mask, stages)
                for layer, values in inner.items():
                    outputs[layer] = self._mean(self._patches_of(layer, values, tokens), mask)
                for layer in layers:
                    rows = outputs[layer].reshape(len(views), len(members), -1)
                    columns[layer] |= dict(zip(members, rows.unbind(dim=1), strict=True))
        order = range(len(masks))
        return {
            layer: torch.stack([of_view[j] for j in order], dim=1)
            for layer, of_view in columns.items()
        }

    def _tokens(
        self, views: Tensor, masks: Sequence[Mask]
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Groups of v views: their indices, and their visible patches' tokens [b v, K, width]."""
        if self.teacher and views.shape[1] == 1:  # all views are the same whole image
            tokens = self.backbone.patch_tokens(views[:, 0])
            yield from (([j], tokens) for j in range(len(masks)))
            return
        views = views.expand(-1, len(masks), -1, -1, -1)
        for members in group_by_length(masks):
            mask = None if self.teacher else stack_masks([masks[j] for j in members])
            yield members, self.backbone.patch_tokens(views[:, members].flatten(0, 1), mask)

    def _outputs(self, tokens: Tensor, mask: Mask, layers: Sequence[str]) -> dict[str, Tensor]:
        """Layer -> embeddings [b, width] from tokens of patches, up to the last requested layer."""
        x = self.backbone.embedding_from_mean(self._mean(tokens, mask))
        outputs = {"backbone": x}
        last = max(map(self.stages.index, layers), default=0)
        for layer in self.stages[1 : last + 1]:
            module = self.modules[layer]
            if isinstance(module, Predictor):
                outputs[layer] = module.mean_prediction(tokens, mask)
            else:
                x = outputs[layer] = module(x)
        return outputs

    def _mean(self, tokens: Tensor, mask: Mask) -> Tensor:
        """The mean [b, width] over the compared patches, or over all tokens of visible ones."""
        if not (self.teacher or self.backbone.replaces_hidden):
            return tokens.mean(dim=1)
        weights = (mask.compared / mask.compared.sum(dim=1, keepdim=True)).unsqueeze(-1)
        return (tokens * weights).sum(dim=1)

    def _patches_of(self, layer: str, output: Tensor, tokens: Tensor) -> Tensor:
        """The patches of an inner layer's output, as many as those of the last norm, `tokens`."""
        first, prefix = self.description.inner[layer].first, self.backbone.token_pooling[1]
        if output.dim() != 3 or first != prefix or output.shape[1] - first != tokens.shape[1]:
            raise CheckpointError(
                f"layer {layer!r} comes before the masks of the views; name a block, or views "
                "without masks, such as --views simclr",
                code="layer-before-masks",
            )
        return output[:, first:]

    def _forward(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        if not any(isinstance(self.modules[layer], Predictor) for layer in layers):
            return super()._forward(images, layers)
        tokens = self.backbone.patch_tokens(images)
        return self._outputs(tokens, full_mask(len(images), tokens.shape[1], images.device), layers)


class ModuleEmbedder(Embedder):
    """An Embedder of the user's own module, whose forward names its layers."""

    def __init__(self, description: CheckpointDescription, module: nn.Module, label: str) -> None:
        super().__init__(description, {"module": module})
        self.label = label

    @property
    def inner_root(self) -> nn.Module:
        """The user's module."""
        return self.modules["module"]

    def to(self, device: torch.device | str) -> ModuleEmbedder:
        """Itself, moved to the device; the memory layout of its weights is unchanged."""
        self.modules["module"].to(device)
        return self

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of its weights, since the user's code may depend on it."""
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
                f"expected the same layers for every batch",
                code="layers-changed",
            )
        return outputs
