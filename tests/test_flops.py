"""Counted operations against closed forms and against what torch counts on other devices."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vqvdm.flops import flop_counter
from vqvdm.layers import Conv3d, Linear
from vqvdm.processor import packed_weights


@pytest.mark.parametrize("trained", [False, True])
def test_attention_counts_on_a_cpu_as_elsewhere(trained: bool) -> None:
    """Two products of n x n x d for each head, and four more backward."""
    counted = {}
    for device in ("cpu", "meta"):
        q, k, v = (torch.randn(2, 3, 64, 16, device=device, requires_grad=trained) for _ in range(3))
        with flop_counter() as counter:
            result = F.scaled_dot_product_attention(q, k, v)
            if trained:
                result.sum().backward()
        counted[device] = counter.get_total_flops()
    once = 2 * (2 * 2 * 3 * 64 * 64 * 16)
    assert counted["meta"] == (3 if trained else 1) * once
    # Fused kernels compute the scores again for the backward pass, one product more, and count it.
    assert counted["cpu"] == (3.5 if trained else 1) * once


@torch.no_grad()
def test_packed_layers_count_as_plain_ones() -> None:
    network = nn.Sequential(Conv3d(8, 16, 3, padding=1), nn.Flatten(2))
    tokens = Linear(16, 24)
    x, counted = torch.randn(2, 8, 4, 6, 6), []
    for weights in (nullcontext, packed_weights):
        with weights():
            tokens(network(x).transpose(1, 2))  # packs, and tries once whether it can
            with flop_counter() as counter:
                tokens(network(x).transpose(1, 2))
        counted.append(counter.get_total_flops())
    assert counted == [2 * 2 * 144 * 16 * (8 * 27 + 24)] * 2
