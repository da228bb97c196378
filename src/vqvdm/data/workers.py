"""Loader processes and signals."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from vqvdm.errors import InputError, reason_of

# What torch says of a process that has died, or of shared memory that died with it.
_DIED = re.compile(
    r"DataLoader worker \(pid.*\) (exited unexpectedly|is killed by signal)|Pin memory thread exited"
    r"|unable to open shared memory object"
)
_GONE = (EOFError, ConnectionError, FileNotFoundError)  # what asking a process that died for its tensors ends in


class LoaderDied(InputError):
    """A loader process is no more, for a `reason` that the system alone knows."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"a loader process died ({reason}): too little memory, or too few open files (ulimit -n), for so many of "
            "them, or a file that brings the decoder down; data.workers=0 tells which"
        )


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
    data: torch would raise that in a signal handler, anywhere in its parent.

    Raises:
        LoaderDied: when the next data are asked for.
    """
    with ctrl_c_waits(), _deaths_are_told_late():
        loads = iter(loader)
    try:
        yield _deaths_named(loads) if isinstance(loads, _MultiProcessingDataLoaderIter) else loads
    except InputError as error:
        _, found, message = str(error).rpartition("InputError: ")
        if not found or isinstance(error, LoaderDied):
            raise
        raise InputError(message.rstrip()) from error
    finally:
        if isinstance(loads, _MultiProcessingDataLoaderIter):
            loads._shutdown_workers()


def _deaths_named(loads: Iterator[Any]) -> Iterator[Any]:
    """Torch tells of most deaths itself. But what a process has sent are only names of shared memory, which it hands
    out as they are received: then no one answers. (Its own mistakes come with a text that begins with "Caught".)
    """
    while True:
        try:
            item = next(loads)
        except StopIteration:
            return
        except (RuntimeError, *_GONE) as error:
            told = _DIED.match(str(error)) if isinstance(error, RuntimeError) else not str(error).startswith("Caught")
            if not told:
                raise
            raise LoaderDied(reason_of(error) if isinstance(error, RuntimeError) else "it no longer answers") from error
        yield item


@contextmanager
def _deaths_are_told_late() -> Iterator[None]:
    """What handled the end of a child before this block does so after it, too, unless that was torch's already.

    Torch sets its handler with the first loader of a process, which need not be one of `loading`, and never again.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    if getattr(before, "__module__", None) == signal_handling.__name__:
        before = signal.SIG_DFL
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
