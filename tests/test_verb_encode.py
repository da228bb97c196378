"""`vqvdm encode`: a run's tokenizer and a recipe's clips become the run's latents."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_pipeline import tiny_tokenizer
from vqvdm.data import open_dataset
from vqvdm.errors import InputError
from vqvdm.latents import LatentCache
from vqvdm.recipe import Recipe
from vqvdm.verbs.encode import encode, main
from vqvdm.video import write_video

torch.set_num_threads(1)

SETTINGS = (
    "data.frames=4",
    "data.size=16",
    "data.workers=0",
    "latents.windows=2",
    "latents.batch=3",
    "latents.shard=8",
)


@pytest.fixture
def clips(tmp_path) -> str:
    """An override that names a folder of two classes of three noisy videos, 12 frames each."""
    noise = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for number in range(3):
            video = noise.integers(0, 255, (12, 20, 24, 3), dtype=np.uint8)
            write_video(tmp_path / "videos" / "train" / name / f"{number}.mp4", video, 10)
    write_video(tmp_path / "videos" / "test" / "cat" / "9.mp4", video, 10)
    return f"data.path={tmp_path / 'videos'}"


@pytest.fixture
def run(tmp_path) -> Path:
    tiny_tokenizer().save_pretrained(tmp_path / "run" / "tokenizer")
    return tmp_path / "run"


def test_cache_holds_the_recipe_s_clips(clips, run, capsys):
    main("toy", clips, *SETTINGS, run=run, dtype="float32")
    assert "latents" in capsys.readouterr().out
    tokenizer = tiny_tokenizer()
    cache = LatentCache(run / "latents", tokenizer.latents_fingerprint())
    dataset = open_dataset(Recipe.load("toy", [clips, *SETTINGS]).data, "train")
    assert len(cache) == len(dataset) == 6 and cache.variants == 2
    assert cache.classes == dataset.classes == ("cat", "dog")
    for index in range(6):
        for window in range(2):
            item, clip = cache[(index, window)], dataset[(index, window)]
            torch.testing.assert_close(item["latents"], tokenizer.encode(clip["clip"][None])[0], atol=1e-5, rtol=0)
            assert item["class_label"] == clip["class_label"] and item["fps"] == clip["fps"]


def test_stored_flips_are_mirror_images_of_unflipped_clips(clips, run):
    settings = (clips, *SETTINGS, "data.flip=true", "latents.flips=true")
    main("toy", *settings, run=run, dtype="float32")
    cache, tokenizer = LatentCache(run / "latents"), tiny_tokenizer()
    plain = open_dataset(Recipe.load("toy", [clips, *SETTINGS, "data.flip=false"]).data, "train")
    assert cache.variants == 4
    clip = plain[(4, 1)]["clip"][None]
    torch.testing.assert_close(cache[(4, 2)]["latents"], tokenizer.encode(clip)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(cache[(4, 3)]["latents"], tokenizer.encode(clip.flip(-1))[0], atol=1e-5, rtol=0)


def test_again_does_nothing_until_something_changes(clips, run):
    recipe = Recipe.load("toy", [clips, *SETTINGS])
    files = [encode(recipe, run) / "shard-00000.safetensors"]
    before = files[0].stat().st_mtime_ns
    encode(Recipe.load("toy", [clips, *SETTINGS, "data.workers=1"]), run)
    assert files[0].stat().st_mtime_ns == before
    tiny_tokenizer(1).save_pretrained(run / "tokenizer")
    encode(recipe, run)
    assert files[0].stat().st_mtime_ns > before
    LatentCache(run / "latents", tiny_tokenizer(1).latents_fingerprint())


def test_videos_that_changed_are_encoded_again(clips, run, tmp_path):
    recipe = Recipe.load("toy", [clips, *SETTINGS])
    shard = encode(recipe, run) / "shard-00000.safetensors"
    before = shard.read_bytes()
    for path in sorted((tmp_path / "videos" / "train").rglob("*.mp4")):
        write_video(path, np.full((12, 20, 24, 3), 99, np.uint8), 10)
    encode(recipe, run)
    assert shard.read_bytes() != before


def test_toy_worlds_that_changed_are_encoded_again(run, monkeypatch):
    recipe = Recipe.load("toy", [*SETTINGS, "data.toy_clips=4"])
    shard = encode(recipe, run) / "shard-00000.safetensors"
    before, time = shard.read_bytes(), shard.stat().st_mtime_ns
    encode(recipe, run)
    assert shard.stat().st_mtime_ns == time
    monkeypatch.setattr("vqvdm.data.toy.SHAPES", ("disc", "star"))
    encode(recipe, run)
    assert shard.read_bytes() != before


def test_wrong_input(clips, run, tmp_path):
    with pytest.raises(InputError, match="holds no tokenizer; train one first: vqvdm train tokenizer RECIPE --run"):
        main("toy", clips, run=tmp_path / "empty")
    with pytest.raises(InputError, match="diffuses pixels"):
        main("vdm", clips, run=run)
    with pytest.raises(InputError, match=re.escape("a clip of 5 frames of 16x16 cannot be divided")):
        main("toy", clips, *SETTINGS, "data.frames=5", run=run)
    with pytest.raises(InputError, match="nowhere"):
        main("toy", "data.path=nowhere", *SETTINGS, run=run)
