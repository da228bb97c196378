"""One side scored against another: draws matched in number, measured, and written down with all they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

import vqvdm
from vqvdm.errors import InputError
from vqvdm.evaluation.features import Features
from vqvdm.evaluation.models import ReconstructedVideos
from vqvdm.evaluation.scores import figures_of, reconstruction_figures, warnings_of
from vqvdm.evaluation.sides import DrawnVideos, Side
from vqvdm.metrics.protocol import Protocol

_SAME_PACE = 0.05  # share of a frame rate by which another one may differ without a word


@dataclass(frozen=True)
class Scored:
    """A report of plain values, and of the first draw the features (real, fake) that it rests on."""

    report: dict[str, Any]
    real: Features
    fake: Features


def score(fake: DrawnVideos, real: Side, protocol: Protocol, *, asked: int | None = None) -> Scored:
    """FVD and its relatives of `fake` against `real`; of reconstructions, what is measured clip by clip besides.

    Args:
        fake: with its clips drawn by the protocol.
        real: likewise, or a stored reference of the same protocol.
        protocol: what the report states.
        asked: clips that must be there on either side; None takes as many as there are.

    Raises:
        InputError: fewer than asked for.
    """
    pairs = []
    for repeat in range(protocol.repeats):
        counts = {"real": real.count(repeat), "fake": fake.count(repeat)}
        for side, count in counts.items():
            if asked is not None and count < asked:
                name = {"real": real, "fake": fake}[side].description()["name"]
                raise InputError(
                    f"{name}: {asked} clips were asked for, and {count} are there; get more, or ask for fewer "
                    f"(--clips {count})"
                )
        if not protocol.all_real:  # the smaller side decides, so that both have the bias of one number
            counts = dict.fromkeys(counts, min(counts.values()))
        pairs.append((real.features(repeat, counts["real"]), fake.features(repeat, counts["fake"])))
    return Scored(_report(fake, real, protocol, pairs), *pairs[0])


def _report(
    fake: DrawnVideos, real: Side, protocol: Protocol, pairs: list[tuple[Features, Features]]
) -> dict[str, Any]:
    counts = {side: len(features["logits"]) for side, features in zip(("real", "fake"), pairs[0], strict=True)}
    figures = figures_of(pairs, protocol)
    rest: dict[str, Any] = {}
    if isinstance(fake.videos, ReconstructedVideos):
        figures = {{"fvd": "rfvd", "kvd": "rkvd"}.get(name, name): figure for name, figure in figures.items()}
        every = {kind: np.concatenate([draw[kind] for _, draw in pairs]) for kind in pairs[0][1]}
        own, rest["per_frame"], rest["codebook"] = reconstruction_figures(
            every, *(fake.videos.facts[fact] for fact in ("codes", "factors"))
        )
        figures |= own
    sides = {"real": real.description(), "fake": fake.description()}
    stated = replace(protocol, split=sides["real"]["split"], clips=counts["fake"])
    return {
        "metrics": {name: figure.plain(name) for name, figure in figures.items()},
        **rest,
        "protocol": {**asdict(stated), "line": _line(stated, counts, fake)},
        "counts": counts,
        **{
            side: {**description, "skipped": len(description["skipped"]), "skipped_videos": description["skipped"]}
            for side, description in sides.items()
        },
        "networks": fake.extractor.identities(),
        "warnings": [
            *warnings_of(counts),
            *_paces(sides),
            *(line for side in sides.values() for line in _skipping(side)),
        ],
        "versions": {"vqvdm": vqvdm.__version__, "torch": torch.__version__, "numpy": np.__version__},
    }


def _line(protocol: Protocol, counts: Mapping[str, int], fake: DrawnVideos) -> str:
    """All that a figure depends on, for beside it."""
    networks = [f"{name} {identity}" for name, identity in fake.extractor.identities().items()]
    made = [f"{name} {value}" for name, value in fake.videos.facts.items()]
    sides = [f"real {counts['real']}", f"fake {counts['fake']}"]
    return ", ".join([protocol.line(), *sides, *networks, *made, f"vqvdm {vqvdm.__version__}"])


def _paces(sides: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A warning where both rates are known, and differ by more than a twentieth."""
    rates = {name: side.get("fps") for name, side in sides.items()}
    real, fake = rates["real"], rates["fake"]
    if real is None or fake is None or abs(real - fake) <= _SAME_PACE * max(real, fake):
        return []
    return [
        f"{sides['real']['name']} plays at {real:.4g} frames per second, {sides['fake']['name']} at {fake:.4g}: a clip "
        "of either shows another stretch of time, so motion differs for that alone (--fps takes both at one rate)"
    ]


def _skipping(side: Mapping[str, Any]) -> list[str]:
    skipped, lines = side["skipped"], []
    if skipped:
        lines.append(f"{side['name']}: cannot be read: {len(skipped)} (first: {skipped[0]})")
    if side["too_short"]:
        lines.append(f"{side['name']}: too short, and left out: {side['too_short']} of {side['videos']} videos")
    return lines
