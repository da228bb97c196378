"""Which of several processes (torchrun, accelerate launch) this is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import PartialState

# How long processes wait for one that indexes videos or hashes a cache for all. NCCL's own ten minutes are too few for
# terabytes; one that has died does not keep the others so long, for their launcher ends them.
PATIENCE = timedelta(hours=2)


def on_cpu() -> bool:
    """Whether there is nothing but the CPU; accelerate would take each process for the only one unless it is told."""
    return not torch.accelerator.is_available()


def this_process() -> PartialState:
    """Its number, how many there are, its device; the first call makes it known to the others."""
    return PartialState(cpu=on_cpu(), timeout=PATIENCE)


@contextmanager
def one_of_each_host_first() -> Iterator[None]:
    """A block that one process of each host passes before the others: it makes the index of a folder, they find it.

    Not one of all hosts: the index is kept in the user's cache, which may lie on each host's own disk.
    """
    with this_process().local_main_process_first():
        yield
