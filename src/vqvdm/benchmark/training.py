"""Stages that train and that read: one update of either network, clips out of video files, latents out of the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from vqvdm.benchmark.resources import work_of
from vqvdm.benchmark.stages import Stage, Subject
from vqvdm.data import open_dataset
from vqvdm.data.clips import ClipDataset, ClipTiming
from vqvdm.data.index import build_index
from vqvdm.data.listing import Sample
from vqvdm.latents import LatentCache, write_latents
from vqvdm.loading import pick_dtype
from vqvdm.recipe import DataRecipe, TrainingRecipe
from vqvdm.tokenizer import VideoTokenizer
from vqvdm.train.denoiser import DenoiserStage
from vqvdm.train.dry_run import RandomItems, last_batches
from vqvdm.train.loop import make_accelerator
from vqvdm.train.tokenizer import TokenizerStage
from vqvdm.video import Video, write_video

_FILES, _FILE_FRAMES, _FILE_SIZE = 4, 128, (240, 320)  # of the videos that are read, as UCF-101's
_READ = 8  # clips of one run


def _tokenizer_update(subject: Subject, folder: Path) -> Stage:
    recipe = subject.recipe
    assert recipe.tokenizer is not None
    training = recipe.tokenizer.training
    dataset = RandomItems("clip", tuple(subject.clip.shape[1:]), ())
    stage = TokenizerStage(recipe, make_accelerator(training, folder), dataset)
    return _update(subject, stage.update, training, dataset, "one update of the tokenizer")


def _denoiser_update(subject: Subject, folder: Path) -> Stage:
    training = subject.recipe.denoiser.training
    dataset = RandomItems("latents", subject.latent_shape, [f"class {k}" for k in range(subject.pipeline.num_classes)])
    stage = DenoiserStage(subject.recipe, make_accelerator(training, folder), dataset, subject.tokenizer)
    return _update(subject, stage.update, training, dataset, "one update of the denoiser")


def _update(
    subject: Subject, update: Callable[..., Any], training: TrainingRecipe, dataset: RandomItems, what: str
) -> Stage:
    """The last of its training's updates, again and again."""
    last, batches = last_batches(training, dataset, subject.device)
    run = partial(update, last, batches)
    clips = training.batch * training.accumulate
    dtype = pick_dtype("auto" if training.precision == "bf16" else "float32", subject.device)
    return Stage(run, f"{what}, {clips} clips", work_of(run), clips, dtype)


def _reading_clips(subject: Subject, folder: Path) -> Stage:
    """Random windows, resized and cropped, in this process: of the recipe's videos, or of some made for it."""
    data = subject.recipe.data
    if Path(data.path).exists():
        dataset, what = open_dataset(data, "train", progress=False), f"from the videos of {data.path}"
    else:
        dataset, what = _drifting_videos(data, folder / "videos"), "from H.264 of 320x240"
    numbers = count()

    def run() -> None:
        for _ in range(_READ):
            number = next(numbers)
            dataset[(number % len(dataset), number)]

    return Stage(run, f"random windows of {data.frames} frames {what}, one process", clips=_READ)


def _drifting_videos(data: DataRecipe, folder: Path) -> ClipDataset:
    needed = max(_FILE_FRAMES, 2 * data.frames * data.stride)
    for number in range(_FILES):
        write_video(folder / f"{number}.mp4", _moving(number, needed), 25.0)
    names = sorted(path.name for path in folder.iterdir())
    index = build_index(folder, names, progress=False)
    timing = ClipTiming(data.frames, data.fps, data.stride)
    return ClipDataset(folder, [Sample(name) for name in names], index, (), timing, data.size, training=True)


def _reading_latents(subject: Subject, folder: Path) -> Stage:
    """Entries of a latent cache, in this process."""
    clips = RandomItems("clip", tuple(subject.clip.shape[1:]), (), length=2)
    tokenizer = VideoTokenizer.from_config(subject.tokenizer.config)  # in single precision, as clips are
    write_latents(tokenizer, clips, folder / "latents", progress=False)
    cache = LatentCache(folder / "latents")
    run = partial(_take, cache, _READ)
    return Stage(run, "entries of the latent cache, one process", clips=_READ)


def _take(cache: LatentCache, number: int) -> None:
    cache.batch([(k % len(cache), k) for k in range(number)])


def _moving(seed: int, frames: int) -> Video:
    """A texture that drifts: neither still nor noise, so that it costs the decoder about what films cost."""
    height, width = _FILE_SIZE
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1)
    return np.stack([np.roll(texture, (2 * k, 3 * k), axis=(0, 1)) for k in range(frames)])


TRAINING: Mapping[str, Callable[[Subject, Path], Stage]] = {
    "train tokenizer": _tokenizer_update,
    "train denoiser": _denoiser_update,
    "read clips": _reading_clips,
    "read latents": _reading_latents,
}
