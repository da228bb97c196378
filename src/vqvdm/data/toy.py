"""The built-in toy world: ten classes that are motions, rendered on the fly.

One shape with a smooth edge moves before a smooth background. Shape, colours, size, place and speed are drawn at
random from (seed, index), so a clip is the same for ever on any machine. Lengths are in units of the frame's side and
speeds in units (or radians) per *second*: the frame rate shows in the displacement per frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vqvdm.judge import CLASSES

__all__ = ["CLASSES", "FRAME_RATES", "SHAPES", "ToyClip", "ToyMotions", "ToyWorld"]

FRAME_RATES = (8.0, 12.0, 16.0)  # frames per second
SHAPES = ("disc", "square", "triangle", "bar", "cross", "star")
_SPINNING = ("bar", "ellipse")  # at 32x32 the others are too round for their turning to be seen


@dataclass(frozen=True)
class ToyClip:
    """One rendered clip and what is true of it."""

    video: np.ndarray  # uint8 (t, h, w, 3)
    label: int  # index into CLASSES; 0 in an unlabelled world
    fps: float
    speed: float  # per second: frame sides along the path (spin: radians; grow, shrink: frame sides of radius)


@dataclass(frozen=True)
class _Motion:
    """Where the shape is at time t in seconds: arrays of the shape of t. y points down, angles turn clockwise."""

    x: Callable[[np.ndarray], np.ndarray]
    y: Callable[[np.ndarray], np.ndarray]
    radius: Callable[[np.ndarray], np.ndarray]
    angle: Callable[[np.ndarray], np.ndarray]
    speed: float


class ToyWorld:
    """An endless, deterministic sequence of rendered clips.

    Args:
        size: height and width in pixels.
        frames: frames of a clip.
        seed: another seed is another world of the same kind.
        frame_rates: rates in frames per second, drawn uniformly.
    """

    classes: tuple[str, ...] = ()

    def __init__(
        self, size: int = 64, frames: int = 16, seed: int = 0, frame_rates: tuple[float, ...] = FRAME_RATES
    ) -> None:
        self.size, self.frames, self.seed, self.frame_rates = size, frames, seed, frame_rates

    def render(self, index: int, *, fps: float | None = None) -> ToyClip:
        """Clip number `index` (0 or more); `fps` replaces what the index would draw."""
        raise NotImplementedError


class ToyMotions(ToyWorld):
    """The labelled world."""

    classes = CLASSES

    @cached_property
    def _ticks(self) -> np.ndarray:
        """Pixel centres along either axis, 0..1: (size,)."""
        return (np.arange(self.size, dtype=np.float32) + 0.5) / self.size

    def render(self, index: int, label: int | None = None, fps: float | None = None) -> ToyClip:
        """Clip number `index` (0 or more); `label` and `fps` replace what the index would draw."""
        rng = np.random.default_rng((self.seed, index))
        drawn_label, drawn_fps = int(rng.integers(len(CLASSES))), float(rng.choice(self.frame_rates))
        label = drawn_label if label is None else label
        fps = drawn_fps if fps is None else fps
        kind = CLASSES[label]
        shape = str(rng.choice(_SPINNING if kind == "spin" else SHAPES))
        motion = _draw_motion(kind, rng, duration=(self.frames - 1) / fps)
        background, colour = _draw_colours(rng, self._ticks, self._ticks[:, None])

        t = np.arange(self.frames, dtype=np.float32) / fps
        x, y, radius, angle = (f(t).astype(np.float32) for f in (motion.x, motion.y, motion.radius, motion.angle))
        still = (background * 255.0 + 0.5).astype(np.uint8)
        video = np.repeat(still[None], self.frames, axis=0)
        # Only a window around the shape is computed: 1.14 radii from the centre hold each outline, 1.5 pixels its edge.
        side = min(self.size, int(np.ceil(2 * (1.14 * radius.max() * self.size + 2.5))))
        top, left = (
            np.clip(np.round(centre * self.size - side / 2).astype(int), 0, self.size - side) for centre in (y, x)
        )
        inside = np.arange(side)  # below, dx and dy in the shape's own units
        dx = ((self._ticks[left[:, None] + inside] - x[:, None]) / radius[:, None])[:, None, :]  # (t, 1, side)
        dy = ((self._ticks[top[:, None] + inside] - y[:, None]) / radius[:, None])[:, :, None]  # (t, side, 1)
        cos, sin, scale = (values[:, None, None] for values in (np.cos(angle), np.sin(angle), radius))
        distance = _signed_distance(shape, cos * dx + sin * dy, cos * dy - sin * dx) * scale  # (t, side, side)
        coverage = np.clip(0.5 - distance * self.size / 1.5, 0.0, 1.0)[..., None]  # an edge 1.5 pixels wide
        for frame, cover, row, column in zip(video, coverage, top, left, strict=True):
            window = slice(row, row + side), slice(column, column + side)
            behind = background[window]
            frame[window] = ((behind + cover * (colour - behind)) * 255.0 + 0.5).astype(np.uint8)
        return ToyClip(video, label, fps, motion.speed)


def _constant(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda t: np.full_like(t, value)


def _draw_motion(kind: str, rng: np.random.Generator, duration: float) -> _Motion:
    """A motion that stays inside the frame for `duration` seconds; slower than usual where that needs it."""
    r = rng.uniform(0.20, 0.26)
    angle = rng.uniform(0, 2 * np.pi)
    cx, cy = rng.uniform(r, 1 - r, size=2)

    if kind in ("left", "right", "up", "down"):
        v = min(rng.uniform(0.20, 0.30), (1 - 2 * r) / max(duration, 1e-6))
        start = rng.uniform(r, 1 - r - v * duration) if v * duration < 1 - 2 * r else r
        ahead = lambda t: start + v * t  # noqa: E731
        back = lambda t: 1 - start - v * t  # noqa: E731
        still_x, still_y = _constant(cx), _constant(cy)
        x = {"right": ahead, "left": back}.get(kind, still_x)
        y = {"down": ahead, "up": back}.get(kind, still_y)
        return _Motion(x, y, _constant(r), _constant(angle), v)

    if kind == "bounce":
        period, phase, height = rng.uniform(1.0, 1.3), rng.uniform(), rng.uniform(0.26, 0.36)
        floor = rng.uniform(max(r + height, 0.7), 1 - r)
        flight = lambda t: 1 - (2 * ((t / period + phase) % 1.0) - 1) ** 2  # noqa: E731  parabola, 0 on the floor
        return _Motion(
            _constant(cx), lambda t: floor - height * flight(t), _constant(r), _constant(angle), 2 * height / period
        )

    if kind in ("orbit-left", "orbit-right"):  # seen on the screen: right is clockwise
        circle, phase, omega = rng.uniform(0.20, 0.24), rng.uniform(0, 2 * np.pi), rng.uniform(2.6, 3.6)
        turn = omega if kind == "orbit-right" else -omega
        margin = r + circle
        ox, oy = rng.uniform(margin, 1 - margin, size=2) if margin < 0.5 else (0.5, 0.5)
        return _Motion(
            lambda t: ox + circle * np.cos(phase + turn * t),
            lambda t: oy + circle * np.sin(phase + turn * t),
            _constant(r),
            _constant(angle),
            omega * circle,
        )

    if kind == "spin":
        r = rng.uniform(0.28, 0.38)
        cx, cy = rng.uniform(r, 1 - r, size=2)
        omega = rng.uniform(1.2, 2.2) * rng.choice((-1.0, 1.0))
        return _Motion(_constant(cx), _constant(cy), _constant(r), lambda t: angle + omega * t, abs(omega))

    small, rate = rng.uniform(0.11, 0.15), rng.uniform(0.12, 0.18)  # grow, shrink
    large = min(small + rate * duration, 0.45)
    rate = (large - small) / max(duration, 1e-6)
    cx, cy = rng.uniform(large, 1 - large, size=2)
    first, sign = (small, 1.0) if kind == "grow" else (large, -1.0)
    return _Motion(_constant(cx), _constant(cy), lambda t: first + sign * rate * t, _constant(angle), rate)


def _draw_colours(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A linear two-colour gradient (h, w, 3) and a shape colour (3,) that stands out from both its ends, in 0..1.

    x (w,) and y (h, 1) are pixel centres.
    """
    first = rng.uniform(0.1, 0.9, size=3)
    second = np.clip(first + rng.uniform(-0.3, 0.3, size=3), 0.05, 0.95)
    direction = rng.uniform(0, 2 * np.pi)
    ramp = ((x - 0.5) * np.cos(direction) + (y - 0.5) * np.sin(direction) + 0.7072) / 1.4144
    background = first + ramp[..., None] * (second - first)
    while True:
        colour = rng.uniform(0, 1, size=3)
        if min(np.linalg.norm(colour - first), np.linalg.norm(colour - second)) > 0.55:
            return background.astype(np.float32), colour.astype(np.float32)


def _signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the outline in the shape's own units (about 1 = its radius), negative inside; near the edge only."""
    if shape == "disc":
        return np.hypot(x, y) - 0.95
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.8
    if shape == "ellipse":  # first order in the distance, as near the edge only
        k = np.hypot(x, y / 0.45)
        return (k - 1) * k / np.maximum(np.hypot(x, y / 0.45**2), 1e-6)
    if shape == "bar":
        return np.maximum(np.abs(x) - 1.0, np.abs(y) - 0.45)
    if shape == "cross":
        ax, ay = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(ax - 1.0, ay - 0.36), np.maximum(ay - 1.0, ax - 0.36))
    if shape == "triangle":
        return np.maximum(np.abs(x) * 0.866 + y * 0.5, -y) - 0.55
    # A five-pointed star: the radius of its outline against the direction.
    rho, theta = np.hypot(x, y), np.arctan2(y, x)
    wave = np.abs(((theta * 5 / (2 * np.pi)) % 1.0) - 0.5) * 2  # 1 on a point, 0 in a notch
    return (rho - (0.45 + 0.65 * wave)) * 0.6
