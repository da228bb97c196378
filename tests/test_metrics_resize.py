"""The three conventions of resizing, each against the formula of the place it reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vqvdm.metrics.resize import fit_square, resize

PLACES = {
    "legacy": lambda i, n, m: i * n / m,
    "half_pixel": lambda i, n, m: (i + 0.5) * n / m - 0.5,
    "align_corners": lambda i, n, m: i * (n - 1) / (m - 1),
}


def by_hand(row: np.ndarray, m: int, convention: str) -> list[float]:
    n = len(row)
    values = []
    for i in range(m):
        place = min(max(PLACES[convention](i, n, m), 0.0), n - 1.0)
        low = int(np.floor(place))
        high = min(low + 1, n - 1)
        values.append(row[low] + (place - low) * (row[high] - row[low]))
    return values


@pytest.mark.parametrize("convention", PLACES)
@pytest.mark.parametrize(("n", "m"), [(4, 7), (7, 4), (128, 224), (5, 5)])
def test_each_convention_reads_where_it_says(convention, n, m):
    row, column = np.random.default_rng(0).normal(size=(2, n))
    frames = torch.from_numpy(np.outer(column, row))[None, None].float()
    expected = np.outer(by_hand(column, m, convention), by_hand(row, m, convention))
    np.testing.assert_allclose(resize(frames, m, m, convention)[0, 0], expected, atol=1e-4)


def test_pinned_row():
    """0, 1, 2, 3 enlarged to 7: TensorFlow 1 reads at 4i/7."""
    row = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert resize(row, 4, 7, "legacy")[0, 0, 0] == pytest.approx([0, 4 / 7, 8 / 7, 12 / 7, 16 / 7, 20 / 7, 3])
    assert resize(row, 4, 7)[0, 0, 0] == pytest.approx([0, 5 / 14, 13 / 14, 1.5, 29 / 14, 37 / 14, 3])
    assert resize(row, 4, 7, "align_corners")[0, 0, 0] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3])


def test_shrinking_does_not_average():
    """Antialiasing would: other figures by far."""
    stripes = (torch.arange(8) % 2).float().view(1, 1, 1, 8).expand(1, 1, 8, 8)
    assert resize(stripes, 4, 4, "legacy").unique().tolist() == [0.0]


def test_frames_that_are_not_square():
    frames = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 3, 4, 6)
    assert fit_square(frames, 4, "half_pixel", crop=True)[0, 0, 0].tolist() == [1, 2, 3, 4]
    assert fit_square(frames, 4, "half_pixel", crop=False)[0, 0, 0] == pytest.approx([0.25, 1.75, 3.25, 4.75])
    assert fit_square(frames, 8, "half_pixel", crop=True).shape == (1, 3, 8, 8)
    assert fit_square(torch.zeros(1, 3, 240, 320), 224, "legacy", crop=True).shape == (1, 3, 224, 224)
