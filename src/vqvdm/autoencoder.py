"""Encoders and decoders of the tokenizer.

Ours folds patches into channels, then alternates 3D residual blocks with down-sampling; the decoder mirrors it. There
are three ways to change the resolution. "shortcut" carries a parameter-free shortcut beside a convolution (pixels
folded into channels and averaged, or channels repeated and unfolded: DC-AE, Chen et al. 2025, section 3.1), so that
even an untrained network passes a blurred clip on and training need not first discover that something moves. "pooled"
averages and repeats (MAGVIT, Yu et al. 2023, appendix A.1), "strided" has strided and transposed convolutions. The
layout of TATS stands beside it, for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqvdm.layers import Conv3d, Stride, fold, groups_of, unfold

Resampling = Literal["shortcut", "pooled", "strided"]


class ResidualBlock(nn.Module):
    """x + Conv(SiLU(Norm(Conv(SiLU(Norm(x)))))) with 3x3x3 convolutions."""

    def __init__(self, channels: int, padding_mode: Literal["zeros", "replicate"] = "zeros") -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups_of(channels), channels)
        self.conv1 = Conv3d(channels, channels, 3, padding=1, padding_mode=padding_mode)
        self.norm2 = nn.GroupNorm(groups_of(channels), channels)
        self.conv2 = Conv3d(channels, channels, 3, padding=1, padding_mode=padding_mode)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, t, h, w), unchanged
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(h)), plus=x)


class Downsample(nn.Module):
    """Strided convolution beside a shortcut that folds and averages channels."""

    def __init__(self, channels: int, out_channels: int, stride: Stride) -> None:
        super().__init__()
        self.stride = stride
        self.out_channels = out_channels
        self.conv = Conv3d(channels * math.prod(stride), out_channels, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:  # (b, c, t, h, w) -> (b, out, t/st, h/sh, w/sw)
        folded = fold(x, self.stride)
        groups = rearrange(folded, "b (g o) t h w -> b t h w g o", o=self.out_channels)
        shortcut = groups.mean(-2).permute(0, 4, 1, 2, 3)
        return self.conv(folded, plus=shortcut)


class Upsample(nn.Module):
    """Convolution and unfolding beside a shortcut that repeats channels and unfolds them."""

    def __init__(self, channels: int, out_channels: int, stride: Stride) -> None:
        super().__init__()
        self.stride = stride
        self.repeats = out_channels * math.prod(stride) // channels
        self.conv = Conv3d(channels, out_channels * math.prod(stride), (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:  # (b, c, t, h, w) -> (b, out, t*st, h*sh, w*sw)
        shortcut = torch.cat([x] * self.repeats, dim=1)  # keeps the order in memory, as `repeat` does not
        return unfold(self.conv(x, plus=shortcut), self.stride)


class Pool(nn.Module):
    """Averages over the stride, then a convolution."""

    def __init__(self, channels: int, out_channels: int, stride: Stride) -> None:
        super().__init__()
        self.stride = stride
        self.conv = Conv3d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, t, h, w) -> (b, out, t/st, h/sh, w/sw)
        return self.conv(F.avg_pool3d(x, self.stride))


class Repeat(nn.Module):
    """Repeats every place along the stride, then a convolution."""

    def __init__(self, channels: int, out_channels: int, stride: Stride) -> None:
        super().__init__()
        self.stride = stride
        self.conv = Conv3d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, t, h, w) -> (b, out, t*st, h*sh, w*sw)
        factors = tuple(map(float, self.stride))
        return self.conv(F.interpolate(x, scale_factor=factors, mode="nearest"))


class Strided(nn.Module):
    """Strided convolution of kernel 4; the padding repeats the border (TATS' SamePadConv3d)."""

    def __init__(self, channels: int, out_channels: int, stride: Stride) -> None:
        super().__init__()
        self.padding = _same_padding(stride)
        self.conv = Conv3d(channels, out_channels, 4, stride=stride)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, t, h, w) -> (b, out, t/st, h/sh, w/sw)
        return self.conv(F.pad(x, self.padding, mode="replicate"))


class Transposed(nn.Module):
    """Transposed convolution of kernel 4; the padding repeats the border (TATS' SamePadConvTranspose3d)."""

    def __init__(self, channels: int, out_channels: int, stride: Stride) -> None:
        super().__init__()
        self.padding = _same_padding(stride)
        self.conv = nn.ConvTranspose3d(channels, out_channels, 4, stride=stride, padding=3)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, t, h, w) -> (b, out, t*st, h*sh, w*sw)
        return self.conv(F.pad(x, self.padding, mode="replicate"))


def _same_padding(stride: Stride) -> tuple[int, ...]:
    """Of kernel 4, last axis first, the odd place before: so that the extent is divided by the stride exactly."""
    return tuple(end for step in reversed(stride) for end in ((5 - step) // 2, (4 - step) // 2))


DOWN = {"shortcut": Downsample, "pooled": Pool, "strided": Strided}
UP = {"shortcut": Upsample, "pooled": Repeat, "strided": Transposed}


class Layered(nn.Module):
    """Has layers in a row, whose activations gradient checkpointing computes again in the backward pass."""

    layers: nn.ModuleList

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False

    def run(self, x: Tensor) -> Tensor:
        """Through all layers."""
        recompute = self.gradient_checkpointing and self.training
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        return x


class Encoder(Layered):
    """Clip (b, c, t, h, w) -> unquantised latents (b, latent_channels, t/ft, h/fh, w/fw)."""

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        patch: Stride,
        strides: Sequence[Stride],
        blocks: Sequence[int],
        out: int,
        resampling: Resampling = "shortcut",
    ) -> None:
        super().__init__()
        self.patch = patch
        self.stem = Conv3d(in_channels * math.prod(patch), channels[0], 3, padding=1)
        layers: list[nn.Module] = []
        for level, width in enumerate(channels):
            layers += [ResidualBlock(width) for _ in range(blocks[level])]
            if level < len(strides):
                layers.append(DOWN[resampling](width, channels[level + 1], strides[level]))
        self.layers = nn.ModuleList(layers)
        self.head = Conv3d(channels[-1], out, 1)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.stem(fold(clip, self.patch))
        return self.head(self.run(x))  # no norm before it: norms over space take a clip's brightness away


class PixelBlock(nn.Module):
    """x + Conv(a * SiLU(b)), a and b of one convolution over 3x3x3 pixels; begins as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = Conv3d(channels, 2 * channels, 3, padding=1)
        self.out = Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1))

    def begin_as_identity(self) -> None:
        """So that a trained decoder may be given one more of these."""
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, t, h, w), unchanged
        values, gates = self.gate(x).chunk(2, dim=1)
        return self.out(values * F.silu(gates), plus=x)


class Pixels(nn.Module):
    """From patches to `pixel_channels` at every pixel, which products of a gated convolution (Dauphin et al. 2017) mix.

    An edge is a product: how far a pixel is covered, times the difference of two colours. Sums alone, of which a plain
    last layer is made, blur it. Blocks that see the frames beside one keep corners from wobbling.
    """

    def __init__(self, channels: int, patch: Stride, pixel_channels: int, blocks: int) -> None:
        super().__init__()
        self.patch = patch
        self.up = Conv3d(channels, pixel_channels * math.prod(patch), (1, 3, 3), padding=(0, 1, 1))
        self.gate = Conv3d(pixel_channels, 2 * pixel_channels, (1, 3, 3), padding=(0, 1, 1))
        self.blocks = nn.Sequential(*(PixelBlock(pixel_channels) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:  # (b, channels, t, h, w) -> (b, pixel_channels, t*pt, h*ph, w*pw)
        values, gates = self.gate(F.silu(unfold(self.up(x), self.patch))).chunk(2, dim=1)
        return self.blocks(values * F.silu(gates))


class Decoder(Layered):
    """Latents (b, latent_channels, t, h, w) -> clip (b, c, t*ft, h*fh, w*fw), the mirror of `Encoder`.

    With `pixel_channels` a few layers at full resolution follow, beside a linear one that makes whole patches.
    """

    def __init__(
        self,
        latent: int,
        channels: Sequence[int],
        patch: Stride,
        strides: Sequence[Stride],
        blocks: Sequence[int],
        out: int,
        resampling: Resampling = "shortcut",
        pixel_channels: int = 0,
        pixel_blocks: int = 0,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.stem = Conv3d(latent, channels[-1], 3, padding=1)
        layers: list[nn.Module] = []
        for level in reversed(range(len(channels))):
            layers += [ResidualBlock(channels[level]) for _ in range(blocks[level])]
            if level > 0:
                layers.append(UP[resampling](channels[level], channels[level - 1], strides[level - 1]))
        self.layers = nn.ModuleList(layers)
        self.norm = nn.GroupNorm(groups_of(channels[0]), channels[0])
        self.pixels: Pixels | None = None
        if pixel_channels:
            self.pixels = Pixels(channels[0], patch, pixel_channels, pixel_blocks)
            self.patches = Conv3d(channels[0], out * math.prod(patch), 1)
            self.head = Conv3d(pixel_channels, out, (1, 3, 3), padding=(0, 1, 1))
        else:
            self.head = Conv3d(channels[0], out * math.prod(patch), 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = F.silu(self.norm(self.run(self.stem(z))))
        if self.pixels is None:
            return unfold(self.head(x), self.patch)
        return self.head(self.pixels(x), plus=unfold(self.patches(x), self.patch))


class TATSEncoder(Layered):
    """The encoder of TATS (Ge et al. 2022, tats/tats_vqgan.py): strided convolutions, a residual block after each."""

    def __init__(self, in_channels: int, channels: Sequence[int], strides: Sequence[Stride], out: int) -> None:
        super().__init__()
        self.stem = Conv3d(in_channels, channels[0], 3, padding=1, padding_mode="replicate")
        layers: list[nn.Module] = []
        for width, wider, stride in zip(channels, channels[1:], strides, strict=False):
            layers += [Strided(width, wider, stride), ResidualBlock(wider, "replicate")]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.GroupNorm(groups_of(channels[-1]), channels[-1])
        self.head = Conv3d(channels[-1], out, 1)

    def forward(self, clip: Tensor) -> Tensor:  # (b, c, t, h, w) -> (b, out, t/ft, h/fh, w/fw)
        return self.head(F.silu(self.norm(self.run(self.stem(clip)))))


class TATSDecoder(Layered):
    """The decoder of TATS: transposed convolutions, two residual blocks after each.

    Time is stretched first, as TATS' is; its encoder halves time first, so this is no mirror of it.
    """

    def __init__(self, latent: int, channels: Sequence[int], strides: Sequence[Stride], out: int) -> None:
        super().__init__()
        width = channels[-1]
        self.stem = Conv3d(latent, width, 1)
        self.norm = nn.GroupNorm(groups_of(width), width)
        layers: list[nn.Module] = []
        for narrower, stride in zip(reversed(channels[1:]), strides, strict=True):
            layers += [Transposed(width, narrower, stride), *(ResidualBlock(narrower, "replicate") for _ in range(2))]
            width = narrower
        self.layers = nn.ModuleList(layers)
        self.head = Conv3d(width, out, 3, padding=1, padding_mode="replicate")

    def forward(self, z: Tensor) -> Tensor:  # (b, latent, t, h, w) -> (b, out, t*ft, h*fh, w*fw)
        x = F.silu(self.norm(self.stem(z)))
        return self.head(self.run(x))
