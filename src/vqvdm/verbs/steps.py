"""`vqvdm evaluate steps`: how few steps of which scheduler a model needs, and making that its default."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vqvdm import __version__
from vqvdm.charts import ACCENT, INK, SECOND, SOFT, Series, alone, line_chart
from vqvdm.errors import InputError, reason_of
from vqvdm.evaluation.features import Extractor
from vqvdm.evaluation.report import table
from vqvdm.files import check_writable, write_json, write_text
from vqvdm.loading import load_pipeline, pick_device, pick_dtype
from vqvdm.metrics.protocol import Protocol
from vqvdm.models import find_pipeline
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.processes import this_process
from vqvdm.schedulers import set_steps
from vqvdm.structure import listed
from vqvdm.verbs.evaluate import STANDARD, Options, SamplesScorer, check_report, device_of

_CLIPS = 256  # as far as there are so many
_COLOURS = (ACCENT, SECOND, INK, SOFT)


@dataclass(frozen=True)
class Row:
    """One scheduler with one number of steps, and the figures of what it makes."""

    scheduler: str
    steps: int
    calls: int  # of the network
    fvd: float
    kvd: float
    judge: float | None = None  # share of clips in which the judge recognises the class; of the toy world


def main(
    model: str,
    *,
    reference: str,
    steps: str = "4,6,8,12,20,50",
    schedulers: str = "dpm++,unipc,euler,ddim",
    classes: str | None = None,
    guidance: float | None = None,
    tolerance: float = 0.05,
    keep: bool = False,
    report: Path | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    options: Options = STANDARD,
) -> None:
    """Score a model with several schedulers and numbers of steps, from the same noise, and find the knee.

    The knee is the cheapest row that is nearly as good as the best one. What was measured is kept, so an interrupted
    run goes on.

    Args:
        model: a pipeline folder, a run folder, or a name on the hub (owner/name).
        reference: as in `vqvdm evaluate files`.
        steps: numbers with commas between.
        schedulers: with commas between, as far as they fit the model's noise.
        classes: as in `vqvdm evaluate samples`.
        guidance: scale of classifier-free guidance; 1 is none.
        tolerance: how much worse than the best FVD, and the best share of the judge, still counts as nearly as good.
        keep: make the knee the default of the model, which must be a folder.
        report: JSON file for the rows; a table and a picture go beside it.
        dtype: in which the model computes; what measures is always float32.
    """
    check_report(report)
    numbers, names = _numbers(steps), listed(schedulers)
    if not tolerance >= 0:
        raise InputError(f"--tolerance {tolerance:g}: must be at least 0")
    folder = find_pipeline(model)
    if keep:
        if folder is None:
            raise InputError(f"--keep changes a model's files, and {model} is none that lies here; leave it out")
        check_writable(folder)
    device = pick_device(device_of(options))
    pipeline = load_pipeline(model, str(device), pick_dtype(dtype, device))
    stored = pipeline.scheduler
    # Wrong names and numbers are told before any work.
    made = {name: pipeline.objective.make_scheduler(name) for name in names}
    calls = {(name, number): _calls(name, made[name], number) for name in names for number in numbers}
    if not made:
        raise InputError("--schedulers names none")
    asked, options = options.clips, replace(options, clips=options.clips or _CLIPS)
    scorer = SamplesScorer(model, pipeline, classes, reference, options, asked)
    rows = []
    for (name, number), called in calls.items():
        pipeline.scheduler = made[name]
        metrics = scorer.metrics({"num_inference_steps": number, "guidance_scale": guidance})
        rows.append(_row(name, number, called, metrics))
    if this_process().is_main_process:
        best = knee(rows, tolerance)
        print(as_table(rows))
        print(f"\nknee: {best.scheduler}, {best.steps} steps (within {tolerance:.0%} of the best)")
        if report is not None:
            _write(report, rows, best, _line(scorer.protocol, pipeline, model, scorer.extractor, guidance))
        if keep and folder is not None:
            pipeline.scheduler = stored
            keep_default(pipeline, folder, best)
            print(f"{folder} now takes {best.steps} steps of {best.scheduler}")
    this_process().destroy_process_group()


def knee(rows: Sequence[Row], tolerance: float) -> Row:
    """The row with the fewest calls of the network among those nearly as good as the best, and of these the best.

    Nearly as good: an FVD of at most 1 + tolerance of the smallest and, where clips were judged, at least 1 - tolerance
    of the largest share.
    """
    least = min(row.fvd for row in rows)
    most = max((row.judge for row in rows if row.judge is not None), default=0.0)
    good = [row for row in rows if row.fvd <= (1 + tolerance) * least and (row.judge or 0) >= (1 - tolerance) * most]
    # One row may have the best FVD and another the best share, and none both.
    return min(good or [min(rows, key=lambda row: row.fvd)], key=lambda row: (row.calls, row.fvd))


def as_table(rows: Sequence[Row]) -> str:
    """Markdown: a line a row."""
    judged = any(row.judge is not None for row in rows)
    head = ["scheduler", "steps", "calls", "FVD", "KVD", *(["judge"] if judged else [])]
    cells = [
        [row.scheduler, str(row.steps), str(row.calls), f"{row.fvd:.4g}", f"{row.kvd:.3g}"]
        + ([f"{row.judge:.3f}"] if row.judge is not None else [])
        for row in rows
    ]
    return table(head, cells)


def picture(rows: Sequence[Row]) -> str:
    """FVD over the calls of the network, one curve a scheduler, as SVG."""
    names = list(dict.fromkeys(row.scheduler for row in rows))
    series = [
        Series(name, sorted((row.calls, row.fvd) for row in rows if row.scheduler == name), colour, dots=True)
        for name, colour in zip(names, _COLOURS * len(names), strict=False)
    ]
    return alone(line_chart(series, "FVD over calls of the network", "calls of the network", "FVD"))


def keep_default(pipeline: VQVDMPipeline, folder: Path, best: Row) -> None:
    """Write scheduler and steps into the pipeline saved in `folder`, whose weights stay as they are.

    The model card follows, unless somebody has edited it.
    """
    card = folder / "README.md"
    is_ours = card.is_file() and card.read_text(encoding="utf-8") == pipeline.card()
    pipeline.scheduler = pipeline.objective.make_scheduler(best.scheduler)
    pipeline.register_to_config(num_inference_steps=best.steps)
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    changed = {"num_inference_steps": best.steps, "scheduler": list(pipeline.config["scheduler"])}
    write_text(index, json.dumps(json.loads(index.read_text(encoding="utf-8")) | changed, indent=2) + "\n")
    if is_ours:
        write_text(card, pipeline.card())


def _row(scheduler: str, steps: int, calls: int, metrics: dict[str, Any]) -> Row:
    judge = metrics["judge"]["value"] if "judge" in metrics else None
    return Row(scheduler, steps, calls, metrics["fvd"]["value"], metrics["kvd"]["value"], judge)


def _calls(name: str, scheduler: Any, steps: int) -> int:
    """Calls of the network: some schedulers make more than one a step."""
    try:
        set_steps(scheduler, steps)
    except ValueError as error:
        raise InputError(f"--steps {steps}: {name} cannot take so many ({reason_of(error)})") from error
    return len(scheduler.timesteps)


def _numbers(steps: str) -> list[int]:
    words = listed(steps)
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise InputError(f"--steps {steps!r}: must be whole numbers of at least 1 with commas between, such as 4,8,20")
    return sorted({int(word) for word in words})


def _line(protocol: Protocol, pipeline: VQVDMPipeline, model: str, extractor: Extractor, guidance: float | None) -> str:
    """All that the rows depend on besides what they name."""
    scale = pipeline.config["guidance_scale"] if guidance is None else guidance
    networks = [f"{name} {identity}" for name, identity in extractor.identities().items()]
    made = f"model {model} ({pipeline.fingerprint()}), guidance_scale {scale:g}, {pipeline.denoiser.dtype}"
    return ", ".join([protocol.line(), f"{protocol.clips} clips", *networks, made, f"vqvdm {__version__}"])


def _write(report: Path, rows: Sequence[Row], best: Row, line: str) -> None:
    drawn, words = (report.with_name(f"{report.stem}{end}") for end in (".svg", ".md"))
    write_text(drawn, picture(rows))
    found = f"Knee: {best.scheduler}, {best.steps} steps."
    write_text(words, "\n\n".join([as_table(rows), found, f"![FVD]({drawn.name})", f"Protocol: {line}"]) + "\n")
    plain = {"rows": [asdict(row) for row in rows], "knee": asdict(best), "protocol": line}
    write_json(report, plain)
