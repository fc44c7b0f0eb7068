"""Vision Transformers with rotary positions: DINOv3, CAPI, V-JEPA 2; see shapes/rope.py."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lidar_cli.checkpoints.models.activations import activation
from lidar_cli.checkpoints.models.backbone import MaskedBackbone
from lidar_cli.checkpoints.shapes.rope import RopeViTSpec
from lidar_cli.checkpoints.shapes.vit import grid_of
from lidar_cli.errors import CheckpointError
from lidar_cli.views.masks import Mask


class CentredRotation(nn.Module):
    """DINOv3's angles: of a patch's centre, over periods."""

    periods: Tensor | None

    def __init__(self, spec: RopeViTSpec) -> None:
        super().__init__()
        self.number, self.base = spec.head_width // 4, spec.rope_base
        self.register_buffer("periods", torch.empty(self.number) if spec.periods else None)

    def reset_parameters(self) -> None:
        """Set the periods to those of the base."""
        if self.periods is not None:
            self.periods.copy_(self.base ** (torch.arange(self.number) / self.number))

    def forward(self, side: int, device: torch.device) -> Tensor:
        """Angles [side^2, head width] of a square grid's patches, row by row."""
        periods = self.periods
        if periods is None:
            periods = self.base ** (torch.arange(self.number, device=device) / self.number)
        centres = (torch.arange(side, device=device) + 0.5) / side * 2 - 1
        places = torch.cartesian_prod(centres, centres)
        return (2 * math.pi * places[:, :, None] / periods).flatten(1).tile(2)


class EdgeRotation(nn.Module):
    """CAPI's angles: of places from 0 to 1, by learned frequencies, of registers too."""

    def __init__(self, spec: RopeViTSpec) -> None:
        super().__init__()
        self.freqs = nn.Parameter(torch.empty(2, spec.head_width))
        self.registers = spec.registers

    def reset_parameters(self) -> None:
        """Set the frequencies to those at the start of CAPI's training, from 7 down to 7e-4."""
        width = self.freqs.shape[1]
        line = 2 * math.pi * 7 * 1e4 ** torch.linspace(0, -1, width // 4)
        self.freqs.zero_()
        self.freqs[0, : width // 2] = self.freqs[1, width // 2 :] = line.tile(2)

    def forward(self, side: int, device: torch.device) -> Tensor:
        """Angles [registers + side^2, head width], registers first, around the image's edge."""
        line = torch.linspace(0, 1, side, device=device)
        count = self.registers // 4
        along = torch.arange(count, device=device) / max(count, 1)
        zeros, ones = torch.zeros_like(along), torch.ones_like(along)
        rows = torch.cat([along, ones, 1 - along, zeros])
        columns = torch.cat([zeros, along, ones, 1 - along])
        edge = torch.stack([rows, columns], dim=1) * line.max()  # 0 for an image of one patch
        return torch.cat([edge, torch.cartesian_prod(line, line)]) @ self.freqs


class VideoRotation(nn.Module):
    """V-JEPA 2's angles: of the numbers of frame, row and column."""

    def __init__(self, spec: RopeViTSpec) -> None:
        super().__init__()
        self.head_width, self.base = spec.head_width, spec.rope_base
        self.times = spec.frames // spec.tubelet

    def forward(self, side: int, device: torch.device, times: int | None = None) -> Tensor:
        """Angles [times side^2, head width], time by time and row by row.

        times: of a clip; those of a still by default.
        """
        number = self.head_width // 3 // 2
        frequencies = self.base ** -(torch.arange(number, device=device) / number)
        lines = [
            torch.arange(length, device=device) for length in (times or self.times, side, side)
        ]
        places = torch.cartesian_prod(*lines)
        angles = (places[:, :, None] * frequencies.tile(2)).flatten(1)
        return F.pad(angles, (0, self.head_width - angles.shape[1]))


class MaskedLinear(nn.Linear):
    """A linear layer whose bias is multiplied by a mask, as DINOv3's without a bias of keys."""

    bias_mask: Tensor

    def __init__(self, into: int, out: int, bias: bool) -> None:
        super().__init__(into, out, bias)
        self.register_buffer("bias_mask", torch.empty(out))

    def reset_mask(self) -> None:
        """Leave the bias of queries and values, and mask that of keys."""
        self.bias_mask.view(3, -1).copy_(torch.tensor([[1.0], [0.0], [1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        """[..., into] -> [..., out]."""
        return F.linear(x, self.weight, self.bias * self.bias_mask)


def linear(spec: RopeViTSpec, name: str) -> nn.Linear:
    """The linear layer of a block with this name."""
    out, into = spec.linear_sizes(name)
    layer = MaskedLinear if name == "attn.qkv" and spec.masked_bias else nn.Linear
    return layer(into, out, bias=spec.linears[name])


class RotaryAttention(nn.Module):
    """Attention whose queries and keys are rotated by the angles of their tokens."""

    def __init__(self, spec: RopeViTSpec) -> None:
        super().__init__()
        self.heads, self.neighbours = spec.heads, spec.rotation == "vjepa2"
        self.inputs = [n for n in ("qkv", "q", "k", "v") if f"attn.{n}" in spec.linears]
        for name in self.inputs:
            self.add_module(name, linear(spec, f"attn.{name}"))
        self.proj = linear(spec, "attn.proj")
        if spec.rotation == "capi":
            self.rope = EdgeRotation(spec)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """[b, tokens, width] -> the same; angles [tokens or fewer, head width] of the last ones."""
        joined = torch.cat([self.get_submodule(name)(x) for name in self.inputs], dim=-1)
        parts = joined.view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = self.rotated(parts[:2], angles)
        x = F.scaled_dot_product_attention(q, k, parts[2])
        out: Tensor = self.proj(x.transpose(1, 2).flatten(2))
        return out

    def rotated(self, x: Tensor, angles: Tensor) -> Tensor:
        """x [2, b, heads, tokens, head width] with its last tokens rotated."""
        first = x.shape[-2] - len(angles)
        fixed, x = x[..., :first, :], x[..., first:, :]
        if self.neighbours:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        else:
            left, right = x.chunk(2, dim=-1)
            turned = torch.cat([-right, left], dim=-1)
        moved = x * angles.cos() + turned * angles.sin()
        return torch.cat([fixed, moved.to(fixed.dtype)], dim=-2)


class GatedMlp(nn.Module):
    """down(gelu(up x)), or with a gate down(act(gate x) * up x)."""

    def __init__(self, spec: RopeViTSpec) -> None:
        super().__init__()
        self.up, self.down = linear(spec, "mlp.up"), linear(spec, "mlp.down")
        self.gate = linear(spec, "mlp.gate") if spec.swiglu else None
        self.act = activation(spec.gate if spec.swiglu else "gelu")()

    def forward(self, x: Tensor) -> Tensor:
        """[b, tokens, width] -> the same."""
        hidden = self.act(self.up(x)) if self.gate is None else self.act(self.gate(x)) * self.up(x)
        out: Tensor = self.down(hidden)
        return out


class RotaryBlock(nn.Module):
    """Attention and MLP, each after a norm, added to their input."""

    def __init__(self, spec: RopeViTSpec) -> None:
        super().__init__()
        from timm.models import vision_transformer

        norm = nn.RMSNorm if spec.rms_norm else nn.LayerNorm
        scaled = partial(vars(vision_transformer)["LayerScale"], spec.width)
        scale = scaled if spec.layer_scale else nn.Identity
        self.norm1, self.norm2 = (norm(spec.width, eps=spec.eps) for _ in range(2))
        self.ls1, self.ls2 = scale(), scale()
        self.attn, self.mlp = RotaryAttention(spec), GatedMlp(spec)

    def forward(self, x: Tensor, side: int, angles: Tensor | None) -> Tensor:
        """[b, tokens, width] -> the same; angles: of this grid, None for the block's."""
        if angles is None:
            angles = self.attn.rope(side, x.device)
        x = x + self.ls1(self.attn(self.norm1(x), angles))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class RopeViT(MaskedBackbone):
    """A Vision Transformer with rotary positions, for any multiple of the patch size."""

    cls_token: Tensor | None
    reg_token: Tensor | None

    def __init__(self, spec: RopeViTSpec) -> None:
        super().__init__()
        self.width, self.patch = spec.width, spec.patch
        self.tubelet, self.times = spec.tubelet, spec.frames // (spec.tubelet or 1)
        self.prefix = spec.class_token + spec.registers
        into, pixels = spec.channels, (spec.patch, spec.patch)
        proj: nn.Module = nn.Conv2d(into, spec.width, pixels, pixels)
        if spec.tubelet:
            proj = nn.Conv3d(into, spec.width, (spec.tubelet, *pixels), (spec.tubelet, *pixels))
        self.patch_embed = nn.ModuleDict({"proj": proj})
        for name, count in (("cls_token", int(spec.class_token)), ("reg_token", spec.registers)):
            token = nn.Parameter(torch.empty(1, count, spec.width)) if count else None
            self.register_parameter(name, token)
        shared = {"dinov3": CentredRotation, "vjepa2": VideoRotation}.get(spec.rotation)
        self.rope_embed = shared(spec) if shared else None
        self.blocks = nn.ModuleList(RotaryBlock(spec) for _ in range(spec.depth))
        norm = partial(nn.LayerNorm, spec.width, eps=spec.eps)
        plain = partial(nn.RMSNorm, spec.width, eps=spec.eps, elementwise_affine=False)
        self.norm = plain() if spec.rms_norm else norm()
        self.cls_norm = norm() if spec.class_norm else None

    @property
    def token_pooling(self) -> tuple[bool, int]:
        """As of `Backbone`."""
        return self.cls_token is not None, self.prefix

    def set_image_size(self, size: int) -> None:
        """Raise CheckpointError unless the size is a multiple of the patch size."""
        grid_of(size, self.patch)

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens [b, prefix + N, width] after the last norm, class token and registers first.

        images: [b, 3, S, S]; of a video model also clips [b, 3, T, S, S], with N = T / 2 times the
        patches of a frame. Raises CheckpointError for clips that do not divide into patches.
        """
        side = images.shape[-1] // self.patch
        times = self._times(images)
        if self.tubelet and images.dim() == 4:
            images = images.unsqueeze(2).expand(-1, -1, self.tubelet, -1, -1)
            x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2).repeat(1, times, 1)
        else:
            x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        first = [
            t.expand(len(x), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None
        ]
        x = torch.cat([*first, x], dim=1)
        more = (times,) if self.tubelet else ()
        shared = None if self.rope_embed is None else self.rope_embed(side, x.device, *more)
        for block in self.blocks:
            x = block(x, side, shared)
        if self.cls_norm is None:
            tokens: Tensor = self.norm(x)
            return tokens
        return torch.cat(
            [self.cls_norm(x[:, : self.prefix]), self.norm(x[:, self.prefix :])], dim=1
        )

    def patch_tokens(self, images: Tensor, mask: Mask | None = None) -> Tensor:
        """Tokens [b, N, width] of all patches, the mean over times; these models take no masks."""
        tokens = self.tokens(images)[:, self.prefix :]
        return tokens.view(len(images), self._times(images), -1, self.width).mean(dim=1)

    def _times(self, images: Tensor) -> int:
        """Times of the patches of a still or a clip. Raises CheckpointError as `tokens`."""
        if images.dim() == 4:
            return self.times
        frames, height, width = images.shape[-3:]
        if not self.tubelet or frames % self.tubelet or height != width or height % self.patch:
            takes = (
                f"clips [3, T, S, S], T a multiple of {self.tubelet}" if self.tubelet else "stills"
            )
            raise CheckpointError(
                f"inputs are {list(images.shape[1:])}; expected {takes} and S of {self.patch}",
                code="clip-shape",
            )
        return frames // self.tubelet

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, channels, S, S]."""
        if self.cls_token is None:
            return self.patch_tokens(images).mean(dim=1)
        return self.tokens(images)[:, 0]
