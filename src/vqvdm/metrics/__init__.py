"""Figures of videos: distances of feature vectors, the networks that give them, and reconstruction.

Everything here is a function of arrays or clips; where they come from is the business of `vqvdm.evaluation`.
"""

from vqvdm.metrics.distances import (
    InceptionScore,
    Moments,
    Neighbours,
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    neighbours,
    novelty,
)

__all__ = [
    "InceptionScore",
    "Moments",
    "Neighbours",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "moments",
    "neighbours",
    "novelty",
]
