"""LPIPS on random weights against a brute-force computation; its file and its messages."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vqvdm.errors import InputError
from vqvdm.perceptual import ALEXNET, LPIPS, Convolution, Stage
from vqvdm.weights.folder import weights_folder
from vqvdm.weights.lpips import load_lpips

SMALL = tuple(  # VGG16's layout with few channels
    Stage(2 if number else 0, (Convolution(width),) * depth)
    for number, (width, depth) in enumerate(((3, 2), (4, 2), (5, 3), (6, 3), (6, 3)))
)


def images(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def lpips() -> LPIPS:
    torch.manual_seed(0)
    return LPIPS(SMALL).eval()


def brute_force(weights: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """LPIPS of two images (3, h, w) -1..1 in numpy, float64, with every sum written out over the kernel."""
    layers = ["1_1 1_2", "2_1 2_2", "3_1 3_2 3_3", "4_1 4_2 4_3", "5_1 5_2 5_3"]
    pair = []
    for image in (x, y):
        a = (image - np.array([-0.030, -0.088, -0.188])[:, None, None]) / np.array([0.458, 0.448, 0.450])[:, None, None]
        features = []
        for k, names in enumerate(layers):
            if k > 0:
                a = np.maximum.reduce([a[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])
            for name in names.split():
                kernel, bias = weights[f"convolutions.{name}.weight"], weights[f"convolutions.{name}.bias"]
                height, width = a.shape[1:]
                padded = np.pad(a, ((0, 0), (1, 1), (1, 1)))
                out = np.zeros((len(kernel), height, width))
                for i in range(3):
                    for j in range(3):
                        out += np.tensordot(kernel[:, :, i, j], padded[:, i : i + height, j : j + width], axes=1)
                a = np.maximum(0, out + bias[:, None, None])
            features.append(a)
        pair.append(features)
    total = 0.0
    for k, (a, b) in enumerate(zip(*pair, strict=True)):
        a = a / (np.sqrt((a**2).sum(0)) + 1e-10)
        b = b / (np.sqrt((b**2).sum(0)) + 1e-10)
        total += (weights[f"heads.{k}"][:, None, None] * (a - b) ** 2).sum(0).mean()
    return total


def test_distance_is_that_of_brute_force(lpips: LPIPS) -> None:
    weights = {name: tensor.double().numpy() for name, tensor in lpips.state_dict().items()}
    x, y = images(0, 2, 3, 32, 16), images(1, 2, 3, 32, 16)
    expected = [brute_force(weights, a.double().numpy(), b.double().numpy()) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(lpips(x, y), expected, rtol=1e-4)
    assert min(expected) > 1e-3  # the random network is not dead


def test_layers_are_those_of_vgg16() -> None:
    """13 convolutions, 14,714,688 parameters (Simyonan and Zisserman's configuration D without its classifier)."""
    with torch.device("meta"):
        lpips = LPIPS()
    assert len(lpips.convolutions) == 13
    assert sum(p.numel() for p in lpips.convolutions.parameters()) == 14_714_688
    assert [len(head) for head in lpips.heads] == [64, 128, 256, 512, 512]
    assert [name for name in lpips.state_dict() if name.endswith("weight")] == [
        f"convolutions.{b}_{i}.weight" for b, depth in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, depth + 1)
    ]
    assert not any(p.requires_grad for p in lpips.parameters())


def test_a_metric_of_the_right_kind(lpips: LPIPS) -> None:
    """0 for equal images, symmetric, and growing with the disturbance."""
    x, other = images(0, 1, 3, 32, 32), images(1, 1, 3, 32, 32)
    assert lpips(x, x) == 0
    torch.testing.assert_close(lpips(x, other), lpips(other, x))
    distances = [float(lpips(x, torch.lerp(x, other, share))) for share in (0.05, 0.2, 0.8)]
    assert distances == sorted(distances)


def test_clips_are_the_mean_of_their_chosen_frames(lpips: LPIPS) -> None:
    x, y = images(0, 2, 3, 5, 16, 16), images(1, 2, 3, 5, 16, 16)
    frames = torch.tensor([[4, 1], [2, 3]])
    chosen = [[float(lpips(x[b : b + 1, :, t], y[b : b + 1, :, t])) for t in row] for b, row in enumerate(frames)]
    np.testing.assert_allclose(lpips(x, y, frames), np.mean(chosen, axis=1), rtol=1e-4)
    every = [[float(lpips(x[b : b + 1, :, t], y[b : b + 1, :, t])) for t in range(5)] for b in range(2)]
    np.testing.assert_allclose(lpips(x, y), np.mean(every, axis=1), rtol=1e-4)


def test_gradient_is_that_of_finite_differences(lpips: LPIPS) -> None:
    """In float64 along random directions (ReLU and pooling are smooth almost everywhere)."""
    lpips.double()
    x, y = images(0, 1, 3, 16, 16).double().requires_grad_(), images(1, 1, 3, 16, 16).double()

    def distance(z: Tensor) -> Tensor:  # forward() itself rounds to float32, too coarse for a difference
        return lpips._distances(z, y)

    (gradient,) = torch.autograd.grad(distance(x).sum(), x)
    for seed in range(3):
        direction = images(10 + seed, 1, 3, 16, 16).double()
        slope = (distance(x + 1e-7 * direction) - distance(x - 1e-7 * direction)) / 2e-7
        assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-3)


def test_gradient_is_finite_where_features_vanish(lpips: LPIPS) -> None:
    """All activations 0 at a place: the scaling to length 1 must not give NaN."""
    lpips.convolutions["3_3"].bias.fill_(-100.0)
    x = images(0, 1, 3, 16, 16).requires_grad_()
    (gradient,) = torch.autograd.grad(lpips(x, images(1, 1, 3, 16, 16)).sum(), x)
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).any()


def test_autocast_does_not_reach_it(lpips: LPIPS) -> None:
    x, y = images(0, 1, 3, 16, 16), images(1, 1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        distance = lpips(x, y)
    assert torch.equal(distance, lpips(x, y))
    assert distance.dtype == torch.float32


def test_autocast_reaches_it_where_that_is_enough(lpips: LPIPS) -> None:
    x, y = images(0, 2, 3, 32, 32).requires_grad_(), images(1, 2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        rough = lpips(x, y, exact=False)
    exact = lpips(x, y)
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough.float(), exact, rtol=0.02, atol=0)
    gradients = [torch.autograd.grad(distance.sum(), x)[0].flatten() for distance in (rough, exact)]
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.9


def test_weights_are_read_from_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        empty = LPIPS()
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.rand(t.shape, generator=generator) * 0.05 for name, t in empty.state_dict().items()}
    (tmp_path / "weights").mkdir()
    save_file(tensors, tmp_path / "weights" / "lpips-vgg16.safetensors")
    monkeypatch.setenv("VQVDM_CACHE", str(tmp_path))
    lpips = load_lpips()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in lpips.state_dict().items())
    assert not lpips.training
    assert lpips(images(0, 1, 3, 16, 16), images(1, 1, 3, 16, 16)).shape == (1,)


def test_where_weights_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQVDM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "vqvdm" / "weights"
    with pytest.raises(InputError, match="VGG16") as error:
        load_lpips()
    assert str(tmp_path / "vqvdm" / "weights" / "lpips-vgg16.safetensors") in str(error.value)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    assert weights_folder() == tmp_path / ".cache" / "vqvdm" / "weights"
    monkeypatch.setenv("VQVDM_CACHE", str(tmp_path / "own"))
    assert weights_folder() == tmp_path / "own" / "weights"


def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    broken, foreign = tmp_path / "broken.safetensors", tmp_path / "foreign.safetensors"
    broken.write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"broken\.safetensors is not a readable"):
        load_lpips(path=broken)
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, foreign)
    with pytest.raises(InputError, match=r"foreign\.safetensors does not hold LPIPS"):
        load_lpips(path=foreign)


def test_too_small_images_are_the_users_mistake(lpips: LPIPS) -> None:
    with pytest.raises(InputError, match="at least 16"):
        lpips(images(0, 1, 3, 8, 16), images(1, 1, 3, 8, 16))
    alex = LPIPS(ALEXNET)
    assert alex(images(0, 1, 3, 31, 40), images(1, 1, 3, 31, 40)) > 0
    with pytest.raises(InputError, match="at least 31"):
        alex(images(0, 1, 3, 30, 40), images(1, 1, 3, 30, 40))


def test_layers_are_those_of_alexnet() -> None:
    """5 convolutions, 2,469,696 parameters (torchvision's alexnet.features)."""
    with torch.device("meta"):
        lpips = LPIPS(ALEXNET)
    assert sum(p.numel() for p in lpips.convolutions.parameters()) == 2_469_696
    assert [len(head) for head in lpips.heads] == [64, 192, 384, 256, 256]


def test_published_distance_of_black_and_white(fetched_weights: Path) -> None:
    """0.8140090704 with AlexNet on images of 64x64 in common_metrics_on_video_quality's README."""
    lpips = load_lpips("alex", fetched_weights / "lpips-alexnet.safetensors")
    black, white = -torch.ones(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    assert lpips(black, white).item() == pytest.approx(0.8140, abs=1e-4)
