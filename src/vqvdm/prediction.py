"""The denoiser within one sampling: its conditions bound, guided, told of its own last estimate."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vqvdm.denoiser import StepModulations, VideoDenoiser
from vqvdm.diffusion import Objective, guided

Run = Callable[..., Tensor]  # as `VideoDenoiser.forward`


class Predictor:
    """(noisy latents (b, c, t, h, w), timestep) -> what the objective predicts, guided in an interval.

    A denoiser with `self_condition` sees the clean latents that it found in the call before (Chen et al. 2023), each of
    the two passes of guidance its own.
    """

    def __init__(
        self,
        run: Run,
        denoiser: VideoDenoiser,
        objective: Objective,
        timesteps: Tensor,
        labels: Tensor | None,
        fps: Tensor,
        interval: tuple[float, float],
        rescale: float,
        weaker: VideoDenoiser | None = None,
        context: Tensor | None = None,
    ) -> None:
        """Bind what holds for all steps.

        Args:
            run: calls the denoiser.
            denoiser: whose modulations of all steps are planned.
            objective: of the denoiser.
            timesteps: (s,) those to come.
            labels: (b,) classes; None for none.
            fps: (b,) frame rates.
            interval: part of the network's clock, 0 clean to 1 noise, in which to guide.
            rescale: share of the guided prediction that gets back the deviation of the conditional one.
            weaker: a worse model of the same classes and latents, for autoguidance; see `guided`.
            context: given latents (b or 1, c + 2, t, h, w), for denoisers that take them.
        """
        self._run, self._denoiser, self._objective = run, denoiser, objective
        self._planned = StepModulations(denoiser, timesteps)
        self._labels, self._fps, self._interval, self._rescale = labels, fps, interval, rescale
        self._conditional: Tensor | None = None
        self._estimate: Tensor | None = None
        self._weaker: Predictor | None = None
        if weaker is not None:  # it plans its steps, and has estimates, of its own
            self._weaker = Predictor(weaker, weaker, objective, timesteps, labels, fps, interval, rescale)
        self.show(context)

    def show(self, context: Tensor | None) -> None:
        """Take other given latents, from the next call on."""
        taken = context is not None and self._denoiser.config["context"]
        self._context = context.to(self._denoiser.dtype) if taken else None
        if self._weaker is not None:
            self._weaker.show(context)

    def __call__(self, noisy: Tensor, timestep: Tensor, scale: float) -> Tensor:
        """Guided by `scale`; 1 is the plain conditional prediction."""
        weaker = None if self._weaker is None else self._weaker._denoise
        guide = guided(self._denoise, self._denoiser.config["num_classes"], scale, self._interval, weaker)
        prediction = guide(noisy, timestep, self._labels, self._fps)
        if self._rescale == 0:
            return prediction
        assert self._conditional is not None
        return rescale_guidance(prediction, self._conditional, self._rescale)

    def _denoise(self, noisy: Tensor, timestep: Tensor, class_labels: Tensor | None, fps: Tensor) -> Tensor:
        made, dtype = self._planned.at(timestep, class_labels, fps), self._denoiser.dtype
        estimate = self._estimate_of(noisy)
        context = None if self._context is None else _for(len(noisy), self._context)
        prediction = self._run(noisy.to(dtype), timestep, class_labels, fps, made, estimate, context).float()
        self._conditional = prediction[: len(self._fps)]  # the first half of a guided batch
        if self._denoiser.config["self_condition"]:
            level = self._objective.level_at(float(timestep))
            self._estimate = self._objective.split(prediction, noisy, *level)[0].to(dtype)
        return prediction

    def _estimate_of(self, noisy: Tensor) -> Tensor | None:
        """The last one for as many passes: guidance may begin or end with its interval."""
        if self._estimate is None or len(self._estimate) == len(noisy):
            return self._estimate
        return _for(len(noisy), self._estimate[: len(self._fps)])


def _for(passes: int, few: Tensor) -> Tensor:
    """(n, c, t, h, w) repeated for as many passes."""
    return few.repeat(passes // len(few), 1, 1, 1, 1)


def rescale_guidance(prediction: Tensor, conditional: Tensor, share: float) -> Tensor:
    """Give a guided prediction (b, c, t, h, w) back the deviation of the conditional one (Lin et al. 2024, eq. 15-16).

    `share` is 0 (unchanged) to 1 (rescaled altogether).
    """
    deviations = [x.flatten(1).std(1).clamp(min=1e-8).view(-1, 1, 1, 1, 1) for x in (conditional, prediction)]
    rescaled = prediction * (deviations[0] / deviations[1])
    return share * rescaled + (1 - share) * prediction
