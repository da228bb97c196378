"""Which videos a folder holds, their labels and their splits: UCF-101, frame folders, class folders, flat, manifest.

Only names are looked at here; `vqvdm.data.index` opens the files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from vqvdm.data.listing import SPLITS, Listing, Sample, class_names, hold_out, source_of
from vqvdm.data.manifest import MANIFEST_NAMES, list_manifest, read_text
from vqvdm.decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from vqvdm.errors import InputError

Layout = Literal["auto", "ucf101", "frames", "folders", "flat", "manifest"]

_LISTS_FOLDER = "ucftraintestlist"


def find_videos(path: str | Path, layout: Layout = "auto", split: int = 1) -> Listing:
    """List the videos at `path`, a folder or a manifest file.

    `layout` "auto" looks for, in this order: UCF-101's split lists, a manifest, videos in sub-folders (classes), videos
    directly inside (flat), folders of frame images. `split` is UCF-101's list, 1 to 3; 0 takes every video for training
    and for test. Raises InputError if nothing is there, or not in the layout asked.
    """
    path = Path(path).expanduser()
    if layout not in get_args(Layout):
        raise InputError(f"layout {layout!r}: must be one of {', '.join(get_args(Layout))}")
    if not path.exists():
        raise InputError(f"{path}: no such folder or manifest")
    if layout == "auto":
        layout = _detect(path)
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
    if path.is_file():
        if path.suffix.lower() in (".csv", ".jsonl"):
            return "manifest"
        raise InputError(f"{path}: is a file; give the folder that holds the videos, or a manifest (.csv, .jsonl)")
    if _find_lists(path):
        return "ucf101"
    if any((path / name).is_file() for name in MANIFEST_NAMES):
        return "manifest"
    places = _below_common([_without_split(video)[1] for video in _walk_videos(path)])
    if places:
        direct = sum(len(place) == 1 for place in places)
        if 0 < direct < len(places):
            raise InputError(
                f"{path}: holds {direct} videos directly and {len(places) - direct} in sub-folders; "
                'choose layout "folders" (each sub-folder a class) or "flat" (no classes)'
            )
        return "folders" if len({place[0] for place in places if len(place) > 1}) > 1 else "flat"
    if any(_walk_frame_folders(path)):
        return "frames"
    raise InputError(
        f"{path}: no videos found ({', '.join(sorted(VIDEO_SUFFIXES))}, "
        f"or folders of {', '.join(sorted(IMAGE_SUFFIXES))})"
    )


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


def _walk_videos(root: Path) -> Iterator[str]:
    for folder, _, files in _walk(root):
        yield from (_join(folder, name) for name in files if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES)


def _walk_frame_folders(root: Path) -> Iterator[str]:
    """A video is any folder that directly holds images, at any depth (data sets nest them differently)."""
    for folder, _, files in _walk(root):
        if any(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in files):
            yield folder


def _without_split(path: str) -> tuple[str | None, tuple[str, ...]]:
    """(split, the other parts): "train/x", "sky_timelapse/sky_test/x", "a/val/x"; the first such folder counts."""
    parts = path.split("/")
    for place, part in enumerate(parts[:-1]):
        word = re.split(r"[_\-]", part.lower())[-1]
        if word in SPLITS:
            return SPLITS[word], tuple(parts[:place] + parts[place + 1 :])
    return None, tuple(parts)


def _below_common(places: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Without the leading folders that all share ("videos/"), down to <class>/<video>."""
    while places and min(map(len, places)) > 2 and len({place[0] for place in places}) == 1:
        places = [place[1:] for place in places]
    return places


# -------------------------------------------------------------------------------------------------------------- layouts


def _frames(root: Path) -> Listing:
    samples = []
    for folder in _walk_frame_folders(root):
        split, parts = _without_split(folder)
        # Sky Time-lapse: <long video>/<short video>/; parts of one long video share its group.
        samples.append(Sample(folder, split=split, group="/".join(parts[:-1]) or parts[-1]))
    if not samples:
        raise InputError(f'{root}: layout "frames": no folder holds images ({", ".join(sorted(IMAGE_SUFFIXES))})')
    if len({sample.group for sample in samples}) == 1:  # one folder around all, not one long video
        samples = [replace(sample, group=sample.path) for sample in samples]
    return Listing(root, "frames", tuple(samples), (), "folder names")


def _folders(root: Path) -> Listing:
    paths = list(_walk_videos(root)) or [folder for folder in _walk_frame_folders(root) if folder != "."]
    named = [(path, *_without_split(path)) for path in paths]
    inside = [(path, split, parts) for path, split, parts in named if len(parts) > 1]  # others have no class
    if not inside:
        raise InputError(f'{root}: layout "folders": no videos in sub-folders; expected <class>/<video>')
    places = _below_common([parts for _, _, parts in inside])
    samples = [
        Sample(path, place[0], split, source_of("/".join(parts)))
        for (path, split, parts), place in zip(inside, places, strict=True)
    ]
    return Listing(root, "folders", tuple(samples), class_names(samples), "folder names")


def _flat(root: Path) -> Listing:
    samples = []
    for path in _walk_videos(root):
        split, parts = _without_split(path)
        samples.append(Sample(path, None, split, source_of("/".join(parts))))
    if not samples:
        raise InputError(f'{root}: layout "flat": no videos ({", ".join(sorted(VIDEO_SUFFIXES))})')
    return Listing(root, "flat", tuple(samples), (), "folder names")


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
    if not all(len(row) == 2 and row[0].isdigit() for row in rows):
        raise InputError(f"{file}: each line must be <number> <class>")
    return tuple(name.strip() for _, name in sorted(rows, key=lambda row: int(row[0])))
