"""LPIPS, the perceptual distance of images (Zhang et al. 2018), with VGG16 or AlexNet.

Its weights are not part of this package: `vqvdm.weights.lpips` finds them. Their names: `convolutions.{B}_{I}.weight`
and `.bias`, B the stage and I the convolution within it, both from 1, and `heads.{K}` (c,), LPIPS' linear weights lin0
to lin4 (version 0.1), K = 0..4.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvdm.errors import InputError


class Convolution(NamedTuple):
    """One layer; ReLU follows."""

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class Stage(NamedTuple):
    """Convolutions whose last activation is compared; before them the maximum over `pool`, at every second place."""

    pool: int  # 0 is none
    convolutions: tuple[Convolution, ...]


# Simonyan and Zisserman 2015, configuration D; Krizhevsky 2014 ("one weird trick"), as torchvision has it
VGG16 = tuple(
    Stage(2 if number else 0, (Convolution(width),) * depth)
    for number, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)))
)
ALEXNET = (
    Stage(0, (Convolution(64, 11, 4, 2),)),
    Stage(3, (Convolution(192, 5, 1, 2),)),
    Stage(3, (Convolution(384),)),
    Stage(0, (Convolution(256),)),
    Stage(0, (Convolution(256),)),
)
SMALLEST_SIDE = {VGG16: 16, ALEXNET: 31}  # pixels, of which the last stage still has one place

# The mean and deviation of ImageNet for images in -1..1, to the digits that LPIPS uses
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """LPIPS distance, never trained; weights are random until loaded."""

    def __init__(self, stages: Sequence[Stage] = VGG16) -> None:
        """Make the network; stages other than `VGG16` and `ALEXNET` are for tests."""
        super().__init__()
        self.stages = tuple(stages)
        self.convolutions = nn.ModuleDict()
        self.heads = nn.ParameterList()
        width = 3
        for b, stage in enumerate(self.stages, start=1):
            for i, (channels, kernel, stride, padding) in enumerate(stage.convolutions, start=1):
                self.convolutions[f"{b}_{i}"] = nn.Conv2d(width, channels, kernel, stride, padding)
                width = channels
            self.heads.append(nn.Parameter(torch.rand(width)))
        self.requires_grad_(False)
        nn.utils.convert_conv2d_weight_memory_format(self, torch.channels_last)

    def forward(self, x: Tensor, y: Tensor, frames: Tensor | None = None, exact: bool = True) -> Tensor:
        """Distance of `x` and `y`, both images (b, 3, h, w) or both clips (b, 3, t, h, w), -1..1.

        Args:
            x: differentiable input.
            y: differentiable input; the distance is symmetric.
            frames: (b, k) int64, the frames of each clip to compare; None compares all.
            exact: compute in float32 within autocast, too. Without it, under bf16, distances of clips and blurred
                clips move by less than a hundredth, their gradients' cosine with the exact ones is .97 to .99, and
                both are made in half the time: enough to train with.

        Returns:
            (b,) float32, at least 0; for clips the mean over the frames.

        Raises:
            InputError: images too small for the network, 16 pixels for VGG16, 31 for AlexNet.
        """
        assert x.shape == y.shape, f"LPIPS got {tuple(x.shape)} and {tuple(y.shape)}"
        least = SMALLEST_SIDE.get(self.stages, 16)
        if min(x.shape[-2:]) < least:
            raise InputError(f"LPIPS needs images of at least {least} pixels a side, got {tuple(x.shape[-2:])}")
        batch = len(x)
        if x.ndim == 5:
            x, y = _frames_as_images(x, frames), _frames_as_images(y, frames)  # (b*k, c, h, w)
        exactly = torch.autocast(x.device.type, enabled=False) if exact else nullcontext()
        with exactly:
            distances = self._distances(x.float(), y.float())  # (b*k,)
        return distances.view(batch, -1).mean(dim=1)  # (b,)

    def _distances(self, x: Tensor, y: Tensor) -> Tensor:
        """Zhang et al. 2018, eq. 1: sum over layers of the mean over places of the weighted squared difference."""
        total = x.new_zeros(len(x))
        for head, a, b in zip(self.heads, self._features(x), self._features(y), strict=True):
            difference = (_unit(a) - _unit(b)).square()  # (n, c, h, w)
            total = total + torch.einsum("nchw,c->nhw", difference, head).mean(dim=(1, 2))
        return total

    def _features(self, x: Tensor) -> list[Tensor]:
        """Activations after the last ReLU of each stage; in VGG16 relu1_2, relu2_2, relu3_3, relu4_3, relu5_3."""
        shift, scale = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (SHIFT, SCALE))
        x = (x - shift) / scale
        features = []
        for b, stage in enumerate(self.stages, start=1):
            if stage.pool:
                x = F.max_pool2d(x, stage.pool, stride=2)
            for i in range(1, len(stage.convolutions) + 1):
                x = F.relu(self.convolutions[f"{b}_{i}"](x))
            features.append(x)
        return features


def _frames_as_images(clip: Tensor, frames: Tensor | None) -> Tensor:
    """The chosen frames (b, k) of clips (b, c, t, h, w), or all, as images (b*k, c, h, w)."""
    images = clip.movedim(2, 1)  # (b, t, c, h, w)
    if frames is not None:
        images = images[torch.arange(len(clip), device=clip.device)[:, None], frames]  # (b, k, c, h, w)
    return images.flatten(0, 1)


def _unit(features: Tensor) -> Tensor:
    """Features (n, c, h, w) scaled to length 1 over channels."""
    # zeros are safe: where all channels are 0, ReLU lets no gradient through
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)
