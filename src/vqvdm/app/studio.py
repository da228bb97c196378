"""What the page can do, without a page: from settings to videos, step by step, one job at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from concurrent import futures
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vqvdm import __version__
from vqvdm.app.description import Description
from vqvdm.app.gallery import Gallery
from vqvdm.app.settings import Progress, Settings, Stopped, check, in_words
from vqvdm.errors import InputError
from vqvdm.request import Request
from vqvdm.video import Video

if TYPE_CHECKING:
    from vqvdm.app.maker import Maker

_LOOK = 0.5  # seconds between two looks of one that waits for the model


class Studio:
    """A model for the page, which may be there before the model is.

    Args:
        description: what is known of the model from the beginning.
        maker: the model, as soon as it is loaded.
        gallery: where what is made is kept.
    """

    def __init__(self, description: Description, maker: futures.Future[Maker], gallery: Gallery) -> None:
        self.description, self.gallery = description, gallery
        self.lock = threading.Lock()
        self._maker = maker
        self._running: list[tuple[str, threading.Event]] = []  # with the session that asked
        self._own: tuple[Video, float] | None = None
        self._closed = threading.Event()

    @property
    def is_loaded(self) -> bool:
        """Whether the model is there, or is known not to come."""
        return self._maker.done()

    @property
    def maker(self) -> Maker:
        """The model; waits until it is loaded.

        Raises:
            InputError: it cannot be, or the page is closed before it is.
        """
        while not self._maker.done():
            if self._closed.is_set():
                raise InputError("the page is closed")
            futures.wait([self._maker], timeout=_LOOK)
        return self._maker.result()

    def close(self) -> None:
        """Let go who waits for the model."""
        self._closed.set()

    @property
    def generator(self) -> str:
        """What files say that made them."""
        return f"vqvdm {__version__}"

    def stop(self, session: str) -> None:
        """End what this session has asked for; what nobody asked for goes on."""
        for name, stopped in list(self._running):
            if name and name == session:
                stopped.set()

    def own_clip(self) -> tuple[Video, float]:
        """A video that the model made: uint8 (t, h, w, 3), frames per second; always the same one."""
        if self._own is None:
            for event in self.generate(replace(self.description.defaults, classes=self.description.classes[:1])):
                if isinstance(event, list) and event:
                    item = self.gallery.get(event[0])
                    self._own = item.video, item.fps
        if self._own is None:
            raise InputError("the model was stopped before it had made a video")
        return self._own

    def forecast(self, videos: int, frames: int, steps: int) -> str:
        """How long a sampling will take here, in words; nothing before the first one has shown it."""
        seconds = self.maker.seconds(videos, frames, steps) if self.is_loaded else None
        return "" if seconds is None else f"about {in_words(seconds)}"

    def generate(
        self, settings: Settings, given: Request | None = None, session: str = ""
    ) -> Generator[Progress | list[str]]:
        """Make videos: how far it is again and again, then the tokens of what was made. Closing it stops the work.

        Args:
            settings: numbers within the limits of `settings.check`.
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
            while not self._taken():
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

    def _taken(self) -> bool:
        """Take the model for one job; False if it is still at another one after a while, or not loaded yet."""
        futures.wait([self._maker], timeout=_LOOK)
        return self._maker.done() and self.lock.acquire(timeout=_LOOK)  # one that was left is at its last step still

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
            items = self.maker.make(settings, given, tell, stopped)
            last: Any = [self.gallery.add(item) for item in items]
        except Stopped:
            last = []
        except BaseException as problem:  # noqa: BLE001  raised again where it is read
            last = problem
        finally:
            self.lock.release()  # before the word that it is done, after which the next one begins
        tell(last)
