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
    spans = [_spans(n, size, shared, s.denominator) for n, size, shared, s in zip(x.shape[2:], tile, overlap, scale)]
    total = weights = None
    for corner in product(*spans):
        window = tuple(slice(start, stop) for start, stop in corner)
        part = function(x[(..., *window)])
        target = tuple(slice(int(start * s), int(stop * s)) for (start, stop), s in zip(corner, scale))
        if total is None:
            shape = [int(n * s) for n, s in zip(x.shape[2:], scale)]
            total = part.new_zeros((*part.shape[:2], *shape), dtype=torch.float32)
            weights = part.new_zeros(shape, dtype=torch.float32)
        weight = torch.ones((), device=part.device)
        for axis, (cut, n, shared, s) in enumerate(zip(target, total.shape[2:], overlap, scale)):
            ramp = _ramp(cut, n, int(shared * s)).to(part.device)
            weight = weight[..., None] * ramp if axis else ramp
        total[(..., *target)] += part.float() * weight
        weights[target] += weight
    assert total is not None and weights is not None
    return (total / weights).to(part.dtype)


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
