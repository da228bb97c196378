"""Stage 1: train the 3D VQGAN (`vqvdm train tokenizer`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vqvdm import __version__
from vqvdm.data import open_dataset
from vqvdm.discriminators import adaptive_weight, ramp_factor
from vqvdm.errors import InputError, logger_of
from vqvdm.identity import default_settings, own_settings
from vqvdm.loading import load_tokenizer
from vqvdm.processes import one_of_each_host_first
from vqvdm.recipe import DataRecipe, Recipe, TokenizerRecipe, run_folder
from vqvdm.tokenizer import TokenizerOutput, VideoTokenizer
from vqvdm.train.adversarial import Critics, architecture_of, critic_terms, tokenizer_terms
from vqvdm.train.dry_run import dry_run
from vqvdm.train.loop import make_accelerator, train
from vqvdm.train.optimization import (
    autocast,
    averaged_copy,
    channels_last,
    clip_gradients,
    learning_rate,
    make_adamw,
    make_optimizers,
    set_learning_rate,
    synchronised,
    update_average,
    usable_copy,
)
from vqvdm.train.order import Batch, seed_of
from vqvdm.train.start_from import start_tokenizer_from
from vqvdm.video import grid, to_video, write_sheet, write_video
from vqvdm.weights.lpips import load_lpips

FOLLOWED_CLIPS = 32  # unseen clips (training clips where there are none) on which PSNR is followed
SHOWN_CLIPS = 6  # of them in each sheet
STATISTICS_CLIPS = 256  # training clips that give the latents' mean and deviation; a quarter of it during training
LOW_USAGE = 0.1  # share of the codes that a batch could use at most

logger = logger_of(__name__)


def main(recipe: str, *overrides: str, run: Path | None = None, dry_run: bool = False) -> None:
    """Train the tokenizer (stage 1); the same command again resumes.

    Several processes: torchrun --nproc-per-node N -m -- vqvdm train tokenizer RECIPE.

    Args:
        recipe: a packaged recipe, a YAML file, or a run folder.
        overrides: changes as key=value, such as tokenizer.training.steps=500.
        run: the run folder; by default the one that RECIPE names, or runs/ and the recipe's name.
        dry_run: print what the training would take, with the largest batch that fits, and keep nothing.
    """
    settings = Recipe.load(recipe, overrides, check_models=True)
    if dry_run:
        print(*dry_run_tokenizer(settings), sep="\n")
        return
    folder = train_tokenizer(settings, run_folder(recipe, settings, run))
    if PartialState().is_main_process:
        print(f"tokenizer in {folder}")
    PartialState().destroy_process_group()


def train_tokenizer(recipe: Recipe, run: Path | str, progress: str = "tokenizer") -> Path:
    """Train stage 1 of `recipe` in the folder `run`, from its last checkpoint if there is one.

    Args:
        recipe: its data and tokenizer parts are used.
        run: the run folder; made if absent.
        progress: heads the progress bar.

    Returns:
        `run`/tokenizer, for `VideoTokenizer.from_pretrained`: averaged weights if the recipe keeps an average, with
        the latent statistics that belong to them.

    Raises:
        InputError: recipe, data, checkpoint or disk do not allow it.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    part, run = _checked(recipe), Path(run)
    training = part.training
    accelerator = make_accelerator(training, run)
    if accelerator.is_main_process and (late := never_reached(part)):
        logger.warning("beyond the %d updates of this training, and so never used: %s", training.steps, ", ".join(late))
    with one_of_each_host_first():
        dataset = open_dataset(recipe.data, "train", progress=accelerator.is_main_process)
        unseen = open_unseen(recipe.data, warn=accelerator.is_main_process)
    stage = TokenizerStage(recipe, accelerator, dataset, unseen)
    return train(stage, accelerator, dataset, recipe, run, progress)


def never_reached(tokenizer: TokenizerRecipe) -> list[str]:
    """Parts of the loss that would enter after the last update, as name and number of the setting."""
    loss, model = tokenizer.loss, tokenizer.model
    entries = {
        "quantize_after": (loss.quantize_after, model.get("quantizer") != "none" and not tokenizer.decoder_only),
        "perceptual_after": (loss.perceptual_after, loss.perceptual > 0),
        "adversarial.start": (loss.adversarial.start, loss.adversarial.weight > 0),
    }
    return [
        f"tokenizer.loss.{name} {update}"
        for name, (update, used) in entries.items()
        if used and update >= tokenizer.training.steps
    ]


def dry_run_tokenizer(recipe: Recipe) -> list[str]:
    """What training stage 1 of `recipe` would take, in words; nothing is kept.

    Raises:
        InputError: recipe or data do not allow it.
    """
    training = _checked(recipe).training
    dataset = open_dataset(recipe.data, "train")
    with TemporaryDirectory(prefix="vqvdm-") as folder:
        accelerator = make_accelerator(training, Path(folder))
        return dry_run(TokenizerStage(recipe, accelerator, dataset), dataset, accelerator.device)


def _checked(recipe: Recipe) -> TokenizerRecipe:
    """The recipe's tokenizer; InputError if it has none, or does not allow a training."""
    recipe.check()  # one made in Python has not been
    if recipe.tokenizer is None:
        raise InputError(f"recipe {recipe.name} diffuses pixels (tokenizer: null): there is no tokenizer to train")
    return recipe.tokenizer


def open_unseen(data: DataRecipe, warn: bool) -> Dataset[Any] | None:
    """The test clips, on which PSNR is followed; None, with a warning that says why, if the data has none."""
    try:
        return open_dataset(data, "test", progress=False)
    except InputError as error:
        if warn:
            logger.warning("%s; so PSNR is followed on training clips (train_psnr): unseen ones may fare worse", error)
        return None


class TokenizerStage:
    """Networks, optimisers and the update of stage 1."""

    name = part = "tokenizer"
    export = "tokenizer"
    stated: tuple[str, ...] = ()

    def __init__(
        self, recipe: Recipe, accelerator: Accelerator, dataset: Dataset[Any], unseen: Dataset[Any] | None = None
    ) -> None:
        assert recipe.tokenizer is not None
        self.recipe, self.accelerator, self.dataset = recipe, accelerator, dataset
        self.followed, self.figure = (dataset, "train_psnr") if unseen is None else (unseen, "test_psnr")
        self.training, self.loss = recipe.tokenizer.training, recipe.tokenizer.loss
        self.workers = recipe.data.workers
        device, adversarial = accelerator.device, self.loss.adversarial
        torch.manual_seed(seed_of(self.training.seed, "tokenizer"))

        self.tokenizer = channels_last(VideoTokenizer(**recipe.tokenizer.model), device).to(device)
        latent_shape = self.tokenizer.latent_shape(recipe.data.frames, recipe.data.size, recipe.data.size)
        self.positions = math.prod(latent_shape[1:]) * self.training.batch * accelerator.num_processes
        self.average = averaged_copy(self.tokenizer) if self.training.ema_decay > 0 else None
        self.critics = Critics(adversarial).to(device) if adversarial.weight > 0 else None
        self.lpips = load_lpips().to(device) if self.loss.perceptual > 0 else None
        if self.training.gradient_checkpointing:
            self.tokenizer.enable_gradient_checkpointing()
        if self.training.compile:
            self.tokenizer.compile()

        self.decoder_only = recipe.tokenizer.decoder_only
        self.learning: nn.Module = self.tokenizer
        if self.decoder_only:
            self.tokenizer.eval().requires_grad_(False)
            self.learning = self.tokenizer.decoder.train().requires_grad_(True)
        self.own_optimizers = make_optimizers(self.learning, self.training)  # the discriminators have theirs
        self.forward = accelerator.prepare_model(self.tokenizer)
        self.modules: dict[str, nn.Module] = {"model": self.tokenizer}
        self.optimizers = dict(self.own_optimizers)
        if self.average is not None:
            self.modules["ema"] = self.average
        if self.critics is not None:
            self.critic_forward = accelerator.prepare_model(self.critics)
            self.critic_optimizer = make_adamw(self.critics.parameters(), adversarial.learning_rate, adversarial.betas)
            self.modules["discriminators"] = self.critics
            self.optimizers["discriminators_optimizer"] = self.critic_optimizer
        self.defaults = {f"tokenizer.model.{name}": v for name, v in default_settings(VideoTokenizer).items()}
        self.defaults["tokenizer.decoder_only"] = False
        self.architecture: dict[str, Any] = {
            **{f"tokenizer.model.{name}": value for name, value in own_settings(self.tokenizer).items()},
            **architecture_of(adversarial, "tokenizer.loss.adversarial"),
            "tokenizer.loss.adversarial.weight > 0": adversarial.weight > 0,
            "tokenizer.training.optimizer": self.training.optimizer,
            "tokenizer.training.ema_decay > 0": self.training.ema_decay > 0,
            "tokenizer.decoder_only": self.decoder_only,
        }

    def take_first_weights(self) -> None:
        """Those of `tokenizer.start_from`."""
        assert self.recipe.tokenizer is not None
        if self.recipe.tokenizer.start_from is not None:
            start_tokenizer_from(self.tokenizer, load_tokenizer(self.recipe.tokenizer.start_from, "cpu"))
            if self.average is not None:
                self.average.load_state_dict(self.tokenizer.state_dict())

    # --- the update ---------------------------------------------------------------------------------------------

    def update(self, step: int, batches: list[Batch]) -> dict[str, Tensor | float]:
        """One update of the tokenizer and, from their start on, of the discriminators, on the same clips."""
        rate = learning_rate(self.training, step)
        set_learning_rate(self.own_optimizers.values(), rate)
        critics = self.critics if step >= self.loss.adversarial.start else None
        self.tokenizer.zero_grad(set_to_none=True)
        if critics is not None:
            self.critic_optimizer.zero_grad(set_to_none=True)

        shares: list[dict[str, Tensor]] = []
        for batch in batches:
            clip = batch["clip"]  # (b, c, t, h, w)
            frames = (batch.uniform("frame") * clip.shape[2]).long().to(clip.device)  # (b,)
            with synchronised(self.forward, batch.last):
                with autocast(clip.device, self.training.precision):
                    quantize = self.decoder_only or step >= self.loss.quantize_after
                    output = self.forward(clip, quantize=quantize, noise=self.noise_of(batch))
                    loss, figures = self.tokenizer_loss(clip, output, frames, step, critics)
                self.accelerator.backward(loss / len(batches))
            if critics is not None:
                with synchronised(self.critic_forward, batch.last):
                    with autocast(clip.device, self.training.precision):
                        loss, more = self.critic_loss(critics, clip, output.reconstruction, frames)
                    self.accelerator.backward(loss / len(batches))
                figures |= more
            shares.append(figures)

        norm = clip_gradients(self.learning.parameters(), self.training.clip_norm)
        for optimizer in self.own_optimizers.values():
            optimizer.step()
        if critics is not None:
            clip_gradients(critics.parameters(), self.training.clip_norm)
            self.critic_optimizer.step()
        if self.average is not None:
            update_average(self.average, self.tokenizer, self.training.ema_decay, step)
        means = {name: sum(share[name] for share in shares) / len(shares) for name in shares[0]}
        return {**means, "gradient_norm": norm, "learning_rate": rate}

    def noise_of(self, batch: Batch) -> Tensor | None:
        """For each clip noise of a deviation between 0 and the recipe's.

        A decoder that has met it forgives what a denoiser gets wrong, and latents that survive it are those whose
        neighbours look alike (Yang et al. 2025, "Latent denoising makes good visual tokenizers", section 3).
        """
        if self.loss.noise == 0:
            return None
        clip = batch["clip"]
        latents = clip.new_empty(len(clip), *self.tokenizer.latent_shape(*clip.shape[2:]))
        deviations = self.loss.noise * batch.uniform("noise level").to(clip).view(-1, 1, 1, 1, 1)
        return deviations * batch.noise_like(latents)

    def tokenizer_loss(
        self, clip: Tensor, output: TokenizerOutput, frames: Tensor, step: int, critics: Critics | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the tokenizer's loss terms, and what to log of them."""
        reconstruction = output.reconstruction.float()
        l1, l2 = F.l1_loss(reconstruction, clip), F.mse_loss(reconstruction, clip)
        loss = self.loss.l1 * l1 + self.loss.l2 * l2
        figures = {"l1": l1.detach(), "psnr": psnr(l2.detach())}
        if self.lpips is not None and step >= self.loss.perceptual_after:
            perceptual = self.lpips(reconstruction, clip, frames[:, None], exact=False).float().mean()
            loss = loss + self.loss.perceptual * perceptual
            figures["perceptual"] = perceptual.detach()

        adversarial = self.loss.adversarial
        ramp = ramp_factor(step, adversarial.start, adversarial.ramp)
        if critics is not None and ramp > 0:
            fooling, matching = tokenizer_terms(critics, adversarial, clip, output.reconstruction, frames)
            weight = ramp * adversarial.weight
            if adversarial.adaptive:
                weight = weight * adaptive_weight(loss, fooling, self.tokenizer.last_layer)
            loss = loss + weight * fooling + ramp * adversarial.feature_matching * matching
            figures["adversarial"] = fooling.detach()
            figures["adversarial_weight"] = torch.as_tensor(weight, device=loss.device)
            if adversarial.feature_matching > 0:
                figures["feature_matching"] = matching.detach()

        if self.tokenizer.codebook is not None:
            loss = loss + self.loss.quantizer * output.loss
            figures |= {"quantizer": output.loss.detach(), "usage": output.usage, "perplexity": output.perplexity}
        return loss, {"loss": loss.detach(), **figures}

    def critic_loss(
        self, critics: Critics, clip: Tensor, reconstruction: Tensor, frames: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminators' loss with its stabiliser, and what to log of it."""
        adversarial = self.loss.adversarial
        loss, penalty = critic_terms(self.critic_forward, critics, adversarial, clip, reconstruction, frames)
        figures = {"discriminator": loss.detach(), "stabilizer": penalty.detach()}
        return loss + adversarial.stabilizer_weight * penalty, figures

    # --- once in a while ----------------------------------------------------------------------------------------

    def notice(self, figures: Mapping[str, float]) -> str | None:
        """A warning when the codebook is collapsing."""
        if self.tokenizer.codebook is None or figures["usage"] == 0:  # 0: the quantiser has not entered yet
            return None
        codes = self.tokenizer.codebook.num_codes
        share = figures["usage"] * codes / min(codes, self.positions)
        if share >= LOW_USAGE:
            return None
        return f"a batch uses {share:.1%} of the codes it could: the codebook is collapsing"

    def usable_model(self) -> VideoTokenizer | None:
        """The averaged tokenizer, if the recipe keeps an average."""
        trained = self.tokenizer if self.average is None else self.average
        return usable_copy(trained) if self.accelerator.is_main_process else None

    def write_samples(self, tokenizer: VideoTokenizer, step: int, folder: Path) -> dict[str, float]:
        """The followed clips above their reconstructions, as a sheet and a video; returns their PSNR."""
        clips, rates = self.followed_clips
        reconstructions = torch.cat([tokenizer(part).reconstruction for part in clips.split(self.training.batch)])
        real, made = ([to_video(clip.cpu()) for clip in some[:SHOWN_CLIPS]] for some in (clips, reconstructions))
        pairs = [video for pair in zip(real, made, strict=True) for video in pair]
        labels = ["real", "reconstructed"] * len(real)
        metadata = {"generator": f"vqvdm {__version__}", "step": step}
        write_sheet(folder / f"tokenizer-{step:08d}.png", pairs, labels, metadata=metadata)
        video = grid([*real, *made], len(real))  # the upper row is real
        write_video(folder / f"tokenizer-{step:08d}.mp4", video, float(rates[0]), metadata=metadata)
        return {self.figure: clip_psnr(clips, reconstructions)}

    def write_model(self, tokenizer: VideoTokenizer, step: int, folder: Path, last: bool) -> dict[str, float]:
        """The tokenizer with its latent statistics; returns, at the end, its PSNR on the followed clips."""
        if not self.decoder_only:
            number = STATISTICS_CLIPS if last else STATISTICS_CLIPS // 4
            tokenizer.set_latent_statistics(*latent_statistics(tokenizer, self.dataset, number, self.training.batch))
        figures = {}
        if last:
            clips, _ = self.followed_clips
            decoded = torch.cat([tokenizer.decode(tokenizer.encode(part)) for part in clips.split(self.training.batch)])
            figures[self.figure] = clip_psnr(clips, decoded)
        tokenizer.save_pretrained(folder)
        return figures

    @cached_property
    def followed_clips(self) -> tuple[Tensor, Tensor]:
        """Unseen clips, else training clips: (n, c, t, h, w) on the device, always the same; their frame rates (n,)."""
        length = len(self.followed)  # type: ignore[arg-type]
        chosen = [self.followed[index] for index in spread(length, FOLLOWED_CLIPS)]
        clips = torch.stack([item["clip"] for item in chosen]).to(self.accelerator.device)
        return clips, torch.stack([item["fps"] for item in chosen])


@torch.no_grad()
def latent_statistics(
    tokenizer: VideoTokenizer, dataset: Dataset[Any], number: int, batch: int
) -> tuple[Tensor, Tensor]:
    """Mean and deviation (c,) of the tokenizer's latents before normalisation, over `number` clips of the data set.

    Clips are spread over the data set; one with fewer gives several windows of each.
    """
    statistics = (torch.zeros_like(tokenizer.latents_mean), torch.ones_like(tokenizer.latents_std))
    tokenizer.set_latent_statistics(*statistics)  # now `encode` does not normalise
    length = len(dataset)  # type: ignore[arg-type]
    picks = [(index, 0) for index in spread(length, number)]
    picks += [(n % length, n // length) for n in range(length, number)]
    loader = DataLoader(dataset, batch_sampler=[picks[i : i + batch] for i in range(0, len(picks), batch)])
    total = squares = torch.zeros(len(tokenizer.latents_mean), dtype=torch.float64, device=tokenizer.device)
    count = 0
    for items in loader:
        z = tokenizer.encode(items["clip"].to(tokenizer.device)).double().transpose(0, 1).flatten(1)  # (c, b*t*h*w)
        total, squares, count = total + z.sum(1), squares + z.square().sum(1), count + z.shape[1]
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float()


def spread(length: int, number: int) -> list[int]:
    """At most `number` indices, evenly spread over 0..length-1."""
    number = min(length, number)
    return [i * length // number for i in range(number)]


def psnr(mean_squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of values in -1..1, at most 100."""
    return 10 * torch.log10(4.0 / mean_squared_error.clamp(min=4e-10))


def clip_psnr(clips: Tensor, others: Tensor) -> float:
    """Mean over clips (b, c, t, h, w) of each one's PSNR in dB, `others` cut to -1..1."""
    return float(psnr((clips - others.float().clamp(-1, 1)).square().flatten(1).mean(1)).mean())
