"""A companion of FVD that looks at nothing but motion: it notices frames that are frozen, shuffled or reversed.

FVD is known to reward frames over motion (Ge et al. 2024). Here each clip becomes twenty numbers without any network:
how much changes from frame to frame at three distances in time, how unlike its own reversal the change is, and into
which directions edges move. Two sets of clips are compared by the Frechet distance of these numbers, each in units of
its deviation among the real clips. It is ours, compares with no published figure, and says nothing of the pictures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqvdm.errors import InputError
from vqvdm.metrics.distances import frechet_distance

SIDE = 32  # pixels to which the shorter side is averaged down, about: motion, not detail
LEAST_FRAMES = 5
_LAGS = (1, 2, 4)
_DIRECTIONS = 8
NUMBERS = {  # of the twenty, those that mean something one by one
    0: "change from frame to frame (log)",
    3: "irreversibility: third moment",
    14: "speed of edges (log)",
    15: "outwards (+) or inwards (-)",
    16: "down (+) or up (-)",
    17: "right (+) or left (-)",
}
_STILL = 1e-4  # of the range 0..1; smaller changes are rounding
_LEAST_SPEED = 1e-3  # pixels a frame


def motion_features(clip: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float64]:
    """Numbers of one clip's motion.

    Args:
        clip: (t, h, w, 3), uint8 or float32 in 0..255, t at least 5.

    Returns:
        (20,): the logarithm of the mean change at distances of 1, 2 and 4 frames; three numbers of irreversibility that
        change their sign when time is reversed; the shares of edges that move into each of eight directions; the speed
        of edges; whether they move outwards or inwards, down or up, right or left; the range of change over time; and
        how much of the frame changes.

    Raises:
        InputError: fewer than 5 frames, or frames of a single row or column.
    """
    if len(clip) < LEAST_FRAMES:
        raise InputError(f"motion is measured over at least {LEAST_FRAMES} frames, not {len(clip)}")
    if min(clip.shape[1:3]) < 2:
        raise InputError(f"motion needs frames of at least 2x2 pixels, not {clip.shape[2]}x{clip.shape[1]}")
    gray = _small(clip)  # (t, h, w)
    changes = [np.abs(gray[lag:] - gray[:-lag]).mean() for lag in _LAGS]
    step = np.diff(gray, axis=0)  # (t-1, h, w)
    energy = np.abs(step).mean(axis=(1, 2))  # (t-1,)
    still = energy.mean() < _STILL
    return np.concatenate(
        [
            np.log(np.maximum(changes, _STILL)),
            np.zeros(3) if still else _irreversibility(step),
            np.zeros(12) if still else _directions(gray, step),
            [np.log(energy.max() + _STILL) - np.log(energy.min() + _STILL)],
            [(np.abs(step).max(axis=0) > 0.05).mean()],
        ]
    )


def motion_distance(real: ArrayLike, fake: ArrayLike) -> float:
    """Frechet distance of motion features (n, 20) and (m, 20), each number in units of its deviation in `real`.

    Returns:
        At least 0; two halves of one data set give about 40 / n.

    Raises:
        InputError: fewer than two clips, or values that are not finite.
    """
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    unit = np.maximum(real.std(axis=0), 1e-3)
    return frechet_distance(real / unit, fake / unit)


def edge_speed(features: ArrayLike) -> float:
    """How fast edges move: mean over clips of their motion features (n, 20), in pixels a frame, 32 of them a side."""
    found = np.asarray(features, np.float64)
    moving = found[:, 6 : 6 + _DIRECTIONS].any(axis=1)  # of still clips nothing is known but that they stand still
    return float(np.where(moving, np.exp(found[:, 14]) - _LEAST_SPEED, 0.0).mean())


def smoothness(features: ArrayLike) -> float:
    """Change over four frames in changes over one: geometric mean over clips of their motion features (n, 20).

    What moves on changes more and more (up to 4); what trembles, flickers or stands still does not (1).
    """
    change = np.asarray(features, np.float64)
    return float(np.exp((change[:, 2] - change[:, 0]).mean()))


def _small(clip: NDArray) -> NDArray[np.float64]:
    """Luminance in 0..1, averaged over whole blocks of pixels. (t, h, w)"""
    gray = clip.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255
    block = max(1, round(min(gray.shape[1:]) / SIDE))
    t, h, w = len(gray), gray.shape[1] // block, gray.shape[2] // block
    return gray[:, : h * block, : w * block].reshape(t, h, block, w, block).mean(axis=(2, 4))


def _irreversibility(step: NDArray[np.float64]) -> NDArray[np.float64]:
    """Odd moments of the change, which are 0 where backwards looks as forwards, in units of its deviation. (3,)"""
    scale = max(float((step**2).mean()) ** 1.5, 1e-12)
    early, late = step[:-1], step[1:]
    speed = (step**2).mean(axis=(1, 2))
    trend = np.diff(speed).mean() / max(float(speed.mean()), 1e-12)
    return np.array([(step**3).mean() / scale, (early**2 * late + early * late**2).mean() / scale, trend])


def _directions(gray: NDArray[np.float64], step: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where edges move, from the normal flow -I_t grad I / |grad I|^2 (Horn and Schunck 1981, eq. 1). (12,)"""
    middle = (gray[1:] + gray[:-1]) / 2
    dy, dx = np.gradient(middle, axis=(1, 2))  # (t-1, h, w), per pixel
    slope = dx**2 + dy**2
    edge = slope > 1e-4
    if not edge.any():
        return np.zeros(12)
    flow_x, flow_y = (np.where(edge, -step * d / np.maximum(slope, 1e-4), 0.0).clip(-3, 3) for d in (dx, dy))
    weight = np.sqrt(slope) * edge
    speed = np.hypot(flow_x, flow_y)
    moving = weight * speed
    total = max(float(moving.sum()), 1e-12)
    angle = np.arctan2(flow_y, flow_x)
    place = np.round(angle / (2 * np.pi) * _DIRECTIONS).astype(int) % _DIRECTIONS
    shares = np.bincount(place.ravel(), moving.ravel(), _DIRECTIONS) / total
    h, w = gray.shape[1:]
    y, x = np.meshgrid(np.linspace(-1, 1, h), np.linspace(-1, 1, w), indexing="ij")
    outwards = (weight * (flow_x * x + flow_y * y)).sum() / total
    down, right = ((weight * flow).sum() / total for flow in (flow_y, flow_x))
    return np.concatenate([shares, [np.log(moving.sum() / weight.sum() + _LEAST_SPEED), outwards, down, right]])
