"""What every layout gives: samples, their classes and splits; and which are held out where no split is named."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vqvdm.data.shards import Shards
    from vqvdm.decode import FileSlice

TEST_SHARE = 0.1  # held out where the data set itself names no test split
SPLITS = {"train": "train", "training": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}


@dataclass(frozen=True)
class Sample:
    """One video, or a stretch of it, as its layout names it."""

    path: str  # relative to the listing's root, "/" between folders, or absolute; a file or a folder of frames
    label: str | None = None
    split: str | None = None  # "train", "test", "val"; None: in both train and test
    group: str = ""  # videos of one group (one source) are never divided between splits
    start: float | None = None  # seconds; only a manifest sets them
    end: float | None = None
    fps: float | None = None  # the true frame rate, where the file does not say it, or says it wrong


@dataclass(frozen=True)
class Listing:
    """All videos of a data set, in a fixed order."""

    root: Path | Shards  # the folder, or the tars, that hold the videos
    layout: str
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]  # () = unlabelled
    split_source: str  # where the splits come from, in words
    absent: tuple[str, ...] = ()  # named by lists or manifest, but not on disk
    unlisted: int = 0  # on disk, but in neither list of the split
    notes: tuple[str, ...] = ()  # what was left out, or might have been meant otherwise
    held_out: bool = False  # the data set names no test split: some of it was set apart here

    def of_split(self, split: Literal["train", "test"]) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.split in (None, split))


def open_video(root: Path | Shards, path: str) -> AbstractContextManager[Path | FileSlice]:
    """What `read_frames` takes for the sample at `path`: a file, a frame folder, or a slice of a tar, open meanwhile.

    Raises InputError if a tar cannot be had.
    """
    return nullcontext(root / path) if isinstance(root, Path) else root.open(path)


def class_names(samples: Sequence[Sample]) -> tuple[str, ...]:
    return tuple(sorted({sample.label for sample in samples if sample.label is not None}))


def source_of(path: str) -> str:
    """The name; without UCF-101's clip number, as v_X_g08_c01 and v_X_g08_c02 are cut from one video."""
    return re.sub(r"_c\d+$", "", os.path.splitext(path)[0]) if re.search(r"_g\d+_c\d+\.", path) else path


def hold_out(listing: Listing) -> Listing:
    """Where no test split is named, hold out some groups, by a hash of their names."""
    splits = {sample.split for sample in listing.samples}
    if "val" in splits and "test" not in splits:
        renamed = (replace(s, split="test" if s.split == "val" else s.split) for s in listing.samples)
        return replace(listing, samples=tuple(renamed), split_source=f"{listing.split_source} (validation is the test)")
    if listing.layout == "ucf101":
        return listing
    if "test" in splits:
        return replace(listing, samples=tuple(replace(s, split=s.split or "train") for s in listing.samples))
    held = _held_groups(listing.samples)
    samples = tuple(replace(s, split="test" if s.group in held else "train") for s in listing.samples)
    source = f"no test split is named: {TEST_SHARE:.0%} of the sources held out, by a hash of the name"
    return replace(listing, samples=samples, split_source=source, held_out=True)


def _held_groups(samples: Sequence[Sample]) -> set[str]:
    """The groups whose hash falls in the lowest tenth, at least one; but each class keeps a group for training.

    New files move old ones only where a class or all the data were so few that the tenth had none, or all, of them.
    """
    labels: dict[str, set[str | None]] = {}
    for sample in samples:
        labels.setdefault(sample.group, set()).add(sample.label)
    left = Counter(label for group in labels.values() for label in group)  # groups of each class that train
    held: set[str] = set()
    for rank, group in sorted((_rank(group), group) for group in labels):
        if held and rank >= TEST_SHARE:
            break
        if all(left[label] > 1 for label in labels[group]):
            held.add(group)
            left.subtract(labels[group])
    return held


def _rank(group: str) -> float:
    """Uniform in 0..1, the same on every machine."""
    return int.from_bytes(hashlib.sha256(group.encode(errors="surrogatepass")).digest()[:6], "big") / 2**48
