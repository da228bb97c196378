"""Two processes (gloo) train as one with the double batch does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiny_training import ADVERSARIAL, give_tokenizer, open_tiny, tiny_recipe
from vqvdm.recipe import Recipe
from vqvdm.train import denoiser, tokenizer
from vqvdm.train.checkpoint import Checkpoint, latest_checkpoint
from vqvdm.train.denoiser import train_denoiser
from vqvdm.train.tokenizer import train_tokenizer

# diffusers' schedulers give tensors to numpy in a way that numpy deprecates

SCRIPT = Path(__file__).with_name("tiny_training.py")


def recipe_of(batch: int) -> Recipe:
    """Everything on: adversarial terms with adaptive weight and LeCam, a codebook whose codes restart.

    A low learning rate, so that rounding, which Adam magnifies, does not carry a vector over to another code.
    """
    recipe = tiny_recipe(
        replace(ADVERSARIAL, start=1, ramp=1), steps=4, batch=batch, warmup=0, log_every=2, learning_rate=1e-4
    )
    assert recipe.tokenizer is not None
    model = {**recipe.tokenizer.model, "restart_after": 1}
    return replace(recipe, tokenizer=replace(recipe.tokenizer, model=model))


def train(run: Path, stage: str, batch: int, processes: int) -> Checkpoint:
    recipe = recipe_of(batch)
    if processes == 1:
        {"tokenizer": train_tokenizer, "denoiser": train_denoiser}[stage](recipe, run)
    else:
        recipe.save(run / "recipe.yaml")
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launch, str(SCRIPT), stage, str(run)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
    found = latest_checkpoint(run / "checkpoints" / stage)
    assert found is not None
    assert found.step == 4
    return found


@pytest.fixture(autouse=True)
def _tiny_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tokenizer, denoiser):
        monkeypatch.setattr(module, "open_dataset", open_tiny)


@pytest.mark.slow
@pytest.mark.timeout(900)  # two processes that wait for each other, on a busy machine
@pytest.mark.parametrize("stage", ["tokenizer", "denoiser"])
def test_two_processes_equal_one_with_the_double_batch(tmp_path: Path, stage: str) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for run in runs:
        run.mkdir()
        give_tokenizer(run)
    one, two = train(runs[0], stage, batch=4, processes=1), train(runs[1], stage, batch=2, processes=2)
    names = ["model", "ema", "optimizer"]
    names += ["discriminators", "discriminators_optimizer"] if stage == "tokenizer" else []
    for name in names:
        ours, theirs = one.tensors(name), two.tensors(name)
        assert ours.keys() == theirs.keys()
        assert ours
        if "optimizer" in name:  # the moving averages of the gradients, one by one
            for key, value in ours.items():
                apart, size = (value - theirs[key]).float().norm().item(), value.float().norm().item()
                assert apart <= 1e-2 * size + 1e-6, f"{name} {key}: {apart} apart at a size of {size}"
        else:  # Adam magnifies the rounding of gradients that are almost zero, so the weights as a whole
            a, b = (torch.cat([tensors[key].float().flatten() for key in ours]) for tensors in (ours, theirs))
            assert (a - b).norm() <= 1e-3 * a.norm(), name
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in runs]
    assert [record["step"] for record in logs[0]] == [record["step"] for record in logs[1]]
    if stage == "tokenizer":  # the ratio of the whole batch's gradients, not the mean of the processes' ratios
        ours, theirs = (
            [record["adversarial_weight"] for record in log if "adversarial_weight" in record] for log in logs
        )
        assert ours
        assert theirs == pytest.approx(ours, rel=2e-3)
