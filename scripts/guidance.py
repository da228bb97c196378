#!/usr/bin/env python
"""Score a model with several kinds and strengths of guidance, from the same noise, and print one table.

scripts/guidance.py runs/demo --reference toy --clips 256 --weaker runs/demo-early

The best FVD and the best accuracy rarely have the same scale: both are named below the table. With --weaker, a run or
pipeline of the same latents and classes trained less or smaller, autoguidance is scored too.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from vqvdm.denoiser import VideoDenoiser
from vqvdm.evaluation.report import table
from vqvdm.files import write_text
from vqvdm.loading import load_pipeline, pick_device, pick_dtype
from vqvdm.verbs.evaluate import Options, SamplesScorer

COLUMNS = ("fvd", "kvd", "judge", "outline", "precision", "recall", "density", "coverage")


def main() -> None:
    """Score and tabulate."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a run or pipeline folder")
    parser.add_argument("--reference", required=True, help="as in `vqvdm evaluate samples`")
    parser.add_argument("--split", default="train", help="of the reference, where it has splits")
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0, help="of what is generated, and of the real clips")
    parser.add_argument("--steps", type=int, help="of the model's scheduler")
    parser.add_argument("--scales", default="1,1.5,2,3,4")
    parser.add_argument("--intervals", default="0-0.6,0.3-0.8,0.5-1", help="noise levels, 0 clean to 1 noise")
    parser.add_argument("--rescale", type=float, default=0.7)
    parser.add_argument("--weaker", help="a run or pipeline folder, for autoguidance")
    parser.add_argument("--report", type=Path, help="a JSON file for the rows; rows found in it are not made again")
    asked = parser.parse_args()

    device = pick_device()
    pipeline = load_pipeline(asked.model, str(device), pick_dtype("auto", device))
    options = Options(clips=asked.clips, split=asked.split, seed=asked.seed)
    scorer = SamplesScorer(asked.model, pipeline, None, asked.reference, options, asked.clips)
    settings = ("model", "reference", "split", "clips", "seed", "steps", "weaker")
    words = {name: value for name, value in vars(asked).items() if name in settings}
    words |= {"fingerprint": pipeline.fingerprint(), "dtype": str(pipeline.dtype)}
    rows = rows_in(asked.report, words)
    weaker = load_pipeline(asked.weaker, str(device), pipeline.dtype).denoiser if asked.weaker else None
    for name, arguments in variants(asked, weaker).items():
        if name not in rows:
            metrics = scorer.metrics({"num_inference_steps": asked.steps, **arguments})
            rows[name] = {key: metrics[key]["value"] for key in COLUMNS if key in metrics}
        if asked.report:
            write_text(asked.report, json.dumps({"of": words, "rows": rows}, indent=1))
        print(as_table(rows), flush=True)


def rows_in(report: Path | None, of: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The rows that a report holds, if they are of the same as those to be made; ends the script otherwise."""
    if report is None or not report.exists():
        return {}
    before = json.loads(report.read_text(encoding="utf-8"))
    if before["of"] != of:
        sys.exit(f"{report} holds rows of {before['of']}, not of {of}: move or delete it, or name another one")
    return before["rows"]


def variants(asked: Any, weaker: VideoDenoiser | None = None) -> dict[str, dict[str, Any]]:
    """Arguments of the pipeline's call by the name of the row."""
    scales = [float(scale) for scale in asked.scales.split(",")]
    rows: dict[str, dict[str, Any]] = {f"scale {scale:g}": {"guidance_scale": scale} for scale in scales}
    strong = [scale for scale in scales if scale > 1]
    for words in asked.intervals.split(","):
        low, high = (float(word) for word in words.split("-"))
        for scale in strong[1:3] or strong[:1]:
            name = f"scale {scale:g} at levels {low:g} to {high:g}"
            rows[name] = {"guidance_scale": scale, "guidance_interval": (low, high)}
    for scale in strong[-1:]:
        name = f"scale {scale:g}, rescaled by {asked.rescale:g}"
        rows[name] = {"guidance_scale": scale, "guidance_rescale": asked.rescale}
    if weaker is not None:
        for scale in strong[:3]:
            rows[f"autoguidance {scale:g}"] = {"guidance_scale": scale, "weaker_denoiser": weaker}
    for row in rows.values():
        row.setdefault("guidance_interval", (0.0, 1.0))  # whatever is the model's own
    return rows


def as_table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown, and below it the rows of the best FVD and of the best accuracy."""
    shown = [name for name in COLUMNS if any(name in row for row in rows.values())]
    lines = [table(["guidance", *shown], [[name, *(f"{row[key]:.4g}" for key in shown)] for name, row in rows.items()])]
    lines.append(f"best FVD: {min(rows, key=lambda name: rows[name]['fvd'])}")
    if "judge" in shown:
        lines.append(f"best accuracy: {max(rows, key=lambda name: rows[name]['judge'])}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
