"""Given latents: what the denoiser is shown of clips whose frames are partly known, and what it learns that from.

Beside the noisy latents it sees the known ones (zeros elsewhere) and two masks: where latents are known, and where in
their stead stands what a single frame encodes to when it is held still. The first kind continues videos, the second
begins or ends them with a picture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MASKS = 2  # channels beside the latents
# Shares of the clips that are given: their beginning, both ends, a still first frame, still first and last frames.
_SHARES = (0.5, 0.15, 0.2, 0.15)


def context_of(latents: Tensor, known: Tensor, stills: Tensor | None = None, still: Tensor | None = None) -> Tensor:
    """What the denoiser is shown.

    Args:
        latents: (b, c, t, h, w); those that are not known do not matter.
        known: bool (b, t), which of them are.
        stills: (b, 2, c, h, w), what the first and the last frame encode to when held still.
        still: bool (b, 2), which of those are given; they stand at the first and the last place.

    Returns:
        (b, c + 2, t, h, w)
    """
    b, _, t, h, w = latents.shape
    masks = latents.new_zeros(b, MASKS, t)
    masks[:, 0] = known.to(masks)
    shown = latents * masks[:, :1, :, None, None]
    if stills is not None and still is not None:
        for number, place in enumerate((0, -1)):
            given = still[:, number].to(masks)
            masks[:, 1, place] = given
            shown[:, :, place] += given[:, None, None, None] * stills[:, number].to(shown)
    return torch.cat([shown, masks[..., None, None].expand(-1, -1, -1, h, w)], dim=1)


def encode_stills(tokenizer: Any, clip: Tensor) -> Tensor:
    """What the first and the last frame of clips (b, c, t, h, w) encode to, each held still: (b, 2, c', h', w')."""
    frames = clip[:, :, [0, -1]].transpose(1, 2).flatten(0, 1)  # (2 b, c, h, w)
    held = frames[:, :, None].repeat(1, 1, tokenizer.factors[0], 1, 1)
    return tokenizer.encode(held).squeeze(2).unflatten(0, (-1, 2))


def drawn_context(latents: Tensor, stills: Tensor | None, share: float, chance: Tensor) -> Tensor:
    """What a training shows of clips that it knows altogether: nothing of most, of a share one of four things.

    Args:
        latents: (b, c, t, h, w).
        stills: (b, 2, c, h, w); without them beginnings take the place of still frames.
        share: of the clips of which something is given, 0 to 1.
        chance: (b, 3) numbers in 0..1: whether, what, and how much.

    Returns:
        As `context_of`.
    """
    t = latents.shape[2]
    whether, what, much = chance.to(latents.device).unbind(1)
    bounds = torch.tensor(_SHARES, device=latents.device).cumsum(0)[:-1]
    kind = (what[:, None] >= bounds).sum(1)
    if stills is None:
        kind = kind.masked_fill(kind >= 2, 0)
    if t < 3:  # with both ends nothing would be left to make
        kind = kind.masked_fill(kind == 1, 0)
    given = whether < share
    length = 1 + (much * (t - 1)).long()  # 1..t-1
    places = torch.arange(t, device=latents.device)
    begun = places < length[:, None]
    ends = (places == 0) | (places == t - 1)
    known = given[:, None] & torch.where((kind == 0)[:, None], begun, (kind == 1)[:, None] & ends)
    first, last = given & (kind >= 2), given & (kind == 3)
    return context_of(latents, known, stills, torch.stack([first, last], dim=1))
