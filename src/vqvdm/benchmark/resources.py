"""What a run takes besides time and memory: operations, bytes that move, and energy where the machine tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vqvdm.flops import flop_counter

POWERCAP = Path("/sys/class/powercap")  # of Linux: energy of each processor package, for root


@dataclass(frozen=True)
class Work:
    """What one run computes and moves.

    Attributes:
        flops: products and sums counted apart, in convolutions, linear layers and attention.
        moved: bytes that its operations read and write, each tensor once an operation. What stays in the processor's
            caches between two of them is counted, too.
    """

    flops: float
    moved: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.moved + other.moved)

    def __sub__(self, other: Work) -> Work:
        return self + -1.0 * other

    def __rmul__(self, number: float) -> Work:
        return Work(number * self.flops, number * self.moved)


def work_of(run: Callable[[], object]) -> Work:
    """Count one run, as torch executes it."""
    with flop_counter() as flops, _Traffic() as traffic:
        run()
    return Work(float(flops.get_total_flops()), float(traffic.moved))


class _Traffic(TorchDispatchMode):
    """Adds up the bytes that operations read and write; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        returned = func._schema.returns
        view = bool(returned) and all(value.alias_info and not value.alias_info.is_write for value in returned)
        if not view and not func._schema.name.startswith("aten::empty"):
            read = args[1:] if func._schema.name in _OVERWRITING else args
            leaves = tree_leaves((read, kwargs, result))
            self.moved += sum(_bytes(leaf) for leaf in leaves if isinstance(leaf, Tensor))
        return result


_OVERWRITING = ("aten::copy_", "aten::fill_", "aten::zero_")  # do not read what they are called on


def _bytes(tensor: Tensor) -> int:
    """Of what it shows; an expanded dimension is stored once."""
    return tensor.element_size() * math.prod(n for n, s in zip(tensor.shape, _strides(tensor), strict=True) if s)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    # Packed weights have no strides.
    return (1,) * tensor.dim() if tensor.layout is not torch.strided else tensor.stride()


def energy_meter(device: torch.device, powercap: Path = POWERCAP) -> Callable[[], float] | None:
    """A function that gives the joules spent since its last call, by all that runs there; None if nothing tells.

    On a GPU that is its board, by NVML (package nvidia-ml-py); else the processor's packages, by Linux's powercap.
    """
    if device.type == "cuda":
        return _board_meter(device)
    try:
        # Packages alone: a package holds its parts, and the whole system the packages.
        zones = [z for z in sorted(powercap.glob("intel-rapl:*")) if (z / "name").read_text().startswith("package")]
        ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        counts = [int((zone / "energy_uj").read_text()) for zone in zones]
    except (OSError, ValueError):
        return None

    def spent() -> float:
        total = 0
        for number, zone in enumerate(zones):
            now = int((zone / "energy_uj").read_text())
            total += (now - counts[number]) % (ranges[number] + 1)  # it starts over at its range
            counts[number] = now
        return total / 1e6

    return spent if zones else None


def _board_meter(device: torch.device) -> Callable[[], float] | None:
    try:
        import pynvml  # pyrefly: ignore[missing-import]

        pynvml.nvmlInit()
        board = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda._get_nvml_device_index(device))
        last = pynvml.nvmlDeviceGetTotalEnergyConsumption(board)
    except Exception:  # noqa: BLE001  absent, or any of NVML's own errors: then nothing tells
        return None

    def spent() -> float:
        nonlocal last
        before, last = last, pynvml.nvmlDeviceGetTotalEnergyConsumption(board)
        return (last - before) / 1e3

    return spent
