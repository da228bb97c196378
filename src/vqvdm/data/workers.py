"""Loader processes and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def leave_signals_to_parent(worker: int) -> None:
    """For loader processes: Ctrl-C in a terminal and SIGTERM from a job queue reach them too, but only their parent may
    answer. One that died of it would take the parent down in the midst of its update; they end with it anyway.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """A Ctrl-C within this block acts at its end.

    For the start of loader processes: what is raised in the hooks around a fork, Python prints and forgets. Signals can
    be caught in the main thread only; in any other the block does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        signal.raise_signal(signal.SIGINT)
