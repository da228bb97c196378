"""Tiles against the whole: what is local must come out the same, and weights must cover every position once."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqvdm.tiling import blend_tiles

ONE = (Fraction(1), Fraction(1), Fraction(1))


@pytest.mark.parametrize("extent", [(5, 9, 11), (4, 8, 8), (13, 8, 31)])
def test_a_pointwise_function_is_unchanged(extent: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, *extent)
    torch.testing.assert_close(blend_tiles(torch.sin, x, (4, 8, 8), (2, 3, 3), ONE), torch.sin(x))


def test_a_local_convolution_is_unchanged_once_the_overlap_covers_its_reach() -> None:
    """Blending gives weight to positions nearer than the kernel's reach to a tile's edge: they must differ a little."""
    weight, x = torch.randn(1, 1, 3, 3, 3), torch.randn(1, 1, 12, 20, 20)
    whole = F.conv3d(x, weight, padding=1)
    tiled = blend_tiles(lambda part: F.conv3d(part, weight, padding=1), x, (8, 10, 10), (4, 6, 6), ONE)
    bare = blend_tiles(lambda part: F.conv3d(part, weight, padding=1), x, (8, 10, 10), (0, 0, 0), ONE)
    error, without_overlap = (tiled - whole).square().mean(), (bare - whole).square().mean()
    assert error < 0.15 * without_overlap


def test_a_step_between_tiles_becomes_a_ramp() -> None:
    """Two tiles that disagree by 1 meet without a jump larger than 1 / (overlap + 1)."""
    calls: list[int] = []

    def disagree(part: Tensor) -> Tensor:
        calls.append(1)
        return torch.full_like(part, float(len(calls)))

    line = blend_tiles(disagree, torch.zeros(1, 1, 1, 1, 14), (1, 1, 8), (0, 0, 2), ONE).flatten()
    assert len(calls) == 2
    assert line[0] == 1 and line[-1] == 2
    assert line.diff().abs().max() <= 1 / 3 + 1e-6
    assert (line.diff() >= -1e-6).all()


@pytest.mark.parametrize(
    "scale", [(Fraction(4), Fraction(8), Fraction(8)), (Fraction(1, 4), Fraction(1, 8), Fraction(1, 8))]
)
def test_scales_up_and_down(scale: tuple[Fraction, ...]) -> None:
    up = scale[0] > 1
    x = torch.randn(1, 2, *((3, 5, 6) if up else (12, 40, 48)))
    tile, overlap = ((2, 3, 3), (1, 1, 1)) if up else ((8, 24, 24), (4, 8, 8))

    def resize(part: Tensor) -> Tensor:
        if up:
            return part.repeat_interleave(4, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
        return F.avg_pool3d(part, (4, 8, 8))

    torch.testing.assert_close(blend_tiles(resize, x, tile, overlap, scale), resize(x))
