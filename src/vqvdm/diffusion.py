"""The diffusion objective: noise, target and weight; and the schedulers that state the same noise for sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from vqvdm.errors import InputError
from vqvdm.structure import did_you_mean

TIMESTEPS = 1000  # the networks' clock: 0 is clean, 1000 is noise

Denoise = Callable[[Tensor, Tensor], Tensor]  # (noisy (b, c, t, h, w), timestep (b,)) -> prediction, same shape


@dataclass(frozen=True)
class Objective:
    """What the denoiser learns to predict, at which noise levels, and how the levels are weighted.

    prediction: "epsilon" (Ho et al. 2020), "v_prediction" (Salimans and Ho 2022), "sample" (x0), or "flow": rectified
        flow's velocity along the straight path from clean to noise (Liu et al. 2022).
    schedule: of the discrete kinds; flow has none.
    zero_terminal_snr: let the last level be pure noise (Lin et al. 2023); impossible with epsilon.
    min_snr_gamma: clips the weight at that signal-to-noise ratio (Hang et al. 2023); not for flow.
    times: how noise levels are drawn, "logit_normal" being denser in the middle (Esser et al. 2024, section 3.1).
    shift: flow only, moves levels towards noise (Esser et al. 2024, eq. 23); also used in sampling.
    """

    prediction: Literal["epsilon", "v_prediction", "sample", "flow"] = "flow"
    schedule: Literal["linear", "scaled_linear", "cosine"] = "cosine"
    zero_terminal_snr: bool = True
    min_snr_gamma: float | None = None
    times: Literal["uniform", "logit_normal"] = "logit_normal"
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.prediction == "epsilon" and self.zero_terminal_snr:
            raise InputError(
                "diffusion.prediction epsilon cannot go with diffusion.zero_terminal_snr true: at pure noise the noise "
                "says nothing of the clip. Take v_prediction, sample or flow, or set zero_terminal_snr to false"
            )
        if self.prediction == "flow" and self.min_snr_gamma is not None:
            raise InputError("diffusion.min_snr_gamma is for discrete schedules; with prediction flow leave it null")
        if self.shift <= 0:
            raise InputError(f"diffusion.shift must be positive, not {self.shift}")

    # --- training -----------------------------------------------------------------------------------------------

    def loss(self, denoise: Denoise, latents: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
        """Weighted squared error of each sample.

        Args:
            denoise: the network with its conditions bound.
            latents: x0, (b, c, t, h, w), normalised.
            noise: standard normal, same shape.
            uniform: (b,) in 0..1, from which noise levels are drawn.

        Returns:
            (b,) float32.
        """
        alpha, sigma, timestep = self.levels(uniform)
        a, s = (level.view(-1, 1, 1, 1, 1) for level in (alpha, sigma))
        x0, eps = latents, noise
        error = denoise(a * x0 + s * eps, timestep).float() - self.target(x0, eps, a, s).float()
        return self.weight(alpha, sigma) * error.square().flatten(1).mean(1)

    def chord(self, path: Tensor, step: Tensor, starts: Sequence[float] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One step of a sampler's path, as the straight line that makes it; for prediction `flow`.

        Args:
            path: (b, n + 1, c, t, h, w), the states at the levels of `starts` and at 0.
            step: (b,) from 0 to n - 1, which step of each path; int64.
            starts: n falling `uniform`s from 1, where the steps begin; None is 1, (n - 1) / n and so on.

        Returns:
            The line's ends at level 0 and at level 1, (b, c, t, h, w) each, and (b,) the `uniform` where the step
            begins: `latents`, `noise` and `uniform` of `loss`, which then asks for the step's mean velocity.
        """
        clips = torch.arange(len(path), device=path.device)
        ends = torch.linspace(1, 0, path.shape[1]) if starts is None else torch.tensor([*starts, 0.0])
        first, last = (ends.to(path.device)[step + number] for number in (0, 1))
        begin, end = path[clips, step], path[clips, step + 1]
        high, low = (self.levels(level)[1].view(-1, 1, 1, 1, 1) for level in (first, last))
        velocity = (begin - end) / (high - low)
        x0 = begin - high * velocity
        return x0, x0 + velocity, first

    def before(self, path: Tensor, step: Tensor, starts: Sequence[float] | None = None) -> Tensor:
        """What a sampler on that path takes for x0 in the step before `chord`'s, (b, c, t, h, w); zeros in its first.

        Args: as of `chord`.
        """
        x0, _, _ = self.chord(path, (step - 1).clamp(min=0), starts)
        return x0 * (step > 0).to(x0).view(-1, 1, 1, 1, 1)

    def target(self, x0: Tensor, noise: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """What the network shall predict from alpha x0 + sigma noise; the inverse of `split`."""
        if self.prediction == "v_prediction":
            return alpha * noise - sigma * x0
        if self.prediction == "flow":
            return noise - x0
        return noise if self.prediction == "epsilon" else x0

    def levels(self, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Signal and noise factors and the network's timestep, (b,) each, for `uniform` (b,) in 0..1."""
        u = uniform.double().clamp(1e-6, 1 - 1e-6)
        if self.times == "logit_normal":
            u = torch.sigmoid(math.sqrt(2) * torch.erfinv(2 * u - 1))  # standard normal through the logistic function
        if self.prediction == "flow":
            sigma = self.shift * u / (1 + (self.shift - 1) * u)
            return (1 - sigma).float(), sigma.float(), (TIMESTEPS * sigma).float()
        timestep = (u * TIMESTEPS).long().clamp(max=TIMESTEPS - 1)
        alpha_bar = self.alphas_cumprod.to(uniform.device)[timestep]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), timestep

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Min-SNR's weight of the squared error, (b,); 1 without `min_snr_gamma`."""
        if self.min_snr_gamma is None:
            return torch.ones_like(alpha)
        snr = (alpha / sigma).square()
        clipped = snr.clamp(max=self.min_snr_gamma)
        # Hang et al. 2023, section 3.4: min(snr, gamma) on x0, divided by what turns another error into one of x0
        return {"sample": clipped, "epsilon": clipped / snr, "v_prediction": clipped / (snr + 1)}[self.prediction]

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """alpha-bar of the discrete schedule, (1000,), exactly as the schedulers have it."""
        return DDPMScheduler(**self._discrete()).alphas_cumprod

    def level_at(self, timestep: float) -> tuple[float, float]:
        """Signal and noise factors at a time of the network's clock, also between those of training."""
        if self.prediction == "flow":
            return 1 - timestep / TIMESTEPS, timestep / TIMESTEPS
        angle = float(np.interp(timestep, np.arange(TIMESTEPS), self._angles))
        return math.cos(angle), math.sin(angle)

    def level_like(self, alpha: float, sigma: float) -> tuple[float, float, float]:
        """Signal and noise factors and the network's timestep of the level whose ratio is sigma / alpha.

        Beyond the levels of training it is the nearest of them.
        """
        if self.prediction == "flow":
            level = sigma / (alpha + sigma)
            return 1 - level, level, TIMESTEPS * level
        timestep = float(np.interp(math.atan2(sigma, alpha), self._angles, np.arange(TIMESTEPS)))
        return *self.level_at(timestep), timestep

    @cached_property
    def _angles(self) -> np.ndarray:
        """Of (sigma, alpha) at each level, rising."""
        bars = self.alphas_cumprod.double()
        return torch.atan2((1 - bars).sqrt(), bars.sqrt()).numpy()

    def split(
        self, prediction: Tensor, noisy: Tensor, alpha: float | Tensor, sigma: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """x0 and noise, of which `noisy` is alpha x0 + sigma noise, from the network's prediction; the shape of all."""
        if self.prediction == "epsilon":
            return (noisy - sigma * prediction) / alpha, prediction
        if self.prediction == "sample":
            return prediction, (noisy - alpha * prediction) / sigma
        # v = alpha noise - sigma x0; flow's velocity is noise - x0
        x0 = (noisy if self.prediction == "flow" else alpha * noisy) - sigma * prediction
        return x0, (noisy if self.prediction == "flow" else sigma * noisy) + alpha * prediction

    # --- sampling -----------------------------------------------------------------------------------------------

    def for_sampling(self) -> dict[str, Any]:
        """The settings that sampling must know: an `Objective` of these samples as this one."""
        return {name: getattr(self, name) for name in ("prediction", "schedule", "zero_terminal_snr", "shift")}

    def _discrete(self) -> dict[str, Any]:
        betas = {"cosine": "squaredcos_cap_v2"}.get(self.schedule, self.schedule)
        return {
            "num_train_timesteps": TIMESTEPS,
            "beta_schedule": betas,
            "rescale_betas_zero_snr": self.zero_terminal_snr,
            "prediction_type": self.prediction,
            "timestep_spacing": "trailing",  # starts at the last level, as zero terminal SNR demands
        }

    def make_scheduler(self, name: str = "dpm++") -> SchedulerMixin:
        """A diffusers scheduler that walks the noise levels of training.

        Args:
            name: "dpm++" (DPM-Solver++ 2M), "unipc", "euler", "ddim" (with flow, on the cosine schedule), "heun" (flow
                only) or "ddpm" (not with flow).
        """
        makers = self._schedulers()
        if name not in makers:
            hint = did_you_mean(name, makers) or ";"
            raise InputError(
                f"no scheduler {name!r} for prediction {self.prediction}{hint} there are {', '.join(makers)}"
            )
        return makers[name]()

    def scheduler_names(self) -> list[str]:
        """What `make_scheduler` takes."""
        return list(self._schedulers())

    def scheduler_kinds(self) -> set[Any]:
        """The classes that `make_scheduler` makes: they walk this noise with the network's own clock."""
        return {maker.func for maker in self._schedulers().values()}

    def _schedulers(self) -> dict[str, partial[Any]]:
        return self._flow_schedulers() if self.prediction == "flow" else self._discrete_schedulers()

    def _flow_schedulers(self) -> dict[str, partial[Any]]:
        flow = {
            "num_train_timesteps": TIMESTEPS,
            "use_flow_sigmas": True,
            "flow_shift": self.shift,
            "prediction_type": "flow_prediction",
        }
        return {
            "dpm++": partial(DPMSolverMultistepScheduler, **flow, solver_order=2),
            "unipc": partial(UniPCMultistepScheduler, **flow, solver_order=2),
            "euler": partial(FlowMatchEulerDiscreteScheduler, TIMESTEPS, shift=self.shift),
            "heun": partial(FlowMatchHeunDiscreteScheduler, TIMESTEPS, shift=self.shift),
            # On the noise it was made for; `schedulers.adapted` asks the network at its own levels.
            "ddim": partial(
                DDIMScheduler, **Objective("v_prediction", zero_terminal_snr=True)._discrete(), clip_sample=False
            ),
        }

    def _discrete_schedulers(self) -> dict[str, partial[Any]]:
        common = self._discrete()
        return {
            "dpm++": partial(DPMSolverMultistepScheduler, **common, **self._floor(), solver_order=2),
            "unipc": partial(UniPCMultistepScheduler, **common, solver_order=2),
            "euler": partial(EulerDiscreteScheduler, **common),
            "ddim": partial(DDIMScheduler, **common, clip_sample=False, set_alpha_to_one=True),
            "ddpm": partial(DDPMScheduler, **common, clip_sample=False),
        }

    def _floor(self) -> dict[str, float]:
        """Where DPM-Solver starts if noise is predicted: what that misses is divided by the signal's factor.

        The cosine schedule ends at a factor of 5e-5, from which only perfect networks come back; diffusers' own advice.
        """
        return {"lambda_min_clipped": -5.1} if self.prediction == "epsilon" else {}


ConditionalDenoise = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]


def guided(
    denoise: ConditionalDenoise,
    null_label: int,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    weaker: ConditionalDenoise | None = None,
) -> ConditionalDenoise:
    """Classifier-free guidance (Ho and Salimans 2021, eq. 6) around a denoiser, both passes in one batch.

    Args:
        denoise: (noisy (b, c, t, h, w), timestep, class_labels (b,), fps (b,)) -> prediction.
        null_label: the label that means no class. The pass without class has no frame rate either (0), so that both
            conditions are guided.
        scale: 1 is the plain conditional prediction and costs one pass.
        interval: part of the network's clock, 0 clean to 1 noise, in which to guide (Kynkäänniemi et al. 2024).
        weaker: a worse denoiser, from whose prediction of the same guidance leads away in the place of one without
            class (autoguidance, Karras et al. 2024, eq. 3).
    """

    def denoise_guided(noisy: Tensor, timestep: Tensor, class_labels: Tensor | None, fps: Tensor) -> Tensor:
        clock = float(torch.as_tensor(timestep).float().mean()) / TIMESTEPS
        guides = scale != 1 and interval[0] <= clock <= interval[1]
        if guides and weaker is not None:
            weak = weaker(noisy, timestep, class_labels, fps)
            return weak + scale * (denoise(noisy, timestep, class_labels, fps) - weak)
        if not guides or class_labels is None:
            return denoise(noisy, timestep, class_labels, fps)
        labels = torch.cat([class_labels, torch.full_like(class_labels, null_label)])
        both = denoise(torch.cat([noisy, noisy]), timestep, labels, torch.cat([fps, torch.zeros_like(fps)]))
        conditional, unconditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return denoise_guided
