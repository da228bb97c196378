"""The world of clouds: the same for ever, drifting as the wind says, the same sky at any size and frame rate."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from scipy.interpolate import BSpline

from vqvdm.data.clouds import ToyClouds, _spline


def test_the_same_in_every_process() -> None:
    script = (
        "import hashlib; from vqvdm.data.clouds import ToyClouds\n"
        "world = ToyClouds(32, 8, seed=5)\n"
        "print(hashlib.sha256(b''.join(world.render(i).video.tobytes() for i in range(10))).hexdigest())"
    )
    world = ToyClouds(32, 8, seed=5)
    here = hashlib.sha256(b"".join(world.render(index).video.tobytes() for index in range(10))).hexdigest()
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert there == here
    assert not np.array_equal(world.render(0).video, ToyClouds(32, 8, seed=6).render(0).video)


@pytest.mark.parametrize(("size", "frames"), [(64, 16), (48, 8), (32, 33), (20, 5), (130, 1)])
def test_any_size_and_length(size: int, frames: int) -> None:
    clip = ToyClouds(size, frames).render(3)
    assert clip.video.shape == (frames, size, size, 3) and clip.video.dtype == np.uint8
    assert clip.label == 0 and clip.speed > 0


def test_twice_the_frame_rate_shows_the_same_sky_twice_as_often() -> None:
    for index in range(5):
        slow = ToyClouds(32, 8).render(index, fps=8.0).video
        fast = ToyClouds(32, 16).render(index, fps=16.0).video
        np.testing.assert_allclose(fast[::2].astype(int), slow.astype(int), atol=1)


def test_twice_the_size_shows_the_same_sky_in_more_detail() -> None:
    small = ToyClouds(50, 4).render(2).video.astype(float)
    large = ToyClouds(100, 4).render(2).video.astype(float).reshape(4, 50, 2, 50, 2, 3).mean((2, 4))
    assert np.abs(small - large).mean() < 1.5
    assert np.abs(small - ToyClouds(50, 4).render(3).video).mean() > 10  # what another sky would give


def test_wind_moves_the_noise_smoothly() -> None:
    """Drift over one second, found by shifting the last frame back, is the wind's; steps are fractions of a pixel."""
    world = ToyClouds(96, 16)
    t = np.arange(16) / 64.0
    for seed, wind in enumerate([(0.2, 0.0), (-0.15, 0.1)]):
        noise = world._noise(np.random.default_rng(seed), t, wind)[:, :, :]
        dy, dx = np.gradient(noise, axis=(1, 2))
        change = np.gradient(noise, axis=0)[1:-1].ravel()  # = -(wind . gradient) + slow change of shape
        flow = np.linalg.lstsq(np.stack([dx[1:-1].ravel(), dy[1:-1].ravel()], 1), -change, rcond=None)[0]
        np.testing.assert_allclose(flow * 64 / 96, wind, atol=0.03)  # pixels per frame to units per second
        steps = np.abs(np.diff(noise, axis=0)).mean((1, 2))
        assert steps.max() / steps.min() < 1.5  # no jumps where whole pixels are crossed


def test_noise_has_unit_deviation() -> None:
    noise = [ToyClouds(32, 4)._noise(np.random.default_rng(k), np.arange(4) / 8, (0.1, 0.0)) for k in range(60)]
    assert abs(np.mean(noise)) < 0.15 and 0.8 < np.std(noise) < 1.2


def test_spline_against_scipy() -> None:
    positions = np.array([[0.0, 2.5, 5.01, 7.99, 13.3]])
    basis = BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    weights = _spline(positions, period=8)
    for weight, position in zip(weights[0], positions[0], strict=True):
        distance = (position - np.arange(8) + 4) % 8 - 4
        np.testing.assert_allclose(weight, np.nan_to_num(basis(distance)), atol=1e-6)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


def test_skies_differ_and_change() -> None:
    clips = [ToyClouds(32, 16).render(index) for index in range(30)]
    means = np.stack([clip.video.mean((0, 1, 2)) for clip in clips])
    assert means.std(0).min() > 15  # several times of day
    assert np.mean([np.abs(np.diff(clip.video.astype(int), axis=0)).mean() > 0.5 for clip in clips]) > 0.8
