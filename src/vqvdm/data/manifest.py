"""Manifests: a line for each video, as CSV or as JSON lines."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vqvdm.data.listing import SPLITS, Listing, Sample, class_names, source_of
from vqvdm.errors import InputError
from vqvdm.structure import check_known, parse_json

MANIFEST_NAMES = ("manifest.csv", "manifest.jsonl", "metadata.csv", "metadata.jsonl")

_FILE_COLUMNS = ("file", "file_name", "path", "video")
_COLUMNS = (*_FILE_COLUMNS, "label", "split", "start", "end", "fps")


def list_manifest(path: Path) -> Listing:
    """CSV with a header line, or JSON lines: file, and if wanted label, split, start and end (seconds), fps."""
    if path.is_dir():
        names = [name for name in MANIFEST_NAMES if (path / name).is_file()]
        if not names:
            raise InputError(f'{path}: layout "manifest": holds none of {", ".join(MANIFEST_NAMES)}')
        path = path / names[0]
    root = path.parent
    samples, absent = [], []
    for number, row in _rows(path):
        sample = _manifest_row(row, f"{path}:{number}")
        found = os.path.exists(root / sample.path)  # unlike Path's, also of names that no system can have
        samples += [sample] if found else []
        absent += [] if found else [sample.path]
    if not samples:
        what = f"none of its {len(absent)} files is there (first: {absent[0]})" if absent else "has no rows"
        raise InputError(f"{path}: {what}")
    unlabelled = sum(sample.label is None for sample in samples)
    if 0 < unlabelled < len(samples):
        raise InputError(f"{path}: {unlabelled} of {len(samples)} rows have no label; label all or none")
    return Listing(
        root, "manifest", tuple(samples), class_names(samples), f"column split of {path.name}", tuple(absent)
    )


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number, fields) of each row."""
    text = read_text(path)
    if path.suffix.lower() == ".csv":
        try:
            yield from _csv_rows(path, text)
        except csv.Error as error:
            raise InputError(f"{path}: not CSV ({error})") from error
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(f"{path}:{number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f'{path}:{number}: each line must be an object such as {{"file": "a.mp4", "label": "x"}}')
        row = {_column(key): value for key, value in row.items()}
        _check_columns(row, f"{path}:{number}")
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(text.splitlines())
    _check_columns(map(_column, reader.fieldnames or ()), f"{path}:1")
    for row in reader:
        if None in row or None in row.values():
            columns = ", ".join(reader.fieldnames or ())
            raise InputError(f"{path}:{reader.line_num}: the row does not fit the columns {columns}")
        yield reader.line_num, {_column(key): value.strip() for key, value in row.items()}


def _column(name: str) -> str:
    return name.strip().lower()


def _check_columns(names: Iterable[str], where: str) -> None:
    for name in names:
        check_known(name, _COLUMNS, {"": where}, what="column")


_NUMBERS = {"start": "seconds", "end": "seconds", "fps": "frames per second"}


def _manifest_row(row: Mapping[str, Any], where: str) -> Sample:
    column = next((name for name in _FILE_COLUMNS if row.get(name)), None)
    if column is None:
        raise InputError(
            f"{where}: no file; the columns are file, label, split, start, end, fps (found {', '.join(row)})"
        )
    file = str(row[column])
    split = str(row.get("split") or "").lower()
    if split and split not in SPLITS:
        raise InputError(f"{where}: split {split!r}: must be train, val or test")
    start, end, fps = (_number(row.get(name), f"{where}: {name}", what) for name, what in _NUMBERS.items())
    if fps == 0:
        raise InputError(f"{where}: fps 0: must be frames per second, above 0")
    if end is not None and end <= (start or 0.0):
        raise InputError(f"{where}: end {end} s is not after start {start or 0.0} s")
    label = row.get("label")
    label = None if label is None or label == "" else str(label)
    return Sample(file, label, SPLITS.get(split), source_of(file), start, end, fps)


def _number(value: Any, where: str, what: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{where} {value!r:.60}: must be {what}") from None
    if not 0 <= number < float("inf"):
        raise InputError(f"{where} {value!r}: must be {what}, 0 or more")
    return number


def read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as text ({error})") from error
