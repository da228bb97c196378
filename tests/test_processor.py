"""Packed weights give what plain convolutions give, follow every change of the weights, and stay out of training."""

from __future__ import annotations

import pytest
import torch

from vqvdm import processor
from vqvdm.denoiser import StepModulations, VideoDenoiser
from vqvdm.diffusion import Objective
from vqvdm.layers import Conv3d, Linear
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.processor import fast_bf16, packed_convolution, packed_linear, packed_weights
from vqvdm.tokenizer import VideoTokenizer

CPU = torch.device("cpu")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def plain(layer: Conv3d, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.conv3d(x, layer.weight, layer.bias, layer.stride, layer.padding)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (1, 1, 0), ((1, 3, 3), (1, 2, 2), (0, 1, 1))])
@torch.no_grad()
def test_packed_is_plain(dtype, batch, kernel, stride, padding) -> None:
    if dtype == torch.bfloat16 and not fast_bf16(CPU):
        pytest.skip("this processor has no bf16 instructions")
    torch.manual_seed(0)
    layer = Conv3d(8, 16, kernel, stride=stride, padding=padding).to(dtype)
    x = torch.randn(batch, 8, 4, 6, 6).to(dtype)
    plus = torch.randn_like(expected := plain(layer, x))
    with packed_weights():
        assert packed_convolution(layer, x) is not None  # else this test says nothing
        result, total = layer(x), layer(x, plus=plus)
    torch.testing.assert_close(result, expected, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])
    torch.testing.assert_close(total, expected + plus, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])
    torch.testing.assert_close(layer(x, plus=plus), expected + plus)


@torch.no_grad()
def test_a_size_that_torch_fails_at_is_computed_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, tried = Conv3d(8, 16, 3, padding=1), []

    def fail(*_: object) -> None:
        tried.append(1)
        raise RuntimeError("could not create a memory")

    with packed_weights():
        layer(torch.randn(1, 8, 4, 6, 6))  # whether this torch can pack at all is known now
        monkeypatch.setattr(processor, "_convolve", fail)
        for height in (6, 6, 8):
            x = torch.randn(1, 8, 4, height, 6)
            torch.testing.assert_close(layer(x), plain(layer, x))
    assert len(tried) == 2  # once at each size; the first one was packed before, and fails as well


@pytest.mark.parametrize("dtype", TOLERANCES)
@torch.no_grad()
def test_packed_linear_is_plain_and_follows_its_weight(dtype) -> None:
    if dtype == torch.bfloat16 and not fast_bf16(CPU):
        pytest.skip("this processor has no bf16 instructions")
    torch.manual_seed(0)
    layer = Linear(24, 40).to(dtype)
    with packed_weights():
        for places in (3, 5):  # of the same layer
            x = torch.randn(2, places, 4, 24).transpose(1, 2).to(dtype)
            assert packed_linear(layer, x) is not None
            expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
            torch.testing.assert_close(layer(x), expected, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])
            layer.weight.mul_(-2)
    assert packed_linear(layer, x) is None


@torch.no_grad()
def test_weights_of_other_kinds_are_left_to_them() -> None:
    class Quantised(torch.Tensor):
        pass

    layer, x = Linear(8, 8), torch.randn(2, 8)
    layer.weight = torch.nn.Parameter(layer.weight.as_subclass(Quantised))
    with packed_weights():
        assert packed_linear(layer, x) is None
        layer(x)


@torch.no_grad()
def test_weights_and_shapes_may_change_within() -> None:
    layer = Conv3d(8, 8, 3, padding=1)
    with packed_weights():
        for side in (4, 6):
            x = torch.randn(1, 8, 2, side, side)
            torch.testing.assert_close(layer(x), plain(layer, x), atol=1e-5, rtol=1e-4)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), plain(layer, x), atol=1e-5, rtol=1e-4)
        layer.weight = torch.nn.Parameter(torch.randn_like(layer.weight))
        torch.testing.assert_close(layer(x), plain(layer, x), atol=1e-5, rtol=1e-4)


def test_where_the_plain_convolution_is_right() -> None:
    layer, x = Conv3d(8, 8, 3, padding=1), torch.randn(1, 8, 2, 4, 4)
    with packed_weights():
        assert packed_convolution(layer, x) is None  # gradients are wanted
        layer(x).sum().backward()
        assert layer.weight.grad is not None
        with torch.no_grad():
            assert packed_convolution(layer, x) is not None
            assert packed_convolution(layer, x.double()) is None
            with packed_weights():
                layer(x)
            assert packed_convolution(layer, x) is not None  # the inner one did not end the outer
            with torch.autocast("cpu", torch.bfloat16):
                assert packed_convolution(layer, x) is None
    with torch.no_grad():
        assert packed_convolution(layer, x) is None


def _pipeline(dtype: torch.dtype) -> VQVDMPipeline:
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(
        channels=(16, 32), strides=((2, 2, 2),), patch=(1, 2, 2), latent_channels=4, quantizer="none"
    )
    denoiser = VideoDenoiser(in_channels=4, channels=(32, 64), blocks=(1, 2), num_classes=3, head_dim=16)
    for parameter in denoiser.parameters():  # branches that begin at zero would hide what they compute
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    pipeline = VQVDMPipeline(
        tokenizer, denoiser, Objective().make_scheduler("dpm++"), num_frames=8, height=32, width=32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(dtype)


def _sample(pipeline: VQVDMPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return pipeline([0, 2], num_inference_steps=6, generator=generator, output_type="pt").frames.float()


def test_sampling_is_that_of_the_plain_path(monkeypatch) -> None:
    """Single precision, packed: within 1e-4 of values in 0..1; bf16: within 0.02 on average."""
    packed = _sample(_pipeline(torch.float32))
    half = _sample(_pipeline(torch.bfloat16)) if fast_bf16(CPU) else packed
    calls = []
    monkeypatch.setattr(processor, "_can_pack", lambda dtype: calls.append(dtype))
    expected = _sample(_pipeline(torch.float32))
    assert calls  # the plain path it was
    torch.testing.assert_close(packed, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.02
    assert (half - expected).abs().mean() < 0.02


@torch.no_grad()
@pytest.mark.parametrize("planned_at_once", [4096, 4, 1])
def test_modulations_made_for_all_steps_are_those_made_in_each(
    planned_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqvdm.denoiser._PLANNED", planned_at_once)
    denoiser = _pipeline(torch.float32).denoiser
    timesteps, labels, fps = torch.tensor([900.0, 500.0, 20.0]), torch.tensor([1, 3]), torch.tensor([8.0, 0.0])
    planned = StepModulations(denoiser, timesteps)
    x = torch.randn(2, 4, 4, 8, 8)
    for timestep in timesteps.flip(0):
        made = planned.at(timestep, labels, fps)
        assert made is not None
        torch.testing.assert_close(denoiser(x, timestep, labels, fps, made), denoiser(x, timestep, labels, fps))
    assert planned.at(torch.tensor(7.0), labels, fps) is None  # between the steps, as some schedulers ask
