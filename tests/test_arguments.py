"""Arguments in the forms that are easily mistaken for lists; `test_pipeline.py` has the others, through whole calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vqvdm.arguments import frame_rates, noise_interval
from vqvdm.errors import InputError


@pytest.mark.parametrize("value", [0.5, np.array(0.5), torch.tensor(0.5), "01", None], ids=repr)
def test_one_number_is_no_interval(value: Any) -> None:
    with pytest.raises(InputError, match=r"guidance_interval is \(lowest, highest\)"):
        noise_interval(value)


@pytest.mark.parametrize("value", [(0.25, 0.5), np.array([0.25, 0.5]), torch.tensor([0.25, 0.5])], ids=repr)
def test_two_numbers_are_one(value: Any) -> None:
    assert noise_interval(value) == (0.25, 0.5)


def test_frame_rates_are_numbers_and_not_lists_of_them() -> None:
    assert frame_rates(torch.tensor(8), 2, 2) == [8.0] * 4
    assert frame_rates([torch.tensor(8), np.float32(12)], 2, 2) == [8.0, 8.0, 12.0, 12.0]
    with pytest.raises(InputError, match=r"fps must be a number, not \[8, 8\]"):
        frame_rates([[8, 8], [8]], 2, 1)
    with pytest.raises(InputError, match="fps must be a number, not 1000"):
        frame_rates(10**400, 1, 1)
