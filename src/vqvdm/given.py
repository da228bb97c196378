"""Frames that a sampling keeps: pictures to begin or end with, a video to continue, a region to leave as it is.

What is given are pixels. A denoiser trained with context is shown their latents; any other has its estimates of the
clean clip corrected at every step, by pasting the given pixels into what they decode to (replacement, as Lugmayr et al.
2022, "RePaint", have it for pixels). Either way the last word is the pasting's, so that what is given comes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from vqvdm.context import MASKS, context_of, encode_stills
from vqvdm.errors import InputError
from vqvdm.tokenizer import VideoTokenizer

_REFINED = 0.8  # factor of the noise at which the context is encoded once more
_LAST_PASTES = 3  # of the finished latents: each brings what decodes closer to what is given


@dataclass(frozen=True)
class Given:
    """Pixels that are known, of one clip for all videos of a call or of one for each: of all the same ones."""

    clip: Tensor  # float32 (n, 3, t, h, w) in -1..1
    known: Tensor  # bool (n, 1, t, h, w), equal along n

    def to(self, device: torch.device) -> Given:
        """The same on a device."""
        return Given(self.clip.to(device), self.known.to(device))

    @cached_property
    def frames(self) -> Tensor:
        """Which frames are known altogether: bool (n, t)."""
        return self.known.flatten(3).all(3)[:, 0]

    @property
    def whole(self) -> bool:
        """Whether each frame is known altogether or not at all."""
        return bool((self.known.flatten(3).any(3)[:, 0] == self.frames).all())


def read_given(
    image: Any, last_image: Any, video: Any, mask: Any, size: tuple[int, int, int], videos: int = 1
) -> Given | None:
    """What a call gives, in one form; None if that is nothing.

    Args:
        image: the first frame: a PIL image, uint8 or float 0..1 (h, w, 3), or a tensor (3, h, w) in 0..1; a list, or
            an array or tensor with one axis more, holds one for each video.
        last_image: the last frame, likewise.
        video: the first frames, in the forms that a pipeline returns a video: PIL images, an array (t, h, w, 3), or
            a tensor (t, 3, h, w); likewise one for each video.
        mask: of a video's pixels those to make anew, (h, w) or (t, h, w): not zero in an array or tensor, brighter than
            the middle in a PIL image.
        size: frames, height and width of what will be made. Pictures of another size are scaled to cover it, and their
            middle is taken.
        videos: how many will be made.

    Raises:
        InputError: a form that is none of these, too many frames, or nothing left to make.
    """
    t, h, w = size
    if image is not None and video is not None:
        raise InputError("image and video both say how the clip begins; give one of them")
    if mask is not None and video is None:
        raise InputError("mask says which pixels of a video to make anew; give video, too")
    clip, known = torch.zeros(1, 3, t, h, w), torch.zeros(1, 1, t, h, w, dtype=torch.bool)
    for name, place, pictures in (("image", 0, image), ("last_image", -1, last_image), ("video", 0, video)):
        if pictures is None:
            continue
        frames = read_frames(name, pictures, (h, w), videos)  # (n, t', 3, h, w)
        n, there = frames.shape[:2]
        if there > t:
            raise InputError(f"video has {there} frames, more than the {t} to make; give its last ones")
        places = slice(t - 1, t) if place else slice(there)
        clip = clip.expand(max(n, len(clip)), -1, -1, -1, -1).clone()
        clip[:, :, places], known[:, :, places] = frames.transpose(1, 2) * 2 - 1, True
    if mask is not None:
        there = int(known[0, 0, :, 0, 0].sum()) - (last_image is not None)
        known[0, 0, :there] &= ~_masked(mask, there, h, w)
    if not known.any():
        if video is not None:
            raise InputError("mask covers the whole video: nothing of it would be kept")
        return None
    if known.all():
        hint = "" if mask is not None else "; give fewer frames, or a mask of what to make anew"
        raise InputError(f"all {t} frames are given, so there is nothing to make{hint}")
    return Given(clip, known.expand(len(clip), -1, -1, -1, -1))


def read_frames(name: str, given: Any, size: tuple[int, int], videos: int) -> Tensor:
    """One or several videos in any form that `read_given` takes, of this height and width: (n, t, 3, h, w) in 0..1.

    A picture is a video of one frame.

    Raises:
        InputError: no such form; or n is neither 1 nor `videos`.
    """
    frames = _frames(name, given)
    n, there = frames.shape[:2]
    if n not in (1, videos):
        raise InputError(f"{name} is given {n} times for {videos} videos; give one, or one each")
    return _fitted(frames.flatten(0, 1), *size).unflatten(0, (n, there))


def _frames(name: str, given: Any) -> Tensor:
    """One or several pictures as (n, 1, 3, h, w), one or several videos as (n, t, 3, h, w): float32 in 0..1."""
    is_video = name == "video"
    form, axes = ("a sequence of images", 4) if is_video else ("an image", 3)
    given = _stacked(name, given)
    if isinstance(given, np.ndarray):
        pixels = torch.from_numpy(np.array(given, dtype=np.float32)).div(255.0 if given.dtype == np.uint8 else 1.0)
        pixels = pixels.movedim(-1, -3) if pixels.ndim in (axes, axes + 1) else pixels
    elif isinstance(given, Tensor):
        pixels = given.detach().float().cpu().div(255.0 if given.dtype == torch.uint8 else 1.0)
    else:
        raise InputError(
            f"{name} must be {form}, an array with 3 channels last or a tensor, not {type(given).__name__}"
        )
    pixels = pixels[None] if pixels.ndim == axes else pixels
    if pixels.ndim != axes + 1 or pixels.shape[-3] != 3 or min(pixels.shape) < 1:
        raise InputError(f"{name} must be {form} in RGB; an array of shape {tuple(given.shape)} is not")
    if not (pixels.isfinite().all() and pixels.min() >= -1e-3 and pixels.max() <= 1 + 1e-3):
        raise InputError(f"{name}: values must lie in 0..1, or 0..255 as uint8")
    return pixels if is_video else pixels[:, None]


def _stacked(name: str, given: Any) -> Any:
    """Pictures, and lists of what can be stacked, as arrays; anything else as it is."""
    if _is_picture(given):
        return np.asarray(given.convert("RGB"))
    if not isinstance(given, list | tuple) or not given:
        return given
    parts = [_stacked(name, each) for each in given]
    if any(not isinstance(part, np.ndarray | Tensor) for part in parts):
        return given
    if len(shapes := {tuple(part.shape) for part in parts}) > 1:
        raise InputError(f"{name}: pictures of one list must have one size, not {sorted(shapes)}")
    return torch.stack(parts) if all(isinstance(part, Tensor) for part in parts) else np.stack(parts)


def _is_picture(value: Any) -> bool:
    return isinstance(value, PIL.Image.Image)


def _fitted(frames: Tensor, h: int, w: int) -> Tensor:
    """Frames (t, c, h', w') in 0..1 scaled to cover (h, w), and their middle."""
    height, width = frames.shape[-2:]
    if (height, width) == (h, w):
        return frames
    scale = max(h / height, w / width)
    wanted = (max(round(height * scale), h), max(round(width * scale), w))
    frames = F.interpolate(frames, wanted, mode="bilinear", antialias=True).clamp(0, 1)
    top, left = (wanted[0] - h) // 2, (wanted[1] - w) // 2
    return frames[..., top : top + h, left : left + w]


def _masked(mask: Any, t: int, h: int, w: int) -> Tensor:
    """Where to make anew, bool (t, h, w)."""
    chosen = np.asarray(mask.convert("L")) > 127 if _is_picture(mask) else np.asarray(mask) != 0
    values = torch.from_numpy(chosen)
    if values.ndim == 2:
        values = values.expand(t, *values.shape)
    if values.ndim != 3 or len(values) != t:
        raise InputError(f"mask must be of shape (h, w) or ({t}, h, w) like the video, not {tuple(np.shape(mask))}")
    return _fitted(values[:, None].float(), h, w)[:, 0] > 0.5


class Keeper:
    """Keeps what is given while latents are sampled.

    Attributes:
        context: what a denoiser that takes it is shown, (n, c + 2, t, h, w); None where it does not, or where parts of
            frames are given.
    """

    def __init__(self, given: Given, tokenizer: VideoTokenizer | None, wanted: bool) -> None:
        """`wanted` says whether the denoiser takes context."""
        self._given, self._tokenizer = given, tokenizer
        factors = (1, 1, 1) if tokenizer is None else tokenizer.factors
        self._cells = F.max_pool3d(given.known.float(), factors) > 0  # that show something given
        self.context = self._context(factors[0]) if wanted and given.whole else None
        self._refined = False

    def kept(self, latents: Tensor) -> Tensor:
        """Clean latents (b, c, t, h, w) changed where given pixels are, so that they decode to these."""
        given, tokenizer = self._given, self._tokenizer
        if tokenizer is None:
            return given.clip.where(given.known, latents)
        decoded = tokenizer.decode(latents.to(tokenizer.dtype)).float().clamp(-1, 1)
        again = tokenizer.encode(given.clip.where(given.known, decoded).to(tokenizer.dtype)).float()
        return again.where(self._cells, latents)

    def refined(self, estimate: Tensor, noise: float) -> Tensor | None:
        """The context encoded once more, with the clip that comes to be in the place of frames that are held.

        Args:
            estimate: of the clean latents, (b, c, t, h, w).
            noise: factor of the noise in them, 0 to 1.

        Returns:
            (b, c + 2, t, h, w); None too early, a second time, and where no latent is given altogether.
        """
        if self.context is None or self._refined or noise > _REFINED:
            return None
        self._refined = True
        masks = self.context[:, -MASKS:].expand(len(estimate), -1, -1, -1, -1)
        known = masks[:, :1] > 0
        if not known.any():
            return None
        latents = self.kept(estimate).where(known, self.context[:, :-MASKS])
        return torch.cat([latents, masks], dim=1)

    def finished(self, latents: Tensor) -> Tensor:
        """The last corrections."""
        for _ in range(_LAST_PASTES):
            latents = self.kept(latents)
        return latents

    def _context(self, factor: int) -> Tensor:
        """Latents all of whose frames are given, encoded with these held still beside them; single frames as stills."""
        clip, frames, tokenizer = self._given.clip, self._given.frames, self._tokenizer
        known = frames.unflatten(1, (-1, factor)).all(2)  # (n, t)
        if tokenizer is None:
            return context_of(clip, known)
        pixels = clip.to(tokenizer.dtype)
        latents = clip.new_zeros(len(clip), *tokenizer.latent_shape(*clip.shape[2:]))
        if known.any():
            latents = tokenizer.encode(pixels[:, :, _nearest(frames[0])]).float()
        still = torch.stack([frames[:, 0] & ~known[:, 0], frames[:, -1] & ~known[:, -1]], dim=1)
        stills = encode_stills(tokenizer, pixels) if still.any() else None
        return context_of(latents, known, stills, still)


def _nearest(known: Tensor) -> Tensor:
    """For each of t frames the known one that is nearest, bool (t,) to int64 (t,).

    A clip that ends where its known frames end has other last latents than one that goes on, as those in training do.
    """
    places, there = torch.arange(len(known), device=known.device), known.nonzero()[:, 0]
    return there[(places[:, None] - there).abs().argmin(1)]
