#!/usr/bin/env python
"""Kill trainings and encodings again and again, damage what they wrote, and see that they end as if nothing had been.

scripts/chaos.py --kills 200 --folder runs/chaos

Three kinds of work (the tokenizer, the latent cache, the denoiser) are done once without a disturbance, and then anew
under these: SIGKILL at any time; SIGKILL at any operation on a file of the run (opening, renaming, removing, making a
folder: Python's audit events, so those inside of the writer of checkpoints, too); SIGINT, SIGTERM or SIGUSR1 at any
time; a bit flipped in the newest checkpoint or shard. After each the same command is given again. When one has come to
its end, all weights, optimisers, latents and losses must be those of the undisturbed one, bit for bit; then the next
one begins, until there were as many disturbances as asked for. One line a kind of work is printed; the exit status is 1
if anything differed.

The processes are forked from one that has imported everything, so a start costs no seconds.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vqvdm.evaluation.report import table
from vqvdm.files import sha256_of, write_text
from vqvdm.recipe import Recipe
from vqvdm.train.checkpoint import steps_in
from vqvdm.train.denoiser import train_denoiser
from vqvdm.train.tokenizer import train_tokenizer
from vqvdm.verbs.encode import encode

RECIPE = """
base: demo
name: chaos
data: {size: 16, frames: 8, toy_clips: 24, fps: 12, workers: 0}
tokenizer:
  model: {channels: [8, 8], latent_channels: 3, quantizer: ema, codebook_size: 16, pixel_channels: 0}
  loss:
    quantize_after: 0
    adversarial: {weight: 0.1, start: 4, ramp: 4, channels: 4, layers: 2}
  training: &training
    {steps: 16, batch: 2, log_every: 1, sample_every: 8, checkpoint_every: 2, warmup: 2, keep_every: 8}
latents: {shard: 4, batch: 2, stills: true}
denoiser:
  model: {channels: [8, 16], head_dim: 8}
  context: 0.3
  training: *training
sampling: {steps: 2}
"""
# A forked process holds the listeners of those before it; each names what it does to files while it writes in the run.
ON_FILES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir", "os.truncate"}
WAYS = ("killed at any time", "killed at an operation on a file", "SIGINT, SIGTERM or SIGUSR1", "a bit flipped")
_LONG = 120.0  # seconds without an end of which a process counts as stuck
_STOPPED = 130


def begin_anew(folder: Path, parser: ArgumentParser) -> None:
    """Leave nothing in the folder but the recipe; refuse one that holds anything but what came of the recipe before."""
    recipe = folder / "recipe.yaml"
    if folder.exists() and not (recipe.is_file() and "name: chaos" in recipe.read_text(encoding="utf-8")):
        parser.error(f"{folder} holds something else, and would be deleted; name another folder")
    shutil.rmtree(folder, ignore_errors=True)
    write_text(recipe, RECIPE)


def work_of(recipe: Recipe) -> dict[str, Callable[[Path], Any]]:
    """Kind of work -> does it in a run folder, from wherever it stands."""
    return {
        "tokenizer": lambda run: train_tokenizer(recipe, run),
        "latents": lambda run: encode(recipe, run, device="cpu"),
        "denoiser": lambda run: train_denoiser(recipe, run),
    }


@dataclass
class Tally:
    """What was done to one kind of work, and what came of it."""

    done: Counter[str] = field(default_factory=Counter)
    ended: int = 0
    differing: list[str] = field(default_factory=list)

    @property
    def disturbances(self) -> int:
        """All of them."""
        return sum(self.done.values())


def main() -> int:
    """Disturb, compare and tabulate."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="disturbances of each kind of work")
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos"), help="made anew")
    parser.add_argument("--seed", type=int, default=0, help="of the disturbances")
    parser.add_argument("--only", choices=("tokenizer", "latents", "denoiser"))
    asked = parser.parse_args()
    torch.set_num_threads(1)  # and no thread before the forks
    begin_anew(asked.folder, parser)
    recipe = Recipe.load(asked.folder / "recipe.yaml")
    tallies = {}
    whole = asked.folder / "undisturbed"
    for name, work in work_of(recipe).items():
        began = time.perf_counter()
        if Attempt(work, whole, asked.folder / "output.txt").wait(_LONG) != 0:
            print((asked.folder / "output.txt").read_text()[-2000:], file=sys.stderr)
            return 1
        if asked.only in (None, name):
            chaos = Chaos(name, work, whole, asked.folder, random.Random(asked.seed))
            tallies[name] = chaos.run(asked.kills, time.perf_counter() - began)
            print(as_text(tallies), flush=True)
    return int(any(tally.differing for tally in tallies.values()))


class Attempt:
    """A process that works; it may kill itself at its n-th operation on a file of the run."""

    def __init__(self, work: Callable[[Path], Any], run: Path, output: Path, die_at: int = 0) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                _say_into(output)
                if die_at:
                    sys.addaudithook(_Reaper(str(run.absolute()), die_at))
                work(run)
                status = 0
            except KeyboardInterrupt:
                status = _STOPPED
            except BaseException:  # noqa: BLE001  whatever it is, the parent has to know
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)

    def wait(self, seconds: float) -> int | None:
        """Its exit status, negative if a signal ended it; None if it still runs after so many seconds."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                return None
            time.sleep(0.002)

    def send(self, number: signal.Signals) -> int | None:
        """Send a signal, and wait for the end."""
        os.kill(self.pid, number)
        return self.wait(_LONG)


def _say_into(output: Path) -> None:
    number = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(number, 1)
    os.dup2(number, 2)


class _Reaper:
    """An audit hook that kills its process at the n-th operation on a file of the run."""

    def __init__(self, run: str, left: int) -> None:
        self.run, self.left = run, left

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ON_FILES or not arguments or not isinstance(arguments[0], str | os.PathLike):
            return
        if os.path.abspath(os.fspath(arguments[0])).startswith(self.run):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class Chaos:
    """Disturbs one kind of work until it has been disturbed often enough."""

    def __init__(
        self, name: str, work: Callable[[Path], Any], whole: Path, folder: Path, chance: random.Random
    ) -> None:
        self.name, self.work, self.whole, self.folder, self.chance = name, work, whole, folder, chance
        self.tally = Tally()

    def run(self, kills: int, seconds: float) -> Tally:
        """As many disturbances as asked for, and then to the end; an undisturbed one took so many seconds."""
        operations = 40
        while self.tally.disturbances < kills or self.tally.ended == 0:
            run = self.folder / self.name
            if self.name != "latents" or self.chance.random() < 0.5:  # only of a finished cache are the sums known
                shutil.rmtree(run, ignore_errors=True)
            for part in {"latents": ["tokenizer"], "denoiser": ["tokenizer", "latents"]}.get(self.name, []):
                shutil.copytree(self.whole / part, run / part, dirs_exist_ok=True)
            while True:
                way = self.chance.choice(WAYS) if self.tally.disturbances < kills else ""
                if way == WAYS[3] and self._flip(run):
                    self.tally.done[way] += 1
                die_at = self.chance.randrange(1, operations) if way == WAYS[1] else 0
                attempt = Attempt(self.work, run, self.folder / "output.txt", die_at)
                timed = way in (WAYS[0], WAYS[2])
                status = attempt.wait(self.chance.uniform(0, seconds) if timed else _LONG)
                if status is None:
                    signals = (signal.SIGKILL,) if way == WAYS[0] else (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
                    status = attempt.send(self.chance.choice(signals))
                if status == 0:
                    break
                if status not in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGUSR1, _STOPPED):
                    self.tally.differing.append(f"ended with {status}, see {self.folder / 'output.txt'}")
                    return self.tally
                self.tally.done[way] += 1
            self.tally.ended += 1
            self.tally.differing += differing(self.whole, run, self.name)
        return self.tally

    def _flip(self, run: Path) -> bool:
        """Flip a bit of the newest checkpoint, if there is one before it, or of a shard."""
        if self.name == "latents":
            index = run / "latents" / "index.json"
            finished = index.exists() and "sha256" in json.loads(index.read_text(encoding="utf-8"))
            files = sorted(index.parent.glob("shard-*.safetensors")) if finished else []
        else:
            folder = run / "checkpoints" / self.name
            steps = steps_in(folder)
            files = sorted((folder / f"step-{steps[-1]:08d}").iterdir()) if len(steps) > 1 else []
        if not files:
            return False
        path = self.chance.choice(files)
        content = bytearray(path.read_bytes())
        content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
        path.write_bytes(content)
        return True


def differing(whole: Path, run: Path, name: str) -> list[str]:
    """What is not the same in two runs that have ended."""
    if name == "latents":
        return _other(whole / "latents", run / "latents", "*")
    newest = Path("checkpoints", name, f"step-{steps_in(whole / 'checkpoints' / name)[-1]:08d}")
    exported = {"tokenizer": "tokenizer", "denoiser": "pipeline"}[name]
    found = _other(whole / newest, run / newest, "*.safetensors") + _other(
        whole / exported, run / exported, "**/*.safetensors"
    )
    kept = [steps_in(folder / "checkpoints" / name) for folder in (whole, run)]
    every, last = 8, kept[0][-1]  # the others depend on where it was stopped
    found += [f"checkpoint {step} is not there" for step in range(0, last + 1, every) if step not in kept[1]]
    losses = [_losses(folder, name) for folder in (whole, run)]
    return found + ([] if losses[0] == losses[1] else ["the losses in log.jsonl"])


def _other(whole: Path, run: Path, pattern: str) -> list[str]:
    names = {path.relative_to(folder) for folder in (whole, run) for path in folder.glob(pattern) if path.is_file()}
    return [
        str(run / name)
        for name in sorted(names)
        if not (whole / name).exists() or not (run / name).exists() or sha256_of(whole / name) != sha256_of(run / name)
    ]


def _losses(run: Path, name: str) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if record["stage"] == name and "loss" in record]


def as_text(tallies: dict[str, Tally]) -> str:
    """One row a kind of work."""
    rows = [
        [name, *(str(tally.done[way]) for way in WAYS), str(tally.ended), ", ".join(tally.differing) or "nothing"]
        for name, tally in tallies.items()
    ]
    return table(["", *WAYS, "came to the end", "differed"], rows)


if __name__ == "__main__":
    sys.exit(main())
