"""Clips to features, one row a clip: what networks see in them, how they move, and what their source measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor, nn
from tqdm import tqdm

from vqvdm.data.clips import ClipTiming
from vqvdm.errors import InputError, logger_of
from vqvdm.evaluation.sources import Clip, Frames, Videos, read_clips
from vqvdm.files import cache_folder, write_bytes
from vqvdm.metrics.i3d import SIDE
from vqvdm.metrics.motion import motion_features
from vqvdm.metrics.protocol import Draw, Protocol
from vqvdm.metrics.resize import fit_square, resize
from vqvdm.processes import this_process

logger = logger_of(__name__)

Features = dict[str, np.ndarray]  # kind -> (n, ...); "logits" (n, 400), "motion" (n, 20), "classes" (n, 101)
Item = TypeVar("Item")

_KEEP_EVERY = 256  # clips
_FORM = 3  # of what is kept; another one is made anew


class Network:
    """Weights under a name, read when they are first needed."""

    def __init__(self, identity: str, load: Callable[[], nn.Module]) -> None:
        self.identity, self._load = identity, load
        self._module: nn.Module | None = None

    def on(self, device: torch.device | str) -> nn.Module:
        """The network, on that device."""
        self._module = (self._module or self._load()).to(device)
        return self._module


@dataclass(frozen=True)
class Extractor:
    """The networks, and where and in what portions they run."""

    i3d: Network  # with the protocol's epsilon
    c3d: Network | None = None  # for the Inception Score of clips of 16 frames
    device: str = "cpu"
    batch: int = 4  # clips at a time: changes memory and time, not the features

    def identities(self) -> dict[str, str]:
        """Network -> name of its weights."""
        return {"i3d": self.i3d.identity} | ({} if self.c3d is None else {"c3d": self.c3d.identity})


def extract(
    clips: Iterable[Clip], extractor: Extractor, protocol: Protocol, *, total: int | None = None, name: str = "features"
) -> Features:
    """Features of clips, one after another, however many there are; float32 on every device, without TF32.

    Args:
        clips: their sizes may differ.
        protocol: says how frames are prepared.
        total: number of clips, for the progress bar.
        name: of the progress bar.

    Returns:
        One row a clip of each kind: `logits`, `motion`, `classes` if there is a C3D, and the clips' own measures.
        Nothing at all if there are no clips.
    """
    rows: dict[str, list[np.ndarray]] = {}
    i3d = extractor.i3d.on(extractor.device)
    classifier = None if extractor.c3d is None else extractor.c3d.on(extractor.device)
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    shown = this_process().is_main_process
    try:
        with tqdm(total=total, desc=name, unit="clip", smoothing=0.05, disable=not shown) as bar:
            for portion in _portions(clips, extractor.batch):
                part = [replace(clip, frames=quantised(clip.frames, protocol)) for clip in portion]
                found = {
                    "logits": i3d(_stacked(prepare(clip.frames, protocol, extractor.device) for clip in part)),
                    "motion": np.stack([motion_features(clip.frames) for clip in part]),
                }
                if classifier is not None:
                    found["classes"] = classifier(_stacked(_signed(clip.frames, extractor.device) for clip in part))
                for kind in part[0].measures:
                    found[kind] = np.stack([clip.measures[kind] for clip in part])
                for kind, values in found.items():
                    rows.setdefault(kind, []).append(values.cpu().numpy() if isinstance(values, Tensor) else values)
                bar.update(len(part))
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
    return {kind: np.concatenate(parts) for kind, parts in rows.items()}


def prepare(frames: Frames, protocol: Protocol, device: torch.device | str = "cpu") -> Tensor:
    """Frames (t, h, w, 3), uint8 or float32 in 0..255 -> what I3D sees, (3, t, 224, 224) in -1..1."""
    pictures = torch.from_numpy(np.array(frames)).to(device).float().permute(0, 3, 1, 2)  # (t, 3, h, w)
    if protocol.side is not None:
        pictures = resize(pictures, protocol.side, protocol.side, protocol.resize)
    pictures = fit_square(pictures, SIDE, protocol.resize, crop=protocol.fit == "crop")
    return (pictures * (2 / 255) - 1).transpose(0, 1)


def quantised(frames: Frames, protocol: Protocol) -> Frames:
    """Frames in 0..255 in the steps that the protocol gives them; changes nothing of uint8."""
    if protocol.quantise == "none" or frames.dtype == np.uint8:
        return frames
    return (np.floor(frames) if protocol.quantise == "truncate" else np.round(frames)).astype(np.float32)


def _signed(frames: Frames, device: str) -> Tensor:
    """Frames (t, h, w, 3) in 0..255 -> (3, t, h, w) in -1..1."""
    return torch.from_numpy(np.array(frames)).to(device).float().permute(3, 0, 1, 2) * (2 / 255) - 1


def _stacked(clips: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(clips))


def _portions(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of up to `size`; the last one holds what is left."""
    left = iter(items)
    while part := list(islice(left, size)):
        yield part


def features_of(
    videos: Videos, draws: Sequence[Draw], protocol: Protocol, timing: ClipTiming, extractor: Extractor
) -> Features:
    """Features of these clips, kept in the cache by the content of the videos.

    Several processes (torchrun) share the work and all get the whole. An interrupted computation goes on where it was.
    """
    prepared = (protocol.resize, protocol.fit, protocol.side, protocol.quantise, protocol.epsilon)
    facts = (videos.digest, [(draw.video, draw.start) for draw in draws], timing, prepared, extractor.identities())
    key = hashlib.sha256(repr((_FORM, facts)).encode()).hexdigest()[:24]

    def measure(part: Sequence[Draw]) -> Features:
        clips = read_clips(videos, part, timing)
        shown = videos.name if len(videos.name) < 32 else f"...{videos.name[-28:]}"
        return extract(clips, extractor, protocol, total=len(part), name=f"features of {shown}")

    return kept_features(key, draws, measure)


def kept_features(key: str, draws: Sequence[Draw], measure: Callable[[Sequence[Draw]], Features]) -> Features:
    """Features from the cache, or computed by all processes together and kept there.

    Args:
        key: of all that the features follow from.
        draws: at least one.
        measure: some of the draws -> their features of each kind, in their order; none -> nothing.

    Returns:
        Of each kind one row a draw.
    """
    processes = this_process()
    file = cache_folder() / "features" / f"{key}.safetensors"
    known = _read(file) if processes.is_main_process else {}
    if processes.num_processes > 1:
        known = broadcast_object_list([known])[0]  # others may see another disk
    done = len(next(iter(known.values()))) if known else 0
    while done < len(draws):
        part = draws[done : done + _KEEP_EVERY]
        found = _measured_together(part, measure, processes)
        known = {kind: np.concatenate([known[kind], new]) if known else new for kind, new in found.items()}
        if processes.is_main_process:
            _keep(file, known)
        done += len(part)
    return known


def _keep(file: Path, known: Features) -> None:
    try:
        write_bytes(file, save({kind: np.ascontiguousarray(values) for kind, values in known.items()}))
    except InputError as error:  # a cache that cannot be written, as a shared one, costs time and nothing else
        logger.warning("features are not kept: %s", error)


def _read(file: Path) -> Features:
    if not file.is_file():
        return {}
    try:
        return load(file.read_bytes())
    except (SafetensorError, OSError):
        logger.warning("%s is damaged and is made anew", file)
        return {}


def _measured_together(
    draws: Sequence[Draw], measure: Callable[[Sequence[Draw]], Features], processes: PartialState
) -> Features:
    """Every process measures each n-th draw; the rows are put back into the draws' order."""
    count = processes.num_processes
    if count == 1:
        return measure(draws)
    shares: list[Features] = gather_object([measure(draws[processes.process_index :: count])])
    joined: Features = {}
    for first, share in enumerate(shares):
        for kind, rows in share.items():
            whole = joined.setdefault(kind, np.empty((len(draws), *rows.shape[1:]), rows.dtype))
            whole[first::count] = rows
    return joined
