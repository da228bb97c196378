"""Which videos to make, each with a seed of its own, and making them batch by batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vqvdm.ahead import map_ahead
from vqvdm.errors import InputError
from vqvdm.output import VQVDMPipelineOutput
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.structure import listed
from vqvdm.video import Video, to_video

_MUCH = 20_000  # steps, counted for each video
_COMPILED = 64  # variants of a block: its widths, times sizes of batches


@dataclass(frozen=True)
class Order:
    """One video to make."""

    label: int | None  # None is unconditional
    name: str
    number: int  # among the videos of its class
    seed: int
    file: str  # name without suffix


def make_orders(
    pipeline: VQVDMPipeline, classes: str | Sequence[str | int] | None, count: int, seed: int
) -> list[Order]:
    """The videos to make, class by class.

    `classes` are names or ids, in a list or with commas between, "all" or "none"; None is all that there are.

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


def _parse_classes(pipeline: VQVDMPipeline, classes: str | Sequence[str | int] | None) -> list[int] | list[None]:
    if not isinstance(classes, str | None):
        return list(dict.fromkeys(pipeline.get_label_ids(classes)))
    if classes == "none" or (classes is None and pipeline.num_classes == 0):
        return [None]
    if classes is None or (classes == "all" and pipeline.num_classes > 0):
        return list(range(pipeline.num_classes))
    known = pipeline.labels
    words = [classes] if classes in known else listed(classes)
    asked = [int(word) if word not in known and re.fullmatch(r"[+-]?\d+", word) else word for word in words]
    return list(dict.fromkeys(pipeline.get_label_ids(asked)))


def usual_batch(device: torch.device) -> int:
    """Videos made at a time where nobody says how many: a GPU is idle with few, a CPU is not."""
    return 64 if device.type == "cuda" else 8


def compile_for(pipeline: VQVDMPipeline, videos: int, steps: int) -> None:
    """Compile the pipeline's blocks where the work ahead outweighs the minute that takes: on a GPU, much of it."""
    if pipeline.device.type == "cuda" and videos * steps >= _MUCH:
        pipeline.compile()


def generate(
    pipeline: VQVDMPipeline,
    orders: Sequence[Order],
    batch: int,
    arguments: dict[str, Any],
    call: Callable[..., Any] | None = None,
) -> Iterator[tuple[Order, Video, float]]:
    """Make the videos, `batch` at a time, with a progress bar over all steps: (order, uint8 (t, h, w, c), fps) each.

    `call` takes the place of the pipeline's own, as `continue_video` bound to it and a length does.
    """
    for order, clip, rate in generate_clips(pipeline, orders, batch, arguments, call=call):
        yield order, to_video(clip), rate


def generate_clips(
    pipeline: VQVDMPipeline,
    orders: Sequence[Order],
    batch: int,
    arguments: dict[str, Any],
    progress: bool = True,
    call: Callable[..., Any] | None = None,
) -> Iterator[tuple[Order, Tensor, float]]:
    """As `generate`, but clips (c, t, h, w) in -1..1, never in 8 bits."""
    pipeline.set_progress_bar_config(disable=True)
    batches = [orders[i : i + batch] for i in range(0, len(orders), batch)]
    with tqdm(desc="sampling", unit="step", disable=not progress) as bar:

        def count_step(pipe: VQVDMPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if call is None or call is pipeline:  # the steps of several windows are not known beforehand
                bar.total = len(pipe.scheduler.timesteps) * len(batches)  # known only once the scheduler has its steps
            bar.update(1)
            return tensors

        def make(part: Sequence[Order]) -> list[tuple[Order, Tensor, float]]:
            if pipeline.is_compiled:  # settings of the thread that compiles
                torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
                torch._dynamo.config.cache_size_limit = _COMPILED
            labels = [order.label for order in part if order.label is not None]
            output = (call or pipeline)(
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
            return list(zip(part, clips, output.fps, strict=True))

        # A GPU samples the next batch while this one is decoded, written or measured; a CPU has no idle time to fill.
        threads = 1 if pipeline.device.type == "cuda" else 0
        try:
            for made in map_ahead(make, batches, threads, ahead=1):
                yield from made
        finally:  # whoever breaks off need not wait for the batch that a thread is at
            pipeline._interrupt = True
