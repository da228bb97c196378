"""The loop both stages share: it owns what happens once in a while, the stage owns the update."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from vqvdm import __version__
from vqvdm.data.shards import Rounds
from vqvdm.errors import InputError
from vqvdm.files import whole_folder
from vqvdm.lock import sole_writer
from vqvdm.processes import on_cpu, this_process
from vqvdm.processor import fast_bf16
from vqvdm.recipe import Recipe, TrainingRecipe
from vqvdm.runs import best_step, figures_of, write_curves
from vqvdm.structure import did_you_mean, plain, structure
from vqvdm.train.checkpoint import (
    Checkpoint,
    check_fits,
    differences,
    latest_checkpoint,
    load_optimizer,
    optimizer_tensors,
    read_checkpoint,
    steps_in,
    write_checkpoint,
)
from vqvdm.train.interrupt import Interrupt
from vqvdm.train.log import Log, Meter, Progress
from vqvdm.train.order import Batch, Order, seed_of, updates
from vqvdm.train.sharding import gathered, load_weights
from vqvdm.train.trackers import show_videos

AGREE_EVERY = 8  # updates between two looks at the other processes' signals
SHOWN = ("loss", "psnr", "perplexity", "gradient_norm", "clips_per_second")  # figures beside the progress bar


class Stage(Protocol):
    """What the loop needs to know of a stage."""

    name: str  # "tokenizer" or "denoiser": in checkpoints, log and samples
    part: str  # of the recipe, in which its `training` stands
    export: str  # the exported model's folder in the run, replaced at each checkpoint
    workers: int  # loader processes
    modules: dict[str, nn.Module]  # saved and restored, by file name
    optimizers: dict[str, Optimizer]  # likewise
    architecture: dict[str, Any]  # dotted recipe keys in which a checkpoint must agree, with plain values
    defaults: dict[str, Any]  # of those keys that a checkpoint from before them may lack
    stated: tuple[str, ...]  # parts of the recipe that the exported model states, without having learnt from them

    @property
    def training(self) -> TrainingRecipe:
        """The optimiser's side of the recipe."""
        ...

    def take_first_weights(self) -> None:
        """Load what the recipe names to start from, if anything; called where there is no checkpoint."""
        ...

    def update(self, step: int, batches: list[Batch]) -> Mapping[str, Tensor | float]:
        """One optimiser update; returns scalars to log, among them `loss` and `gradient_norm`."""
        ...

    def notice(self, figures: Mapping[str, float]) -> str | None:
        """A warning that the averaged figures call for."""
        ...

    def usable_model(self) -> Any:
        """A copy of the network as others use it. All processes must call it; those but the main one get None."""
        ...

    def write_samples(self, model: Any, /, step: int, folder: Path) -> Mapping[str, float]:
        """Write the `usable_model`'s pictures for the eye into `folder`; returns figures to log. Main process only."""
        ...

    def write_model(self, model: Any, /, step: int, folder: Path, last: bool) -> Mapping[str, float]:
        """Write the `usable_model` into `folder`; returns figures to keep beside it. Main process only."""
        ...


def train(
    stage: Stage, accelerator: Accelerator, dataset: Dataset[Any], recipe: Recipe, run: Path, description: str
) -> Path:
    """Train `stage` to its last update, from its last checkpoint if there is one; return the exported model's folder.

    Args:
        stage: knows one update, and what to save.
        accelerator: from `make_accelerator`.
        dataset: map-style; `dataset[(index, draw)]` is a dict of tensors.
        recipe: saved with the run.
        run: the run folder.
        description: heads the progress bar.

    Raises:
        InputError: `run` cannot be made, or vanishes; another writer is at work in it; a checkpoint of another
            architecture; a full disk; or NaN twice.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)  # not before data and models were found to be in order
    except OSError as error:
        raise InputError(f"the run folder {run} cannot be made: {error.strerror}") from error
    try:
        with sole_writer(run) if accelerator.is_main_process else nullcontext():
            return _train(stage, accelerator, dataset, recipe, run, description)
    except FileNotFoundError as error:
        if run.exists():
            raise
        raise InputError(
            f"the run folder {run} has vanished while the training was at work: it was deleted, or its drive is gone. "
            "With the drive back the same command goes on from the last checkpoint there"
        ) from error


def _train(
    stage: Stage, accelerator: Accelerator, dataset: Dataset[Any], recipe: Recipe, run: Path, description: str
) -> Path:
    training, session = stage.training, _Session(stage, accelerator, dataset, recipe, run, description)
    with closing(session.progress), Interrupt() as interrupt:  # what is printed after it starts on a line of its own
        session.begin()
        while session.counters.step < training.steps:
            session.update()

            # Once in a while
            step, finished = session.counters.step, session.counters.step == training.steps
            stopping = _agreed(interrupt, accelerator, step)
            saving = stopping or finished or step % training.checkpoint_every == 0
            sampling = finished or step % training.sample_every == 0
            logging = step % training.log_every == 0
            if (logging or sampling or saving) and not session.log_figures():
                session.roll_back()
                continue
            if saving:
                session.save()
            if stopping:
                accelerator.wait_for_everyone()  # launchers end all of them when the first one is gone
                session.progress.say(f"stopped at update {step}; run the same command again to go on from there")
                raise KeyboardInterrupt
            if sampling:
                session.sample()
            if saving and not finished:
                session.export_model(last=False)
        if session.must_export():
            session.export_model(last=True)
    session.end()
    return session.export


def make_accelerator(training: TrainingRecipe, run: Path) -> Accelerator:
    """Device, processes and trackers; precision is the stage's own matter (`optimization.autocast`).

    Raises:
        InputError: a tracker is not installed.
    """
    available = {str(tracker.value) for tracker in get_available_trackers()}
    missing = [tracker for tracker in training.trackers if tracker not in available]
    if missing:
        raise InputError(f"training.trackers asks for {missing[0]}, which is not installed: pip install {missing[0]}")
    this_process()  # before accelerate makes it known, with less patience
    return Accelerator(
        cpu=on_cpu(),
        mixed_precision="no",
        log_with=list(training.trackers) or None,
        project_dir=run,
        # Codebook and LeCam average over the processes themselves.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def _agreed(interrupt: Interrupt, accelerator: Accelerator, step: int) -> bool:
    """Whether any process was asked to stop; all processes get the same answer at the same update."""
    if accelerator.num_processes == 1:
        return interrupt.requested
    if step % AGREE_EVERY:
        return False
    flag = torch.tensor(float(interrupt.requested), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum") > 0)


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's plain values with the defaults of what was not there when it was written."""
    try:
        return plain(structure(Recipe, values, {}))
    except InputError:  # of a version that had what this one has not
        return values


@dataclass
class _Counters:
    """How far a training is; saved with each checkpoint."""

    step: int = 0  # updates done
    rollbacks: int = 0  # times it went back after NaN; part of every seed
    seconds: float = 0.0  # spent in updates


class _Session:
    """One call of `train`: the pieces of work that its loop puts in order."""

    def __init__(
        self,
        stage: Stage,
        accelerator: Accelerator,
        dataset: Dataset[Any],
        recipe: Recipe,
        run: Path,
        description: str,
    ) -> None:
        self.stage, self.accelerator, self.dataset, self.training = stage, accelerator, dataset, stage.training
        self.recipe, self.run, self.export = recipe, run, run / stage.export
        self.folder = run / "checkpoints" / stage.name
        self.main = accelerator.is_main_process
        self.counters = _Counters()
        self.meter, self.rolled_back, self.warned = Meter(), False, False
        self.changes: list[str] = []  # of the recipe since the checkpoint
        checkpoint = self._newest()
        if checkpoint is None:
            stage.take_first_weights()
        else:
            self._restore(checkpoint)
            self.changes = differences(_completed(checkpoint.state.get("recipe", {})), plain(recipe))
        self.progress = Progress(description, self.counters.step, stage.training.steps, quiet=not self.main)
        self.log = Log(run / "log.jsonl", stage.name, self.counters.step, accelerator)
        self.resumed_from = checkpoint

    def begin(self) -> None:
        """Say what is about to happen, write the recipe, and a first checkpoint before any work could be lost."""
        self.accelerator.wait_for_everyone()
        if self.training.precision == "bf16" and not fast_bf16(self.accelerator.device):
            self.progress.say("precision: this processor is slow at bf16, so float32 is used")
        changes = list(dict.fromkeys([*self.changes, *self._rewritten()]))  # also of the other stage's settings
        if self.main:
            self.recipe.save(self.run / "recipe.yaml")
        if self.training.trackers:
            self.accelerator.init_trackers("vqvdm", config={"recipe": self.recipe.to_yaml()})
        if self.resumed_from is None:
            self.save()
        else:
            folder = self.resumed_from.folder
            what = f"going on from {folder}"
            if self.counters.step >= self.training.steps:
                what = (
                    f"all {self.counters.step} updates are done ({folder}); to train longer, raise "
                    f"{self.stage.part}.training.steps"
                )
            self.progress.say("\n".join([*(f"warning: {damage}" for damage in self.resumed_from.damaged), what]))
        if changes:
            self.progress.say("\n".join(f"  changed: {change}" for change in changes))
        self._start_from_here()
        if self.counters.step < self.training.steps:
            self.progress.say(
                f"{self.progress.description}: updates {self.counters.step + 1} to {self.training.steps} with "
                f"{self.order.size} of {self.order.length:,} clips each, on {self.accelerator.device}"
            )

    def _rewritten(self) -> list[str]:
        """How the run's recipe so far differs from the one that takes its place."""
        path = self.run / "recipe.yaml"
        try:
            return differences(plain(Recipe.load(path)), plain(self.recipe)) if path.is_file() else []
        except InputError:  # of another version, or damaged: nothing can be said of it
            return []

    def update(self) -> None:
        """One update, all of whose chance follows from seed and step."""
        counters = self.counters
        micro_batches = next(self.batches)
        torch.manual_seed(
            seed_of(self.training.seed, counters.rollbacks, counters.step, self.accelerator.process_index)
        )
        self.meter.add(self.stage.update(counters.step, micro_batches))
        counters.step += 1
        self.progress.update(counters.step)

    def log_figures(self) -> bool:
        """Log the averages since the last time; False, and nothing logged, if the training has gone to NaN."""
        figures = self.meter.read(self.accelerator)
        if not all(math.isfinite(figures.get(name, 0.0)) for name in ("loss", "gradient_norm")):
            return False
        seconds, done = time.perf_counter() - self.mark, self.counters.step - self.marked_step
        self.counters.seconds += seconds
        figures["clips_per_second"] = done * self.order.size / seconds
        self.log.write(self.counters.step, {**figures, "seconds": self.counters.seconds})
        there = [name for name in SHOWN if name in figures]
        if figures.get("perplexity") == 0:  # it is at least 1: the quantiser has not entered yet
            there.remove("perplexity")
        self.progress.show({name: figures[name] for name in there})
        if warning := self.stage.notice(figures):
            self.progress.say(f"warning: {warning}")
        self._mark()
        return True

    def save(self) -> None:
        """Write a checkpoint."""
        tensors = {name: module.state_dict() for name, module in self.stage.modules.items()}
        tensors |= {name: optimizer_tensors(optimizer) for name, optimizer in self.stage.optimizers.items()}
        tensors = {name: gathered(named, keep=self.main) for name, named in tensors.items()}
        if self.main:
            state = {
                **asdict(self.counters),
                "vqvdm": __version__,
                "torch": torch.__version__,
                "architecture": dict(self.stage.architecture),
                "recipe": plain(self.recipe),
            }
            training, best = self.training, None
            if training.keep_best is not None:
                best = best_step(self.run, self.stage.name, training.keep_best, steps_in(self.folder))
            write_checkpoint(
                self.folder, tensors, state, training.keep_checkpoints, every=training.keep_every, best=best
            )
        self._mark()

    def sample(self) -> None:
        """Write samples."""
        model = self.stage.usable_model()
        if self.main:
            folder = self.run / "samples"
            folder.mkdir(exist_ok=True)
            figures = self.stage.write_samples(model, self.counters.step, folder)
            show_videos(self.accelerator.trackers, folder.glob(f"*-{self.counters.step:08d}.mp4"), self.counters.step)
            if figures:
                self.log.write(self.counters.step, figures)
                self.progress.say("  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
            self._check_keep_best()
            write_curves(self.run, self.stage.name)
        self._mark()

    def _check_keep_best(self) -> None:
        """Once, when the log has figures of samples too, warn of a `keep_best` that is none of them."""
        name = self.training.keep_best
        if name is None or self.warned:
            return
        if name not in (known := figures_of(self.run, self.stage.name)):
            self.warned = True
            self.progress.say(
                f"warning: no checkpoint is kept as the best so far: {self.stage.part}.training.keep_best is {name!r}, "
                f"and the log has {', '.join(sorted(known))}{did_you_mean(name, known)}"
            )

    def export_model(self, last: bool) -> None:
        """Replace the exported model."""
        model = self.stage.usable_model()
        if self.main:
            step = self.counters.step
            with whole_folder(self.export) as folder:
                figures = self.stage.write_model(model, step, folder, last)
                record = {"step": step, "seconds": self.counters.seconds, **figures}
                (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        self._mark()

    def must_export(self) -> bool:
        """Whether the exported model is of fewer updates, of another training, or states what has changed since."""
        began = 0 if self.resumed_from is None else self.resumed_from.step
        if self.counters.step > began or any(change.startswith(self.stage.stated) for change in self.changes):
            return True
        path = self.export / "training.json"
        try:
            older = json.loads(path.read_text(encoding="utf-8"))["step"] != self.counters.step
        except (OSError, ValueError, KeyError, TypeError):  # damaged, so export again
            older = True
        if self.accelerator.num_processes > 1:  # all take part in an export, or none
            (older,) = broadcast_object_list([older])
        return older

    def roll_back(self) -> None:
        """After NaN: once, return to the last checkpoint and go on with another order and other noise."""
        step, reason = self.counters.step, "the loss or its gradient is not finite (NaN)"
        checkpoint = self._newest()
        if self.rolled_back or checkpoint is None:
            raise InputError(
                f"stopped at update {step}: {reason} again, after one return to the last checkpoint, which is kept in "
                f"{self.folder}. A lower {self.stage.part}.training.learning_rate, a longer warmup, a smaller "
                "clip_norm or precision=float32 may help"
            )
        self._restore(checkpoint)
        self.counters.rollbacks += 1
        self.rolled_back = True
        self.meter = Meter()
        self.log = Log(self.run / "log.jsonl", self.stage.name, checkpoint.step, self.accelerator)
        self.progress.say(
            f"at update {step} {reason}: back to update {checkpoint.step}, with another order of the data"
        )
        self.progress.update(checkpoint.step)
        self._start_from_here()

    def end(self) -> None:
        """Wait for the main process's files, and close what is open."""
        self.accelerator.wait_for_everyone()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.progress.close()

    def _newest(self) -> Checkpoint | None:
        """The newest whole checkpoint. One process looks for it: what passes for damaged in one may not in another."""
        found = latest_checkpoint(self.folder) if self.main else None
        if self.accelerator.num_processes == 1:
            return found
        (step,) = broadcast_object_list([None if found is None else found.step])
        return found if self.main or step is None else read_checkpoint(self.folder, step)

    def _restore(self, checkpoint: Checkpoint) -> None:
        check_fits(checkpoint, self.stage.architecture, self.stage.defaults)
        for name, module in self.stage.modules.items():
            tensors = checkpoint.tensors(name)
            if not tensors:
                raise InputError(
                    f"the checkpoint {checkpoint.folder} lacks {name}.safetensors; delete the folder to go on from an "
                    "earlier one"
                )
            load_weights(module, tensors)
        for name, optimizer in self.stage.optimizers.items():
            load_optimizer(optimizer, checkpoint.tensors(name))
        self.counters = _Counters(**{name: checkpoint.state[name] for name in asdict(self.counters)})

    def _start_from_here(self) -> None:
        training, accelerator = self.training, self.accelerator
        self.order = Order(
            seed=seed_of(training.seed, self.counters.rollbacks),
            length=len(self.dataset),  # type: ignore[arg-type]
            batch=training.batch,
            accumulate=training.accumulate,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
            rounds=self._rounds(),
        )
        self.batches: Iterator[list[Batch]] = updates(
            self.order, self.dataset, self.counters.step, training.steps, self.stage.workers, accelerator.device
        )
        self._mark()

    def _rounds(self) -> Rounds | None:
        """How an epoch visits shards that lack room. One host decides: each may have room of its own."""
        at_once = getattr(self.dataset, "at_once", None)
        if self.accelerator.num_processes > 1:
            (at_once,) = broadcast_object_list([at_once])
        return None if at_once is None else Rounds(self.dataset.bundles, at_once)  # type: ignore[attr-defined]

    def _mark(self) -> None:
        """Time from here on counts as training."""
        self.mark, self.marked_step = time.perf_counter(), self.counters.step
