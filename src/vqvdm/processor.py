"""What the processor does fast: bf16 only where it has instructions for it, and layers with packed weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

# (data pointer, version, shape of the input) and the packed weight of each layer, or None where it fails; None outside
# of `packed_weights`.
_Cache = dict[int, tuple[tuple[Any, ...], Tensor | None]]
_packed: ContextVar[_Cache | None] = ContextVar("packed", default=None)


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 pays: on x86 processors without bf16 instructions it is up to a hundred times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        abilities = torch.cpu.get_capabilities()
        is_x86 = abilities.get("architecture") == "x86_64"
        return not is_x86 or bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
    return True


@contextmanager
def packed_weights() -> Iterator[None]:
    """Within it, layers on the CPU keep their weights in the order that oneDNN computes in.

    Without it that order is made anew in every call, which at few positions takes as long as the layer itself, and
    single-precision convolutions of one clip run on a path that is three times slower. Results are the same. What
    is packed is let go at the end, so it cannot outlive a change of the weights; a weight changed within is packed
    again.
    """
    if _packed.get() is not None:
        yield
        return
    token = _packed.set({})
    try:
        yield
    finally:
        _packed.reset(token)


def keep_packed() -> None:
    """As `packed_weights`, from here to the end of the current context (of `contextvars`)."""
    for dtype in (torch.float32, torch.bfloat16):
        _can_pack(dtype)  # now, so that nothing counts this trial as part of a first convolution
    _packed.set({})


def packed_convolution(layer: nn.Conv3d, x: Tensor, plus: Tensor | None = None) -> Tensor | None:
    """The convolution (b, c, t, h, w) -> (b, out, t', h', w') with packed weights; None where the plain one is right.

    `plus`, of the result's shape, is added before rounding. The plain one is right outside of `packed_weights`, where
    gradients are wanted, under autocast, while compiling, on other devices, for weights that are no plain tensors
    (such as quantised ones), and where this torch cannot pack.
    """
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return None
    weight = _packed_weight(layer, x, _pack_convolution)
    if weight is None:
        return None
    try:
        return _convolve(layer, x, weight, plus)
    except RuntimeError:  # torch 2.11 cannot at some sizes ("could not create a memory")
        _leave_plain(layer)
        return None


def packed_linear(layer: nn.Linear, x: Tensor) -> Tensor | None:
    """The linear layer (..., c) -> (..., out) with packed weights; None where the plain one is right, as above."""
    weight = _packed_weight(layer, x, _pack_linear)
    return None if weight is None else _multiply(layer, x, weight)


def _packed_weight(layer: Any, x: Tensor, pack: Callable[[Any, torch.Size], Tensor]) -> Tensor | None:
    """The layer's packed weight for this input; None if it cannot be used."""
    if torch.compiler.is_compiling():  # first: compilers cannot look into what follows
        return None
    kept, weight = _packed.get(), layer.weight
    if kept is None or x.device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return None
    if type(weight) is not nn.Parameter or weight.dtype != x.dtype or not _can_pack(x.dtype):
        return None
    state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version, x.shape)
    if id(layer) not in kept or kept[id(layer)][0] != state:
        kept[id(layer)] = state, pack(layer, x.shape)
    return kept[id(layer)][1]


def _leave_plain(layer: Any) -> None:
    """From now on the layer's plain computation, till its input has another size."""
    kept = _packed.get()
    if kept is not None:
        kept[id(layer)] = kept[id(layer)][0], None


def _pack_convolution(layer: nn.Conv3d, shape: torch.Size) -> Tensor:
    return torch.ops.mkldnn._reorder_convolution_weight(layer.weight, *_geometry(layer), list(shape))


def _pack_linear(layer: nn.Linear, shape: torch.Size) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(layer.weight, math.prod(shape[:-1]))


def _geometry(layer: nn.Conv3d) -> tuple[Any, ...]:
    return layer.padding, layer.stride, layer.dilation, layer.groups


def _convolve(layer: nn.Conv3d, x: Tensor, weight: Tensor, plus: Tensor | None = None) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last_3d)  # the order of the result, too
    operation, geometry = torch.ops.mkldnn._convolution_pointwise, _geometry(layer)
    if plus is None:
        return operation(x, weight, layer.bias, *geometry, "none", [], "")
    plus = plus.contiguous(memory_format=torch.channels_last_3d)
    return operation.binary(x, plus, weight, layer.bias, *geometry, "add", 1.0, None, [], None)


def _multiply(layer: nn.Linear, x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")


@cache
def _can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch packs, and rightly: its functions for that are not public."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16 and not fast_bf16(torch.device("cpu")):
        return False
    convolution, linear = nn.Conv3d(16, 16, 3, padding=1, dtype=dtype), nn.Linear(16, 16, dtype=dtype)
    for layer in (convolution, linear):
        nn.init.constant_(layer.weight, 0.01)
    x = torch.linspace(-1, 1, 2 * 16 * 2 * 4 * 4).view(2, 16, 2, 4, 4).to(dtype)
    tokens = x.view(-1, 16)
    try:
        with torch.no_grad():
            convolved = _convolve(convolution, x, _pack_convolution(convolution, x.shape), x)
            multiplied = _multiply(linear, tokens, _pack_linear(linear, tokens.shape))
            pairs = (convolved, x + nn.Conv3d.forward(convolution, x)), (multiplied, nn.Linear.forward(linear, tokens))
            return all(torch.allclose(packed, plain, atol=0.02) for packed, plain in pairs)
    except (AttributeError, RuntimeError):
        return False
