"""Where clips come from: the two built-in toy worlds, and folders of real videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vqvdm.errors import InputError, logger_of

if TYPE_CHECKING:
    from vqvdm.data.clips import ClipDataset
    from vqvdm.data.worlds import ToyDataset
    from vqvdm.recipe import DataRecipe

__all__ = ["open_dataset"]

logger = logger_of(__name__)


def open_dataset(
    data: DataRecipe, split: Literal["train", "test"], training: bool | None = None, progress: bool = True
) -> ClipDataset | ToyDataset:
    """The data set that the recipe names: `.classes`, `len(dataset)`, `dataset[index]`, `dataset[(index, draw)]`.

    Each item is a dict of `clip` (float32 (c, t, h, w), -1..1), `class_label` (int64) and `fps` (float32). `training`
    (None: in the train split) draws window, crop and flip at random; otherwise they are fixed. What is left out of a
    real data set is logged and stands in `dataset.notes`. Raises InputError where the recipe and the files disagree.
    """
    # Imported here, since listing and indexing (`vqvdm.data.layouts`, `.index`) need no torch.
    if data.path in ("toy", "toy-clouds"):
        from vqvdm.data.worlds import open_world

        return open_world(data, split, training)

    from vqvdm.data.clips import ClipDataset, ClipTiming
    from vqvdm.data.index import build_index
    from vqvdm.data.layouts import find_videos

    timing = ClipTiming(data.frames, data.fps, data.stride)
    listing = find_videos(data.path, data.layout, data.split)
    samples = listing.of_split(split)
    if not samples:
        raise InputError(
            f"{data.path}: no video is in the {split} split ({listing.split_source}, {len(listing.samples)} videos)"
        )
    dataset = ClipDataset(
        listing.root,
        samples,
        build_index(listing.root, [sample.path for sample in samples], progress=progress),
        listing.classes,
        timing,
        data.size,
        crop=data.crop,
        flip=data.flip,
        training=split == "train" if training is None else training,
    )
    absent = (f"{len(listing.absent)} listed videos are absent",) if listing.absent else ()
    summary = f"{split}: {len(dataset)} videos; split: {listing.split_source}"
    dataset.notes = (summary, *absent, *listing.notes, *dataset.notes)
    logger.info("%s: %s", data.path, dataset.notes[0])
    for note in dataset.notes[1:]:
        logger.warning("%s: %s", data.path, note)
    return dataset
