"""What the figures mean on a data set: its halves against each other, and its clips against damaged copies of them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vqvdm.data.clips import ClipTiming
from vqvdm.evaluation.sources import Clip, FileVideos, Videos, in_8_bits
from vqvdm.metrics.protocol import Draw
from vqvdm.video import Video


def _each_frame(change: Callable[[Image.Image], Image.Image]) -> Callable[[Video], Video]:
    return lambda video: np.stack([np.asarray(change(Image.fromarray(frame))) for frame in video])


def _jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def compressed(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return compressed


def _shuffled(video: Video) -> Video:
    return video[np.random.default_rng(len(video)).permutation(len(video))]


DAMAGES: Mapping[str, Callable[[Video], Video]] = {
    "JPEG, quality 95": _each_frame(_jpeg(95)),
    "JPEG, quality 75": _each_frame(_jpeg(75)),
    "blurred by 1 pixel": _each_frame(lambda image: image.filter(ImageFilter.GaussianBlur(1))),
    "reversed": lambda video: video[::-1],
    "frames shuffled": _shuffled,
    "frozen": lambda video: np.repeat(video[:1], len(video), axis=0),
    "red and blue exchanged": lambda video: video[..., ::-1],
}


class DamagedVideos:
    """The same clips, each changed; in 8 bits."""

    def __init__(self, videos: Videos, damage: str) -> None:
        self.videos, self.damage = videos, damage
        self.name, self.split, self.lengths = f"{videos.name}, {damage}", videos.split, videos.lengths
        self.skipped: list[str] = []
        self.facts: Mapping[str, Any] = {"damage": damage}

    def starts(self, timing: ClipTiming) -> NDArray[np.int64]:
        return self.videos.starts(timing)

    def label(self, video: int) -> str | None:
        return self.videos.label(video)

    def clips(self, draws: Sequence[Draw], timing: ClipTiming) -> Iterator[Clip]:
        for clip in self.videos.clips(draws, timing):
            yield Clip(np.ascontiguousarray(DAMAGES[self.damage](in_8_bits(clip.frames))))

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.videos.digest} {self.damage}".encode()).hexdigest()[:16]


class HalfOfVideos:
    """Half of the videos; those that were cut from one source are in one half, as in a fair split."""

    def __init__(self, videos: Videos, half: int) -> None:
        self.videos, self.split = videos, videos.split
        self.name = f"{videos.name}, half {half + 1}"
        self.skipped: list[str] = []
        self.facts: Mapping[str, Any] = videos.facts
        groups = videos.groups if isinstance(videos, FileVideos) else [str(k) for k in range(len(videos.lengths))]
        order = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        self._numbers = np.flatnonzero([order[group] % 2 == half for group in groups])
        self.lengths = videos.lengths[self._numbers]

    def starts(self, timing: ClipTiming) -> NDArray[np.int64]:
        return self.videos.starts(timing)[self._numbers]

    def label(self, video: int) -> str | None:
        return self.videos.label(int(self._numbers[video]))

    def clips(self, draws: Sequence[Draw], timing: ClipTiming) -> Iterator[Clip]:
        return self.videos.clips([Draw(int(self._numbers[draw.video]), draw.start) for draw in draws], timing)

    @property
    def digest(self) -> str:
        return f"{self.videos.digest} {self._numbers.tolist()}"
