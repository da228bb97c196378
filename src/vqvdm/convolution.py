"""3D convolution, kept clear of one fault of torch's CPU backend."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` whose gradient can be trusted under bf16 autocast on the CPU.

    With two frames and a kernel over time, torch 2.13's (oneDNN's) bf16 gradient of the weight is garbage or NaN, for
    any height and width (tests/test_convolution.py shows it); such small layers are computed in float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(b, c, t, h, w) -> (b, out, t', h', w')."""
        frames, taps = input.shape[2], self.kernel_size[0]
        if frames == 2 and taps > 1 and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)
