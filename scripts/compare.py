#!/usr/bin/env python
"""Train variants of a recipe for equal time, score each, and print one table.

scripts/compare.py scripts/tables/tokenizers.yaml --minutes 12 data.path=clips

Each variant trains alone, in a folder of its own below --folder: a few updates tell its speed, and its number of
updates follows from that, so that every learning rate ends where it should. What is finished is kept; the same command
goes on. Denoisers share the tokenizer and the latents of the run named by --latents.

The file of variants holds `recipe`, `stage` (tokenizer or denoiser), `evaluate` (further words for `vqvdm evaluate`),
`common` (overrides of all) and `variants` (name: overrides). A number of updates may be a share: quantize_after=30%.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from vqvdm.evaluation.report import table as markdown
from vqvdm.structure import listed

TRIAL, SKIPPED = 24, 8  # updates that tell the speed, of which the first do not count
COLUMNS = {
    "tokenizer": ("psnr", "ssim", "lpips_vgg", "lpips_alex", "rfvd", "codebook_usage"),
    "denoiser": ("fvd", "kvd", "judge", "motion", "precision", "recall"),
}


def main() -> None:
    """Train, score and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", type=Path, help="the file of variants")
    parser.add_argument("overrides", nargs="*", help="changes of all variants as key=value")
    parser.add_argument("--minutes", type=float, required=True, help="of training, each")
    parser.add_argument("--folder", type=Path, help="by default runs/ and the name of the table")
    parser.add_argument("--only", help="names of variants, with commas between")
    parser.add_argument("--latents", type=Path, help="a run with tokenizer/ and latents/, for denoisers")
    asked = parser.parse_intermixed_args()
    table = yaml.safe_load(asked.table.read_text(encoding="utf-8"))
    folder = asked.folder or Path("runs") / asked.table.stem
    rows = {}
    for name, changes in table["variants"].items():
        if asked.only and name not in listed(asked.only):
            continue
        overrides = [*table.get("common", []), *(changes or []), *asked.overrides]
        rows[name] = one(table, folder / name, overrides, asked.minutes, asked.latents)
        print(as_table(rows, COLUMNS[table["stage"]]), flush=True)


def one(table: dict[str, Any], run: Path, overrides: list[str], minutes: float, latents: Path | None) -> dict[str, Any]:
    """The figures of a variant, trained and scored unless that has been done."""
    stage, report = table["stage"], run / "scores.json"
    if not report.exists():
        train = ["train", stage, table["recipe"]]
        quiet = [f"{stage}.training.{key}=1000000" for key in ("sample_every", "checkpoint_every")]
        if not (run / "steps").exists():
            trial = run.with_name(f".{run.name}-trial")
            prepare(trial, latents)
            few = [f"{stage}.training.steps={TRIAL}", f"{stage}.training.log_every=1", *quiet]
            vqvdm(*train, *resolved(overrides, 0), "--run", trial, *few)
            seconds = [record["seconds"] for record in log_of(trial, stage)]
            speed = (seconds[-1] - seconds[SKIPPED - 1]) / (len(seconds) - SKIPPED)
            shutil.rmtree(trial)
            run.mkdir(parents=True, exist_ok=True)
            (run / "steps").write_text(str(max(round(60 * minutes / speed), 1)))
        prepare(run, latents)
        steps = int((run / "steps").read_text())
        vqvdm(*train, *resolved(overrides, steps), "--run", run, f"{stage}.training.steps={steps}", *quiet[:1])
        verb = {"tokenizer": "reconstructions", "denoiser": "samples"}[stage]
        clips = next((word.partition("=")[2] for word in overrides if word.startswith("data.path=")), "toy")
        against = ["--reference", clips] if stage == "denoiser" else [clips]
        vqvdm("evaluate", verb, run, *against, *map(str, table.get("evaluate", [])), "--report", report)
    last = log_of(run, stage)[-1]
    metrics = json.loads(report.read_text(encoding="utf-8"))["metrics"]
    return {"updates": last["step"], "minutes": last["seconds"] / 60, **{k: v["value"] for k, v in metrics.items()}}


def prepare(run: Path, latents: Path | None) -> None:
    """A run folder with what a denoiser needs."""
    run.mkdir(parents=True, exist_ok=True)
    for part in ("tokenizer", "latents") if latents else ():
        if not (run / part).exists():
            (run / part).symlink_to((latents / part).resolve())


def vqvdm(*words: str | Path) -> None:
    """Run a command of the package; its complaints are ours."""
    command = [sys.executable, "-m", "vqvdm", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"vqvdm {' '.join(command[3:])}\n{done.stderr[-2000:]}")


def resolved(overrides: list[str], steps: int) -> list[str]:
    """Shares of the training, such as loss.quantize_after=30%, as updates."""
    words = []
    for override in overrides:
        key, _, value = override.partition("=")
        words.append(f"{key}={round(steps * float(value[:-1]) / 100)}" if value.endswith("%") else override)
    return words


def log_of(run: Path, stage: str) -> list[dict[str, Any]]:
    """The records of a stage's updates."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [record for record in records if record["stage"] == stage and "seconds" in record]


def as_table(rows: dict[str, dict[str, Any]], columns: tuple[str, ...]) -> str:
    """Markdown."""
    shown = [name for name in columns if any(name in row for row in rows.values())]
    cells = [
        [name, str(row["updates"]), f"{row['minutes']:.1f}"]
        + [f"{row[column]:.4g}" if column in row else "" for column in shown]
        for name, row in rows.items()
    ]
    return markdown(["variant", "updates", "minutes", *shown], cells)


if __name__ == "__main__":
    main()
