"""Checkpoints: folders of safetensors and one JSON file, whole or not there at all.

    checkpoints/<stage>/step-00001000/model.safetensors      one file per module and optimiser
                                      state.json             step, counters, recipe, architecture

Everything is written under a temporary name, flushed to the disk and renamed, so a killed process or a power cut leaves
the last complete checkpoint.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from vqvdm.errors import InputError

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    state: dict[str, Any]

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
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Write `folder/step-XXXXXXXX` whole, then delete all but the `keep` newest.

    Args:
        folder: the stage's checkpoint folder.
        tensors: file name without its ending -> named tensors.
        state: plain values; `state["step"]` names the checkpoint.
        keep: how many checkpoints stay (at least one).

    Raises:
        InputError: the disk has no room; earlier checkpoints are untouched.
    """
    target = folder / f"step-{state['step']:08d}"
    for abandoned in folder.glob(".step-*"):  # by a killed process
        shutil.rmtree(abandoned)
    needed = sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
    with whole_folder(target, needed) as temporary:
        for name, named in tensors.items():
            contiguous = {key: tensor.detach().contiguous() for key, tensor in named.items()}
            save_file(contiguous, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    for old in _complete(folder)[: -max(keep, 1)]:
        shutil.rmtree(old)
    return target


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint, or None.

    Raises:
        InputError: its state.json cannot be read.
    """
    complete = _complete(folder)
    if not complete:
        return None
    path = complete[-1] / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(state, dict) or not {"step", "architecture"} <= set(state):
            raise ValueError("step or architecture is missing")
        return Checkpoint(complete[-1], state)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete {path.parent} to go on without it") from error


def _complete(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-????????"))


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
        optimizer.state[parameter][name] = like.copy_(value)


@contextmanager
def whole_folder(target: Path, needed: int = 0) -> Iterator[Path]:
    """A temporary folder to write into that becomes `target` when the block ends well, and vanishes otherwise.

    Args:
        target: replaced as a whole if it exists.
        needed: bytes that will be written, as far as known.

    Raises:
        InputError: the disk has no room; names the folder, the bytes needed and free.
    """
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
            os.fsync(number)
        finally:
            os.close(number)


def _is_disk_full(error: OSError | SafetensorError) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(f"os error {number})" in str(error) for number in (errno.ENOSPC, errno.EDQUOT))
