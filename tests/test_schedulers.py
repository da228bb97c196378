"""diffusers' schedulers on denoisers of every objective: each must sample the Gaussian whose best denoiser is known."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from vqvdm.diffusion import TIMESTEPS, Objective
from vqvdm.errors import InputError
from vqvdm.schedulers import adapted, fit, fitting_schedulers, set_steps, stated_objective

torch.set_num_threads(1)

MEAN, DEVIATION = 0.5, 0.3
OBJECTIVES = {
    "flow": Objective("flow"),
    "shifted flow": Objective("flow", shift=3.0),
    "v": Objective("v_prediction"),
    "sample": Objective("sample", schedule="scaled_linear"),
    "epsilon": Objective("epsilon", zero_terminal_snr=False),
    "linear epsilon": Objective("epsilon", "linear", zero_terminal_snr=False),
}


def best_denoiser(objective: Objective):
    """E[target | noisy] where x0 is normal with MEAN and DEVIATION, at whole and fractional timesteps."""
    angles = torch.atan2((1 - objective.alphas_cumprod).sqrt(), objective.alphas_cumprod.sqrt()).double()

    def denoise(noisy: Tensor, timestep: Tensor) -> Tensor:
        t = float(timestep)
        if objective.prediction == "flow":
            a, s = 1 - t / TIMESTEPS, t / TIMESTEPS
        else:
            low = min(int(t), TIMESTEPS - 2)
            angle = angles[low].lerp(angles[low + 1], t - low)
            a, s = float(angle.cos()), float(angle.sin())
        centred = (noisy - a * MEAN) / (a * a * DEVIATION**2 + s * s)
        noise, x0 = s * centred, MEAN + a * DEVIATION**2 * centred
        return {"flow": noise - x0, "epsilon": noise, "sample": x0, "v_prediction": a * noise - s * x0}[
            objective.prediction
        ]

    return denoise


def sampled(scheduler: Any, objective: Objective, steps: int) -> Tensor:
    """20,000 numbers, as the pipeline samples them."""
    fit(scheduler, objective, bounded=False)
    scheduler.set_timesteps(steps)
    predict = adapted(best_denoiser(objective), objective, scheduler)
    generator = torch.Generator().manual_seed(0)
    taken = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    x = torch.randn(1, 1, 1, 1, 20_000, generator=generator) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for i, t in enumerate(scheduler.timesteps):
        shown = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(predict(shown, t, i), t, x, **taken, return_dict=False)[0]
    return x


@pytest.mark.parametrize("kind", fitting_schedulers(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_every_fitting_scheduler_samples_the_gaussian_of_every_objective(kind: Any, objective: Objective) -> None:
    scheduler = kind.from_config(objective.make_scheduler("dpm++").config)
    first_order_noise = "DDPM" in kind.__name__ or kind is diffusers.EulerAncestralDiscreteScheduler
    x = sampled(scheduler, objective, 300 if first_order_noise else 100)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x.std().item() == pytest.approx(DEVIATION, rel=0.05)


@pytest.mark.parametrize("settings", [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}], ids=str)
@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "DEISMultistepScheduler"])
def test_other_noise_levels_are_met_too(kind: str, settings: dict[str, bool]) -> None:
    for objective in (OBJECTIVES["flow"], OBJECTIVES["linear epsilon"]):
        config = objective.make_scheduler("euler").config
        scheduler = getattr(diffusers, kind).from_config(config, timestep_spacing="linspace", **settings)
        x = sampled(scheduler, objective, 100)
        assert (x.mean().item(), x.std().item()) == pytest.approx((MEAN, DEVIATION), abs=0.02)


def test_what_swaps_in_swaps_out_again() -> None:
    """The config goes from one scheduler to the next: what it says of the prediction must not stick."""
    for objective in OBJECTIVES.values():
        scheduler = objective.make_scheduler("dpm++")
        for kind in ("PNDMScheduler", "EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"):
            scheduler = getattr(diffusers, kind).from_config(scheduler.config)
            x = sampled(scheduler, objective, 60)
            assert (x.mean().item(), x.std().item()) == pytest.approx((MEAN, DEVIATION), abs=0.025), kind


def test_ddim_samples_what_a_flow_has_learnt() -> None:
    objective = Objective("flow", shift=2.0)
    x = sampled(objective.make_scheduler("ddim"), objective, 60)
    assert (x.mean().item(), x.std().item()) == pytest.approx((MEAN, DEVIATION), abs=0.025)


def test_own_schedulers_get_the_network_s_own_answer() -> None:
    for objective in OBJECTIVES.values():
        for name in ("dpm++", "unipc", "euler", "heun" if objective.prediction == "flow" else "ddim"):
            scheduler, stated = objective.make_scheduler(name), dict(objective.make_scheduler(name).config)
            fit(scheduler, objective, bounded=False)
            assert dict(scheduler.config) == stated
            scheduler.set_timesteps(5)
            asked = []
            predict = adapted(lambda x, t, asked=asked: (asked.append(t), x + 1)[1], objective, scheduler)
            x, t = torch.randn(1, 1, 1, 1, 4), scheduler.timesteps[1]
            assert torch.equal(predict(x, t, 1), x + 1)
            assert asked == [t]


@pytest.mark.parametrize(
    "kind", ["IPNDMScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "LCMScheduler", "TCDScheduler"]
)
def test_what_would_sample_wrongly_is_refused(kind: str) -> None:
    scheduler = getattr(diffusers, kind)()
    with pytest.raises(InputError, match=rf"{kind} would not sample .* these diffusers schedulers do: FlowMatchEuler"):
        fit(scheduler, Objective(), bounded=False)


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("DPMSolverMultistepScheduler", "use_karras_sigmas"),
        ("DPMSolverMultistepScheduler", "use_lu_lambdas"),
        ("UniPCMultistepScheduler", "use_exponential_sigmas"),
        ("DEISMultistepScheduler", "use_karras_sigmas"),
        ("FlowMatchEulerDiscreteScheduler", "stochastic_sampling"),
        ("FlowMatchEulerDiscreteScheduler", "invert_sigmas"),
        ("FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting"),
    ],
)
def test_settings_that_spoil_a_flow_are_refused(kind: str, setting: str) -> None:
    scheduler = getattr(diffusers, kind).from_config(OBJECTIVES["flow"].make_scheduler().config, **{setting: True})
    for objective in (OBJECTIVES["flow"], OBJECTIVES["v"]):
        with pytest.raises(InputError, match=rf"{kind} with {setting} would not sample .*{setting}=False"):
            fit(scheduler, objective, bounded=False)


@pytest.mark.parametrize(
    ("objective", "kind", "settings"),
    [
        ("flow", "FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 500}),
        ("linear epsilon", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("v", "EulerDiscreteScheduler", {"timestep_type": "continuous"}),
    ],
)
def test_other_clocks_and_levels_of_own_kinds_are_met_too(objective: str, kind: str, settings: dict[str, Any]) -> None:
    config = OBJECTIVES[objective].make_scheduler().config
    x = sampled(getattr(diffusers, kind).from_config(config, **settings), OBJECTIVES[objective], 100)
    assert (x.mean().item(), x.std().item()) == pytest.approx((MEAN, DEVIATION), abs=0.02)


def test_only_bounded_data_is_cut() -> None:
    for bounded in (False, True):
        scheduler = diffusers.DDIMScheduler(clip_sample=True)
        fit(scheduler, OBJECTIVES["v"], bounded=bounded)
        assert scheduler.config["clip_sample"] == bounded


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_levels_of_equal_ratio(objective: Objective) -> None:
    for alpha, sigma in ((0.95, 0.1), (0.5, 0.5), (0.6, 3.0)):
        a, s, timestep = objective.level_like(alpha, sigma)
        assert s / a == pytest.approx(sigma / alpha)
        noise, x0 = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
        target = {"flow": noise - x0, "epsilon": noise, "sample": x0, "v_prediction": a * noise - s * x0}
        split = objective.split(target[objective.prediction], a * x0 + s * noise, a, s)
        torch.testing.assert_close(split, (x0, noise))
        if objective.prediction != "flow":
            bar = float(objective.alphas_cumprod[round(timestep)])
            assert a == pytest.approx(bar**0.5, abs=2e-3)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_schedulers_state_their_objective(objective: Objective) -> None:
    names = ("dpm++", "unipc", "euler", "heun") if objective.prediction == "flow" else ("dpm++", "euler", "ddim")
    assert {stated_objective(objective.make_scheduler(name)) for name in names} == {objective}
    with pytest.raises(InputError, match="EDMEulerScheduler states no noise schedule that vqvdm trains on"):
        stated_objective(diffusers.EDMEulerScheduler())


def test_pixels_from_predicted_noise_are_cut_to_their_range() -> None:
    """What a network misses of the noise at the last levels of the cosine schedule is multiplied by up to 20,000."""
    objective = Objective("epsilon", "cosine", zero_terminal_snr=False)
    for kind in (diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler):
        for bounded in (True, False):
            scheduler = kind.from_config(objective.make_scheduler("dpm++").config)
            fit(scheduler, objective, bounded=bounded)
            scheduler.set_timesteps(20)
            x = torch.randn(1, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
            scheduler.step(1.01 * x, scheduler.timesteps[0], x)  # the noise, and one percent too much
            x0 = scheduler.model_outputs[-1]
            assert (x0.abs().max() <= 1) == bounded


def test_predicted_noise_is_not_asked_of_pure_noise() -> None:
    """DPM-Solver starts where the signal's factor is exp(-5.1) of the noise's, as diffusers advises for cosine."""
    objective = Objective("epsilon", "cosine", zero_terminal_snr=False)
    scheduler = objective.make_scheduler("dpm++")
    scheduler.set_timesteps(20)
    alpha_bar = objective.alphas_cumprod[int(scheduler.timesteps[0])]
    assert (alpha_bar / (1 - alpha_bar)).sqrt().log().item() == pytest.approx(-5.1, abs=0.2)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_steps_of_a_flow_are_even_to_the_end(shift: float) -> None:
    """Levels of shift(k / n), by Esser et al. 2024, eq. 23: diffusers' own end next to 0, one step too early."""
    scheduler: Any = Objective("flow", shift=shift).make_scheduler("euler")
    set_steps(scheduler, 4)
    even = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    torch.testing.assert_close(scheduler.sigmas, shift * even / (1 + (shift - 1) * even))
    torch.testing.assert_close(scheduler.timesteps, 1000 * scheduler.sigmas[:-1])
