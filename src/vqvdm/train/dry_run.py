"""`--dry-run`: what a training would take, from a few updates that are thrown away."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqvdm.errors import InputError
from vqvdm.flops import flop_counter
from vqvdm.memory import available_memory, peak_memory
from vqvdm.processes import this_process
from vqvdm.recipe import TrainingRecipe
from vqvdm.train.loop import Stage
from vqvdm.train.order import Batch, Order, updates

_LONG = 15.0  # seconds of an update, beyond which no larger one is tried
_READ = 8  # clips whose reading is timed
_SHARE = 0.9  # of the memory that is left, which a batch may take
_PACE = 1e14  # FLOP/s for which the time is told: a tenth of what an H100 can do in bf16, at best


class RandomItems(Dataset[dict[str, Tensor]]):
    """A few clips, or latents, of random numbers under the names that training reads."""

    def __init__(self, name: str, shape: tuple[int, ...], classes: Sequence[str], length: int = 64) -> None:
        self.classes, self._length = tuple(classes), length
        self._name, self._item = name, torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Tensor]:
        return {self._name: self._item, "class_label": torch.tensor(0), "fps": torch.tensor(8.0)}


def last_batches(training: TrainingRecipe, dataset: Any, device: torch.device) -> tuple[int, list[Batch]]:
    """The last update's number, when all parts of the loss are at work, and its micro-batches."""
    order = Order(training.seed, len(dataset), training.batch, training.accumulate)
    last = training.steps - 1
    (batches,) = updates(order, dataset, last, last + 1, 0, device)
    return last, batches


@dataclass(frozen=True)
class Trial:
    """One micro-batch of an update: its clips, seconds, and bytes at the peak beyond weights and optimiser."""

    batch: int
    seconds: float
    memory: int | None


@dataclass(frozen=True)
class Work:
    """FLOPs, products and sums counted apart: of a clip, forward and backward, and of an update's steps (Muon's)."""

    clip: float
    update: float = 0.0


def dry_run(stage: Stage, dataset: Any, device: torch.device) -> list[str]:
    """Lines that say what the training would take; the stage's weights are spoilt.

    Args:
        stage: made of the recipe.
        dataset: as the training reads it.
        device: where it computes.

    Raises:
        InputError: not even one clip at a time fits; or there are several processes.
    """
    if this_process().num_processes > 1:  # each would go on for as long as its own clock and memory say
        raise InputError("--dry-run is of one process; start it without torchrun")
    training = stage.training
    try:
        work = work_of_update(stage, dataset, device)  # makes the optimiser's state as well
        free = available_memory(device)
        trials = [_trial(stage, 1, dataset, device)]
    except torch.OutOfMemoryError as error:
        raise InputError("not even one clip at a time fits into the memory; take a smaller network or clip") from error
    while trials[-1].batch < training.batch and 2 * trials[-1].seconds < _LONG and _fits(trials, free):
        try:
            trials.append(_trial(stage, min(2 * trials[-1].batch, training.batch), dataset, device))
        except torch.OutOfMemoryError:
            break
    most = None if free is None else largest_batch(trials, free)
    reading = _reading(dataset) if stage.workers else None
    return report(stage, trials, free, most, reading, work)


def largest_batch(trials: Sequence[Trial], free: int) -> int | None:
    """The largest batch whose memory fits, by a straight line through the last two trials; None if it is unknown.

    A single trial is taken to grow from nothing, which errs to the safe side.
    """
    seen = [(0, 0), *((trial.batch, trial.memory) for trial in trials if trial.memory is not None)]
    if len(seen) < 2:
        return None
    (b1, m1), (b2, m2) = seen[-2:]
    slope = (m2 - m1) / (b2 - b1)
    if slope <= 0:  # too small to be seen
        return None
    return max(math.floor((_SHARE * free - m2) / slope) + b2, 0)


def report(
    stage: Stage, trials: Sequence[Trial], free: int | None, most: int | None, reading: float | None, work: Work
) -> list[str]:
    """What was found, in words; `reading` is in clips a second."""
    training, last = stage.training, trials[-1]
    rate = last.batch / last.seconds
    clips = training.batch * training.accumulate
    whole = duration(training.steps * clips / rate)
    sizes = ", ".join(f"{name} {_millions(module)}" for name, module in stage.modules.items() if name != "ema")
    lines = [
        f"parameters: {sizes}",
        f"speed: {rate:.3g} clips/s in batches of {last.batch}; {training.steps} updates of {clips} clips take {whole}",
    ]
    total = training.steps * (clips * work.clip + work.update)
    steps = f" and {work.update / 1e9:.3g} an update (the optimiser)" if work.update else ""
    lines.append(
        f"work: {work.clip / 1e9:.3g} GFLOP a clip (convolutions and products, forward and backward){steps}, "
        f"{total / 1e18:.3g} EFLOP in all: {duration(total / _PACE)} at {_PACE / 1e12:g} TFLOP/s"
    )
    if reading is not None:
        processes = max(1, math.ceil(rate / reading))
        lines.append(f"reading: {reading:.3g} clips/s in one process; data.workers={processes} would keep up")
    if last.memory is not None and free is not None:
        lines.append(
            f"memory: {last.memory / 1e9:.2f} GB for a batch of {last.batch}, beside weights and optimiser; "
            f"{free / 1e9:.1f} GB are left"
        )
    key = f"{stage.name}.training"
    if most is None:
        return [*lines, "largest batch that fits: unknown, as this system does not tell how much memory a batch takes"]
    lines.append(f"largest batch that fits: about {most} ({key}.batch)")
    fitting = (n for n in range(1, training.batch + 1) if training.batch % n == 0 and training.batch // n <= most)
    parts = next(fitting, 0)
    if parts > 1:
        lines.append(
            f"the recipe's {training.batch} do not fit: {key}.batch={training.batch // parts} "
            f"{key}.accumulate={parts * training.accumulate} has the same clips and gradients"
        )
    return lines


def duration(seconds: float) -> str:
    """Of a training, in the unit that fits."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def work_of_update(stage: Stage, dataset: Any, device: torch.device) -> Work:
    """By torch's counter, of an update of one clip; its steps are taken once more, to be counted by themselves."""
    step, batches = last_batches(replace(stage.training, batch=1, accumulate=1), dataset, device)
    with flop_counter() as whole:
        stage.update(step, batches)
    with flop_counter() as steps:
        for optimizer in stage.optimizers.values():
            optimizer.step()
    return Work(float(whole.get_total_flops() - steps.get_total_flops()), float(steps.get_total_flops()))


def _trial(stage: Stage, batch: int, dataset: Any, device: torch.device) -> Trial:
    """Two updates on the same clips: one for the memory, one for the time."""
    step, batches = last_batches(replace(stage.training, batch=batch, accumulate=1), dataset, device)

    def update() -> None:
        float(stage.update(step, batches)["loss"])  # waits for the device

    memory = peak_memory(update, device)
    start = time.perf_counter()
    update()
    return Trial(batch, time.perf_counter() - start, memory)


def _fits(trials: Sequence[Trial], free: int | None) -> bool:
    """Whether twice the last batch will fit, taken for twice its memory."""
    memory = trials[-1].memory
    return memory is None or free is None or 2 * memory < _SHARE * free


def _reading(dataset: Any) -> float:
    """Clips a second that this process reads."""
    start = time.perf_counter()
    for number in range(_READ):
        dataset[(number % len(dataset), number)]
    return _READ / (time.perf_counter() - start)


def _millions(module: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f}M"
