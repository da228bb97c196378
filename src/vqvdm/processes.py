"""Which of several processes (torchrun, accelerate launch) this is."""

from __future__ import annotations

import torch
from accelerate import PartialState


def on_cpu() -> bool:
    """Whether there is nothing but the CPU; accelerate would take each process for the only one unless it is told."""
    return not torch.accelerator.is_available()


def this_process() -> PartialState:
    """Its number, how many there are, its device."""
    return PartialState(cpu=on_cpu())
