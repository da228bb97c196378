"""What a tokenizer makes of a video, measured; what its latents and tokens look like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vqvdm.data.clips import ClipTiming
from vqvdm.decode import Video, probe, read_frames
from vqvdm.errors import InputError
from vqvdm.given import read_frames as fitted
from vqvdm.metrics.quality import SSIM_LEAST_SIDE, psnr, squared_errors, ssim
from vqvdm.perceptual import ALEXNET, LPIPS, SMALLEST_SIDE
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.quantizers import ProductCodebook
from vqvdm.tokenizer import VideoTokenizer
from vqvdm.video import to_clip, to_video
from vqvdm.weights.lpips import load_lpips

_STRESSED = 4  # how often differences are enlarged
_LONGEST = 3600.0  # seconds into a video at which a clip may begin


@dataclass(frozen=True)
class Inspected:
    """A clip and what the tokenizer makes of it."""

    real: Video  # uint8 (t, h, w, 3)
    made: Video
    difference: Video  # grey where they agree, errors four times as large
    fps: float
    figures: Mapping[str, str]
    latents: Tensor  # (c, t, h, w), float32
    tokens: Tensor | None  # (t, h, w, books) int64; None without a codebook
    codes: int  # in each book

    def pictures(self) -> dict[str, np.ndarray]:
        """Latents, and tokens if there are any, as pictures: uint8 (H, W, 3), by words that explain them."""
        words = "Latents: a column a channel, a row a frame in time; red above 0, blue below"
        drawn = {words: picture_of_latents(self.latents)}
        if self.tokens is not None:
            words = "Tokens: a column a book, a row a frame in time; each code has a colour of its own"
            drawn[words] = picture_of_tokens(self.tokens)
        return drawn

    def frequencies(self) -> list[int]:
        """How often the codes of the first book occur, the most frequent first; none without a codebook."""
        if self.tokens is None:
            return []
        counts = self.tokens[..., 0].unique(return_counts=True)[1]
        return sorted(counts.tolist(), reverse=True)


def open_clip(path: Path, pipeline: VQVDMPipeline, start: float = 0.0) -> tuple[Video, float]:
    """(uint8 (t, h, w, 3), frames per second): a clip of the model's size from `start` seconds on.

    Fewer frames than the model makes will do, if they are enough for one latent.

    Raises:
        InputError: no video, or too short a one from there on.
    """
    if not 0 <= start <= _LONGEST:  # nor what is no number
        raise InputError(f"start must be a time from 0 to {_LONGEST:g} seconds, not {start}")
    config, tokenizer = pipeline.config, pipeline.tokenizer
    factor = 1 if tokenizer is None else tokenizer.factors[0]
    info = probe(path)
    times = info.frame_times()
    first = int(np.searchsorted(times, start - 1e-6))
    frames = min(config["num_frames"], (len(times) - first) // factor * factor)
    if frames < 1:
        raise InputError(
            f"{path.name} has {max(len(times) - first, 0)} frames from {start:g} seconds on; {factor} are needed"
        )
    numbers, fps = ClipTiming(frames).pick(times, info.fps, first)
    size = (config["height"], config["width"])
    pixels = fitted("video", read_frames(path, [int(number) for number in numbers], info), size, 1)[0]
    return to_video(pixels.transpose(0, 1) * 2 - 1), fps


@torch.inference_mode()
def inspect(pipeline: VQVDMPipeline, video: Video, fps: float) -> Inspected:
    """Encode and decode a clip (t, h, w, 3) that the tokenizer's factors divide.

    Raises:
        InputError: the model has no tokenizer.
    """
    tokenizer = pipeline.tokenizer
    if tokenizer is None:
        raise InputError("this model works on pixels, without a tokenizer")
    clip = to_clip(video)[None].to(tokenizer.device, tokenizer.dtype)
    latents = tokenizer.encode(clip)
    made = to_video(tokenizer.decode(latents)[0])
    tokens, codes = None, 0
    if tokenizer.codebook is not None and tokenizer.codebook.ready:
        tokens = tokenizer.quantize(latents).tokens[0].cpu()
        tokens = tokens if tokens.ndim == 4 else tokens[..., None]
        codes = tokenizer.codebook.num_codes
    difference = np.clip(127 + _STRESSED * (made.astype(np.int16) - video), 0, 255).astype(np.uint8)
    figures = _quality(video, made) | _size(tokenizer, video, tokens, codes)
    return Inspected(video, made, difference, fps, figures, latents[0].float().cpu(), tokens, codes)


def stages(pipeline: VQVDMPipeline) -> list[tuple[str, list[tuple[str, str]]]]:
    """Both networks as chains of boxes: (title, [(name, shapes or numbers of parameters)])."""
    config, tokenizer, denoiser = pipeline.config, pipeline.tokenizer, pipeline.denoiser
    size = (config["num_frames"], config["height"], config["width"])
    clip = ("clip", "3 × " + " × ".join(map(str, size)))
    latents = ("latents", " × ".join(map(str, pipeline.latent_shape(*size))))
    drawn = []
    if tokenizer is not None:
        codebook = tokenizer.codebook
        books = f"{len(codebook.books)} books of " if isinstance(codebook, ProductCodebook) else ""
        codes = "continuous" if codebook is None else f"{books}{codebook.num_codes:,} codes"
        encoder, decoder = ("encoder", _millions(tokenizer.encoder)), ("decoder", _millions(tokenizer.decoder))
        drawn.append(("Stage 1, the tokenizer", [clip, encoder, latents, ("quantiser", codes), decoder, clip]))
    levels = " · ".join(str(width) for width in denoiser.config["channels"])
    chain = [
        ("noise", latents[1]),
        ("denoiser", f"{_millions(denoiser)}, widths {levels}"),
        (f"{config['num_inference_steps']} steps", f"guidance {config['guidance_scale']:g}"),
        latents,
    ]
    return [*drawn, ("Stage 2, the denoiser", chain)]


def _millions(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M parameters"


def _quality(real: Video, made: Video) -> dict[str, str]:
    figures = {"PSNR": f"{float(psnr(squared_errors(real, made).mean())):.1f} dB"}
    if min(real.shape[1:3]) >= SSIM_LEAST_SIDE:
        figures["SSIM"] = f"{float(ssim(real, made).mean()):.3f}"
    lpips = _lpips()
    if min(real.shape[1:3]) < SMALLEST_SIDE[ALEXNET]:
        figures["LPIPS"] = f"needs {SMALLEST_SIDE[ALEXNET]} pixels a side"
    elif lpips is None:
        figures["LPIPS"] = "needs its weights: vqvdm weights lpips"
    else:
        figures["LPIPS (AlexNet)"] = f"{float(lpips(to_clip(made)[None], to_clip(real)[None]).mean()):.3f}"
    return figures


@cache
def _lpips() -> LPIPS | None:
    try:
        return load_lpips("alex")
    except InputError:
        return None


def _size(tokenizer: VideoTokenizer, video: Video, tokens: Tensor | None, codes: int) -> dict[str, str]:
    channels, t, h, w = tokenizer.latent_shape(*video.shape[:3])
    figures = {"latents": f"{channels} × {t} × {h} × {w}", "values": f"{video.size:,} → {channels * t * h * w:,}"}
    if tokens is not None:
        bits = tokens.numel() * math.log2(codes)
        used = [len(book.unique()) for book in tokens.flatten(0, 2).T]
        figures |= {
            "tokens": f"{tokens.numel():,} of {codes:,} codes",
            "bits": f"{bits:,.0f}, {bits / math.prod(video.shape[:3]):.3f} a pixel (24 before)",
            "codes in use here": f"{np.mean(used):.0f} different ones"
            + (f" in each of {len(used)} books" if len(used) > 1 else ""),
        }
    return figures


def picture_of_latents(latents: Tensor) -> np.ndarray:
    """(c, t, h, w) as one picture, uint8 (H, W, 3): a column a channel, a row a latent frame.

    Blue is below 0, red above; three deviations are full colour.
    """
    value = (latents / 3).clamp(-1, 1)
    red, blue = value.clamp(min=0), -value.clamp(max=0)
    colours = torch.stack([1 - blue, 1 - red - blue, 1 - red], dim=-1)  # (c, t, h, w, 3)
    return _tiled((colours * 255).round().byte().transpose(0, 1).numpy())


def picture_of_tokens(tokens: Tensor) -> np.ndarray:
    """(t, h, w, books) as one picture, uint8 (H, W, 3): a column a book, a row a latent frame, each code a colour."""
    spun = tokens.movedim(-1, 0).double() * 0.6180339887498949 % 1.0  # golden ratio: neighbours in number differ
    phases = torch.stack([spun, (spun + 1 / 3) % 1, (spun + 2 / 3) % 1], dim=-1)
    colours = 0.55 + 0.4 * torch.cos(2 * math.pi * phases)
    return _tiled((colours * 255).round().byte().transpose(0, 1).numpy())


def _tiled(cells: np.ndarray, gap: int = 1, side: int = 8) -> np.ndarray:
    """(rows, columns, h, w, 3) in one picture, each value a square of `side` pixels."""
    cells = cells.repeat(side, 2).repeat(side, 3)
    cells = np.pad(cells, ((0, 0), (0, 0), (gap, gap), (gap, gap), (0, 0)), constant_values=255)
    rows, columns, h, w, _ = cells.shape
    return cells.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3)
