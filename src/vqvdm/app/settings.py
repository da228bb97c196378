"""What is asked for by one press of the button, within limits; how far it is; what a form must know of a model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqvdm.errors import InputError
from vqvdm.video import Video

MOST_VIDEOS, MOST_FRAMES, MOST_STEPS, MOST_GUIDANCE = 64, 512, 250, 50
_MOST_CLASSES = 10**6
# By what the denoiser predicts, what `Objective.make_scheduler` takes.
_FLOW, _DISCRETE = ("dpm++", "unipc", "euler", "heun", "ddim"), ("dpm++", "unipc", "euler", "ddim", "ddpm")


@dataclass(frozen=True)
class Settings:
    """What is asked for by one press of the button."""

    classes: tuple[str, ...] = ()  # names; without any, videos of no class
    count: int = 1  # videos of each class
    fps: float = 8.0
    frames: int = 16  # more than the model makes at a time are made window by window
    steps: int = 20
    guidance: float = 2.0
    scheduler: str = ""  # the model's own, or a name that `Objective.make_scheduler` takes
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """How far a sampling is."""

    step: int  # of the denoiser, in all batches and windows
    steps: int
    seconds_left: float | None  # None before there is anything to judge by
    names: tuple[str, ...] = ()  # of the videos of this batch
    previews: tuple[Video, ...] = ()  # what they are taken for now; empty where nothing new is shown
    fps: float = 8.0


@dataclass(frozen=True)
class Described:
    """What a form must know of a model; all of it stands in the model's configurations."""

    name: str
    classes: tuple[str, ...]  # names; ids in the place of names that the model does not know
    window: int  # frames that it makes at a time
    step: int  # of what number of frames it makes multiples
    schedulers: tuple[str, ...]
    reconstructs: bool  # whether there is a tokenizer
    defaults: Settings


def describe(
    name: str, pipeline: Mapping[str, Any], denoiser: Mapping[str, Any], tokenizer: Mapping[str, Any] | None
) -> Described:
    """What a form must know, from the configurations of a pipeline, its denoiser and its tokenizer.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError, AttributeError: they are not such configurations.
    """
    names, frames, classes = pipeline["id2label"], int(pipeline["num_frames"]), int(denoiser["num_classes"])
    strides = [] if tokenizer is None else [tokenizer["patch"], *tokenizer["strides"]]
    step = math.prod(int(stride[0]) for stride in (denoiser["patch"], *strides))
    if not (0 <= classes <= _MOST_CLASSES and 0 < step <= frames):
        raise ValueError(f"{classes} classes, {frames} frames in steps of {step}")
    return Described(
        name=name,
        classes=tuple(str(names.get(str(label), label)) for label in range(classes)),
        window=frames,
        step=step,
        schedulers=_FLOW if pipeline["diffusion"]["prediction"] == "flow" else _DISCRETE,
        reconstructs=tokenizer is not None,
        defaults=Settings(
            fps=float(pipeline["fps"]),
            frames=frames,
            steps=int(pipeline["num_inference_steps"]),
            guidance=float(pipeline["guidance_scale"]),
        ),
    )


def described(name: str, folder: Path) -> Described | None:
    """What the files of a pipeline say, without loading it; None if they are not as this version writes them."""

    def read(part: str) -> Any:
        return json.loads((folder / part).read_bytes())

    try:
        index = read("model_index.json")
        tokenizer = read("tokenizer/config.json") if index["tokenizer"][0] is not None else None
        return describe(name, index, read("denoiser/config.json"), tokenizer)
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError):
        return None


def check(settings: Settings) -> None:
    """Refuse what would keep the machine busy for hours, or is no number at all.

    Raises:
        InputError: naming the setting, its value and what would be right.
    """
    whole = {
        "count": (settings.count, 1, MOST_VIDEOS),
        "frames": (settings.frames, 1, MOST_FRAMES),
        "steps": (settings.steps, 1, MOST_STEPS),
        "seed": (settings.seed, 0, 2**53 - 1),
    }
    real = {"fps": (settings.fps, 0.1, 240.0), "guidance": (settings.guidance, 0.0, MOST_GUIDANCE)}
    for name, (value, least, most) in (whole | real).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise InputError(f"{name} must be a number from {least} to {most}, not {value!r}")
        if name in whole and value != int(value):
            raise InputError(f"{name} must be a whole number, not {value}")


def in_words(seconds: float) -> str:
    """A duration as one says it."""
    if seconds < 1.5:
        return "a second" if seconds >= 0.5 else "a moment"
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
