#!/usr/bin/env python
"""What a training takes on 1, 8, 64 and 512 GPUs: time, cost, where more GPUs stop paying, and what must be read.

scripts/scaling.py ucf101

Counted: FLOPs of an update by torch, and the bytes that all processes sum up in it (gradients in float32 of what
learns). Assumed, and set by options: what a GPU reaches of its arithmetic, what the links between GPUs carry, and the
price of an hour. A ring moves 2 (n - 1) / n of the bytes through the slowest link (Patarasuk and Yuan 2009); as in
DDP, it runs beside the backward pass, two thirds of the arithmetic, and what is left over is waited for. Everything
is printed as Markdown: docs/scaling.md holds it.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vqvdm.evaluation.report import table
from vqvdm.recipe import Recipe
from vqvdm.tokenizer import VideoTokenizer
from vqvdm.train.denoiser import DenoiserStage
from vqvdm.train.dry_run import RandomItems, work_of_update
from vqvdm.train.loop import Stage, make_accelerator
from vqvdm.train.tokenizer import TokenizerStage

COUNTS = (1, 8, 64, 512)
BACKWARD = 2 / 3  # of an update's arithmetic: two products for each one of the forward pass
MILLION = 10**6
CLASSES = tuple(f"class {number}" for number in range(101))


@dataclass(frozen=True)
class Need:
    """What one update of a stage takes: FLOPs of a clip, FLOPs of its own, and bytes to sum up."""

    clip: float
    update: float
    reduced: float


@dataclass(frozen=True)
class Cluster:
    """Of each GPU: FLOP/s that it reaches, and bytes a second to others, within a machine of `per_machine` and beyond.

    `latency` is that of one message, in seconds; `price` of a GPU's hour.
    """

    flops: float
    inside: float
    outside: float
    per_machine: int
    latency: float
    price: float

    def all_reduce(self, size: float, count: int) -> float:
        """Seconds in which `count` GPUs sum up `size` bytes, in a ring."""
        if count == 1:
            return 0.0
        link = self.inside if count <= self.per_machine else self.outside
        return 2 * (count - 1) / count * size / link + 2 * (count - 1) * self.latency

    def computing(self, need: Need, clips: float) -> float:
        """Seconds of an update's arithmetic on one GPU, for so many clips."""
        return (clips * need.clip + need.update) / self.flops

    def step(self, need: Need, clips: float, count: int) -> float:
        """Seconds of an update with so many clips a GPU."""
        beside = BACKWARD * clips * need.clip / self.flops  # the optimiser comes after the sum
        return self.computing(need, clips) + max(self.all_reduce(need.reduced, count) - beside, 0.0)

    def efficiency(self, need: Need, clips: float, count: int) -> float:
        """Share of its time in which a GPU computes what one alone would have to for its clips."""
        return clips * need.clip / self.flops / self.step(need, clips, count)

    def least_clips(self, need: Need, count: int, share: float) -> int | None:
        """The fewest clips a GPU at which efficiency reaches `share`; None beyond a million."""
        low, high = 0, 1
        while self.efficiency(need, high, count) < share:
            low, high = high, 2 * high
            if high > MILLION:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.efficiency(need, middle, count) >= share else (middle, high)
        return high


def main() -> None:
    """Count, and print the tables."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="changes of the recipe as key=value")
    parser.add_argument("--tflops", type=float, default=27.0, help="that a GPU reaches: an H100 in docs/performance.md")
    parser.add_argument("--inside", type=float, default=450.0, help="GB/s of a GPU to others in its machine (NVLink)")
    parser.add_argument("--outside", type=float, default=50.0, help="GB/s of a GPU to other machines (400 Gbit/s)")
    parser.add_argument("--per-machine", type=int, default=8, help="GPUs of a machine")
    parser.add_argument("--latency", type=float, default=5.0, help="microseconds of a message")
    parser.add_argument("--price", type=float, default=2.5, help="of a GPU's hour")
    parser.add_argument("--video-mb", type=float, default=0.1, help="megabytes of a video file")
    asked = parser.parse_intermixed_args()
    cluster = Cluster(
        asked.tflops * 1e12,
        asked.inside * 1e9,
        asked.outside * 1e9,
        asked.per_machine,
        asked.latency / 1e6,
        asked.price,
    )
    recipe = Recipe.load(asked.recipe, asked.overrides, check_models=True)
    needs = {stage.name: need_of(stage, dataset) for stage, dataset in stages(recipe)}
    print(f"`{recipe.name}`, on GPUs of {asdict(cluster)}\n")
    for name, need in needs.items():
        training = getattr(recipe, name).training
        print(stage_table(name, need, training, cluster), end="\n\n")
    print(data_table(recipe, needs, cluster, asked))


def stages(recipe: Recipe) -> list[tuple[Stage, Any]]:
    """Both stages as they train, untrained, each with a data set of random clips or latents."""
    accelerator = make_accelerator(recipe.denoiser.training, Path(tempfile.gettempdir()))
    data, found = recipe.data, []
    shape: tuple[int, ...] = (3, data.frames, data.size, data.size)
    if recipe.tokenizer is not None:
        clips = RandomItems("clip", shape, CLASSES)
        found.append((TokenizerStage(recipe, accelerator, clips), clips))
        shape = VideoTokenizer(**recipe.tokenizer.model).latent_shape(*shape[1:])
    items = RandomItems("clip" if recipe.tokenizer is None else "latents", shape, CLASSES)
    tokenizer = None if recipe.tokenizer is None else VideoTokenizer(**recipe.tokenizer.model)
    return [*found, (DenoiserStage(recipe, accelerator, items, tokenizer), items)]


def need_of(stage: Stage, dataset: Any) -> Need:
    """Counted in the last update, when all parts of the loss are at work."""
    work = work_of_update(stage, dataset, next(stage.modules["model"].parameters()).device)
    learning = [module for name, module in stage.modules.items() if name != "ema"]
    return Need(work.clip, work.update, float(sum(map(gradient_bytes, learning))))


def gradient_bytes(module: nn.Module) -> int:
    """Of all that learns, in float32."""
    return sum(4 * parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def stage_table(name: str, need: Need, training: Any, cluster: Cluster, counts: Sequence[int] = COUNTS) -> str:
    """One row a number of GPUs, for the recipe's clips in all and its batch on each GPU."""
    clips = training.batch * training.accumulate
    total = training.steps * clips
    rows = []
    for count in counts:
        step, reduce = cluster.step(need, clips, count), cluster.all_reduce(need.reduced, count)
        hours = total / (count * clips) * step / 3600
        least = cluster.least_clips(need, count, 0.8)
        rows.append(
            [
                str(count),
                f"{1e3 * step:.1f} ms",
                f"{1e3 * reduce:.2f} ms",
                f"{cluster.efficiency(need, clips, count):.0%}",
                f"{clips * count / step:,.0f}",
                f"{hours:.3g}",
                f"{hours * count * cluster.price:,.0f}",
                "never" if least is None else str(least),
            ]
        )
    head = ["GPUs", "update", "summing up", "efficiency", "clips a second", "hours", "cost", "80% from clips a GPU"]
    return (
        f"**{name}**: {need.clip / 1e9:.3g} GFLOP a clip, {need.update / 1e9:.3g} an update, "
        f"{need.reduced / 1e6:.1f} MB to sum up; "
        f"{clips} clips a GPU and update, {total / 1e6:.3g} million clips in all\n\n{table(head, rows)}"
    )


def data_table(recipe: Recipe, needs: dict[str, Need], cluster: Cluster, asked: Namespace) -> str:
    """What a million videos take on disks, and what must be read a second to keep the GPUs at work."""
    data, rows = recipe.data, []
    sizes = {"tokenizer": ("videos", asked.video_mb * 1e6)}
    if recipe.tokenizer is not None:
        latent = VideoTokenizer(**recipe.tokenizer.model).latent_shape(data.frames, data.size, data.size)
        stills = 2 / latent[1] if recipe.latents.stills else 0.0
        places = latent[0] * latent[1] * latent[2] * latent[3] * (1 + stills)
        sizes["denoiser"] = ("latents, float16", 2.0 * places * recipe.latents.windows * (1 + recipe.latents.flips))
    for name, (what, size) in sizes.items():
        if name not in needs:
            continue
        training = getattr(recipe, name).training
        batch = training.batch * training.accumulate
        read = size if name == "tokenizer" else size / recipe.latents.windows / (1 + recipe.latents.flips)
        rates = [count * batch / cluster.step(needs[name], batch, count) * read for count in COUNTS]
        rows.append([name, what, f"{size * MILLION / 1e9:,.0f} GB", *(f"{rate / 1e6:,.0f}" for rate in rates)])
    head = ["stage", "reads", "a million videos", *(f"MB/s for {count}" for count in COUNTS)]
    return table(head, rows)


if __name__ == "__main__":
    sys.exit(main())
