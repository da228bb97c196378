"""Distances of features against scipy, scikit-learn, prdc, closed forms and published figures."""

from __future__ import annotations

import numpy as np
import prdc
import pytest
import scipy.linalg
from sklearn.metrics.pairwise import polynomial_kernel

from vqvdm.errors import InputError
from vqvdm.metrics import frechet_distance, inception_score, kernel_distance, moments, neighbours, novelty


def features(seed: int, n: int, d: int = 12) -> np.ndarray:
    """Correlated and skewed, of large mean, as logits are."""
    rng = np.random.default_rng(seed)
    return rng.gamma(2.0, size=(n, d)) @ rng.normal(size=(d, d)) + 3 * rng.normal(size=d)


def test_frechet_distance_is_scipy_s():
    x, y = features(0, 300), features(1, 211)
    means, covariances = (x.mean(0), y.mean(0)), (np.cov(x.T), np.cov(y.T))
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(moments(x), y) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_known_gaussians():
    """Diagonal covariances: |m1 - m2|^2 + sum of (s1 - s2)^2, exactly, with points that have these moments."""
    corners = np.array([[a, b] for a in (-1, 1) for b in (-1, 1)], float)  # mean 0, covariance (÷n) 1
    x, y = corners * [2, 3] + [1, 0], corners * [5, 1] + [4, 4]
    assert frechet_distance(x, y, ddof=0) == pytest.approx(9 + 16 + (2 - 5) ** 2 + (3 - 1) ** 2)
    assert frechet_distance(x, y, ddof=1) == pytest.approx(9 + 16 + 4 / 3 * (9 + 4))


def test_frechet_distance_where_the_covariance_is_singular():
    """Fewer vectors than dimensions, as in all small trials: finite, and 0 for equal sets."""
    x = features(0, 5, 40)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6 * np.trace(np.cov(x.T)))
    assert frechet_distance(x, x + 2) == pytest.approx(160, rel=1e-4)


def test_small_sets_seem_further_apart():
    """The bias that makes sample numbers part of every protocol."""

    def same(n: int) -> float:
        return np.mean([frechet_distance(*np.random.default_rng(seed).normal(size=(2, n, 20))) for seed in range(5)])

    assert same(40) > 1.5 * same(80) > 2.25 * same(160)
    kernel = [kernel_distance(*np.random.default_rng(seed).normal(size=(2, 40, 20))) for seed in range(40)]
    assert abs(np.mean(kernel)) < 3 * np.std(kernel) / np.sqrt(40)


def test_arguments_stay_as_they_are():
    x, y = features(0, 50), features(1, 60)
    copies = x.copy(), y.copy()
    first = frechet_distance(x, y), kernel_distance(x, y), neighbours(x, y)
    assert (frechet_distance(x, y), kernel_distance(x, y), neighbours(x, y)) == first
    np.testing.assert_array_equal(x, copies[0])
    np.testing.assert_array_equal(y, copies[1])


@pytest.mark.parametrize(("n", "m"), [(60, 45), (1100, 1030)])
def test_kernel_distance_is_scikit_learn_s(n, m):
    x, y = features(0, n), features(1, m)
    xx, yy, xy = polynomial_kernel(x), polynomial_kernel(y), polynomial_kernel(x, y)  # degree 3, gamma 1/d, coef0 1
    expected = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * xy.mean()
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert kernel_distance(x, y, unbiased=False) == pytest.approx(xx.mean() + yy.mean() - 2 * xy.mean(), rel=1e-9)


def test_jedi_s_example():
    """From the comments of JEDi's mmd_poly: degree 2, coef0 0, biased; 270.7 with gamma 1/d, 2436.5 with gamma 1."""
    x = np.arange(1, 10).reshape(3, 3)
    y = np.array([[7, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]])
    settings = {"degree": 2, "coef0": 0.0, "unbiased": False}
    assert kernel_distance(x, y, **settings) == pytest.approx(270.7222, abs=1e-4)
    assert kernel_distance(x, y, gamma=1.0, **settings) == pytest.approx(2436.5)


def test_neighbours_are_prdc_s():
    both = features(0, 210)
    real, fake = both[:90], 1.2 * both[90:]
    expected = prdc.compute_prdc(real, fake, nearest_k=5)
    assert neighbours(real, fake)._asdict() == pytest.approx(expected)
    assert 0 < expected["precision"] < 1
    assert 0 < expected["coverage"] < 1
    assert neighbours(real, fake, k=3)._asdict() == pytest.approx(prdc.compute_prdc(real, fake, nearest_k=3))


def test_novelty_tells_copies_from_new_draws(monkeypatch):
    real, fresh = np.random.default_rng(0).normal(size=(2, 300, 12))
    assert novelty(real, fresh) == pytest.approx(1, abs=0.05)
    assert novelty(real, real[:40]) == pytest.approx(0, abs=1e-6)
    assert novelty(real, 10 + fresh) > 3
    assert novelty([[0.0], [1.0], [5.0]], [[0.5], [2.0]]) == pytest.approx(0.75)  # medians of .5, 1 and of 1, 1, 4
    whole = novelty(real, fresh)
    monkeypatch.setattr("vqvdm.metrics.distances._BLOCK", 7)
    assert novelty(real, fresh) == pytest.approx(whole)


def test_neighbours_in_several_blocks(monkeypatch):
    both = features(0, 160)
    x, y = both[:90], both[90:]
    whole = neighbours(x, y), kernel_distance(x, y)
    monkeypatch.setattr("vqvdm.metrics.distances._BLOCK", 16)
    assert neighbours(x, y) == pytest.approx(whole[0])
    assert kernel_distance(x, y) == pytest.approx(whole[1])


def test_inception_score_of_known_cases():
    """As many as classes where each sample is sure and classes are even; 1 where all samples say the same."""
    sure = np.tile(np.eye(4), (5, 1))
    assert inception_score(sure, splits=5) == pytest.approx((4.0, 0.0))
    assert inception_score(np.full((20, 4), 0.25), splits=2) == pytest.approx((1.0, 0.0))
    # p = (1, 0) and (1/2, 1/2): marginal (3/4, 1/4); KL = log(4/3) and log(2/3)/2 + log(2)/2
    pair = np.array([[1.0, 0.0], [0.5, 0.5]])
    divergences = np.log(4 / 3), 0.5 * np.log(2 / 3) + 0.5 * np.log(2)
    assert inception_score(pair, splits=1).mean == pytest.approx(np.exp(np.mean(divergences)))


def test_inception_score_splits_in_order():
    probabilities = np.random.default_rng(0).dirichlet(np.full(6, 0.3), size=30)
    parts = [inception_score(part, splits=1).mean for part in np.split(probabilities, 3)]
    assert inception_score(probabilities, splits=3) == pytest.approx((np.mean(parts), np.std(parts)))
    assert inception_score(probabilities, splits=1).mean > np.mean(parts)  # small parts score lower


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(np.ones((1, 3)), np.ones((5, 3))), "holds 1 vectors; at least 2"),
        (lambda: frechet_distance(np.ones((4, 3)), np.ones((5, 2))), "3 and 2 dimensions"),
        (lambda: kernel_distance(np.ones((4, 3)), np.ones((5, 2))), "3 and 2 dimensions"),
        (lambda: kernel_distance(np.ones(3), np.ones((5, 3))), r"\(n, d\), not of shape \(3,\)"),
        (lambda: moments([[1, 2], [np.nan, 0], [np.inf, 0]]), "2 of 3 vectors are not finite"),
        (lambda: neighbours(np.ones((5, 2)), np.ones((9, 2))), "real holds 5 vectors; at least 6"),
        (lambda: inception_score([[0.5, 0.4]], 1), "sum to 1, not 0.9"),
        (lambda: inception_score([[0.5, 0.5]], 2), "splits must be from 1 to the number of samples 1, not 2"),
    ],
)
def test_what_cannot_be_measured(call, message):
    with pytest.raises(InputError, match=message):
        call()
