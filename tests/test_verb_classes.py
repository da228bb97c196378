"""The classifier of real clips, and the command that asks it for generated ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vqvdm import cli
from vqvdm.evaluation.classifier import fit, recognise


def drawn(generator: np.random.Generator, number: int, centres: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Features around a centre of each class."""
    labels = generator.integers(len(centres), size=number)
    return centres[labels] + generator.normal(size=(number, centres.shape[1])), [f"class {label}" for label in labels]


def test_shares_are_those_of_what_was_asked_for() -> None:
    generator = np.random.default_rng(0)
    centres = 20 * generator.normal(size=(4, 6))
    seen, unseen = drawn(generator, 80, centres), drawn(generator, 40, centres)
    features, labels = drawn(generator, 60, centres)
    asked = list(labels)
    for number in range(15):  # a quarter shows another class than was asked for
        asked[number] = f"class {(int(labels[number][-1]) + 1) % 4}"
    found = recognise(seen, unseen, (features, asked))
    assert (found.real, found.generated, found.chance) == (1.0, 0.75, 0.25)
    assert set(found.by_class) == {f"class {k}" for k in range(4)}
    for name, (real, made) in found.by_class.items():
        assert real == 1.0
        right = [a == b for a, b in zip(asked, labels, strict=True) if a == name]
        assert made == pytest.approx(np.mean(right))


def test_the_classifier_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    centres = 1.5 * generator.normal(size=(5, 8))  # so close that answers differ from fit to fit
    (features, names), (others, _) = drawn(generator, 200, centres), drawn(generator, 500, centres)
    features, others = (rows * np.arange(1, 9) + 3 for rows in (features, others))
    labels = [int(name[-1]) for name in names]
    theirs = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features, labels)
    assert np.mean(fit(features, labels)(others) == theirs.predict(others)) > 0.99


def test_a_class_that_nobody_made_has_no_share() -> None:
    generator = np.random.default_rng(0)
    centres = 20 * generator.normal(size=(3, 6))
    seen = drawn(generator, 60, centres)
    only = [number for number, label in enumerate(seen[1]) if label == "class 0"]
    found = recognise(seen, seen, (seen[0][only], ["class 0"] * len(only)))
    assert found.by_class["class 0"] == (1.0, 1.0)
    assert np.isnan(found.by_class["class 1"][1])


def test_the_command(commands, capsys) -> None:
    words = ["evaluate", "classes", "model", "--clips", "60", "--dtype", "float32", "--steps", "1"]
    assert cli.main([*words, "--reference", "toy", "--report", "made/classes.json"]) == 0
    found = json.loads((commands / "made" / "classes.json").read_text())
    assert 0 <= found["generated"] <= 1 and 0 <= found["real"] <= 1
    assert found["steps"] == 1
    printed = capsys.readouterr().out
    assert "learnt from 60 real clips" in printed and "generated (60)" in printed

    assert cli.main([*words, "--reference", "real.npy"]) == 2
    assert "no test split" in capsys.readouterr().err
    assert cli.main([*words, "--reference", "toy-clouds"]) == 2
    assert "no classes" in capsys.readouterr().err
