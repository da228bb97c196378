"""What is timed: the stages of a recipe with random weights, and what the machine can do at best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvdm.benchmark.resources import Work, work_of
from vqvdm.benchmark.timing import Key, Timing, alternate
from vqvdm.denoiser import StepModulations, VideoDenoiser
from vqvdm.diffusion import Objective, guided
from vqvdm.errors import InputError
from vqvdm.graphs import GraphedDenoiser
from vqvdm.metrics.i3d import I3D, SIDE, shapes
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.processor import keep_packed
from vqvdm.recipe import Recipe
from vqvdm.tokenizer import VideoTokenizer

GUIDANCE = 2.0  # of guided steps
STEPS_IN_A_ROW = 5  # of which one is the mean
# Sides of the matrices whose product is the ceiling, and numbers copied to measure the memory: a GPU is done with those
# of a processor before it is at its pace.
_MATRIX = {"cpu": 2048, "cuda": 8192}
_COPIED = {"cpu": 1 << 26, "cuda": 1 << 28}


@dataclass(frozen=True)
class Stage:
    """One thing that is timed.

    Attributes:
        run: does it once.
        repeat: how often in a row, as within a sampling, where weights stay in the processor's caches; times, work and
            clips are of one.
        work: of one run; None unknown.
        clips: that one run makes or takes; 0 where it makes none.
        dtype: in which most of it computes.
        what: in words.
        elsewhere: in a process of its own, whose memory is not seen.
    """

    run: Callable[[], object]
    what: str
    work: Work | None = None
    clips: float = 0.0
    dtype: torch.dtype = torch.float32
    elsewhere: bool = False
    repeat: int = 1


def time_stages(stages: Mapping[Key, Stage], rounds: int, device: torch.device) -> dict[Key, Timing]:
    """Times of stages, taken by turns, by the keys of the stages."""
    repeats = {key: stage.repeat for key, stage in stages.items()}
    timings = alternate({key: stage.run for key, stage in stages.items()}, rounds, device, repeats=repeats)
    return {key: replace(t, memory=None) if stages[key].elsewhere else t for key, t in timings.items()}


class Subject:
    """The networks of a recipe, untrained: their speed does not depend on what they have learnt."""

    def __init__(
        self, recipe: Recipe, device: torch.device, dtype: torch.dtype, batch: int = 1, classes: int = 101
    ) -> None:
        """Build them.

        Args:
            batch: clips at a time.
            classes: where the recipe leaves their number to the data, which is not read.

        Raises:
            InputError: the recipe has no tokenizer.
        """
        if recipe.tokenizer is None:
            raise InputError(f"recipe {recipe.name} diffuses pixels (tokenizer: null); benchmark one with two stages")
        self.recipe, self.device, self.dtype, self.batch = recipe, device, dtype, batch
        torch.manual_seed(0)
        self.tokenizer = tokenizer = VideoTokenizer(**recipe.tokenizer.model)
        extent = recipe.data.frames, recipe.data.size, recipe.data.size
        self.latent_shape = tokenizer.latent_shape(*extent)
        model = {"in_channels": self.latent_shape[0], "num_classes": classes, **recipe.denoiser.model}
        objective = Objective(**asdict(recipe.denoiser.diffusion))
        self.pipeline = VQVDMPipeline(
            tokenizer,
            VideoDenoiser(**model),
            objective.make_scheduler(recipe.sampling.scheduler),
            num_frames=recipe.data.frames,
            height=recipe.data.size,
            width=recipe.data.size,
            num_inference_steps=recipe.sampling.steps,
            guidance_scale=recipe.sampling.guidance_scale,
            diffusion=objective.for_sampling(),
        )
        for network in (self.tokenizer, self.pipeline.denoiser):
            _cast(network.eval(), dtype)
        self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        # So that rounding meets numbers of the usual size.
        self.latents = torch.randn(batch, *self.latent_shape, device=device, dtype=dtype)
        self.clip = torch.rand(batch, 3, *extent, device=device) * 2 - 1

    def parameters(self) -> dict[str, int]:
        """Of each network."""
        networks = {"tokenizer": self.tokenizer, "denoiser": self.pipeline.denoiser}
        return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}

    @torch.inference_mode()
    def sample(self, steps: int, scale: float) -> Tensor:
        """Clips out of noise, in so many steps guided so strongly: uint8 (b, t, c, h, w)."""
        labels = [0] if self.pipeline.num_classes else None
        output: Any = self.pipeline(
            class_labels=labels,
            num_inference_steps=steps,
            guidance_scale=scale,
            num_videos_per_prompt=self.batch,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        )
        return (output.frames * 255).round().byte().cpu()

    def step(self, scale: float) -> Callable[[], Tensor]:
        """One step of the denoiser, to be called again and again."""
        denoiser = self.pipeline.denoiser
        run_denoiser = GraphedDenoiser(denoiser).of(denoiser)
        labels = torch.zeros(self.batch, dtype=torch.int64, device=self.device) if self.pipeline.num_classes else None
        rate = torch.full((self.batch,), 8.0, device=self.device)
        timestep = torch.full((1,), 500.0)  # on the CPU, as in sampling
        planned = StepModulations(denoiser, timestep)  # as in sampling, where those of all steps are made at once

        def denoise(noisy: Tensor, time: Tensor, class_labels: Tensor | None, fps: Tensor) -> Tensor:
            return run_denoiser(noisy, time, class_labels, fps, planned.at(time, class_labels, fps))

        step = guided(denoise, self.pipeline.num_classes, scale)

        @torch.inference_mode()
        def run() -> Tensor:
            return step(self.latents, timestep[0], labels, rate)

        sampling = copy_context()  # in which weights stay packed from step to step, as they do within a call
        sampling.run(keep_packed)
        return partial(sampling.run, run)


def _cast(network: VideoTokenizer | VideoDenoiser, dtype: torch.dtype) -> None:
    """As `from_pretrained(torch_dtype=...)` does it: parts that need single precision keep it."""
    kept = network._keep_in_fp32_modules or ()
    for name, part in network.named_children():
        if name not in kept:
            part.to(dtype)


def _counted(what: str, run: Callable[[], object], dtype: torch.dtype, clips: float = 0.0) -> Stage:
    run()  # what happens once, such as the packing of weights, does not count
    return Stage(run, what, work_of(run), clips, dtype)


def _clips(subject: Subject) -> str:
    return "one clip" if subject.batch == 1 else f"{subject.batch} clips"


def _step(subject: Subject, folder: Path) -> Stage:
    what = f"one step of the denoiser, {_clips(subject)}, without guidance"
    return replace(_counted(what, subject.step(1.0), subject.dtype), repeat=STEPS_IN_A_ROW)


def _guided_step(subject: Subject, folder: Path) -> Stage:
    what = f"one step, {_clips(subject)}, both passes in one batch"
    return replace(_counted(what, subject.step(GUIDANCE), subject.dtype), repeat=STEPS_IN_A_ROW)


def _encode(subject: Subject, folder: Path) -> Stage:
    run = partial(subject.tokenizer.encode, subject.clip.to(subject.dtype))
    return _counted(f"{_clips(subject)} to latents", run, subject.dtype, subject.batch)


def _decode(subject: Subject, folder: Path) -> Stage:
    run = partial(subject.tokenizer.decode, subject.latents)
    return _counted(f"latents to {_clips(subject)}", run, subject.dtype, subject.batch)


def _clip(subject: Subject, folder: Path) -> Stage:
    """As the recipe samples: a student of few steps has its own number of them, and no guidance."""
    sampling = subject.recipe.sampling
    return _sampled(subject, sampling.steps, sampling.guidance_scale)


def _many_steps(subject: Subject, folder: Path) -> Stage:
    return _sampled(subject, 100, GUIDANCE)


def _sampled(subject: Subject, steps: int, scale: float) -> Stage:
    one, two = (work_of(partial(subject.sample, number, scale)) for number in (1, 2))
    kind = "steps" if scale == 1 else "guided steps"
    what = f"noise to uint8 video: {steps} {kind} and decoding, {_clips(subject)}"
    work = one + (steps - 1) * (two - one)
    return Stage(partial(subject.sample, steps, scale), what, work, subject.batch, subject.dtype)


def _evaluate(subject: Subject, folder: Path) -> Stage:
    """I3D with random weights on two clips of 16 frames."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.rand(shape, generator=generator) * 0.02 for name, shape in shapes().items()}
    network = I3D(tensors).to(subject.device)
    clips = torch.rand(2, 3, 16, SIDE, SIDE, device=subject.device) * 2 - 1
    run = partial(network, clips)
    return _counted("features of two clips of 16 frames (I3D)", run, torch.float32, 2.0)


# Each takes a folder for its files.
NETWORKS: Mapping[str, Callable[[Subject, Path], Stage]] = {
    "step": _step,
    "guided step": _guided_step,
    "encode": _encode,
    "decode": _decode,
    "clip": _clip,
    "100 steps": _many_steps,
    "evaluate": _evaluate,
}


def matrix_product(device: torch.device, dtype: torch.dtype) -> Stage:
    """The ceiling of arithmetic: one large product."""
    side = _MATRIX.get(device.type, _MATRIX["cpu"])
    x, y = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    run = partial(torch.mm, x, y)
    return Stage(run, f"product of {side}x{side} matrices", work_of(run), dtype=dtype)


def memory_copy(device: torch.device) -> Stage:
    """The ceiling of memory: a large copy."""
    numbers = _COPIED.get(device.type, _COPIED["cpu"])
    source = torch.rand(numbers, device=device)
    run = partial(torch.empty_like(source).copy_, source)
    return Stage(run, f"copy of {4 * numbers >> 20} MiB", work_of(run))
