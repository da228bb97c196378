"""Clips of real videos: windows of n frames at a wanted rate, resized and cropped, as a map-style data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vqvdm.data.index import Entry
from vqvdm.data.listing import Sample, open_video
from vqvdm.decode import VideoError, VideoInfo, read_frames
from vqvdm.errors import InputError, logger_of
from vqvdm.video import Video, to_clip

if TYPE_CHECKING:
    from vqvdm.data.shards import Shards

logger = logger_of(__name__)

_SUBSTITUTES = 20  # videos tried in the place of one that does not decode
_HALF = 0.5 + 1e-3  # a time up to half a frame past the last frame is still served by it


@dataclass(frozen=True)
class ClipTiming:
    """Which frames of a video make a clip: `frames` of them at `fps`, or every `stride`-th one if fps is None."""

    frames: int
    fps: float | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise InputError(f"frames {self.frames}: must be at least 1")
        if self.stride < 1:
            raise InputError(f"stride {self.stride}: must be at least 1")
        if self.fps is not None and not self.fps > 0:
            raise InputError(f"fps {self.fps}: must be above 0")

    def needed(self, rate: float) -> int:
        """Frames that a video of evenly spaced frames at `rate` per second must have."""
        if self.fps is None:
            return (self.frames - 1) * self.stride + 1
        return int(np.ceil((self.frames - 1) * rate / min(self.fps, rate) - _HALF)) + 1

    def starts(self, times: NDArray[np.float64], rate: float) -> int:
        """How many frames a clip can start at: 0 .. starts - 1. 0 if the video is too short.

        `times` (n,) are the frames' seconds, `rate` the video's mean rate.
        """
        if self.fps is None:
            return max(0, len(times) - (self.frames - 1) * self.stride)
        clocks, ends = times, _ends(times, rate)
        for _ in range(self.frames - 1):
            if not len(clocks):
                return 0
            clocks = _tick(clocks, 1 / self.fps, ends)
            # A later start never ends earlier, so those that run out of frames are the last ones.
            clocks = clocks[: np.searchsorted(clocks, ends[-1])]
        return len(clocks)

    def pick(self, times: NDArray[np.float64], rate: float, start: int) -> tuple[NDArray[np.int64], float]:
        """(frame numbers (frames,), the rate in frames per second that they really have) of the clip from `start`.

        At a wanted rate each frame is the one nearest in time to start + k / fps. Where the video is slower than that,
        the clock waits for its next frame: none is shown twice to feign a higher rate.
        """
        if self.fps is None:
            numbers = start + self.stride * np.arange(self.frames)
        else:
            ends = _ends(times, rate)
            clocks = [times[start : start + 1]]
            for _ in range(self.frames - 1):
                clocks.append(_tick(clocks[-1], 1 / self.fps, ends))
            numbers = _shown(np.concatenate(clocks), ends)
        seconds = times[numbers[-1]] - times[numbers[0]]
        if self.frames == 1 or seconds <= 0:
            return numbers, min(self.fps, rate) if self.fps else rate / self.stride
        return numbers, float((self.frames - 1) / seconds)


def _ends(times: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """When each frame ceases to be the nearest in time, in seconds: (n,). Halfway the later one is the nearest."""
    last = times[-1:] + _HALF * (times[-1:] - times[-2:-1] if len(times) > 1 else 1 / rate)
    return np.concatenate([(times[:-1] + times[1:]) / 2 - 1e-9, last])  # rounding errors must not decide


def _shown(clocks: NDArray[np.float64], ends: NDArray[np.float64]) -> NDArray[np.int64]:
    """The number of the frame that is nearest at each time; n after the last one."""
    return np.searchsorted(ends, clocks, side="right")


def _tick(clocks: NDArray[np.float64], step: float, ends: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each clock `step` seconds on, or more where the frame shown lasts longer; any past the last one's end is out."""
    return np.maximum(clocks + step, ends[_shown(clocks, ends)])


@dataclass(frozen=True)
class _Source:
    """A video that is long enough: frames first .. first + len - 1 (a manifest may name a stretch)."""

    path: str
    label: int
    stamp: tuple[int, int]  # the file's size and time
    info: VideoInfo  # as found in the file
    timed: VideoInfo  # with the rate that a manifest states
    first: int
    last: int  # exclusive
    starts: int


class ClipDataset(Dataset[dict[str, torch.Tensor]]):
    """Clips of the videos `samples`, one item a video.

    `dataset[index]` or `dataset[(index, draw)]` is a dict of `clip` (float32 (c, t, size, size), -1..1), `class_label`
    (int64, 0 when unlabelled) and `fps` (float32, the rate that the clip really has). In training, `draw` seeds window,
    crop and flip: one (index, draw) is one clip for ever, in any process. In evaluation it changes nothing: the middle
    window, the centre crop, no flip.

    A video that no longer decodes is replaced in training (logged once, with its reason) by another one that (index,
    draw) determines; in evaluation it raises VideoError.

    `notes` says in words what was left out. Raises InputError if nothing is left.
    """

    def __init__(
        self,
        root: Path | Shards,
        samples: Sequence[Sample],
        index: Mapping[str, Entry],
        classes: Sequence[str],
        timing: ClipTiming,
        size: int,
        crop: Literal["center", "random"] = "center",
        flip: bool = False,
        training: bool = True,
    ) -> None:
        if size < 1:
            raise InputError(f"size {size}: must be at least 1")
        self.root, self.classes, self.timing, self.size = root, tuple(classes), timing, size
        self.crop, self.flip, self.training = crop, flip, training
        self.notes: tuple[str, ...] = ()
        self._failed: set[str] = set()
        self._sources = self._select(samples, index)

    def _select(self, samples: Sequence[Sample], index: Mapping[str, Entry]) -> tuple[_Source, ...]:
        numbers = {name: number for number, name in enumerate(self.classes)}
        sources: list[_Source] = []
        short: list[tuple[Sample, VideoInfo, int]] = []
        bad: list[str] = []
        for sample in samples:
            entry = index[sample.path]
            if entry.info is None:
                bad.append(f"{sample.path}: {entry.error}")
                continue
            timed = restated(entry.info, sample)
            times = timed.frame_times()
            first, last = stretch(sample, times)
            starts = self.timing.starts(times[first:last], timed.fps)
            if starts:
                label = 0 if sample.label is None else numbers[sample.label]
                sources.append(_Source(sample.path, label, entry.stamp, entry.info, timed, first, last, starts))
            else:
                short.append((sample, timed, last - first))
        wanted = describe(self.timing)
        if bad:
            self.notes += (f"{len(bad)} of {len(samples)} videos cannot be read (first: {bad[0]})",)
        if short:
            self.notes += (f"too short for {wanted}: {len(short)} of {len(samples)} videos",)
        if sources:
            return tuple(sources)
        if short:
            sample, info, length = max(short, key=lambda item: item[2])
            raise InputError(
                f"{self.root}: none of the {len(samples)} videos is long enough for {wanted}: "
                f"{self.timing.needed(info.fps)} frames are needed, the longest ({sample.path}) has {length} "
                f"at {info.fps:.4g} fps; ask for fewer frames, a higher fps or a smaller stride"
            )
        if bad:
            raise InputError(f"{self.root}: none of the {len(samples)} videos can be read (first: {bad[0]})")
        raise InputError(f"{self.root}: no videos in this split")

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def names(self) -> tuple[str, ...]:
        """The path of each video, below `root`."""
        return tuple(source.path for source in self._sources)

    @property
    def at_once(self) -> int | None:
        """How many bundles a training shall visit at a time; None where it may visit clips in any order."""
        return None if isinstance(self.root, Path) else self.root.at_once

    @property
    def bundles(self) -> tuple[tuple[int, ...], ...]:
        """Clips, by number, that lie together; none do in a folder."""
        return () if isinstance(self.root, Path) else self.root.bundles(self.names)

    def digest(self) -> str:
        """Changes with the videos: which they are, in what order, their labels and rates, their files' sizes and times.

        The folder around them does not count. A folder of frames counts as changed when a frame comes or goes.
        """
        facts = [(s.path, s.stamp, s.label, s.timed.fps, s.first, s.last) for s in self._sources]
        return hashlib.sha256(json.dumps([self.classes, facts]).encode()).hexdigest()[:16]

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        index, draw = index if isinstance(index, tuple) else (index, 0)
        if not 0 <= index < len(self):
            raise IndexError(index)  # also ends plain iteration
        if not self.training:
            return self._cut(self._sources[index], middle)
        for attempt in range(_SUBSTITUTES):
            random = np.random.default_rng((index, draw, attempt))
            place = index if attempt == 0 else int(random.integers(len(self)))
            try:
                return self._cut(self._sources[place], lambda count: int(random.integers(count)))  # noqa: B023
            except VideoError as error:
                if error.path not in self._failed:
                    self._failed.add(error.path)
                    logger.warning("left out, another video takes its place: %s", error)
        raise InputError(f"{self.root}: {_SUBSTITUTES} videos in a row do not decode; was the folder moved?")

    def _cut(self, source: _Source, choose: Callable[[int], int]) -> dict[str, torch.Tensor]:
        """The clip of `source`; `choose(n)` says which of n windows, places or sides is taken."""
        times = source.timed.frame_times()[source.first : source.last]
        numbers, fps = self.timing.pick(times, source.timed.fps, choose(source.starts))
        wanted = [int(number) + source.first for number in numbers]
        with open_video(self.root, source.path) as file:
            video = read_frames(file, wanted, source.info, short_side=self.size)  # (t, h, w, 3)
        video = square(video, self.size, choose if self.crop == "random" else middle)
        if self.flip and self.training and choose(2):
            video = video[:, :, ::-1]
        return {
            "clip": to_clip(video),  # (c, t, h, w)
            "class_label": torch.tensor(source.label, dtype=torch.int64),
            "fps": torch.tensor(fps, dtype=torch.float32),
        }


def middle(count: int) -> int:
    """The middle one of `count` choices."""
    return (count - 1) // 2


def square(video: Video, size: int, choose: Callable[[int], int] = middle) -> Video:
    """A square out of frames (t, h, w, 3), the middle one by default; `choose(n)` says which of n places is taken."""
    top, left = (choose(length - size + 1) for length in video.shape[1:3])
    return video[:, top : top + size, left : left + size]


def restated(info: VideoInfo, sample: Sample) -> VideoInfo:
    """`info` with evenly spaced frames at the rate that the sample states, if it states one."""
    return info if sample.fps is None else replace(info, fps=sample.fps, times=None)


def stretch(sample: Sample, times: NDArray[np.float64]) -> tuple[int, int]:
    """(first, end) frame numbers between the sample's start and end (seconds); all frames if it names none."""
    first = 0 if sample.start is None else int(np.searchsorted(times, sample.start - 1e-6))
    end = len(times) if sample.end is None else int(np.searchsorted(times, sample.end - 1e-6))
    return first, max(first, end)


def describe(timing: ClipTiming) -> str:
    """The clip asked for, in words."""
    if timing.fps is not None:
        return f"{timing.frames} frames at {timing.fps:g} fps"
    return f"{timing.frames} frames" + (f" at stride {timing.stride}" if timing.stride > 1 else "")
