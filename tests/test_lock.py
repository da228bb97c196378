"""Two writers in one run folder, trainings or encodings: the second one is refused."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_pipeline import tiny_tokenizer
from tiny_training import open_tiny, tiny_recipe
from vqvdm import lock
from vqvdm.errors import InputError
from vqvdm.lock import LOCK, sole_writer
from vqvdm.train import tokenizer as module
from vqvdm.train.tokenizer import TokenizerStage, train_tokenizer
from vqvdm.verbs import encode as verb
from vqvdm.verbs.encode import encode

fcntl = pytest.importorskip("fcntl")

# Another process, and one that needs no torch: it says whether it has the lock, and keeps it until its input ends.
OTHER = """
import fcntl, sys
file = open(sys.argv[1], "a+")
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit("held")
file.write(sys.argv[2])
file.flush()
print("locked", flush=True)
sys.stdin.read()
"""


def other(run: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OTHER, str(run / LOCK), "1234 on elsewhere\n"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(autouse=True)
def _tiny_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_dataset", open_tiny)


def test_a_second_training_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    with other(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        message = f"another training or encoding is at work in {tmp_path} (process 1234 on elsewhere)"
        with pytest.raises(InputError, match=re.escape(message)):
            train_tokenizer(tiny_recipe(steps=1), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
        process.communicate("")
    train_tokenizer(tiny_recipe(steps=1), tmp_path)  # it has ended: nothing to clear away


def test_an_encoding_is_refused_beside_a_training_or_another(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    with other(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=re.escape(f"encoding is at work in {tmp_path} (process 1234")):
            encode(tiny_recipe(), tmp_path)
        assert not (tmp_path / "latents").exists()
        process.communicate("")


def test_an_encoding_holds_the_lock_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setattr(verb, "open_dataset", open_tiny)
    monkeypatch.setattr(verb, "write_latents", lambda *_, **__: seen.append(other(tmp_path).communicate("")[1].strip()))
    encode(tiny_recipe(), tmp_path)
    assert seen == ["held"]
    assert other(tmp_path).communicate("")[0] == "locked\n"


def test_a_training_holds_the_lock_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update, seen = TokenizerStage.update, []

    def watched(self, step, batches):
        seen.append((other(tmp_path).communicate("")[1].strip(), (tmp_path / LOCK).read_text()))
        return update(self, step, batches)

    monkeypatch.setattr(TokenizerStage, "update", watched)
    train_tokenizer(tiny_recipe(steps=1), tmp_path)
    assert seen[0][0] == "held"
    assert seen[0][1].startswith(f"{os.getpid()} on ")
    assert other(tmp_path).communicate("")[0] == "locked\n"


def test_a_system_without_locks_goes_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    with sole_writer(tmp_path):
        pass
    monkeypatch.setattr(lock, "fcntl", None)
    with sole_writer(tmp_path):
        pass
