"""The objective against closed forms: the best denoiser of Gaussian data is known, and must sample that Gaussian."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vqvdm.diffusion import TIMESTEPS, Objective, guided
from vqvdm.errors import InputError

MEAN, DEVIATION = 0.7, 0.4


def objective(prediction: str, **settings: object) -> Objective:
    return Objective(prediction, zero_terminal_snr=prediction != "epsilon", **settings)  # type: ignore[arg-type]


def best_prediction(prediction: str, noisy: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """E[target | noisy] where x0 is normal with MEAN and DEVIATION, and noisy = a x0 + s eps."""
    gain = a * DEVIATION**2 / (a**2 * DEVIATION**2 + s**2)
    x0 = MEAN + gain * (noisy - a * MEAN)
    eps = (noisy - a * x0) / s.clamp(min=1e-8)
    return {"sample": x0, "epsilon": eps, "v_prediction": a * eps - s * x0, "flow": eps - x0}[prediction]


def levels_at(objective: Objective, timestep: Tensor) -> tuple[Tensor, Tensor]:
    if objective.prediction == "flow":
        sigma = torch.as_tensor(float(timestep) / TIMESTEPS)
        return 1 - sigma, sigma
    a_bar = objective.alphas_cumprod[int(timestep)]
    return a_bar.sqrt(), (1 - a_bar).sqrt()


@pytest.mark.parametrize(
    ("prediction", "scheduler"),
    [
        ("flow", "euler"),
        ("flow", "heun"),
        ("flow", "dpm++"),
        ("flow", "unipc"),
        ("v_prediction", "ddim"),
        ("v_prediction", "ddpm"),
        ("v_prediction", "dpm++"),
        ("v_prediction", "unipc"),
        ("sample", "ddim"),
        ("sample", "dpm++"),
        ("epsilon", "ddim"),
        ("epsilon", "dpm++"),
        ("epsilon", "euler"),
    ],
)
def test_the_optimal_denoiser_samples_its_gaussian(prediction: str, scheduler: str) -> None:
    ob = objective(prediction)
    torch.manual_seed(0)
    steps = ob.make_scheduler(scheduler)
    steps.set_timesteps(100 if scheduler == "ddpm" else 50)
    x = torch.randn(1, 1, 1, 1, 20_000) * float(getattr(steps, "init_noise_sigma", 1.0))
    for t in steps.timesteps:
        noisy = steps.scale_model_input(x, t) if hasattr(steps, "scale_model_input") else x
        x = steps.step(best_prediction(prediction, noisy, *levels_at(ob, t)), t, x, return_dict=False)[0]
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x.std().item() == pytest.approx(DEVIATION, abs=0.03)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
def test_the_loss_of_the_best_prediction_is_the_posterior_variance(prediction: str) -> None:
    ob = objective(prediction, times="uniform")
    generator = torch.Generator().manual_seed(0)
    uniform = torch.full((1,), 0.4)
    a, s, _ = ob.levels(uniform)
    x0 = MEAN + DEVIATION * torch.randn(1, 1, 1, 1, 200_000, generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    loss = ob.loss(lambda noisy, t: best_prediction(prediction, noisy, a, s), x0, eps, uniform)
    # Var[x0 | noisy]; the other targets are x0 times a factor, plus something known from `noisy`.
    variance = 1 / (1 / DEVIATION**2 + (a / s) ** 2)
    factor = {"sample": 1.0, "epsilon": a / s, "v_prediction": a * a / s + s, "flow": 1 + a / s}[prediction]
    assert loss.item() == pytest.approx((variance * factor**2).item(), rel=0.02)


def test_flow_path_ends_in_clean_and_in_noise() -> None:
    ob = Objective("flow", times="uniform")
    a, s, t = ob.levels(torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(a, torch.tensor([1.0, 0.75, 0.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(s, torch.tensor([0.0, 0.25, 1.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(t, torch.tensor([0.0, 250.0, 1000.0]), atol=1e-2, rtol=0)


def test_shift_follows_its_equation_in_training_and_sampling() -> None:
    ob = Objective("flow", times="uniform", shift=3.0)
    _, sigma, _ = ob.levels(torch.tensor([0.5]))
    assert sigma.item() == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))
    for name in ("euler", "dpm++"):
        plain, shifted = Objective("flow").make_scheduler(name), ob.make_scheduler(name)
        plain.set_timesteps(8)
        shifted.set_timesteps(8)
        assert (shifted.sigmas[1:-1] > plain.sigmas[1:-1]).all()


def test_logit_normal_times_have_their_quantiles() -> None:
    _, sigma, _ = Objective("flow", times="logit_normal").levels(torch.tensor([0.158655, 0.5, 0.841345]))
    expected = [1 / (1 + math.exp(z)) for z in (1.0, 0.0, -1.0)]  # normal quantiles at -1, 0, 1 deviations
    assert sigma.tolist() == pytest.approx(expected, abs=1e-4)


def test_zero_terminal_snr_reaches_pure_noise() -> None:
    assert Objective("v_prediction", zero_terminal_snr=True).alphas_cumprod[-1].item() == pytest.approx(0, abs=1e-7)
    assert Objective("v_prediction", zero_terminal_snr=False, schedule="linear").alphas_cumprod[-1] > 1e-6


def test_min_snr_weights_agree_between_predictions() -> None:
    """Whatever is predicted, the weight on an error of x0 is min(snr, gamma)."""
    alpha, sigma = torch.tensor([0.99, 0.8, 0.3]), torch.tensor([0.141, 0.6, 0.954])
    snr = (alpha / sigma) ** 2
    wanted = snr.clamp(max=5.0)
    to_x0 = {"sample": torch.ones(3), "epsilon": snr, "v_prediction": (alpha * alpha / sigma + sigma) ** 2}
    for prediction, factor in to_x0.items():
        weight = objective(prediction, min_snr_gamma=5.0).weight(alpha, sigma)
        torch.testing.assert_close(weight * factor, wanted, rtol=5e-3, atol=0)


def test_epsilon_with_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(InputError, match="zero_terminal_snr"):
        Objective("epsilon", zero_terminal_snr=True)


def test_unknown_scheduler_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="dpm\\+\\+, unipc, euler, heun, ddim"):
        Objective("flow").make_scheduler("ddpm")


def test_guidance_extrapolates_from_the_unconditional_prediction() -> None:
    calls = []

    def denoise(noisy: Tensor, t: Tensor, labels: Tensor | None, fps: Tensor) -> Tensor:
        calls.append(len(noisy))
        assert labels is not None
        assert ((fps == 0) == (labels == 10)).all(), "the pass without class has no frame rate either"
        return labels.float().view(-1, 1, 1, 1, 1).expand_as(noisy)

    noisy, fps, labels = torch.zeros(3, 1, 1, 1, 1), torch.full((3,), 8.0), torch.tensor([0, 1, 2])
    out = guided(denoise, null_label=10, scale=3.0)(noisy, torch.tensor(500.0), labels, fps)
    torch.testing.assert_close(out.flatten(), 10 + 3 * (labels.float() - 10))
    assert calls == [6], "both passes belong into one batch"
    outside = guided(denoise, 10, 3.0, interval=(0.6, 0.9))(noisy, torch.tensor(500.0), labels, fps)
    torch.testing.assert_close(outside.flatten(), labels.float())
    assert calls == [6, 3]
