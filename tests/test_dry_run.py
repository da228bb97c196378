"""What a training would take: the largest batch by a straight line, in words, and nothing kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from vqvdm import cli
from vqvdm.train.dry_run import Trial, duration, largest_batch


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
    assert f"{stage}.training.batch" in printed or "unknown here" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_does_not_fit_is_parted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vqvdm.train.dry_run.available_memory", lambda device: 10_000_000)
    size = ["data.size=64", "tokenizer.training.batch=64"]
    assert cli.main(["train", "tokenizer", "demo", *size, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    if "unknown here" in printed:
        pytest.skip("this system does not tell how much memory a run takes")
    assert "the recipe's 64 do not fit" in printed
    batch = int(printed.rpartition("tokenizer.training.batch=")[2].split()[0])
    accumulate = int(printed.rpartition("accumulate=")[2].split()[0])
    assert batch * accumulate == 64
