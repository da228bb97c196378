"""The index: what every video of a data set really holds, or why it cannot be read; cached per folder.

Each file is decoded once, from end to end, since headers and packet counts are wrong too often; a change of size or
time of a file makes only that file be decoded again.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import vqvdm
from vqvdm.decode import MOST_PIXELS, VideoError, VideoInfo, probe
from vqvdm.errors import InputError, logger_of
from vqvdm.files import cache_folder, write_text
from vqvdm.structure import is_finite, parse_json

if TYPE_CHECKING:
    from vqvdm.data.shards import Shards

logger = logger_of(__name__)

VERSION = 2  # of the cache file; another one is ignored
_FEW = 24  # so many files are decoded faster than worker processes start
_SAVE_EVERY = 2000  # files
_MOST_FRAMES = 10_000_000  # of a video: four days at 25 a second


@dataclass(frozen=True)
class Entry:
    """One file of the index: `info`, or the reason in `error`; `stamp` (size, time in ns) tells whether it changed."""

    stamp: tuple[int, int]
    info: VideoInfo | None = None
    error: str = ""


def build_index(
    root: Path | Shards, paths: Sequence[str], workers: int | None = None, progress: bool = True, refresh: bool = False
) -> dict[str, Entry]:
    """Path -> Entry for each of `paths` (relative to `root`, or absolute), from the cache where unchanged.

    `workers` processes decode (None: one for each core); `refresh` ignores the cache. What was decoded is kept if the
    work is interrupted. Shards bring their entries with them; `refresh` then compares local ones with their checksums.
    """
    if not isinstance(root, Path):
        return root.entries(paths, verify=refresh)
    cache = cache_file(root)
    known = {} if refresh else _load(cache)
    stamps = {path: _stamp(root / path) for path in paths}
    todo = [path for path, stamp in stamps.items() if path not in known or known[path].stamp != stamp]
    try:
        with tqdm(total=len(todo), desc=f"indexing {root.name}", unit="video", disable=not progress or not todo) as bar:
            for done, (path, info, error) in enumerate(_probe_all(root, todo, workers), start=1):
                known[path] = Entry(stamps[path], info, error)
                bar.update()
                if done % _SAVE_EVERY == 0:
                    _save(cache, root, known)
    finally:
        if todo:
            _save(cache, root, known)
    return {path: known[path] for path in stamps}


def cache_file(root: Path) -> Path:
    """Where the index of `root` is kept."""
    real = str(root.resolve())
    return cache_folder() / "index" / f"{root.resolve().name}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:16]}.json"


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (-1, -1)
    if path.is_dir():  # of frames: its time changes when a frame comes or goes
        return (0, status.st_mtime_ns)
    return (status.st_size, status.st_mtime_ns)


def _load(cache: Path) -> dict[str, Entry]:
    """The cached entries; none if there is no cache, or it is damaged or of another version (it is then rebuilt)."""
    try:
        stored = parse_json(cache.read_text(encoding="utf-8"))
        if stored["version"] != VERSION:
            return {}
        return {path: _entry(fields) for path, fields in stored["entries"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _entry(fields: Mapping[str, Any]) -> Entry:
    info = None if fields["info"] is None else read_info(fields["info"])
    size, time = fields["stamp"]
    if not isinstance(fields["error"], str) or (info is not None and not is_sound(info)):
        raise ValueError("no entry of an index")
    return Entry((size, time), info, fields["error"])


def is_sound(info: VideoInfo) -> bool:
    """Whether this can be said of a video; a damaged cache must not lead beyond a file's frames, or all memory."""
    times, keys = info.times or (0.0,), info.keys
    whole = (info.frames, info.height, info.width, *keys)
    numbers = (info.fps, info.start, *times)
    return (
        all(type(number) is int for number in whole)
        and all(map(is_finite, numbers))
        and (type(info.seekable), type(info.note)) == (bool, str)
        and 1 <= info.frames <= _MOST_FRAMES
        and min(info.height, info.width) >= 1
        and info.height * info.width <= MOST_PIXELS
        and 0 < info.fps < _MOST_FRAMES
        and (info.times is None or len(times) == info.frames)
        and all(a <= b for a, b in pairwise(times))
        and all(a < b for a, b in pairwise((-1, *keys, info.frames)))
    )


def read_info(fields: Mapping[str, Any]) -> VideoInfo:
    """`asdict` of a VideoInfo, as JSON gives it back, made one again. Raises KeyError or TypeError for other fields."""
    values: dict[str, Any] = dict(fields)
    if values["times"] is not None:
        values["times"] = tuple(values["times"])
    values["keys"] = tuple(values["keys"])
    return VideoInfo(**values)


def _save(cache: Path, root: Path, entries: Mapping[str, Entry]) -> None:
    stored = {"version": VERSION, "root": str(root.resolve()), "entries": {p: asdict(e) for p, e in entries.items()}}
    try:
        write_text(cache, json.dumps(stored))
    except InputError as error:
        logger.warning("the index cannot be kept: %s; set VQVDM_CACHE to a folder with room", error)


# ------------------------------------------------------------------------------------------------------------- decoding

_Answer = tuple[str, VideoInfo | None, str]


def _probe_all(root: Path, paths: Sequence[str], workers: int | None) -> Iterator[_Answer]:
    workers = workers or os.cpu_count() or 1
    if len(paths) <= _FEW:
        yield from (_probe_here(root, path) for path in paths)
        return
    with _worker_processes(min(workers, len(paths))) as free, ThreadPoolExecutor(workers) as threads:

        def ask(path: str) -> _Answer:
            worker = free.get()
            try:
                return worker.probe(root, path)
            finally:
                free.put(worker)

        tasks = [threads.submit(ask, path) for path in paths]
        try:
            yield from (task.result() for task in tasks)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _probe_here(root: Path, path: str) -> _Answer:
    try:
        return path, probe(root / path), ""
    except VideoError as error:
        return path, None, error.reason


class _Worker:
    """A process that decodes what it is asked. It is no `multiprocessing` child: those cannot be started from a script
    without a main guard, and a file that brings the decoder down would end them all."""

    def __init__(self) -> None:
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        package = str(Path(vqvdm.__file__).parent.parent)
        search = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            [sys.executable, "-m", "vqvdm.decode"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": search, "PYTHONIOENCODING": "utf-8"},
        )

    def probe(self, root: Path, path: str) -> _Answer:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(str(root / path)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            self._process = self._start()
            return path, None, "the decoder crashed on it"
        answer = json.loads(line)
        if "error" in answer:
            return path, None, answer["error"]
        return path, read_info(answer["info"]), ""

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def _worker_processes(count: int) -> Iterator[queue.SimpleQueue[_Worker]]:
    workers = [_Worker() for _ in range(count)]
    free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)
    try:
        yield free
    finally:
        for worker in workers:
            worker.close()
