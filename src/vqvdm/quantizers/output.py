"""What a quantiser returns, and the counts behind it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class QuantizerOutput(NamedTuple):
    """What a quantiser makes of a batch."""

    quantized: Tensor  # (b, c, t, h, w), dtype of the input; its gradient passes straight through to the input
    tokens: Tensor  # (b, t, h, w) int64, 0..part_codes-1; of several codebooks (b, t, h, w, books)
    loss: Tensor  # scalar float32: weighted commitment loss, 0 for FSQ
    perplexity: Tensor  # scalar float32, 1..num_codes: exp of the entropy of the codes' shares in this batch
    usage: Tensor  # scalar float32, 0..1: fraction of the codes that occur in this batch


def straight_through(continuous: Tensor, quantized: Tensor) -> Tensor:
    """Exactly the value of `quantized`, with the gradient of `continuous`."""
    return quantized.detach() + (continuous - continuous.detach())


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
