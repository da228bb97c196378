"""Watching a parser at work on one input, and changing inputs: for `scripts/fuzz.py` and for tests/test_fuzz.py.

A parser may succeed or raise `InputError`. Anything else is a finding: another exception, more than some seconds,
memory beyond a bound, a file written outside the sandbox, a process started, a pickle's name looked up.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vqvdm.errors import InputError
from vqvdm.recipe_io import _parse as bounded_yaml

SECONDS = 10.0  # of the processor, for one input
MEMORY = 2**30  # bytes that one input may take
_STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**80, 10**400, 1e308, 1e-320, float("inf"), float("nan"), "", "x", "\x1b[31m",
    "\ud800", "../../x", "/etc/passwd", [], {}, [[]], [-1], ["x"], {"x": 1}, "9" * 5000,
)  # fmt: skip


@dataclass(frozen=True)
class Parser:
    """What is fed, and what is tried."""

    run: Callable[[bytes, Path], object]  # of the input and an empty folder
    seeds: Callable[[Path], Sequence[bytes]]  # valid inputs; made in an empty folder
    about: str
    form: str = "bytes"  # "json", "lines" (of JSON), "yaml" or "header" (of safetensors): how it is mutated


# ------------------------------------------------------------------------------------------------------------- watching


class Finding(Exception):
    """An input did what none may do."""


class _TooLong(BaseException):
    """Not an Exception, so that no parser takes it for a damaged file."""


_sandbox: list[str] = []  # folders in which the parser at work may write; empty while none is
_caught: list[str] = []
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "pty.spawn")
_REMOVES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _sandbox:
        return
    if event in _RUNS or event.startswith("socket.get") or event == "pickle.find_class":
        _caught.append(f"{event} {arguments!r:.200}")
    elif (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES) or event in _REMOVES:
        place = arguments[0]
        if isinstance(place, str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(place))
            if not path.startswith((*_sandbox, "/dev/")) and "__pycache__" not in path:
                _caught.append(f"{event} of {path}")


_is_audited = False


@contextmanager
def _watching(folders: Sequence[Path]) -> Iterator[None]:
    global _is_audited  # a hook cannot be taken away again
    if not _is_audited:
        sys.addaudithook(_audit)
        _is_audited = True
    _caught.clear()
    _sandbox.extend(str(folder) for folder in folders)
    try:
        yield
    finally:
        _sandbox.clear()


def _stop(number: int, frame: object) -> None:
    raise _TooLong


def watched(parser: Parser, data: bytes, folder: Path) -> bool:
    """Feed one input; whether it was taken.

    Raises:
        Finding: it did what none may do; the message begins with a line that tells findings apart.
    """
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    work, cache = folder / "work", folder / "cache"
    work.mkdir()
    os.environ["VQVDM_CACHE"] = str(cache)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    timers = {signal.ITIMER_PROF: (signal.SIGPROF, SECONDS), signal.ITIMER_REAL: (signal.SIGALRM, 20 * SECONDS)}
    for timer, (number, most) in timers.items():  # the second for an input that only waits
        signal.signal(number, _stop)
        signal.setitimer(timer, most)
    taken = True
    try:
        with _watching([folder]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parser.run(data, work)
    except InputError as error:
        taken = False
        if "\x1b" in str(error):
            raise Finding("escape sequences in a message\n" + repr(error)) from error
    except _TooLong as error:
        raise Finding(f"more than {SECONDS:g} s at {_place(error)}\n{traceback.format_exc()}") from error
    except BaseException as error:
        raise Finding(f"{type(error).__name__} at {_place(error)}\n{traceback.format_exc()}") from error
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
    if _caught:
        raise Finding(f"{_caught[0].split()[0]} outside the sandbox\n" + "\n".join(_caught))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > MEMORY:
        raise Finding(f"memory beyond the bound\n{grown / 2**20:.0f} MiB in {time.perf_counter() - began:.1f} s")
    return taken


def _place(error: BaseException) -> str:
    """Where in the package it came from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/vqvdm/" in frame.filename]
    last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename.rpartition('/vqvdm/')[2]}:{last.name}"


# ------------------------------------------------------------------------------------------------------------- mutating


def mutated(parser: Parser, data: bytes, rng: random.Random, bytewise: Callable[[bytes], bytes]) -> bytes:
    """The input, changed within its form; now and then, and where it has none, byte by byte."""
    if parser.form == "bytes" or rng.random() < 0.25:
        return bytewise(data)
    try:
        lines = data.decode().splitlines() if parser.form == "lines" else [data.decode()]
        number = rng.randrange(len(lines))
        tree = bounded_yaml(lines[number]) if parser.form == "yaml" else json.loads(lines[number])
        for _ in range(rng.randint(1, 3)):
            tree = _changed(tree, rng)
        lines[number] = yaml.safe_dump(tree, sort_keys=False) if parser.form == "yaml" else json.dumps(tree)
        if rng.random() < 0.02:
            lines[number] = "[" * 100_000
        return "\n".join(lines).encode(errors="surrogatepass")
    except (
        ValueError,
        RecursionError,
        LookupError,
        TypeError,
        AttributeError,
        yaml.YAMLError,
    ):  # of that form no longer
        return bytewise(data)


def _changed(tree: Any, rng: random.Random) -> Any:
    """Another value, key or order somewhere in it."""
    if isinstance(tree, dict | list) and tree and rng.random() < 0.85:
        keys: list[Any] = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = rng.choice(keys)
        kind = rng.random()
        if kind < 0.1:
            del tree[key]
        elif kind < 0.2 and isinstance(tree, dict):
            tree[rng.choice(["", "x", "../x", "\x1b[0m", "__class__", rng.choice(keys)])] = tree.pop(key)
        elif kind < 0.25 and isinstance(tree, list):
            tree.extend([tree[key]] * rng.choice([1, 2, 300]))
        else:
            tree[key] = _changed(tree[key], rng)
        return tree
    if isinstance(tree, int | float) and not isinstance(tree, bool) and rng.random() < 0.4:
        return rng.choice([tree + 1, tree - 1, -tree, tree * 1000, tree / 3 if abs(tree) < 2**64 else 0, f"{tree}"])
    return rng.choice(_STRANGE)


def any_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, doubled or left out, for where no fuzzer does it."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            del content[place : place + rng.randint(1, 16)]
        elif kind == 1:
            content[place:place] = content[place : place + rng.randint(1, 16)] or b"\0"
        elif kind == 2:
            content[place : place + 1] = bytes([rng.randrange(256)])
        else:
            content[place : place + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"-1e400", b"[" * 99])
    return bytes(content)
