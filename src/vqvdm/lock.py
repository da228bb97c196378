"""One writer at a time in a run folder: two would mix up each other's log, checkpoints, latents and exports."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from vqvdm.errors import InputError

try:
    import fcntl
except ImportError:  # not a POSIX system: it goes without
    fcntl = None

LOCK = ".lock"


@contextmanager
def sole_writer(run: Path) -> Iterator[None]:
    """Hold the run folder's lock within the block; however the process ends, the system gives it back.

    Args:
        run: the run folder; the file `.lock` in it stays, since taking it away would let two processes lock two files.

    Raises:
        InputError: another process holds the lock; names the folder and that process.
    """
    with (run / LOCK).open("a+", encoding="utf-8") as file:
        if not _locked(file):
            file.seek(0)
            raise InputError(
                f"another training or encoding is at work in {run} (process {file.read().strip() or 'unknown'}); "
                "wait for its end or stop it, or take another folder"
            )
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _locked(file: TextIO) -> bool:
    """Whether the file could be locked; True also where there are no locks (Windows, some network drives).

    lockf, not flock: loader processes would inherit a flock and, after a kill -9, hold it for some seconds more.
    """
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True
