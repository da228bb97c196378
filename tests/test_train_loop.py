"""The loop of both stages: resuming, interruptions, NaN, misfits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from tiny_training import ADVERSARIAL, give_tokenizer, open_tiny, tiny_recipe
from vqvdm.errors import InputError
from vqvdm.recipe import AdversarialRecipe, Recipe
from vqvdm.tokenizer import VideoTokenizer
from vqvdm.train import denoiser, loop, tokenizer
from vqvdm.train.checkpoint import latest_checkpoint, steps_in
from vqvdm.train.denoiser import train_denoiser
from vqvdm.train.tokenizer import train_tokenizer

# diffusers' schedulers give tensors to numpy in a way that numpy deprecates

TRAIN: dict[str, Callable[[Recipe, Path], Path]] = {"tokenizer": train_tokenizer, "denoiser": train_denoiser}
STAGES = {"tokenizer": tokenizer.TokenizerStage, "denoiser": denoiser.DenoiserStage}
SCRIPT = Path(__file__).with_name("tiny_training.py")


@pytest.fixture(autouse=True)
def _tiny_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tokenizer, denoiser):
        monkeypatch.setattr(module, "open_dataset", open_tiny)


def records(run: Path, stage: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage and "loss" in line]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


LECAM = ADVERSARIAL
R1 = replace(ADVERSARIAL, stabilizer="r1", loss="non_saturating", adaptive=False)


@pytest.mark.parametrize(
    ("stage", "adversarial", "accumulate", "optimizer"),
    [
        ("tokenizer", LECAM, 1, "adamw"),
        ("tokenizer", R1, 2, "muon"),
        ("denoiser", LECAM, 1, "muon"),
        ("denoiser", LECAM, 2, "adamw"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, stage: str, adversarial: AdversarialRecipe, accumulate: int, optimizer: Literal["adamw", "muon"]
) -> None:
    recipe = tiny_recipe(adversarial, checkpoint_every=2, accumulate=accumulate, optimizer=optimizer)
    give_tokenizer(tmp_path)
    checkpoints = tmp_path / "checkpoints" / stage
    exported = TRAIN[stage](recipe, tmp_path)
    whole, model, log = files(checkpoints / "step-00000004"), files(exported), records(tmp_path, stage)
    assert set(whole) >= {"model.safetensors", "ema.safetensors", "optimizer.safetensors"}
    assert ("muon.safetensors" in whole) == (optimizer == "muon")
    assert ("discriminators.safetensors" in whole) == (stage == "tokenizer")

    shutil.rmtree(checkpoints / "step-00000004")  # as if it had been killed before
    shutil.rmtree(exported)
    if stage == "denoiser":
        give_tokenizer(tmp_path)
    assert TRAIN[stage](recipe, tmp_path) == exported
    assert files(checkpoints / "step-00000004") == whole
    assert files(exported) == model
    again = records(tmp_path, stage)
    figures = ("loss", "gradient_norm", "learning_rate", "step")
    assert [[line[name] for name in figures] for line in again] == [[line[name] for name in figures] for line in log]


def test_training_changes_every_parameter(tmp_path: Path) -> None:
    give_tokenizer(tmp_path)
    for stage in TRAIN:
        TRAIN[stage](tiny_recipe(steps=3), tmp_path)
        found = latest_checkpoint(tmp_path / "checkpoints" / stage)
        assert found is not None
        moments = found.tensors("optimizer")
        assert all(bool(value.any()) for name, value in moments.items() if name.endswith("exp_avg_sq"))
        if stage == "tokenizer":
            give_tokenizer(tmp_path)


def test_a_finished_run_does_nothing_and_a_longer_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tokenizer(tiny_recipe(steps=2), tmp_path)
    exported = files(tmp_path / "tokenizer")

    def fail(*arguments: object) -> None:
        raise AssertionError("nothing was left to do")

    with monkeypatch.context() as patch:
        patch.setattr(STAGES["tokenizer"], "update", fail)
        patch.setattr(STAGES["tokenizer"], "write_model", fail)
        train_tokenizer(tiny_recipe(steps=2, log_every=7), tmp_path)
    assert files(tmp_path / "tokenizer") == exported
    said = capsys.readouterr().err
    assert "all 2 updates are done" in said and "raise tokenizer.training.steps" in said
    assert said.count("tokenizer: updates ") == said.count("tokenizer: updates 1 to 2 with ") == 1  # none are left
    train_tokenizer(tiny_recipe(steps=3), tmp_path)
    assert "tokenizer: updates 3 to 3 with " in capsys.readouterr().err
    assert [line["step"] for line in records(tmp_path, "tokenizer")] == [1, 2, 3]
    assert json.loads((tmp_path / "tokenizer" / "training.json").read_text())["step"] == 3
    assert files(tmp_path / "tokenizer") != exported


def test_a_recipe_that_does_not_fit_is_refused_by_the_fields_that_differ(tmp_path: Path) -> None:
    recipe = tiny_recipe(steps=1)
    train_tokenizer(recipe, tmp_path)
    assert recipe.tokenizer is not None
    wider = replace(recipe, tokenizer=replace(recipe.tokenizer, model={**recipe.tokenizer.model, "channels": (8, 16)}))
    with pytest.raises(InputError, match=r"tokenizer\.model\.channels: \[8, 8\] -> \[8, 16\]") as error:
        train_tokenizer(wider, tmp_path)
    assert "codebook_size" not in str(error.value)
    with pytest.raises(InputError, match=r"adversarial\.weight > 0: true -> false"):
        train_tokenizer(tiny_recipe(AdversarialRecipe(), steps=1), tmp_path)
    train_tokenizer(tiny_recipe(steps=2, learning_rate=1e-4, sample_every=5, keep_checkpoints=1), tmp_path)


@pytest.mark.parametrize("stage", ["tokenizer", "denoiser"])
@pytest.mark.parametrize("times", [1, 2])
def test_nan_goes_back_once_then_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: str, times: int
) -> None:
    give_tokenizer(tmp_path)
    kind, update, calls = STAGES[stage], STAGES[stage].update, []

    def broken(self, step: int, batches):
        figures = dict(update(self, step, batches))
        if step == 2:
            calls.append([list(batch.numbers) for batch in batches] + [batches[0].seed])
            if len(calls) <= times:
                for parameter in self.modules["model"].parameters():
                    parameter.data.fill_(torch.nan)
                figures["loss"] = torch.tensor(torch.nan)
        return figures

    monkeypatch.setattr(kind, "update", broken)
    recipe = tiny_recipe(steps=4, checkpoint_every=2)
    if times == 2:
        with pytest.raises(InputError, match=r"stopped at update 3: .*NaN.* again.*learning_rate"):
            TRAIN[stage](recipe, tmp_path)
        found = latest_checkpoint(tmp_path / "checkpoints" / stage)
        assert found is not None
        assert found.step == 2
        assert all(bool(value.isfinite().all()) for value in found.tensors("model").values())
        return
    TRAIN[stage](recipe, tmp_path)
    assert "back to update 2, with another order" in capsys.readouterr().err
    found = latest_checkpoint(tmp_path / "checkpoints" / stage)
    assert found is not None
    assert (found.step, found.state["rollbacks"]) == (4, 1)
    assert all(bool(value.isfinite().all()) for value in found.tensors("model").values())
    assert calls[0][:-1] == calls[1][:-1]
    assert calls[0][-1] != calls[1][-1]  # the same numbers of another seed: other clips, other noise
    assert [line["step"] for line in records(tmp_path, stage)] == [1, 2, 3, 4]


def test_an_interruption_is_said_below_the_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line prints next must not stand in the bar's line."""
    closed: list[bool] = []
    update = STAGES["tokenizer"].update

    def interrupted(self, step: int, batches):
        signal.raise_signal(signal.SIGINT)
        return update(self, step, batches)

    monkeypatch.setattr(STAGES["tokenizer"], "update", interrupted)
    monkeypatch.setattr(loop.Progress, "close", lambda self: closed.append(True))
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(tiny_recipe(), tmp_path)
    assert closed


def start(run: Path, stage: str, *changes: str) -> subprocess.Popen[str]:
    run.mkdir(exist_ok=True)
    tiny_recipe(steps=100_000, checkpoint_every=3).save(run / "recipe.yaml")
    command = [sys.executable, SCRIPT, stage, run, *changes]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_an_interrupted_run_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    changes = ("data.workers=1",)
    with start(tmp_path, "tokenizer", *changes) as process:
        wait_for(tmp_path / "checkpoints" / "tokenizer" / "step-00000006", process)
        if number == signal.SIGKILL:
            process.send_signal(number)
        else:  # to the loader process too, as terminals and job queues do
            os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
    found = latest_checkpoint(tmp_path / "checkpoints" / "tokenizer")
    assert found is not None
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert found.step % 3 == 0
    else:
        assert process.returncode == 130
        assert f"stopped at update {found.step}; run the same command again" in said
        assert "Traceback" not in said
    recipe = replace(Recipe.load(tmp_path, changes), name="tiny")
    assert recipe.tokenizer is not None
    longer = replace(recipe.tokenizer.training, steps=found.step + 2)
    exported = train_tokenizer(replace(recipe, tokenizer=replace(recipe.tokenizer, training=longer)), tmp_path)
    assert latest_checkpoint(tmp_path / "checkpoints" / "tokenizer").step == found.step + 2  # type: ignore[union-attr]
    VideoTokenizer.from_pretrained(exported)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_tokenizer(tiny_recipe(steps=1), tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"no room on the disk for .*step-00000002"):
        train_tokenizer(tiny_recipe(steps=2), tmp_path)
    found = latest_checkpoint(tmp_path / "checkpoints" / "tokenizer")
    assert found is not None
    assert found.step == 1


@pytest.mark.parametrize("stage", ["tokenizer", "denoiser"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    """And ends with the weights of a training that nothing happened to."""
    for run in (tmp_path / "whole", tmp_path / "hurt"):
        give_tokenizer(run)
        TRAIN[stage](tiny_recipe(steps=4, checkpoint_every=2), run)
    newest = tmp_path / "hurt" / "checkpoints" / stage / "step-00000004"
    path = next(newest.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    TRAIN[stage](tiny_recipe(steps=4, checkpoint_every=2), tmp_path / "hurt")
    said = capsys.readouterr().err
    assert f"warning: {newest} is damaged ({path.name} is not what was written)" in said
    assert "going on from" in said and "step-00000002" in said
    assert files(newest) == files(tmp_path / "whole" / "checkpoints" / stage / "step-00000004")


def test_which_checkpoints_stay(tmp_path: Path) -> None:
    recipe = tiny_recipe(steps=5, checkpoint_every=1, sample_every=1, keep_checkpoints=1, keep_every=2)
    assert recipe.tokenizer is not None
    training = replace(recipe.tokenizer.training, keep_best="test_psnr")
    train_tokenizer(replace(recipe, tokenizer=replace(recipe.tokenizer, training=training)), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    psnr = {line["step"]: line["test_psnr"] for line in lines if "test_psnr" in line and line["step"] < 5}
    best = max(psnr, key=lambda step: psnr[step])
    found = steps_in(tmp_path / "checkpoints" / "tokenizer")
    assert found == sorted({0, 2, 4, 5, best}), psnr


def test_a_best_by_a_figure_that_is_not_logged_is_warned_of_once(tmp_path: Path, capsys) -> None:
    recipe = tiny_recipe(steps=4, checkpoint_every=1, sample_every=2)
    assert recipe.tokenizer is not None
    for name, warnings in (("test_pnsr", 1), ("test_psnr", 0), ("loss", 0)):
        training = replace(recipe.tokenizer.training, keep_best=name)
        train_tokenizer(replace(recipe, tokenizer=replace(recipe.tokenizer, training=training)), tmp_path / name)
        said = capsys.readouterr().err
        assert said.count("no checkpoint is kept as the best") == warnings, name
        assert ("did you mean 'test_psnr'?" in said) == bool(warnings)


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"run folder .*file/run cannot be made"):
        train_tokenizer(tiny_recipe(), tmp_path / "file" / "run")


def test_a_run_folder_that_vanishes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, update = tmp_path / "run", tokenizer.TokenizerStage.update

    def update_and_lose(self, step, batches):
        if step == 1:
            shutil.rmtree(run)
        return update(self, step, batches)

    monkeypatch.setattr(tokenizer.TokenizerStage, "update", update_and_lose)
    with pytest.raises(InputError, match=f"run folder {run} has vanished"):
        train_tokenizer(tiny_recipe(steps=4), run)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_read_only_run_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises((InputError, PermissionError)):
            train_tokenizer(tiny_recipe(), tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "get_available_trackers", list)
    with pytest.raises(InputError, match="wandb, which is not installed: pip install wandb"):
        train_tokenizer(tiny_recipe(trackers=("wandb",)), tmp_path)


def test_a_broken_log_line_is_dropped(tmp_path: Path) -> None:
    train_tokenizer(tiny_recipe(steps=1), tmp_path)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"stage": "tokenizer", "st')
    train_tokenizer(tiny_recipe(steps=2), tmp_path)
    assert [line["step"] for line in records(tmp_path, "tokenizer")] == [1, 2]


@pytest.mark.parametrize("stage", ["tokenizer", "denoiser"])
def test_a_training_begun_anew_replaces_the_export(tmp_path: Path, stage: str) -> None:
    give_tokenizer(tmp_path)
    train = TRAIN[stage]
    train(tiny_recipe(steps=2), tmp_path)
    folder = tmp_path / STAGES[stage].export
    (weights,) = (folder if stage == "tokenizer" else folder / stage).glob("*.safetensors")
    before = weights.read_bytes()
    shutil.rmtree(tmp_path / "checkpoints" / stage)
    train(tiny_recipe(steps=2, seed=1), tmp_path)
    assert weights.read_bytes() != before


def test_sampling_changed_after_the_training_reaches_the_pipeline(tmp_path: Path) -> None:
    give_tokenizer(tmp_path)
    recipe = tiny_recipe(steps=1)
    train_denoiser(recipe, tmp_path)
    weights = (tmp_path / "pipeline" / "denoiser" / "diffusion_pytorch_model.safetensors").read_bytes()
    train_denoiser(replace(recipe, sampling=replace(recipe.sampling, steps=7, guidance_scale=3.5)), tmp_path)
    config = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert (config["num_inference_steps"], config["guidance_scale"]) == (7, 3.5)
    assert (tmp_path / "pipeline" / "denoiser" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
