"""Distillation: the pairs are what the teacher makes of their noise, and the student begins as the teacher."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiny_training import give_tokenizer, tiny_recipe
from vqvdm.errors import InputError
from vqvdm.latents import LatentCache, noise_of
from vqvdm.loading import load_pipeline
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.recipe import DistillationRecipe, Recipe
from vqvdm.train.checkpoint import latest_checkpoint
from vqvdm.train.denoiser import DenoiserStage, train_denoiser
from vqvdm.train.distill import _digest, distil
from vqvdm.train.loop import make_accelerator
from vqvdm.train.order import Batch
from vqvdm.train.start_from import start_denoiser_from


def recipe_of_teacher() -> Recipe:
    recipe = tiny_recipe()
    part = DistillationRecipe(
        pairs=10, teacher_steps=3, teacher_guidance=3.0, steps=2, training=recipe.denoiser.training
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


def test_a_student_learns_what_its_teacher_makes_of_noise(teacher: Path, tmp_path: Path) -> None:
    recipe, student = recipe_of_teacher(), tmp_path / "student"
    made = load_pipeline(distil(recipe, teacher, student))
    made.set_progress_bar_config(disable=True)
    assert (made.config["num_inference_steps"], made.config["guidance_scale"]) == (2, 1.0)
    assert made.config["about"]["class_dropout"] == 0
    assert made("left", output_type="latent").frames.isfinite().all()

    pairs, own, pipeline = LatentCache(student / "latents"), LatentCache(teacher / "latents"), load_pipeline(teacher)
    pipeline.set_progress_bar_config(disable=True)
    assert len(pairs) == 10
    for number in (0, 7):
        pair, clip = pairs[number], own[number]
        assert torch.equal(pair["noise"], noise_of(int(pairs._entries["seed"][number]), pairs.latent_shape))
        assert (pair["class_label"], pair["fps"]) == (clip["class_label"], clip["fps"])
        settings = {"num_inference_steps": 3, "guidance_scale": 3.0, "fps": float(pair["fps"])}
        label = int(pair["class_label"])
        expected = pipeline(label, latents=pair["noise"][None], output_type="latent", **settings).frames[0]
        assert (pair["latents"] - expected).abs().mean() < 0.02 * expected.std()  # bf16, another batch, float16

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
        torch.testing.assert_close(checkpoint.tensors("model")[name], value)


def test_the_noise_of_a_pair_is_the_noise_of_its_loss(teacher: Path, tmp_path: Path) -> None:
    recipe = recipe_of_teacher()
    distil(recipe, teacher, tmp_path / "student")
    pairs, pipeline = LatentCache(tmp_path / "student" / "latents"), load_pipeline(teacher)
    stage = DenoiserStage(recipe, make_accelerator(recipe.denoiser.training, tmp_path), pairs, pipeline.tokenizer)
    items = [pairs[number] for number in range(4)]
    batch = Batch({name: torch.stack([item[name] for item in items]) for name in items[0]}, range(4), 0, 4, last=True)
    stage.forward = lambda noisy, *_, **__: batch["noise"] - batch["latents"]  # type: ignore[assignment]  the straight path
    assert float(stage.denoising_loss(batch)) < 1e-10


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
        settings = {"num_inference_steps": 3, "latents": pair["noise"][None], "output_type": "latent"}
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
