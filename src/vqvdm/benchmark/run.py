"""`vqvdm benchmark`: time each stage of a recipe beside the machine's ceiling; a table, then one line of JSON."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Literal

import torch

from vqvdm import __version__
from vqvdm.benchmark.peer import CONTROL, SHIPPED, TUNED, TUNED_BATCH, peer_stages
from vqvdm.benchmark.stages import (
    Stage,
    Subject,
    evaluation_stage,
    matrix_product,
    memory_copy,
    start_stages,
)
from vqvdm.benchmark.timing import Timing, alternate, fractions, quicker, ratios
from vqvdm.benchmark.training import TRAINING, training_stages
from vqvdm.errors import InputError, check_at_least_one
from vqvdm.loading import pick_device, pick_dtype
from vqvdm.machine import commit, machine
from vqvdm.recipe import Recipe
from vqvdm.structure import did_you_mean

STAGES = (
    "step", "guided step", "encode", "decode", "clip", "100 steps", *TRAINING, "evaluate", "import", "help",
)  # fmt: skip
_LONG = ("100 steps", "train tokenizer", "train denoiser")  # only if asked for
_COMPARED = ("guided step", "100 steps")
_CEILING, _MEMORY = "matrix product", "copy"


def main(
    *overrides: str,
    recipe: str = "paper-ucf101",
    stages: str = ",".join(name for name in STAGES if name not in _LONG),
    rounds: int = 5,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    against: Literal["none", "vdm"] = "none",
    device: str = "auto",
) -> None:
    """Time the stages of a recipe, with random weights, by turns, beside what the machine can do at best.

    The last line of the output is JSON. A spread is the distance of the quartiles over the median.

    Args:
        overrides: changes of the recipe as key=value.
        recipe: a packaged recipe, a YAML file, or a run folder.
        stages: which, with commas between: step, guided step, encode, decode, clip, 100 steps, train tokenizer, train
            denoiser, read clips, read latents, evaluate, import, help.
        rounds: repetitions of each that count; one more warms up.
        dtype: of both networks; auto is bfloat16 where the processor is fast at it.
        against: vdm also times guided steps of the package video-diffusion-pytorch, and gives the ratios to ours; it
            adds the stages guided step and 100 steps. Its 100 steps are taken for 100 times one.
        device: cpu, cuda, mps or auto.
    """
    check_at_least_one(rounds=rounds)
    wanted = [name.strip() for name in stages.split(",") if name.strip()]
    for name in wanted:
        if name not in STAGES:
            raise InputError(f"no stage {name!r}{did_you_mean(name, STAGES) or ';'} there are {', '.join(STAGES)}")
    if against == "vdm":
        wanted += [name for name in _COMPARED if name not in wanted]
    settings, place = Recipe.load(recipe, overrides, check_models=True), pick_device(device)
    subject = Subject(settings, place, pick_dtype(dtype, place))
    with ExitStack() as stack:
        cases: dict[str, Stage] = subject.stages() | start_stages()
        if "evaluate" in wanted:
            cases["evaluate"] = evaluation_stage(place)
        cases |= stack.enter_context(training_stages(subject, [name for name in wanted if name in TRAINING]))
        peer, peer_parameters = peer_stages(subject) if against == "vdm" else ({}, None)
        _time(subject, {name: cases[name] for name in wanted} | peer, rounds, peer_parameters)


def _time(subject: Subject, cases: Mapping[str, Stage], rounds: int, peer_parameters: int | None) -> None:
    """Take the times and print them; the peer's stages are among them if its number of parameters is given."""
    place = subject.device
    copy, copied = memory_copy(place)
    kinds = {stage.dtype for stage in cases.values()} | {torch.float32}
    ceilings = {f"{_CEILING}, {_name(kind)}": matrix_product(place, kind) for kind in kinds}
    every = {**cases, **ceilings, _MEMORY: copy}
    timings = alternate({name: stage.run for name, stage in every.items()}, rounds, place)
    shares = {
        name: fractions(stage.flops, timings[name], _reached(ceilings, timings, stage.dtype))
        for name, stage in cases.items()
        if stage.flops is not None
    }
    print(_table({**cases, **ceilings}, timings, shares))
    print(f"{_MEMORY:<28}{copied / timings[_MEMORY].median / 1e9:>10.1f} GB/s read and written")
    summary = _summary(subject, timings, shares)
    if peer_parameters is not None:
        compared = compare(timings)
        own = subject.parameters()["denoiser"]
        print(f"VDM has {peer_parameters / 1e6:.1f}M parameters, our denoiser {own / 1e6:.1f}M")
        for name, ratio in compared.items():
            print(f"{name:<28}{ratio.median:>10.1f}{ratio.spread:>8.0%}")
            summary |= {name: ratio.median, f"{name}_spread": ratio.spread}
        summary["vdm_parameters"] = peer_parameters
    print(json.dumps(summary))


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


def _reached(ceilings: Mapping[str, Stage], timings: Mapping[str, Timing], dtype: torch.dtype) -> list[float]:
    """FLOPs a second of the matrix product in each round."""
    name = f"{_CEILING}, {_name(dtype)}"
    flops = ceilings[name].flops or 0.0
    return [flops / seconds for seconds in timings[name].seconds]


def _table(cases: Mapping[str, Stage], timings: Mapping[str, Timing], shares: Mapping[str, Timing]) -> str:
    lines = [f"{'':<28}{'seconds':>10}{'spread':>8}{'GFLOP':>9}{'GFLOP/s':>9}{'ceiling':>9}{'clips/s':>9}"]
    for name, stage in cases.items():
        timing = timings[name]
        work = stage.flops
        row = f"{name:<28}{timing.median:>10.4g}{timing.spread:>8.0%}"
        row += f"{'-':>9}{'-':>9}" if work is None else f"{work / 1e9:>9.4g}{work / timing.median / 1e9:>9.4g}"
        row += f"{shares[name].median:>9.0%}" if name in shares else f"{'-':>9}"
        row += f"{stage.clips / timing.median:>9.3g}" if stage.clips else f"{'-':>9}"
        lines.append(f"{row}  {stage.what}")
    return "\n".join(lines)


def _summary(subject: Subject, timings: Mapping[str, Timing], shares: Mapping[str, Timing]) -> dict[str, Any]:
    """For scripts: seconds of each stage, shares of the ceiling, and what they depend on."""
    found: dict[str, Any] = {}
    for kind, values in (("seconds", timings), ("fraction_of_ceiling", shares)):
        for name, timing in values.items():
            key = f"{name.replace(', ', '_').replace(' ', '_')}_{kind}"
            found |= {key: timing.median, f"{key}_spread": timing.spread}
    return {
        **found,
        "recipe": subject.recipe.name,
        "dtype": _name(subject.dtype),
        "device": str(subject.device),
        "parameters": subject.parameters(),
        "peak_memory_bytes": _peak_memory(subject.device),
        "machine": machine(),
        "commit": commit(),
        "version": __version__,
    }


def _peak_memory(device: torch.device) -> int:
    """Of the GPU's tensors; on a CPU of the whole process, all stages together."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
