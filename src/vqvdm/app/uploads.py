"""The folder of what was uploaded, and of files that were handed out over HTTP: what is old, or too much, goes."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gradio.utils import get_upload_folder

from vqvdm.app.gallery import Item, write_item

_KEPT = 3600.0  # seconds since a file was written, or used
_MOST = 2**30  # bytes of all files
_EVERY = 10.0  # seconds between two looks


def handed_out(item: Item, form: str) -> str:
    """A file of an item where gradio serves it from, under a name that cannot be guessed; it goes with the uploads."""
    path = Path(get_upload_folder()) / secrets.token_urlsafe(12) / f"{item.name}.{form}"
    write_item(path, item, form)
    return str(path)


@contextlib.contextmanager
def swept_folder(forget: Callable[[set[str]], None], every: float = _EVERY) -> Iterator[Path]:
    """A temporary folder that is swept again and again; `forget` is told the names of files that are gone."""
    ended = threading.Event()
    with tempfile.TemporaryDirectory(prefix="vqvdm-uploads-") as name:

        def again() -> None:
            while not ended.wait(every):
                if gone := sweep(Path(name)):
                    forget({str(path) for path in gone})

        thread = threading.Thread(target=again, name="sweep", daemon=True)
        thread.start()
        try:
            yield Path(name)
        finally:
            ended.set()
            thread.join()


def sweep(folder: Path, most: int = _MOST, kept: float = _KEPT) -> list[Path]:
    """Remove what was not used for `kept` seconds, then the oldest of the rest until it is `most` bytes; what went.

    gradio clears up only what it has handed to a function; this finds uploads that broke off, too.
    """
    now, total, gone = time.time(), 0, []
    files: list[tuple[float, int, Path]] = []
    for inner, _, names in os.walk(folder, topdown=False):
        for path in map(Path(inner).joinpath, names):
            with contextlib.suppress(FileNotFoundError):  # moved by gradio just now
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    files.append((status.st_ctime, status.st_size, path))
        with contextlib.suppress(OSError):  # an empty folder; not a new one, that gradio is about to fill
            if not names and Path(inner) != folder and now - os.stat(inner).st_ctime > min(kept, 60.0):
                os.rmdir(inner)
    for used, size, path in sorted(files, reverse=True):
        total += size
        if total > most or now - used > kept:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                gone.append(path)
    return gone
