"""What one process does for others: on each host, since each may have a cache of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState

from tiny_training import give_tokenizer
from vqvdm.errors import InputError
from vqvdm.files import write_bytes
from vqvdm.latents import LatentCache
from vqvdm.processes import one_of_each_host_first, this_process
from vqvdm.video import write_video

# Three videos are probed within the process itself, where it can be seen; slowly, so that others could come in between.
PROGRAM = """
import os, sys, time
from pathlib import Path
from vqvdm.cli import main
from vqvdm.data import index

probe = index.probe

def slow_probe(path):
    with open(sys.argv[1], "a") as file:
        file.write(f"{os.environ['GROUP_RANK']} {path.name}\\n")
    time.sleep(0.5)
    return probe(path)

index.probe = slow_probe
sys.exit(main(sys.argv[2:]))
"""


def be(monkeypatch: pytest.MonkeyPatch, process: int, on_its_host: int) -> list[str]:
    """Make this process one of several; what it does, to which its waiting for the others is added."""
    here, done = this_process(), []
    monkeypatch.setattr(here, "process_index", process)
    monkeypatch.setattr(here, "local_process_index", on_its_host)
    monkeypatch.setattr(PartialState, "wait_for_everyone", lambda self: done.append("waits"))
    return done


@pytest.mark.parametrize(("process", "on_its_host", "order"), [(0, 0, 0), (1, 1, 1), (8, 0, 0), (9, 1, 1)])
def test_the_first_of_each_host_goes_first(
    monkeypatch: pytest.MonkeyPatch, process: int, on_its_host: int, order: int
) -> None:
    done = be(monkeypatch, process, on_its_host)
    with one_of_each_host_first():
        done.append("works")
    assert done.index("works") == order
    assert done.count("waits") == 1  # as often as everybody else


@pytest.mark.parametrize(("process", "on_its_host", "compares"), [(0, 0, True), (1, 1, False), (8, 0, True)])
def test_one_process_of_each_host_compares_latents_with_their_sums(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, process: int, on_its_host: int, compares: bool
) -> None:
    give_tokenizer(tmp_path)
    (shard,) = (tmp_path / "latents").glob("*.safetensors")
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    be(monkeypatch, process, on_its_host)
    cache = LatentCache(tmp_path / "latents")
    if compares:
        with pytest.raises(InputError, match="is damaged"):
            cache[0]
    else:
        cache[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_that_write_one_file_at_once_leave_a_whole_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As processes of two hosts, even of one number, do with an index in a home folder that both see."""

    def in_between(number: int) -> None:
        monkeypatch.undo()
        write_bytes(tmp_path / "index.json", b"long, and of another host")

    monkeypatch.setattr(os, "fsync", in_between)
    write_bytes(tmp_path / "index.json", b"short")
    assert (tmp_path / "index.json").read_bytes() == b"short"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)  # four processes that wait for each other, on a busy machine
@pytest.mark.parametrize(("verb", "names"), [("train", "abc"), ("encode", "ab")])  # c is held out
def test_hosts_with_caches_of_their_own_probe_each_video_once(tmp_path: Path, verb: str, names: str) -> None:
    for name in "abc":
        write_video(tmp_path / "videos" / f"{name}.mp4", np.zeros((8, 16, 16, 3), np.uint8), 8.0)
    run, program, probed = tmp_path / "run", tmp_path / "program.py", tmp_path / "probed"
    program.write_text(PROGRAM)
    give_tokenizer(run)
    shutil.rmtree(run / "latents")
    small = f"data.path={tmp_path / 'videos'} data.frames=4 data.size=16 data.workers=0 tokenizer.training.steps=1"
    more = "tokenizer.model.channels=[8,16] tokenizer.training.batch=1 tokenizer.loss.perceptual=0"
    words = {"train": ["train", "tokenizer", "demo", *more.split()], "encode": ["encode", "demo"]}[verb]
    words += [*small.split(), "--run", str(run)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
    launch += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    hosts = [
        subprocess.Popen(
            [*launch, "--node-rank", str(host), "--", str(program), str(probed), *words],
            env={**environment, "VQVDM_CACHE": str(tmp_path / f"cache-{host}")},
        )
        for host in range(2)
    ]
    assert [host.wait() for host in hosts] == [0, 0]
    once = [f"{host} {name}.mp4" for host in range(2) for name in names]
    assert Counter(probed.read_text().splitlines()) == Counter(once)
