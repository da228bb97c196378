"""What both networks build on: 3D convolution, kept clear of one fault of torch's CPU backend, and folding."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from vqvdm.processor import packed_convolution

Stride = tuple[int, int, int]  # along (time, height, width)


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` that uses packed weights where there are any, and whose gradient can be trusted.

    Under bf16 autocast on the CPU, with two frames and a kernel over time, torch 2.13's (oneDNN's) bf16 gradient of
    the weight is garbage or NaN, for any height and width (tests/test_convolution.py shows it); such small layers are
    computed in float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(b, c, t, h, w) -> (b, out, t', h', w')."""
        if (result := packed_convolution(self, input)) is not None:
            return result
        frames, taps = input.shape[2], self.kernel_size[0]
        if frames == 2 and taps > 1 and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


def fold(x: Tensor, stride: Stride) -> Tensor:
    """Neighbouring positions into channels: (b, c, t*st, h*sh, w*sw) -> (b, st*sh*sw*c, t, h, w)."""
    st, sh, sw = stride
    return rearrange(x, "b c (t st) (h sh) (w sw) -> b (st sh sw c) t h w", st=st, sh=sh, sw=sw)


def unfold(x: Tensor, stride: Stride) -> Tensor:
    """Channels into neighbouring positions, the inverse of `fold`."""
    st, sh, sw = stride
    return rearrange(x, "b (st sh sw c) t h w -> b c (t st) (h sh) (w sw)", st=st, sh=sh, sw=sw)


def groups_of(channels: int) -> int:
    """Groups of a group norm: of 16 channels, or a few more where 16 does not divide them; at most 32.

    Groups of one or two channels, as a fixed number of 32 gives in narrow networks, take away how strong a feature is
    compared with others; groups of 16 trained faster (docs/log.md).
    """
    most = min(max(channels // 16, 1), 32)
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)
