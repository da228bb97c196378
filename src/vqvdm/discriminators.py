"""Adversarial side of the tokenizer: patch discriminators, their losses, and what keeps them steady.

One network for images and for videos (Isola et al. 2017: each logit judges a patch); losses and weights are plain
functions of logits. All losses are computed in float32. With several processes the moving averages of LeCam and the
adaptive weight are those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vqvdm.errors import InputError
from vqvdm.layers import Conv3d

LossKind = Literal["hinge", "non_saturating"]


class DiscriminatorOutput(NamedTuple):
    """What a discriminator says of a batch."""

    logits: Tensor  # (b, 1, h, w) or (b, 1, t, h, w), one per patch; above 0 means "real"
    features: tuple[Tensor, ...]  # activations of all layers but the last, for feature matching


class PatchDiscriminator(nn.Module):
    """PatchGAN on images (`dims=2`) or on videos (`dims=3`, strided in time as well).

    `layers` convolutions of kernel 4 and stride 2, then two of kernel 3 and stride 1; channels double up to 8 times.
    Group normalisation or none: batch statistics would tie real and generated samples, and the processes, together.
    Weights lie channels-last.
    """

    def __init__(
        self,
        dims: Literal[2, 3],
        in_channels: int = 3,
        channels: int = 64,
        layers: int = 3,
        norm: Literal["group", "none"] = "group",
    ) -> None:
        """Make a discriminator.

        Args:
            dims: 2 for images (b, c, h, w), 3 for clips (b, c, t, h, w).
            in_channels: c of the input.
            channels: of the first layer.
            layers: number of halvings; every side of the input must be at least 2**layers.
            norm: "group" or "none", after all convolutions but the first and the last.

        Raises:
            InputError: an argument is out of range.
        """
        super().__init__()
        if dims not in (2, 3) or min(in_channels, channels, layers) < 1:
            raise InputError(
                "discriminator: dims must be 2 or 3, in_channels, channels and layers at least 1, "
                f"not {dims}, {in_channels}, {channels}, {layers}"
            )
        if norm not in ("group", "none"):
            raise InputError(f'discriminator: norm must be "group" or "none", not {norm!r}')
        self.dims, self.layers = dims, layers
        conv = nn.Conv2d if dims == 2 else Conv3d
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]

        blocks: list[nn.Module] = []
        width_in = in_channels
        for i, width in enumerate(widths):
            strided = i < layers
            normed = norm == "group" and i > 0
            blocks.append(
                nn.Sequential(
                    conv(width_in, width, kernel_size=4 if strided else 3, stride=2 if strided else 1, padding=1),
                    nn.GroupNorm(_groups(width), width) if normed else nn.Identity(),
                    nn.LeakyReLU(0.2),
                )
            )
            width_in = width
        self.blocks = nn.ModuleList(blocks)
        self.head = conv(width_in, 1, kernel_size=3, padding=1)
        self.apply(_init_conv)
        if dims == 2:
            nn.utils.convert_conv2d_weight_memory_format(self, torch.channels_last)
        else:
            nn.utils.convert_conv3d_weight_memory_format(self, torch.channels_last_3d)

    def forward(self, x: Tensor) -> DiscriminatorOutput:
        """Judge `x` (b, c, h, w) or (b, c, t, h, w), -1..1; each side of the logits is the input's // 2**layers.

        Raises:
            InputError: a side of `x` is shorter than 2**layers.
        """
        assert x.ndim == self.dims + 2, f"a {self.dims}D discriminator got {tuple(x.shape)}"
        if min(x.shape[2:]) < 2**self.layers:
            raise InputError(
                f"a discriminator of {self.layers} layers needs frames, height and width of at least {2**self.layers}, "
                f"got {tuple(x.shape[2:])}; use fewer layers"
            )
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return DiscriminatorOutput(self.head(x), tuple(features))


def one_frame(clip: Tensor, index: Tensor) -> Tensor:
    """Frame `index` (b,) of each clip (b, c, t, h, w): images (b, c, h, w)."""
    return clip[torch.arange(len(clip), device=clip.device), :, index]


def discriminator_loss(real: Tensor, fake: Tensor, kind: LossKind) -> Tensor:
    """Loss of the discriminator, from its logits for real and for generated samples (any shapes): a scalar.

    "hinge" (Lim and Ye 2017) or "non_saturating" (Goodfellow et al. 2014); the sum of both sides, without the factor
    1/2 that some code has.
    """
    real, fake = real.float(), fake.float()
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    assert kind == "non_saturating", kind
    return F.softplus(-real).mean() + F.softplus(fake).mean()  # -log D(x) - log(1 - D(G(z)))


def generator_loss(fake: Tensor, kind: LossKind) -> Tensor:
    """Adversarial loss of the generator, from the logits of its samples (any shape): a scalar."""
    fake = fake.float()
    if kind == "hinge":
        return -fake.mean()
    assert kind == "non_saturating", kind
    return F.softplus(-fake).mean()  # -log D(G(z))


def feature_matching_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of the discriminator's features, averaged over layers; no gradient into `real`."""
    terms = [F.l1_loss(f.float(), r.detach().float()) for r, f in zip(real, fake, strict=True)]
    return torch.stack(terms).mean()


class LeCam(nn.Module):
    """LeCam regulariser (Tseng et al. 2021, eq. 3): each side's logits stay near the other side's moving average.

    In training mode each call first moves the averages (those of all processes together). The averages are buffers;
    save them with the discriminator to resume exactly. Use one per discriminator.
    """

    def __init__(self, decay: float = 0.99) -> None:
        """Make a regulariser whose averages start at those of the first batch."""
        super().__init__()
        self.decay = decay
        self.means: Tensor
        self.started: Tensor
        self.register_buffer("means", torch.zeros(2))  # alpha_R, alpha_F
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Penalty (scalar) for logits of real and of generated samples (any shapes)."""
        real, fake = real.float(), fake.float()
        if self.training:
            self._update(torch.stack([real.detach().mean(), fake.detach().mean()]))
        mean_real, mean_fake = self.means.clone()  # the next call changes the buffer before a late backward
        return (real - mean_fake).square().mean() + (fake - mean_real).square().mean()

    @torch.no_grad()
    def _update(self, means: Tensor) -> None:
        means = _mean_over_processes(means)
        self.means.copy_(torch.where(self.started, torch.lerp(means, self.means, self.decay), means))
        self.started.fill_(True)


def r1_penalty(real_logits: Tensor, real: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018, eq. 9 without gamma): half the squared norm of D's gradient at real samples.

    Args:
        real_logits: D(real), (b, 1, ...); D's value for a sample is the mean of its patches.
        real: the discriminator's input, with `requires_grad` set before D saw it.

    Returns:
        Scalar, mean over the batch, differentiable with respect to D's parameters.
    """
    value = real_logits.float().flatten(1).mean(dim=1).sum()
    (gradient,) = torch.autograd.grad(value, real, create_graph=True)
    return 0.5 * gradient.float().square().flatten(1).sum(dim=1).mean()


def ramp_factor(step: int, start: int, ramp: int) -> float:
    """Share of the adversarial weight at update `step`: 0 up to `start`, then linearly to 1 within `ramp` updates."""
    if step < start:
        return 0.0
    return min(1.0, (step - start) / ramp) if ramp > 0 else 1.0


def adaptive_weight(
    reconstruction_loss: Tensor,
    adversarial_loss: Tensor,
    last_layer: Tensor,
    epsilon: float = 1e-6,
    maximum: float = 1e4,
) -> Tensor:
    """VQGAN's weight of the adversarial loss (Esser et al. 2021, eq. 7): the ratio of both losses' gradients.

    Args:
        reconstruction_loss: scalar, of the generator.
        adversarial_loss: scalar, of the generator.
        last_layer: weight of the decoder's last convolution, through which both losses pass.
        epsilon: delta of the equation.
        maximum: the weight is cut off here.

    Returns:
        Scalar without gradient, the same on all processes. Both losses' graphs are kept.
    """
    losses = (reconstruction_loss, adversarial_loss)
    gradients = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float() for loss in losses]
    reconstruction, adversarial = _mean_over_processes(torch.stack(gradients)).flatten(1).norm(dim=1)
    return (reconstruction / (adversarial + epsilon)).clamp(max=maximum).detach()


def _mean_over_processes(value: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value


def _groups(width: int) -> int:
    """Groups of 16 channels where they fit."""
    return width // 16 if width % 16 == 0 else 1


def _init_conv(module: nn.Module) -> None:
    """Variance-preserving start (He et al. 2015), so that few layers without normalisation learn as well."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, a=0.2)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
