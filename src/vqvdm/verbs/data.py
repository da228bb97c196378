"""`vqvdm data`: look at a folder of videos before training on it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from vqvdm.data.clips import ClipTiming, describe, restated, stretch
from vqvdm.data.index import Entry, build_index, cache_file
from vqvdm.data.layouts import Layout, find_videos
from vqvdm.data.listing import Listing
from vqvdm.decode import VideoInfo
from vqvdm.verbs.terminal import shown

_SHOWN = 10  # absent files, classes without videos, ...: so many are named, the rest counted


def check(
    path: str,
    *,
    layout: Layout = "auto",
    split: int = 1,
    frames: int = 16,
    fps: float | None = None,
    stride: int = 1,
    refresh: bool = False,
) -> int:
    """Report what a folder of videos holds: counts, classes, lengths, frame rates, and every bad file with its reason.

    Args:
        path: a folder in any known layout, a manifest (.csv, .jsonl), or the URL of shards (.../index.json).
        layout: how the folder is laid out; auto finds out.
        split: UCF-101's split list, 1 to 3 (0: every video).
        frames: frames of a clip, to count the videos that are too short.
        fps: frame rate of a clip in frames per second.
        stride: without fps, take every so many-th frame.
        refresh: decode every file again instead of trusting the cached index; compare shards with their checksums.

    Returns:
        0, or 1 if there are bad files. Raises InputError if nothing is found.
    """
    timing = ClipTiming(frames, fps, stride)
    listing = find_videos(path, layout, split)
    index = build_index(listing.root, [sample.path for sample in listing.samples], refresh=refresh)
    # Paths and reasons are facts to copy: no colouring of numbers, and wrapped by the terminal, not by us.
    console = Console(highlight=False, soft_wrap=True)
    short, readable = _too_short(listing, index, timing)
    too_short = f"{len(short)} of {readable} for {describe(timing)}"
    console.print(_summary(listing, index, too_short))
    if listing.classes:
        console.print(_classes(listing, index))
    _print_list(console, "Notes", listing.notes)
    _print_list(console, "Listed, but absent", listing.absent)
    _print_list(console, f"Too short for {describe(timing)}, left out", short)
    infos = [(path, entry.info) for path, entry in index.items() if entry.info is not None]
    _print_list(console, "Damaged, but usable", [f"{path}: {info.note}" for path, info in infos if info.note], None)
    bad = [f"{path}: {entry.error}" for path, entry in index.items() if entry.info is None]
    _print_list(console, "Bad files, left out", bad, None)
    return 1 if bad else 0


def _summary(listing: Listing, index: Mapping[str, Entry], too_short: str) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    infos = [entry.info for entry in index.values() if entry.info is not None]
    train, test = (_readable(listing, index, split).total() for split in ("train", "test"))
    bad = sum(index[sample.path].info is None for sample in listing.samples)
    rows = [
        ("folder", str(listing.root)),
        ("layout", listing.layout),
        ("videos", f"{len(listing.samples)} (train {train}, test {test}); {bad} bad"),
        ("split", listing.split_source),
        ("classes", str(len(listing.classes)) if listing.classes else "none (unlabelled)"),
    ]
    if listing.unlisted:
        rows.append(("unlisted", f"{listing.unlisted} videos on disk are in neither list"))
    if infos:
        stated = {sample.path: sample for sample in listing.samples}
        timed = [
            (restated(entry.info, stated[path]), _has_no_rate(listing, path) and stated[path].fps is None)
            for path, entry in index.items()
            if entry.info is not None
        ]
        rows += [
            ("frames", _spread([info.frames for info in infos]) + f", together {sum(info.frames for info in infos):,}"),
            ("seconds", _spread([info.seconds for info, _ in timed])),
            ("frame rates", _histogram(_rate(info, assumed) for info, assumed in timed)),
            ("sizes", _histogram(f"{info.width}x{info.height}" for info in infos)),
        ]
    rows += [
        ("too short", too_short),
        ("index", str(cache_file(listing.root) if isinstance(listing.root, Path) else listing.root)),
    ]
    for name, value in rows:
        table.add_row(f"[bold]{name}[/bold]", shown(value))
    return table


def _readable(listing: Listing, index: Mapping[str, Entry], split: Literal["train", "test"]) -> Counter[str | None]:
    """How many videos of each class a split has that can be read."""
    return Counter(sample.label for sample in listing.of_split(split) if index[sample.path].info is not None)


def _has_no_rate(listing: Listing, path: str) -> bool:
    """Whether the video is a folder of frames."""
    return isinstance(listing.root, Path) and (listing.root / path).is_dir()


def _rate(info: VideoInfo, assumed: bool) -> str:
    """`assumed`: of a frame folder, which carries no rate."""
    return f"{info.fps:.5g} fps" + (" (uneven)" if info.times is not None else " (assumed)" if assumed else "")


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):.4g} to {max(values):.4g}, median {statistics.median(values):.4g}"


def _histogram(values: Iterable[str]) -> str:
    common = Counter(values).most_common()
    rest = sum(count for _, count in common[_SHOWN:])
    shown = [f"{value}: {count}" for value, count in common[:_SHOWN]]
    return ", ".join(shown + ([f"others: {rest}"] if rest else []))


def _too_short(listing: Listing, index: Mapping[str, Entry], timing: ClipTiming) -> tuple[list[str], int]:
    """The videos that hold no clip, each with its length, and how many can be read."""
    short: list[str] = []
    readable = 0
    for sample in listing.samples:
        info = index[sample.path].info
        if info is None:
            continue
        readable += 1
        timed = restated(info, sample)
        times = timed.frame_times()
        first, end = stretch(sample, times)
        if timing.starts(times[first:end], timed.fps) == 0:
            short.append(f"{sample.path}: {end - first} frames at {timed.fps:.5g} fps")
    return short, readable


def _classes(listing: Listing, index: Mapping[str, Entry]) -> Table:
    """Videos of each class that can be read, and those that cannot."""
    table = Table("id", "class", "train", "test", box=None, pad_edge=False, header_style="bold")
    train, test = (_readable(listing, index, split) for split in ("train", "test"))
    bad = Counter(sample.label for sample in listing.samples if index[sample.path].info is None)
    if bad:
        table.add_column("bad")
    empty = 0
    for number, name in enumerate(listing.classes):
        counts = [train[name], test[name], *([bad[name]] if bad else [])]
        empty += not any(counts)
        if any(counts):
            table.add_row(str(number), shown(name), *map(str, counts))
    if empty:
        table.add_row("", f"({empty} more without videos)", "", "")
    return table


def _print_list(console: Console, title: str, lines: Sequence[str], most: int | None = _SHOWN) -> None:
    """A titled list; `most` None shows every line."""
    if not lines:
        return
    console.print(f"\n[bold]{title}: {len(lines)}[/bold]")
    for line in lines[:most]:
        console.print("  " + shown(line))
    if most is not None and len(lines) > most:
        console.print(f"  ... and {len(lines) - most} more")
