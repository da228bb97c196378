"""Enlarging and shrinking frames before a network sees them, in the three conventions that published figures rest on.

All are bilinear without antialiasing; they differ in which place of the input the centre of an output pixel looks at.
The choice moves FVD by some percent, so it is part of every protocol.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Convention = Literal["half_pixel", "legacy", "align_corners"]


def resize(frames: Tensor, height: int, width: int, convention: Convention = "half_pixel") -> Tensor:
    """Frames (n, c, h, w), float -> (n, c, height, width), the same range.

    Args:
        frames: float.
        height, width: pixels.
        convention: "half_pixel" reads at (i + 1/2) s - 1/2, s being the ratio of sizes: PyTorch's align_corners=False;
            "legacy" at i s: TensorFlow 1's resize_bilinear, in which FVD was defined; "align_corners" at
            i (n - 1) / (m - 1): Chainer's resize_images.
    """
    if tuple(frames.shape[-2:]) == (height, width):
        return frames  # all three conventions agree
    if convention == "legacy":
        return _legacy(_legacy(frames, height, dim=2), width, dim=3)
    return F.interpolate(frames, (height, width), mode="bilinear", align_corners=convention == "align_corners")


def _legacy(frames: Tensor, length: int, dim: int) -> Tensor:
    """Along one axis; the last input pixel is held beyond its place."""
    size = frames.shape[dim]
    place = torch.arange(length, dtype=torch.float32, device=frames.device) * (size / length)
    low = place.floor().long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    share = (place - low).to(frames.dtype)
    share = share.view(-1, *[1] * (frames.ndim - 1 - dim))
    return frames.index_select(dim, low) * (1 - share) + frames.index_select(dim, high) * share


def fit_square(frames: Tensor, side: int, convention: Convention, crop: bool) -> Tensor:
    """Frames (n, c, h, w) -> (n, c, side, side).

    Args:
        crop: shrink or enlarge the shorter side to `side` (the other in proportion, rounded up), then cut out the
            middle; else both sides are resized, whatever the proportions.
    """
    height, width = frames.shape[-2:]
    if not crop or height == width:
        return resize(frames, side, side, convention)
    tall, wide = (-(-length * side // min(height, width)) for length in (height, width))
    resized = resize(frames, tall, wide, convention)
    top, left = (tall - side) // 2, (wide - side) // 2
    return resized[..., top : top + side, left : left + side]
