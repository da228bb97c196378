"""The motion companion: it sees what is frozen, shuffled or reversed, and hardly anything else."""

from __future__ import annotations

import numpy as np
import pytest

from vqvdm.data.toy import CLASSES, ToyMotions
from vqvdm.errors import InputError
from vqvdm.metrics.motion import edge_speed, motion_distance, motion_features, smoothness

WORLD = ToyMotions(size=32, frames=16, seed=0)


def clips(first: int, count: int = 60, label: int | None = None) -> list[np.ndarray]:
    return [WORLD.render(first + number, label, fps=8).video for number in range(count)]


def features(videos: list[np.ndarray]) -> np.ndarray:
    return np.stack([motion_features(video) for video in videos])


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return features(clips(0))


@pytest.fixture(scope="module")
def others() -> list[np.ndarray]:
    return clips(1000)


def shuffled(video: np.ndarray) -> np.ndarray:
    return video[np.random.default_rng(0).permutation(len(video))]


def test_frozen_and_shuffled_frames_are_far_away(real, others):
    same = motion_distance(real, features(others))
    assert motion_distance(real, features([shuffled(video) for video in others])) > 5 * same
    assert motion_distance(real, features([np.repeat(video[:1], 16, axis=0) for video in others])) > 20 * same


def test_reversed_frames_are_seen_where_time_has_a_direction():
    """Shapes that grow, reversed, shrink."""
    grow = CLASSES.index("grow")
    real, same = features(clips(0, 40, grow)), features(clips(1000, 40, grow))
    backwards = features([video[::-1] for video in clips(1000, 40, grow)])
    assert motion_distance(real, backwards) > 5 * motion_distance(real, same)


def test_colours_and_noise_of_a_level_matter_little(real, others):
    """What FVD is for: the same motions in other colours."""
    same = motion_distance(real, features(others))
    assert motion_distance(real, features([255 - video for video in others])) < 2 * same
    assert motion_distance(real, features([np.ascontiguousarray(video[..., ::-1]) for video in others])) < 2 * same


@pytest.mark.parametrize("label", range(4))
def test_directions_of_edges(label):
    """A disc that moves: most edges into its direction; y points down."""
    video = WORLD.render(3, label, fps=8).video
    shares = motion_features(video)[6:14]
    ahead = {"left": 4, "right": 0, "up": 6, "down": 2}[CLASSES[label]]
    around = [shares[(ahead + turn) % 8] for turn in (-1, 0, 1)]
    assert sum(around) > 0.7
    outwards, down, right = motion_features(video)[15:18]
    assert np.argmax(np.abs([right, down])) == (0 if label < 2 else 1)
    assert (right if label < 2 else down) * {0: -1, 1: 1, 2: -1, 3: 1}[label] > 0.3
    assert abs(outwards) < 0.5


def test_reversal_changes_the_signs():
    video = WORLD.render(5, CLASSES.index("grow"), fps=8).video
    forth, back = motion_features(video), motion_features(video[::-1])
    np.testing.assert_allclose(back[3:6], -forth[3:6], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(back[15:18], -forth[15:18], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(back[:3], forth[:3])
    assert forth[15] > 0.1  # outwards


def test_still_clips_are_finite():
    still = np.full((16, 32, 32, 3), 80, np.uint8)
    assert np.isfinite(motion_features(still)).all()
    with pytest.raises(InputError, match="at least 5 frames, not 4"):
        motion_features(still[:4])


def test_speed_and_smoothness_have_the_size_of_what_moves(real):
    """A bar that moves by a pixel of 64 a frame, as it is, trembling and still."""
    video = np.zeros((16, 64, 64, 3), np.uint8)
    for number, frame in enumerate(video):
        frame[:, 16 + number : 24 + number] = 255
    moving = motion_features(video)[None]
    assert edge_speed(moving) == pytest.approx(0.5, rel=0.1)
    assert smoothness(moving) == pytest.approx(4, rel=0.1)
    trembling = motion_features(video[np.arange(16) % 2])[None]
    assert smoothness(trembling) < 0.1  # each change is undone
    still = motion_features(video[np.zeros(16, int)])[None]
    assert (edge_speed(still), smoothness(still)) == (0, 1)
    slow = features([WORLD.render(number, label=1, fps=16).video for number in range(20)])
    fast = features([WORLD.render(number, label=1, fps=8).video for number in range(20)])
    assert edge_speed(fast) > 1.5 * edge_speed(slow)
