"""Loader processes and signals."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from vqvdm.errors import InputError

DIED = re.compile(r"DataLoader worker \(pid.*\) (exited unexpectedly|is killed by signal)")


def leave_signals_to_parent(worker: int) -> None:
    """For loader processes: Ctrl-C in a terminal and a job queue's signals reach them too, but only their parent may
    answer. One that died of it would take the parent down in the midst of its update; they end with it anyway.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@contextmanager
def loading(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """What the loader gives, in this block, at whose end its processes end.

    They leave SIGTERM to their parent, and Python would wait for ever for one that nobody has told to go. A mistake of
    the user's that one of them found is raised as if it had been found here. One that dies is told when it is asked for
    data (as a RuntimeError that matches `DIED`): torch would raise that in a signal handler, anywhere in its parent.
    """
    with ctrl_c_waits(), _deaths_are_told_late():
        loads = iter(loader)
    try:
        yield loads
    except InputError as error:
        _, found, message = str(error).rpartition("InputError: ")
        if not found:
            raise
        raise InputError(message.rstrip()) from error
    finally:
        if isinstance(loads, _MultiProcessingDataLoaderIter):
            loads._shutdown_workers()


@contextmanager
def _deaths_are_told_late() -> Iterator[None]:
    """What handled the end of a child before this block does so after it, too."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


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
