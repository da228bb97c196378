"""Quantisers of the tokenizer: a codebook learnt by moving averages, and finite scalar quantisation.

Both are called the same way: `forward(z)` quantises, and in training learns; `bound(z)` is the continuous value just
before quantisation, `snap(bounded)` quantises that or what a generator made in its place, and `embed(tokens)` gives the
very values that `forward` returned with these tokens. Both compute in float32 whatever the autocast state, return
values in the dtype of their input, and change nothing in evaluation mode.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce  # with a gradient

from vqvdm.errors import InputError

DISTANCE_ELEMENTS = 2**22  # largest block of distances held at once: 16 MiB in float32


class QuantizerOutput(NamedTuple):
    """What a quantiser makes of a batch."""

    quantized: Tensor  # (b, c, t, h, w), dtype of the input; its gradient passes straight through to the input
    tokens: Tensor  # (b, t, h, w) int64, 0..num_codes-1
    loss: Tensor  # scalar float32: weighted commitment loss, 0 for FSQ
    perplexity: Tensor  # scalar float32, 1..num_codes: exp of the entropy of the codes' shares in this batch
    usage: Tensor  # scalar float32, 0..1: fraction of the codes that occur in this batch


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

        Raises:
            InputError: an argument is out of range.
        """
        super().__init__()
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
        return self.updates.is_meta or int(self.updates) > 0  # meta tensors hold no numbers, only shapes

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
            counts = _count(tokens, self.num_codes)

        shape = (z.shape[0], *z.shape[2:])
        tokens = tokens.view(shape)  # (b, t, h, w)
        quantized = quantized.view(*shape, self.dim).movedim(-1, 1)  # (b, c, t, h, w)
        loss = self.commitment * F.mse_loss(continuous, quantized)
        quantized = _straight_through(continuous, quantized).to(z.dtype)
        return QuantizerOutput(quantized, tokens, loss, *_spread(counts))

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
        mean_count = _sum_over_processes(torch.tensor(float(len(vectors)), device=vectors.device)) / self.num_codes
        self.codes.copy_(codes)
        self.counts.fill_(mean_count)
        self.sums.copy_(codes * mean_count)

    def _cluster(self, vectors: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Number (k,) and sum (k, c) of the vectors of each code, over all processes."""
        totals = torch.zeros(self.num_codes, 1 + self.dim, device=vectors.device)  # one tensor, one all-reduce
        totals.index_add_(0, tokens, F.pad(vectors, (1, 0), value=1.0))
        totals = _sum_over_processes(totals)
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
        rank, world = (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)
        sizes = torch.zeros(world, dtype=torch.int64, device=vectors.device)
        sizes[rank] = len(vectors)
        sizes = _sum_over_processes(sizes).tolist()
        first = sum(sizes[:rank])
        generator = torch.Generator().manual_seed((self.seed << 32) + int(self.updates))
        chosen = torch.randperm(sum(sizes), generator=generator)[:number].to(vectors.device) - first
        mine = (chosen >= 0) & (chosen < len(vectors))
        drawn = torch.zeros(len(chosen), self.dim, device=vectors.device)
        drawn[mine] = vectors[chosen[mine]]
        return _sum_over_processes(drawn)

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"num_codes={self.num_codes}, dim={self.dim}, decay={self.decay}, cosine={self.cosine}"


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
        counts = _occurrences(_from_all_processes(tokens) if over_processes else tokens)
        perplexity, _ = _spread(counts)
        usage = (counts > 0).sum() / self.num_codes
        quantized = _straight_through(continuous, integers * step).to(dtype)
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
        count, first, second = all_reduce(totals) if _distributed() else totals
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


def nearest_codes(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index (n,) of the code (k, c) at the smallest Euclidean distance from each vector (n, c), in float32.

    Works through blocks of vectors, so no (n, k) table is ever held.
    """
    codes = codes.float()
    with _full_precision(vectors.device.type):
        squares = codes.square().sum(dim=1)  # (k,)
        blocks = vectors.float().split(max(1, DISTANCE_ELEMENTS // len(codes)))
        # |v - e|^2 = |v|^2 - 2 v.e + |e|^2, and |v|^2 does not change which is least
        return torch.cat([torch.addmm(squares, block, codes.T, alpha=-2).argmin(dim=1) for block in blocks])


def _full_precision(device: str) -> AbstractContextManager[object]:
    """Switches autocast off, where the device has it (the meta device has not)."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _straight_through(continuous: Tensor, quantized: Tensor) -> Tensor:
    """Exactly the value of `quantized`, with the gradient of `continuous`."""
    return quantized.detach() + (continuous - continuous.detach())


def _count(tokens: Tensor, num_codes: int) -> Tensor:
    """How often each code occurs in `tokens` (n,): (num_codes,) float32."""
    ones = torch.ones(tokens.shape, device=tokens.device)
    return torch.zeros(num_codes, device=tokens.device).index_add_(0, tokens, ones)


def _occurrences(tokens: Tensor) -> Tensor:
    """How often each code that occurs does so: one number per code and zeros, (n,) float32 for n tokens.

    For code counts too large for a table; all shapes are static, so it runs on the meta device and compiled.
    """
    ordered = tokens.flatten().sort().values
    group = F.pad((ordered.diff() != 0).long().cumsum(0), (1, 0))  # (n,) number of the token's code in order
    return _count(group, len(ordered))


def _spread(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Perplexity and usage of a batch from its counts (num_codes,)."""
    shares = counts / counts.sum()
    entropy = -torch.xlogy(shares, shares).sum()
    return entropy.exp(), (counts > 0).float().mean()


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _sum_over_processes(value: Tensor) -> Tensor:
    """The sum of `value` over all processes; changes `value` in place."""
    if _distributed():
        dist.all_reduce(value)
    return value


def _from_all_processes(value: Tensor) -> Tensor:
    """Values of one shape from every process, one after the other along the first axis."""
    if not _distributed():
        return value
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)
