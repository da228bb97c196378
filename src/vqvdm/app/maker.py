"""The model at work: all of the page that computes, and so needs the libraries of the networks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from vqvdm.app.description import of_configs
from vqvdm.app.gallery import Item
from vqvdm.app.inspection import Inspected, inspect, open_clip, stages
from vqvdm.app.settings import MOST_VIDEOS, Progress, Settings, Stopped
from vqvdm.continuation import spans
from vqvdm.errors import InputError
from vqvdm.generation import Order, generate_clips, make_orders, usual_batch
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.preparation import prepare
from vqvdm.request import Request, doubts, provenance
from vqvdm.video import Video, to_video

OVERLAP = 8  # frames that a window is given of the one before
_PREVIEWS = 8  # videos shown while they come to be
_PREVIEW_SHARE = 0.4  # of the time, about


@dataclass
class _Job:
    """A sampling on its way, as its thread sees it."""

    tell: Callable[[Any], None]
    stopped: threading.Event
    steps: int
    started: float = field(default_factory=time.perf_counter)
    step: int = 0
    looked: float = 0.0  # seconds spent on previews
    begun: int = 0  # videos in this batch and those before


class Maker:
    """What a pipeline does for the page; one call at a time.

    Args:
        pipeline: the model.
        name: by which it is called.

    Attributes:
        description: what a form must know of it.

    Raises:
        InputError: a model that no page can show.
    """

    def __init__(self, pipeline: VQVDMPipeline, name: str) -> None:
        self.pipeline, self.name, tokenizer = pipeline, name, pipeline.tokenizer
        configs = (pipeline.config, pipeline.denoiser.config, None if tokenizer is None else tokenizer.config)
        self.description = of_configs(name, *configs)
        self._own_scheduler = pipeline.scheduler
        self._pace: float | None = None  # seconds a step and video, of late

    @property
    def device(self) -> str:
        """On what it computes, as one says it."""
        kind = self.pipeline.device.type
        return {"cpu": "processor", "cuda": "GPU", "mps": "GPU"}.get(kind, kind)

    def doubts(self, fps: float, steps: int) -> list[str]:
        """See `request.doubts`."""
        return doubts(self.pipeline, fps, steps)

    def seconds(self, videos: int, frames: int, steps: int) -> float | None:
        """How long a sampling will take here; None before the first one has shown it."""
        if self._pace is None:
            return None
        return self._pace * steps * videos * len(spans(frames, self._window, OVERLAP, 0))

    def open_clip(self, path: Path, start: float = 0.0) -> tuple[Video, float]:
        """See `inspection.open_clip`."""
        return open_clip(path, self.pipeline, start)

    def inspect(self, video: Video, fps: float) -> Inspected:
        """See `inspection.inspect`."""
        return inspect(self.pipeline, video, fps)

    def stages(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """See `inspection.stages`."""
        return stages(self.pipeline)

    def make(
        self, settings: Settings, given: Request, tell: Callable[[Any], None], stopped: threading.Event
    ) -> list[Item]:
        """Videos; `tell` hears of each step.

        Raises:
            Stopped: the event was set.
            InputError: settings that the model cannot serve.
        """
        pipeline, names = self.pipeline, self.description.classes
        asked = settings.scheduler
        pipeline.scheduler = pipeline.objective.make_scheduler(asked) if asked else self._own_scheduler
        labels = [names.index(name) if name in names else name for name in settings.classes]
        orders = make_orders(pipeline, labels or "none", settings.count, settings.seed)
        if len(orders) > MOST_VIDEOS:
            raise InputError(f"{len(orders)} videos are asked for; {MOST_VIDEOS} is the most at a time")
        request = given
        if settings.frames > self._window or (given.video is not None and given.mask is None):
            request = replace(given, length=settings.frames, overlap=min(OVERLAP, self._window - 1))
        else:
            request = replace(given, frames=settings.frames)
        call, arguments = prepare(pipeline, request)
        batch = usual_batch(pipeline.device)
        job = _Job(tell, stopped, self._calls(request, arguments) * -(-len(orders) // batch))
        facts = provenance(pipeline, self.name, request)
        watched = partial(self._watched, call, job, orders, settings.fps)
        items = []
        for order, clip, rate in generate_clips(pipeline, orders, batch, arguments, progress=False, call=watched):
            item = Item(
                to_video(clip),
                rate,
                order.file,
                {**facts, "seed": order.seed, "class": order.name, "fps": rate},
                replace(settings, classes=() if order.label is None else (order.name,)),
            )
            items.append(item)
        if stopped.is_set():  # during the last step, or since: nobody would fetch them
            raise Stopped
        self._pace = (time.perf_counter() - job.started) / max(job.step * min(batch, len(orders)), 1)
        return items

    @property
    def _window(self) -> int:
        return self.pipeline.config["num_frames"]

    def _calls(self, request: Request, arguments: dict[str, Any]) -> int:
        """How often a step's callback will be called for one batch, but for schedulers that call twice a step."""
        steps = request.steps or self.pipeline.config["num_inference_steps"]
        if request.length is None:
            return steps
        return steps * len(spans(request.length, self._window, request.overlap, len(arguments.get("video", ()))))

    def _watched(
        self, call: Callable[..., Any], job: _Job, orders: list[Order], rate: float, /, **arguments: Any
    ) -> Any:
        """A call of the pipeline that tells of its steps, and stops when asked to."""
        batch = slice(job.begun, job.begun + len(arguments["generator"]))
        names = tuple(order.file for order in orders[batch])
        job.begun = batch.stop

        def watch(pipeline: VQVDMPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if job.stopped.is_set():
                raise Stopped
            job.step += 1
            job.steps = max(job.steps, job.step)
            spent = time.perf_counter() - job.started
            left = spent / job.step * (job.steps - job.step)
            previews: tuple[Video, ...] = ()
            if job.looked <= _PREVIEW_SHARE * spent and step + 1 < pipeline.num_timesteps:
                previews = self._preview(tensors["estimate"])
                job.looked += time.perf_counter() - job.started - spent
            job.tell(Progress(job.step, job.steps, left, names, previews, rate))
            return {}

        job.tell(Progress(job.step, job.steps, None, names, (), rate))
        arguments |= {"callback_on_step_end": watch, "callback_on_step_end_tensor_inputs": ["estimate"]}
        return call(**arguments)

    def _preview(self, estimate: Tensor) -> tuple[Video, ...]:
        clips = estimate[:_PREVIEWS]
        if self.pipeline.tokenizer is not None:
            clips = self.pipeline.tokenizer.decode(clips.to(self.pipeline.tokenizer.dtype))
        return tuple(to_video(clip) for clip in clips)
