"""Checkpoints: whole or not there, and the optimiser goes on as if nothing had happened."""

from __future__ import annotations

import copy
import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from vqvdm.errors import InputError
from vqvdm.files import whole_folder
from vqvdm.train import checkpoint as module
from vqvdm.train.checkpoint import (
    SUMS,
    Checkpoint,
    check_fits,
    differences,
    latest_checkpoint,
    load_optimizer,
    optimizer_tensors,
    superfluous,
    write_checkpoint,
)
from vqvdm.train.optimization import channels_last, make_adamw


def write(folder: Path, step: int, value: float = 0.0, keep: int = 2) -> Path:
    return write_checkpoint(folder, {"model": {"w": torch.full((3,), value)}}, {"step": step, "architecture": {}}, keep)


def test_round_trip_and_the_newest_stay(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for step in (0, 900, 1000, 100_000):
        write(tmp_path, step, value=step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00001000", "step-00100000"]
    last = latest_checkpoint(tmp_path)
    assert last is not None
    assert last.step == 100_000
    assert torch.equal(last.tensors("model")["w"], torch.full((3,), 100_000.0))
    assert last.tensors("absent") == {}


def test_an_abandoned_temporary_is_no_checkpoint_and_is_cleared_away(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / ".step-00000002.tmp").mkdir()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    write(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def full_disk(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_disk_in_rust(*arguments: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("failure", [full_disk, full_disk_in_rust])
def test_a_full_disk_leaves_earlier_checkpoints_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure
) -> None:
    write(tmp_path, 1, value=7.0)
    monkeypatch.setattr(module, "save_file", failure)
    with pytest.raises(InputError, match=r"no room .*step-00000002: it needs 12 bytes, [\d,]+ are free"):
        write(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert torch.equal(found.tensors("model")["w"], torch.full((3,), 7.0))


def test_too_little_room_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=11)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="needs 12 bytes, 11 are free"):
        write(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_another_error_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="broken"), whole_folder(tmp_path / "x"):
        raise OSError(errno.EIO, "broken")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()

    def write_half() -> None:
        with whole_folder(target) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [path.name for path in target.iterdir()] == ["old"]
    with whole_folder(target) as folder:
        (folder / "new").touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_files_and_names_are_on_the_disk_before_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power cut after the renaming finds is whole: files and their folder are flushed before, its name after."""
    done: list[tuple[str, int]] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(number: int) -> None:
        done.append(("flushed", os.fstat(number).st_ino))
        fsync(number)

    def record_replace(path: Path, target: Path) -> Path:
        done.append(("renamed", path.stat().st_ino))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    with whole_folder(tmp_path / "model") as folder:
        (folder / "part").mkdir()
        for path in (folder / "a", folder / "part" / "b"):
            path.write_text("text")
    target = tmp_path / "model"
    before = done[: done.index(("renamed", target.stat().st_ino))]
    for path in (target / "a", target / "part", target / "part" / "b", target):
        assert ("flushed", path.stat().st_ino) in before, path
    assert done[len(before) + 1 :] == [("flushed", tmp_path.stat().st_ino)]


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "model.safetensors is not what was written": lambda folder: flip_last_bit(folder / "model.safetensors"),
    "state.json is not what was written": lambda folder: (folder / "state.json").write_text("{}"),
    "model.safetensors is not there": lambda folder: (folder / "model.safetensors").unlink(),
    "SHA256SUMS names '../model.safetensors'": lambda folder: (folder / SUMS).write_text(
        "0  ../model.safetensors\n0  state.json\n"
    ),
    "'utf-8' codec can't decode": lambda folder: (folder / SUMS).write_bytes(b"\xff"),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_of_a_damaged_checkpoint_the_one_before_is_taken(tmp_path: Path, reason: str) -> None:
    first, second = write(tmp_path, 1), write(tmp_path, 2)
    DAMAGES[reason](second)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, len(found.damaged)) == (1, 1)
    assert str(second) in found.damaged[0] and reason in found.damaged[0]
    DAMAGES[reason](first)
    with pytest.raises(InputError, match=f"no checkpoint in {tmp_path} can be read: .*00000002.*00000001"):
        latest_checkpoint(tmp_path)


def test_a_drive_that_fails_for_a_moment_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the one before would be taken, and the newer ones deleted as what could not be resumed from."""
    write(tmp_path, 1), write(tmp_path, 2)

    def stale(path: Path) -> str:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(module, "sha256_of", stale)
    with pytest.raises(InputError, match="step-00000002 cannot be read: Stale file handle; try again"):
        latest_checkpoint(tmp_path)


def test_empty_sums_are_no_sums(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (write(tmp_path, 2) / SUMS).write_text("")
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 1 and "lacks state.json" in found.damaged[0]


def test_checkpoints_from_before_there_were_sums_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder / SUMS).unlink()
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 1
    (folder / "model.safetensors").write_bytes(b"1234")
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        found.tensors("model")
    (folder / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"no checkpoint in .* can be read"):
        latest_checkpoint(tmp_path)


def test_the_sums_are_those_of_coreutils(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    checked = subprocess.run(["sha256sum", "-c", SUMS], cwd=folder, capture_output=True, text=True)
    assert checked.stdout.splitlines() == ["model.safetensors: OK", "state.json: OK"]


@pytest.mark.parametrize(
    ("steps", "now", "options", "gone"),
    [
        ([0, 10, 20, 30], 30, {"keep": 2}, [0, 10]),
        ([10], 10, {"keep": 0}, []),
        ([0, 10, 20, 30, 40], 40, {"keep": 1, "every": 20}, [10, 30]),
        ([0, 10, 20, 30, 40], 40, {"keep": 1, "best": 10}, [0, 20, 30]),
        ([5, 10, 20, 30], 10, {"keep": 1}, [5, 20, 30]),  # 20 and 30 could not be resumed from
        ([10, 20, 30], 10, {"keep": 1, "every": 10, "best": 30}, [20, 30]),
    ],
)
def test_which_checkpoints_stay(steps, now, options, gone) -> None:
    assert superfluous(steps, now, **options) == gone


def test_after_a_damaged_one_the_newest_is_not_lost(tmp_path: Path) -> None:
    write(tmp_path, 1)
    flip_last_bit(write(tmp_path, 4) / "model.safetensors")
    write(tmp_path, 2, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_another_architecture_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    found = Checkpoint(tmp_path, {"architecture": {"model.channels": [8, 8], "model.blocks": 1, "model.old": None}})
    check_fits(found, {"model.channels": (8, 8), "model.blocks": 1, "model.old": None}, {})
    newer = {"model.channels": (8, 8), "model.blocks": 1, "model.old": None, "model.new": True}
    check_fits(found, newer, {"model.new": True, "model.blocks": 7})  # it was there already, unsaid
    with pytest.raises(InputError) as error:
        check_fits(found, {"model.channels": (8, 16), "model.blocks": 1, "model.new": True}, {})
    message = str(error.value)
    assert "model.channels: [8, 8] -> [8, 16]" in message
    assert "model.new: absent -> true" in message
    assert "model.old: null -> absent" in message
    assert "blocks" not in message


def test_differences_of_nested_values() -> None:
    assert differences({"a": {"b": 1, "c": (2, 3)}}, {"a": {"b": 2, "c": [2, 3]}}) == ["a.b: 1 -> 2"]


def test_a_loaded_optimizer_takes_the_same_step_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = channels_last(nn.Conv3d(5, 6, 3), torch.device("cuda"))  # a layout that the fused kernel would mix up
    optimizer = make_adamw(model.parameters(), 0.1, (0.9, 0.99), weight_decay=0.1)

    def step(network: nn.Module, its_optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        network(torch.randn(2, 5, 4, 4, 4)).square().sum().backward()
        its_optimizer.step()
        its_optimizer.zero_grad()

    step(model, optimizer, 1)
    step(model, optimizer, 2)
    twin = copy.deepcopy(model)
    its_optimizer = make_adamw(twin.parameters(), 0.1, (0.9, 0.99), weight_decay=0.1)
    saved = {name: value.clone().contiguous() for name, value in optimizer_tensors(optimizer).items()}
    load_optimizer(its_optimizer, saved)
    step(model, optimizer, 3)
    step(twin, its_optimizer, 3)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    load_optimizer(its_optimizer, {})
    assert optimizer_tensors(its_optimizer) == {}


def test_the_state_of_an_optimizer_goes_where_its_parameters_are() -> None:
    """All of it, the count of steps included: the fused AdamW of a GPU refuses a count on the CPU."""
    model = torch.nn.Linear(3, 2)
    optimizer = make_adamw(model.parameters(), 0.1, (0.9, 0.99))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = optimizer_tensors(optimizer)
    elsewhere = make_adamw(model.to("meta").parameters(), 0.1, (0.9, 0.99))
    load_optimizer(elsewhere, saved)
    state = [value for values in elsewhere.state.values() for value in values.values()]
    assert len(state) == 6 and {value.device.type for value in state} == {"meta"}
