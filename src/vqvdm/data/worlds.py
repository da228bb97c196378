"""The built-in worlds as data sets: rendered on the fly, endless in training."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqvdm.data.clouds import ToyClouds
from vqvdm.data.toy import FRAME_RATES, ToyMotions
from vqvdm.errors import InputError
from vqvdm.video import to_clip

_WORLDS = {"toy": ToyMotions, "toy-clouds": ToyClouds}


class ToyDataset(Dataset[dict[str, Tensor]]):
    """Clips of a built-in world.

    Args:
        world: "toy" (ten classes of motion) or "toy-clouds" (unlabelled).
        size: height and width in pixels.
        frames: frames of a clip.
        clips: nominal number of clips, the data set's length.
        split: "test" is another world of the same kind, which training never sees.
        seed: another seed is another data set.
        frame_rates: frames per second, drawn for each clip.

    Raises:
        InputError: an unknown world or split, or a size too small.
    """

    def __init__(
        self,
        world: str = "toy",
        size: int = 64,
        frames: int = 16,
        clips: int = 16384,
        split: Literal["train", "test"] = "train",
        seed: int = 0,
        frame_rates: tuple[float, ...] = FRAME_RATES,
    ) -> None:
        if world not in _WORLDS:
            raise InputError(f"data.path is {world!r}, but the built-in worlds are {', '.join(map(repr, _WORLDS))}")
        if split not in ("train", "test"):
            raise InputError(f"split is {split!r}, but must be 'train' or 'test'")
        for name, value, least in (("size", size, 8), ("frames", frames, 1), ("toy_clips", clips, 1)):
            if value < least:
                raise InputError(f"data.{name} is {value}, but the built-in worlds need at least {least}")
        self._world = _WORLDS[world](size, frames, seed=2 * seed + (split == "test"), frame_rates=frame_rates)
        self._clips, self._training = clips, split == "train"
        self.classes: tuple[str, ...] = self._world.classes

    def __len__(self) -> int:
        return self._clips

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Tensor]:
        """Item `index` or `(index, draw)`: another `draw` is another clip in training and the same one in testing.

        Returns:
            `clip` float32 (c, t, h, w) in -1..1, `class_label` int64 scalar (0 when unlabelled), `fps` float32 scalar.
        """
        number, draw = index if isinstance(index, tuple) else (index, 0)
        if not 0 <= number < self._clips:
            raise IndexError(f"clip {number} of {self._clips}")
        rendered = self._world.render(number + draw * self._clips if self._training else number)
        return {
            "clip": to_clip(rendered.video),
            "class_label": torch.tensor(rendered.label, dtype=torch.int64),
            "fps": torch.tensor(rendered.fps, dtype=torch.float32),
        }
