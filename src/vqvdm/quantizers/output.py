"""What a quantiser returns, and the counts behind it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class QuantizerOutput(NamedTuple):
    """What a quantiser makes of a batch."""

    quantized: Tensor  # (b, c, t, h, w), dtype of the input; its gradient passes through to the input
    tokens: Tensor  # (b, t, h, w) int64, 0..num_codes-1; of several codebooks (b, t, h, w, books)
    loss: Tensor  # scalar float32: weighted commitment loss, 0 for FSQ
    perplexity: Tensor  # scalar float32, 1..num_codes: exp of the entropy of the codes' shares in this batch
    usage: Tensor  # scalar float32, 0..1: fraction of the codes that occur in this batch


def straight_through(continuous: Tensor, quantized: Tensor) -> Tensor:
    """Exactly the value of `quantized`, with the gradient of `continuous`."""
    return quantized.detach() + (continuous - continuous.detach())


def rotated_through(continuous: Tensor, quantized: Tensor) -> Tensor:
    """Exactly the value of `quantized` (b, c, ...), with the gradient of the rotation and scaling that lead to it.

    Gradients so keep their angle to the vector (Fifty et al. 2025, "Restructuring Vector Quantization with the Rotation
    Trick", section 4.3): those at different places of a code's cell differ, which `straight_through` makes equal.
    """
    e, q = continuous, quantized.detach()
    with torch.no_grad():
        e_length, q_length = (torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-6) for x in (e, q))
        e_unit, q_unit = e / e_length, q / q_length
        middle = F.normalize(e_unit + q_unit, dim=1, eps=1e-6)
        scale = q_length / e_length
    # R e = e - 2 m (m.e) + 2 q^ (e^.e): two reflections
    turned = e - 2 * middle * (middle * e).sum(1, keepdim=True) + 2 * q_unit * (e_unit * e).sum(1, keepdim=True)
    return straight_through(scale * turned, q)


def count(tokens: Tensor, num_codes: int) -> Tensor:
    """How often each code occurs in `tokens` (n,): (num_codes,) float32."""
    ones = torch.ones(tokens.shape, device=tokens.device)
    return torch.zeros(num_codes, device=tokens.device).index_add_(0, tokens, ones)


def occurrences(tokens: Tensor) -> Tensor:
    """How often each code that occurs does so: one number per code and zeros, (n,) float32 for n tokens.

    For code counts too large for a table; all shapes are static, so it runs on the meta device and compiled.
    """
    ordered = tokens.flatten().sort().values
    group = F.pad((ordered.diff() != 0).long().cumsum(0), (1, 0))  # (n,) number of the token's code in order
    return count(group, len(ordered))


def spread(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Perplexity and usage of a batch from its counts (num_codes,)."""
    shares = counts / counts.sum()
    entropy = -torch.xlogy(shares, shares).sum()
    return entropy.exp(), (counts > 0).float().mean()
