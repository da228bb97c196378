"""Order and chance of training: functions of seed, update and sample alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

from vqvdm.data.shards import Rounds
from vqvdm.data.workers import LoaderDied, _deaths_named, loading
from vqvdm.errors import InputError
from vqvdm.train.order import Batch, Order, seed_of, updates

CPU = torch.device("cpu")


class Echo(Dataset):
    """Items that say how they were asked for."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {"key": torch.tensor(key)}


def keys(order: Order, first: int, last: int, workers: int = 0) -> list[torch.Tensor]:
    """(b, 2) index and draw of each update's samples."""
    steps = updates(order, Echo(), first, last, workers, CPU)
    return [torch.cat([batch["key"] for batch in batches]) for batches in steps]


def test_each_epoch_sees_every_clip_once_in_an_order_and_with_draws_of_its_own() -> None:
    order = Order(seed=3, length=7, batch=2)
    picks = [order.pick(number) for number in range(21)]
    epochs = [[index for index, _ in picks[start : start + 7]] for start in (0, 7, 14)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({draw for _, draw in picks}) == 21
    assert all(0 <= draw < 2**31 for _, draw in picks)
    assert [Order(seed=4, length=7, batch=2).pick(number) for number in range(21)] != picks


def test_clips_of_a_bundle_are_seen_near_each_other_and_each_once() -> None:
    bundles = tuple(tuple(range(k, 40, 8)) for k in range(8))  # eight of five clips each
    order = Order(seed=3, length=40, batch=4, rounds=Rounds(bundles, at_once=3))
    epochs = [[order.pick(epoch * 40 + place)[0] for place in range(40)] for epoch in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(40))
        rounds = [epoch[start : start + 15] for start in (0, 15, 30)]
        assert [len({clip % 8 for clip in clips}) for clips in rounds] == [3, 3, 2]
        assert [clip % 8 for clip in rounds[0]] != sorted(clip % 8 for clip in rounds[0]), "mixed"
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({frozenset(clip % 8 for clip in epoch[:15]) for epoch in epochs}) > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_start_sees_what_an_early_one_sees_from_there(workers: int) -> None:
    order = Order(seed=0, length=7, batch=2, accumulate=2)
    whole = keys(order, 0, 6)
    rest = keys(order, 4, 6, workers)
    assert len(rest) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))


class Deadly(Echo):
    """The loader process that reads clip 3 is killed, as often as there are files to take away."""

    def __init__(self, lives: Path) -> None:
        super().__init__()
        self.lives = lives

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        files = sorted(self.lives.iterdir())
        if key[0] == 3 and get_worker_info() is not None and files:
            files[0].unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)


def test_loader_processes_that_die_are_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqvdm.train.order._DEATHS", 1)  # torch looks for each after five seconds
    order = Order(seed=1, length=len(Echo()), batch=2)
    whole = [[batch.data for batch in batches] for batches in updates(order, Echo(), 0, 6, 2, CPU)]
    for number in range(1):
        (tmp_path / str(number)).touch()
    seen = [[batch.data for batch in batches] for batches in updates(order, Deadly(tmp_path), 0, 6, 2, CPU)]
    assert caplog.text.count("others take their place") == 1
    for ours, theirs in zip(whole, seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    for number in range(9):
        (tmp_path / str(number)).touch()
    with pytest.raises(InputError, match=r"update \d+, 2 times: a loader process died .*data\.workers=0"):
        list(updates(order, Deadly(tmp_path), 0, 6, 2, CPU))


def test_the_handler_of_a_loader_before_ours_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises wherever its process happens to be, at the end of the others too."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
        signal_handling._set_SIGCHLD_handler()
        assert signal.getsignal(signal.SIGCHLD) not in (before, signal.SIG_DFL)
        with loading(DataLoader(Echo(), sampler=[(0, 0)], num_workers=1)) as loads:
            assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
            next(loads)
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("problem", [EOFError(), ConnectionResetError("reset"), FileNotFoundError("a socket")])
def test_a_loader_process_that_dies_while_it_hands_over_is_told_like_any(problem: Exception) -> None:
    def loads() -> Iterator[int]:
        yield 1
        raise problem  # as torch does when a process has closed its sockets and has not quite ended

    named = _deaths_named(loads())
    assert next(named) == 1
    with pytest.raises(LoaderDied, match=r"a loader process died \(it no longer answers\).*data\.workers=0"):
        next(named)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_of_a_data_set_is_not_taken_for_the_death_of_a_loader_process(workers: int) -> None:
    class Absent(Echo):
        def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
            raise FileNotFoundError("clips/a.mp4")

    with pytest.raises(FileNotFoundError, match=r"clips/a\.mp4"):
        list(updates(Order(seed=1, length=7, batch=2), Absent(), 0, 6, workers, CPU))


MISTAKEN = """
import sys
import torch
from vqvdm.errors import InputError
from vqvdm.train.order import Order, updates

class Mistaken(torch.utils.data.Dataset):
    def __len__(self):
        return 7
    def __getitem__(self, key):
        try:
            raise KeyError("x" * 5000)  # a long traceback, as those of a network are
        except KeyError as error:
            raise InputError("clips/a.mp4: gone") from error

try:
    list(updates(Order(seed=1, length=7, batch=2), Mistaken(), 0, 6, 2, torch.device("cpu")))
except InputError as error:
    print(error)
"""


def test_a_mistake_found_by_a_loader_process_is_told_as_any_and_the_others_end() -> None:
    done = subprocess.run([sys.executable, "-c", MISTAKEN], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "clips/a.mp4: gone\n"), done.stderr


def test_two_processes_share_out_the_samples_of_one_with_the_double_batch() -> None:
    one = keys(Order(seed=0, length=7, batch=4), 0, 3)
    both = [keys(Order(seed=0, length=7, batch=2, rank=rank, processes=2), 0, 3) for rank in (0, 1)]
    for step in range(3):
        assert torch.equal(one[step], torch.cat([both[0][step], both[1][step]]))


def test_no_sample_number_is_left_out_or_used_twice() -> None:
    seen: Counter[int] = Counter()
    for rank in range(3):
        order = Order(seed=0, length=7, batch=2, accumulate=2, rank=rank, processes=3)
        for step in range(5):
            for micro in range(2):
                seen.update(order.numbers(step, micro))
    assert seen == Counter(range(5 * order.size))


def batch_of(numbers: range, size: int, seed: int = 0) -> Batch:
    return Batch({}, numbers, seed, size, last=True)


def test_noise_belongs_to_the_sample_not_to_the_batch() -> None:
    like = torch.empty(4, 3, 2, 2, 2, dtype=torch.float64)
    whole = batch_of(range(14, 18), 4).noise_like(like)  # on either side of what is drawn at once
    parts = [batch_of(range(14, 15), 4).noise_like(like[:1]), batch_of(range(15, 18), 4).noise_like(like[1:])]
    assert whole.dtype == torch.float64
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, batch_of(range(14, 18), 4, seed=1).noise_like(like))
    numbers = batch_of(range(40), 40).uniform("class")
    assert torch.equal(batch_of(range(10, 35), 40).uniform("class"), numbers[10:35])
    assert len(numbers.unique()) == 40
    several = batch_of(range(40), 40).uniforms("context", 3)
    assert torch.equal(batch_of(range(10, 35), 40).uniforms("context", 3), several[10:35])
    assert len(several.unique()) == 120


def test_noise_is_standard_normal() -> None:
    noise = batch_of(range(200), 200).noise_like(torch.empty(200, 100))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert noise.flatten().unique().numel() > 19_900


def test_strata_cover_the_whole_update_evenly_and_move_with_it() -> None:
    first, second = (batch_of(range(step * 8, step * 8 + 8), 8).strata("time") for step in (0, 1))
    assert torch.equal((first * 8).long().sort().values, torch.arange(8))  # one in each eighth
    assert not torch.allclose(first, second)
    halves = [batch_of(range(4), 8).strata("time"), batch_of(range(4, 8), 8).strata("time")]
    assert torch.equal(first, torch.cat(halves))
    offsets = torch.cat([batch_of(range(step, step + 1), 1).strata("time") for step in range(500)])
    assert abs(offsets.mean() - 0.5) < 0.05  # 3.9 standard errors
    assert offsets.min() >= 0
    assert offsets.max() < 1


def test_purposes_have_numbers_of_their_own() -> None:
    batch = batch_of(range(50), 50)
    assert torch.equal(batch.uniform("class"), batch.uniform("class"))
    correlation = torch.corrcoef(torch.stack([batch.uniform("class"), batch.uniform("frame")]))[0, 1]
    assert abs(correlation) < 0.5
    assert seed_of("a", "b") != seed_of("ab")


def test_frames_are_different_ones_of_each_sample_with_chance_of_their_own() -> None:
    clips = torch.arange(6 * 5, dtype=torch.float32).view(6, 1, 5, 1, 1)  # each frame is its own number
    data = {"clip": clips, "class_label": torch.arange(6), "fps": torch.arange(6) + 8.0, "stills": clips}
    batch = Batch(data, range(12, 18), 0, 6, last=True)
    frames = batch.frames("clip", 3)
    assert frames["clip"].shape == (18, 1, 1, 1, 1) and "stills" not in frames.data
    drawn = frames["clip"].flatten().view(6, 3)
    assert torch.equal(drawn // 5, torch.arange(6.0)[:, None].expand(6, 3)), "each of its own clip"
    assert all(len(row.unique()) == 3 for row in drawn)
    assert torch.equal(frames["class_label"], torch.arange(6).repeat_interleave(3))
    assert torch.equal(frames["fps"], batch["fps"].repeat_interleave(3))
    assert len(set(frames.numbers)) == 18 and frames.size == 18
    assert torch.equal((frames.strata("time") * 18).long().sort().values, torch.arange(18))
    halves = [Batch({k: v[i : i + 3] for k, v in data.items()}, range(12 + i, 15 + i), 0, 6, True) for i in (0, 3)]
    assert torch.equal(torch.cat([half.frames("clip", 3)["clip"] for half in halves]), frames["clip"])
    single = Batch({"clip": clips[:, :, :1]}, range(12, 18), 0, 6, last=True).frames("clip", 1)
    assert torch.equal(single["clip"], clips[:, :, :1])
    later = Batch(data, range(18, 24), 0, 6, last=True).frames("clip", 3)
    assert not torch.equal(later["clip"], frames["clip"])
