"""What someone asks of a model made into a call of its pipeline."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vqvdm.arguments import frame_rates
from vqvdm.continuation import continue_video
from vqvdm.decode import Video, probe, read_frames, read_video
from vqvdm.errors import InputError
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.request import Request


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
