"""Attention within frames, along time, and among all places of a clip, by what is fastest on each device."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvdm.layers import Linear

_LONG = 128  # places, from which on products of matrices in bf16 are the fastest attention on a CPU
_LONGEST = 1024  # places, up to which they are taken: they make all weights of attention at once
_FREQUENCIES = 100.0  # RoPE's base: latents are short, of tens of frames and tens of rows
Turns = dict[int, Tensor]  # RoPE's angles (2, places, d) by the width d of a head: those of all blocks are made once


class SelfAttention(nn.Module):
    """Its heads: the layers before and after them, and what normalises queries and keys."""

    norm: nn.LayerNorm

    def __init__(self, channels: int, head_dim: int, qk_norm: bool = False, norm: nn.LayerNorm | None = None) -> None:
        super().__init__()
        self.heads = max(channels // head_dim, 1)
        self.head_width = channels // self.heads
        if norm is not None:  # first, since checkpoints keep the optimiser's state in the order of parameters
            self.norm = norm
        self.qkv = Linear(channels, 3 * channels)
        self.out = Linear(channels, channels)
        self.norm_qk = HeadNorm(self.head_width) if qk_norm else nn.Identity()


class Attention(SelfAttention):
    """Self-attention within each frame or along time at each place, added to its input.

    Along time, queries and keys are rotated by their frame number (RoPE, Su et al. 2021, eq. 15), so any length works.
    In space, the zero padding of the convolutions tells positions apart.
    """

    def __init__(self, channels: int, head_dim: int, qk_norm: bool = False) -> None:
        super().__init__(channels, head_dim, qk_norm, nn.LayerNorm(channels))

    def forward(self, x: Tensor, turns: Tensor | None = None) -> Tensor:
        """(b, c, t, h, w), unchanged: along time with `turns_of` its frames and `head_width`, else within frames."""
        # Linear layers see contiguous (b, t, h, w, c): on (n, few, c) slices they fall to slow paths.
        tokens = x.permute(0, 2, 3, 4, 1)  # a view where x is channels-last
        qkv = self.qkv(self.norm(tokens)).unflatten(-1, (3, self.heads, -1))  # (b, t, h, w, 3, n, d)
        if turns is None:
            parts = _laid_out(qkv.permute(4, 0, 1, 5, 2, 3, 6), places=2).flatten(4, 5)  # (3, b, t, n, h w, d)
            q, k = self.norm_qk(parts[:2])
            out = _attend(q, k, parts[2]).unflatten(3, x.shape[3:]).permute(0, 1, 3, 4, 2, 5)
        else:
            parts = _laid_out(qkv.permute(4, 0, 2, 3, 5, 1, 6), places=1)  # (3, b, h, w, n, t, d)
            q, k = _rotate(self.norm_qk(parts[:2]), turns)
            out = _attend(q, k, parts[2]).permute(0, 4, 1, 2, 3, 5)
        out = out.to(qkv.dtype, memory_format=torch.contiguous_format).flatten(4)  # (b, t, h, w, n d)
        return x + self.out(out).permute(0, 4, 1, 2, 3)


class JointAttention(SelfAttention):
    """Self-attention among all places of a clip, queries and keys rotated by frame, row and column (RoPE)."""

    def forward(self, tokens: Tensor, turns: Tensor) -> Tensor:
        """(b, t, h, w, c), unchanged, with `turns_of_places` of its extent and `head_width`."""
        qkv = self.qkv(tokens).flatten(1, 3).unflatten(-1, (3, self.heads, -1))  # (b, n, 3, heads, d)
        parts = _laid_out(qkv.permute(2, 0, 3, 1, 4), places=1)  # (3, b, heads, n, d)
        q, k = _rotate(self.norm_qk(parts[:2]), turns)
        out = _attend(q, k, parts[2]).transpose(1, 2).to(qkv.dtype).reshape(tokens.shape)
        return self.out(out)


class HeadNorm(nn.Module):
    """Layer norm of each head's queries and keys, in whatever precision they come (see `_laid_out`)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries, self.keys = (nn.Parameter(torch.ones(width)) for _ in range(2))  # vectors: not for Muon

    def forward(self, x: Tensor) -> Tensor:
        """(2, ..., d), unchanged."""
        gains = (self.queries.to(x.dtype), self.keys.to(x.dtype))
        normalised = [F.layer_norm(part, part.shape[-1:], gain) for part, gain in zip(x, gains, strict=True)]
        return torch.stack(normalised).to(x.dtype)


def _laid_out(qkv: Tensor, places: int) -> Tensor:
    """Ready for `_attend`, in one pass: on a CPU contiguous and, where that is faster, in single precision.

    torch's bf16 attention of short sequences on a CPU is up to five times slower than that in single precision. The
    sequences lie along so many axes (`places`) before the last.
    """
    if qkv.device.type != "cpu":
        return qkv
    kept = torch.is_autocast_enabled("cpu") or _as_products(qkv, math.prod(qkv.shape[-1 - places : -1]))
    single = qkv.dtype == torch.bfloat16 and not kept
    return qkv.to(torch.float32 if single else qkv.dtype, memory_format=torch.contiguous_format)


def _as_products(x: Tensor, length: int) -> bool:
    """Whether attention of sequences so long is fastest as products of matrices: in bf16 on a CPU.

    Without gradients that is from `_LONG` on. With them always: the backward pass of torch's own attention takes
    three to ten times as long. Beyond `_LONGEST` all weights of attention at once would take too much memory.
    """
    if x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return False
    return length <= _LONGEST and (torch.is_grad_enabled() or length >= _LONG)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (..., n, d) each, by what is fastest."""
    if _as_products(q, q.shape[-2]):
        queries, keys, values = (x.flatten(0, -3) for x in (q, k, v))
        exact: AbstractContextManager[object] = nullcontext()
        if torch.is_grad_enabled():  # scores of a hundred and more, rounded to bf16, differ by halves
            queries, keys, exact = queries.float(), keys.float(), torch.autocast(q.device.type, enabled=False)
        scale, start = q.shape[-1] ** -0.5, queries.new_zeros(1, 1, 1)
        with exact:
            scores = torch.baddbmm(start, queries, keys.transpose(1, 2), beta=0, alpha=scale)
        return torch.bmm(scores.softmax(-1).to(values), values).view(q.shape)
    queries, keys, values = (x.flatten(0, -4) for x in (q, k, v))  # the fast kernels want four dimensions
    return F.scaled_dot_product_attention(queries, keys, values).view(q.shape)


def turns_of(frames: int, width: int, device: torch.device) -> Tensor:
    """Cosines and signed sines (2, t, d) of RoPE's angles m * theta_i, m being the frame's number."""
    return _as_turns(_angles(frames, width // 2, device))


def turns_of_places(extent: tuple[int, int, int], width: int, device: torch.device) -> Tensor:
    """As `turns_of`, (2, t h w, d), for all places of a clip of this extent.

    A quarter of the pairs turn with the frame, the others by halves with row and column (Heo et al. 2024, "Rotary
    Position Embedding for Vision Transformer", section 3.2, with an axis more).
    """
    pairs = width // 2
    frame = max(pairs // 4, 1)
    row = (pairs - frame) // 2
    shares, angles = (frame, row, pairs - frame - row), []
    for axis, (length, share) in enumerate(zip(extent, shares, strict=True)):
        shape = [1, 1, 1, share]
        shape[axis] = length
        angles.append(_angles(length, share, device).view(shape).expand(*extent, share))
    return _as_turns(torch.cat(angles, -1).flatten(0, 2))


def _angles(length: int, pairs: int, device: torch.device) -> Tensor:
    """Angles (length, pairs) of RoPE: from one radian a place down to nearly one of `_FREQUENCIES`."""
    theta = _FREQUENCIES ** (-torch.arange(pairs, device=device) / max(pairs, 1))
    return torch.arange(length, device=device)[:, None] * theta


def _as_turns(angles: Tensor) -> Tensor:
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)])


def _rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + d/2}) of (..., n, d) by the angles of `turns_of`."""
    cos, sin = turns.to(x.dtype)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
