"""Files of torch.save and of TorchScript, read without running anything that is in them.

Both are zip archives of one pickle, data.pkl, and of the bytes of each storage. The pickle names functions and classes;
here the few that tensors need are ours, those of a TorchScript module are tables of its parts, and no other is known.
Bytes are mapped, not copied, and a tensor that would reach beyond its bytes is refused before it is made.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqvdm.errors import InputError
from vqvdm.weights.pickles import CautiousUnpickler

_LONGEST = 64 * 2**20  # bytes of the pickle, which holds names and shapes alone
_ALIGNED = 8  # bytes of the widest number, at whose multiples torch lays each storage; another tool may not
_HEADER = 30  # bytes of a zip member's own header, before its name
_STORAGES: Mapping[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Storage(NamedTuple):
    data: Tensor  # uint8 (bytes,)
    dtype: torch.dtype


class _Module(dict[str, Any]):
    """A module or other object of TorchScript: the table of its attributes. Its code stays text."""

    def __setstate__(self, state: Any) -> None:
        self.update(state if isinstance(state, Mapping) else {})


def is_torch_zip(path: Path) -> bool:
    """Whether torch.save or TorchScript has written it, and not the torch of before 2020."""
    return zipfile.is_zipfile(path)


def read_torch_zip(path: Path) -> Any:
    """What was saved: tensors, lists and tables; of TorchScript the table of the module's parts.

    Raises:
        InputError: its pickle names anything but tensors.
        Exception: of many kinds, if it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        names = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(names) != 1:
            raise InputError(f"{path} is a zip archive, but none of torch.save or TorchScript")
        if (length := members[names[0]].file_size) > _LONGEST:
            raise InputError(f"{path}: its data.pkl is of {length:,} bytes; {_LONGEST:,} are the most")
        content = archive.read(names[0])
        root, size = names[0].removesuffix("data.pkl"), path.stat().st_size
        if sum(member.file_size for name, member in members.items() if name.startswith(f"{root}data/")) > size:
            raise InputError(f"{path} is refused: its tensors are compressed or overlap, which torch's own never do")
        if root + "byteorder" in members and archive.read(root + "byteorder") != b"little":
            raise InputError(f"{path} was written by a big-endian machine; save it anew on another")
    file = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)

    @cache
    def storage(key: str) -> Tensor:
        member = members[f"{root}data/{key}"]
        if member.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"{member.filename} is compressed, which torch's own never are")
        header = bytes(file[member.header_offset : member.header_offset + _HEADER].tolist())
        start = member.header_offset + _HEADER + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        data = file[start : start + member.file_size]
        if len(header) != _HEADER or len(data) != member.file_size:
            raise InputError(f"it is cut short: {member.filename} should have {member.file_size:,} bytes")
        return data if start % _ALIGNED == 0 else data.clone()

    try:
        return _Unpickler(content, storage).load()
    except InputError as error:
        raise InputError(f"{path} is refused: {error}") from None


class _Unpickler(CautiousUnpickler):
    def __init__(self, content: bytes, storage: Callable[[str], Tensor]) -> None:
        super().__init__(BytesIO(content))
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module.startswith("__torch__"):
            return _Module
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise InputError(f"it names {module}.{name}; only tensors, lists and tables are read") from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise InputError(f"it holds a {kind!r:.40}, which is no storage of a tensor")
        return _Storage(self._storage(str(key)), dtype)


def _tensor(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A view of the storage; of its own bytes for each element, so that copies are no larger than the file."""
    count, width = 1, storage.dtype.itemsize
    for extent in size:
        count *= extent
    if min(size, default=0) < 0 or count * width > len(storage.data):
        raise InputError(f"a tensor of shape {list(size)!r:.60} needs more than the {len(storage.data):,} bytes it has")
    whole = storage.data[: len(storage.data) // width * width].view(storage.dtype)
    return whole[offset:].as_strided(size, stride)


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda *_: None,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch.jit._pickle", "restore_type_tag"): lambda value, *_: value,
    **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "tensor", "double", "bool")},
}
