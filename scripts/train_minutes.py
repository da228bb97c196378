#!/usr/bin/env python
"""Train a stage for so many minutes: the learning rate follows the clock to its end, whatever the machine's speed.

scripts/train_minutes.py tokenizer asl64 data.path=clips tokenizer.loss.quantize_after=40% --run runs/mine --minutes 9
scripts/train_minutes.py denoiser runs/mine --minutes 10

The update at which a loss of the tokenizer enters (quantize_after, perceptual_after, adversarial.start) may be a
share: it is the one that is due when that share of the time is over. How many updates it came to stands in the log and
at the end of the output. The clock is no part of a checkpoint: a run that was stopped would go on with all its minutes
before it.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path

from vqvdm.recipe import Recipe, TrainingRecipe
from vqvdm.train import denoiser, optimization, tokenizer

STAGES = {"tokenizer": (tokenizer, tokenizer.train_tokenizer), "denoiser": (denoiser, denoiser.train_denoiser)}
ENDLESS = 10**8  # updates: time ends the training
SCALE = 10**6  # parts into which the clock divides the cosine
LATE = tuple(f"tokenizer.loss.{name}" for name in ("quantize_after", "perceptual_after", "adversarial.start"))


def main() -> None:
    """Train, and say how far it came."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="changes of the recipe as key=value")
    parser.add_argument("--run", type=Path, help="by default the recipe, which is a run folder then")
    parser.add_argument("--minutes", type=float, required=True, help="from the first update on")
    processor = "count the time of this process on all processors; with one thread other programs do not matter then"
    parser.add_argument("--processor", action="store_true", help=processor)
    asked = parser.parse_intermixed_args()
    if not asked.minutes > 0:
        sys.exit(f"--minutes {asked.minutes:g}: must be above 0")
    shares = {word.partition("=")[0]: share for word in asked.overrides if (share := share_of(word)) is not None}
    for key in shares:
        if key not in LATE:
            sys.exit(f"{key} cannot be a share of the time; only {', '.join(LATE)} can")
    overrides = [word for word in asked.overrides if share_of(word) is None]
    overrides += [f"{key}={ENDLESS - 1}" for key in shares]  # below the last update, so that nobody is told "never"
    recipe = Recipe.load(asked.recipe, [*overrides, f"{asked.stage}.training.steps={ENDLESS}"], check_models=True)
    clock = Clock(recipe, 60 * asked.minutes, shares, time.process_time if asked.processor else time.monotonic)
    module, train = STAGES[asked.stage]
    module.learning_rate = clock.rate
    train(recipe, asked.run or Path(asked.recipe))
    print(f"{clock.updates} updates in {asked.minutes:g} minutes")


def share_of(override: str) -> float | None:
    """0.3 of loss.quantize_after=30%; None of others."""
    value = override.partition("=")[2]
    return float(value[:-1]) / 100 if value.endswith("%") else None


class Clock:
    """Stands in the place of `optimization.learning_rate`, and ends the training when its time is over."""

    def __init__(self, recipe: Recipe, seconds: float, late: dict[str, float], now: Callable[[], float]) -> None:
        """Begin with the first update.

        Args:
            recipe: its dates are moved.
            seconds: till the last update.
            late: dotted keys of the recipe -> the share of the time after which each is the present update.
            now: tells the time.
        """
        self.recipe, self.seconds, self.late, self.now = recipe, seconds, dict(late), now
        self.start = self.updates = 0

    def rate(self, training: TrainingRecipe, step: int) -> float:
        """The learning rate of this update; called once in each."""
        now = self.now()
        self.start = self.start or now
        self.updates = step + 1
        progress = min((now - self.start) / self.seconds, 1.0)
        for key in [key for key, share in self.late.items() if progress >= share]:
            *parts, name = key.split(".")
            object.__setattr__(reduce(getattr, parts, self.recipe), name, step)  # frozen: it changes nowhere but here
            del self.late[key]
        if progress == 1.0:
            object.__setattr__(training, "steps", self.updates)
        by_clock = replace(training, warmup=0, steps=SCALE)
        warm = min((step + 1) / max(training.warmup, 1), 1.0)
        return warm * optimization.learning_rate(by_clock, round(progress * SCALE))


if __name__ == "__main__":
    main()
