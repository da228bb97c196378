"""The benchmark counts rightly, takes turns, and ends in one line of JSON. (How fast anything is, no test asks.)"""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import partial

import pytest
import torch

from vqvdm import cli
from vqvdm.benchmark.peer import CONTROL, SHIPPED, TUNED, TUNED_BATCH, peer_stages
from vqvdm.benchmark.run import compare
from vqvdm.benchmark.stages import Subject, flops_of, matrix_product
from vqvdm.benchmark.timing import Timing, alternate, fractions, ratios
from vqvdm.benchmark.training import TRAINING, training_stages
from vqvdm.recipe import Recipe

CPU = torch.device("cpu")


def test_median_and_spread():
    timing = Timing((1.0, 2.0, 3.0, 4.0, 5.0))
    assert (timing.median, timing.spread) == (3.0, 2 / 3)  # quartiles 2 and 4
    assert ratios(timing, Timing((2.0, 4.0, 6.0, 8.0, 10.0))).seconds == (0.5,) * 5
    assert fractions(12.0, Timing((2.0, 3.0)), [6.0, 8.0]).seconds == (1.0, 0.5)


def test_cases_take_turns_after_one_that_does_not_count():
    order: list[str] = []
    found = alternate({name: partial(order.append, name) for name in "ab"}, 3, CPU, progress=False)
    assert order == list("ab") * 4
    assert {name: len(timing.seconds) for name, timing in found.items()} == {"a": 3, "b": 3}


def test_operations_are_those_of_the_closed_form():
    assert matrix_product(CPU, torch.float32).flops == 2 * 2048**3
    x, weight = torch.rand(2, 3, 4, 8, 8), torch.rand(5, 3, 3, 3, 3)
    convolution = partial(torch.nn.functional.conv3d, x, weight, padding=1)
    assert flops_of(convolution) == 2 * (2 * 5 * 4 * 8 * 8) * (3 * 27)


def test_stages_of_a_recipe_do_what_they_say():
    subject = Subject(Recipe.load("demo"), CPU, torch.float32)
    stages = subject.stages()
    assert stages["encode"].run().shape == (1, *subject.latent_shape)
    assert stages["decode"].run().shape == (1, 3, 16, 32, 32)
    assert stages["step"].run().shape == (1, *subject.latent_shape)
    video = stages["clip"].run()
    assert (video.shape, video.dtype) == ((1, 16, 3, 32, 32), torch.uint8)
    assert stages["guided step"].flops == 2 * stages["step"].flops
    assert stages["clip"].flops == 20 * stages["guided step"].flops + stages["decode"].flops
    assert subject.parameters()["denoiser"] == sum(p.numel() for p in subject.pipeline.denoiser.parameters())


def test_parts_that_need_single_precision_keep_it():
    subject = Subject(Recipe.load("demo"), CPU, torch.bfloat16)
    assert subject.pipeline.denoiser.dtype == torch.bfloat16
    assert {p.dtype for p in subject.tokenizer.encoder.parameters()} == {torch.bfloat16}
    assert subject.tokenizer.latents_std.dtype == torch.float32
    assert {b.dtype for b in subject.tokenizer.running_norm.buffers() if b.is_floating_point()} <= {torch.float32}


def test_the_command(capsys):
    arguments = ["benchmark", "--recipe", "demo", "--rounds", "1", "--dtype", "float32"]
    assert cli.main([*arguments, "--stages", "guided step,decode,clip,help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    for key in ("clip_seconds", "decode_seconds", "guided_step_fraction_of_ceiling", "decode_fraction_of_ceiling"):
        assert found[key] > 0
        assert f"{key}_spread" in found
    assert found["recipe"] == "demo"
    assert found["parameters"]["denoiser"] > 1e6
    assert {"machine", "commit", "peak_memory_bytes"} <= found.keys()
    assert any(line.startswith("decode ") and "clips/s" not in line for line in lines)
    assert cli.main([*arguments, "--stages", "decoding"]) == 2
    assert "no stage 'decoding'; did you mean 'decode'" in capsys.readouterr().err
    assert cli.main([*arguments, "--rounds", "0"]) == 2
    assert cli.main(["benchmark", "--recipe", "vdm"]) == 2
    assert "diffuses pixels" in capsys.readouterr().err


def test_training_and_reading_do_what_they_say():
    recipe = Recipe.load(
        "demo", ["tokenizer.training.batch=2", "denoiser.training.batch=3", "tokenizer.training.steps=9"]
    )
    with training_stages(Subject(recipe, CPU, torch.float32), list(TRAINING)) as stages:
        assert set(stages) == set(TRAINING)
        assert [stages[name].clips for name in TRAINING] == [2, 3, 8, 8]
        for name in ("read clips", "read latents"):
            stages[name].run()
        found = stages["train denoiser"].run()
        assert found["loss"].isfinite()
        assert stages["train denoiser"].flops > 3 * 3 * 0.9 * Subject(recipe, CPU, torch.float32).stages()["step"].flops


def test_ratios_to_the_peer():
    seconds = {"100 steps": 5.0, "guided step": 0.05, SHIPPED: 8.0, TUNED: 4.0, TUNED_BATCH: 3.0, CONTROL: 0.2}
    found = compare({name: Timing((s, 2 * s)) for name, s in seconds.items()})
    expected = {"ratio_100_steps_as_shipped": 160.0, "ratio_100_steps_tuned": 60.0, "ratio_to_control": 4.0}
    assert {name: ratio.median for name, ratio in found.items()} == pytest.approx(expected)


def test_the_peer_is_asked_for_by_name(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "video_diffusion_pytorch", None)  # as if it were not installed
    arguments = ["benchmark", "--recipe", "demo", "--against", "vdm", "--stages", "help"]
    assert cli.main([*arguments, "data.size=64"]) == 2
    assert "scripts/install_vdm.sh" in capsys.readouterr().err
    assert "torchvision" not in sys.modules
    monkeypatch.undo()
    assert cli.main(arguments) == 2
    assert "4x4 latents" in capsys.readouterr().err


def test_the_peers_steps_have_the_sizes_they_say():
    if importlib.util.find_spec("video_diffusion_pytorch") is None:
        pytest.skip("video-diffusion-pytorch is not installed (scripts/install_vdm.sh)")
    subject = Subject(Recipe.load("demo", ["data.size=64"]), CPU, torch.float32)
    stages, parameters = peer_stages(subject)
    assert parameters == 36_214_227  # at dim 64, with 64 numbers for the class
    for name in (SHIPPED, TUNED):
        assert stages[name].run().shape == (1, 3, 16, 32, 32)
    assert stages[TUNED_BATCH].run().shape == (1, 3, 16, 32, 32)
    assert stages[CONTROL].run().shape == (1, *subject.latent_shape)
