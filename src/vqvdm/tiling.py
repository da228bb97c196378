"""Work through a long or large grid in overlapping tiles, blended so that no seam shows."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product

import torch
from torch import Tensor

Extent = tuple[int, int, int]


def blend_tiles(
    function: Callable[[Tensor], Tensor], x: Tensor, tile: Extent, overlap: Extent, scale: tuple[Fraction, ...]
) -> Tensor:
    """`function(x)` computed tile by tile; overlapping results are mixed with weights that rise and fall linearly.

    Args:
        function: maps (b, c, t, h, w) to (b, c', t*s, h*s, w*s) with s from `scale`, for any extent up to `tile`.
        x: (b, c, t, h, w).
        tile: largest extent (t, h, w) given to `function`.
        overlap: positions that neighbouring tiles share at least, smaller than `tile`.
        scale: output positions per input position in t, h, w. Tile starts are multiples of its denominator.

    Returns:
        (b, c', t*s, h*s, w*s) on the device of x.
    """
    axes = zip(x.shape[2:], tile, overlap, scale, strict=True)
    spans = [_spans(length, size, shared, s.denominator) for length, size, shared, s in axes]
    extent = [int(length * s) for length, s in zip(x.shape[2:], scale, strict=True)]
    weights = torch.zeros(extent, device=x.device)
    total = x.new_zeros(())
    for corner in product(*spans):
        window = tuple(slice(start, stop) for start, stop in corner)
        part = function(x[(..., *window)])
        if total.ndim == 0:
            total = torch.zeros((*part.shape[:2], *extent), device=part.device)
        target = tuple(slice(int(a * s), int(b * s)) for (a, b), s in zip(corner, scale, strict=True))
        t, h, w = (
            _ramp(cut, length, int(shared * s)).to(part.device)
            for cut, length, shared, s in zip(target, extent, overlap, scale, strict=True)
        )
        weight = t[:, None, None] * h[:, None] * w
        total[(..., *target)] += part.float() * weight
        weights[target] += weight
    return (total / weights).to(x.dtype)


def _spans(length: int, tile: int, overlap: int, step: int) -> list[tuple[int, int]]:
    """Intervals of length `tile` that cover 0..length and share at least `overlap`, starting at multiples of `step`."""
    tile = min(tile, length) // step * step or length
    if tile >= length:
        return [(0, length)]
    advance = max((tile - overlap) // step, 1) * step
    starts = [*range(0, length - tile, advance), length - tile]
    return [(start, start + tile) for start in starts]


def _ramp(cut: slice, length: int, overlap: int) -> Tensor:
    """Weights of a tile along one axis: 1 inside, falling linearly towards each edge that is not the grid's own."""
    ticks = torch.arange(cut.stop - cut.start, dtype=torch.float32)
    weight = torch.ones_like(ticks)
    if overlap and cut.start > 0:
        weight = torch.minimum(weight, (ticks + 1) / (overlap + 1))
    if overlap and cut.stop < length:
        weight = torch.minimum(weight, (ticks.flip(0) + 1) / (overlap + 1))
    return weight
