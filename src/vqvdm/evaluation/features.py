"""Clips to I3D features, as a protocol prepares them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor
from tqdm import tqdm

from vqvdm.evaluation.sources import Frames
from vqvdm.files import cache_folder, write_bytes
from vqvdm.metrics.i3d import CLASSES, I3D, SIDE
from vqvdm.metrics.protocol import Protocol
from vqvdm.metrics.resize import fit_square, resize

logger = logging.getLogger(__name__)

Features = dict[str, np.ndarray]  # kind -> (n, d)

_KEEP_EVERY = 512  # clips


def i3d_features(
    clips: Iterable[Frames],
    network: I3D,
    protocol: Protocol,
    *,
    total: int | None = None,
    batch: int = 4,
    device: torch.device | str = "cpu",
    name: str = "features",
) -> np.ndarray:
    """Logits of clips, one after another, however many there are.

    Args:
        clips: (t, h, w, 3) each, uint8 or float32 in 0..255; sizes may differ.
        network: with the protocol's epsilon.
        protocol: says how frames are prepared.
        total: number of clips, for the progress bar.
        batch: clips that the network sees at a time; changes memory and time, not the features.
        device: where the network runs, in float32 without TF32.
        name: of the progress bar.

    Returns:
        float32 (n, 400).
    """
    network = network.to(device)
    features: list[np.ndarray] = []
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with tqdm(total=total, desc=name, unit="clip", smoothing=0.05) as bar:
            for prepared in _batches((prepare(clip, protocol) for clip in clips), batch):
                features.append(network(prepared.to(device)).cpu().numpy())
                bar.update(len(prepared))
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
    return np.concatenate(features) if features else np.zeros((0, CLASSES), np.float32)


def prepare(clip: Frames, protocol: Protocol) -> Tensor:
    """Frames (t, h, w, 3), uint8 or float32 in 0..255 -> what I3D sees, (3, t, 224, 224) in -1..1."""
    frames = torch.from_numpy(clip.astype(np.float32)).permute(0, 3, 1, 2)  # (t, 3, h, w)
    if protocol.quantise != "none":  # changes nothing of uint8
        frames = frames.floor() if protocol.quantise == "truncate" else frames.round()
    if protocol.side is not None:
        frames = resize(frames, protocol.side, protocol.side, protocol.resize)
    frames = fit_square(frames, SIDE, protocol.resize, crop=protocol.fit == "crop")
    return (frames * (2 / 255) - 1).transpose(0, 1)


def _batches(clips: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """Stacks of up to `size`; the last one holds what is left."""
    part: list[Tensor] = []
    for clip in clips:
        part.append(clip)
        if len(part) == size:
            yield torch.stack(part)
            part = []
    if part:
        yield torch.stack(part)


def kept_features(
    key: str,
    clips: Callable[[int], Iterable[Frames]],
    total: int,
    extract: Callable[[Iterable[Frames], int], Features],
) -> Features:
    """Features from the cache, or computed and kept there; an interrupted computation goes on where it was.

    Args:
        key: of all that the features follow from.
        clips: from the n-th one onwards.
        total: clips in all, at least one.
        extract: clips and their number -> features of each kind, in their order.

    Returns:
        Of each kind (total, d).
    """
    file = cache_folder() / "features" / f"{key}.safetensors"
    known: Features = {}
    if file.is_file():
        try:
            known = load(file.read_bytes())
        except (SafetensorError, OSError):
            logger.warning("%s is damaged and is made anew", file)
    done = len(next(iter(known.values()))) if known else 0
    left = iter(clips(done))
    while done < total:
        number = min(_KEEP_EVERY, total - done)
        found = extract(islice(left, number), number)
        known = {kind: np.concatenate([known[kind], new]) if known else new for kind, new in found.items()}
        write_bytes(file, save(known))
        done += number
    return known
