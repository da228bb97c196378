#!/usr/bin/env python
"""Train a small recipe for many updates and see that memory stays flat.

scripts/long_training.py --updates 20000 --folder runs/long

Both stages of scripts/chaos.py's recipe, with samples, checkpoints and exports on the way, and a loader process. The
resident memory of the training and its children, its open files and its threads are read every two seconds; one line a
stage says what they were after a tenth of the updates and before the last of them, the most memory that was seen, also
while the last samples and the export are written, and the slope of the memory while it trains. The exit status is 1 if
it grew by more than --bound megabytes in ten thousand updates.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from chaos import begin_anew

from vqvdm.evaluation.report import table

EVERY = 2.0  # seconds
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Reading:
    """Of a process and its children."""

    update: int
    megabytes: float
    files: int
    threads: int


def main() -> int:
    """Train both stages, and tabulate."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--updates", type=int, default=20_000, help="of each stage")
    parser.add_argument("--folder", type=Path, default=Path("runs/long"), help="made anew")
    parser.add_argument("--bound", type=float, default=20.0, help="megabytes in ten thousand updates")
    asked = parser.parse_args()
    begin_anew(asked.folder, parser)
    changes = ["data.workers=1"]
    for stage in ("tokenizer", "denoiser"):
        settings = {
            "steps": asked.updates,
            "log_every": 50,
            "sample_every": 2000,
            "checkpoint_every": 500,
            "keep_every": 0,
        }
        changes += [f"{stage}.training.{name}={value}" for name, value in settings.items()]
    rows, grew = [], False
    for words in (["train", "tokenizer"], ["encode"], ["train", "denoiser"]):
        command = [sys.executable, "-m", "vqvdm", *words, str(asked.folder / "recipe.yaml"), *changes, "--run"]
        readings = watched([*command, str(asked.folder)], asked.folder, words[-1])
        if words == ["encode"]:
            continue
        most = max(found.megabytes for found in readings)
        readings = [found for found in readings if found.update < asked.updates]  # while it still trains, that is
        if len(readings) < 10:
            sys.exit(f"{len(readings)} readings of {words[-1]}'s training are too few; ask for more --updates")
        slope = slope_of(readings)
        grew |= slope > asked.bound
        early, last = next(r for r in readings if r.update >= asked.updates / 10), readings[-1]
        cells = [f"{r.megabytes:.0f} MB, {r.files} files, {r.threads} threads" for r in (early, last)]
        rows.append([words[-1], str(asked.updates), *cells, f"{most:.0f} MB", f"{slope:+.1f} MB"])
        head = ["stage", "updates", "after a tenth", "at the end", "the most", "slope in 10,000 updates"]
        print(table(head, rows), flush=True)
    return int(grew)


def watched(command: list[str], run: Path, stage: str) -> list[Reading]:
    """Run a command of the package, and read what it holds until it ends."""
    readings = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(EVERY)
            update = reached(run, stage)
            if update > 0:
                readings.append(reading(process.pid, update))
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return [found for found in readings if found.megabytes > 0]


def reached(run: Path, stage: str) -> int:
    """The last update in the log."""
    try:
        with (run / "log.jsonl").open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 2000, 0))
            record = json.loads(file.read().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return 0
    return int(record["step"]) if record["stage"] == stage else 0


def reading(pid: int, update: int) -> Reading:
    """What a process and its children hold; nothing where it has just ended."""
    megabytes, files, threads = 0.0, 0, 0
    for each in [pid, *children(pid)]:
        process = Path("/proc") / str(each)
        try:
            megabytes += int((process / "statm").read_text().split()[1]) * PAGE / 1e6
            files += len(list((process / "fd").iterdir()))
            threads += len(list((process / "task").iterdir()))
        except OSError:
            continue
    return Reading(update, megabytes, files, threads)


def children(pid: int) -> list[int]:
    """Of its main thread, as Linux lists them."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def slope_of(readings: list[Reading]) -> float:
    """Megabytes in ten thousand updates, by a straight line through all but the first tenth."""
    late = [found for found in readings if found.update >= readings[-1].update / 10]
    slope, _ = np.polyfit([found.update for found in late], [found.megabytes for found in late], 1)
    return float(slope) * 10_000


if __name__ == "__main__":
    sys.exit(main())
