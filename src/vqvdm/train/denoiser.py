"""Stage 2: train the denoiser (`vqvdm train denoiser`)."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn

from vqvdm import __version__
from vqvdm.context import drawn_context
from vqvdm.data import open_dataset
from vqvdm.data.worlds import WORLDS
from vqvdm.denoiser import VideoDenoiser
from vqvdm.diffusion import Objective
from vqvdm.errors import InputError
from vqvdm.identity import default_settings, own_settings
from vqvdm.latents import LatentCache
from vqvdm.loading import load_pipeline, load_tokenizer
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.processes import one_of_each_host_first
from vqvdm.recipe import Recipe, run_folder
from vqvdm.tokenizer import VideoTokenizer
from vqvdm.train.dry_run import RandomItems, dry_run
from vqvdm.train.loop import make_accelerator, train
from vqvdm.train.lora import add_lora, base_of, merged, save_lora
from vqvdm.train.optimization import (
    autocast,
    averaged_copy,
    channels_last,
    clip_gradients,
    learning_rate,
    make_optimizers,
    set_learning_rate,
    synchronised,
    update_average,
    usable_copy,
)
from vqvdm.train.order import Batch, seed_of
from vqvdm.train.sharding import filled, gathered, load_weights, outline_of, shard
from vqvdm.train.start_from import start_denoiser_from
from vqvdm.video import grid, write_sheet, write_video

SHOWN_CLASSES = 16  # at most, in each sheet
SHOWN_UNCONDITIONAL = 8
_LEARNT = {"path": "steps", "sigmas": "sigmas"}  # what a cache of a teacher's paths says, and the model of itself


def main(recipe: str, *overrides: str, run: Path | None = None, dry_run: bool = False) -> None:
    """Train the denoiser (stage 2) on a run's latents; the same command again resumes.

    Several processes: torchrun --nproc-per-node N -m -- vqvdm train denoiser RECIPE.

    Args:
        recipe: a packaged recipe, a YAML file, or a run folder.
        overrides: changes as key=value, such as denoiser.training.steps=500.
        run: the run folder; by default the one that RECIPE names, or runs/ and the recipe's name.
        dry_run: print what the training would take, with the largest batch that fits, and keep nothing. Without a
            trained tokenizer and its latents, random numbers stand for them.
    """
    settings = Recipe.load(recipe, overrides, check_models=True)
    where = run_folder(recipe, settings, run)
    if dry_run:
        print(*dry_run_denoiser(settings, where), sep="\n")
        return
    folder = train_denoiser(settings, where)
    if PartialState().is_main_process:
        print(f"pipeline in {folder}")
    PartialState().destroy_process_group()


def train_denoiser(
    recipe: Recipe,
    run: Path | str,
    progress: str = "denoiser",
    make_stage: Callable[..., DenoiserStage] | None = None,
) -> Path:
    """Train stage 2 of `recipe` in the folder `run`, from its last checkpoint if there is one.

    Args:
        recipe: with a tokenizer, `run`/tokenizer and `run`/latents must be there; without, pixels are diffused.
        run: the run folder; made if absent.
        progress: heads the progress bar.
        make_stage: a kind of `DenoiserStage`; that itself by default.

    Returns:
        `run`/pipeline, for `VQVDMPipeline.from_pretrained`: tokenizer, denoiser (averaged weights if the recipe keeps
        an average), scheduler, class names and default sizes.

    Raises:
        InputError: recipe, data, latents, checkpoint or disk do not allow it.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    recipe.check()  # one made in Python has not been
    run = Path(run)
    accelerator = make_accelerator(recipe.denoiser.training, run)
    tokenizer = None if recipe.tokenizer is None else open_tokenizer(run)
    with one_of_each_host_first():
        dataset = _open_data(recipe, run, tokenizer, progress=accelerator.is_main_process)
    stage = (make_stage or DenoiserStage)(recipe, accelerator, dataset, tokenizer)
    return train(stage, accelerator, dataset, recipe, run, progress)


def dry_run_denoiser(recipe: Recipe, run: Path) -> list[str]:
    """What training stage 2 of `recipe` would take, in words; nothing is kept.

    Raises:
        InputError: recipe, data or latents do not allow it.
    """
    recipe.check()
    tokenizer, dataset = None, None
    if recipe.tokenizer is None or (run / "latents").exists():
        tokenizer = None if recipe.tokenizer is None else open_tokenizer(run)
        dataset = _open_data(recipe, run, tokenizer, progress=True)
    else:
        tokenizer = VideoTokenizer(**recipe.tokenizer.model)
        shape = tokenizer.latent_shape(recipe.data.frames, recipe.data.size, recipe.data.size)
        dataset = RandomItems("latents", shape, open_dataset(recipe.data, "train").classes)
    with TemporaryDirectory(prefix="vqvdm-") as folder:
        accelerator = make_accelerator(recipe.denoiser.training, Path(folder))
        return dry_run(DenoiserStage(recipe, accelerator, dataset, tokenizer), dataset, accelerator.device)


def _open_data(recipe: Recipe, run: Path, tokenizer: VideoTokenizer | None, progress: bool) -> Any:
    """The run's latents or, without a tokenizer, the clips themselves."""
    if tokenizer is None:
        return open_dataset(recipe.data, "train", progress=progress)
    latents = open_latents(run, tokenizer)
    check_latents(recipe, tokenizer, latents)
    return latents


def source_name(path: str) -> str:
    """What a model says of its data to those it is passed on to: a folder's name, without where it lies here."""
    if path in WORLDS or "://" in path:
        return path
    name = Path(path).name or path
    return f"{name}/" if name in WORLDS else name  # a folder of that name is not the world


def open_tokenizer(run: Path) -> VideoTokenizer:
    """The run's trained tokenizer; InputError with the command to run if there is none."""
    if not (run / "tokenizer" / "config.json").is_file():
        raise InputError(f"{run} holds no tokenizer; train it first: vqvdm train tokenizer RECIPE --run {run}")
    return load_tokenizer(run / "tokenizer", "cpu").eval().requires_grad_(False)


def open_latents(run: Path, tokenizer: VideoTokenizer) -> LatentCache:
    """The run's latent cache; InputError with the command to run if it is absent or of another tokenizer."""
    try:
        return LatentCache(run / "latents", tokenizer.latents_fingerprint())
    except InputError as error:
        raise InputError(f"{error}: vqvdm encode {shlex.quote(str(run))}") from error


def check_latents(recipe: Recipe, tokenizer: VideoTokenizer, latents: LatentCache) -> None:
    """Refuse latents of other clips, or of clips of another size, than the recipe names, with `InputError`."""
    _check_data(recipe, latents)
    _check_size(recipe, tokenizer, latents)


def _check_data(recipe: Recipe, latents: LatentCache) -> None:
    """Refuse latents of other clips than the recipe names: recipe.yaml and the model card would tell of the wrong ones.

    Caches say what they were encoded from; what an older one does not say is taken for right.
    """
    there, asked = latents.index.get("data", {}), asdict(recipe.encoded_data())
    differing = [
        f"data.{name} {json.dumps(there[name])} there, {json.dumps(value)} asked for"
        for name, value in asked.items()
        if name in there and there[name] != value and not (name == "path" and _same_place(there[name], str(value)))
    ]
    if differing:
        raise InputError(
            f"the latent cache {latents.folder} was encoded from other clips: {'; '.join(differing)}. "
            f"Ask for the same, or encode again: vqvdm encode {shlex.quote(str(latents.folder.parent))}"
        )


def _same_place(one: str, other: str) -> bool:
    return os.path.realpath(os.path.expanduser(one)) == os.path.realpath(os.path.expanduser(other))


def _check_size(recipe: Recipe, tokenizer: VideoTokenizer, latents: LatentCache) -> None:
    """Refuse latents of clips of another size than the recipe's, which the pipeline would take for its own."""
    data = recipe.data
    wanted = tokenizer.latent_shape(data.frames, data.size, data.size)
    if latents.latent_shape != wanted:
        raise InputError(
            f"the latent cache {latents.folder} holds latents (c, t, h, w) of {latents.latent_shape}, but data.frames "
            f"{data.frames} and data.size {data.size} need {wanted}; change them back, or run `vqvdm encode` with them"
        )


def _check_guidance(recipe: Recipe) -> None:
    """Refuse guidance by a null class that is never trained. (Without classes there is none, and both are ignored.)"""
    scale = recipe.sampling.guidance_scale
    if recipe.denoiser.class_dropout == 0 and scale != 1:
        raise InputError(
            f"sampling.guidance_scale is {scale:g}, but denoiser.class_dropout is 0: guidance compares with clips "
            "whose class was left out, of which there would be none; take class_dropout=0.1, say, or guidance_scale=1"
        )


class DenoiserStage:
    """Network, optimiser and the update of stage 2."""

    name = part = "denoiser"
    export = "pipeline"
    stated: tuple[str, ...] = ("sampling.",)

    def __init__(
        self, recipe: Recipe, accelerator: Accelerator, dataset: Any, tokenizer: VideoTokenizer | None
    ) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.training, self.classes = recipe.denoiser.training, tuple(dataset.classes)
        self.workers = recipe.data.workers if tokenizer is None else 0  # a cache is read faster than a worker answers
        self.field = "clip" if tokenizer is None else "latents"
        self.tokenizer = None if tokenizer is None else tokenizer.to(accelerator.device)
        known = dataset.fps.tolist() if isinstance(dataset, LatentCache) else None  # of clips, a few have to do
        rates = sorted(known or [float(dataset[index]["fps"]) for index in range(min(len(dataset), 64))])
        self.fps, self.rates = float(np.median(rates)), (rates[0], rates[-1])
        self.objective = Objective(**asdict(recipe.denoiser.diffusion))
        found = dataset.index if isinstance(dataset, LatentCache) else {}
        self.learnt = {f"learnt_{name}": found[key] for key, name in _LEARNT.items() if key in found}  # by a student

        arguments = {
            "num_classes": len(self.classes),
            "self_condition": recipe.denoiser.self_conditioning > 0,
            "context": recipe.denoiser.context > 0,
            **recipe.denoiser.model,
        }
        channels, *extent = dataset[0][self.field].shape
        if arguments.setdefault("in_channels", channels) != channels:
            raise InputError(
                f"denoiser.model.in_channels is {arguments['in_channels']}, but the data has {channels} "
                "channels; leave it out"
            )
        torch.manual_seed(seed_of(self.training.seed, "denoiser"))
        self.sharded = self.training.fsdp and accelerator.num_processes > 1
        self.denoiser = VideoDenoiser(**arguments)
        if not self.sharded:  # shards go to the device one by one, and are rows, contiguous
            self.denoiser = channels_last(self.denoiser, accelerator.device).to(accelerator.device)
        if any(n % factor for n, factor in zip(extent, self.denoiser.factors, strict=True)):
            raise InputError(
                f"denoiser.model.channels and denoiser.model.patch ask for (t, h, w) divisible by "
                f"{self.denoiser.factors}, but {self.field} are {tuple(extent)}; take fewer levels or a smaller patch"
            )
        self.num_classes = int(self.denoiser.config["num_classes"])
        if 0 < self.num_classes < len(self.classes):
            raise InputError(
                f"denoiser.model.num_classes is {self.num_classes}, the data has {len(self.classes)} classes"
            )
        if self.num_classes:
            _check_guidance(recipe)
        if recipe.denoiser.lora_rank > 0:
            add_lora(self.denoiser, recipe.denoiser.lora_rank)
        self.average = averaged_copy(self.denoiser) if self.training.ema_decay > 0 else None
        self.outline = outline_of(self.denoiser) if self.sharded else None
        if self.training.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        if self.training.compile:
            self.denoiser.compile()

        self.modules: dict[str, nn.Module] = {"model": self.denoiser}
        if self.average is not None:
            self.modules["ema"] = self.average
        if self.sharded:
            for network in self.modules.values():
                shard(network, accelerator.device, accelerator.num_processes)
        self.forward = self.denoiser if self.sharded else accelerator.prepare_model(self.denoiser)
        self.optimizers = make_optimizers(self.denoiser, self.training)
        self.defaults = {f"denoiser.model.{name}": v for name, v in default_settings(VideoDenoiser).items()}
        self.defaults["denoiser.lora_rank"] = 0
        self.architecture: dict[str, Any] = {
            **{f"denoiser.model.{name}": value for name, value in own_settings(self.denoiser).items()},
            **{f"denoiser.diffusion.{name}": value for name, value in asdict(self.objective).items()},
            "denoiser.lora_rank": recipe.denoiser.lora_rank,
            "denoiser.training.optimizer": self.training.optimizer,
            "denoiser.training.ema_decay > 0": self.training.ema_decay > 0,
            "tokenizer (its fingerprint)": None if tokenizer is None else tokenizer.latents_fingerprint(),
        }

    def take_first_weights(self) -> None:
        """Those of `denoiser.start_from`."""
        name = self.recipe.denoiser.start_from
        if name is not None:
            other = load_pipeline(name, "cpu")
            names = [None if part is None else part.latents_fingerprint() for part in (other.tokenizer, self.tokenizer)]
            if names[0] != names[1] or other.objective.prediction != self.objective.prediction:
                raise InputError(
                    f"denoiser.start_from names {name}, which predicts {other.objective.prediction} of the latents of "
                    f"tokenizer {names[0]}; this one predicts {self.objective.prediction} of those of {names[1]}"
                )
            labels = other.labels
            known = {label: labels[name] for label, name in enumerate(self.classes) if name in labels}
            plain = VideoDenoiser.from_config(self.denoiser.config)
            assert isinstance(plain, VideoDenoiser)
            start_denoiser_from(plain, other.denoiser, known if labels else None)
            places = base_of(self.denoiser)
            weights = {places[name]: value for name, value in plain.state_dict().items()}
            load_weights(self.denoiser, weights, strict=False)
            if self.average is not None:
                self.average.load_state_dict(self.denoiser.state_dict())

    def update(self, step: int, batches: list[Batch]) -> dict[str, Tensor | float]:
        """One update of the denoiser."""
        rate = learning_rate(self.training, step)
        set_learning_rate(self.optimizers.values(), rate)
        self.denoiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.accelerator.device)
        images = self._learns_images(step)
        if images:
            batches = [batch.frames(self.field, max(batch[self.field].shape[2] // 2, 1)) for batch in batches]
        for batch in batches:
            with synchronised(self.forward, batch.last):
                with autocast(self.accelerator.device, self.training.precision):
                    loss = self.denoising_loss(batch) / len(batches)
                self.accelerator.backward(loss)
            total += loss.detach()
        norm = clip_gradients(self.denoiser.parameters(), self.training.clip_norm)
        for optimizer in self.optimizers.values():
            optimizer.step()
        if self.average is not None:
            update_average(self.average, self.denoiser, self.training.ema_decay, step)
        return {"image_loss" if images else "loss": total, "gradient_norm": norm, "learning_rate": rate}

    def _learns_images(self, step: int) -> bool:
        """Whether update `step` is one of single frames: they come evenly, as often as the recipe says.

        Joint training on images and videos (Ho et al. 2022, "Video Diffusion Models", section 4.2): frames of many
        clips tell more of what things look like than as many frames of few.
        """
        share = self.recipe.denoiser.images
        return math.floor((step + 1) * share) > math.floor(step * share)

    def denoising_loss(self, batch: Batch) -> Tensor:
        """The objective's loss on one micro-batch, a scalar."""
        latents, (labels, fps) = batch[self.field], self.dropped(batch)  # (b, c, t, h, w), (b,), (b,)
        uniform = batch.strata("time").to(latents.device)
        before: Tensor | None = None
        if "path" in batch.data:  # a student learns the steps of its teacher
            path, starts = batch["path"], self.learnt.get("learnt_sigmas")
            steps = path.shape[1] - 1
            step = (uniform * steps).long().clamp(max=steps - 1)
            if self.recipe.denoiser.self_conditioning > 0:
                before = self.objective.before(path, step, starts)
            latents, noise, uniform = self.objective.chord(path, step, starts)
        else:
            noise = batch.noise_like(latents)
        context = self.context(batch)

        def denoise(noisy: Tensor, timestep: Tensor) -> Tensor:
            estimate = before
            if estimate is None:
                estimate = self.first_estimate(batch, noisy, timestep, labels, fps, uniform, context)
            return self.forward(noisy, timestep, labels, fps, estimate=estimate, context=context)

        return self.objective.loss(denoise, latents, noise, uniform).mean()

    def context(self, batch: Batch) -> Tensor | None:
        """What is given of each clip (b, c + 2, t, h, w), of most of them nothing; None for a network without it."""
        share = self.recipe.denoiser.context
        if share == 0:
            return None
        chance = batch.uniforms("context", 3)  # whether, what, how much
        stills = batch["stills"] if "stills" in batch.data else None
        return drawn_context(batch[self.field], stills, share, chance)

    @torch.no_grad()
    def first_estimate(
        self,
        batch: Batch,
        noisy: Tensor,
        timestep: Tensor,
        labels: Tensor | None,
        fps: Tensor,
        uniform: Tensor,
        context: Tensor | None,
    ) -> Tensor | None:
        """What the network takes for clean latents (b, c, t, h, w), for a share of the clips; zeros for the others."""
        share = self.recipe.denoiser.self_conditioning
        if share == 0:
            return None
        shown = batch.uniform("estimate").to(noisy.device) < share
        estimate = torch.zeros_like(noisy)
        if self.sharded and not shown.any():  # other processes show theirs, and weights are gathered from all
            self.denoiser(noisy[:1], timestep[:1], None, fps[:1])
        if shown.any():
            few = None if labels is None else labels[shown]
            given = None if context is None else context[shown]
            # Compiled for a CPU, a pass without gradients under autocast is NaN (torch 2.13); as it stands it is right.
            plain = self.training.compile and noisy.device.type == "cpu"
            first = self.denoiser.forward if plain else self.denoiser  # shards, never compiled, gather when called
            prediction = first(noisy[shown], timestep[shown], few, fps[shown], context=given)
            alpha, sigma = (level[shown].view(-1, 1, 1, 1, 1) for level in self.objective.levels(uniform)[:2])
            estimate[shown] = self.objective.split(prediction, noisy[shown], alpha, sigma)[0].to(noisy.dtype)
        return estimate

    def dropped(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Class labels (b,), None without classes, and frame rates (b,), as the denoiser is shown them.

        A label becomes the null class with the recipe's probability; half of those clips lose their frame rate too,
        which is what guidance compares with. The other half teaches clips of any class at a given rate.
        """
        if self.num_classes == 0:
            return None, batch["fps"]
        labels, fps, p = batch["class_label"], batch["fps"], self.recipe.denoiser.class_dropout
        uniform = batch.uniform("class").to(labels.device)
        return labels.masked_fill(uniform < p, self.num_classes), fps.masked_fill(uniform < p / 2, 0.0)

    # --- once in a while ----------------------------------------------------------------------------------------

    def notice(self, figures: Mapping[str, float]) -> str | None:
        """Nothing to warn of."""
        return None

    def usable_model(self) -> VideoDenoiser | None:
        """The averaged denoiser, if the recipe keeps an average; with the adapters beside its weights."""
        trained, main = self.denoiser if self.average is None else self.average, self.accelerator.is_main_process
        if self.outline is None:
            return usable_copy(trained) if main else None
        weights = gathered(trained.state_dict(), keep=main)
        return filled(self.outline, weights).to(self.accelerator.device) if main else None

    def write_samples(self, denoiser: VideoDenoiser, step: int, folder: Path) -> dict[str, float]:
        """Generated clips, one of each class, as a sheet and a video; the same noise every time."""
        pipeline = self._pipeline(denoiser, step)
        pipeline.set_progress_bar_config(disable=True)
        ids = list(range(self.num_classes))[:SHOWN_CLASSES] if self.num_classes else None
        number = len(ids) if ids else SHOWN_UNCONDITIONAL
        generators = [torch.Generator().manual_seed(k) for k in range(number)]
        with autocast(self.accelerator.device, self.training.precision):
            frames, _, _ = pipeline(
                class_labels=ids,
                num_videos_per_prompt=1 if ids else number,
                generator=generators,
                output_type="np",
                return_dict=False,
            )
        videos = list((np.asarray(frames) * 255).round().astype(np.uint8))  # each (t, h, w, c)
        names = None if ids is None else [self.classes[i] if i < len(self.classes) else str(i) for i in ids]
        metadata = {"generator": f"vqvdm {__version__}", "ai_generated": True, "step": step}
        write_sheet(folder / f"denoiser-{step:08d}.png", videos, names, metadata=metadata)
        columns = math.ceil(math.sqrt(number))
        write_video(folder / f"denoiser-{step:08d}.mp4", grid(videos, columns), self.fps, metadata=metadata)
        return {}

    def write_model(self, denoiser: VideoDenoiser, step: int, folder: Path, last: bool) -> dict[str, float]:
        """The whole pipeline."""
        pipeline = self._pipeline(denoiser, step)
        if self.recipe.denoiser.lora_rank > 0:
            save_lora(denoiser, folder / "lora")
        if last:
            folder.mkdir(parents=True, exist_ok=True)
            with autocast(self.accelerator.device, self.training.precision):
                pipeline.write_sample(folder)
        pipeline.save_pretrained(folder)
        return {}

    def _pipeline(self, denoiser: VideoDenoiser, step: int) -> VQVDMPipeline:
        data, sampling = self.recipe.data, self.recipe.sampling
        return VQVDMPipeline(
            tokenizer=self.tokenizer,
            denoiser=merged(denoiser) if self.recipe.denoiser.lora_rank > 0 else denoiser,
            scheduler=self.objective.make_scheduler(sampling.scheduler),
            diffusion=self.objective.for_sampling(),  # not every scheduler states it: flow's ddim walks other noise
            id2label=dict(enumerate(self.classes)) if self.num_classes else None,
            fps=self.fps,
            num_frames=data.frames,
            height=data.size,
            width=data.size,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            guidance_interval=sampling.guidance_interval,
            about={
                "recipe": self.recipe.name,
                "data": source_name(data.path),
                **({"data_license": "none needed, vqvdm rendered them"} if data.path in WORLDS else {}),
                "slowest_fps": self.rates[0],
                "fastest_fps": self.rates[1],
                "steps": step,
                **self.learnt,
                "seed": self.training.seed,
                "ema_decay": self.training.ema_decay,
                **({"class_dropout": self.recipe.denoiser.class_dropout} if self.num_classes else {}),
            },
        )
