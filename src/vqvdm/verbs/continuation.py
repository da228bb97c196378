"""`vqvdm evaluate continuation`: given frames and long videos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vqvdm.continuation import spans
from vqvdm.data.clips import describe
from vqvdm.data.worlds import WORLDS
from vqvdm.errors import InputError, check_at_least_one
from vqvdm.evaluation.calibration import HalfOfVideos
from vqvdm.evaluation.continuation import (
    Clips,
    Continuer,
    Kept,
    Window,
    changes_of,
    joint_of,
    kept,
    measured_windows,
    windows_of,
)
from vqvdm.evaluation.features import Extractor, extract
from vqvdm.evaluation.report import table
from vqvdm.evaluation.scores import warnings_of
from vqvdm.evaluation.sources import Clip, in_8_bits, read_clips
from vqvdm.files import write_json
from vqvdm.generation import make_orders, usual_batch
from vqvdm.judge import CLASSES, judge
from vqvdm.loading import load_pipeline, pick_dtype
from vqvdm.metrics.distances import frechet_distance
from vqvdm.metrics.protocol import Draw, Protocol, draw_clips
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.processes import this_process
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
from vqvdm.verbs.terminal import say

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
    check_at_least_one(steps=steps, overlap=overlap, length=length)
    if this_process().num_processes > 1:
        raise InputError("vqvdm evaluate continuation runs in one process; start it without torchrun")
    device = device_of(options)
    pipeline = load_pipeline(model, device, pick_dtype(dtype, torch.device(device)))
    options = replace(options, split=options.split or "test", order="random", window="one")
    protocol = generated_protocol(model, pipeline, reference, options)
    window = pipeline.config["num_frames"]
    overlap, length = overlap or max(window // 2, 1), length or WINDOWS * window
    if protocol.frames != window:
        raise InputError(f"--frames {protocol.frames}: {model} continues videos by windows of its own {window} frames")
    if overlap >= window:
        raise InputError(f"--overlap {overlap}: must be below the {window} frames of a window")
    if length < 2 * window:
        raise InputError(f"--length {length}: must be at least two windows, {2 * window} frames")
    extractor = replace(extractor_of(protocol, options), c3d=None) if fvd else None
    real, others, labels = _real(reference, pipeline, classes, protocol, options, fvd)
    protocol = protocol.changed(clips=len(real), repeats=1, all_real=False, quantise="round")
    sampling = {
        "guidance_scale": pipeline.config["guidance_scale"] if guidance is None else guidance,
        "num_inference_steps": steps or pipeline.config["num_inference_steps"],
        "height": real.shape[2],
        "width": real.shape[3],
        "fps": protocol.fps or pipeline.config["fps"],
    }
    continuer = Continuer(pipeline, labels, sampling, options.batch or usual_batch(pipeline.device), protocol.seed)
    found: dict[str, Any] = {"protocol": protocol.line(), "model": pipeline.fingerprint(), "clips": len(real)}
    found |= {"length": length, "overlap": overlap, "dtype": str(pipeline.dtype).removeprefix("torch."), **sampling}

    again, given = continuer.reconstructed(real), {}
    found["reconstruction_motion"] = float(changes_of(again).mean() / changes_of(real).mean())
    kinds = {"first frame": (1, False), "both ends": (1, True), f"first {overlap} frames": (overlap, False)}
    for name, (number, ends) in kinds.items():
        given[name] = kept(real, continuer.clips(real, number, ends), again, number, ends)
    print(_given_table(given), flush=True)

    long, steps_of = continuer.long(real, length, overlap), spans(length, window, overlap, window)
    factor = 1 if pipeline.tokenizer is None else pipeline.tokenizer.factors[0]
    obeys = _judge(pipeline, reference, labels, sampling["fps"])
    windows, seen = measured_windows(long, real, windows_of(length, window, window), obeys)
    if extractor is not None:
        windows, found["fvd"] = _with_fvd(windows, long, real, others, extractor, protocol)
    found["given"] = {name: asdict(figures) for name, figures in given.items()}
    found |= {"joint": joint_of(long, steps_of, window, factor), "windows": [asdict(each) for each in windows]}
    if seen is not None and labels is not None:
        of_class = {pipeline.id2label[k]: np.array(labels) == k for k in sorted(set(labels))}
        found["obeyed"] = float(seen.mean())
        found["obeyed_by_class"] = {name: float(seen[which].mean()) for name, which in of_class.items()}
    say(f"\n{_long_table(windows)}\n{_long_text(found)}")
    if extractor is not None:
        print(*warnings_of({"real": len(others), "fake": len(real)}), sep="\n")
    if report is not None:
        write_json(report, found)


def _real(
    reference: str,
    pipeline: VQVDMPipeline,
    classes: str | None,
    protocol: Protocol,
    options: Options,
    fvd: bool,
) -> tuple[Clips, Clips, list[int] | None]:
    """Real clips, as many others (two if nothing is compared with them), and the model's labels of the first ones.

    None of the others is of a video, or of a group of videos, of which one of the first is. The labels are None for a
    model without classes.
    """
    wanted, timing = options.clips or CLIPS, timing_of(protocol)
    orders = make_orders(pipeline, classes, 1, protocol.seed)
    ids = {order.name: order.label for order in orders if order.label is not None}
    if pipeline.num_classes and not ids:
        raise InputError("--classes none: real clips have classes, which the model is told; leave it out, or name some")
    whole = open_reference(reference, protocol, options)
    sides: list[Clips] = []
    labels: list[int] = []
    for half, number in enumerate((wanted, wanted if fvd else 2)):
        videos = HalfOfVideos(whole, half)
        draws: Iterable[Draw] = draw_clips(videos.starts(timing), protocol, len(videos.lengths))
        if ids:
            draws = (draw for draw in draws if videos.label(draw.video) in ids)
        chosen = list(islice(draws, number))
        if len(chosen) < (number if options.clips else 2):
            of = f" of {', '.join(ids)}" if ids else ""
            raise InputError(
                f"{videos.name} has {len(chosen)} clips of {describe(timing)}{of}; {number if options.clips else 2} "
                "are needed of either half (--clips)"
            )
        sides.append(np.stack([in_8_bits(clip.frames) for clip in read_clips(videos, chosen, timing)]))
        labels = labels or [ids[str(videos.label(draw.video))] for draw in chosen if ids]
    return sides[0], sides[1], labels or None


def _judge(
    pipeline: VQVDMPipeline, reference: str, labels: list[int] | None, fps: float
) -> Callable[[int, Clips], bool] | None:
    """Whether a clip shows the class of the video of that number; None where only a network could tell."""
    names = pipeline.id2label
    if reference not in WORLDS or labels is None or any(names[label] not in CLASSES for label in labels):
        return None
    return lambda number, clip: judge(clip, fps).name == names[labels[number]]


def _with_fvd(
    windows: Sequence[Window],
    long: Clips,
    real: Clips,
    others: Clips,
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
    astride = long[:, protocol.frames - half : 2 * protocol.frames - half]
    measured = {"real": distance(real, "other real clips"), "first joint": distance(astride, "joints")}
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
    head = ["frames", "motion", "colour off by"]
    rows = [[f"{w.first} to {w.end - 1}", f"{w.motion:.2f}", f"{w.colour:.1f}"] for w in windows]
    for name, form in (("obeyed", ".3f"), ("fvd", ".0f")):
        if all(getattr(window, name) is not None for window in windows):
            head.append({"obeyed": "class kept", "fvd": "FVD"}[name])
            for row, window in zip(rows, windows, strict=True):
                row.append(format(getattr(window, name), form))
    return table(head, rows)


def _long_text(found: dict[str, Any]) -> str:
    """What holds of all windows."""
    lines = [f"change at joints {found['joint']:.2f} of that elsewhere"]
    lines[0] += f"; motion of the tokenizer's reconstructions {found['reconstruction_motion']:.2f}"
    if "fvd" in found:
        lines.append(f"FVD of other real clips {found['fvd']['real']:.0f}")
        lines[-1] += f", astride the first joint {found['fvd']['first joint']:.0f}"
    if "obeyed" in found:
        lines.append(f"class kept in {found['obeyed']:.1%} of the stretches")
        lines[-1] += ": " + ", ".join(f"{name} {share:.2f}" for name, share in found["obeyed_by_class"].items())
    sampled = f"{found['num_inference_steps']} steps, guidance {found['guidance_scale']:g}, {found['dtype']}"
    return "\n".join([*lines, f"{found['length']} frames, overlap {found['overlap']}, {sampled}; {found['protocol']}"])
