"""The toy world: the same for ever, inside the frame, smooth, and as fast as it says."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vqvdm.data import open_dataset
from vqvdm.data.clouds import ToyClouds
from vqvdm.data.toy import CLASSES, FRAME_RATES, SHAPES, ToyMotions, _signed_distance
from vqvdm.data.worlds import ToyDataset
from vqvdm.errors import InputError
from vqvdm.recipe import DataRecipe
from vqvdm.video import to_video


def _coverage(video: np.ndarray) -> np.ndarray:
    """How far each pixel stands out from the plane through the frame's most common colours, 0..1. (t, h, w)

    Trimmed least squares: not how the judge does it.
    """
    frames, height, width, _ = video.shape
    values = video.reshape(-1, 3).astype(float)
    y, x = np.mgrid[:height, :width] / height
    terms = np.tile(np.stack([np.ones_like(x), x, y], -1).reshape(-1, 3), (frames, 1))
    keep = np.ones(len(values), bool)
    for _ in range(20):
        kept = terms * keep[:, None]
        plane = terms @ np.linalg.solve(kept.T @ terms, kept.T @ values)
        distance = np.linalg.norm(values - plane, axis=1)
        keep = distance <= max(4.0, 0.75 * distance[keep].max())
    return np.clip(distance / distance.max(), 0, 1).reshape(frames, height, width)


def _centres(video: np.ndarray) -> np.ndarray:
    """Centre x, y of the shape in each frame, in frame sides. (t, 2)"""
    weight = _coverage(video)
    weight = np.where(weight > 0.15, weight, 0.0)
    ticks = (np.arange(video.shape[1]) + 0.5) / video.shape[1]
    mass = weight.sum((1, 2))
    return np.stack([weight.sum(1) @ ticks / mass, weight.sum(2) @ ticks / mass], axis=1)


def test_the_same_in_every_process() -> None:
    script = (
        "import hashlib; from vqvdm.data.toy import ToyMotions\n"
        "world = ToyMotions(32, 8, seed=5)\n"
        "print(hashlib.sha256(b''.join(world.render(i).video.tobytes() for i in range(20))).hexdigest())"
    )
    world = ToyMotions(32, 8, seed=5)
    here = hashlib.sha256(b"".join(world.render(index).video.tobytes() for index in range(20))).hexdigest()
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert there == here
    assert not np.array_equal(world.render(0).video, ToyMotions(32, 8, seed=6).render(0).video)


@pytest.mark.parametrize(("size", "frames"), [(64, 16), (48, 8), (32, 33), (20, 5), (130, 2), (32, 1)])
def test_any_size_and_length(size: int, frames: int) -> None:
    for label in range(len(CLASSES)):
        clip = ToyMotions(size, frames).render(label, label=label)
        assert clip.video.shape == (frames, size, size, 3) and clip.video.dtype == np.uint8
        assert clip.label == label and clip.fps in FRAME_RATES
        assert clip.speed > 0 or frames == 1


def test_draws_every_class_and_frame_rate() -> None:
    clips = [ToyMotions(8, 2).render(index) for index in range(400)]
    assert np.bincount([clip.label for clip in clips], minlength=len(CLASSES)).min() > 20
    assert {clip.fps for clip in clips} == set(FRAME_RATES)


@pytest.mark.parametrize("label", [CLASSES.index(name) for name in ("left", "right", "up", "down")])
def test_lines_are_units_per_second(label: int) -> None:
    """Measured displacement per frame x frame rate is the speed: doubling the rate halves the displacement."""
    direction = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[CLASSES[label]]
    world = ToyMotions(48, 8)
    for index in range(4):
        for fps in (8.0, 16.0):
            clip = world.render(index, label=label, fps=fps)
            steps = np.diff(_centres(clip.video), axis=0).mean(0)  # (x, y)
            np.testing.assert_allclose(steps * fps, np.array(direction) * clip.speed, atol=0.02)


def test_orbits_turn_as_their_name_says() -> None:
    """Clockwise on the screen for orbit-right, at the speed stated."""
    for name, sign in (("orbit-right", 1), ("orbit-left", -1)):
        for index in range(4):
            clip = ToyMotions(48, 12).render(index, label=CLASSES.index(name), fps=12.0)
            steps = np.diff(_centres(clip.video), axis=0)
            turn = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]  # y down: positive is clockwise
            assert np.sign(np.median(turn)) == sign
            assert np.hypot(*steps.T).mean() * clip.fps == pytest.approx(clip.speed, rel=0.03)


def test_shapes_stay_inside_the_frame() -> None:
    """No area is lost at the edges (but a corner's tip), and the frame's rim is background."""
    for index in range(32):
        clip = ToyMotions(48, 6).render(index, label=index % CLASSES.index("grow"))
        area = _coverage(clip.video).clip(0.1).sum((1, 2))
        assert area.min() / area.max() > 0.93, (index, CLASSES[clip.label], area)


def test_edges_are_smooth() -> None:
    """Every outline passes through many shades between background and shape."""
    for index in range(20):
        video = ToyMotions(64, 1).render(index, label=0).video
        coverage = _coverage(video)
        assert ((coverage > 0.15) & (coverage < 0.85)).sum() > 0.1 * (coverage > 0.85).sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_reach_no_further_than_the_window(shape: str) -> None:
    """Rendering computes only 1.14 radii about the centre, and 2.5 pixels (at least 0.1 of the smallest radius)."""
    x, y = np.meshgrid(np.linspace(-2, 2, 401), np.linspace(-2, 2, 401))
    distance = _signed_distance(shape, x, y)
    assert (np.hypot(x, y)[distance <= 0] <= 1.14).all()
    assert (np.hypot(x, y)[distance <= 0.3] <= 1.14 + 2 * 0.3).all()


class TestDataset:
    """The worlds as data sets."""

    def test_items(self) -> None:
        data = ToyDataset("toy", size=24, frames=5, clips=10)
        assert len(data) == 10 and data.classes == CLASSES
        item = data[3]
        assert item["clip"].shape == (3, 5, 24, 24) and item["clip"].dtype == torch.float32
        assert item["clip"].min() >= -1 and item["clip"].max() <= 1 and item["clip"].min() < 0 < item["clip"].max()
        assert item["class_label"].dtype == torch.int64 and item["class_label"].shape == ()
        assert item["fps"].dtype == torch.float32 and float(item["fps"]) in FRAME_RATES
        batch = next(iter(torch.utils.data.DataLoader(data, batch_size=4)))
        assert batch["clip"].shape == (4, 3, 5, 24, 24)

    def test_the_clip_is_the_rendered_one(self) -> None:
        rendered = ToyMotions(24, 5, seed=0).render(3)
        item = ToyDataset("toy", size=24, frames=5)[3]
        video = ((item["clip"] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)  # (t, h, w, c)
        np.testing.assert_array_equal(video.numpy(), rendered.video)
        assert int(item["class_label"]) == rendered.label

    def test_draws(self) -> None:
        train, test = (ToyDataset("toy", size=16, frames=2, clips=10, split=split) for split in ("train", "test"))
        assert torch.equal(train[3]["clip"], train[(3, 0)]["clip"])
        assert torch.equal(train[(3, 2**62)]["clip"], train[(3, 2**62)]["clip"])
        assert not torch.equal(train[(3, 1)]["clip"], train[(3, 2)]["clip"])
        assert torch.equal(test[(3, 1)]["clip"], test[(3, 2)]["clip"])
        assert not torch.equal(train[3]["clip"], test[3]["clip"])

    def test_clouds_are_unlabelled(self) -> None:
        data = ToyDataset("toy-clouds", size=16, frames=2)
        assert data.classes == () and int(data[0]["class_label"]) == 0

    @pytest.mark.parametrize("path", ["toy", "toy-clouds"])
    def test_one_frame_rate(self, path: str) -> None:
        """The same scenes as without, at the rate asked for."""
        recipe = DataRecipe(path=path, size=16, frames=4, fps=5.0)
        data, drawn = open_dataset(recipe, "train"), open_dataset(replace(recipe, fps=None), "train")
        assert {float(data[index]["fps"]) for index in range(20)} == {5.0}
        assert {float(drawn[index]["fps"]) for index in range(20)} == set(FRAME_RATES)
        world = {"toy": ToyMotions, "toy-clouds": ToyClouds}[path](16, 4)
        np.testing.assert_array_equal(to_video(data[3]["clip"]), world.render(3, fps=5.0).video)
        assert all(data[index]["class_label"] == drawn[index]["class_label"] for index in range(20))

    def test_flips_of_clouds(self) -> None:
        recipe = DataRecipe(path="toy-clouds", size=16, frames=2, toy_clips=20)
        plain, flipped = open_dataset(recipe, "train"), open_dataset(replace(recipe, flip=True), "train")
        keys = [(index, draw) for index in range(20) for draw in range(3)]
        mirrored = []
        for key in keys:
            clip, other = plain[key]["clip"], flipped[key]["clip"]
            mirrored.append(torch.equal(other, clip.flip(-1)))
            assert mirrored[-1] or torch.equal(other, clip)
            assert torch.equal(other, flipped[key]["clip"])
        assert 0.3 * len(keys) < sum(mirrored) < 0.7 * len(keys)
        for split, training in (("test", None), ("train", False)):  # as in evaluation: no flip, every draw the same
            fixed = open_dataset(replace(recipe, flip=True), split, training)
            still = open_dataset(recipe, split)
            assert all(torch.equal(fixed[(index, 1)]["clip"], still[index]["clip"]) for index in range(20))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"flip": True}, r"data\.flip is True, but must be False with data\.path=toy: left and right are classes"),
            ({"stride": 2}, r"data\.stride is 2, but must be 1 with data\.path=toy: .*data\.fps"),
            ({"crop": "random"}, r"data\.crop is 'random', but must be 'center'"),
            ({"layout": "flat"}, r"data\.layout is 'flat', but must be 'auto'"),
            ({"split": 2}, r"data\.split is 2, but must be 1"),
            ({"fps": -1.0}, r"data\.fps is -1\.0, but must be above 0"),
        ],
    )
    def test_settings_without_meaning(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            open_dataset(DataRecipe(path="toy", **settings), "test")

    def test_ends(self) -> None:
        with pytest.raises(IndexError):
            ToyDataset(clips=10)[10]

    def test_mistakes(self) -> None:
        with pytest.raises(InputError, match="'toy', 'toy-clouds'"):
            ToyDataset("toys")
        with pytest.raises(InputError, match="'val'"):
            ToyDataset(split="val")  # pyrefly: ignore
        with pytest.raises(InputError, match="size is 4"):
            ToyDataset(size=4)


def test_importing_the_worlds_needs_no_torch() -> None:
    script = "import sys, vqvdm.data.toy, vqvdm.data.clouds, vqvdm.judge; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
