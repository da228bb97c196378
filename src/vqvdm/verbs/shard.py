"""`vqvdm data shard`: make a data set into tars that are read where they lie."""

from __future__ import annotations

from pathlib import Path

from vqvdm.data.index import build_index
from vqvdm.data.layouts import Layout, find_videos
from vqvdm.data.sharding import check_shardable, write_shards
from vqvdm.data.shards import INDEX
from vqvdm.errors import check_at_least_one
from vqvdm.files import check_writable
from vqvdm.verbs.terminal import say


def shard(path: str, *, out: Path, layout: Layout = "auto", split: int = 1, megabytes: int = 500) -> None:
    """Write the videos of a data set as they are into shards: tars of the WebDataset format, and their index.json.

    The folder of the shards, its index.json or the URL of that takes the place of the data set everywhere, such as in
    data.path. It appears when all is written; an interrupted command leaves nothing, and begins anew, but with what it
    knows of the files.

    Args:
        path: a folder of video files in any known layout, or a manifest (.csv, .jsonl).
        out: folder for the shards; made.
        layout: how the folder is laid out; auto finds out.
        split: UCF-101's split list, 1 to 3 (0: every video). Shards keep it.
        megabytes: of videos in a shard.
    """
    check_at_least_one(megabytes=megabytes)
    check_writable(out)
    listing = find_videos(path, layout, split)
    check_shardable(listing, out)
    index = build_index(listing.root, [sample.path for sample in listing.samples])
    shards = write_shards(listing, index, out, megabytes * 1_000_000)
    for note in listing.notes:
        say(f"note: {note}")
    if listing.absent:
        say(f"listed, but absent: {len(listing.absent)} (first: {listing.absent[0]})")
    for name, entry in index.items():
        if entry.info is None:
            say(f"left out: {name}: {entry.error}")
    videos = sum(each.samples for each in shards)
    say(f"{videos} videos in {len(shards)} shards, {sum(each.size for each in shards) / 1e6:.1f} MB: {out / INDEX}")
