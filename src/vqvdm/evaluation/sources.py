"""Clips to be scored, from files of any system: a folder in any layout, or one array file.

A source is a set of videos with random access; the protocol says which clips of them are taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from vqvdm.data.clips import middle, restated, stretch
from vqvdm.data.index import build_index
from vqvdm.data.layouts import Layout, find_videos
from vqvdm.decode import VideoError, VideoInfo, read_frames
from vqvdm.errors import InputError, reason_of
from vqvdm.metrics.protocol import Draw

ARRAY_SUFFIXES = (".npy", ".npz", ".pt", ".pth")
_BEYOND = 1e-3  # by which floats may pass their range, as Google's own check allows

Frames = NDArray[np.uint8] | NDArray[np.float32]


class Videos(Interface):
    """A set of videos in a fixed order.

    Attributes:
        name: what the user called it.
        lengths: (n,) frames of each video.
        split: of the data set, or "all".
        skipped: what was left out, with the reason of each.
    """

    name: str
    split: str
    lengths: NDArray[np.int64]
    skipped: list[str]

    def clip(self, draw: Draw, frames: int, stride: int) -> Frames:
        """(t, h, w, 3) RGB; uint8, or float32 in 0..255 where it never was in 8 bits."""
        ...

    @property
    def digest(self) -> str:
        """Changes with the content."""
        ...


def open_videos(
    path: str | Path,
    *,
    layout: Layout = "auto",
    split: Literal["train", "test", "all"] = "all",
    size: int | None = None,
) -> Videos:
    """The videos at a path.

    Args:
        path: a folder of videos, GIFs or frames in any layout, a manifest, or an array file: .npy, .npz, .pt.
        layout: of a folder.
        split: of a data set that has splits; of another one all is taken.
        size: frames of files are resized, antialiased, to this short side and cut to a square, as for training.

    Raises:
        InputError: nothing is there, or nothing that can be read.
    """
    path = Path(path).expanduser()
    if path.is_file() and path.suffix.lower() in ARRAY_SUFFIXES:
        return ArrayVideos(path)
    return FileVideos(path, layout, split, size)


class FileVideos:
    """Video files or folders of frames; frames of a folder are in the order of their numbers."""

    def __init__(
        self, path: Path, layout: Layout, split: Literal["train", "test", "all"], size: int | None = None
    ) -> None:
        self.name, self.size = str(path), size
        listing = find_videos(path, layout, 0 if split == "all" else 1)
        self.split = "all" if listing.held_out else split  # what training sets apart is no split of the data's own
        samples = listing.samples if self.split == "all" else listing.of_split(self.split)
        samples = sorted({sample.path: sample for sample in samples}.values(), key=lambda sample: sample.path)
        if not samples:
            raise InputError(f"{path}: no video is in the {split} split ({listing.split_source})")
        index = build_index(listing.root, [sample.path for sample in samples])
        self.root = listing.root
        self.skipped: list[str] = []
        self._videos: list[tuple[str, VideoInfo, int, tuple[int, int]]] = []
        lengths: list[int] = []
        for sample in samples:
            entry = index[sample.path]
            if entry.info is None:
                self.skipped.append(f"{sample.path}: {entry.error}")
                continue
            first, end = stretch(sample, restated(entry.info, sample).frame_times())
            self._videos.append((sample.path, entry.info, first, entry.stamp))
            lengths.append(end - first)
        if not self._videos:
            raise InputError(f"{path}: none of the {len(samples)} videos can be read (first: {self.skipped[0]})")
        self.lengths = np.array(lengths, np.int64)

    def clip(self, draw: Draw, frames: int, stride: int) -> Frames:
        path, info, first, _ = self._videos[draw.video]
        numbers = [first + draw.start + stride * k for k in range(frames)]
        video = read_frames(self.root / path, numbers, info, short_side=self.size)
        return video if self.size is None else centre(video, self.size)

    @cached_property
    def digest(self) -> str:
        facts = [(path, stamp, first) for path, _, first, stamp in self._videos]
        return hashlib.sha256(repr((facts, self.lengths.tolist(), self.size)).encode()).hexdigest()[:16]


class ArrayVideos:
    """One array of videos of one length: (n, t, h, w, 3), (n, 3, t, h, w) or (n, t, 3, h, w).

    uint8 is 0..255; floats are -1..1 if any lies below 0, else 0..1.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.split = str(path), "all"
        self.skipped: list[str] = []
        self.array, self.axis = _read_array(path), 0
        shape = self.array.shape
        axes = [axis for axis in (4, 1, 2) if len(shape) == 5 and shape[axis] == 3]
        if not axes:
            raise InputError(f"{path}: videos are an array (n, t, h, w, 3) or (n, 3, t, h, w), not of shape {shape}")
        if len(axes) > 1:
            raise InputError(
                f"{path}: of shape {shape}, more than one axis could be the three colours; store (n, t, h, w, 3)"
            )
        if 0 in shape:
            raise InputError(f"{path} holds no videos: its shape is {shape}")
        self.axis = axes[0]
        self.scale, self.offset = _range(self.array, path)
        length = shape[2 if self.axis == 1 else 1]
        self.lengths = np.full(shape[0], length, np.int64)

    def clip(self, draw: Draw, frames: int, stride: int) -> Frames:
        video = np.moveaxis(np.asarray(self.array[draw.video]), self.axis - 1, -1)  # (t, h, w, 3)
        video = video[draw.start : draw.start + (frames - 1) * stride + 1 : stride]
        if video.dtype == np.uint8:
            return video
        return video.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256(repr((self.array.shape, str(self.array.dtype))).encode())
        for video in self.array:
            digest.update(np.ascontiguousarray(video).tobytes())
        return digest.hexdigest()[:16]


def _read_array(path: Path) -> np.ndarray:
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return _only(dict(arrays), path)
        import torch

        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        tensors = content if isinstance(content, dict) else {"": content}
        found = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
        return _only(
            {
                name: value.float().numpy() if value.is_floating_point() else value.numpy()
                for name, value in found.items()
            },
            path,
        )
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}") from error


def _only(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    videos = {name: array for name, array in arrays.items() if array.ndim == 5}
    if len(videos) != 1:
        listed = ", ".join(f"{name or 'array'} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise InputError(f"{path} must hold one array of videos with five axes; it holds {listed}")
    return next(iter(videos.values()))


def _range(array: np.ndarray, path: Path) -> tuple[float, float]:
    """Factor and summand that bring the array to 0..255."""
    if array.dtype == np.uint8:
        return 1.0, 0.0
    if array.dtype.kind != "f":
        raise InputError(f"{path}: videos are uint8 or floats, not {array.dtype}")
    low, high = np.inf, -np.inf
    for number, video in enumerate(array):
        if not np.isfinite(video).all():
            raise InputError(f"{path}: video {number} holds values that are not finite")
        low, high = min(low, float(video.min())), max(high, float(video.max()))
    if low < -1 - _BEYOND or high > 1 + _BEYOND:
        raise InputError(
            f"{path}: floats must lie in 0..1 or in -1..1, these go from {low:.4g} to {high:.4g}; store 0..255 as uint8"
        )
    return (127.5, 127.5) if low < -_BEYOND else (255.0, 0.0)


def centre(video: Frames, size: int) -> Frames:
    """The middle square of frames (t, h, w, 3)."""
    top, left = (middle(length - size + 1) for length in video.shape[1:3])
    return video[:, top : top + size, left : left + size]


def read_clips(videos: Videos, draws: Sequence[Draw], frames: int, stride: int) -> Iterator[Frames]:
    """The clips of these draws, in order.

    Raises:
        InputError: a video no longer decodes, or its frames are of another size than the first one's.
    """
    size: tuple[int, ...] | None = None
    for draw in draws:
        try:
            clip = videos.clip(draw, frames, stride)
        except VideoError as error:
            raise InputError(f"{videos.name}: {error}; it was readable when it was indexed") from error
        size = size or clip.shape[1:3]
        if clip.shape[1:3] != size:
            height, width = clip.shape[1:3]
            raise InputError(
                f"{videos.name}: video {draw.video} is {width}x{height}, others are {size[1]}x{size[0]}; clips of one "
                "set need one size (--size N resizes and cuts them all)"
            )
        yield clip
