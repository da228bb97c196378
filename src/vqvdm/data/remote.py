"""Files on web servers: fetched whole, compared with their SHA-256, and kept in a cache of bounded size."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException, InvalidURL
from io import BytesIO
from pathlib import Path
from typing import IO, TypeVar
from urllib.error import HTTPError
from urllib.parse import urljoin
from urllib.request import urlopen

from filelock import FileLock

from vqvdm.errors import InputError, logger_of, reason_of
from vqvdm.files import cache_folder

logger = logger_of(__name__)

LIMIT = "VQVDM_SHARD_CACHE_GB"  # the environment's variable
_DEFAULT_LIMIT = 20.0  # GB
_CHUNK = 1 << 20
_TIMEOUT = 60.0  # seconds without an answer
_ATTEMPTS = 4
_PAUSE = 1.0  # seconds before the second attempt; twice as many before each further one
_TRANSIENT = (408, 425, 429)  # the server's refusals that pass; all others below 500 stay

_Result = TypeVar("_Result")


def is_url(path: object) -> bool:
    """Whether it is text that begins with http:// or https://."""
    return isinstance(path, str) and re.match(r"https?://", path) is not None


def neighbour(url: str, name: str) -> str:
    """The URL of the file called `name` beside that at `url`, without the query."""
    return urljoin(url, name)


def fetch_bytes(url: str, most: int) -> bytes:
    """The content at `url`, at most so many bytes. Raises InputError that names the URL."""

    def attempt() -> bytes:
        buffer = BytesIO()
        _download(url, buffer, most)
        return buffer.getvalue()

    return _retried(attempt, url)


class ShardCache:
    """Shards of any data set by their SHA-256, in `shards` within the cache folder; any number of processes share it.

    When room is needed for another one, those that were not read for the longest time are deleted, so that all of them
    take at most $VQVDM_SHARD_CACHE_GB (20). Processes that have one open read on.
    """

    def open(self, url: str, size: int, sha256: str) -> IO[bytes]:
        """The file at `url`, from the cache if it is there, open for reading; one process fetches, others wait.

        Raises:
            InputError: it cannot be fetched, is not what was announced, or there is no room; names the URL.
        """
        folder = cache_folder() / "shards"
        path = folder / f"{sha256}.tar"
        if file := _opened(path, size):
            return file
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _lock(path):
                return _opened(path, size) or self._fetch(url, size, sha256, path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({reason_of(error)}); set VQVDM_CACHE") from error

    def _fetch(self, url: str, size: int, sha256: str, path: Path) -> IO[bytes]:
        make_room(path.parent, size)
        if shutil.disk_usage(path.parent).free < size:
            raise InputError(f"no room on the disk for {url} ({size / 1e6:.1f} MB) in {path.parent}; set VQVDM_CACHE")
        logger.info("fetching %s (%.1f MB)", url, size / 1e6)
        part = path.with_suffix(".part")

        def attempt() -> None:
            with part.open("wb") as file:
                found = _download(url, file, size)
                if (written := file.tell()) != size:
                    raise _BrokenOff(f"{written:,} of {size:,} bytes came")
                if found != sha256:
                    raise _BrokenOff(f"it has SHA-256 {found}, the index says {sha256}: one of them is not up to date")
                file.flush()
                os.fsync(file.fileno())

        try:
            _retried(attempt, url)
        except (InputError, OSError):  # a full disk, too
            part.unlink(missing_ok=True)
            raise
        # Opened before it has its name: from then on another process may delete it.
        file = part.open("rb", buffering=0)
        part.replace(path)
        return file


def make_room(folder: Path, size: int) -> None:
    """Delete the shards that were not read for the longest time until `size` bytes more stay within the limit."""
    files: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        if path.suffix == ".part":
            # Of a process that was killed, unless one still holds the lock and so fetches it.
            with suppress(OSError), _lock(path).acquire(timeout=0):
                path.unlink()
        elif path.suffix == ".tar":
            with suppress(FileNotFoundError):  # another process deletes, too
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
    excess = sum(length for _, length, _ in files) + size - cache_limit()
    for _, length, path in sorted(files):
        if excess <= 0:
            return
        with suppress(OSError):  # gone already, or (Windows) in use
            path.unlink()
        excess -= length


def _lock(path: Path) -> FileLock:
    """Of who fetches this shard, and some others: there are 256."""
    return FileLock(path.with_name(f".{path.name[:2]}.lock"))


def cache_limit() -> float:
    """Bytes that the cache may take.

    Raises InputError if the environment names no number.
    """
    text = os.environ.get(LIMIT) or str(_DEFAULT_LIMIT)
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise InputError(f"{LIMIT} is {text!r}, but must be a number of gigabytes")
    return limit * 1e9


def _opened(path: Path, size: int) -> IO[bytes] | None:
    """The file, marked as just read; None if it is not there whole."""
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        return None
    if os.fstat(file.fileno()).st_size != size:
        file.close()
        return None
    with suppress(OSError):
        os.utime(path)
    return file


class _BrokenOff(Exception):
    """What came is not what was announced."""


def _download(url: str, file: IO[bytes], most: int) -> str:
    """Write what is at `url` into the file; its SHA-256."""
    digest = hashlib.sha256()
    with urlopen(url, timeout=_TIMEOUT) as answer:
        while chunk := answer.read(_CHUNK):
            if file.tell() + len(chunk) > most:
                raise InputError(f"{url}: is larger than {most:,} bytes, the most that may come")
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _retried(attempt: Callable[[], _Result], url: str) -> _Result:
    """The result of the first attempt that the network lets through."""
    for number in range(1, _ATTEMPTS + 1):
        try:
            return attempt()
        except InputError:
            raise
        except (OSError, HTTPException, ValueError, _BrokenOff) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            refused = isinstance(error, HTTPError) and error.code < 500 and error.code not in _TRANSIENT
            final = refused or isinstance(error, ValueError | InvalidURL)  # the latter two: of no URL at all
            if final or number == _ATTEMPTS:
                times = "" if final else f" in {number} attempts"
                raise InputError(f"{url}: cannot be fetched{times}: {reason_of(error)}") from error
            logger.warning("%s: %s; trying again", url, reason_of(error))
            time.sleep(_PAUSE * 2 ** (number - 1))
    raise AssertionError("not reached")
