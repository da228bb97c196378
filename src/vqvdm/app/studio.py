"""What the page can do, without a page: from settings to videos, step by step."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from vqvdm import __version__
from vqvdm.app.gallery import Gallery, Item
from vqvdm.continuation import spans
from vqvdm.errors import InputError
from vqvdm.generation import Order, generate_clips, make_orders, usual_batch
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.request import Request, prepare, provenance
from vqvdm.video import Video, to_video

MOST_VIDEOS, MOST_FRAMES, MOST_STEPS, MOST_GUIDANCE = 64, 512, 250, 50
OVERLAP = 8  # frames that a window is given of the one before
_PREVIEWS = 8  # videos shown while they come to be
_PREVIEW_SHARE = 0.4  # of the time, about
_LOOK = 0.5  # seconds between two looks of one that waits for the model


@dataclass(frozen=True)
class Settings:
    """What is asked for by one press of the button."""

    classes: tuple[str, ...] = ()  # names; without any, videos of no class
    count: int = 1  # videos of each class
    fps: float = 8.0
    frames: int = 16  # more than the model makes at a time are made window by window
    steps: int = 20
    guidance: float = 2.0
    scheduler: str = ""  # the model's own, or a name that `Objective.make_scheduler` takes
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """How far a sampling is."""

    step: int  # of the denoiser, in all batches and windows
    steps: int
    seconds_left: float | None  # None before there is anything to judge by
    names: tuple[str, ...] = ()  # of the videos of this batch
    previews: tuple[Video, ...] = ()  # what they are taken for now; empty where nothing new is shown
    fps: float = 8.0


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


class Studio:
    """A model at work for the page, one job at a time.

    Args:
        pipeline: the model.
        name: by which it is called.
        gallery: where what is made is kept.
    """

    def __init__(self, pipeline: VQVDMPipeline, name: str, gallery: Gallery) -> None:
        self.pipeline, self.name, self.gallery = pipeline, name, gallery
        self.lock = threading.Lock()
        self._own_scheduler = pipeline.scheduler
        self._running: list[tuple[str, threading.Event]] = []  # with the session that asked
        self._own: tuple[Video, float] | None = None
        self._pace: float | None = None  # seconds a step and video, of late

    @property
    def window(self) -> int:
        """Frames that the model makes at a time."""
        return self.pipeline.config["num_frames"]

    @property
    def classes(self) -> list[str]:
        """Names of the classes; ids in the place of names that the model does not know."""
        return [self.pipeline.id2label.get(label, str(label)) for label in range(self.pipeline.num_classes)]

    @property
    def defaults(self) -> Settings:
        """What the model would have."""
        config = self.pipeline.config
        return Settings(
            fps=config["fps"],
            frames=self.window,
            steps=config["num_inference_steps"],
            guidance=config["guidance_scale"],
        )

    @property
    def step(self) -> int:
        """Of what number of frames the model makes multiples."""
        tokenizer = self.pipeline.tokenizer
        return (1 if tokenizer is None else tokenizer.factors[0]) * self.pipeline.denoiser.factors[0]

    def stop(self, session: str) -> None:
        """End what this session has asked for; what nobody asked for goes on."""
        for name, stopped in list(self._running):
            if name and name == session:
                stopped.set()

    @property
    def generator(self) -> str:
        """What files say that made them."""
        return f"vqvdm {__version__}"

    def own_clip(self) -> tuple[Video, float]:
        """A video that the model made: uint8 (t, h, w, 3), frames per second; always the same one."""
        if self._own is None:
            first = tuple(self.classes[:1])
            for event in self.generate(replace(self.defaults, classes=first)):
                if isinstance(event, list) and event:
                    item = self.gallery.get(event[0])
                    self._own = item.video, item.fps
        if self._own is None:
            raise InputError("the model was stopped before it had made a video")
        return self._own

    def forecast(self, videos: int, frames: int, steps: int) -> str:
        """How long a sampling will take here, in words; nothing before the first one has shown it."""
        if self._pace is None:
            return ""
        windows = len(spans(frames, self.window, OVERLAP, 0)) * videos
        return f"about {in_words(self._pace * windows * steps)}"

    def generate(
        self, settings: Settings, given: Request | None = None, session: str = ""
    ) -> Generator[Progress | list[str]]:
        """Make videos: how far it is again and again, then the tokens of what was made. Closing it stops the work.

        Args:
            settings: numbers within the limits of this module.
            given: pictures or a video, the rest of it None.
            session: whose `stop` ends it.

        Raises:
            InputError: settings that the model cannot serve.
        """
        check(settings)
        # Files say 2.0 of what was asked for as 2, too.
        settings = replace(settings, fps=float(settings.fps), guidance=float(settings.guidance))
        given = replace(given or Request(), fps=settings.fps, steps=settings.steps, guidance=settings.guidance)
        events: queue.Queue[Any] = queue.Queue()
        stopped = threading.Event()
        self._running.append((session, stopped))
        try:
            while not self.lock.acquire(timeout=_LOOK):  # one that was left is at its last step still
                if stopped.is_set():
                    yield []
                    return
                yield Progress(0, settings.steps, None)
            self._start(settings, given, events.put, stopped)
            while True:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, list):
                    return
        finally:
            stopped.set()
            self._running.remove((session, stopped))

    def _start(self, *arguments: Any) -> None:
        """Work in a thread, which gives the model free at its end, however the reader leaves.

        The reader does not wait for that: gradio closes generators in the thread that answers everybody.
        """
        try:
            threading.Thread(target=self._work, args=arguments, daemon=True).start()
        except BaseException:
            self.lock.release()
            raise

    def _work(self, settings: Settings, given: Request, tell: Callable[[Any], None], stopped: threading.Event) -> None:
        try:
            last: Any = self._make(settings, given, tell, stopped)
        except _Stopped:
            last = []
        except BaseException as problem:  # noqa: BLE001  raised again where it is read
            last = problem
        self.lock.release()  # before the word that it is done, after which the next one begins
        tell(last)

    def _make(
        self, settings: Settings, given: Request, tell: Callable[[Any], None], stopped: threading.Event
    ) -> list[str]:
        pipeline = self.pipeline
        asked = settings.scheduler
        pipeline.scheduler = pipeline.objective.make_scheduler(asked) if asked else self._own_scheduler
        labels = [self.classes.index(name) if name in self.classes else name for name in settings.classes]
        orders = make_orders(pipeline, labels or "none", settings.count, settings.seed)
        if len(orders) > MOST_VIDEOS:
            raise InputError(f"{len(orders)} videos are asked for; {MOST_VIDEOS} is the most at a time")
        request = given
        if settings.frames > self.window or (given.video is not None and given.mask is None):
            request = replace(given, length=settings.frames, overlap=min(OVERLAP, self.window - 1))
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
            raise _Stopped
        self._pace = (time.perf_counter() - job.started) / max(job.step * min(batch, len(orders)), 1)
        return [self.gallery.add(item) for item in items]

    def _calls(self, request: Request, arguments: dict[str, Any]) -> int:
        """How often a step's callback will be called for one batch, but for schedulers that call twice a step."""
        steps = request.steps or self.pipeline.config["num_inference_steps"]
        if request.length is None:
            return steps
        return steps * len(spans(request.length, self.window, request.overlap, len(arguments.get("video", ()))))

    def _watched(
        self, call: Callable[..., Any], job: _Job, orders: list[Order], rate: float, /, **arguments: Any
    ) -> Any:
        """A call of the pipeline that tells of its steps, and stops when asked to."""
        batch = slice(job.begun, job.begun + len(arguments["generator"]))
        names = tuple(order.file for order in orders[batch])
        job.begun = batch.stop

        def watch(pipeline: VQVDMPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if job.stopped.is_set():
                raise _Stopped
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


def in_words(seconds: float) -> str:
    """A duration as one says it."""
    if seconds < 1.5:
        return "a second" if seconds >= 0.5 else "a moment"
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


class _Stopped(Exception):
    """Whoever asked has left."""


def check(settings: Settings) -> None:
    """Refuse what would keep the machine busy for hours, or is no number at all.

    Raises:
        InputError: naming the setting, its value and what would be right.
    """
    whole = {
        "count": (settings.count, 1, MOST_VIDEOS),
        "frames": (settings.frames, 1, MOST_FRAMES),
        "steps": (settings.steps, 1, MOST_STEPS),
        "seed": (settings.seed, 0, 2**53 - 1),
    }
    real = {"fps": (settings.fps, 0.1, 240.0), "guidance": (settings.guidance, 0.0, MOST_GUIDANCE)}
    for name, (value, least, most) in (whole | real).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise InputError(f"{name} must be a number from {least} to {most}, not {value!r}")
        if name in whole and value != int(value):
            raise InputError(f"{name} must be a whole number, not {value}")
