#!/usr/bin/env python
"""Train variants of a recipe for equal time, score each, and print one table.

scripts/compare.py scripts/tables/tokenizers.yaml --minutes 12 data.path=clips

Each variant trains alone, in a folder of its own below --folder, by scripts/train_minutes.py: every learning rate
follows the clock to its end. What is finished is kept; the same command goes on. Denoisers share the tokenizer and the
latents of the run named by --latents.

The file of variants holds `recipe`, `stage` (tokenizer or denoiser), `evaluate` (further words for `vqvdm evaluate`),
`common` (overrides of all) and `variants` (name: overrides). When a loss enters may be a share: quantize_after=30%.
A variant of `first`, `share` and `then` trains with the overrides of `first` for that share of the time, and starts
from what comes of it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import yaml

from vqvdm.evaluation.report import table as markdown
from vqvdm.structure import listed

SCRIPTS = Path(__file__).parent
NEVER = 10**6
COLUMNS = {
    "tokenizer": ("psnr", "ssim", "lpips_vgg", "lpips_alex", "rfvd", "codebook_usage", "decode_seconds"),
    "denoiser": ("fvd", "kvd", "judge", "outline", "motion", "precision", "recall"),
}


def main() -> None:
    """Train, score and tabulate."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", type=Path, help="the file of variants")
    parser.add_argument("overrides", nargs="*", help="changes of all variants as key=value")
    parser.add_argument("--minutes", type=float, required=True, help="of training, each")
    parser.add_argument("--processor", action="store_true", help="count processor time: see train_minutes.py")
    parser.add_argument("--folder", type=Path, help="by default runs/ and the name of the table")
    parser.add_argument("--only", help="names of variants, with commas between")
    parser.add_argument("--latents", type=Path, help="a run with tokenizer/ and latents/, for denoisers")
    parser.add_argument("--clips", type=int, help="of each side when scored, in the place of the table's")
    asked = parser.parse_intermixed_args()
    table = yaml.safe_load(asked.table.read_text(encoding="utf-8"))
    if asked.clips is not None:
        table["evaluate"] = with_clips(table.get("evaluate", []), asked.clips)
    folder = asked.folder or Path("runs") / asked.table.stem
    rows = {}
    for name, changes in table["variants"].items():
        if asked.only and name not in listed(asked.only):
            continue
        rows[name] = one(table, folder / name, changes or [], asked)
        print(as_table(rows, COLUMNS[table["stage"]]), flush=True)


def with_clips(words: list[Any], clips: int) -> list[Any]:
    """The words for `vqvdm evaluate`, with another number of clips."""
    at = words.index("--clips") if "--clips" in words else len(words)
    return [*words[:at], "--clips", clips, *words[at + 2 :]]


def one(table: dict[str, Any], run: Path, changes: list[str] | dict[str, Any], asked: Namespace) -> dict[str, Any]:
    """The figures of a variant, trained and scored unless that has been done."""
    stage, report = table["stage"], run / "scores.json"
    common, minutes = table.get("common", []), asked.minutes
    words = {
        "recipe": table["recipe"],
        "common": common,
        "changes": changes,
        "overrides": asked.overrides,
        "minutes": minutes,
        "processor": asked.processor,
        "evaluate": table.get("evaluate", []),
        "latents": asked.latents and str(asked.latents),
    }
    check_same(run / "words.json", words)
    if not report.exists():
        if isinstance(changes, dict):
            first = run / "first"
            overrides = [*common, *changes["first"], *asked.overrides]
            train(table, first, overrides, minutes * changes["share"], asked)
            minutes, changes = minutes * (1 - changes["share"]), [*changes["then"], f"{stage}.start_from={first}"]
        overrides = [*common, *changes, *asked.overrides]
        train(table, run, overrides, minutes, asked)
        verb = {"tokenizer": "reconstructions", "denoiser": "samples"}[stage]
        clips = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["data"]["path"]
        against = ["--reference", clips] if stage == "denoiser" else [clips]
        call("-m", "vqvdm", "evaluate", verb, run, *against, *map(str, table.get("evaluate", [])), "--report", report)
    metrics = json.loads(report.read_text(encoding="utf-8"))["metrics"]
    figures = {name: figure["value"] for name, figure in metrics.items()}
    if stage == "tokenizer":
        figures["decode_seconds"] = decode_seconds(run)
    return {"updates": updates_of(run, stage), **figures}


def check_same(path: Path, words: dict[str, Any]) -> None:
    """Refuse to go on with a variant that was begun with other words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(words, indent=1), encoding="utf-8")
    elif (before := json.loads(path.read_text(encoding="utf-8"))) != words:
        sys.exit(f"{path.parent} was begun as {before}, not as {words}: delete it, or name another --folder")


def train(table: dict[str, Any], run: Path, overrides: list[str], minutes: float, asked: Namespace) -> None:
    """Train a variant for so long, from its beginning: the clock of a training that was stopped is lost."""
    stage, done = table["stage"], run / "trained"
    if done.exists():
        return
    prepare(run, asked.latents)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    (run / "log.jsonl").unlink(missing_ok=True)
    words = [stage, table["recipe"], *overrides, f"{stage}.training.sample_every={NEVER}", "--run", run]
    call(SCRIPTS / "train_minutes.py", *words, "--minutes", minutes, *(["--processor"] if asked.processor else []))
    done.touch()


def prepare(run: Path, latents: Path | None) -> None:
    """A run folder with what a denoiser needs."""
    run.mkdir(parents=True, exist_ok=True)
    for part in ("tokenizer", "latents") if latents else ():
        if not (run / part).exists():
            (run / part).symlink_to((latents / part).resolve())


def decode_seconds(run: Path) -> float:
    """Of one clip, by `vqvdm benchmark`; measured once."""
    speed = run / "speed.json"
    if not speed.exists():
        printed = call("-m", "vqvdm", "benchmark", "--recipe", run, "--stages", "decode")
        speed.write_text(printed.splitlines()[-1], encoding="utf-8")
    return json.loads(speed.read_text(encoding="utf-8"))["decode_seconds"]


def call(*words: Any) -> str:
    """What a script or module of Python prints; its complaints are ours."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[1:])}\n{done.stderr[-2000:]}")
    return done.stdout


def updates_of(run: Path, stage: str) -> int:
    """Of a finished training."""
    records = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return max(record["step"] for record in records if record["stage"] == stage)


def as_table(rows: dict[str, dict[str, Any]], columns: tuple[str, ...]) -> str:
    """Markdown."""
    shown = [name for name in columns if any(name in row for row in rows.values())]
    cells = [
        [name, str(row["updates"])] + [f"{row[column]:.4g}" if column in row else "" for column in shown]
        for name, row in rows.items()
    ]
    return markdown(["variant", "updates", *shown], cells)


if __name__ == "__main__":
    main()
