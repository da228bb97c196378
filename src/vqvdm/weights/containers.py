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
from vqvdm.weights.pickles import leaves, read_pickled_arrays


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All numeric tensors of a file, name -> tensor; names of nested dicts are joined with "/".

    By suffix: .safetensors; .npz; .pt, .pth (a state dict, or TorchScript, whose code runs as it is loaded: of a file
    that the user names, never of a download); .ckpt, .pickle, .pkl (NumPy arrays only); .msgpack, .flax.

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
        found = reader(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}") from error
    return as_tensors(found)


def as_tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Arrays or tensors by name as tensors by name."""
    return {
        name: value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        for name, value in arrays.items()
    }


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _read_torch(path: Path) -> dict[str, Tensor]:
    if zipfile.is_zipfile(path) and _is_torchscript(path):
        return dict(torch.jit.load(path, map_location="cpu").state_dict())
    content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, no state dict")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


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
