"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqvdm.errors import InputError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_bytes(path: Path, data: bytes) -> None:
    """Write beside the target, then rename: a half-written file never carries the name. Folders are made.

    Raises:
        InputError: the disk has no room, or the place cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise InputError(f"no room on the disk for {path} ({len(data) / 1e6:.1f} MB)") from error
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if part.exists():
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_text` of JSON, indented; NaN and infinity, for which it has no word, become null."""
    write_text(path, json.dumps(_finite(value), indent=1) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


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
