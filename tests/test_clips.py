"""Clips: which frames, at which rate, from where, and the same ones for ever."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from vqvdm.data import open_dataset
from vqvdm.data.clips import ClipDataset, ClipTiming
from vqvdm.errors import InputError
from vqvdm.recipe import DataRecipe
from vqvdm.video import VideoError, read_video, to_video

SMALL = DataRecipe(frames=4, size=32)


def _open(path: Path, split="train", training=None, **fields) -> ClipDataset:
    return open_dataset(dataclasses.replace(SMALL, path=str(path), **fields), split, training, progress=False)


# --------------------------------------------------------------------------------------------------------------- timing


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    length=st.integers(1, 60),
    frames=st.integers(1, 12),
    fps=st.floats(1, 60),
    even=st.booleans(),
)
def test_frames_are_the_nearest_in_time_by_brute_force(seed, length, frames, fps, even):
    rng = np.random.default_rng(seed)
    gaps = np.full(length, 1 / 25) if even else rng.uniform(0.01, 0.1, length)
    times = np.cumsum(gaps) - gaps[0]
    rate = (length - 1) / times[-1] if length > 1 else 25.0
    timing = ClipTiming(frames, fps=fps)
    starts = timing.starts(times, rate)
    last_gap = times[-1] - times[-2] if length > 1 else 1 / rate
    for start in range(length):
        expected, clock = [start], times[start]
        while len(expected) < frames and expected[-1] + 1 < length:
            clock += 1 / fps
            nearest = int(np.flatnonzero(np.abs(times - clock) <= np.abs(times - clock).min() + 1e-9)[-1])
            if nearest <= expected[-1]:  # the video is slower: its next frame, and the clock waits for it
                nearest = expected[-1] + 1
                clock = (times[nearest - 1] + times[nearest]) / 2
            expected.append(nearest)
        fits = len(expected) == frames and clock <= times[-1] + 0.501 * last_gap
        assert (start < starts) == fits
        if not fits:
            continue
        numbers, obtained = timing.pick(times, rate, start)
        assert numbers.tolist() == expected
        assert (np.diff(numbers) >= 1).all()
        if frames > 1:
            assert obtained == pytest.approx((frames - 1) / (times[numbers[-1]] - times[start]))
        if np.diff(times).max(initial=0) < 1 / fps:  # fast enough all along: nothing but the nearest to start + k / fps
            for number, target in zip(numbers, times[start] + np.arange(frames) / fps, strict=True):
                assert abs(times[number] - target) <= np.abs(times - target).min() + 1e-9
    if even:  # the number of frames that the messages name is the exact bound
        assert (starts > 0) == (length >= timing.needed(25.0))


@pytest.mark.parametrize(("asked", "fast", "step"), [(60, 30, 1), (20, 20, 1.5), (15, 15, 2), (7.5, 7.5, 4)])
def test_a_video_of_two_rates_shows_each_frame_once_at_the_rate_it_has(tmp_path, numbered, asked, fast, step):
    """30 frames per second for one second, then 15 for two."""
    stamps = [*range(30), *range(30, 90, 2)]
    numbered.write(tmp_path / "train/a.mp4", frames=60, fps=30, codec="libx264", size=(64, 64), stamps=stamps)
    dataset = _open(tmp_path, fps=asked, frames=6)
    seconds = np.array(stamps) / 30
    seen = set()
    for draw in range(60):
        item = dataset[0, draw]
        numbers = np.array(numbered.read(to_video(item["clip"])))
        assert (np.diff(numbers) >= 1).all()
        assert float(item["fps"]) == pytest.approx(5 / (seconds[numbers[-1]] - seconds[numbers[0]]), rel=1e-4)
        if numbers[-1] < 30:
            seen.add("fast")
            assert float(item["fps"]) == pytest.approx(fast, rel=0.1 if step % 1 else 1e-4)
            assert set(np.diff(numbers)) <= {np.floor(step), np.ceil(step)}
        if numbers[0] >= 30:
            seen.add("slow")
            assert float(item["fps"]) == pytest.approx(min(asked, 15), rel=1e-4)
            assert set(np.diff(numbers)) == {max(1, step / 2)}
    assert seen == {"fast", "slow"}


def test_rate_stride_and_slow_sources():
    times = np.arange(100) / 25
    numbers, fps = ClipTiming(5, fps=10).pick(times, 25, 3)
    assert numbers.tolist() == [3, 6, 8, 11, 13]  # 3, 5.5, 8, 10.5, 13
    assert fps == pytest.approx(10)
    numbers, fps = ClipTiming(4, fps=8).pick(times, 25, 0)  # 0, 3.125, 6.25, 9.375
    assert numbers.tolist() == [0, 3, 6, 9]
    assert fps == pytest.approx(25 / 3)
    numbers, fps = ClipTiming(4, stride=6).pick(times, 25, 10)
    assert numbers.tolist() == [10, 16, 22, 28]
    assert fps == pytest.approx(25 / 6)
    numbers, fps = ClipTiming(4, fps=60).pick(times, 25, 10)  # faster than the source: its own rate, no frame twice
    assert numbers.tolist() == [10, 11, 12, 13]
    assert fps == pytest.approx(25)
    assert ClipTiming(1, fps=8).pick(times, 25, 99) == (pytest.approx([99]), 8)
    assert ClipTiming(16, stride=8).needed(25) == 121
    assert ClipTiming(4, stride=6).starts(times, 25) == 82


@pytest.mark.parametrize(("frames", "fps", "stride"), [(0, None, 1), (4, 0.0, 1), (4, -1.0, 1), (4, None, 0)])
def test_impossible_timings_are_refused(frames, fps, stride):
    with pytest.raises(InputError, match="must be"):
        ClipTiming(frames, fps, stride)


# ---------------------------------------------------------------------------------------------------------------- items


@pytest.fixture
def numbered_folder(tmp_path, numbered) -> Path:
    """Two classes of square clips of 40 frames; AVI is read from the start, MP4 is sought."""
    for name, codec in (("x/a.avi", "mpeg4"), ("x/b.mp4", "libx264"), ("y/c.mp4", "libx264"), ("y/d.avi", "mpeg4")):
        numbered.write(tmp_path / "train" / name, frames=90, codec=codec, size=(64, 64))
    numbered.write(tmp_path / "test" / "y" / "e.avi", frames=41, size=(64, 64))
    return tmp_path


def test_items_have_the_agreed_form(numbered_folder):
    dataset = _open(numbered_folder, fps=8)
    assert dataset.classes == ("x", "y")
    assert len(dataset) == 4
    item = dataset[3, 5]
    assert set(item) == {"clip", "class_label", "fps"}
    assert (item["clip"].shape, item["clip"].dtype) == ((3, 4, 32, 32), torch.float32)
    assert item["clip"].min() >= -1
    assert item["clip"].max() <= 1
    assert (item["class_label"].item(), item["class_label"].dtype, item["class_label"].shape) == (1, torch.int64, ())
    assert (item["fps"].item(), item["fps"].dtype) == (pytest.approx(25 / 3), torch.float32)
    with pytest.raises(IndexError):
        dataset[4]


def test_training_windows_are_random_but_fixed_by_index_and_draw(numbered_folder, numbered):
    dataset = _open(numbered_folder, stride=3)
    shown = [numbered.read(to_video(dataset[index, draw]["clip"])) for draw in range(8) for index in range(4)]
    assert all(np.diff(numbers).tolist() == [3, 3, 3] for numbers in shown)
    assert len({numbers[0] for numbers in shown}) > 15
    again = pickle.loads(pickle.dumps(_open(numbered_folder, stride=3)))
    for draw in (0, 7):
        for index in range(4):
            assert torch.equal(again[index, draw]["clip"], dataset[index, draw]["clip"])
    assert torch.equal(dataset[2]["clip"], dataset[2, 0]["clip"])


def test_first_and_last_windows_are_both_drawn(tmp_path, numbered):
    numbered.write(tmp_path / "a.avi", frames=6, size=(64, 64))
    numbered.write(tmp_path / "b.avi", frames=6, size=(64, 64))
    dataset = _open(tmp_path)
    assert {numbered.read(to_video(dataset[0, draw]["clip"]))[0] for draw in range(30)} == {0, 1, 2}


def test_evaluation_is_the_middle_window_and_the_same_for_every_draw(numbered_folder, numbered):
    dataset = _open(numbered_folder, "test", stride=2, crop="random", flip=True)
    assert not dataset.training
    assert numbered.read(to_video(dataset[0]["clip"])) == [17, 19, 21, 23]  # 41 frames: 17 before, 17 after
    for draw in range(5):
        assert torch.equal(dataset[0, draw]["clip"], dataset[0]["clip"])


def test_loader_workers_give_the_same_items(numbered_folder):
    dataset = _open(numbered_folder)
    pairs = [(index, draw) for draw in (0, 1) for index in range(4)]
    here = [dataset[pair]["clip"] for pair in pairs]
    loader = DataLoader(dataset, batch_size=None, sampler=pairs, num_workers=2)
    for expected, item in zip(here, loader, strict=True):
        assert torch.equal(item["clip"], expected)


def test_crop_and_flip(tmp_path):
    """A frame whose red is the column: the crop's place and the mirror can be read off."""
    columns = np.broadcast_to(np.arange(96, dtype=np.uint8) * 2, (32, 96))
    image = Image.fromarray(np.stack([columns, 255 - columns, columns], axis=-1))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            image.save(tmp_path / name / f"{number}.png")

    def left(item):
        reds = to_video(item["clip"])[0, 0, :, 0].astype(int)
        return (reds[0] // 2, reds[-1] > reds[0])

    assert left(_open(tmp_path)[0]) == (32, True)
    assert left(_open(tmp_path, crop="random", flip=True, training=False)[0]) == (32, True)
    places = {left(_open(tmp_path, crop="random")[0, draw]) for draw in range(60)}
    assert len(places) > 25
    assert all(0 <= place <= 64 and forward for place, forward in places)
    sides = [left(_open(tmp_path, flip=True)[0, draw]) for draw in range(40)]
    assert set(sides) == {(32, True), (63, False)}
    assert 8 < sum(forward for _, forward in sides) < 32


@pytest.mark.parametrize("name", ["a.avi", "a.mp4", "a.webm", "a.mov", "a.mkv", "a.gif", "a"])
def test_every_format_gives_the_frames_asked(tmp_path, numbered, name):
    codec = {"a.avi": "mpeg4", "a.webm": "libvpx-vp9", "a.gif": "gif"}.get(name, "libx264")
    for folder in ("1", "2"):
        path = tmp_path / folder / name
        if name == "a":
            path.mkdir(parents=True)
            for number, image in enumerate(numbered.make(60, 64, 64)):
                Image.fromarray(image).save(path / f"x_frames_{number + 9958:08d}.jpg", quality=95)
        else:
            pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
            numbered.write(path, frames=60, codec=codec, size=(64, 64), pix_fmt=pix_fmt)
    item = _open(tmp_path, layout="frames" if name == "a" else "flat", fps=5, training=False)[0]
    assert numbered.read(to_video(item["clip"])) == [22, 27, 32, 37]
    assert item["fps"] == pytest.approx(5)


def test_manifest_stretches_bound_the_windows(tmp_path, numbered):
    numbered.write(tmp_path / "a.mp4", frames=100, codec="libx264", size=(64, 64))
    (tmp_path / "m.csv").write_text(
        "file,label,split,start,end\na.mp4,x,train,2,2.4\na.mp4,y,train,,0.2\na.mp4,y,test,3.8,\na.mp4,x,train,9,\n"
    )
    dataset = _open(tmp_path / "m.csv")
    assert "too short for 4 frames: 1 of 3 videos" in dataset.notes
    for index, (low, high) in enumerate([(50, 60), (0, 5)]):
        shown = [numbered.read(to_video(dataset[index, draw]["clip"])) for draw in range(12)]
        assert min(map(min, shown)) == low
        assert max(map(max, shown)) == high - 1
        assert dataset[index]["class_label"] == index
    assert numbered.read(to_video(_open(tmp_path / "m.csv", "test")[0]["clip"])) == [95, 96, 97, 98]


def test_a_manifest_states_the_frame_rate_of_folders_and_overrides_that_of_files(tmp_path, numbered):
    (tmp_path / "a").mkdir()
    for number, image in enumerate(numbered.make(60, 64, 64)):
        Image.fromarray(image).save(tmp_path / "a" / f"{number}.png")
    numbered.write(tmp_path / "b.mp4", frames=90, codec="libx264", size=(64, 64))  # 25 fps, it says; sought
    (tmp_path / "m.csv").write_text(
        "file,split,start,end,fps\na,train,2,,10\na,train,,,\nb.mp4,train,,6,10\na,test,,,\n"
    )
    dataset = _open(tmp_path / "m.csv", fps=5, training=False)
    items = [dataset[index] for index in range(3)]
    shown = [np.array(numbered.read(to_video(item["clip"]))) for item in items]
    assert [(numbers - numbers[0]).tolist() for numbers in shown] == [[0, 2, 4, 6], [0, 5, 10, 15], [0, 2, 4, 6]]
    assert [numbers[0] for numbers in shown] == [20 + 16, 22, 26]  # the middle of frames 20..59, 0..59, 0..59
    assert [float(item["fps"]) for item in items] == pytest.approx([5, 5, 5])


def test_the_digest_tells_of_changed_files_and_not_of_where_they_lie(tmp_path, numbered):
    for name in ("train/x/a.avi", "train/y/b.avi", "test/x/c.avi"):
        numbered.write(tmp_path / "here" / name, frames=12)
    first = _open(tmp_path / "here").digest()
    assert _open(tmp_path / "here").digest() == first
    (tmp_path / "here").rename(tmp_path / "there")
    assert _open(tmp_path / "there").digest() == first
    seen = {first}
    os.utime(tmp_path / "there/train/x/a.avi", (1, 1))
    seen.add(_open(tmp_path / "there").digest())
    (tmp_path / "there/train/x/a.avi").rename(tmp_path / "there/train/y/a.avi")
    seen.add(_open(tmp_path / "there").digest())
    (tmp_path / "there/train/y/b.avi").unlink()
    seen.add(_open(tmp_path / "there").digest())
    assert len(seen) == 4


# -------------------------------------------------------------------------------------------------------- what is wrong


def test_short_and_bad_videos_are_left_out_and_counted(tmp_path, numbered):
    for number, frames in enumerate((3, 40, 9, 41)):
        numbered.write(tmp_path / f"train/{number}.avi", frames=frames)
    (tmp_path / "train/bad.avi").write_text("no video")
    numbered.write(tmp_path / "test/t.avi", frames=10)
    dataset = _open(tmp_path, stride=4)
    assert len(dataset) == 2
    assert dataset.notes[0] == "train: 2 videos; split: folder names"
    assert dataset.notes[1].startswith("1 of 5 videos cannot be read (first: train/bad.avi: not a readable video")
    assert dataset.notes[2] == "too short for 4 frames at stride 4: 2 of 5 videos"


def test_when_every_video_is_too_short_the_needed_and_the_longest_are_named(tmp_path, numbered):
    numbered.write(tmp_path / "a.avi", frames=9)
    numbered.write(tmp_path / "b.avi", frames=8)
    with pytest.raises(InputError, match=r"16 frames: 16 frames are needed, the longest \(.\.avi\) has [89] at 25 fps"):
        _open(tmp_path, frames=16)
    with pytest.raises(InputError, match=r"16 frames at 8 fps: 48 frames are needed, the longest"):
        _open(tmp_path, frames=16, fps=8)


def test_when_no_video_can_be_read_or_the_split_is_empty(tmp_path, numbered):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.avi").write_text("no video")
    numbered.write(tmp_path / "test/b.avi", frames=9)
    with pytest.raises(InputError, match=r"none of the 1 videos can be read \(first: train/a\.avi: not a readable"):
        _open(tmp_path)
    (tmp_path / "train/a.avi").unlink()
    with pytest.raises(InputError, match="no video is in the train split"):
        _open(tmp_path)
    with pytest.raises(InputError, match="size 0"):
        _open(tmp_path, "test", size=0)


def test_a_video_that_breaks_later_is_replaced_in_training_and_named_in_evaluation(numbered_folder, caplog):
    dataset = _open(numbered_folder)
    evaluation = _open(numbered_folder, training=False)
    (numbered_folder / "train/x/a.avi").write_text("overwritten")
    first, again = dataset[0, 3], dataset[0, 3]
    assert torch.equal(first["clip"], again["clip"])
    assert first["clip"].shape == (3, 4, 32, 32)
    assert caplog.text.count("x/a.avi: not a readable video") == 1
    with pytest.raises(VideoError, match=r"x/a\.avi: not a readable video"):
        evaluation[0]
    assert evaluation[1]["clip"].shape == (3, 4, 32, 32)
    (numbered_folder / "train").rename(numbered_folder / "moved")
    with pytest.raises(InputError, match="do not decode; was the folder moved"):
        dataset[0]


def test_a_truncated_video_is_used_up_to_where_it_ends(tmp_path, numbered):
    for name in ("a.avi", "b.avi"):
        path = numbered.write(tmp_path / name, frames=100, size=(64, 64), options={"g": "12"})
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])
    dataset = _open(tmp_path)
    length = len(read_video(tmp_path / "a.avi"))
    assert 10 < length < 100
    for draw in range(20):
        numbers = numbered.read(to_video(dataset[0, draw]["clip"])[:3])
        assert np.diff(numbers).tolist() == [1, 1]


# ----------------------------------------------------------------------------------------------------------- real clips


def test_real_ucf101(real_data):
    dataset = _open(real_data / "ucf101-mini", "test", fps=8, frames=16, size=64)
    assert (len(dataset), len(dataset.classes)) == (9, 101)
    assert dataset.notes[1:] == ("13309 listed videos are absent",)
    rates = {round(float(dataset[index]["fps"]), 2) for index in range(9)}
    assert rates <= {8.03, 7.98, 7.97}  # 15 steps of 3.125 (25 fps) or 3.746 (29.97 fps) frames, in whole frames
    assert dataset.classes[dataset[0]["class_label"]] == "Basketball"


def test_real_sky_timelapse(real_data):
    dataset = _open(real_data / "sky-mini", frames=16, size=64)
    assert len(dataset) == 29
    item = dataset[0]
    assert (item["clip"].shape, item["class_label"], item["fps"]) == ((3, 16, 64, 64), 0, 25)
    video = to_video(item["clip"]).astype(float)
    near = np.abs(video[1:] - video[:-1]).mean()
    far = np.abs(video[8:] - video[:-8]).mean()
    assert near < far  # frames are in order: clouds drift away from where they were
    assert video[..., 2].mean() > video[..., 0].mean()  # skies are blue: the channels are in order
