"""Videos longer than a model makes at a time: window by window, each begins with the last frames of the one before."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvdm.arguments import count, frame_rates, one_generator_each
from vqvdm.errors import InputError
from vqvdm.given import read_frames
from vqvdm.output import VQVDMPipelineOutput
from vqvdm.pipeline import VQVDMPipeline

_STILL = 8 / 255  # a change beyond it is something that moves


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

    Frames of a given `video` stay as they are. What the tokenizer makes of the last of them differs a little: so that
    this does not show as a jump, the difference is carried on where nothing moves, and fades. Windows fade into each
    other, so frames of the overlap are of both.

    Args:
        pipeline: makes its own number of frames at a time.
        num_frames: of the whole video, those given included.
        video: frames to continue, in the forms of `given.read_given`, of any number.
        overlap: frames that each window is given of those before, at least; fewer than it makes.
        last_image: a picture with which the whole ends; then of a window's frames at least.
        generator: as in a call of the pipeline; each window draws from it anew.
        output_type: "pil", "np" or "pt".
        arguments: others of the call, such as `class_labels`, `fps`, `image` and `guidance_scale`.

    Raises:
        InputError: as a call of the pipeline; or an overlap that leaves nothing to make. A call that is interrupted
            returns the windows that were finished.
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
    if last_image is not None and total < window:
        raise InputError(
            f"num_frames is {total}, fewer than the {window} of a window, with which last_image would end; "
            f"take {window} or more, or call the pipeline with num_frames"
        )
    rates = _rates(pipeline, arguments)
    generators, seeds = one_generator_each(generator, len(rates))
    size = [count(name, arguments.get(name) or pipeline.config[name]) for name in ("height", "width")]
    made: Tensor | None = None  # (b, t, 3, h, w) in 0..1
    if video is not None:
        made = read_frames("video", video, (size[0], size[1]), len(rates)).expand(len(rates), -1, -1, -1, -1)
        if made.shape[1] >= total:
            raise InputError(f"video has {made.shape[1]} frames already; num_frames must be more, not {total}")
    theirs = 0 if made is None else made.shape[1]
    for first, end in spans(total, window, overlap, theirs):
        there = 0 if made is None else made.shape[1]
        last = last_image if end >= total else None
        if made is not None and last is not None and end == there + 1:  # the picture is all that is missing
            frame = read_frames("last_image", last, (size[0], size[1]), len(rates))
            made = torch.cat([made, frame.expand(len(rates), -1, -1, -1, -1)], dim=1)
            break
        output = pipeline(
            num_frames=window,
            generator=generators,
            output_type="pt",
            video=None if made is None else made[:, first:],
            last_image=last,
            **{name: value for name, value in arguments.items() if made is None or name != "image"},
        )
        assert isinstance(output, VQVDMPipelineOutput)
        assert isinstance(output.frames, Tensor)
        frames = output.frames.cpu()
        if made is None:
            made = frames
        elif not pipeline.interrupt:  # a window that was broken off shows noise
            made = _followed(made, frames, first, theirs)
        if pipeline.interrupt:
            break
    assert made is not None
    clips = made[:, :total].transpose(1, 2) * 2 - 1
    shown: Any = pipeline.video_processor.postprocess_video(clips, output_type=output_type)
    return VQVDMPipelineOutput(frames=shown, fps=rates, seeds=seeds)


def _followed(made: Tensor, window: Tensor, first: int, theirs: int) -> Tensor:
    """What there is, of which `theirs` frames were given, and the window that begins at its frame `first`."""
    there = made.shape[1]
    ours = max(theirs, first)  # the first frame of the overlap that may change
    again, new = window[:, : there - first], window[:, there - first :]
    if ours == there:
        new = joined(made[:, -1], again[:, -1], new)
    return torch.cat([made[:, :ours], faded(made[:, ours:], again[:, ours - first :]), new], dim=1)


def faded(there: Tensor, again: Tensor) -> Tensor:
    """The same frames twice, (b, t, c, h, w): from the first form into the second."""
    t = there.shape[1]
    share = torch.arange(1, t + 1).view(t, 1, 1, 1) / (t + 1)
    return there + share * (again - there)


def joined(there: Tensor, again: Tensor, new: Tensor) -> Tensor:
    """Frames that follow, without a jump from what is there.

    Args:
        there: (b, c, h, w) in 0..1, the last frame that stays.
        again: likewise, what was decoded in its place.
        new: (b, t, c, h, w), what was decoded after it.

    Returns:
        `new` with the difference of the two added: wholly at first, less from frame to frame, and the less the more a
        pixel or one beside it differs from `again` (of 8 grey levels a third, of 20 nothing).
    """
    b, t, _, h, w = new.shape
    changed = (new - again[:, None]).abs().amax(2).flatten(0, 1)  # (b t, h, w)
    changed = F.max_pool2d(changed[:, None], 3, stride=1, padding=1).view(b, t, 1, h, w)
    fading = 1 - torch.arange(t).view(t, 1, 1, 1) / t
    return (new + fading * torch.exp(-(changed / _STILL).square()) * (there - again)[:, None]).clamp(0, 1)


def spans(total: int, window: int, overlap: int, given: int) -> list[tuple[int, int]]:
    """(first, end) frame of each window that is made after `given` frames; the last ends with the video, if it can."""
    windows, there = [], given
    while there < total:
        first = max(0, min(there - overlap, total - window))
        windows.append((first, first + window))
        there = first + window
    return windows


def _rates(pipeline: VQVDMPipeline, arguments: dict[str, Any]) -> list[float]:
    """Frames per second of each video that a call with these arguments makes."""
    labels = arguments.get("class_labels")
    prompts = None if labels is None else len(pipeline.get_label_ids(labels))
    fps = arguments.get("fps")
    each = count("num_videos_per_prompt", arguments.get("num_videos_per_prompt", 1))
    return frame_rates(pipeline.config["fps"] if fps is None else fps, prompts, each)
