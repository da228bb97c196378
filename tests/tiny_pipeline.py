"""Untrained pipelines of a few thousand weights, for the tests of everything that samples."""

from __future__ import annotations

from concurrent.futures import Future

import torch

from vqvdm import VideoDenoiser, VideoTokenizer, VQVDMPipeline
from vqvdm.app.gallery import Gallery
from vqvdm.app.maker import Maker
from vqvdm.app.studio import Studio
from vqvdm.diffusion import Objective

LABELS = {0: "left", 1: "right", 2: "up"}


def tiny_tokenizer(seed: int = 0) -> VideoTokenizer:
    """Factors (2, 4, 4), four latent channels, no codebook."""
    torch.manual_seed(seed)
    return VideoTokenizer(
        channels=(8, 16), strides=((2, 2, 2),), patch=(1, 2, 2), latent_channels=4, quantizer="none"
    ).eval()


def tiny_denoiser(
    in_channels: int = 4, num_classes: int = 3, self_condition: bool = False, context: bool = False
) -> VideoDenoiser:
    """Two levels; its output, zero in an untrained network, is made to depend on everything that enters."""
    torch.manual_seed(1)
    denoiser = VideoDenoiser(
        in_channels,
        (8, 16),
        blocks=1,
        num_classes=num_classes,
        head_dim=8,
        self_condition=self_condition,
        context=context,
    )
    for parameter in denoiser.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return denoiser.eval()


def tiny_pipeline(
    *, num_classes: int = 3, pixels: bool = False, scheduler: str = "dpm++", objective: Objective | None = None
) -> VQVDMPipeline:
    """Four frames of 16x16 in four steps."""
    pipeline = VQVDMPipeline(
        None if pixels else tiny_tokenizer(),
        tiny_denoiser(3 if pixels else 4, num_classes),
        (objective or Objective()).make_scheduler(scheduler),
        id2label=LABELS if num_classes == 3 else None,
        fps=8.0,
        num_frames=4,
        height=16,
        width=16,
        num_inference_steps=4,
        guidance_scale=3.0,
        guidance_interval=(0.1, 0.9),
        about={"data": "nothing", "license": "apache-2.0", "recipe": "tiny", "seed": 0, "results": {"psnr": 1.5}},
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_studio(gallery: Gallery) -> Studio:
    """Such a pipeline at work for the page."""
    maker: Future[Maker] = Future()
    maker.set_result(Maker(tiny_pipeline(), "tiny"))
    return Studio(maker.result().description, maker, gallery)
