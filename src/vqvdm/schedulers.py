"""diffusers' schedulers on any denoiser, whatever noise each of them walks and whatever the denoiser predicts.

A sample is alpha x0 + sigma noise, and what it shows depends on sigma / alpha alone. So the network is asked at its own
level of that ratio, its answer is split into x0 and noise, and these make what the scheduler expects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from inspect import signature
from typing import Any, Literal

import diffusers
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import Tensor

from vqvdm.diffusion import TIMESTEPS, Denoise, Objective
from vqvdm.errors import InputError

_FLOW_MATCHING = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)

Predict = Callable[[Tensor, Tensor, int], Tensor]  # (scaled sample, timestep, step) -> what `step` expects

_SCHEDULES: Mapping[str, Literal["linear", "scaled_linear", "cosine"]] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}
# Settings with which a scheduler that walks a flow gives NaN, another deviation, or an error of its own.
_NOT_FLOW_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
_NOT_FLOW_MATCHING = ("stochastic_sampling", "invert_sigmas", "use_dynamic_shifting")


@cache
def fitting_schedulers() -> tuple[type, ...]:
    """The kinds that sample a known Gaussian rightly; named only when asked for, as diffusers imports scipy for one."""
    return (
        *_FLOW_MATCHING,
        diffusers.DDIMScheduler,
        diffusers.DDIMParallelScheduler,
        diffusers.DDPMScheduler,
        diffusers.DDPMParallelScheduler,
        diffusers.DEISMultistepScheduler,
        diffusers.DPMSolverMultistepScheduler,
        diffusers.DPMSolverSinglestepScheduler,
        diffusers.EulerAncestralDiscreteScheduler,
        diffusers.EulerDiscreteScheduler,
        diffusers.HeunDiscreteScheduler,
        diffusers.KDPM2AncestralDiscreteScheduler,
        diffusers.KDPM2DiscreteScheduler,
        diffusers.LMSDiscreteScheduler,
        diffusers.PNDMScheduler,
        diffusers.SASolverScheduler,
        diffusers.UniPCMultistepScheduler,
    )


def stated_objective(scheduler: Any) -> Objective:
    """The prediction and noise that a scheduler's config states.

    Raises:
        InputError: its noise is none that vqvdm trains on.
    """
    config: Mapping[str, Any] = scheduler.config
    if "shift" in config or config.get("use_flow_sigmas"):
        return Objective("flow", shift=config.get("flow_shift", config.get("shift", 1.0)))
    if config.get("beta_schedule") not in _SCHEDULES or config.get("prediction_type") is None:
        raise InputError(f"{type(scheduler).__name__} states no noise schedule that vqvdm trains on")
    return Objective(
        prediction=config["prediction_type"],
        schedule=_SCHEDULES[config["beta_schedule"]],
        zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
    )


def set_steps(scheduler: Any, steps: int, learnt: Sequence[float] | None = None) -> None:
    """Give a scheduler its steps, on the CPU: so no step waits for the GPU to tell its level.

    Those of flow matching are spaced evenly down to 1 / steps (before the shift). diffusers' own spacing ends next to
    0, so that the last step does nothing; of four that is a quarter of the work. `learnt` are the levels (before the
    shift) at which a student learnt its steps: Euler's method takes them when asked for as many.
    """
    given: dict[str, Any] = {"num_inference_steps": steps}
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        fits = learnt is not None and len(learnt) == steps
        given = {"sigmas": learnt if fits else np.linspace(1, 1 / steps, steps).tolist()}
    scheduler.set_timesteps(**given, device="cpu")


def fit(scheduler: Any, objective: Objective, bounded: bool) -> None:
    """Tell a scheduler what `adapted` will hand to it: its `prediction_type`, and whether values end at -1 and 1.

    Args:
        scheduler: changed in place.
        objective: of the denoiser.
        bounded: whether clean data lies in -1..1; schedulers that cut it to that range must not cut latents.

    Raises:
        InputError: no tested scheduler, which names those that are; or one with a setting that spoils it.
    """
    if not isinstance(scheduler, fitting_schedulers()):
        names = ", ".join(kind.__name__.removesuffix("Scheduler") for kind in fitting_schedulers())
        raise InputError(
            f"{type(scheduler).__name__} would not sample what this model has learnt; "
            f"these diffusers schedulers do: {names}"
        )
    if _walks_flow(scheduler):
        spoiling = _NOT_FLOW_MATCHING if isinstance(scheduler, _FLOW_MATCHING) else _NOT_FLOW_SIGMAS
        for setting in spoiling:
            if _has(scheduler, setting):
                raise InputError(
                    f"{type(scheduler).__name__} with {setting} would not sample what this model has learnt; "
                    f"leave it out: from_config(..., {setting}=False)"
                )
    kept = objective.prediction if _agrees(scheduler, objective) else "v_prediction"
    wanted = "flow_prediction" if _walks_flow(scheduler) else kept
    if scheduler.config.get("prediction_type", wanted) != wanted:
        scheduler.register_to_config(prediction_type=wanted)
    if not bounded and scheduler.config.get("clip_sample"):
        scheduler.register_to_config(clip_sample=False)
    if bounded and objective.prediction == "epsilon" and scheduler.config.get("thresholding") is False:
        # x0 from predicted noise is wild at high levels. A maximum of 1 makes thresholding a plain cut, as DDPM has it.
        scheduler.register_to_config(thresholding=True, sample_max_value=1.0)


def adapted(denoise: Denoise, objective: Objective, scheduler: Any) -> Predict:
    """What `scheduler.step` expects, from a denoiser of `objective`; the scheduler has been through `fit`."""
    if _agrees(scheduler, objective):
        return lambda sample, timestep, step: denoise(sample, timestep)

    def predict(sample: Tensor, timestep: Tensor, step: int) -> Tensor:
        alpha, sigma = _level(scheduler, timestep, step)
        own_alpha, own_sigma, own_timestep = objective.level_like(alpha, sigma)
        noisy = sample * (math.hypot(own_alpha, own_sigma) / math.hypot(alpha, sigma))
        prediction = denoise(noisy, torch.tensor(own_timestep, dtype=torch.float32))
        x0, noise = objective.split(prediction, noisy, own_alpha, own_sigma)
        return noise - x0 if _walks_flow(scheduler) else alpha * noise - sigma * x0

    return predict


def _walks_flow(scheduler: Any) -> bool:
    """Whether its samples are (1 - sigma) x0 + sigma noise."""
    return isinstance(scheduler, _FLOW_MATCHING) or _has(scheduler, "use_flow_sigmas")


def _has(scheduler: Any, setting: str) -> bool:
    """Whether a setting is on; configs also keep words that are another class's."""
    return bool(scheduler.config.get(setting)) and setting in signature(type(scheduler)).parameters


def _agrees(scheduler: Any, objective: Objective) -> bool:
    """Whether the scheduler's own levels and clock are those of training, so that nothing need be converted."""
    if type(scheduler) not in objective.scheduler_kinds() or _walks_flow(scheduler) != (objective.prediction == "flow"):
        return False
    config = scheduler.config
    if config["num_train_timesteps"] != TIMESTEPS or config.get("timestep_type") == "continuous":
        return False
    if objective.prediction == "flow":
        return True
    ours = objective.alphas_cumprod
    theirs = scheduler.alphas_cumprod.to(ours)
    return theirs.shape == ours.shape and torch.allclose(theirs, ours, atol=1e-6)


def _level(scheduler: Any, timestep: Tensor, step: int) -> tuple[float, float]:
    """alpha and sigma of the sample as the network would see it, after `scale_model_input`."""
    if _walks_flow(scheduler):
        sigma = float(scheduler.sigmas[step])
        return 1 - sigma, sigma
    # Schedulers after Karras et al. 2022 hold x0 + sigma noise and show it divided by sqrt(1 + sigma^2).
    alpha = float(scheduler.scale_model_input(torch.ones((), dtype=torch.float64), timestep))
    if alpha < 1:
        return alpha, math.sqrt(1 - alpha * alpha)
    if hasattr(scheduler, "sigmas"):
        sigma = float(scheduler.sigmas[step])
        return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)
    alpha_bar = float(scheduler.alphas_cumprod[int(timestep)])
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
