"""Clips to be scored, wherever they come from: one interface, and the sources of clips that exist already.

A source is a set of videos; the protocol says which clips of them are taken. Arrays of other systems are in
`evaluation.arrays`, what a model makes in `evaluation.models`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from vqvdm.ahead import map_ahead
from vqvdm.data.clips import ClipTiming, describe, restated, square, stretch
from vqvdm.data.index import build_index
from vqvdm.data.layouts import Layout, find_videos
from vqvdm.data.listing import open_video
from vqvdm.data.remote import is_url
from vqvdm.data.worlds import WORLDS, ToyDataset
from vqvdm.decode import VideoError, VideoInfo, read_frames
from vqvdm.errors import InputError
from vqvdm.metrics.protocol import Draw
from vqvdm.video import Video, to_video

_SAMPLED = 1 << 16  # bytes of either end of a file by which it is known
_READERS = 2  # videos decoded at a time, while the networks compute

Frames = NDArray[np.uint8] | NDArray[np.float32]
Split = Literal["train", "test", "all"]


@dataclass(frozen=True)
class Clip:
    """What is scored: frames (t, h, w, 3) RGB, uint8, or float32 in 0..255 where they never were in 8 bits.

    `measures` are a source's own figures of the clip: arrays of one shape for all its clips.
    """

    frames: Frames
    measures: Mapping[str, np.ndarray] = field(default_factory=dict)


class Videos(Interface):
    """A set of videos in a fixed order.

    Attributes:
        name: what the user called it.
        split: of the data set, or "all".
        lengths: (n,) frames of each video.
        skipped: what was left out, with the reason of each.
        facts: what a report says of them, such as the model that made them.
    """

    name: str
    split: str
    lengths: NDArray[np.int64]
    skipped: list[str]
    facts: Mapping[str, Any]

    def starts(self, timing: ClipTiming) -> NDArray[np.int64]:
        """(n,) how many frames of each video such a clip can start at; 0 where the video is too short."""
        ...

    def clips(self, draws: Sequence[Draw], timing: ClipTiming) -> Iterator[Clip]:
        """These clips, in this order."""
        ...

    def label(self, video: int) -> str | None:
        """The class of a video; None if it has none."""
        ...

    @property
    def digest(self) -> str:
        """Changes with the content."""
        ...


def open_videos(
    path: str | Path,
    *,
    layout: Layout = "auto",
    split: Split = "all",
    held_out: bool = False,
    size: int | None = None,
    timing: ClipTiming | None = None,
) -> Videos:
    """The videos at a path.

    Args:
        path: a folder of videos, GIFs or frames in any layout, a manifest, the URL of shards, an array file (.npy,
            .npz, .pt), or a built-in world (toy, toy-clouds).
        layout: of a folder.
        split: of a data set that has splits; of another one all is taken,
        held_out: unless what training sets apart shall count as its test split.
        size: frames of files are resized, antialiased, to this short side and cut to a square, as for training; those
            of arrays must have it.
        timing: the clips that a built-in world renders, which must be known beforehand.

    Raises:
        InputError: nothing is there, or nothing that can be read.
    """
    if str(path) in WORLDS:
        return WorldVideos(str(path), "test" if split == "test" else "train", size or 64, timing or ClipTiming(16))
    if is_url(path):
        return FileVideos(path, layout, split, size, held_out)
    path = Path(path).expanduser()
    from vqvdm.evaluation.arrays import SUFFIXES, ArrayVideos

    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return ArrayVideos(path, size)
    return FileVideos(path, layout, split, size, held_out)


@dataclass(frozen=True)
class _Video:
    """One that can be read: of its frames, those from `first` on are meant, at these times in seconds."""

    path: str
    info: VideoInfo
    first: int
    times: NDArray[np.float64]
    rate: float
    group: str  # videos cut from one source have one
    label: str | None


class FileVideos:
    """Video files, also those in shards, or folders of frames, which are in the order of their numbers."""

    facts: Mapping[str, Any] = {}

    def __init__(self, path: str | Path, layout: Layout, split: Split, size: int | None, held_out: bool) -> None:
        self.name, self.size = str(path), size
        listing = find_videos(path, layout, 0 if split == "all" else 1)
        self.split = split if held_out or not listing.held_out else "all"
        samples = listing.samples if self.split == "all" else listing.of_split(split)  # pyrefly: ignore
        different = {(sample.path, sample.start, sample.end): sample for sample in samples}  # lists may name one twice
        samples = sorted(different.values(), key=lambda sample: (sample.path, sample.start or 0.0))
        if not samples:
            raise InputError(f"{path}: no video is in the {split} split ({listing.split_source})")
        index = build_index(listing.root, [sample.path for sample in samples])
        self.root = listing.root
        self.skipped: list[str] = []
        self._videos: list[_Video] = []
        for sample in samples:
            entry = index[sample.path]
            if entry.info is None:
                self.skipped.append(f"{sample.path}: {entry.error}")
                continue
            timed = restated(entry.info, sample)
            times = timed.frame_times()
            first, end = stretch(sample, times)
            self._videos.append(
                _Video(sample.path, entry.info, first, times[first:end], timed.fps, sample.group, sample.label)
            )
        if not self._videos:
            raise InputError(f"{path}: none of the {len(samples)} videos can be read (first: {self.skipped[0]})")
        self.lengths = np.array([len(video.times) for video in self._videos], np.int64)
        self.groups = [video.group for video in self._videos]
        self.rates = np.array([video.rate for video in self._videos])  # frames per second, of each video

    def starts(self, timing: ClipTiming) -> NDArray[np.int64]:
        return np.array([timing.starts(video.times, video.rate) for video in self._videos], np.int64)

    def clips(self, draws: Sequence[Draw], timing: ClipTiming) -> Iterator[Clip]:
        yield from map_ahead(lambda draw: self._read(draw, timing), draws, _READERS, ahead=2 * _READERS)

    def _read(self, draw: Draw, timing: ClipTiming) -> Clip:
        video = self._videos[draw.video]
        numbers, _ = timing.pick(video.times, video.rate, draw.start)
        wanted = [int(number) + video.first for number in numbers]
        with open_video(self.root, video.path) as file:
            frames = read_frames(file, wanted, video.info, short_side=self.size)
        return Clip(frames if self.size is None else square(frames, self.size))

    def label(self, video: int) -> str | None:
        return self._videos[video].label

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256(repr(self.size).encode())
        for video in self._videos:
            digest.update(repr((video.path, video.first, len(video.times), video.rate)).encode())
            if not isinstance(self.root, Path):
                digest.update(self.root.identity(video.path).encode())
                continue
            path = self.root / video.path
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                digest.update(_ends_of(file))
        return digest.hexdigest()[:16]


def _ends_of(file: Path) -> bytes:
    """Name, size, beginning and end of a file: what changes whenever a video or a picture is written anew."""
    with file.open("rb") as opened:
        begin = opened.read(_SAMPLED)
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(size - _SAMPLED, 0))
        return b"".join((file.name.encode(errors="surrogateescape"), str(size).encode(), begin, opened.read()))


class WorldVideos:
    """A built-in world, rendered as clips of one length and rate (each clip its own rate if no rate is asked for)."""

    facts: Mapping[str, Any] = {}

    def __init__(self, world: str, split: Literal["train", "test"], size: int, timing: ClipTiming) -> None:
        self.name = world
        self.split: str = split
        self.skipped: list[str] = []
        if timing.stride != 1:
            raise InputError(f"{world} is rendered at any rate: ask for it with --fps, not --stride {timing.stride}")
        self._clips = ToyDataset(world, size, timing.frames, split=split, fps=timing.fps, training=False)
        self.lengths = np.full(len(self._clips), timing.frames, np.int64)
        self.timing = timing

    def starts(self, timing: ClipTiming) -> NDArray[np.int64]:
        assert timing == self.timing
        return np.ones_like(self.lengths)

    def clips(self, draws: Sequence[Draw], timing: ClipTiming) -> Iterator[Clip]:
        for draw in draws:
            yield Clip(to_video(self._clips[draw.video]["clip"]))

    def label(self, video: int) -> str | None:
        return self._clips.classes[int(self._clips[video]["class_label"])] if self._clips.classes else None

    @cached_property
    def digest(self) -> str:
        return self._clips.digest()


def read_clips(videos: Videos, draws: Sequence[Draw], timing: ClipTiming) -> Iterator[Clip]:
    """The clips of these draws, in order, all of one size.

    Raises:
        InputError: a video no longer decodes, or its frames are of another size than the first one's.
    """
    size: tuple[int, ...] | None = None
    read = videos.clips(draws, timing)
    for draw in draws:
        try:
            clip = next(read)
        except VideoError as error:
            raise InputError(f"{videos.name}: {error}; it was readable when it was indexed") from error
        size = size or clip.frames.shape[1:3]
        if clip.frames.shape[1:3] != size:
            height, width = clip.frames.shape[1:3]
            raise InputError(
                f"{videos.name}: video {draw.video} is {width}x{height}, others are {size[1]}x{size[0]}; clips of one "
                "set need one size (--size N resizes and cuts them all)"
            )
        yield clip


def in_8_bits(frames: Frames) -> Video:
    """Frames in 0..255, rounded."""
    return frames.round().clip(0, 255).astype(np.uint8)


def check_enough(videos: Videos, starts: NDArray[np.int64], timing: ClipTiming, least: int = 2) -> None:
    """Raise `InputError` if fewer than `least` videos are long enough."""
    enough = int((starts > 0).sum())
    if enough < least:
        raise InputError(
            f"{videos.name}: {enough} of {len(videos.lengths)} videos are long enough for {describe(timing)}, the "
            f"longest has {int(videos.lengths.max())} frames; at least {least} are needed"
        )
