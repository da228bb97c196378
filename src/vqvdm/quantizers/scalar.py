"""Finite scalar quantisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vqvdm.errors import InputError
from vqvdm.quantizers.across import from_all_processes
from vqvdm.quantizers.output import QuantizerOutput, occurrences, spread, straight_through


class FiniteScalarQuantizer(nn.Module):
    """Finite scalar quantisation: each channel is rounded to one of a few levels (Mentzer et al. 2023).

    The codes are the product of the channels' levels; nothing is learnt, there is no state and no loss. A channel of
    L levels takes the values k * span / (L // 2), with k = -(L // 2) .. (L - 1) // 2, so that 0 is always a level.

    The paper squashes its input by tanh (appendix A.1); here it comes with deviation 1 (`RunningNorm`) and is cut far
    out. Large values are rare and are what moves: a tanh with a slope that uses the levels would merge them.
    """

    ready = True  # nothing is learnt

    def __init__(self, levels: tuple[int, ...], span: float = 4.0) -> None:
        """Make a quantiser of len(levels) channels and prod(levels) codes.

        Args:
            levels: number of levels of each channel.
            span: deviations of the input that the levels cover to either side.

        Raises:
            InputError: no levels, or a channel with fewer than 2; a span that is not positive.
        """
        super().__init__()
        levels = tuple(levels)
        if not levels or any(int(level) != level or level < 2 for level in levels):
            raise InputError(f"fsq levels must be whole numbers of at least 2, such as (8, 5, 5, 5), not {levels}")
        if span <= 0:
            raise InputError(f"fsq span must be positive, not {span}")
        self.levels, self.span = levels, span
        self.dim = len(levels)
        self.num_codes = math.prod(levels)

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Bound `z` (b, dim, t, h, w) and round it to the nearest levels."""
        return self._round(self.bound(z.float()), z.dtype, over_processes=self.training)

    def snap(self, values: Tensor) -> QuantizerOutput:
        """The nearest levels of `values` (b, dim, t, h, w), this process alone; beyond the ends, the end."""
        return self._round(values.float(), values.dtype, over_processes=False)

    def embed(self, tokens: Tensor) -> Tensor:
        """Values of `tokens` (b, t, h, w), 0..num_codes-1, as float32 (b, dim, t, h, w) in [-span, span]."""
        integers = []
        rest = tokens
        for level in self.levels:
            integers.append(rest % level - level // 2)
            rest = rest // level
        integers = torch.stack(integers, dim=1)
        return integers * self._step(integers)

    def bound(self, z: Tensor) -> Tensor:
        """`z` (b, dim, t, h, w), cut to the range of the levels."""
        lowest, highest = self._ends(z)
        step = self._step(z)
        return torch.minimum(torch.maximum(z.float(), lowest * step), highest * step).to(z.dtype)

    def _round(self, continuous: Tensor, dtype: torch.dtype, over_processes: bool) -> QuantizerOutput:
        step, (lowest, highest) = self._step(continuous), self._ends(continuous)
        basis = self._per_channel([math.prod(self.levels[:i]) for i in range(self.dim)], continuous).long()
        integers = torch.round(continuous.detach() / step).clamp(lowest, highest)  # (b, c, t, h, w)
        tokens = ((integers - lowest).long() * basis).sum(dim=1)  # (b, t, h, w)
        counts = occurrences(from_all_processes(tokens) if over_processes else tokens)
        perplexity, _ = spread(counts)
        usage = (counts > 0).sum() / self.num_codes
        quantized = straight_through(continuous, integers * step).to(dtype)
        return QuantizerOutput(quantized, tokens, continuous.new_zeros(()), perplexity, usage)

    def _step(self, z: Tensor) -> Tensor:
        return self._per_channel([self.span / (level // 2) for level in self.levels], z)

    def _ends(self, z: Tensor) -> tuple[Tensor, Tensor]:
        lowest = self._per_channel([-(level // 2) for level in self.levels], z)
        return lowest, self._per_channel([(level - 1) // 2 for level in self.levels], z)

    def _per_channel(self, values: list[float] | list[int], z: Tensor) -> Tensor:
        """One float32 number per channel, shaped to broadcast over (b, c, t, h, w)."""
        return torch.tensor(values, dtype=torch.float32, device=z.device).view(1, self.dim, 1, 1, 1)

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"levels={self.levels}, span={self.span}"
