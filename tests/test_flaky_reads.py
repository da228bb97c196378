"""A read that fails in one of two processes (gloo), once: no process waits for ever for the other one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tiny_training import TinyClips, give_tokenizer, tiny_recipe
from vqvdm.latents import write_latents
from vqvdm.tokenizer import VideoTokenizer
from vqvdm.train.checkpoint import latest_checkpoint
from vqvdm.video import write_video

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # two processes that wait for each other, on a busy machine

PROGRAM = """
import errno, os, sys
from importlib import import_module
from pathlib import Path
from vqvdm.cli import main

failed, module, name, which, *words = sys.argv[1:]
module, calls = import_module(module), 0
function = getattr(module, name)

def flaky(*given, **more):
    global calls
    calls += 1
    if calls == int(which) and os.environ["RANK"] == "1":
        Path(failed).touch()
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(given[0]))
    return function(*given, **more)

setattr(module, name, flaky)
sys.exit(main(words))
"""


def launched(tmp_path: Path, function: str, which: int, *words: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """The command line in two processes, in the second of which a function's call of this number fails; and how many
    seconds after that both have ended.
    """
    (tmp_path / "program.py").write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
    module, _, name = function.rpartition(".")
    command = [*launch, str(tmp_path / "program.py"), str(tmp_path / "failed"), module, name, str(which), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done, time.time() - (tmp_path / "failed").stat().st_mtime


def test_another_video_takes_the_place_of_one_that_cannot_be_read(tmp_path: Path) -> None:
    for number in range(6):
        write_video(tmp_path / "clips" / f"{number}.mp4", np.full((8, 16, 16, 3), 40 * number, np.uint8), 8.0)
    assert subprocess.run([sys.executable, "-m", "vqvdm", "data", "check", str(tmp_path / "clips")]).returncode == 0
    data = f"data.path={tmp_path / 'clips'} data.frames=4 data.size=16 data.workers=0 tokenizer.training.steps=3"
    small = "tokenizer.model.channels=[8,16] tokenizer.training.batch=2 tokenizer.loss.perceptual=0"
    run = tmp_path / "run"
    words = ["train", "tokenizer", "demo", *data.split(), *small.split(), "--run", str(run)]
    done, _ = launched(tmp_path, "av.open", 3, *words)
    assert done.returncode == 0, done.stderr
    assert "left out, another video takes its place: " in done.stderr
    found = latest_checkpoint(run / "checkpoints" / "tokenizer")
    assert found is not None and found.step == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_latents_that_cannot_be_read_end_all_processes(tmp_path: Path, workers: int) -> None:
    give_tokenizer(tmp_path)
    shutil.rmtree(tmp_path / "latents")
    tokenizer = VideoTokenizer.from_pretrained(tmp_path / "tokenizer")
    write_latents(tokenizer, TinyClips(), tmp_path / "latents", shard_size=2, progress=False)
    tiny_recipe(steps=500).save(tmp_path / "recipe.yaml")
    words = ["train", "denoiser", str(tmp_path), f"data.workers={workers}"]
    done, seconds = launched(tmp_path, "vqvdm.latents.safe_open", 5 + 3, *words)  # not of the index
    assert done.returncode != 0
    assert seconds < 60
    assert re.search(r"shard-0000\d\.safetensors: cannot be read \(Input/output error\)", done.stderr), done.stderr
    assert (tmp_path / "checkpoints" / "denoiser" / "step-00000000").exists(), "it failed before the first update"
