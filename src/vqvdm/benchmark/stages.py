"""What is timed: the stages of a recipe with random weights, and what the machine can do at best."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vqvdm.denoiser import StepModulations, VideoDenoiser
from vqvdm.diffusion import Objective, guided
from vqvdm.errors import InputError
from vqvdm.metrics.i3d import I3D, SIDE, shapes
from vqvdm.pipeline import OBJECTIVE, VQVDMPipeline
from vqvdm.processor import keep_packed
from vqvdm.recipe import Recipe
from vqvdm.tokenizer import VideoTokenizer

GUIDANCE = 2.0
STEPS = 20  # of a clip
_MATRIX = 2048  # sides of the matrices whose product is the ceiling
_COPIED = 1 << 26  # numbers copied to measure the memory


@dataclass(frozen=True)
class Stage:
    """One thing that is timed.

    Attributes:
        run: does it once.
        flops: of one run, products and sums counted apart, in convolutions, linear layers and attention; None unknown.
        clips: that one run makes or takes; 0 where it makes none.
        dtype: in which most of it computes.
        what: in words.
    """

    run: Callable[[], object]
    what: str
    flops: float | None = None
    clips: float = 0.0
    dtype: torch.dtype = torch.float32


class Subject:
    """The networks of a recipe, untrained: their speed does not depend on what they have learnt."""

    def __init__(self, recipe: Recipe, device: torch.device, dtype: torch.dtype, classes: int = 101) -> None:
        """Build them.

        Args:
            classes: where the recipe leaves their number to the data, which is not read.

        Raises:
            InputError: the recipe has no tokenizer.
        """
        if recipe.tokenizer is None:
            raise InputError(f"recipe {recipe.name} diffuses pixels (tokenizer: null); benchmark one with two stages")
        self.recipe, self.device, self.dtype = recipe, device, dtype
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
            diffusion={name: getattr(objective, name) for name in OBJECTIVE},
        )
        for network in (self.tokenizer, self.pipeline.denoiser):
            _cast(network, dtype)
        self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        # So that rounding meets numbers of the usual size.
        self.latents = torch.randn(1, *self.latent_shape, device=device, dtype=dtype)
        self.clip = torch.rand(1, 3, *extent, device=device) * 2 - 1

    def parameters(self) -> dict[str, int]:
        """Of each network."""
        networks = {"tokenizer": self.tokenizer, "denoiser": self.pipeline.denoiser}
        return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}

    def stages(self) -> dict[str, Stage]:
        """Everything that needs no files and no training, by name."""
        tokenizer, clip = self.tokenizer, self.clip.to(self.dtype)
        made = {
            "step": (self._step(1.0), "one step of the denoiser, one clip, without guidance", 0.0),
            "guided step": (self._step(GUIDANCE), "one step, one clip, both passes in one batch", 0.0),
            "encode": (partial(tokenizer.encode, clip), "one clip to latents", 1.0),
            "decode": (partial(tokenizer.decode, self.latents), "latents to one clip", 1.0),
            "clip": (partial(self._sample, STEPS), f"noise to uint8 video: {STEPS} guided steps and decoding", 1.0),
            "100 steps": (partial(self._sample, 100), "noise to uint8 video: 100 guided steps and decoding", 1.0),
        }
        counted = {name: flops_of(run) for name, (run, _, _) in made.items() if name not in ("clip", "100 steps")}
        for name, steps in (("clip", STEPS), ("100 steps", 100)):
            counted[name] = steps * counted["guided step"] + counted["decode"]
        return {name: Stage(run, what, counted[name], clips, self.dtype) for name, (run, what, clips) in made.items()}

    @torch.inference_mode()
    def _sample(self, steps: int) -> Tensor:
        labels = [0] if self.pipeline.num_classes else None
        output: Any = self.pipeline(
            class_labels=labels,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        )
        return (output.frames * 255).round().byte().cpu()

    def _step(self, scale: float) -> Callable[[], Tensor]:
        denoiser = self.pipeline.denoiser
        labels = torch.zeros(1, dtype=torch.int64, device=self.device) if self.pipeline.num_classes else None
        rate = torch.full((1,), 8.0, device=self.device)
        timestep = torch.full((1,), 500.0, device=self.device)
        planned = StepModulations(denoiser, timestep)  # as in sampling, where those of all steps are made at once

        def denoise(noisy: Tensor, time: Tensor, class_labels: Tensor | None, fps: Tensor) -> Tensor:
            return denoiser(noisy, time, class_labels, fps, planned.at(time, class_labels, fps))

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


def evaluation_stage(device: torch.device) -> Stage:
    """I3D with random weights on two clips of 16 frames."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.rand(shape, generator=generator) * 0.02 for name, shape in shapes().items()}
    network = I3D(tensors).to(device)
    clips = torch.rand(2, 3, 16, SIDE, SIDE, device=device) * 2 - 1
    run = partial(network, clips)
    return Stage(run, "features of two clips of 16 frames (I3D)", flops_of(run), 2.0)


def start_stages() -> dict[str, Stage]:
    """What a user waits for before anything happens, in processes of their own."""
    commands = {
        "import": (["-c", "import vqvdm; vqvdm.VQVDMPipeline"], "python -c 'import vqvdm; vqvdm.VQVDMPipeline'"),
        "help": (["-m", "vqvdm", "--help"], "vqvdm --help"),
    }
    return {
        name: Stage(partial(subprocess.run, [sys.executable, *words], check=True, capture_output=True), what)
        for name, (words, what) in commands.items()
    }


def matrix_product(device: torch.device, dtype: torch.dtype) -> Stage:
    """The ceiling of arithmetic: one large product."""
    x, y = (torch.rand(_MATRIX, _MATRIX, device=device, dtype=dtype) for _ in range(2))
    return Stage(partial(torch.mm, x, y), f"product of {_MATRIX}x{_MATRIX} matrices", 2.0 * _MATRIX**3, dtype=dtype)


def memory_copy(device: torch.device) -> tuple[Stage, float]:
    """The ceiling of memory: a large copy, and the bytes that it reads and writes."""
    source = torch.rand(_COPIED, device=device)
    target = torch.empty_like(source)
    return Stage(partial(target.copy_, source), f"copy of {4 * _COPIED >> 20} MiB"), 8.0 * _COPIED


def _packed_flops(x: torch.Size, weight: torch.Size, *rest: Any, out_shape: torch.Size) -> int:
    """Of a convolution with packed weights: product and sum for each weight that each output meets."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


# What torch does not count by itself.
_UNCOUNTED = (
    {torch.ops.mkldnn._convolution_pointwise: _packed_flops}
    if hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    else {}
)


def flops_of(run: Callable[[], object]) -> float:
    """FLOPs of one run, as torch counts them."""
    with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
        run()
    return float(counter.get_total_flops())
