"""C3D on random weights against a plain statement of TGAN-2's evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqvdm.metrics.c3d import C3D, shapes


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, shape in shapes().items():
        fan_in = float(np.prod(shape[1:])) if name.endswith("weight") else 1e4
        made[name] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
    made["fc8.weight"] *= 0.02  # so that no class takes it all
    made["mean"] = torch.rand(shapes()["mean"], generator=generator) * 60 + 90
    return made


def pooled(x: np.ndarray, extent: int, axis: int) -> np.ndarray:
    """Maximum over windows of `extent`, the last one as long as what is left."""
    starts = range(0, x.shape[axis], extent)
    parts = [
        np.take(x, range(start, min(start + extent, x.shape[axis])), axis).max(axis, keepdims=True) for start in starts
    ]
    return np.concatenate(parts, axis)


def test_probabilities_are_those_of_the_plain_statement(tensors):
    clip = torch.rand(1, 3, 16, 64, 80, generator=torch.Generator().manual_seed(1)) * 2 - 1
    bgr = clip[0, [2, 1, 0]].double()  # (3, t, h, w)
    rows, columns = (torch.linspace(0, n - 1, 112, dtype=torch.float64) for n in (64, 80))  # corners aligned
    low_row, low_column = rows.long().clamp(max=62), columns.long().clamp(max=78)
    row, column = (rows - low_row)[:, None], columns - low_column
    tall = bgr[:, :, low_row] * (1 - row) + bgr[:, :, low_row + 1] * row
    wide = tall[..., low_column] * (1 - column) + tall[..., low_column + 1] * column
    x = (wide * 128 + 128 - tensors["mean"])[None].float()
    for name, pools in (
        ("1a", True),
        ("2a", True),
        ("3a", False),
        ("3b", True),
        ("4a", False),
        ("4b", True),
        ("5a", False),
        ("5b", True),
    ):
        x = F.relu(F.conv3d(x, tensors[f"conv{name}.weight"], tensors[f"conv{name}.bias"], padding=1))
        if pools:
            array = x.numpy() if name == "1a" else pooled(x.numpy(), 2, 2)
            x = torch.from_numpy(pooled(pooled(array, 2, 3), 2, 4))
    assert x.shape == (1, 512, 1, 4, 4)  # 7 x 7 became 4 x 4
    x = x.flatten(1)
    for name in ("fc6", "fc7"):
        x = F.relu(F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"]))
    logits = F.linear(x, tensors["fc8.weight"], tensors["fc8.bias"])
    found = C3D(tensors)(clip)
    assert found.sum().item() == pytest.approx(1)
    torch.testing.assert_close(found.log(), logits.log_softmax(1), rtol=1e-3, atol=1e-2)
    assert logits.std() > 0.3  # the random network tells classes apart
