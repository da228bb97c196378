"""The scale that quantisers need."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce  # with a gradient

from vqvdm.quantizers.across import distributed


class RunningNorm(nn.Module):
    """Each channel to about mean 0 and deviation 1, by moving averages over all positions, clips and processes.

    Quantisers need a known scale: FSQ has a fixed range, and a commitment loss grows with the square of it. A norm of
    each clip or position by itself would take its brightness away. In training the values are those of evaluation but
    the gradient is that of a batch norm (batch renormalisation, Ioffe 2017, algorithm 1): with plain moving averages
    the encoder gains by growing faster than they follow, and never stops.
    """

    def __init__(self, channels: int, decay: float = 0.99, epsilon: float = 1e-8) -> None:
        """Make a norm of (b, channels, t, h, w) that changes nothing until it has seen a training batch."""
        super().__init__()
        self.decay, self.epsilon = decay, epsilon
        self.mean: Tensor
        self.variance: Tensor
        self.updates: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, z: Tensor) -> Tensor:
        """(b, c, t, h, w), normalised, in the dtype of `z`; in training mode the averages learn from it first."""
        if not self.training or z.is_meta:
            return self.normalise(z)
        x = z.float()
        count = torch.full((len(self.mean),), x.numel() / x.shape[1], device=x.device)
        totals = torch.stack([count, x.sum((0, 2, 3, 4)), x.square().sum((0, 2, 3, 4))])  # (3, c)
        count, first, second = all_reduce(totals) if distributed() else totals
        mean = first / count
        deviation = ((second / count - mean.square()).clamp(min=0) + self.epsilon).sqrt()
        self._learn(mean.detach(), deviation.detach().square())
        running = (self.variance + self.epsilon).sqrt()
        r, d = deviation.detach() / running, (mean.detach() - self.mean) / running  # Ioffe's constants
        mean, scale, d = (v.view(1, -1, 1, 1, 1) for v in (mean, r / deviation, d))
        return ((x - mean) * scale + d).to(z.dtype)

    def normalise(self, z: Tensor) -> Tensor:
        """As `forward`, learning nothing in any mode."""
        mean, variance = (v.view(1, -1, 1, 1, 1) for v in (self.mean, self.variance))
        return ((z.float() - mean) / (variance + self.epsilon).sqrt()).to(z.dtype)

    @torch.no_grad()
    def _learn(self, mean: Tensor, variance: Tensor) -> None:
        keep = min(self.decay, int(self.updates) / (int(self.updates) + 1))  # a plain average at first
        self.mean.lerp_(mean, 1 - keep)
        self.variance.lerp_(variance, 1 - keep)
        self.updates.add_(1)
