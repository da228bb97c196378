"""The judge of the toy world: class and speed of a clip by measurement alone, without any network.

A clip of the world (`vqvdm.data.toy`) is one shape of one colour before a static, linear colour gradient. The judge
fits the background, measures how much of each pixel the shape covers, follows centre, radius and orientation over time,
and asks which of the world's motions explains them. It is made for generated clips too: every fit is robust and uses
all frames, and a clip without one clear moving shape gets the label `NONE`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

CLASSES = ("left", "right", "up", "down", "bounce", "orbit-left", "orbit-right", "spin", "grow", "shrink")
TRANSLATIONS = ("left", "right", "up", "down", "orbit-left", "orbit-right")  # the centre moves at a constant speed
NONE = -1  # no clear shape, or one that does nothing the world knows

_LARGEST = 64  # larger frames are averaged down to about this height first
_CONTRAST = 0.2  # distance in RGB (0..1) from the background below which nothing stands out
_LEAST_AREA = 0.004  # of the frame; a shape with less is absent from that frame
_LEAST_EXPLAINED = 0.8  # share of what stands out from the background that one shape of one colour must account for
_LEAST_FIT = 0.7  # share of the measured motion's variance that the class must account for
_LEAST_PATH = 0.05  # frame sides that the centre must travel to count as moving
_LEAST_GROWTH = 0.025  # frame sides by which the radius must change
_LEAST_TURN = 0.4  # radians that a spinning shape must turn
_LEAST_HARMONIC = 0.04  # rounder shapes have no orientation (a disc: below 0.02)
_LEAST_FRAMES = 4  # in which the whole shape is seen, before its outline can be compared
_SAME_OUTLINE = 0.12  # rendered clips: below 0.02; after a tokenizer: below 0.07; square to cross: 0.16


@dataclass(frozen=True)
class Judgement:
    """What the judge measured in one clip."""

    label: int  # index into CLASSES, or NONE
    name: str  # CLASSES[label], or "none"
    speed: float  # in the units of `ToyClip.speed`: frame sides (spin: radians) per second; 0 for NONE
    displacement: float  # path length of the centre per frame in frame sides, along the fitted motion
    clearness: float  # 0..1: share explained by one shape, times share of its motion explained by this label
    outline_change: float = float("nan")  # 0 or more, see `_outline_change`; nan if too few frames show the whole shape

    @property
    def keeps_outline(self) -> bool:
        """Whether the shape stays what it is, as far as it is seen whole."""
        return not self.outline_change > _SAME_OUTLINE


@dataclass(frozen=True)
class _Track:
    """The shape over time. Lengths are in frame heights, y points down."""

    coverage: np.ndarray  # (t, h, w) in 0..1: how much of the pixel is shape
    centre: np.ndarray  # (t,) complex, x + iy
    area: np.ndarray  # (t,) in squared frame heights
    present: np.ndarray  # (t,) 1.0 where the shape is seen, else 0.0
    explained: float  # share of what stands out from the background that the shape accounts for


@dataclass(frozen=True)
class _Fit:
    """A motion fitted to the track."""

    label: int
    speed: float
    path: np.ndarray  # (t,) complex: the fitted centre
    quality: float  # share of the motion's variance that is explained, 0..1


def judge(video: np.ndarray, fps: float) -> Judgement:
    """Measure which of `CLASSES` a clip of the toy world shows, and how fast.

    Args:
        video: uint8 (t, h, w, 3), 0..255.
        fps: frames per second.
    """
    assert video.shape[3:] == (3,), video.shape
    assert video.dtype == np.uint8, video.dtype
    if len(video) < 3:
        return Judgement(NONE, "none", 0.0, 0.0, 0.0)
    track = _track(_reduced(video))
    if track is None:
        return Judgement(NONE, "none", 0.0, 0.0, 0.0)
    change = _outline_change(track)
    if track.present.sum() < max(3, 0.5 * len(video)):
        return Judgement(NONE, "none", 0.0, 0.0, 0.0, change)
    time = np.arange(len(video)) / fps
    fit = _motion(track, time)
    displacement = float(np.abs(np.diff(fit.path)).mean())
    clearness = float(track.explained * fit.quality)
    if fit.label == NONE or track.explained < _LEAST_EXPLAINED or fit.quality < _LEAST_FIT:
        return Judgement(NONE, "none", 0.0, displacement, clearness, change)
    return Judgement(fit.label, CLASSES[fit.label], float(fit.speed), displacement, clearness, change)


def accuracy(judgements: Sequence[Judgement], labels: Iterable[int]) -> float:
    """Share of `judgements` whose class is the one in `labels`, 0..1."""
    hits = [judgement.label == int(label) for judgement, label in zip(judgements, labels, strict=True)]
    return float(np.mean(hits))


def displacement(judgements: Iterable[Judgement]) -> dict[str, float]:
    """Class -> median displacement per frame in frame sides, for the classes of `TRANSLATIONS` that were seen."""
    seen: dict[str, list[float]] = {}
    for judgement in judgements:
        if judgement.name in TRANSLATIONS:
            seen.setdefault(judgement.name, []).append(judgement.displacement)
    return {name: float(np.median(seen[name])) for name in TRANSLATIONS if name in seen}


def displacement_ratio(plain: Iterable[Judgement], doubled: Iterable[Judgement]) -> float:
    """Displacement per frame at the doubled frame rate over that at the plain one: 0.5 if the frame rate is obeyed.

    Compared class by class, since the classes differ in speed, then averaged; nan if no class was seen in both.
    """
    before, after = displacement(plain), displacement(doubled)
    ratios = [after[name] / before[name] for name in before if name in after]
    return float(np.mean(ratios)) if ratios else float("nan")


# Seeing: background, coverage, centre.


def _reduced(video: np.ndarray) -> np.ndarray:
    """Float32 frames in 0..1, averaged over whole blocks of pixels where they are large. (t, h, w, 3)"""
    block = max(1, round(video.shape[1] / _LARGEST))
    frames, height, width = video.shape[0], video.shape[1] // block, video.shape[2] // block
    video = video[:, : height * block, : width * block].astype(np.float32) / 255.0
    if block == 1:
        return video
    return video.reshape(frames, height, block, width, block, 3).mean((2, 4))


def _background(video: np.ndarray) -> np.ndarray:
    """The static gradient behind everything: a plane per colour, fitted to all frames by reweighting. (h, w, 3)"""
    _, height, width, _ = video.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    planes = np.stack([np.ones_like(x), x, y], axis=-1).astype(np.float32)  # (h, w, 3 terms)
    step = max(1, height // 24)
    seen = video[:, ::step, ::step].reshape(-1, 3)
    terms = np.broadcast_to(planes[None, ::step, ::step], (len(video), *planes[::step, ::step].shape)).reshape(-1, 3)
    weight = np.ones(len(seen), np.float32)
    coefficients = np.zeros((3, 3), np.float32)
    # Least absolute deviations (weight 1 / distance), then a kernel that narrows until the shape has no weight left.
    for scale in (None, None, None, None, 0.2, 0.15, 0.1, 0.07, 0.07):
        weighted = terms * weight[:, None]
        coefficients = np.linalg.solve(weighted.T @ terms + 1e-4 * np.eye(3, dtype=np.float32), weighted.T @ seen)
        distance = _length(seen - terms @ coefficients)
        weight = 1 / (distance + 0.02) if scale is None else np.exp(-0.5 * (distance / scale) ** 2)
    return planes @ coefficients


def _track(video: np.ndarray) -> _Track | None:
    """Follow the one shape in frames (t, h, w, 3) of 0..1; None if nothing stands out from the background."""
    background = _background(video)
    residual = video - background  # (t, h, w, 3)
    distance = _length(residual)
    strong = np.quantile(distance, 0.99)
    if strong < _CONTRAST:
        return None
    colour = np.median(video[distance > 0.75 * strong], axis=0)
    coverage = _coverage(residual, colour - background)
    core = coverage > 0.8
    if core.mean() > _LEAST_AREA:
        colour = np.median(video[core], axis=0)  # again, now from the whole shape and not where it contrasts most
        coverage = _coverage(residual, colour - background)
    region = _main_component(coverage)
    coverage = np.clip(coverage, 0.0, 1.0) * region

    # By squared distance (one colour), and by number of pixels (one place, also if another shape contrasts less).
    stands_out = distance > _CONTRAST
    unexplained = _length(residual - coverage[..., None] * (colour - background))[stands_out]
    by_colour = 1 - (unexplained**2).sum() / (distance[stands_out] ** 2).sum()
    by_place = (region & stands_out).sum() / stands_out.sum()
    explained = float(max(0.0, min(by_colour, by_place)))

    _, height, width = coverage.shape
    mass = coverage.sum((1, 2))
    x = coverage.sum(1) @ (np.arange(width) + 0.5) / np.maximum(mass, 1e-6)
    y = coverage.sum(2) @ (np.arange(height) + 0.5) / np.maximum(mass, 1e-6)
    area = mass / height**2
    present = (area > _LEAST_AREA).astype(float)
    return _Track(coverage, (x + 1j * y) / height, area, present, explained)


def _coverage(residual: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    """How far each pixel went from the background towards the shape's colour, 0 to 1 and a little beyond. (t, h, w)"""
    return np.einsum("thwc,hwc->thw", residual, contrast) / np.maximum(_length(contrast) ** 2, _CONTRAST**2)


def _length(colours: np.ndarray) -> np.ndarray:
    """Euclidean length over the last axis; much faster than numpy's norm for three colours."""
    return np.sqrt(np.einsum("...c,...c->...", colours, colours))


def _main_component(coverage: np.ndarray) -> np.ndarray:
    """Mask (t, h, w) of the largest connected region of each frame and the pixels beside it; noise falls away."""
    solid = _box(coverage, 1) > 0.35
    wide = _box(np.clip(coverage, 0.0, 1.0) * solid, max(2, coverage.shape[1] // 12))
    peaks = np.where(solid, wide, -1.0).reshape(len(coverage), -1).argmax(1)
    region = np.zeros_like(solid)
    region.reshape(len(coverage), -1)[np.arange(len(coverage)), peaks] = True
    region &= solid
    size = -1
    while size != (size := int(region.sum())):  # flood outwards from the peak
        region = _dilated(region) & solid
    return _dilated(_dilated(region))


def _box(values: np.ndarray, radius: int) -> np.ndarray:
    """Mean over squares of 2 radius + 1 pixels; edges are repeated. (t, h, w)"""
    width = 2 * radius + 1
    for axis in (1, 2):
        padding = [(0, 0)] * 3
        padding[axis] = (radius + 1, radius)
        total = np.cumsum(np.pad(values, padding, mode="edge"), axis=axis, dtype=np.float64)
        stop, start = np.moveaxis(total, axis, 0)[width:], np.moveaxis(total, axis, 0)[:-width]
        values = np.moveaxis((stop - start) / width, 0, axis)
    return values.astype(np.float32)


def _dilated(mask: np.ndarray) -> np.ndarray:
    grown = mask.copy()
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    grown[:, :, 1:] |= mask[:, :, :-1]
    grown[:, :, :-1] |= mask[:, :, 1:]
    return grown


# Deciding: each motion is an offset and one basis function of time, with a coefficient that says how much of it.


def _motion(track: _Track, time: np.ndarray) -> _Fit:
    """The motion that explains the track best: the centre's, else growth, else rotation."""
    moving = _fit_path(track.centre, track.present, time)
    growing, change = _fit_growth(track, time)
    travelled = float(np.abs(moving.path - moving.path[0]).max())
    if abs(change) > _LEAST_GROWTH and 2 * abs(change) > travelled:  # diameters against distances
        return growing
    if travelled > _LEAST_PATH:
        return moving
    return _fit_spin(track, time)


def _regress(basis: np.ndarray, path: np.ndarray, weight: np.ndarray, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares of path (t,) on 1 and each row of basis (m, t) by itself.

    `part` restricts the coefficient: "x" and "y" to motion along that axis, "up" to upwards, "any" not at all.

    Returns:
        coefficient (m,), complex, and the fitted paths (m, t).
    """
    share = weight / weight.sum()
    mean = path @ share
    centred = basis - (basis @ share)[:, None]
    power = np.maximum((np.abs(centred) ** 2) @ share, 1e-12)
    coefficient = (centred.conj() * (path - mean)) @ share / power
    if part == "x":
        coefficient = coefficient.real + 0j
    elif part == "y":
        coefficient = 1j * coefficient.imag
    elif part == "up":
        coefficient = 1j * np.minimum(coefficient.imag, 0.0)
    return coefficient, mean + coefficient[:, None] * centred


def _fit_path(path: np.ndarray, present: np.ndarray, time: np.ndarray) -> _Fit:
    """The best motion of the centre, reweighted against frames that lie far from it."""
    fit = _best_path(path, present, time)
    for _ in range(3):
        distance = np.abs(path - fit.path)
        scale = 0.01 + 3 * np.median(distance[present > 0])
        fit = _best_path(path, present / (1 + (distance / scale) ** 2), time)
    return fit


def _best_path(path: np.ndarray, weight: np.ndarray, time: np.ndarray) -> _Fit:
    """The best of standing still, the straight lines, bouncing and the orbits, each free number having its price.

    Ranges of period, turn and size are a little wider than the world's.
    """
    still = np.full_like(path, path @ weight / weight.sum())
    total = (np.abs(path - still) ** 2) @ weight

    def price(fit: _Fit, numbers: int) -> float:
        """Bayesian information criterion of `numbers` free numbers, for residuals of at least 0.003 frame sides."""
        residual = (np.abs(path - fit.path) ** 2) @ weight / weight.sum()
        return 2 * weight.sum() * np.log(residual + 0.003**2) + numbers * np.log(2 * weight.sum())

    def fitted(basis: np.ndarray, part: str, least: float, most: float) -> tuple[int, complex, np.ndarray, float]:
        """The best row of basis among those with a coefficient of least..most; all rows if there is none."""
        coefficient, paths = _regress(basis, path, weight, part)
        residual = (np.abs(path - paths) ** 2) @ weight
        size = np.abs(coefficient)
        row = int(np.where((size >= least) & (size <= most), residual, residual + 1e3).argmin())
        return row, complex(coefficient[row]), paths[row], float(1 - residual[row] / max(total, 1e-12))

    found = [(price(_Fit(NONE, 0.0, still, 1.0), 2), _Fit(NONE, 0.0, still, 1.0))]
    for part, back, ahead in (("x", "left", "right"), ("y", "up", "down")):
        _, slope, line, quality = fitted(time[None], part, 0.0, np.inf)
        velocity = slope.real + slope.imag  # one of them is zero
        fit = _Fit(CLASSES.index(ahead if velocity > 0 else back), abs(velocity), line, quality)
        found.append((price(fit, 3), fit))

    periods, phases = (grid.ravel() for grid in np.meshgrid(np.arange(0.9, 1.45, 0.025), np.arange(0, 1, 0.04)))
    flight = 1 - (2 * ((time / periods[:, None] + phases[:, None]) % 1.0) - 1) ** 2  # parabola, 0 on the floor
    row, height, line, quality = fitted(flight, "up", 0.15, 0.8)
    fit = _Fit(CLASSES.index("bounce"), 2 * abs(height) / periods[row], line, quality)
    found.append((price(fit, 5), fit))

    turns = np.arange(1.2, 5.0, min(0.1, 0.2 / max(time[-1], 1e-6)))
    for name, sign in (("orbit-left", -1), ("orbit-right", 1)):  # y points down: a growing angle is clockwise
        row, arm, line, quality = fitted(np.exp(1j * sign * turns[:, None] * time), "any", 0.08, 0.45)
        fit = _Fit(CLASSES.index(name), turns[row] * abs(arm), line, quality)
        found.append((price(fit, 5), fit))
    return min(found, key=lambda priced: priced[0])[1]


def _fit_growth(track: _Track, time: np.ndarray) -> tuple[_Fit, float]:
    """A straight line through the radius, and the radius it gains or loses over the clip."""
    radius = np.sqrt(track.area) * _radius_per_root_area(track)
    weight = track.present.copy()
    line = radius
    for _ in range(4):
        slope, paths = _regress(time[None], radius, weight, "x")
        line = paths[0].real
        distance = np.abs(radius - line)
        weight = track.present / (1 + (distance / (0.005 + 3 * np.median(distance[track.present > 0]))) ** 2)
    rate = float(slope[0].real)
    share = weight / weight.sum()
    spread = ((radius - radius @ share) ** 2) @ share
    quality = float(1 - ((radius - line) ** 2) @ share / max(spread, 1e-12))
    still = np.full_like(track.centre, track.centre @ share)
    return _Fit(CLASSES.index("grow" if rate > 0 else "shrink"), abs(rate), still, quality), rate * float(time[-1])


def _polar(track: _Track) -> np.ndarray:
    """Where each pixel lies from the shape's centre, complex x + iy, in frame heights. (t, h, w)"""
    _, height, width = track.coverage.shape
    x, y = (np.arange(width) + 0.5) / height, (np.arange(height) + 0.5) / height
    return ((x + 1j * y[:, None])[None] - track.centre[:, None, None]).astype(np.complex64)


def _harmonics(track: _Track) -> np.ndarray:
    """Angular harmonics 2..6 of the shape about its centre, of modulus 0..1. (5, t)

    The k-th one is the mean of exp(i k angle) over the shape, weighted by squared distance from the centre; its phase
    turns k times as fast as the shape.
    """
    offset = _polar(track)
    distance = np.abs(offset)
    direction = offset / np.maximum(distance, 1e-9)
    turned = track.coverage * distance**2  # times direction to the k
    total = np.maximum(turned.sum((1, 2)), 1e-12)
    turned, sums = turned * direction, []
    for _ in range(2, 7):
        turned = turned * direction
        sums.append(turned.sum((1, 2)) / total)
    return np.stack(sums)


def _reach(track: _Track) -> np.ndarray:
    """Radius of gyration over the root of the area, which depends on the shape alone. (t,)"""
    gyration = (track.coverage * np.abs(_polar(track)) ** 2).sum((1, 2)) / np.maximum(track.coverage.sum((1, 2)), 1e-6)
    return np.sqrt(gyration) / np.sqrt(np.maximum(track.area, 1e-6))


def _radius_per_root_area(track: _Track) -> float:
    """The world's radius over the root of the area, which depends on the shape; from the larger half of the frames.

    The radius of gyration is 0.64 of the world's radius, within 6%, for all shapes but the triangle (0.55), which
    alone has a third harmonic. Area alone is not blurred, so the radius over time is taken from it.
    """
    large = track.area >= np.median(track.area[track.present > 0])
    third = np.abs(_harmonics(track)[:, large]).mean(1)
    triangle = third[1] == third.max() and third[1] > _LEAST_HARMONIC
    return float(np.mean(_reach(track)[large])) / (0.55 if triangle else 0.64)


def _outline_change(track: _Track) -> float:
    """How far a shape's outline departs from its median over the clip, in the third worst frame; 0 or more.

    Of each frame in which the whole shape is seen: the moduli of its angular harmonics, which tell triangle, square
    and star apart however they turn, and four times the square of how far it reaches. Both are those of the shape at
    any place and size. nan where fewer than four frames show it whole.
    """
    edges = np.concatenate([track.coverage[:, [0, -1]].max(2), track.coverage[:, :, [0, -1]].max(1)], axis=1)  # (t, 4)
    whole = (edges.max(1) < 0.1) & (track.present > 0)
    if whole.sum() < _LEAST_FRAMES:
        return float("nan")
    outlines = np.stack([*np.abs(_harmonics(track)), 4 * _reach(track) ** 2])[:, whole]  # (6, t)
    far = np.linalg.norm(outlines - np.median(outlines, axis=1, keepdims=True), axis=0)
    return float(np.sort(far)[-3])


def _fit_spin(track: _Track, time: np.ndarray) -> _Fit:
    """The rate of turning at which the harmonics of all frames agree best."""
    harmonics = _harmonics(track) * track.present  # (5, t)
    orders = np.arange(2, 7)
    still = np.full_like(track.centre, track.centre @ track.present / track.present.sum())
    energy = (np.abs(harmonics) ** 2).sum(1)
    if np.sqrt(energy.sum() / track.present.sum()) < _LEAST_HARMONIC:
        return _Fit(NONE, 0.0, still, 1.0)
    fastest = min(5.0, np.pi / (5 * max(time[1], 1e-6)))  # beyond this a star is seen to turn the other way
    rates = np.arange(-fastest, fastest, 0.02)
    phases = np.exp(-1j * orders[:, None, None] * rates[:, None] * time)  # (5, rates, t)
    sums = np.abs(np.einsum("krt,kt->kr", phases, harmonics)) ** 2
    coherence = sums.sum(0) / (energy.sum() * track.present.sum())  # 1 where all frames agree
    best = int(coherence.argmax())
    rate = float(abs(rates[best]))
    if rate * time[-1] < _LEAST_TURN:
        return _Fit(NONE, 0.0, still, 1.0)
    return _Fit(CLASSES.index("spin"), rate, still, float(coherence[best]))
