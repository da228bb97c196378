"""Sample videos in trackers: TensorBoard's own files are read back, the others are asked what they were given."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tiny_training import tiny_recipe
from vqvdm.train.tokenizer import train_tokenizer
from vqvdm.train.trackers import show_videos
from vqvdm.video import write_video


def test_tensorboard_gets_moving_pictures(tmp_path):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_tokenizer(tiny_recipe(trackers=("tensorboard",), sample_every=2, steps=2), tmp_path)
    logs = sorted(tmp_path.rglob("events.out.tfevents*"), key=lambda path: len(path.parts))  # settings lie deeper
    events = EventAccumulator(str(logs[0]), size_guidance={"images": 0})
    events.Reload()
    assert "tokenizer/loss" in events.Tags()["scalars"]
    (picture,) = events.Images("samples/tokenizer")
    assert picture.step == 2
    with Image.open(io.BytesIO(picture.encoded_image_string)) as image:
        assert image.format == "GIF" and image.n_frames > 1
        assert (image.width, image.height) == (picture.width, picture.height)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_others_get_their_own_kind_of_video(name, tmp_path, monkeypatch):
    module, given = ModuleType(name), []
    module.Video = lambda path, format: ("video", path, format)
    monkeypatch.setitem(sys.modules, name, module)
    path = tmp_path / "denoiser-00000020.mp4"
    write_video(path, np.zeros((2, 16, 16, 3), np.uint8), 8.0)
    tracker = SimpleNamespace(name=name, log=lambda values, step: given.append((values, step)))
    show_videos([tracker], [Path(path)], 20)
    assert given == [({"samples/denoiser": ("video", str(path), "mp4")}, 20)]
