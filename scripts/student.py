#!/usr/bin/env python
"""Teach the toy world's model a student of few steps, and score both, for docs/results.md's table of students.

scripts/student.py runs/bundled distillation.pairs=65536 distillation.training.steps=12000 --clips 512 --seeds 0,1

Into a folder that is not there yet goes the model that comes with the package, with the recipe `toy`; a run's own model
is taken as it is, by its own recipe. Then clips are encoded, of which the student is shown classes, rates and given
frames, and all goes as `vqvdm distill` does it. Four rows a seed: the teacher, the teacher in the student's steps, and
the student in its own and in half of them. The same command goes on where it was interrupted; rows in the student's
scores.json are not made again.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path

import torch
from guidance import COLUMNS, rows_in

from vqvdm.evaluation.report import table
from vqvdm.files import whole_folder, write_text
from vqvdm.loading import load_pipeline, pick_device, pick_dtype
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.recipe import Recipe
from vqvdm.train.distill import distil
from vqvdm.verbs.encode import encode
from vqvdm.verbs.evaluate import Options, SamplesScorer


def main() -> None:
    """Distil, score and tabulate."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="the teacher's folder; beside it the student's is made, with -student")
    parser.add_argument("overrides", nargs="*", help="changes of the recipe as key=value")
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--seeds", default="0,1", help="of what is generated, and of the real clips")
    parser.add_argument("--reference", default="toy", help="as in `vqvdm evaluate samples`")
    asked = parser.parse_args()

    run = asked.run
    if not run.exists():
        with whole_folder(run) as folder:
            put_bundled(folder)
    recipe = Recipe.load(run, asked.overrides)
    encode(recipe, run)  # as far as that was not done
    student = run.with_name(f"{run.name}-student")
    distil(recipe, run, student)

    teacher, pupil = load(run), load(student)
    report, steps = student / "scores.json", recipe.distillation.steps
    of = {"clips": asked.clips, "reference": asked.reference, "dtype": str(teacher.dtype)}
    of |= {"models": [teacher.fingerprint(), pupil.fingerprint()]}
    rows = rows_in(report, of)
    for seed in map(int, asked.seeds.split(",")):
        options = Options(clips=asked.clips, split="train", seed=seed)
        # One pipeline takes the networks by turns, so that the real clips are measured once.
        pipeline = load(run)
        scorer = SamplesScorer(str(run), pipeline, None, asked.reference, options, asked.clips)
        for name, model, number in (
            ("teacher", teacher, teacher.config["num_inference_steps"]),
            ("teacher", teacher, steps),
            ("student", pupil, steps),
            ("student", pupil, max(steps // 2, 1)),
        ):
            key = f"{name}, {number} steps, seed {seed}"
            if key not in rows:
                pipeline.register_modules(denoiser=model.denoiser, scheduler=model.scheduler)
                pipeline.register_to_config(about=model.config["about"])  # where a student's steps begin
                guidance = model.config["guidance_scale"]
                metrics = scorer.metrics({"num_inference_steps": number, "guidance_scale": guidance})
                rows[key] = {figure: metrics[figure]["value"] for figure in COLUMNS if figure in metrics}
                write_text(report, json.dumps({"of": of, "rows": rows}, indent=1))
    shown = [name for name in COLUMNS if any(name in row for row in rows.values())]
    cells = [[key, *(f"{row[name]:.4g}" for name in shown)] for key, row in rows.items()]
    print(table([f"of {asked.clips} clips", *shown], cells))


def put_bundled(run: Path) -> None:
    """The model that comes with the package as a run, in single precision."""
    pipeline = load_pipeline("toy", "cpu", torch.float32)
    pipeline.tokenizer.save_pretrained(run / "tokenizer")
    pipeline.save_pretrained(run / "pipeline")
    Recipe.load("toy").save(run / "recipe.yaml")


def load(folder: Path) -> VQVDMPipeline:
    """A run's pipeline on the best device, as `vqvdm evaluate samples` loads it."""
    device = pick_device()
    return load_pipeline(str(folder), str(device), pick_dtype("auto", device))


if __name__ == "__main__":
    main()
