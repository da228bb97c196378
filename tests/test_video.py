"""Reading and writing: every frame is told by the number it shows; colours against the closed form of BT.601."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vqvdm.decode import VIDEO_SUFFIXES, _from_key, frame_images
from vqvdm.errors import InputError
from vqvdm.files import check_writable
from vqvdm.video import (
    VideoError,
    _in_ascii,
    grid,
    probe,
    read_frames,
    read_video,
    sheet,
    to_clip,
    to_video,
    write_sheet,
    write_video,
)

FORMATS = [
    ("a.avi", "mpeg4", {"g": "12"}),
    ("a.mp4", "libx264", {"g": "30", "bf": "3"}),
    ("a.mov", "libx264", {"g": "250", "bf": "2"}),
    ("a.mkv", "libx264", {"g": "16", "x264-params": "open-gop=1:bframes=3"}),
    ("a.webm", "libvpx-vp9", {"cpu-used": "8", "deadline": "realtime", "g": "20"}),
    ("a.gif", "gif", {}),
]


def _write(numbered, path: Path, codec: str, options: dict[str, str], **more) -> Path:
    return numbered.write(path, codec=codec, options=options, pix_fmt="rgb8" if codec == "gif" else "yuv420p", **more)


@pytest.mark.parametrize(("name", "codec", "options"), FORMATS)
def test_every_window_of_every_format_holds_the_frames_asked(tmp_path, numbered, name, codec, options):
    fps = 25 if codec == "gif" else 30000 / 1001
    path = _write(numbered, tmp_path / name, codec, options, frames=120, fps=fps)
    info = probe(path)
    assert (info.frames, info.height, info.width, info.times, info.note) == (120, 48, 64, None, "")
    assert info.fps == pytest.approx(fps, rel=1e-9)
    assert info.seconds == pytest.approx(120 / fps)
    assert info.seekable == (path.suffix not in (".avi", ".gif"))
    assert numbered.read(read_video(path)) == list(range(120))
    assert numbered.read(read_video(path, start=7, count=5, stride=3)) == [7, 10, 13, 16, 19]
    for start in range(0, 116, 5):  # sought where the container allows it
        wanted = [start, start + 1, start + 1, start + 4]
        assert numbered.read(read_frames(path, wanted, info)) == wanted


def test_avi_is_decoded_from_its_key_frames(tmp_path, numbered):
    path = _write(numbered, tmp_path / "a.avi", "mpeg4", {"g": "12"}, frames=60)
    info, whole = probe(path), read_video(path)
    assert info.keys[0] == 0
    assert len(info.keys) >= 5
    for start in range(60):
        assert np.array_equal(read_frames(path, [start], info)[0], whole[start])
        first, _ = next(_from_key(path, info.keys, start))
        assert first == max(key for key in info.keys if key <= start)  # nothing before it is decoded


def test_frames_that_depend_on_later_ones_are_decoded_from_the_start(tmp_path, numbered):
    path = _write(numbered, tmp_path / "a.avi", "mpeg4", {"g": "12", "bf": "2"}, frames=60)
    info = probe(path)
    assert info.keys == ()
    for start in (0, 11, 12, 13, 59):
        assert numbered.read(read_frames(path, [start], info)) == [start]


def test_where_no_key_frame_leads_on_decoding_is_from_the_start(tmp_path, numbered, monkeypatch):
    path = _write(numbered, tmp_path / "a.avi", "mpeg4", {"g": "12"}, frames=60)
    monkeypatch.setattr("vqvdm.decode._from_key", lambda *_: iter([]))
    assert numbered.read(read_frames(path, [30, 31], probe(path))) == [30, 31]


def test_real_avi_files_are_the_same_from_any_key_frame(real_data):
    path = sorted((real_data / "ucf101-mini").rglob("*.avi"))[0]
    info, whole = probe(path), read_video(path)
    assert len(info.keys) > 5
    for start in range(0, info.frames, 7):
        assert np.array_equal(read_frames(path, [start], info)[0], whole[start])


def test_a_seek_that_lands_too_late_is_answered_from_the_start(tmp_path, numbered, monkeypatch):
    path = numbered.write(tmp_path / "a.mp4", frames=100, codec="libx264", options={"g": "10"})
    info = probe(path)
    opened = []
    real_open = av.open
    monkeypatch.setattr(av, "open", lambda *args, **kwargs: opened.append(1) or real_open(*args, **kwargs))
    assert numbered.read(read_frames(path, [60], info)) == [60]
    assert len(opened) == 1
    monkeypatch.setattr("vqvdm.decode._sought", lambda *_: iter([(61, None)]))
    assert numbered.read(read_frames(path, [60], info)) == [60]


def test_uneven_times_come_from_the_stamps(tmp_path, numbered):
    stamps = [0, 1, 2, 5, 6, 7, 12, 13]
    path = numbered.write(tmp_path / "a.mp4", frames=8, fps=10, codec="libx264", stamps=stamps)
    info = probe(path)
    np.testing.assert_allclose(info.frame_times(), np.array(stamps) / 10, atol=1e-4)
    assert info.fps == pytest.approx(7 / 1.3, rel=1e-3)
    assert numbered.read(read_video(path)) == list(range(8))


def test_a_header_rate_that_the_stamps_contradict_is_not_believed(tmp_path, numbered):
    path = numbered.write(tmp_path / "a.mkv", frames=10, fps=25, codec="libx264", stamps=list(range(0, 20, 2)))
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 25
    info = probe(path)
    assert (info.fps, info.times) == (pytest.approx(12.5), None)


def test_gif_delays_are_honoured(tmp_path):
    images = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (0, 80, 160, 240)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[40, 100, 200, 40])
    np.testing.assert_allclose(probe(tmp_path / "a.gif").frame_times(), [0, 0.04, 0.14, 0.34], atol=1e-6)
    assert read_video(tmp_path / "a.gif")[:, 8, 8, 0].tolist() == pytest.approx([0, 80, 160, 240], abs=2)


@pytest.mark.parametrize(
    ("pix_fmt", "codec"), [("yuvj420p", "mjpeg"), ("yuv420p10le", "libx265"), ("yuv444p", "libx264")]
)
def test_unusual_pixel_formats_give_the_same_rgb(tmp_path, pix_fmt, codec):
    colour = np.array([200, 60, 30], np.uint8)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        options = {"x265-params": "log-level=none:lossless=1"} if codec == "libx265" else {"crf": "1", "qmin": "1"}
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height = stream.width = 64
        stream.pix_fmt = pix_fmt
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.broadcast_to(colour, (64, 64, 3)).copy(), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = read_video(tmp_path / "a.mkv")
    assert found.shape == (3, 64, 64, 3)
    np.testing.assert_allclose(found[1, 32, 32].astype(int), colour.astype(int), atol=4)


@pytest.mark.parametrize("short_side", [None, 32])
def test_colours_follow_bt601(tmp_path, short_side):
    y, cb, cr = 120, 90, 170
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        frame = av.VideoFrame(64, 48, "yuv420p")
        for plane, level in zip(frame.planes, (y, cb, cr), strict=True):
            plane.update(bytes([level]) * plane.buffer_size)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    luma, blue, red = (y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    rgb = 255 * np.array([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue])
    found = read_frames(tmp_path / "a.mkv", [0], short_side=short_side)[0]
    np.testing.assert_allclose(found.reshape(-1, 3), np.broadcast_to(rgb, (found.size // 3, 3)), atol=1)


def test_resizing_is_antialiased_as_in_pillow(real_data):
    path = sorted(real_data.glob("ucf101-mini/UCF-101/Basketball/*.avi"))[0]
    full = read_video(path, count=2)
    ours = read_frames(path, [0, 1], short_side=64)
    assert ours.shape == (2, 64, 85, 3)
    theirs = np.stack([np.asarray(Image.fromarray(f).resize((85, 64), Image.Resampling.BICUBIC)) for f in full])
    assert np.abs(ours.astype(int) - theirs).mean() < 1  # sampling without a filter differs by 6 on this clip
    assert abs((ours.astype(int) - theirs).mean()) < 0.1


def test_phone_videos_stand_upright(tmp_path):
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :32] = 255  # stored: the left half is white
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        # ISO 14496-12, 8.3.2: x' = -y, y' = x (y downwards), a quarter turn clockwise: the left side comes to the top
        stream.set_display_matrix([0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30])
        container.mux([*stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")), *stream.encode(None)])
    assert (probe(tmp_path / "a.mp4").height, probe(tmp_path / "a.mp4").width) == (64, 32)
    for frame in (read_video(tmp_path / "a.mp4")[0], read_frames(tmp_path / "a.mp4", [0], short_side=32)[0]):
        assert frame.shape == (64, 32, 3)
        assert frame[4].mean() > 240
        assert frame[-4].mean() < 15


# -------------------------------------------------------------------------------------------------------- frame folders


def test_frames_are_ordered_by_their_last_number_in_any_format(tmp_path, numbered):
    video = numbered.make(6)
    names = ["v_2_frames_8.jpg", "v_2_frames_9.PNG", "v_2_frames_10.bmp", "v_2_frames_11.JPEG", "v_1_frames_12.ppm"]
    names.append("v_2_frames_00000100.webp")
    for name, image in zip(names, video, strict=True):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "readme_99.txt").write_text("no frame")
    assert [path.name for path in frame_images(tmp_path)] == names
    assert probe(tmp_path).frames == 6
    assert numbered.read(read_video(tmp_path, start=1, stride=2)) == [1, 3, 5]
    assert read_frames(tmp_path, [0, 0, 5], short_side=24).shape == (3, 24, 32, 3)


def test_frame_folder_with_a_truncated_a_broken_or_an_odd_image(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"{number}.jpg")
    whole = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(whole[: len(whole) // 2])
    assert probe(tmp_path).note == "1 images are cut short"
    assert read_video(tmp_path).shape == (3, 64, 64, 3)
    (tmp_path / "1.jpg").write_bytes(b"not an image")
    with pytest.raises(VideoError, match=r"1\.jpg is not a readable image"):
        probe(tmp_path)
    Image.new("RGB", (32, 64)).save(tmp_path / "1.jpg")
    with pytest.raises(VideoError, match=r"different sizes: 64x64 \(0\.jpg\), 32x64 \(1\.jpg\)"):
        probe(tmp_path)


# -------------------------------------------------------------------------------------------------------- damaged files


def test_missing_empty_and_garbage_files_say_what_is_wrong(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.avi").write_text("hello\n" * 100)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(4000))
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux([*stream.encode(frame), *stream.encode(None)])
    for name, reason in {
        "absent.mp4": "no such file",
        "empty.mp4": "the file is empty",
        "text.avi": "not a readable video",
        "noise.mp4": "not a readable video",
        "sound.mp4": "holds no video stream",
    }.items():
        for read in (probe, read_video):
            with pytest.raises(VideoError, match=rf"{name}: {reason}") as caught:
                read(tmp_path / name)
            assert isinstance(caught.value, InputError)


def test_a_truncated_avi_gives_the_frames_it_has(tmp_path, numbered):
    path = numbered.write(tmp_path / "a.avi", frames=60)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    info = probe(path)
    assert 5 <= info.frames < 60
    assert "the header states 60 frames" in info.note
    assert not info.seekable
    assert numbered.read(read_video(path))[: info.frames - 1] == list(range(info.frames - 1))
    with pytest.raises(VideoError, match=r"a\.avi: frame \d+ does not decode"):
        read_video(path, count=60)


def test_a_truncated_mp4_is_refused(tmp_path, numbered):
    path = numbered.write(tmp_path / "a.mp4", frames=30, codec="libx264")
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(VideoError, match=r"a\.mp4: "):
        probe(path)


def test_damaged_packets_are_passed_over_and_counted_alike_by_both_readers(tmp_path, numbered):
    path = numbered.write(tmp_path / "a.mkv", frames=60, codec="libx264", options={"g": "10"})
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(1)
    for place in rng.integers(len(data) // 3, len(data) * 2 // 3, 60):
        data[place] = rng.integers(256)
    path.write_bytes(data)
    info = probe(path)
    assert len(read_video(path)) == info.frames
    assert not info.seekable or info.note == ""


def test_metadata_that_is_not_utf8_does_not_matter(tmp_path, numbered):
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "XXXXXXXX"
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for image in numbered.make(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"XXXXXXXX", b"\xff\xfe\xe9\xe8\xc0\xc1\xf5\xf8"))
    assert probe(path).frames == 3


def test_wrong_ranges_are_refused(tmp_path, numbered):
    path = numbered.write(tmp_path / "a.avi", frames=5)
    with pytest.raises(InputError, match="stride 0"):
        read_video(path, stride=0)
    with pytest.raises(VideoError, match="has no frame 5"):
        read_video(path, start=5)


# -------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("fps", [8.0, 7.5, 30000 / 1001])
def test_written_videos_keep_frames_rate_and_comment(tmp_path, numbered, suffix, fps):
    path = tmp_path / "new" / f"a{suffix}"
    write_video(path, numbered.make(12), fps, metadata={"ai_generated": True, "seed": 3})
    assert probe(path).fps == pytest.approx(fps, rel=1e-9)
    assert numbered.read(read_video(path)) == list(range(12))
    with av.open(str(path)) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
    assert json.loads(tags["comment"]) == {"ai_generated": True, "seed": 3}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_written_colours_come_back(tmp_path):
    colours = np.array([(128, 128, 128), (200, 50, 30), (255, 255, 255), (0, 0, 0), (30, 60, 220)], np.uint8)
    video = np.broadcast_to(colours[:, None, None], (5, 48, 64, 3)).copy()
    for suffix in (".mp4", ".webm"):
        write_video(tmp_path / f"a{suffix}", video, 8)
        found = read_video(tmp_path / f"a{suffix}")[:, 24, 32]
        np.testing.assert_allclose(found.astype(int), colours.astype(int), atol=3)


@pytest.mark.parametrize(("suffix", "size"), [(".mp4", (34, 52)), (".webm", (33, 51)), (".gif", (33, 51))])
def test_odd_sizes(tmp_path, numbered, suffix, size):
    write_video(tmp_path / f"a{suffix}", numbered.make(3, 33, 51), 8)
    assert read_video(tmp_path / f"a{suffix}").shape == (3, *size, 3)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_keep_their_mean_rate_and_comment(tmp_path, numbered, suffix):
    path = tmp_path / f"a{suffix}"
    write_video(path, numbered.make(24), 12, metadata={"seed": 3})  # 83.3 ms a frame
    delays = []
    with Image.open(path) as image:
        assert image.n_frames == 24
        comment = image.info["comment"].decode() if suffix == ".gif" else image.getexif()[0x010E]
        for number in range(24):
            image.seek(number)
            image.load()
            delays.append(image.info["duration"])
            assert numbered.read(np.asarray(image.convert("RGB"))[None]) == [number]
    assert sum(delays) == pytest.approx(2000, abs=10)
    assert json.loads(comment) == {"seed": 3}


def test_png_is_a_row_of_all_frames(tmp_path, numbered):
    write_video(tmp_path / "a.png", numbered.make(5), 8, metadata={"seed": 3})
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (5 * 66 - 2, 48)
        assert json.loads(image.text["Comment"]) == {"seed": 3}


def test_what_cannot_be_written_is_refused(tmp_path, numbered):
    video = numbered.make(3)
    with pytest.raises(InputError, match=r"unknown video format '\.flv'"):
        write_video(tmp_path / "a.flv", video, 8)
    with pytest.raises(InputError, match="fps 0"):
        write_video(tmp_path / "a.mp4", video, 0)
    with pytest.raises(InputError, match=r"not float64 \(3, 48, 64, 3\)"):
        write_video(tmp_path / "a.mp4", video / 255, 8)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/a\.mp4: cannot be written"):
        write_video(tmp_path / "file" / "a.mp4", video, 8)


def test_a_folder_is_tried_without_leaving_a_trace(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "folder")
    check_writable(tmp_path)
    monkeypatch.chdir(tmp_path)
    check_writable("samples")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "dangling").symlink_to("nowhere")
    places = ["dangling", *(["/proc/nothing"] if Path("/proc").exists() else [])]  # not even root makes a file there
    for place in places:
        with pytest.raises(InputError, match=f"^{place}: files cannot be written there"):
            check_writable(place)


def test_a_full_disk_leaves_the_old_file_and_no_half_written_one(tmp_path, numbered):
    """A file-size limit of the operating system stands for the full disk: the write fails after 1 kB."""
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    code = """
import sys, resource, signal, numpy as np
from vqvdm.errors import InputError
from vqvdm.video import write_video
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
video = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
try:
    write_video(sys.argv[1], video, 8)
except InputError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert result.stdout.startswith(f"no room on the disk for {path} (")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.mp4"]


# ------------------------------------------------------------------------------------------------------------- pictures


def test_video_to_clip_and_back_is_exact():
    video = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1).repeat(3, axis=-1)
    clip = to_clip(video)
    assert clip.shape == (3, 4, 8, 8)
    assert clip.dtype == torch.float32
    assert (clip.min().item(), clip.max().item()) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_video(clip), video)
    np.testing.assert_array_equal(to_video(clip.double()), video)
    assert to_video(torch.full((3, 1, 1, 1), 1.7)).tolist() == [[[[255, 255, 255]]]]
    assert to_video(torch.full((3, 1, 1, 1), -9.0)).tolist() == [[[[0, 0, 0]]]]


def test_grid_places_each_video_and_holds_the_last_frame():
    videos = [np.full((length, 4, 6, 3), level, np.uint8) for length, level in ((3, 10), (2, 20), (1, 30))]
    videos[1][1] = 25
    out = grid(videos, columns=2, pad=2)
    assert out.shape == (3, 10, 14, 3)
    assert (out[:, :4, :6] == 10).all()
    assert out[:, 0, 8, 0].tolist() == [20, 25, 25]
    assert (out[:, 6:, :6] == 30).all()
    assert (out[:, 4:6] == 255).all()
    assert (out[:, 6:, 8:] == 255).all()
    with pytest.raises(InputError, match="one size"):
        grid([videos[0], np.zeros((1, 5, 5, 3), np.uint8)], 2)


def test_sheet_shows_frames_left_to_right_with_labels(tmp_path, numbered):
    video = numbered.make(15)
    image = sheet([video, video[:3]], frames=8)
    assert image.shape == (98, 8 * 66 - 2, 3)
    shown = [numbered.read(image[None, :48, 66 * k : 66 * k + 64])[0] for k in range(8)]
    assert shown == [0, 2, 4, 6, 8, 10, 12, 14]
    assert (image[50:, 3 * 66 :] == 255).all()
    labelled = sheet([video, video[:3]], ["left", "a longer label"], frames=8)
    np.testing.assert_array_equal(labelled[:, -image.shape[1] :], image)
    assert (labelled[:48, : -image.shape[1]] < 128).any()
    write_sheet(tmp_path / "s.png", [video], ["x"])
    with Image.open(io.BytesIO((tmp_path / "s.png").read_bytes())) as stored:
        assert stored.format == "PNG"


def test_a_sheet_enlarges_small_frames_by_whole_pixels(tmp_path):
    video = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), np.uint8)
    image = sheet([video], frames=2)
    assert image.shape == (60, 2 * 72 + 2, 3)  # 3 x 20 is the most that fits into 64
    np.testing.assert_array_equal(image[1::3, 1:72:3], video[0])
    np.testing.assert_array_equal(image[::3, 74::3], video[1])
    write_video(tmp_path / "row.png", video, 8)  # a row of frames is data: as it is
    with Image.open(tmp_path / "row.png") as row:
        np.testing.assert_array_equal(np.asarray(row)[:, :24], video[0])


def test_real_clips_hold_what_their_headers_say(real_data):
    """These eleven have honest headers: frame count and microseconds a frame of the main AVI header, read by hand."""
    paths = sorted(real_data.glob("ucf101-mini/UCF-101/*/*.avi"))
    assert len(paths) == 11
    for path in paths:
        head = path.read_bytes()[:200]
        place = head.index(b"avih") + 8
        microseconds, frames = struct.unpack_from("<I", head, place)[0], struct.unpack_from("<I", head, place + 16)[0]
        info = probe(path)
        assert (info.frames, info.height, info.width, info.note) == (frames, 240, 320, "")
        assert info.fps == pytest.approx(1e6 / microseconds, rel=1e-4)
        assert info.fps in (25.0, 30000 / 1001)


def test_worker_answers_line_by_line(tmp_path, numbered):
    good = numbered.write(tmp_path / "a.avi", frames=5)
    bad = tmp_path / "b.avi"
    shutil.copy(__file__, bad)
    asked = "".join(json.dumps(str(path)) + "\n" for path in (good, bad, good))
    result = subprocess.run(
        [sys.executable, "-m", "vqvdm.decode"], input=asked, capture_output=True, text=True, check=True
    )
    first, second, third = map(json.loads, result.stdout.splitlines())
    assert first == third
    assert first["info"]["frames"] == 5
    assert second["error"].startswith("not a readable video")


@pytest.mark.parametrize("side", [16, 32])
def test_small_videos_are_the_same_file_every_time(tmp_path, side):
    """Whatever lay in the memory before. (With x264's macroblock tree one file in a hundred was another.)"""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (16, side, side, 3), np.uint8)
    found = set()
    for _ in range(150):
        rubbish = [np.full(rng.integers(10, 400_000), rng.integers(256), np.uint8) for _ in range(20)]
        del rubbish[::2]
        write_video(tmp_path / "a.mp4", video, 8)
        found.add((tmp_path / "a.mp4").read_bytes())
    assert len(found) == 1


def test_frames_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    video = np.zeros((4, 32, 48, 3), np.uint8)
    write_video(tmp_path / "video.mp4", video, 8.0)
    (tmp_path / "frames").mkdir()
    Image.fromarray(video[0]).save(tmp_path / "frames" / "0.png")
    assert (probe(tmp_path / "video.mp4").frames, probe(tmp_path / "frames").frames) == (4, 1)
    monkeypatch.setattr("vqvdm.decode.MOST_PIXELS", 32 * 48 - 1)
    for path in (tmp_path / "video.mp4", tmp_path / "frames"):
        with pytest.raises(VideoError, match=rf"{path.name}: frames of 48x32 pixels are too large: 1,535 pixels"):
            probe(path)
    with pytest.raises(VideoError, match="too large"):
        read_video(tmp_path / "video.mp4", count=1)
    monkeypatch.setattr("vqvdm.decode.MOST_PIXELS", 32 * 48)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(VideoError, match=r"0.png is not a readable image"):
        probe(tmp_path / "frames")


def test_frames_that_are_too_narrow_to_be_resized_are_refused(tmp_path):
    Image.new("RGB", (2, 20_000)).save(tmp_path / "narrow.gif")
    (tmp_path / "frames").mkdir()
    Image.new("RGB", (2, 20_000)).save(tmp_path / "frames" / "0.png")
    for path in (tmp_path / "narrow.gif", tmp_path / "frames"):
        with pytest.raises(VideoError, match=r"is 2x20000; resized to a short side of 256, frames of 256x2560000"):
            read_frames(path, [0], short_side=256)
    assert read_frames(tmp_path / "narrow.gif", [0], short_side=4).shape == (1, 40_000, 4, 3)


def test_frames_that_cannot_be_resized_are_told_with_the_reason(tmp_path, monkeypatch):
    write_video(tmp_path / "video.mp4", np.zeros((4, 32, 48, 3), np.uint8), 8.0)

    def refuses(*_, **__):
        raise av.PatchWelcomeError(1, "not yet implemented")

    monkeypatch.setattr("vqvdm.decode._to_rgb", refuses)
    with pytest.raises(VideoError, match=r"video\.mp4: frames cannot be resized to 24x16 \(not yet implemented\)"):
        read_frames(tmp_path / "video.mp4", [0], short_side=16)


def test_a_format_without_a_decoder_is_named(tmp_path):
    drawing = tmp_path / "drawing.mp4"
    drawing.write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>")
    with pytest.raises(VideoError, match=r"drawing.mp4: (there is no decoder|not a readable video)"):
        probe(drawing)


@pytest.mark.parametrize(
    ("name", "form", "codec", "rate"),
    [
        ("a.mpg", "mpeg", "mpeg1video", 25),
        ("a.wmv", "asf", "wmv2", 8),
        ("a.flv", "flv", "flv", 8),
        ("a.mts", "mpegts", "mpeg2video", 25),
        ("a.3gp", "3gp", "mpeg4", 8),
    ],
)
def test_older_containers_are_read_whole_and_in_order(tmp_path, name, form, codec, rate):
    assert Path(name).suffix in VIDEO_SUFFIXES
    levels = np.linspace(30, 220, 40).astype(np.uint8)
    with av.open(str(tmp_path / name), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 2_000_000
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    info = probe(tmp_path / name)
    assert (info.frames, info.width, info.height) == (40, 64, 48)
    assert info.fps == pytest.approx(rate, rel=0.03)  # MPEG's program stream stamps one frame late
    wanted = [3, 20, 39]
    found = read_frames(tmp_path / name, wanted, info).mean(axis=(1, 2, 3))
    assert np.abs(found - levels[wanted]).max() < 4


def test_labels_of_sheets_are_spelt_in_letters_that_the_font_has():
    assert _in_ascii("Müde Geste, Großes Ÿ") == "Mude Geste, Grosses Y"
    assert _in_ascii("手a") == "?a"
