"""What was made, kept for a while under names that cannot be guessed, and written in any format when asked for."""

from __future__ import annotations

import io
import secrets
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vqvdm.errors import InputError
from vqvdm.files import write_bytes
from vqvdm.video import FORMATS, Video, encode_sheet, encode_video, enlarged

MEDIA_TYPES = {
    "mp4": "video/mp4",
    "webm": "video/webm",
    "gif": "image/gif",
    "webp": "image/webp",
    "png": "image/png",
    "zip": "application/zip",
}
_MOST = 512 * 2**20  # bytes of videos that are kept, on the disk
_GONE = "this video is no longer kept; make it again with its settings"
_SIDE = 256  # pixels up to which files are enlarged, since players blur what is small


@dataclass(frozen=True)
class Item:
    """A video, what it is called and what its files say of it."""

    video: Video  # uint8 (t, h, w, 3)
    fps: float
    name: str  # of files, without suffix
    facts: dict[str, Any] = field(default_factory=dict)  # the files' metadata
    settings: Any = None  # with which it was made


def write_item(path: Path, item: Item, form: str) -> None:
    """Write it as one of `video.FORMATS`, in a size that players do not blur."""
    write_bytes(path, encode_video(enlarged(item.video, _SIDE), item.fps, form, item.facts))


class Gallery:
    """Items by token, the oldest of which make room for new ones. Safe for threads.

    Use it as a context manager, or `close` it: its files, the videos among them, lie in a temporary folder, so that a
    page that runs for days needs no more memory than a new one. (Where that folder is memory, TMPDIR names another.)
    """

    def __init__(self, most: int = _MOST) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vqvdm-app-", ignore_cleanup_errors=True)
        self._items: OrderedDict[str, tuple[Item, int]] = OrderedDict()  # without their videos, and the bytes of these
        self._most, self._bytes, self._lock = most, 0, threading.Lock()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything and remove the files."""
        self._items.clear()
        self._folder.cleanup()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Item) -> str:
        """Keep an item; return its token.

        Raises:
            InputError: the disk has no room.
        """
        token = secrets.token_urlsafe(12)
        path = self._path(token)
        try:
            np.save(path, item.video)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise InputError(f"the video cannot be kept: {error.strerror or error}") from error
        with self._lock:
            self._items[token] = replace(item, video=item.video[:0].copy()), item.video.nbytes
            self._bytes += item.video.nbytes
            while self._bytes > self._most and len(self._items) > 1:
                self._forget(next(iter(self._items)))
        return token

    def get(self, token: str) -> Item:
        """The item of a token, whose video is read as far as it is looked at.

        Raises:
            InputError: it has made room for newer ones, or never was.
        """
        item = self._known(token)
        try:
            return replace(item, video=np.load(self._path(token), mmap_mode="c"))
        except (OSError, ValueError) as error:  # gone meanwhile, or with all old files of the temporary folder
            raise InputError(_GONE) from error

    def take(self, token: str) -> Item:
        """The item of a token, which is kept no longer.

        Raises:
            InputError: as of `get`.
        """
        item = self.get(token)
        with self._lock:
            if token in self._items:
                self._forget(token)
        return item

    def _known(self, token: str) -> Item:
        """The item without its video."""
        with self._lock:
            if token not in self._items:
                raise InputError(_GONE)
            return self._items[token][0]

    def _path(self, token: str, form: str = "npy") -> Path:
        return Path(self._folder.name) / f"{token}.{form}"

    def _forget(self, token: str) -> None:
        _, size = self._items.pop(token)
        self._bytes -= size
        for form in ("npy", *FORMATS):
            self._path(token, form).unlink(missing_ok=True)

    def file(self, token: str, form: str) -> Path:
        """The item as a file of one of `video.FORMATS`, written at the first call.

        Raises:
            InputError: no such item, or no such format.
        """
        if form not in FORMATS:
            raise InputError(f"unknown format {form!r}; there are {', '.join(FORMATS)}")
        self._known(token)
        path = self._path(token, form)
        if not path.exists():
            write_item(path, self.get(token), form)
            try:
                self._known(token)
            except InputError:
                path.unlink(missing_ok=True)
                raise
        return path

    def archive(self, tokens: Sequence[str], form: str) -> bytes:
        """Several items as a zip file of files in this format, and a sheet of all."""
        items = [self.get(token) for token in tokens]
        buffer, used = io.BytesIO(), set()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for number, (token, item) in enumerate(zip(tokens, items, strict=True)):
                name = item.name if item.name not in used else f"{item.name}-{number}"
                used.add(name)
                archive.write(self.file(token, form), f"{name}.{form}")
            if items:
                archive.writestr("sheet.png", self.sheet(tokens))
        return buffer.getvalue()

    def sheet(self, tokens: Sequence[str]) -> bytes:
        """Several items as rows of one PNG, those of the first one's size."""
        items = [self.get(token) for token in tokens]
        alike = [item for item in items if item.video.shape[1:] == items[0].video.shape[1:]]
        facts = {name: value for name, value in items[0].facts.items() if name not in ("seed", "class")}
        return encode_sheet([item.video for item in alike], [item.name for item in alike], metadata=facts)
