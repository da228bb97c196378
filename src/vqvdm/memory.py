"""How much memory there is, and how much a run takes."""

from __future__ import annotations

import ctypes
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
    status = _PROC / "self" / "status"
    try:
        _give_back()
        (_PROC / "self" / "clear_refs").write_text("5")  # sets the peak to what is in use now (man 5 proc)
        before = _kilobytes(status, "VmRSS")
        _kilobytes(status, "VmHWM")
    except OSError:  # not Linux
        run()
        return None
    run()
    return max(_kilobytes(status, "VmHWM") - before, 0) * 1024


def available_memory(device: torch.device, proc: Path = _PROC, cgroup: Path = _CGROUP) -> int | None:
    """Bytes that this process can still take: of a GPU what is free or kept by torch, else of the machine.

    A container's limit (control groups, version 2) counts as the machine's. None where the system does not tell.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        left = _kilobytes(proc / "meminfo", "MemAvailable") * 1024
    except OSError:  # not Linux
        return None
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        reclaimable = sum(
            int(line.split()[1])
            for line in (cgroup / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
        return left if limit == "max" else min(left, max(int(limit) - int(used) + reclaimable, 0))
    except (OSError, ValueError):
        return left


def total_memory(proc: Path = _PROC, cgroup: Path = _CGROUP) -> int | None:
    """Bytes of this machine's memory, or of the container's limit; None where the system does not tell."""
    try:
        total = _kilobytes(proc / "meminfo", "MemTotal") * 1024
    except OSError:  # not Linux
        return None
    try:
        return min(total, int((cgroup / "memory.max").read_text()))
    except (OSError, ValueError):  # no limit
        return total


def _give_back() -> None:
    """Let the C library return what earlier runs have freed, which would hide what this one takes."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # glibc's
    except (AttributeError, OSError, TypeError):  # another library, or another system
        return


def _kilobytes(path: Path, field: str) -> int:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise OSError(f"{path} has no {field}")
