"""Distillation: the pairs are what the teacher makes of their noise, and the student begins as the teacher."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tiny_training import give_tokenizer, tiny_recipe
from vqvdm.errors import InputError
from vqvdm.export.programs import settings
from vqvdm.latents import LatentCache, noise_of
from vqvdm.loading import load_pipeline
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.processes import this_process
from vqvdm.recipe import DistillationRecipe, Recipe
from vqvdm.request import doubts
from vqvdm.train.checkpoint import latest_checkpoint
from vqvdm.train.denoiser import DenoiserStage, train_denoiser
from vqvdm.train.distill import StudentStage, _check_levels, _digest, distil, student_recipe
from vqvdm.train.loop import make_accelerator
from vqvdm.train.order import Batch
from vqvdm.train.start_from import start_denoiser_from


def recipe_of_teacher() -> Recipe:
    recipe = tiny_recipe()
    part = DistillationRecipe(
        pairs=10, held_out=4, teacher_steps=4, teacher_guidance=3.0, steps=2, training=recipe.denoiser.training
    )
    return replace(recipe, distillation=part)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "teacher"
    train_teacher(recipe_of_teacher(), run)
    return run


def train_teacher(recipe: Recipe, run: Path) -> None:
    give_tokenizer(run)
    train_denoiser(recipe, run)
    pipeline = VQVDMPipeline.from_pretrained(run / "pipeline")
    torch.manual_seed(0)
    for parameter in pipeline.denoiser.parameters():  # four updates leave its output near zero
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    pipeline.save_pretrained(run / "pipeline")


def states_of(pipeline: VQVDMPipeline, label: int, noise: Tensor, **settings: Any) -> list[Tensor]:
    """Noise (c, t, h, w), and what the pipeline has after each of its steps."""
    states = [noise]

    def keep(_: VQVDMPipeline, __: int, ___: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        states.append(tensors["latents"][0])
        return {}

    pipeline(label, latents=noise[None], output_type="latent", callback_on_step_end=keep, **settings)
    return states


@pytest.mark.parametrize(("strides", "ends"), [((), [0, 2, 4]), ((1, 3), [0, 1, 4])])
def test_a_student_learns_what_its_teacher_makes_of_noise(
    teacher: Path, tmp_path: Path, strides: tuple[int, ...], ends: list[int]
) -> None:
    recipe, student = recipe_of_teacher(), tmp_path / "student"
    recipe = replace(recipe, distillation=replace(recipe.distillation, strides=strides))
    made = load_pipeline(distil(recipe, teacher, student))
    made.set_progress_bar_config(disable=True)
    assert (made.config["num_inference_steps"], made.config["guidance_scale"]) == (2, 1.0)
    assert made.config["about"]["class_dropout"] == 0
    assert doubts(made, None, None) == doubts(made, None, 2) == doubts(load_pipeline(teacher), None, 3) == []
    assert doubts(made, None, 3) == [
        "the model is a student that learnt to sample in 2 steps; in 3 it makes worse videos"
    ]
    assert made("left", output_type="latent").frames.isfinite().all()
    assert made.scheduler.config["shift"] == 1
    assert made.scheduler.sigmas.tolist() == [1 - end / 4 for end in ends]
    assert settings(made)["levels"] == [(1000 - 250 * end, end / 4, 1 - end / 4) for end in ends]
    made("left", output_type="latent", num_inference_steps=4)
    assert made.scheduler.sigmas.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]

    pairs, own, pipeline = LatentCache(student / "latents"), LatentCache(teacher / "latents"), load_pipeline(teacher)
    pipeline.set_progress_bar_config(disable=True)
    assert len(pairs) == 10
    for number in (0, 7):
        pair, clip = pairs[number], own[number]
        noise = noise_of(int(pairs._entries["seed"][number]), pairs.latent_shape)
        assert torch.equal(pair["path"][0], noise)
        assert torch.equal(pair["path"][-1], pair["latents"])
        assert len(pair["path"]) == 3
        assert (pair["class_label"], pair["fps"]) == (clip["class_label"], clip["fps"])
        asked = {"num_inference_steps": 4, "guidance_scale": 3.0, "fps": float(pair["fps"])}
        states = states_of(pipeline, int(pair["class_label"]), noise, **asked)
        for state, expected in zip(pair["path"], [states[end] for end in ends], strict=True):
            assert (state - expected).abs().mean() < 0.02 * expected.std()  # bf16, another batch, float16

    again = distil(recipe, teacher, student)  # finished: nothing is made anew
    assert again == student / "pipeline"


def test_a_teacher_in_bfloat16_is_known_by_its_latents(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqvdm.train.distill.pick_dtype", lambda *_: torch.bfloat16)  # as on a GPU
    assert distil(recipe_of_teacher(), teacher, tmp_path / "student") == tmp_path / "student" / "pipeline"


def test_a_student_begins_as_its_teacher(teacher: Path, tmp_path: Path) -> None:
    recipe, student = recipe_of_teacher(), tmp_path / "student"
    part = replace(recipe.distillation, training=replace(recipe.distillation.training, learning_rate=1e-12))
    distil(replace(recipe, distillation=part), teacher, student)
    checkpoint = latest_checkpoint(student / "checkpoints" / "denoiser")
    assert checkpoint is not None
    for name, value in load_pipeline(teacher).denoiser.state_dict().items():
        if name == "stem.weight":  # which also sees what the step before took for the clip, and does not heed it yet
            value = torch.cat([value, torch.zeros_like(value)], dim=1)
        torch.testing.assert_close(checkpoint.tensors("model")[name], value)


@pytest.mark.parametrize("strides", [(), (3, 1)])
def test_a_network_without_loss_walks_its_teachers_path(
    teacher: Path, tmp_path: Path, strides: tuple[int, ...]
) -> None:
    recipe = recipe_of_teacher()
    recipe = replace(recipe, distillation=replace(recipe.distillation, strides=strides))
    distil(recipe, teacher, tmp_path / "student")
    pairs, pipeline = LatentCache(tmp_path / "student" / "latents"), load_pipeline(tmp_path / "student")
    learnt = student_recipe(recipe, teacher)
    stage = DenoiserStage(learnt, make_accelerator(learnt.denoiser.training, tmp_path), pairs, pipeline.tokenizer)
    items = [pairs[number] for number in range(4)]
    batch = Batch({name: torch.stack([item[name] for item in items]) for name in items[0]}, range(4), 0, 4, last=True)
    path = batch["path"]
    pipeline.scheduler.set_timesteps(sigmas=[1.0, 0.25 if strides else 0.5])
    known: dict[float, Tensor] = {}  # the velocity of a step by the network's clock at its beginning
    taken = [torch.zeros_like(path[:, 0])]  # for the clip in the step before
    for step, level in enumerate(pipeline.scheduler.sigmas[:2].tolist()):
        low = float(pipeline.scheduler.sigmas[step + 1])
        known[round(1000 * level)] = velocity = (path[:, step] - path[:, step + 1]) / (level - low)
        taken.append(path[:, step] - level * velocity)

    def answer(noisy: Tensor, timestep: Tensor, *_: Any, estimate: Tensor, **__: Any) -> Tensor:
        clocks = [round(clock) for clock in timestep.tolist()]
        for clip, clock in enumerate(clocks):
            step = list(known).index(clock)
            torch.testing.assert_close(noisy[clip], path[clip, step], atol=1e-4, rtol=0)
            torch.testing.assert_close(estimate[clip], taken[step][clip], atol=1e-3, rtol=0)
        asked.update(clocks)
        return torch.stack([known[clock][clip] for clip, clock in enumerate(clocks)])

    asked: set[int] = set()
    stage.forward = answer  # type: ignore[assignment]
    assert float(stage.denoising_loss(batch)) < 1e-8
    assert asked == set(known)  # four strata cover both steps

    state = path[:, 0]
    for step, timestep in enumerate(pipeline.scheduler.timesteps):
        state = pipeline.scheduler.step(list(known.values())[step], timestep, state).prev_sample
    torch.testing.assert_close(state, batch["latents"], atol=1e-4, rtol=0)

    shown: list[Tensor | None] = []

    def network(noisy: Tensor, timestep: Tensor, *_: Any, estimate: Tensor | None = None, **__: Any) -> Tensor:
        shown.append(estimate)
        return known[round(float(timestep.flatten()[0]))][:1]

    pipeline.denoiser.forward = network  # type: ignore[method-assign]
    made = pipeline(0, latents=path[:1, 0], output_type="latent").frames
    torch.testing.assert_close(made, batch["latents"][:1], atol=1e-4, rtol=0)
    assert shown[0] is None and shown[1] is not None
    torch.testing.assert_close(shown[1], taken[1][:1], atol=1e-3, rtol=0)  # sampling shows what training did


@pytest.mark.parametrize("strides", [(), (3, 1)])
def test_the_log_has_the_loss_on_paths_held_out(teacher: Path, tmp_path: Path, strides: tuple[int, ...]) -> None:
    recipe, student = recipe_of_teacher(), tmp_path / "student"
    training = replace(recipe.distillation.training, sample_every=4, ema_decay=0.5)
    recipe = replace(recipe, distillation=replace(recipe.distillation, strides=strides, held_out=9, training=training))
    distil(recipe, teacher, student)
    pairs, held_out, own = map(LatentCache, [student / "latents", student / "held-out", teacher / "latents"])
    assert len(pairs) == 10 and len(held_out) == 9
    assert not set(pairs._entries["seed"].tolist()) & set(held_out._entries["seed"].tolist())
    chosen = [entry * len(own) // 9 for entry in range(9)]
    assert held_out.class_labels.tolist() == own.class_labels[chosen].tolist()
    assert held_out.fps.tolist() == own.fps[chosen].tolist()

    records = [json.loads(line) for line in (student / "log.jsonl").read_text().splitlines()]
    found = next(record for record in records if "test_loss" in record)
    checkpoint = latest_checkpoint(student / "checkpoints" / "denoiser")
    assert checkpoint is not None and checkpoint.state["step"] == found["step"]
    pipeline, learnt = load_pipeline(student), student_recipe(recipe, teacher)
    denoiser, accelerator = pipeline.denoiser, make_accelerator(learnt.denoiser.training, tmp_path)
    stage = StudentStage(learnt, accelerator, pairs, pipeline.tokenizer, held_out=held_out)
    denoiser.load_state_dict(checkpoint.tensors("ema"))
    logged = stage.held_out_errors(denoiser, held_out)
    assert {name: found[name] for name in logged} == pytest.approx(logged, rel=1e-3)

    torch.nn.init.normal_(denoiser.stem.weight, std=0.3)  # four updates hardly heed the step before
    found = stage.held_out_errors(denoiser, held_out)
    batch, levels = held_out.batch(range(9)), [1.0, 0.25 if strides else 0.5, 0.0]
    errors, estimate = [], torch.zeros_like(batch["latents"])
    for step in range(2):
        begin, end = batch["path"][:, step], batch["path"][:, step + 1]
        velocity = (begin - end) / (levels[step] - levels[step + 1])
        clock = torch.full((9,), 1000 * levels[step])
        with torch.no_grad():
            guess = denoiser(begin, clock, batch["class_label"], batch["fps"], estimate=estimate)
        errors.append((guess - velocity).square().mean().item())
        estimate = begin - levels[step] * velocity
    assert [found["test_loss_step_1"], found["test_loss_step_2"]] == pytest.approx(errors, rel=1e-3)
    assert found["test_loss"] == pytest.approx(sum(errors) / 2, rel=1e-3)


def test_a_student_learns_to_go_on_from_given_frames_too(teacher: Path, tmp_path: Path) -> None:
    recipe, student = recipe_of_teacher(), tmp_path / "student"
    distil(replace(recipe, denoiser=replace(recipe.denoiser, context=0.9)), teacher, student)
    made = load_pipeline(student)
    made.set_progress_bar_config(disable=True)
    channels = made.tokenizer.config["latent_channels"]
    assert made.denoiser.stem.in_channels == 3 * channels + 2  # noisy, the step before, what is given
    learnt = made.denoiser.stem.weight.abs().amax((0, 2, 3, 4)) > 0
    assert learnt[: 3 * channels].all()
    asked = {"output_type": "pt", "num_inference_steps": 2}
    whole = made("left", generator=torch.Generator().manual_seed(0), **asked).frames
    same = made("left", generator=torch.Generator().manual_seed(0), **asked).frames
    torch.testing.assert_close(whole, same)
    picture = torch.rand(whole.shape[-3:], generator=torch.Generator().manual_seed(1))
    given = made("left", image=picture, generator=torch.Generator().manual_seed(0), **asked).frames
    assert given.isfinite().all() and not torch.allclose(given, whole, atol=1e-3)


def test_a_student_without_paths_held_out_is_trained_as_well(teacher: Path, tmp_path: Path) -> None:
    recipe, student = recipe_of_teacher(), tmp_path / "student"
    distil(replace(recipe, distillation=replace(recipe.distillation, held_out=0)), teacher, student)
    assert not (student / "held-out").exists()
    assert "test_loss" not in (student / "log.jsonl").read_text()


@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_a_teacher_at_other_levels_is_refused(teacher: Path, tmp_path: Path, name: Literal["ddim", "heun"]) -> None:
    pipeline = load_pipeline(teacher)
    pipeline.scheduler = pipeline.objective.make_scheduler(name)
    shutil.copytree(teacher, tmp_path / "teacher")
    pipeline.save_pretrained(tmp_path / "teacher" / "pipeline")
    with pytest.raises(InputError, match=r"4 steps do not meet the levels of a student's 2, or not always"):
        distil(recipe_of_teacher(), tmp_path / "teacher", tmp_path / "student")
    part = replace(recipe_of_teacher().distillation, teacher_scheduler="dpm++")
    distil(replace(recipe_of_teacher(), distillation=part), tmp_path / "teacher", tmp_path / "student")
    distil(recipe_of_teacher(), teacher, tmp_path / "right")  # by dpm++ as it is
    made, right = (LatentCache(tmp_path / run / "latents")[0]["latents"] for run in ("student", "right"))
    torch.testing.assert_close(made, right)


@pytest.mark.parametrize("name", ["dpm++", "unipc", "euler"])
@pytest.mark.parametrize("shift", [0.1, 1.0, 3.0, 10.0])
def test_schedulers_that_are_named_meet_the_levels(
    teacher: Path, name: Literal["dpm++", "unipc", "euler"], shift: float
) -> None:
    pipeline = load_pipeline(teacher)
    pipeline.register_to_config(diffusion={**pipeline.config["diffusion"], "shift": shift})
    pipeline.scheduler = pipeline.objective.make_scheduler(name)
    _check_levels(pipeline, replace(recipe_of_teacher().distillation, teacher_steps=20, steps=4), teacher)


def test_a_teacher_that_draws_noise_on_the_way_is_refused(teacher: Path) -> None:
    pipeline = load_pipeline(teacher)
    kind: Any = type(pipeline.scheduler)
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, algorithm_type="sde-dpmsolver++")
    with pytest.raises(InputError, match="or not always in the same way"):
        _check_levels(pipeline, recipe_of_teacher().distillation, teacher)


def test_a_student_of_other_steps_is_not_trained_on(teacher: Path, tmp_path: Path) -> None:
    recipe, student = recipe_of_teacher(), tmp_path / "student"
    distil(recipe, teacher, student)
    before = {path: path.read_bytes() for path in student.rglob("*.safetensors")}
    for changes, steps in (({"steps": 4}, "4 steps"), ({"strides": (1, 3)}, r"2 steps that begin at 1, 0\.75")):
        other = replace(recipe, distillation=replace(recipe.distillation, **changes))
        with pytest.raises(InputError, match=f"student holds a student of 2 steps, not of {steps}; name another"):
            distil(other, teacher, student)
    index = student / "latents" / "index.json"
    index.write_text(index.read_text().replace('"path": 2,', '"path": 2.0,'))  # as another tool might write it
    assert len(LatentCache(student / "latents")[0]["path"]) == 3
    index.write_text(index.read_text().replace('"path": 2.0,', ""))  # as those of an older version
    with pytest.raises(InputError, match=r"a student of straight paths, as an older version taught them, not of 2"):
        distil(recipe, teacher, student)
    assert {path: path.read_bytes() for path in student.rglob("*.safetensors")} == before
    shard = student / "latents" / "shard-00000.safetensors"
    save_file({name: tensor for name, tensor in load_file(shard).items() if name != "path"}, shard)
    with pytest.raises(InputError, match="lacks the paths of its noise"):
        LatentCache(student / "latents")


def test_a_student_that_does_not_see_the_step_before_is_not_trained_on(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, student = recipe_of_teacher(), tmp_path / "student"

    def as_it_was(recipe: Recipe, run: Path) -> Recipe:
        made = student_recipe(recipe, run)
        return replace(made, denoiser=replace(made.denoiser, self_conditioning=0.0))

    with monkeypatch.context() as patched:
        patched.setattr("vqvdm.train.distill.student_recipe", as_it_was)
        distil(recipe, teacher, student)
    with pytest.raises(InputError, match="does not see the step before, as an older version taught it; name another"):
        distil(recipe, teacher, student)


def test_steps_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match=r"teacher_steps is 8, but must be a multiple of distillation.steps, 3"):
        Recipe.load("demo", ["distillation.steps=3"])
    for strides in ("[2,3]", "[1,2,2,2]"):
        with pytest.raises(InputError, match=r"strides is \[.*\], but must be 4 numbers \(.*\) that add up to 8 "):
            Recipe.load("demo", [f"distillation.strides={strides}"])
    assert Recipe.load("demo", ["distillation.strides=[1,2,2,3]"]).distillation.strides == (1, 2, 2, 3)


def test_levels_that_do_not_fall_are_no_cache(teacher: Path, tmp_path: Path) -> None:
    recipe, student = recipe_of_teacher(), tmp_path / "student"
    distil(replace(recipe, distillation=replace(recipe.distillation, strides=(1, 3))), teacher, student)
    index = student / "latents" / "index.json"
    found = json.loads(index.read_text())
    assert found["sigmas"] == [1.0, 0.75]
    for sigmas in ([1.0], [1.0, 1.0], [0.75, 0.5], [1.0, 0.0]):
        index.write_text(json.dumps({**found, "sigmas": sigmas}))
        with pytest.raises(InputError, match=r"is damaged.* sigmas are \[.*must fall from 1, one for each step"):
            LatentCache(student / "latents")


def test_a_recipe_of_an_older_run_is_read(tmp_path: Path) -> None:
    held = "distillation:\n  times: uniform\n  scheduler: euler\n"
    old = Recipe.load("demo").to_yaml().replace("distillation:\n", held)
    (tmp_path / "old.yaml").write_text(old)
    assert Recipe.load(tmp_path / "old.yaml") == Recipe.load("demo")
    (tmp_path / "old.yaml").write_text(old.replace("scheduler: euler", "scheduler: unipc"))
    with pytest.raises(InputError, match=r"unknown key 'distillation.scheduler'"):
        Recipe.load(tmp_path / "old.yaml")


def test_a_finished_student_names_the_setting_that_trains_it_longer(
    teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for held_out in (0, 4):
        recipe, student = recipe_of_teacher(), tmp_path / f"{held_out}"
        recipe = replace(recipe, distillation=replace(recipe.distillation, held_out=held_out))
        distil(recipe, teacher, student)
        capfd.readouterr()
        distil(recipe, teacher, student)
        assert "to train longer, raise distillation.training.steps" in capfd.readouterr().err


def test_several_processes_are_refused(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_process(), "num_processes", 2)
    with pytest.raises(InputError, match="vqvdm distill runs in one process; start it without torchrun"):
        distil(recipe_of_teacher(), teacher, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_what_cannot_be_distilled_is_refused(teacher: Path, tmp_path: Path) -> None:
    recipe = recipe_of_teacher()
    with pytest.raises(InputError, match="teacher's own folder"):
        distil(recipe, teacher, teacher)
    with pytest.raises(InputError, match="holds no pipeline"):
        distil(recipe, tmp_path, tmp_path / "student")
    pipeline = load_pipeline(teacher)
    stated = {**pipeline.config["diffusion"], "prediction": "v_prediction"}
    pipeline.register_to_config(diffusion=stated)
    (tmp_path / "other").mkdir()
    pipeline.save_pretrained(tmp_path / "other" / "pipeline")
    with pytest.raises(InputError, match="predicts v_prediction"):
        distil(recipe, tmp_path / "other", tmp_path / "student")


def test_a_teacher_of_other_latents_is_refused_before_anything_is_written(teacher: Path, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    shutil.copytree(teacher, run)
    index = run / "latents" / "index.json"
    index.write_text(index.read_text().replace(LatentCache(run / "latents").index["tokenizer"], "0" * 16))
    with pytest.raises(InputError, match=r"has another tokenizer than .*latents.*vqvdm train denoiser '.*my run'"):
        distil(recipe_of_teacher(), run, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_latents_of_other_clips_are_refused_before_anything_is_written(teacher: Path, tmp_path: Path) -> None:
    recipe, run = recipe_of_teacher(), shutil.copytree(teacher, tmp_path / "teacher")
    index = json.loads((run / "latents" / "index.json").read_text())
    index["data"] = {"toy_clips": recipe.data.toy_clips + 1}
    (run / "latents" / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"data\.toy_clips \d+ there, \d+ asked for.* vqvdm encode .*teacher"):
        distil(recipe, run, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_weights_are_taken_over_and_classes_of_another_number_begin_as_none(teacher: Path) -> None:
    from vqvdm.denoiser import VideoDenoiser

    other = load_pipeline(teacher).denoiser
    settings = {name: value for name, value in other.config.items() if not name.startswith("_")}
    fresh = VideoDenoiser(**{**settings, "num_classes": 7})
    start_denoiser_from(fresh, other)
    assert torch.equal(fresh.stem.weight, other.stem.weight)
    assert torch.equal(fresh.class_embed.weight, other.class_embed.weight[[-1]].expand(8, -1))
    with pytest.raises(InputError, match="another architecture"):
        start_denoiser_from(VideoDenoiser(**{**settings, "channels": (16, 16)}), other)


def test_pairs_without_classes_have_the_frame_rates_they_were_made_for(tmp_path: Path) -> None:
    recipe = recipe_of_teacher()
    model = {**recipe.denoiser.model, "num_classes": 0}
    recipe = replace(
        recipe,
        denoiser=replace(recipe.denoiser, model=model),
        sampling=replace(recipe.sampling, guidance_scale=1.0),
        distillation=replace(recipe.distillation, teacher_guidance=None),
    )
    train_teacher(recipe, tmp_path / "teacher")
    distil(recipe, tmp_path / "teacher", tmp_path / "student")
    pairs, pipeline = LatentCache(tmp_path / "student" / "latents"), load_pipeline(tmp_path / "teacher")
    pipeline.set_progress_bar_config(disable=True)
    assert set(pairs.fps.tolist()) == {8.0, 9.0}
    for number in range(2):
        pair = pairs[number]
        settings = {"num_inference_steps": 4, "latents": pair["path"][:1], "output_type": "latent"}
        right, wrong = (
            pipeline(fps=fps, **settings).frames[0] for fps in (float(pair["fps"]), 17 - float(pair["fps"]))
        )
        assert (pair["latents"] - right).abs().mean() < 0.2 * (pair["latents"] - wrong).abs().mean()


def test_pairs_are_made_anew_when_the_teacher_samples_in_another_way(teacher: Path) -> None:
    pipeline, part = load_pipeline(teacher), replace(recipe_of_teacher().distillation, teacher_guidance=None)
    names = {_digest(pipeline, part), _digest(pipeline, replace(part, teacher_guidance=3.0))}
    pipeline.register_to_config(guidance_interval={"low": 0.2, "high": 0.9})
    names.add(_digest(pipeline, part))
    pipeline.scheduler = pipeline.objective.make_scheduler("unipc")
    names.add(_digest(pipeline, part))
    assert len(names) == 4
