"""Videos <-> files, videos <-> clips, and pictures of videos for the eye.

A *video* is uint8 (t, h, w, c) RGB, 0..255; a *clip* is float (c, t, h, w), -1..1. Reading lies in `vqvdm.decode` and
is offered here too.
"""

from __future__ import annotations

import base64
import io
import json
import unicodedata
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from vqvdm.decode import Video, VideoError, VideoInfo, probe, read_frames, read_video
from vqvdm.errors import InputError
from vqvdm.files import write_bytes

if TYPE_CHECKING:
    import torch

_SMALL = 64  # pixels; x264's macroblock tree reads past narrower frames, and one video was two files, now and then
FORMATS = ("mp4", "webm", "gif", "webp", "png")
SHEET_SIDE = 64  # pixels of height below which a sheet enlarges its frames

__all__ = [
    "FORMATS",
    "SHEET_SIDE",
    "Video",
    "VideoError",
    "VideoInfo",
    "enlarged",
    "grid",
    "probe",
    "read_frames",
    "read_video",
    "sheet",
    "shrunk",
    "strip",
    "to_clip",
    "to_video",
    "write_sheet",
    "write_video",
]

# -------------------------------------------------------------------------------------------------------------- writing


def write_video(path: str | Path, video: Video, fps: float, metadata: Mapping[str, Any] | None = None) -> None:
    """Write `video`, uint8 (t, h, w, 3), at `fps` as .mp4 (H.264), .webm (VP9), .gif, .webp (animated) or .png (a row).

    `metadata` goes into the file as a JSON comment. The file appears only when complete. H.264 needs even sides: an odd
    one gains a repeated row or column. Raises InputError for another suffix or if the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower()[1:] not in FORMATS:
        raise InputError(f"{path}: unknown video format {path.suffix!r}; use .mp4, .webm, .gif, .webp or .png")
    write_bytes(path, encode_video(video, fps, path.suffix.lower()[1:], metadata))


def encode_video(video: Video, fps: float, form: str, metadata: Mapping[str, Any] | None = None) -> bytes:
    """What `write_video` writes; `form` is one of `FORMATS`."""
    _check_video(video)
    if not fps > 0:
        raise InputError(f"fps {fps}: must be above 0")
    comment = None if metadata is None else json.dumps(dict(metadata))
    match form:
        case "mp4" | "webm":
            return _encode(video, fps, form, comment)
        case "gif" | "webp":
            return _encode_animation(video, fps, form, comment)
        case "png":
            return encode_sheet([video], frames=len(video), metadata=metadata, side=0)
    raise InputError(f"unknown video format {form!r}; there are {', '.join(FORMATS)}")


def write_sheet(
    path: str | Path,
    videos: Sequence[Video],
    labels: Sequence[str] | None = None,
    frames: int = 8,
    metadata: Mapping[str, Any] | None = None,
    side: int = SHEET_SIDE,
) -> None:
    """Write `sheet(videos, labels, frames, side)` as PNG, with `metadata` as its comment."""
    write_bytes(Path(path), encode_sheet(videos, labels, frames, metadata, side))


def encode_sheet(
    videos: Sequence[Video],
    labels: Sequence[str] | None = None,
    frames: int = 8,
    metadata: Mapping[str, Any] | None = None,
    side: int = SHEET_SIDE,
) -> bytes:
    """What `write_sheet` writes."""
    info = PngInfo()
    if metadata is not None:
        info.add_text("Comment", json.dumps(dict(metadata)))
    buffer = io.BytesIO()
    Image.fromarray(sheet(videos, labels, frames, side)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _check_video(video: Video) -> None:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise InputError(f"a video is uint8 (t, h, w, 3), not {video.dtype} {video.shape}")


def _encode(video: Video, fps: float, form: str, comment: str | None) -> bytes:
    if form == "mp4":
        video = np.pad(video, ((0, 0), (0, video.shape[1] % 2), (0, video.shape[2] % 2), (0, 0)), mode="edge")
    codec, quality = {
        "mp4": ("libx264", {"crf": "18"}),
        "webm": ("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4"}),
    }[form]
    if form == "mp4" and min(video.shape[1:3]) < _SMALL:
        quality |= {"mbtree": "0"}
    buffer = io.BytesIO()
    movflags = {"movflags": "use_metadata_tags"} if form == "mp4" else {}
    with av.open(buffer, "w", format=form, options=movflags) as container:
        if comment is not None:
            container.metadata["comment"] = comment
        rate = Fraction(fps).limit_denominator(1001)  # 29.97... is 30000/1001 again
        stream = cast(av.VideoStream, container.add_stream(codec, rate=rate, options=quality))
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = 6  # SMPTE 170M, the matrix that swscale uses: said, so that players agree
        stream.codec_context.color_range = 1  # limited ("MPEG")
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _encode_animation(video: Video, fps: float, form: str, comment: str | None) -> bytes:
    unit = 10 if form == "gif" else 1  # ms; delays are rounded so that their sum keeps the rate
    edges = [round(1000 / unit * k / fps) * unit for k in range(len(video) + 1)]
    delays = [max(unit, b - a) for a, b in pairwise(edges)]
    images = [Image.fromarray(image) for image in video]
    options: dict[str, Any] = {"save_all": True, "duration": delays, "loop": 0}
    if form == "gif":
        # One palette for all frames: a palette of its own for each frame flickers.
        palette = Image.fromarray(video.reshape(-1, *video.shape[2:])[:: max(1, len(video) // 16)]).quantize(256)
        images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
        options |= {"comment": comment.encode()} if comment is not None else {}
    else:
        # Whole frames: parts of them pasted over the last one leave trails, and no smaller files.
        options |= {"quality": 90, "method": 4, "kmin": 0, "kmax": 1}
        if comment is not None:
            exif = Image.Exif()
            exif[0x010E] = comment  # ImageDescription
            options["exif"] = exif
    buffer = io.BytesIO()
    images[0].save(buffer, form.upper(), append_images=images[1:], **options)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------------- pictures


def to_clip(video: Video) -> torch.Tensor:
    """uint8 (t, h, w, c) 0..255 -> float32 (c, t, h, w) -1..1."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(video)).permute(3, 0, 1, 2).float().div_(127.5).sub_(1)


def to_video(clip: torch.Tensor) -> Video:
    """float (c, t, h, w) -1..1 -> uint8 (t, h, w, c) 0..255, clamped and rounded to the nearest."""
    scaled = clip.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return scaled.byte().permute(1, 2, 3, 0).contiguous().cpu().numpy()  # a quarter of what floats would move


def grid(videos: Sequence[Video], columns: int, pad: int = 2) -> Video:
    """Videos (t, h, w, 3) of one size side by side, `columns` a row, `pad` white pixels between: (t, H, W, 3).

    Videos shorter than the longest hold their last frame; missing places in the last row are white.
    """
    assert len(videos) > 0 < columns
    height, width = videos[0].shape[1:3]
    if any(video.shape[1:3] != (height, width) for video in videos):
        raise InputError(f"videos of one grid need one size, not {sorted({v.shape[1:3] for v in videos})}")
    length = max(len(video) for video in videos)
    columns = min(columns, len(videos))
    rows = -(-len(videos) // columns)
    shape = (length, rows * (height + pad) - pad, columns * (width + pad) - pad, 3)
    out = np.full(shape, 255, np.uint8)
    for place, video in enumerate(videos):
        y, x = (place // columns) * (height + pad), (place % columns) * (width + pad)
        held = np.minimum(np.arange(length), len(video) - 1)
        out[:, y : y + height, x : x + width] = video[held]
    return out


def enlarged(video: Video, side: int) -> Video:
    """Each pixel repeated as often as its height then fits into `side`, at least once. uint8 (t, h, w, 3)"""
    times = max(1, side // video.shape[1])
    return video.repeat(times, axis=1).repeat(times, axis=2)


def shrunk(video: Video, side: int) -> Video:
    """No more than `side` pixels high, in proportion; antialiased. uint8 (t, h, w, 3)"""
    height, width = video.shape[1:3]
    if height <= side:
        return video
    size = (max(1, round(width * side / height)), side)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in video])


def strip(video: Video) -> str:
    """All frames side by side as a data URL, lossless WebP, for pages that move it on frame by frame."""
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(list(video), axis=1)).save(buffer, "WEBP", lossless=True, quality=20, method=2)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _in_ascii(label: str) -> str:
    """In the letters that Pillow's own font has: accents are left out, what remains unknown is "?"."""
    letters = unicodedata.normalize("NFKD", label.replace("ß", "ss"))
    return "".join(letter if letter.isascii() else "?" for letter in letters if not unicodedata.combining(letter))


def sheet(
    videos: Sequence[Video], labels: Sequence[str] | None = None, frames: int = 8, side: int = SHEET_SIDE
) -> NDArray[np.uint8]:
    """One image, uint8 (H, W, 3): a row a video, `frames` evenly spaced frames left to right, its label at left.

    Frames of less than `side` pixels in height are enlarged by a whole factor.
    """
    assert labels is None or len(labels) == len(videos)
    videos = [enlarged(video, side) for video in videos]
    rows = [video[np.linspace(0, len(video) - 1, min(frames, len(video))).round().astype(int)] for video in videos]
    columns = max(len(row) for row in rows)
    padded = [np.concatenate([row, np.full((columns - len(row), *row.shape[1:]), 255, np.uint8)]) for row in rows]
    image = grid([frame[None] for row in padded for frame in row], columns)[0]  # (H, W, 3)
    if labels is None:
        return image
    font, labels = ImageFont.load_default(), [_in_ascii(label) for label in labels]
    margin = 8 + round(max(font.getlength(label) for label in labels))
    canvas = Image.new("RGB", (margin + image.shape[1], image.shape[0]), "white")
    canvas.paste(Image.fromarray(image), (margin, 0))
    pen = ImageDraw.Draw(canvas)
    step = videos[0].shape[1] + 2
    for row, label in enumerate(labels):
        pen.text((4, row * step + videos[0].shape[1] / 2), label, fill="black", font=font, anchor="lm")
    return np.asarray(canvas)
