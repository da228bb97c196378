"""Which videos a folder holds, their labels and splits: UCF-101, frame folders, class folders, flat, manifest, shards.

Only names are looked at here; `vqvdm.data.index` opens the files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from vqvdm.data.listing import SPLITS, Listing, Sample, class_names, hold_out, source_of
from vqvdm.data.manifest import MANIFEST_NAMES, list_manifest, read_text
from vqvdm.data.remote import is_url
from vqvdm.data.shards import holds_shards, list_shards
from vqvdm.decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from vqvdm.errors import InputError

Layout = Literal["auto", "ucf101", "frames", "folders", "flat", "manifest", "shards"]

_LISTS_FOLDER = "ucftraintestlist"


def find_videos(path: str | Path, layout: Layout = "auto", split: int = 1) -> Listing:
    """List the videos at `path`, a folder, a manifest file, or the index of shards, which may be a URL.

    `layout` "auto" looks for, in this order: shards, UCF-101's split lists, a manifest, videos or frame folders in
    sub-folders (classes), videos directly inside (flat), folders of frame images (also Sky Time-lapse's, however deep).
    `split` is UCF-101's list, 1 to 3; 0 takes every video of the lists for training and for test. Raises InputError if
    nothing is there, or not in the layout asked, or if names or depths can be read in two ways.
    """
    if layout not in get_args(Layout):
        raise InputError(f"layout {layout!r}: must be one of {', '.join(get_args(Layout))}")
    if is_url(path):
        if layout not in ("auto", "shards"):
            raise InputError(f"{path}: is a URL, which may be of shards; layout {layout!r} needs a folder")
        return list_shards(path)
    path = Path(path).expanduser()
    if not path.exists():
        where = "" if path.is_absolute() else f" in {Path.cwd()}, where relative paths begin"
        raise InputError(f"{path}: no such folder or manifest{where}")
    if layout == "auto":
        layout = _detect(path)
    if layout == "shards":
        return list_shards(path)  # with the split they were made with
    if path.is_file() and layout != "manifest":
        raise InputError(f"{path}: is a file; layout {layout!r} needs a folder")
    match layout:
        case "ucf101":
            listing = _ucf101(path, split)
        case "frames":
            listing = _frames(path)
        case "folders":
            listing = _folders(path)
        case "flat":
            listing = _flat(path)
        case _:
            listing = list_manifest(path)
    return hold_out(listing)


def _detect(path: Path) -> Layout:
    if holds_shards(path):
        return "shards"
    if path.is_file():
        if path.suffix.lower() in (".csv", ".jsonl"):
            return "manifest"
        raise InputError(f"{path}: is a file; give the folder that holds the videos, or a manifest (.csv, .jsonl)")
    if _find_lists(path):
        return "ucf101"
    if any((path / name).is_file() for name in MANIFEST_NAMES):
        return "manifest"
    return _detect_by_place(path, _look(path))


def _detect_by_place(path: Path, disk: _OnDisk) -> Layout:
    """Class folders, flat, or frame folders, from how deep the videos lie."""
    if not disk.files and not disk.images:
        raise InputError(
            f"{path}: no videos found ({', '.join(sorted(VIDEO_SUFFIXES))}, "
            f"or folders of {', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    videos, _ = _placed(path, disk.files, disk.clips)
    files = [video for video in videos if not video.frames]
    of_files = {video.place[0] for video in files}
    # Image folders count beside files where they are classes of their own, not thumbnails among a class's videos.
    others = [v for v in videos if v.frames and len(v.place) > 1 and v.place[0] not in of_files]
    direct = sum(len(video.place) == 1 for video in files or videos)
    if files and others and not direct:
        if any(len(video.place) > 2 for video in files + others):
            raise InputError(
                f"{path}: holds {len(files)} video files and {len(others)} folders of images at several depths; choose "
                'layout "folders" (each sub-folder a class), "flat" (the files alone) or "frames" (the images alone)'
            )
        return "folders"
    found, unlabelled, what = (files, "flat", "videos") if files else (videos, "frames", "folders of images")
    if unlabelled == "frames" and _is_sky(path, disk):
        return "frames"
    if 0 < direct < len(found):
        raise InputError(
            f"{path}: holds {direct} {what} directly and {len(found) - direct} in sub-folders; "
            f'choose layout "folders" (each sub-folder a class) or "{unlabelled}" (no classes)'
        )
    return "folders" if len({video.place[0] for video in found if len(video.place) > 1}) > 1 else unlabelled


def _is_sky(root: Path, disk: _OnDisk) -> bool:
    """Sky Time-lapse nests its clips as class folders do: sky_train/<long video>/<clip>/<long video>_frames_<n>.jpg."""
    for folder, image in disk.images.items():
        parts = [root.resolve().name, *folder.split("/")]
        if {"sky_train", "sky_test"} & set(parts) or re.match(re.escape(parts[-2]) + r"_frames_\d+\.", image):
            return True
    return False


# -------------------------------------------------------------------------------------------------------------- walking


def _walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """os.walk in a fixed order, through links but into no folder twice, no hidden names; paths relative to root."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(folder).relative_to(root).as_posix()
        yield relative, folders, sorted(name for name in files if not name.startswith("."))


def _join(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


@dataclass(frozen=True)
class _OnDisk:
    """What lies below a folder; paths relative to it."""

    files: tuple[str, ...]  # video files
    images: Mapping[str, str]  # each folder that directly holds images, at any depth -> the first of them

    @property
    def clips(self) -> tuple[str, ...]:
        """The folders of images that are videos of their own; images beside or above videos are covers."""
        above = {".", *_above(self.files), *_above(self.images)}
        return tuple(folder for folder in self.images if folder not in above)

    @property
    def covers(self) -> tuple[str, ...]:
        """The folders of images above such videos. One that holds masks as well as its frames looks the same."""
        above = _above(self.clips)
        return tuple(folder for folder in self.images if folder in above)


def _above(paths: Iterable[str]) -> set[str]:
    """All folders that the paths lie in, without the root."""
    split = (path.split("/") for path in paths)
    return {"/".join(parts[:depth]) for parts in split for depth in range(1, len(parts))}


def _look(root: Path) -> _OnDisk:
    files: list[str] = []
    images: dict[str, str] = {}
    for folder, _, names in _walk(root):
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in VIDEO_SUFFIXES:
                files.append(_join(folder, name))
            elif suffix in IMAGE_SUFFIXES:
                images.setdefault(folder, name)
    return _OnDisk(tuple(files), images)


@dataclass(frozen=True)
class _Video:
    """Where a video lies."""

    path: str
    frames: bool  # a folder of images
    split: str | None
    parts: tuple[str, ...]  # of the path, without the split's folder
    place: tuple[str, ...]  # the parts without leading folders that all videos share: (<class>, ..., <video>)


def _placed(root: Path, files: Sequence[str], folders: Sequence[str]) -> tuple[list[_Video], tuple[str, ...]]:
    """The video files and folders of images below `root`, files first, and notes on their folders' names."""
    paths = [*files, *folders]
    divided, notes = _divide(root, paths)
    places = [parts for _, parts in divided]
    # "videos/" around all of it is left out, down to <class>/<video>; image folders before that are in no class.
    while paths and min(map(len, places[: len(files)] or places)) > 2 and len({p[0] for p in places if p[1:]}) == 1:
        places = [place[1:] or place for place in places]
    return [
        _Video(path, number >= len(files), split, parts, place)
        for number, (path, (split, parts), place) in enumerate(zip(paths, divided, places, strict=True))
    ], notes


_Divided = tuple[str | None, tuple[str, ...]]


def _divide(root: Path, paths: Sequence[str]) -> tuple[list[_Divided], tuple[str, ...]]:
    """(split, the other parts) of each path: "train/x", "sky/sky_test/x", "a/val/x"; the first split folder counts.

    Also notes on folders that are called like a split and are none.
    """
    inside: dict[str, set[str]] = {}
    for path in paths:
        parts = path.split("/")
        for depth, part in enumerate(parts[:-1]):
            inside.setdefault("/".join(parts[:depth]), set()).add(part)
    splits: dict[str, Mapping[str, str]] = {}
    divided: list[_Divided] = []
    others: dict[str, None] = {}
    for path in paths:
        parts = path.split("/")
        split, rest = None, parts
        for depth, part in enumerate(parts[:-1]):
            folder = "/".join(parts[:depth])
            if folder not in splits:
                splits[folder] = _split_folders(root / folder, inside[folder])
            if part in splits[folder]:
                split, rest = splits[folder][part], parts[:depth] + parts[depth + 1 :]
                break
            if _split_word(part)[1]:
                others["/".join(parts[: depth + 1])] = None
        divided.append((split, tuple(rest)))
    if not others:
        return divided, ()
    why = "a split has only other splits beside it, such as sky_train beside sky_test"
    return divided, (f"not taken as splits, though called so: {_few(list(others))} ({why})",)


def _split_folders(folder: Path, names: Iterable[str]) -> Mapping[str, str]:
    """Name -> split, if the folders `names` in `folder` are its splits and not, say, classes: none is called otherwise.

    They are called train, val or test, one or several of them, or several end so after the same beginning.
    """
    names = sorted(names)
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        beginning, split = _split_word(name)
        if split:
            found.setdefault(beginning, {})[name] = split
    for beginning, splits in found.items():
        several = len(set(splits.values())) > 1
        if len(splits) == len(names) and (several or not beginning):
            return splits
        if several:
            rest = [name for name in names if name not in splits]
            raise InputError(
                f"{folder}: are {_few(list(splits))} splits, or classes as {_few(rest)} beside them? "
                "Move or rename one or the other, or list the videos in a manifest"
            )
    return {}


def _split_word(name: str) -> tuple[tuple[str, ...], str | None]:
    """("sky", "train") of "sky_train"; the second is None if no split ends the name."""
    *beginning, word = re.split(r"[_\-]", name.lower())
    return tuple(beginning), SPLITS.get(word)


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# -------------------------------------------------------------------------------------------------------------- layouts


def _frames(root: Path) -> Listing:
    disk = _look(root)
    if not disk.images:
        raise InputError(f'{root}: layout "frames": no folder holds images ({", ".join(sorted(IMAGE_SUFFIXES))})')
    videos, notes = _placed(root, (), tuple(disk.images))
    # Sky Time-lapse: <long video>/<short video>/; parts of one long video share its group.
    samples = [Sample(v.path, split=v.split, group="/".join(v.parts[:-1]) or v.parts[-1]) for v in videos]
    if len({sample.group for sample in samples}) == 1:  # one folder around all, not one long video
        samples = [replace(sample, group=sample.path) for sample in samples]
    notes += _left_out("video files", disk.files, "the layout is of images alone")
    return Listing(root, "frames", tuple(samples), (), "folder names", notes=notes)


def _folders(root: Path) -> Listing:
    disk = _look(root)
    videos, notes = _placed(root, disk.files, disk.clips)
    inside = [video for video in videos if len(video.place) > 1]
    if not inside:
        raise InputError(f'{root}: layout "folders": no videos in sub-folders; expected <class>/<video>')
    of_files = {video.place[0] for video in inside if not video.frames}
    thumbs = [video.path for video in inside if video.frames and video.place[0] in of_files]
    notes += _left_out("videos", [video.path for video in videos if len(video.place) == 1], "they lie in no class")
    notes += _left_out("folders of images", thumbs, "their class has video files")
    notes += _left_out("folders of images", disk.covers, "folders of images lie in them")
    deeper = [video.path for video in inside if len(video.place) > 2 and not video.frames]
    notes += _said("videos in folders of their class's folder, which count as the class", deeper)
    notes += _empty(root, disk)
    samples = [
        Sample(video.path, video.place[0], video.split, source_of("/".join(video.parts)))
        for video in inside
        if not (video.frames and video.place[0] in of_files)
    ]
    return Listing(root, "folders", tuple(samples), class_names(samples), "folder names", notes=notes)


def _flat(root: Path) -> Listing:
    disk = _look(root)
    if not disk.files:
        raise InputError(f'{root}: layout "flat": no videos ({", ".join(sorted(VIDEO_SUFFIXES))})')
    videos, notes = _placed(root, disk.files, ())
    samples = [Sample(video.path, None, video.split, source_of("/".join(video.parts))) for video in videos]
    notes += _left_out("folders of images", disk.clips, "the layout is of video files alone")
    notes += _empty(root, disk)
    if len(around := {video.parts[0] if len(video.parts) > 1 else "" for video in videos}) == 1 and any(around):
        notes += (f'all videos lie in {around.pop()}, and one class is none (layout "folders" takes it for one)',)
    return Listing(root, "flat", tuple(samples), (), "folder names", notes=notes)


def _empty(root: Path, disk: _OnDisk) -> tuple[str, ...]:
    """A note on folders that may have been meant as classes."""
    full = {path.split("/")[0] for path in (*disk.files, *disk.images)}
    _, folders, _ = next(_walk(root))
    return _left_out("folders", [name for name in folders if name not in full], "no video lies in them")


def _left_out(what: str, paths: Sequence[str], why: str) -> tuple[str, ...]:
    return _said(f"{what} left out, as {why}", paths)


def _said(what: str, paths: Sequence[str]) -> tuple[str, ...]:
    return (f"{what}: {len(paths)} (first: {paths[0]})",) if paths else ()


# -------------------------------------------------------------------------------------------------------------- UCF-101


def _find_lists(path: Path) -> Path | None:
    """The folder of trainlist01.txt: `path` itself, in it, beside it or one level above."""
    if path.is_file():
        return None
    if _holds_lists(path):
        return path
    for base in (path, path.resolve().parent, path.resolve().parent.parent):
        for folder in _subfolders(base):
            name = folder.name.lower()
            if name == _LISTS_FOLDER and _holds_lists(folder):
                return folder
            if base == path and name.startswith("ucf101traintestsplits"):  # the official archive nests them
                nested = [inner for inner in _subfolders(folder) if inner.name.lower() == _LISTS_FOLDER]
                if nested and _holds_lists(nested[0]):
                    return nested[0]
    return None


def _holds_lists(folder: Path) -> bool:
    return any((folder / f"trainlist0{number}.txt").is_file() for number in (1, 2, 3))


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _ucf101(path: Path, split: int) -> Listing:
    lists = _find_lists(path)
    if lists is None:
        raise InputError(
            f'{path}: layout "ucf101": no ucfTrainTestlist folder (with trainlist01.txt, testlist01.txt, classInd.txt) '
            "in it, beside it or above it"
        )
    if split not in (0, 1, 2, 3):
        raise InputError(f"split {split}: UCF-101 has the lists 1, 2 and 3 (0 takes all videos)")
    entries = _read_lists(lists, split or 1)
    if not entries:
        raise InputError(f"{lists}: trainlist{split or 1:02d}.txt and testlist{split or 1:02d}.txt name no videos")
    wanted = {entry.split("/")[0].lower() for entry, _ in entries}
    candidates = [path, *(folder for folder in _subfolders(path) if folder != lists)]
    root = max(candidates, key=lambda folder: sum(sub.name.lower() in wanted for sub in _subfolders(folder)))
    folders = {folder.name.lower(): folder.name for folder in _subfolders(root) if folder.name.lower() in wanted}
    # Lists write v_HandStandPushups_*, some copies v_HandstandPushups_*, others change suffixes: by stem, any case.
    on_disk = {(low, stem): name for low, folder in folders.items() for stem, name in _stems(root / folder).items()}
    classes = _class_names(lists, entries)
    spelling = {name.lower(): name for name in classes}
    samples, absent = [], []
    for entry, part in entries:
        folder, _, file = entry.rpartition("/")
        stem = os.path.splitext(file)[0]
        name = on_disk.pop((folder.lower(), stem.lower()), None)
        if name is None:
            absent.append(entry)
            continue
        if folder.lower() not in spelling:
            raise InputError(f"{lists}: the class {folder!r} of {entry!r} is not in classInd.txt")
        label = spelling[folder.lower()]  # from the directory: testlists have no label column
        group = source_of(f"{label}/{stem.lower()}.")
        samples.append(Sample(f"{folders[folder.lower()]}/{name}", label, part if split else None, group))
    if not samples:
        raise InputError(f"{root}: none of the {len(entries)} videos named in {lists} is there (first: {absent[0]})")
    source = f"{lists.name} {split:02d}" if split else "all videos of the lists, for training and for test"
    return Listing(root, "ucf101", tuple(samples), classes, source, tuple(absent), len(on_disk))


def _stems(class_folder: Path) -> dict[str, str]:
    """Lower-case stem -> name of each video file or sub-folder (of frames)."""
    with os.scandir(class_folder) as entries:
        named = [(*os.path.splitext(entry.name), entry.is_dir()) for entry in entries]
    return {stem.lower(): stem + end for stem, end, folder in named if folder or end.lower() in VIDEO_SUFFIXES}


def _read_lists(lists: Path, split: int) -> list[tuple[str, str]]:
    entries = []
    for part in ("train", "test"):
        file = lists / f"{part}list{split:02d}.txt"
        if not file.is_file():
            there = sorted(name.name for name in lists.glob("*list0*.txt"))
            raise InputError(f"split {split}: {file} is absent (there are {', '.join(there)})")
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            words = line.split()  # drops the "\r" of CRLF, and the label column
            if not words:
                continue
            if "/" not in words[0]:
                raise InputError(f"{file}:{number}: {line!r} is not <class>/<video>")
            entries.append((words[0], part))
    return entries


def _class_names(lists: Path, entries: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    file = lists / "classInd.txt"
    if not file.is_file():
        return tuple(sorted({entry.split("/")[0] for entry, _ in entries}))
    rows = [line.split(maxsplit=1) for line in read_text(file).splitlines() if line.strip()]
    if not all(len(row) == 2 and re.fullmatch(r"[0-9]{1,9}", row[0]) for row in rows):
        raise InputError(f"{file}: each line must be <number> <class>")
    return tuple(name.strip() for _, name in sorted(rows, key=lambda row: int(row[0])))
