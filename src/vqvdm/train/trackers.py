"""Sample videos in TensorBoard, Weights & Biases and trackio, beside the figures that accelerate hands to them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from vqvdm.video import encode_video, probe, read_video


def show_videos(trackers: Iterable[Any], paths: Iterable[Path], step: int) -> None:
    """Hand the videos in these files to accelerate's trackers; each is called by its file's name before the step."""
    for path in paths:
        name = f"samples/{path.stem.rpartition('-')[0]}"
        for tracker in trackers:
            if tracker.name == "tensorboard":
                _show_in_tensorboard(tracker, name, path, step)
            else:
                video = import_module(tracker.name).Video(str(path), format="mp4")
                tracker.log({name: video}, step=step)


def _show_in_tensorboard(tracker: Any, name: str, path: Path, step: int) -> None:
    """As a GIF among its images: its own `add_video` leaves it to moviepy, and says nothing where that is absent."""
    Summary = import_module("tensorboard.compat.proto.summary_pb2").Summary
    video, fps = read_video(path), probe(path).fps
    image = Summary.Image(
        height=video.shape[1], width=video.shape[2], colorspace=3, encoded_image_string=encode_video(video, fps, "gif")
    )
    tracker.writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
