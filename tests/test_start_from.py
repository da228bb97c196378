"""Weights to begin with: another tokenizer's, an image tokenizer's, and a decoder trained alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiny_training import TOKENIZER, TinyClips, open_tiny, tiny_recipe
from vqvdm.denoiser import VideoDenoiser
from vqvdm.errors import InputError
from vqvdm.latents import LatentCache, write_latents
from vqvdm.loading import load_tokenizer
from vqvdm.recipe import Recipe
from vqvdm.tokenizer import VideoTokenizer
from vqvdm.train import tokenizer as module
from vqvdm.train.start_from import start_denoiser_from, start_tokenizer_from
from vqvdm.train.tokenizer import train_tokenizer


@pytest.fixture(autouse=True)
def _tiny_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_dataset", open_tiny)


def starting_from(source: Path, steps: int, decoder_only: bool = False) -> Recipe:
    recipe = tiny_recipe(steps=steps)
    assert recipe.tokenizer is not None
    part = replace(recipe.tokenizer, start_from=str(source), decoder_only=decoder_only)
    return replace(recipe, tokenizer=part)


@pytest.mark.parametrize(("resampling", "pixels"), [("shortcut", 0), ("shortcut", 4), ("pooled", 0)])
def test_an_inflated_image_tokenizer_reconstructs_still_clips_as_images(resampling: str, pixels: int) -> None:
    settings = {"channels": (16, 32), "latent_channels": 4, "quantizer": "none", "resampling": resampling}
    settings["pixel_channels"] = pixels
    torch.manual_seed(0)
    images = VideoTokenizer(patch=(1, 4, 4), strides=((1, 2, 2),), **settings)  # type: ignore[arg-type]
    clips = VideoTokenizer(patch=(2, 4, 4), strides=((2, 2, 2),), **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in images.parameters():  # biases as well
            parameter.add_(0.02 * torch.randn_like(parameter))
    image = torch.rand(2, 3, 1, 32, 32) * 2 - 1
    images(image)  # norm and codebook learn
    start_tokenizer_from(clips, images)
    expected = images.eval()(image).reconstruction
    made = clips.eval()(image.expand(-1, -1, 8, -1, -1)).reconstruction
    torch.testing.assert_close(made, expected.expand(-1, -1, 8, -1, -1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(clips.encode(image.expand(-1, -1, 4, -1, -1)), images.encode(image))


@torch.no_grad()
def test_a_decoder_may_get_further_pixel_blocks() -> None:
    torch.manual_seed(0)
    few = VideoTokenizer(**TOKENIZER, pixel_channels=4, pixel_blocks=1).eval()
    few.decoder.pixels.blocks[0].out.weight.normal_()  # type: ignore[union-attr]
    many = VideoTokenizer(**TOKENIZER, pixel_channels=4, pixel_blocks=3).eval()
    start_tokenizer_from(many, few)
    clip = torch.rand(1, 3, 8, 32, 32) * 2 - 1
    torch.testing.assert_close(many(clip).reconstruction, few(clip).reconstruction)
    assert many.latents_fingerprint() == few.latents_fingerprint() and many.fingerprint() != few.fingerprint()
    with pytest.raises(InputError, match="another architecture"):
        start_tokenizer_from(few, many)


def test_other_differences_are_refused() -> None:
    wide, strided = VideoTokenizer(**{**TOKENIZER, "channels": (8, 16)}), {**TOKENIZER, "resampling": "strided"}
    with pytest.raises(InputError, match=r"tokenizer\.start_from names a network of another architecture"):
        start_tokenizer_from(VideoTokenizer(**TOKENIZER), wide)
    image = VideoTokenizer(**{**strided, "strides": ((1, 2, 2),)})
    with pytest.raises(InputError, match=r"of factors \(1, 4, 4\), where .* \(2, 4, 4\)"):
        start_tokenizer_from(VideoTokenizer(**strided), image)


def test_a_training_starts_from_another_once(tmp_path: Path) -> None:
    train_tokenizer(tiny_recipe(steps=2), tmp_path / "first")
    given = load_tokenizer(tmp_path / "first" / "tokenizer", "cpu").state_dict()
    rate = 1e-12  # so that nothing moves
    recipe = starting_from(tmp_path / "first", steps=1)
    assert recipe.tokenizer is not None
    slow = replace(recipe.tokenizer, training=replace(recipe.tokenizer.training, learning_rate=rate))
    train_tokenizer(replace(recipe, tokenizer=slow), tmp_path / "second")
    there = load_tokenizer(tmp_path / "second" / "tokenizer", "cpu").state_dict()
    for name, value in given.items():
        if name.startswith(("encoder.", "decoder.")):
            torch.testing.assert_close(there[name], value)

    faster = starting_from(tmp_path / "first", steps=2)
    train_tokenizer(faster, tmp_path / "second")
    moved = load_tokenizer(tmp_path / "second" / "tokenizer", "cpu").state_dict()
    train_tokenizer(starting_from(tmp_path / "nowhere", steps=2), tmp_path / "second")  # there is nothing left to do
    assert not torch.equal(moved["encoder.stem.weight"], given["encoder.stem.weight"])


def test_a_decoder_trained_alone_leaves_latents_as_they_are(tmp_path: Path) -> None:
    train_tokenizer(tiny_recipe(steps=3), tmp_path / "first")
    first = load_tokenizer(tmp_path / "first" / "tokenizer", "cpu")
    write_latents(first, TinyClips(), tmp_path / "first" / "latents", progress=False)

    train_tokenizer(starting_from(tmp_path / "first", 3, decoder_only=True), tmp_path / "second")
    second = load_tokenizer(tmp_path / "second" / "tokenizer", "cpu")
    LatentCache(tmp_path / "first" / "latents", second.latents_fingerprint())  # is accepted
    changed = {
        name.split(".")[0]
        for name, value in first.state_dict().items()
        if not torch.equal(value, second.state_dict()[name])
    }
    assert changed == {"decoder"}

    with pytest.raises(InputError, match=r"tokenizer\.decoder_only"):  # its optimisers are of other weights
        train_tokenizer(starting_from(tmp_path / "first", 4), tmp_path / "second")


def test_a_decoder_alone_needs_its_encoder() -> None:
    with pytest.raises(InputError, match=r"decoder_only is true, but.*set tokenizer.start_from"):
        Recipe.load("demo", ["tokenizer.decoder_only=true"])


@torch.no_grad()
@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("estimate", ["never", "later", "from the start"])
def test_a_denoiser_may_learn_to_heed_what_is_given_later(patch: tuple[int, int, int], estimate: str) -> None:
    torch.manual_seed(0)
    settings = {"in_channels": 3, "channels": (8, 16), "blocks": 1, "head_dim": 8, "num_classes": 2, "patch": patch}
    plain = VideoDenoiser(**settings, self_condition=estimate == "from the start").eval()  # type: ignore[arg-type]
    plain.head.weight.normal_()
    heeding = VideoDenoiser(**settings, self_condition=estimate != "never", context=True).eval()  # type: ignore[arg-type]
    start_denoiser_from(heeding, plain)
    noisy, labels, fps = torch.randn(2, 3, 2, 8, 8), torch.tensor([0, 2]), torch.full((2,), 8.0)
    guess, context = torch.randn_like(noisy), torch.randn(2, 5, 2, 8, 8)
    expected = plain(noisy, 500.0, labels, fps, estimate=guess)
    torch.testing.assert_close(heeding(noisy, 500.0, labels, fps, estimate=guess, context=context), expected)
    with pytest.raises(InputError, match="another architecture"):
        start_denoiser_from(plain, heeding)


@torch.no_grad()
@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2)])
def test_a_denoiser_may_learn_to_heed_its_estimate_later(patch: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    settings = {"in_channels": 3, "channels": (8, 16), "blocks": 1, "head_dim": 8, "num_classes": 2, "patch": patch}
    plain = VideoDenoiser(**settings).eval()  # type: ignore[arg-type]
    plain.head.weight.normal_()
    heeding = VideoDenoiser(**settings, self_condition=True).eval()  # type: ignore[arg-type]
    start_denoiser_from(heeding, plain)
    noisy, labels, fps = torch.randn(2, 3, 2, 8, 8), torch.tensor([0, 2]), torch.full((2,), 8.0)
    expected = plain(noisy, 500.0, labels, fps)
    torch.testing.assert_close(heeding(noisy, 500.0, labels, fps, estimate=torch.randn_like(noisy)), expected)
    with pytest.raises(InputError, match="another architecture"):
        start_denoiser_from(plain, heeding)
