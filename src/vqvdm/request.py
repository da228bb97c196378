"""What someone asks of a model, on the command line or on the page, and what files say of it.

Nothing here needs the libraries of the networks, which take seconds to load: the page is up before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vqvdm
from vqvdm.decode import Video
from vqvdm.models import model_name
from vqvdm.structure import is_finite

if TYPE_CHECKING:
    from vqvdm.pipeline import VQVDMPipeline

_FAR = 1.1  # times the rates of training, up to which nothing is said


@dataclass(frozen=True)
class Request:
    """Settings of a sampling; None leaves one to the model. Pictures and videos are files, or uint8 arrays."""

    fps: float | None = None
    frames: int | None = None  # of a video of one window
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    guidance: float | None = None
    image: Path | Video | None = None  # with which each video begins
    last_image: Path | Video | None = None  # with which each video ends
    video: Path | Video | None = None  # to be continued, or of which a part is made anew
    mask: Path | Video | None = None  # whose bright parts are made anew
    length: int | None = None  # frames of the finished video, window by window, those given included
    overlap: int = 8  # frames that each further window is given, at least


def doubts(pipeline: VQVDMPipeline, fps: float | None, steps: int | None) -> list[str]:
    """What to say of a frame rate or a number of steps that the model has not learnt; None is the model's own.

    One that is none, such as 0, is left to those who refuse it.
    """
    about = pipeline.config["about"]
    return [doubt for doubt in (_strange_rate(about, fps), _strange_steps(about, steps)) if doubt]


def _strange_steps(about: Mapping[str, Any], steps: int | None) -> str | None:
    learnt = about.get("learnt_steps")
    if steps is None or steps < 1 or learnt in (None, steps):
        return None
    return f"the model is a student that learnt to sample in {learnt} steps; in {steps} it makes worse videos"


def _strange_rate(about: Mapping[str, Any], fps: float | None) -> str | None:
    seen = learnt_rates(about)
    if seen is None or fps is None or fps <= 0 or about["slowest_fps"] / _FAR <= fps <= about["fastest_fps"] * _FAR:
        return None
    return (
        f"the model was trained at {seen} frames per second and knows no motion at {fps:g}; "
        "a video made at a rate it knows can be played at any"
    )


def learnt_rates(about: Mapping[str, Any]) -> str | None:
    """The frame rates that a model was trained at, such as "8 to 16"; None if its facts do not say."""
    slowest, fastest = about.get("slowest_fps"), about.get("fastest_fps")
    if not (is_finite(slowest) and is_finite(fastest)):
        return None
    return f"{slowest:.4g}" if slowest == fastest else f"{slowest:.4g} to {fastest:.4g}"


def provenance(pipeline: VQVDMPipeline, model: str, request: Request) -> dict[str, Any]:
    """What a file says of how it was made, beside its own seed, class and frame rate."""
    config = pipeline.config
    facts = {
        "generator": f"vqvdm {vqvdm.__version__}",
        "ai_generated": True,
        "digital_source_type": "trainedAlgorithmicMedia",  # IPTC's term for what a trained model made
        "model": model_name(model),
        "steps": request.steps or config["num_inference_steps"],
        "guidance_scale": config["guidance_scale"] if request.guidance is None else request.guidance,
        "scheduler": type(pipeline.scheduler).__name__,
    }
    given = {name: getattr(request, name) for name in ("image", "last_image", "video", "mask")}
    names = {name: it.name if isinstance(it, Path) else "given" for name, it in given.items() if it is not None}
    return facts | names
