"""What both networks build on: layers that a CPU computes fast and right, and folding."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from vqvdm.processor import packed_convolution, packed_linear

Stride = tuple[int, int, int]  # along (time, height, width)


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` that uses packed weights where there are any, and whose gradient can be trusted.

    Under bf16 autocast on the CPU, with two frames and a kernel over time, torch 2.13's (oneDNN's) bf16 gradient of
    the weight is garbage or NaN, for any height and width (tests/test_layers.py shows it); such small layers are
    computed in float32.
    """

    def forward(self, input: Tensor, plus: Tensor | None = None) -> Tensor:
        """(b, c, t, h, w) -> (b, out, t', h', w'); `plus`, of that shape, is added: the other arm of a residual."""
        if (result := packed_convolution(self, input, plus)) is not None:
            return result
        frames, taps = input.shape[2], self.kernel_size[0]
        if frames == 2 and taps > 1 and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                result = super().forward(input.float())
        else:
            result = super().forward(input)
        return result if plus is None else plus + result


class Linear(nn.Linear):
    """`nn.Linear` that uses packed weights where there are any."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., c) -> (..., out)."""
        result = packed_linear(self, input)
        return super().forward(input) if result is None else result


def fold(x: Tensor, stride: Stride) -> Tensor:
    """Neighbouring positions into channels: (b, c, t*st, h*sh, w*sw) -> (b, st*sh*sw*c, t, h, w)."""
    st, sh, sw = stride
    places = rearrange(x, "b c (t st) (h sh) (w sw) -> b t h w (st sh sw c)", st=st, sh=sh, sw=sw)
    return places.permute(0, 4, 1, 2, 3)  # channels last in memory, as convolutions take it


def unfold(x: Tensor, stride: Stride) -> Tensor:
    """Channels into neighbouring positions, the inverse of `fold`."""
    st, sh, sw = stride
    places = rearrange(x, "b (st sh sw c) t h w -> b (t st) (h sh) (w sw) c", st=st, sh=sh, sw=sw)
    return places.permute(0, 4, 1, 2, 3)


def groups_of(channels: int) -> int:
    """Groups of a group norm: of 16 channels, or a few more where 16 does not divide them; at most 32.

    Groups of one or two channels, as a fixed number of 32 gives in narrow networks, take away how strong a feature is
    compared with others; groups of 16 trained faster (docs/log.md).
    """
    most = min(max(channels // 16, 1), 32)
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)
