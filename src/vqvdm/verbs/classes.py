"""`vqvdm evaluate classes`: whether generated clips show what was asked for."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch

from vqvdm.errors import InputError
from vqvdm.evaluation.classifier import Recognised, recognise
from vqvdm.evaluation.report import table
from vqvdm.evaluation.sides import DrawnVideos
from vqvdm.files import write_json
from vqvdm.loading import load_pipeline, pick_dtype
from vqvdm.processes import one_of_each_host_first, this_process
from vqvdm.verbs.evaluate import (
    STANDARD,
    Options,
    check_report,
    device_of,
    drawn,
    extractor_of,
    generated,
    generated_protocol,
)
from vqvdm.verbs.terminal import say


def main(
    model: str,
    *,
    reference: str,
    classes: str | None = None,
    guidance: float | None = None,
    steps: int | None = None,
    report: Path | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    options: Options = STANDARD,
) -> None:
    """Ask a classifier that has seen real clips only for the classes of generated ones.

    It is a logistic regression on I3D's features of the training split; its share of right answers on the test split
    stands beside, which is as good as it gets.

    Args:
        model: a pipeline folder, a run folder, or a name on the hub (owner/name).
        reference: a data set with classes; toy, or a folder as in `vqvdm evaluate files`.
        classes: names or ids with commas between (left,3); all by default.
        guidance: scale of classifier-free guidance; 1 is none.
        steps: of the scheduler.
        report: JSON file for the shares, by class too.
        dtype: in which the model computes; what measures is always float32.
    """
    check_report(report)
    device = device_of(options)
    pipeline = load_pipeline(model, device, pick_dtype(dtype, torch.device(device)))
    if not pipeline.id2label:
        raise InputError(f"{model} has no classes that could be recognised")
    protocol = generated_protocol(model, pipeline, reference, options).changed(clips=options.clips)
    extractor = extractor_of(protocol, options)
    with one_of_each_host_first():
        splits = [drawn(reference, protocol.changed(split=split), options, extractor) for split in ("train", "test")]
    if splits[0].videos.digest == splits[1].videos.digest:
        raise InputError(f"{reference} has no test split of its own: its classifier could not be checked")
    sampling = {"guidance_scale": guidance, "num_inference_steps": steps}
    videos = generated(model, pipeline, classes, protocol, options, sampling)
    sides = (*splits, DrawnVideos(videos, protocol, splits[0].timing, extractor))
    labels = [[str(label) for label in side.labels(0) if label is not None] for side in sides]
    if any(len(names) < side.count(0) for names, side in zip(labels, sides, strict=True)) or len(set(labels[0])) < 2:
        raise InputError(f"{reference} has no classes that a classifier could learn")
    strangers = sorted(set(labels[2]) - set(labels[0]))
    if strangers:
        raise InputError(f"{model} makes {strangers[0]!r}, which {reference} does not know; name others (--classes)")
    features = [side.features(0, side.count(0))["logits"] for side in sides]
    found = recognise(*zip(features, labels, strict=True))
    if this_process().is_main_process:
        say(as_text(found, [len(names) for names in labels]))
        if report is not None:
            stated = {**asdict(found), "protocol": protocol.line(), **dict(videos.facts)}
            write_json(report, stated)
    this_process().destroy_process_group()


def as_text(found: Recognised, counts: list[int]) -> str:
    """The shares, and those of each class."""
    seen, unseen, made = counts
    rows = [["all", f"{found.real:.3f}", f"{found.generated:.3f}"]]
    for name, shares in found.by_class.items():
        rows.append([name, *("" if math.isnan(share) else f"{share:.2f}" for share in shares)])
    own = f"; {found.generated / found.real:.0%} of what it recognises of real ones" if found.real > 0 else ""
    head = ["class", f"real ({unseen}, unseen)", f"generated ({made})"]
    return f"{table(head, rows)}\nlearnt from {seen} real clips; chance {found.chance:.3f}{own}"
