"""Distances between two sets of feature vectors, and the inception score of one set of class probabilities.

Plain functions of arrays (n, d); they know neither videos nor networks, compute in float64 and leave their arguments
as they are. FVD is `frechet_distance`, KVD `kernel_distance`, of I3D's logits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqvdm.errors import InputError

_BLOCK = 1024  # rows of a kernel or distance matrix that are in memory at a time


class Moments(NamedTuple):
    """Mean (d,) and covariance (d, d) of a set of features, which is all that the Frechet distance asks of it."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def moments(features: ArrayLike, *, ddof: int = 1) -> Moments:
    """Mean and covariance of features (n, d).

    Args:
        features: (n, d), n at least 2.
        ddof: 1 divides the covariance by n - 1 (Google, TATS), 0 by n (StyleGAN-V).

    Raises:
        InputError: fewer than two vectors, or values that are not finite.
    """
    values = _checked(features, "features", least=2)
    mean = values.mean(axis=0)
    centred = values - mean
    return Moments(mean, centred.T @ centred / (len(values) - ddof))


def frechet_distance(x: ArrayLike | Moments, y: ArrayLike | Moments, *, ddof: int = 1) -> float:
    """Squared Frechet distance of two Gaussians fitted to features (Dowson and Landau 1982; Heusel et al. 2017, eq. 6).

    |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)), the trace of the root from the eigenvalues of
    S1^(1/2) S2 S1^(1/2), which is symmetric, so that nothing complex can come of rounding.

    Args:
        x, y: features (n, d), whose numbers may differ, or their `Moments`.
        ddof: of the covariances, as in `moments`.

    Returns:
        At least 0. It is biased upwards by small sets, about as 1 / n, and the covariance has full rank only for n > d.

    Raises:
        InputError: fewer than two vectors, other dimensions, or values that are not finite.
    """
    first, second = (each if isinstance(each, Moments) else moments(each, ddof=ddof) for each in (x, y))
    if first.mean.shape != second.mean.shape:
        raise InputError(f"features have {len(first.mean)} and {len(second.mean)} dimensions; they must be the same")
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    trace_of_root = np.sqrt(np.linalg.eigvalsh(root @ second.covariance @ root).clip(min=0.0)).sum()
    difference = first.mean - second.mean
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return float(max(difference @ difference + traces - 2 * trace_of_root, 0.0))  # rounding may fall below 0


def kernel_distance(
    x: ArrayLike,
    y: ArrayLike,
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    unbiased: bool = True,
) -> float:
    """Squared maximum mean discrepancy with the kernel (gamma a.b + coef0)^degree (Gretton et al. 2012, eq. 3 and 5).

    The defaults are those of KID (Binkowski et al. 2018) on the whole sets at once, as KVD is computed.

    Args:
        x, y: features (n, d) and (m, d).
        gamma: None means 1 / d.
        unbiased: leave out each vector's kernel with itself; the result can be below 0.

    Raises:
        InputError: fewer than two vectors, other dimensions, or values that are not finite.
    """
    x, y = _checked(x, "x", least=2), _checked(y, "y", least=2)
    _check_dimensions(x, y)
    scale = 1.0 / x.shape[1] if gamma is None else gamma

    def total(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        """Sum of the kernel over all pairs."""
        blocks = (a[start : start + _BLOCK] @ b.T for start in range(0, len(a), _BLOCK))
        return float(sum(((scale * block + coef0) ** degree).sum() for block in blocks))

    def within(a: NDArray[np.float64]) -> float:
        """Mean of the kernel over the pairs of one set."""
        if not unbiased:
            return total(a, a) / len(a) ** 2
        own = ((scale * np.einsum("nd,nd->n", a, a) + coef0) ** degree).sum()
        return (total(a, a) - float(own)) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y))


class InceptionScore(NamedTuple):
    """Mean and deviation over the splits."""

    mean: float
    deviation: float


def inception_score(probabilities: ArrayLike, splits: int = 10) -> InceptionScore:
    """exp of the mean divergence of each sample's classes from those of all (Salimans et al. 2016, section 4).

    Args:
        probabilities: (n, classes), each row at least 0 and of sum 1.
        splits: parts, in the order given, that are scored apart; as equal as n allows; small parts score lower.

    Returns:
        From 1 to the number of classes; the deviation divides by the number of splits.

    Raises:
        InputError: rows that are no distribution, or more splits than samples.
    """
    values = _checked(probabilities, "probabilities", least=1)
    sums = values.sum(axis=1)
    if values.min() < 0 or np.abs(sums - 1).max() > 1e-3:
        raise InputError(f"probabilities must be at least 0 and sum to 1, not {sums[np.abs(sums - 1).argmax()]:.6g}")
    if not 1 <= splits <= len(values):
        raise InputError(f"splits must be from 1 to the number of samples {len(values)}, not {splits}")
    scores = []
    for part in np.array_split(values, splits):
        marginal = part.mean(axis=0)
        # Where p is 0, p log p is 0: no small number is added, which would move the score of confident networks.
        ratio = np.log(np.where(part > 0, part, 1.0)) - np.log(np.where(marginal > 0, marginal, 1.0))
        scores.append(np.exp((part * ratio).sum(axis=1).mean()))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


class Neighbours(NamedTuple):
    """Fidelity (precision, density) and diversity (recall, coverage); density alone can be above 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbours(real: ArrayLike, fake: ArrayLike, k: int = 5) -> Neighbours:
    """Precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2), density and coverage (Naeem et al. 2020, eq. 4, 6).

    Each set is the union of balls around its members that reach their k-th nearest neighbour within the set.

    Args:
        real, fake: features (n, d) and (m, d).
        k: 5 as in Naeem et al. 2020; Kynkaanniemi et al. 2019 take 3.

    Raises:
        InputError: sets of k or fewer vectors, other dimensions, or values that are not finite.
    """
    real, fake = _checked(real, "real", least=k + 1), _checked(fake, "fake", least=k + 1)
    _check_dimensions(real, fake)
    reach_real, reach_fake = _reach(real, k), _reach(fake, k)  # (n,), (m,)
    precise = np.zeros(len(fake), bool)
    recalled = np.zeros(len(real), bool)
    covered = np.zeros(len(real), bool)
    inside = 0
    for start in range(0, len(real), _BLOCK):
        rows = slice(start, start + _BLOCK)
        distance = _squared_distances(real[rows], fake)  # (rows, m)
        within_real = distance < reach_real[rows, None]
        precise |= within_real.any(axis=0)
        inside += int(within_real.sum())
        covered[rows] = within_real.any(axis=1)  # the nearest fake is within reach
        recalled[rows] = (distance < reach_fake).any(axis=1)
    return Neighbours(float(precise.mean()), float(recalled.mean()), inside / (k * len(fake)), float(covered.mean()))


def novelty(real: ArrayLike, fake: ArrayLike) -> float:
    """How far a fake is from the nearest real vector, in terms of how far real ones are from each other.

    The ratio of the median distances of each fake (m, d), and of each real vector (n, d), to the nearest (other) real
    one: 1 where fakes are as new as the real ones are to each other, 0 where they are copies. It is ours (after the
    nearest neighbours that are shown since Denton et al. 2015) and compares with no published figure.

    Raises:
        InputError: fewer than two real vectors, other dimensions, or values that are not finite.
    """
    real, fake = _checked(real, "real", least=2), _checked(fake, "fake", least=1)
    _check_dimensions(real, fake)
    blocks = [fake[start : start + _BLOCK] for start in range(0, len(fake), _BLOCK)]
    nearest = np.concatenate([_squared_distances(block, real).min(axis=1) for block in blocks])
    among_real = float(np.median(np.sqrt(_reach(real, 1))))
    return float(np.median(np.sqrt(nearest))) / max(among_real, 1e-12)


def _reach(features: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Squared distance of each vector to its k-th nearest neighbour in the set, itself not counted. (n,)"""
    blocks = []
    for start in range(0, len(features), _BLOCK):
        distance = _squared_distances(features[start : start + _BLOCK], features)
        blocks.append(np.partition(distance, k, axis=1)[:, k])  # the smallest is 0, the vector itself
    return np.concatenate(blocks)


def _squared_distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = np.einsum("nd,nd->n", a, a)[:, None] + np.einsum("nd,nd->n", b, b)
    return (squares - 2 * a @ b.T).clip(min=0.0)


def _checked(features: ArrayLike, name: str, least: int) -> NDArray[np.float64]:
    """A float64 copy of (n, d) that is fit to be measured."""
    values = np.array(features, dtype=np.float64)
    if values.ndim != 2:
        raise InputError(f"{name} must be an array (n, d), not of shape {values.shape}")
    if len(values) < least:
        raise InputError(f"{name} holds {len(values)} vectors; at least {least} are needed")
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values).all(axis=1)).sum())
        raise InputError(f"{name}: {bad} of {len(values)} vectors are not finite")
    return values


def _check_dimensions(x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    if x.shape[1] != y.shape[1]:
        raise InputError(f"features have {x.shape[1]} and {y.shape[1]} dimensions; they must be the same")
