"""`vqvdm benchmark`: time each stage of a recipe beside the machine's ceiling; a table, then one line of JSON."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from vqvdm import __version__
from vqvdm.benchmark.growth import measure_growth
from vqvdm.benchmark.peer import CONTROL, SHIPPED, TUNED, TUNED_BATCH, peer_stages
from vqvdm.benchmark.stages import NETWORKS, Stage, Subject, matrix_product, memory_copy, time_stages
from vqvdm.benchmark.start import START
from vqvdm.benchmark.timing import Timing, fractions, quicker, ratios
from vqvdm.benchmark.training import TRAINING
from vqvdm.errors import InputError, check_at_least_one
from vqvdm.loading import pick_device, pick_dtype
from vqvdm.machine import commit, machine
from vqvdm.recipe import Recipe
from vqvdm.structure import did_you_mean, listed

STAGES = {**NETWORKS, **TRAINING, **START}
_LONG = ("100 steps", "train tokenizer", "train denoiser")  # only if asked for
_COMPARED = ("guided step", "100 steps")
_CEILING, _MEMORY = "matrix product", "copy"


_USUAL = ",".join(name for name in STAGES if name not in _LONG)


def main(
    *overrides: str,
    recipe: str = "paper-ucf101",
    stages: str = _USUAL,
    rounds: int = 5,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    against: Literal["none", "vdm"] = "none",
    price: float | None = None,
    batch: int = 1,
    growth: str | None = None,
    compile: bool = False,
    device: str = "auto",
) -> None:
    """Time the stages of a recipe, with random weights, by turns, beside what the machine can do at best.

    The last line of the output is JSON. A spread is the distance of the quartiles over the median.

    Args:
        overrides: changes of the recipe as key=value.
        recipe: a packaged recipe, a YAML file, or a run folder.
        stages: which, with commas between: step, guided step, encode, decode, clip, 100 steps, evaluate, train
            tokenizer, train denoiser, read clips, read latents, import, help, first video.
        rounds: repetitions of each that count; one more warms up.
        dtype: of both networks; auto is bfloat16 where the processor is fast at it.
        against: vdm also times guided steps of the package video-diffusion-pytorch, and gives the ratios to ours; it
            adds the stages guided step and 100 steps. Its 100 steps are taken for 100 times one.
        batch: clips that a stage makes or takes at a time; training has the recipe's.
        growth: measure instead how time and memory grow with frames, size, batch, parameters or clips (several with
            commas between, or all).
        compile: compile the blocks of both networks first (minutes).
        price: of an hour of this machine, in any currency: gives the cost of a thousand clips.
        device: cpu, cuda, mps or auto.
    """
    check_at_least_one(rounds=rounds, batch=batch)
    if price is not None and not price > 0:
        raise InputError(f"--price {price:g}: must be above 0")
    wanted = listed(stages)
    for name in wanted:
        if name not in STAGES:
            raise InputError(f"no stage {name!r}{did_you_mean(name, STAGES) or ';'} there are {', '.join(STAGES)}")
    if against == "vdm":
        wanted += [name for name in _COMPARED if name not in wanted]
    settings, place = Recipe.load(recipe, overrides, check_models=True), pick_device(device)
    if growth is not None:
        _refuse_beside_growth(stages=stages != _USUAL, batch=batch != 1, compile=compile, against=against != "none")
        print(json.dumps({**measure_growth(settings, growth, place, pick_dtype(dtype, place), rounds), **_here(place)}))
        return
    subject = Subject(settings, place, pick_dtype(dtype, place), batch)
    if compile:
        subject.pipeline.compile()
    with TemporaryDirectory(prefix="vqvdm-benchmark-") as folder:
        cases = {name: STAGES[name](subject, Path(folder, name)) for name in wanted}
        peer, peer_parameters = peer_stages(subject) if against == "vdm" else ({}, None)
        timings, summary = _time(subject, cases | peer, rounds, price)
    if peer_parameters is not None:
        own = subject.parameters()["denoiser"]
        print(f"VDM has {peer_parameters / 1e6:.1f}M parameters, our denoiser {own / 1e6:.1f}M")
        for name, ratio in compare(timings).items():
            print(f"{name:<28}{ratio.median:>10.1f}{ratio.spread:>8.0%}")
            summary |= {name: ratio.median, f"{name}_spread": ratio.spread}
        summary["vdm_parameters"] = peer_parameters
    print(json.dumps(summary))


def _time(
    subject: Subject, cases: Mapping[str, Stage], rounds: int, price: float | None
) -> tuple[dict[str, Timing], dict[str, Any]]:
    """Take the times of all cases and of the ceilings, print the table, and return the times and what JSON says."""
    place = subject.device
    kinds = {stage.dtype for stage in cases.values()} | {torch.float32}
    ceilings = {f"{_CEILING}, {_name(kind)}": matrix_product(place, kind) for kind in kinds} | {
        _MEMORY: memory_copy(place)
    }
    every = {**cases, **ceilings}
    timings = time_stages(every, rounds, place)
    shares = _shares(cases, ceilings, timings)
    print(_table(every, timings, shares))
    for line in _remarks(cases, timings, price):
        print(line)
    return timings, _summary(subject, every, timings, shares, price)


def _refuse_beside_growth(**given: bool) -> None:
    """Raise `InputError` for options that `--growth` would not heed."""
    for name, is_given in given.items():
        if is_given:
            raise InputError(f"--growth measures points of its own; leave --{name} out")


def compare(timings: Mapping[str, Timing]) -> dict[str, Timing]:
    """How many times as long the peer takes, round by round.

    Ours are 100 guided steps and decoding; the peer's 100 steps are 100 times one step. The control is compared step by
    step.
    """
    ours, step = timings["100 steps"], timings["guided step"]
    best = quicker(timings[TUNED], timings[TUNED_BATCH])
    return {
        "ratio_100_steps_as_shipped": ratios(timings[SHIPPED].times(100), ours),
        "ratio_100_steps_tuned": ratios(best.times(100), ours),
        "ratio_to_control": ratios(timings[CONTROL], step),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shares(
    cases: Mapping[str, Stage], ceilings: Mapping[str, Stage], timings: Mapping[str, Timing]
) -> dict[str, dict[str, Timing]]:
    """Of each case whose work is known: its share of the matrix product's rate, and of the copy's."""

    def reached(name: str, quantity: str) -> list[float]:
        return [getattr(ceilings[name].work, quantity) / seconds for seconds in timings[name].seconds]

    shares: dict[str, dict[str, Timing]] = {"ceiling": {}, "bandwidth": {}}
    for name, stage in cases.items():
        if stage.work is not None:
            product = reached(f"{_CEILING}, {_name(stage.dtype)}", "flops")
            shares["ceiling"][name] = fractions(stage.work.flops, timings[name], product)
            shares["bandwidth"][name] = fractions(stage.work.moved, timings[name], reached(_MEMORY, "moved"))
    return shares


# Heading, width, and what stands below it.
_COLUMNS = (
    ("seconds", 10), ("spread", 8), ("GFLOP", 9), ("GFLOP/s", 9), ("ceiling", 9),
    ("GB", 8), ("GB/s", 8), ("bandwidth", 11), ("peak MB", 9), ("clips/s", 9),
)  # fmt: skip


def _table(
    cases: Mapping[str, Stage], timings: Mapping[str, Timing], shares: Mapping[str, Mapping[str, Timing]]
) -> str:
    lines = [f"{'':<28}" + "".join(f"{heading:>{width}}" for heading, width in _COLUMNS)]
    for name, stage in cases.items():
        timing, work = timings[name], stage.work
        cells = [f"{timing.median:.4g}", f"{timing.spread:.0%}"]
        cells += _of_work(work.flops if work else None, timing, shares["ceiling"].get(name))
        cells += _of_work(work.moved if work else None, timing, shares["bandwidth"].get(name))
        cells.append("-" if timing.memory is None else f"{timing.memory / 1e6:.0f}")
        cells.append(f"{stage.clips / timing.median:.3g}" if stage.clips else "-")
        row = "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True))
        lines.append(f"{name:<28}{row}  {stage.what}")
    return "\n".join(lines)


def _of_work(quantity: float | None, timing: Timing, share: Timing | None) -> list[str]:
    if not quantity:
        return ["-", "-", "-"]
    return [
        f"{quantity / 1e9:.4g}",
        f"{quantity / timing.median / 1e9:.4g}",
        "-" if share is None else f"{share.median:.0%}",
    ]


def _remarks(cases: Mapping[str, Stage], timings: Mapping[str, Timing], price: float | None) -> list[str]:
    """Energy and cost of clips, where they are known."""
    lines = []
    for name, stage in cases.items():
        joules = timings[name].joules
        if stage.clips and joules is not None:
            lines.append(f"{name}: {joules / stage.clips:.3g} J a clip")
        if stage.clips and price is not None:
            lines.append(f"{name}: {_cost(stage, timings[name], price):.3g} for a thousand clips")
    return lines


def _cost(stage: Stage, timing: Timing, price: float) -> float:
    """Of a thousand clips, by the price of an hour."""
    return 1000 * timing.median / stage.clips * price / 3600


def _summary(
    subject: Subject,
    cases: Mapping[str, Stage],
    timings: Mapping[str, Timing],
    shares: Mapping[str, Mapping[str, Timing]],
    price: float | None,
) -> dict[str, Any]:
    """For scripts: seconds of each stage, shares of the ceilings, and what they depend on."""
    kinds = {"seconds": timings} | {f"fraction_of_{kind}": values for kind, values in shares.items()}
    found: dict[str, Any] = {}
    for name, stage in cases.items():
        key = name.replace(", ", "_").replace(" ", "_")
        for kind, values in kinds.items():
            if name in values:
                found |= {f"{key}_{kind}": values[name].median, f"{key}_{kind}_spread": values[name].spread}
        found |= {f"{key}_peak_memory_bytes": timings[name].memory, f"{key}_joules": timings[name].joules}
        if stage.work is not None:
            found |= {f"{key}_flops": stage.work.flops, f"{key}_bytes_moved": stage.work.moved}
        if stage.clips:
            found[f"{key}_clips_per_second"] = stage.clips / timings[name].median
            found |= {f"{key}_cost_of_1000_clips": _cost(stage, timings[name], price)} if price is not None else {}
    return {
        **found,
        "recipe": subject.recipe.name,
        "dtype": _name(subject.dtype),
        "batch": subject.batch,
        "compiled": subject.pipeline.is_compiled,
        "parameters": subject.parameters(),
        "peak_memory_bytes": _peak_memory(subject.device),
        **_here(subject.device),
    }


def _here(device: torch.device) -> dict[str, Any]:
    """Where it was measured."""
    return {"device": str(device), "machine": machine(), "commit": commit(), "version": __version__}


def _peak_memory(device: torch.device) -> int:
    """Of the GPU's tensors; on a CPU of the whole process, all stages together."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
