"""From noise to videos: the tokenizer, the denoiser and a scheduler in one diffusers pipeline.

    noise (b, c, t, h, w) -> scheduler and denoiser -> latents -> tokenizer.decode -> clips -> videos

Without a tokenizer the denoiser works on pixels and the latents are the clips.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from huggingface_hub import snapshot_download
from torch import Tensor

from vqvdm.arguments import (
    check_forms,
    check_null_class,
    check_weaker,
    count,
    frame_rates,
    label_ids,
    noise_interval,
    number,
    one_generator_each,
)
from vqvdm.denoiser import VideoDenoiser
from vqvdm.diffusion import Objective
from vqvdm.errors import InputError
from vqvdm.given import Keeper, read_given
from vqvdm.graphs import GraphedDenoiser
from vqvdm.identity import Configured, changed_settings, fingerprint
from vqvdm.model_card import SAMPLE, model_card
from vqvdm.output import VQVDMPipelineOutput
from vqvdm.prediction import Predictor
from vqvdm.processor import packed_weights
from vqvdm.schedulers import Predict, adapted, fit, set_steps, stated_objective
from vqvdm.tokenizer import VideoTokenizer
from vqvdm.video import SHEET_SIDE, enlarged, grid, write_video

ClassLabel = str | int
_DECODED_ON_GPU = 8  # videos at a time
_SAMPLES = 8  # videos on the model card
_LEAST_NOISE = 1e-3  # share of noise below which noise cannot be told from what is clean
HUB_FILES = ("*.json", "*.safetensors", "*.yaml", "*.md", "*.py", SAMPLE)
# For people who know only `DiffusionPipeline.from_pretrained(..., custom_pipeline=..., trust_remote_code=True)`.
SHIM = 'from vqvdm import VQVDMPipeline\n\n__all__ = ["VQVDMPipeline"]\n'


class VQVDMPipeline(Configured, DiffusionPipeline):
    """Class-conditional or unconditional video generation by latent diffusion.

    Args:
        tokenizer: the 3D VQGAN whose latents are diffused; None diffuses pixels.
        denoiser: the network that makes latents of noise (the averaged weights of a training).
        scheduler: one of `schedulers.fitting_schedulers`; a call sets its `prediction_type` to what it hands over.
        id2label: class id -> class name; None leaves the classes without names.
        fps, num_frames, height, width: what a call makes unless it says otherwise (frames per second, frames, pixels).
        num_inference_steps, guidance_scale: defaults of a call.
        guidance_interval: (lowest, highest) noise level, 0 clean to 1 noise, at which guidance acts. A mapping with
            the keys "low" and "high" is the form it is stored in, because the hub takes every list for a component.
        diffusion: what the denoiser predicts, from which noise: `prediction`, `schedule`, `zero_terminal_snr` and
            `shift` of an `Objective`. None takes what the scheduler states, so give it with a scheduler of another.
        about: facts for the model card, such as `data`, `license`, `seed`, `recipe`, `steps`; text and numbers. With
            `class_dropout` 0 the class was never left out in training, so calls that would leave it out are refused.

    Raises:
        InputError: the labels, the sizes or the parts do not fit each other.
    """

    # The name under which model_index.json knows the class must outlive any move of this file.
    __module__ = "vqvdm"
    model_cpu_offload_seq = "denoiser->tokenizer"
    _optional_components = ["tokenizer"]  # noqa: RUF012
    _callback_tensor_inputs = ["latents", "estimate"]  # noqa: RUF012

    tokenizer: VideoTokenizer | None
    denoiser: VideoDenoiser
    scheduler: Any  # a SchedulerMixin; that class itself declares neither `step` nor `timesteps`

    def __init__(
        self,
        tokenizer: VideoTokenizer | None,
        denoiser: VideoDenoiser,
        scheduler: SchedulerMixin,
        id2label: dict[int, str] | dict[str, str] | None = None,
        fps: float = 8.0,
        num_frames: int = 16,
        height: int = 64,
        width: int = 64,
        num_inference_steps: int = 20,
        guidance_scale: float = 2.0,
        guidance_interval: Mapping[str, float] | Sequence[float] = (0.0, 1.0),
        diffusion: Mapping[str, Any] | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer, denoiser=denoiser, scheduler=scheduler)
        interval = guidance_interval
        low, high = (interval["low"], interval["high"]) if isinstance(interval, Mapping) else interval
        stated = stated_objective(scheduler) if diffusion is None else Objective(**diffusion)
        self.register_to_config(
            id2label={str(key): str(name) for key, name in (id2label or {}).items()},
            fps=float(fps),
            num_frames=int(num_frames),
            height=int(height),
            width=int(width),
            num_inference_steps=int(num_inference_steps),
            guidance_scale=float(guidance_scale),
            guidance_interval={"low": float(low), "high": float(high)},
            diffusion=stated.for_sampling(),
            about=dict(about or {}),
        )
        self.video_processor = VideoProcessor(vae_scale_factor=1)
        self._interrupt = False
        self._guidance_scale = float(guidance_scale)
        self._num_timesteps = 0
        self._estimate: Tensor | None = None  # of the clean latents, at the current step
        self._graphed, self._compiled = GraphedDenoiser(denoiser), False
        unknown = [key for key in self.id2label if not 0 <= key < self.num_classes]
        if unknown:
            raise InputError(f"id2label names class {unknown[0]}, the denoiser has {self.num_classes} classes")
        if tokenizer is not None and tokenizer.config["latent_channels"] != denoiser.config["in_channels"]:
            raise InputError(
                f"the denoiser works on {denoiser.config['in_channels']} channels, "
                f"the tokenizer gives {tokenizer.config['latent_channels']}"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes the denoiser knows; 0 if it is unconditional."""
        return self.denoiser.config["num_classes"]

    @property
    def id2label(self) -> dict[int, str]:
        """Class id -> class name, by id."""
        return dict(sorted((int(key), name) for key, name in self.config["id2label"].items()))

    @property
    def labels(self) -> dict[str, int]:
        """Class name -> class id."""
        return {name: key for key, name in self.id2label.items()}

    @property
    def objective(self) -> Objective:
        """What the denoiser predicts, and from which noise."""
        return Objective(**self.config["diffusion"])

    @property
    def guidance_scale(self) -> float:
        """That of the current call; a callback that sets `_guidance_scale` changes it from the next step on."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the current call guides (outside of the guidance interval it still does not)."""
        return self._guidance_scale > 1 and self.num_classes > 0

    @property
    def num_timesteps(self) -> int:
        """Steps of the current call: calls of the denoiser, more than `num_inference_steps` with some schedulers."""
        return self._num_timesteps

    @property
    def is_compiled(self) -> bool:
        """Whether `compile` has been called."""
        return self._compiled

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked to stop (by setting `pipe._interrupt = True`)."""
        return self._interrupt

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that name the weights of both networks and what sampling knows of the training."""
        settings = {
            "diffusion": dict(self.config["diffusion"]),
            "denoiser": changed_settings(self.denoiser),
            "tokenizer": None if self.tokenizer is None else self.tokenizer.fingerprint(),
        }
        return fingerprint(settings, self.denoiser.state_dict())

    def get_label_ids(self, class_labels: ClassLabel | Sequence[ClassLabel]) -> list[int]:
        """Class ids of names or ids.

        Raises:
            InputError: the model has no classes, a name is unknown (with the nearest one), an id is out of range.
        """
        return label_ids(class_labels, self.id2label, self.num_classes)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(c, t, h, w) on which the denoiser makes a video of this size.

        Raises:
            InputError: the tokenizer's or the denoiser's factors do not divide the size.
        """
        num_frames, height, width = count("num_frames", num_frames), count("height", height), count("width", width)
        channels, t, h, w = (self.denoiser.config["in_channels"], num_frames, height, width)
        if self.tokenizer is not None:
            channels, t, h, w = self.tokenizer.latent_shape(num_frames, height, width)
        asked = {"num_frames": (num_frames, t), "height": (height, h), "width": (width, w)}
        unfit = []
        for (name, (length, latent)), factor in zip(asked.items(), self.denoiser.factors, strict=True):
            multiple = length // latent * factor
            if length % multiple:
                nearest = max(round(length / multiple), 1) * multiple
                unfit.append(f"{name} {length} (must be a multiple of {multiple}; the nearest is {nearest})")
        if unfit:
            raise InputError(f"the denoiser cannot make this size: {', '.join(unfit)}")
        return channels, t, h, w

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabel | Sequence[ClassLabel] | None = None,
        num_frames: int | None = None,
        fps: float | Sequence[float] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        weaker_denoiser: VideoDenoiser | None = None,
        image: Any = None,
        last_image: Any = None,
        video: Any = None,
        mask: Any = None,
        eta: float = 0.0,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        decode_chunk_size: int | None = None,
    ) -> VQVDMPipelineOutput | tuple:
        """Make videos.

        Args:
            class_labels: names or ids of classes; None makes unconditional videos, also of a class-conditional model.
            num_frames, height, width: size of each video; the model's own by default.
            fps: frames per second, one for all or one for each class label; without labels, each makes videos.
            num_inference_steps: steps of the scheduler.
            guidance_scale: w in uncond + w (cond - uncond) (Ho and Salimans 2022); 1 or less is no guidance.
            guidance_interval: (lowest, highest) noise level, 0 clean to 1 noise, at which guidance acts
                (Kynkaanniemi et al. 2024).
            guidance_rescale: share of the guided prediction rescaled to the deviation of the conditional one
                (Lin et al. 2024, section 3.4), against over-saturation at high scales.
            weaker_denoiser: a smaller or less trained one of the same latents and classes, from which guidance leads
                away in the place of an unconditional prediction (autoguidance, Karras et al. 2024); works without
                classes, too.
            image, last_image: a picture with which each video begins, or ends; forms as in `given.read_given`.
            video: frames with which each video begins, to be continued up to `num_frames`; forms likewise. For longer
                ones see `continuation.continue_video`.
            mask: those pixels of `video` to make anew (non-zero), of shape (h, w) or (t, h, w).
            eta: noise of DDIM (Song et al. 2021, eq. 16); other schedulers ignore it.
            num_videos_per_prompt: videos of each class label.
            generator: one generator gives each video its own seed, drawn in order; a list holds one generator for
                each video. Either way a video depends on its own seed alone, not on its batch.
            latents: initial noise (b, c, t, h, w) of deviation 1.
            output_type: "pil", "np", "pt" or "latent"; see `VQVDMPipelineOutput`.
            return_dict: False returns the tuple (frames, fps, seeds).
            callback_on_step_end: called as f(pipeline, step, timestep, {"latents": ...}) after each step; may return
                replaced latents.
            callback_on_step_end_tensor_inputs: tensors handed to the callback: "latents" are still noisy, "estimate"
                is what the denoiser takes for the clean ones, which `tokenizer.decode` shows.
            decode_chunk_size: videos decoded at a time; by default 8 on a GPU, whose memory so bounds sampling alone,
                else all.

        Raises:
            InputError: an argument the model cannot serve; the message names it.
        """
        config, default = self.config, self.config["guidance_interval"]
        size = [
            config[name] if value is None else value
            for name, value in (("num_frames", num_frames), ("height", height), ("width", width))
        ]
        steps = count(
            "num_inference_steps", config["num_inference_steps"] if num_inference_steps is None else num_inference_steps
        )
        scale = number("guidance_scale", config["guidance_scale"] if guidance_scale is None else guidance_scale)
        interval = noise_interval((default["low"], default["high"]) if guidance_interval is None else guidance_interval)
        rescale, eta = number("guidance_rescale", guidance_rescale), number("eta", eta)
        videos = count("num_videos_per_prompt", num_videos_per_prompt)
        chunk = None if decode_chunk_size is None else count("decode_chunk_size", decode_chunk_size)
        tensor_inputs = callback_on_step_end_tensor_inputs
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            tensor_inputs = callback_on_step_end.tensor_inputs
        check_forms(output_type, tensor_inputs, self._callback_tensor_inputs)

        ids = None if class_labels is None else self.get_label_ids(class_labels)
        if self.num_classes and config["about"].get("class_dropout") == 0:
            check_null_class(ids, scale if weaker_denoiser is None else 1.0)
        if weaker_denoiser is not None:
            check_weaker(weaker_denoiser.config, self.denoiser.config)
        prompts = None if ids is None else len(ids)
        rates = frame_rates(config["fps"] if fps is None else fps, prompts, videos)
        generators, seeds = one_generator_each(generator, len(rates))
        shape = (len(rates), *self.latent_shape(*size))
        t, h, w = map(int, size)  # which `latent_shape` has checked
        given = read_given(image, last_image, video, mask, (t, h, w), len(rates))
        device = self._execution_device
        labels = None
        if ids is not None:
            labels = torch.tensor(ids, device=device).repeat_interleave(videos)  # (b,)
        self._guidance_scale = 1.0 if labels is None and weaker_denoiser is None else scale

        fit(self.scheduler, self.objective, bounded=self.tokenizer is None)
        set_steps(self.scheduler, steps, config["about"].get("learnt_sigmas"))
        self._num_timesteps = len(self.scheduler.timesteps)
        latents = self._initial_noise(shape, generators, latents, device)
        arguments = self._step_arguments(generators, eta)
        with packed_weights():
            context = bool(self.denoiser.config["context"])
            keeper = None if given is None else Keeper(given.to(device), self.tokenizer, wanted=context)
            rates_there = torch.tensor(rates, device=device)
            predict = self._predictor(labels, rates_there, interval, rescale, weaker_denoiser, keeper)
            latents = self._denoise(latents, predict, arguments, callback_on_step_end, tensor_inputs)
            latents = latents if keeper is None else keeper.finished(latents)
        frames = latents if output_type == "latent" else self._decode(latents, output_type, chunk)
        self.maybe_free_model_hooks()
        output = VQVDMPipelineOutput(frames=frames, fps=rates, seeds=seeds)
        return output if return_dict else output.to_tuple()

    def _initial_noise(
        self, shape: tuple[int, ...], generators: list[torch.Generator], latents: Tensor | None, device: torch.device
    ) -> Tensor:
        """Noise (b, c, t, h, w) of the scheduler's first level, float32 whatever the network's dtype."""
        if latents is None:
            latents = randn_tensor(shape, generator=generators, device=device, dtype=torch.float32)
        elif tuple(latents.shape) != shape:
            raise InputError(f"latents have shape {tuple(latents.shape)}, this call needs {shape}")
        # Flow-matching schedulers have no such factor: their noise has deviation 1 by definition.
        return latents.to(device, torch.float32) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def _predictor(
        self,
        labels: Tensor | None,
        fps: Tensor,
        interval: tuple[float, float],
        rescale: float,
        weaker: VideoDenoiser | None,
        keeper: Keeper | None,
    ) -> Predict:
        """(scaled latents (b, c, t, h, w), timestep, step) -> what the scheduler expects, guided in the interval."""
        run, timesteps, objective = self._graphed.of(self.denoiser), self.scheduler.timesteps, self.objective
        context = None if keeper is None else keeper.context
        predictor = Predictor(run, self.denoiser, objective, timesteps, labels, fps, interval, rescale, weaker, context)

        def denoise(noisy: Tensor, timestep: Tensor) -> Tensor:
            prediction = predictor(noisy, timestep, max(self.guidance_scale, 1.0))  # callbacks may change it
            alpha, sigma = objective.level_at(float(timestep))
            self._estimate = x0 = objective.split(prediction, noisy, alpha, sigma)[0]
            if keeper is None or keeper.context is not None:
                if keeper is not None and (context := keeper.refined(x0, sigma)) is not None:
                    predictor.show(context)
                return prediction
            self._estimate = x0 = keeper.kept(x0)
            return objective.target(x0, (noisy - alpha * x0) / max(sigma, _LEAST_NOISE), alpha, sigma)

        return adapted(denoise, objective, self.scheduler)

    def _denoise(
        self,
        latents: Tensor,
        predict: Predict,
        step_arguments: dict[str, Any],
        callback: Callable[..., dict[str, Any]] | None,
        tensor_inputs: Sequence[str],
    ) -> Tensor:
        """The sampling loop: one network call and one scheduler step for each timestep."""
        self._interrupt = False
        # Flow-matching schedulers take latents as they are and have no such method.
        scale_input = getattr(self.scheduler, "scale_model_input", lambda sample, timestep: sample)
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            if self.interrupt:
                continue
            prediction = predict(scale_input(latents, t), t, i)
            latents = self.scheduler.step(prediction, t, latents, **step_arguments, return_dict=False)[0]
            if callback is not None:
                there = {"latents": latents, "estimate": self._estimate}
                replaced = callback(self, i, t, {name: there[name] for name in tensor_inputs}) or {}
                latents = replaced.pop("latents", latents)
        if not latents.isfinite().all():  # some schedulers fail so at their first or last level, without a word
            raise InputError(
                f"sampling ended in values that are not finite ({type(self.scheduler).__name__}, {self._num_timesteps} "
                "steps); take another scheduler or other settings of it. If all end so, the weights are damaged"
            )
        return latents

    def _step_arguments(self, generators: list[torch.Generator], eta: float) -> dict[str, Any]:
        """Those of `generator` and `eta` that this scheduler's step takes; signatures differ between schedulers."""
        taken = inspect.signature(self.scheduler.step).parameters
        offered = {"generator": generators, "eta": eta}
        return {name: value for name, value in offered.items() if name in taken}

    def _decode(self, latents: Tensor, output_type: str, chunk: int | None) -> Any:
        """Latents (b, c, t, h, w) to videos of the asked form."""
        clips = latents
        if self.tokenizer is not None:
            few = _DECODED_ON_GPU if latents.device.type == "cuda" else len(latents)
            parts = latents.to(self.tokenizer.dtype).split(chunk or few)
            clips = torch.cat([self.tokenizer.decode(part) for part in parts])  # (b, 3, t, h, w)
        return self.video_processor.postprocess_video(clips.float().clamp(-1, 1), output_type=output_type)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write the pipeline: parts as safetensors, `model_index.json`, and a model card `README.md`.

        Takes the arguments of `DiffusionPipeline.save_pretrained`. The card states what `about` says, the classes,
        the sizes, and code to use the model.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(self.card(sample=(folder / SAMPLE).exists()), encoding="utf-8")
        (folder / "pipeline.py").write_text(SHIM, encoding="utf-8")
        super().save_pretrained(os.fspath(folder), *args, **kwargs)

    def _upload_folder(self, working_dir: str | os.PathLike[str], repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """The last step of every way to the hub; just before it diffusers has put a card of its own over ours."""
        self.write_sample(working_dir)
        (Path(working_dir) / "README.md").write_text(self.card(repo_id, sample=True), encoding="utf-8")
        return super()._upload_folder(working_dir, repo_id, *args, **kwargs)

    def write_sample(self, folder: str | os.PathLike[str]) -> None:
        """Write `sample.webp`, up to eight videos of as many classes, for the card that is saved in this folder."""
        ids = list(range(min(self.num_classes, _SAMPLES)))
        output = self(ids or None, num_videos_per_prompt=1 if ids else 4, generator=torch.Generator().manual_seed(0))
        assert isinstance(output, VQVDMPipelineOutput)
        together = grid([enlarged(video, SHEET_SIDE) for video in output.videos()], columns=4)
        write_video(Path(folder) / SAMPLE, together, output.fps[0], {"ai_generated": True})

    def card(self, repository: str | None = None, sample: bool = False) -> str:
        """The model card: Markdown with the hub's YAML header.

        Args:
            repository: the name that its example loads.
            sample: whether `sample.webp` lies beside it, to be shown.
        """
        placed = {"repository": repository} if repository else {}
        flow = self.config["diffusion"]["prediction"] == "flow"
        stated = ("prediction", "shift") if flow else ("prediction", "schedule", "zero_terminal_snr")
        return model_card(
            config={**self.config, "about": {**placed, **self.config["about"]}},
            num_classes=self.num_classes,
            sample=sample,
            denoiser=_network_line(self.denoiser),
            tokenizer=None if self.tokenizer is None else _network_line(self.tokenizer),
            scheduler=type(self.scheduler).__name__,
            noise={name.replace("_", " "): self.config["diffusion"][name] for name in stated},
        )

    def compile(self, **options: Any) -> None:
        """Compile the blocks that both networks repeat (regional compilation); the next call of each size is slower.

        Args:
            options: of `torch.compile`.
        """
        if self._compiled:
            return
        self._compiled = True
        self._graphed.forget()
        for network in (self.denoiser, self.tokenizer):
            if network is not None:
                network.compile_repeated_blocks(**options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """As diffusers', but of safetensors alone: other files of weights are pickles."""
        return super().from_pretrained(pretrained_model_name_or_path, **{"use_safetensors": True, **kwargs})

    @classmethod
    def download(cls, pretrained_model_name: str | os.PathLike[str], **kwargs: Any) -> str:
        """Fetch a pipeline from the hub and return its folder.

        The stock method looks for each part's class inside diffusers or inside the repository; ours lie in `vqvdm`.
        """
        taken = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        wanted = {name: kwargs[name] for name in taken if kwargs.get(name) is not None}
        return snapshot_download(os.fspath(pretrained_model_name), allow_patterns=list(HUB_FILES), **wanted)


def _network_line(network: VideoTokenizer | VideoDenoiser) -> str:
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    return f"{type(network).__name__}, {millions:.2f} million parameters"
