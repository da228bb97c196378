"""The pipeline: against closed forms of guidance and of Gaussian data, and as a citizen of diffusers."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import PipelineCallback
from diffusers.pipelines import pipeline_utils
from diffusers.utils import hub_utils
from huggingface_hub import ModelCard
from PIL import Image

import vqvdm.pipeline
from tiny_pipeline import LABELS, tiny_denoiser, tiny_pipeline, tiny_tokenizer
from vqvdm import VideoDenoiser, VQVDMPipeline
from vqvdm.diffusion import Objective
from vqvdm.errors import InputError
from vqvdm.model_card import SAMPLE
from vqvdm.prediction import rescale_guidance

torch.set_num_threads(1)

MEAN, DEVIATION = 0.5, 0.3
CLOSE = {"atol": 1e-4, "rtol": 0.0}  # float32 sums in another order, through an untrained network that amplifies them


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents_of(pipe: VQVDMPipeline, *args, **kwargs) -> torch.Tensor:
    return pipe(*args, output_type="latent", **kwargs).frames


class GaussianDenoiser(VideoDenoiser):
    """The best possible denoiser of data that is normal with MEAN and DEVIATION in every number."""

    objective: Objective

    def forward(self, noisy_latents, timestep, class_labels, fps, modulations=None, estimate=None):
        t = torch.as_tensor(timestep, dtype=torch.float32)
        if self.objective.prediction == "flow":
            alpha, sigma = 1 - t / 1000, t / 1000
        else:
            bars, low = self.objective.alphas_cumprod, t.long().clamp(max=998)
            angles = torch.atan2((1 - bars).sqrt(), bars.sqrt())
            angle = angles[low] + (angles[low + 1] - angles[low]) * (t - low)  # timesteps need not be whole
            alpha, sigma = angle.cos(), angle.sin()
        centred = (noisy_latents - alpha * MEAN) / (alpha**2 * DEVIATION**2 + sigma**2)
        x0, noise = MEAN + alpha * DEVIATION**2 * centred, sigma * centred
        return {"flow": noise - x0, "epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}[
            self.objective.prediction
        ]


def gaussian_denoiser(objective: Objective) -> GaussianDenoiser:
    denoiser = GaussianDenoiser(in_channels=3, channels=(8,), blocks=1)
    denoiser.objective = objective
    return denoiser


SAMPLERS = [
    (Objective("flow"), "dpm++"),
    (Objective("flow"), "unipc"),
    (Objective("flow"), "euler"),
    (Objective("flow", shift=3.0), "euler"),
    (Objective("v_prediction"), "ddim"),
    (Objective("v_prediction"), "ddpm"),
    (Objective("sample"), "ddim"),
    (Objective("epsilon", zero_terminal_snr=False), "dpm++"),
    (Objective("epsilon", zero_terminal_snr=False), "euler"),
]


@pytest.mark.parametrize(("objective", "scheduler"), SAMPLERS, ids=lambda x: getattr(x, "prediction", x))
def test_best_denoiser_of_gaussian_data_samples_that_data(objective, scheduler):
    pipe = VQVDMPipeline(
        None, gaussian_denoiser(objective), objective.make_scheduler(scheduler), num_frames=4, height=16, width=16
    )
    pipe.set_progress_bar_config(disable=True)
    made = latents_of(pipe, num_videos_per_prompt=8, num_inference_steps=100, generator=seeded(0))
    assert made.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert made.std().item() == pytest.approx(DEVIATION, rel=0.06)


@torch.no_grad()
def test_guidance_may_lead_away_from_a_weaker_model():
    """weak + w (strong - weak), also without classes; outside of the interval the strong one alone."""
    pipe, weaker = tiny_pipeline(), tiny_denoiser()
    for parameter in weaker.parameters():
        parameter.mul_(0.9)
    noise, rates = torch.randn(2, 4, 2, 4, 4, generator=seeded(0)), torch.full((2,), 8.0)
    for labels in ([0, 2], None):
        ids = None if labels is None else torch.tensor(labels)
        strong, weak = (network(noise, torch.tensor(1000.0), ids, rates) for network in (pipe.denoiser, weaker))
        settings = {"latents": noise, "num_inference_steps": 1, "fps": 8.0, "num_videos_per_prompt": 1 if labels else 2}
        settings |= {"weaker_denoiser": weaker, "guidance_scale": 3.0}
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        made = latents_of(pipe, labels, guidance_interval=(0, 1), **settings)
        torch.testing.assert_close(made, noise - (weak + 3.0 * (strong - weak)), **CLOSE)
        made = latents_of(pipe, labels, guidance_interval=(0, 0.5), **settings)
        torch.testing.assert_close(made, noise - strong, **CLOSE)
    with pytest.raises(InputError, match="num_classes 5, this model has 3"):
        pipe(0, weaker_denoiser=tiny_denoiser(num_classes=5))


class Recalling(GaussianDenoiser):
    """Notes what it is asked, told and answers."""

    def forward(self, noisy_latents, timestep, class_labels, fps, modulations=None, estimate=None):
        answer = super().forward(noisy_latents, timestep, class_labels, fps) + (0 if class_labels is None else 0.1)
        answer[len(fps) // 2 :] -= 0.05  # so that the passes of guidance can be told apart
        self.calls.append((noisy_latents, float(timestep), estimate, answer))
        return answer


@pytest.mark.parametrize(
    ("objective", "scheduler"),
    [(Objective("flow"), "heun"), (Objective("flow"), "ddim"), (Objective("sample"), "ddim")],
)
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.7)])
def test_a_denoiser_is_told_what_it_found_in_the_call_before(objective, scheduler, interval):
    denoiser = Recalling(in_channels=3, channels=(8,), blocks=1, num_classes=2, self_condition=True)
    denoiser.objective, denoiser.calls = objective, []
    stated = objective.for_sampling()
    sizes = {"num_frames": 2, "height": 8, "width": 8}
    pipe = VQVDMPipeline(None, denoiser, objective.make_scheduler(scheduler), **sizes, diffusion=stated)
    pipe.set_progress_bar_config(disable=True)
    latents_of(pipe, [0, 1], num_inference_steps=5, guidance_interval=interval, generator=seeded(0))
    assert denoiser.calls[0][2] is None
    sizes = set()
    for (noisy, timestep, _, answer), (now, _, estimate, _) in pairwise(denoiser.calls):
        alpha, sigma = objective.level_at(timestep)
        found = objective.split(answer, noisy, alpha, sigma)[0]
        assert estimate.shape == now.shape
        if len(found) == len(estimate):
            torch.testing.assert_close(estimate, found)
        else:  # guidance begins or ends: the conditional pass's
            torch.testing.assert_close(estimate, found[:2].repeat(len(estimate) // 2, 1, 1, 1, 1))
        sizes.add((len(found), len(estimate)))
    assert sizes == ({(4, 4)} if interval == (0.0, 1.0) else {(2, 2), (2, 4), (4, 4), (4, 2)})


def one_euler_step(pipe: VQVDMPipeline, noise: torch.Tensor, labels: list[int], **kwargs) -> torch.Tensor:
    """From pure noise straight to sigma 0: noise - v, so the prediction can be read off."""
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return latents_of(pipe, labels, latents=noise, num_inference_steps=1, guidance_interval=(0, 1), **kwargs)


def predictions(pipe: VQVDMPipeline, noise: torch.Tensor, labels: list[int], fps: float = 8.0) -> torch.Tensor:
    with torch.no_grad():
        return pipe.denoiser(noise, torch.tensor(1000.0), torch.tensor(labels), torch.full((len(noise),), fps))


@pytest.mark.parametrize(("given", "scale"), [(1.5, 1.5), (4.0, 4.0), (1.0, 1.0), (0.0, 1.0)], ids=str)
def test_guidance_is_the_formula(given, scale):
    """As in diffusers, 1 or less is no guidance: callbacks set 0 to end it."""
    pipe = tiny_pipeline()
    noise = torch.randn(2, 4, 2, 4, 4, generator=seeded(0))
    conditional, unconditional = predictions(pipe, noise, [0, 2]), predictions(pipe, noise, [3, 3], fps=0.0)
    assert (conditional - unconditional).abs().mean() > 0.05
    expected = noise - (unconditional + scale * (conditional - unconditional))
    torch.testing.assert_close(one_euler_step(pipe, noise, ["left", 2], guidance_scale=given), expected, **CLOSE)


def test_guidance_rescale_restores_the_deviation():
    pipe = tiny_pipeline()
    noise = torch.randn(2, 4, 2, 4, 4, generator=seeded(0))
    conditional = predictions(pipe, noise, [0, 2])
    made = noise - one_euler_step(pipe, noise, [0, 2], guidance_scale=6.0, guidance_rescale=1.0)
    torch.testing.assert_close(made.flatten(1).std(1), conditional.flatten(1).std(1))
    assert torch.equal(rescale_guidance(noise, conditional, 0.0), noise)


def test_guidance_acts_only_in_its_interval():
    pipe = tiny_pipeline(scheduler="euler")
    batches: list[tuple[float, int]] = []
    pipe.denoiser.register_forward_pre_hook(lambda _, args: batches.append((float(args[1]) / 1000, len(args[0]))))
    latents_of(pipe, [0], num_inference_steps=10, guidance_interval=(0.3, 0.7))
    assert batches == [(level, 2 if 0.3 <= level <= 0.7 else 1) for level, _ in batches]
    assert {size for _, size in batches} == {1, 2}


def test_no_class_is_the_null_class():
    pipe = tiny_pipeline()
    noise = torch.randn(1, 4, 2, 4, 4, generator=seeded(0))
    expected = noise - predictions(pipe, noise, [3])
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    torch.testing.assert_close(latents_of(pipe, latents=noise, num_inference_steps=1), expected)


def test_frame_rate_reaches_the_network():
    pipe = tiny_pipeline()
    noise = torch.randn(2, 4, 2, 4, 4, generator=seeded(0))
    made = one_euler_step(pipe, noise, [0, 0], fps=[4, 16], guidance_scale=1.0)
    torch.testing.assert_close(made[:1], noise[:1] - predictions(pipe, noise[:1], [0], 4.0))
    torch.testing.assert_close(made[1:], noise[1:] - predictions(pipe, noise[1:], [0], 16.0))
    assert (made[0] - made[1]).abs().max() > 0


STOCHASTIC = [
    (Objective("flow"), "dpm++"),
    (Objective("v_prediction"), "ddpm"),
    (Objective("v_prediction"), "ddim"),
]


@pytest.mark.parametrize(("objective", "scheduler"), STOCHASTIC, ids=["flow-dpm++", "ddpm", "ddim with eta"])
def test_a_video_does_not_depend_on_its_batch(objective, scheduler):
    pipe = tiny_pipeline(objective=objective, scheduler=scheduler)
    together = pipe(["left", "right", "up", "left"], generator=seeded(7), eta=1.0, output_type="latent")
    alone = latents_of(pipe, ["up"], generator=[seeded(together.seeds[2])], eta=1.0)
    torch.testing.assert_close(together.frames[2:3], alone, **CLOSE)
    first_two = latents_of(pipe, ["left", "right"], generator=seeded(7), eta=1.0)
    torch.testing.assert_close(together.frames[:2], first_two, **CLOSE)
    assert (together.frames[0] - together.frames[3]).abs().max() > 0.1  # one class, two seeds


def test_step_noise_is_each_video_s_own():
    config = tiny_pipeline().scheduler.config
    pipe = tiny_pipeline()
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config, algorithm_type="sde-dpmsolver++")
    together = pipe([0, 1], generator=seeded(3), output_type="latent")
    alone = latents_of(pipe, [1], generator=[seeded(together.seeds[1])])
    torch.testing.assert_close(together.frames[1:], alone, **CLOSE)
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config)
    assert (latents_of(pipe, [1], generator=[seeded(together.seeds[1])]) - alone).abs().max() > 0.01


def test_default_randomness_is_torch_s_own():
    pipe = tiny_pipeline()
    torch.manual_seed(5)
    first = latents_of(pipe, [0])
    second = latents_of(pipe, [0])
    torch.manual_seed(5)
    assert torch.equal(first, latents_of(pipe, [0]))
    assert not torch.equal(first, second)


def test_output_types_agree():
    pipe = tiny_pipeline()
    kind = {name: pipe([0, 1], generator=seeded(0), output_type=name) for name in ("pt", "np", "pil", "latent")}
    assert kind["pt"].frames.shape == (2, 4, 3, 16, 16)  # (b, t, c, h, w)
    assert kind["np"].frames.shape == (2, 4, 16, 16, 3)
    assert kind["latent"].frames.shape == (2, 4, 2, 4, 4)
    assert 0 <= kind["np"].frames.min() < kind["np"].frames.max() <= 1
    np.testing.assert_array_equal(kind["pt"].frames.permute(0, 1, 3, 4, 2).numpy(), kind["np"].frames)
    pictures = np.stack([np.stack([np.asarray(image) for image in video]) for video in kind["pil"].frames])
    np.testing.assert_array_equal(pictures, (kind["np"].frames * 255).round().astype(np.uint8))
    decoded = pipe.tokenizer.decode(kind["latent"].frames).clamp(-1, 1) / 2 + 0.5
    torch.testing.assert_close(kind["pt"].frames, decoded.permute(0, 2, 1, 3, 4))
    frames, fps, seeds = pipe([0, 1], generator=seeded(0), output_type="np", return_dict=False, decode_chunk_size=1)
    np.testing.assert_allclose(frames, kind["np"].frames, atol=1e-6)
    assert fps == [8.0, 8.0] and seeds == kind["np"].seeds


def test_videos_per_prompt_follow_their_prompt():
    pipe = tiny_pipeline()
    seen = []
    pipe.denoiser.register_forward_pre_hook(lambda _, args: seen.append((args[2].tolist(), args[3].tolist())))
    output = pipe(["left", "up"], fps=[8, 12], num_videos_per_prompt=2, guidance_scale=1.0, output_type="latent")
    assert seen[0] == ([0, 0, 2, 2], [8.0, 8.0, 12.0, 12.0])
    assert output.fps == [8.0, 8.0, 12.0, 12.0]
    assert len(latents_of(tiny_pipeline(), num_videos_per_prompt=3)) == 3


@pytest.mark.parametrize("pixels", [False, True], ids=["latents", "pixels"])
def test_saved_and_loaded_is_bitwise_the_same(tmp_path, pixels):
    pipe = tiny_pipeline(pixels=pixels)
    before = pipe(["left", 2], generator=seeded(0), output_type="np").frames
    pipe.save_pretrained(tmp_path)
    again = VQVDMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(again(["left", 2], generator=seeded(0), output_type="np").frames, before)
    assert (again.tokenizer is None) == pixels
    assert again.id2label == LABELS
    kept = {name for name in pipe.config if not name.startswith("_")}
    assert {name: again.config[name] for name in kept} == {name: pipe.config[name] for name in kept}
    index = json.loads((tmp_path / "model_index.json").read_text())
    # On the hub's path every list is taken for a component.
    assert {name for name, value in index.items() if isinstance(value, list)} == {"tokenizer", "denoiser", "scheduler"}
    assert index["denoiser"] == ["vqvdm", "VideoDenoiser"]
    again.save_pretrained(tmp_path / "twice")
    assert (tmp_path / "twice" / "README.md").read_text() == (tmp_path / "README.md").read_text()


def test_loads_from_the_hub_by_name(tmp_path, monkeypatch):
    tiny_pipeline().save_pretrained(tmp_path)
    asked = {}

    def fake_download(name, **kwargs):
        asked.update(kwargs, name=name)
        return str(tmp_path)

    monkeypatch.setattr(vqvdm.pipeline, "snapshot_download", fake_download)
    pipe = VQVDMPipeline.from_pretrained("someone/videos", revision="v2")
    assert pipe.labels == {"left": 0, "right": 1, "up": 2}
    assert asked["name"] == "someone/videos" and asked["revision"] == "v2"


def test_loads_in_another_dtype(tmp_path):
    original = tiny_pipeline()
    original.tokenizer.set_latent_statistics(torch.full((4,), 1e-3 / 3), torch.full((4,), 1 / 1.001))
    original.save_pretrained(tmp_path)
    pipe = VQVDMPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.denoiser.dtype == pipe.tokenizer.dtype == torch.bfloat16
    for name in ("latents_mean", "latents_std", "running_norm.mean", "running_norm.variance"):
        kept, loaded = original.tokenizer.get_buffer(name), pipe.tokenizer.get_buffer(name)
        assert loaded.dtype == torch.float32 and torch.equal(loaded, kept), name
    exact = original(["left"], generator=seeded(0), output_type="np").frames
    np.testing.assert_allclose(pipe(["left"], generator=seeded(0), output_type="np").frames, exact, atol=0.1)


SWAPPED = (
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
)


@pytest.mark.parametrize("prediction", ["flow", "v_prediction", "sample", "epsilon"])
def test_any_scheduler_swaps_in(prediction):
    """By the one line that diffusers' users know, one after the other."""
    objective = Objective(prediction, zero_terminal_snr=prediction != "epsilon")
    pipe = VQVDMPipeline(
        None, gaussian_denoiser(objective), objective.make_scheduler(), num_frames=4, height=16, width=16
    )
    pipe.set_progress_bar_config(disable=True)
    for kind in SWAPPED:
        pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
        assert pipe.config.scheduler == ("diffusers", kind)
        made = latents_of(pipe, num_videos_per_prompt=4, num_inference_steps=200, generator=seeded(0))
        assert (made.mean().item(), made.std().item()) == pytest.approx((MEAN, DEVIATION), abs=0.02), kind
    pipe.scheduler = diffusers.EDMEulerScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(InputError, match=r"EDMEulerScheduler would not sample .*; these diffusers .* do: .*DDIM"):
        pipe()


def test_latents_are_not_cut_to_the_range_of_clips():
    """DDIM cuts by default, and the usual swap from a scheduler that does not know the word brings it in."""
    pipe = tiny_pipeline(objective=Objective("v_prediction"), scheduler="dpm++")
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler.config["clip_sample"]
    assert latents_of(pipe, [0], generator=seeded(0)).abs().max() > 1.05


def test_the_pipeline_remembers_its_objective_whatever_its_scheduler_says(tmp_path):
    pipe = tiny_pipeline()
    pipe.scheduler = diffusers.DDIMScheduler()
    made = latents_of(pipe, [0], generator=seeded(0))
    pipe.save_pretrained(tmp_path)
    again = VQVDMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.objective == Objective("flow")
    torch.testing.assert_close(latents_of(again, [0], generator=seeded(0)), made, **CLOSE)


def test_pipelines_saved_without_their_objective_take_the_scheduler_s(tmp_path):
    for objective in (Objective("flow", shift=2.0), Objective("v_prediction", "linear")):
        tiny_pipeline(objective=objective).save_pretrained(tmp_path)
        index = json.loads((tmp_path / "model_index.json").read_text())
        del index["diffusion"]
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        assert VQVDMPipeline.from_pretrained(tmp_path).objective == objective


def test_values_that_are_not_finite_are_never_shown():
    pipe = tiny_pipeline()
    spoil = lambda pipe, step, timestep, tensors: {"latents": tensors["latents"] * float("nan")}  # noqa: E731
    with pytest.raises(InputError, match=r"not finite \(DPMSolverMultistepScheduler, 4 steps\)"):
        pipe([0], callback_on_step_end=spoil)


def test_callback_sees_and_replaces_latents():
    pipe = tiny_pipeline()
    steps = []

    def blank(pipeline, i, t, tensors):
        steps.append((i, float(t)))
        return {"latents": torch.zeros_like(tensors["latents"])} if i == 3 else None

    assert (latents_of(pipe, [0], callback_on_step_end=blank) == 0).all()
    assert [i for i, _ in steps] == [0, 1, 2, 3]
    assert [t for _, t in steps] == [float(t) for t in pipe.scheduler.timesteps]

    def stop(pipeline, i, t, tensors):
        pipeline._interrupt = i == 1
        return tensors

    calls = []
    pipe.denoiser.register_forward_hook(lambda *_: calls.append(1))
    latents_of(pipe, [0], callback_on_step_end=stop)
    assert len(calls) == 2


@pytest.mark.parametrize("prediction", ["flow", "v_prediction"])
def test_callback_sees_the_estimate_of_the_clean_latents(prediction):
    """DPM-Solver++ ends in the estimate of its last step, whatever it is that the denoiser predicts."""
    pipe = tiny_pipeline(objective=Objective(prediction=prediction))
    seen = []

    def look(pipeline, i, t, tensors):
        assert set(tensors) == {"estimate"}
        seen.append(tensors["estimate"])
        return {}

    end = latents_of(pipe, [0], callback_on_step_end=look, callback_on_step_end_tensor_inputs=["estimate"])
    torch.testing.assert_close(seen[-1], end, rtol=0, atol=0.01)  # flow's last level is next to the clean one
    assert not torch.allclose(seen[0], end, atol=0.1)


class Cutoff(PipelineCallback):
    """As diffusers' own callbacks end guidance, after a share of the steps."""

    tensor_inputs = ["latents"]  # noqa: RUF012

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        assert pipeline.do_classifier_free_guidance == (step_index < pipeline.num_timesteps // 2)
        if step_index == int(pipeline.num_timesteps * self.config.cutoff_step_ratio) - 1:
            pipeline._guidance_scale = 0.0
        return callback_kwargs


def test_callback_ends_guidance():
    pipe = tiny_pipeline(scheduler="euler")
    batches: list[int] = []
    pipe.denoiser.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    made = latents_of(
        pipe, [0], generator=seeded(0), guidance_interval=(0, 1), callback_on_step_end=Cutoff(cutoff_step_ratio=0.5)
    )
    assert batches == [2, 2, 1, 1]
    assert pipe.num_timesteps == 4

    def scale(pipeline, i, t, tensors):
        seen.append(pipeline.guidance_scale)
        pipeline._guidance_scale = 1.0 if i == 1 else pipeline._guidance_scale
        return tensors

    seen: list[float] = []
    again = latents_of(pipe, [0], generator=seeded(0), guidance_interval=(0, 1), callback_on_step_end=scale)
    assert seen == [3.0, 3.0, 1.0, 1.0]
    torch.testing.assert_close(again, made)
    seen.clear()
    latents_of(pipe, [0], guidance_scale=5, callback_on_step_end=scale)
    assert seen[0] == pipe.config["guidance_scale"] + 2 == 5.0
    pipe([0], output_type="latent")
    assert pipe.do_classifier_free_guidance
    pipe(output_type="latent")
    assert not pipe.do_classifier_free_guidance


NUMBERS = [np.float32(8), np.int64(8), np.array(8.0), torch.tensor(8.0), torch.tensor(8), 8, Fraction(8)]


@pytest.mark.parametrize("eight", NUMBERS, ids=repr)
def test_numbers_are_numbers(eight):
    pipe = tiny_pipeline()
    output = pipe([0, 1], fps=eight, num_frames=eight, num_inference_steps=eight, output_type="latent")
    assert output.fps == [8.0, 8.0] and all(type(rate) is float for rate in output.fps)
    assert output.frames.shape == (2, 4, 4, 4, 4) and pipe.num_timesteps == 8
    assert pipe([0, 1], fps=np.array([8, 12]), output_type="latent").fps == [8.0, 12.0]
    assert pipe([0, 1], fps=torch.tensor([8, 12]), output_type="latent").fps == [8.0, 12.0]


def test_offloading_follows_every_part():
    pipe = tiny_pipeline()
    pipe.enable_model_cpu_offload(device="cpu")
    fetched = []
    for name in ("denoiser", "tokenizer"):
        hook = getattr(pipe, name)._hf_hook
        original = hook.pre_forward
        hook.pre_forward = lambda *args, name=name, original=original, **kw: (
            fetched.append(name),
            original(*args, **kw),
        )[1]
    pipe([0], output_type="np")
    assert list(dict.fromkeys(fetched)) == ["denoiser", "tokenizer"]


WRONG_CALLS = [
    ({"class_labels": "lefft"}, "unknown class 'lefft'; did you mean 'left'"),
    ({"class_labels": [3]}, "id 3 is out of range; the ids are 0 to 2"),
    ({"class_labels": [-1]}, "id -1 is out of range"),
    ({"class_labels": [True]}, "out of range"),
    ({"class_labels": [1.5]}, "neither the name nor the id"),
    ({"class_labels": []}, "no class is named"),
    ({"num_frames": 5}, "the nearest that can is 4 frames of 16x16"),
    ({"height": 20}, "height 20 (must be a multiple of 8; the nearest is 16)"),
    ({"num_frames": 0}, "num_frames must be at least 1"),
    ({"num_inference_steps": 0}, "num_inference_steps must be at least 1"),
    ({"num_videos_per_prompt": 0}, "num_videos_per_prompt must be at least 1"),
    ({"fps": 0}, "fps must be a frame rate above 0"),
    ({"class_labels": [0, 1], "fps": [8, 8, 8]}, "fps names 3 frame rates for 2 class labels"),
    ({"fps": []}, "fps is an empty list"),
    ({"latents": torch.zeros(1, 4, 2, 4, 5)}, "this call needs (1, 4, 2, 4, 4)"),
    ({"generator": [seeded(0)] * 2}, "generator holds 2 generators for 1 videos"),
    ({"fps": True}, "fps must be a number, not True"),
    ({"fps": "8"}, "fps must be a number, not '8'"),
    ({"class_labels": [0, 1], "fps": [8, "9"]}, "fps must be a number, not '9'"),
    ({"fps": float("inf")}, "fps must be a number, not inf"),
    ({"fps": None, "num_frames": "4"}, "num_frames must be a number, not '4'"),
    ({"num_frames": 4.5}, "num_frames must be a whole number, not 4.5"),
    ({"num_inference_steps": 3.5}, "num_inference_steps must be a whole number, not 3.5"),
    ({"num_inference_steps": np.True_}, "num_inference_steps must be a number"),
    ({"guidance_scale": "2"}, "guidance_scale must be a number, not '2'"),
    ({"guidance_scale": float("nan")}, "guidance_scale must be a number, not nan"),
    ({"guidance_interval": 0.5}, "guidance_interval is (lowest, highest)"),
    ({"output_type": "gif"}, "output_type must be one of pil, np, pt, latent"),
    ({"guidance_interval": (0.5, 1.5)}, "guidance_interval"),
    ({"callback_on_step_end_tensor_inputs": ["noise"]}, "there are latents, estimate, not noise"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_CALLS, ids=lambda x: x if isinstance(x, str) else None)
def test_wrong_calls_say_what_would_be_right(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        tiny_pipeline()(**arguments)


def test_unconditional_model_takes_no_class():
    pipe = tiny_pipeline(num_classes=0)
    assert latents_of(pipe, num_videos_per_prompt=2).shape[0] == 2
    with pytest.raises(InputError, match="this model is unconditional, it cannot make the class 'left'"):
        pipe("left")


def test_parts_that_do_not_fit():
    scheduler = Objective().make_scheduler()
    with pytest.raises(InputError, match="denoiser works on 3 channels, the tokenizer gives 4"):
        VQVDMPipeline(tiny_tokenizer(), tiny_denoiser(3), scheduler)
    with pytest.raises(InputError, match="id2label names class 3, the denoiser has 3 classes"):
        VQVDMPipeline(tiny_tokenizer(), tiny_denoiser(), scheduler, id2label={3: "down"})


@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
def test_the_hub_gets_our_card(way, tmp_path, monkeypatch):
    uploaded = {}

    def upload(self, folder, repo_id, **_):
        uploaded.update(repo=repo_id, files={path.name: path for path in Path(folder).iterdir()})
        uploaded["card"] = (Path(folder) / "README.md").read_text()
        with Image.open(Path(folder) / SAMPLE) as picture:
            uploaded["sample"] = picture.n_frames

    repository = SimpleNamespace(repo_id="me/x")
    for module in (hub_utils, pipeline_utils):
        monkeypatch.setattr(module, "create_repo", lambda *_, **__: repository)
        monkeypatch.setattr(module, "load_or_create_model_card", lambda *_, **__: ModelCard("---\n---\n# a stub"))
    monkeypatch.setattr(hub_utils.PushToHubMixin, "_upload_folder", upload)
    pipe = tiny_pipeline()
    if way == "push_to_hub":
        pipe.push_to_hub("me/x")
    else:
        pipe.save_pretrained(tmp_path, push_to_hub=True, repo_id="me/x")
    assert uploaded["repo"] == "me/x" and {"model_index.json", "denoiser"} <= set(uploaded["files"])
    assert uploaded["card"] == pipe.card("me/x", sample=True)
    assert f"({SAMPLE})" in uploaded["card"] and uploaded["sample"] > 1
    assert 'from_pretrained("me/x")' in uploaded["card"] and "- 2: up" in uploaded["card"]


def test_model_card_is_the_hub_s_and_its_code_runs(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "vqvdm" and card.data.license == "apache-2.0"
    assert {"video-generation", "class-conditional"} <= set(card.data.tags)
    for fact in ("| data | nothing |", "- 2: up", "| psnr | 1.5 |", "| seed | 0 |", "output.seeds"):
        assert fact in card.text
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    names: dict = {}
    exec(code.replace("path/to/this/folder", str(tmp_path)), names)
    assert len(names["first_video"]) == 4 and names["first_video"][0].size == (16, 16)
    exec((tmp_path / "pipeline.py").read_text(), names)
    assert names["VQVDMPipeline"] is VQVDMPipeline


@pytest.mark.slow
def test_compiled_blocks_give_the_same_videos() -> None:
    """The plumbing alone: the back end that runs what was traced as it is, and counts."""
    traced = []
    pipeline = tiny_pipeline()
    wanted = pipeline("left", generator=torch.Generator().manual_seed(0), output_type="pt").frames
    pipeline.compile(backend=lambda graph, inputs: traced.append(1) or graph.forward)
    pipeline.compile(backend="no such back end")  # once is enough
    assert pipeline.is_compiled
    found = pipeline("left", generator=torch.Generator().manual_seed(0), output_type="pt").frames
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert len(traced) >= 4  # blocks of the denoiser's widths, and the tokenizer's
