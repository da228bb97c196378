"""The benchmark counts rightly, takes turns, and ends in one line of JSON. (How fast anything is, no test asks.)"""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import partial

import pytest
import torch

from vqvdm import cli
from vqvdm.benchmark.growth import _frames, _width, fit_power
from vqvdm.benchmark.peer import CONTROL, SHIPPED, TUNED, TUNED_BATCH, peer_stages
from vqvdm.benchmark.resources import Work, energy_meter, work_of
from vqvdm.benchmark.run import compare
from vqvdm.benchmark.stages import NETWORKS, Subject, matrix_product, memory_copy
from vqvdm.benchmark.start import START, _run
from vqvdm.benchmark.timing import Timing, alternate, fractions, ratios
from vqvdm.benchmark.training import TRAINING
from vqvdm.denoiser import VideoDenoiser
from vqvdm.errors import InputError
from vqvdm.layers import Conv3d, Linear
from vqvdm.processor import packed_weights
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


def test_operations_and_bytes_are_those_of_the_closed_form():
    product = matrix_product(CPU, torch.float32).work
    assert product == Work(2 * 2048**3, 3 * 4 * 2048**2)
    x, weight = torch.rand(2, 3, 4, 8, 8), torch.rand(5, 3, 3, 3, 3)
    found = work_of(partial(torch.nn.functional.conv3d, x, weight, padding=1))
    assert found.flops == 2 * (2 * 5 * 4 * 8 * 8) * (3 * 27)
    assert found.moved == 4 * (2 * 3 * 256 + 5 * 3 * 27 + 2 * 5 * 256)
    assert memory_copy(CPU).work == Work(0, 2 * 4 * 2**26)
    # views cost nothing, what is expanded is stored once, what is changed in place is read and written
    row = torch.rand(1, 100)
    assert work_of(lambda: row.t().unsqueeze(0)[..., 0]).moved == 0
    assert work_of(lambda: row.expand(50, 100).sum()).moved == 4 * (100 + 1)
    assert work_of(lambda: row.add_(1.0)).moved == 4 * 2 * 100


def test_operations_of_packed_layers_are_those_of_plain_ones():
    convolution, linear = Conv3d(3, 5, 3, padding=1), Linear(6, 7)
    x, tokens, plus = torch.rand(2, 3, 4, 8, 8), torch.rand(2, 9, 6), torch.rand(2, 5, 4, 8, 8)
    layers = (partial(convolution, x), partial(convolution, x, plus), partial(linear, tokens))
    plain = [2 * plus.numel() * 3 * 27] * 2 + [2 * 18 * 7 * 6]
    with torch.no_grad():
        assert [work_of(layer).flops for layer in layers] == plain
        with packed_weights():
            for layer in layers:
                layer()  # packs, and tries once whether it can
            assert [work_of(layer).flops for layer in layers] == plain


def test_energy_is_what_the_counters_rise_by(tmp_path):
    assert energy_meter(CPU, tmp_path) is None
    for name, kind, now in (
        ("intel-rapl:0", "package-0", 900),
        ("intel-rapl:1", "package-1", 5),
        ("intel-rapl:2", "psys", 1),
        ("intel-rapl:0:0", "core", 7),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(f"{kind}\n")
        (tmp_path / name / "energy_uj").write_text(f"{now}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("999\n")
    spent = energy_meter(CPU, tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100\n")  # it began anew at 999
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("25\n")
    (tmp_path / "intel-rapl:2" / "energy_uj").write_text("999\n")
    assert spent() == pytest.approx((200 + 20) / 1e6)
    assert spent() == 0


def test_stages_of_a_recipe_do_what_they_say(tmp_path):
    subject = Subject(Recipe.load("demo"), CPU, torch.float32)
    stages = {name: make(subject, tmp_path) for name, make in NETWORKS.items() if name != "evaluate"}
    assert stages["encode"].run().shape == (1, *subject.latent_shape)
    assert stages["decode"].run().shape == (1, 3, 16, 32, 32)
    assert stages["step"].run().shape == (1, *subject.latent_shape)
    video = stages["clip"].run()
    assert (video.shape, video.dtype) == ((1, 16, 3, 32, 32), torch.uint8)
    step, guided, decode = (stages[name].work for name in ("step", "guided step", "decode"))
    assert guided.flops == 2 * step.flops
    assert step.moved < guided.moved < 2 * step.moved  # the weights are read once for both
    for name, steps in (("clip", subject.recipe.sampling.steps), ("100 steps", 100)):
        assert stages[name].work.flops == pytest.approx(steps * guided.flops + decode.flops, rel=0.05)
    assert f"{subject.recipe.sampling.steps} guided steps" in stages["clip"].what
    assert subject.parameters()["denoiser"] == sum(p.numel() for p in subject.pipeline.denoiser.parameters())


def test_a_clip_is_sampled_as_the_recipe_says(tmp_path):
    student = Subject(Recipe.load("demo", ["sampling.steps=4", "sampling.guidance_scale=1"]), CPU, torch.float32)
    step, decode, clip = (NETWORKS[name](student, tmp_path) for name in ("step", "decode", "clip"))
    assert clip.work.flops == pytest.approx(4 * step.work.flops + decode.work.flops, rel=0.05)
    assert "4 steps" in clip.what


def test_a_first_video_is_made_in_a_process_of_its_own(tmp_path):
    recipe = Recipe.load("demo", ["denoiser.model.channels=[16]", "denoiser.model.head_dim=8", "sampling.steps=1"])
    START["first video"](Subject(recipe, CPU, torch.float32), tmp_path).run()
    assert len(list((tmp_path / "samples").glob("*.mp4"))) == 1
    with pytest.raises(InputError, match="no command: error"):
        _run([sys.executable, "-c", "import sys; sys.exit('no command: error')"])


def test_parts_that_need_single_precision_keep_it():
    subject = Subject(Recipe.load("demo"), CPU, torch.bfloat16)
    assert subject.pipeline.denoiser.dtype == torch.bfloat16
    assert {p.dtype for p in subject.tokenizer.encoder.parameters()} == {torch.bfloat16}
    assert subject.tokenizer.latents_std.dtype == torch.float32
    assert {b.dtype for b in subject.tokenizer.running_norm.buffers() if b.is_floating_point()} <= {torch.float32}


def test_the_command(capsys):
    arguments = ["benchmark", "--recipe", "demo", "--rounds", "1", "--dtype", "float32"]
    assert cli.main([*arguments, "--stages", "guided step,decode,clip,help", "--price", "3.6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    for key in ("clip_seconds", "decode_seconds", "guided_step_fraction_of_ceiling", "decode_fraction_of_ceiling"):
        assert found[key] > 0
        assert f"{key}_spread" in found
    assert found["decode_fraction_of_bandwidth"] > 0
    assert found["clip_cost_of_1000_clips"] == pytest.approx(found["clip_seconds"])  # 0.001 a second
    assert {"clip_joules", "clip_peak_memory_bytes", "clip_flops", "clip_bytes_moved"} <= found.keys()
    assert found["recipe"] == "demo"
    assert found["parameters"]["denoiser"] > 1e6
    assert {"machine", "commit", "peak_memory_bytes"} <= found.keys()
    assert any(line.startswith("decode ") and "clips/s" not in line for line in lines)
    assert cli.main([*arguments, "--stages", "decoding"]) == 2
    assert "no stage 'decoding'; did you mean 'decode'" in capsys.readouterr().err
    assert cli.main([*arguments, "--rounds", "0"]) == 2
    assert cli.main([*arguments, "--price", "0"]) == 2
    assert cli.main(["benchmark", "--recipe", "vdm"]) == 2
    assert "diffuses pixels" in capsys.readouterr().err


def test_training_and_reading_do_what_they_say(tmp_path):
    recipe = Recipe.load(
        "demo", ["tokenizer.training.batch=2", "denoiser.training.batch=3", "tokenizer.training.steps=9"]
    )
    subject = Subject(recipe, CPU, torch.float32)
    stages = {name: make(subject, tmp_path / name) for name, make in TRAINING.items()}
    assert [stages[name].clips for name in TRAINING] == [2, 3, 8, 8]
    for name in ("read clips", "read latents"):
        stages[name].run()
    found = stages["train denoiser"].run()
    assert found["loss"].isfinite()
    assert stages["train denoiser"].work.flops > 3 * 3 * 0.9 * NETWORKS["step"](subject, tmp_path).work.flops


def test_several_clips_at_a_time(tmp_path):
    subject = Subject(Recipe.load("demo"), CPU, torch.float32, batch=3)
    stages = {name: NETWORKS[name](subject, tmp_path) for name in ("guided step", "decode", "clip")}
    assert stages["guided step"].run().shape == (3, *subject.latent_shape)
    assert stages["decode"].run().shape == (3, 3, 16, 32, 32)
    assert stages["clip"].run().shape == (3, 16, 3, 32, 32)
    assert stages["clip"].clips == 3


def test_a_power_law_is_found():
    found = fit_power([1, 2, 4, 8], [3 * x**1.5 for x in (1, 2, 4, 8)])
    assert (found.exponent, found.factor, found.r2) == pytest.approx((1.5, 3.0, 1.0))
    assert fit_power([1, 2, 4], [5, 5, 5]).exponent == pytest.approx(0.0)
    assert fit_power([1], [1]) is None
    assert fit_power([1, 2], [0, 1]) is None  # memory that is too little to be seen


@pytest.mark.slow
def test_growth(capsys):
    small = ["denoiser.model.channels=[16]", "denoiser.model.head_dim=16", "data.size=16", "data.frames=8"]
    words = ["benchmark", "--recipe", "demo", "--rounds", "1", "--dtype", "float32"]
    assert cli.main([*words, "--growth", "frames,size,batch,parameters,clips", *small]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["frames"]["decode"]["x"] == [4, 8, 16, 32]
    assert found["size"]["guided step"]["x"] == [8, 16, 24, 32]
    assert found["batch"]["train denoiser"]["x"] == [1, 2, 4, 8]
    assert len(found["parameters"]["guided step"]["x"]) == 4
    assert found["parameters"].keys() == {"guided step", "train denoiser"}  # the tokenizer stays as it is
    assert found["clips"]["read 512 latents"]["x"] == [1000, 4000, 16000]
    assert "exponent" in found["clips"]["open the latent cache"]["seconds_growth"]
    assert {"machine", "commit"} <= found.keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--growth", "frame"], "did you mean 'frames'"),
        (["--growth", ","], "names no axis"),
        (["--growth", "all", "--batch", "2"], "leave --batch out"),
        (["--growth", "all", "--stages", "step"], "leave --stages out"),
    ],
)
def test_growth_of_nothing_is_refused(words, message, capsys):
    assert cli.main(["benchmark", "--recipe", "demo", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("head_dim", [32, 64, 80])
def test_widths_are_those_that_the_denoiser_takes(head_dim):
    for wanted in (16, 24, 48, 72, 96, 144, 160, 480, 640):
        width = _width(wanted, head_dim)
        assert abs(width - wanted) <= 16
        VideoDenoiser(in_channels=1, channels=(width,), blocks=1, head_dim=head_dim)
    assert _width(480, 80) == 480


def test_points_that_the_networks_do_not_divide_are_left_out(tmp_path):
    recipe = Recipe.load("demo", ["data.frames=4", "denoiser.model.channels=[16]", "denoiser.model.head_dim=16"])
    assert {x for _, x in _frames(recipe, CPU, torch.float32, tmp_path)} == {4, 8, 16}


def test_clips_are_read_from_real_files_where_there_are_some(real_data, tmp_path):
    recipe = Recipe.load("paper-ucf101", [f"data.path={real_data / 'ucf101-mini'}"])
    stage = TRAINING["read clips"](Subject(recipe, CPU, torch.float32), tmp_path)
    assert "ucf101-mini" in stage.what
    stage.run()


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
