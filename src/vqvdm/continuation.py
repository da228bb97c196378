"""Videos longer than a model makes at a time: window by window, each begins with the last frames of the one before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvdm.arguments import count, frame_rates, one_generator_each
from vqvdm.errors import InputError
from vqvdm.given import read_frames
from vqvdm.output import VQVDMPipelineOutput
from vqvdm.pipeline import VQVDMPipeline


def continue_video(
    pipeline: VQVDMPipeline,
    num_frames: int,
    video: Any = None,
    *,
    overlap: int = 8,
    last_image: Any = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    output_type: str = "pil",
    **arguments: Any,
) -> VQVDMPipelineOutput:
    """Make videos of any length; a video that is given is continued, otherwise the first window begins it.

    Args:
        pipeline: makes its own number of frames at a time.
        num_frames: of the whole video, those given included.
        video: frames to continue, in the forms of `given.read_given`, of any number.
        overlap: frames that each window is given of those before, at least; fewer than it makes.
        last_image: a picture with which the whole ends.
        generator: as in a call of the pipeline; each window draws from it anew.
        output_type: "pil", "np" or "pt".
        arguments: others of the call, such as `class_labels`, `fps`, `image` and `guidance_scale`.

    Raises:
        InputError: as a call of the pipeline; or an overlap that leaves nothing to make.
    """
    window, overlap, total = pipeline.config["num_frames"], count("overlap", overlap), count("num_frames", num_frames)
    if overlap >= window:
        raise InputError(f"overlap is {overlap}, but a window has {window} frames: nothing would be made; take fewer")
    if output_type not in ("pil", "np", "pt"):
        raise InputError(f"output_type must be pil, np or pt for videos of several windows, not {output_type!r}")
    if video is not None and arguments.get("image") is not None:
        raise InputError("image and video both say how the video begins; give one of them")
    if arguments.get("mask") is not None:
        raise InputError("mask is for a single call of the pipeline, not for videos of several windows")
    videos = _videos(pipeline, arguments)
    generators, seeds = one_generator_each(generator, videos)
    made: Tensor | None = None  # (b, t, 3, h, w) in 0..1
    if video is not None:
        h, w = (arguments.get(name) or pipeline.config[name] for name in ("height", "width"))
        made = read_frames("video", video, (h, w), videos).expand(videos, -1, -1, -1, -1)
        if made.shape[1] >= total:
            raise InputError(f"video has {made.shape[1]} frames already; num_frames must be more, not {total}")
    rates: list[float] = []
    for first, end in spans(total, window, overlap, 0 if made is None else made.shape[1]):
        given: dict[str, Any] = {} if made is None else {"video": made[:, first:]}
        output = pipeline(
            num_frames=window,
            generator=generators,
            output_type="pt",
            last_image=last_image if end >= total else None,
            **given,
            **{name: value for name, value in arguments.items() if made is None or name != "image"},
        )
        assert isinstance(output, VQVDMPipelineOutput)
        assert isinstance(output.frames, Tensor)
        frames, rates = output.frames.cpu(), output.fps
        made = frames if made is None else torch.cat([made, frames[:, made.shape[1] - first :]], dim=1)
        if pipeline.interrupt:
            break
    assert made is not None
    clips = made[:, :total].transpose(1, 2) * 2 - 1
    shown: Any = pipeline.video_processor.postprocess_video(clips, output_type=output_type)
    return VQVDMPipelineOutput(frames=shown, fps=rates, seeds=seeds)


def spans(total: int, window: int, overlap: int, given: int) -> list[tuple[int, int]]:
    """(first, end) frame of each window that is made after `given` frames; the last ends with the video, if it can."""
    windows, there = [], given
    while there < total:
        first = max(0, min(there - overlap, total - window))
        windows.append((first, first + window))
        there = first + window
    return windows


def _videos(pipeline: VQVDMPipeline, arguments: dict[str, Any]) -> int:
    """How many videos a call with these arguments makes."""
    labels = arguments.get("class_labels")
    prompts = None if labels is None else len(pipeline.get_label_ids(labels))
    fps = arguments.get("fps")
    each = count("num_videos_per_prompt", arguments.get("num_videos_per_prompt", 1))
    return len(frame_rates(pipeline.config["fps"] if fps is None else fps, prompts, each))
