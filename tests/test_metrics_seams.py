"""Seams and flicker of clips in which they are known."""

from __future__ import annotations

import numpy as np
import pytest

from vqvdm.metrics.seams import AXES, change_errors, flicker, seam


@pytest.mark.parametrize("axis", AXES)
def test_steps_at_the_borders_of_cells_are_seams(axis: str) -> None:
    """Grey cells, each shifted by its own amount: all error lies between them; none lies along the other axes."""
    real = np.random.default_rng(0).integers(60, 180, (8, 12, 16, 3)).astype(np.uint8)
    factor = {"time": 4, "rows": 3, "columns": 8}[axis]
    shifts = np.arange(real.shape[AXES[axis]]) // factor * 5  # grows by 5 from cell to cell
    shape = [-1 if number == AXES[axis] else 1 for number in range(4)]
    made = (real + shifts.reshape(shape)).astype(np.uint8)
    errors = change_errors(real, made)
    borders = np.arange(1, real.shape[AXES[axis]]) % factor == 0
    np.testing.assert_allclose(errors[axis], np.where(borders, 5.0, 0.0), atol=1e-4)
    for other in set(AXES) - {axis}:
        assert not errors[other].any()


def test_a_seam_is_a_ratio() -> None:
    errors = np.array([[1.0, 1.0, 3.0, 1.0, 1.0, 3.0, 1.0, 1.0]] * 2)  # 9 places in cells of 3
    assert seam(errors, 3) == pytest.approx(3.0)
    assert seam(np.ones((2, 8)), 3) == 1.0
    assert np.isnan(seam(errors, 1)) and np.isnan(seam(errors, 9)) and np.isnan(seam(np.zeros((1, 8)), 3))


def test_even_noise_has_no_seam() -> None:
    generator = np.random.default_rng(0)
    real = generator.integers(0, 200, (16, 32, 32, 3)).astype(np.uint8)
    made = (real + generator.integers(0, 20, real.shape)).astype(np.uint8)
    for axis, errors in change_errors(real, made).items():
        assert seam(errors, 4) == pytest.approx(1.0, abs=0.05), axis


def test_flicker_is_the_mean_change() -> None:
    clip = np.zeros((4, 2, 2, 3), np.uint8)
    assert flicker(clip) == 0
    clip[1::2] = 6
    assert flicker(clip) == 6
