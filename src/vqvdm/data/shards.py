"""Shards: a data set in tar files of the WebDataset format, read where it lies, whether on a disk or a web server.

`index.json` beside the tars says where in them each video is and what it holds, so that any clip can be read by itself
and nothing is probed. It may come from strangers: every number of it is checked before it is used, and no name in it
becomes a path, except those of the shards, which are plain names. `vqvdm.data.sharding` writes shards.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from vqvdm.data.index import Entry, is_sound, read_info
from vqvdm.data.listing import Listing, Sample
from vqvdm.data.remote import ShardCache, cache_limit, fetch_bytes, is_url, neighbour
from vqvdm.decode import FileSlice
from vqvdm.errors import InputError, reason_of
from vqvdm.files import sha256_of
from vqvdm.structure import is_finite, parse_json

INDEX = "index.json"
FORMAT = "vqvdm shards 1"
_MOST_INDEX = 1 << 30  # bytes
_ABOVE = 1 << 62  # no number of bytes


@dataclass(frozen=True)
class Shard:
    """A tar file: its name beside the index, its size in bytes, the SHA-256 of its content, and its videos."""

    name: str
    size: int
    sha256: str
    samples: int


@dataclass(frozen=True)
class Place:
    """Where a video's bytes are: the number of the shard, and the first byte in it."""

    shard: int
    offset: int
    length: int


@dataclass(frozen=True, eq=False)
class Rounds:
    """How an epoch visits a data set that has no room on the disk: some bundles at a time, in an order of its own."""

    bundles: tuple[tuple[int, ...], ...]  # numbers of the clips of each shard
    at_once: int


class Shards:
    """The tars of a data set, and what is known of each video in them; str() is the address of the index.

    Args:
        address: the path of the index, or its URL.
        shards: the tars.
        places, entries: of each video, by its path in the folder that was made into shards.

    Raises:
        InputError: a local tar is absent or of another size.
    """

    def __init__(
        self, address: str, shards: Sequence[Shard], places: Mapping[str, Place], entries: Mapping[str, Entry]
    ) -> None:
        self.address, self.shards = address, tuple(shards)
        self._places, self._entries = places, entries
        self._cache = ShardCache() if is_url(address) else None
        for shard in () if self._cache else self.shards:
            path = self._path(shard)
            size = path.stat().st_size if path.is_file() else None
            if size != shard.size:
                found = "is absent" if size is None else f"has {size:,} bytes"
                raise InputError(f"{path}: {found}, {address} lists it with {shard.size:,}: copy it again")

    def __str__(self) -> str:
        return self.address

    def open(self, path: str) -> FileSlice:
        """The video at `path`, to be closed; its shard is fetched if it is remote and not in the cache.

        Raises InputError if the shard cannot be had.
        """
        place = self._places[path]
        return FileSlice(self._tar(self.shards[place.shard]), place.offset, place.length, path)

    def entries(self, paths: Sequence[str], verify: bool = False) -> dict[str, Entry]:
        """Path -> Entry of each video. `verify` reads local shards whole; the videos of one that changed are bad.

        (Remote shards are verified whenever they are fetched.)
        """
        if not verify or self._cache:
            return {path: self._entries[path] for path in paths}
        bad: dict[int, str] = {}
        for number, shard in enumerate(tqdm(self.shards, desc="verifying", unit="shard")):
            if sha256_of(self._path(shard)) != shard.sha256:
                bad[number] = f"{shard.name} is damaged: its SHA-256 is not the one in {INDEX}"
        found: dict[str, Entry] = {}
        for path in paths:
            entry, shard_number = self._entries[path], self._places[path].shard
            found[path] = Entry(entry.stamp, error=bad[shard_number]) if shard_number in bad else entry
        return found

    def identity(self, path: str) -> str:
        """Changes with the content of the video at `path`; nothing is read."""
        place = self._places[path]
        return f"{self.shards[place.shard].sha256} {place.offset} {place.length}"

    @property
    def at_once(self) -> int | None:
        """How many shards a training should visit at a time, so that each is fetched about once an epoch.

        Twice as many fit into the cache: what is read ahead belongs to the next ones already. None where all have room.
        """
        sizes = [shard.size for shard in self.shards]
        limit = cache_limit() if self._cache else math.inf
        return None if sum(sizes) <= limit else max(int(limit / 2 / max(sizes)), 1)

    def bundles(self, paths: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The numbers of these paths by the shard they lie in."""
        bundles: dict[int, list[int]] = {}
        for number, path in enumerate(paths):
            bundles.setdefault(self._places[path].shard, []).append(number)
        return tuple(map(tuple, bundles.values()))

    def _path(self, shard: Shard) -> Path:
        return Path(self.address).with_name(shard.name)

    def _tar(self, shard: Shard) -> IO[bytes]:
        if self._cache:
            return self._cache.open(neighbour(self.address, shard.name), shard.size, shard.sha256)
        try:
            return self._path(shard).open("rb", buffering=0)
        except OSError as error:
            raise InputError(f"{self._path(shard)}: cannot be opened ({reason_of(error)})") from error


def holds_shards(path: Path) -> bool:
    """Whether the folder or file looks like shards, finished or not."""
    return path.name == INDEX if path.is_file() else any(path.glob("shard-*.tar"))


def list_shards(path: str | Path) -> Listing:
    """The data set of an index: its file, the folder that holds it, or its URL.

    Raises InputError if there is none, or anything in it is not as it must be; names the index and what is wrong.
    """
    if is_url(path):
        address, text = str(path), fetch_bytes(str(path), _MOST_INDEX)
    else:
        file = Path(path) / INDEX if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise InputError(f'{path}: layout "shards": holds no {INDEX}; `vqvdm data shard` writes it last of all')
        if file.stat().st_size > _MOST_INDEX:
            raise InputError(f"{file}: has {file.stat().st_size:,} bytes, {_MOST_INDEX:,} are the most that is read")
        address, text = str(file), file.read_bytes()
    try:
        stored = parse_json(text)
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            raise InputError(f'{address}: is no index of shards: "format" must be {FORMAT!r}')
        return _listing(stored, address)
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{address}: is damaged (it lacks {error})") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{address}: is damaged ({reason_of(error)})") from error


def _listing(stored: Mapping[str, Any], address: str) -> Listing:
    classes = tuple(stored["classes"])
    names = frozenset(classes)
    _check(
        len(names) == len(classes) and all(isinstance(name, str) for name in names), address, "classes must be names"
    )
    shards = [_shard(fields, f"{address}: shards[{number}]") for number, fields in enumerate(stored["shards"])]
    paths: list[str] = []
    places: dict[str, Place] = {}
    entries: dict[str, Entry] = {}
    for number, fields in enumerate(stored["videos"]):
        where = f"{address}: videos[{number}]"
        path = fields["path"]
        _check(is_inner(path), where, f"path {path!r} must lie below a folder")
        _check(path not in places, where, f"path {path!r} is there twice")
        paths.append(path)
        places[path] = _place(fields, shards, where)
        size, time = fields["stamp"]
        stamp = (_whole(size, 0, _ABOVE, f"{where}: stamp"), _whole(time, -_ABOVE, _ABOVE, f"{where}: stamp"))
        info = read_info(fields["info"])
        # Arrays of `frames` follow from it; none takes less than a byte.
        if not is_sound(info) or info.frames > places[path].length:
            raise InputError(f"{where}: info {fields['info']} is not what such a video can hold")
        entries[path] = Entry(stamp, info)
    samples = [
        _sample(fields, paths, names, f"{address}: samples[{number}]")
        for number, fields in enumerate(stored["samples"])
    ]
    source = stored["split"]
    _check(isinstance(source, str), address, f"split {source!r} must be text")
    return Listing(
        Shards(address, shards, places, entries),
        "shards",
        tuple(samples),
        classes,
        source,
        held_out=stored["held_out"] is True,
    )


def is_inner(path: object) -> bool:
    """Whether it is a relative path that stays below its folder, and may be a file's."""
    if not isinstance(path, str) or "\0" in path:
        return False
    try:
        path.encode(errors="surrogateescape")  # names need not be UTF-8, but come from bytes
    except UnicodeEncodeError:
        return False
    parts = path.split("/")
    return parts[0] != "" and parts[-1] not in ("", ".") and ".." not in parts


def _shard(fields: Mapping[str, Any], where: str) -> Shard:
    name, sha256 = fields["name"], fields["sha256"]
    # A plain name leads out of no folder and to no other server.
    plain = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tar", name)
    _check(plain, where, f"name {name!r} must be a plain name that ends in .tar, relative to the index")
    hexadecimal = isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256)
    _check(hexadecimal, where, f"sha256 {sha256!r} must be 64 hexadecimal digits")
    size = _whole(fields["size"], 1, _ABOVE, f"{where}: size")
    return Shard(name, size, sha256, _whole(fields["samples"], 0, _ABOVE, f"{where}: samples"))


def _place(fields: Mapping[str, Any], shards: Sequence[Shard], where: str) -> Place:
    number = _whole(fields["shard"], 0, len(shards) - 1, f"{where}: shard")
    offset = _whole(fields["offset"], 0, _ABOVE, f"{where}: offset")
    length = _whole(fields["length"], 1, _ABOVE, f"{where}: length")
    shard = shards[number]
    _check(
        offset + length <= shard.size,
        where,
        f"offset {offset} and length {length} lead beyond the {shard.size} bytes of {shard.name}",
    )
    return Place(number, offset, length)


def _sample(fields: Mapping[str, Any], paths: Sequence[str], classes: frozenset[str], where: str) -> Sample:
    path = paths[_whole(fields["video"], 0, len(paths) - 1, f"{where}: video")]
    label, split, group = fields.get("label"), fields.get("split"), fields.get("group", "")
    _check(label in classes if classes else label is None, where, f"label {label!r} is none of the classes")
    _check(split in (None, "train", "test", "val"), where, f"split {split!r} must be train, test or val")
    _check(isinstance(group, str), where, f"group {group!r} must be text")
    times = {name: fields.get(name) for name in ("start", "end", "fps")}
    for name, value in times.items():
        _check(value is None or (is_finite(value) and value >= 0), where, f"{name} {value!r} must be a number")
    _check(times["fps"] != 0, where, "fps 0 must be above 0")
    return Sample(path, label, split, group, **times)


def _whole(value: object, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{what} {value!r} must be a whole number from {low} to {high}")
    return value


def _check(right: object, where: str, what: str) -> None:
    if not right:
        raise InputError(f"{where}: {what}")
