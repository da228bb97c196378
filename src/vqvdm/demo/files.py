"""The demo's video files and its sheet."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vqvdm import __version__
from vqvdm.files import write_bytes
from vqvdm.judge import CLASSES
from vqvdm.video import SHEET_SIDE, Video, enlarged, grid, sheet, write_video

if TYPE_CHECKING:
    from vqvdm.demo.clips import Generated, Unseen

Clip = TypeVar("Clip", "Generated", "Unseen")

SIDE = 128  # pixels of a side in the video files: small clips are enlarged
SHEET_FRAMES = 8


def write_videos(folder: Path, generated: Sequence[Generated], unseen: Sequence[Unseen]) -> None:
    """One MP4 for each generated clip, and for one unseen clip of each class with its reconstruction at its right."""
    write_generated(folder, generated)
    source = {"generator": f"vqvdm {__version__}"}
    for pair in (first(unseen, label) for label in range(len(CLASSES))):
        both = grid([enlarged(pair.real, SIDE), enlarged(pair.made, SIDE)], columns=2, pad=4)
        facts = {**source, "content": "a clip, and its reconstruction at the right", "psnr_db": round(pair.psnr, 2)}
        write_video(folder / f"{pair.file}.mp4", both, pair.fps, facts)


def write_generated(folder: Path, generated: Sequence[Generated]) -> None:
    """One MP4 for each clip; what was in the folder goes."""
    shutil.rmtree(folder, ignore_errors=True)
    source = {"generator": f"vqvdm {__version__}", "ai_generated": True}
    for clip in generated:
        facts = {**source, "class": CLASSES[clip.label], "seed": clip.seed, "fps": clip.fps}
        write_video(folder / f"{clip.file}.mp4", enlarged(clip.video, SIDE), clip.fps, facts)


def write_sheet_of_classes(path: Path, generated: Sequence[Generated], unseen: Sequence[Unseen]) -> None:
    """One picture: every class a row, frames left to right, an unseen clip at the left and a generated one beside it.

    Both are the first of their class at the lowest frame rate.
    """
    rows: list[Video] = []
    for label in range(len(CLASSES)):
        real, made = first(unseen, label).real, first(generated, label).video
        rows.append(np.concatenate([_spaced(real), np.full_like(real[:1], 255), _spaced(made)]))
    image = Image.fromarray(sheet(rows, CLASSES, frames=len(rows[0])))
    step = enlarged(rows[0], SHEET_SIDE).shape[2] + 2
    margin = image.width - (len(rows[0]) * step - 2)
    header = 20
    canvas = Image.new("RGB", (image.width, image.height + header), "white")
    canvas.paste(image, (0, header))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    fps = min(clip.fps for clip in generated)
    pen.text((margin, 4), f"real, {fps:g} frames per second", fill="black", font=font)
    pen.text((margin + (len(rows[0]) // 2 + 1) * step, 4), "generated", fill="black", font=font)
    buffer = BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    write_bytes(path, buffer.getvalue())


def first(clips: Sequence[Clip], label: int) -> Clip:
    """The first clip of a class at the lowest frame rate."""
    return min((clip for clip in clips if clip.label == label), key=lambda clip: (clip.fps, clip.number))


def _spaced(video: Video) -> Video:
    count = min(SHEET_FRAMES, len(video))
    return video[np.linspace(0, len(video) - 1, count).round().astype(int)]
