"""Features to figures: FVD, KVD, precision, recall, density, coverage, each with its protocol beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vqvdm.evaluation.features import Features
from vqvdm.metrics import frechet_distance, kernel_distance, neighbours
from vqvdm.metrics.motion import motion_distance
from vqvdm.metrics.protocol import FEW, Protocol

NEAREST = 5


@dataclass(frozen=True)
class Figure:
    """One measure: mean over the protocol's draws, and their deviation if there is more than one."""

    value: float
    deviation: float | None
    better: str  # "lower" or "higher"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"value": self.value, "deviation": self.deviation, "better": self.better}


def distribution_figures(pairs: Sequence[tuple[Features, Features]], protocol: Protocol) -> dict[str, Figure]:
    """Figures of (real, fake) features, one pair a draw.

    Args:
        pairs: each side has `logits` (n, 400) and `motion` (n, 20).

    Returns:
        fvd, kvd, motion, precision, recall, density, coverage; the last four only of sets of more than 5 clips.
    """
    found: dict[str, list[float]] = {}
    for real_features, fake_features in pairs:
        real, fake = real_features["logits"], fake_features["logits"]
        figures = {
            "fvd": frechet_distance(real, fake, ddof=protocol.ddof),
            "kvd": kernel_distance(real, fake),
            "motion": motion_distance(real_features["motion"], fake_features["motion"]),
        }
        if min(len(real), len(fake)) > NEAREST:
            figures |= neighbours(real, fake, NEAREST)._asdict()
        for name, value in figures.items():
            found.setdefault(name, []).append(value)
    return {
        name: Figure(
            float(np.mean(values)),
            float(np.std(values)) if len(values) > 1 else None,
            "lower" if name in ("fvd", "kvd", "motion") else "higher",
        )
        for name, values in found.items()
    }


def warnings_of(counts: Mapping[str, int]) -> list[str]:
    """What keeps these figures from being claims.

    Args:
        counts: "real" and "fake" -> clips of a draw.
    """
    few = {side: number for side, number in counts.items() if number < FEW}
    if not few:
        return []
    listed = " and ".join(f"{number} {side}" for side, number in few.items())
    return [
        f"only {listed} clips: with fewer than {FEW} the covariance of I3D's logits is singular and FVD far too high; "
        "compare it with nothing but figures of the same numbers of clips"
    ]
