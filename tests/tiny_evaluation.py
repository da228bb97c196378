"""Videos and a stand-in for I3D, for the tests of evaluation; as a script it scores two arrays in several processes.

torchrun --nproc-per-node 2 tests/tiny_evaluation.py FAKE REAL REPORT
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vqvdm.data.clips import ClipTiming
from vqvdm.evaluation.features import Extractor, Network, extract
from vqvdm.evaluation.score import score
from vqvdm.evaluation.sides import DrawnVideos
from vqvdm.evaluation.sources import Clip, Videos
from vqvdm.metrics.protocol import Protocol


class Projection(nn.Module):
    """In the place of I3D: fixed random numbers of a clip, 400 of them, that depend on colours, places and frames."""

    def forward(self, clips: Tensor) -> Tensor:
        pooled = nn.functional.adaptive_avg_pool3d(clips, (clips.shape[2], 4, 4)).flatten(1)
        generator = torch.Generator().manual_seed(0)
        return pooled @ torch.randn(pooled.shape[1], 400, generator=generator)


EXTRACTOR = Extractor(Network("projection", Projection))


def videos(seed: int, n: int, frames: int = 16, size: int = 16) -> np.ndarray:
    """Smooth moving noise, uint8 (n, t, h, w, 3)."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(0, 255, (n, 1, size, size, 3)) + np.cumsum(rng.normal(0, 9, (n, frames, 1, 1, 3)), axis=1)
    return base.clip(0, 255).astype(np.uint8)


def score_videos(
    fake: Videos, real: Videos, protocol: Protocol, extractor: Extractor = EXTRACTOR, asked: int | None = None
) -> dict:
    """As the command does."""
    protocol = protocol.changed(clips=asked)
    sides = (
        DrawnVideos(videos, protocol, ClipTiming(protocol.frames, protocol.fps, stride), extractor)
        for videos, stride in ((fake, protocol.fake_stride), (real, protocol.stride))
    )
    return score(*sides, protocol, asked=asked).report


def logits(clips: np.ndarray, protocol: Protocol | None = None, batch: int = 4) -> np.ndarray:
    """(n, 400)"""
    extractor = Extractor(Network("projection", Projection), batch=batch)
    return extract((Clip(clip) for clip in clips), extractor, protocol or Protocol())["logits"]


def stored(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def main() -> None:
    from vqvdm.verbs import evaluate

    evaluate.load_i3d = lambda epsilon: Projection()  # pyrefly: ignore[bad-assignment]
    fake, real, report = sys.argv[1:]
    evaluate.files(fake, reference=real, report=Path(report))


if __name__ == "__main__":
    main()
