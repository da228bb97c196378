"""`vqvdm demo`: train both stages on the toy world, sample, judge, and show all of it on one page.

Each stage keeps what it has done in the run folder, so the same command resumes an interrupted demo and only names the
page of a finished one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vqvdm import __version__
from vqvdm.errors import InputError
from vqvdm.files import write_text
from vqvdm.judge import CLASSES
from vqvdm.recipe import Recipe, run_folder
from vqvdm.structure import plain

STAGES = ("tokenizer", "latents", "denoiser", "samples", "reconstructions", "report")
RATES = (8.0, 16.0)  # frames per second at which every class is sampled


def main(*overrides: str, recipe: str = "demo", run: Path | None = None, clips: int = 8) -> None:
    """Train both stages on the built-in toy world, sample every class, judge the samples, and write a page.

    The same command again goes on where it was stopped, and only names the page when all is done.

    Args:
        overrides: changes of the recipe as key=value, such as denoiser.training.steps=500.
        recipe: a packaged recipe or a YAML file, of the toy world.
        run: folder for everything; by default runs/ and the recipe's name.
        clips: clips generated of each class at each of two frame rates.
    """
    settings = Recipe.load(recipe, overrides)
    demo(settings, run_folder(recipe, settings, run), clips)


def demo(recipe: Recipe, run: Path, clips: int = 8) -> Path:
    """Run all stages of the demo that are not yet done in the folder `run`; return the page.

    Args:
        recipe: of the toy world, with a tokenizer.
        run: the run folder; made if absent.
        clips: clips of each class at each frame rate, generated and unseen.

    Raises:
        InputError: the recipe is not of the toy world, or does not fit what the folder holds.
        KeyboardInterrupt: Ctrl-C; the same call goes on from there.
    """
    _check(recipe, run, clips)
    page = run / "index.html"
    if _is_finished(recipe, run, clips):
        print(f"Everything is done already (delete {run} to start anew).")
        _say_result(json.loads((run / "report.json").read_text(encoding="utf-8")), page)
        return page
    recipe.check_models()
    try:
        report = _run_stages(recipe, run, clips)
    except KeyboardInterrupt:
        print(f"\nWhat is done is kept in {run}; the same command goes on from there.", flush=True)
        raise
    _say_result(report, page)
    return page


def _run_stages(recipe: Recipe, run: Path, clips: int) -> dict[str, Any]:
    # Here, so that a finished demo answers without loading torch.
    from vqvdm.demo.bundled import bundled_clips
    from vqvdm.demo.clips import generate_clips, judge_clips, reconstruct_clips
    from vqvdm.demo.files import write_sheet_of_classes, write_videos
    from vqvdm.demo.page import write_first_page, write_page
    from vqvdm.demo.report import make_report
    from vqvdm.train.denoiser import train_denoiser
    from vqvdm.train.tokenizer import train_tokenizer
    from vqvdm.verbs.encode import encode

    assert recipe.tokenizer is not None
    data, sampling = recipe.data, recipe.sampling
    if bundled := bundled_clips(run):
        page = write_first_page(run, recipe.name, bundled)
        print(f"What the model that comes with the package makes: {page.resolve().as_uri()}", flush=True)
    clock = Clock(run / "demo.json")
    shape = f"clips of {data.frames} frames of {data.size}x{data.size}"
    with clock.stage("tokenizer", f"{recipe.tokenizer.training.steps} updates on {shape}"):
        train_tokenizer(recipe, run)
    with clock.stage("latents", "the training clips through the tokenizer, once"):
        encode(recipe, run)
    with clock.stage("denoiser", f"{recipe.denoiser.training.steps} updates on the latents"):
        train_denoiser(recipe, run)
    key = result_key(recipe, run, clips)
    what = f"{clips} of each of {len(CLASSES)} classes at {RATES[0]:g} and at {RATES[1]:g} frames per second"
    with clock.stage("samples", f"{what}, {sampling.steps} steps of {sampling.scheduler}"):
        generated = generate_clips(recipe, run, clips, RATES, key)
    with clock.stage("reconstructions", f"{len(RATES) * len(CLASSES) * clips} unseen clips"):
        unseen = reconstruct_clips(recipe, run, clips, RATES)
    with clock.stage("report", "judge, videos, figures, page"):
        generated, unseen = judge_clips(generated, unseen)
        write_videos(run / "videos", generated, unseen)
        write_sheet_of_classes(run / "sheet.png", generated, unseen)
        report = {**make_report(recipe, run, generated, unseen, clock.seconds()), "clips": clips, "key": key}
        write_page(recipe, run, report, generated, unseen, bundled)
        # Last: this file says that the demo is complete.
        write_text(run / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


class Clock:
    """Says which stage begins, and keeps the seconds of each, added up over calls, in a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.past: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.running, self.started = "", 0.0

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Time one of `STAGES`, also if it is interrupted."""

        print(f"{STAGES.index(name) + 1}/{len(STAGES)} {name}: {what}", flush=True)
        self.running, self.started = name, time.perf_counter()
        try:
            yield
        finally:
            self.past, self.running = self.seconds(), ""
            if self.path.parent.is_dir():
                write_text(self.path, json.dumps(self.past, indent=1) + "\n")

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage so far, the running one included."""
        passed = {self.running: time.perf_counter() - self.started} if self.running else {}
        names = [name for name in STAGES if name in self.past or name in passed]
        return {name: round(self.past.get(name, 0.0) + passed.get(name, 0.0), 2) for name in names}


def result_key(recipe: Recipe, run: Path, clips: int) -> str:
    """Hash of all that the samples and the page follow from: the weights, the sampling settings, this version."""
    digest = hashlib.sha256(json.dumps([__version__, clips, RATES, plain(recipe.sampling)]).encode())
    for path in sorted((run / "pipeline").rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _check(recipe: Recipe, run: Path, clips: int) -> None:
    if clips < 1:
        raise InputError(f"--clips must be at least 1, not {clips}")
    if recipe.data.path != "toy" or recipe.tokenizer is None:
        problem = "diffuses pixels (tokenizer: null)" if recipe.tokenizer is None else f"reads {recipe.data.path!r}"
        raise InputError(
            f"recipe {recipe.name} {problem}; the demo judges clips of the built-in world, data.path=toy, and shows "
            "both stages. For other clips: vqvdm train tokenizer, vqvdm encode, vqvdm train denoiser, vqvdm sample"
        )
    if not (run / "recipe.yaml").is_file():
        return
    # The networks' architecture is compared with the checkpoints by the stages themselves.
    there, asked = asdict(Recipe.load(run / "recipe.yaml").data), asdict(recipe.data)
    changed = [name for name in asked if name != "workers" and there[name] != asked[name]]
    if changed:
        listed = ", ".join(f"data.{name} is {there[name]} there, {asked[name]} asked for" for name in changed)
        raise InputError(f"{run} was made with another recipe: {listed}. Take another folder (--run), or delete it")


def _is_finished(recipe: Recipe, run: Path, clips: int) -> bool:
    files = [run / name for name in ("recipe.yaml", "report.json", "index.html", "sheet.png")]
    if not all(path.is_file() for path in files):
        return False
    there = Recipe.load(run / "recipe.yaml")
    same = replace(there, data=replace(there.data, workers=recipe.data.workers)) == recipe
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    return same and report["key"] == result_key(recipe, run, clips)


def _say_result(report: dict[str, Any], page: Path) -> None:
    psnr, ratio = report["reconstruction_psnr_db"], report["displacement_ratio"]
    rows = {
        "unseen clips, reconstructed": f"{psnr:.1f} dB PSNR",
        "generated clips of the asked class": f"{report['judge_accuracy']:.0%} (chance {report['judge_chance']:.0%})",
        "motion per frame, 16 against 8 fps": "not measurable" if ratio is None else f"{ratio:.2f} (half is right)",
        "time, all stages": f"{report['seconds'] / 60:.1f} minutes",
    }
    print()
    for name, value in rows.items():
        print(f"  {name:<36}{value}")
    print(f"\nopen {page.resolve().as_uri()}", flush=True)
