"""Chance in training: every random number is a function of the seed, the update and the sample, and of nothing else.

Samples are numbered through the whole training, over all processes: update `step` takes the numbers
`step * size .. (step + 1) * size - 1`. A sample's number alone says which clip it is, how it is cut and which noise it
meets. So a resumed training continues exactly where it stopped without any stored random state, and two processes
train on exactly the samples that one process with the double batch would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from vqvdm.data.shards import Rounds
from vqvdm.data.workers import LoaderDied, leave_signals_to_parent, loading
from vqvdm.errors import InputError, logger_of

logger = logger_of(__name__)

_TOGETHER = 16  # samples whose chance is drawn at once
_DEATHS = 3  # of loader processes at one update, after which it is no chance


def seed_of(*parts: int | str) -> int:
    """A seed in 0..2**63-1 that depends on all parts, evenly and without pattern (SHA-256)."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded with `seed_of(*parts)`: the same numbers in every process on devices of one kind."""
    return torch.Generator(device).manual_seed(seed_of(*parts))


@dataclass(frozen=True)
class Order:
    """Which samples each update sees, and which of them this process computes.

    Args:
        seed: seeds order, windows, crops, noise.
        length: clips in the data set; each is seen once per epoch, in an order of its own.
        batch: samples per process and micro-batch.
        accumulate: micro-batches per update.
        rank, processes: this process, and how many there are.
        rounds: clips of one bundle are seen near each other; without it any order is as likely.
    """

    seed: int
    length: int
    batch: int
    accumulate: int = 1
    rank: int = 0
    processes: int = 1
    rounds: Rounds | None = None

    @property
    def size(self) -> int:
        """Samples of one update, over all micro-batches and processes."""
        return self.batch * self.accumulate * self.processes

    def numbers(self, step: int, micro: int) -> range:
        """The sample numbers of this process's micro-batch."""
        first = step * self.size + (micro * self.processes + self.rank) * self.batch
        return range(first, first + self.batch)

    def pick(self, number: int) -> tuple[int, int]:
        """(index, draw) of a sample number: the clip, and the seed of its window, crop and flip (0..2**31-1)."""
        epoch, place = divmod(number, self.length)
        clip = int(_permutation(self.seed, epoch, self.length, self.rounds)[place])
        return clip, seed_of(self.seed, "draw", number) % 2**31


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int, rounds: Rounds | None) -> Tensor:
    source = generator(seed, "epoch", epoch)
    if rounds is None:
        return torch.randperm(length, generator=source, dtype=torch.int64)
    bundles = torch.randperm(len(rounds.bundles), generator=source).split(rounds.at_once)
    parts = [torch.tensor([clip for k in some.tolist() for clip in rounds.bundles[k]]) for some in bundles]
    return torch.cat([part[torch.randperm(len(part), generator=source)] for part in parts])


class _StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (index, draw) for the updates `first` .. `last - 1`."""

    def __init__(self, order: Order, first: int, last: int) -> None:
        self.order, self.first, self.last = order, first, last

    def __len__(self) -> int:
        return (self.last - self.first) * self.order.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first, self.last):
            for micro in range(self.order.accumulate):
                yield [self.order.pick(number) for number in self.order.numbers(step, micro)]


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device, and the chance that belongs to its samples."""

    data: dict[str, Tensor]
    numbers: range  # the samples' numbers in the whole training
    seed: int
    size: int  # samples of the whole update
    last: bool  # the update's last micro-batch

    def __getitem__(self, name: str) -> Tensor:
        return self.data[name]

    def noise_like(self, x: Tensor) -> Tensor:
        """Standard normal noise of x's shape, device and type, drawn where x is: a GPU is faster at it by far."""

        def normal(count: int, source: torch.Generator) -> Tensor:
            return torch.randn(count, *x.shape[1:], generator=source, device=x.device)

        return self._drawn("noise", normal, x.device).to(x)

    def uniform(self, purpose: str) -> Tensor:
        """(b,) independent numbers in 0..1, float32 on the CPU; other purposes get other numbers."""
        return self.uniforms(purpose, 1).squeeze(1)

    def uniforms(self, purpose: str, width: int) -> Tensor:
        """(b, width) of them."""
        return self._drawn(purpose, lambda count, source: torch.rand(count, width, generator=source))

    def _drawn(
        self, purpose: str, draw: Callable[[int, torch.Generator], Tensor], device: torch.device | str = "cpu"
    ) -> Tensor:
        """The samples' rows of what is drawn for `_TOGETHER` numbers at a time, each time with a generator of its own.

        One for each sample would do as well, but would keep a GPU waiting.
        """
        first, last = self.numbers[0] // _TOGETHER, self.numbers[-1] // _TOGETHER
        groups = [
            draw(_TOGETHER, generator(self.seed, purpose, group, device=device)) for group in range(first, last + 1)
        ]
        begin = self.numbers[0] - first * _TOGETHER
        return torch.cat(groups)[begin : begin + len(self.numbers)]

    def frames(self, field: str, count: int) -> Batch:
        """A batch of single frames: of each sample `count` different ones, drawn at random, with chance of their own.

        `field` (b, c, t, h, w) becomes (b count, c, 1, h, w), what belongs to the whole sample is repeated.
        """
        length = self[field].shape[2]
        places = self.uniforms("frames", length).argsort(1)[:, :count].to(self[field].device)  # (b, count)
        samples = torch.arange(len(places), device=places.device)[:, None].expand_as(places)
        taken = self[field][samples.flatten(), :, places.flatten()].unsqueeze(2)
        names = ("class_label", "fps")
        data = {name: self[name].repeat_interleave(count, 0) for name in names if name in self.data}
        numbers = range(self.numbers[0] * count, (self.numbers[-1] + 1) * count)
        return Batch({**data, field: taken}, numbers, seed_of(self.seed, "frames"), self.size * count, self.last)

    def strata(self, purpose: str) -> Tensor:
        """(b,) numbers in 0..1, float32 on the CPU, spread evenly over the whole update.

        One random offset per update, then equal distances: each number alone is uniform, and the mean over an update
        varies less than with independent ones (Kingma et al. 2021, "Variational Diffusion Models", appendix I.1).
        """
        step = self.numbers[0] // self.size
        offset = torch.rand(1, generator=generator(self.seed, purpose, step), dtype=torch.float64)
        places = torch.tensor([n % self.size for n in self.numbers], dtype=torch.float64)
        return ((offset + places / self.size) % 1.0).float()


def updates(
    order: Order, dataset: Dataset[Any], first: int, last: int, workers: int, device: torch.device
) -> Iterator[list[Batch]]:
    """The micro-batches of each update from `first` to `last - 1`, on the device.

    Loader processes that die, of too little memory or of a file that brings the decoder down, are replaced.

    Args:
        dataset: map-style; `dataset[(index, draw)]` is a dict of tensors.
        workers: loader processes; 0 loads in this process.

    Raises:
        InputError: they died several times at the same update.
    """
    step, deaths = first, 0
    while step < last:
        loader = DataLoader(
            _Batched(dataset),
            batch_sampler=_StepSampler(order, step, last),
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            worker_init_fn=leave_signals_to_parent,
        )
        try:
            with loading(loader) as loads:
                for batches in _grouped(order, loads, step, last, device):
                    yield batches
                    step, deaths = step + 1, 0
        except LoaderDied as error:
            deaths += 1
            if deaths > _DEATHS:
                raise InputError(f"update {step}, {deaths} times: {error}") from error
            logger.warning("update %d: a loader process died (%s); others take their place", step, error.reason)


class _Batched(Dataset[Any]):
    """A data set as torch's loaders ask it for whole batches, which some read faster than one by one."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitems__(self, picks: list[tuple[int, int]]) -> dict[str, Tensor]:
        together = getattr(self.dataset, "batch", None)
        return default_collate([self.dataset[pick] for pick in picks]) if together is None else together(picks)


def _as_it_is(batch: Any) -> Any:
    return batch


def _grouped(
    order: Order, loads: Iterator[dict[str, Tensor]], first: int, last: int, device: torch.device
) -> Iterator[list[Batch]]:
    for step in range(first, last):
        micro_batches = []
        for micro in range(order.accumulate):
            data = {name: value.to(device, non_blocking=True) for name, value in next(loads).items()}
            last_micro = micro == order.accumulate - 1
            micro_batches.append(Batch(data, order.numbers(step, micro), order.seed, order.size, last_micro))
        yield micro_batches
