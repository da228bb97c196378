"""Given frames and long videos, measured: against what follows from their making, and the command itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tiny_pipeline import tiny_pipeline
from vqvdm import VQVDMPipeline, cli
from vqvdm.continuation import faded, joined
from vqvdm.data.toy import ToyMotions
from vqvdm.evaluation.continuation import (
    Continuer,
    changes_of,
    given_frames,
    joint_of,
    kept,
    measured_windows,
    windows_of,
)
from vqvdm.judge import judge
from vqvdm.output import VQVDMPipelineOutput
from vqvdm.video import to_clip, to_video


def brightening(step: int, frames: int = 16, videos: int = 3) -> np.ndarray:
    """Grey videos, brighter by `step` from frame to frame: uint8 (n, t, 8, 8, 3)."""
    levels = (np.arange(frames) * step).astype(np.uint8)
    return np.broadcast_to(levels[None, :, None, None, None], (videos, frames, 8, 8, 3)).copy()


def test_windows_lie_in_what_was_made() -> None:
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
    assert ends.psnr == 100
    assert ends.joint == pytest.approx((4 + 4) / (4 + 4))
    still = kept(np.zeros_like(real), np.zeros_like(real), np.zeros_like(real), 8, ends=False)
    assert np.isnan(still.joint)


def test_a_joint_is_beside_other_places_of_its_window_s_latents() -> None:
    video = brightening(2, frames=40)
    video[:, :12] += 100  # what was given must not count
    video[:, 12:] = video[:, 12:] - video[:, 12:13] + video[:, 11:12] + 8  # a joint of 8 where others change by 2
    video[:, 14::4] += 3  # and flicker within latents must not count
    assert joint_of(video, [(8, 24)], given=12, factor=4) == pytest.approx(8 / 2)
    # A second window begins to add at 24, where the change is the usual one.
    assert joint_of(video, [(8, 24), (18, 34)], given=12, factor=4) == pytest.approx((8 + 2) / 2 / 2)
    assert joint_of(video, [(8, 24)], given=12, factor=2) < 4.0
    assert np.isnan(joint_of(video, [(9, 13)], given=12, factor=4)), "there are no others"
    assert np.isnan(joint_of(np.zeros_like(video), [(8, 24)], given=12, factor=4))


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
    assert windows[0].colour == 0.0
    faded = long - (long // 8)
    off = measured_windows(faded, long[:, :16], stretches, None)[0][0].colour
    assert off == pytest.approx(np.abs(left.mean((1, 2, 3)) - faded[:, :16].mean((1, 2, 3))).mean())
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


class Recording(VQVDMPipeline):
    """Makes clips as bright as their label, and keeps what it was asked."""

    asked: list[dict]

    def __call__(self, *_, class_labels=None, generator=None, num_videos_per_prompt=1, **others) -> VQVDMPipelineOutput:
        self.asked.append({"labels": class_labels, "seeds": [each.initial_seed() for each in generator], **others})
        shade = torch.tensor([label / 17 for label in class_labels]).view(-1, 1, 1, 1, 1)
        frames = shade.expand(-1, others.get("num_frames", 12), 3, 8, 8)
        frames = frames if others["output_type"] == "pt" else frames.permute(0, 1, 3, 4, 2).numpy()
        return VQVDMPipelineOutput(frames=frames, fps=[8.0] * len(class_labels), seeds=[0] * len(class_labels))


def test_each_video_has_its_own_label_seed_and_settings_in_every_batch() -> None:
    parts = tiny_pipeline()
    pipeline = Recording(**parts.components, id2label=parts.id2label, num_frames=12, height=8, width=8, fps=8.0)
    pipeline.asked = []
    real, labels = brightening(1, frames=12, videos=5), [2, 0, 1, 1, 0]
    continuer = Continuer(pipeline, labels, {"guidance_scale": 3.0, "num_inference_steps": 7}, batch=2)
    made = continuer.clips(real, 1, ends=True)
    assert [asked["labels"] for asked in pipeline.asked] == [[2, 0], [1, 1], [0]]
    assert len({seed for asked in pipeline.asked for seed in asked["seeds"]}) == 5
    assert {(asked["guidance_scale"], asked["num_inference_steps"]) for asked in pipeline.asked} == {(3.0, 7)}
    assert {len(asked["image"]) for asked in pipeline.asked} == {1, 2}
    assert made[:, 0, 0, 0, 0].tolist() == [15 * label for label in labels]
    long = continuer.long(real, 24, overlap=6)
    assert long.shape == (5, 24, 8, 8, 3) and long[:, -1, 0, 0, 0].tolist() == made[:, 0, 0, 0, 0].tolist()
    np.testing.assert_array_equal(long[:, :12], real)


@torch.inference_mode()
def test_what_is_kept_stands_beside_the_tokenizer_s_reconstruction() -> None:
    pipeline = tiny_pipeline()
    real = np.random.default_rng(0).integers(0, 256, (3, 4, 16, 16, 3), dtype=np.uint8)
    clips = torch.stack([to_clip(clip) for clip in real])
    expected = [to_video(clip) for clip in pipeline.tokenizer.decode(pipeline.tokenizer.encode(clips))]
    found = Continuer(pipeline, None, {}, batch=2).reconstructed(real)
    assert np.abs(found.astype(int) - np.stack(expected)).max() <= 1


def test_the_command(commands, capsys) -> None:
    words = ["evaluate", "continuation", "model", "--dtype", "float32", "--steps", "1"]
    toy = [*words, "--reference", "toy", "--clips", "4", "--batch", "3", "--length", "36"]
    assert cli.main([*toy, "--classes", "left,right", "--report", "made/long.json"]) == 0
    found = json.loads((commands / "made" / "long.json").read_text(), parse_constant=pytest.fail)
    assert [(window["first"], window["end"]) for window in found["windows"]] == [(12, 24), (24, 36)]
    assert {"left", "right"} >= set(found["obeyed_by_class"]) != set()
    assert list(found["given"]) == ["first frame", "both ends", "first 6 frames"]
    assert all(window["fvd"] > 0 for window in found["windows"]) and found["fvd"]["real"] > 0
    assert (found["num_inference_steps"], found["clips"], found["length"], found["overlap"]) == (1, 4, 36, 6)
    printed = capsys.readouterr().out
    assert "| 24 to 35 |" in printed and "class kept in" in printed and "clips 4," in printed
    assert "only 4 real and 4 fake clips" in printed

    wrong = {
        "--reference toy --length 20": "at least two windows, 24",
        "--reference toy --length 0": "--length must be at least 1",
        "--reference toy --overlap 12": "below the 12 frames",
        "--reference toy --frames 16": "windows of its own 12 frames",
        "--reference toy --classes none": "--classes none: real clips have classes",
        "--reference real.npy --no-fvd": "0 clips of",
    }
    for added, message in wrong.items():
        assert cli.main([*words, *added.split()]) == 2
        assert message in capsys.readouterr().err, added
