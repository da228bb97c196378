"""Times of several things, taken by turns, so that a machine whose speed drifts treats all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm

from vqvdm.benchmark.resources import energy_meter
from vqvdm.memory import peak_memory

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition of one thing; bytes at its peak and joules of one run, where the machine tells."""

    seconds: tuple[float, ...]
    memory: int | None = None
    joules: float | None = None

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def spread(self) -> float:
        """Distance of the quartiles, over the median."""
        low, high = np.quantile(self.seconds, [0.25, 0.75])
        return float((high - low) / self.median)

    def times(self, number: float) -> Timing:
        """Of `number` runs in a row."""
        return Timing(tuple(number * seconds for seconds in self.seconds))


def quicker(first: Timing, second: Timing) -> Timing:
    """The case whose median is smaller."""
    return min(first, second, key=lambda timing: timing.median)


def alternate(
    cases: Mapping[Key, Callable[[], object]],
    rounds: int,
    device: torch.device,
    progress: bool = True,
    repeats: Mapping[Key, int] | None = None,
) -> dict[Key, Timing]:
    """Run each case once to warm up, then all of them in turn, `rounds` times.

    Args:
        cases: by name; what they return is thrown away.
        rounds: repetitions that count, at least 1.
        device: waited for before and after each.
        progress: show a bar.
        repeats: how often in a row some of them run each time, of which the mean is taken; others once.
    """
    taken: dict[Key, list[float]] = {name: [] for name in cases}
    joules: dict[Key, list[float]] = {name: [] for name in cases}
    memory: dict[Key, int | None] = {}
    spent = energy_meter(device)
    with tqdm(total=len(cases) * (rounds + 1), desc="benchmark", unit="run", disable=not progress) as bar:
        for number in range(rounds + 1):
            for name, run in cases.items():
                bar.set_postfix_str(str(name))
                if number == 0:
                    memory[name] = peak_memory(run, device)
                else:
                    times = (repeats or {}).get(name, 1)
                    _ = spent and spent()
                    taken[name].append(timed(run, device, times))
                    joules[name] += [spent() / times] if spent else []
                bar.update(1)
    return {
        name: Timing(tuple(seconds), memory[name], float(np.mean(joules[name])) if spent else None)
        for name, seconds in taken.items()
    }


def timed(run: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Seconds of one run, until the device has done it; the mean of several in a row."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        run()
    _wait(device)
    return (time.perf_counter() - start) / times


def ratios(above: Timing, below: Timing) -> Timing:
    """Ratio of two cases, round by round: what drifts from round to round falls out."""
    return Timing(tuple(a / b for a, b in zip(above.seconds, below.seconds, strict=True)))


def fractions(work: float, timing: Timing, ceiling: Sequence[float]) -> Timing:
    """Share of the ceiling, round by round.

    Args:
        work: of one run, in the ceiling's unit times seconds: FLOPs for FLOPs a second.
        ceiling: reached in each round.
    """
    return Timing(tuple(work / s / best for s, best in zip(timing.seconds, ceiling, strict=True)))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
