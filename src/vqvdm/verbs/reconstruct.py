"""`vqvdm reconstruct`: videos through the tokenizer and back, to be looked at and measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import ConcatDataset
from tqdm import tqdm

import vqvdm
from vqvdm.data import open_dataset
from vqvdm.data.clips import ClipDataset, ClipTiming
from vqvdm.data.index import build_index
from vqvdm.data.layouts import Layout, find_videos
from vqvdm.data.listing import Sample
from vqvdm.data.worlds import WORLDS
from vqvdm.decode import VIDEO_SUFFIXES
from vqvdm.errors import InputError, check_at_least_one, printable, reason_of
from vqvdm.files import check_writable
from vqvdm.loading import load_tokenizer
from vqvdm.metrics.quality import psnr, squared_errors
from vqvdm.recipe import DataRecipe, Recipe
from vqvdm.structure import parse_json, structure
from vqvdm.tokenizer import VideoTokenizer
from vqvdm.video import Video, enlarged, grid, to_video, write_sheet, write_video

Format = Literal["mp4", "webm", "gif", "webp", "png"]
_SHEET_CLIPS = 50


@dataclass(frozen=True)
class Reconstruction:
    """A clip, what the tokenizer makes of it, and how close that is."""

    real: Video  # uint8 (t, h, w, c)
    made: Video
    fps: float
    psnr: float  # dB, of the clip as a whole


def main(
    model: str,
    path: str,
    *,
    out: Path = Path("reconstructions"),
    count: int = 8,
    split: Literal["train", "test", "all"] | None = None,
    layout: Layout = "auto",
    frames: int | None = None,
    size: int | None = None,
    fps: float | None = None,
    stride: int | None = None,
    format: Format = "mp4",
    scale: int = 1,
    batch: int = 4,
    tiled: bool = False,
    device: str = "auto",
) -> None:
    """Encode and decode videos; write each above its reconstruction, a sheet, and print the PSNR.

    Frames, size, rate and stride are those the model was trained with unless given.

    Args:
        model: a tokenizer, pipeline or run folder, or a name on the hub (owner/name).
        path: a folder of videos in any layout, a manifest, one video file, toy, or toy-clouds.
        out: folder for the files; made if absent.
        count: clips, spread evenly over the data.
        split: train, test or all; by default test, but all of other clips than the model's own that name no splits.
        layout: auto, ucf101, frames, folders, flat, manifest or shards.
        frames: frames of a clip.
        size: height and width in pixels.
        fps: frames per second asked for.
        stride: every so many frames, where no fps is asked for.
        format: of the files; png is a row of frames.
        scale: how often each pixel is repeated in the files, either way: small clips are hard to see.
        batch: clips at a time.
        tiled: encode and decode in overlapping tiles, for long or large clips.
        device: cpu, cuda, mps or auto.
    """
    check_at_least_one(count=count, batch=batch, scale=scale)
    check_writable(out)
    trained = trained_on(Path(model))
    data = replace(
        trained,
        path=path,
        layout=layout,
        frames=trained.frames if frames is None else frames,
        size=trained.size if size is None else size,
        fps=(trained.fps if stride is None else None) if fps is None else fps,
        stride=trained.stride if stride is None else stride,
    )
    if path in WORLDS:  # rendered, and without what the model's own clips were cut by
        data = replace(data, split=1, stride=1 if stride is None else stride, crop="center", flip=False)
    tokenizer = load_tokenizer(model, device)
    tokenizer.latent_shape(data.frames, data.size, data.size)
    if tiled:
        tokenizer.enable_tiling()
    dataset = open_clips(data, split or usual_split(data, trained))
    facts = {"generator": f"vqvdm {vqvdm.__version__}", "content": "a real clip above its reconstruction"}
    chosen = sorted({round(i) for i in np.linspace(0, len(dataset) - 1, min(count, len(dataset)))})
    names = names_of(dataset)
    shown: list[Video] = []
    labels: list[str] = []
    values: list[float] = []
    for number, pair in zip(chosen, reconstruct(tokenizer, dataset, chosen, batch), strict=True):
        both = grid([enlarged(video, scale * video.shape[1]) for video in (pair.real, pair.made)], columns=1)
        stem = Path(names[number]).stem if names else ""  # images in the folder itself have no name, either
        name = "-".join(filter(None, (f"{number:05d}", stem)))
        write_video(out / f"{name}.{format}", both, pair.fps, {**facts, "psnr_db": round(pair.psnr, 2)})
        values.append(pair.psnr)
        if len(values) <= _SHEET_CLIPS:
            shown += [pair.real, pair.made]
            labels += [f"{number:05d}", f"{pair.psnr:.1f} dB"]
        tqdm.write(printable(f"{name}  {pair.psnr:6.2f} dB"))
    write_sheet(out / "sheet.png", shown, labels, metadata=facts)
    print(f"mean PSNR {np.mean(values):.2f} dB over {len(values)} of {len(dataset)} clips (--count); files in {out}")


def trained_on(model: Path) -> DataRecipe:
    """The clips a model was trained on, as its run or its pipeline says; a recipe's defaults if neither does."""
    for folder in (model, model.parent):
        if (folder / "recipe.yaml").is_file():
            return Recipe.load(folder / "recipe.yaml").data
    if (model / "model_index.json").is_file():
        index = model / "model_index.json"
        try:
            config = parse_json(index.read_text(encoding="utf-8"))
            said = {"frames": config["num_frames"], "size": config["height"], "fps": config["fps"]}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{index} cannot be read ({reason_of(error)})") from error
        return structure(DataRecipe, said, {"": str(index)})
    return DataRecipe()


def usual_split(data: DataRecipe, trained: DataRecipe) -> Literal["test", "all"]:
    """Unseen clips: those that training held out, or all of a folder that training never saw."""
    path = Path(data.path).expanduser()
    if not path.is_dir() or path.resolve() == Path(trained.path).expanduser().resolve():
        return "test"
    return "all" if find_videos(path, data.layout, data.split).held_out else "test"


def open_clips(data: DataRecipe, split: Literal["train", "test", "all"]) -> Any:
    """The data set, cut as for evaluation; a single video file is a data set of one clip."""
    path = Path(data.path).expanduser()
    if not (path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES):
        if split != "all":
            return open_dataset(data, split, training=False)
        parts: list[Any] = []
        problems: list[InputError] = []
        for name in ("train", "test"):  # one of them may be empty
            try:
                parts.append(open_dataset(data, name, training=False))
            except InputError as error:
                problems.append(error)
        if not parts:
            raise problems[0]
        return ConcatDataset(parts)
    timing = ClipTiming(data.frames, data.fps, data.stride)
    index = build_index(path.parent, [path.name], progress=False)
    return ClipDataset(path.parent, [Sample(path.name)], index, (), timing, data.size, training=False)


def names_of(dataset: Any) -> list[str]:
    """The video of each clip; of a built-in world, whose clips have no names, none."""
    parts = dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset]
    return [name for part in parts if isinstance(part, ClipDataset) for name in part.names]


@torch.inference_mode()
def reconstruct(tokenizer: VideoTokenizer, dataset: Any, indices: list[int], batch: int) -> Iterator[Reconstruction]:
    """The clips of these indices, encoded and decoded, in order."""
    with tqdm(total=len(indices), desc="reconstructing", unit="clip") as bar:
        for start in range(0, len(indices), batch):
            items = [dataset[index] for index in indices[start : start + batch]]
            clips = torch.stack([item["clip"] for item in items])  # (b, c, t, h, w)
            made = tokenizer.decode(tokenizer.encode(clips.to(tokenizer.device)))
            for item, clip, other in zip(items, clips, made, strict=True):
                pair = to_video(clip), to_video(other)
                bar.update(1)
                yield Reconstruction(*pair, float(item["fps"]), float(psnr(squared_errors(*pair).mean())))
