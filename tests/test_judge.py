"""The judge against the renderer's truth, on clean and spoilt clips, and on clips that show no class at all."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from vqvdm import judge as judging
from vqvdm.data import toy
from vqvdm.data.clouds import ToyClouds
from vqvdm.data.toy import CLASSES, FRAME_RATES, ToyClip, ToyMotions
from vqvdm.judge import NONE, Judgement, accuracy, displacement, displacement_ratio, judge

Spoil = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _clips(size: int, count: int, seed: int, frames: int = 16) -> list[ToyClip]:
    """Every class at every frame rate, in turn."""
    world = ToyMotions(size, frames, seed=seed)
    return [world.render(k, label=k % 10, fps=FRAME_RATES[k // 10 % 3]) for k in range(count)]


def _bytes(video: np.ndarray) -> np.ndarray:
    return video.clip(0, 255).round().astype(np.uint8)


def _blurred(video: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _bytes(gaussian_filter(video.astype(float), (0, 1.0, 1.0, 0)))


def _noisy(video: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _bytes(video + rng.normal(0, 8, video.shape))


def _compressed(video: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    def again(frame: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "jpeg", quality=30)
        return np.asarray(Image.open(file))

    return np.stack([again(frame) for frame in video])


def _as_generated(video: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Soft, noisy, with a background that wobbles and one frame in which the shape has all but faded."""
    soft = gaussian_filter(video.astype(float), (0, 1.3, 1.3, 0))
    faded = rng.integers(len(video))
    soft[faded] = gaussian_filter(soft[faded], (6, 6, 0))
    ramp = np.linspace(-1, 1, video.shape[1])
    level, across, down = rng.normal(0, 5, (3, len(video), 1, 1, 3))
    return _bytes(soft + level + across * ramp[:, None] + down * ramp[:, None, None] + rng.normal(0, 5, video.shape))


def test_classes_are_the_worlds() -> None:
    assert judging.CLASSES == toy.CLASSES == ToyMotions.classes
    assert set(judging.TRANSLATIONS) < set(CLASSES)


@pytest.mark.parametrize(("size", "count"), [(32, 300), (64, 180)])
def test_right_on_rendered_clips(size: int, count: int) -> None:
    clips = _clips(size, count, seed=4321)
    judgements = [judge(clip.video, clip.fps) for clip in clips]
    wrong = [(CLASSES[c.label], j.name) for c, j in zip(clips, judgements, strict=True) if j.label != c.label]
    assert accuracy(judgements, [clip.label for clip in clips]) >= 0.99, wrong
    for name in CLASSES:
        errors = [
            abs(j.speed / c.speed - 1) for c, j in zip(clips, judgements, strict=True) if c.label == CLASSES.index(name)
        ]
        assert np.median(errors) < 0.1, name
    assert np.median([judgement.clearness for judgement in judgements]) > 0.95


@pytest.mark.parametrize("spoil", [_blurred, _noisy, _compressed, _as_generated])
def test_right_on_spoilt_clips(spoil: Spoil) -> None:
    rng = np.random.default_rng(0)
    clips = _clips(32, 90, seed=99)
    judgements = [judge(spoil(clip.video, rng), clip.fps) for clip in clips]
    assert accuracy(judgements, [clip.label for clip in clips]) >= 0.9
    errors = [abs(j.speed / c.speed - 1) for c, j in zip(clips, judgements, strict=True) if j.label == c.label]
    assert np.median(errors) < 0.1


@pytest.mark.parametrize(("size", "frames"), [(48, 8), (32, 33), (128, 16)])
def test_right_at_other_sizes_and_lengths(size: int, frames: int) -> None:
    clips = _clips(size, 20, seed=7, frames=frames)
    assert accuracy([judge(clip.video, clip.fps) for clip in clips], [clip.label for clip in clips]) >= 0.95


def test_played_backwards() -> None:
    opposite = {
        "left": "right",
        "up": "down",
        "orbit-left": "orbit-right",
        "grow": "shrink",
        "spin": "spin",
        "bounce": "bounce",
    }
    for before, after in [*opposite.items(), *((b, a) for a, b in opposite.items())]:
        for index in range(3):
            clip = ToyMotions(32, 16, seed=8).render(index, label=CLASSES.index(before))
            assert judge(clip.video[::-1], clip.fps).name == after


def _never_a_class(videos: list[np.ndarray], allowed: float = 0.0) -> None:
    judgements = [judge(video, 12.0) for video in videos]
    assert np.mean([judgement.label != NONE for judgement in judgements]) <= allowed
    assert all(j.name == "none" and j.speed == 0 for j in judgements if j.label == NONE)
    assert all(0 <= j.clearness <= 1 and np.isfinite(j.displacement) for j in judgements)


def test_none_where_nothing_moves() -> None:
    rng = np.random.default_rng(1)
    still = [np.repeat(clip.video[:1], 16, axis=0) for clip in _clips(32, 30, seed=3)]
    _never_a_class(still)
    _never_a_class([_noisy(video, rng) for video in still])


def test_none_without_a_shape() -> None:
    rng = np.random.default_rng(2)
    shape = (16, 32, 32, 3)
    _never_a_class([np.full(shape, level, np.uint8) for level in (0, 128, 255)])
    _never_a_class([rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(20)])
    _never_a_class([_bytes(128 + rng.normal(0, 30, shape)) for _ in range(20)])
    _never_a_class([_bytes(gaussian_filter(128 + rng.normal(0, 900, shape), (1, 3, 3, 0))) for _ in range(20)])
    _never_a_class([ToyClouds(32, 16).render(index).video for index in range(20)], allowed=0.25)  # one may drift
    _never_a_class([np.zeros((2, 32, 32, 3), np.uint8)])  # too short to show a motion


def test_none_where_frames_are_out_of_order() -> None:
    rng = np.random.default_rng(3)
    world = ToyMotions(32, 16, seed=12)
    _never_a_class([world.render(k, label=k % 7).video[rng.permutation(16)] for k in range(28)], allowed=0.1)


def _discs(colours: np.ndarray, centres: np.ndarray, radii: tuple[float, ...]) -> np.ndarray:
    """Discs before grey in 16 frames of 48x48; centres (discs, 16, 2) in frame sides."""
    ticks = (np.arange(48) + 0.5) / 48
    video = np.full((16, 48, 48, 3), 128.0)
    for colour, path, radius in zip(colours, centres, radii, strict=True):
        distance = np.hypot(ticks - path[:, 0, None, None], ticks[:, None] - path[:, 1, None, None])
        coverage = np.clip(0.5 + (radius - distance) * 48, 0, 1)[..., None]
        video += coverage * (colour - video)
    return _bytes(video)


def test_none_with_two_shapes() -> None:
    """Two discs beside each other, of one colour or two, together or against each other; one alone is a class."""
    rng = np.random.default_rng(4)
    along = np.linspace(0.25, 0.75, 16)
    upper, lower = (np.stack([along, np.full(16, level)], axis=1) for level in (0.25, 0.75))
    videos, alone = [], []
    for index in range(24):
        colours = rng.choice([0.0, 255.0], (2, 3))
        colours[1] = colours[0] if index % 2 else 128 + (colours[1] - 128) * 0.6  # the second may contrast less
        paths = np.stack([upper, lower if index % 3 else lower[::-1]])
        videos.append(_discs(colours, paths, (0.15, 0.15 if index % 4 else 0.11)))
        alone.append(_discs(colours[:1], paths[:1], (0.15,)))
    _never_a_class(videos)
    assert {judge(video, 12.0).name for video in alone} == {"right"}


@pytest.mark.parametrize(("size", "most"), [(32, 0.065), (64, 0.025)])
def test_outlines_of_rendered_clips_stay(size: int, most: float) -> None:
    changes = [judge(clip.video, clip.fps).outline_change for clip in _clips(size, 60, seed=5)]
    assert np.nanmax(changes) < most
    assert np.isnan(changes).mean() < 0.2  # the shape is cut off by the frame's edge nearly all the time


@pytest.mark.parametrize(("before", "after"), list(itertools.combinations(toy.SHAPES, 2)))
def test_outlines_that_become_another_shapes_are_seen(before: str, after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = toy._signed_distance

    def becoming(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        first, second = (
            np.broadcast_to(plain(name, x, y), np.broadcast_shapes(x.shape, y.shape)) for name in (before, after)
        )
        return np.concatenate([first[:10], second[10:]])

    monkeypatch.setattr(toy, "_signed_distance", becoming)
    world, label = ToyMotions(64, 16, seed=3), CLASSES.index("orbit-left")
    clips = [world.render(index, label=label, fps=12) for index in (1, 2, 3)]  # 0 is cut off by the frame's edge
    judged = [judge(clip.video, 12) for clip in clips]
    assert not any(judgement.keeps_outline for judgement in judged)
    assert all(judgement.name == "orbit-left" for judgement in judged)  # whose word is on the motion alone


def test_outlines_that_cannot_be_seen_count_as_kept() -> None:
    assert judge(np.full((16, 32, 32, 3), 128, np.uint8), 12).keeps_outline


def test_displacement_halves_when_the_frame_rate_doubles() -> None:
    plain, doubled = (
        [
            judge(clip.video, fps)
            for k in range(42)
            for clip in [ToyMotions(32, 16, seed=30).render(k, label=k % 7, fps=fps)]
        ]
        for fps in (8.0, 16.0)
    )
    assert displacement_ratio(plain, doubled) == pytest.approx(0.5, abs=0.03)
    assert displacement_ratio(plain, plain) == 1.0
    assert displacement(plain)["left"] == pytest.approx(0.27 / 8, rel=0.2)  # the world's speeds are 0.22..0.32
    assert np.isnan(displacement_ratio(plain, []))


def test_summaries_by_hand() -> None:
    def of(name: str, step: float) -> Judgement:
        number = CLASSES.index(name) if name in CLASSES else NONE
        return Judgement(number, name, 0.0, step, 1.0)

    plain = [
        of("left", 0.02),
        of("left", 0.04),
        of("left", 0.06),
        of("orbit-left", 0.1),
        of("spin", 9.0),
        of("none", 9.0),
    ]
    assert displacement(plain) == {"left": 0.04, "orbit-left": 0.1}
    assert displacement_ratio(plain, [of("left", 0.01), of("orbit-left", 0.05)]) == pytest.approx((0.25 + 0.5) / 2)
    assert accuracy(plain[:2], [CLASSES.index("left"), 3]) == 0.5
