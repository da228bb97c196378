"""Counting operations: torch's counter, and what it leaves out on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def flop_counter() -> FlopCounterMode:
    """Counts products and sums apart, in convolutions, linear layers and attention, within a `with` block."""
    return FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)


def _packed(*shapes: Any, out_shape: torch.Size) -> int:
    """Of a layer with packed weights: product and sum for each weight that each output meets."""
    # Input, what is added if anything is, weight; then a bias of one dimension, and numbers.
    weight = [shape for shape in shapes if isinstance(shape, torch.Size) and len(shape) > 1][-1]
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


_FORMULAS: dict[str, Callable[..., int]] = {
    "mkldnn._convolution_pointwise": _packed,
    "mkldnn._linear_pointwise": _packed,
    "aten._scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
}


def _operation(name: str) -> Any:
    space, _, word = name.partition(".")
    return getattr(getattr(torch.ops, space), word, None)


_UNCOUNTED = {_operation(name): formula for name, formula in _FORMULAS.items() if _operation(name) is not None}
