"""What a call makes, in every form, as arrays and as a notebook shows it."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import torch
from PIL import Image

from tiny_pipeline import tiny_pipeline
from vqvdm.output import VQVDMPipelineOutput

torch.set_num_threads(1)


def test_videos_are_the_same_from_every_form():
    made = [
        tiny_pipeline()([0, 1], generator=torch.Generator().manual_seed(0), output_type=form).videos()
        for form in ("pil", "np", "pt")
    ]
    assert [video.shape for video in made[0]] == [(4, 16, 16, 3)] * 2
    for other in made[1:]:
        for a, b in zip(made[0], other, strict=True):
            assert a.dtype == b.dtype == np.uint8
            assert np.abs(a.astype(int) - b).max() <= 1


def test_a_notebook_shows_them_looping():
    frames = np.linspace(0, 1, 2 * 3 * 16 * 16 * 3).reshape(2, 3, 16, 16, 3)
    shown = VQVDMPipelineOutput(frames=frames, fps=[4.0, 8.0], seeds=[1, 2])._repr_html_()
    pictures = [base64.b64decode(data) for data in re.findall(r"data:image/webp;base64,([^\"]+)", shown)]
    assert len(pictures) == 2 and "3 frames at 8 fps, seed 2" in shown
    with Image.open(io.BytesIO(pictures[0])) as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (3, (128, 128), 0)


def test_many_are_cut_short_and_latents_stay_text():
    many = VQVDMPipelineOutput(frames=np.zeros((20, 2, 8, 8, 3)), fps=[8.0] * 20, seeds=[0] * 20)
    assert "and 4 more" in many._repr_html_()
    latents = VQVDMPipelineOutput(frames=torch.zeros(1, 4, 2, 4, 4), fps=[8.0], seeds=[0])
    assert latents._repr_html_() is None
