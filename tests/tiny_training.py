"""Tiny recipes and clips for the tests of training; run as a script it trains one, as the command line would.

python tests/tiny_training.py tokenizer RUN training.steps=4 ...
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

import vqvdm.train.denoiser
import vqvdm.train.tokenizer
from vqvdm.latents import write_latents
from vqvdm.recipe import (
    AdversarialRecipe,
    DataRecipe,
    DenoiserRecipe,
    DenoiserTrainingRecipe,
    Recipe,
    SamplingRecipe,
    TokenizerLossRecipe,
    TokenizerRecipe,
    TrainingRecipe,
)
from vqvdm.tokenizer import VideoTokenizer


class TinyClips(Dataset):
    """Ten clips of 4 frames of 16x16: coloured noise in blocks, shifted by the draw."""

    classes = ("left", "right", "up")

    def __init__(self, first: int = 0) -> None:
        self.first = first

    def __len__(self) -> int:
        return 10

    def digest(self) -> str:
        return str(self.first)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        index, draw = key if isinstance(key, tuple) else (key, 0)
        generator = torch.Generator().manual_seed(self.first + index)
        blocks = torch.rand(3, 2, 4, 4, generator=generator) * 2 - 1
        clip = blocks.repeat_interleave(2, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)  # (c, t, h, w)
        return {
            "clip": clip.roll(draw % 4, dims=-1),
            "class_label": torch.tensor(index % 3),
            "fps": torch.tensor(8.0 + index % 2),
        }


def open_tiny(data: DataRecipe, split: str, training: bool | None = None, progress: bool = True) -> TinyClips:
    """Stands in for `vqvdm.data.open_dataset`."""
    return TinyClips(0 if split == "train" else 1000)


TRAINING = TrainingRecipe(
    steps=4,
    batch=2,
    learning_rate=1e-3,
    warmup=2,
    log_every=1,
    sample_every=100,
    checkpoint_every=100,
    weight_decay=0.01,
)
ADVERSARIAL = AdversarialRecipe(weight=0.1, start=1, ramp=2, channels=4, layers=2, feature_matching=1.0, adaptive=True)
TOKENIZER = {
    "channels": (8, 8),
    "patch": (1, 2, 2),
    "strides": ((2, 2, 2),),
    "latent_channels": 3,
    "codebook_size": 16,
    "restart_after": 2,
}
DENOISER = {"channels": (8, 16), "blocks": 1, "head_dim": 8}


def tiny_recipe(adversarial: AdversarialRecipe = ADVERSARIAL, **training: Any) -> Recipe:
    """Both stages at the smallest size, with everything switched on; `training` changes both stages' TrainingRecipe."""
    settings = replace(TRAINING, **training)
    return Recipe(
        name="tiny",
        data=DataRecipe(frames=4, size=16, workers=0),
        tokenizer=TokenizerRecipe(TOKENIZER, TokenizerLossRecipe(adversarial=adversarial), training=settings),
        denoiser=DenoiserRecipe(DENOISER, training=DenoiserTrainingRecipe(**vars(settings))),
        sampling=SamplingRecipe(steps=2),
    )


def use_tiny_clips() -> None:
    """Let both stages read `TinyClips` whatever the recipe names."""
    vqvdm.train.tokenizer.open_dataset = open_tiny  # type: ignore[assignment]
    vqvdm.train.denoiser.open_dataset = open_tiny  # type: ignore[assignment]


def give_tokenizer(run: Path) -> None:
    """An untrained tokenizer and its latents, as stage 1 and `encode` would have left them in `run`."""
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(**TOKENIZER).eval()
    tokenizer.save_pretrained(run / "tokenizer")
    write_latents(tokenizer, TinyClips(), run / "latents", progress=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    use_tiny_clips()
    stage, run, *changes = sys.argv[1:]
    recipe = Recipe.load(run, changes)
    train = {"tokenizer": vqvdm.train.tokenizer.train_tokenizer, "denoiser": vqvdm.train.denoiser.train_denoiser}[stage]
    try:
        train(recipe, run)
    except KeyboardInterrupt:
        sys.exit(130)
