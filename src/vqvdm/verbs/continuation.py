"""`vqvdm evaluate continuation`: given frames and long videos."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vqvdm.data.worlds import WORLDS
from vqvdm.errors import InputError, check_at_least_one
from vqvdm.evaluation.continuation import (
    Clips,
    Continuer,
    Kept,
    Window,
    joint_of,
    joints_of,
    kept,
    measured_windows,
    windows_of,
)
from vqvdm.evaluation.features import Extractor, extract
from vqvdm.evaluation.report import table
from vqvdm.evaluation.sources import Clip, check_enough, in_8_bits, read_clips
from vqvdm.files import write_text
from vqvdm.generation import make_orders, usual_batch
from vqvdm.judge import CLASSES, judge
from vqvdm.loading import load_pipeline, pick_dtype
from vqvdm.metrics.distances import frechet_distance
from vqvdm.metrics.protocol import Draw, Protocol, draw_clips
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.verbs.evaluate import (
    STANDARD,
    Options,
    check_report,
    device_of,
    extractor_of,
    generated_protocol,
    open_reference,
    timing_of,
)

CLIPS = 40  # unless options say otherwise
WINDOWS = 8  # likewise, of a long video


def main(
    model: str,
    *,
    reference: str,
    length: int | None = None,
    overlap: int | None = None,
    classes: str | None = None,
    guidance: float | None = None,
    steps: int | None = None,
    fvd: bool = True,
    report: Path | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    options: Options = STANDARD,
) -> None:
    """Give a model frames of real clips, and measure how it keeps them, what joins on to them, and where it drifts.

    Real clips of the test split, where there is one, give their first frame, both ends, or their beginning; then each
    is continued window by window. Of every stretch of the long videos: motion beside that of real clips, FVD to other
    real clips, and in the toy world the share that the judge still recognises.

    Args:
        model: a pipeline folder, a run folder, or a name on the hub (owner/name).
        reference: a data set; toy, toy-clouds, or a folder as in `vqvdm evaluate files`.
        length: frames of a long video; by default eight windows of the model.
        overlap: frames that each window is given of those before; by default half of a window.
        classes: names or ids with commas between (bounce,spin), of which the real clips are; all by default.
        guidance: scale of classifier-free guidance; 1 is none.
        steps: of the scheduler.
        fvd: measure FVD, for which I3D sees every stretch.
        report: JSON file for the figures.
        dtype: in which the model computes; what measures is always float32.
    """
    check_report(report)
    check_at_least_one(steps=steps, overlap=overlap)
    device = device_of(options)
    pipeline = load_pipeline(model, device, pick_dtype(dtype, torch.device(device)))
    options = replace(options, split=options.split or "test")
    protocol = generated_protocol(model, pipeline, reference, options)
    window = protocol.frames
    overlap, length = overlap or max(window // 2, 1), length or WINDOWS * window
    if overlap >= window:
        raise InputError(f"--overlap {overlap}: must be below the {window} frames of a window")
    if length < 2 * window:
        raise InputError(f"--length {length}: must be at least two windows, {2 * window} frames")
    extractor = extractor_of(protocol, options) if fvd else None
    real, others, labels = _real(reference, pipeline, classes, protocol, options)
    sampling = {"guidance_scale": guidance, "num_inference_steps": steps, "fps": protocol.fps}
    sampling |= {"height": real.shape[2], "width": real.shape[3]}
    sampling = {name: value for name, value in sampling.items() if value is not None}
    continuer = Continuer(pipeline, labels, sampling, options.batch or usual_batch(pipeline.device), protocol.seed)

    found: dict[str, Any] = {"protocol": protocol.line(), "model": pipeline.fingerprint(), "clips": len(real)}
    again, given = continuer.reconstructed(real), {}
    kinds = {"first frame": (1, False), "both ends": (1, True), f"first {overlap} frames": (overlap, False)}
    for name, (number, ends) in kinds.items():
        given[name] = kept(real, continuer.clips(real, number, ends), again, number, ends)
    print(_given_table(given), flush=True)

    long, joints = continuer.long(real, length, overlap), joints_of(length, window, overlap, window)
    factor = 1 if pipeline.tokenizer is None else pipeline.tokenizer.factors[0]
    obeys = _judge(pipeline, reference, labels, protocol)
    windows, seen = measured_windows(long, real, windows_of(length, window, window), obeys)
    if extractor is not None:
        windows, found["fvd"] = _with_fvd(windows, long, real, others, joints, extractor, protocol)
    found["given"] = {name: asdict(figures) for name, figures in given.items()}
    found |= {"joint": joint_of(long, joints, factor), "windows": [asdict(each) for each in windows]}
    if seen is not None and labels is not None:
        of_class = {pipeline.id2label[k]: np.array(labels) == k for k in sorted(set(labels))}
        found["obeyed"] = float(seen.mean())
        found["obeyed_by_class"] = {name: float(seen[which].mean()) for name, which in of_class.items()}
    print(f"\n{_long_table(windows)}\n{_long_text(found)}")
    if report is not None:
        write_text(report, json.dumps(found, indent=1).replace("NaN", "null").replace("Infinity", "null") + "\n")


def _real(
    reference: str, pipeline: VQVDMPipeline, classes: str | None, protocol: Protocol, options: Options
) -> tuple[Clips, Clips, list[int] | None]:
    """Real clips, as many others, and the model's labels of the first ones; None for a model without classes."""
    wanted, timing = 2 * (options.clips or CLIPS), timing_of(protocol)
    videos = open_reference(reference, protocol, options)
    starts = videos.starts(timing)
    check_enough(videos, starts, timing, least=4)
    draws: Iterable[Draw] = draw_clips(starts, protocol, len(starts))
    ids = {order.name: order.label for order in make_orders(pipeline, classes, 1, protocol.seed)}
    if pipeline.num_classes:
        draws = (draw for draw in draws if videos.label(draw.video) in ids)
    chosen = list(islice(draws, wanted))
    if len(chosen) < 4:
        raise InputError(f"{reference} has {len(chosen)} clips of {', '.join(ids)}; at least 4 are needed")
    clips = np.stack([in_8_bits(clip.frames) for clip in read_clips(videos, chosen, timing)])
    half = len(clips) // 2
    labels = [ids.get(str(videos.label(draw.video))) for draw in chosen[:half]]
    return clips[:half], clips[half:], [label for label in labels if label is not None] or None


def _judge(
    pipeline: VQVDMPipeline, reference: str, labels: list[int] | None, protocol: Protocol
) -> Callable[[int, Clips], bool] | None:
    """Whether a clip shows the class of the video of that number; None where only a network could tell."""
    names = pipeline.id2label
    if reference not in WORLDS or labels is None or any(names[label] not in CLASSES for label in labels):
        return None
    rate = protocol.fps or pipeline.config["fps"]
    return lambda number, clip: judge(clip, rate).name == names[labels[number]]


def _with_fvd(
    windows: Sequence[Window],
    long: Clips,
    real: Clips,
    others: Clips,
    joints: Sequence[int],
    extractor: Extractor,
    protocol: Protocol,
) -> tuple[list[Window], dict[str, float]]:
    """The windows with their FVD to `others`; and that of the real clips, and of clips astride the first joint."""

    def features(clips: Clips, name: str) -> Any:
        return extract(map(Clip, clips), extractor, protocol, total=len(clips), name=name)["logits"]

    reference = features(others, "real clips")

    def distance(clips: Clips, name: str) -> float:
        return frechet_distance(reference, features(clips, name), ddof=protocol.ddof)

    half = protocol.frames // 2
    measured = {
        "real": distance(real, "other real clips"),
        "first joint": distance(long[:, joints[0] - half : joints[0] - half + protocol.frames], "joints"),
    }
    further = []
    for window in windows:
        name = f"frames {window.first} to {window.end - 1}"
        further.append(replace(window, fvd=distance(long[:, window.first : window.end], name)))
    return further, measured


def _given_table(given: dict[str, Kept]) -> str:
    head = ["given", "kept (PSNR)", "against the tokenizer's own", "the tokenizer's own", "change at the joint"]
    rows = []
    for name, figures in given.items():
        decibels = [f"{value:.1f} dB" for value in (figures.psnr, figures.to_reconstruction, figures.tokenizer)]
        rows.append([name, *decibels, f"{figures.joint:.2f}"])
    return table(head, rows)


def _long_table(windows: Sequence[Window]) -> str:
    head, rows = ["frames", "motion"], [[f"{w.first} to {w.end - 1}", f"{w.motion:.2f}"] for w in windows]
    for name, form in (("obeyed", ".3f"), ("fvd", ".0f")):
        if all(getattr(window, name) is not None for window in windows):
            head.append({"obeyed": "class kept", "fvd": "FVD"}[name])
            for row, window in zip(rows, windows, strict=True):
                row.append(format(getattr(window, name), form))
    return table(head, rows)


def _long_text(found: dict[str, Any]) -> str:
    """What holds of all windows."""
    lines = [f"change at joints {found['joint']:.2f} of that elsewhere"]
    if "fvd" in found:
        lines.append(f"FVD of other real clips {found['fvd']['real']:.0f}")
        lines[-1] += f", astride the first joint {found['fvd']['first joint']:.0f}"
    if "obeyed" in found:
        lines.append(f"class kept in {found['obeyed']:.1%} of the stretches")
        lines[-1] += ": " + ", ".join(f"{name} {share:.2f}" for name, share in found["obeyed_by_class"].items())
    return "\n".join([*lines, f"{found['clips']} clips, {found['protocol']}"])
