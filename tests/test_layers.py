"""bf16 gradients of small 3D convolutions against float32 ones."""

from __future__ import annotations

import pytest
import torch

from vqvdm.layers import Conv3d


def weight_gradient(conv: torch.nn.Conv3d, x: torch.Tensor, bf16: bool) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = conv(x)
    (gradient,) = torch.autograd.grad(y.float().square().sum(), conv.weight)
    return gradient


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 3, 4])
@pytest.mark.parametrize("side", [4, 8])
def test_gradients_under_bf16_are_those_of_float32(frames: int, side: int, channels_last: bool) -> None:
    torch.manual_seed(0)
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    conv = Conv3d(32, 32, 3, padding=1)
    conv.weight.data = conv.weight.data.contiguous(memory_format=layout)
    x = torch.randn(2, 32, frames, side, side).contiguous(memory_format=layout)
    exact, rough = weight_gradient(conv, x, False), weight_gradient(conv, x, True)
    assert (rough - exact).norm() < 0.03 * exact.norm()
