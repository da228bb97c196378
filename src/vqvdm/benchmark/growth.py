"""How time and memory grow with what a user can raise: frames, size, batch, parameters, number of clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvdm.benchmark.stages import NETWORKS, Stage, Subject, time_stages
from vqvdm.benchmark.timing import Timing
from vqvdm.benchmark.training import TRAINING
from vqvdm.errors import InputError
from vqvdm.latents import LatentCache, write_latents
from vqvdm.recipe import Recipe
from vqvdm.structure import did_you_mean, listed
from vqvdm.train.dry_run import RandomItems

STAGES = ("guided step", "decode", "train denoiser")
_CLIPS = (1_000, 4_000, 16_000)
_READS = 512  # of a cache


@dataclass(frozen=True)
class Growth:
    """value = factor * x ** exponent, fitted to the logarithms by least squares; r2 is the share explained."""

    exponent: float
    factor: float
    r2: float


def fit_power(x: Sequence[float], y: Sequence[float]) -> Growth | None:
    """The power law through points of positive numbers; None if there are fewer than two."""
    if len(x) < 2 or min(*x, *y) <= 0:
        return None
    logs = np.log(np.asarray(x, np.float64)), np.log(np.asarray(y, np.float64))
    exponent, offset = np.polyfit(*logs, 1)
    left = ((logs[1] - exponent * logs[0] - offset) ** 2).sum()
    spread = ((logs[1] - logs[1].mean()) ** 2).sum()
    return Growth(float(exponent), float(np.exp(offset)), float(1 - left / spread) if spread > 0 else 1.0)


def measure_growth(recipe: Recipe, axes: str, device: torch.device, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Measure along the axes, print a table of each, and return points and fitted exponents for JSON.

    Args:
        recipe: the point through which all axes go.
        axes: names with commas between, or "all".
        rounds: repetitions of each point that count.

    Raises:
        InputError: there is no such axis.
    """
    names = list(_AXES) if axes == "all" else listed(axes)
    if not names:
        raise InputError(f"--growth names no axis; there are {', '.join(_AXES)}, all")
    for name in names:
        if name not in _AXES:
            known = [*_AXES, "all"]
            hint = did_you_mean(name, known) or ";"
            raise InputError(f"--growth: no axis {name!r}{hint} there are {', '.join(known)}")
    found: dict[str, Any] = {"recipe": recipe.name, "dtype": str(dtype).removeprefix("torch.")}
    for name in names:
        with TemporaryDirectory(prefix="vqvdm-growth-") as folder:
            cases = _AXES[name](recipe, device, dtype, Path(folder))
            timings = time_stages(cases, rounds, device)
        found[name] = _summary(name, timings)
    return found


_Key = tuple[str, float]  # stage, and where on the axis
_Cases = dict[_Key, Stage]


def _summary(axis: str, timings: Mapping[_Key, Timing]) -> dict[str, Any]:
    """Print and return: of each stage the points, and how seconds and bytes grow."""
    stages: dict[str, Any] = {}
    print(f"{axis:<20}{'':>12}{'seconds':>12}{'peak MB':>10}")
    for stage in dict.fromkeys(stage for stage, _ in timings):
        points = [(x, timing) for (name, x), timing in timings.items() if name == stage]
        xs = [x for x, _ in points]
        seconds, memory = [t.median for _, t in points], [t.memory or 0 for _, t in points]
        grown = {"seconds": fit_power(xs, seconds), "memory": fit_power(xs, memory)}
        for x, timing in points:
            peak = "-" if timing.memory is None else f"{timing.memory / 1e6:.0f}"
            print(f"{stage:<20}{x:>12,.0f}{timing.median:>12.4g}{peak:>10}")
        print(f"{'':<20}{'exponent':>12}{_exponent(grown['seconds']):>12}{_exponent(grown['memory']):>10}")
        stages[stage] = {
            "x": xs,
            "seconds": seconds,
            "memory_bytes": [t.memory for _, t in points],
            **{f"{kind}_growth": vars(fit) if fit else None for kind, fit in grown.items()},
        }
    return stages


def _exponent(growth: Growth | None) -> str:
    return "-" if growth is None else f"{growth.exponent:.2f}"


def _networks(
    recipe: Recipe, device: torch.device, dtype: torch.dtype, folder: Path, x: float, batch: int = 1
) -> _Cases:
    """The stages of one point; training has a batch of two where the batch is not what grows."""
    subject = Subject(recipe, device, dtype, batch)
    training = replace(recipe.denoiser.training, batch=max(batch, 2), accumulate=1)
    trained = Subject(replace(recipe, denoiser=replace(recipe.denoiser, training=training)), device, dtype)
    makers = {**NETWORKS, **TRAINING}
    made = {name: makers[name](trained if name in TRAINING else subject, folder / f"{name} {x}") for name in STAGES}
    return {(name, x): stage for name, stage in made.items()}


def _frames(recipe: Recipe, device: torch.device, dtype: torch.dtype, folder: Path) -> _Cases:
    """Half, once, twice and four times as many."""
    numbers = (recipe.data.frames // 2, *(recipe.data.frames * k for k in (1, 2, 4)))
    changed = {number: replace(recipe, data=replace(recipe.data, frames=number)) for number in numbers}
    return _points(changed, device, dtype, folder)


def _size(recipe: Recipe, device: torch.device, dtype: torch.dtype, folder: Path) -> _Cases:
    """Height and width: half, once, one and a half times and twice as many pixels."""
    numbers = (recipe.data.size * k // 2 for k in (1, 2, 3, 4))
    changed = {number: replace(recipe, data=replace(recipe.data, size=number)) for number in numbers}
    return _points(changed, device, dtype, folder)


def _points(recipes: Mapping[int, Recipe], device: torch.device, dtype: torch.dtype, folder: Path) -> _Cases:
    """The stages of these points; one that the networks' factors do not divide is left out."""
    cases: _Cases = {}
    for number, recipe in recipes.items():
        if number > 0:
            with suppress(InputError):
                cases |= _networks(recipe, device, dtype, folder, number)
    return cases


def _batch(recipe: Recipe, device: torch.device, dtype: torch.dtype, folder: Path) -> _Cases:
    """Clips at a time."""
    cases: _Cases = {}
    for batch in (1, 2, 4, 8):
        cases |= _networks(recipe, device, dtype, folder, batch, batch)
    return cases


def _parameters(recipe: Recipe, device: torch.device, dtype: torch.dtype, folder: Path) -> _Cases:
    """The denoiser about half, once, one and a half times and twice as wide."""
    cases: _Cases = {}
    model = recipe.denoiser.model
    for halves in (1, 2, 3, 4):
        widths = tuple(_width(width * halves // 2, model.get("head_dim", 64)) for width in model["channels"])
        changed = replace(recipe, denoiser=replace(recipe.denoiser, model={**model, "channels": widths}))
        number = Subject(changed, device, dtype).parameters()["denoiser"]
        made = _networks(changed, device, dtype, folder, number)
        cases |= {key: stage for key, stage in made.items() if key[0] != "decode"}
    return cases


def _width(wanted: int, head_dim: int) -> int:
    """The width nearest to the wanted one that whole attention heads of an even size divide."""
    fitting = (w for w in range(2, 2 * wanted + 2) if w % (2 * max(w // head_dim, 1)) == 0)
    return min(fitting, key=lambda w: abs(w - wanted))


class _Repeated:
    """In the place of a tokenizer: latents of one number, at once."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def latents_fingerprint(self) -> str:
        return "none"

    def to(self, device: torch.device) -> _Repeated:
        return self

    def eval(self) -> _Repeated:
        return self

    def latent_shape(self, *extent: int) -> tuple[int, ...]:
        return self.shape

    def encode(self, clip: Tensor) -> Tensor:
        return clip.view(-1, 1, 1, 1, 1).expand(-1, *self.shape)


def _clips(recipe: Recipe, device: torch.device, dtype: torch.dtype, folder: Path) -> _Cases:
    """Entries of a latent cache: opening it, and reading some at random."""
    shape = Subject(recipe, device, dtype).latent_shape
    cases: _Cases = {}
    for number in _CLIPS:
        place = folder / str(number)
        write_latents(
            _Repeated(shape), RandomItems("clip", (1, 1, 1, 1), (), number), place, batch_size=256, progress=False
        )
        cases["open the latent cache", number] = Stage(partial(LatentCache, place), "")
        cases["read 512 latents", number] = Stage(_reader(place, number), "", clips=_READS)
    return cases


def _reader(folder: Path, number: int) -> Callable[[], object]:
    cache = LatentCache(folder)
    picks = np.random.default_rng(0).integers(0, number, _READS).tolist()
    return partial(cache.batch, picks)


_AXES: Mapping[str, Callable[[Recipe, torch.device, torch.dtype, Path], _Cases]] = {
    "frames": _frames,
    "size": _size,
    "batch": _batch,
    "parameters": _parameters,
    "clips": _clips,
}
