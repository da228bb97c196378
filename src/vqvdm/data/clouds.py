"""The built-in unlabelled world: procedural clouds drifting over a sky, rendered on the fly.

Clouds are fractal value noise: lattices of random numbers, interpolated by cubic B-splines in space and time and summed
over octaves. They are sampled at continuous positions, so that wind moves them by fractions of a pixel, and they
slowly change shape. A clip follows from (seed, index) alone; lengths are in frame sides and speeds per second, so one
index shows the same sky at any size, length and frame rate.
"""

from __future__ import annotations

import numpy as np

from vqvdm.data.toy import ToyClip, ToyWorld

_OCTAVES = 4
_PERIOD = 32  # lattice points after which an octave repeats, in space
_TIME_PERIOD = 8  # ... and in time
_STRETCH = 1.6  # clouds are wider than high
_SHADE = 0.06  # frame sides above a point where the noise tells how much cloud lies between it and the light


# Colours of a time of day, RGB 0..255: zenith, horizon, lit cloud, shaded cloud.
_PALETTES = np.array(
    [
        [(38, 96, 186), (168, 208, 238), (255, 254, 250), (158, 172, 194)],  # day
        [(70, 130, 190), (222, 228, 226), (250, 248, 242), (140, 148, 160)],  # haze
        [(52, 58, 118), (246, 158, 96), (255, 202, 158), (122, 82, 112)],  # evening
        [(94, 108, 168), (250, 196, 180), (255, 226, 216), (146, 120, 152)],  # dawn
        [(74, 86, 104), (150, 160, 170), (206, 210, 214), (86, 94, 106)],  # before rain
    ],
    dtype=np.float32,
)  # (palette, colour, 3)


class ToyClouds(ToyWorld):
    """The unlabelled world."""

    def render(self, index: int, fps: float | None = None) -> ToyClip:
        """Clip number `index` (0 or more), label 0; `fps` replaces what the index would draw, `speed` is the wind's."""
        rng = np.random.default_rng((self.seed, index))
        drawn_fps = float(rng.choice(self.frame_rates))
        fps = drawn_fps if fps is None else fps
        t = np.arange(self.frames) / fps
        heading, speed = rng.uniform(-0.35, 0.35) + np.pi * rng.integers(2), rng.uniform(0.10, 0.30)
        wind = speed * np.cos(heading), speed * np.sin(heading)  # units per second, mostly sideways
        first, second, mix = rng.integers(len(_PALETTES)), rng.integers(len(_PALETTES)), np.float32(rng.uniform(0, 0.5))
        cover, softness = rng.uniform(-0.35, 0.3), rng.uniform(0.5, 0.9)
        tilt = rng.uniform(0, 0.5)  # clouds gather towards the horizon or the zenith

        noise = self._noise(rng, t, wind)  # (t, above + h, w), deviation about 1
        above = noise.shape[1] - self.size
        height = np.linspace(-0.5, 0.5, self.size, dtype=np.float32)[:, None]
        density = _smoothstep((noise[:, above:] + cover + tilt * height) / softness)
        depth = _smoothstep(0.5 + 0.5 * noise[:, : self.size])  # what lies above shades what lies below

        zenith, horizon, lit, shaded = _PALETTES[first] + mix * (_PALETTES[second] - _PALETTES[first])
        down = np.linspace(0, 1, self.size, dtype=np.float32)[:, None] ** 1.3
        video = np.empty((*density.shape, 3), np.uint8)
        for colour in range(3):  # thrice as fast as one expression over a last axis of 3
            sky = zenith[colour] + (horizon[colour] - zenith[colour]) * down  # (h, 1)
            cloud = lit[colour] + depth * (shaded[colour] - lit[colour])  # (t, h, w)
            video[..., colour] = sky + density * (cloud - sky) + 0.5
        return ToyClip(video, 0, fps, float(speed))

    def _noise(self, rng: np.random.Generator, t: np.ndarray, wind: tuple[float, float]) -> np.ndarray:
        """Fractal noise of mean 0 and deviation about 1 at times t, float32 (t, rows, w).

        The rows begin `_SHADE` above the frame, so that the first `size` of them lie that far above the last.
        """
        above = round(_SHADE * self.size)
        x = (np.arange(self.size) + 0.5) / self.size
        y = (np.arange(-above, self.size) + 0.5) / self.size
        total = np.zeros((len(t), len(y), len(x)), np.float32)
        for octave in range(_OCTAVES):
            frequency, pace = 2.2 * 1.95**octave, 0.25 * 1.5**octave  # lattice points per unit, and per second
            lattice = rng.standard_normal((_TIME_PERIOD, _PERIOD, _PERIOD), dtype=np.float32)
            offset = rng.uniform(0, _PERIOD, size=3)
            in_time = _spline((offset[0] + pace * t)[None], _TIME_PERIOD)[0]  # (t, 8)
            rows = _spline(offset[1] + frequency * _STRETCH * (y - wind[1] * t[:, None]), _PERIOD)  # (t, rows, 32)
            columns = _spline(offset[2] + frequency * (x - wind[0] * t[:, None]), _PERIOD)  # (t, w, 32)
            now = (in_time @ lattice.reshape(_TIME_PERIOD, -1)).reshape(len(t), _PERIOD, _PERIOD)
            total += np.float32(0.55**octave) * (rows @ now @ columns.transpose(0, 2, 1))
        return total * np.float32(2.6)  # three splines and the weights of the octaves leave a deviation of 0.38


def _spline(position: np.ndarray, period: int) -> np.ndarray:
    """Weights (t, n, period) of a periodic lattice's points at each position (t, n): the uniform cubic B-spline."""
    first = np.floor(position).astype(int) - 1
    f = (position - first - 1).astype(np.float32)  # 0..1
    g = 1 - f
    weights = np.stack([g**3, 4 - 3 * f * f * (1 + g), 4 - 3 * g * g * (1 + f), f**3], axis=-1) / 6
    matrix = np.zeros((*position.shape, period), np.float32)
    np.put_along_axis(matrix, (first[..., None] + np.arange(4)) % period, weights, axis=-1)
    return matrix


def _smoothstep(values: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between."""
    values = np.clip(values, 0.0, 1.0)
    return values * values * (3 - 2 * values)
