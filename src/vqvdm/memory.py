"""How much memory there is, and how much a run takes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import torch

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")  # Linux's


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that one run needs at its peak beyond what is there before; None where the system does not tell.

    On a GPU of its tensors, else of this process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        _give_back()
        (_PROC / "self" / "clear_refs").write_text("5")  # sets the peak to what is in use now (man 5 proc)
        before = _kilobytes(_PROC / "self" / "status", "VmRSS")
    except OSError:
        before = None
    run()
    return None if before is None else max(_kilobytes(_PROC / "self" / "status", "VmHWM") - before, 0) * 1024


def available_memory(device: torch.device, proc: Path = _PROC, cgroup: Path = _CGROUP) -> int:
    """Bytes that this process can still take: of a GPU what is free or kept by torch, else of the machine.

    A container's limit (control groups, version 2) counts as the machine's.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        left = _kilobytes(proc / "meminfo", "MemAvailable") * 1024
    except OSError:  # not Linux
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return left if limit == "max" else min(left, max(int(limit) - int(used), 0))
    except OSError:
        return left


def _give_back() -> None:
    """Let the C library return what earlier runs have freed, which would hide what this one takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _kilobytes(path: Path, field: str) -> int:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise OSError(f"{path} has no {field}")
