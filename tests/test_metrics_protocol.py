"""Protocols: which clips are drawn, that one line says it all, and each preset against the code it repeats."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest

from vqvdm.errors import InputError
from vqvdm.metrics.protocol import PRESETS, Protocol, draw_clips, preset

LENGTHS = np.array([16, 100, 15, 40, 16])  # the third is shorter than a clip


def draws(protocol: Protocol, count: int, stride: int = 1, repeat: int = 0) -> list[tuple[int, int]]:
    starts = np.maximum(LENGTHS - (protocol.frames - 1) * stride, 0)
    return [(draw.video, draw.start) for draw in draw_clips(starts, protocol, count, repeat)]


def test_one_window_of_each_video():
    found = draws(Protocol(), 99)
    assert sorted(video for video, _ in found) == [0, 1, 3, 4]
    assert all(0 <= start <= LENGTHS[video] - 16 for video, start in found)
    assert draws(Protocol(), 2) == found[:2]
    assert draws(Protocol(), 99) == found  # the seed decides
    assert draws(Protocol(), 99, repeat=1) != found
    assert draws(Protocol(seed=1), 99) != found


def test_every_video_and_every_window_has_its_chance():
    """Windows are uniform, the first and the last one included; videos come in any order."""
    starts = Counter(dict(draws(Protocol(seed=seed), 99))[3] for seed in range(2000))
    assert set(starts) == set(range(25))
    assert max(starts.values()) < 2 * 2000 / 25
    firsts = Counter(draws(Protocol(seed=seed), 1)[0][0] for seed in range(400))
    assert all(60 < firsts[video] < 140 for video in (0, 1, 3, 4))


def test_windows_of_any_video_favour_long_ones():
    """As TATS draws them: 85 + 25 + 1 + 1 windows, all different."""
    protocol = PRESETS["tats"]
    every = draws(protocol, 999)
    assert len(set(every)) == len(every) == 85 + 25 + 1 + 1
    share = np.mean([draws(protocol.changed(seed=seed), 1)[0][0] == 1 for seed in range(400)])
    assert share == pytest.approx(85 / 112, abs=0.07)


def test_the_first_ones_in_order():
    """As StyleGAN-V draws them: a few classes at the head of the list stand for all."""
    found = draws(PRESETS["stylegan-v"], 2)
    assert [video for video, _ in found] == [0, 1]


def test_stride_and_first_frame():
    found = draws(Protocol(window="first"), 99, stride=3)
    assert found == [(1, 0)]  # 46 frames are needed, the 40 of the fourth are too few
    assert {start for seed in range(500) for _, start in draws(Protocol(seed=seed), 9, stride=6)} == set(range(10))


def test_presets_are_what_their_codes_do():
    google, tats, stylegan, latte = (preset(name) for name in ("google", "tats", "stylegan-v", "latte"))
    assert (google.resize, google.epsilon, google.ddof, google.clips, google.quantise) == (
        "legacy", 1e-3, 1, 10_000, "none")  # fmt: skip
    assert (tats.resize, tats.epsilon, tats.ddof, tats.clips, tats.quantise, tats.split) == (
        "half_pixel", 1e-5, 1, 2048, "truncate", "train")  # fmt: skip
    assert (stylegan.resize, stylegan.epsilon, stylegan.ddof, stylegan.clips, stylegan.split) == (
        "half_pixel", 1e-3, 0, 2048, "all")  # fmt: skip
    assert (latte.stride, latte.fake_stride) == (3, 1)
    assert replace(latte, stride=1, name="stylegan-v") == stylegan
    with pytest.raises(InputError, match=r"no protocol named 'styleganv'; did you mean 'stylegan-v'\?"):
        preset("styleganv")


def test_one_line_says_everything():
    """Whatever differs between two protocols shows in their lines."""
    for field in fields(Protocol)[1:]:
        other = {"window": "any", "order": "sorted", "split": "test", "resize": "legacy", "fit": "crop"} | {
            "quantise": "none", "all_real": True, "side": 64, "epsilon": 0.5, "ddof": 0}  # fmt: skip
        changed = Protocol().changed(**{field.name: other.get(field.name, 17)})
        assert changed.name == "vqvdm+"
        assert changed.line() != Protocol(name="vqvdm+").line(), field.name
    assert Protocol().changed(clips=2048, seed=None) == Protocol()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"frames": 8}, "frames must be at least 9, not 8"),
        ({"clips": 1}, "clips must be at least 2"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"epsilon": 0.0}, "epsilon must be above 0"),
        ({"ddof": 2}, "ddof must be 0 or 1"),
        ({"side": 0}, "side must be at least 1"),
        ({"fps": 0.0}, "fps must be above 0"),
        ({"splits": 0}, "splits must be at least 1"),
    ],
)
def test_what_no_protocol_can_be(values, message):
    with pytest.raises(InputError, match=message):
        Protocol(**values)
