"""The parser of shards, as a function of bytes; see fuzz_parsers.py.

Nothing reads the headers of a stranger's tar: its index says where the videos are. So the index is what is fuzzed,
around a tar that stays as it is: local, then as if from a web server.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vqvdm.data import open_dataset, remote
from vqvdm.data.shards import FORMAT, INDEX, Shards, list_shards
from vqvdm.decode import probe
from vqvdm.errors import InputError
from vqvdm.evaluation.sources import open_videos
from vqvdm.metrics.protocol import Draw
from vqvdm.recipe import DataRecipe
from vqvdm.video import write_video

_TAR = "shard-000000.tar"
_URL = "http://stranger.test/index.json"


@cache
def _tar() -> bytes:
    buffer = io.BytesIO()
    frames = (np.arange(6 * 16 * 16 * 3) % 251).astype(np.uint8).reshape(6, 16, 16, 3)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(2):
            write_video(Path(folder) / "v.gif", frames[number:], 8.0)
            tar.add(Path(folder) / "v.gif", f"{number}.gif")
    return buffer.getvalue()


def shards(data: bytes, folder: Path) -> None:
    """Everything that is done with them: clips of both splits, a check, an evaluation."""
    (folder / _TAR).write_bytes(_tar())
    (folder / INDEX).write_bytes(data)
    refused: list[InputError] = []
    with _web_server(data):
        for place in (str(folder), _URL):
            try:
                _use(place)
            except InputError as error:
                refused.append(error)
    if refused:
        raise refused[0]


def _use(place: str) -> None:
    listing = list_shards(place)
    assert isinstance(listing.root, Shards)
    paths = [sample.path for sample in listing.samples]
    listing.root.entries(paths, verify=True)
    for split in ("train", "test"):
        clips = open_dataset(DataRecipe(path=place, frames=2, size=8, fps=8.0), split, progress=False)
        assert clips.digest()
        assert sorted(number for bundle in clips.bundles for number in bundle) == list(range(len(clips)))
        for index in range(min(len(clips), 4)):
            assert tuple(clips[index, 1]["clip"].shape) == (3, 2, 8, 8)
    videos = open_videos(place, size=8)
    assert videos.digest
    long_enough = np.flatnonzero(videos.starts(clips.timing))
    for clip in videos.clips([Draw(int(video), 0) for video in long_enough[:4]], clips.timing):
        assert clip.frames.shape == (2, 8, 8, 3)


@contextmanager
def _web_server(index: bytes) -> Iterator[None]:
    """One that has the index and the tar, without the network, and without pauses before further attempts."""
    before = remote.urlopen, remote._PAUSE

    def answer(url: str, **_: Any) -> io.BytesIO:
        return io.BytesIO(index if url == _URL else _tar())

    remote.urlopen, remote._PAUSE = answer, 0.0  # pyrefly: ignore[bad-assignment]
    try:
        yield
    finally:
        remote.urlopen, remote._PAUSE = before


def shards_seeds(folder: Path) -> list[bytes]:
    """Two classes and a split; one video without either, in two stretches, and another whose frames are uneven."""
    with tarfile.open(fileobj=io.BytesIO(_tar())) as tar:
        members = tar.getmembers()
        for member in members:
            content = tar.extractfile(member)
            assert content is not None
            (folder / member.name).write_bytes(content.read())
    videos = [
        {"key": "0", "shard": 0, "offset": member.offset_data, "length": member.size, "path": member.name}
        | {"stamp": [member.size, 10**18], "info": asdict(probe(folder / member.name))}
        for member in members
    ]
    tars = [{"name": _TAR, "size": len(_tar()), "sha256": hashlib.sha256(_tar()).hexdigest(), "samples": 2}]
    named = [{"video": n, "label": "xy"[n], "split": split} for n, split in enumerate(("train", "test"))]
    parts = [{"video": n, "group": "g", "start": 0.0, "end": 0.5, "fps": 8} for n in (0, 0, 1)]
    uneven = [{**videos[0], "info": {**videos[0]["info"], "times": [0.1 * k * k for k in range(6)]}}, videos[1]]
    common = {"format": FORMAT, "split": "folder names", "held_out": False, "shards": tars}
    return [
        json.dumps({**common, "classes": ["x", "y"], "videos": videos, "samples": named}).encode(),
        json.dumps({**common, "classes": [], "videos": uneven, "samples": parts}).encode(),
    ]
