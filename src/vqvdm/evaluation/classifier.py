"""Whether a generated clip shows the class that was asked for, by a classifier that has seen real clips only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


@dataclass(frozen=True)
class Recognised:
    """Shares of clips whose class the classifier names, 0..1."""

    real: float  # of real clips that it has not seen
    generated: float
    chance: float  # 1 / number of classes
    by_class: Mapping[str, tuple[float, float]]  # name -> (real, generated); nan where a side has none


def recognise(
    seen: tuple[NDArray, Sequence[str]], unseen: tuple[NDArray, Sequence[str]], made: tuple[NDArray, Sequence[str]]
) -> Recognised:
    """Fit multinomial logistic regression to features of real clips, and ask it for others.

    Args:
        seen: features (n, d) and classes (n,) of the real clips to learn from.
        unseen: of other real clips.
        made: of generated clips, with the classes that were asked for.
    """
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(*seen)
    unseen_hits, made_hits = (_hits(np.asarray(classifier.predict(rows)), names) for rows, names in (unseen, made))
    by_class = {
        str(name): (_share(name, unseen[1], unseen_hits), _share(name, made[1], made_hits))
        for name in classifier.classes_
    }
    return Recognised(float(unseen_hits.mean()), float(made_hits.mean()), 1 / len(classifier.classes_), by_class)


def _hits(found: NDArray, names: Sequence[str]) -> NDArray[np.bool_]:
    return np.asarray(found) == np.asarray(names)


def _share(name: str, names: Sequence[str], hits: NDArray[np.bool_]) -> float:
    of_class = np.asarray(names) == name
    return float(hits[of_class].mean()) if of_class.any() else math.nan
