"""What a user waits for before anything happens, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from vqvdm.benchmark.stages import Stage, Subject
from vqvdm.errors import InputError


def _import(subject: Subject, folder: Path) -> Stage:
    code = "import vqvdm; vqvdm.VQVDMPipeline"
    return Stage(_process("-c", code), f"python -c '{code}'", elsewhere=True)


def _help(subject: Subject, folder: Path) -> Stage:
    return Stage(_process("-m", "vqvdm", "--help"), "vqvdm --help", elsewhere=True)


def _first_video(subject: Subject, folder: Path) -> Stage:
    """A trained model in all but its weights, asked for one video."""
    saved = Subject(subject.recipe, torch.device("cpu"), torch.float32).pipeline  # as training saves it
    saved.save_pretrained(folder / "pipeline")
    classes = "0" if saved.num_classes else "none"
    words = ("sample", str(folder / "pipeline"), "--classes", classes, "--out", str(folder / "samples"))
    run = _process("-m", "vqvdm", *words, "--device", str(subject.device))
    return Stage(run, "vqvdm sample: one video in a file, from the command on", clips=1.0, elsewhere=True)


def _process(*words: str) -> Callable[[], None]:
    return partial(_run, [sys.executable, *words])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise InputError(f"{' '.join(command)} ended with status {done.returncode}: {last}")


START: Mapping[str, Callable[[Subject, Path], Stage]] = {
    "import": _import,
    "help": _help,
    "first video": _first_video,
}
