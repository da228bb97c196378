"""Whether a generated clip shows the class that was asked for, by a classifier that has seen real clips only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray


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
    names = sorted(set(seen[1]))
    predict = fit(seen[0], [names.index(label) for label in seen[1]])
    unseen_hits, made_hits = (
        _hits(np.asarray(names)[predict(features)], labels) for features, labels in (unseen, made)
    )
    by_class = {name: (_share(name, unseen[1], unseen_hits), _share(name, made[1], made_hits)) for name in names}
    return Recognised(float(unseen_hits.mean()), float(made_hits.mean()), 1 / len(names), by_class)


def fit(features: NDArray, labels: Sequence[int]) -> Callable[[NDArray], NDArray[np.int64]]:
    """Multinomial logistic regression on standardised features (n, d), with half of the weights' squares added.

    Returns:
        Gives the class of each row of other features (m, d).
    """
    mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-8)
    x = torch.from_numpy((features - mean) / scale).double()
    y = torch.tensor(labels)
    weight = torch.zeros(x.shape[1], int(y.max()) + 1, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(weight.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight + bias, y, reduction="sum") + weight.square().sum() / 2
        value.backward()
        return float(value.detach())

    optimizer.step(loss)
    fitted, offset = weight.detach().numpy(), bias.detach().numpy()
    return lambda others: ((others - mean) / scale @ fitted + offset).argmax(axis=1)


def _hits(found: NDArray, names: Sequence[str]) -> NDArray[np.bool_]:
    return np.asarray(found) == np.asarray(names)


def _share(name: str, names: Sequence[str], hits: NDArray[np.bool_]) -> float:
    of_class = np.asarray(names) == name
    return float(hits[of_class].mean()) if of_class.any() else math.nan
