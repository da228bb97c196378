"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from safetensors import SafetensorError

from vqvdm.errors import InputError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_bytes(path: Path, data: bytes) -> None:
    """Write beside the target, flush, then rename: a half-written file never carries the name. Folders are made.

    Raises:
        InputError: the disk has no room, or the place cannot be written.
    """
    part = path.with_name(f".{path.name}.{token_hex(4)}.part")  # processes of two hosts may have one number
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _flush_folder(path.parent)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise InputError(f"no room on the disk for {path} ({len(data) / 1e6:.1f} MB)") from error
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if part.exists():
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8; half characters, as names that are not UTF-8 have, become escape codes."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """`write_text` of JSON, indented; NaN and infinity, for which it has no word, become null."""
    write_text(path, json.dumps(_finite(value), indent=1) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


@contextmanager
def whole_folder(target: Path, needed: int = 0) -> Iterator[Path]:
    """A temporary folder to write into that becomes `target` when the block ends well, and vanishes otherwise.

    Args:
        target: replaced as a whole if it exists.
        needed: bytes that will be written, as far as known.

    Raises:
        InputError: the disk has no room; names the folder, the bytes needed and free.
    """
    target = target.absolute()  # "." has no name
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        if shutil.disk_usage(temporary).free < needed:
            raise OSError(errno.ENOSPC, "No space left on device")
        yield temporary
        _flush(temporary)
        _replace(temporary, target)
        _flush_folder(target.parent)
    except (OSError, SafetensorError) as error:
        if not _is_disk_full(error):
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(target.parent).free
        raise InputError(
            f"no room on the disk for {target}: it needs {needed:,} bytes, {free:,} are free. "
            "What was saved before is untouched: make room and run the same command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(temporary: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    temporary.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Everything in the folder onto the disk, so that a power cut after the renaming finds whole files."""
    for path in folder.rglob("*"):
        if path.is_dir():
            _flush_folder(path)
        else:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    """The names in it; a folder can be opened on POSIX systems only."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network drives cannot
                os.fsync(number)
        finally:
            os.close(number)


def _is_disk_full(error: OSError | SafetensorError) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(f"os error {number})" in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def sha256_of(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(folder: str | Path) -> None:
    """Raise `InputError` if files could not be written into `folder`; nothing is left there, and nothing is made.

    Asked before hours of work, of the folder or, where it is yet to be made, of the nearest one above it.
    """
    folder = Path(folder)
    place = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
    except OSError as error:
        raise InputError(f"{folder}: files cannot be written there ({error.strerror or error})") from error


def cache_folder() -> Path:
    """Where what can be had again is kept: $VQVDM_CACHE, else $XDG_CACHE_HOME/vqvdm, else ~/.cache/vqvdm."""
    if own := os.environ.get("VQVDM_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vqvdm"
