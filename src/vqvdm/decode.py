"""Video files -> videos: what a file really holds (`probe`), and its frames (`read_video`, `read_frames`).

Files are decoded with PyAV (FFmpeg), frame folders with Pillow. What a header says of length and rate is often wrong,
so both are taken from the frames that decode. A *video on disk* is a file, or a folder that directly holds images.

`python -m vqvdm.decode` reads paths (a JSON string a line) from standard input and answers each with a line of JSON:
the workers of `vqvdm.data.index`. So nothing here imports torch.
"""

from __future__ import annotations

import io
import json
import os
import re
import statistics
import sys
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from vqvdm.errors import InputError

VIDEO_SUFFIXES = frozenset(
    {".avi", ".mp4", ".m4v", ".webm", ".mov", ".mkv", ".gif"}
    | {".mpg", ".mpeg", ".wmv", ".3gp", ".flv", ".ogv", ".mts", ".m2ts"}
)
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp"})
# Names and comments in old files are often not UTF-8; they must not keep the pictures from being read. From 19 on PyAV
# sees to it by itself.
_PERMISSIVE: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
FOLDER_FPS = 25.0  # frame folders carry no rate; 25 is what the public loaders of Sky Time-lapse assume

MOST_PIXELS = 50_000_000  # of a frame; a file of a few kilobytes may claim to hold many more

# Containers whose index can be trusted; AVI's cannot (packed B-frames, odd first stamps).
_SEEKABLE = ("mp4", "matroska")
# Codecs of which a key frame needs nothing that came before it, nor does what follows it.
_INDEPENDENT = ("mpeg4", "mjpeg")
_SEEK_FROM = 32  # nearer frames are reached as fast by decoding
# The last flag keeps unscaled frames right: without it FFmpeg's quick path makes them up to two levels too dark.
_RESIZE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

Video = NDArray[np.uint8]  # (t, h, w, 3) RGB, 0..255
_Numbered = tuple[int, av.VideoFrame]


class FileSlice(io.RawIOBase):
    """A video that lies within another file, such as a tar; read-only.

    Args:
        file: open for reading, without a buffer; the slice owns it and closes it.
        offset, length: the bytes of it that are the video.
        name: the video's; its ending helps FFmpeg to know the format, and messages show it.
    """

    def __init__(self, file: IO[bytes], offset: int, length: int, name: str) -> None:
        self.name = name
        self._file, self._offset, self._length, self._place = file, offset, length, 0

    def __str__(self) -> str:
        return f"{self._file.name}: {self.name}"

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._length}[whence]
        if begin + offset < 0:
            raise OSError(f"{self}: no place {begin + offset}")  # it would lie in another video
        self._place = begin + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        wanted = memoryview(buffer)[: max(self._length - self._place, 0)]
        self._file.seek(self._offset + self._place)
        read: int = cast(io.RawIOBase, self._file).readinto(wanted) or 0
        self._place += read
        return read

    def close(self) -> None:
        self._file.close()
        super().close()


_File = Path | FileSlice


class VideoError(InputError):
    """A file that cannot be read as a video; the message is "path: reason"."""

    def __init__(self, path: str | _File, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return VideoError, (self.path, self.reason)


@dataclass(frozen=True)
class VideoInfo:
    """What a video really holds, found by decoding it.

    `times` are the seconds of each frame after the first, None if frames are evenly spaced at `fps`. `start` is the
    first frame's stamp in the file's clock (seconds). `keys` are frames at which decoding can begin, known of files
    whose every packet is one frame, in the order shown. `note` tells of damage that leaves the video usable.
    """

    frames: int
    fps: float
    height: int
    width: int
    start: float = 0.0
    times: tuple[float, ...] | None = None
    seekable: bool = False
    keys: tuple[int, ...] = ()
    note: str = ""

    @property
    def seconds(self) -> float:
        """Duration, the last frame's included."""
        return float(self.frame_times()[-1]) + 1 / self.fps

    def frame_times(self) -> NDArray[np.float64]:
        """Seconds of each frame after the first: (frames,), not decreasing."""
        if self.times is None:
            return np.arange(self.frames) / self.fps
        return np.asarray(self.times, dtype=np.float64)


def probe(path: str | Path) -> VideoInfo:
    """Decode the video at `path` (file or frame folder) and report what it holds.

    Raises VideoError if the file is missing or no frame of it decodes.
    """
    path = Path(path)
    if path.is_dir():
        return _probe_folder(path)
    stamps: list[float | None] = []
    damage: list[str] = []
    height = width = 0
    with _open(path) as container:
        stream = container.streams.video[0]
        header_rate = stream.average_rate or stream.guessed_rate
        header_frames = stream.frames
        keys: list[int] | None = []
        for number, (is_key, frames) in enumerate(_packets(container, damage)):
            stamps += [frame.time for frame in frames]
            if frames and not height:
                height, width = _upright_size(frames[0])
            if keys is not None and len(stamps) == number + 1:
                keys += [number] if is_key else []
            elif frames:  # not one at a time
                keys = None
        name = container.format.name
        independent = stream.codec_context.name in _INDEPENDENT
    if not stamps:
        raise VideoError(path, "no frame decodes" + (f" ({damage[0]})" if damage else ""))
    fps, times, trouble = _timing(stamps, float(header_rate) if header_rate else None)
    notes = [f"{len(damage)} damaged packets ({damage[0]})"] if damage else []
    if header_frames > len(stamps) + 1:  # off by one is common and harmless
        notes.append(f"the header states {header_frames} frames, {len(stamps)} decode")
    notes += [trouble] if trouble else []
    seekable = not damage and not trouble and any(container in name for container in _SEEKABLE)
    starts = tuple(keys or ()) if independent and not seekable and not damage else ()
    return VideoInfo(len(stamps), fps, height, width, stamps[0] or 0.0, times, seekable, starts, "; ".join(notes))


def read_video(path: str | Path, start: int = 0, count: int | None = None, stride: int = 1) -> Video:
    """Frames start, start + stride, ... of the video at `path`, uint8 (t, h, w, 3) RGB.

    `count` is the number of frames returned, None all that follow. Raises VideoError if the file cannot be read or
    holds fewer frames.
    """
    path = Path(path)
    if start < 0 or stride < 1 or (count is not None and count < 1):
        raise InputError(f"start {start}, count {count}, stride {stride}: start must be >= 0, count and stride >= 1")
    if count is None:
        count = max(0, -(-(probe(path).frames - start) // stride))
        if count == 0:
            raise VideoError(path, f"has no frame {start}")
    return read_frames(path, [start + k * stride for k in range(count)])


def read_frames(
    path: str | _File, indices: Sequence[int], info: VideoInfo | None = None, short_side: int | None = None
) -> Video:
    """The frames at `indices` (not decreasing, repeats allowed), uint8 (t, h, w, 3) RGB.

    `path` is a file, a frame folder, or a `FileSlice`, which stays open. `info` (from `probe`) lets a distant start be
    sought where the container allows it. With `short_side` (pixels) every frame is resized, antialiased, to that short
    side, the other in proportion. Raises VideoError as `read_video`.
    """
    path = path if isinstance(path, FileSlice) else Path(path)
    assert len(indices) > 0 <= indices[0], indices
    assert all(a <= b for a, b in pairwise(indices)), indices
    if isinstance(path, Path) and path.is_dir():
        return _read_folder(path, indices, short_side)
    found: list[Video] = []
    if info is not None and info.seekable and indices[0] > _SEEK_FROM:
        found = _collect(path, _sought(path, info, indices[0]), indices, short_side)
    elif info is not None and info.keys:
        found = _collect(path, _from_key(path, info.keys, indices[0]), indices, short_side)
    if len(found) < len(indices):
        found = _collect(path, _sequence(path), indices, short_side)
    if len(found) < len(indices):
        raise VideoError(path, f"frame {indices[len(found)]} does not decode")
    return np.stack(found)  # (t, h, w, 3)


def frame_images(folder: str | Path) -> list[Path]:
    """The images directly in `folder`, in the order of the last integer in each name (numbers start anywhere)."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES]
    return [Path(folder, name) for name in sorted(names, key=_frame_key) if not name.startswith(".")]


def _frame_key(name: str) -> tuple[int, str]:
    numbers = re.findall(r"\d+", os.path.splitext(name)[0])
    return (int(numbers[-1]) if numbers else -1, name)


def _open(path: _File) -> InputContainer:
    options: dict[str, str] = {}
    if isinstance(path, FileSlice):
        path.seek(0)
        options = {"protocol_whitelist": "none"}  # a playlist from elsewhere must not open this machine's files
    elif not path.is_file():
        raise VideoError(path, "no such file")
    elif path.stat().st_size == 0:
        raise VideoError(path, "the file is empty")
    source = path if isinstance(path, FileSlice) else str(path)
    try:
        container = cast(InputContainer, av.open(source, options=options, **_PERMISSIVE))
    except (av.FFmpegError, OSError) as error:
        raise VideoError(path, f"not a readable video ({_reason(error)})") from error
    if not container.streams.video:
        container.close()
        raise VideoError(path, "holds no video stream")
    context = container.streams.video[0].codec_context
    if context is None:  # FFmpeg knows the format and has no decoder of it, such as of SVG
        container.close()
        raise VideoError(path, "there is no decoder for its video stream")
    if excess := _excess(context.width, context.height):
        container.close()
        raise VideoError(path, excess)
    context.options = {"max_pixels": str(MOST_PIXELS)}  # of frames that are larger than the header states
    return container


def _excess(width: int, height: int) -> str:
    """What is wrong with frames of this size; nothing with most."""
    if width * height <= MOST_PIXELS:
        return ""
    return f"frames of {width}x{height} pixels are too large: {MOST_PIXELS:,} pixels are the most that is read"


def _reason(error: BaseException) -> str:
    known = isinstance(error, (av.FFmpegError, OSError)) and error.strerror
    return known or str(error)


def _decode(container: InputContainer, damage: list[str]) -> Iterator[av.VideoFrame]:
    """All frames in the order shown; packets that do not decode are noted in `damage` and passed over."""
    for _, frames in _packets(container, damage):
        yield from frames


def _packets(
    container: InputContainer, damage: list[str], first: int = 0
) -> Iterator[tuple[bool, list[av.VideoFrame]]]:
    """Of each packet from the `first` on whether it is a key frame, and the frames that come out when it goes in."""
    packets = islice(container.demux(container.streams.video[0]), first, None)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:  # the container breaks off: what came before is good
            damage.append(_reason(error))
            packet = None
        if packet is None:
            return
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            damage.append(_reason(error))
            continue
        yield bool(packet.is_keyframe), cast("list[av.VideoFrame]", frames)


def _timing(stamps: Sequence[float | None], header: float | None) -> tuple[float, tuple[float, ...] | None, str]:
    """(frames per second, uneven times or None, what is wrong with the stamps) of one video."""
    known = [stamp for stamp in stamps if stamp is not None]
    steps = [b - a for a, b in pairwise(known)]
    if len(known) < len(stamps) or any(step <= 0 for step in steps):
        forward = [step for step in steps if step > 0]
        fps = 1 / statistics.median(forward) if forward else header or FOLDER_FPS
        return fps, None, "time stamps are missing" if len(known) < len(stamps) else "time stamps go backwards"
    times = [stamp - known[0] for stamp in known]
    measured = (len(times) - 1) / times[-1] if len(times) > 1 else None
    # The header's rate is the exact fraction, where the stamps agree with it; stamps are rounded (WebM: to 1 ms).
    for rate in (header, measured):
        if rate and all(abs(time - k / rate) <= 0.25 / rate for k, time in enumerate(times)):
            return rate, None, ""
    return measured or FOLDER_FPS, tuple(round(time, 6) for time in times), ""


def _sequence(path: _File) -> Iterator[_Numbered]:
    with _open(path) as container:
        yield from enumerate(_decode(container, []))


def _sought(path: _File, info: VideoInfo, first: int) -> Iterator[_Numbered]:
    """Numbered frames from a key frame at or before `first`; each number is found from the frame's time stamp."""
    times = info.frame_times()
    with _open(path) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        try:
            container.seek(int((info.start + times[first]) / stream.time_base), stream=stream)
        except av.FFmpegError:
            return
        damage: list[str] = []
        for frame in _decode(container, damage):
            if frame.time is None or damage:
                return
            yield int(np.abs(times - (frame.time - info.start)).argmin()), frame


def _from_key(path: _File, keys: Sequence[int], first: int) -> Iterator[_Numbered]:
    """Numbered frames from the last key frame at or before `first`: what lies before it is read, but not decoded."""
    key = keys[bisect_right(keys, first) - 1]
    with _open(path) as container:
        damage: list[str] = []
        for number, (_, frames) in enumerate(_packets(container, damage, key), start=key):
            if damage or len(frames) != 1:
                return
            yield number, frames[0]


def _collect(path: _File, frames: Iterator[_Numbered], indices: Sequence[int], short_side: int | None) -> list[Video]:
    """RGB images of the frames numbered `indices`; fewer if the frames end, or begin too late."""
    found: list[Video] = []
    reformatter = VideoReformatter()
    size: tuple[int, int] | None = None
    for number, frame in frames:
        if number > indices[len(found)]:  # a seek went past it
            return []
        if number < indices[len(found)]:
            continue
        size = size or _target_size(path, *_upright_size(frame), short_side)
        try:
            image = _to_rgb(reformatter, frame, size)
        except av.FFmpegError as error:
            raise VideoError(path, f"frames cannot be resized to {size[1]}x{size[0]} ({_reason(error)})") from error
        while len(found) < len(indices) and indices[len(found)] == number:
            found.append(image)
        if len(found) == len(indices):
            return found
    return found


def _upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """(height, width) as shown: phones store portrait videos lying down, with a rotation beside them."""
    return (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)


def _target_size(path: _File, height: int, width: int, short_side: int | None) -> tuple[int, int]:
    if short_side is None:
        return height, width
    scale = short_side / min(height, width)
    size = max(short_side, round(height * scale)), max(short_side, round(width * scale))
    if excess := _excess(size[1], size[0]):  # a file of little size may be very long and narrow
        raise VideoError(path, f"is {width}x{height}; resized to a short side of {short_side}, {excess}")
    return size


def _to_rgb(reformatter: VideoReformatter, frame: av.VideoFrame, size: tuple[int, int]) -> Video:
    turned = frame.rotation % 180 != 0
    height, width = size[::-1] if turned else size
    # swscale widens its filter when shrinking, so this is antialiased. threads=1: loaders run in parallel.
    rgb = reformatter.reformat(frame, width=width, height=height, format="rgb24", interpolation=_RESIZE, threads=1)
    image = cast(Video, rgb.to_ndarray())  # (h, w, 3)
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _probe_folder(folder: Path) -> VideoInfo:
    """Headers only: a data set of frames has millions of them. Every image must be there and of one size."""
    images = frame_images(folder)
    if not images:
        raise VideoError(folder, f"holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    sizes: dict[tuple[int, int], str] = {}
    cut = 0
    for path in images:
        try:
            with Image.open(path) as image:
                sizes.setdefault(image.size, path.name)
                cut += image.format == "JPEG" and not _jpeg_ends(path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise VideoError(folder, f"{path.name} is not a readable image ({_short(error)})") from error
    if len(sizes) > 1:
        found = ", ".join(f"{w}x{h} ({name})" for (w, h), name in sizes.items())
        raise VideoError(folder, f"images of different sizes: {found}")
    (width, height), *_ = sizes
    if excess := _excess(width, height):
        raise VideoError(folder, excess)
    return VideoInfo(len(images), FOLDER_FPS, height, width, note=f"{cut} images are cut short" if cut else "")


def _short(error: BaseException) -> str:
    return "unknown image format" if isinstance(error, UnidentifiedImageError) else _reason(error)


def _jpeg_ends(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-min(64, path.stat().st_size), os.SEEK_END)
        return b"\xff\xd9" in file.read()


def _read_folder(folder: Path, indices: Sequence[int], short_side: int | None) -> Video:
    paths = frame_images(folder)
    if indices[-1] >= len(paths):
        raise VideoError(folder, f"frame {indices[-1]} was asked, it holds {len(paths)}")
    images = {index: _read_image(paths[index], short_side) for index in dict.fromkeys(indices)}
    if len({image.shape for image in images.values()}) > 1:
        raise VideoError(folder, "images of different sizes")
    return np.stack([images[index] for index in indices])  # (t, h, w, 3)


def _read_image(path: Path, short_side: int | None) -> Video:
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    vars(ImageFile)["LOAD_TRUNCATED_IMAGES"] = True  # a frame cut short still shows its upper part
    try:
        with Image.open(path) as image:
            height, width = _target_size(path, image.height, image.width, short_side)
            # JPEG only: decodes at 1/2, 1/4 or 1/8 where that is still large enough; half the time, the same to 52 dB.
            image.draft("RGB", (width, height))
            rgb = image.convert("RGB")
    except VideoError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(path, f"not a readable image ({_short(error)})") from error
    finally:
        vars(ImageFile)["LOAD_TRUNCATED_IMAGES"] = before
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(rgb)


def _serve() -> None:
    warnings.simplefilter("ignore")  # Pillow's remarks on odd images would fill the terminal
    for line in sys.stdin:
        try:
            answer = {"info": asdict(probe(json.loads(line)))}
        except VideoError as error:
            answer = {"error": error.reason}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
