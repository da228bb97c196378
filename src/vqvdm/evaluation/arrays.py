"""Videos from one array file of any system: .npy, .npz or .pt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqvdm.data.clips import ClipTiming
from vqvdm.errors import InputError, reason_of
from vqvdm.evaluation.sources import Clip
from vqvdm.metrics.protocol import Draw
from vqvdm.weights.containers import check_archive, read_torch

SUFFIXES = (".npy", ".npz", ".pt", ".pth")
_BEYOND = 1e-3  # by which floats may pass their range, as Google's own check allows


class ArrayVideos:
    """One array of videos of one length: (n, t, h, w, 3), (n, 3, t, h, w) or (n, t, 3, h, w).

    uint8 is 0..255; floats are -1..1 if any lies below 0, else 0..1. Frames have no times: a rate is taken as theirs.
    """

    facts: Mapping[str, Any] = {}

    def __init__(self, path: Path, size: int | None = None) -> None:
        """Map or read the array.

        Args:
            size: height and width that its frames must have; None takes any.

        Raises:
            InputError: it is no array of videos, has values of no known range, or frames of another size.
        """
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
        height, width = shape[2:4] if self.axis == 4 else shape[3:5]
        if size is not None and (height, width) != (size, size):
            raise InputError(
                f"{path}: its frames are {width}x{height}, {size}x{size} is asked for; arrays are scored as they are "
                "(store frames of that size, or give another --size)"
            )
        self.scale, self.offset = _range(self.array, path)
        length = shape[2 if self.axis == 1 else 1]
        self.lengths = np.full(shape[0], length, np.int64)

    def starts(self, timing: ClipTiming) -> NDArray[np.int64]:
        return np.maximum(self.lengths - (timing.frames - 1) * _stride(timing), 0)

    def label(self, video: int) -> str | None:
        return None

    def clips(self, draws: Sequence[Draw], timing: ClipTiming) -> Iterator[Clip]:
        stride = _stride(timing)
        for draw in draws:
            video = np.moveaxis(np.asarray(self.array[draw.video]), self.axis - 1, -1)  # (t, h, w, 3)
            video = video[draw.start : draw.start + (timing.frames - 1) * stride + 1 : stride]
            if video.dtype != np.uint8:
                video = video.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)
            yield Clip(video)

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256(repr((self.array.shape, str(self.array.dtype))).encode())
        for video in self.array:
            digest.update(np.ascontiguousarray(video).tobytes())
        return digest.hexdigest()[:16]


def _stride(timing: ClipTiming) -> int:
    return timing.stride if timing.fps is None else 1


def _read_array(path: Path) -> np.ndarray:
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise InputError(f"{path} is an .npz archive by another name; call it .npz")
            return array
        if path.suffix.lower() == ".npz":
            check_archive(path)
            with np.load(path, allow_pickle=False) as arrays:
                return _only(dict(arrays), path)
        import torch

        content = read_torch(path)
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
