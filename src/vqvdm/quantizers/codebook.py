"""A codebook learnt by moving averages."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vqvdm.errors import InputError
from vqvdm.quantizers.across import distributed, sum_over_processes
from vqvdm.quantizers.output import QuantizerOutput, count, rotated_through, spread, straight_through

Gradient = Literal["straight", "rotation"]
_PASSED = {"straight": straight_through, "rotation": rotated_through}
DISTANCE_ELEMENTS = 2**22  # largest block of distances held at once: 16 MiB in float32

_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 has none


class EMACodebook(nn.Module):
    """Vector quantisation with a codebook learnt by exponential moving averages (van den Oord et al. 2017).

    In training mode each forward updates the codebook (appendix A.1, eq. 6 to 8; the counts with Laplace smoothing),
    after it has quantised. Under `torch.distributed` counts and sums are those of all processes together, and new
    codes are drawn from the batches of all, so every process keeps the codebook that one process with the whole batch
    would have; all must then call forward in training mode equally often. Random draws depend on `seed` and the
    number of updates alone, never on the global random state.

    The buffers `codes` (num_codes, dim), `counts` (num_codes,), `sums` (num_codes, dim) and `updates` () are the whole
    state. They must stay float32 in training.
    """

    def __init__(
        self,
        num_codes: int,
        dim: int,
        decay: float = 0.99,
        commitment: float = 0.25,
        restart_after: int = 200,
        init: Literal["data", "kmeans"] = "data",
        cosine: bool = False,
        kmeans_iterations: int = 10,
        epsilon: float = 1e-5,
        seed: int = 0,
        gradient: Gradient = "straight",
    ) -> None:
        """Make a codebook that takes its codes from the first training batch.

        Args:
            num_codes: number of codes.
            dim: channels of a code.
            decay: gamma of the moving averages.
            commitment: beta, weight of the commitment loss.
            restart_after: a code of average use restarts, from a random vector of the batch, after this many updates
                in which nothing chose it; that is, codes whose moving count is below decay**restart_after of the
                mean count restart. Several times 1 / (1 - decay) is sensible; 0 never restarts.
            init: "data" draws vectors of the first training batch, "kmeans" refines them by Lloyd's iterations.
            cosine: compare, store and return vectors of length 1.
            kmeans_iterations: Lloyd's iterations of "kmeans".
            epsilon: of the Laplace smoothing of the counts.
            seed: of the draws.
            gradient: how it passes: "straight" through, or by the "rotation" that takes a vector to its code.

        Raises:
            InputError: an argument is out of range.
        """
        super().__init__()
        if gradient not in _PASSED:
            raise InputError(f"codebook: gradient must be one of {', '.join(_PASSED)}, not {gradient!r}")
        if num_codes < 1 or dim < 1:
            raise InputError(f"codebook: num_codes and dim must be at least 1, not {num_codes} and {dim}")
        if not 0 < decay < 1:
            raise InputError(f"codebook: decay must lie between 0 and 1, not {decay}")
        if restart_after < 0:
            raise InputError(f"codebook: restart_after must be 0 (never) or a number of updates, not {restart_after}")
        if init not in ("data", "kmeans"):
            raise InputError(f'codebook: init must be "data" or "kmeans", not {init!r}')
        self.num_codes, self.dim = num_codes, dim
        self.decay, self.commitment, self.restart_after = decay, commitment, restart_after
        self.cosine, self.epsilon, self.seed = cosine, epsilon, seed
        self.gradient = gradient
        self.lloyd_iterations = kmeans_iterations if init == "kmeans" else 0

        codes = torch.randn(num_codes, dim)
        codes = F.normalize(codes, dim=1) if cosine else codes
        self.codes: Tensor
        self.counts: Tensor
        self.sums: Tensor
        self.updates: Tensor
        self.register_buffer("codes", codes)  # e
        self.register_buffer("counts", torch.ones(num_codes))  # N
        self.register_buffer("sums", codes.clone())  # m
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def ready(self) -> bool:
        """Whether the codes come from data; before the first training batch they are noise and quantise to nothing."""
        if self.updates.is_meta or _is_exporting():  # there are no numbers, only shapes
            return True
        return int(self.updates) > 0

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Replace each vector of `z` (b, dim, t, h, w) by its nearest code; in training mode also learn from it."""
        return self._quantize(z, learn=self.training and not z.is_meta)

    def snap(self, values: Tensor) -> QuantizerOutput:
        """The nearest codes of `values` (b, dim, t, h, w), this process alone and learning nothing in any mode."""
        return self._quantize(values, learn=False)

    def _quantize(self, z: Tensor, learn: bool) -> QuantizerOutput:
        continuous = self.bound(z.float())  # (b, c, t, h, w)
        vectors = continuous.detach().movedim(1, -1).reshape(-1, self.dim)  # (n, c)
        if learn and not self.ready:
            self._initialise(vectors)
        tokens = nearest_codes(vectors, self.codes)  # (n,)
        quantized = F.embedding(tokens, self.codes.float())  # (n, c)
        if learn:
            counts = self._update(vectors, tokens)
        else:
            counts = count(tokens, self.num_codes)

        shape = (z.shape[0], *z.shape[2:])
        tokens = tokens.view(shape)  # (b, t, h, w)
        quantized = quantized.view(*shape, self.dim).movedim(-1, 1)  # (b, c, t, h, w)
        loss = self.commitment * F.mse_loss(continuous, quantized)
        quantized = _PASSED[self.gradient](continuous, quantized).to(z.dtype)
        return QuantizerOutput(quantized, tokens, loss, *spread(counts))

    def embed(self, tokens: Tensor) -> Tensor:
        """Codes of `tokens` (b, t, h, w), 0..num_codes-1, as (b, dim, t, h, w)."""
        return F.embedding(tokens, self.codes).movedim(-1, 1)

    def bound(self, z: Tensor) -> Tensor:
        """The value before quantisation: `z` (b, dim, t, h, w) itself, with `cosine` scaled to length 1."""
        return F.normalize(z.float(), dim=1).to(z.dtype) if self.cosine else z

    @torch.no_grad()
    def _update(self, vectors: Tensor, tokens: Tensor) -> Tensor:
        """One step of the moving averages from the vectors (n, c) of this process; returns the batch's counts."""
        assert self.codes.dtype == torch.float32, "a codebook in lower precision cannot be trained"
        counts, sums = self._cluster(vectors, tokens)
        # van den Oord et al. 2017, eq. 6 and 7
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        self.updates.add_(1)
        if self.restart_after > 0:
            self._restart_dead_codes(vectors, mean_count=counts.mean())
        self.codes.copy_(self._means(self.counts, self.sums))
        return counts

    def _restart_dead_codes(self, vectors: Tensor, mean_count: Tensor) -> None:
        """Give codes that are hardly chosen a vector of the batch and the weight of a code of average use."""
        dead = torch.nonzero(self.counts < mean_count * self.decay**self.restart_after).flatten()
        if len(dead) == 0:
            return
        drawn = self._draw(vectors, len(dead))  # fewer than asked if the batch is small; the rest follow next time
        dead = dead[: len(drawn)]
        self.counts[dead] = mean_count
        self.sums[dead] = drawn * mean_count

    @torch.no_grad()
    def _initialise(self, vectors: Tensor) -> None:
        """Take the codes from the first batch: vectors of it (n, c), or the means of their clusters."""
        drawn = self._draw(vectors, self.num_codes)  # (at most num_codes, c)
        if len(drawn) < self.num_codes:  # repeat, a little apart so that the copies can part ways
            generator = torch.Generator().manual_seed(self.seed)
            noise = torch.randn(self.num_codes, self.dim, generator=generator).to(drawn.device)
            spread = drawn.std(dim=0, correction=0)
            drawn = drawn.repeat(math.ceil(self.num_codes / len(drawn)), 1)[: self.num_codes] + 0.01 * spread * noise
        codes = F.normalize(drawn, dim=1) if self.cosine else drawn
        for _ in range(self.lloyd_iterations):
            counts, sums = self._cluster(vectors, nearest_codes(vectors, codes))
            means = F.normalize(sums, dim=1) if self.cosine else sums / counts.clamp(min=1)[:, None]
            codes = torch.where(counts[:, None] > 0, means, codes)
        mean_count = sum_over_processes(torch.tensor(float(len(vectors)), device=vectors.device)) / self.num_codes
        self.codes.copy_(codes)
        self.counts.fill_(mean_count)
        self.sums.copy_(codes * mean_count)

    def _cluster(self, vectors: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Number (k,) and sum (k, c) of the vectors of each code, over all processes."""
        totals = torch.zeros(self.num_codes, 1 + self.dim, device=vectors.device)  # one tensor, one all-reduce
        totals.index_add_(0, tokens, F.pad(vectors, (1, 0), value=1.0))
        totals = sum_over_processes(totals)
        return totals[:, 0], totals[:, 1:]

    def _means(self, counts: Tensor, sums: Tensor) -> Tensor:
        """Codes from moving counts (k,) and sums (k, c): eq. 8 with Laplace smoothing of the counts."""
        if self.cosine:
            return F.normalize(sums, dim=1)
        total = counts.sum()
        smoothed = (counts + self.epsilon) / (total + self.num_codes * self.epsilon) * total
        return sums / smoothed[:, None]

    def _draw(self, vectors: Tensor, number: int) -> Tensor:
        """Up to `number` different vectors of all processes' batches, the same on every process.

        The choice is that of one process whose batch is the processes' batches one after the other.
        """
        rank, world = (dist.get_rank(), dist.get_world_size()) if distributed() else (0, 1)
        sizes = torch.zeros(world, dtype=torch.int64, device=vectors.device)
        sizes[rank] = len(vectors)
        sizes = sum_over_processes(sizes).tolist()
        first = sum(sizes[:rank])
        generator = torch.Generator().manual_seed((self.seed << 32) + int(self.updates))
        chosen = torch.randperm(sum(sizes), generator=generator)[:number].to(vectors.device) - first
        mine = (chosen >= 0) & (chosen < len(vectors))
        drawn = torch.zeros(len(chosen), self.dim, device=vectors.device)
        drawn[mine] = vectors[chosen[mine]]
        return sum_over_processes(drawn)

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"num_codes={self.num_codes}, dim={self.dim}, decay={self.decay}, cosine={self.cosine}"


def nearest_codes(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index (n,) of the code (k, c) at the smallest Euclidean distance from each vector (n, c), in float32.

    Works through blocks of vectors, so no (n, k) table is ever held.
    """
    codes = codes.float()
    with _full_precision(vectors.device.type):
        squares = codes.square().sum(dim=1)  # (k,)
        few = max(1, DISTANCE_ELEMENTS // len(codes))
        blocks = [vectors.float()] if _is_exporting() else vectors.float().split(few)  # a program has one path
        # |v - e|^2 = |v|^2 - 2 v.e + |e|^2, and |v|^2 does not change which is least
        return torch.cat([torch.addmm(squares, block, codes.T, alpha=-2).argmin(dim=1) for block in blocks])


def _full_precision(device: str) -> AbstractContextManager[object]:
    """Switches autocast off, where the device has it (the meta device has not)."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
