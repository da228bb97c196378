"""Scores of one set of videos against another, both from files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

import vqvdm
from vqvdm.errors import InputError
from vqvdm.evaluation.features import Features, i3d_features, kept_features
from vqvdm.evaluation.scores import distribution_figures, warnings_of
from vqvdm.evaluation.sources import Frames, Videos, read_clips
from vqvdm.metrics.i3d import I3D
from vqvdm.metrics.motion import motion_features
from vqvdm.metrics.protocol import Draw, Protocol, draw_clips

_FORM = 1  # of what is kept; another one is made anew


@dataclass(frozen=True)
class Extractor:
    """I3D, and where and in what portions it runs."""

    network: I3D
    identity: str  # of its weights
    device: str = "cpu"
    batch: int = 4


def score_videos(
    fake: Videos, real: Videos, protocol: Protocol, extractor: Extractor, *, asked: int | None = None
) -> dict[str, Any]:
    """FVD and its relatives of `fake` against `real`, as a report of plain values.

    Args:
        asked: clips of each side; None takes the protocol's number, or all that there are if they are fewer, which the
            report warns of.

    Raises:
        InputError: too few videos are long enough, or fewer fakes than asked for.
    """
    protocol = protocol.changed(clips=asked)
    pairs = []
    for repeat in range(protocol.repeats):
        drawn = {
            "real": _drawn(real, protocol, protocol.stride, repeat),
            "fake": _drawn(fake, protocol, protocol.fake_stride, repeat),
        }
        if asked is not None and len(drawn["fake"]) < asked:
            raise InputError(
                f"{fake.name}: {asked} clips were asked for, and {len(drawn['fake'])} videos are long enough; make "
                f"more, or ask for fewer (--clips {len(drawn['fake'])})"
            )
        if not protocol.all_real:  # the smaller side decides, so that both have the bias of one number
            fewest = min(map(len, drawn.values()))
            drawn = {side: draws[:fewest] for side, draws in drawn.items()}
        pairs.append(
            (
                features_of(real, drawn["real"], protocol, protocol.stride, extractor),
                features_of(fake, drawn["fake"], protocol, protocol.fake_stride, extractor),
            )
        )
    counts = {side: len(features["logits"]) for side, features in zip(("real", "fake"), pairs[0], strict=True)}
    figures = distribution_figures(pairs, protocol)
    return {
        "metrics": {name: figure.plain() for name, figure in figures.items()},
        "protocol": {**asdict(protocol), "line": f"{protocol.line()}, real {counts['real']}, fake {counts['fake']}"},
        "counts": counts,
        "real": _description(real),
        "fake": _description(fake),
        "network": {"name": "I3D, Kinetics-400, logits", "weights": extractor.identity},
        "warnings": [*warnings_of(counts), *_skipping(real), *_skipping(fake)],
        "versions": {"vqvdm": vqvdm.__version__, "torch": torch.__version__, "numpy": np.__version__},
    }


def features_of(
    videos: Videos, draws: Sequence[Draw], protocol: Protocol, stride: int, extractor: Extractor
) -> Features:
    """I3D's logits (n, 400) and motion (n, 20) of these clips, kept in the cache by the content of the videos."""
    prepared = (protocol.frames, protocol.resize, protocol.fit, protocol.side, protocol.quantise, protocol.epsilon)
    facts = (videos.digest, [(draw.video, draw.start) for draw in draws], stride, prepared, extractor.identity)
    key = hashlib.sha256(repr((_FORM, facts)).encode()).hexdigest()[:24]

    def extract(clips: Iterable[Frames], number: int) -> Features:
        motion: list[np.ndarray] = []

        def watched() -> Iterator[Frames]:
            for clip in clips:
                motion.append(motion_features(clip))
                yield clip

        logits = i3d_features(
            watched(),
            extractor.network,
            protocol,
            total=number,
            batch=extractor.batch,
            device=extractor.device,
            name=f"features of {videos.name}",
        )
        return {"logits": logits, "motion": np.stack(motion)}

    return kept_features(
        key, lambda first: read_clips(videos, draws[first:], protocol.frames, stride), len(draws), extract
    )


def _drawn(videos: Videos, protocol: Protocol, stride: int, repeat: int) -> list[Draw]:
    wanted = len(videos.lengths) if protocol.all_real else protocol.clips
    draws = draw_clips(videos.lengths, protocol, wanted, stride, repeat)
    if len(draws) < 2:
        needed = (protocol.frames - 1) * stride + 1
        raise InputError(
            f"{videos.name}: {len(draws)} of {len(videos.lengths)} videos have the {needed} frames that a clip needs, "
            f"the longest has {int(videos.lengths.max())}; at least 2 are needed"
        )
    return draws


def _description(videos: Videos) -> dict[str, Any]:
    return {
        "name": videos.name,
        "split": videos.split,
        "videos": len(videos.lengths),
        "skipped": len(videos.skipped),
        "digest": videos.digest,
    }


def _skipping(videos: Videos) -> list[str]:
    if not videos.skipped:
        return []
    return [f"{videos.name}: {len(videos.skipped)} videos cannot be read (first: {videos.skipped[0]})"]
