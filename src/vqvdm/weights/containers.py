"""Files of named arrays, whatever holds them: safetensors, npz, torch, TorchScript, pickled or msgpacked arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from vqvdm.errors import InputError, reason_of
from vqvdm.memory import available_memory
from vqvdm.weights.pickles import leaves, read_pickled_arrays
from vqvdm.weights.torch_files import is_torch_zip, read_torch_zip


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All numeric tensors of a file, name -> tensor; names of nested dicts are joined with "/".

    By suffix: .safetensors; .npz; .pt, .pth (a state dict, or TorchScript); .ckpt, .pickle, .pkl (NumPy arrays only);
    .msgpack, .flax. Whatever the file, nothing in it is run, and what it holds is no larger than it is itself, or, of a
    compressed one, than the memory.

    Raises:
        InputError: no such file, another suffix, or content that cannot be read.
    """
    readers = {
        ".safetensors": load_file,
        ".npz": _read_npz,
        **dict.fromkeys((".pt", ".pth"), _read_torch),
        **dict.fromkeys((".ckpt", ".pickle", ".pkl"), lambda file: read_pickled_arrays(file.read_bytes(), str(file))),
        **dict.fromkeys((".msgpack", ".flax"), _read_msgpack),
    }
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: weights are read from files that end in {', '.join(readers)}")
    try:
        return as_tensors(reader(path))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}") from error


def as_tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Arrays or tensors by name as tensors by name."""
    return {
        name: value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        for name, value in arrays.items()
    }


def check_archive(path: Path) -> None:
    """Raise `InputError` for an .npz whose arrays would not fit into the memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    there = available_memory(torch.device("cpu"))
    if there is not None and size > there:
        raise InputError(f"{path} unpacks to {size / 1e9:,.1f} GB; {there / 1e9:,.1f} GB of memory are free")


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    check_archive(path)
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def read_torch(path: Path) -> Any:
    """What torch.save has written: tensors, lists and tables; of TorchScript the table of the module's parts.

    Raises:
        InputError: it holds anything else, or tensors larger than their bytes.
        Exception: of many kinds, if it is damaged.
    """
    if is_torch_zip(path):
        return read_torch_zip(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    for _, value in leaves(content):
        if isinstance(value, Tensor) and value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(f"{path} is refused: a tensor of shape {list(value.shape)!r:.60} is larger than its bytes")
    return content


def _read_torch(path: Path) -> dict[str, Tensor]:
    content = read_torch(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, no state dict")
    return {name: value for name, value in leaves(content, ".") if isinstance(value, Tensor)}


def _read_msgpack(path: Path) -> dict[str, np.ndarray]:
    """flax.serialization's form: nested maps whose arrays are extension 1, a packed (shape, dtype, bytes)."""
    try:
        import msgpack
    except ImportError:
        raise InputError(f"{path}: reading Flax files needs one more package: pip install msgpack") from None

    def extension(code: int, data: bytes) -> np.ndarray:
        if code != 1:
            raise InputError(f"{path}: extension {code} is no array")
        shape, dtype, buffer = msgpack.unpackb(data, raw=False, strict_map_key=False)
        return np.frombuffer(buffer, dtype=np.dtype(dtype)).reshape(shape)

    content = msgpack.unpackb(path.read_bytes(), ext_hook=extension, raw=False, strict_map_key=False)
    return {name: leaf for name, leaf in leaves(content) if isinstance(leaf, np.ndarray)}
