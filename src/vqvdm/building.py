"""Networks' arguments from files, checked before anything is built of them: names, types, and what they add up to.

A line of a recipe or of a config.json can ask for more than any machine holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import signature
from itertools import chain
from typing import Any, get_type_hints

import torch
from torch import nn

from vqvdm.errors import InputError, reason_of
from vqvdm.memory import total_memory
from vqvdm.structure import Origins, check_known, convert, origin

_MOST_PARTS = 128  # blocks, levels, books: even without weights each of them takes time
_PARTS = ("blocks", "codebooks", "pixel_blocks")  # arguments that count them


def check_arguments(network: type[nn.Module], arguments: Mapping[str, Any], origins: Origins, key: str) -> None:
    """Compare the arguments of a network with its constructor, and its weights with this machine's memory.

    Args:
        network: the class.
        arguments: plain values; what is left out has its default.
        origins: where each dotted key was set, for messages.
        key: the dotted key of the arguments as a whole, "" where they are the file.

    Raises:
        InputError: an unknown argument, one of another type, or a network that the memory cannot hold; names the key,
            the value or size, and what would be right.
    """
    known = [name for name in signature(network).parameters if name != "self"]
    hints = get_type_hints(network.__init__)
    typed = {}
    for name, value in arguments.items():
        dotted = f"{key}.{name}" if key else name
        check_known(name, known, origins, key, what=f"argument of {network.__name__}")
        typed[name] = convert(hints.get(name, Any), value, origins, dotted)
        parts = sum(_numbers(typed[name])) if name in _PARTS else len(typed[name]) if _is_list(typed[name]) else 0
        if parts > _MOST_PARTS:
            raise InputError(f"{origin(origins, dotted)}: {dotted} asks for {parts} parts; {_MOST_PARTS} are the most")
    where = f"{origin(origins, key)}: {key or network.__name__}"
    try:
        with torch.device("meta"):  # shapes without memory
            built = network(**typed)
    except InputError:
        raise  # settings that contradict each other
    except (RuntimeError, TypeError, ArithmeticError) as error:  # a size beyond 64 bits
        raise InputError(f"{where} cannot be built ({reason_of(error)}); take smaller numbers") from error
    _check_size(built, where)


def _check_size(built: nn.Module, where: str) -> None:
    there = total_memory()
    sizes = {name: tensor.nbytes for name, tensor in chain(built.named_parameters(), built.named_buffers())}
    if there is not None and sum(sizes.values()) > there:
        largest, whole = max(sizes, key=lambda name: sizes[name]), sum(sizes.values())
        raise InputError(
            f"{where} asks for a network of {whole / 1e9:,.1f} GB, {sizes[largest] / 1e9:,.1f} GB of them "
            f"in {largest}; this machine's memory is {there / 1e9:,.1f} GB: take fewer channels, codes or classes"
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _numbers(value: Any) -> Iterator[int]:
    yield from (value if _is_list(value) else (value,))
