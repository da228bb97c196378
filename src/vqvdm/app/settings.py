"""What is asked for by one press of the button, within limits, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass

from vqvdm.errors import InputError
from vqvdm.video import Video

MOST_VIDEOS, MOST_FRAMES, MOST_STEPS, MOST_GUIDANCE = 64, 512, 250, 50


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


class Stopped(Exception):
    """Whoever asked has left."""


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
