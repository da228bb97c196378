#!/usr/bin/env python
"""Train a stage for so many minutes: the learning rate follows the clock to its end, whatever the machine's speed.

scripts/train_minutes.py tokenizer asl64 data.path=clips --run runs/mine --minutes 9 --at 0.4:quantize_after
scripts/train_minutes.py denoiser runs/mine --minutes 10

`--at SHARE:NAME` makes NAME of the tokenizer's losses (quantize_after, perceptual_after) the update that is due when
that share of the time is over. How many updates it came to stands in the log and at the end of the output. What is
stopped begins anew: the clock is no part of a checkpoint.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

from vqvdm.recipe import Recipe, TrainingRecipe
from vqvdm.train import denoiser, optimization, tokenizer

STAGES = {"tokenizer": (tokenizer, tokenizer.train_tokenizer), "denoiser": (denoiser, denoiser.train_denoiser)}
ENDLESS = 10**8  # updates: time ends the training
SCALE = 10**6  # parts into which the clock divides the cosine
LATE = ("quantize_after", "perceptual_after")


def main() -> None:
    """Train, and say how far it came."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="changes of the recipe as key=value")
    parser.add_argument("--run", type=Path, help="by default the recipe, which is a run folder then")
    parser.add_argument("--minutes", type=float, required=True, help="from the first update on")
    parser.add_argument("--at", action="append", default=[], metavar="SHARE:NAME")
    asked = parser.parse_intermixed_args()
    endless = [f"{asked.stage}.training.steps={ENDLESS}"]
    late = {}
    for word in asked.at:
        share, _, name = word.partition(":")
        if name not in LATE or asked.stage != "tokenizer":
            sys.exit(f"--at {word}: only {' and '.join(LATE)} of the tokenizer can come with time")
        late[name] = float(share)
        endless.append(f"tokenizer.loss.{name}={ENDLESS}")
    recipe = Recipe.load(asked.recipe, [*asked.overrides, *endless], check_models=True)
    clock = Clock(recipe, asked.stage, 60 * asked.minutes, late)
    module, train = STAGES[asked.stage]
    module.learning_rate = clock.rate
    train(recipe, asked.run or Path(asked.recipe))
    print(f"{clock.updates} updates in {asked.minutes:g} minutes")


class Clock:
    """Stands in the place of `optimization.learning_rate`, and ends the training when its time is over."""

    def __init__(self, recipe: Recipe, stage: str, seconds: float, late: dict[str, float]) -> None:
        """`late`: names of losses' settings -> the share of the time after which they come."""
        self.recipe, self.stage, self.seconds, self.late = recipe, stage, seconds, dict(late)
        self.start = self.updates = 0

    def rate(self, training: TrainingRecipe, step: int) -> float:
        """The learning rate of this update; called once in each."""
        now = time.monotonic()
        self.start = self.start or now
        self.updates = step + 1
        progress = min((now - self.start) / self.seconds, 1.0)
        for name in [name for name, share in self.late.items() if progress >= share]:
            assert self.recipe.tokenizer is not None
            object.__setattr__(self.recipe.tokenizer.loss, name, step)  # frozen: a recipe does not change, but here
            del self.late[name]
        if progress == 1.0:
            object.__setattr__(training, "steps", self.updates)
        by_clock = replace(training, warmup=0, steps=SCALE)
        warm = min((step + 1) / max(training.warmup, 1), 1.0)
        return warm * optimization.learning_rate(by_clock, round(progress * SCALE))


if __name__ == "__main__":
    main()
