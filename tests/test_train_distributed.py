"""Two processes (gloo) train as one with the double batch does."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import ADVERSARIAL, give_tokenizer, tiny_recipe

from vqvdm.recipe import Recipe
from vqvdm.train.checkpoint import Checkpoint, latest_checkpoint

SCRIPT = Path(__file__).with_name("tiny_training.py")


def recipe_of(batch: int) -> Recipe:
    """Everything on: adversarial terms with adaptive weight and LeCam, a codebook whose codes restart."""
    recipe = tiny_recipe(replace(ADVERSARIAL, start=1, ramp=1), steps=4, batch=batch, warmup=0, log_every=2)
    assert recipe.tokenizer is not None
    model = {**recipe.tokenizer.model, "restart_after": 1}
    return replace(recipe, tokenizer=replace(recipe.tokenizer, model=model))


def train(run: Path, stage: str, batch: int, processes: int) -> Checkpoint:
    recipe_of(batch).save(run / "recipe.yaml")
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    command = [sys.executable, *launch, str(SCRIPT), stage, str(run)]
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=250, env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr
    found = latest_checkpoint(run / "checkpoints" / stage)
    assert found is not None
    assert found.step == 4
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenizer", "denoiser"])
def test_two_processes_equal_one_with_the_double_batch(tmp_path: Path, stage: str) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for run in runs:
        run.mkdir()
        give_tokenizer(run)
    one, two = train(runs[0], stage, batch=4, processes=1), train(runs[1], stage, batch=2, processes=2)
    names = {"model", "ema", "optimizer"} | (
        {"discriminators", "discriminators_optimizer"} if stage == "tokenizer" else set()
    )
    for name in sorted(names):
        ours, theirs = one.tensors(name), two.tensors(name)
        assert ours.keys() == theirs.keys()
        assert ours
        for key, value in ours.items():
            # Adam's ratio magnifies rounding where a gradient is almost zero.
            torch.testing.assert_close(
                value, theirs[key], rtol=1e-3, atol=2e-4, msg=lambda m, k=key: f"{name} {k}: {m}"
            )
    logs = [(run / "log.jsonl").read_text().splitlines() for run in runs]
    assert len(logs[0]) == len(logs[1])
