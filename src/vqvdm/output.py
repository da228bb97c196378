"""What a call of the pipeline makes, and how a notebook shows it."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
import PIL.Image
from diffusers.utils import BaseOutput
from torch import Tensor

from vqvdm.video import Video, encode_video, enlarged

_SHOWN = 16  # videos in a notebook's cell
_SIDE = 128  # pixels up to which small ones are enlarged there


@dataclass
class VQVDMPipelineOutput(BaseOutput):
    """What one call makes.

    Attributes:
        frames: the videos, by `output_type`: "pil" a list of lists of images; "np" float (b, t, h, w, c) in 0..1;
            "pt" float (b, t, c, h, w) in 0..1; "latent" the denoiser's latents (b, c, t, h, w).
        fps: frames per second of each video.
        seeds: the seed of each video; `generator=[torch.Generator().manual_seed(seeds[k])]` makes video k alone.
    """

    frames: list[list[PIL.Image.Image]] | np.ndarray | Tensor
    fps: list[float]
    seeds: list[int]

    def videos(self) -> list[Video]:
        """The videos as uint8 (t, h, w, 3), for `vqvdm.video.write_video`; latents are none."""
        frames = self.frames
        if isinstance(frames, Tensor):
            frames = frames.detach().float().cpu().movedim(2, -1).numpy()
        if isinstance(frames, np.ndarray):
            return list((frames.clip(0, 1) * 255).round().astype(np.uint8))
        return [np.stack([np.asarray(image.convert("RGB")) for image in video]) for video in frames]

    def _repr_html_(self) -> str | None:
        """The videos, looping, in a notebook's cell; nothing for latents, which it then shows as text."""
        if isinstance(self.frames, Tensor) and (self.frames.ndim != 5 or self.frames.shape[2] != 3):
            return None
        images = []
        for video, fps, seed in list(zip(self.videos(), self.fps, self.seeds, strict=True))[:_SHOWN]:
            data = base64.b64encode(encode_video(enlarged(video, _SIDE), fps, "webp")).decode()
            words = f"{len(video)} frames at {fps:g} fps, seed {seed}"
            images.append(f'<img src="data:image/webp;base64,{data}" title="{words}" alt="{words}">')
        more = f"<p>and {len(self.fps) - _SHOWN} more</p>" if len(self.fps) > _SHOWN else ""
        return f'<div style="display: flex; flex-wrap: wrap; gap: 6px">{"".join(images)}</div>{more}'
