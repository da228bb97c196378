"""A student of few steps (`vqvdm distill`), each of which goes as far as several of its teacher's.

The teacher turns noise into latents, guided, in many steps. A copy of it then learns to go in one step of Euler's
method where several of them lead ("progressive distillation": Salimans and Ho 2022, with a flow's velocity in the place
of x0, and with all of the student's steps at once, in one round). Guidance is learnt along (Meng et al. 2022), so a
step is one pass. What it replaced, to learn the whole way at once from every level ("reflow": Liu et al. 2022), stands
in docs/log.md.

A network of a student's size learns a few thousand paths by heart, and its loss then says little of what it makes of
others (docs/log.md, 2026-11-30). So some are held out, and the log has the loss on those as well, as `test_loss`.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvdm.denoiser import VideoDenoiser
from vqvdm.errors import InputError
from vqvdm.files import whole_folder
from vqvdm.generation import usual_batch
from vqvdm.identity import own_settings
from vqvdm.latent_index import read_index
from vqvdm.latents import LatentCache, noise_of, write_pairs
from vqvdm.loading import load_pipeline, load_tokenizer, pick_device, pick_dtype
from vqvdm.lock import sole_writer
from vqvdm.models import find_pipeline
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.processes import this_process
from vqvdm.recipe import DistillationRecipe, Recipe
from vqvdm.schedulers import set_steps
from vqvdm.train.checkpoint import latest_checkpoint
from vqvdm.train.denoiser import DenoiserStage, check_latents, train_denoiser
from vqvdm.train.optimization import autocast
from vqvdm.train.order import seed_of

_LEVEL_TOLERANCE = 2e-3  # before the shift: dpm++ begins at the last level of training, a thousandth below pure noise


def main(
    run: Path,
    *overrides: str,
    student: Path | None = None,
    device: str = "auto",
) -> None:
    """Distil a run's pipeline into one that needs few steps and one pass each; the same command again resumes.

    Args:
        run: a run folder with a trained pipeline that predicts a flow, and its latents.
        overrides: changes of the run's recipe as key=value, such as distillation.pairs=4096.
        student: the folder of the new run; by default the run's name with -student.
        device: on which the teacher samples: cpu, cuda, mps or auto.
    """
    recipe = Recipe.load(run, overrides, check_models=True)
    folder = distil(recipe, run, student or run.with_name(f"{run.name}-student"), device)
    print(f"pipeline in {folder}")


def distil(recipe: Recipe, run: Path, student: Path, device: str = "auto") -> Path:
    """Write the pairs and train the student; returns `student`/pipeline.

    Args:
        recipe: the teacher's; its distillation part is used.
        run: holds pipeline/ and latents/.
        student: a run folder of its own.
        device: on which the teacher samples.

    Raises:
        InputError: the run lacks something, its latents are of other clips, its model predicts no flow, its scheduler
            walks other levels, `student` is the run itself, or there are several processes.
    """
    recipe.check()
    if this_process().num_processes > 1:
        raise InputError("vqvdm distill runs in one process; start it without torchrun")
    if student.resolve() == run.resolve():
        raise InputError(f"--student {student} is the teacher's own folder; name another")
    trained = find_pipeline(run)
    if recipe.tokenizer is None or trained is None:
        raise InputError(f"{run} has no pipeline with a tokenizer to distil")
    teacher = load_pipeline(run, device, pick_dtype("auto", pick_device(device)))
    if teacher.objective.prediction != "flow":
        raise InputError(
            f"{run} predicts {teacher.objective.prediction}; only models of denoiser.diffusion.prediction=flow can be "
            "distilled"
        )
    if recipe.distillation.teacher_scheduler is not None:
        teacher.scheduler = teacher.objective.make_scheduler(recipe.distillation.teacher_scheduler)
    _check_levels(teacher, recipe.distillation, run)
    latents = LatentCache(run / "latents")
    tokenizer = load_tokenizer(trained / "tokenizer", "cpu")  # the teacher's may be rounded
    if latents.index["tokenizer"] != tokenizer.latents_fingerprint():
        raise InputError(
            f"{run}/pipeline has another tokenizer than {run}/latents were written by: train its denoiser on these "
            f"(vqvdm train denoiser {shlex.quote(str(run))}), then distil"
        )
    check_latents(recipe, tokenizer, latents)  # as the student's training does, after all pairs
    student.mkdir(parents=True, exist_ok=True)
    with sole_writer(student):
        learnt = student_recipe(recipe, run)
        _check_student(student, learnt)
        with whole_folder(student / "tokenizer") as folder:
            shutil.copytree(trained / "tokenizer", folder, dirs_exist_ok=True)  # with a decoder that was joined to it
        if learnt.denoiser.training.compile:
            teacher.compile()
        held_out: LatentCache | None = None
        if recipe.distillation.held_out > 0:
            _write_pairs(recipe, teacher, latents, student / "held-out", held_out=True)
            held_out = LatentCache(student / "held-out")
        _write_pairs(recipe, teacher, latents, student / "latents")
    return train_denoiser(learnt, student, "student", partial(StudentStage, held_out=held_out))


class StudentStage(DenoiserStage):
    """Stage 2 of a student, which is asked about paths that it does not learn from, too."""

    part = "distillation"

    def __init__(self, *arguments: Any, held_out: LatentCache | None) -> None:
        super().__init__(*arguments)
        self.held_out = held_out

    def write_samples(self, denoiser: VideoDenoiser, step: int, folder: Path) -> dict[str, float]:
        """Samples as of any denoiser; returns the errors on the paths held out, if any are."""
        figures = super().write_samples(denoiser, step, folder)
        return figures if self.held_out is None else {**figures, **self.held_out_errors(denoiser, self.held_out)}

    @torch.no_grad()
    def held_out_errors(self, denoiser: VideoDenoiser, held_out: LatentCache) -> dict[str, float]:
        """`test_loss`, the loss of paths held out, without given frames, and `test_loss_step_1` on, of each step."""
        device, number, steps = self.accelerator.device, len(held_out), held_out.index["path"]
        sums = torch.zeros(steps, dtype=torch.float64)
        size = usual_batch(device)
        for first in range(0, number, size):
            batch = held_out.batch(range(first, min(first + size, number)))
            path, fps = batch["path"].to(device), batch["fps"].to(device)
            labels = batch["class_label"].to(device) if self.num_classes else None
            for step in range(steps):
                walked = path, torch.full((len(path),), step, device=device), self.learnt.get("learnt_sigmas")
                before, line = self.objective.before(*walked), self.objective.chord(*walked)
                denoise = partial(denoiser, class_labels=labels, fps=fps, estimate=before)
                with autocast(device, self.training.precision):
                    sums[step] += self.objective.loss(denoise, *line).double().sum().cpu()
        errors = (sums / number).tolist()
        names = [f"test_loss_step_{step}" for step in range(1, steps + 1)]
        return {"test_loss": sum(errors) / steps, **dict(zip(names, errors, strict=True))}


def student_recipe(recipe: Recipe, run: Path) -> Recipe:
    """The recipe by which the student of the teacher in `run` is trained and samples."""
    part = recipe.distillation
    denoiser = replace(
        recipe.denoiser,
        start_from=str(run / "pipeline"),
        class_dropout=0.0,  # guidance is in what it learns
        images=0.0,
        # By what the step before took for the clip, which the path tells. Adapters would never learn to heed it.
        self_conditioning=1.0 if recipe.denoiser.lora_rank == 0 else recipe.denoiser.self_conditioning,
        diffusion=replace(recipe.denoiser.diffusion, times="uniform"),
        training=part.training,
    )
    sampling = replace(recipe.sampling, scheduler="euler", steps=part.steps, guidance_scale=1.0)
    return replace(recipe, name=f"{recipe.name}-student", denoiser=denoiser, sampling=sampling)


def _check_levels(teacher: VQVDMPipeline, part: DistillationRecipe, run: Path) -> None:
    """Raise `InputError` if the teacher does not go, always alike, from each of the student's levels to the next."""
    set_steps(teacher.scheduler, part.teacher_steps)
    sigmas = torch.as_tensor(getattr(teacher.scheduler, "sigmas", ()))
    shift = teacher.objective.shift
    levels, even = sigmas / (shift - (shift - 1) * sigmas), torch.linspace(1, 0, part.teacher_steps + 1)
    stochastic = str(teacher.scheduler.config.get("algorithm_type")).startswith("sde")
    if stochastic or levels.shape != even.shape or (levels - even)[[0, *_ends(part)]].abs().max() > _LEVEL_TOLERANCE:
        raise InputError(
            f"{run} samples by {type(teacher.scheduler).__name__}, whose {part.teacher_steps} steps do not meet the "
            f"levels of a student's {part.steps}, or not always in the same way; take "
            "distillation.teacher_scheduler=dpm++ (or unipc, or euler)"
        )


def _ends(part: DistillationRecipe) -> list[int]:
    """After how many of the teacher's steps each of the student's ends."""
    return list(accumulate(part.strides or (part.teacher_steps // part.steps,) * part.steps))


def _steps(part: DistillationRecipe) -> dict[str, Any]:
    """What the student's cache and the student itself say of its steps: how many and, if uneven, where they begin."""
    starts = [1 - end / part.teacher_steps for end in (0, *_ends(part)[:-1])]
    return {"path": part.steps, **({"sigmas": starts} if len(set(part.strides)) > 1 else {})}


def _check_student(student: Path, recipe: Recipe) -> None:
    """Raise `InputError` if a student was trained there for other steps, or otherwise, as by older versions."""
    found, wanted = read_index(student / "latents"), _steps(recipe.distillation)
    checkpoint = latest_checkpoint(student / "checkpoints" / "denoiser")
    if found is None or checkpoint is None:
        return
    if any(found.get(name) != wanted.get(name) for name in ("path", "sigmas")):
        learnt = _in_words(found) if "path" in found else "straight paths, as an older version taught them"
        raise InputError(
            f"{student} holds a student of {learnt}, not of {_in_words(wanted)}; name another folder (--student)"
        )
    sees = checkpoint.state["architecture"].get("denoiser.model.self_condition", False)
    if recipe.denoiser.self_conditioning > 0 and not sees:
        raise InputError(
            f"{student} holds a student that does not see the step before, as an older version taught it; "
            "name another folder (--student)"
        )


def _in_words(steps: Mapping[str, Any]) -> str:
    where = f" that begin at {', '.join(f'{sigma:g}' for sigma in steps['sigmas'])}" if "sigmas" in steps else ""
    return f"{steps['path']} steps{where}"


def _write_pairs(
    recipe: Recipe, teacher: VQVDMPipeline, latents: LatentCache, folder: Path, held_out: bool = False
) -> None:
    part = recipe.distillation
    number = part.held_out if held_out else part.pairs
    facts: dict[str, Any] = {
        **{name: latents.index[name] for name in ("tokenizer", "classes", "latent_shape", "data", "clip_shape")},
        **_steps(part),
        "digest": _digest(teacher, part),
    }
    with torch.inference_mode():
        write_pairs(
            _maker(teacher, latents, part, held_out),
            number,
            folder,
            facts,
            batch_size=max(usual_batch(teacher.device), 32),
            shard_size=recipe.latents.shard,
        )


def _digest(teacher: VQVDMPipeline, part: DistillationRecipe) -> str:
    """What the teacher's latents follow from, beside the noise."""
    config = teacher.config
    scale = config["guidance_scale"] if part.teacher_guidance is None else part.teacher_guidance
    interval = list(config["guidance_interval"].values())
    solver = own_settings(teacher.scheduler)
    settings = {"steps": part.teacher_steps, "guidance": scale, "interval": interval, "scheduler": solver}
    return f"{teacher.fingerprint()} {json.dumps(settings, sort_keys=True, default=str)}"


def _maker(
    teacher: VQVDMPipeline, latents: LatentCache, part: DistillationRecipe, held_out: bool
) -> Callable[[list[int]], dict[str, Tensor]]:
    """Makes paths from noise for some entries, with the classes and frame rates of the training clips in turn.

    Those held out are few, have noise of their own, and take theirs from all over the training clips.
    """
    teacher.set_progress_bar_config(disable=True)
    classes, ends = teacher.num_classes, set(_ends(part))

    def make(entries: list[int]) -> dict[str, Tensor]:
        seeds = [seed_of(0, "held out" if held_out else "pair", entry) for entry in entries]
        clips = len(latents.fps)
        chosen = [entry * clips // part.held_out if held_out else entry % clips for entry in entries]
        labels, fps = latents.class_labels[chosen], latents.fps[chosen]
        states: list[Tensor] = []

        def keep(_: VQVDMPipeline, number: int, __: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            if number + 1 in ends:
                states.append(tensors["latents"].cpu())
            return {}

        teacher(
            class_labels=labels.tolist() if classes else None,
            fps=fps.tolist(),
            latents=torch.stack([noise_of(seed, latents.latent_shape) for seed in seeds]),
            num_inference_steps=part.teacher_steps,
            guidance_scale=part.teacher_guidance,
            output_type="latent",
            callback_on_step_end=keep,
        )
        return {
            "latents": states[-1],
            "path": torch.stack(states, dim=1)[:, :-1],
            "class_label": labels,
            "fps": fps,
            "seed": torch.tensor(seeds, dtype=torch.int64),
        }

    return make
