"""Clips that a model makes as they are scored, without files in between: generated ones and reconstructions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqvdm.data.clips import ClipTiming
from vqvdm.data.worlds import WORLDS
from vqvdm.evaluation.features import Network
from vqvdm.evaluation.sources import Clip, Videos, in_8_bits, read_clips
from vqvdm.generation import Order, generate_clips
from vqvdm.identity import own_settings
from vqvdm.judge import CLASSES, judge
from vqvdm.metrics.protocol import Draw
from vqvdm.metrics.quality import squared_errors, ssim
from vqvdm.metrics.seams import change_errors, flicker
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.tokenizer import VideoTokenizer
from vqvdm.video import Video, to_clip, to_video


class GeneratedVideos:
    """What a pipeline makes of orders: one clip each, which depends on its seed and class alone."""

    split: str = "all"

    def __init__(
        self, name: str, pipeline: VQVDMPipeline, orders: Sequence[Order], arguments: Mapping[str, Any], batch: int
    ) -> None:
        """Nothing is made before it is asked for.

        Args:
            name: of the model.
            pipeline: with the scheduler that is meant.
            orders: the clips that can be drawn, those of the first draw first.
            arguments: of the pipeline's call, such as num_inference_steps; None takes its own.
            batch: clips made at a time.
        """
        self.name = name
        self.skipped: list[str] = []
        self.pipeline, self.orders, self.batch = pipeline, orders, batch
        self.arguments = {key: value for key, value in arguments.items() if value is not None}
        config = pipeline.config
        self.lengths = np.full(len(orders), self.arguments.get("num_frames", config["num_frames"]), np.int64)
        self.facts: Mapping[str, Any] = {
            "model": pipeline.fingerprint(),
            "sampler": type(pipeline.scheduler).__name__,
            "steps": self.arguments.get("num_inference_steps", config["num_inference_steps"]),
            "guidance_scale": self.arguments.get("guidance_scale", config["guidance_scale"]),
            "guidance_interval": list(self.arguments.get("guidance_interval", config["guidance_interval"].values())),
            "fps": self.arguments.get("fps", config["fps"]),
            "size": [self.arguments.get(side, config[side]) for side in ("height", "width")],
            "ema_decay": config["about"].get("ema_decay"),
            "dtype": str(pipeline.denoiser.dtype).removeprefix("torch."),
        }
        if weaker := self.arguments.get("weaker_denoiser"):
            self.facts = {**self.facts, "weaker": weaker.fingerprint()}
        of_toy_world = config["about"].get("data") in WORLDS
        self._judged = of_toy_world and all(order.name in CLASSES for order in orders)
        if self._judged:
            self.facts = {**self.facts, "judged": True}

    def starts(self, timing: ClipTiming) -> NDArray[np.int64]:
        return (self.lengths == timing.frames).astype(np.int64)

    def clips(self, draws: Sequence[Draw], timing: ClipTiming) -> Iterator[Clip]:
        orders = [self.orders[draw.video] for draw in draws]
        for order, clip, fps in generate_clips(self.pipeline, orders, self.batch, self.arguments, progress=False):
            frames = ((clip.float() + 1) * 127.5).clamp(0, 255).permute(1, 2, 3, 0).cpu().numpy()
            measures = {}
            if self._judged:
                judged = judge(in_8_bits(frames), fps)
                measures["obeyed"] = np.asarray(judged.name == order.name, np.float32)
                measures["whole"] = np.asarray(judged.keeps_outline, np.float32)
            yield Clip(frames, measures)

    def label(self, video: int) -> str | None:
        order = self.orders[video]
        return None if order.label is None else order.name

    @cached_property
    def digest(self) -> str:
        settings = sorted(own_settings(self.pipeline.scheduler).items())
        arguments = {name: value for name, value in self.arguments.items() if name != "weaker_denoiser"}
        made_by = (self.facts, sorted(arguments.items()), settings)
        orders = [(order.label, order.seed) for order in self.orders]
        return hashlib.sha256(repr((made_by, orders)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Quality:
    """Measures a clip against its reconstruction; LPIPS networks by their names, "vgg" and "alex"."""

    lpips: Mapping[str, Network] = field(default_factory=dict)
    device: str = "cpu"

    def __call__(self, real: Video, made: Video) -> dict[str, np.ndarray]:
        """Both uint8 (t, h, w, 3) -> kind -> (t,)."""
        found = {"squared_error": squared_errors(real, made), "ssim": ssim(real, made)}
        found |= {f"change_{axis}": errors for axis, errors in change_errors(real, made).items()}
        for name, network in self.lpips.items():
            x, y = (to_clip(video).movedim(1, 0).to(self.device) for video in (real, made))  # (t, 3, h, w)
            with torch.no_grad():
                found[f"lpips_{name}"] = network.on(self.device)(x, y).double().cpu().numpy()
        return found

    def identities(self) -> dict[str, str]:
        """Network -> name of its weights."""
        return {name: network.identity for name, network in self.lpips.items()}


class ReconstructedVideos:
    """Videos as the tokenizer gives them back; each clip brings its quality, frame by frame, and its tokens."""

    def __init__(self, videos: Videos, tokenizer: VideoTokenizer, name: str, quality: Quality, batch: int) -> None:
        self.videos, self.tokenizer, self.quality, self.batch = videos, tokenizer, quality, batch
        self.name, self.split, self.lengths = f"{videos.name} through {name}", videos.split, videos.lengths
        self.skipped: list[str] = []  # those of the videos themselves
        self.facts: Mapping[str, Any] = {
            "model": tokenizer.fingerprint(),
            "codes": codes_of(tokenizer),
            "factors": list(tokenizer.factors),
            **quality.identities(),
        }

    def starts(self, timing: ClipTiming) -> NDArray[np.int64]:
        return self.videos.starts(timing)

    @torch.inference_mode()
    def clips(self, draws: Sequence[Draw], timing: ClipTiming) -> Iterator[Clip]:
        originals = read_clips(self.videos, draws, timing)
        while part := [in_8_bits(clip.frames) for clip in islice(originals, self.batch)]:
            self.tokenizer.latent_shape(*part[0].shape[:3])  # raises where the factors do not divide it
            clips = torch.stack([to_clip(video) for video in part]).to(self.tokenizer.device)  # (b, 3, t, h, w)
            latents = self.tokenizer.encode(clips)
            tokens = self.tokenizer.quantize(latents).tokens.cpu().numpy() if self.facts["codes"] else None
            still = self.tokenizer.decode(self.tokenizer.encode(clips[:, :, :1].expand_as(clips)))
            for number, (real, made) in enumerate(zip(part, self.tokenizer.decode(latents), strict=True)):
                video = to_video(made)
                measures = self.quality(real, video) | {"flicker": np.asarray(flicker(to_video(still[number])))}
                yield Clip(video, measures if tokens is None else measures | {"tokens": tokens[number]})

    def label(self, video: int) -> str | None:
        return self.videos.label(video)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(repr((self.videos.digest, self.facts)).encode()).hexdigest()[:16]


def codes_of(tokenizer: VideoTokenizer) -> int:
    """Codes that each token could be; 0 if there is no codebook, or none that has entered yet."""
    return tokenizer.codebook.num_codes if tokenizer.codebook is not None and tokenizer.codebook.ready else 0
