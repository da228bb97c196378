"""What becomes of given frames, and of videos longer than a model's clip: whether they are kept, joined, and drift."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vqvdm.continuation import continue_video
from vqvdm.generation import video_seed
from vqvdm.metrics.quality import psnr, squared_errors
from vqvdm.metrics.seams import frame_changes
from vqvdm.output import VQVDMPipelineOutput
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.video import to_clip, to_video

Clips = NDArray[np.uint8]  # (n, t, h, w, 3)


@dataclass(frozen=True)
class Kept:
    """Frames that were given, in what was made.

    Attributes:
        psnr: to what was given, in dB, of all its pixels together; at most 100.
        to_reconstruction: to the tokenizer's own reconstruction of the clips that they are of.
        tokenizer: of that reconstruction to what was given.
        joint: change from the last given frame to the first made one, and back at the other end, over that of the
            reconstruction in the same places, which has the tokenizer's own flicker; 1 is no joint.
    """

    psnr: float
    to_reconstruction: float
    tokenizer: float
    joint: float


@dataclass(frozen=True)
class Window:
    """A stretch of the long videos.

    Attributes:
        first, end: its frames.
        motion: mean absolute change from frame to frame, over that of the real clips.
        colour: mean over clips of how far the mean colour lies from that of the clip that is continued, in grey levels
            of 255 (mean of three channels).
        obeyed: share in which the class is still seen; None where nobody can tell.
        fvd: to real clips; None where it was not measured.
    """

    first: int
    end: int
    motion: float
    colour: float
    obeyed: float | None = None
    fvd: float | None = None


def given_frames(real: Clips, number: int, ends: bool) -> dict[str, Any]:
    """Arguments of the pipeline's call that give the first `number` frames of clips, and with `ends` the last one."""
    first = {"image": list(real[:, 0])} if number == 1 else {"video": list(real[:, :number])}
    return first | ({"last_image": list(real[:, -1])} if ends else {})


def kept(real: Clips, made: Clips, reconstructed: Clips, number: int, ends: bool) -> Kept:
    """Compare what was made with what was given of the real clips; arguments of `given_frames`."""
    frames = [*range(number), *([real.shape[1] - 1] if ends else [])]
    joints = [number, *([real.shape[1] - 1] if ends else [])]
    changes = [changes_of(clips)[:, np.array(joints) - 1].mean() for clips in (made, reconstructed)]
    return Kept(
        _psnr(real[:, frames], made[:, frames]),
        _psnr(reconstructed[:, frames], made[:, frames]),
        _psnr(real[:, frames], reconstructed[:, frames]),
        float(changes[0] / changes[1]) if changes[1] else float("nan"),
    )


def _psnr(a: Clips, b: Clips) -> float:
    return float(psnr(np.mean([squared_errors(x, y).mean() for x, y in zip(a, b, strict=True)])))


def changes_of(clips: Clips) -> NDArray[np.float64]:
    """`frame_changes` of each clip: (n, t - 1)."""
    return np.stack([frame_changes(clip) for clip in clips])


def joint_of(clips: Clips, windows: Sequence[tuple[int, int]], given: int, factor: int) -> float:
    """Change of long videos where each window begins to add frames, over that at other frames; 1 is no visible joint.

    What a tokenizer decodes changes more where latents meet. So other frames are those that lie to the window's latents
    as its joint does. Of a difference between windows only a part is left at the joint: they fade into each other.

    Args:
        clips: the videos.
        windows: (first, end) frame of each, as of `vqvdm.continuation.spans`.
        given: frames that were there before.
        factor: frames of a latent.

    Returns:
        NaN where there are no other frames, or where these do not change.
    """
    joints, others, there = [], [], given
    for _, end in windows:
        joints.append(there)
        others += [k for k in range(there + 1, end) if (k - there) % factor == 0]
        there = end
    others = sorted(set(others) - set(joints))
    changes = changes_of(clips)
    usual = changes[:, np.array(others) - 1].mean() if others else 0.0
    return float(changes[:, np.array(joints) - 1].mean() / usual) if usual else float("nan")


def windows_of(total: int, window: int, given: int) -> list[tuple[int, int]]:
    """(first, end) of the stretches of a window's length that lie in what was made, one after another."""
    return [(first, first + window) for first in range(given, total - window + 1, window)]


def measured_windows(
    long: Clips, real: Clips, stretches: Sequence[tuple[int, int]], obeys: Callable[[int, Clips], bool] | None
) -> tuple[list[Window], NDArray[np.float64] | None]:
    """The stretches of long videos, and in which of them each video's class is seen, (n, stretches).

    Args:
        long: the videos.
        real: the clips that they continue.
        stretches: as of `windows_of`.
        obeys: whether a clip (t, h, w, 3) shows the class of the video of that number.
    """
    usual, colours = changes_of(real).mean(), _colours(real)
    seen = None
    if obeys is not None:
        seen = np.array([[obeys(n, video[a:b]) for a, b in stretches] for n, video in enumerate(long)], np.float64)
    windows = []
    for number, (first, end) in enumerate(stretches):
        motion = float(changes_of(long[:, first:end]).mean() / usual) if usual else float("nan")
        colour = float(np.abs(_colours(long[:, first:end]) - colours).mean())
        windows.append(Window(first, end, motion, colour, None if seen is None else float(seen[:, number].mean())))
    return windows, seen


def _colours(clips: Clips) -> NDArray[np.float64]:
    """Of each clip the mean: (n, 3)."""
    return clips.mean(axis=(1, 2, 3))


class Continuer:
    """A pipeline that is given frames of real clips, batch by batch; each video has a seed of its own."""

    def __init__(
        self,
        pipeline: VQVDMPipeline,
        labels: Sequence[int] | None,
        sampling: Mapping[str, Any],
        batch: int,
        seed: int = 0,
    ) -> None:
        """`labels` are those of the clips; `sampling` are arguments of the pipeline's call."""
        self.pipeline, self.labels, self.sampling, self.batch, self.seed = pipeline, labels, sampling, batch, seed
        pipeline.set_progress_bar_config(disable=True)

    def clips(self, real: Clips, number: int, ends: bool) -> Clips:
        """One clip for each real one, with arguments of `given_frames`."""
        made = []
        for first, clips in self._parts(real):
            made.append(self._call(self.pipeline, first, len(clips), **given_frames(clips, number, ends)))
        return np.concatenate(made)

    def long(self, real: Clips, length: int, overlap: int) -> Clips:
        """Each real clip continued to `length` frames."""
        made = []
        for first, clips in tqdm(self._parts(real), desc="long videos", unit="batch"):
            call = partial(continue_video, self.pipeline, length, list(clips), overlap=overlap)
            made.append(self._call(call, first, len(clips)))
        return np.concatenate(made)

    @torch.inference_mode()
    def reconstructed(self, real: Clips) -> Clips:
        """The clips through the tokenizer; themselves where there is none."""
        tokenizer = self.pipeline.tokenizer
        if tokenizer is None:
            return real
        made = []
        for _, clips in self._parts(real):
            pixels = torch.stack([to_clip(clip) for clip in clips]).to(tokenizer.device, tokenizer.dtype)
            made += [to_video(clip) for clip in tokenizer.decode(tokenizer.encode(pixels))]
        return np.stack(made)

    def _parts(self, real: Clips) -> list[tuple[int, Clips]]:
        """(number of the first, clips) of each batch."""
        return [(first, real[first : first + self.batch]) for first in range(0, len(real), self.batch)]

    def _call(self, call: Callable[..., Any], first: int, number: int, **given: Any) -> Clips:
        labels = None if self.labels is None else list(self.labels[first : first + number])
        seeds = [video_seed(self.seed, None, first + n) for n in range(number)]
        output = call(
            class_labels=labels,
            num_videos_per_prompt=1 if labels else number,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
            **given,
            **self.sampling,
        )
        assert isinstance(output, VQVDMPipelineOutput)
        return np.stack(output.videos())
