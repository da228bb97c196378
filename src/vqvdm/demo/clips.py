"""The clips that the demo shows and measures: generated ones, and unseen ones with their reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save
from torch.utils.data import Dataset

from vqvdm.data.toy import ToyMotions
from vqvdm.files import write_bytes
from vqvdm.generation import Order, generate, make_orders
from vqvdm.judge import CLASSES, Judgement, judge
from vqvdm.loading import load_pipeline, load_tokenizer
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.recipe import Recipe
from vqvdm.verbs.reconstruct import reconstruct
from vqvdm.video import Video, to_clip

SAMPLING_BATCH = 40  # clips
RECONSTRUCTION_BATCH = 16
UNSEEN_SEED = 777_000  # of a toy world that neither training nor its tests draw from
_UNJUDGED = Judgement(-1, "none", 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Generated:
    """A generated clip."""

    label: int  # the class asked for
    number: int  # among the clips of its class; the same number is the same noise at every frame rate
    fps: float
    seed: int
    video: Video  # uint8 (t, h, w, 3)
    judged: Judgement = _UNJUDGED

    @property
    def file(self) -> str:
        """Name of its video file, without suffix."""
        return f"{CLASSES[self.label]}-{self.number:02d}-{self.fps:g}fps"


@dataclass(frozen=True)
class Unseen:
    """A clip of the toy world that no stage has trained on, and its way through the tokenizer."""

    label: int
    number: int  # the same number and class is the same scene at every frame rate
    fps: float
    real: Video  # uint8 (t, h, w, 3)
    made: Video  # its reconstruction
    psnr: float  # dB
    judged: Judgement = _UNJUDGED  # of the real clip
    judged_made: Judgement = _UNJUDGED

    @property
    def file(self) -> str:
        """Name of its video file, without suffix."""
        return f"{CLASSES[self.label]}-unseen-{self.number:02d}-{self.fps:g}fps"


class UnseenClips(Dataset):
    """`clips` unseen clips of each class at each frame rate, as a data set."""

    classes = CLASSES

    def __init__(self, size: int, frames: int, clips: int, rates: Sequence[float]) -> None:
        self.world = ToyMotions(size=size, frames=frames, seed=UNSEEN_SEED)
        self.keys = [(label, n, fps) for fps in rates for label in range(len(CLASSES)) for n in range(clips)]
        self.clips = clips

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        label, number, fps = self.keys[index]
        video = self.world.render(label * self.clips + number, label, fps).video
        return {"clip": to_clip(video), "class_label": torch.tensor(label), "fps": torch.tensor(fps)}


def generate_clips(recipe: Recipe, run: Path, clips: int, rates: Sequence[float], key: str) -> list[Generated]:
    """`clips` clips of every class at each of `rates`, from the same seeds; kept in `run`/clips under `key`."""
    pipeline = load_pipeline(run)
    pipeline.scheduler = pipeline.objective.make_scheduler(recipe.sampling.scheduler)
    orders = make_orders(pipeline, None, clips, seed=0)
    arguments = {  # the recipe's, which may have changed since the pipeline was saved
        "num_inference_steps": recipe.sampling.steps,
        "guidance_scale": recipe.sampling.guidance_scale,
        "guidance_interval": recipe.sampling.guidance_interval,
    }
    generated: list[Generated] = []
    for fps in rates:
        path = run / "clips" / f"generated-{fps:g}fps.safetensors"
        videos = kept_videos(path, key, pipeline, orders, {**arguments, "fps": fps})
        for order, video in zip(orders, videos, strict=True):
            assert order.label is not None
            generated.append(Generated(order.label, order.number, fps, order.seed, video))
    return generated


def kept_videos(
    path: Path, key: str, pipeline: VQVDMPipeline, orders: Sequence[Order], arguments: dict[str, Any]
) -> np.ndarray:
    """Generated videos, uint8 (n, t, h, w, 3), in the order of `orders`; made unless `path` keeps them under `key`."""
    if path.is_file():
        with safe_open(path, "numpy") as file:
            if file.metadata()["key"] == key:
                return file.get_tensor("videos")
    videos = np.stack([video for _, video, _ in generate(pipeline, orders, SAMPLING_BATCH, arguments)])
    write_bytes(path, save({"videos": videos}, metadata={"key": key}))
    return videos


def reconstruct_clips(recipe: Recipe, run: Path, clips: int, rates: Sequence[float]) -> list[Unseen]:
    """`clips` unseen clips of every class at each of `rates`, encoded and decoded by the run's tokenizer."""
    dataset = UnseenClips(recipe.data.size, recipe.data.frames, clips, rates)
    pairs = reconstruct(load_tokenizer(run), dataset, list(range(len(dataset))), RECONSTRUCTION_BATCH)
    return [
        Unseen(label, number, fps, pair.real, pair.made, pair.psnr)
        for (label, number, fps), pair in zip(dataset.keys, pairs, strict=True)
    ]


def judge_clips(generated: Sequence[Generated], unseen: Sequence[Unseen]) -> tuple[list[Generated], list[Unseen]]:
    """The same clips with the judge's verdicts."""
    return (
        [replace(clip, judged=judge(clip.video, clip.fps)) for clip in generated],
        [replace(clip, judged=judge(clip.real, clip.fps), judged_made=judge(clip.made, clip.fps)) for clip in unseen],
    )
