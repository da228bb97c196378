"""What a training says: averages of figures, `log.jsonl`, the progress bar."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from vqvdm.errors import printable
from vqvdm.files import write_text

SILENCE = 60.0  # seconds without a line, after which somebody who reads a log would think that nothing happens


class Meter:
    """Averages of figures over updates and processes; the device is read only when they are."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, figures: Mapping[str, Tensor | float]) -> None:
        """Take in the figures of one update (scalars)."""
        for name, value in figures.items():
            value = value.detach().float() if isinstance(value, Tensor) else torch.tensor(float(value))
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """The averages; every process must call it, and gets the same."""
        if not self._sums:
            return {}
        means = [self._sums[name].to(accelerator.device) / self._counts[name] for name in self._sums]
        values = accelerator.reduce(torch.stack(means), "mean").tolist()
        figures = dict(zip(self._sums, values, strict=True))
        self.__init__()
        return figures


class Log:
    """`log.jsonl`: one line a record, `{"stage": ..., "step": ..., figure: value, ...}`; other processes write nothing.

    Lines of this stage after `step` come from work that was lost with an interruption; they are dropped.
    """

    def __init__(self, path: Path, stage: str, step: int, accelerator: Accelerator) -> None:
        self.path, self.stage, self.accelerator = path, stage, accelerator
        if accelerator.is_main_process and path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if self._is_kept(line, step)]
            write_text(path, "".join(f"{line}\n" for line in kept))

    def _is_kept(self, line: str, step: int) -> bool:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # half a line, from a killed process
            return False
        if not isinstance(record, dict) or not {"stage", "step"} <= set(record):
            return False
        return record["stage"] != self.stage or record["step"] <= step

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add one record, here and in the trackers."""
        if not self.accelerator.is_main_process:
            return
        record = {"stage": self.stage, "step": step, **{name: _shortened(value) for name, value in figures.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.accelerator.log({f"{self.stage}/{name}": value for name, value in figures.items()}, step=step)


def _shortened(value: float) -> float | None:
    """Six significant digits; JSON has no word for NaN and infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


class Progress:
    """A bar with the remaining time on a terminal; elsewhere a line for figures, or a minute. Quiet if asked."""

    def __init__(self, description: str, step: int, steps: int, quiet: bool) -> None:
        self.description, self.step, self.steps, self.quiet = description, step, steps, quiet
        self.started_at, self.started = step, time.perf_counter()
        self.told = self.started  # when the last line was printed
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=steps,
            initial=step,
            desc=description,
            unit="step",
            disable=quiet or not self.terminal,
            dynamic_ncols=True,
        )

    def update(self, step: int) -> None:
        """`step` updates are done."""
        self.bar.update(step - self.step)
        self.step = step
        if not self.terminal and time.perf_counter() - self.told > SILENCE:
            self.show({})

    def show(self, figures: Mapping[str, float]) -> None:
        """Show the latest figures."""
        if self.terminal:
            self.bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items()})
            return
        done = max(self.step - self.started_at, 1)
        remaining = (time.perf_counter() - self.started) / done * (self.steps - self.step)
        listed = [f"{name} {value:.4g}" for name, value in figures.items()]
        remains = f"remaining {tqdm.format_interval(remaining)}"
        self.say("  ".join([f"{self.description} {self.step}/{self.steps}", *listed, remains]))

    def say(self, message: str) -> None:
        """One line, above the bar."""
        if not self.quiet:
            tqdm.write(printable(message), file=sys.stderr)
        self.told = time.perf_counter()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()
