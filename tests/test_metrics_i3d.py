"""I3D against published figures of FVD, a plain statement of TensorFlow's padding, and its own invariants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqvdm.metrics import frechet_distance
from vqvdm.metrics.i3d import I3D, MIXED, shapes
from vqvdm.weights.i3d import load_i3d


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """Random weights of I3D's shapes that keep activations in range."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, shape in shapes().items():
        values = torch.randn(shape, generator=generator)
        fan_in = float(np.prod(shape[1:])) if len(shape) > 1 else 1.0
        made[name] = values.abs() + 0.5 if name.endswith("variance") else values * (2 / fan_in) ** 0.5
    return made


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return torch.rand(2, 3, 11, 224, 224, generator=torch.Generator().manual_seed(1)) * 2 - 1


def plain_i3d(tensors: dict[str, Tensor], x: Tensor, epsilon: float) -> Tensor:
    """The graph of TF-hub's module, one operation after another, batch norm by itself and padding written out."""

    def padded(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], value: float) -> Tensor:
        sides = []
        for n, k, s in zip(x.shape[2:], kernel, stride, strict=True):
            total = max(k - s if n % s == 0 else k - n % s, 0)  # TensorFlow's documentation of SAME
            sides.insert(0, (total // 2, total - total // 2))
        return F.pad(x, [pad for side in sides for pad in side], value=value)

    def unit(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = tensors[f"{name}.weight"]
        x = F.conv3d(padded(x, weight.shape[2:], (stride,) * 3, 0.0), weight, stride=stride)
        statistics = tensors[f"{name}.mean"], tensors[f"{name}.variance"]
        return F.relu(F.batch_norm(x, *statistics, None, tensors[f"{name}.beta"], eps=epsilon))

    def pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        return F.max_pool3d(padded(x, kernel, stride, -torch.inf), kernel, stride)

    x = pool(unit("Conv3d_1a_7x7", x, stride=2), (1, 3, 3), (1, 2, 2))
    x = unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x))
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for name in MIXED:
        x = pool(x, (3, 3, 3), (2, 2, 2)) if name == "Mixed_4b" else x
        x = pool(x, (2, 2, 2), (2, 2, 2)) if name == "Mixed_5b" else x
        branches = [unit(f"{name}.Branch_0.Conv3d_0a_1x1", x)]
        for branch in (1, 2):
            first = unit(f"{name}.Branch_{branch}.Conv3d_0a_1x1", x)
            branches.append(unit(f"{name}.Branch_{branch}.Conv3d_0b_3x3", first))
        branches.append(unit(f"{name}.Branch_3.Conv3d_0b_1x1", pool(x, (3, 3, 3), (1, 1, 1))))
        x = torch.cat(branches, dim=1)
    x = F.avg_pool3d(x, (2, 7, 7), stride=1)
    logits = F.conv3d(x, tensors["Logits.Conv3d_0c_1x1.weight"], tensors["Logits.Conv3d_0c_1x1.bias"])
    return logits.squeeze(4).squeeze(3).mean(2)


def test_network_is_the_plain_graph(tensors, clips):
    for epsilon in (1e-3, 0.5):
        expected = plain_i3d(tensors, clips[:1], epsilon)
        torch.testing.assert_close(I3D(tensors, epsilon)(clips[:1]), expected, rtol=1e-4, atol=1e-4 * expected.std())


def test_features_do_not_depend_on_batch_or_order(tensors, clips):
    network = I3D(tensors)
    both = network(clips)
    torch.testing.assert_close(torch.cat([network(clip[None]) for clip in clips]), both, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network(clips.flip(0)).flip(0), both, rtol=1e-4, atol=1e-4)
    assert (network(clips.flip(2)) - both).abs().max() > 1e-2  # but on the order of frames


def test_autocast_does_not_reach_it(tensors, clips):
    network = I3D(tensors)
    with torch.autocast("cpu", torch.bfloat16):
        features = network(clips[:1])
    torch.testing.assert_close(features, network(clips[:1]), rtol=0, atol=0)


def test_number_of_parameters():
    """12,697,264 in VideoGPT's PyTorch code, whose batch norms have a gain as well as a shift."""
    sizes = {name: int(np.prod(shape)) for name, shape in shapes().items()}
    assert len(sizes) == 230
    shifts = sum(size for name, size in sizes.items() if name.endswith("beta"))
    statistics = sum(size for name, size in sizes.items() if name.endswith(("mean", "variance")))
    assert sum(sizes.values()) - statistics + shifts == 12_697_264


@pytest.mark.parametrize(
    ("frames", "epsilon", "published"), [(16, 1e-3, 152.9020), (30, 1e-3, 151.39244), (30, 1e-5, 151.7594)]
)
def test_black_against_white(fetched_weights, frames, epsilon, published):
    """8 black and 8 white videos: common_metrics_on_video_quality measured 151.39244 with TensorFlow, 30 frames."""
    network = load_i3d(epsilon, fetched_weights / "i3d-kinetics400.safetensors")
    black, white = (network(torch.full((1, 3, frames, 224, 224), level)).expand(8, -1) for level in (-1.0, 1.0))
    assert frechet_distance(black, white) == pytest.approx(published, abs=1e-2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_google_s_example(fetched_weights):
    """10.13808536529541 in universome's fvd-comparison: 128 random clips of RandomState(1) and of RandomState(2)."""
    network = load_i3d(path=fetched_weights / "i3d-kinetics400.safetensors")

    def features(seed: int) -> np.ndarray:
        random = np.random.RandomState(seed)
        videos = (random.rand(2, 16, 224, 224, 3).astype(np.float32) for _ in range(64))
        return torch.cat([network(torch.from_numpy(video).permute(0, 4, 1, 2, 3)) for video in videos]).numpy()

    assert frechet_distance(features(1), features(2)) == pytest.approx(10.13808536529541, abs=1e-4)
