"""The discriminators of stage 1 as one network, and both sides' loss terms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vqvdm.discriminators import (
    DiscriminatorOutput,
    LeCam,
    PatchDiscriminator,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    one_frame,
    r1_penalty,
)
from vqvdm.recipe import AdversarialRecipe


class Critics(nn.Module):
    """The image discriminator (on one frame of each clip) and the video discriminator, either or both."""

    def __init__(self, recipe: AdversarialRecipe) -> None:
        super().__init__()
        self.image = PatchDiscriminator(2, 3, recipe.channels, recipe.layers) if recipe.image else None
        self.video = PatchDiscriminator(3, 3, recipe.channels, recipe.layers) if recipe.video else None
        self.lecam = nn.ModuleList(LeCam() for network in (self.image, self.video) if network is not None)

    def forward(self, clip: Tensor, frames: Tensor) -> list[DiscriminatorOutput]:
        """Judge clips (b, c, t, h, w), -1..1, and frame `frames` (b,) of each: one output per discriminator."""
        outputs = []
        if self.image is not None:
            outputs.append(self.image(one_frame(clip, frames)))
        if self.video is not None:
            outputs.append(self.video(clip))
        return outputs


def architecture_of(recipe: AdversarialRecipe, key: str) -> dict[str, Any]:
    """The settings that a checkpoint with discriminators must share, by dotted key."""
    names = ("image", "video", "channels", "layers")
    return {f"{key}.{name}": getattr(recipe, name) for name in names if recipe.weight > 0}


def tokenizer_terms(
    critics: Critics, recipe: AdversarialRecipe, real: Tensor, fake: Tensor, frames: Tensor
) -> tuple[Tensor, Tensor]:
    """The tokenizer's adversarial and feature-matching loss (scalars, before weights), summed over discriminators.

    The discriminators are frozen meanwhile: no gradient of these terms reaches them.
    """
    critics.requires_grad_(False)
    judged = critics(fake, frames)
    adversarial = torch.stack([generator_loss(output.logits, recipe.loss) for output in judged]).sum()
    matching = torch.zeros_like(adversarial)
    if recipe.feature_matching > 0:
        with torch.no_grad():
            targets = critics(real, frames)
        terms = [feature_matching_loss(r.features, f.features) for r, f in zip(targets, judged, strict=True)]
        matching = torch.stack(terms).sum()
    critics.requires_grad_(True)
    return adversarial, matching


def critic_terms(
    forward: nn.Module, critics: Critics, recipe: AdversarialRecipe, real: Tensor, fake: Tensor, frames: Tensor
) -> tuple[Tensor, Tensor]:
    """The discriminators' own loss and its stabiliser (scalars, before its weight), summed over discriminators.

    Args:
        forward: `critics`, or what synchronises it over processes.
        critics: owns the moving averages of LeCam.
        recipe: kinds of loss and stabiliser.
        real, fake: clips (b, c, t, h, w); no gradient flows into `fake`.
        frames: (b,) the frame that the image discriminator sees.
    """
    real = real.detach().requires_grad_(recipe.stabilizer == "r1")
    judged = forward(torch.cat([real, fake.detach()]), frames.repeat(2))
    losses, penalties = [], []
    for output, lecam in zip(judged, critics.lecam, strict=True):
        of_real, of_fake = output.logits.chunk(2)
        losses.append(discriminator_loss(of_real, of_fake, recipe.loss))
        if recipe.stabilizer == "lecam":
            penalties.append(lecam(of_real, of_fake))
        elif recipe.stabilizer == "r1":
            penalties.append(r1_penalty(of_real, real))
    loss = torch.stack(losses).sum()
    return loss, torch.stack(penalties).sum() if penalties else torch.zeros_like(loss)
