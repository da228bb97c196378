"""Plain values (from YAML) to typed ones, strictly, and back.

`structure(cls, values, ...)` builds a frozen dataclass from nested dicts and lists; whatever does not fit raises
`InputError` with the dotted key, the value, what is allowed, and the file or override it came from. `plain` is the way
back. Supported types: dataclasses, `X | None`, `Literal`, `tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]`, bool, int,
float, str, Any.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from vqvdm.errors import InputError

T = TypeVar("T")

Origins = Mapping[str, str]  # dotted key -> the file or override that set it; "" -> what all the rest came from
_LARGEST = 2**63 - 1  # whole number: what files and tensors hold


def parse_json(text: str | bytes) -> Any:
    """What JSON says; whatever is wrong with it is a `ValueError`, tables within tables without end as well."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_finite(value: object) -> bool:
    """Whether a value of JSON is a number that a float can be; a whole number of hundreds of digits is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def listed(text: str) -> list[str]:
    """The words of a list with commas between, as command lines take it."""
    return [word.strip() for word in text.split(",") if word.strip()]


def origin(origins: Origins, key: str) -> str:
    """Where the value of a dotted key came from: its own origin, else that of the nearest key above it."""
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return origins.get(key, "recipe")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'steps'?"`, or nothing where no known word is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def structure(cls: type[T], values: Any, origins: Origins, key: str = "") -> T:
    """Build the dataclass `cls` from nested plain `values`; fields that are not given keep their defaults.

    Args:
        cls: a dataclass; its fields may be dataclasses again.
        values: mapping of field names to plain values.
        origins: where each dotted key was set, for messages.
        key: dotted key of `cls` within the whole, "" at the top.

    Raises:
        InputError: an unknown field, or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise _mistake(origins, key, values, "must be a table of " + _listed(field.name for field in _fields(cls)))
    hints = typing.get_type_hints(cls)
    known = [field.name for field in _fields(cls)]
    for name in values:
        check_known(str(name), known, origins, key)
    return cls(**{name: convert(hints[name], value, origins, _join(key, name)) for name, value in values.items()})


def check_known(name: str, known: Iterable[str], origins: Origins, key: str = "", what: str = "key") -> None:
    """Raise `InputError` if `name`, below the dotted `key`, is not among `known`."""
    known = list(known)
    if name not in known:
        dotted = _join(key, name)
        hint = did_you_mean(name, known) or f"; known here: {_listed(known)}"
        raise InputError(f"{origin(origins, dotted)}: unknown {what} {dotted!r}{hint}")


def convert(hint: Any, value: Any, origins: Origins, key: str) -> Any:
    """One plain `value` as the type `hint`, or `InputError` naming the dotted `key`.

    Numbers are not guessed from text, nor truth from numbers; a whole float (`1e4`) passes as an int.
    """
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return structure(hint, value, origins, key)
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _frozen(value)
    if kind in (typing.Union, types.UnionType):
        return _convert_union(parts, value, origins, key)
    if kind is Literal:
        if value in parts and type(value) in {type(part) for part in parts}:
            return value
        allowed = f"must be {'one of ' if len(parts) > 1 else ''}{_listed(map(repr, parts))}"
        near = did_you_mean(value, (part for part in parts if isinstance(part, str))) if isinstance(value, str) else ""
        raise _mistake(origins, key, value, allowed + near)
    if kind is tuple:
        return _convert_tuple(hint, value, origins, key)
    if kind is dict:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise _mistake(origins, key, value, "must be a table of names and values")
        return {name: convert(parts[1], item, origins, _join(key, name)) for name, item in value.items()}
    return _convert_scalar(hint, value, origins, key)


def plain(value: Any) -> Any:
    """The reverse of `structure`: dataclasses become dicts, tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def _fields(cls: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)  # pyrefly: ignore[bad-argument-type]


def _convert_union(parts: tuple[Any, ...], value: Any, origins: Origins, key: str) -> Any:
    if value is None and type(None) in parts:
        return None
    kinds = [part for part in parts if part is not type(None)]
    if len(kinds) == 1 and (dataclasses.is_dataclass(kinds[0]) or isinstance(value, Mapping | list)):
        return convert(kinds[0], value, origins, key)  # a mistake inside it is named where it is
    for part in kinds:
        try:
            return convert(part, value, origins, key)
        except InputError:
            continue
    raise _mistake(origins, key, value, "must be " + " or ".join(map(_described, parts)))


def _convert_tuple(hint: Any, value: Any, origins: Origins, key: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _mistake(origins, key, value, f"must be {_described(hint)}")
    parts = typing.get_args(hint)
    if len(parts) == 2 and parts[1] is Ellipsis:
        parts = (parts[0],) * len(value)
    if len(parts) != len(value):
        raise _mistake(origins, key, value, f"must have {len(parts)} entries")
    return tuple(
        convert(part, item, origins, f"{key}[{position}]")
        for position, (part, item) in enumerate(zip(parts, value, strict=True))
    )


def _convert_scalar(hint: Any, value: Any, origins: Origins, key: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and number and abs(value) < math.inf:
        try:
            return float(value)
        except OverflowError:  # a whole number of hundreds of digits
            raise _mistake(origins, key, value, "must be a number below 1e308") from None
    if hint is int and number and abs(value) <= _LARGEST and value == int(value):
        return int(value)
    if hint is int and number and abs(value) > _LARGEST:
        raise _mistake(origins, key, value, "must be a whole number below 2^63")
    if hint in (bool, str) and isinstance(value, hint):
        return value
    advice = f": write it in quotes, '{value}'" if hint is str and isinstance(value, (int, float)) else ""
    raise _mistake(origins, key, value, f"must be {_described(hint)}{advice}")


def _described(hint: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    if hint in words:
        return words[hint]
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        listed = f"[{_described(parts[0])}, ...]" if Ellipsis in parts else f"[{', '.join(map(_described, parts))}]"
        return f"a list {listed}"
    return " or ".join(map(repr, parts)) if typing.get_origin(hint) is Literal else str(hint)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _frozen(item) for name, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _mistake(origins: Origins, key: str, value: Any, allowed: str) -> InputError:
    return InputError(f"{origin(origins, key)}: {key or 'the recipe'} is {_shown(value)}, but {allowed}")


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(plain(value))
    except ValueError:  # Python does not write numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
