"""What the model that comes with the package makes: shown before the demo has trained its own."""

from __future__ import annotations

from pathlib import Path

import torch

from vqvdm import models
from vqvdm.demo.clips import Generated, kept_videos
from vqvdm.demo.files import write_generated
from vqvdm.generation import make_orders
from vqvdm.judge import judge
from vqvdm.loading import load_pipeline, pick_device, pick_dtype

CLIPS = 3  # of each class
FPS = 12.0


def bundled_clips(run: Path) -> list[Generated]:
    """Judged clips of each class of the bundled model, at its own settings; their files lie in `run`/bundled.

    Nothing where the package came without its model.
    """
    if models.DEFAULT not in models.names():
        return []
    dtype = pick_dtype("auto", pick_device())
    pipeline = load_pipeline(models.bundled(), dtype=dtype)
    orders = make_orders(pipeline, None, CLIPS, seed=0)
    key = f"{pipeline.fingerprint()} {dtype} {torch.__version__}"
    videos = kept_videos(run / "clips" / "bundled.safetensors", key, pipeline, orders, {"fps": FPS})
    clips = [
        Generated(order.label, order.number, FPS, order.seed, video, judge(video, FPS))
        for order, video in zip(orders, videos, strict=True)
        if order.label is not None
    ]
    write_generated(run / "bundled", clips)
    return clips
