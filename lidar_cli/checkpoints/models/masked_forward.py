"""A model under masks: what the embedding of a masked view is, for every method that masks.

The student sees an image under the view's mask, the teacher all of it, and the loss compares the
two at some patches. The embedding is the mean over those patches, or, of a student who has tokens
for the patches that it sees and for no others, over these:

    I-JEPA        student   backbone    tokens of the context, which are all that it has
                  student   predictor   predicted tokens of all target blocks
                  teacher   backbone    its tokens at the target blocks
    data2vec      student   backbone    tokens at the masked patches, where the mask token stood;
                                        projector: lm_head of the same
                  teacher   backbone    its tokens at the masked patches
    data2vec 2.0  student   backbone    tokens of the visible patches
                  teacher   backbone    its tokens at the masked patches

Target blocks may overlap; a patch of two of them counts twice, as in the loss. Tokens are those
after the last norm, as for clean images, which nothing masks: their predictor sees all patches and
predicts all of them, which it never did in training. A file of one branch alone is a student.

Sources: facebookresearch/ijepa, src/train.py; facebookresearch/data2vec_vision,
beit/engine_for_cyclical.py; facebookresearch/fairseq, examples/data2vec/models/data2vec2.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lidar_cli.checkpoints.models.backbone import MaskedBackbone
from lidar_cli.checkpoints.models.embedder import Loaded
from lidar_cli.checkpoints.models.predictor import Predictor
from lidar_cli.checkpoints.result import Description
from lidar_cli.checkpoints.shapes.vit import grid_of
from lidar_cli.views.masks import Mask, full_mask, group_by_length, stack_masks


class LoadedMasked(Loaded):
    """A backbone that can be embedded under masks, and its heads."""

    def __init__(
        self, description: Description, backbone: MaskedBackbone, heads: Mapping[str, nn.Module]
    ) -> None:
        super().__init__(description, {"backbone": backbone, **heads})
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

        views: [b, 1, 3, S, S] where a sample's views differ by their masks alone. masks: of each of
        the q views, of all samples. Those of equal lengths go through the model together.
        Raises SettingsError for a layer that the checkpoint does not have, CheckpointError if it
        cannot be embedded under masks.
        """
        self._check_layers(layers)
        if not self.description.masks:
            return super().embed_masked(views, masks, layers)
        if self.teacher:
            masks = [Mask(None, None, mask.compared) for mask in masks]
        columns: dict[str, dict[int, Tensor]] = {layer: {} for layer in layers}
        with torch.inference_mode():
            for members, tokens in self._tokens(views, masks):
                outputs = self._outputs(tokens, stack_masks([masks[j] for j in members]), layers)
                for layer in layers:
                    found = outputs[layer].reshape(len(views), len(members), -1)
                    columns[layer] |= dict(zip(members, found.unbind(dim=1), strict=True))
        order = range(len(masks))
        return {
            layer: torch.stack([of_view[j] for j in order], dim=1)
            for layer, of_view in columns.items()
        }

    def _tokens(
        self, views: Tensor, masks: Sequence[Mask]
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Numbers of views, and tokens [b v, K, width] of the patches that enter under each."""
        if self.teacher and views.shape[1] == 1:  # the same whole image every time: once is enough
            tokens = self.backbone.patch_tokens(views[:, 0])
            yield from (([j], tokens) for j in range(len(masks)))
            return
        views = views.expand(-1, len(masks), -1, -1, -1)
        for members in group_by_length(masks):
            mask = None if self.teacher else stack_masks([masks[j] for j in members])
            yield members, self.backbone.patch_tokens(views[:, members].flatten(0, 1), mask)

    def _outputs(self, tokens: Tensor, mask: Mask, layers: Sequence[str]) -> dict[str, Tensor]:
        """Embeddings [b, width] of tokens of patches, up to the last layer that is asked for."""
        if self.teacher or self.backbone.replaces:
            shares = (mask.compared / mask.compared.sum(dim=1, keepdim=True)).unsqueeze(-1)
            mean = (tokens * shares).sum(dim=1)
        else:
            mean = tokens.mean(dim=1)
        x = self.backbone.finish(mean)
        outputs = {"backbone": x}
        last = max(map(self.layers.index, layers))
        for layer in self.layers[1 : last + 1]:
            module = self.modules[layer]
            if isinstance(module, Predictor):
                outputs[layer] = module.mean_prediction(tokens, mask)
            else:
                x = outputs[layer] = module(x)
        return outputs

    def _forward(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        if not any(isinstance(self.modules[layer], Predictor) for layer in layers):
            return super()._forward(images, layers)
        tokens = self.backbone.patch_tokens(images)
        return self._outputs(tokens, full_mask(len(images), tokens.shape[1], images.device), layers)
