"""Given frames and long videos, measured: against what follows from their making, and the command itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vqvdm import cli
from vqvdm.continuation import faded, joined
from vqvdm.data.toy import ToyMotions
from vqvdm.evaluation.continuation import (
    changes_of,
    given_frames,
    joint_of,
    joints_of,
    kept,
    measured_windows,
    windows_of,
)
from vqvdm.judge import judge


def brightening(step: int, frames: int = 16, videos: int = 3) -> np.ndarray:
    """Grey videos, brighter by `step` from frame to frame: uint8 (n, t, 8, 8, 3)."""
    levels = (np.arange(frames) * step).astype(np.uint8)
    return np.broadcast_to(levels[None, :, None, None, None], (videos, frames, 8, 8, 3)).copy()


def test_where_windows_join() -> None:
    assert joints_of(total=32, window=16, overlap=8, given=16) == [16, 24]
    assert joints_of(total=128, window=16, overlap=8, given=16) == list(range(16, 128, 8))
    assert windows_of(total=64, window=16, given=16) == [(16, 32), (32, 48), (48, 64)]
    assert windows_of(total=40, window=16, given=16) == [(16, 32)]


def test_given_frames_are_those_of_the_call() -> None:
    real = brightening(3)
    assert set(given_frames(real, 1, ends=False)) == {"image"}
    both = given_frames(real, 1, ends=True)
    assert [image[0, 0, 0] for image in both["image"]] == [0, 0, 0]
    assert [image[0, 0, 0] for image in both["last_image"]] == [45, 45, 45]
    assert np.array(given_frames(real, 8, ends=False)["video"]).shape == (3, 8, 8, 8, 3)


def test_kept_compares_given_frames_alone() -> None:
    real = brightening(4)
    made, again = real.copy(), real.copy()
    made[:, 8:] = 255 - made[:, 8:]  # what was not given may be anything
    made[:, :8] += 2
    again[:, :8] += 1
    figures = kept(real, made, again, 8, ends=False)
    assert figures.psnr == pytest.approx(20 * np.log10(255 / 2))
    assert figures.to_reconstruction == pytest.approx(20 * np.log10(255))
    assert figures.tokenizer == pytest.approx(20 * np.log10(255))
    # frame 7 is 28 + 2, frame 8 is 255 - 32; of the reconstruction they are 29 and 32
    assert figures.joint == pytest.approx((223 - 30) / 3)
    ends = kept(real, real, again, 1, ends=True)
    assert ends.psnr == float("inf")
    assert ends.joint == pytest.approx((4 + 4) / (4 + 4))
    still = kept(np.zeros_like(real), np.zeros_like(real), np.zeros_like(real), 8, ends=False)
    assert np.isnan(still.joint)


def test_a_joint_is_beside_other_places_of_the_latent_grid() -> None:
    video = brightening(2, frames=40)
    video[:, 24:] += 6  # a jump of 8 at frame 24 where others change by 2
    video[:, 2::4] += 3  # and a flicker within latents that must not count
    assert joint_of(video, [24], factor=4) == pytest.approx(4.0)
    assert joint_of(video, [16, 24], factor=4) == pytest.approx((2 + 8) / 2 / 2)
    assert joint_of(video, [24], factor=1) < 4.0


def test_windows_say_when_a_video_freezes_and_when_it_loses_its_class() -> None:
    world = ToyMotions(32, 16, seed=5)
    left, right = (np.stack([world.render(n, label, 12.0).video for n in range(3)]) for label in (0, 1))
    frozen = np.repeat(left[:, -1:], 16, axis=1)
    long = np.concatenate([left, left, right, frozen], axis=1)
    stretches = windows_of(64, 16, given=16)
    windows, seen = measured_windows(long, left, stretches, lambda _, clip: judge(clip, 12.0).name == "left")
    assert [window.obeyed for window in windows] == [1.0, 0.0, 0.0]
    assert [windows[0].motion, windows[2].motion] == [pytest.approx(1.0), 0.0]
    assert windows[1].motion == pytest.approx(changes_of(right).mean() / changes_of(left).mean())
    assert seen is not None and seen.tolist() == [[1.0, 0.0, 0.0]] * 3
    windows, seen = measured_windows(long, left, stretches, None)
    assert seen is None and windows[0].obeyed is None


def test_a_difference_is_carried_on_where_nothing_moves() -> None:
    again = torch.full((1, 3, 8, 8), 0.5)
    there = again + 0.03
    new = again[:, None].repeat(1, 4, 1, 1, 1)
    new[:, 2:, :, :, 4:] = 0.9  # something comes in from the right
    found = joined(there, again, new)
    assert torch.allclose(found[:, 0], there), "no jump where nothing moves"
    for frame, share in enumerate((1.0, 0.75, 0.5, 0.25)):
        assert torch.allclose(found[:, frame, :, :, :3], again[..., :3] + share * 0.03)
    assert torch.allclose(found[:, 2:, :, :, 3:], new[:, 2:, :, :, 3:], atol=1e-6), "nor beside it"
    assert torch.equal(joined(again, again, new), new)


def test_windows_fade_into_each_other() -> None:
    first, second = torch.zeros(2, 3, 3, 4, 4), torch.ones(2, 3, 3, 4, 4)
    assert [round(float(frame), 4) for frame in faded(first, second)[0, :, 0, 0, 0]] == [0.25, 0.5, 0.75]
    assert faded(first[:, :0], second[:, :0]).shape == (2, 0, 3, 4, 4)


def test_the_command(commands, capsys) -> None:
    words = ["evaluate", "continuation", "model", "--clips", "4", "--dtype", "float32", "--steps", "1"]
    toy = [*words, "--reference", "toy", "--length", "36"]
    assert cli.main([*toy, "--classes", "left,right", "--report", "made/long.json"]) == 0
    found = json.loads((commands / "made" / "long.json").read_text())
    assert [(window["first"], window["end"]) for window in found["windows"]] == [(12, 24), (24, 36)]
    assert set(found["obeyed_by_class"]) <= {"left", "right"} and 0 <= found["obeyed"] <= 1
    assert list(found["given"]) == ["first frame", "both ends", "first 6 frames"]
    assert all(window["fvd"] > 0 for window in found["windows"]) and found["fvd"]["real"] > 0
    printed = capsys.readouterr().out
    assert "| 24 to 35 |" in printed and "class kept in" in printed

    assert cli.main([*words, "--reference", "real.npy", "--no-fvd"]) == 2
    assert "clips of" in capsys.readouterr().err
    for wrong, message in (("--length 20", "at least two windows, 24"), ("--overlap 12", "below the 12 frames")):
        assert cli.main([*words, "--reference", "toy", *wrong.split()]) == 2
        assert message in capsys.readouterr().err
