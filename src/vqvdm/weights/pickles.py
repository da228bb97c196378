"""Pickled NumPy arrays from strangers, read without running anything: nothing that a pickle names is NumPy's own."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np

from vqvdm.errors import InputError


class _Dtype:
    """In the place of numpy.dtype: numbers of one to eight bytes."""

    def __init__(self, name: str, *_: Any) -> None:
        if not re.fullmatch(r"[fiu][1248]", name):
            raise InputError(f"it holds values of type {name!r:.20}, not numbers")
        self.name, self.order = name, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


class _Array:
    """In the place of numpy.ndarray: its content, which holds all its bytes."""

    content: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise InputError("it holds an array of objects, not of numbers")
        numbers = np.asarray(np.frombuffer(data, dtype.order + dtype.name), dtype.name)
        self.content = numbers.reshape(shape, order="F" if by_columns else "C")


# What a pickle of plain arrays names, by the module that NumPy 1 and NumPy 2 call it.
_KNOWN: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
}


def _refuse_bytearray(_: Any) -> None:
    raise InputError("it holds a bytearray")


class CautiousUnpickler(pickle._Unpickler):
    """The unpickler in Python: the one in C makes room for whatever number a pickle names. This one does so for one
    opcode alone, which neither arrays nor tensors need.
    """

    dispatch = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _refuse_bytearray}  # noqa: RUF012  pickle's own form


class _ArrayUnpickler(CautiousUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
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
        found = dict(leaves(_ArrayUnpickler(BytesIO(data)).load()))
    except InputError as error:
        raise InputError(f"{source} is refused: {error}; only pickles of NumPy arrays are read") from None
    except Exception as error:
        raise InputError(f"{source} is no readable pickle ({type(error).__name__}: {error})") from error
    arrays: dict[str, np.ndarray] = {}
    for name, leaf in found.items():
        if not isinstance(leaf, _Array):
            raise InputError(f"{source} is refused: {name or 'its content'} is a {type(leaf).__name__}, no array")
        if leaf.content is None:
            raise InputError(f"{source} is refused: {name or 'its content'} is an array without content")
        arrays[name] = leaf.content
    return arrays


def leaves(node: Any, joint: str = "/") -> Iterator[tuple[str, Any]]:
    """What nested mappings hold, with the keys on the way to it joined.

    Raises:
        InputError: one mapping lies in several places, or in itself: few of them can be endlessly many.
    """
    seen: set[int] = set()

    def walk(node: Any, name: str) -> Iterator[tuple[str, Any]]:
        if not isinstance(node, Mapping):
            yield name, node
            return
        if id(node) in seen:
            raise InputError("it holds one table in several places")
        seen.add(id(node))
        for key, value in node.items():
            yield from walk(value, f"{name}{joint}{key}" if name else str(key))

    return walk(node, "")
