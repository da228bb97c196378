"""What must be said beside an FVD for it to mean anything: how clips are drawn, prepared and compared.

One checkpoint has been scored 168, 190 and 320 by different codes. Each preset repeats one of them, as its code had it;
each field can be set by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vqvdm.errors import InputError
from vqvdm.metrics.i3d import LEAST_FRAMES
from vqvdm.metrics.resize import Convention
from vqvdm.structure import did_you_mean

FEW = 400  # with fewer clips than I3D has logits the covariance is singular: a figure, and no claim


@dataclass(frozen=True)
class Protocol:
    """How FVD and its relatives are measured.

    Attributes:
        name: of the preset, with "+" after it where a field was changed.
        clips: of each side. Fewer fakes than that are refused.
        all_real: take the whole reference instead of `clips` of it.
        repeats: draws, of which mean and deviation are given.
        frames: of each clip, at least 9.
        stride: of the reference; `fake_stride` of what is scored.
        fps: frames per second of the clips of both, in the place of strides; arrays are taken as having that rate.
        window: "one" random window of each video; "any" window at all, so that long videos count more; "first" frame
            onwards.
        order: "random", or the first ones in the order of their names ("sorted").
        split: of the reference, where it has splits.
        size: frames of files are first resized, antialiased, to this short side and cut to a square, as for training;
            arrays must have it.
        resize: how frames become 224x224.
        fit: resize both sides ("direct"), or the shorter one and cut out the middle ("crop").
        side: resize to this many pixels first, as MAGVIT's script does; None leaves it out.
        quantise: how floats, as of arrays and of what is generated, become 8 bits: "round", "truncate", or "none".
        epsilon: of I3D's batch norm; VideoGPT's code and its descendants have 1e-5.
        ddof: the covariance is divided by n - ddof.
        splits: parts that an inception score is the mean of; with more of them it is lower.
        seed: of draws and windows.
    """

    name: str = "vqvdm"
    clips: int = 2048
    all_real: bool = False
    repeats: int = 1
    frames: int = 16
    stride: int = 1
    fake_stride: int = 1
    fps: float | None = None
    window: Literal["one", "any", "first"] = "one"
    order: Literal["random", "sorted"] = "random"
    split: Literal["train", "test", "all"] = "train"
    size: int | None = None
    resize: Convention = "half_pixel"
    fit: Literal["direct", "crop"] = "direct"
    side: int | None = None
    quantise: Literal["round", "truncate", "none"] = "round"
    epsilon: float = 1e-3
    ddof: int = 1
    splits: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        leasts = {"clips": 2, "frames": LEAST_FRAMES, "seed": 0}
        leasts |= dict.fromkeys(("repeats", "stride", "fake_stride", "splits"), 1)
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise InputError(f"protocol: {name} must be at least {least}, not {getattr(self, name)}")
        for name in ("size", "side"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"protocol: {name} must be at least 1, not {getattr(self, name)}")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise InputError(f"protocol: fps must be above 0, not {self.fps}")
        if self.epsilon <= 0:
            raise InputError(f"protocol: epsilon must be above 0, not {self.epsilon}")
        if self.ddof not in (0, 1):
            raise InputError(f"protocol: ddof must be 0 or 1, not {self.ddof}")

    def changed(self, **changes: Any) -> Protocol:
        """With other values; None leaves one as it is. The name gets a "+" if anything changed."""
        given = {name: value for name, value in changes.items() if value is not None and value != getattr(self, name)}
        return replace(self, **given, name=f"{self.name.rstrip('+')}+") if given else self

    def line(self) -> str:
        """All of it in one line, for beside a figure."""
        shown = [self.name]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value is None or (field.name in ("all_real", "repeats", "fake_stride") and value == field.default):
                continue
            shown.append(f"{field.name} {value:g}" if isinstance(value, float) else f"{field.name} {value}")
        return ", ".join(shown)


# Read in the code of each; what none of them says (the seed) is ours.
PRESETS: Mapping[str, Protocol] = {
    "vqvdm": Protocol(),
    # google-research's frechet_video_distance.py for the network, MAGVIT's evaluation for the counts
    "google": Protocol("google", clips=10_000, repeats=4, resize="legacy", quantise="none", splits=1),
    # TATS, sample_vqgan_transformer_short_videos.py and fvd.py
    "tats": Protocol("tats", window="any", epsilon=1e-5, quantise="truncate", splits=1),
    # StyleGAN-V, metric fvd2048_16f; UCF-101 with both splits
    "stylegan-v": Protocol("stylegan-v", order="sorted", split="all", ddof=0),
    # Latte's copy of it, with every third frame of the real videos
    "latte": Protocol("latte", order="sorted", split="all", ddof=0, stride=3),
}


def preset(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        InputError: there is none.
    """
    if name not in PRESETS:
        hint = did_you_mean(name, PRESETS) or ";"
        raise InputError(f"no protocol named {name!r}{hint} there are {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class Draw:
    """One clip of a source: which video, and its first frame."""

    video: int
    start: int


def draw_clips(starts: NDArray[np.int64], protocol: Protocol, count: int, repeat: int = 0) -> list[Draw]:
    """Which clips of a set of videos to take, in what order.

    Args:
        starts: (n,) frames of each video at which a clip can start, in the order of their names; 0 where the video is
            too short, which is then never taken.
        count: clips wanted.
        repeat: number of the draw.

    Returns:
        `count` different clips, or as many as there are.
    """
    random = np.random.default_rng((protocol.seed, repeat))
    if protocol.window == "any":
        ends = np.cumsum(starts)
        places = random.permutation(int(ends[-1]) if len(ends) else 0)
        places = np.sort(places[:count]) if protocol.order == "sorted" else places[:count]
        videos = np.searchsorted(ends, places, side="right")
        return [
            Draw(int(video), int(place - ends[video] + starts[video]))
            for video, place in zip(videos, places, strict=True)
        ]
    long_enough = np.flatnonzero(starts)
    if protocol.order == "random":
        long_enough = random.permutation(long_enough)
    chosen = long_enough[:count]
    if protocol.window == "first":
        return [Draw(int(video), 0) for video in chosen]
    return [Draw(int(video), int(random.integers(starts[video]))) for video in chosen]
