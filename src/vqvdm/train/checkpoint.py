"""Checkpoints: folders of safetensors and one JSON file, whole or not there at all.

    checkpoints/<stage>/step-00001000/model.safetensors      one file per module and optimiser
                                      state.json             step, counters, recipe, architecture
                                      SHA256SUMS             of all other files; `sha256sum -c` reads it, too

Everything is written under a temporary name, flushed to the disk and renamed, so a killed process or a power cut leaves
the last complete checkpoint. What a disk damages later is seen by the sums, and the checkpoint before it taken instead.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from vqvdm.errors import InputError, reason_of
from vqvdm.files import sha256_of, whole_folder
from vqvdm.structure import parse_json
from vqvdm.train.sharding import part_of

Tensors = dict[str, Tensor]
SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk, and what is wrong with each newer one."""

    folder: Path
    state: dict[str, Any]
    damaged: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self.state["step"])

    def tensors(self, name: str) -> Tensors:
        """The tensors of one module or optimiser, on the CPU; empty if the checkpoint holds none of that name.

        Raises:
            InputError: the file is damaged.
        """
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            return {}
        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(
                f"{path} is damaged ({error}); delete {self.folder} to go on from an earlier one"
            ) from error


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
    *,
    every: int = 0,
    best: int | None = None,
) -> Path:
    """Write `folder/step-XXXXXXXX` whole, then delete those that need not stay; see `superfluous`.

    Args:
        folder: the stage's checkpoint folder.
        tensors: file name without its ending -> named tensors.
        state: plain values; `state["step"]` names the checkpoint.
        keep: how many of the newest stay (at least one).
        every: those of steps that are multiples of it stay, too; 0 is none.
        best: the step of one that stays, too.

    Raises:
        InputError: the disk has no room; earlier checkpoints are untouched.
    """
    target = _folder_of(folder, int(state["step"]))
    for abandoned in folder.glob(".step-*"):  # by a killed process
        shutil.rmtree(abandoned)
    needed = sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
    with whole_folder(target, needed) as temporary:
        for name, named in tensors.items():
            contiguous = {key: tensor.detach().contiguous() for key, tensor in named.items()}
            save_file(contiguous, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        sums = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(temporary.iterdir())]
        (temporary / SUMS).write_text("".join(sums), encoding="utf-8")
    for step in superfluous(steps_in(folder), int(state["step"]), keep, every, best):
        shutil.rmtree(_folder_of(folder, step))
    return target


def superfluous(steps: Sequence[int], now: int, keep: int, every: int = 0, best: int | None = None) -> list[int]:
    """Which checkpoints need not stay beside that of the update `now`, which was written last.

    The `keep` newest stay, those of multiples of `every`, and `best`. Any of a later update is one that could not be
    resumed from, or was given up after NaN: it goes, lest it be taken for the newest.
    """
    newest = sorted(step for step in steps if step <= now)[-max(keep, 1) :]
    return [
        step for step in steps if step > now or not (step in newest or step == best or (every and step % every == 0))
    ]


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are what was written; None if there are none at all.

    Raises:
        InputError: there are some, and all are damaged; or one cannot be read just now.
    """
    damaged: list[str] = []
    for step in reversed(steps_in(folder)):
        path = _folder_of(folder, step)
        try:
            _check_sums(path)
            return replace(read_checkpoint(folder, step), damaged=tuple(damaged))
        except ValueError as error:  # a drive that fails for a moment is no damage: what was trained would be lost
            damaged.append(f"{path} is damaged ({reason_of(error)})")
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}; try again when it can") from error
    if damaged:
        raise InputError(
            f"no checkpoint in {folder} can be read: {'; '.join(damaged)}. Delete the folder to start anew, or put "
            "back a copy of it"
        )
    return None


def read_checkpoint(folder: Path, step: int) -> Checkpoint:
    """That of one update, whose files are not compared with their sums.

    Raises:
        ValueError: its state.json is damaged.
        OSError: it cannot be read.
    """
    path = _folder_of(folder, step)
    if not (path / "state.json").is_file():
        raise ValueError("state.json is not there")
    state = parse_json((path / "state.json").read_bytes())
    if not isinstance(state, dict) or state.get("step") != step:
        raise ValueError(f"state.json does not state step {step}")
    if not isinstance(state.get("architecture"), dict) or not isinstance(state.get("recipe", {}), dict):
        raise ValueError("state.json lacks architecture or recipe")
    return Checkpoint(path, state)


def steps_in(folder: Path) -> list[int]:
    """The updates of which `folder` has a complete checkpoint, in order."""
    names = (path.name.removeprefix("step-") for path in folder.glob("step-????????"))
    return sorted(int(name) for name in names if name.isdecimal())


def _folder_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _check_sums(folder: Path) -> None:
    """Raise ValueError for a file that is not what was written or not there, OSError for one that cannot be read."""
    if not (folder / SUMS).exists():  # written before there were sums
        return
    listed = (folder / SUMS).read_text(encoding="utf-8")
    if "  state.json\n" not in listed:
        raise ValueError(f"{SUMS} lacks state.json")
    for line in listed.splitlines():
        digest, _, name = line.partition("  ")
        if Path(name).name != name:
            raise ValueError(f"{SUMS} names {name!r}")
        if not (folder / name).is_file():
            raise ValueError(f"{name} is not there")
        if sha256_of(folder / name) != digest:
            raise ValueError(f"{name} is not what was written")


def check_fits(checkpoint: Checkpoint, architecture: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another architecture.

    Args:
        checkpoint: its state holds the `architecture` it was written with.
        architecture: dotted recipe key -> plain value, for all that must not change during a training.
        defaults: what a checkpoint has that was written before a key was there.

    Raises:
        InputError: names every key that differs, with both values.
    """
    differing = differences({**defaults, **checkpoint.state["architecture"]}, architecture)
    if differing:
        listed = "\n".join(f"  {difference}" for difference in differing)
        raise InputError(
            f"the recipe does not fit the checkpoint {checkpoint.folder} (there -> asked for):\n{listed}\n"
            f"Use another run folder, or delete {checkpoint.folder.parent} to start anew"
        )


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key: then -> now` for every (dotted) key whose plain value differs; "absent" where one side lacks it."""
    before, after = _flat(json.loads(json.dumps(then))), _flat(json.loads(json.dumps(now)))
    keys = sorted({*before, *after})
    return [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _flat(values: Mapping[str, Any], key: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{key}{name}.")
        else:
            flat[f"{key}{name}"] = json.dumps(value)
    return flat


def optimizer_tensors(optimizer: Optimizer) -> Tensors:
    """The optimiser's state as named tensors: `<parameter number>.<name>`."""
    states = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, state in states.items() for name, value in state.items()}


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put the state back that `optimizer_tensors` took; without tensors the optimiser is as new.

    Moments get the memory layout of their parameter: AdamW's fused kernel walks over the memory of both side by side
    and would silently mix up elements of a channels-last parameter otherwise.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.state.clear()
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        like = parameter if value.shape == parameter.shape else value
        like = torch.empty_like(like, device=parameter.device)  # the fused AdamW wants its count of steps there, too
        optimizer.state[parameter][name] = like.copy_(part_of(value, like))
