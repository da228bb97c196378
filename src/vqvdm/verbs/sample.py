"""`vqvdm sample`: generate videos into files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

import vqvdm
from vqvdm.errors import InputError
from vqvdm.files import check_writable
from vqvdm.loading import load_pipeline
from vqvdm.pipeline import VQVDMPipeline, VQVDMPipelineOutput
from vqvdm.video import Video, enlarged, to_video, write_sheet, write_video

Format = Literal["mp4", "webm", "gif", "webp", "png"]
_SHEET_ROWS = 100


@dataclass(frozen=True)
class Order:
    """One video to make."""

    label: int | None  # None is unconditional
    name: str
    number: int  # among the videos of its class
    seed: int
    file: str  # name without suffix


def main(
    model: str,
    *,
    classes: str | None = None,
    count: int = 1,
    fps: float | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    scheduler: str | None = None,
    out: Path = Path("samples"),
    format: Format = "mp4",
    scale: int = 1,
    batch: int = 8,
    tiled: bool = False,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Generate videos: one file each, and a sheet of all.

    The same seed gives the same files; a video depends on the seed, its class and its number alone.

    Args:
        model: a pipeline folder, a run folder, or a name on the hub (owner/name).
        classes: names or ids with commas between (left,3), "all", or "none" for unconditional; all by default.
        count: videos of each class.
        fps: frames per second; the model's own by default.
        frames: frames of each video.
        height: pixels.
        width: pixels.
        seed: of all randomness.
        steps: of the scheduler.
        guidance: scale of classifier-free guidance; 1 is none.
        scheduler: dpm++, unipc, euler, heun, ddim or ddpm, as far as it fits the model's noise.
        out: folder for the files; made if absent.
        format: of the files; png is a row of frames.
        scale: how often each pixel is repeated in the files, either way: small videos are hard to see.
        batch: videos made at a time; changes memory and time, not the videos.
        tiled: decode in overlapping tiles, for long or large videos.
        device: cpu, cuda, mps or auto.
        dtype: in which the networks compute.
    """
    for name, number in (("count", count), ("batch", batch), ("scale", scale)):
        if number < 1:
            raise InputError(f"--{name} must be at least 1, not {number}")
    check_writable(out)
    pipeline = load_pipeline(model, device, {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype])
    if scheduler is not None:
        pipeline.scheduler = pipeline.objective.make_scheduler(scheduler)
    if tiled:
        if pipeline.tokenizer is None:
            raise InputError("--tiled is for decoding, but this model makes pixels without a tokenizer; leave it out")
        pipeline.tokenizer.enable_tiling()
    orders = make_orders(pipeline, classes, count, seed)
    arguments = {
        "fps": fps,
        "num_frames": frames,
        "height": height,
        "width": width,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
    }
    facts = {
        "generator": f"vqvdm {vqvdm.__version__}",
        "ai_generated": True,
        "digital_source_type": "trainedAlgorithmicMedia",  # IPTC's term for what a trained model made
        "model": Path(model).resolve().name if Path(model).exists() else model,
        "steps": steps or pipeline.config["num_inference_steps"],
        "guidance_scale": pipeline.config["guidance_scale"] if guidance is None else guidance,
        "scheduler": type(pipeline.scheduler).__name__,
    }
    shown: list[Video] = []
    for order, video, rate in generate(pipeline, orders, batch, arguments):
        metadata = {**facts, "seed": order.seed, "class": order.name, "fps": rate}
        shown_as = enlarged(video, scale * video.shape[1])
        write_video(out / f"{order.file}.{format}", shown_as, rate, metadata)
        shown += [video] if len(shown) < _SHEET_ROWS else []
    labels = [order.file for order in orders[:_SHEET_ROWS]]
    write_sheet(out / "sheet.png", shown, labels, metadata={**facts, "seed": seed})
    print(f"{len(orders)} videos and sheet.png in {out}")


def make_orders(pipeline: VQVDMPipeline, classes: str | None, count: int, seed: int) -> list[Order]:
    """The videos to make, class by class.

    Raises:
        InputError: a class is unknown, or the model has none.
    """
    labels = _parse_classes(pipeline, classes)
    names = ["video" if label is None else pipeline.id2label.get(label, f"class {label}") for label in labels]
    files = [re.sub(r"[^\w.-]+", "_", name) for name in names]
    if len(set(files)) < len(files):
        files = [f"{label}-{file}" for label, file in zip(labels, files, strict=True)]
    digits = max(2, len(str(count - 1)))
    return [
        Order(label, name, number, video_seed(seed, label, number), f"{file}-{number:0{digits}d}")
        for label, name, file in zip(labels, names, files, strict=True)
        for number in range(count)
    ]


def video_seed(seed: int, label: int | None, number: int) -> int:
    """The seed of one video, 53 bits, whichever other videos are made beside it."""
    if seed < 0:
        raise InputError(f"--seed must be at least 0, not {seed}")
    entropy = (seed, 0 if label is None else label + 1, number)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(11))


def _parse_classes(pipeline: VQVDMPipeline, classes: str | None) -> list[int] | list[None]:
    if classes == "none" or (classes is None and pipeline.num_classes == 0):
        return [None]
    if classes is None or (classes == "all" and pipeline.num_classes > 0):
        return list(range(pipeline.num_classes))
    known = pipeline.labels
    words = [classes] if classes in known else [word.strip() for word in classes.split(",") if word.strip()]
    asked = [int(word) if word not in known and re.fullmatch(r"[+-]?\d+", word) else word for word in words]
    return list(dict.fromkeys(pipeline.get_label_ids(asked)))


def generate(
    pipeline: VQVDMPipeline, orders: Sequence[Order], batch: int, arguments: dict[str, Any]
) -> Iterator[tuple[Order, Video, float]]:
    """Make the videos, `batch` at a time, with a progress bar over all steps: (order, uint8 (t, h, w, c), fps) each."""
    pipeline.set_progress_bar_config(disable=True)
    batches = [orders[i : i + batch] for i in range(0, len(orders), batch)]
    with tqdm(desc="sampling", unit="step") as bar:

        def count_step(pipe: VQVDMPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            bar.total = len(pipe.scheduler.timesteps) * len(batches)  # known only once the scheduler has its steps
            bar.update(1)
            return tensors

        for part in batches:
            labels = [order.label for order in part if order.label is not None]
            output = pipeline(
                class_labels=labels or None,
                num_videos_per_prompt=1 if labels else len(part),
                generator=[torch.Generator().manual_seed(order.seed) for order in part],
                output_type="pt",
                callback_on_step_end=count_step,
                **arguments,
            )
            assert isinstance(output, VQVDMPipelineOutput)
            assert isinstance(output.frames, torch.Tensor)
            clips = output.frames.permute(0, 2, 1, 3, 4) * 2 - 1  # (b, c, t, h, w)
            for order, clip, rate in zip(part, clips, output.fps, strict=True):
                yield order, to_video(clip), rate
