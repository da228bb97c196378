"""What someone asks of a model, on the command line or on the page, made into a call of its pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import vqvdm
from vqvdm.arguments import frame_rates
from vqvdm.continuation import continue_video
from vqvdm.decode import Video, probe, read_frames, read_video
from vqvdm.errors import InputError
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


def prepare(pipeline: VQVDMPipeline, request: Request) -> tuple[Callable[..., Any], dict[str, Any]]:
    """(what makes videos, its arguments): the pipeline itself, or `continue_video` for videos of several windows.

    Raises:
        InputError: a file that cannot be read, or settings that exclude each other.
    """
    given = _given(pipeline, request)
    arguments: dict[str, Any] = {
        "fps": request.fps,
        "height": request.height,
        "width": request.width,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        **given,
    }
    if request.length is None and (request.video is None or request.mask is not None):
        return pipeline, {**arguments, "num_frames": request.frames}
    if request.frames is not None:
        raise InputError("frames are those of one window, not of longer videos or those that continue; leave them out")
    there = len(given.get("video", ()))
    length = request.length or there + pipeline.config["num_frames"] - min(request.overlap, there)
    return partial(continue_video, pipeline, length, overlap=request.overlap), arguments


def strange_rate(pipeline: VQVDMPipeline, fps: float | None) -> str | None:
    """What to say of a frame rate far from all that the model was trained with; None if there is nothing to say."""
    about = pipeline.config["about"]
    slowest, fastest = about.get("slowest_fps"), about.get("fastest_fps")
    if fps is None or not (isinstance(slowest, int | float) and isinstance(fastest, int | float)):
        return None
    if slowest / _FAR <= fps <= fastest * _FAR:
        return None
    seen = f"{slowest:.4g}" if slowest == fastest else f"{slowest:.4g} to {fastest:.4g}"
    return (
        f"the model was trained at {seen} frames per second and knows no motion at {fps:g}; "
        "a video made at a rate it knows can be played at any"
    )


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


def model_name(model: str) -> str:
    """By what name to call a model of a folder, of the hub or of the package; of a run the run's."""
    if not Path(model).exists():
        return model
    folder = Path(model).resolve()
    return folder.parent.name if folder.name == "pipeline" else folder.name


def _given(pipeline: VQVDMPipeline, request: Request) -> dict[str, Any]:
    """Pictures and frames as arguments of the call, a video at the frame rate of what is made."""
    pictures = {"image": request.image, "last_image": request.last_image}
    given: dict[str, Any] = {name: _picture(picture) for name, picture in pictures.items() if picture is not None}
    if request.video is not None:
        (fps,) = frame_rates(pipeline.config["fps"] if request.fps is None else request.fps, prompts=None, videos=1)
        given["video"] = _at_rate(request.video, fps)
    if request.mask is not None:
        given["mask"] = _picture(request.mask).mean(-1) > 127
        if request.video is not None:
            given["video"] = given["video"][: request.frames or pipeline.config["num_frames"]]
    return given


def _picture(picture: Path | Video) -> Video:
    """uint8 (h, w, 3)."""
    return read_video(picture, count=1)[0] if isinstance(picture, Path) else picture


def _at_rate(video: Path | Video, fps: float) -> Video:
    """Frames of a file, some left out or repeated so that its speed stays at this rate; an array as it is."""
    if not isinstance(video, Path):
        return video
    info = probe(video)
    number = max(round(info.frames * fps / info.fps), 1)
    numbers = [min(int((k + 0.5) * info.fps / fps), info.frames - 1) for k in range(number)]
    return read_frames(video, numbers, info)
