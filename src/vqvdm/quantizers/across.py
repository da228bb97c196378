"""Sums and collections over all processes of a training."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of `value` over all processes; changes `value` in place."""
    if distributed():
        dist.all_reduce(value)
    return value


def from_all_processes(value: Tensor) -> Tensor:
    """Values of one shape from every process, one after the other along the first axis."""
    if not distributed():
        return value
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)
