"""The built-in worlds as data sets: rendered on the fly, endless in training."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqvdm.data.clouds import ToyClouds
from vqvdm.data.toy import ToyMotions
from vqvdm.errors import InputError
from vqvdm.video import to_clip

if TYPE_CHECKING:
    from vqvdm.recipe import DataRecipe

WORLDS = {"toy": ToyMotions, "toy-clouds": ToyClouds}

_DIGEST_CLIPS = 8

# Settings of DataRecipe that mean nothing where clips are rendered: the value they must have, and why.
_MEANINGLESS = {
    "layout": ("auto", "there are no files"),
    "split": (1, "there are no lists"),
    "stride": (1, "clips are rendered at any rate: ask for it with data.fps"),
    "crop": ("center", "clips are rendered at data.size"),
}


def open_world(data: DataRecipe, split: Literal["train", "test"], training: bool | None = None) -> ToyDataset:
    """The built-in world that the recipe names; InputError for a setting that it does not have."""
    for name, (right, why) in _MEANINGLESS.items():
        if (value := getattr(data, name)) != right:
            raise InputError(f"data.{name} is {value!r}, but must be {right!r} with data.path={data.path}: {why}")
    return ToyDataset(data.path, data.size, data.frames, data.toy_clips, split, 0, data.fps, data.flip, training)


class ToyDataset(Dataset[dict[str, Tensor]]):
    """Clips of a built-in world.

    Args:
        world: "toy" (ten classes of motion) or "toy-clouds" (unlabelled).
        size: height and width in pixels.
        frames: frames of a clip.
        clips: nominal number of clips, the data set's length.
        split: "test" is another world of the same kind, which training never sees.
        seed: another seed is another data set.
        fps: frames per second of every clip; by default each clip draws its own.
        flip: mirror half of the training clips; not where left and right are classes.
        training: whether draws differ; by default in the train split.

    Raises:
        InputError: an unknown world or split, a size too small, or a flip where left and right are classes.
    """

    def __init__(
        self,
        world: str = "toy",
        size: int = 64,
        frames: int = 16,
        clips: int = 16384,
        split: Literal["train", "test"] = "train",
        seed: int = 0,
        fps: float | None = None,
        flip: bool = False,
        training: bool | None = None,
    ) -> None:
        if world not in WORLDS:
            raise InputError(f"data.path is {world!r}, but the built-in worlds are {', '.join(map(repr, WORLDS))}")
        if split not in ("train", "test"):
            raise InputError(f"split is {split!r}, but must be 'train' or 'test'")
        for name, value, least in (("size", size, 8), ("frames", frames, 1), ("toy_clips", clips, 1)):
            if value < least:
                raise InputError(f"data.{name} is {value}, but the built-in worlds need at least {least}")
        if fps is not None and not fps > 0:
            raise InputError(f"data.fps is {fps}, but must be above 0")
        if flip and world == "toy":
            raise InputError(
                "data.flip is True, but must be False with data.path=toy: left and right are classes, which a mirror "
                "exchanges (toy-clouds may be flipped)"
            )
        self._world = WORLDS[world](size, frames, seed=2 * seed + (split == "test"))
        self._clips, self._fps, self._flip = clips, fps, flip
        self._training = split == "train" if training is None else training
        self.classes: tuple[str, ...] = self._world.classes

    def __len__(self) -> int:
        return self._clips

    def digest(self) -> str:
        """Changes with the world: its settings, and what its first clips look like."""
        world = self._world
        settings = [type(world).__name__, world.size, world.frames, world.seed, world.frame_rates, self.classes]
        digest = hashlib.sha256(json.dumps([*settings, self._clips, self._fps, self._flip, self._training]).encode())
        for number in range(_DIGEST_CLIPS):
            rendered = world.render(number, fps=self._fps)
            digest.update(rendered.video.tobytes())
        return digest.hexdigest()[:16]

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Tensor]:
        """Item `index` or `(index, draw)`: another `draw` is another clip in training and the same one otherwise.

        Returns:
            `clip` float32 (c, t, h, w) in -1..1, `class_label` int64 scalar (0 when unlabelled), `fps` float32 scalar.
        """
        number, draw = index if isinstance(index, tuple) else (index, 0)
        if not 0 <= number < self._clips:
            raise IndexError(f"clip {number} of {self._clips}")
        rendered = self._world.render(number + draw * self._clips if self._training else number, fps=self._fps)
        mirrored = self._flip and self._training and np.random.default_rng((number, draw)).integers(2)
        return {
            "clip": to_clip(rendered.video[:, :, ::-1] if mirrored else rendered.video),
            "class_label": torch.tensor(rendered.label, dtype=torch.int64),
            "fps": torch.tensor(rendered.fps, dtype=torch.float32),
        }
