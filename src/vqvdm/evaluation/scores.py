"""Features to figures: distances of two sets of clips, scores of one, and the quality of reconstructions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqvdm.evaluation.features import Features
from vqvdm.metrics import InceptionScore, frechet_distance, inception_score, kernel_distance, neighbours, novelty
from vqvdm.metrics.motion import edge_speed, motion_distance, smoothness
from vqvdm.metrics.protocol import FEW, Protocol
from vqvdm.metrics.quality import psnr
from vqvdm.metrics.seams import AXES, seam

NEAREST = 5
_SHUFFLE = 42  # the seed with which StyleGAN-V shuffles before it splits
LABELS: Mapping[str, str] = {  # of figures, in the order in which they are shown
    "fvd": "FVD",
    "kvd": "KVD",
    "rfvd": "rFVD",
    "rkvd": "rKVD",
    "is": "IS",
    "kinetics_score": "Kinetics score",
    "judge": "judge",
    "outline": "outline kept",
    "motion": "motion",
    "edge_speed": "speed of edges",
    "smoothness": "smoothness",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "novelty": "novelty",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "lpips_vgg": "LPIPS (VGG)",
    "lpips_alex": "LPIPS (Alex)",
    "flicker": "flicker (grey levels)",
    "seam_time": "seam in time",
    "seam_space": "seam in space",
    "codebook_usage": "codebook usage",
    "codebook_perplexity": "codebook perplexity",
}
# Those of which less is better, and those that should be as among the real clips.
_AS_REAL = {"edge_speed", "smoothness", "novelty"}
_LOWER = {"fvd", "kvd", "rfvd", "rkvd", "motion", "lpips_vgg", "lpips_alex", "flicker", "seam_time", "seam_space"}


@dataclass(frozen=True)
class Figure:
    """One measure.

    Attributes:
        value: mean over the protocol's draws.
        deviation: over the draws; of one draw, over the splits of an inception score, else None.
        real: the same measure of the real clips, where it is one of a single set.
    """

    value: float
    deviation: float | None = None
    real: float | None = None

    def plain(self, name: str) -> dict[str, Any]:
        """For JSON."""
        better = "as real" if name in _AS_REAL else "lower" if name in _LOWER else "higher"
        found = {"value": self.value, "deviation": self.deviation, "better": better}
        return found if self.real is None else {**found, "real": self.real}


def figures_of(pairs: Sequence[tuple[Features, Features]], protocol: Protocol) -> dict[str, Figure]:
    """Figures of (real, fake) features, one pair a draw.

    Args:
        pairs: each side has `logits` (n, 400) and `motion` (n, 20), and may have `classes` (n, 101); generated clips
            of the toy world have `obeyed` (n,), 1 where the judge recognises the class that was asked for, and `whole`
            (n,), 1 where the shape keeps its outline.

    Returns:
        By the names of `LABELS`; precision, recall, density and coverage only of sets of more than 5 clips, scores of
        classes only where no split is empty.
    """
    draws = [_figures(real, fake, protocol) for real, fake in pairs]
    return {name: _over_draws([draw[name] for draw in draws]) for name in draws[0]}


def _figures(real: Features, fake: Features, protocol: Protocol) -> dict[str, Figure]:
    x, y = real["logits"], fake["logits"]
    found = {
        "fvd": Figure(frechet_distance(x, y, ddof=protocol.ddof)),
        "kvd": Figure(kernel_distance(x, y)),
        "motion": Figure(motion_distance(real["motion"], fake["motion"])),
        "edge_speed": Figure(edge_speed(fake["motion"]), real=edge_speed(real["motion"])),
        "smoothness": Figure(smoothness(fake["motion"]), real=smoothness(real["motion"])),
    }
    if "obeyed" in fake:
        found["judge"] = Figure(float(fake["obeyed"].mean()))
        found["outline"] = Figure(float(fake["whole"].mean()))
    scored = {
        "is": (real.get("classes"), fake.get("classes")),
        "kinetics_score": (_softmax(x), _softmax(y)),
    }
    for name, sides in scored.items():
        of_real, of_fake = (_score(side, protocol.splits) for side in sides)
        if of_fake is not None:
            found[name] = Figure(of_fake.mean, of_fake.deviation, None if of_real is None else of_real.mean)
    if min(len(x), len(y)) > NEAREST:
        found |= {name: Figure(value) for name, value in neighbours(x, y, NEAREST)._asdict().items()}
        found["novelty"] = Figure(novelty(x, y), real=1.0)
    return found


def _score(probabilities: NDArray | None, splits: int) -> InceptionScore | None:
    """Of clips in random order: splits of a few classes each, as of a sorted list, would score far too low."""
    if probabilities is None or len(probabilities) < splits:
        return None
    return inception_score(np.random.default_rng(_SHUFFLE).permutation(probabilities), splits)


def _softmax(logits: NDArray) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _over_draws(figures: Sequence[Figure]) -> Figure:
    if len(figures) == 1:
        return figures[0]
    values = [figure.value for figure in figures]
    reals = [figure.real for figure in figures if figure.real is not None]
    return Figure(float(np.mean(values)), float(np.std(values)), float(np.mean(reals)) if reals else None)


def reconstruction_figures(
    features: Features, codes: int, factors: Sequence[int]
) -> tuple[dict[str, Figure], dict[str, list[float]], dict[str, Any] | None]:
    """Figures of clips that brought their quality with them.

    Args:
        features: `squared_error` and `ssim` (n, t), `lpips_*` (n, t) and `tokens` (n, t, h, w[, books]) as far as there
            are. What `metrics.seams` measures is `change_*` (n, places - 1) and `flicker` (n,).
        codes: that each token could be.
        factors: frames, rows and columns of a latent place.

    Returns:
        The figures; each by the frame's number in the clip; and the codebook over all of the clips, if there is one:
        `size`, `tokens`, `used`, `usage` (used / size) and `perplexity`, exp of the entropy of the codes' shares; of
        several `books` the means over them.
    """
    kinds = {"psnr": psnr(features["squared_error"]), "ssim": features["ssim"]}
    kinds |= {kind: rows for kind, rows in features.items() if kind.startswith("lpips_")}
    figures = {kind: Figure(float(rows.mean())) for kind, rows in kinds.items()}
    figures["psnr"] = Figure(float(psnr(features["squared_error"].mean(axis=1)).mean()))  # of a clip, not of a frame
    if "flicker" in features:
        figures["flicker"] = Figure(float(features["flicker"].mean()))
        time, rows, columns = (seam(features[f"change_{axis}"], n) for axis, n in zip(AXES, factors, strict=True))
        seams = {"seam_time": time, "seam_space": (rows + columns) / 2}
        figures |= {name: Figure(value) for name, value in seams.items() if not math.isnan(value)}
    per_frame = {kind: rows.mean(axis=0).tolist() for kind, rows in kinds.items()}
    if "tokens" not in features:
        return figures, per_frame, None
    books = math.prod(features["tokens"].shape[4:])
    tokens = features["tokens"].reshape(-1, books)
    counts = [np.unique(book, return_counts=True)[1] for book in tokens.T]
    shares = [count / len(tokens) for count in counts]
    used = float(np.mean([len(count) for count in counts]))
    codebook = {
        "books": books,
        "size": codes,
        "tokens": len(tokens),
        "used": used,
        "usage": used / codes,
        "perplexity": float(np.mean([np.exp(-(share * np.log(share)).sum()) for share in shares])),
    }
    figures["codebook_usage"] = Figure(codebook["usage"])
    figures["codebook_perplexity"] = Figure(codebook["perplexity"])
    return figures, per_frame, codebook


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
