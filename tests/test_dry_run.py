"""What a training would take: the largest batch by a straight line, in words, and nothing kept."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tiny_training import ADVERSARIAL, TinyClips, tiny_recipe
from vqvdm import cli
from vqvdm.errors import InputError
from vqvdm.processes import this_process
from vqvdm.train.dry_run import Trial, Work, dry_run, duration, largest_batch, report, work_of_update
from vqvdm.train.loop import make_accelerator
from vqvdm.train.tokenizer import TokenizerStage


def test_the_largest_batch_is_where_the_line_meets_the_memory():
    # 100 bytes, and 50 for each clip
    line = [Trial(batch, 1.0, 100 + 50 * batch) for batch in (1, 2, 4)]
    assert largest_batch(line, 1000) == 16  # 100 + 50 * 16 = 0.9 * 1000
    assert largest_batch(line, 200) == 1
    assert largest_batch(line, 100) == 0
    assert largest_batch(line[:1], 1000) == 6  # 150 bytes a clip, as far as one trial tells
    assert largest_batch([Trial(1, 1.0, None), Trial(2, 1.0, None)], 1000) is None
    assert largest_batch([Trial(1, 1.0, 50), Trial(2, 1.0, 50)], 1000) is None


def test_durations_have_the_unit_that_fits():
    assert [duration(seconds) for seconds in (90, 600, 7200, 90_000, 864_000)] == [
        "90 seconds",
        "10 minutes",
        "2 hours",
        "25 hours",
        "10 days",
    ]


@pytest.mark.parametrize("stage", ["tokenizer", "denoiser"])
def test_the_command_keeps_nothing(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", stage, "demo", f"{stage}.training.batch=4", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "clips/s in batches of 4" in printed
    assert "largest batch that fits" in printed
    assert f"{stage}.training.batch" in printed or "unknown" in printed
    assert list(tmp_path.iterdir()) == []


def test_work_is_that_of_forward_and_backward_of_all_updates(tmp_path: Path):
    """Three times the forward pass, less the gradient of the clip itself; in words for the whole training."""
    stage = stage_of(tmp_path, TinyClips(), steps=1000, batch=10, adversarial=replace(ADVERSARIAL, weight=0.0))
    with FlopCounterMode(display=False) as counter:
        stage.tokenizer(TinyClips()[0]["clip"][None])
    work = work_of_update(stage, TinyClips(), torch.device("cpu"))
    assert 2.7 < work.clip / counter.get_total_flops() < 3
    assert work.update == 0
    muon = stage_of(tmp_path, TinyClips(), optimizer="muon", adversarial=replace(ADVERSARIAL, weight=0.0))
    found = work_of_update(muon, TinyClips(), torch.device("cpu"))
    assert found.clip == work.clip and found.update > 0  # Muon's products are of an update, however many its clips
    lines = report(stage, [Trial(1, 1.0, 100)], 1000, 10, None, Work(36e12, 36e13))
    assert any(" and 3.6e+05 an update" in line and "0.72 EFLOP in all" in line for line in lines)
    lines = report(stage, [Trial(1, 1.0, 100)], 1000, 10, None, Work(36e12))
    assert any("36000 GFLOP a clip" in line or "3.6e+04 GFLOP a clip" in line for line in lines)
    assert any("0.36 EFLOP in all: 60 minutes at 100 TFLOP/s" in line for line in lines)  # 36e12 * 10,000 / 1e14 s


class SlowClips(TinyClips):
    """Each takes a tenth of a second to read."""

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        time.sleep(0.1)
        return super().__getitem__(key)


def stage_of(tmp_path: Path, dataset: TinyClips, **changes: Any) -> TokenizerStage:
    recipe = tiny_recipe(**changes)
    recipe = replace(recipe, data=replace(recipe.data, workers=1))
    return TokenizerStage(recipe, make_accelerator(recipe.tokenizer.training, tmp_path), dataset)


def test_reading_is_not_part_of_an_update(tmp_path: Path):
    lines = dry_run(stage_of(tmp_path, SlowClips(), batch=4), SlowClips(), torch.device("cpu"))
    (reading,) = (line for line in lines if line.startswith("reading: "))
    assert 8 < float(reading.split()[1]) < 10
    assert int(reading.partition("data.workers=")[2].split()[0]) > 2  # tiny clips train faster than ten a second


@pytest.mark.parametrize(
    ("fits", "advice"), [(4, "batch=2 tokenizer.training.accumulate=5"), (5, "batch=5 tokenizer.training.accumulate=2")]
)
def test_a_batch_that_does_not_fit_is_parted(fits: int, advice: str, tmp_path: Path):
    stage = stage_of(tmp_path, TinyClips(), batch=10)
    lines = report(stage, [Trial(1, 1.0, 100)], 1000, fits, None, Work(1e9))
    assert f"about {fits}" in lines[-2]
    assert f"the recipe's 10 do not fit: tokenizer.training.{advice} has the same clips" in lines[-1]
    assert "do not fit" not in report(stage, [Trial(1, 1.0, 100)], 1000, 10, None, Work(1e9))[-1]
    assert "unknown" in report(stage, [Trial(1, 1.0, None)], None, None, None, Work(1e9))[-1]


def test_what_does_not_fit_at_all_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(step: int, batches: list) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    stage = stage_of(tmp_path, TinyClips())
    monkeypatch.setattr(stage, "update", full)
    with pytest.raises(InputError, match="not even one clip"):
        dry_run(stage, TinyClips(), torch.device("cpu"))


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stage = stage_of(tmp_path, TinyClips())
    monkeypatch.setattr(this_process(), "num_processes", 2)
    with pytest.raises(InputError, match="without torchrun"):
        dry_run(stage, TinyClips(), torch.device("cpu"))
