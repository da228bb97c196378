"""Closeness of frames against closed forms and against the formula of SSIM written out with scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vqvdm.errors import InputError
from vqvdm.metrics.quality import psnr, squared_errors, ssim


def pair(seed: int = 0, frames: int = 3, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    real = gaussian_filter(rng.uniform(0, 255, (frames, side, side, 3)), (0, 2, 2, 0)) * 3 - 255
    real = real.clip(0, 255)
    return real.astype(np.uint8), (real + rng.normal(0, 8, real.shape)).clip(0, 255).astype(np.uint8)


def test_squared_errors_and_psnr_of_known_differences():
    real = np.full((3, 4, 5, 3), 100, np.uint8)
    made = real.copy()
    made[1] += 10
    made[2, ..., 0] = 40  # 60 below in one of three colours
    errors = squared_errors(real, made)
    assert errors.tolist() == [0, 100, 1200]
    np.testing.assert_allclose(psnr(errors)[1:], 20 * np.log10(255 / np.sqrt([100, 1200])))
    assert psnr(errors)[0] == 100  # equal frames; infinity would spoil every mean


def test_ssim_is_the_formula():
    """Wang et al. 2004, eq. 13, with a Gaussian window that reaches 5 pixels; edges mirror."""
    real, made = pair()
    x, y = (video.astype(float) for video in (made, real))

    def mean(v: np.ndarray) -> np.ndarray:
        return gaussian_filter(v, (0, 1.5, 1.5, 0), mode="mirror", truncate=5 / 1.5)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    a, b = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    inside = ((2 * mx * my + a) * (2 * cov + b) / ((mx**2 + my**2 + a) * (vx + vy + b))).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(ssim(real, made), inside, rtol=1e-4)
    np.testing.assert_allclose(ssim(real, real), 1)
    assert (ssim(real, made[::-1]) < ssim(real, made) - 0.05)[[0, 2]].all()


def test_frames_too_small_for_the_window():
    with pytest.raises(InputError, match="at least 11 pixels a side"):
        ssim(*pair(side=10))
