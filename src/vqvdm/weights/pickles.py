"""Pickled NumPy arrays from strangers, read without running anything: an allow-list of three names."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np

from vqvdm.errors import InputError

# What a pickle of plain arrays names, by the module that NumPy 1 and NumPy 2 call it.
_ALLOWED: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise InputError(f"it names {module}.{name}, which is no array") from None


def read_pickled_arrays(data: bytes, source: str) -> dict[str, np.ndarray]:
    """Nested dicts of numeric arrays, flattened: keys of all depths joined with "/".

    Args:
        data: the pickle.
        source: what it is called in messages.

    Raises:
        InputError: it is damaged, or holds anything but dicts of arrays of numbers.
    """
    try:
        content = _ArrayUnpickler(BytesIO(data)).load()
    except InputError as error:
        raise InputError(f"{source} is refused: {error}; only pickles of NumPy arrays are read") from None
    except Exception as error:
        raise InputError(f"{source} is no readable pickle ({type(error).__name__}: {error})") from error
    arrays: dict[str, np.ndarray] = {}
    for name, leaf in leaves(content):
        if not (isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiu"):
            raise InputError(f"{source} is refused: {name or 'its content'} is a {type(leaf).__name__}, no array")
        arrays[name] = leaf
    return arrays


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What nested mappings hold, with the keys on the way to it joined with "/"."""
    if not isinstance(node, Mapping):
        yield name, node
        return
    for key, value in node.items():
        yield from leaves(value, f"{name}/{key}" if name else str(key))
