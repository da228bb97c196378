"""A listed data set made into shards: tars of the WebDataset format, and the index that `vqvdm.data.shards` reads.

Videos are stored as they are. Each is a sample of WebDataset: `<key>.mp4` (or its own ending) and `<key>.json`, which
holds what the layout says of it and what its index entry found. Keys are numbers, since in WebDataset a name ends at
its first dot. Videos follow each other in an order that mixes classes, training before test, so that who streams
whole shards meets all classes, and who tests needs few of them.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from tqdm import tqdm

from vqvdm.data.index import Entry
from vqvdm.data.listing import Listing, Sample
from vqvdm.data.shards import FORMAT, INDEX, Shard, is_inner
from vqvdm.errors import InputError
from vqvdm.files import sha256_of, whole_folder, write_text

_MOST_VIDEO = 2 << 30  # bytes; who reads or writes WebDataset holds a sample in memory


@dataclass(frozen=True)
class _Video:
    """A file and its samples: more than one where a manifest names several stretches of it."""

    key: str
    file: Path
    path: str  # its name in the index
    entry: Entry
    samples: tuple[Sample, ...]

    @property
    def ending(self) -> str:
        """The member's, without the dot."""
        suffix = self.file.suffix[1:].lower()
        return suffix if re.fullmatch(r"[a-z0-9]+", suffix) and suffix != "json" else "video"

    def facts(self) -> dict[str, Any]:
        """What is stored beside it: of its first sample, and under `also` of the others."""
        first, *others = [_stated(sample) for sample in self.samples]
        assert self.entry.info is not None
        also = {"also": others} if others else {}
        return {"path": self.path, **first, **also, "stamp": self.entry.stamp, "info": asdict(self.entry.info)}


def check_shardable(listing: Listing, out: Path) -> None:
    """Raise `InputError` if these videos cannot become shards in `out`; asked before they are decoded."""
    if not isinstance(listing.root, Path):
        raise InputError(f"{listing.root}: are shards already")
    folder = next((sample.path for sample in listing.samples if (listing.root / sample.path).is_dir()), None)
    if folder is not None:
        raise InputError(
            f"{listing.root}: {folder} is a folder of frames, and shards hold files; make a file of each such folder, "
            "such as, without loss, by `ffmpeg -framerate 25 -i %d.jpg -codec copy clip.mkv`"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: is there already; name another folder, or delete it")
    if out.exists():
        _check_gives_way(out.absolute())


def _check_gives_way(out: Path) -> None:
    """Raise `InputError` if this empty folder cannot be renamed, as that of the shards will take its place at the end.

    Asked by doing it: nothing else tells of all mounts.
    """
    aside = out.with_name(f".{out.name}.{token_hex(4)}.old")
    try:
        out.rename(aside)
        aside.rename(out)
    except OSError as error:
        raise InputError(
            f"--out {out}: cannot be replaced as a whole ({error.strerror}): it is where a disk is mounted, or not "
            f"yours; name a folder in it, such as {out / 'shards'}"
        ) from error


def write_shards(
    listing: Listing, index: Mapping[str, Entry], out: Path, most: int, progress: bool = True
) -> list[Shard]:
    """Write the videos of `listing` that can be read into the folder `out`, which appears when all is done.

    Args:
        listing, index: of files.
        out: absent or empty.
        most: bytes of a shard's videos; a larger video has a shard of its own.

    Raises:
        InputError: as `check_shardable`; no video can be read, one is too large or was changed meanwhile; the disk has
            no room; webdataset is not installed.
    """
    try:
        import webdataset
    except ImportError:
        raise InputError("shards are written by webdataset; install it with: pip install 'vqvdm[shards]'") from None
    check_shardable(listing, out)
    videos = _videos(listing, index)
    if not videos:
        raise InputError(f"{listing.root}: none of the {len(listing.samples)} videos can be read")
    needed = sum(video.entry.stamp[0] for video in videos)
    shards: list[Shard] = []
    stored: list[dict[str, Any]] = []
    with (
        whole_folder(out, needed) as folder,
        tqdm(total=needed, desc="writing", unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        for number, part in enumerate(_parts(videos, most)):
            tar = folder / f"shard-{number:06d}.tar"
            with tar.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as writer:
                for video in part:
                    facts = json.dumps(video.facts()).encode()
                    writer.write({"__key__": video.key, video.ending: _content(video), "json": facts})
                    bar.update(video.entry.stamp[0])
            stored += _found(tar, number, part)
            shards.append(Shard(tar.name, tar.stat().st_size, sha256_of(tar), len(part)))
        write_text(folder / INDEX, json.dumps(_index(listing, videos, shards, stored)))
    return shards


def _videos(listing: Listing, index: Mapping[str, Entry]) -> list[_Video]:
    """In the order in which they are stored."""
    assert isinstance(listing.root, Path)
    samples: dict[str, list[Sample]] = {}
    for sample in listing.samples:
        if index[sample.path].info is not None:
            samples.setdefault(sample.path, []).append(sample)
    order = sorted(samples, key=lambda path: (samples[path][0].split == "test", _rank(path)))
    found: list[_Video] = []
    for number, path in enumerate(order):
        key, file, entry = f"{number:08d}", listing.root / path, index[path]
        if entry.stamp[0] > _MOST_VIDEO:
            raise InputError(f"{file}: has {entry.stamp[0]:,} bytes, {_MOST_VIDEO:,} are the most; cut it into pieces")
        # A manifest may name files anywhere; in shards there is no place outside.
        name = path if is_inner(path) else key + file.suffix
        found.append(_Video(key, file, name, entry, tuple(samples[path])))
    return found


def _rank(path: str) -> bytes:
    """Mixes, and the same on every machine. Names need not be UTF-8."""
    return hashlib.sha256(path.encode(errors="surrogateescape")).digest()


def _parts(videos: Sequence[_Video], most: int) -> list[list[_Video]]:
    """The videos of each shard."""
    parts: list[list[_Video]] = []
    room = 0
    for video in videos:
        size = video.entry.stamp[0]
        if size > room:
            parts.append([])
            room = max(most, size)
        parts[-1].append(video)
        room -= size
    return parts


def _content(video: _Video) -> bytes:
    data = video.file.read_bytes()
    if len(data) != video.entry.stamp[0]:
        raise InputError(f"{video.file}: was changed meanwhile; run the same command again")
    return data


def _found(tar: Path, number: int, videos: Sequence[_Video]) -> list[dict[str, Any]]:
    """Where the videos are in a tar, as it reads."""
    with tarfile.open(tar) as file:
        members = {member.name: member for member in file}
    found: list[dict[str, Any]] = []
    for video in videos:
        member = members[f"{video.key}.{video.ending}"]
        assert member.size == video.entry.stamp[0], member.name
        found.append({"key": video.key, "shard": number, "offset": member.offset_data, "length": member.size})
    return found


def _index(
    listing: Listing, videos: Sequence[_Video], shards: Sequence[Shard], stored: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Samples stand in the listing's order, so that a clip has the same number as from the folder."""
    numbers = {sample.path: number for number, video in enumerate(videos) for sample in video.samples}
    return {
        "format": FORMAT,
        "split": listing.split_source,
        "held_out": listing.held_out,
        "classes": listing.classes,
        "shards": [asdict(shard) for shard in shards],
        "videos": [
            {**place, "path": video.path, "stamp": video.entry.stamp, "info": asdict(video.entry.info)}
            for video, place in zip(videos, stored, strict=True)
            if video.entry.info is not None
        ],
        "samples": [
            {"video": numbers[sample.path], **_stated(sample)} for sample in listing.samples if sample.path in numbers
        ],
    }


def _stated(sample: Sample) -> dict[str, Any]:
    """What the layout says of it."""
    fields = {name: value for name, value in asdict(sample).items() if name != "path"}
    return {name: value for name, value in fields.items() if value is not None}
